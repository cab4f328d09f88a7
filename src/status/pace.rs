//! Edge: the limiter behind its lock, and its metric.

use super::limiter::{Class, Limiter};
use super::metrics::StatusMetrics;
use kube::core::Status;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A busy apiserver that does not say for how long is left alone for this time, milliseconds.
const PAUSE_MS: u64 = 1_000;

/// See [`super::limiter`].
pub struct Pace {
    limiter: Mutex<Limiter>,
    metrics: StatusMetrics,
    start: Instant,
}

// === impl Pace ===

impl Pace {
    /// `rate` is the most status writes a second, and the most events.
    #[must_use]
    pub fn new(rate: u32, metrics: StatusMetrics) -> Arc<Self> {
        let pace = Self { limiter: Mutex::new(Limiter::new(rate)), metrics, start: Instant::now() };
        Class::ALL.into_iter().for_each(|class| pace.show(class, pace.rate(class)));
        Arc::new(pace)
    }

    /// Waits for leave to write.
    pub async fn leave(&self, class: Class) {
        loop {
            let taken = self.limiter.lock().take(class, self.now_ms());
            let Err(wait) = taken else { return };
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Whether there is leave to write, which is not taken.
    ///
    /// # Errors
    /// When it is too early: after how many milliseconds to ask again.
    pub fn check(&self, class: Class) -> Result<(), u64> {
        self.limiter.lock().check(class, self.now_ms())
    }

    /// Takes in how the apiserver answered a write; `None` means not in time. An apiserver that is not there at all
    /// is no busy one.
    pub fn answered<T>(&self, class: Class, answer: Option<&Result<T, kube::Error>>) {
        let now = self.now_ms();
        let mut limiter = self.limiter.lock();
        let before = limiter.rate(class);
        match answer {
            None => limiter.refuse(class, now, 0),
            Some(Err(kube::Error::Api(status))) if is_busy(status) => limiter.refuse(class, now, pause_ms(status)),
            Some(Err(kube::Error::Api(status))) if status.code >= 500 => {}
            Some(Ok(_) | Err(kube::Error::Api(_))) => limiter.succeed(class, now),
            Some(Err(_)) => {}
        }
        let after = limiter.rate(class);
        drop(limiter);
        if (after - before).abs() > f64::EPSILON {
            self.show(class, after);
            if after < before {
                tracing::debug!(class = class.as_str(), rate = after, "the apiserver is busy: writing more slowly");
            }
        }
    }

    /// Writes a second that a class may do now.
    #[must_use]
    pub fn rate(&self, class: Class) -> f64 {
        self.limiter.lock().rate(class)
    }

    fn show(&self, class: Class, rate: f64) {
        self.metrics.write_rate.with_label_values(&[class.as_str()]).set(rate);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn is_busy(status: &Status) -> bool {
    matches!(status.code, 429 | 503 | 504)
}

fn pause_ms(status: &Status) -> u64 {
    let seconds = status.details.as_ref().map_or(0, |details| u64::from(details.retry_after_seconds));
    if seconds > 0 { seconds * 1_000 } else { PAUSE_MS }
}
