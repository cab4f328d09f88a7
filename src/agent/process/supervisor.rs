//! Edge: the processes of the device, looked at and looked after.
//!
//! One task for each backend looks at everything of ours that is there: at the start, when the backend says that
//! something may have happened, and once a minute. One task for each process does what [`super::reconcile`] says (see
//! `worker`), so that a slow download or stop of one delays no other.

use super::identity::Identity;
use super::reconcile::Word;
use super::record::Record;
use super::records::Records;
use super::spec::{Artifact, BackendKind};
use super::worker::Worker;
use crate::agent::artifact::store::Store;
use crate::agent::artifact::{FetchError, Fetched};
use crate::agent::backend::{Backend, BackendError, Found, Pending};
use crate::wire::desired::DesiredItem;
use crate::wire::report::Observation;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// How often everything is looked at although nothing was said to have happened.
const RESYNC: Duration = Duration::from_secs(60);
/// How often it is asked for a backend that the device does not have (now).
const PROBE_AGAIN: Duration = Duration::from_secs(10);
/// What a look may take.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(10);
/// Shortest time between two looks, so that what comes in swarms is looked at once.
const LOOK_GAP: Duration = Duration::from_millis(100);
/// What a backend may take to remove what it has kept: nothing is fetched meanwhile.
const COLLECT_TIME: Duration = Duration::from_secs(30);
/// How long after a change artifacts are collected.
const COLLECT_AFTER: Duration = Duration::from_secs(5);

/// The artifacts of the device, as the supervisor needs them.
pub trait Artifacts {
    /// One that is there, whole and checked.
    fn have(&self, digest: &str) -> Option<Fetched>;
    /// Fetches one. Dropped at any point, it leaves nothing half done.
    fn fetch<'a>(&'a self, artifact: &'a Artifact, pinned: Option<&'a str>)
    -> Pending<'a, Result<Fetched, FetchError>>;
    /// Removes all but these; says how many bytes that gave, or what the disk did not let it.
    fn collect(&self, keep: HashSet<String>) -> Pending<'_, io::Result<u64>>;
}

impl Artifacts for Store {
    fn have(&self, digest: &str) -> Option<Fetched> {
        self.have(digest)
    }

    fn fetch<'a>(
        &'a self,
        artifact: &'a Artifact,
        pinned: Option<&'a str>,
    ) -> Pending<'a, Result<Fetched, FetchError>> {
        Box::pin(self.fetch(artifact, pinned))
    }

    fn collect(&self, keep: HashSet<String>) -> Pending<'_, io::Result<u64>> {
        let store = self.clone();
        Box::pin(async move {
            let collected = tokio::task::spawn_blocking(move || store.collect(&keep)).await;
            collected.unwrap_or_else(|error| Err(io::Error::other(error)))
        })
    }
}

/// What is seen under one backend.
#[derive(Debug, Clone)]
pub(super) enum Look {
    /// Nobody has looked yet.
    Unseen,
    /// The device does not have it, or it does not answer.
    Unavailable(String),
    /// Everything of ours.
    Seen(HashMap<Identity, Found>),
}

/// What all tasks share. Single-threaded: no borrow is held across an `.await`.
pub(super) struct Shared {
    pub device: String,
    pub backends: Vec<Rc<dyn Backend>>,
    pub store: Rc<dyn Artifacts>,
    pub records: RefCell<Records>,
    pub looks: RefCell<BTreeMap<BackendKind, Look>>,
    pub word: Cell<Word>,
    /// Uids of what a former start was told to drop.
    pub dropped: RefCell<HashSet<String>>,
    workers: RefCell<BTreeMap<Identity, Rc<Worker>>>,
    /// Asks for another look at a backend.
    again: BTreeMap<BackendKind, Notify>,
    collect: Notify,
    /// Artifacts are being collected: none is to be fetched that may be among them.
    collecting: Cell<bool>,
    collected: Notify,
    tell: Box<dyn Fn()>,
}

/// Looks after the processes. Clones are the same one. It needs a [`tokio::task::LocalSet`].
#[derive(Clone)]
pub struct Supervisor {
    shared: Rc<Shared>,
}

// === impl Supervisor ===

impl Supervisor {
    /// Takes up what former starts remember in `state`, the agent's folder, and touches nothing before
    /// [`Supervisor::run`]. `tell` is called when an observation has changed so that it should be reported at once.
    pub fn new(
        device: &str,
        state: &Path,
        backends: Vec<Box<dyn Backend>>,
        store: Rc<dyn Artifacts>,
        tell: impl Fn() + 'static,
    ) -> Self {
        let backends: Vec<Rc<dyn Backend>> = backends.into_iter().map(Rc::from).collect();
        let kinds = || backends.iter().map(|backend| backend.kind());
        let shared = Shared {
            device: device.to_owned(),
            looks: RefCell::new(kinds().map(|kind| (kind, Look::Unseen)).collect()),
            again: kinds().map(|kind| (kind, Notify::new())).collect(),
            records: RefCell::new(Records::new(state)),
            word: Cell::new(Word::Nobody),
            dropped: RefCell::default(),
            workers: RefCell::default(),
            collect: Notify::new(),
            collecting: Cell::new(false),
            collected: Notify::new(),
            tell: Box::new(tell),
            store,
            backends,
        };
        let shared = Rc::new(shared);
        let records = shared.records.borrow_mut().load();
        for record in records {
            shared.clone().worker(&record.identity(), || record);
        }
        Self { shared }
    }

    /// Looks at what is there, and goes on for ever.
    pub async fn run(&self) {
        for backend in &self.shared.backends {
            spawn_local(self.shared.clone().look_for_ever(backend.clone()));
        }
        self.shared.clone().collect_for_ever().await;
    }

    /// What was dropped lately according to the state file, by uid: as long as no answer has come, nothing else goes.
    pub fn remember_dropped<'a>(&self, uids: impl Iterator<Item = &'a str>) {
        self.shared.dropped.replace(uids.map(str::to_owned).collect());
    }

    /// What the device should run from now on, and by whose word.
    pub fn desire(&self, items: &[DesiredItem], word: Word) {
        let shared = &self.shared;
        shared.word.set(shared.word.get().max(word));
        let mut others: HashSet<Identity> = shared.workers.borrow().keys().cloned().collect();
        for item in items {
            let identity = Identity::new(&item.namespace, &item.name);
            others.remove(&identity);
            let worker = shared.clone().worker(&identity, || Record::new(&item.namespace, &item.name));
            worker.want(Some(item));
        }
        for identity in others {
            let worker = shared.workers.borrow().get(&identity).cloned();
            worker.into_iter().for_each(|worker| worker.want(None));
        }
    }

    /// What is to be said of a process; none: nothing more than that it is known.
    #[must_use]
    pub fn observation(&self, item: &DesiredItem) -> Option<Observation<'static>> {
        let identity = Identity::new(&item.namespace, &item.name);
        self.shared.workers.borrow().get(&identity)?.observation(&item.spec_hash)
    }

    /// Backends that the device has, as far as it was looked; none as long as it was not.
    #[must_use]
    pub fn backends(&self) -> Option<Vec<BackendKind>> {
        let looks = self.shared.looks.borrow();
        let mut all = Vec::new();
        for (kind, look) in &*looks {
            match look {
                Look::Unseen => return None,
                Look::Seen(_) => all.push(*kind),
                Look::Unavailable(_) => {}
            }
        }
        Some(all)
    }
}

// === impl Shared ===

impl Shared {
    /// The task of a process, which is started if there is none.
    fn worker(self: Rc<Self>, identity: &Identity, record: impl FnOnce() -> Record) -> Rc<Worker> {
        if let Some(worker) = self.workers.borrow().get(identity) {
            return worker.clone();
        }
        let worker = Rc::new(Worker::new(self.clone(), identity.clone(), record()));
        self.workers.borrow_mut().insert(identity.clone(), worker.clone());
        spawn_local(worker.clone().work());
        worker
    }

    /// A process of which nothing is left and nothing is wanted.
    pub fn forget(&self, identity: &Identity) {
        self.records.borrow_mut().forget(identity);
        self.workers.borrow_mut().remove(identity);
        self.collect.notify_one();
    }

    /// The backend of a kind.
    pub fn backend(&self, kind: BackendKind) -> Option<Rc<dyn Backend>> {
        self.backends.iter().find(|backend| backend.kind() == kind).cloned()
    }

    /// An observation has changed.
    pub fn tell(&self) {
        (self.tell)();
    }

    /// Artifacts may have become useless.
    pub fn collect_soon(&self) {
        self.collect.notify_one();
    }

    /// What was found of one process after something was done about it.
    pub fn found(&self, kind: BackendKind, identity: &Identity, found: Result<Option<Found>, BackendError>) {
        let mut looks = self.looks.borrow_mut();
        let Some(look) = looks.get_mut(&kind) else { return };
        match (found, look) {
            (Ok(Some(found)), Look::Seen(all)) => drop(all.insert(identity.clone(), found)),
            (Ok(None), Look::Seen(all)) => drop(all.remove(identity)),
            (Ok(_), _) => {}
            (Err(error), look) => {
                *look = Look::Unavailable(error.to_string());
                self.again.get(&kind).into_iter().for_each(Notify::notify_one);
            }
        }
    }

    /// Returns when artifacts may be fetched.
    pub async fn may_fetch(&self) {
        while self.collecting.get() {
            self.collected.notified().await;
        }
    }

    async fn look_for_ever(self: Rc<Self>, backend: Rc<dyn Backend>) {
        let kind = backend.kind();
        let never = Notify::new();
        let again = self.again.get(&kind).unwrap_or(&never);
        loop {
            let there = self.clone().look(&*backend).await;
            if there {
                tokio::select! {
                    () = backend.changed() => {}
                    () = again.notified() => {}
                    () = sleep(RESYNC) => {}
                }
                sleep(LOOK_GAP).await;
            } else {
                // Also when it is asked for: whoever asks has just been told that it is not there.
                sleep(PROBE_AGAIN).await;
            }
        }
    }

    /// Looks at everything under a backend; false when it is not there.
    async fn look(self: Rc<Self>, backend: &dyn Backend) -> bool {
        let kind = backend.kind();
        let before: HashMap<Identity, u64> =
            self.workers.borrow().iter().map(|(identity, worker)| (identity.clone(), worker.acts())).collect();
        let listed = timeout(LOOK_TIME, async {
            backend.probe().await?;
            backend.list().await
        });
        let look = match listed.await {
            Ok(Ok(found)) => Look::Seen(found.into_iter().map(|found| (found.identity.clone(), found)).collect()),
            Ok(Err(error)) => Look::Unavailable(error.to_string()),
            Err(_) => Look::Unavailable(format!("the backend {} does not answer", kind.as_str())),
        };
        let there = matches!(look, Look::Seen(_));
        self.clone().take_in(kind, look, &before);
        there
    }

    fn take_in(self: Rc<Self>, kind: BackendKind, mut look: Look, before: &HashMap<Identity, u64>) {
        let workers = self.workers.borrow().clone();
        let old = self.looks.borrow_mut().remove(&kind).unwrap_or(Look::Unseen);
        if let (Look::Seen(new), Look::Seen(old)) = (&mut look, &old) {
            for (identity, worker) in &workers {
                // What was done meanwhile is known better by whoever did it.
                if before.get(identity).is_some_and(|acts| *acts == worker.acts()) && !worker.is_acting() {
                    continue;
                }
                match old.get(identity) {
                    Some(found) => drop(new.insert(identity.clone(), found.clone())),
                    None => drop(new.remove(identity)),
                }
            }
        }
        match (&old, &look) {
            (Look::Unseen | Look::Seen(_), Look::Unavailable(why)) => {
                tracing::info!(backend = kind.as_str(), why, "the device does not have this backend now");
            }
            (Look::Unseen | Look::Unavailable(_), Look::Seen(all)) => {
                tracing::info!(backend = kind.as_str(), processes = all.len(), "the device has this backend");
            }
            _ => {}
        }
        let found = |look: &Look, identity: &Identity| match look {
            Look::Seen(all) => Some(all.get(identity).cloned()),
            _ => None,
        };
        for (identity, worker) in &workers {
            let same = found(&old, identity) == found(&look, identity);
            let same_trouble = match (&old, &look) {
                (Look::Unavailable(old), Look::Unavailable(new)) => old == new,
                (Look::Seen(_), Look::Seen(_)) => true,
                _ => false,
            };
            if !same || !same_trouble || worker.owes_disk() {
                worker.wake();
            }
        }
        let strangers: Vec<Found> = match &look {
            Look::Seen(all) => all.values().filter(|f| !workers.contains_key(&f.identity)).cloned().collect(),
            _ => Vec::new(),
        };
        self.looks.borrow_mut().insert(kind, look);
        for found in strangers {
            // It carries our mark, and nobody remembers it.
            let identity = found.identity;
            self.clone().worker(&identity, Record::default);
        }
    }

    async fn collect_for_ever(self: Rc<Self>) {
        loop {
            self.collect.notified().await;
            sleep(COLLECT_AFTER).await;
            let workers: Vec<_> = self.workers.borrow().values().cloned().collect();
            // Not while something is on its way, nor while something runs and nobody knows what from.
            if self.word.get() == Word::Nobody || workers.iter().any(|worker| worker.needs_unknown_artifacts()) {
                continue;
            }
            let keep: HashSet<String> = workers.iter().flat_map(|worker| worker.digests()).collect();
            self.collecting.set(true);
            for backend in &self.backends {
                if matches!(self.looks.borrow().get(&backend.kind()), Some(Look::Seen(_))) {
                    // What it could not remove in time stays for the next time.
                    let _ = timeout(COLLECT_TIME, backend.collect(&keep)).await;
                }
            }
            let outcome = self.store.collect(keep).await;
            self.collecting.set(false);
            self.collected.notify_waiters();
            match outcome {
                Ok(0) => {}
                Ok(bytes) => tracing::info!(bytes, "artifacts that nothing needs were removed"),
                Err(error) => tracing::warn!(%error, "cannot remove artifacts that nothing needs"),
            }
        }
    }
}
