//! Edge: one process of the device, looked after for ever.
//!
//! Look, decide, do one thing, remember it, and again. A download and a health check are tasks of their own, so that
//! what runs is looked after meanwhile; everything else is done to its end before the next look.

mod checks;
mod steps;

use super::backoff::{Restarts, Retries};
use super::health::Health;
use super::identity::Identity;
use super::observation::{View, differs, observation};
use super::reconcile::{Action, Place, Situation, Step, Supply, Wanted, next};
use super::record::{Record, Version};
use super::spec::{BackendKind, RestartPolicy, Spec, SpecError};
use super::supervisor::{Look, Shared};
use crate::agent::backend::{Activity, Found};
use crate::wire::desired::DesiredItem;
use crate::wire::report::Observation;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep_until;
use tracing::debug;

/// Looks after one process.
pub(super) struct Worker {
    shared: Rc<Shared>,
    identity: Identity,
    state: RefCell<State>,
    wake: Notify,
    /// Steps that were begun and ended: a look from before one says nothing.
    acts: Cell<u64>,
    acting: Cell<bool>,
}

/// What is wanted, as it came.
struct Item {
    uid: String,
    spec_hash: String,
    json: String,
    spec: Result<Spec, SpecError>,
}

#[derive(Default)]
struct State {
    wanted: Option<Rc<Item>>,
    record: Record,
    /// What is on the disk.
    saved: Option<Record>,
    /// Spec of what was started last.
    current: Option<(String, Rc<Spec>)>,
    health: Health,
    restarts: Restarts,
    retries: Retries,
    current_retries: Retries,
    fetch_failures: u32,
    fetch_due: Option<Instant>,
    fetching: Option<AbortHandle>,
    checking: Option<AbortHandle>,
    /// Digest of an artifact that its backend keeps, and has.
    kept: Option<String>,
    /// What was done last, to notice what is done in vain.
    last: Option<Action>,
    /// Why nothing is done, as it was logged last.
    held: &'static str,
    said: Option<Observation<'static>>,
}

// === impl Worker: what others ask of it ===

impl Worker {
    pub fn new(shared: Rc<Shared>, identity: Identity, record: Record) -> Self {
        let health = Health::restore(record.verdict.clone());
        let saved = Some(record.clone()).filter(|record| *record != Record::default());
        let state = State { record, saved, health, ..State::default() };
        let (acts, acting) = (Cell::new(0), Cell::new(false));
        Self { shared, identity, state: RefCell::new(state), wake: Notify::new(), acts, acting }
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn acts(&self) -> u64 {
        self.acts.get()
    }

    pub fn is_acting(&self) -> bool {
        self.acting.get()
    }

    /// What is wanted from now on.
    pub fn want(&self, item: Option<&DesiredItem>) {
        let mut state = self.state.borrow_mut();
        let known = state.wanted.as_ref().map(|known| (known.uid.as_str(), known.spec_hash.as_str()));
        // Woken all the same: by whose word it is so may have changed.
        self.wake();
        if known == item.map(|item| (item.uid.as_str(), item.spec_hash.as_str())) {
            return;
        }
        if let Some(task) = state.fetching.take() {
            task.abort();
        }
        if let Some(item) = item {
            item.namespace.clone_into(&mut state.record.namespace);
            item.name.clone_into(&mut state.record.name);
            state.record.wanted(&item.uid);
        }
        state.record.problem = None;
        state.retries.forget();
        (state.fetch_failures, state.fetch_due, state.last) = (0, None, None);
        state.wanted = item.map(|item| {
            let (uid, spec_hash) = (item.uid.clone(), item.spec_hash.clone());
            Rc::new(Item { uid, spec_hash, json: item.spec.get().to_owned(), spec: Spec::parse(item.spec.get()) })
        });
    }

    /// What was seen of it with this spec wanted.
    pub fn observation(&self, spec_hash: &str) -> Option<Observation<'static>> {
        let said = &self.state.borrow().said;
        said.as_ref().filter(|said| said.observed_spec_hash.as_deref() == Some(spec_hash)).cloned()
    }

    /// Whether what is remembered of it is not on the disk, which may take it now.
    pub fn owes_disk(&self) -> bool {
        self.state.borrow().owes_disk()
    }

    /// Artifacts that it needs.
    pub fn digests(&self) -> Vec<String> {
        self.state.borrow().record.digests().map(str::to_owned).collect()
    }

    /// Whether it may need artifacts that nobody can name.
    pub fn needs_unknown_artifacts(&self) -> bool {
        let state = self.state.borrow();
        let known = |version: &Option<Version>| version.as_ref().is_some_and(|version| version.digest.is_some());
        let there = self.places().iter().any(|(kind, place)| match place {
            OwnedPlace::Seen(found) => found.is_some(),
            _ => state.record.places.contains(kind),
        });
        state.fetching.is_some() || (there && !(known(&state.record.started) || known(&state.record.installed)))
    }
}

/// What is known under one backend, taken out of what all share.
enum OwnedPlace {
    Unseen,
    Unavailable(String),
    Seen(Option<Found>),
}

// === impl Worker: look and decide ===

impl Worker {
    /// Looks after it until nothing is left of it and nothing is wanted.
    pub async fn work(self: Rc<Self>) {
        loop {
            let (step, until) = self.think();
            match step.action {
                Action::Hold(_) => {
                    let far = Instant::now() + Duration::from_secs(24 * 3600);
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep_until(until.unwrap_or(far).into()) => {}
                    }
                }
                Action::Forget => {
                    debug!(process = %self.identity, "nothing is left of it");
                    let tasks = {
                        let mut state = self.state.borrow_mut();
                        [state.fetching.take(), state.checking.take()]
                    };
                    tasks.into_iter().flatten().for_each(|task| task.abort());
                    self.shared.forget(&self.identity);
                    return;
                }
                action => self.clone().perform(action, step.why).await,
            }
        }
    }

    fn places(&self) -> Vec<(BackendKind, OwnedPlace)> {
        let own = |look: &Look| match look {
            Look::Unseen => OwnedPlace::Unseen,
            Look::Unavailable(why) => OwnedPlace::Unavailable(why.clone()),
            Look::Seen(all) => OwnedPlace::Seen(all.get(&self.identity).cloned()),
        };
        self.shared.looks.borrow().iter().map(|(kind, look)| (*kind, own(look))).collect()
    }

    /// What to do next, and when to look again at the latest if that is nothing.
    fn think(self: &Rc<Self>) -> (Step, Option<Instant>) {
        let now = Instant::now();
        let owned = self.places();
        let places: Vec<_> = owned.iter().map(|(kind, place)| (*kind, place.borrow())).collect();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for (kind, found) in found(&places) {
            state.record.saw(kind, found);
        }
        let item = state.wanted.clone();
        let main = main_place(&places, item.as_deref(), &state.record).copied();
        let found = main.and_then(|(_, place)| seen(place));
        state.judge_health(now, found, item.as_deref());
        let restart_due = state.restarts.seen(now, found.map(|found| &found.activity), rand::random());
        state.know_current();
        let current = state.record.started.as_ref();
        let (supply, current_present) = {
            let has = |backend: BackendKind, hash: &str, digest: Option<&str>| {
                let installed = places
                    .iter()
                    .any(|(kind, place)| *kind == backend && seen(*place).is_some_and(|found| found.installed == hash));
                self.has(state.kept.as_deref(), backend, digest, installed)
            };
            let wanted = item.as_deref().and_then(|item| Some((item, item.spec.as_ref().ok()?)));
            let supply = match wanted {
                _ if state.fetching.is_some() => Supply::Coming,
                Some((item, spec))
                    if has(spec.execution.backend, &item.spec_hash, state.record.pinned(&item.spec_hash)) =>
                {
                    Supply::Present
                }
                _ => Supply::Missing,
            };
            (supply, current.is_some_and(|v| has(v.backend, &v.spec_hash, v.digest.as_deref())))
        };
        let wanted = item.as_deref().map(Item::wanted);
        let step = next(&Situation {
            wanted,
            word: self.shared.word.get(),
            dropped: &self.shared.dropped.borrow(),
            record: &state.record,
            places: &places,
            supply,
            current_present,
            current_policy: state.current.as_ref().map_or(RestartPolicy::Always, |(_, spec)| spec.restart_policy),
            fetch_due: state.fetch_due,
            restart_due,
            retry_due: state.retries.due(),
            current_retry_due: state.current_retries.due(),
            now,
        });
        if let (Some(wanted), Some(found)) = (wanted, found) {
            let well = matches!(found.activity, Activity::Running { .. });
            if well && wanted.spec.is_ok() && found.running.as_deref() == Some(wanted.spec_hash) {
                state.record.problem = None;
            }
        }
        self.persist(state);
        let check_due = self.check_health(now, state, found);
        if let Some(wanted) = wanted {
            self.say(state, wanted, &places, main, supply == Supply::Present);
        }
        if let Action::Hold(until) = &step.action {
            if state.held != step.why {
                state.held = step.why;
                debug!(process = %self.identity, why = step.why, "holding");
            }
            let until = [*until, check_due, restart_due.filter(|due| *due > now)];
            return (step, until.into_iter().flatten().min());
        }
        state.held = "";
        (step, None)
    }

    /// Whether an artifact is on the device: in the store, or with the backend that keeps it.
    fn has(&self, kept: Option<&str>, backend: BackendKind, digest: Option<&str>, installed: bool) -> bool {
        let Some(digest) = digest else { return false };
        if backend == BackendKind::Container {
            return kept == Some(digest) || installed;
        }
        self.shared.store.have(digest).is_some()
    }

    fn persist(&self, state: &mut State) {
        if state.owes_disk() && self.shared.records.borrow_mut().save(&state.record) {
            state.saved = Some(state.record.clone());
        }
    }

    fn say(
        &self,
        state: &mut State,
        wanted: Wanted<'_>,
        places: &[(BackendKind, Place<'_>)],
        main: Option<(BackendKind, Place<'_>)>,
        present: bool,
    ) {
        let backend = wanted.spec.ok().map(|spec| spec.execution.backend);
        let place = |kind: BackendKind| places.iter().find(|(k, _)| *k == kind).map(|(_, place)| *place);
        // What is wanted needs its own backend, and every other one where something of it may be.
        let needed = backend.into_iter().chain(state.record.places.iter().copied());
        let mut unavailable = None;
        let mut unseen = false;
        for kind in needed {
            match place(kind) {
                Some(Place::Unavailable(why)) => unavailable = unavailable.or(Some(why)),
                Some(Place::Unseen) => unseen = true,
                Some(Place::Seen(_)) => {}
                None => unavailable = unavailable.or(Some("this agent does not have the backend")),
            }
        }
        let found = main.and_then(|(_, place)| seen(place));
        let runs = found.is_some_and(|found| found.installed == wanted.spec_hash) && present;
        let view = View { wanted, record: &state.record, found, unavailable, unseen, present: present || runs };
        let said = observation(&view);
        let news = state.said.as_ref().is_none_or(|before| differs(before, &said));
        state.said = Some(said);
        if news {
            self.shared.tell();
        }
    }
}

fn found<'a>(places: &[(BackendKind, Place<'a>)]) -> impl Iterator<Item = (BackendKind, &'a Found)> {
    places.iter().filter_map(|(kind, place)| Some((*kind, seen(*place)?)))
}

fn seen<'a>(place: Place<'a>) -> Option<&'a Found> {
    match place {
        Place::Seen(found) => found,
        _ => None,
    }
}

/// The place that is spoken of: where it lives, else where it is wanted, else where it was started.
fn main_place<'p, 'a>(
    places: &'p [(BackendKind, Place<'a>)],
    item: Option<&Item>,
    record: &Record,
) -> Option<&'p (BackendKind, Place<'a>)> {
    let live = |found: &Found| matches!(found.activity, Activity::Running { .. } | Activity::Restarting(_));
    let at = |kind: Option<BackendKind>| places.iter().find(|(k, place)| Some(*k) == kind && seen(*place).is_some());
    let wanted = item.and_then(|item| item.spec.as_ref().ok()).map(|spec| spec.execution.backend);
    let alive = places.iter().find(|(_, place)| seen(*place).is_some_and(live));
    alive.or_else(|| at(wanted)).or_else(|| at(record.started.as_ref().map(|version| version.backend)))
}

// === impl State, Item, OwnedPlace ===

impl State {
    fn owes_disk(&self) -> bool {
        !self.record.name.is_empty() && self.saved.as_ref() != Some(&self.record)
    }
}

impl Item {
    fn wanted(&self) -> Wanted<'_> {
        Wanted { uid: &self.uid, spec_hash: &self.spec_hash, spec: self.spec.as_ref() }
    }
}

impl OwnedPlace {
    fn borrow(&self) -> Place<'_> {
        match self {
            Self::Unseen => Place::Unseen,
            Self::Unavailable(why) => Place::Unavailable(why),
            Self::Seen(found) => Place::Seen(found.as_ref()),
        }
    }
}
