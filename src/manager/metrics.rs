//! Edge: metrics that belong to no other room; sampled when they are asked for.

use super::process::ProcessMetrics;
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::watch::LastEvents;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};

/// See the help texts.
#[derive(Debug, Clone)]
pub struct ManagerMetrics {
    watch: GaugeVec,
    objects: IntGaugeVec,
    process: Option<ProcessMetrics>,
}

// === impl ManagerMetrics ===

impl ManagerMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let build = IntGaugeVec::new(
            Opts::new("praetor_build_info", "Always 1; the version of this manager is in the label."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            watch: GaugeVec::new(
                Opts::new(
                    "praetor_watch_last_event_seconds",
                    "Seconds since the watch of a kind said anything, bookmarks included.",
                ),
                &["kind"],
            )?,
            objects: IntGaugeVec::new(
                Opts::new("praetor_objects", "Objects of a kind in the watch cache."),
                &["kind"],
            )?,
            process: ProcessMetrics::register(registry)?,
        };
        registry.register(Box::new(build))?;
        registry.register(Box::new(metrics.watch.clone()))?;
        registry.register(Box::new(metrics.objects.clone()))?;
        metrics.sample(None, None);
        Ok(metrics)
    }

    /// Updates what is sampled.
    pub fn sample(&self, directory: Option<&Directory>, last_events: Option<&LastEvents>) {
        if let Some(process) = &self.process {
            process.sample();
        }
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for kind in Kind::ALL {
            let count = directory.map_or(0, |directory| directory.read(|index| index.count(kind)));
            self.objects.with_label_values(&[kind.as_str()]).set(gauge(count));
            self.watch
                .with_label_values(&[kind.as_str()])
                .set(last_events.map_or(0.0, |events| events.silent_seconds(kind)));
        }
    }
}
