//! Edge: derives patches when they are sent, and sends them.
//!
//! The base of a patch is the newest object that anybody has seen, its resourceVersion goes along, and what
//! the apiserver returns goes into the directory at once. A conflict means: read live, derive again.

use super::budget::Budgets;
use super::events::Events;
use super::job::{self, CONFLICTS};
use super::limiter::Class;
use super::metrics::{PatchResult, StatusMetrics};
use super::pace::Pace;
use super::projection::project_switch;
use super::queue::{Full, Lane, Queue};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::{Key, Process, Text};
use crate::desired::record::{Record, merge_patch};
use crate::desired::watch::namespaced;
use crate::presence::roll::Roll;
use crate::presence::staleness::AgentState;
use crate::runtime::clock;
use kube::Client;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
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

/// Something to look at. Who waits is dropped, untold, when it cannot be written.
pub type Job = job::Job<oneshot::Sender<()>>;

/// See the module.
pub struct Writer {
    client: Client,
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    events: Arc<Events>,
    metrics: StatusMetrics,
    start: Instant,
    queue: Mutex<Queue<Text, (Kind, Key), Job>>,
    pace: Arc<Pace>,
    budgets: Mutex<Budgets>,
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

/// Whether an object is known as it is.
enum Sure {
    Already,
    /// It was read just now.
    Now,
    Not(String),
}

enum Next {
    Done,
    /// Written; the events of the transition are owed.
    Emit(Arc<Process>, Box<Record>),
    Later(Job, u64),
}

// === impl Writer ===

impl Writer {
    /// `client` must not retry by itself. `capacity` bounds the objects that wait, `pace` the patches a second.
    #[must_use]
    pub fn new(
        client: Client,
        directory: Arc<Directory>,
        roll: Arc<Roll>,
        events: Arc<Events>,
        metrics: StatusMetrics,
        pace: Arc<Pace>,
        capacity: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            directory,
            roll,
            events,
            metrics,
            start: Instant::now(),
            queue: Mutex::new(Queue::new(capacity)),
            pace,
            budgets: Mutex::new(Budgets::default()),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Queues an object to be looked at.
    ///
    /// # Errors
    /// When there is no room for another object.
    pub fn submit(&self, kind: Kind, key: Key, job: Job) -> Result<(), Full> {
        let device = match kind {
            Kind::Switch => Some(key.name.clone()),
            _ => self.directory.read(|index| Some(index.process(&key.namespace, &key.name)?.device.clone())),
        };
        let now = self.now_ms();
        self.queue.lock().push(device.unwrap_or_default(), (kind, key), job, now, now)?;
        self.changed.notify_one();
        Ok(())
    }

    /// Whether something waits for an object or is in flight.
    #[must_use]
    pub fn is_pending(&self, kind: Kind, key: &Key) -> bool {
        let queue = self.queue.lock();
        !queue.is_empty() && queue.contains(&(kind, key.clone()))
    }

    /// The longest delay after which a device may be told to come back, seconds: 7, so that delays differ by 5 s and
    /// more, and up to 10 as what waits takes longer to write.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn patience_seconds(&self) -> u64 {
        let expected = self.queue.lock().len() as f64 / self.pace.rate(Class::Transitions);
        7 + expected.clamp(0.0, 3.0).round() as u64
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
            // Counters that have to wait for leave must not do so on workers that transitions need.
            let counters = if closing { Ok(()) } else { self.pace.check(Class::Counters) };
            let (next, due) = {
                let mut queue = self.queue.lock();
                let next = queue.pop(now, |lane| lane == Lane::Transitions || counters.is_ok());
                let open = counters.err().filter(|_| !queue.is_empty()).map(|wait| self.now_ms() + wait);
                (next, queue.next_due_ms().into_iter().chain(open).min())
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
            // Boxed, since they are large and over while the events are waited for.
            Kind::Process => Box::pin(self.write_process(&key, job)).await,
            Kind::Switch => Box::pin(self.write_switch(&key, job)).await,
            Kind::Deployment => Next::Done,
        };
        // Others may write while this object's events are on their way; its own next transition waits for them.
        drop(permit);
        self.changed.notify_one();
        if let Next::Emit(process, record) = &next {
            self.events.emit(process, record).await;
        }
        let now = self.now_ms();
        match next {
            Next::Later(job, at) if !self.closing.load(Ordering::Relaxed) => {
                self.queue.lock().retry(&(kind, key), job, now, at);
            }
            Next::Later(..) => self.give_up(kind, key),
            _ => self.queue.lock().done(&(kind, key), now),
        }
    }

    /// While closing there is no later. Whoever waits for it, or for what came meanwhile, gets no acknowledgement.
    fn give_up(&self, kind: Kind, key: Key) {
        let device = match kind {
            Kind::Switch => Some(key.name.clone()),
            _ => self.directory.read(|index| Some(index.process(&key.namespace, &key.name)?.device.clone())),
        };
        // Before it leaves the queue: whoever does not find it there finds this.
        if let Some(device) = device {
            self.roll.lose(&device);
        }
        self.queue.lock().give_up(&(kind, key));
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
            if job.settle_doubt(&process) {
                self.events.emit(&process, &process.status).await;
            }
            if self.is_superseded(&job, &process) {
                drop(job.supersede());
            }
            let agent = self.roll.state(&process.device);
            let change = job.change(&process, agent, counts, clock::unix_seconds());
            let Some(change) = change else {
                match self.make_sure(key, &mut job).await {
                    Sure::Already => return self.over(job),
                    Sure::Now => continue,
                    Sure::Not(error) => return self.later(key, job, &error),
                }
            };
            if !change.reasons.is_empty() && self.events.ensure(&process).await {
                // The next transition makes the status forget this one; meanwhile things may have changed.
                continue;
            }
            if !self.closing.load(Ordering::Relaxed) {
                let now = self.now_ms();
                let due = job.defer(&change, &process, &self.budgets.lock(), now);
                if let Some(due) = due {
                    match self.make_sure(key, &mut job).await {
                        Sure::Already => {}
                        Sure::Now => continue,
                        Sure::Not(error) => return self.later(key, job, &error),
                    }
                    self.metrics.deferred(change.weight);
                    tell(&mut job);
                    return Next::Later(job, due);
                }
            }
            let patch = merge_patch(&process.status.write(), &change.record.write()).unwrap_or(Value::Null);
            let class = if change.is_urgent() { Class::Transitions } else { Class::Counters };
            self.pace.leave(class).await;
            // That may have taken long: nobody is called dead by an old verdict, and no old report undoes a newer one.
            let revived = agent == AgentState::Stale && self.roll.state(&process.device) != agent;
            if revived || self.is_superseded(&job, &process) {
                continue;
            }
            match self.patch(Kind::Process, key, class, process.revision, &process.uid, &patch).await {
                Answer::Written => {
                    self.budgets.lock().written(key, &change, self.now_ms());
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
                    tell(&mut job);
                    if change.reasons.is_empty() {
                        return Next::Done;
                    }
                    return Next::Emit(process, Box::new(change.record));
                }
                Answer::Overtaken => job.unsure = false,
                Answer::Over => return finish(job),
                Answer::Refused => return Next::Done,
                Answer::Failed(error) => {
                    job.doubt(&process, self.now_ms());
                    return self.later(key, job, &error);
                }
            }
        }
        self.contended(key, job)
    }

    async fn write_switch(&self, key: &Key, job: Job) -> Next {
        for _ in 0..CONFLICTS {
            let switch = self.directory.read(|index| index.switch(&key.namespace, &key.name).cloned());
            let Some(switch) = switch else { return finish(job) };
            let agent = self.roll.state(&key.name);
            let next = project_switch(&switch.status, agent, &job.introduction, clock::unix_seconds());
            let Some(next) = next else { return finish(job) };
            let patch = merge_patch(&switch.status.write(), &next.write()).unwrap_or(Value::Null);
            let class = Class::Transitions;
            self.pace.leave(class).await;
            if agent == AgentState::Stale && self.roll.state(&key.name) != agent {
                continue;
            }
            let sent = self.patch(Kind::Switch, key, class, switch.revision, &switch.uid, &patch);
            match sent.await {
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
        self.contended(key, job)
    }

    /// Reads an object live of which nothing is to be written now, if it may have changed unseen.
    async fn make_sure(&self, key: &Key, job: &mut Job) -> Sure {
        if !job.unsure {
            return Sure::Already;
        }
        match self.read_live(Kind::Process, key).await {
            // One that is gone is looked up in vain, and nothing more is known of it here than that.
            Ok(_) => {
                job.unsure = false;
                Sure::Now
            }
            Err(error) => Sure::Not(error),
        }
    }

    /// There is nothing to write, but perhaps something to be seen to.
    fn over(&self, mut job: Job) -> Next {
        tell(&mut job);
        job.look_again(self.now_ms()).map_or(Next::Done, |at| Next::Later(job, at))
    }

    /// Whether another replica has had a newer report than the one of a job.
    fn is_superseded(&self, job: &Job, process: &Process) -> bool {
        job.order().is_some_and(|order| self.roll.is_superseded(&process.device, &order.boot_id, order.sequence))
    }

    async fn patch(&self, kind: Kind, key: &Key, class: Class, revision: u64, uid: &str, status: &Value) -> Answer {
        let body = json!({"metadata": {"resourceVersion": revision.to_string(), "uid": uid}, "status": status});
        let api = namespaced(self.client.clone(), kind, &key.namespace);
        let sent = Instant::now();
        let answer =
            timeout(CALL_TIMEOUT, api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&body))).await;
        self.metrics.patch_seconds.observe(sent.elapsed().as_secs_f64());
        self.pace.answered(class, answer.as_ref().ok());
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
        self.metrics.patch(class, result);
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
        let delay = job.back_off_ms(chance);
        tracing::debug!(
            namespace = &*key.namespace,
            name = &*key.name,
            error,
            attempts = job.attempts(),
            delay_ms = delay,
            "status not written yet"
        );
        Next::Later(job, self.now_ms() + delay)
    }

    /// Others write the object all the time: that is no failure, and it is tried again soon.
    fn contended(&self, key: &Key, mut job: Job) -> Next {
        let delay = job.conflict_pause_ms(chance);
        tracing::debug!(
            namespace = &*key.namespace,
            name = &*key.name,
            delay_ms = delay,
            "too many conflicts in a row"
        );
        Next::Later(job, self.now_ms() + delay)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Answers everybody who waits.
fn tell(job: &mut Job) {
    for waiting in job.waiting.drain(..) {
        // A receiver that has gone had its deadline.
        let _ = waiting.send(());
    }
}

fn finish(mut job: Job) -> Next {
    tell(&mut job);
    Next::Done
}

/// A number between two, both included.
fn chance(low: u64, high: u64) -> u64 {
    rand::rng().random_range(low..=high)
}
