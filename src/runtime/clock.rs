//! Edge: the clocks that edges read and hand to the core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time, whole seconds since 1970; for people only.
#[must_use]
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Time since boot, suspended time included (`CLOCK_BOOTTIME`), where the system tells; to be compared with a
/// monotonic clock, which stands still while the machine sleeps.
#[must_use]
pub fn since_boot() -> Option<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(uptime.split_whitespace().next()?.parse().ok()?).ok()
}
