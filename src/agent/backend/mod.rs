//! What runs processes on the device. One trait, one file for each kind.

pub mod accounts;
pub mod container;
pub mod exec;
pub mod files;
pub mod fits;
pub mod footprint;
pub mod initd;
pub mod journal;
pub mod launcher;
pub mod proc;
pub mod program;
pub mod runs;
pub mod script;
pub mod shim;
pub mod show;
pub mod systemctl;
pub mod systemd;
pub mod unit;

use super::artifact::{FetchError, Fetched};
use super::process::identity::Identity;
use super::process::spec::{Artifact, BackendKind, RestartPolicy};
use std::collections::HashSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// What a call of a backend comes to. The agent has one thread, so none has to be sent to another.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Everything that a backend has to know to run a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The stable name; a backend's own names are made from it.
    pub identity: Identity,
    /// `metadata.uid` of the DeviceProcess: with it what is ours is marked.
    pub uid: String,
    /// Hash of the spec that this was made from: the second mark.
    pub spec_hash: String,
    /// The program, an absolute path; for a container as the spec says it.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, expanded.
    pub env: Vec<(String, String)>,
    /// Its working directory, an absolute path; none: the backend's own choice.
    pub working_dir: Option<String>,
    /// The user's name or number; none: root, for a container the image's.
    pub user: Option<String>,
    /// What happens when it has ended.
    pub restart_policy: RestartPolicy,
    /// The artifact that it runs from.
    pub artifact: Fetched,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code; ended by a signal: 128 and its number.
    pub code: i32,
    /// In one word or two, as Kubernetes says it: `Completed`, `Error`, `OOMKilled`, `Signal SIGSEGV`.
    pub reason: String,
}

/// What a process of ours does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// It is there and has not been started since, or was stopped.
    Stopped,
    /// It lives.
    Running {
        /// Its process id on the device.
        pid: i64,
        /// When it was started, seconds since 1970.
        started: i64,
    },
    /// It has ended, and the backend starts it again by itself.
    Restarting(Exit),
    /// It has ended and stays so.
    Ended(Exit),
}

/// A process of ours, as it is found on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub identity: Identity,
    /// The mark: whose it is.
    pub uid: String,
    /// What is installed: it is what the next start starts.
    pub installed: String,
    /// Hash of the spec that the live process, or the last one, was started from; none when nothing was started or
    /// nobody knows.
    pub running: Option<String>,
    /// What it does.
    pub activity: Activity,
    /// The ends of runs that nobody asked for, since it was installed first, as far as the backend knows them: it only
    /// grows as long as `epoch` is the same.
    pub exits: u64,
    /// Changes when `exits` begins anew.
    pub epoch: String,
    /// How the last run ended that nobody stopped.
    pub last_exit: Option<Exit>,
}

/// Outcome of one health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Exit code 0.
    Passed,
    /// Anything else, with what the operator should see: exit code or timeout, and the end of the output.
    Failed(String),
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The device does not have this backend (now): nothing was tried.
    #[error("{0}")]
    Unavailable(String),
    /// What the operator asked for cannot be: no such command, no such user. A sentence for a condition.
    #[error("{0}")]
    Refused(String),
    /// It was tried and failed; another time it may work.
    #[error("{0}")]
    Failed(String),
}

/// Runs processes: systemd, init scripts, containers. Every call may be repeated, and be cut off at any point, also by
/// the agent's own end; called again it goes on from what is there. What does not carry our marks is never touched.
pub trait Backend {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// Whether the device has it.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with what is missing.
    fn probe(&self) -> Pending<'_, Result<(), BackendError>>;

    /// Everything of ours that is there, whoever started it and whatever is remembered.
    fn list(&self) -> Pending<'_, Result<Vec<Found>, BackendError>>;

    /// One of them.
    fn find<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<Option<Found>, BackendError>>;

    /// Fetches artifacts of a kind that the backend keeps itself, such as images; none: the agent's store does it.
    fn fetch<'a>(
        &'a self,
        _artifact: &'a Artifact,
        _pinned: Option<&'a str>,
    ) -> Option<Pending<'a, Result<Fetched, FetchError>>> {
        None
    }

    /// Prepares everything that the next start needs. What runs goes on running.
    fn install<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<(), BackendError>>;

    /// Starts what is installed. If something of ours runs under this name it is stopped first, gracefully, and the
    /// time between is as short as can be. When this returns it runs, or has run.
    fn start<'a>(&'a self, launch: &'a Launch, grace: Duration) -> Pending<'a, Result<(), BackendError>>;

    /// Stops it and keeps it from being started again by itself: SIGTERM, after the grace SIGKILL, to all of it. It
    /// stays installed.
    fn stop<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>>;

    /// Stops it if it runs and removes everything of it.
    fn remove<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>>;

    /// Runs a health check where the process runs, as its user; all of the check is killed when the time is up.
    fn check<'a>(
        &'a self,
        launch: &'a Launch,
        command: &'a [String],
        timeout: Duration,
    ) -> Pending<'a, Result<Checked, BackendError>>;

    /// Removes artifacts that the backend keeps itself and that are not in `keep` (digests), and what calls that were cut
    /// off have left. What cannot be removed now stays for the next time.
    fn collect<'a>(&'a self, _keep: &'a HashSet<String>) -> Pending<'a, ()> {
        Box::pin(async {})
    }

    /// Returns when something may have happened to a process of ours, at once or a little later, and costs nothing
    /// while nothing happens.
    fn changed(&self) -> Pending<'_, ()>;
}

/// The agent's own that backends use: its folders, and for whom it runs what it runs.
#[derive(Debug, Clone)]
pub struct Folders {
    /// `/var/lib/apollo/agent`, mode 0700.
    pub state: PathBuf,
    /// The third mark: the name of the device. What the agent of another one runs on the same machine is not ours. Empty:
    /// marks of any device are ours, and none is made.
    pub device: String,
}

/// All backends that this agent knows, whether the device has them or not.
#[must_use]
pub fn all(folders: &Folders, containers: container::Options) -> Vec<Box<dyn Backend>> {
    vec![
        Box::new(systemd::Systemd::new(folders)),
        Box::new(initd::Initd::new(folders.clone())),
        Box::new(container::Containers::new(folders, containers)),
    ]
}
