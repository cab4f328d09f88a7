//! Pure: a token bucket. Times are milliseconds on one monotonic clock.

/// Lets through `rate` a second on average, and a second's worth at once.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: f64,
    tokens: f64,
    last_ms: u64,
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
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn take(&mut self, now_ms: u64) -> Result<(), u64> {
        let elapsed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        self.tokens = (self.tokens + elapsed as f64 * self.rate / 1_000.0).min(self.rate);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err((((1.0 - self.tokens) * 1_000.0 / self.rate).ceil() as u64).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
