//! Edge: derives patches when they are sent, and sends them.
//!
//! The base of a patch is the newest object that anybody has seen, its resourceVersion goes along, and what
//! the apiserver returns goes into the directory at once. A conflict means: read live, derive again.

use super::events::Events;
use super::limiter::TokenBucket;
use super::metrics::{PatchResult, StatusMetrics};
use super::projection::{Input, Reported, project, project_switch};
use super::queue::{Full, Merge, Queue};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::{Key, Process, Text};
use crate::desired::record::{Record, merge_patch};
use crate::desired::watch::namespaced;
use crate::presence::roll::Roll;
use crate::runtime::clock;
use kube::Client;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Patches in flight; each is a connection to the apiserver.
const WORKERS: usize = 16;
/// A call that takes longer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Conflicts in a row before a patch goes back to the queue.
const CONFLICTS: u32 = 5;
/// What may wait goes alone at most so often, milliseconds.
const LAZY_MS: u64 = 60_000;
/// Longest pause between tries of one object, milliseconds.
const MAX_BACKOFF_MS: u64 = 10_000;

/// Something to look at: which object, and what is new about it. What its agent is doing is looked up when the
/// patch is derived.
#[derive(Debug, Default)]
pub struct Job {
    /// The newest observation, of a DeviceProcess.
    pub reported: Option<Arc<Reported>>,
    /// The newest version of the agent, of a NetworkSwitch.
    pub agent_version: Option<Text>,
    /// Told when it is written, or there was nothing to write; dropped when it cannot be written.
    pub waiting: Vec<oneshot::Sender<()>>,
    /// Tries that failed.
    attempts: u32,
    /// A patch whose answer was lost, by the transition counter before it: it may have been written.
    doubt: Option<u64>,
}

/// See the module.
pub struct Writer {
    client: Client,
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    events: Arc<Events>,
    metrics: StatusMetrics,
    start: Instant,
    queue: Mutex<Queue<(Kind, Key), Job>>,
    capacity: usize,
    limiter: Mutex<TokenBucket>,
    /// When each object was last written, for what may wait.
    written: Mutex<HashMap<Key, u64>>,
    changed: Notify,
    closing: AtomicBool,
}

/// What became of a patch.
enum Answer {
    /// Written, and the directory has what was returned.
    Written,
    /// The object had changed; the directory has it as it is now.
    Overtaken,
    /// The object is gone.
    Over,
    /// The apiserver will never take it.
    Refused,
    /// It may or may not have been written.
    Failed(String),
}

enum Next {
    Done,
    /// Written; the events of the transition are owed.
    Emit(Arc<Process>, Box<Record>),
    Later(Job, u64),
}

// === impl Job ===

impl Job {
    /// A new observation.
    #[must_use]
    pub fn reporting(reported: Arc<Reported>) -> Self {
        Self { reported: Some(reported), ..Self::default() }
    }

    /// Answers everybody who waits.
    fn tell(&mut self) {
        for waiting in self.waiting.drain(..) {
            // A receiver that has gone had its deadline.
            let _ = waiting.send(());
        }
    }
}

impl Merge for Job {
    fn absorb(&mut self, older: Self) {
        self.reported = self.reported.take().or(older.reported);
        self.agent_version = self.agent_version.take().or(older.agent_version);
        self.waiting.extend(older.waiting);
        self.attempts = self.attempts.max(older.attempts);
        self.doubt = self.doubt.or(older.doubt);
    }
}

// === impl Writer ===

impl Writer {
    /// `client` must not retry by itself. `capacity` bounds the objects that wait, `rate` the patches a second.
    #[must_use]
    pub fn new(
        client: Client,
        directory: Arc<Directory>,
        roll: Arc<Roll>,
        events: Arc<Events>,
        metrics: StatusMetrics,
        capacity: usize,
        rate: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            directory,
            roll,
            events,
            metrics,
            start: Instant::now(),
            queue: Mutex::new(Queue::new(capacity)),
            capacity,
            limiter: Mutex::new(TokenBucket::new(rate)),
            written: Mutex::new(HashMap::new()),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Queues an object to be looked at.
    ///
    /// # Errors
    /// When there is no room for another object.
    pub fn submit(&self, kind: Kind, key: Key, job: Job) -> Result<(), Full> {
        let now = self.now_ms();
        self.queue.lock().push((kind, key), job, now, now)?;
        self.changed.notify_one();
        Ok(())
    }

    /// Whether something waits for an object or is in flight.
    #[must_use]
    pub fn is_pending(&self, kind: Kind, key: &Key) -> bool {
        let queue = self.queue.lock();
        !queue.is_empty() && queue.contains(&(kind, key.clone()))
    }

    /// How full the queue is, 0 to 1.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn fill(&self) -> f64 {
        self.queue.lock().len() as f64 / self.capacity.max(1) as f64
    }

    /// Updates the gauges of the queue.
    #[allow(clippy::cast_precision_loss)]
    pub fn sample(&self) {
        let (depth, oldest) = {
            let queue = self.queue.lock();
            (queue.len(), queue.oldest_ms(self.now_ms()))
        };
        self.metrics.queue_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
        self.metrics.queue_oldest.set(oldest as f64 / 1_000.0);
    }

    /// Works the queue off until shutdown. On shutdown what waits is written first; the caller sets the limit.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let workers = Arc::new(Semaphore::new(WORKERS));
        loop {
            let Ok(permit) = workers.clone().acquire_owned().await else { return };
            let closing = shutdown.is_cancelled();
            self.closing.store(closing, Ordering::Relaxed);
            // While closing, everything is due.
            let now = if closing { u64::MAX } else { self.now_ms() };
            let (next, due) = {
                let mut queue = self.queue.lock();
                (queue.pop(now), queue.next_due_ms())
            };
            if let Some(((kind, key), job)) = next {
                let writer = self.clone();
                tokio::spawn(async move {
                    writer.work(kind, key, job, permit).await;
                    writer.changed.notify_one();
                });
                continue;
            }
            drop(permit);
            if closing && self.queue.lock().is_empty() {
                return;
            }
            let wait =
                due.map_or(Duration::from_secs(3_600), |due| Duration::from_millis(due.saturating_sub(self.now_ms())));
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled(), if !closing => {}
            }
        }
    }

    async fn work(self: &Arc<Self>, kind: Kind, key: Key, job: Job, permit: OwnedSemaphorePermit) {
        let next = match kind {
            Kind::Process => self.write_process(&key, job).await,
            Kind::Switch => self.write_switch(&key, job).await,
            Kind::Deployment => Next::Done,
        };
        // Others may write while this object's events are on their way; its own next transition waits for them.
        drop(permit);
        self.changed.notify_one();
        if let Next::Emit(process, record) = &next {
            self.events.emit(process, record).await;
        }
        let now = self.now_ms();
        let mut queue = self.queue.lock();
        match next {
            // While closing there is no later.
            Next::Later(job, at) if !self.closing.load(Ordering::Relaxed) => queue.retry(&(kind, key), job, now, at),
            _ => queue.done(&(kind, key), now),
        }
    }

    async fn write_process(self: &Arc<Self>, key: &Key, mut job: Job) -> Next {
        for _ in 0..CONFLICTS {
            let looked = self.directory.read(|index| {
                let process = index.process(&key.namespace, &key.name)?.clone();
                let cross = index.settings().allow_cross_namespace;
                let counts = index.device(&process.device).is_some_and(|device| device.counts(&key.namespace, cross));
                Some((process, counts))
            });
            let Some((process, counts)) = looked else { return finish(job) };
            self.settle_doubt(&mut job, &process).await;
            let agent = self.roll.state(&process.device);
            let input = Input { agent, counts, reported: job.reported.as_deref() };
            let Some(change) = project(&process, input, clock::unix_seconds()) else { return finish(job) };
            if !change.urgent && !self.closing.load(Ordering::Relaxed) {
                let due = self.written.lock().get(key).map_or(0, |at| at + LAZY_MS);
                if due > self.now_ms() {
                    // For the ack it counts as nothing to write.
                    job.tell();
                    return Next::Later(job, due);
                }
            }
            let patch = merge_patch(&process.status.write(), &change.record.write()).unwrap_or(Value::Null);
            match self.patch(Kind::Process, key, process.revision, &process.uid, &patch).await {
                Answer::Written => {
                    self.note_written(key);
                    for reason in &change.reasons {
                        tracing::info!(
                            device = &*process.device,
                            namespace = &*key.namespace,
                            process = &*key.name,
                            reason = reason.as_str(),
                            phase = change.record.phase.as_str(),
                            "transition"
                        );
                    }
                    job.tell();
                    if change.reasons.is_empty() {
                        return Next::Done;
                    }
                    return Next::Emit(process, Box::new(change.record));
                }
                Answer::Overtaken => {}
                Answer::Over => return finish(job),
                Answer::Refused => return Next::Done,
                Answer::Failed(error) => {
                    job.doubt = job.doubt.or(Some(process.status.transitions));
                    return self.later(key, job, &error);
                }
            }
        }
        self.later(key, job, "too many conflicts")
    }

    async fn write_switch(&self, key: &Key, job: Job) -> Next {
        for _ in 0..CONFLICTS {
            let switch = self.directory.read(|index| index.switch(&key.namespace, &key.name).cloned());
            let Some(switch) = switch else { return finish(job) };
            let agent = self.roll.state(&key.name);
            let next = project_switch(&switch.status, agent, job.agent_version.as_ref(), clock::unix_seconds());
            let Some(next) = next else { return finish(job) };
            let patch = merge_patch(&switch.status.write(), &next.write()).unwrap_or(Value::Null);
            match self.patch(Kind::Switch, key, switch.revision, &switch.uid, &patch).await {
                Answer::Written => {
                    let connected = next.connected.is_some_and(|c| c.0);
                    if switch.status.connected.is_none_or(|c| c.0 != connected) {
                        tracing::info!(
                            device = &*key.name,
                            namespace = &*key.namespace,
                            connected,
                            agent = next.agent_version.as_deref(),
                            "device connection changed"
                        );
                    }
                    return finish(job);
                }
                Answer::Overtaken => {}
                Answer::Over => return finish(job),
                Answer::Refused => return Next::Done,
                Answer::Failed(error) => return self.later(key, job, &error),
            }
        }
        self.later(key, job, "too many conflicts")
    }

    /// A patch whose answer was lost may have been written after all: then its events are still owed.
    async fn settle_doubt(&self, job: &mut Job, process: &Process) {
        if job.doubt.is_some_and(|before| process.status.transitions > before) {
            job.doubt = None;
            self.events.emit(process, &process.status).await;
        }
    }

    async fn patch(&self, kind: Kind, key: &Key, revision: u64, uid: &str, status: &Value) -> Answer {
        loop {
            let taken = self.limiter.lock().take(self.now_ms());
            let Err(wait) = taken else { break };
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let body = json!({"metadata": {"resourceVersion": revision.to_string(), "uid": uid}, "status": status});
        let api = namespaced(self.client.clone(), kind, &key.namespace);
        let sent = Instant::now();
        let answer =
            timeout(CALL_TIMEOUT, api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&body))).await;
        self.metrics.patch_seconds.observe(sent.elapsed().as_secs_f64());
        let (result, answer) = match answer {
            Ok(Ok(raw)) => {
                self.directory.adopt(kind, raw);
                (PatchResult::Ok, Answer::Written)
            }
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {
                let answer = match self.read_live(kind, key).await {
                    Ok(true) => Answer::Overtaken,
                    Ok(false) => Answer::Over,
                    Err(error) => Answer::Failed(error),
                };
                (PatchResult::Conflict, answer)
            }
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => (PatchResult::NotFound, Answer::Over),
            Ok(Err(kube::Error::Api(status))) if status.is_invalid() || status.code == 400 => {
                let (kind, error) = (kind.as_str(), status.message);
                tracing::error!(kind, namespace = &*key.namespace, name = &*key.name, error, "this status is refused");
                (PatchResult::Invalid, Answer::Refused)
            }
            Ok(Err(error)) => (PatchResult::Error, Answer::Failed(error.to_string())),
            Err(_) => (PatchResult::Error, Answer::Failed(format!("no answer within {CALL_TIMEOUT:?}"))),
        };
        self.metrics.patch(result);
        answer
    }

    /// Reads an object live; false when it is gone.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn read_live(&self, kind: Kind, key: &Key) -> Result<bool, String> {
        let api = namespaced(self.client.clone(), kind, &key.namespace);
        match timeout(CALL_TIMEOUT, api.get_opt(&key.name)).await {
            Ok(Ok(Some(raw))) => {
                self.directory.adopt(kind, raw);
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {CALL_TIMEOUT:?}")),
        }
    }

    fn later(&self, key: &Key, mut job: Job, error: &str) -> Next {
        job.attempts += 1;
        let most = (100 << job.attempts.min(7)).min(MAX_BACKOFF_MS);
        let delay = rand::rng().random_range(most / 2..=most);
        tracing::debug!(
            namespace = &*key.namespace,
            name = &*key.name,
            error,
            attempts = job.attempts,
            delay_ms = delay,
            "status not written yet"
        );
        Next::Later(job, self.now_ms() + delay)
    }

    fn note_written(&self, key: &Key) {
        let now = self.now_ms();
        let mut written = self.written.lock();
        if written.len() >= 4_096 {
            written.retain(|_, at| *at + LAZY_MS > now);
        }
        written.insert(key.clone(), now);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn finish(mut job: Job) -> Next {
    job.tell();
    Next::Done
}
