//! Everything that the cluster showed while a test ran: each version of each Praetor object, each Event, with times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::watcher;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::cluster::{Cluster, Kind};
use super::controlplane::ControlPlane;
use super::wait::wait_for;

const KINDS: [Kind; 4] = [Kind::Switch, Kind::Process, Kind::Deployment, Kind::Event];
/// Between two looks at how far the apiserver is.
const LOOK: Duration = Duration::from_millis(250);

/// One version of one object.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was there for certain: the watch delivered it, or the apiserver was seen to be further already.
    pub at: Instant,
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether this is its end.
    pub deleted: bool,
    /// Whether it was there when the recorder started.
    pub initial: bool,
    /// The whole object.
    pub object: Value,
}

/// One Event.
#[derive(Debug, Clone)]
pub struct EventSeen {
    /// When the watch delivered it.
    pub at: Instant,
    /// The Event's own name.
    pub name: String,
    /// The namespace of the object it is about.
    pub namespace: String,
    /// The name of the object it is about.
    pub object: String,
    /// Why.
    pub reason: String,
    /// `Normal` or `Warning`.
    pub kind: String,
    /// The human sentence.
    pub note: String,
    /// What of it was seen last.
    pub raw: Value,
}

#[derive(Default)]
struct History {
    seen: Vec<Seen>,
    /// The version seen last by kind and uid: a re-list repeats what is known.
    versions: HashMap<(Kind, String), String>,
    /// How far the apiserver was by when, in order.
    reached: Vec<(u64, Instant)>,
    ready: usize,
}

/// Watches in the background, as admin, from its start until it is dropped. It sees every version, unless its watch
/// breaks and the apiserver has forgotten where it was: then only the latest.
pub struct Recorder {
    history: Arc<Mutex<History>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Recorder {
    /// Starts it and returns when what exists has been read: whatever happens after this call is recorded.
    pub async fn start(plane: &ControlPlane) -> Self {
        Self::watching(&plane.client().await).await
    }

    /// The same for any cluster, as whoever the client is.
    pub async fn watching(client: &Client) -> Self {
        let history = Arc::new(Mutex::new(History::default()));
        let mut tasks: Vec<_> = KINDS
            .into_iter()
            .map(|kind| {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
                tokio::spawn(record(kind, api, history.clone()))
            })
            .collect();
        tasks.push(tokio::spawn(keep_up(client.clone(), history.clone())));
        let recorder = Self { history, tasks };
        wait_for(Duration::from_secs(30), "the recorder's first lists", async || {
            let ready = recorder.history.lock().unwrap().ready;
            if ready == KINDS.len() { Ok(()) } else { Err(format!("{ready} of {}", KINDS.len())) }
        })
        .await;
        recorder
    }

    /// Every version of one object since the start, oldest first; its state at the start is not among them.
    pub fn history(&self, kind: Kind, namespace: &str, name: &str) -> Vec<Seen> {
        let wanted = |s: &&Seen| !s.initial && s.kind == kind && s.namespace == namespace && s.name == name;
        self.look(|seen| seen.iter().filter(wanted).cloned().collect())
    }

    /// How many times one object was written since the start (its creation and its end count).
    pub fn writes(&self, kind: Kind, namespace: &str, name: &str) -> usize {
        self.history(kind, namespace, name).len()
    }

    /// Everything of one kind since the start.
    pub fn of_kind(&self, kind: Kind) -> Vec<Seen> {
        self.all().into_iter().filter(|s| !s.initial && s.kind == kind).collect()
    }

    /// Looks at everything, with what was there at the start, without copying it.
    pub fn look<T>(&self, look: impl FnOnce(&[Seen]) -> T) -> T {
        look(&self.history.lock().unwrap().seen)
    }

    /// Everything, with what was there at the start.
    pub fn all(&self) -> Vec<Seen> {
        self.history.lock().unwrap().seen.clone()
    }

    /// Events since the start with this reason (empty: any) about objects of this name (empty: any), each once.
    pub fn events(&self, reason: &str, object: &str) -> Vec<EventSeen> {
        let mut events: Vec<EventSeen> = Vec::new();
        let mut places = HashMap::new();
        let seen = self.look(|seen| {
            let wanted = |s: &&Seen| !s.initial && !s.deleted && s.kind == Kind::Event;
            let about = |s: &&Seen| object.is_empty() || s.object["regarding"]["name"] == object;
            let why = |s: &&Seen| reason.is_empty() || s.object["reason"] == reason;
            seen.iter().filter(wanted).filter(about).filter(why).cloned().collect::<Vec<_>>()
        });
        for event in seen.into_iter().map(EventSeen::read) {
            let place = *places.entry((event.namespace.clone(), event.name.clone())).or_insert(events.len());
            match events.get_mut(place) {
                Some(known) => known.raw = event.raw,
                None => events.push(event),
            }
        }
        events
    }

    /// The first moment since the start at which the condition held for a version of the object.
    pub fn first(&self, kind: Kind, namespace: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Option<Instant> {
        self.history(kind, namespace, name).into_iter().find(|s| !s.deleted && holds(&s.object)).map(|s| s.at)
    }

    /// Waits for that moment.
    #[track_caller]
    pub fn wait_first(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        deadline: Duration,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Instant> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        wait_for(deadline, format!("{kind:?} {namespace}/{name}: {what}"), async move || {
            let last = || {
                self.history(kind, &namespace, &name)
                    .pop()
                    .map_or_else(|| "no version seen".into(), |s| format!("{:#}", s.object))
            };
            self.first(kind, &namespace, &name, &holds).ok_or_else(last)
        })
    }

    /// Waits until the watch has shown an object as the apiserver has it now: what is counted of its kind after this
    /// lacks nothing that was written before it.
    pub async fn caught_up(&self, cluster: &Cluster, kind: Kind, namespace: &str, name: &str) {
        let what = format!("{kind:?} {namespace}/{name} as it is now");
        let object = cluster.get(kind, namespace, name).await.unwrap_or_else(|| panic!("{what}: there is none"));
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (key, now) = ((kind, text("uid")), text("resourceVersion"));
        let number = |version: &String| version.parse::<u64>().expect("a resourceVersion");
        wait_for(Duration::from_secs(30), format!("the recorder to show {what}"), async || {
            let shown = self.history.lock().unwrap().versions.get(&key).cloned();
            if shown.as_ref().map(number) >= Some(number(&now)) { Ok(()) } else { Err(format!("{shown:?} of {now}")) }
        })
        .await;
    }

    /// Waits until there are at least `count` such events (see [`Self::events`]) and returns them.
    #[track_caller]
    pub fn wait_events(
        &self,
        reason: &str,
        object: &str,
        count: usize,
        deadline: Duration,
    ) -> impl Future<Output = Vec<EventSeen>> {
        let (reason, object) = (reason.to_owned(), object.to_owned());
        wait_for(deadline, format!("{count} events {reason} about {object}"), async move || {
            let events = self.events(&reason, &object);
            if events.len() >= count {
                return Ok(events);
            }
            let all: Vec<String> =
                self.events("", &object).into_iter().map(|e| format!("{} {}", e.reason, e.note)).collect();
            Err(format!("{} of them; all about it: {all:?}", events.len()))
        })
    }
}

impl EventSeen {
    fn read(seen: Seen) -> Self {
        let text = |pointer: &str| seen.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            at: seen.at,
            namespace: text("/regarding/namespace"),
            object: text("/regarding/name"),
            reason: text("/reason"),
            kind: text("/type"),
            note: text("/note"),
            name: seen.name.clone(),
            raw: seen.object,
        }
    }
}

async fn record(kind: Kind, api: Api<DynamicObject>, history: Arc<Mutex<History>>) {
    let config = watcher::Config::default().timeout(60);
    let mut events = watcher(api, config).boxed();
    let mut first = true;
    while let Some(event) = events.next().await {
        let Ok(event) = event else {
            // The fault tests' doing. It comes back soon, so that versions are not seen much later than written.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut history = history.lock().unwrap();
        match event {
            watcher::Event::Apply(object) => history.note(kind, object, false, false),
            watcher::Event::Delete(object) => history.note(kind, object, true, false),
            watcher::Event::InitApply(object) => history.note(kind, object, false, first),
            watcher::Event::InitDone if first => {
                first = false;
                history.ready += 1;
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }
}

/// Notes how far the apiserver is. A watch that delivers thousands of versions on a busy machine is seconds late: when
/// they were written is known better by this, since one count of versions serves all kinds.
async fn keep_up(client: Client, history: Arc<Mutex<History>>) {
    let api: Api<Namespace> = Api::all(client);
    let one = ListParams::default().limit(1);
    loop {
        // Without an answer, as in the outages that tests make, the watch alone counts.
        if let Ok(Ok(list)) = tokio::time::timeout(Duration::from_secs(5), api.list_metadata(&one)).await {
            let reached = list.metadata.resource_version.and_then(|version| version.parse().ok());
            history.lock().unwrap().reached.extend(reached.map(|version: u64| (version, Instant::now())));
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl History {
    /// When a version that is seen now was there for certain.
    fn written(&self, version: &str) -> Instant {
        let now = Instant::now();
        let Ok(version) = version.parse::<u64>() else { return now };
        let first = self.reached.partition_point(|(reached, _)| *reached < version);
        self.reached.get(first).map_or(now, |(_, at)| *at)
    }

    fn note(&mut self, kind: Kind, object: DynamicObject, deleted: bool, initial: bool) {
        let object = serde_json::to_value(object).expect("JSON");
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (kind, text("uid"));
        let version = text("resourceVersion");
        if !deleted && self.versions.get(&key) == Some(&version) {
            return;
        }
        let at = self.written(&version);
        self.versions.insert(key, version);
        let seen = Seen { at, kind, namespace: text("namespace"), name: text("name"), deleted, initial, object };
        self.seen.push(seen);
    }
}
