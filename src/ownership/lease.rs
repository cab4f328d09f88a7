//! Pure: when the lead may be taken and for how long it is held; client-go's rules.
//!
//! - Others' clocks decide nothing: a foreign holder is gone when its record did not *change* for 15 seconds on the
//!   own clock. Time is `CLOCK_BOOTTIME`, which goes on while the process or the machine sleeps.
//! - The lead is held for 10 seconds from *before* the last successful write was sent, so the holder has stopped
//!   before anybody else may start, whatever the clocks' drift up to a fifth.
//! - Every write names the version that it replaces. A write whose answer is lost is found out by looking: the record
//!   holds the incarnation, so that one knows one's own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// A foreign record that does not change for so long is given up.
pub const DURATION_MS: u64 = 15_000;
/// The lead is held for so long after the last good renewal was sent.
pub const RENEW_DEADLINE_MS: u64 = 10_000;
/// The holder renews so often.
pub const RETRY_MS: u64 = 2_000;
/// Between two tries after a failure.
const PAUSE_MS: u64 = 500;
/// Candidates for a free Lease do not all come at once; they spread over so much.
const SPREAD_MS: u64 = 100;

/// Who holds a Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The replica's name.
    pub identity: Arc<str>,
    /// The start of its process; 0 when the record does not say.
    pub incarnation: u64,
}

/// What the Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// resourceVersion.
    pub version: u64,
    /// Who holds it; none when it was released.
    pub holder: Option<Holder>,
    /// How often it changed hands.
    pub term: u64,
}

/// What a candidate should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing for so many milliseconds, unless something new is observed.
    Wait(u64),
    /// Read the Lease and [`Candidate::observe`] it.
    Look,
    /// Create the Lease with oneself as its holder.
    Create {
        /// For the record.
        term: u64,
    },
    /// Replace this version by a record with oneself as its holder.
    Acquire {
        /// The version to replace, and no other.
        version: u64,
        /// For the record.
        term: u64,
    },
    /// The same while holding it.
    Renew {
        /// The version to replace, and no other.
        version: u64,
        /// For the record.
        term: u64,
    },
    /// The lead is lost: whatever works under it must have stopped before the next step is asked for.
    Lost,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written; the version that the Lease has now.
    Written(u64),
    /// Certainly not written, because the Lease is not what it was.
    Conflict,
    /// Perhaps written, or never: no answer, or an error.
    Unknown,
}

#[derive(Debug)]
struct Held {
    until_ms: u64,
    term: u64,
}

/// One replica's side of the election. Requests are made one at a time; observations may come in between.
#[derive(Debug)]
pub struct Candidate {
    me: Holder,
    /// The newest that is known; the outer none before anything is.
    known: Option<Option<Record>>,
    /// Not to be taken before.
    blocked_ms: u64,
    /// When the last thing was learned that only a later question can correct.
    learned_ms: u64,
    held: Option<Held>,
    lost: bool,
    look: bool,
    next_ms: u64,
}

/// The lead was not held (any more) when a write was about to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the lead is lost")]
pub struct LostLead;

/// The right to write as the leader, with its end. Every leader write shows it right before it is sent. Clones share
/// the end, which renewals move and which never comes back once it has been called.
#[derive(Clone)]
pub struct Lead {
    until_ms: Arc<AtomicU64>,
    term: u64,
}

// === impl Lead ===

impl Lead {
    /// The lead of a term until a moment of the boot clock.
    #[must_use]
    pub fn new(term: u64, until_ms: u64) -> Self {
        Self { until_ms: Arc::new(AtomicU64::new(until_ms)), term }
    }

    /// A lead that only [`Lead::end`] ends; for tests.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(1, u64::MAX)
    }

    /// Whether it is held at a moment of the boot clock.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, boot_now_ms: u64) -> Result<(), LostLead> {
        if boot_now_ms < self.until_ms.load(Ordering::Acquire) { Ok(()) } else { Err(LostLead) }
    }

    /// Grows with each change of hands.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Moves the end; without effect after [`Lead::end`].
    pub fn extend(&self, until_ms: u64) {
        let later = |end: u64| (end != 0 && end < until_ms).then_some(until_ms);
        // An end that is later already, or for good, stays.
        let _ = self.until_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// Ends it now and for good.
    pub fn end(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lead {{ term: {}, until_ms: {} }}", self.term, self.until_ms.load(Ordering::Relaxed))
    }
}

impl PartialEq for Lead {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.until_ms, &other.until_ms)
    }
}

// === impl Candidate ===

impl Candidate {
    /// Knows nothing yet. `incarnation` is random for each start of the process.
    #[must_use]
    pub fn new(identity: &str, incarnation: u64) -> Self {
        Self {
            me: Holder { identity: identity.into(), incarnation },
            known: None,
            blocked_ms: 0,
            learned_ms: 0,
            held: None,
            lost: false,
            look: false,
            next_ms: 0,
        }
    }

    /// Takes in what the Lease was (none: there was none) when asked at `asked_ms`; the answer came at `now_ms`.
    /// Answers may overtake each other, and those of lists come in between.
    pub fn observe(&mut self, lease: Option<Record>, asked_ms: u64, now_ms: u64) {
        let newest = self.known.as_ref().and_then(Option::as_ref);
        match (&lease, newest) {
            // Versions tell which of two records is the older one.
            (Some(record), Some(newest)) if record.version < newest.version => return,
            (Some(record), Some(newest)) if record.version == newest.version => {
                self.look = false;
                return;
            }
            // That there is nothing has no version.
            (None, Some(_)) if asked_ms <= self.learned_ms => return,
            (None, None) if self.known.is_some() => {
                self.look = false;
                return;
            }
            _ => {}
        }
        self.look = false;
        self.learn(lease, now_ms);
    }

    /// A list did not show the Lease. It may have lost its labels, so that is a reason to look, and no more.
    pub fn missed(&mut self) {
        self.look |= matches!(self.known, Some(Some(_)));
    }

    /// What to do now. After each step but [`Step::Wait`] and [`Step::Lost`] its result is due, see
    /// [`Candidate::result`], before the next one is asked for.
    pub fn decide(&mut self, now_ms: u64) -> Step {
        if self.held.as_ref().is_some_and(|held| now_ms >= held.until_ms) {
            self.lose();
        }
        if std::mem::take(&mut self.lost) {
            return Step::Lost;
        }
        if now_ms < self.next_ms {
            return Step::Wait(self.next_ms - now_ms);
        }
        let Some(known) = self.known.as_ref().filter(|_| !self.look) else { return Step::Look };
        match (known, &self.held) {
            (Some(record), Some(held)) => Step::Renew { version: record.version, term: held.term },
            (None, Some(held)) => Step::Create { term: held.term },
            _ if now_ms < self.blocked_ms => Step::Wait(self.blocked_ms - now_ms),
            (Some(record), None) => Step::Acquire { version: record.version, term: record.term + 1 },
            (None, None) => Step::Create { term: 1 },
        }
    }

    /// The outcome of a step that was sent at `sent_ms`; of [`Step::Look`] only when it failed.
    pub fn result(&mut self, step: Step, sent_ms: u64, now_ms: u64, outcome: Outcome) {
        let (Step::Create { term } | Step::Acquire { term, .. } | Step::Renew { term, .. }) = step else {
            self.next_ms = now_ms + PAUSE_MS;
            return;
        };
        match outcome {
            Outcome::Written(version) => {
                let newer = self.known.as_ref().and_then(Option::as_ref).filter(|known| known.version > version);
                // Somebody's edit has been seen meanwhile; whose the Lease is now is not what was written.
                if newer.is_some_and(|newer| newer.holder.as_ref() != Some(&self.me)) {
                    self.look = true;
                    return;
                }
                if newer.is_none() {
                    self.learn(Some(Record { version, holder: Some(self.me.clone()), term }), now_ms);
                }
                self.look = false;
                self.held = Some(Held { until_ms: sent_ms + RENEW_DEADLINE_MS, term });
                self.next_ms = sent_ms + RETRY_MS;
            }
            Outcome::Conflict => {
                self.look = true;
                self.next_ms = now_ms;
            }
            Outcome::Unknown => {
                self.look = true;
                self.next_ms = now_ms + PAUSE_MS;
            }
        }
    }

    /// Until when the lead is held, by the boot clock, and its term. Past that moment it is not.
    #[must_use]
    pub fn held(&self) -> Option<(u64, u64)> {
        self.held.as_ref().map(|held| (held.until_ms, held.term))
    }

    /// Whether the lead is held at a moment.
    #[must_use]
    pub fn holds(&self, now_ms: u64) -> bool {
        self.held.as_ref().is_some_and(|held| now_ms < held.until_ms)
    }

    /// The identity in the newest record.
    #[must_use]
    pub fn leader(&self) -> Option<&Arc<str>> {
        Some(&self.known.as_ref()?.as_ref()?.holder.as_ref()?.identity)
    }

    /// Lets go; nothing may work under the lead any more. The version to be replaced by a record without a holder,
    /// with its term, when the newest one names this process.
    pub fn release(&mut self) -> Option<(u64, u64)> {
        self.held = None;
        self.lost = false;
        let record = self.known.as_ref()?.as_ref()?;
        (record.holder.as_ref() == Some(&self.me)).then_some((record.version, record.term))
    }

    /// `record` is news.
    fn learn(&mut self, record: Option<Record>, now_ms: u64) {
        let holder = record.as_ref().and_then(|record| record.holder.as_ref());
        let spread = spread(self.me.incarnation, record.as_ref().map_or(0, |record| record.version));
        self.blocked_ms = match holder {
            // The same name means this process, or one that is dead: a pod's container starts again after it has ended.
            Some(holder) if holder.identity == self.me.identity => now_ms,
            Some(_) => now_ms + DURATION_MS + spread,
            // Released.
            None if record.is_some() => now_ms + spread,
            // Deleted, which a holder may not know yet.
            None => self.blocked_ms.max(now_ms + spread),
        };
        if record.is_some() && holder != Some(&self.me) {
            self.lose();
        }
        self.known = Some(record);
        self.learned_ms = now_ms;
    }

    fn lose(&mut self) {
        self.lost |= self.held.take().is_some();
    }
}

/// Chance enough: the incarnation is random.
fn spread(incarnation: u64, version: u64) -> u64 {
    super::rendezvous::weight(incarnation, version) % SPREAD_MS
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
