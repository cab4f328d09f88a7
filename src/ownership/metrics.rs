//! Edge: what Prometheus sees of members and the lead.

use super::members::View;
use super::shared::Ownership;
use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Metrics of ownership. Every series exists from the start.
#[derive(Debug, Clone)]
pub struct OwnershipMetrics {
    leader: IntGauge,
    members: IntGauge,
    view_age: Gauge,
    view_changes: IntCounter,
    renew_seconds: HistogramVec,
    failures: IntCounterVec,
}

/// Whose calls are counted; the label `lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The lead.
    Leader,
    /// The own membership.
    Member,
    /// The list of all.
    List,
}

// === impl Which ===

impl Which {
    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Member => "member",
            Self::List => "list",
        }
    }
}

// === impl OwnershipMetrics ===

impl OwnershipMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];
        let metrics = Self {
            leader: IntGauge::new("praetor_leader", "1 while this replica leads: it runs the fan-out.")?,
            members: IntGauge::new("praetor_members", "Live replicas that this one sees, itself included.")?,
            view_age: Gauge::new("praetor_view_age_seconds", "Seconds since replicas were last listed; +Inf before.")?,
            view_changes: IntCounter::new("praetor_view_changes_total", "Changes of the set of live replicas.")?,
            renew_seconds: HistogramVec::new(
                HistogramOpts::new("praetor_lease_renew_seconds", "Duration of successful writes of Leases.")
                    .buckets(buckets),
                &["lease"],
            )?,
            failures: IntCounterVec::new(
                Opts::new(
                    "praetor_lease_failures_total",
                    "Calls about Leases that failed or were not answered in time.",
                ),
                &["lease"],
            )?,
        };
        metrics.view_age.set(f64::INFINITY);
        for which in [Which::Leader, Which::Member, Which::List] {
            metrics.failures.with_label_values(&[which.as_str()]);
        }
        for which in [Which::Leader, Which::Member] {
            metrics.renew_seconds.with_label_values(&[which.as_str()]);
        }
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.members.clone()))?;
        registry.register(Box::new(metrics.view_age.clone()))?;
        registry.register(Box::new(metrics.view_changes.clone()))?;
        registry.register(Box::new(metrics.renew_seconds.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }

    /// Updates what is sampled.
    pub fn sample(&self, ownership: &Ownership) {
        self.view_age.set(ownership.view_age_seconds());
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn view(&self, view: &View) {
        self.members.set(i64::try_from(view.members.len()).unwrap_or(i64::MAX));
        self.view_changes.inc();
    }

    pub(super) fn written(&self, which: Which, seconds: f64) {
        self.renew_seconds.with_label_values(&[which.as_str()]).observe(seconds);
    }

    pub(super) fn failed(&self, which: Which) {
        self.failures.with_label_values(&[which.as_str()]).inc();
    }
}
