//! Pure: which of two reports of a device is the newer one.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Replaced bootIds that are remembered for each device; a report that is older than so many restarts of its
/// agent is taken for a new one.
const REPLACED: usize = 8;

/// The order of one device's reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// Hash of the bootId of the last report; 0 when there was none.
    boot: u64,
    sequence: u64,
    replaced: VecDeque<u64>,
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
    /// The order after the report that a status remembers.
    #[must_use]
    pub fn seeded(boot_id: &str, sequence: u64) -> Self {
        Self { boot: fingerprint(boot_id), sequence, replaced: VecDeque::new() }
    }

    /// Whether nothing is known yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.boot == 0
    }

    /// Takes in a report. Without a bootId there is no order. Without a sequence the bootId alone counts.
    pub fn judge(&mut self, boot_id: Option<&str>, sequence: Option<u64>) -> Freshness {
        let Some(boot) = boot_id.map(fingerprint) else { return Freshness::New };
        if boot == self.boot {
            let Some(sequence) = sequence else { return Freshness::New };
            let freshness = match sequence.cmp(&self.sequence) {
                std::cmp::Ordering::Greater => Freshness::New,
                std::cmp::Ordering::Equal => Freshness::Repeat,
                std::cmp::Ordering::Less => Freshness::Old,
            };
            self.sequence = self.sequence.max(sequence);
            return freshness;
        }
        if self.replaced.contains(&boot) {
            return Freshness::Old;
        }
        if self.boot != 0 {
            if self.replaced.len() == REPLACED {
                self.replaced.pop_front();
            }
            self.replaced.push_back(self.boot);
        }
        self.boot = boot;
        self.sequence = sequence.unwrap_or(0);
        Freshness::New
    }
}

fn fingerprint(boot_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    boot_id.hash(&mut hasher);
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_replaced_boot_id_never_comes_back() {
        let mut order = Order::seeded("a", 7);
        assert_eq!(order.judge(Some("a"), Some(6)), Freshness::Old);
        assert_eq!(order.judge(Some("a"), Some(7)), Freshness::Repeat);
        assert_eq!(order.judge(Some("b"), Some(1)), Freshness::New);
        assert_eq!(order.judge(Some("a"), Some(99)), Freshness::Old);
        assert_eq!(order.judge(Some("a"), None), Freshness::Old);
        assert_eq!(order.judge(None, Some(0)), Freshness::New);
        assert_eq!(order.judge(Some("b"), None), Freshness::New);
        assert_eq!(order.judge(Some("b"), Some(2)), Freshness::New);
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
                let freshness = order.judge(Some(["a", "b", "c", "d", "e", "f"][boot.min(5)]), Some(sequence));
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
