//! Pure: what is done next about one process.
//!
//! What is wanted, what is remembered and what is there come in; one step comes out, with its reason. The step is done,
//! one looks again, and asks again: there is no plan that could be cut off in the middle. The rules:
//!
//! - The old version runs until the new one is fetched, checked and installed; then there is one restart.
//! - There is never a second copy: what is under another backend goes before the new one is started.
//! - A run that is over for good (per uid and spec) is never started again.
//! - Nothing is stopped because something is not known: a backend that does not answer, a list that has not come.

use super::record::{Record, Version};
use super::spec::{BackendKind, RestartPolicy, Spec, SpecError};
use crate::agent::backend::{Activity, Exit, Found};
use std::collections::HashSet;
use std::time::Instant;

/// What the device should run.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: &'a str,
    /// Hash of the spec.
    pub spec_hash: &'a str,
    /// The spec, or why it cannot be run.
    pub spec: Result<&'a Spec, &'a SpecError>,
}

/// What is known of a process under one backend.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Nobody has looked yet.
    Unseen,
    /// The device does not have this backend, or it does not answer.
    Unavailable(&'a str),
    /// Looked at: what is there.
    Seen(Option<&'a Found>),
}

/// By whose word something that is not wanted is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// Nobody's: nothing is known of what the device should run.
    Nobody,
    /// The state file's. It may be older than the last good answer, when the disk refused that one: it says what was
    /// dropped, but that something is not in it says nothing.
    Remembered,
    /// A good answer's that came since the agent was started.
    Heard,
}

/// An artifact, as far as it is needed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// It is on the device, whole and checked.
    Present,
    /// It is being fetched.
    Coming,
    /// It is not there.
    Missing,
}

/// Everything that a step follows from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What is wanted; none: it is not.
    pub wanted: Option<Wanted<'a>>,
    /// By whose word it is not wanted.
    pub word: Word,
    /// Uids of what was dropped lately, as the state file remembers it.
    pub dropped: &'a HashSet<String>,
    /// What is remembered.
    pub record: &'a Record,
    /// What is there, under each backend.
    pub places: &'a [(BackendKind, Place<'a>)],
    /// The artifact of what is wanted.
    pub supply: Supply,
    /// Whether the artifact of what was started last is still there.
    pub current_present: bool,
    /// Policy of what was started last.
    pub current_policy: RestartPolicy,
    /// Not to be downloaded before.
    pub fetch_due: Option<Instant>,
    /// Not to be started again before, after it has ended.
    pub restart_due: Option<Instant>,
    /// Nothing else to be tried again before, for what is wanted.
    pub retry_due: Option<Instant>,
    /// The same for what was started last.
    pub current_retry_due: Option<Instant>,
    /// Now.
    pub now: Instant,
}

/// Of two versions, which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// What is wanted.
    Wanted,
    /// What was started last, and is to run until the other one can.
    Current,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin to fetch the artifact of what is wanted; other steps go on meanwhile.
    Fetch,
    /// Install a version under its backend; what runs goes on running.
    Install(Which),
    /// Start a version that is installed, in place of whatever runs under this name.
    Start(Which),
    /// It runs as it should, and is to be remembered.
    Adopt,
    /// Stop what runs there and remove all of it.
    Remove(BackendKind),
    /// The run is over for good: to be remembered.
    Finish(Which, Exit),
    /// Nothing is wanted and nothing is there: nothing needs to be remembered.
    Forget,
    /// Nothing, until something changes or it is that late.
    Hold(Option<Instant>),
}

/// A step and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Why, for the log.
    pub why: &'static str,
}

/// What is done next.
#[must_use]
pub fn next(situation: &Situation<'_>) -> Step {
    let s = situation;
    match &s.wanted {
        None => s.unwanted(),
        Some(wanted) => match wanted.spec {
            Err(_) => s.keep(None, "the spec cannot be run"),
            Ok(spec) => s.pursue(wanted, spec),
        },
    }
}

/// Whether a run that ended so is over for good.
#[must_use]
pub fn is_over(policy: RestartPolicy, exit: &Exit) -> bool {
    match policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit.code == 0,
        RestartPolicy::Never => true,
    }
}

/// Whether something lives, or is brought back to life by its backend.
fn is_live(activity: &Activity) -> bool {
    matches!(activity, Activity::Running { .. } | Activity::Restarting(_))
}

fn step(action: Action, why: &'static str) -> Step {
    Step { action, why }
}

fn hold(why: &'static str) -> Step {
    step(Action::Hold(None), why)
}

// === impl Situation ===

impl<'a> Situation<'a> {
    fn place(&self, kind: BackendKind) -> Place<'a> {
        let place = self.places.iter().find(|(k, _)| *k == kind).map(|(_, place)| *place);
        place.unwrap_or(Place::Unavailable("this agent does not have the backend"))
    }

    fn found(&self) -> impl Iterator<Item = (BackendKind, &'a Found)> {
        self.places.iter().filter_map(|(kind, place)| match place {
            Place::Seen(Some(found)) => Some((*kind, *found)),
            _ => None,
        })
    }

    /// A step that must wait for its time.
    fn at(&self, due: Option<Instant>, action: Action, why: &'static str, waiting: &'static str) -> Step {
        match due.filter(|due| *due > self.now) {
            Some(due) => step(Action::Hold(Some(due)), waiting),
            None => step(action, why),
        }
    }

    /// Something of the process may be where nobody can look.
    fn hidden(&self, but: Option<BackendKind>) -> Option<Step> {
        let places = self.record.places.iter().filter(|kind| Some(**kind) != but);
        places.copied().find_map(|kind| match self.place(kind) {
            Place::Unseen => Some(hold("what is on the device is not known yet")),
            Place::Unavailable(_) => Some(hold("something of it may be under a backend that does not answer")),
            Place::Seen(_) => None,
        })
    }

    // --- what is not wanted

    fn unwanted(&self) -> Step {
        let may = |uid: &str| match self.word {
            Word::Heard => true,
            Word::Remembered => self.dropped.contains(uid),
            Word::Nobody => false,
        };
        if let Some((kind, _)) = self.found().find(|(_, found)| may(&found.uid)) {
            return self.at(self.retry_due, Action::Remove(kind), "it is no longer wanted", "removing it failed");
        }
        if self.found().next().is_some() {
            return hold("it carries our mark, but no answer has come yet that lacks it");
        }
        match self.hidden(None) {
            Some(step) => step,
            // What is remembered of it, a run that is over for one, is needed if it is wanted after all.
            None if !may(&self.record.uid) => hold("no answer has come yet that lacks it"),
            None => step(Action::Forget, "it is not wanted and nothing of it is there"),
        }
    }

    // --- what is wanted

    fn pursue(&self, wanted: &Wanted<'_>, spec: &Spec) -> Step {
        if self.record.finished(wanted.uid, wanted.spec_hash).is_some() {
            return self.finished(wanted);
        }
        let kind = spec.execution.backend;
        let found = match self.place(kind) {
            Place::Seen(found) => found,
            Place::Unseen => return hold("what is on the device is not known yet"),
            Place::Unavailable(_) => return self.keep(None, "the device does not have the backend"),
        };
        let ready = found.filter(|found| found.uid == wanted.uid && found.installed == wanted.spec_hash);
        let Some(found) = ready else { return self.prepare("it is not installed") };
        let elsewhere = self.found().find(|(other, _)| *other != kind);
        let mine = self.is_run_of(found, wanted.uid, wanted.spec_hash);
        if !(mine && is_live(&found.activity)) && self.supply != Supply::Present {
            // What is to be started has to be there; until then the old one stays.
            if !matches!(&found.activity, Activity::Ended(exit) if mine && is_over(spec.restart_policy, exit)) {
                return self.prepare("its artifact is not on the device");
            }
        }
        if let Some((other, _)) = elsewhere {
            let why = "the new version is installed under another backend, and there must not be two";
            return self.at(self.retry_due, Action::Remove(other), why, "removing the old one failed");
        }
        if let Some(step) = self.hidden(Some(kind)) {
            return step;
        }
        // With nothing remembered it may be anywhere.
        if self.record.started.is_none() && self.places.iter().any(|(_, place)| matches!(place, Place::Unseen)) {
            return hold("what is on the device is not known yet");
        }
        let started = self.record.started.as_ref().is_some_and(|v| v.is(wanted.uid, wanted.spec_hash));
        let start = |why| self.at(self.retry_due, Action::Start(Which::Wanted), why, "starting it failed");
        match &found.activity {
            Activity::Running { .. } | Activity::Restarting(_) if mine && started => hold("it runs as it should"),
            Activity::Running { .. } | Activity::Restarting(_) if mine => step(Action::Adopt, "it runs as it should"),
            Activity::Ended(exit) if mine && is_over(spec.restart_policy, exit) => {
                step(Action::Finish(Which::Wanted, exit.clone()), "it has ended, and by its policy stays so")
            }
            Activity::Ended(_) if mine => {
                let due = self.restart_due.max(self.retry_due);
                self.at(due, Action::Start(Which::Wanted), "it has ended", "it has ended and is restarted in a while")
            }
            // It ran and does not, and how it ended was not written down; after a reboot nothing has to be waited for.
            Activity::Stopped if started => {
                let due = self.restart_due.max(self.retry_due);
                let waiting = "it does not run any more and is restarted in a while";
                self.at(due, Action::Start(Which::Wanted), "it is installed and does not run", waiting)
            }
            Activity::Stopped => start("it is installed and does not run"),
            _ => start("another version runs, and the new one is installed"),
        }
    }

    /// What is wanted is over; what else lives is not wanted.
    fn finished(&self, wanted: &Wanted<'_>) -> Step {
        let other = self
            .found()
            .find(|(_, found)| is_live(&found.activity) && !self.is_run_of(found, wanted.uid, wanted.spec_hash));
        match other {
            Some((kind, _)) => {
                let why = "what is wanted is over, and another version runs";
                self.at(self.retry_due, Action::Remove(kind), why, "removing it failed")
            }
            None => hold("the run is over for good"),
        }
    }

    /// Whether what lives, or lived last, was started from this version.
    fn is_run_of(&self, found: &Found, uid: &str, spec_hash: &str) -> bool {
        let started = self.record.started.as_ref();
        match &found.running {
            // The mark says nothing of the uid; memory may.
            Some(hash) => hash == spec_hash && started.is_none_or(|v| v.uid == uid || v.spec_hash != spec_hash),
            None => started.is_some_and(|version| version.is(uid, spec_hash)),
        }
    }

    fn prepare(&self, why: &'static str) -> Step {
        match self.supply {
            Supply::Present => match self.retry_due.filter(|due| *due > self.now) {
                Some(due) => self.keep(Some(due), "installing or starting it failed"),
                None => step(Action::Install(Which::Wanted), why),
            },
            Supply::Coming => self.keep(None, "its artifact is being fetched"),
            Supply::Missing => match self.fetch_due.filter(|due| *due > self.now) {
                Some(due) => self.keep(Some(due), "fetching its artifact failed"),
                None => step(Action::Fetch, "its artifact is not on the device"),
            },
        }
    }

    /// Keeps the old version alive until the new one can take its place.
    fn keep(&self, until: Option<Instant>, why: &'static str) -> Step {
        let wait = step(Action::Hold(until), why);
        let Some(current) = &self.record.started else { return wait };
        let Place::Seen(found) = self.place(current.backend) else { return wait };
        if self.record.finished(&current.uid, &current.spec_hash).is_some() {
            return wait;
        }
        let mine = found.is_some_and(|found| self.is_run_of(found, &current.uid, &current.spec_hash));
        let due = match found.map(|found| &found.activity) {
            Some(activity) if is_live(activity) => return wait,
            Some(Activity::Ended(exit)) if mine && is_over(self.current_policy, exit) => {
                return step(Action::Finish(Which::Current, exit.clone()), "it has ended, and by its policy stays so");
            }
            Some(Activity::Ended(_) | Activity::Stopped) => self.restart_due.max(self.current_retry_due),
            _ => self.current_retry_due,
        };
        if !self.current_present || self.hidden(Some(current.backend)).is_some() {
            return wait;
        }
        // Something of it elsewhere may be another copy.
        if self.found().any(|(kind, found)| kind != current.backend && is_live(&found.activity)) {
            return wait;
        }
        let installed = found.is_some_and(|found| found.uid == current.uid && found.installed == current.spec_hash);
        let action = if installed { Action::Start(Which::Current) } else { Action::Install(Which::Current) };
        match due.filter(|due| *due > self.now) {
            Some(due) => step(Action::Hold(Some(until.map_or(due, |until| until.min(due)))), why),
            None => step(action, "the new version cannot run yet, and the old one does not"),
        }
    }
}

/// The version that is wanted.
#[must_use]
pub fn version(wanted: &Wanted<'_>, spec_json: &str, digest: Option<&str>) -> Option<Version> {
    let spec = wanted.spec.ok()?;
    Some(Version {
        uid: wanted.uid.to_owned(),
        spec_hash: wanted.spec_hash.to_owned(),
        backend: spec.execution.backend,
        digest: digest.map(str::to_owned),
        spec: spec_json.to_owned(),
    })
}

#[cfg(test)]
mod tests;
