//! What a crowd of devices did and was told, by which it is judged.

use std::sync::Arc;
use std::time::Instant;

/// One request and what came of it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who asked.
    pub device: Arc<str>,
    /// Whom.
    pub gate: Arc<str>,
    /// Whether it was a report; otherwise a question.
    pub report: bool,
    /// When it began.
    pub sent: Instant,
    /// When the answer was there, or none was to be expected any more.
    pub ended: Instant,
    /// The HTTP status; 0: no answer.
    pub status: u16,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
}

/// An observation that was acknowledged.
#[derive(Debug, Clone)]
pub struct Ack {
    /// Whose.
    pub device: Arc<str>,
    /// `namespace/name` of the process.
    pub process: Arc<str>,
    /// What was reported.
    pub content: u64,
    /// When that report began.
    pub sent: Instant,
    /// When the answer was there.
    pub at: Instant,
}

/// A time in which a device said nothing.
#[derive(Debug, Clone)]
pub struct Silence {
    /// Who.
    pub device: Arc<str>,
    /// After this it sends nothing.
    pub from: Instant,
    /// Its return.
    pub until: Option<Instant>,
}

/// One report, or one question, with all the managers that were tried for it.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who.
    pub device: Arc<str>,
    /// Its begin.
    pub begun: Instant,
    /// Its end.
    pub ended: Instant,
    /// How many managers were asked.
    pub attempts: usize,
    /// Whether one of them answered 200; for a question 304 is as good.
    pub acked: bool,
}

/// A content when it was sent for the first time.
#[derive(Debug, Clone)]
pub struct Said {
    /// `namespace/name` of the process.
    pub process: Arc<str>,
    /// What was reported.
    pub content: u64,
    /// When.
    pub at: Instant,
}

/// Everything that the devices did and were told.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Every request.
    pub attempts: Vec<Attempt>,
    /// What was acknowledged.
    pub acks: Vec<Ack>,
    /// Who was away when.
    pub silences: Vec<Silence>,
    /// Reports with their retries.
    pub turns: Vec<Turn>,
    /// Questions with theirs.
    pub questions: Vec<Turn>,
    /// When each content was said first.
    pub said: Vec<Said>,
    /// What no device should ever see: a 404, a missing item, a revision that goes back.
    pub complaints: Vec<String>,
}
