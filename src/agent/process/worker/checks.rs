//! Edge: health checks of a process, begun when it is time.

use super::{Item, State, Worker};
use crate::agent::artifact::Fetched;
use crate::agent::backend::{Activity, BackendError, Checked, Found};
use crate::agent::process::health::Run;
use crate::agent::process::identity::Identity;
use crate::agent::process::launch::{check_command, launch};
use crate::agent::process::record::Version;
use crate::agent::process::spec::{BackendKind, Spec};
use crate::agent::process::supervisor::LOOK_TIME;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::{debug, info, warn};

// === impl Worker: health ===

impl Worker {
    /// Begins a check when it is time; says when it is time next.
    pub(super) fn check_health(
        self: &Rc<Self>,
        now: Instant,
        state: &mut State,
        found: Option<&Found>,
    ) -> Option<Instant> {
        let (found, run) = (found?, state.health.run()?);
        let running = state.running_version(found);
        let check = running.as_ref().and_then(|(_, spec)| spec.health_check.clone());
        let due = state.health.due(check.as_ref());
        let (Some((version, spec)), Some(check)) = (running, check) else { return due };
        if state.checking.is_some() {
            return None; // its end wakes
        }
        if due.is_some_and(|due| due > now) {
            return due;
        }
        let fetched = self.fetched(&version);
        let backend = self.shared.backend(version.backend)?;
        let launch = launch(&self.identity, &version, &spec, &fetched, &self.shared.device).ok()?;
        state.health.begin(now, &check);
        let worker = self.clone();
        let task = spawn_local(async move {
            let (limit, command) = (check.timeout(), check_command(&check.exec.command, &launch.artifact));
            // The backend ends it; this is for a backend that hangs.
            let outcome = timeout(limit + LOOK_TIME, backend.check(&launch, &command, limit)).await;
            let outcome = match outcome {
                Ok(Ok(checked)) => Some(checked),
                Ok(Err(BackendError::Unavailable(_))) => None,
                Ok(Err(error)) => Some(Checked::Failed(error.to_string())),
                Err(_) => Some(Checked::Failed("the check does not end".to_owned())),
            };
            let mut state = worker.state.borrow_mut();
            state.checking = None;
            if let Some(outcome) = outcome
                && state.health.checked(run, outcome, &check)
            {
                state.take_verdict(&worker.identity);
            }
            drop(state);
            worker.wake();
        });
        state.checking = Some(task.abort_handle());
        None
    }

    /// The artifact of a version that is installed.
    pub(super) fn fetched(&self, version: &Version) -> Fetched {
        let digest = version.digest.clone().unwrap_or_default();
        let kept = version.backend == BackendKind::Container;
        let there = Some(&digest).filter(|_| !kept).and_then(|digest| self.shared.store.have(digest));
        there.unwrap_or(Fetched { digest, root: None })
    }
}

// === impl State ===

impl State {
    pub(super) fn judge_health(&mut self, now: Instant, found: Option<&Found>, item: Option<&Item>) {
        let run = match found.map(|found| &found.activity) {
            Some(Activity::Running { pid, started }) => Some(Run { pid: *pid, started: *started }),
            _ => None,
        };
        if self.health.run() != run
            && let Some(task) = self.checking.take()
        {
            task.abort();
        }
        self.health.lives(now, run);
        let Some(found) = found else { return };
        let checked = self.running_version(found).is_some_and(|(_, spec)| spec.health_check.is_some());
        if !checked && self.health.settle(now) {
            let name = item.map_or("", |item| item.spec_hash.as_str());
            debug!(spec = name, "it has run for a while");
            self.record.verdict = self.health.verdict().cloned();
            self.record.well();
        }
    }

    fn take_verdict(&mut self, identity: &Identity) {
        self.record.verdict = self.health.verdict().cloned();
        let Some(verdict) = &self.record.verdict else { return };
        if verdict.healthy {
            info!(process = %identity, "it is healthy");
            self.record.well();
        } else {
            warn!(process = %identity, message = verdict.message, "it is not healthy");
        }
    }

    /// Reads the spec of what was started last, if that is another one than before.
    pub(super) fn know_current(&mut self) {
        let Some(version) = &self.record.started else { return self.current = None };
        if self.current.as_ref().is_none_or(|(hash, _)| *hash != version.spec_hash) {
            // It was read before it was started.
            self.current = Spec::parse(&version.spec).ok().map(|spec| (version.spec_hash.clone(), Rc::new(spec)));
        }
    }

    /// What was started last, if that is what lives.
    fn running_version(&self, found: &Found) -> Option<(Version, Rc<Spec>)> {
        let version = self.record.started.as_ref()?;
        let (hash, spec) = self.current.as_ref()?;
        let same = found.running.as_ref().is_none_or(|running| running == hash) && *hash == version.spec_hash;
        same.then(|| (version.clone(), spec.clone()))
    }
}
