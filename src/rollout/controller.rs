//! Edge: looks at each deployment when it is due and brings it one step further; for one term as the leader.
//!
//! One deployment is never worked on twice at a time; several are, side by side. A pass writes for a short while only and
//! then plans anew, so that an edit in the middle of a large rollout counts at once.

use super::call::CallError;
use super::events::{Happening, Subject};
use super::execute::{Executor, Outcome};
use super::leader::Leader;
use super::metrics::Metrics;
use super::plan::{Notice, Plan, View, Why, is_deployment, plan};
use super::schedule::{Next, SHORTEST_GAP, Schedule, Version};
use super::tally::{Obstacle, written};
use super::terms::idle;
use crate::api::condition::{find, reasons, types};
use crate::desired::directory::Directory;
use crate::desired::index::Index;
use crate::desired::lean::{Deployment, Key, Process, Text};
use crate::desired::record::merge_patch;
use crate::desired::watch::relist_now;
use crate::runtime::retry;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Deployments that are worked on side by side.
const PASSES: usize = 8;
/// A pass writes for so long before it plans anew.
const SLICE: Duration = Duration::from_secs(2);
/// The status of one deployment is written at most so often.
const STATUS_GAP: Duration = Duration::from_secs(1);
/// Everything is looked at so often, whatever the watches say.
const RESYNC: Duration = Duration::from_secs(300);
/// How long a deleted child is believed to be on its way out although it still shows.
const GOING: Duration = Duration::from_secs(30);
/// Delays after failures.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// What is remembered of a deployment from pass to pass. Nothing is lost with it but time.
#[derive(Default)]
struct Memory {
    /// Generation of the last pass.
    generation: Option<i64>,
    /// uid for which children of former owners have been looked for.
    swept: Option<Text>,
    /// Children whose deletion was accepted, and when.
    going: HashMap<Box<str>, Instant>,
    /// Devices of NameTaken events that have been written for this generation.
    told: (i64, HashSet<Text>),
    /// Hashes of the last RolloutStarted and RolloutComplete that have been written.
    started: Option<String>,
    completed: Option<String>,
    /// Devices on which something was refused: until when they are left alone while the others go on, and the answer.
    resting: HashMap<Text, (Instant, String)>,
    refused: Option<Obstacle>,
    status_written: Option<Instant>,
    /// After refusals, and after trouble with the apiserver.
    rests: Option<Delays>,
    delays: Option<Delays>,
}

type Delays = Box<dyn Iterator<Item = Duration> + Send>;

/// What every pass needs.
struct Context {
    leader: Leader,
    directory: Arc<Directory>,
    executor: Executor,
    metrics: Metrics,
    shutdown: CancellationToken,
}

/// What a pass looks at.
struct Snapshot {
    deployment: Option<Arc<Deployment>>,
    switches: Vec<Arc<crate::desired::lean::Switch>>,
    children: Vec<Arc<Process>>,
    /// Children of deployments of this name that are gone.
    strays: Vec<Arc<Process>>,
}

struct Finished {
    key: Key,
    memory: Memory,
    next: Next,
    cost: Duration,
}

/// Keeps every deployment's children right until the token is cancelled or the lead is lost; returns when what had
/// begun is finished. Never plans from what a watch that is behind has left in the index: the term begins with lists of
/// its own. The receiver is borrowed for the next term.
pub async fn run(
    leader: Leader,
    directory: Arc<Directory>,
    dirty: &mut UnboundedReceiver<Key>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let begun = tokio::select! {
        begun = begin(&leader, &directory) => begun,
        () = idle(dirty) => false,
        () = shutdown.cancelled() => false,
    };
    if !begun {
        return;
    }
    let executor = Executor::new(leader.clone(), directory.clone(), metrics.clone());
    let context = Arc::new(Context { leader, directory, executor, metrics, shutdown });
    let mut schedule = Schedule::default();
    let mut memories: HashMap<Key, Memory> = HashMap::new();
    let mut passes: JoinSet<Finished> = JoinSet::new();
    let mut resync = tokio::time::interval(RESYNC);
    let mut changed = Vec::new();
    while context.leader.leads() {
        while passes.len() < PASSES {
            let Some(key) = schedule.pop(Instant::now()) else { break };
            let memory = memories.remove(&key).unwrap_or_default();
            passes.spawn(pass(context.clone(), key, memory));
        }
        context.metrics.waiting.set(i64::try_from(schedule.waiting()).unwrap_or(i64::MAX));
        let due = schedule.next_due().filter(|_| passes.len() < PASSES);
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => break,
            Some(finished) = passes.join_next() => match finished {
                Ok(Finished { key, memory, next, cost }) => {
                    if !schedule.finished(&key, next, cost, Instant::now()) {
                        memories.insert(key, memory);
                    }
                }
                // Loss of a vital task ends the process.
                Err(error) => if let Ok(panic) = error.try_into_panic() { std::panic::resume_unwind(panic) },
            },
            _ = resync.tick() => {
                for memory in memories.values_mut() {
                    memory.swept = None;
                }
                for (key, version) in context.directory.read(everything) {
                    schedule.touch(&key, version, Instant::now());
                }
            }
            count = dirty.recv_many(&mut changed, 4096) => {
                if count == 0 {
                    break;
                }
                changed.sort_unstable();
                changed.dedup();
                for key in changed.drain(..) {
                    let version = context.directory.read(|index| version(index, &key));
                    schedule.touch(&key, version, Instant::now());
                }
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()).await }, if due.is_some() => {}
        }
    }
    while passes.join_next().await.is_some() {}
    context.metrics.waiting.set(0);
}

/// Says whether the term can begin; it cannot when the lead is lost before.
async fn begin(leader: &Leader, directory: &Directory) -> bool {
    let mut delays = retry::delays(FIRST_DELAY, LONGEST_DELAY);
    while leader.leads() {
        match relist_now(leader.client(), directory).await {
            Ok(()) => return leader.leads(),
            Err(error) => tracing::warn!(%error, "a new leader cannot list; nothing is planned before it has"),
        }
        tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)).await;
    }
    false
}

fn version(index: &Index, key: &Key) -> Version {
    let deployment = index.deployment(&key.namespace, &key.name)?;
    let metadata = &deployment.metadata;
    // A deletion counts as a change of the deployment: the generation moves with it.
    Some((deployment.uid.clone(), metadata.generation.unwrap_or(0)))
}

/// Every deployment, and what is left of those that are gone.
fn everything(index: &Index) -> Vec<(Key, Version)> {
    let mut keys: HashSet<Key> = index.deployments().map(|deployment| deployment.key.clone()).collect();
    for uid in index.owners() {
        // All children of one uid name the same owner.
        let first = index.owned_by(uid).next();
        let Some(first) = first else { continue };
        let at_home = index.deployment(&first.key.namespace, first.owner.as_ref().map_or("", |owner| &owner.name));
        if at_home.is_some_and(|deployment| deployment.uid == *uid) {
            continue;
        }
        if let Some(owner) = first.owner.as_ref().filter(|owner| is_deployment(owner)) {
            keys.extend(
                index
                    .owned_by(uid)
                    .map(|child| Key { namespace: child.key.namespace.clone(), name: owner.name.clone() }),
            );
        }
    }
    keys.into_iter().map(|key| (key.clone(), version(index, &key))).collect()
}

// === impl Snapshot ===

impl Snapshot {
    fn of(index: &Index, key: &Key, memory: &Memory) -> Self {
        let deployment = index.deployment(&key.namespace, &key.name).cloned();
        let uid = deployment.as_ref().map(|deployment| &deployment.uid);
        let mut strays = Vec::new();
        if uid.is_none() || memory.swept.as_ref() != uid {
            let of_this_name = |uid: &&Text| {
                let owner = index.owned_by(uid).next().and_then(|child| child.owner.as_ref());
                owner.is_some_and(|owner| is_deployment(owner) && owner.name == key.name)
            };
            for former in index.owners().filter(|owner| Some(*owner) != uid).filter(of_this_name) {
                strays.extend(
                    index
                        .owned_by(former)
                        .filter(|child| child.key.namespace == key.namespace && !child.deleting)
                        .cloned(),
                );
            }
        }
        let switches = deployment.iter().flat_map(|_| index.switches_in(&key.namespace)).cloned().collect();
        let children = uid
            .into_iter()
            .flat_map(|uid| index.owned_by(uid))
            .filter(|child| child.key.namespace == key.namespace)
            .cloned()
            .collect();
        Self { deployment, switches, children, strays }
    }
}

async fn pass(context: Arc<Context>, key: Key, mut memory: Memory) -> Finished {
    let started = Instant::now();
    memory.going.retain(|_, since| since.elapsed() < GOING);
    let snapshot = context.directory.read(|index| Snapshot::of(index, &key, &memory));
    let plan = snapshot.deployment.as_ref().map(|deployment| {
        let going = memory.going.keys().cloned().collect();
        plan(&View {
            deployment,
            switches: &snapshot.switches,
            children: &snapshot.children,
            standing: &|name| context.directory.read(|index| index.process(&key.namespace, name).cloned()),
            going: &going,
            refused: memory.refused.as_ref(),
            now: Timestamp::now(),
        })
    });
    let cost = started.elapsed();
    let mut verdict = Verdict::default();
    let gone = context.clean_up(&key, &snapshot, &mut memory, &mut verdict).await;
    if let (Some(deployment), Some(plan)) = (&snapshot.deployment, plan) {
        context.perform(deployment, &plan, &mut memory, &mut verdict).await;
        // The name is free once the former owner's children are gone, and their going wakes this deployment.
        if plan.steps.iter().any(|step| step.why == Why::FormerOwner) {
            memory.swept = None;
        }
    }
    let lost = verdict.lost;
    let next = verdict.next(&mut memory, snapshot.deployment.is_none() && gone);
    let result = match next {
        Next::Failed(_) => "retry",
        _ if lost => "lost",
        _ if memory.refused.is_some() => "refused",
        _ => "ok",
    };
    context.metrics.reconciles.with_label_values(&[result]).inc();
    context.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
    Finished { key, memory, next, cost }
}

/// What the parts of a pass say about the next one.
#[derive(Default)]
struct Verdict {
    /// There is more to do at once.
    more: bool,
    /// What is there differs from what was thought: look again soon.
    soon: bool,
    /// At this moment the status may be written again, or a device has rested enough.
    at: Option<Instant>,
    failed: bool,
    retry_after: Option<Duration>,
    /// The lead was lost: there is no next pass in this term.
    lost: bool,
}

// === impl Verdict ===

impl Verdict {
    fn trouble(&mut self, error: &CallError) {
        if let CallError::Lost(_) = error {
            self.lost = true;
            return;
        }
        self.failed = true;
        if let CallError::Busy(retry_after) = error {
            self.retry_after = self.retry_after.max(*retry_after);
        }
    }

    fn next(self, memory: &mut Memory, nothing_left: bool) -> Next {
        if self.lost {
            return Next::Quiet;
        }
        if self.failed {
            return Next::Failed(next_delay(&mut memory.delays).max(self.retry_after.unwrap_or_default()));
        }
        memory.delays = None;
        match self.at {
            _ if self.more => Next::Now,
            _ if self.soon => Next::After(SHORTEST_GAP),
            Some(at) => Next::After(at.saturating_duration_since(Instant::now())),
            None if nothing_left => Next::Never,
            None => Next::Quiet,
        }
    }
}

fn next_delay(delays: &mut Option<Delays>) -> Duration {
    delays.get_or_insert_with(|| Box::new(retry::delays(FIRST_DELAY, LONGEST_DELAY))).next().unwrap_or(LONGEST_DELAY)
}

// === impl Context ===

impl Context {
    /// Deletes children of deployments of this name that a live read confirms gone. Says whether none are left.
    async fn clean_up(&self, key: &Key, snapshot: &Snapshot, memory: &mut Memory, verdict: &mut Verdict) -> bool {
        let strays: Vec<_> =
            snapshot.strays.iter().filter(|child| !memory.going.contains_key(&child.uid)).cloned().collect();
        let mut by_owner: HashMap<&Text, Vec<Arc<Process>>> = HashMap::new();
        for child in &strays {
            if let Some(owner) = &child.owner {
                by_owner.entry(&owner.uid).or_default().push(child.clone());
            }
        }
        for (uid, children) in by_owner {
            match self.executor.is_gone(&key.namespace, &key.name, uid).await {
                Ok(true) => {}
                Ok(false) => {
                    // The index was behind.
                    verdict.soon = true;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(namespace = %key.namespace, deployment = %key.name, %error, "cannot tell whether a deployment is gone; its children stay");
                    verdict.trouble(&error);
                    continue;
                }
            }
            let mut outcome = self.executor.clean_up(&children, Instant::now() + SLICE, &self.shutdown).await;
            let subject = Subject {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: uid.to_string(),
                generation: 0,
            };
            if let Some((device, error)) = outcome.refused.pop() {
                tracing::warn!(namespace = subject.namespace, deployment = subject.name, %device, error, "children of a deployment that is gone cannot be deleted");
                verdict.failed = true;
            }
            self.judge(&subject, outcome, memory, verdict).await;
        }
        if strays.is_empty() {
            memory.swept = snapshot.deployment.as_ref().map(|deployment| deployment.uid.clone());
        }
        snapshot.strays.is_empty()
    }

    async fn perform(&self, deployment: &Arc<Deployment>, plan: &Plan, memory: &mut Memory, verdict: &mut Verdict) {
        for step in &plan.steps {
            tracing::trace!(namespace = %deployment.key.namespace, deployment = %deployment.key.name, device = %step.device, why = %step.why, "step");
        }
        let subject = Subject::from(&**deployment);
        let now = Instant::now();
        if memory.generation.replace(subject.generation) != Some(subject.generation) {
            // Another template may be accepted.
            memory.resting.clear();
        }
        memory.resting.retain(|_, (until, _)| *until > now);
        let resting = memory.resting.keys().cloned().collect();
        // Children do not wait for what is told about them.
        let (mut outcome, ()) = tokio::join!(
            self.executor.run(deployment, plan, &resting, now + SLICE, &self.shutdown),
            self.tell(deployment, &subject, plan, memory, verdict)
        );
        let refused = std::mem::take(&mut outcome.refused);
        self.judge(&subject, outcome, memory, verdict).await;
        rest(&subject, refused, memory, verdict);
    }

    /// Writes a plan's events and then its status: should the manager die in between, the events are written again
    /// under the same names.
    async fn tell(
        &self,
        deployment: &Deployment,
        subject: &Subject,
        plan: &Plan,
        memory: &mut Memory,
        verdict: &mut Verdict,
    ) {
        let due = memory.status_written.map(|written| written + STATUS_GAP).filter(|due| *due > Instant::now());
        for notice in &plan.notices {
            if memory.told.0 != subject.generation {
                memory.told = (subject.generation, HashSet::new());
            }
            let known = match notice {
                Notice::NameTaken { device, .. } => memory.told.1.contains(device),
                // Along with the status that says so.
                Notice::Started { hash } => due.is_some() || memory.started.as_ref() == Some(hash),
                Notice::Completed { hash } => due.is_some() || memory.completed.as_ref() == Some(hash),
            };
            if known {
                continue;
            }
            match self.leader.announce(subject, &Happening::notice(notice, subject.generation)).await {
                Ok(()) => match notice.clone() {
                    Notice::NameTaken { device, .. } => drop(memory.told.1.insert(device)),
                    Notice::Started { hash } => (memory.started, memory.completed) = (Some(hash), None),
                    Notice::Completed { hash } => memory.completed = Some(hash),
                },
                Err(error @ CallError::Lost(_)) => return verdict.trouble(&error),
                Err(error) => {
                    tracing::warn!(namespace = subject.namespace, deployment = subject.name, %error, "event not written");
                    if error.may_pass() {
                        verdict.trouble(&error);
                        return;
                    }
                }
            }
        }
        let Some(status) = &plan.status else { return };
        if let Some(due) = due {
            verdict.at = Some(due);
            return;
        }
        let patch = serde_json::to_value(status).ok().and_then(|status| merge_patch(&deployment.status, &status));
        let Some(patch) = patch else { return };
        memory.status_written = Some(Instant::now());
        match self.executor.patch_status(deployment, &patch).await {
            Ok(()) => {
                let progressing = |conditions| {
                    find(conditions, types::PROGRESSING)
                        .map(|condition| (condition.reason.clone(), condition.message.clone()))
                };
                let (before, now) = (progressing(&written(deployment).conditions), progressing(&status.conditions));
                if let Some((reason, message)) = now.filter(|now| before.as_ref() != Some(now)) {
                    tracing::info!(
                        namespace = subject.namespace,
                        deployment = subject.name,
                        reason,
                        message,
                        "rollout"
                    );
                }
            }
            Err(CallError::Conflict) => verdict.soon = true,
            // Its deletion is on its way here.
            Err(CallError::NotFound) => {}
            Err(error @ CallError::Lost(_)) => verdict.trouble(&error),
            Err(error) => {
                tracing::warn!(namespace = subject.namespace, deployment = subject.name, %error, "status not written");
                verdict.trouble(&error);
            }
        }
    }

    /// Remembers, tells and logs what was done to children.
    async fn judge(&self, subject: &Subject, outcome: Outcome, memory: &mut Memory, verdict: &mut Verdict) {
        let Outcome { created, deleted, changed, revision, refused: _, failed, trouble, overtaken, unfinished, lost } =
            outcome;
        let (namespace, deployment) = (&*subject.namespace, &*subject.name);
        if created.len() + deleted.len() + changed > 0 {
            tracing::info!(
                namespace,
                deployment,
                created = created.len(),
                changed,
                deleted = deleted.len(),
                "children written"
            );
        }
        if let Some(error) = &trouble {
            tracing::warn!(namespace, deployment, failed, %error, "children not written");
            verdict.trouble(error);
        }
        verdict.lost |= lost;
        verdict.soon |= overtaken > 0;
        verdict.more |= unfinished && trouble.is_none();
        let now = Instant::now();
        let names = deleted.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let what = deleted.iter().map(|(_, uid)| &**uid).max().unwrap_or_default().to_owned();
        memory.going.extend(deleted.into_iter().map(|(_, uid)| (uid, now)));
        let mut happenings = Vec::new();
        if !created.is_empty() {
            happenings.push(Happening::children("CreatedDeviceProcess", "created", created, revision));
        }
        if !names.is_empty() {
            let mut happening = Happening::children("DeletedDeviceProcess", "deleted", names, 0);
            // uids never come back, names do.
            happening.distinct = what;
            happenings.push(happening);
        }
        for happening in happenings {
            if let Err(error) = self.leader.tell(subject, &happening).await {
                tracing::warn!(namespace, deployment, reason = happening.reason, %error, "event not written");
            }
        }
    }
}

/// Leaves devices on which something was refused alone for a while, and has the status say so.
fn rest(subject: &Subject, refused: Vec<(Text, String)>, memory: &mut Memory, verdict: &mut Verdict) {
    if let Some((device, error)) = refused.first() {
        let (namespace, deployment) = (&*subject.namespace, &*subject.name);
        tracing::warn!(namespace, deployment, count = refused.len(), %device, error, "children refused");
        let until = Instant::now() + next_delay(&mut memory.rests);
        memory.resting.extend(refused.into_iter().map(|(device, error)| (device, (until, error))));
    }
    // The first by name, so that the status does not change with the order of answers.
    let first = memory.resting.iter().min_by_key(|(device, _)| *device);
    let obstacle = first.map(|(device, (_, error))| Obstacle {
        reason: reasons::DEVICE_PROCESS_REFUSED,
        message: format!("device {device}: {error}"),
    });
    if obstacle.is_none() {
        memory.rests = None;
    }
    verdict.soon |= memory.refused != obstacle;
    memory.refused = obstacle;
    verdict.at = verdict.at.into_iter().chain(memory.resting.values().map(|(until, _)| *until).min()).min();
}
