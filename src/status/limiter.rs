//! Pure: how fast may be written. A token bucket, and one a class that yields to a busy apiserver. Times are
//! milliseconds on one monotonic clock.
//!
//! Each class has a rate of its own that is halved when the apiserver refuses or does not answer in time, and grows
//! back with every success: so counters step back without holding up transitions, and neither delays events. Status
//! writes of both classes share one budget on top. Leases are no class: they have a client of their own and never
//! wait here.

/// A class that is refused is never slower than this, writes a second: somebody has to find out that it is over.
const FLOOR: f64 = 1.0;
/// One overload, seen by all writes in flight, halves a rate once, milliseconds.
const ONE_OVERLOAD_MS: u64 = 1_000;
/// From the floor back to the configured rate, seconds of uninterrupted success.
const RECOVERY_SECONDS: f64 = 20.0;
/// An apiserver that asks for a longer pause does not get it, milliseconds.
const MAX_PAUSE_MS: u64 = 60_000;

/// Lets through `rate` a second on average, and a second's worth at once.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: f64,
    tokens: f64,
    last_ms: u64,
}

/// What is written; each steps back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Statuses that somebody waits for.
    Transitions,
    /// Statuses in which only counters change.
    Counters,
    /// Events.
    Events,
}

/// A token bucket whose rate follows what the apiserver takes: additive increase, multiplicative decrease.
#[derive(Debug, Clone)]
pub struct Throttle {
    bucket: TokenBucket,
    most: f64,
    closed_until_ms: u64,
    halved_ms: Option<u64>,
}

/// All classes; see the module.
#[derive(Debug, Clone)]
pub struct Limiter {
    budget: TokenBucket,
    classes: [Throttle; 3],
}

// === impl Class ===

impl Class {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Transitions, Self::Counters, Self::Events];

    /// Label value of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transitions => "transitions",
            Self::Counters => "counters",
            Self::Events => "events",
        }
    }
}

// === impl TokenBucket ===

impl TokenBucket {
    /// A full bucket. `rate` is per second and at least 1.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        let rate = f64::from(rate.max(1));
        Self { rate, tokens: rate, last_ms: 0 }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// When there is none: after how many milliseconds to ask again.
    pub fn take(&mut self, now_ms: u64) -> Result<(), u64> {
        self.check(now_ms)?;
        self.tokens -= 1.0;
        Ok(())
    }

    /// Whether there is a token.
    ///
    /// # Errors
    /// When there is none: after how many milliseconds to ask again.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn check(&mut self, now_ms: u64) -> Result<(), u64> {
        let elapsed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        self.tokens = (self.tokens + elapsed as f64 * self.rate / 1_000.0).min(self.rate);
        // Sums of fractions may miss a whole by a hair.
        if self.tokens >= 1.0 - 1e-9 {
            return Ok(());
        }
        Err((((1.0 - self.tokens) * 1_000.0 / self.rate).ceil() as u64).max(1))
    }

    fn set_rate(&mut self, rate: f64, now_ms: u64) {
        // What was due until now was due at the old rate.
        let _ = self.check(now_ms);
        self.rate = rate;
        self.tokens = self.tokens.min(rate);
    }
}

// === impl Throttle ===

impl Throttle {
    /// A throttle that is fully open. `rate` is the most, per second.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        let bucket = TokenBucket::new(rate);
        Self { most: bucket.rate, bucket, closed_until_ms: 0, halved_ms: None }
    }

    /// Writes a second, now.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bucket.rate
    }

    fn check(&mut self, now_ms: u64) -> Result<(), u64> {
        if now_ms < self.closed_until_ms {
            return Err(self.closed_until_ms - now_ms);
        }
        self.bucket.check(now_ms)
    }

    /// The apiserver took a write.
    pub fn succeed(&mut self, now_ms: u64) {
        if self.bucket.rate < self.most {
            // At r successes a second this adds the same each second, whatever r is.
            let step = self.most / RECOVERY_SECONDS / self.bucket.rate;
            self.bucket.set_rate((self.bucket.rate + step).min(self.most), now_ms);
        }
    }

    /// The apiserver refused a write for being busy, or did not answer in time; `pause_ms` is what it asked for.
    pub fn refuse(&mut self, now_ms: u64, pause_ms: u64) {
        self.closed_until_ms = self.closed_until_ms.max(now_ms.saturating_add(pause_ms.min(MAX_PAUSE_MS)));
        if self.halved_ms.is_some_and(|at| now_ms < at.saturating_add(ONE_OVERLOAD_MS)) {
            return;
        }
        self.halved_ms = Some(now_ms);
        self.bucket.set_rate((self.bucket.rate / 2.0).max(FLOOR), now_ms);
    }
}

// === impl Limiter ===

impl Limiter {
    /// `rate` is the most status writes a second, of both classes together, and as many events.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self { budget: TokenBucket::new(rate), classes: [(); 3].map(|()| Throttle::new(rate)) }
    }

    /// Takes leave to write.
    ///
    /// # Errors
    /// When it is too early: after how many milliseconds to ask again.
    pub fn take(&mut self, class: Class, now_ms: u64) -> Result<(), u64> {
        self.check(class, now_ms)?;
        self.classes[class as usize].bucket.tokens -= 1.0;
        if class != Class::Events {
            self.budget.tokens -= 1.0;
        }
        Ok(())
    }

    /// Whether there is leave to write, which is not taken.
    ///
    /// # Errors
    /// When it is too early: after how many milliseconds to ask again.
    pub fn check(&mut self, class: Class, now_ms: u64) -> Result<(), u64> {
        self.classes[class as usize].check(now_ms)?;
        if class == Class::Events { Ok(()) } else { self.budget.check(now_ms) }
    }

    /// The apiserver took a write.
    pub fn succeed(&mut self, class: Class, now_ms: u64) {
        self.classes[class as usize].succeed(now_ms);
    }

    /// The apiserver refused a write for being busy, or did not answer in time; `pause_ms` is what it asked for.
    pub fn refuse(&mut self, class: Class, now_ms: u64, pause_ms: u64) {
        self.classes[class as usize].refuse(now_ms, pause_ms);
    }

    /// Writes a second that a class may do now.
    #[must_use]
    pub fn rate(&self, class: Class) -> f64 {
        self.classes[class as usize].rate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refused_class_steps_back_and_comes_back() {
        let mut limiter = Limiter::new(100);
        limiter.refuse(Class::Counters, 0, 1_000);
        limiter.refuse(Class::Counters, 10, 0);
        assert!((limiter.rate(Class::Counters) - 50.0).abs() < f64::EPSILON, "one overload counts once");
        assert_eq!(limiter.take(Class::Counters, 400), Err(600));
        assert_eq!(limiter.take(Class::Transitions, 400), Ok(()));
        assert_eq!(limiter.take(Class::Counters, 1_000), Ok(()));
        for now in 0..60 {
            limiter.refuse(Class::Counters, 2_000 + now * 1_000, 0);
        }
        assert!((limiter.rate(Class::Counters) - 1.0).abs() < f64::EPSILON);
        assert_eq!(limiter.take(Class::Events, 70_000), Ok(()));
        let (mut now, start) = (70_000, 70_000);
        while limiter.rate(Class::Counters) < 100.0 {
            match limiter.take(Class::Counters, now) {
                Ok(()) => limiter.succeed(Class::Counters, now),
                Err(wait) => now += wait,
            }
            assert!(now < start + 25_000, "still at {}", limiter.rate(Class::Counters));
        }
    }

    #[test]
    fn transitions_and_counters_share_one_budget_and_events_have_their_own() {
        let mut limiter = Limiter::new(10);
        let mut taken = |class: Class| (0..20).filter(|_| limiter.take(class, 0).is_ok()).count();
        assert_eq!((taken(Class::Counters), taken(Class::Transitions), taken(Class::Events)), (10, 0, 10));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_a_burst(rate in 1_u32..500, waits in prop::collection::vec(0_u64..300, 1..400)) {
            let mut bucket = TokenBucket::new(rate);
            let (mut now, mut taken) = (0, 0_u64);
            for wait in waits {
                now += wait;
                if bucket.take(now).is_ok() { taken += 1; }
                prop_assert!(taken as f64 <= f64::from(rate) * (1.0 + now as f64 / 1_000.0) + 1e-6);
            }
        }

        /// Whatever the apiserver says, a class keeps between the floor and the configured rate, and obeys pauses.
        #[test]
        fn a_throttle_keeps_its_bounds(rate in 1_u32..500, steps in prop::collection::vec((0_u8..3, 0_u64..3_000, 0_u64..90_000), 1..200)) {
            let mut limiter = Limiter::new(rate);
            let (mut now, mut closed, mut taken) = (0, 0, 0_u64);
            for (step, wait, pause) in steps {
                now += wait;
                match step {
                    0 => if limiter.take(Class::Transitions, now).is_ok() {
                        prop_assert!(now >= closed);
                        taken += 1;
                    },
                    1 => limiter.succeed(Class::Transitions, now),
                    _ => { limiter.refuse(Class::Transitions, now, pause); closed = closed.max(now + pause.min(MAX_PAUSE_MS)); }
                }
                let now_rate = limiter.rate(Class::Transitions);
                prop_assert!(now_rate >= FLOOR.min(f64::from(rate)) && now_rate <= f64::from(rate));
                prop_assert!(taken as f64 <= f64::from(rate) * (1.0 + now as f64 / 1_000.0) + 1e-6);
            }
        }

        #[test]
        fn whoever_waits_as_told_is_let_through(rate in 1_u32..500, start in 0_u64..100_000) {
            let mut bucket = TokenBucket::new(rate);
            let mut now = start;
            while bucket.take(now).is_ok() {}
            let wait = bucket.take(now).unwrap_err();
            now += wait;
            prop_assert_eq!(bucket.take(now), Ok(()));
        }
    }
}
