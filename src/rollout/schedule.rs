//! Pure: when each deployment is looked at: at once after quiet, seldom in a storm, later after a failure.

use crate::desired::lean::{Key, Text};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Shortest time between two passes over one deployment, unless the deployment itself changed.
pub const SHORTEST_GAP: Duration = Duration::from_millis(250);
/// A pass that took so long is not repeated before this many times as long: about a tenth of a core.
const GAP_PER_COST: u32 = 10;
/// Longest gap that the cost of a pass can make.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// uid and generation of a deployment: when these change, nothing else is waited for.
pub type Version = Option<(Text, i64)>;

/// The deployments and when they are due.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: HashMap<Key, Entry>,
}

#[derive(Debug)]
struct Entry {
    seen: Version,
    due: Option<Instant>,
    not_before: Instant,
    running: bool,
    /// When something changed during the pass: whether it was the deployment itself.
    again: Option<bool>,
}

/// What a pass says about the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    Quiet,
    /// At once: there is more to do.
    Now,
    /// After a time, even if nothing changes.
    After(Duration),
    /// Not before a time has passed, unless the deployment itself changes.
    Failed(Duration),
    /// Never: there is no such deployment, nor anything left of it.
    Never,
}

// === impl Schedule ===

impl Schedule {
    /// Notes that something changed for a deployment.
    pub fn touch(&mut self, key: &Key, version: Version, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            let entry = Entry { seen: version, due: Some(now), not_before: now, running: false, again: None };
            self.entries.insert(key.clone(), entry);
            return;
        };
        let urgent = entry.seen != version;
        entry.seen = version;
        if entry.running {
            entry.again = Some(urgent || entry.again == Some(true));
        } else {
            entry.wake(if urgent { now } else { now.max(entry.not_before) });
        }
    }

    /// Takes the deployment that has been due for longest.
    pub fn pop(&mut self, now: Instant) -> Option<Key> {
        let waiting = self.entries.iter_mut().filter(|(_, entry)| !entry.running);
        let due = waiting.filter_map(|(key, entry)| Some((entry.due.filter(|due| *due <= now)?, key, entry)));
        // By name among equals: the same order every time.
        let (_, key, entry) = due.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)))?;
        entry.running = true;
        entry.due = None;
        entry.again = None;
        Some(key.clone())
    }

    /// When the next one is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.running).filter_map(|entry| entry.due).min()
    }

    /// Notes that a pass has ended; `cost` is the time that it computed. Says whether the deployment was forgotten.
    pub fn finished(&mut self, key: &Key, next: Next, cost: Duration, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return true };
        let gap = (cost * GAP_PER_COST).clamp(SHORTEST_GAP, LONGEST_GAP);
        entry.running = false;
        entry.not_before = now + gap;
        match next {
            Next::Quiet | Next::Never => {}
            Next::Now => entry.wake(now),
            Next::After(delay) => entry.wake(now + delay),
            Next::Failed(delay) => {
                entry.not_before = now + delay.max(gap);
                entry.wake(entry.not_before);
            }
        }
        match entry.again.take() {
            Some(urgent) => entry.wake(if urgent { now } else { entry.not_before }),
            None if next == Next::Never => {
                self.entries.remove(key);
                return true;
            }
            None => {}
        }
        false
    }

    /// How many are due or will be.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.entries.values().filter(|entry| entry.due.is_some()).count()
    }
}

// === impl Entry ===

impl Entry {
    fn wake(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn key(name: &str) -> Key {
        Key { namespace: "n".into(), name: name.into() }
    }

    #[test]
    fn at_once_after_quiet_and_seldom_in_a_storm() {
        let start = Instant::now();
        let (mut schedule, key) = (Schedule::default(), key("d"));
        schedule.touch(&key, None, start);
        assert_eq!(schedule.pop(start), Some(key.clone()));
        assert_eq!(schedule.pop(start), None);
        schedule.finished(&key, Next::Quiet, MS, start);
        assert_eq!(schedule.next_due(), None);
        // A storm: one pass per gap.
        let mut passes = 0;
        for ms in 0..10_000 {
            let now = start + ms * MS;
            schedule.touch(&key, None, now);
            if schedule.pop(now).is_some() {
                passes += 1;
                schedule.finished(&key, Next::Quiet, 100 * MS, now);
            }
        }
        assert!((9..=11).contains(&passes), "{passes}");
        let later = start + Duration::from_secs(60);
        schedule.touch(&key, None, later);
        assert_eq!(schedule.next_due().map(|due| due <= later), Some(true));
    }

    #[test]
    fn the_deployments_own_change_waits_for_nothing() {
        let start = Instant::now();
        let (mut schedule, key) = (Schedule::default(), key("d"));
        let version = |generation| Some(("u".into(), generation));
        schedule.touch(&key, version(1), start);
        schedule.pop(start);
        schedule.finished(&key, Next::Failed(60_000 * MS), MS, start);
        schedule.touch(&key, version(1), start + MS);
        assert_eq!(schedule.next_due(), Some(start + 60_000 * MS));
        schedule.touch(&key, version(2), start + MS);
        assert_eq!(schedule.pop(start + MS), Some(key.clone()));
        schedule.touch(&key, version(3), start + MS);
        schedule.touch(&key, version(3), start + MS);
        schedule.finished(&key, Next::Quiet, MS, start + 2 * MS);
        assert_eq!(schedule.next_due(), Some(start + 2 * MS));
    }

    #[test]
    fn what_is_gone_is_forgotten_unless_it_came_back_meanwhile() {
        let start = Instant::now();
        let (mut schedule, key) = (Schedule::default(), key("d"));
        schedule.touch(&key, None, start);
        schedule.pop(start);
        schedule.touch(&key, Some(("u".into(), 1)), start);
        assert!(!schedule.finished(&key, Next::Never, MS, start));
        assert_eq!((schedule.pop(start), schedule.waiting()), (Some(key.clone()), 0));
        assert!(schedule.finished(&key, Next::Never, MS, start));
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn the_longest_due_goes_first() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.touch(&key("b"), None, start);
        schedule.touch(&key("a"), None, start + MS);
        schedule.touch(&key("c"), None, start);
        let order: Vec<_> = std::iter::from_fn(|| schedule.pop(start + MS)).map(|key| key.name.to_string()).collect();
        assert_eq!(order, ["b", "c", "a"]);
    }
}
