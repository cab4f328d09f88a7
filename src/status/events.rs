//! Edge: each transition's event exactly once.
//!
//! The status is the outbox: `transitions` and `lastEvents` move in the same patch, and an event's name is a
//! hash of uid, reason and that counter. So whoever writes it, and however often, there is one event; and
//! after a crash the status tells which one may be missing.

use super::metrics::StatusMetrics;
use crate::api::{API_VERSION, GROUP};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::Process;
use crate::desired::record::{ConditionType, Reason, Record};
use crate::runtime::{clock, retry};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A call that takes longer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The next transition of an object waits so long for the events of the one before.
const INLINE: Duration = Duration::from_secs(5);
/// After so long an event that cannot be written is given up.
const PATIENCE: Duration = Duration::from_secs(600);
/// Events that are retried in the background at most; one more is lost, and counted.
const BACKGROUND: usize = 10_000;
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
    metrics: StatusMetrics,
    background: Arc<Semaphore>,
    calls: Semaphore,
}

// === impl Events ===

impl Events {
    /// `client` must not retry by itself.
    #[must_use]
    pub fn new(client: Client, identity: &str, metrics: StatusMetrics) -> Arc<Self> {
        let instance = identity.chars().take(64).filter(char::is_ascii).collect();
        Arc::new(Self {
            client,
            instance,
            metrics,
            background: Arc::new(Semaphore::new(BACKGROUND)),
            calls: Semaphore::new(CONCURRENCY),
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
    }

    /// After a start: makes sure that the events of recent transitions exist. The only place that compares wall
    /// clocks; a wrong one costs reads, or an event of a writer that died.
    pub async fn repair(self: &Arc<Self>, directory: &Directory) {
        let now = clock::unix_seconds();
        let patience = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
        let mut recent = Vec::new();
        let mut from = 0;
        loop {
            let count = directory.read(|index| {
                let mut count = 0;
                for (_, device) in index.devices(from, 1_000) {
                    count += 1;
                    recent.extend(
                        device
                            .processes
                            .iter()
                            .filter(|process| {
                                process
                                    .status
                                    .outbox
                                    .as_ref()
                                    .is_some_and(|outbox| (now - outbox.time).abs() <= patience)
                            })
                            .cloned(),
                    );
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
        let limit = Arc::new(Semaphore::new(REPAIR_CONCURRENCY));
        let mut tasks = tokio::task::JoinSet::new();
        for process in recent {
            let (events, limit) = (self.clone(), limit.clone());
            tasks.spawn(async move {
                let Ok(_permit) = limit.acquire().await else { return };
                for event in events.events(&process, &process.status) {
                    if !events.exists(&event).await && !events.write(&event, PATIENCE).await {
                        events.lose(&event);
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {}
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
        let api: Api<Event> =
            Api::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        let started = Instant::now();
        let count = |result: &str| self.metrics.events.with_label_values(&[reason.as_str(), result]).inc();
        for delay in retry::delays(Duration::from_millis(100), Duration::from_secs(30)) {
            let answer = {
                // Never closed, so there always is a permit in the end.
                let _call = self.calls.acquire().await;
                timeout(CALL_TIMEOUT, api.create(&PostParams::default(), event)).await
            };
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
                    tracing::warn!(reason = reason.as_str(), %status, "event refused");
                    count("error");
                    return true;
                }
                Ok(Err(error)) => tracing::debug!(reason = reason.as_str(), %error, "event not written yet"),
                Err(_) => tracing::debug!(reason = reason.as_str(), "event not answered in time"),
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
}

fn namespace_is_going(status: &kube::core::Status) -> bool {
    status.is_forbidden() && status.message.contains("being terminated")
}

/// The one name of a transition's event.
fn name(process: &Process, reason: Reason, transition: u64) -> String {
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
