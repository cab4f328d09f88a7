//! Edge: what a unit's state and its journal together say of a process, and what the hooks could not write of it.

use super::super::files::failed;
use super::super::journal::{Journal, Line};
use super::super::proc::Stat;
use super::super::show::{Phase, Shown};
use super::super::unit::Marks;
use super::super::{Activity, BackendError, Found, Launch};
use super::Systemd;
use crate::agent::process::identity::Identity;
use crate::runtime::clock::unix_seconds;
use std::fs;
use std::os::unix::fs::MetadataExt;

impl Systemd {
    /// What is known of one of ours. The journal is read last: it is then at least as new as what systemd has said.
    /// One that cannot be read leaves open what has been; what runs is known all the same.
    pub(super) fn judge(&self, identity: &Identity, marks: Marks, shown: &Shown) -> Found {
        let mut journal = self.journal(identity);
        let passing = shown.phase() == Phase::Passing;
        if !passing && journal.as_ref().is_some_and(|journal| self.complete(identity, shown, journal)) {
            journal = self.journal(identity);
        }
        let unknown = journal.is_none();
        let journal = journal.unwrap_or_default();
        let started = Stat::of(shown.pid).and_then(|stat| stat.mark().started()).unwrap_or(0);
        let stopped = self.stop_mark(identity).exists();
        let mut activity = shown.activity(&journal, stopped, started);
        // Otherwise what is over would be taken for what has never run, and started again.
        if unknown
            && !stopped
            && activity == Activity::Stopped
            && let Some(exit) = shown.exit()
        {
            activity = Activity::Ended(exit);
        }
        let running = match &activity {
            Activity::Running { started, .. } => self.running(identity, shown, &journal, *started, &marks),
            _ => journal.last_run().map(|run| run.spec_hash.clone()),
        };
        Found {
            identity: identity.clone(),
            uid: marks.uid,
            installed: marks.spec_hash,
            running,
            activity,
            exits: journal.exits(),
            epoch: journal.epoch().to_owned(),
            last_exit: journal.last_exit(),
        }
    }

    /// The journal of a process; none: it cannot be read, which is said once.
    fn journal(&self, identity: &Identity) -> Option<Journal> {
        match self.runs.read(identity) {
            Ok(journal) => {
                self.unreadable.borrow_mut().remove(identity);
                Some(journal)
            }
            Err(error) => {
                self.complain(identity, &failed(&self.runs.file(identity), "read", &error));
                None
            }
        }
    }

    /// Says once that something about a process cannot be read.
    pub(super) fn complain(&self, identity: &Identity, error: &BackendError) {
        if self.unreadable.borrow_mut().insert(identity.clone()) {
            tracing::warn!(%identity, %error, "not all is known of a process");
        }
    }

    /// What the live process was started from.
    fn running(&self, identity: &Identity, shown: &Shown, journal: &Journal, at: i64, marks: &Marks) -> Option<String> {
        if let Some(run) = journal.run(&shown.invocation) {
            return Some(run.spec_hash.clone());
        }
        if let Some((invocation, hash)) = self.started.borrow().get(identity)
            && *invocation == shown.invocation
        {
            return Some(hash.clone());
        }
        // Its journal could not be written. When nothing was installed since, it is what is installed.
        let written = fs::metadata(self.unit_file(identity)).ok()?.mtime();
        (written < at).then(|| marks.spec_hash.clone())
    }

    /// Adds an end that the hook could not write. Whether there was one.
    fn complete(&self, identity: &Identity, shown: &Shown, journal: &Journal) -> bool {
        if matches!(shown.phase(), Phase::Runs(_)) || self.stop_mark(identity).exists() {
            return false;
        }
        // systemd forgets a unit that has ended well.
        let forgotten = shown.invocation.is_empty();
        let own = self.started.borrow().get(identity).map(|(invocation, _)| invocation.clone());
        let Some(invocation) = (if forgotten { own } else { Some(shown.invocation.clone()) }) else { return false };
        let end = shown.end().or_else(|| forgotten.then(|| ("success".to_owned(), "0".to_owned())));
        match (journal.run(&invocation).is_some_and(|run| run.exit.is_none()), end) {
            (true, Some((result, code))) => {
                self.note(identity, &Line::Exit { result, code, at: unix_seconds(), invocation });
                true
            }
            _ => false,
        }
    }

    /// Adds a start that the hook could not write: it may have been kept from it by the process's own environment, which
    /// is the hooks' as well. `before`: the run before this one.
    pub(super) fn complete_start(&self, launch: &Launch, shown: Shown, before: Option<&str>) {
        let identity = &launch.identity;
        let journal = self.runs.read(identity).unwrap_or_default();
        let mut invocation = shown.invocation;
        if invocation.is_empty() {
            // It is over and forgotten already.
            if journal.last_run().map(|run| run.invocation.as_str()) != before {
                return;
            }
            invocation = format!("{:032x}", rand::random::<u128>());
        }
        let spec_hash = launch.spec_hash.clone();
        if journal.run(&invocation).is_none() {
            let (spec_hash, invocation) = (spec_hash.clone(), invocation.clone());
            self.note(identity, &Line::Start { spec_hash, at: unix_seconds(), invocation });
        }
        self.started.borrow_mut().insert(identity.clone(), (invocation, spec_hash));
    }

    pub(super) fn note(&self, identity: &Identity, line: &Line) {
        if let Err(error) = self.runs.append(identity, line) {
            tracing::warn!(%identity, %error, "no journal can be kept");
        }
    }
}
