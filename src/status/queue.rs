//! Pure: what waits to be written. One slot an object, latest wins, one in flight.
//!
//! Inputs are queued, never patches: what a patch must say is known only when it is sent. Times are
//! milliseconds on one monotonic clock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

/// Work that can swallow the older work of the same object.
pub trait Merge {
    /// Takes over from `older` what this, the newer one, does not say itself.
    fn absorb(&mut self, older: Self);
}

#[derive(Debug)]
struct Slot<T> {
    /// What waits; `None` while it is in flight and nothing newer has come.
    waiting: Option<T>,
    in_flight: bool,
    /// When the oldest work that is not done came.
    since_ms: u64,
    not_before_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<K, T> {
    capacity: usize,
    slots: HashMap<K, Slot<T>>,
    ready: VecDeque<K>,
    later: BTreeSet<(u64, K)>,
}

/// No room for another object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

// === impl Queue ===

impl<K: Clone + Eq + Hash + Ord, T: Merge> Queue<K, T> {
    /// A queue for at most `capacity` objects.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, slots: HashMap::new(), ready: VecDeque::new(), later: BTreeSet::new() }
    }

    /// Queues work, to be done not before a moment. Work that is already waiting for the object is absorbed,
    /// and the earlier moment holds.
    ///
    /// # Errors
    /// When the object has no slot and there is no room for another.
    pub fn push(&mut self, key: K, mut work: T, now_ms: u64, not_before_ms: u64) -> Result<(), Full> {
        let full = self.slots.len() >= self.capacity;
        match self.slots.get_mut(&key) {
            Some(slot) => {
                if let Some(older) = slot.waiting.take() {
                    work.absorb(older);
                    slot.waiting = Some(work);
                    if slot.not_before_ms > now_ms && not_before_ms < slot.not_before_ms {
                        self.later.remove(&(slot.not_before_ms, key.clone()));
                        slot.not_before_ms = not_before_ms;
                        self.enqueue(key, now_ms);
                    }
                } else {
                    slot.waiting = Some(work);
                    slot.not_before_ms = not_before_ms;
                }
            }
            None if full => return Err(Full),
            None => {
                self.slots.insert(
                    key.clone(),
                    Slot { waiting: Some(work), in_flight: false, since_ms: now_ms, not_before_ms },
                );
                self.enqueue(key, now_ms);
            }
        }
        Ok(())
    }

    /// The next work that is due; its object is in flight until [`Queue::done`] or [`Queue::retry`].
    pub fn pop(&mut self, now_ms: u64) -> Option<(K, T)> {
        while let Some((due, _)) = self.later.first() {
            if *due > now_ms {
                break;
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.ready.push_back(key);
            }
        }
        while let Some(key) = self.ready.pop_front() {
            if let Some(slot) = self.slots.get_mut(&key).filter(|slot| !slot.in_flight)
                && let Some(work) = slot.waiting.take()
            {
                slot.in_flight = true;
                return Some((key, work));
            }
        }
        None
    }

    /// The work in flight is done. What came meanwhile is queued.
    pub fn done(&mut self, key: &K, now_ms: u64) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.in_flight = false;
        if slot.waiting.is_some() {
            slot.since_ms = now_ms;
            self.enqueue(key.clone(), now_ms);
        } else {
            self.slots.remove(key);
        }
    }

    /// The work in flight is to be done again, not before a moment. What came meanwhile absorbs it.
    pub fn retry(&mut self, key: &K, work: T, now_ms: u64, not_before_ms: u64) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.in_flight = false;
        match &mut slot.waiting {
            Some(newer) => newer.absorb(work),
            None => slot.waiting = Some(work),
        }
        slot.not_before_ms = not_before_ms;
        self.enqueue(key.clone(), now_ms);
    }

    /// When the next work is due that is not due yet.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.later.first().map(|(due, _)| *due)
    }

    /// Whether an object has work that waits or is in flight.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.slots.contains_key(key)
    }

    /// Objects with work.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How long the oldest work that is due has waited, milliseconds.
    #[must_use]
    pub fn oldest_ms(&self, now_ms: u64) -> u64 {
        let due = self.slots.values().filter(|slot| slot.not_before_ms <= now_ms);
        due.map(|slot| now_ms.saturating_sub(slot.since_ms)).max().unwrap_or(0)
    }

    fn enqueue(&mut self, key: K, now_ms: u64) {
        let Some(slot) = self.slots.get(&key) else { return };
        if slot.not_before_ms <= now_ms {
            self.ready.push_back(key);
        } else {
            self.later.insert((slot.not_before_ms, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Merge for Vec<u32> {
        fn absorb(&mut self, mut older: Self) {
            older.append(self);
            *self = older;
        }
    }

    #[test]
    fn one_slot_one_in_flight() {
        let mut queue = Queue::new(2);
        queue.push("a", vec![1], 0, 0).unwrap();
        queue.push("a", vec![2], 1, 1).unwrap();
        queue.push("b", vec![3], 1, 1).unwrap();
        assert_eq!(queue.push("c", vec![4], 1, 1), Err(Full));
        assert_eq!(queue.pop(1), Some(("a", vec![1, 2])));
        queue.push("a", vec![5], 2, 2).unwrap();
        assert_eq!(queue.pop(2), Some(("b", vec![3])));
        assert_eq!(queue.pop(2), None);
        queue.done(&"a", 3);
        assert_eq!(queue.pop(3), Some(("a", vec![5])));
        queue.done(&"a", 4);
        queue.done(&"b", 4);
        assert!(queue.is_empty());
    }

    #[test]
    fn later_work_waits_and_newer_work_hurries_it() {
        let mut queue = Queue::new(9);
        queue.push("a", vec![1], 0, 60_000).unwrap();
        assert_eq!((queue.pop(59_999), queue.next_due_ms()), (None, Some(60_000)));
        queue.push("a", vec![2], 5, 5).unwrap();
        assert_eq!(queue.pop(5), Some(("a", vec![1, 2])));
        queue.retry(&"a", vec![1, 2], 6, 1_000);
        assert_eq!(queue.pop(999), None);
        assert_eq!(queue.oldest_ms(500), 0);
        assert_eq!(queue.oldest_ms(1_500), 1_500);
        assert_eq!(queue.pop(1_000), Some(("a", vec![1, 2])));
    }

    proptest! {
        /// Nothing is lost, nothing is done twice, order is kept within an object, and at most one is in flight.
        #[test]
        fn everything_is_done_once(steps in prop::collection::vec((0_u8..4, 0_u8..5, 0_u64..50), 1..200)) {
            let mut queue: Queue<u8, Vec<u32>> = Queue::new(100);
            let (mut now, mut next, mut done, mut pushed) = (0, 0, Vec::new(), Vec::new());
            let mut flying: Vec<(u8, Vec<u32>)> = Vec::new();
            for (step, key, delay) in steps {
                now += 1;
                match step {
                    0 => { next += 1; queue.push(key, vec![next], now, now + delay).unwrap(); pushed.push((key, next)); }
                    1 => if let Some((key, work)) = queue.pop(now) {
                        prop_assert!(flying.iter().all(|(other, _)| *other != key));
                        flying.push((key, work));
                    },
                    2 => if let Some((key, work)) = flying.pop() { queue.done(&key, now); done.extend(work.into_iter().map(|n| (key, n))); },
                    _ => if let Some((key, work)) = flying.pop() { queue.retry(&key, work, now, now + delay); },
                }
            }
            while let Some((key, work)) = flying.pop() { queue.retry(&key, work, now, now); }
            now += 1_000;
            while let Some((key, work)) = queue.pop(now) { queue.done(&key, now); done.extend(work.into_iter().map(|n| (key, n))); }
            prop_assert!(queue.is_empty());
            for key in 0..5 {
                let of = |list: &[(u8, u32)]| list.iter().filter(|(k, _)| *k == key).map(|(_, n)| *n).collect::<Vec<_>>();
                prop_assert_eq!(of(&done), of(&pushed));
            }
        }
    }
}
