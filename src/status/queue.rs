//! Pure: what waits to be written. One slot an object, latest wins, one in flight; what changed before what merely
//! counts, and every device in its turn.
//!
//! Inputs are queued, never patches: what a patch must say is known only when it is sent. Times are
//! milliseconds on one monotonic clock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

/// So many transitions may go before one counter that waits.
const TRANSITIONS_AHEAD: u32 = 15;

/// What kind of work it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Lane {
    /// Somebody waits for it, or a status is wrong until it is done.
    #[default]
    Transitions,
    /// It may wait.
    Counters,
}

/// Work that can swallow the older work of the same object.
pub trait Merge {
    /// Takes over from `older` what this, the newer one, does not say itself.
    fn absorb(&mut self, older: Self);

    /// In which lane it waits.
    fn lane(&self) -> Lane {
        Lane::Transitions
    }
}

#[derive(Debug)]
struct Slot<D, T> {
    /// What waits; `None` while it is in flight and nothing newer has come.
    waiting: Option<T>,
    in_flight: bool,
    /// Whose turn it is with.
    device: D,
    /// When the oldest work that is not done came.
    since_ms: u64,
    not_before_ms: u64,
}

/// What is due in a lane: the devices in turn, and their objects.
#[derive(Debug)]
struct Turns<D, K> {
    turns: VecDeque<D>,
    objects: HashMap<D, VecDeque<K>>,
}

/// See the module. `D` names devices, `K` objects.
#[derive(Debug)]
pub struct Queue<D, K, T> {
    capacity: usize,
    slots: HashMap<K, Slot<D, T>>,
    transitions: Turns<D, K>,
    counters: Turns<D, K>,
    /// Transitions that went since the last counter.
    ahead: u32,
    later: BTreeSet<(u64, K)>,
}

/// No room for another object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

// === impl Lane ===

impl Lane {
    /// Every lane, the first one first.
    pub const ALL: [Self; 2] = [Self::Transitions, Self::Counters];
}

// === impl Turns ===

impl<D: Clone + Eq + Hash, K> Turns<D, K> {
    fn new() -> Self {
        Self { turns: VecDeque::new(), objects: HashMap::new() }
    }

    fn push(&mut self, device: D, key: K) {
        let objects = self.objects.entry(device.clone()).or_default();
        if objects.is_empty() {
            self.turns.push_back(device);
        }
        objects.push_back(key);
    }

    fn pop(&mut self) -> Option<K> {
        let device = self.turns.pop_front()?;
        let objects = self.objects.get_mut(&device)?;
        let key = objects.pop_front();
        if objects.is_empty() {
            self.objects.remove(&device);
        } else {
            self.turns.push_back(device);
        }
        key
    }
}

// === impl Queue ===

impl<D: Clone + Eq + Hash, K: Clone + Eq + Hash + Ord, T: Merge> Queue<D, K, T> {
    /// A queue for at most `capacity` objects.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            slots: HashMap::new(),
            transitions: Turns::new(),
            counters: Turns::new(),
            ahead: 0,
            later: BTreeSet::new(),
        }
    }

    /// Queues work on an object of a device, to be done not before a moment. Work that is already waiting for the
    /// object is absorbed, and the earlier moment holds.
    ///
    /// # Errors
    /// When the object has no slot and there is no room for another.
    pub fn push(&mut self, device: D, key: K, mut work: T, now_ms: u64, not_before_ms: u64) -> Result<(), Full> {
        let full = self.slots.len() >= self.capacity;
        match self.slots.get_mut(&key) {
            Some(slot) => {
                if let Some(older) = slot.waiting.take() {
                    let before = older.lane();
                    work.absorb(older);
                    let hurries = slot.not_before_ms > now_ms && not_before_ms < slot.not_before_ms;
                    let climbs = work.lane() < before && slot.not_before_ms <= now_ms;
                    slot.waiting = Some(work);
                    if hurries {
                        self.later.remove(&(slot.not_before_ms, key.clone()));
                        slot.not_before_ms = not_before_ms;
                    }
                    // Where it waited before is passed over when its turn comes there.
                    if hurries || climbs {
                        self.enqueue(key, now_ms);
                    }
                } else {
                    slot.waiting = Some(work);
                    slot.not_before_ms = not_before_ms;
                }
            }
            None if full => return Err(Full),
            None => {
                let slot = Slot { waiting: Some(work), in_flight: false, device, since_ms: now_ms, not_before_ms };
                self.slots.insert(key.clone(), slot);
                self.enqueue(key, now_ms);
            }
        }
        Ok(())
    }

    /// The next work that is due in a lane that is open; its object is in flight until [`Queue::done`] or
    /// [`Queue::retry`].
    pub fn pop(&mut self, now_ms: u64, is_open: impl Fn(Lane) -> bool) -> Option<(K, T)> {
        while let Some((due, _)) = self.later.first() {
            if *due > now_ms {
                break;
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.ready(key);
            }
        }
        let counter_first = self.ahead >= TRANSITIONS_AHEAD;
        let lanes = if counter_first { [Lane::Counters, Lane::Transitions] } else { Lane::ALL };
        lanes.into_iter().filter(|lane| is_open(*lane)).find_map(|lane| self.pop_lane(lane, now_ms))
    }

    fn pop_lane(&mut self, lane: Lane, now_ms: u64) -> Option<(K, T)> {
        loop {
            let key = match lane {
                Lane::Transitions => self.transitions.pop(),
                Lane::Counters => self.counters.pop(),
            }?;
            let slot = self.slots.get_mut(&key).filter(|slot| !slot.in_flight && slot.not_before_ms <= now_ms);
            let Some(slot) = slot.filter(|slot| slot.waiting.as_ref().is_some_and(|work| work.lane() == lane)) else {
                continue;
            };
            let Some(work) = slot.waiting.take() else { continue };
            slot.in_flight = true;
            self.ahead = if lane == Lane::Counters { 0 } else { self.ahead.saturating_add(1) };
            return Some((key, work));
        }
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
            Some(newer) => {
                // What may wait does not hold up what may not.
                if newer.lane() >= work.lane() {
                    slot.not_before_ms = not_before_ms;
                }
                newer.absorb(work);
            }
            None => {
                slot.waiting = Some(work);
                slot.not_before_ms = not_before_ms;
            }
        }
        self.enqueue(key.clone(), now_ms);
    }

    /// The work in flight will not be done; what came meanwhile is not either, since it may build on it, and is
    /// returned.
    pub fn give_up(&mut self, key: &K) -> Option<T> {
        self.slots.remove(key)?.waiting
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
            self.ready(key);
        } else {
            self.later.insert((slot.not_before_ms, key));
        }
    }

    fn ready(&mut self, key: K) {
        let Some(slot) = self.slots.get(&key) else { return };
        let lane = slot.waiting.as_ref().map_or(Lane::Transitions, Merge::lane);
        match lane {
            Lane::Transitions => self.transitions.push(slot.device.clone(), key),
            Lane::Counters => self.counters.push(slot.device.clone(), key),
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
