//! Pure: when a device's silence becomes a verdict, and when the observer should doubt itself instead.
//!
//! Times are milliseconds on one monotonic clock.

/// How long the watcher may be late before it takes itself for paused, milliseconds.
const PAUSE_MS: u64 = 3_000;
/// A sweep that would call dead more than this share of the live devices, and more than [`MASS_FLOOR`], is
/// more likely to be a fault on the way to the devices.
const MASS_SHARE: f64 = 0.2;
/// So few verdicts at once are never a mass.
const MASS_FLOOR: usize = 10;

/// What is known of a device's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It reported within the window.
    Alive,
    /// Nobody has heard of it for longer than the window.
    Stale,
    /// It has not reported since the start, or the observer was away: nothing can be said.
    Unjudged,
}

/// Why silence was not (yet) taken for death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The manager has not been up for one whole window.
    Start,
    /// The manager itself was paused or suspended.
    Pause,
    /// Too many at once: they are written at a trickle.
    Mass,
}

/// The observer's own state.
#[derive(Debug, Clone)]
pub struct Observer {
    window_ms: u64,
    /// Silence before this moment does not count.
    since_ms: u64,
    held: Held,
    last_tick_ms: u64,
    last_boot_ms: Option<u64>,
}

// === impl Held ===

impl Held {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Start, Self::Pause, Self::Mass];

    /// Label value of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Mass => "mass",
        }
    }
}

// === impl Observer ===

impl Observer {
    /// An observer that starts to listen now.
    #[must_use]
    pub fn new(window_ms: u64, now_ms: u64) -> Self {
        Self { window_ms, since_ms: now_ms, held: Held::Start, last_tick_ms: now_ms, last_boot_ms: None }
    }

    /// Listening starts only now: before, no device could be heard.
    pub fn restart(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
        self.last_tick_ms = now_ms;
        self.held = Held::Start;
    }

    /// Called every `every_ms`. A gap, or a boot clock that ran ahead of the monotonic one, means that the
    /// observer was away; then all clocks start again. Returns for how long it was away, milliseconds.
    pub fn tick(&mut self, now_ms: u64, boot_ms: Option<u64>, every_ms: u64) -> Option<u64> {
        let late = now_ms.saturating_sub(self.last_tick_ms).saturating_sub(every_ms);
        let suspended = match (boot_ms, self.last_boot_ms) {
            (Some(boot), Some(last)) => {
                boot.saturating_sub(last).saturating_sub(now_ms.saturating_sub(self.last_tick_ms))
            }
            _ => 0,
        };
        self.last_tick_ms = now_ms;
        self.last_boot_ms = boot_ms;
        let away = late.max(suspended);
        (away > PAUSE_MS).then(|| {
            self.since_ms = now_ms;
            self.held = Held::Pause;
            away
        })
    }

    /// Judges a device by when it was last heard.
    ///
    /// # Errors
    /// Why its silence was not taken for death.
    pub fn judge(&self, heard_ms: Option<u64>, now_ms: u64) -> Result<AgentState, Held> {
        // An own gap that no tick has seen yet: whoever asks first must not believe the clock.
        if now_ms.saturating_sub(self.last_tick_ms) > 2 * PAUSE_MS {
            return Err(Held::Pause);
        }
        if heard_ms.is_some_and(|heard| now_ms.saturating_sub(heard) < self.window_ms) {
            return Ok(AgentState::Alive);
        }
        let silence = now_ms.saturating_sub(heard_ms.unwrap_or(0).max(self.since_ms));
        if silence < self.window_ms { Err(self.held) } else { Ok(AgentState::Stale) }
    }
}

/// How many of the devices that would be called dead now may be: all of them, or a trickle when they are too
/// large a share of the live ones.
#[must_use]
pub fn allowance(would_die: usize, connected: usize, trickle: usize) -> usize {
    #[allow(clippy::cast_precision_loss)]
    let mass = would_die > MASS_FLOOR && would_die as f64 > MASS_SHARE * connected as f64;
    if mass { trickle.max(1).min(would_die) } else { would_die }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 45_000;

    fn ticking(until_ms: u64) -> Observer {
        let mut observer = Observer::new(WINDOW, 0);
        for now in (0..=until_ms).step_by(1_000) {
            assert_eq!(observer.tick(now, Some(now + 5), 1_000), None);
        }
        observer
    }

    #[test]
    fn not_before_the_window_and_at_once_after_it() {
        let observer = ticking(100_000);
        assert_eq!(observer.judge(Some(60_000), 100_000), Ok(AgentState::Alive));
        assert_eq!(observer.judge(Some(55_001), 100_000), Ok(AgentState::Alive));
        assert_eq!(observer.judge(Some(55_000), 100_000), Ok(AgentState::Stale));
    }

    #[test]
    fn nobody_is_judged_for_one_window_after_the_start() {
        assert_eq!(ticking(44_000).judge(None, 44_999), Err(Held::Start));
        assert_eq!(ticking(45_000).judge(None, 45_000), Ok(AgentState::Stale));
    }

    #[test]
    fn after_a_pause_all_clocks_start_again() {
        let mut observer = ticking(100_000);
        // Stopped for a minute: whoever asks before the next tick gets no verdict either.
        assert_eq!(observer.judge(Some(99_000), 160_000), Err(Held::Pause));
        assert_eq!(observer.tick(160_000, Some(160_005), 1_000), Some(59_000));
        assert_eq!(observer.judge(Some(99_000), 160_500), Err(Held::Pause));
        // Asleep: the monotonic clock stood still, the boot clock did not.
        let mut observer = ticking(100_000);
        assert_eq!(observer.tick(101_000, Some(700_000), 1_000), Some(598_995));
    }

    #[test]
    fn masses_trickle() {
        assert_eq!(allowance(10, 10, 3), 10);
        assert_eq!(allowance(1_000, 1_000, 20), 20);
        assert_eq!(allowance(11, 10_000, 20), 11);
        assert_eq!(allowance(11, 11, 0), 1);
        assert_eq!(allowance(0, 0, 5), 0);
    }

    proptest! {
        /// No live device is ever called dead: whatever the pauses, Stale needs a whole window of silence
        /// during which the observer was there all the time.
        #[test]
        fn stale_needs_a_window_of_attentive_silence(
            gaps in prop::collection::vec(prop_oneof![4 => Just(1_000_u64), 1 => 1_000_u64..120_000], 1..150),
            heard_at in prop::collection::vec(any::<bool>(), 150),
        ) {
            let mut observer = Observer::new(WINDOW, 0);
            let (mut now, mut heard, mut attentive_since) = (0, None, 0);
            for (gap, reports) in gaps.into_iter().zip(heard_at) {
                now += gap;
                if gap > 1_000 + PAUSE_MS { attentive_since = now; }
                observer.tick(now, None, 1_000);
                if reports { heard = Some(now); }
                if observer.judge(heard, now) == Ok(AgentState::Stale) {
                    prop_assert!(now - heard.unwrap_or(0).max(attentive_since) >= WINDOW);
                }
            }
        }

        /// And never suppressed for ever: with an attentive observer silence ends in a verdict.
        #[test]
        fn silence_ends_in_a_verdict(start in 0_u64..10_000_000, pause in 0_u64..1_000_000) {
            let mut observer = Observer::new(WINDOW, start);
            let mut now = start + pause;
            observer.tick(now, None, 1_000);
            for _ in 0..46 { now += 1_000; observer.tick(now, None, 1_000); }
            prop_assert_eq!(observer.judge(None, now), Ok(AgentState::Stale));
        }
    }
}
