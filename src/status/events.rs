//! Edge: each transition's event exactly once.
//!
//! The status is the outbox: `transitions` and `lastEvents` move in the same patch, and an event's name is a
//! hash of uid, reason and that counter. So whoever writes it, and however often, there is one event; and
//! after a crash the status tells which one may be missing. Who looks for it is the owner of the device: after a start,
//! and whenever a replica is lost that may have written a status and not its event.

use super::limiter::Class;
use super::metrics::StatusMetrics;
use super::pace::Pace;
use crate::api::{API_VERSION, GROUP};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::Process;
use crate::desired::record::{ConditionType, Reason, Record};
use crate::ownership::members::View;
use crate::ownership::objects::member_name;
use crate::ownership::rendezvous::device_hash;
use crate::ownership::shared::Ownership;
use crate::runtime::{clock, retry};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A call that takes longer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The next transition of an object waits so long for the events of the one before.
const INLINE: Duration = Duration::from_secs(5);
/// After so long an event that cannot be written is given up.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a mass silence is called, and for how long its event is tried.
const MASS_DISCONNECT: &str = "MassDisconnect";
const MASS_PATIENCE: Duration = Duration::from_secs(60);
/// Events that are retried in the background at most; one more is lost, and counted.
const BACKGROUND: usize = 10_000;
/// Objects whose latest events are remembered.
const SEEN_TO: u64 = 32_768;
/// Events that are written at once.
const CONCURRENCY: usize = 16;
/// Events that are looked for at once after a start.
const REPAIR_CONCURRENCY: usize = 8;
/// Longest `note` that the apiserver takes, bytes.
const MAX_NOTE_BYTES: usize = 1_024;

/// See the module.
pub struct Events {
    client: Client,
    /// Identity of this replica, at most 128 bytes.
    instance: String,
    pace: Arc<Pace>,
    metrics: StatusMetrics,
    background: Arc<Semaphore>,
    calls: Semaphore,
    /// The latest transition of an object, by uid, whose events this replica has seen to. What is forgotten costs a
    /// request.
    seen_to: Cache<Box<str>, u64>,
}

// === impl Events ===

impl Events {
    /// `client` must not retry by itself.
    #[must_use]
    pub fn new(client: Client, identity: &str, pace: Arc<Pace>, metrics: StatusMetrics) -> Arc<Self> {
        let instance = identity.chars().take(64).filter(char::is_ascii).collect();
        Arc::new(Self {
            client,
            instance,
            pace,
            metrics,
            background: Arc::new(Semaphore::new(BACKGROUND)),
            calls: Semaphore::new(CONCURRENCY),
            seen_to: Cache::builder().max_capacity(SEEN_TO).time_to_live(PATIENCE).build(),
        })
    }

    /// Writes the events of the transition that a status has just been given. Returns when they are written, or
    /// after 5 s; then it goes on in the background.
    pub async fn emit(self: &Arc<Self>, process: &Process, record: &Record) {
        for event in self.events(process, record) {
            let started = Instant::now();
            if !self.write(&event, INLINE).await {
                match self.background.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let events = self.clone();
                        tokio::spawn(async move {
                            if !events.write(&event, PATIENCE.saturating_sub(started.elapsed())).await {
                                events.lose(&event);
                            }
                            drop(permit);
                        });
                    }
                    Err(_) => self.lose(&event),
                }
            }
        }
        self.seen_to.insert(process.uid.clone(), record.transitions);
    }

    /// Makes sure of the events of the latest transition, if another replica wrote it lately and may have died since:
    /// for the next one the status forgets it. As [`Events::emit`]; false when there was nothing to do.
    pub async fn ensure(self: &Arc<Self>, process: &Process) -> bool {
        let sure = self.seen_to.get(&process.uid).is_some_and(|transition| transition >= process.status.transitions);
        let owed = !sure && is_recent(&process.status, clock::unix_seconds());
        if owed {
            self.emit(process, &process.status).await;
        }
        owed
    }

    /// Makes sure that the events of recent transitions exist, after the first lists and after each loss of a replica,
    /// until shutdown.
    pub async fn look_after(
        self: Arc<Self>,
        directory: Arc<Directory>,
        ownership: Arc<Ownership>,
        shutdown: CancellationToken,
    ) {
        let mut changed = ownership.changed();
        let work = async {
            directory.listed(&Kind::SERVED).await;
            let mut seen = Arc::new(View::new(0, Vec::new(), ownership.identity()));
            loop {
                let view = changed.borrow_and_update().clone();
                // Whoever died before this one joined may owe events, too: its own last incarnation, for one.
                if somebody_left(&seen, &view) || (seen.me.is_none() && view.me.is_some()) {
                    self.repair(&directory, &view).await;
                }
                seen = view;
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => shutdown.cancelled().await,
        }
    }

    /// Makes sure that the events of recent transitions of this replica's devices exist. The only place that compares
    /// wall clocks; a wrong one costs reads, or an event of a writer that died.
    async fn repair(self: &Arc<Self>, directory: &Directory, view: &View) {
        let now = clock::unix_seconds();
        let mut recent = Vec::new();
        let mut from = 0;
        loop {
            let count = directory.read(|index| {
                let mut count = 0;
                for (name, device) in index.devices(from, 1_000) {
                    count += 1;
                    if !view.is_mine(device_hash(name)) {
                        continue;
                    }
                    recent.extend(device.processes.iter().filter(|process| is_recent(&process.status, now)).cloned());
                }
                count
            });
            if count == 0 {
                break;
            }
            from += count;
        }
        if recent.is_empty() {
            return;
        }
        tracing::info!(processes = recent.len(), "looking for events of recent transitions");
        // Not a task each: there are as many as devices after all of them were connected, and a future is large.
        let repairs = futures::stream::iter(recent).for_each_concurrent(REPAIR_CONCURRENCY, async |process| {
            for event in self.events(&process, &process.status) {
                if !self.exists(&event).await && !self.write(&event, PATIENCE).await {
                    self.lose(&event);
                }
            }
        });
        repairs.await;
    }

    fn events(&self, process: &Process, record: &Record) -> Vec<(Reason, Event)> {
        let Some(outbox) = &record.outbox else { return Vec::new() };
        let event = |reason: Reason| {
            let mut note = note(record, reason).to_owned();
            while note.len() > MAX_NOTE_BYTES {
                note.pop();
            }
            let event = Event {
                metadata: ObjectMeta {
                    name: Some(name(process, reason, record.transitions)),
                    namespace: Some((*process.key.namespace).to_owned()),
                    ..ObjectMeta::default()
                },
                event_time: Some(MicroTime(Timestamp::from_second(outbox.time).unwrap_or(Timestamp::UNIX_EPOCH))),
                type_: Some(if reason.is_warning() { "Warning" } else { "Normal" }.into()),
                reason: Some(reason.as_str().into()),
                action: Some(
                    if matches!(reason, Reason::AgentConnected | Reason::AgentDisconnected) {
                        "Heartbeat"
                    } else {
                        "Report"
                    }
                    .into(),
                ),
                note: Some(note),
                reporting_controller: Some(format!("{GROUP}/praetor-manager")),
                reporting_instance: Some(self.instance.clone()),
                regarding: Some(ObjectReference {
                    api_version: Some(API_VERSION.into()),
                    kind: Some(Kind::Process.as_str().into()),
                    namespace: Some((*process.key.namespace).to_owned()),
                    name: Some((*process.key.name).to_owned()),
                    uid: Some((*process.uid).to_owned()),
                    ..ObjectReference::default()
                }),
                ..Event::default()
            };
            (reason, event)
        };
        outbox.reasons.iter().copied().map(event).collect()
    }

    /// Creates an event unless it exists; false when that did not succeed in time.
    async fn write(&self, (reason, event): &(Reason, Event), patience: Duration) -> bool {
        self.create(reason.as_str(), event, patience).await
    }

    async fn create(&self, reason: &str, event: &Event, patience: Duration) -> bool {
        let api: Api<Event> =
            Api::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        let started = Instant::now();
        let count = |result: &str| self.metrics.events.with_label_values(&[reason, result]).inc();
        for delay in retry::delays(Duration::from_millis(100), Duration::from_secs(30)) {
            let answer = {
                // Never closed, so there always is a permit in the end.
                let _call = self.calls.acquire().await;
                self.pace.leave(Class::Events).await;
                // Boxed, so that those who wait for their turn stay small: in a storm there are thousands.
                Box::pin(timeout(CALL_TIMEOUT, api.create(&PostParams::default(), event))).await
            };
            self.pace.answered(Class::Events, answer.as_ref().ok());
            match answer {
                Ok(Ok(_)) => {
                    count("ok");
                    return true;
                }
                Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {
                    count("exists");
                    return true;
                }
                // The namespace is going, or the event is refused as such: no later try can help.
                Ok(Err(kube::Error::Api(status)))
                    if status.is_not_found() || status.is_invalid() || namespace_is_going(&status) =>
                {
                    tracing::warn!(reason, %status, "event refused");
                    count("error");
                    return true;
                }
                Ok(Err(error)) => tracing::debug!(reason, %error, "event not written yet"),
                Err(_) => tracing::debug!(reason, "event not answered in time"),
            }
            count("error");
            if started.elapsed() + delay >= patience {
                return false;
            }
            tokio::time::sleep(delay).await;
        }
        false
    }

    async fn exists(&self, (_, event): &(Reason, Event)) -> bool {
        let api: Api<Event> =
            Api::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        let name = event.metadata.name.as_deref().unwrap_or_default();
        matches!(timeout(CALL_TIMEOUT, api.get_opt(name)).await, Ok(Ok(Some(_))))
    }

    fn lose(&self, (reason, event): &(Reason, Event)) {
        self.metrics.events.with_label_values(&[reason.as_str(), "lost"]).inc();
        tracing::error!(
            reason = reason.as_str(),
            namespace = event.metadata.namespace,
            process = event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()),
            "event lost: it could not be written for 10 minutes"
        );
    }

    /// Says of a replica, by its member Lease in `namespace`, that many of its devices fell silent together. `episode`
    /// is the process's incarnation and its own count; one event each, however often it is written.
    pub async fn mass(&self, namespace: &str, identity: &str, episode: (u64, u64), note: &str) {
        let lease = member_name(identity);
        let mut digest = Sha256::new();
        for part in [episode.0, episode.1] {
            digest.update(part.to_be_bytes());
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{lease}.{}", hex::encode(&digest.finalize()[..8]))),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::from_second(clock::unix_seconds()).unwrap_or(Timestamp::UNIX_EPOCH))),
            type_: Some("Warning".into()),
            reason: Some(MASS_DISCONNECT.into()),
            action: Some("Heartbeat".into()),
            note: Some(note.chars().take(MAX_NOTE_BYTES / 4).collect()),
            reporting_controller: Some(format!("{GROUP}/praetor-manager")),
            reporting_instance: Some(self.instance.clone()),
            regarding: Some(ObjectReference {
                api_version: Some("coordination.k8s.io/v1".into()),
                kind: Some("Lease".into()),
                namespace: Some(namespace.to_owned()),
                name: Some(lease),
                ..ObjectReference::default()
            }),
            ..Event::default()
        };
        if !self.create(MASS_DISCONNECT, &event, MASS_PATIENCE).await {
            tracing::warn!(namespace, reason = MASS_DISCONNECT, "event lost: it could not be written in time");
        }
    }
}

/// Whether a replica that was there is not any more, or not in the same incarnation.
fn somebody_left(before: &View, now: &View) -> bool {
    before.peers().any(|peer| now.member(&peer.identity).is_none_or(|still| still.incarnation != peer.incarnation))
}

/// Whether events of the latest transition may be missing still.
fn is_recent(record: &Record, now: i64) -> bool {
    let patience = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
    record.outbox.as_ref().is_some_and(|outbox| (now - outbox.time).abs() <= patience)
}

fn namespace_is_going(status: &kube::core::Status) -> bool {
    status.is_forbidden() && status.message.contains("being terminated")
}

/// The one name of a transition's event.
#[must_use]
pub fn name(process: &Process, reason: Reason, transition: u64) -> String {
    let mut digest = Sha256::new();
    for part in [&*process.uid, reason.as_str(), &transition.to_string()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let suffix = hex::encode(&digest.finalize()[..8]);
    let prefix = &process.key.name[..process.key.name.len().min(236)];
    format!("{}.{suffix}", prefix.trim_end_matches(['.', '-']))
}

/// What an event tells people.
fn note(record: &Record, reason: Reason) -> &str {
    let message = |kind| record.condition(kind).map(|condition| &*condition.message);
    match reason {
        Reason::AgentConnected | Reason::AgentDisconnected => message(ConditionType::AgentConnected),
        Reason::SpecObserved => message(ConditionType::SpecObserved),
        Reason::ProcessStarted | Reason::ProcessFailed => message(ConditionType::ProcessStarted),
        Reason::Unhealthy => message(ConditionType::Healthy),
        Reason::SpecWarning => message(ConditionType::SpecWarning),
    }
    .unwrap_or(reason.as_str())
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
