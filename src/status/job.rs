//! Pure: what is known of an object that is to be written, and when it is tried again.
//!
//! Times are milliseconds on one monotonic clock. Where chance is needed, the caller passes a function that picks a
//! number between two, both included.

use super::budget::Budgets;
use super::projection::{Change, Input, Introduction, Reported, fence, project};
use super::queue::{Lane, Merge};
use crate::desired::lean::Process;
use crate::desired::record::LastReport;
use crate::presence::staleness::AgentState;
use std::sync::Arc;

/// Conflicts in a row before an object goes back to the queue, so that others get their turn.
pub const CONFLICTS: u32 = 5;
/// Longest pause after that, the first time and ever, milliseconds.
const CONFLICT_PAUSE_MS: (u64, u64) = (50, 1_000);
/// After so long a patch whose answer was lost is not on its way any more, milliseconds.
const DOUBT_MS: u64 = 120_000;
/// Longest pause between tries of one object, milliseconds.
const MAX_BACKOFF_MS: u64 = 10_000;

/// Something to look at: what is new about an object. What its agent is doing is looked up when the patch is derived.
/// `W` is how somebody who waits for it is told.
#[derive(Debug)]
pub struct Job<W> {
    /// The newest observation, of a DeviceProcess.
    pub reported: Option<Arc<Reported>>,
    /// The newest that the agent said of itself, of a NetworkSwitch.
    pub introduction: Introduction,
    /// Whether nobody waits for it and it may go when there is nothing better to do.
    pub lazy: bool,
    /// Whether the object has to be read live before it is said that nothing is to be written of it, or not yet: as far
    /// as is known here, another replica may have written it since.
    pub unsure: bool,
    /// To be told when it is written, or there was nothing to write.
    pub waiting: Vec<W>,
    /// Tries that failed.
    attempts: u32,
    /// How often it has gone back to the queue for conflicts.
    contended: u32,
    doubt: Option<Doubt>,
}

/// A patch whose answer was lost: it may have been written, or be written yet, as long as the object has the version
/// that it names.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// The transition counter before it.
    transitions: u64,
    /// The version that it names.
    revision: u64,
    /// When there was a doubt first.
    since_ms: u64,
}

// === impl Job ===

impl<W> Default for Job<W> {
    fn default() -> Self {
        Self::wanted(None, Introduction::default(), false)
    }
}

impl<W> Job<W> {
    /// What a report said that the status does not say yet.
    #[must_use]
    pub fn wanted(reported: Option<Arc<Reported>>, introduction: Introduction, lazy: bool) -> Self {
        Self {
            reported,
            introduction,
            lazy,
            unsure: false,
            waiting: Vec::new(),
            attempts: 0,
            contended: 0,
            doubt: None,
        }
    }

    /// Tries that failed.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The place of the observation in the order of reports.
    #[must_use]
    pub fn order(&self) -> Option<&LastReport> {
        self.reported.as_ref()?.order.as_ref()
    }

    /// What is to be written of a DeviceProcess as it is; `None` when that is nothing, and no patch that may still come
    /// can undo what is acknowledged. `counts` is [`Input::counts`], `now` wall time, seconds since 1970.
    #[must_use]
    pub fn change(&self, process: &Process, agent: AgentState, counts: bool, now: i64) -> Option<Change> {
        let input = Input { agent, counts, reported: self.reported.as_deref() };
        project(process, input, now).or_else(|| {
            self.doubt?;
            fence(&process.status, self.order()?)
        })
    }

    /// The observation was overtaken by a newer report, and must not undo what came of that one. Returns who waits for
    /// it: they get no acknowledgement, and say it anew if it is still so.
    #[must_use]
    pub fn supersede(&mut self) -> Vec<W> {
        self.reported = None;
        std::mem::take(&mut self.waiting)
    }

    /// The answer to a patch was lost that was based on the object as it is here.
    pub fn doubt(&mut self, process: &Process, now_ms: u64) {
        let since_ms = self.doubt.map_or(now_ms, |doubt| doubt.since_ms);
        self.doubt = Some(Doubt { transitions: process.status.transitions, revision: process.revision, since_ms });
    }

    /// Compares the object with a patch whose answer was lost: true when it may have been written after all, so that
    /// the events of the object's last transition may be owed. Written or not: once the object has another version it
    /// will not be written any more.
    #[must_use]
    pub fn settle_doubt(&mut self, process: &Process) -> bool {
        let owed = self.doubt.is_some_and(|doubt| process.status.transitions > doubt.transitions);
        self.doubt = self.doubt.filter(|doubt| doubt.revision == process.revision);
        owed
    }

    /// A change for which the object has no budget left waits, and what comes meanwhile takes its place: returns until
    /// when it waits, when it has to. For the acknowledgement it then counts as nothing to write. Not so while a patch
    /// may still come that would undo what was acknowledged.
    #[must_use]
    pub fn defer(&mut self, change: &Change, process: &Process, budgets: &Budgets, now_ms: u64) -> Option<u64> {
        let due = budgets.due_ms(&process.key, change, now_ms).filter(|_| self.doubt.is_none())?;
        self.lazy = true;
        Some(due)
    }

    /// There is nothing to write. But a patch that may still come has to be seen to when it has come: returns when to
    /// look again; `None` when there is no such patch.
    #[must_use]
    pub fn look_again(&mut self, now_ms: u64) -> Option<u64> {
        self.doubt.filter(|doubt| now_ms < doubt.since_ms + DOUBT_MS)?;
        (self.reported, self.introduction, self.lazy) = (None, Introduction::default(), true);
        Some(now_ms + MAX_BACKOFF_MS)
    }

    /// A try failed: how long to wait before the next, milliseconds.
    #[must_use]
    pub fn back_off_ms(&mut self, chance: impl FnOnce(u64, u64) -> u64) -> u64 {
        self.attempts += 1;
        let most = (100 << self.attempts.min(7)).min(MAX_BACKOFF_MS);
        chance(most / 2, most)
    }

    /// How long to wait after [`CONFLICTS`] conflicts in a row, milliseconds. Somebody else writes the object at the
    /// same time, which is no failure and no sign of overload: there are many tries within the time of one answer. The
    /// pauses differ, so that two writers get out of step, and grow, so that a writer that never ends costs others
    /// little.
    #[must_use]
    pub fn conflict_pause_ms(&mut self, chance: impl FnOnce(u64, u64) -> u64) -> u64 {
        let most = (CONFLICT_PAUSE_MS.0 << self.contended.min(5)).min(CONFLICT_PAUSE_MS.1);
        self.contended += 1;
        chance(most / 5, most)
    }
}

impl<W> Merge for Job<W> {
    fn absorb(&mut self, older: Self) {
        // One that had to be looked up may have been overtaken on its way here.
        if self.reported.is_none() || is_later(older.reported.as_deref(), self.reported.as_deref()) {
            self.reported = older.reported;
        }
        self.introduction.absorb(older.introduction);
        self.lazy &= older.lazy;
        self.unsure |= older.unsure;
        self.waiting.extend(older.waiting);
        self.attempts = self.attempts.max(older.attempts);
        self.contended = self.contended.max(older.contended);
        self.doubt = self.doubt.into_iter().chain(older.doubt).max_by_key(|doubt| doubt.revision);
    }

    fn lane(&self) -> Lane {
        if self.lazy { Lane::Counters } else { Lane::Transitions }
    }
}

/// Whether one observation is of a later report of the same start of the agent than another.
fn is_later(one: Option<&Reported>, other: Option<&Reported>) -> bool {
    let orders = one.and_then(|one| one.order.as_ref()).zip(other.and_then(|other| other.order.as_ref()));
    orders.is_some_and(|(one, other)| one.boot_id == other.boot_id && one.sequence > other.sequence)
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
