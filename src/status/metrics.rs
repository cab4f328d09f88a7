//! Edge: metrics of status writes and events.

use super::limiter::Class;
use super::projection::Weight;
use crate::desired::record::Reason;
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Results of a status patch, and the label values that stand for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchResult {
    /// Written.
    Ok,
    /// The object had changed; derived again.
    Conflict,
    /// The object is gone.
    NotFound,
    /// The apiserver refused the patch itself.
    Invalid,
    /// No answer, or the apiserver was busy.
    Error,
}

/// See the help texts.
#[derive(Debug, Clone)]
pub struct StatusMetrics {
    /// `praetor_status_patches_total`.
    pub patches: IntCounterVec,
    /// `praetor_status_transitions_total`.
    pub transitions: IntCounter,
    /// `praetor_status_patch_seconds`.
    pub patch_seconds: Histogram,
    /// `praetor_status_queue_depth`.
    pub queue_depth: IntGauge,
    /// `praetor_status_queue_oldest_seconds`.
    pub queue_oldest: prometheus::Gauge,
    /// `praetor_events_total`.
    pub events: IntCounterVec,
    /// `praetor_live_reads_total`.
    pub live_reads: IntCounterVec,
    /// `praetor_verifying_reads_total`.
    pub verifying_reads: IntCounterVec,
    /// `praetor_forwards_total`.
    pub forwards: IntCounterVec,
    /// `praetor_status_deferred_total`.
    pub deferred: IntCounterVec,
    /// `praetor_status_write_rate`.
    pub write_rate: GaugeVec,
}

// === impl PatchResult ===

impl PatchResult {
    const ALL: [Self; 5] = [Self::Ok, Self::Conflict, Self::NotFound, Self::Invalid, Self::Error];

    /// Label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid",
            Self::Error => "error",
        }
    }
}

// === impl StatusMetrics ===

impl StatusMetrics {
    /// Registers all of them, every label value at 0.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            patches: IntCounterVec::new(
                Opts::new(
                    "praetor_status_patches_total",
                    "Status patches of DeviceProcesses and NetworkSwitches by result.",
                ),
                &["result"],
            )?,
            transitions: IntCounter::new(
                "praetor_status_transitions_total",
                "Status patches that were written and changed more than counters: what somebody waits for.",
            )?,
            patch_seconds: Histogram::with_opts(
                HistogramOpts::new("praetor_status_patch_seconds", "Time from sending a status patch to its answer.")
                    .buckets(vec![0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]),
            )?,
            queue_depth: IntGauge::new(
                "praetor_status_queue_depth",
                "Objects whose status waits to be looked at or written.",
            )?,
            queue_oldest: prometheus::Gauge::new(
                "praetor_status_queue_oldest_seconds",
                "How long the oldest due status write has waited.",
            )?,
            events: IntCounterVec::new(
                Opts::new(
                    "praetor_events_total",
                    "Events of DeviceProcesses by reason and result; exists means that it had been written before.",
                ),
                &["reason", "result"],
            )?,
            live_reads: IntCounterVec::new(
                Opts::new(
                    "praetor_live_reads_total",
                    "Reads of objects that a report named and the watch had not shown, by result.",
                ),
                &["result"],
            )?,
            verifying_reads: IntCounterVec::new(
                Opts::new(
                    "praetor_verifying_reads_total",
                    "Reads of objects whose status agrees with a report, while another replica may have had one in between, by result.",
                ),
                &["result"],
            )?,
            forwards: IntCounterVec::new(
                Opts::new(
                    "praetor_forwards_total",
                    "Reports that were passed on to the owner of their device, by result; busy and timeout were put off, other failures applied here.",
                ),
                &["result"],
            )?,
            deferred: IntCounterVec::new(
                Opts::new(
                    "praetor_status_deferred_total",
                    "Looks at a status that is not written before its next minute: counters, and what processes do over and over.",
                ),
                &["what"],
            )?,
            write_rate: GaugeVec::new(
                Opts::new(
                    "praetor_status_write_rate",
                    "Writes a second that each class may do now; less than configured while the apiserver is busy.",
                ),
                &["class"],
            )?,
        };
        for result in PatchResult::ALL {
            metrics.patches.with_label_values(&[result.as_str()]);
        }
        for reason in Reason::ALL {
            for result in ["ok", "exists", "error", "lost"] {
                metrics.events.with_label_values(&[reason.as_str(), result]);
            }
        }
        for result in ["found", "gone", "error", "limited"] {
            metrics.live_reads.with_label_values(&[result]);
        }
        for result in ["ok", "limited", "error"] {
            metrics.verifying_reads.with_label_values(&[result]);
        }
        for result in ["ok", "not_owner", "unreachable", "busy", "timeout", "refused"] {
            metrics.forwards.with_label_values(&[result]);
        }
        for what in [Weight::Counters, Weight::Turn] {
            metrics.deferred.with_label_values(&[deferrable(what)]);
        }
        for class in Class::ALL {
            metrics.write_rate.with_label_values(&[class.as_str()]);
        }
        registry.register(Box::new(metrics.patches.clone()))?;
        registry.register(Box::new(metrics.transitions.clone()))?;
        registry.register(Box::new(metrics.patch_seconds.clone()))?;
        registry.register(Box::new(metrics.queue_depth.clone()))?;
        registry.register(Box::new(metrics.queue_oldest.clone()))?;
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.live_reads.clone()))?;
        registry.register(Box::new(metrics.verifying_reads.clone()))?;
        registry.register(Box::new(metrics.forwards.clone()))?;
        registry.register(Box::new(metrics.deferred.clone()))?;
        registry.register(Box::new(metrics.write_rate.clone()))?;
        Ok(metrics)
    }

    /// Counts a change that waits for its time.
    pub fn deferred(&self, weight: Weight) {
        self.deferred.with_label_values(&[deferrable(weight)]).inc();
    }

    /// Counts a patch.
    pub fn patch(&self, class: Class, result: PatchResult) {
        self.patches.with_label_values(&[result.as_str()]).inc();
        if (class, result) == (Class::Transitions, PatchResult::Ok) {
            self.transitions.inc();
        }
    }
}

/// Label value of what waits.
fn deferrable(weight: Weight) -> &'static str {
    if weight == Weight::Counters { "counters" } else { "turns" }
}
