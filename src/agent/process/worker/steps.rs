//! Edge: the steps that are done about a process, each with what is remembered before and after it.

use super::Worker;
use crate::agent::artifact::{FetchError, Fetched};
use crate::agent::backend::{BackendError, Launch};
use crate::agent::process::backoff::{Restarts, download};
use crate::agent::process::launch::launch;
use crate::agent::process::reconcile::{Action, Which, version};
use crate::agent::process::record::{Problem, Version};
use crate::agent::process::spec::{BackendKind, Spec};
use crate::agent::process::supervisor::LOOK_TIME;
use crate::runtime::clock::unix_seconds;
use crate::wire::BACKEND_UNAVAILABLE;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::{info, warn};

/// How long a process has after SIGTERM, as in Kubernetes.
const GRACE: Duration = Duration::from_secs(30);
/// What a step may take beyond the grace.
const STEP_TIME: Duration = Duration::from_secs(60);

// === impl Worker: do ===

impl Worker {
    pub(super) async fn perform(self: Rc<Self>, action: Action, why: &'static str) {
        let done = match &action {
            Action::Fetch => return self.fetch(why),
            Action::Install(which) => self.install(*which, why).await,
            Action::Start(which) => self.start(*which, why).await,
            Action::Remove(kind) => self.remove(*kind, why).await,
            Action::Adopt | Action::Finish(..) => return self.take_note(&action, why),
            Action::Forget | Action::Hold(_) => return,
        };
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let current = matches!(action, Action::Install(Which::Current) | Action::Start(Which::Current));
        let wanted = state.wanted.as_ref().map(|item| item.spec_hash.clone()).unwrap_or_default();
        let in_vain = state.last.replace(action.clone()).as_ref() == Some(&action);
        let retries = if current { &mut state.current_retries } else { &mut state.retries };
        match done {
            Ok(()) if in_vain => retries.failed(now, rand::random()),
            Ok(()) => retries.forget(),
            Err(Trouble::Nothing) => {}
            Err(Trouble::Said(message)) => {
                retries.failed(now, rand::random());
                // What its backend kept may be gone.
                state.kept = None;
                if state.record.problem.as_ref().is_none_or(|problem| problem.message != message) {
                    warn!(process = %self.identity, why, message, "it cannot be done");
                }
                state.record.problem = Some(Problem { spec_hash: wanted, message });
            }
        }
        self.persist(state);
    }

    /// The version of a step, and everything that its backend has to know.
    fn prepare(&self, which: Which) -> Result<(Version, Launch), Trouble> {
        let state = self.state.borrow();
        let (version, spec) = match which {
            Which::Wanted => {
                let item = state.wanted.as_ref().ok_or(Trouble::Nothing)?;
                let version = version(&item.wanted(), &item.json, state.record.pinned(&item.spec_hash));
                (version.ok_or(Trouble::Nothing)?, item.spec.clone().map_err(|error| Trouble::Said(error.to_string()))?)
            }
            Which::Current => {
                let version = state.record.started.clone().ok_or(Trouble::Nothing)?;
                let spec = Spec::parse(&version.spec).map_err(|error| Trouble::Said(error.to_string()))?;
                (version, spec)
            }
        };
        let fetched = self.fetched(&version);
        let made = launch(&self.identity, &version, &spec, &fetched, &self.shared.device);
        Ok((version, made.map_err(|error| Trouble::Said(error.to_string()))?))
    }

    async fn install(&self, which: Which, why: &'static str) -> Result<(), Trouble> {
        let (version, launch) = self.prepare(which)?;
        let backend = self.shared.backend(version.backend).ok_or(Trouble::Nothing)?;
        info!(process = %self.identity, spec = version.spec_hash, why, "installing");
        {
            let mut state = self.state.borrow_mut();
            state.record.installing(&version);
            self.persist(&mut state);
        }
        self.act(version.backend, backend.install(&launch)).await
    }

    async fn start(&self, which: Which, why: &'static str) -> Result<(), Trouble> {
        let (version, launch) = self.prepare(which)?;
        let backend = self.shared.backend(version.backend).ok_or(Trouble::Nothing)?;
        info!(process = %self.identity, spec = version.spec_hash, why, "starting");
        self.act(version.backend, backend.start(&launch, GRACE)).await?;
        let mut state = self.state.borrow_mut();
        let another = state.record.started.as_ref().is_none_or(|old| !old.is(&version.uid, &version.spec_hash));
        if another {
            state.restarts = Restarts::default();
            self.shared.collect_soon();
        }
        // A restart is no attempt in vain.
        state.last = None;
        state.restarts.lives(Instant::now());
        state.record.started(&version);
        Ok(())
    }

    async fn remove(&self, kind: BackendKind, why: &'static str) -> Result<(), Trouble> {
        let backend = self.shared.backend(kind).ok_or(Trouble::Nothing)?;
        info!(process = %self.identity, backend = kind.as_str(), why, "removing");
        self.act(kind, backend.remove(&self.identity, GRACE)).await?;
        self.state.borrow_mut().record.removed(kind);
        Ok(())
    }

    fn take_note(&self, action: &Action, why: &'static str) {
        let mut state = self.state.borrow_mut();
        match action {
            Action::Adopt => {
                let item = state.wanted.clone();
                let version =
                    item.and_then(|item| version(&item.wanted(), &item.json, state.record.pinned(&item.spec_hash)));
                if let Some(version) = version {
                    info!(process = %self.identity, spec = version.spec_hash, why, "adopting");
                    state.record.adopted(&version);
                }
            }
            Action::Finish(which, exit) => {
                let item = state.wanted.clone();
                let version = match which {
                    Which::Current => state.record.started.clone(),
                    Which::Wanted => {
                        item.and_then(|item| version(&item.wanted(), &item.json, state.record.pinned(&item.spec_hash)))
                    }
                };
                if let Some(version) = version {
                    info!(process = %self.identity, spec = version.spec_hash, code = exit.code, why, "the run is over");
                    state.record.finish(&version, exit);
                }
            }
            _ => {}
        }
        self.persist(&mut state);
    }

    /// Does something about it, within a time, and looks what came of it.
    async fn act(
        &self,
        kind: BackendKind,
        doing: impl Future<Output = Result<(), BackendError>>,
    ) -> Result<(), Trouble> {
        self.acting.set(true);
        self.acts.set(self.acts.get() + 1);
        let outcome = timeout(GRACE + STEP_TIME, doing).await;
        if let Some(backend) = self.shared.backend(kind) {
            let found = timeout(LOOK_TIME, backend.find(&self.identity)).await;
            let silent = || BackendError::Unavailable(format!("the backend {} does not answer", kind.as_str()));
            self.shared.found(kind, &self.identity, found.unwrap_or_else(|_| Err(silent())));
        }
        self.acts.set(self.acts.get() + 1);
        self.acting.set(false);
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(BackendError::Unavailable(why))) => {
                self.shared.found(kind, &self.identity, Err(BackendError::Unavailable(why)));
                Err(Trouble::Nothing)
            }
            Ok(Err(error)) => Err(Trouble::Said(error.to_string())),
            Err(_) => Err(Trouble::Said(format!("the backend {} takes too long", kind.as_str()))),
        }
    }

    fn fetch(self: &Rc<Self>, why: &'static str) {
        let mut state = self.state.borrow_mut();
        let Some(item) = state.wanted.clone() else { return };
        let Ok(spec) = &item.spec else { return };
        info!(process = %self.identity, spec = item.spec_hash, url = spec.artifact.url, why, "fetching");
        state.record.fetching(&item.spec_hash, unix_seconds());
        self.persist(&mut state);
        let (worker, artifact, kind) = (self.clone(), spec.artifact.clone(), spec.execution.backend);
        let pinned = state.record.pinned(&item.spec_hash).map(str::to_owned);
        let task = spawn_local(async move {
            worker.shared.may_fetch().await;
            let backend = worker.shared.backend(kind);
            let own = backend.as_ref().and_then(|backend| backend.fetch(&artifact, pinned.as_deref()));
            let kept = own.is_some();
            let outcome = match own {
                Some(fetching) => fetching.await,
                None => worker.shared.store.fetch(&artifact, pinned.as_deref()).await,
            };
            match outcome {
                Err(error) if error.reason == BACKEND_UNAVAILABLE => worker.not_fetched(kind, &item.spec_hash, error),
                outcome => worker.fetched_now(&item.spec_hash, &outcome, kept),
            }
        });
        state.fetching = Some(task.abort_handle());
    }

    /// The backend that fetches for itself is away: that is no attempt, and is said as such.
    fn not_fetched(&self, kind: BackendKind, spec_hash: &str, error: FetchError) {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            state.fetching = None;
            state.record.not_fetched(spec_hash);
            self.persist(state);
        }
        self.shared.found(kind, &self.identity, Err(BackendError::Unavailable(error.message)));
        self.wake();
    }

    /// In one go with the end of the download, so that nobody collects it before it is remembered.
    fn fetched_now(&self, spec_hash: &str, outcome: &Result<Fetched, FetchError>, kept: bool) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.fetching = None;
        match outcome {
            Ok(fetched) => {
                info!(process = %self.identity, digest = fetched.digest, "the artifact is here");
                state.fetch_failures = 0;
                state.fetch_due = None;
                state.kept = kept.then(|| fetched.digest.clone());
            }
            Err(error) => {
                state.fetch_failures = state.fetch_failures.saturating_add(1);
                let pause = download(state.fetch_failures, error.retry_after, rand::random());
                state.fetch_due = Some(Instant::now() + pause);
                let known = state.record.download.failure.as_ref().is_some_and(|f| f.message == error.message);
                if !known {
                    warn!(process = %self.identity, reason = error.reason, %error, "the artifact cannot be had");
                }
            }
        }
        state.record.fetched(spec_hash, outcome);
        self.persist(state);
        self.wake();
    }
}

/// Why a step was not done.
enum Trouble {
    /// Nothing was tried: what it was about has changed.
    Nothing,
    /// What the operator should know.
    Said(String),
}
