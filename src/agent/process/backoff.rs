//! Pure: how long to leave something alone that has failed.
//!
//! Chance comes in as a number in `[0, 1)`, so that every decision can be replayed.

use crate::agent::backend::Activity;
use std::time::{Duration, Instant};

/// Shortest and longest pause between two downloads of an artifact.
const DOWNLOAD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Longest `Retry-After` that is obeyed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Shortest and longest pause before a process that has ended is started again, but for the first time.
const RESTART: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// A process that has run for so long is past its trouble.
const SOUND_RUN: Duration = Duration::from_secs(600);
/// Shortest and longest pause before something is tried again that the device did not let us do.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The pause after the download that failed as the `failures`-th in a row (from 1). What a server asks for holds at
/// least, up to an hour.
#[must_use]
pub fn download(failures: u32, retry_after: Option<Duration>, chance: f64) -> Duration {
    let own = spread(doubled(DOWNLOAD, failures.saturating_sub(1)), chance).max(DOWNLOAD.0);
    // A server that names a time names it to many: spread them a little, never before that time.
    let asked = retry_after.map(|time| time.min(MAX_RETRY_AFTER)).map(|time| time + (time / 8).mul_f64(chance));
    asked.map_or(own, |asked| asked.max(own))
}

/// The first times `bounds.0`, doubling up to `bounds.1`.
fn doubled(bounds: (Duration, Duration), times: u32) -> Duration {
    bounds.0.saturating_mul(1 << times.min(16)).min(bounds.1)
}

/// From three quarters of a pause to all of it: who fails together does not come again together.
fn spread(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 4.0)
}

/// When a process that has ended is started again by the agent: the first time at once, then after 10 s, doubling to
/// five minutes; ten minutes of running and all is forgotten. As Kubernetes does it (`CrashLoopBackOff`).
#[derive(Debug, Clone, Default)]
pub struct Restarts {
    /// Restarts that were not followed by a sound run.
    row: u32,
    started: Option<Instant>,
    due: Option<Instant>,
}

// === impl Restarts ===

impl Restarts {
    /// When to start it again, by what it is seen to do; none: nothing of it has ended. That nothing runs is an end as
    /// well after a start of ours, one of which nobody could write down how it was.
    pub fn seen(&mut self, now: Instant, activity: Option<&Activity>, chance: f64) -> Option<Instant> {
        match activity? {
            Activity::Running { .. } => {
                self.lives(now);
                None
            }
            Activity::Ended(_) => Some(self.ended(now, chance)),
            Activity::Stopped if self.started.is_some() || self.due.is_some() => Some(self.ended(now, chance)),
            Activity::Stopped | Activity::Restarting(_) => None,
        }
    }

    /// It was started, or is seen to live.
    pub fn lives(&mut self, now: Instant) {
        self.due = None;
        let started = *self.started.get_or_insert(now);
        if now.saturating_duration_since(started) >= SOUND_RUN {
            self.row = 0;
        }
    }

    /// It is seen to have ended: when to start it again. Asked again before that it says the same.
    pub fn ended(&mut self, now: Instant, chance: f64) -> Instant {
        if let Some(due) = self.due {
            return due;
        }
        if self.started.take().is_some_and(|started| now.saturating_duration_since(started) >= SOUND_RUN) {
            self.row = 0;
        }
        let pause = if self.row == 0 { Duration::ZERO } else { spread(doubled(RESTART, self.row - 1), chance) };
        self.row = self.row.saturating_add(1);
        *self.due.insert(now + pause)
    }
}

/// When something is tried again that the device did not let us do: a full disk, a user that does not exist.
#[derive(Debug, Clone, Default)]
pub struct Retries {
    row: u32,
    due: Option<Instant>,
}

// === impl Retries ===

impl Retries {
    /// It failed once more.
    pub fn failed(&mut self, now: Instant, chance: f64) {
        self.due = Some(now + spread(doubled(RETRY, self.row), chance));
        self.row = self.row.saturating_add(1);
    }

    /// It worked, or is about something else now.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// When to try again; none: at once.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_restart_is_at_once_and_then_it_takes_longer_and_longer() {
        let mut now = Instant::now();
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            restarts.lives(now);
            let due = restarts.ended(now, 1.0);
            assert_eq!(restarts.ended(now + Duration::from_secs(1), 0.3), due, "asked again it says the same");
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        restarts.lives(now);
        now += SOUND_RUN;
        assert_eq!(restarts.ended(now, 1.0), now, "after a sound run it is the first time again");
    }

    #[test]
    fn a_run_whose_end_nobody_could_write_down_has_ended_all_the_same() {
        let mut now = Instant::now();
        let mut restarts = Restarts::default();
        assert_eq!(restarts.seen(now, Some(&Activity::Stopped), 1.0), None, "it was not started yet");
        let mut pauses = Vec::new();
        for _ in 0..4 {
            restarts.lives(now); // our start
            let due = restarts.seen(now, Some(&Activity::Stopped), 1.0).unwrap();
            assert_eq!(restarts.seen(now, Some(&Activity::Stopped), 0.0), Some(due));
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [0, 10, 20, 40]);
        assert_eq!(restarts.seen(now, Some(&Activity::Running { pid: 1, started: 1 }), 1.0), None);
    }

    #[test]
    fn a_server_is_obeyed_for_an_hour_at_most() {
        let hours = |n: u64| Some(Duration::from_secs(n * 3600));
        assert_eq!(download(1, hours(1), 0.0), Duration::from_secs(3600));
        assert_eq!(download(1, hours(9), 0.0), Duration::from_secs(3600));
        assert_eq!(download(1, Some(Duration::ZERO), 1.0), Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn downloads_are_spaced_within_bounds(failures in 1_u32.., asked in prop::option::of(0_u64..100_000), chance in 0.0..1.0_f64) {
            let pause = download(failures, asked.map(Duration::from_secs), chance);
            let most = DOWNLOAD.1.max(Duration::from_secs(asked.unwrap_or(0)).min(MAX_RETRY_AFTER) * 9 / 8);
            prop_assert!(pause >= DOWNLOAD.0 && pause <= most);
            prop_assert!(pause >= Duration::from_secs(asked.unwrap_or(0)).min(MAX_RETRY_AFTER));
            prop_assert!(pause <= download(failures.saturating_add(1), asked.map(Duration::from_secs), chance));
        }
    }
}
