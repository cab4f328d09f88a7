//! Pure: whether a report that seems to say nothing new can be believed to.
//!
//! A replica compares a report with its cache, and a cache may be old. A device that says A, then B through another
//! replica, then A again would be told "nothing to write" by a replica that has not seen B yet, and B would stay.
//! What a cache cannot tell, the device's own count can: it sends one report after the other, so between two reports
//! of neighbouring sequences nothing was said, to nobody. From this follows what may be believed:
//!
//! - The report before this one was acknowledged, by whichever replica, and said the very same
//!   ([`Footing::Same`]): the status has said so since, and there is nothing to write whatever the cache's age.
//! - The report before this one was taken in here ([`Footing::Here`]): what it changed is in the cache, which takes in
//!   what own writes return, or in the own queue. What leaves the queue unwritten takes this with it ([`Footing::Lost`]).
//! - Otherwise somebody else took in the one before, or may have ([`Footing::Elsewhere`]): a cache that agrees proves
//!   nothing. A replica that does not own the device asks the one that does. The owner has taken in every change
//!   itself, unless somebody could not reach it, so it believes its cache as long as it hears everybody and the words
//!   are those of the newest report that it knows of (a report within the second in which replicas tell each other
//!   of the one before is no reason for doubt). Otherwise it reads live.
//! - Nothing is known of any report ([`Footing::Unknown`], after a start): the cache is a list that was complete when
//!   this replica began, so an owner that hears all others, or knows that there are none, may believe it; one that
//!   does not reads live, and others ask the owner.
//!
//! What a process does over and over is acknowledged and held back for a while (see [`crate::status::budget`]). Then the
//! status has not said so since, but no cache agrees with the words either, so that the next report gets to the owner
//! as well: what it holds back is taken over by whoever owns the device then, and nothing of it needs to be believed.
//!
//! What was said travels between replicas as a fingerprint, with the sequence, so that a device may talk to a replica
//! of its choice each time, and after the loss of one its reports are still answered where they arrive.
//!
//! What is left heals with the next report, as every report is whole: a change that a replica wrote which lost touch
//! with the owner less than three seconds ago, if the device took it back at the owner at once and the owner's watch
//! is behind; and an older report, never acknowledged, that still waits to be written by a replica that hears nobody
//! (the others drop it, since they hear of the newer one).

use super::order::{Freshness, Order};

/// What is known of a device's newest report, whose place in the order its [`Order`] holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// Fingerprint of what it said, once it was acknowledged by any replica; 0: not (yet), or not known.
    pub acked: u64,
    /// Whether any report was heard of, here or from a peer; a status that remembers one does not count.
    known: bool,
    /// Whether it was taken in here: compared with the cache, and what it changes in the queue.
    here: bool,
    /// State of the index in which it left nothing to do; 0: none.
    settled: u64,
    /// Whether something that was taken in here was given up.
    lost: bool,
}

/// What a report stands on: what is known of the one right before it. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// It said the same and was acknowledged.
    Same,
    /// It was taken in here.
    Here,
    /// No report is known, or this one has no order.
    Unknown,
    /// What it or an earlier one changed here was given up, and nobody knows whether it was written. Only a replica that
    /// is about to end gives anything up; it has nothing more to say of the device.
    Lost,
    /// It was taken in by another replica, or may have been.
    Elsewhere {
        /// Whether the newest report that is known, older than the one before, said the same.
        same_words: bool,
    },
}

// === impl Said ===

impl Said {
    /// Judges a report by the fingerprints of its bootId (0: none) and of what it says; `order` moves.
    pub fn judge(&mut self, order: &mut Order, boot: u64, sequence: Option<u64>, said: u64) -> (Freshness, Footing) {
        let Some(number) = sequence.filter(|_| boot != 0) else {
            // It may have changed anything, and nobody can tell when.
            *self = Self { known: self.known, lost: self.lost, ..Self::default() };
            return (order.judge(boot, sequence), if self.lost { Footing::Lost } else { Footing::Unknown });
        };
        let (follows, began) = (order.follows(boot, number), order.boot() != boot && number <= 1);
        let freshness = order.judge(boot, sequence);
        let same = self.acked != 0 && self.acked == said;
        let footing = if self.lost {
            Footing::Lost
        } else if !self.known || began {
            Footing::Unknown
        } else if follows && same {
            Footing::Same
        } else if follows && self.here {
            Footing::Here
        } else {
            Footing::Elsewhere { same_words: same }
        };
        if freshness == Freshness::New && footing != Footing::Same {
            *self = Self { known: true, lost: self.lost, ..Self::default() };
        }
        (freshness, footing)
    }

    /// The newest report was compared with the cache here, and what it changes is queued.
    pub fn take(&mut self) {
        (self.known, self.here) = (true, true);
    }

    /// What was taken in here is given up.
    pub fn lose(&mut self) {
        (self.here, self.settled, self.lost) = (false, 0, true);
    }

    /// The newest report was acknowledged; `settled` is the state of the index in which it left nothing to do.
    pub fn acknowledge(&mut self, said: u64, settled: Option<u64>) {
        let settled = settled.unwrap_or(if said == self.acked { self.settled } else { 0 });
        *self = Self { acked: said, known: true, settled, ..*self };
    }

    /// The short way: whether a report that follows the newest one leaves nothing to do, since the same words left
    /// nothing to do while the index stood as it does.
    #[must_use]
    pub fn is_settled(&self, said: u64, version: u64) -> bool {
        self.acked == said && self.settled == version && self.settled != 0 && !self.lost
    }

    /// A peer knows a newer report, or more about the same one.
    pub fn merge(&mut self, newer: bool, acked: u64) {
        self.known = true;
        if newer {
            self.here = false;
            if acked != self.acked {
                (self.acked, self.settled) = (acked, 0);
            }
        } else if acked > self.acked {
            // One report says one thing; whatever two replicas were told, all agree on which they believe.
            (self.acked, self.settled) = (acked, 0);
        }
    }

    /// Whether something that was taken in here was given up.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the newest report was taken in here.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.here
    }
}

#[cfg(test)]
#[path = "said_tests.rs"]
mod tests;
