//! Edge: what Prometheus sees of the rollout.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

/// Metrics of the rollout. Every series exists from the start.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Duration of a pass over one deployment, its writes included.
    pub reconcile_seconds: Histogram,
    /// Passes by result.
    pub reconciles: IntCounterVec,
    /// Writes to children by operation and result.
    pub children_writes: IntCounterVec,
    /// Status patches of deployments by result.
    pub status_patches: IntCounterVec,
    /// Deployments that wait to be looked at.
    pub waiting: IntGauge,
}

/// Values of the label `result` of passes.
pub const RECONCILE_RESULTS: [&str; 4] = ["ok", "retry", "refused", "lost"];
/// Values of the label `operation`.
pub const OPERATIONS: [&str; 4] = ["create", "adopt", "update", "delete"];
/// Values of the label `result` of writes.
pub const WRITE_RESULTS: [&str; 4] = ["ok", "conflict", "refused", "error"];

// === impl Metrics ===

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one of the names is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let buckets = vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];
        let metrics = Self {
            reconcile_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "praetor_reconcile_seconds",
                    "Duration of a pass over one deployment, its writes included",
                )
                .buckets(buckets),
            )?,
            reconciles: counters("praetor_reconciles_total", "Passes over deployments by result", &["result"])?,
            children_writes: counters(
                "praetor_children_writes_total",
                "Writes to DeviceProcesses by the rollout",
                &["operation", "result"],
            )?,
            status_patches: counters(
                "praetor_deployment_status_patches_total",
                "Patches of deployments' status by result",
                &["result"],
            )?,
            waiting: IntGauge::new("praetor_reconcile_queue_length", "Deployments that wait to be looked at")?,
        };
        for result in RECONCILE_RESULTS {
            metrics.reconciles.with_label_values(&[result]);
        }
        for result in WRITE_RESULTS {
            metrics.status_patches.with_label_values(&[result]);
            for operation in OPERATIONS {
                metrics.children_writes.with_label_values(&[operation, result]);
            }
        }
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.children_writes.clone()))?;
        registry.register(Box::new(metrics.status_patches.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        Ok(metrics)
    }
}
