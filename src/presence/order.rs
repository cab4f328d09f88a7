//! Pure: which of two reports of a device is the newer one.

use siphasher::sip::SipHasher13;

/// Replaced bootIds that are remembered for each device; a report that is older than so many restarts of its
/// agent is taken for a new one.
const REPLACED: usize = 8;
/// After so many ever newer reports of a replaced bootId, and none of the one that replaced it, it was the other way
/// round: a late report of the old start was heard first. Late ones alone are fewer, since an agent has one report
/// under way at a time.
const RISES: u8 = 4;
/// Changing it makes replicas misunderstand each other: a new protocol version.
const BOOT_KEY: &[u8; 16] = b"praetor-boot-id1";

/// A bootId as tables and messages between replicas name it: the same at every replica, never 0 (which stands for
/// none).
#[must_use]
pub fn fingerprint(boot_id: &str) -> u64 {
    SipHasher13::new_with_key(BOOT_KEY).hash(boot_id.as_bytes()).max(1)
}

/// The order of one device's reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// Fingerprint of the bootId of the last report; 0 when there was none.
    boot: u64,
    sequence: u64,
    /// Boots before that one, each with its last sequence; the latest at the end.
    replaced: Vec<(u64, u64)>,
    rising: Option<Box<Rising>>,
}

/// A replaced boot that goes on reporting.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rising {
    boot: u64,
    times: u8,
}

/// How a report stands to the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Newer than all before, or without an order.
    New,
    /// The same as the last one.
    Repeat,
    /// Older than one that has been seen.
    Old,
}

// === impl Order ===

impl Order {
    /// The order after a report of a boot, given by its [`fingerprint`].
    #[must_use]
    pub fn seeded(boot: u64, sequence: u64) -> Self {
        Self { boot, sequence, ..Self::default() }
    }

    /// Whether nothing is known yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.boot == 0
    }

    /// [`fingerprint`] of the bootId of the newest report; 0 when none is known.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// The highest sequence of that boot.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether a report is the newest one, or the very next.
    #[must_use]
    pub fn follows(&self, boot: u64, sequence: u64) -> bool {
        self.boot == boot && sequence.wrapping_sub(self.sequence) <= 1
    }

    /// Whether a report is the newest one.
    #[must_use]
    pub fn is(&self, boot: u64, sequence: u64) -> bool {
        self.boot == boot && self.sequence == sequence
    }

    /// Takes in a report if it [`Order::follows`].
    pub fn advance(&mut self, boot: u64, sequence: u64) -> bool {
        let follows = self.follows(boot, sequence);
        if follows {
            self.sequence = sequence;
            self.rising = None;
        }
        follows
    }

    /// Whether a newer report is known than the one of a bootId and a sequence.
    #[must_use]
    pub fn is_beyond(&self, boot: u64, sequence: u64) -> bool {
        if self.boot == boot {
            self.sequence > sequence
        } else {
            self.replaced.iter().any(|(replaced, _)| *replaced == boot)
        }
    }

    /// Takes in a report, by the fingerprint of its bootId. Without a bootId (0) there is no order. Without a
    /// sequence the bootId alone counts.
    pub fn judge(&mut self, boot: u64, sequence: Option<u64>) -> Freshness {
        if boot == 0 {
            return Freshness::New;
        }
        if boot == self.boot {
            self.rising = None;
            let Some(sequence) = sequence else { return Freshness::New };
            let freshness = match sequence.cmp(&self.sequence) {
                std::cmp::Ordering::Greater => Freshness::New,
                std::cmp::Ordering::Equal => Freshness::Repeat,
                std::cmp::Ordering::Less => Freshness::Old,
            };
            self.sequence = self.sequence.max(sequence);
            return freshness;
        }
        if self.succeed(boot, sequence) { Freshness::New } else { Freshness::Old }
    }

    /// A report that another replica had: of the same boot, whenever it was.
    pub fn raise(&mut self, sequence: u64) {
        self.rising = None;
        self.sequence = self.sequence.max(sequence);
    }

    /// A report of another boot came later than all of this one: its boot is the newest from now on. Not so, and
    /// false, when that one was replaced before, unless it goes on and on.
    pub fn succeed(&mut self, boot: u64, sequence: Option<u64>) -> bool {
        if let Some(place) = self.replaced.iter().position(|(replaced, _)| *replaced == boot) {
            if !self.rises(place, sequence) {
                return false;
            }
            self.replaced.remove(place);
        }
        if self.boot != 0 {
            self.forget_oldest();
            self.replaced.push((self.boot, self.sequence));
        }
        self.boot = boot;
        self.sequence = sequence.unwrap_or(0);
        self.rising = None;
        true
    }

    /// Another replica had a report of another boot before this one's began.
    pub fn outdate(&mut self, boot: u64, sequence: u64) {
        if let Some((_, last)) = self.replaced.iter_mut().find(|(replaced, _)| *replaced == boot) {
            *last = sequence.max(*last);
        } else if self.replaced.len() < REPLACED {
            // It may well be older than all the others.
            self.replaced.insert(0, (boot, sequence));
        }
    }

    fn rises(&mut self, place: usize, sequence: Option<u64>) -> bool {
        let (boot, last) = &mut self.replaced[place];
        let Some(sequence) = sequence.filter(|sequence| sequence > last) else { return false };
        *last = sequence;
        let before = self.rising.as_ref().filter(|rising| rising.boot == *boot).map_or(0, |rising| rising.times);
        self.rising = Some(Box::new(Rising { boot: *boot, times: before + 1 }));
        before + 1 >= RISES
    }

    fn forget_oldest(&mut self) {
        if self.replaced.len() == REPLACED {
            self.replaced.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judge(order: &mut Order, boot: &str, sequence: impl Into<Option<u64>>) -> Freshness {
        order.judge(fingerprint(boot), sequence.into())
    }

    #[test]
    fn fingerprints_never_change() {
        assert_eq!(fingerprint(""), 599_360_654_208_493_686);
        assert_eq!(fingerprint("6b3f2a70"), 5_143_465_005_515_342_732);
    }

    #[test]
    fn a_replaced_boot_id_does_not_come_back() {
        let mut order = Order::seeded(fingerprint("a"), 7);
        assert_eq!(judge(&mut order, "a", 6), Freshness::Old);
        assert_eq!(judge(&mut order, "a", 7), Freshness::Repeat);
        assert_eq!(judge(&mut order, "b", 1), Freshness::New);
        assert_eq!(judge(&mut order, "a", 99), Freshness::Old);
        assert_eq!(judge(&mut order, "a", None), Freshness::Old);
        assert_eq!(order.judge(0, Some(0)), Freshness::New);
        assert_eq!(judge(&mut order, "b", None), Freshness::New);
        assert_eq!(judge(&mut order, "b", 2), Freshness::New);
    }

    #[test]
    fn a_boot_that_was_replaced_by_a_late_report_wins_in_the_end() {
        let mut order = Order::seeded(fingerprint("new"), 7);
        assert_eq!(judge(&mut order, "late", 3), Freshness::New);
        for sequence in [8, 9, 9, 8, 10] {
            assert_eq!(judge(&mut order, "new", sequence), Freshness::Old, "{sequence}");
        }
        assert_eq!(judge(&mut order, "new", 11), Freshness::New);
        assert_eq!(judge(&mut order, "late", 4), Freshness::Old);
        // Any report of the current one in between starts the count again.
        for sequence in 12..40 {
            assert_eq!(judge(&mut order, "late", sequence), Freshness::Old);
            assert_eq!(judge(&mut order, "new", sequence), Freshness::New);
        }
    }

    #[test]
    fn what_others_had_counts() {
        let mut order = Order::seeded(fingerprint("b"), 3);
        order.raise(9);
        assert_eq!(judge(&mut order, "b", 8), Freshness::Old);
        order.outdate(fingerprint("a"), 50);
        assert_eq!(judge(&mut order, "a", 51), Freshness::Old);
        assert!(order.succeed(fingerprint("c"), Some(1)));
        assert_eq!(judge(&mut order, "b", 10), Freshness::Old);
        assert_eq!(judge(&mut order, "c", 2), Freshness::New);
    }

    proptest! {
        /// However reports are delayed and repeated, what counts as New is in the order in which it was sent.
        #[test]
        fn new_ones_come_in_order(deliveries in prop::collection::vec((0_usize..4, 0_u64..5), 1..60)) {
            let mut order = Order::default();
            let mut last: Option<(usize, u64)> = None;
            let mut newest_boot = 0;
            for (boot, sequence) in deliveries {
                // Boots start in order: a device cannot send with a bootId that it does not have yet.
                let boot = boot.min(newest_boot + 1);
                newest_boot = newest_boot.max(boot);
                let freshness = judge(&mut order, ["a", "b", "c", "d", "e", "f"][boot.min(5)], sequence);
                if freshness == Freshness::New {
                    // A bootId that was skipped when its successor came first is unknown, not old; so compare within boots.
                    if let Some((_, last_sequence)) = last.filter(|(last_boot, _)| *last_boot == boot) {
                        prop_assert!(sequence > last_sequence);
                    }
                    last = Some((boot, sequence));
                }
            }
        }
    }
}
