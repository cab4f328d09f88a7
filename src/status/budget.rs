//! Pure: how often the status of one object is written for what its process does by itself. Times are milliseconds on
//! one monotonic clock.
//!
//! A process in a crash loop starts and ends for ever, and each time its status is another. So every object has a
//! budget: [`BURST`] writes at once, and one more each minute. What comes when it is used up waits until the next
//! write is due, and only the latest of it is then written; for the acknowledgement it counts as nothing to write, as
//! counters do. What a process cannot repeat by itself is written at once and costs nothing: the connection of its
//! device, another spec, an artifact's digest. With another spec the budget is whole again, so that a fix shows at
//! once however long the loop was.
//!
//! Good news leaves one write for the bad news that may follow. So a status never says for longer than without a
//! budget that a process is ready: rollouts and alerts look at nothing else.
//!
//! One budget is one number, the moment when it is whole again (the generic cell rate algorithm, ITU-T I.371). It is
//! kept by whoever writes, and only until it is whole: another owner of the device begins with a whole one.

use super::projection::{Change, Weight};
use crate::desired::lean::Key;
use std::collections::HashMap;

/// So many writes at once.
pub const BURST: u64 = 6;
/// One more after each of these, milliseconds. Counters alone are written no more often, either.
pub const PERIOD_MS: u64 = 60_000;
/// Objects that are kept before those with a whole budget are looked for.
const SWEEP: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub struct Budgets {
    spent: HashMap<Key, Spent>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Spent {
    /// When the object was last written.
    written_ms: u64,
    /// When the budget is whole again.
    whole_ms: u64,
}

// === impl Budgets ===

impl Budgets {
    /// Until when a change has to wait; `None` when it may be written now.
    #[must_use]
    pub fn due_ms(&self, key: &Key, change: &Change, now_ms: u64) -> Option<u64> {
        let spent = self.spent.get(key)?;
        let due = match change.weight {
            Weight::Step | Weight::Spec => return None,
            Weight::Turn if change.is_ready() => spent.has_ms(2),
            Weight::Turn => spent.has_ms(1),
            Weight::Counters => spent.has_ms(2).max(spent.written_ms + PERIOD_MS),
        };
        (due > now_ms).then_some(due)
    }

    /// A change was written.
    pub fn written(&mut self, key: &Key, change: &Change, now_ms: u64) {
        let known = self.spent.get(key).copied();
        let whole = known.map_or(now_ms, |spent| spent.whole_ms.max(now_ms));
        let whole_ms = match change.weight {
            Weight::Spec => now_ms,
            // It costs nothing, but there has to be something left for bad news.
            Weight::Step if change.is_ready() => whole.min(now_ms + (BURST - 1) * PERIOD_MS),
            Weight::Step => whole,
            Weight::Turn | Weight::Counters => whole + PERIOD_MS,
        };
        if known.is_none() && self.spent.len() >= self.sweep_at.max(SWEEP) {
            self.spent.retain(|_, spent| spent.whole_ms.max(spent.written_ms + PERIOD_MS) > now_ms);
            self.sweep_at = 2 * self.spent.len();
        }
        self.spent.insert(key.clone(), Spent { written_ms: now_ms, whole_ms });
    }
}

// === impl Spent ===

impl Spent {
    /// Since when, or from when on, so many writes are left; at most [`BURST`].
    fn has_ms(self, writes: u64) -> u64 {
        self.whole_ms.saturating_sub((BURST - writes) * PERIOD_MS)
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
