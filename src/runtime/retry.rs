//! Edge: delays between tries. The only place that knows the back-off library.

use backon::{BackoffBuilder, ExponentialBuilder};
use rand::Rng;
use std::time::Duration;

/// Delays that double from `first` to `most`, each with up to its own length added at random (but never more
/// than `most` by much), without end.
pub fn delays(first: Duration, most: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(most)
        .without_max_times()
        .with_jitter_seed(rand::rng().random())
        .with_jitter()
        .build()
}
