//! Edge: what the device port counts.

use super::path::Route;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Codes that can be answered on a route; they exist from the start.
const DESIRED_CODES: [u16; 8] = [200, 304, 400, 401, 404, 405, 500, 503];
const REPORT_CODES: [u16; 10] = [200, 400, 401, 403, 404, 405, 408, 413, 500, 503];
/// Most reports have nothing to write (well below a millisecond); an answer takes 8 s at most.
const REPORT_BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0, 10.0];

/// The metrics of the device port.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    desired: ByCode<8>,
    reports: ByCode<10>,
    /// Requests for no route.
    pub unrouted: IntCounter,
    /// Requests whose token was missing or wrong.
    pub auth_failures: IntCounter,
    /// Long-polls that are waiting.
    pub parked: IntGauge,
    /// Time until a report was answered.
    pub report_seconds: Histogram,
    /// Open connections.
    pub connections: IntGauge,
    /// Times that no further connection was accepted for a while because the limit was reached.
    pub connections_full: IntCounter,
    /// Connections that were cut off by a limit.
    pub connections_cut: IntCounter,
    /// Handlers that panicked.
    pub panics: IntCounter,
    /// When the certificate of the port ends, seconds since 1970; 0 without TLS.
    pub certificate_not_after: IntGauge,
    handshakes: [IntCounter; Handshake::ALL.len()],
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// Well.
    Ok,
    /// The client refused, most likely because it does not trust the certificate.
    Refused,
    /// No version or cipher in common, or something that is no TLS.
    Failed,
    /// The client spoke plain HTTP.
    PlainHttp,
    /// The connection ended half-way: a probe of a load balancer, or a bad network.
    Closed,
    /// It took too long.
    Timeout,
}

// === impl Handshake ===

impl Handshake {
    /// In the order of their declaration.
    pub const ALL: [Self; 6] = [Self::Ok, Self::Refused, Self::Failed, Self::PlainHttp, Self::Closed, Self::Timeout];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::PlainHttp => "plain_http",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
        }
    }
}

/// A counter per code, resolved once.
#[derive(Debug, Clone)]
struct ByCode<const N: usize> {
    codes: [u16; N],
    known: [IntCounter; N],
    all: IntCounterVec,
}

// === impl GatewayMetrics ===

impl GatewayMetrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let report_seconds = Histogram::with_opts(
            HistogramOpts::new("praetor_report_seconds", "Time until a report or connect was answered, seconds")
                .buckets(REPORT_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(report_seconds.clone()))?;
        let handshakes = IntCounterVec::new(
            Opts::new("praetor_tls_handshakes_total", "TLS handshakes on the device port by how they ended"),
            &["result"],
        )?;
        registry.register(Box::new(handshakes.clone()))?;
        Ok(Self {
            desired: ByCode::register(
                registry,
                "praetor_desired_requests_total",
                "Requests for desired state by status code",
                DESIRED_CODES,
            )?,
            reports: ByCode::register(
                registry,
                "praetor_reports_total",
                "Reports and connects by status code",
                REPORT_CODES,
            )?,
            unrouted: counter(
                "praetor_unrouted_requests_total",
                "Requests on the device port for a path that does not exist",
            )?,
            auth_failures: counter("praetor_auth_failures_total", "Requests without a good X-Device-Token")?,
            parked: gauge("praetor_longpolls_parked", "Long-polls that are waiting for a change")?,
            report_seconds,
            connections: gauge("praetor_device_connections", "Open connections on the device port")?,
            connections_full: counter(
                "praetor_device_connections_full_total",
                "Times the connection limit of the device port was reached",
            )?,
            connections_cut: counter(
                "praetor_device_connections_cut_total",
                "Connections on the device port that a limit of time ended",
            )?,
            panics: counter(
                "praetor_request_panics_total",
                "Requests that were answered 500 because a handler panicked",
            )?,
            certificate_not_after: gauge(
                "praetor_tls_certificate_not_after_timestamp_seconds",
                "When the certificate of the device port ends, seconds since 1970; 0 without TLS",
            )?,
            handshakes: Handshake::ALL.map(|result| handshakes.with_label_values(&[result.as_str()])),
        })
    }

    /// Counts a handshake.
    pub fn shaken(&self, result: Handshake) {
        self.handshakes[result as usize].inc();
    }

    /// Counts an answer.
    pub fn answered(&self, route: Option<Route>, status: u16) {
        match route {
            Some(Route::Desired) => self.desired.count(status),
            Some(Route::Report | Route::Connect) => self.reports.count(status),
            None => self.unrouted.inc(),
        }
    }
}

// === impl ByCode ===

impl<const N: usize> ByCode<N> {
    fn register(registry: &Registry, name: &str, help: &str, codes: [u16; N]) -> prometheus::Result<Self> {
        let all = IntCounterVec::new(Opts::new(name, help), &["code"])?;
        registry.register(Box::new(all.clone()))?;
        let known = codes.map(|code| all.with_label_values(&[code.to_string()]));
        Ok(Self { codes, known, all })
    }

    fn count(&self, status: u16) {
        match self.codes.iter().position(|code| *code == status) {
            Some(at) => self.known[at].inc(),
            None => self.all.with_label_values(&[status.to_string()]).inc(),
        }
    }
}

/// Holds a gauge one higher.
#[derive(Debug)]
pub struct Held(IntGauge);

// === impl Held ===

impl Held {
    /// Raises the gauge until the value is dropped.
    #[must_use]
    pub fn one(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
