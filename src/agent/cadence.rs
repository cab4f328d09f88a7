//! Pure: when to ask the gateway and when to report, and which gateway.
//!
//! Chance comes in as a number in `[0, 1)`, so that every decision can be replayed.

use std::time::{Duration, Instant};

/// Shortest time between the starts of two GETs.
pub const MIN_GET_GAP: Duration = Duration::from_secs(1);
/// Pause after an answer that says that the server does not long-poll.
pub const NO_LONG_POLL_PAUSE: Duration = Duration::from_secs(5);
/// Longest `Retry-After` that is obeyed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Shortest pause before the next gateway is asked after one that asked for time; at most twice as long.
const MOVE_ON_PAUSE: Duration = Duration::from_secs(1);
/// Interval between reports until the gateway has named one.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(15);
/// Shortest and longest interval between reports that a gateway can ask for.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// An answer this much sooner than asked was not held back on purpose.
const LONG_POLL_SLACK: Duration = Duration::from_secs(1);

/// How a request ended, as far as the next one is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer was good and brought something new.
    News,
    /// The answer was good and brought nothing new.
    Nothing,
    /// No answer, an error, or an answer from the past; the next request goes to the next gateway.
    Failed {
        /// The answer's `Retry-After`.
        retry_after: Option<Duration>,
    },
}

/// The interval between reports that a gateway asked for, kept within bounds.
#[must_use]
pub fn heartbeat(seconds: u64) -> Duration {
    Duration::from_secs(seconds).clamp(HEARTBEAT_BOUNDS.0, HEARTBEAT_BOUNDS.1)
}

/// Which gateway to try, and how long to leave them alone after failures.
#[derive(Debug)]
struct Attempts {
    current: usize,
    failures: u32,
    /// For each gateway the end of the time for which it has asked to be left alone.
    spared: Box<[Option<Instant>]>,
}

// === impl Attempts ===

impl Attempts {
    fn new(gateways: usize) -> Self {
        Self { current: 0, failures: 0, spared: vec![None; gateways.max(1)].into() }
    }

    /// Moves on to the next gateway and says when to ask it: at once while there is one that was not tried since the
    /// last success or pause, else after 1 s to one heartbeat, doubling from round to round.
    ///
    /// A `Retry-After` is the word of one gateway about itself: another one may be able, and is asked a second or two
    /// later, since what troubles one may trouble all. One that has asked for time is passed over until it is up.
    fn failed(&mut self, now: Instant, retry_after: Option<Duration>, heartbeat: Duration, chance: f64) -> Instant {
        let gateways = self.spared.len();
        self.failures = self.failures.saturating_add(1);
        // A server that names a time names it to many: spread them a little, never before that time.
        let asked = retry_after.map(|time| time.min(MAX_RETRY_AFTER)).map(|time| spread(time, time + time / 8, chance));
        self.spared[self.current] = asked.map(|time| now + time);
        let until = |gateway: &usize| self.spared[*gateway].filter(|until| *until > now);
        // Of several the first, so the next in order where nobody has asked for time.
        let next = (1..=gateways).map(|step| (self.current + step) % gateways).min_by_key(until).unwrap_or(0);
        let round = u32::try_from(gateways).unwrap_or(u32::MAX);
        let pause = if self.failures.is_multiple_of(round) || next == self.current {
            let longest = Duration::from_secs(1 << self.failures.div_ceil(round).min(16)).min(heartbeat);
            spread((longest / 2).max(Duration::from_secs(1).min(longest)), longest, chance)
        } else {
            asked.map_or(Duration::ZERO, |asked| {
                spread(MOVE_ON_PAUSE, 2 * MOVE_ON_PAUSE, chance).min(asked).min(heartbeat)
            })
        };
        let spared = until(&next);
        self.current = next;
        (now + pause).max(spared.unwrap_or(now))
    }
}

fn spread(from: Duration, to: Duration, chance: f64) -> Duration {
    from + to.saturating_sub(from).mul_f64(chance.clamp(0.0, 1.0))
}

/// When to GET the desired state.
#[derive(Debug)]
pub struct Polling {
    attempts: Attempts,
    due: Instant,
    asked: Instant,
    wait: Duration,
    /// The last answer was good: the next GET may be held back by the server.
    steady: bool,
}

/// A GET that is to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which gateway, counted from 0 in the order of configuration.
    pub gateway: usize,
    /// How long the server may hold the answer back, whole seconds. 0 after a start or a failure, so that the
    /// agent knows soon where it stands.
    pub wait_seconds: u64,
}

// === impl Polling ===

impl Polling {
    /// The first GET is due at once.
    #[must_use]
    pub fn new(now: Instant, gateways: usize) -> Self {
        Self { attempts: Attempts::new(gateways), due: now, asked: now, wait: Duration::ZERO, steady: false }
    }

    /// When the next GET is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Starts a GET. A long-poll lasts 25 to 35 s.
    pub fn ask(&mut self, now: Instant, chance: f64) -> Ask {
        self.asked = now;
        let wait = if self.steady {
            spread(Duration::from_secs(25), Duration::from_secs(36), chance).as_secs().min(35)
        } else {
            0
        };
        self.wait = Duration::from_secs(wait);
        Ask { gateway: self.attempts.current, wait_seconds: wait }
    }

    /// Notes how the GET ended and plans the next one.
    pub fn answered(&mut self, now: Instant, outcome: Outcome, heartbeat: Duration, chance: f64) {
        let next = if let Outcome::Failed { retry_after } = outcome {
            self.steady = false;
            self.attempts.failed(now, retry_after, heartbeat, chance)
        } else {
            self.steady = true;
            self.attempts.failures = 0;
            let early = now.saturating_duration_since(self.asked) + LONG_POLL_SLACK < self.wait;
            if outcome == Outcome::Nothing && early { now + NO_LONG_POLL_PAUSE } else { now }
        };
        self.due = next.max(self.asked + MIN_GET_GAP);
    }
}

/// When to report.
#[derive(Debug)]
pub struct Reporting {
    attempts: Attempts,
    heartbeat: Duration,
    started: Option<Instant>,
    retry: Option<Instant>,
    changed: bool,
}

// === impl Reporting ===

impl Reporting {
    /// The first report is due at once.
    #[must_use]
    pub fn new(gateways: usize, heartbeat: Duration) -> Self {
        Self { attempts: Attempts::new(gateways), heartbeat, started: None, retry: None, changed: false }
    }

    /// The interval between reports.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Takes over another interval, which also holds for the report that is due next.
    pub fn set_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = heartbeat;
    }

    /// An observation changed: the next report is due at once, unless failures or the server ask for patience.
    pub fn observations_changed(&mut self) {
        self.changed = true;
    }

    /// When the next report is due; in the past when it is overdue.
    #[must_use]
    pub fn due(&self, now: Instant) -> Instant {
        match (self.retry, self.started) {
            (Some(retry), _) => retry,
            (None, Some(started)) if !self.changed => started + self.heartbeat,
            _ => now,
        }
    }

    /// Starts a report and says to which gateway it goes.
    pub fn start(&mut self, now: Instant) -> usize {
        self.started = Some(now);
        self.changed = false;
        self.attempts.current
    }

    /// Notes how the report ended and plans the next one.
    pub fn answered(&mut self, now: Instant, outcome: Outcome, chance: f64) {
        self.retry = if let Outcome::Failed { retry_after } = outcome {
            // What was to be said is still unsaid, but saying it at once is what just failed.
            Some(self.attempts.failed(now, retry_after, self.heartbeat, chance))
        } else {
            self.attempts.failures = 0;
            None
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const H: Duration = DEFAULT_HEARTBEAT;
    const FAILED: Outcome = Outcome::Failed { retry_after: None };

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn the_first_get_goes_at_once_and_then_long_polls() {
        let start = Instant::now();
        let mut polling = Polling::new(start, 1);
        assert_eq!(polling.due(), start);
        assert_eq!(polling.ask(start, 0.5), Ask { gateway: 0, wait_seconds: 0 });
        polling.answered(start + seconds(0.1), Outcome::News, H, 0.5);
        assert_eq!(polling.due(), start + MIN_GET_GAP);
        let now = polling.due();
        assert_eq!(polling.ask(now, 0.0).wait_seconds, 25);
        assert_eq!(polling.ask(now, 0.999).wait_seconds, 35);
        // Held back as asked: the next one at once.
        polling.answered(now + seconds(35.0), Outcome::Nothing, H, 0.5);
        assert_eq!(polling.due(), now + seconds(35.0));
        // A server that does not long-poll.
        let now = polling.due();
        polling.ask(now, 0.5);
        polling.answered(now + seconds(0.01), Outcome::Nothing, H, 0.5);
        assert_eq!(polling.due(), now + seconds(5.01));
        // A change ends the wait early; that is no reason to pause.
        let now = polling.due();
        polling.ask(now, 0.5);
        polling.answered(now + seconds(2.0), Outcome::News, H, 0.5);
        assert_eq!(polling.due(), now + seconds(2.0));
    }

    #[test]
    fn gateways_are_tried_in_order_and_the_one_that_works_is_kept() {
        let mut now = Instant::now();
        let mut polling = Polling::new(now, 3);
        let mut gaps = Vec::new();
        for expected in [0, 1, 2, 0, 1] {
            assert_eq!(polling.ask(now, 0.0).gateway, expected);
            polling.answered(now, FAILED, H, 0.0);
            gaps.push(polling.due() - now);
            now = polling.due();
        }
        // At most one GET a second, and a pause only after a whole round (the second one would be longer).
        assert_eq!(gaps, vec![MIN_GET_GAP; 5]);
        assert_eq!(polling.ask(now, 0.0).gateway, 2);
        polling.answered(now, Outcome::News, H, 0.0);
        assert_eq!(polling.ask(polling.due(), 0.0).gateway, 2);
    }

    #[test]
    fn one_that_asks_for_time_gets_it_and_another_is_asked_meanwhile() {
        let patience = |s: f64| Outcome::Failed { retry_after: Some(seconds(s)) };
        let begin = Instant::now();
        let mut reporting = Reporting::new(3, H);
        let mut now = begin;
        let mut fails = |outcome: Outcome, gateway: usize, due: f64| {
            assert_eq!(reporting.start(now), gateway);
            reporting.answered(now, outcome, 0.0);
            now = reporting.due(now);
            assert_eq!(now, begin + seconds(due), "after gateway {gateway}");
        };
        // A second between them: what troubles one may trouble all.
        fails(patience(40.0), 0, 1.0);
        fails(FAILED, 1, 1.0);
        // After a whole round a pause, and gateway 0 is still passed over.
        fails(patience(8.0), 2, 2.0);
        fails(FAILED, 1, 4.0);
        fails(patience(30.0), 1, 9.0);
        // The first whose time is up.
        fails(patience(60.0), 2, 34.0);
        fails(patience(60.0), 1, 40.0);
        // A success forgets failures, not what a gateway has asked for.
        assert_eq!(reporting.start(now), 0);
        reporting.answered(now, Outcome::Nothing, 0.0);
        reporting.start(now);
        reporting.answered(now, FAILED, 0.0);
        assert_eq!(reporting.due(now), now + seconds(1.0), "nobody else to go to: not at once");
        assert_eq!(reporting.start(now), 0);
    }

    #[test]
    fn back_off_doubles_from_one_second_to_the_heartbeat() {
        let now = Instant::now();
        for (chance, expected) in [(0.0, [1.0, 2.0, 4.0, 7.5, 7.5]), (1.0, [2.0, 4.0, 8.0, 15.0, 15.0])] {
            let mut reporting = Reporting::new(1, H);
            for pause in expected {
                reporting.start(now);
                reporting.answered(now, FAILED, chance);
                assert_eq!(reporting.due(now), now + seconds(pause));
            }
            reporting.answered(now, Outcome::Nothing, chance);
            reporting.answered(now, FAILED, chance);
            assert_eq!(reporting.due(now), now + seconds(expected[0]), "a success forgets the failures");
        }
    }

    #[test]
    fn reports_follow_their_own_timer_and_changes_go_at_once() {
        let start = Instant::now();
        let mut reporting = Reporting::new(1, H);
        assert_eq!(reporting.due(start), start);
        reporting.start(start);
        reporting.answered(start + seconds(2.0), Outcome::Nothing, 0.5);
        let now = start + seconds(3.0);
        assert_eq!(reporting.due(now), start + H, "counted from the start of the report");
        reporting.set_heartbeat(seconds(4.0));
        assert_eq!(reporting.due(now), start + seconds(4.0));
        reporting.observations_changed();
        assert_eq!(reporting.due(now), now);
        // A change while a report is under way is not lost.
        reporting.start(now);
        reporting.observations_changed();
        reporting.answered(now + seconds(1.0), Outcome::Nothing, 0.5);
        assert_eq!(reporting.due(now + seconds(1.0)), now + seconds(1.0));
        // A change does not break a server's request for patience.
        reporting.start(now);
        reporting.answered(now, Outcome::Failed { retry_after: Some(seconds(8.0)) }, 0.0);
        reporting.observations_changed();
        assert_eq!(reporting.due(now), now + seconds(8.0));
    }

    fn outcomes() -> impl Strategy<Value = (Outcome, f64, f64)> {
        let outcome = prop_oneof![
            Just(Outcome::News),
            Just(Outcome::Nothing),
            prop::option::of(0_u64..100_000).prop_map(|s| Outcome::Failed { retry_after: s.map(Duration::from_secs) }),
        ];
        (outcome, 0.0..1.0, 0.0..50.0)
    }

    proptest! {
        #[test]
        fn polling_is_never_hasty_and_never_stops(
            steps in prop::collection::vec(outcomes(), 1..60), gateways in 1_usize..4, heartbeat_seconds in 0_u64..10_000,
        ) {
            let h = heartbeat(heartbeat_seconds);
            let mut now = Instant::now();
            let mut polling = Polling::new(now, gateways);
            let mut last_start: Option<Instant> = None;
            // What each gateway has asked for, and that with the most that is added.
            let mut spared = vec![(now, now); gateways];
            for (outcome, chance, took) in steps {
                now = polling.due();
                if let Some(last) = last_start {
                    prop_assert!(now - last >= MIN_GET_GAP);
                }
                last_start = Some(now);
                let ask = polling.ask(now, chance);
                prop_assert!(ask.gateway < gateways);
                prop_assert!(ask.wait_seconds == 0 || (25..=35).contains(&ask.wait_seconds));
                let end = now + seconds(took);
                polling.answered(end, outcome, h, chance);
                let due = polling.due();
                let pause = due.saturating_duration_since(end);
                match outcome {
                    Outcome::Failed { retry_after } => {
                        let asked = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
                        spared[ask.gateway] = (end + asked, end + asked + asked / 8);
                        let next = polling.ask(due, chance);
                        prop_assert_eq!(next.wait_seconds, 0);
                        prop_assert!(due >= spared[next.gateway].0);
                        let longest = spared.iter().map(|(_, latest)| *latest).min().unwrap();
                        prop_assert!(due <= longest.max(end + h.max(MIN_GET_GAP)));
                        if spared.iter().all(|(_, latest)| *latest <= end) {
                            prop_assert_eq!(next.gateway, (ask.gateway + 1) % gateways);
                        }
                    }
                    _ => {
                        prop_assert!(pause <= NO_LONG_POLL_PAUSE);
                        prop_assert_eq!(polling.ask(polling.due(), chance).gateway, ask.gateway);
                    }
                }
            }
        }

        #[test]
        fn reports_are_never_further_apart_than_they_should_be(
            steps in prop::collection::vec((outcomes(), any::<bool>()), 1..60), gateways in 1_usize..4, heartbeat_seconds in 0_u64..10_000,
        ) {
            let h = heartbeat(heartbeat_seconds);
            let mut now = Instant::now();
            let mut reporting = Reporting::new(gateways, h);
            let mut spared = vec![(now, now); gateways];
            for ((outcome, chance, took), change) in steps {
                now = now.max(reporting.due(now));
                let gateway = reporting.start(now);
                let end = now + seconds(took);
                if change {
                    reporting.observations_changed();
                }
                reporting.answered(end, outcome, chance);
                let due = reporting.due(end);
                match outcome {
                    Outcome::Failed { retry_after } => {
                        let asked = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
                        spared[gateway] = (end + asked, end + asked + asked / 8);
                        let longest = spared.iter().map(|(_, latest)| *latest).min().unwrap();
                        prop_assert!(due >= end && due <= longest.max(end + h));
                        prop_assert!(gateways > 1 || due >= end + asked);
                    }
                    _ if change => prop_assert_eq!(due, end),
                    _ => prop_assert_eq!(due, now + h),
                }
                now = end;
            }
        }
    }
}
