//! Edge: compares every device that this replica works for with its status, each second, and has the difference looked
//! at.
//!
//! Level, not edge: whatever was lost on the way is found by the next sweep.

use super::mass::{Episode, Turn, allowance};
use super::roll::Roll;
use super::staleness::{AgentState, Doubt, Held};
use crate::api::condition::reasons;
use crate::desired::directory::Directory;
use crate::desired::index::{Device, Index, Kind};
use crate::desired::lean::Key;
use crate::desired::record::ConditionType;
use crate::ownership::rendezvous::{Assignment, device_hash};
use crate::ownership::shared::Ownership;
use crate::status::events::Events;
use crate::status::writer::{Job, Writer};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(1);
/// During a long sweep the clocks are looked at so often, too.
const ATTENTION: Duration = Duration::from_millis(500);
/// Devices looked at under one lock; between two steps others get their turn.
const STEP: usize = 500;

/// Metrics of presence.
#[derive(Debug, Clone)]
pub struct PresenceMetrics {
    devices: IntGaugeVec,
    held: IntGaugeVec,
    owned: IntGauge,
}

/// What a sweeper works with.
pub struct Sweeper {
    /// The devices and their statuses.
    pub directory: Arc<Directory>,
    /// Who was heard when.
    pub roll: Arc<Roll>,
    /// For which devices this replica works.
    pub ownership: Arc<Ownership>,
    /// Takes what is to be looked at.
    pub writer: Arc<Writer>,
    /// Takes what people should hear.
    pub events: Arc<Events>,
    /// Where the own Lease is.
    pub namespace: String,
    /// Where to count.
    pub metrics: PresenceMetrics,
    /// How many devices a second all replicas together call dead when a large share falls silent at once.
    pub trickle: usize,
}

#[derive(Debug, Default)]
struct Sweep {
    /// Of all devices.
    alive: usize,
    stale: usize,
    never: usize,
    /// Of the own ones, as everything below: those whose status says that they are connected.
    connected: usize,
    held: [usize; Held::ALL.len()],
    /// Devices that have fallen silent, with what still says that they are connected.
    silent: Vec<Vec<(Kind, Key)>>,
    /// What says that a device is disconnected that is not, or a warning about a namespace that is missing or no longer
    /// true.
    wrong: Vec<(Kind, Key)>,
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
        let owned = IntGauge::new("praetor_owned_devices", "Devices whose status this replica writes.")?;
        for state in ["connected", "stale", "never"] {
            devices.with_label_values(&[state]);
        }
        for reason in Held::ALL {
            held.with_label_values(&[reason.as_str()]);
        }
        registry.register(Box::new(devices.clone()))?;
        registry.register(Box::new(held.clone()))?;
        registry.register(Box::new(owned.clone()))?;
        Ok(Self { devices, held, owned })
    }

    fn show(&self, sweep: &Sweep, owned: usize) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in [("connected", sweep.alive), ("stale", sweep.stale), ("never", sweep.never)] {
            self.devices.with_label_values(&[state]).set(gauge(count));
        }
        for reason in Held::ALL {
            self.held.with_label_values(&[reason.as_str()]).set(gauge(sweep.held[reason as usize]));
        }
        self.owned.set(gauge(owned));
    }
}

// === impl Sweeper ===

impl Sweeper {
    /// Sweeps until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut episode, mut episodes) = (Episode::default(), 0_u64);
        let mut assignment = Assignment::new(self.ownership.view());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.attend();
            let view = self.ownership.view();
            let moved = assignment.apply(&view);
            if moved.moved > 0 {
                tracing::info!(
                    epoch = view.epoch,
                    members = view.members.len(),
                    gained = moved.gained.len(),
                    lost = moved.lost.len(),
                    mine = assignment.mine(),
                    "devices have other owners"
                );
            }
            if !self.directory.read(Index::serves_devices) {
                continue;
            }
            // Without a good Lease others have taken over, or will.
            let works = self.ownership.standing().lease;
            let mut sweep = self.sweep(&mut assignment, works).await;
            let share = self.trickle.div_ceil(view.members.len().max(1));
            let allowed = allowance(sweep.silent.len(), sweep.connected, share);
            let held = sweep.silent.len() - allowed;
            sweep.held[Held::Mass as usize] = held;
            match episode.note(held, self.roll.now_ms()) {
                Some(Turn::Begun) => {
                    episodes += 1;
                    self.cry(&sweep, share, episodes);
                }
                Some(Turn::Over) => tracing::info!("no disconnects are held back any more"),
                None => {}
            }
            self.submit(&mut sweep, allowed);
            self.metrics.show(&sweep, if works { assignment.mine() } else { 0 });
        }
    }

    /// Keeps the observer's knowledge of itself up to date.
    fn attend(&self) {
        let standing = self.ownership.standing();
        let peers = self.ownership.view().peers().map(|peer| peer.incarnation).collect();
        self.roll.observe(&Doubt { lease: !standing.lease, apiserver: !standing.apiserver, peers });
        if let Some(away) = self.roll.tick(EVERY) {
            tracing::warn!(
                away_seconds = away.as_secs_f64(),
                "this process was paused: nobody is called dead before the other replicas are heard again, and devices \
                 that it heard last get a whole window"
            );
        }
    }

    async fn sweep(&self, assignment: &mut Assignment, works: bool) -> Sweep {
        let mut sweep = Sweep::default();
        let mut from = 0;
        let mut attended = Instant::now();
        loop {
            let outlook = self.roll.outlook();
            let count = self.directory.read(|index| {
                let cross = index.settings().allow_cross_namespace;
                let mut count = 0;
                for (name, device) in index.devices(from, STEP) {
                    let position = from + count;
                    count += 1;
                    if position == assignment.len() {
                        assignment.push(device_hash(name));
                    }
                    let Some(hash) = assignment.device(position) else { continue };
                    let contact = self.roll.contact(hash);
                    let verdict = outlook.judge(contact);
                    match (verdict, contact) {
                        (Ok(AgentState::Alive), _) => sweep.alive += 1,
                        (_, Some(_)) => sweep.stale += 1,
                        (_, None) => sweep.never += 1,
                    }
                    if works && assignment.is_mine(position) {
                        sweep.look(device, verdict, contact.is_some_and(|contact| outlook.is_back(contact)), cross);
                    }
                }
                count
            });
            if count == 0 {
                return sweep;
            }
            from += count;
            tokio::task::yield_now().await;
            if attended.elapsed() >= ATTENTION {
                attended = Instant::now();
                self.attend();
            }
        }
    }

    /// Has at most so many disconnects looked at, and all else that is wrong.
    fn submit(&self, sweep: &mut Sweep, allowed: usize) {
        // The ones that are being written already do not use up the trickle again.
        let (pending, fresh): (Vec<_>, Vec<_>) =
            sweep.silent.drain(..).partition(|keys| keys.iter().any(|(kind, key)| self.writer.is_pending(*kind, key)));
        let fresh = fresh.into_iter().take(allowed.saturating_sub(pending.len())).flatten();
        let wrong = sweep.wrong.drain(..).filter(|(kind, key)| !self.writer.is_pending(*kind, key));
        for (kind, key) in fresh.chain(wrong) {
            // A full queue: the next sweep finds it again.
            let _ = self.writer.submit(kind, key, Job::default());
        }
    }

    /// Says once that many fell silent together.
    fn cry(&self, sweep: &Sweep, per_second: usize, episode: u64) {
        let (silent, connected) = (sweep.silent.len(), sweep.connected);
        tracing::warn!(
            silent,
            connected,
            per_second,
            "a large share of the fleet fell silent at once: disconnects are written at a trickle"
        );
        let note = format!(
            "{silent} of {connected} connected devices of this replica fell silent together; their disconnects are \
             written at {per_second} a second. Look at the network between devices and replicas first."
        );
        let (events, namespace) = (self.events.clone(), self.namespace.clone());
        let (identity, incarnation) = (self.ownership.identity().clone(), self.ownership.incarnation());
        // Beside the sweeps, and not for ever; the log has it in any case.
        tokio::spawn(async move { events.mass(&namespace, &identity, (incarnation, episode), &note).await });
    }
}

// === impl Sweep ===

impl Sweep {
    fn look(&mut self, device: &Device, verdict: Result<AgentState, Held>, back: bool, cross: bool) {
        for process in &device.processes {
            let warned = process
                .status
                .condition(ConditionType::SpecWarning)
                .is_some_and(|c| c.status && &*c.reason == reasons::DEVICE_NOT_IN_NAMESPACE);
            if warned == device.counts(&process.key.namespace, cross) && !process.deleting {
                self.wrong.push((Kind::Process, process.key.clone()));
            }
        }
        let saying = |connected: bool| {
            let processes = (device.processes.iter())
                .filter(move |process| process.status.is(ConditionType::AgentConnected) == Some(connected));
            let switches = (device.switches.iter())
                .filter(move |switch| switch.status.connected.map(|(said, _)| said) == Some(connected));
            processes
                .map(|process| (Kind::Process, &process.key))
                .chain(switches.map(|switch| (Kind::Switch, &switch.key)))
        };
        if back {
            let counts = |kind, key: &Key| kind == Kind::Switch || device.counts(&key.namespace, cross);
            let wrong = saying(false).filter(|(kind, key)| counts(*kind, key));
            self.wrong.extend(wrong.map(|(kind, key)| (kind, key.clone())));
        }
        let mut connected = saying(true).peekable();
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
