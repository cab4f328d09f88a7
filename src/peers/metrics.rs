//! Edge: what is counted about talking to other replicas.

use super::envelope::Refusal;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// What can become of a request to a peer.
const RESULTS: [&str; 7] = ["ok", "resync", "not_owner", "refused", "forged", "unreachable", "timeout"];

/// The metrics of the peer link.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    requests: IntCounterVec,
    refused: IntCounterVec,
    batches: IntCounterVec,
    /// Age of the oldest horizon among live members, seconds.
    pub oldest_batch: Gauge,
    /// Other members of the view whose horizon is fresh.
    pub heard: IntGauge,
    /// Other members of the view.
    pub peers: IntGauge,
    /// Times that no further connection was accepted because the limit was reached.
    pub full: IntCounter,
}

// === impl PeerMetrics ===

impl PeerMetrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let vector = |name: &str, help: &str, labels: &[&str]| {
            let vector = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vector.clone()))?;
            prometheus::Result::Ok(vector)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let metrics = Self {
            requests: vector(
                "praetor_peer_requests_total",
                "Requests sent to other replicas by what became of them",
                &["route", "result"],
            )?,
            refused: vector(
                "praetor_peer_refused_total",
                "Requests of other replicas, or of whoever claims to be one, that were refused",
                &["reason"],
            )?,
            batches: vector(
                "praetor_presence_batches_total",
                "Presence batches, or parts of long ones, sent to and received from other replicas",
                &["direction", "result"],
            )?,
            oldest_batch: Gauge::new(
                "praetor_presence_oldest_batch_seconds",
                "Up to how long ago everything is known that the other live replicas heard",
            )?,
            heard: gauge("praetor_peers_heard", "Other live replicas whose presence is fresh")?,
            peers: gauge("praetor_peers", "Other live replicas")?,
            full: IntCounter::new(
                "praetor_peer_connections_full_total",
                "Times that connections on the peer port had to wait because there were as many as allowed",
            )?,
        };
        registry.register(Box::new(metrics.oldest_batch.clone()))?;
        registry.register(Box::new(metrics.full.clone()))?;
        for refusal in Refusal::ALL {
            metrics.refused.with_label_values(&[refusal.label()]);
        }
        for route in ["clock", "presence", "report", "connect"] {
            for result in RESULTS {
                metrics.requests.with_label_values(&[route, result]);
            }
        }
        for direction in ["sent", "received"] {
            for result in ["ok", "failed"] {
                metrics.batches.with_label_values(&[direction, result]);
            }
        }
        Ok(metrics)
    }

    /// Counts a request of this process.
    pub fn sent(&self, route: &str, result: &str) {
        self.requests.with_label_values(&[route, result]).inc();
    }

    /// Counts a request to this process that was refused.
    pub fn refuse(&self, refusal: Refusal) {
        self.refused.with_label_values(&[refusal.label()]).inc();
    }

    /// Counts a part of a batch.
    pub fn batch(&self, direction: &str, ok: bool) {
        self.batches.with_label_values(&[direction, if ok { "ok" } else { "failed" }]).inc();
    }

    /// How often a request to this process was refused for a reason.
    #[cfg(test)]
    pub(super) fn refusals(&self, refusal: Refusal) -> u64 {
        self.refused.with_label_values(&[refusal.label()]).get()
    }
}
