//! Edge: compares every device with its status, each second, and has the difference looked at.
//!
//! Level, not edge: whatever was lost on the way is found by the next sweep.

use super::roll::Roll;
use super::staleness::{AgentState, Held, allowance};
use crate::desired::directory::Directory;
use crate::desired::index::{Device, Kind};
use crate::desired::lean::Key;
use crate::desired::record::ConditionType;
use crate::status::writer::{Job, Writer};
use prometheus::{IntGaugeVec, Opts, Registry};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(1);
/// Devices looked at under one lock; between two steps others get their turn.
const STEP: usize = 500;

/// Metrics of presence.
#[derive(Debug, Clone)]
pub struct PresenceMetrics {
    devices: IntGaugeVec,
    held: IntGaugeVec,
}

#[derive(Debug, Default)]
struct Sweep {
    alive: usize,
    stale: usize,
    never: usize,
    connected: usize,
    held: [usize; 3],
    /// Devices that have fallen silent, with what still says that they are connected.
    silent: Vec<Vec<(Kind, Key)>>,
    /// DeviceProcesses whose warning about their namespace is missing or no longer true.
    misplaced: Vec<Key>,
}

// === impl PresenceMetrics ===

impl PresenceMetrics {
    /// Registers all of them, every label value at 0.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let devices = IntGaugeVec::new(
            Opts::new(
                "praetor_devices",
                "Known devices by state: connected, stale (silent for longer than the window) or never (no report since the start).",
            ),
            &["state"],
        )?;
        let held = IntGaugeVec::new(
            Opts::new("praetor_staleness_held", "Devices whose silence is not (yet) taken for death, by reason."),
            &["reason"],
        )?;
        for state in ["connected", "stale", "never"] {
            devices.with_label_values(&[state]);
        }
        for reason in Held::ALL {
            held.with_label_values(&[reason.as_str()]);
        }
        registry.register(Box::new(devices.clone()))?;
        registry.register(Box::new(held.clone()))?;
        Ok(Self { devices, held })
    }
}

/// Sweeps until shutdown. `trickle` is how many devices a second are called dead when a large share falls
/// silent at once.
pub async fn run(
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    writer: Arc<Writer>,
    metrics: PresenceMetrics,
    trickle: usize,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut mass = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Some(away) = roll.tick(EVERY) {
            tracing::warn!(
                away_seconds = away.as_secs(),
                "this process was paused: every device gets a whole window again"
            );
        }
        if !directory.read(crate::desired::index::Index::serves_devices) {
            continue;
        }
        let mut sweep = sweep(&directory, &roll).await;
        let allowed = allowance(sweep.silent.len(), sweep.connected, trickle);
        let held = sweep.silent.len() - allowed;
        if (held > 0) != mass {
            mass = held > 0;
            if mass {
                tracing::warn!(
                    silent = sweep.silent.len(),
                    connected = sweep.connected,
                    per_second = trickle,
                    "a large share of the fleet fell silent at once: disconnects are written at a trickle"
                );
            } else {
                tracing::info!("no more disconnects are held back");
            }
        }
        sweep.held[Held::Mass as usize] = held;
        // The ones that are being written already do not use up the trickle again.
        let (pending, fresh): (Vec<_>, Vec<_>) =
            sweep.silent.drain(..).partition(|keys| keys.iter().any(|(kind, key)| writer.is_pending(*kind, key)));
        let fresh = fresh.into_iter().take(allowed.saturating_sub(pending.len())).flatten();
        for (kind, key) in fresh.chain(sweep.misplaced.drain(..).map(|key| (Kind::Process, key))) {
            // A full queue: the next sweep finds it again.
            let _ = writer.submit(kind, key, Job::default());
        }
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in [("connected", sweep.alive), ("stale", sweep.stale), ("never", sweep.never)] {
            metrics.devices.with_label_values(&[state]).set(gauge(count));
        }
        for reason in Held::ALL {
            metrics.held.with_label_values(&[reason.as_str()]).set(gauge(sweep.held[reason as usize]));
        }
    }
}

async fn sweep(directory: &Directory, roll: &Roll) -> Sweep {
    let mut sweep = Sweep::default();
    let mut from = 0;
    loop {
        let count = directory.read(|index| {
            let mut count = 0;
            let cross = index.settings().allow_cross_namespace;
            for (name, device) in index.devices(from, STEP) {
                count += 1;
                sweep.look(name, device, roll, cross);
            }
            count
        });
        if count == 0 {
            return sweep;
        }
        from += count;
        tokio::task::yield_now().await;
    }
}

// === impl Sweep ===

impl Sweep {
    fn look(&mut self, name: &str, device: &Device, roll: &Roll, cross: bool) {
        for process in &device.processes {
            let warned = process
                .status
                .condition(ConditionType::SpecWarning)
                .is_some_and(|c| c.status && &*c.reason == "DeviceNotInNamespace");
            if warned == device.counts(&process.key.namespace, cross) && !process.deleting {
                self.misplaced.push(process.key.clone());
            }
        }
        let verdict = roll.judge(name);
        match verdict {
            Ok(AgentState::Alive) => self.alive += 1,
            _ if roll.has_heard(name) => self.stale += 1,
            _ => self.never += 1,
        }
        let processes =
            device.processes.iter().filter(|process| process.status.is(ConditionType::AgentConnected) == Some(true));
        let switches = device.switches.iter().filter(|switch| switch.status.connected.map(|c| c.0) == Some(true));
        let mut connected = processes
            .map(|process| (Kind::Process, &process.key))
            .chain(switches.map(|switch| (Kind::Switch, &switch.key)))
            .peekable();
        if connected.peek().is_none() {
            return;
        }
        self.connected += 1;
        match verdict {
            Ok(AgentState::Stale) => self.silent.push(connected.map(|(kind, key)| (kind, key.clone())).collect()),
            Err(held) => self.held[held as usize] += 1,
            Ok(_) => {}
        }
    }
}
