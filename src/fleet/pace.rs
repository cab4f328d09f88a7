//! Pure: when a simulated device asks, reports, and comes back after a failure.
//!
//! Chance comes in as a number in `[0, 1)`.

use std::time::Duration;

/// Shortest time between the starts of two GETs of a device.
pub const MIN_GET_GAP: Duration = Duration::from_secs(1);
/// Pause after a 304 that came much sooner than asked: the gateway does not long-poll.
pub const NO_LONG_POLL_PAUSE: Duration = Duration::from_secs(5);
/// Longest `Retry-After` that is obeyed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Shortest pause before the next gateway is asked after one that asked for time; at most twice as long.
const MOVE_ON_PAUSE: Duration = Duration::from_secs(1);
/// A 304 may come this much sooner than asked.
const SLACK: Duration = Duration::from_secs(1);
/// How far the time of a parked poll varies either way.
const WAIT_SPREAD: Duration = Duration::from_secs(5);

/// How a request ended, as far as the next one is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well, with something new.
    News,
    /// Well, with nothing new.
    Nothing,
    /// Not at all, or with an error.
    Failed {
        /// The answer's `Retry-After`.
        retry_after: Option<Duration>,
    },
}

/// The number of requests that failed in a row, on which the patience depends.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    gateways: u32,
    failures: u32,
}

// === impl Patience ===

impl Patience {
    /// For a device that knows so many gateways.
    #[must_use]
    pub fn new(gateways: usize) -> Self {
        Self { gateways: u32::try_from(gateways).unwrap_or(u32::MAX).max(1), failures: 0 }
    }

    /// Notes how a request ended. `Some` is how long to wait before the next gateway is asked: not at all while there
    /// is one that was not asked in this round (a second or two when this one asked for time), else 1 s to one
    /// heartbeat, doubling, with jitter, and never less than the gateway asked for.
    pub fn after(&mut self, outcome: Outcome, heartbeat: Duration, chance: f64) -> Option<Duration> {
        let Outcome::Failed { retry_after } = outcome else {
            self.failures = 0;
            return None;
        };
        let longest = Duration::from_secs(1 << (self.failures / self.gateways).min(10)).min(heartbeat);
        self.failures += 1;
        let asked =
            retry_after.map_or(Duration::ZERO, |time| spread(time, time + time / 8, chance).min(MAX_RETRY_AFTER));
        if !self.failures.is_multiple_of(self.gateways) {
            return Some(asked.min(spread(MOVE_ON_PAUSE, 2 * MOVE_ON_PAUSE, chance)));
        }
        let own = spread(longest / 2, longest, chance).max(Duration::from_secs(1).min(heartbeat));
        Some(own.max(asked))
    }

    /// Requests that failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// How long a poll may be parked, whole seconds: five less to five more than `wait`, 0 for 0.
#[must_use]
pub fn wait_seconds(wait: Duration, chance: f64) -> u64 {
    if wait.is_zero() {
        0
    } else {
        spread(wait.saturating_sub(WAIT_SPREAD), wait + WAIT_SPREAD, chance).as_secs().max(1)
    }
}

/// How long to wait after the *start* of a GET that went well before the next one: `asked` is what the gateway
/// was allowed to wait, `took` what it took.
#[must_use]
pub fn get_gap(asked: Duration, took: Duration, outcome: Outcome, plain: Duration) -> Duration {
    let early = took + SLACK < asked;
    match outcome {
        Outcome::Nothing if early => took + NO_LONG_POLL_PAUSE,
        _ if asked.is_zero() && !plain.is_zero() => plain,
        _ => MIN_GET_GAP,
    }
}

/// The time between two reports: a heartbeat, `jitter` of it more or less.
#[must_use]
pub fn report_gap(heartbeat: Duration, jitter: f64, chance: f64) -> Duration {
    spread(heartbeat.mul_f64(1.0 - jitter), heartbeat.mul_f64(1.0 + jitter), chance)
}

/// When the n-th device starts, counted from 0.
#[must_use]
pub fn start_of(number: usize, per_second: f64) -> Duration {
    #[allow(clippy::cast_precision_loss)] // A number of devices is far below 2^52.
    Duration::from_secs_f64(number as f64 / per_second)
}

fn spread(from: Duration, to: Duration, chance: f64) -> Duration {
    from + to.saturating_sub(from).mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const H: Duration = Duration::from_secs(15);
    const FAILED: Outcome = Outcome::Failed { retry_after: None };

    #[test]
    fn failures_double_the_pause_up_to_a_heartbeat() {
        let mut patience = Patience::new(1);
        let pauses: Vec<u64> = (0..6).map(|_| patience.after(FAILED, H, 1.0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);
        assert_eq!(patience.after(Outcome::Nothing, H, 0.5), None);
        assert_eq!(patience.after(FAILED, H, 0.0), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_gateway_may_ask_for_more() {
        let asked = |seconds| Outcome::Failed { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(Patience::new(1).after(asked(8), H, 0.0), Some(Duration::from_secs(8)));
        assert_eq!(Patience::new(1).after(asked(3600), H, 0.0), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn others_are_asked_at_once() {
        let mut patience = Patience::new(2);
        let pauses: Vec<u64> = (0..6).map(|_| patience.after(FAILED, H, 1.0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [0, 1, 0, 2, 0, 4]);
        patience.after(Outcome::News, H, 0.5);
        let busy = Outcome::Failed { retry_after: Some(Duration::from_secs(8)) };
        assert_eq!(patience.after(busy, H, 0.0), Some(MOVE_ON_PAUSE));
        assert_eq!(patience.after(busy, H, 0.0), Some(Duration::from_secs(8)));
    }

    #[test]
    fn a_gateway_that_does_not_long_poll_is_not_hammered() {
        let s = Duration::from_secs;
        assert_eq!(get_gap(s(30), s(2), Outcome::Nothing, s(0)), s(7));
        assert_eq!(get_gap(s(30), s(30), Outcome::Nothing, s(0)), s(1));
        assert_eq!(get_gap(s(30), s(2), Outcome::News, s(0)), s(1));
        assert_eq!(get_gap(s(0), s(0), Outcome::Nothing, s(15)), s(15));
    }

    #[test]
    fn starts_are_spread() {
        assert_eq!(start_of(0, 200.0), Duration::ZERO);
        assert_eq!(start_of(500, 200.0), Duration::from_millis(2500));
    }

    proptest! {
        #[test]
        fn polls_and_reports_stay_near_what_was_asked(chance in 0.0..1.0_f64) {
            prop_assert!((25..=35).contains(&wait_seconds(Duration::from_secs(30), chance)));
            prop_assert_eq!(wait_seconds(Duration::ZERO, chance), 0);
            let gap = report_gap(H, 0.05, chance).as_secs_f64();
            prop_assert!((14.2..15.8).contains(&gap));
        }
    }
}
