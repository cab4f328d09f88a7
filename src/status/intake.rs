//! Edge: takes reports in and answers them.
//!
//! An ack means: written to Kubernetes, or nothing to write. What the watch has not shown is judged by a live
//! read, never by its absence from a cache.

use super::observed::Observed;
use super::projection::{Input, Reported, project, project_switch};
use super::writer::{Job, Writer};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::{Key, Process, Text};
use crate::desired::record::{ConditionType, LastReport};
use crate::presence::order::{Freshness, Order};
use crate::presence::roll::Roll;
use crate::presence::staleness::AgentState;
use crate::runtime::clock;
use crate::status::limiter::TokenBucket;
use crate::status::metrics::StatusMetrics;
use crate::wire::report::Rejection;
use moka::sync::Cache;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A report is answered within this time.
const DEADLINE: Duration = Duration::from_secs(8);
/// An object that a live read did not find is not looked for again for this time.
const MISS_TTL: Duration = Duration::from_secs(2);
/// Misses that are remembered.
const MISSES: u64 = 4_096;
/// Live reads a second.
const LIVE_READS: u32 = 20;

/// A report, read and checked.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Version of the agent.
    pub agent_version: Option<Arc<str>>,
    /// Random per start of the agent. Without it the sequence is ignored.
    pub boot_id: Option<Arc<str>>,
    /// Grows within the bootId.
    pub sequence: Option<u64>,
    /// The observations that could be read.
    pub observations: Vec<Observed>,
    /// Hash of everything above but the sequence; lets the same report be recognised.
    pub fingerprint: Option<u64>,
}

/// How a report is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Written, or nothing to write.
    Done {
        /// Observations that were not applied.
        rejected: Vec<Rejection>,
    },
    /// There were observations, and all of them were of other devices' processes.
    AllNotYours,
    /// Not (yet) written.
    Later {
        /// When to repeat the report, seconds.
        retry_after_seconds: u64,
    },
}

/// See the module.
pub struct Intake {
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    writer: Arc<Writer>,
    metrics: StatusMetrics,
    misses: Cache<Key, ()>,
    live_reads: Mutex<TokenBucket>,
    start: Instant,
}

enum Found {
    Yours(Arc<Process>),
    NotYours,
    Gone,
    Unknown,
}

// === impl Intake ===

impl Intake {
    /// An intake that hands what is to be written to a writer.
    #[must_use]
    pub fn new(directory: Arc<Directory>, roll: Arc<Roll>, writer: Arc<Writer>, metrics: StatusMetrics) -> Arc<Self> {
        Arc::new(Self {
            directory,
            roll,
            writer,
            metrics,
            misses: Cache::builder().max_capacity(MISSES).time_to_live(MISS_TTL).build(),
            live_reads: Mutex::new(TokenBucket::new(LIVE_READS)),
            start: Instant::now(),
        })
    }

    /// The short way for the report that every device sends all day: notes the sign of life; true when the
    /// same report left nothing to do before and nothing has changed since. Otherwise nothing is noted.
    #[must_use]
    pub fn is_settled(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64) -> bool {
        let version = self.directory.read(|index| index.device(device).map(|device| device.version));
        version.is_some_and(|version| self.roll.heard_the_same(device, boot_id, sequence, fingerprint, version))
    }

    /// Takes in a report of a known device. The sign of life counts at once, whatever becomes of the rest.
    pub async fn report(&self, device: &str, incoming: Incoming) -> Outcome {
        let started = Instant::now();
        self.roll.heard(device);
        let freshness = self.roll.order(device, incoming.boot_id.as_deref(), incoming.sequence, || self.seed(device));
        let version = self.directory.read(|index| index.device(device).map(|device| device.version));
        let order = incoming.boot_id.zip(incoming.sequence).map(|(boot_id, sequence)| LastReport { boot_id, sequence });
        let mut rejected = Vec::new();
        let mut jobs = self.reconnected(device);
        let mut unread = false;
        let observations = if freshness == Freshness::Old { Vec::new() } else { incoming.observations };
        let (count, mut clean) = (observations.len(), true);
        for observed in observations {
            let key = Key { namespace: observed.namespace.as_str().into(), name: observed.name.as_str().into() };
            match self.find(device, &key).await {
                Found::Yours(process) => {
                    let reported = Arc::new(Reported { observed, order: order.clone() });
                    let input = Input { agent: AgentState::Alive, counts: true, reported: Some(&reported) };
                    let change = project(&process, input, clock::unix_seconds());
                    if change.is_some() || self.writer.is_pending(Kind::Process, &process.key) {
                        let urgent = change.is_none_or(|change| change.urgent);
                        jobs.insert((Kind::Process, process.key.clone()), (Job::reporting(reported), urgent));
                    }
                }
                Found::NotYours => rejected.push(Rejection {
                    namespace: observed.namespace,
                    name: observed.name,
                    reason: "NotYours".into(),
                }),
                Found::Gone => clean = false,
                Found::Unknown => unread = true,
            }
        }
        self.agent_version(device, incoming.agent_version, &mut jobs);
        let settled = jobs.is_empty() && rejected.is_empty() && clean && !unread && freshness == Freshness::New;
        if let (true, Some(fingerprint), Some(version)) = (settled, incoming.fingerprint, version) {
            self.roll.settle(device, fingerprint, version);
        }
        if count > 0 && rejected.len() == count && jobs.is_empty() {
            return Outcome::AllNotYours;
        }
        let mut waits = Vec::new();
        for ((kind, key), (mut job, urgent)) in jobs {
            if urgent {
                let (written, wait) = oneshot::channel();
                job.waiting.push(written);
                waits.push(wait);
            }
            if self.writer.submit(kind, key, job).is_err() {
                return self.later();
            }
        }
        for wait in waits {
            let left = DEADLINE.saturating_sub(started.elapsed());
            if !matches!(tokio::time::timeout(left, wait).await, Ok(Ok(()))) {
                return self.later();
            }
        }
        if unread {
            return self.later();
        }
        if count > 0 && rejected.len() == count {
            return Outcome::AllNotYours;
        }
        Outcome::Done { rejected }
    }

    /// Everything of a device whose status does not say yet that it reports.
    fn reconnected(&self, device: &str) -> BTreeMap<(Kind, Key), (Job, bool)> {
        self.directory.read(|index| {
            let Some(known) = index.device(device) else { return BTreeMap::new() };
            let cross = index.settings().allow_cross_namespace;
            let processes = known.processes.iter().filter(|process| {
                known.counts(&process.key.namespace, cross)
                    && process.status.is(ConditionType::AgentConnected) != Some(true)
            });
            let switches = known.switches.iter().filter(|switch| switch.status.connected.map(|c| c.0) != Some(true));
            processes
                .map(|process| (Kind::Process, process.key.clone()))
                .chain(switches.map(|switch| (Kind::Switch, switch.key.clone())))
                .map(|key| (key, (Job::default(), true)))
                .collect()
        })
    }

    fn agent_version(&self, device: &str, version: Option<Text>, jobs: &mut BTreeMap<(Kind, Key), (Job, bool)>) {
        let Some(version) = version else { return };
        let stale = self.directory.read(|index| {
            let switches = index.device(device).map(|device| device.switches.as_slice()).unwrap_or_default();
            let differs = switches
                .iter()
                .filter(|switch| project_switch(&switch.status, AgentState::Alive, Some(&version), 0).is_some());
            differs.map(|switch| switch.key.clone()).collect::<Vec<_>>()
        });
        for key in stale {
            jobs.entry((Kind::Switch, key)).or_insert_with(|| (Job::default(), true)).0.agent_version =
                Some(version.clone());
        }
    }

    async fn find(&self, device: &str, key: &Key) -> Found {
        let look = || {
            self.directory.read(|index| {
                let process = index.process(&key.namespace, &key.name)?;
                let cross = index.settings().allow_cross_namespace;
                let counts = index.device(device).is_some_and(|device| device.counts(&key.namespace, cross));
                Some(if &*process.device == device && counts { Found::Yours(process.clone()) } else { Found::NotYours })
            })
        };
        if let Some(found) = look() {
            return found;
        }
        if self.misses.contains_key(key) {
            return Found::Gone;
        }
        let count = |result: &str| self.metrics.live_reads.with_label_values(&[result]).inc();
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.live_reads.lock().take(now).is_err() {
            count("limited");
            return Found::Unknown;
        }
        match self.writer.read_live(Kind::Process, key).await {
            Ok(true) => count("found"),
            Ok(false) => {
                count("gone");
                self.misses.insert(key.clone(), ());
                return Found::Gone;
            }
            Err(error) => {
                count("error");
                tracing::debug!(device, error, "live read failed");
                return Found::Unknown;
            }
        }
        // Found live but shown to be gone by the watch meanwhile.
        look().unwrap_or(Found::Gone)
    }

    /// The order of reports that the statuses remember: the latest one's.
    fn seed(&self, device: &str) -> Option<Order> {
        self.directory.read(|index| {
            let processes = index.device(device)?.processes.iter();
            let latest = processes
                .filter(|process| process.status.last_report.is_some())
                .max_by_key(|process| process.revision)?;
            latest.status.last_report.as_ref().map(|last| Order::seeded(&last.boot_id, last.sequence))
        })
    }

    fn later(&self) -> Outcome {
        // Differing delays spread the devices that come back together; a full queue spreads them wider.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let most = 7 + (self.writer.fill().clamp(0.0, 1.0) * 3.0).round() as u64;
        Outcome::Later { retry_after_seconds: rand::rng().random_range(2..=most) }
    }
}
