//! Pure: what all devices saw, and the summary of it.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Buckets a power of two: a value is known to 1.6 %.
const STEPS: u64 = 64;

/// Times in buckets that grow with the time.
#[derive(Debug, Default, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    longest: Duration,
}

/// Which requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `GET …/desired`
    Desired,
    /// `POST …/report`
    Report,
}

/// One route's requests.
#[derive(Debug, Default, Clone)]
struct Requests {
    by_code: BTreeMap<String, u64>,
    times: Histogram,
    recoveries: Histogram,
}

/// What all devices saw.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    desired: Requests,
    reports: Requests,
    /// Devices that have started.
    pub started: u64,
    /// Answers that changed what a device should run, its first one included.
    pub changes: u64,
    /// Answers that were older than what the device had seen.
    pub travelled_back: u64,
    /// 200s at `desired` that no device can read.
    pub unreadable: u64,
    /// Reports that were acknowledged.
    pub acknowledged: u64,
    /// Observations that were rejected.
    pub rejected: u64,
    /// Connections that were opened.
    pub connections: u64,
}

/// A [`Tally`] as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Simulated devices that have started.
    pub devices: u64,
    /// How long the fleet ran.
    pub seconds: f64,
    /// Requests for desired state. The time is what a 304 took beyond what it was asked to wait.
    pub desired: RouteSummary,
    /// Reports.
    pub reports: RouteSummary,
    /// See [`Tally::changes`].
    pub changes: u64,
    /// See [`Tally::travelled_back`].
    pub travelled_back: u64,
    /// See [`Tally::unreadable`].
    pub unreadable: u64,
    /// See [`Tally::acknowledged`].
    pub acknowledged: u64,
    /// See [`Tally::rejected`].
    pub rejected: u64,
    /// See [`Tally::connections`].
    pub connections: u64,
}

/// One route of a [`Summary`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSummary {
    /// Requests that ended.
    pub requests: u64,
    /// By status code, or by what went wrong (`connect`, `broken`, `timeout`).
    pub by_code: BTreeMap<String, u64>,
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// Longest, milliseconds.
    pub max_ms: f64,
    /// How often requests of a device failed, once or several in a row, and then went well again.
    pub recoveries: u64,
    /// Longest time from the first of them that failed to the good answer, milliseconds.
    pub longest_recovery_ms: f64,
}

// === impl Histogram ===

impl Histogram {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        let index = bucket(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += 1;
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    /// The time that a share (0 to 1) of all did not exceed, to 1.6 %; zero when there is none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // Counts are far below 2^52.
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(index)).min(self.longest);
            }
        }
        self.longest
    }

    /// How many times were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest of them.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

/// Exact up to [`STEPS`], then [`STEPS`] buckets for each power of two.
fn bucket(micros: u64) -> usize {
    let octave = u64::from((micros / STEPS).checked_ilog2().map_or(0, |log| log + 1));
    let step = if octave == 0 { micros } else { (micros >> (octave - 1)) - STEPS };
    usize::try_from(octave * STEPS + step).unwrap_or(usize::MAX)
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let (octave, step) = (index / STEPS, index % STEPS);
    if octave == 0 { step } else { ((STEPS + step + 1) << (octave - 1)) - 1 }
}

/// Milliseconds, to hundredths.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

// === impl Tally ===

impl Tally {
    /// Counts a request that ended. `time` is `None` when it says nothing about the gateway's speed.
    pub fn ended(&mut self, route: Route, code: impl Into<String>, time: Option<Duration>) {
        let requests = self.of(route);
        *requests.by_code.entry(code.into()).or_default() += 1;
        if let Some(time) = time {
            requests.times.add(time);
        }
    }

    /// Notes that a device's requests go well again, some time after the first that failed.
    pub fn recovered(&mut self, route: Route, after: Duration) {
        self.of(route).recoveries.add(after);
    }

    fn of(&mut self, route: Route) -> &mut Requests {
        match route {
            Route::Desired => &mut self.desired,
            Route::Report => &mut self.reports,
        }
    }

    /// The summary after some time.
    #[must_use]
    pub fn summary(&self, ran: Duration) -> Summary {
        Summary {
            devices: self.started,
            seconds: (ran.as_secs_f64() * 10.0).round() / 10.0,
            desired: self.desired.summary(),
            reports: self.reports.summary(),
            changes: self.changes,
            travelled_back: self.travelled_back,
            unreadable: self.unreadable,
            acknowledged: self.acknowledged,
            rejected: self.rejected,
            connections: self.connections,
        }
    }
}

// === impl Requests ===

impl Requests {
    fn summary(&self) -> RouteSummary {
        RouteSummary {
            requests: self.by_code.values().sum(),
            by_code: self.by_code.clone(),
            p50_ms: ms(self.times.quantile(0.5)),
            p99_ms: ms(self.times.quantile(0.99)),
            max_ms: ms(self.times.longest()),
            recoveries: self.recoveries.count(),
            longest_recovery_ms: ms(self.recoveries.longest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.99), Duration::ZERO);
    }

    #[test]
    fn a_summary_is_json_with_codes() {
        let mut tally = Tally { started: 2, ..Tally::default() };
        tally.ended(Route::Desired, "304", Some(Duration::from_millis(2)));
        tally.ended(Route::Desired, "304", Some(Duration::from_millis(2)));
        tally.ended(Route::Desired, "timeout", None);
        tally.recovered(Route::Desired, Duration::from_millis(7));
        let json = serde_json::to_value(tally.summary(Duration::from_millis(1234))).unwrap();
        assert_eq!(json["seconds"], 1.2);
        assert_eq!(json["desired"]["byCode"], serde_json::json!({"304": 2, "timeout": 1}));
        assert_eq!((&json["desired"]["recoveries"], &json["desired"]["longestRecoveryMs"]), (&1.into(), &7.0.into()));
        assert_eq!((&json["desired"]["p50Ms"], &json["reports"]["requests"]), (&2.0.into(), &0.into()));
    }

    proptest! {
        #[test]
        fn buckets_do_not_overlap_and_are_narrow(micros in 0_u64..1 << 50) {
            let index = bucket(micros);
            prop_assert!(micros <= upper(index));
            prop_assert!(index == 0 || upper(index - 1) < micros);
            prop_assert!(upper(index) - micros <= micros / STEPS + 1);
        }

        #[test]
        fn quantiles_are_near_the_truth(mut micros in prop::collection::vec(0_u64..1 << 30, 1..200), share in 0.01..1.0_f64) {
            let mut histogram = Histogram::default();
            micros.iter().for_each(|m| histogram.add(Duration::from_micros(*m)));
            micros.sort_unstable();
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let truth = micros[((micros.len() as f64 * share).ceil() as usize).max(1) - 1];
            let said = u64::try_from(histogram.quantile(share).as_micros()).unwrap();
            prop_assert!(said >= truth && said <= truth + truth / 32 + 1, "{said} {truth}");
        }
    }
}
