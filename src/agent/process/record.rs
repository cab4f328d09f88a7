//! Pure: what the agent remembers of one process, across its own restarts and those of the device.
//!
//! A record is written before each step that changes the device, with what is about to be, and after it, with what
//! came of it. So after a death at any point it names every place where something of the process may be.

use super::health::Verdict;
use super::identity::Identity;
use super::spec::BackendKind;
use crate::agent::artifact::{FetchError, Fetched, Stage};
use crate::agent::backend::{Activity, Exit, Found};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Runs that are over are remembered, so many of them.
const FINISHED_AT_MOST: usize = 16;

/// All that is remembered of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// `metadata.uid` under which it was wanted last.
    pub uid: String,
    /// Where something of it may be.
    pub places: BTreeSet<BackendKind>,
    /// The artifact that a spec was resolved to, once and for all.
    pub pinned: Option<Pinned>,
    /// How downloading the artifact of a spec went.
    pub download: Download,
    /// What was installed last, or was about to be.
    pub installed: Option<Version>,
    /// What was started last.
    pub started: Option<Version>,
    /// What ran well last.
    pub good: Option<Pinned>,
    /// Why the device did not let us install, start or stop it.
    pub problem: Option<Problem>,
    /// Runs that are over for good.
    pub finished: Vec<Finished>,
    /// How often it was restarted.
    pub restarts: Restarted,
    /// How the last run ended that nobody stopped.
    pub last_exit: Option<Exit>,
    /// The last verdict of the health check.
    pub verdict: Option<Verdict>,
}

/// A spec and the digest of its artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Hash of the spec.
    pub spec_hash: String,
    /// Digest of the artifact.
    pub digest: String,
}

/// Everything that is needed to start a process again without the gateway and without the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: String,
    /// Hash of the spec.
    pub spec_hash: String,
    /// What runs it.
    pub backend: BackendKind,
    /// Digest of its artifact; none: it was found running, and nobody knows what from.
    pub digest: Option<String>,
    /// The spec as the gateway sent it.
    pub spec: String,
}

/// How downloading the artifact of a spec went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Download {
    /// Hash of the spec.
    pub spec_hash: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was tried last, seconds since 1970.
    pub last_attempt: Option<i64>,
    /// Why it failed the last time.
    pub failure: Option<Failure>,
}

/// Why an artifact could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// It came to the device, and was not what it should be.
    pub downloaded: bool,
    /// The reason of the condition.
    pub reason: String,
    /// A sentence that names the cause.
    pub message: String,
}

/// Why the device did not let us do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Hash of the spec that was wanted then.
    pub spec_hash: String,
    /// A sentence that names the cause.
    pub message: String,
}

/// A run that is over for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: String,
    /// Hash of the spec.
    pub spec_hash: String,
    /// How it ended.
    pub exit: Exit,
}

/// Ends of runs, added up although a backend may begin to count anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Restarted {
    /// What the backend's count belongs to.
    pub epoch: String,
    /// The backend's count when it was seen last.
    pub seen: u64,
    /// Ends that nobody asked for, all epochs together.
    pub ends: u64,
    /// Those of them that were the end for good.
    pub last_ends: u64,
}

// === impl Record ===

impl Record {
    /// Nothing is known of it yet.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// The name of the process on the device.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::new(&self.namespace, &self.name)
    }

    /// The run of this spec that is over for good, if there is one.
    #[must_use]
    pub fn finished(&self, uid: &str, spec_hash: &str) -> Option<&Finished> {
        self.finished.iter().find(|finished| finished.uid == uid && finished.spec_hash == spec_hash)
    }

    /// The artifact of a spec, if it was resolved already.
    #[must_use]
    pub fn pinned(&self, spec_hash: &str) -> Option<&str> {
        let known = |pinned: &&Pinned| pinned.spec_hash == spec_hash;
        self.pinned.as_ref().filter(known).map(|pinned| pinned.digest.as_str())
    }

    /// How downloading the artifact of this spec went, if it was tried.
    #[must_use]
    pub fn download(&self, spec_hash: &str) -> Option<&Download> {
        Some(&self.download).filter(|download| download.attempts > 0 && download.spec_hash == spec_hash)
    }

    /// Artifacts that must stay on the device.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        let versions = [&self.installed, &self.started].into_iter().flatten().filter_map(|v| v.digest.as_deref());
        versions.chain([&self.pinned, &self.good].into_iter().flatten().map(|pinned| pinned.digest.as_str()))
    }

    /// How often it was restarted: ends that nobody asked for, but for those that nothing followed.
    #[must_use]
    pub fn restart_count(&self, activity: Option<&Activity>) -> u64 {
        let waiting = matches!(activity, Some(Activity::Ended(_) | Activity::Restarting(_)));
        self.restarts.ends.saturating_sub(self.restarts.last_ends + u64::from(waiting || self.is_over()))
    }

    /// Whether what was started last has ended for good.
    fn is_over(&self) -> bool {
        self.started.as_ref().is_some_and(|started| self.finished(&started.uid, &started.spec_hash).is_some())
    }

    /// Takes in what is seen of it; true when something is to be remembered.
    pub fn saw(&mut self, backend: BackendKind, found: &Found) -> bool {
        if found.epoch.is_empty() && found.exits == 0 {
            // It has never run, or nobody can say for now: no reason to count the same ends again later.
            return self.places.insert(backend);
        }
        let Restarted { epoch, seen, ends, .. } = &mut self.restarts;
        let mut news = self.places.insert(backend) || *epoch != found.epoch || *seen != found.exits;
        *ends += if *epoch == found.epoch { found.exits.saturating_sub(*seen) } else { found.exits };
        *seen = found.exits;
        if *epoch != found.epoch {
            epoch.clone_from(&found.epoch);
        }
        if found.last_exit.is_some() && self.last_exit != found.last_exit {
            self.last_exit.clone_from(&found.last_exit);
            news = true;
        }
        news
    }

    /// It is wanted under this uid. With another one it is another process: what it did before is not its history.
    /// True when something is to be remembered.
    pub fn wanted(&mut self, uid: &str) -> bool {
        if self.uid == uid {
            return false;
        }
        if !self.uid.is_empty() {
            self.finished.clear();
            self.restarts.ends = 0;
            self.restarts.last_ends = 0;
            self.last_exit = None;
            self.verdict = None;
        }
        uid.clone_into(&mut self.uid);
        true
    }
}

// === impl Record: steps ===

impl Record {
    /// A download begins.
    pub fn fetching(&mut self, spec_hash: &str, unix_seconds: i64) {
        if self.download.spec_hash != spec_hash {
            self.download = Download { spec_hash: spec_hash.to_owned(), ..Download::default() };
        }
        self.download.attempts = self.download.attempts.saturating_add(1);
        self.download.last_attempt = Some(unix_seconds);
    }

    /// The download that began last was none: whoever was to do it is not there.
    pub fn not_fetched(&mut self, spec_hash: &str) {
        if self.download.spec_hash == spec_hash {
            self.download.attempts = self.download.attempts.saturating_sub(1);
        }
    }

    /// A download has ended.
    pub fn fetched(&mut self, spec_hash: &str, outcome: &Result<Fetched, FetchError>) {
        let failure = match outcome {
            Ok(fetched) => {
                self.pinned = Some(Pinned { spec_hash: spec_hash.to_owned(), digest: fetched.digest.clone() });
                None
            }
            Err(error) => Some(Failure {
                downloaded: error.stage == Stage::Verify,
                reason: error.reason.to_owned(),
                message: error.message.clone(),
            }),
        };
        if self.download.spec_hash == spec_hash {
            self.download.failure = failure;
        }
    }

    /// A version is about to be installed.
    pub fn installing(&mut self, version: &Version) {
        self.places.insert(version.backend);
        self.installed = Some(version.clone());
    }

    /// A version was started: what was there before is gone.
    pub fn started(&mut self, version: &Version) {
        if self.is_over() {
            self.restarts.last_ends = self.restarts.last_ends.saturating_add(1);
        }
        self.problem = None;
        self.started = Some(version.clone());
    }

    /// It was found to run as it should, although nobody remembers having started it.
    pub fn adopted(&mut self, version: &Version) {
        self.places.insert(version.backend);
        self.installed = Some(version.clone());
        self.started(version);
    }

    /// Nothing of it is left in a place.
    pub fn removed(&mut self, backend: BackendKind) {
        self.places.remove(&backend);
        for version in [&mut self.installed, &mut self.started] {
            version.take_if(|version| version.backend == backend);
        }
    }

    /// A run is over for good.
    pub fn finish(&mut self, version: &Version, exit: &Exit) {
        if self.finished(&version.uid, &version.spec_hash).is_some() {
            return;
        }
        let excess = (self.finished.len() + 1).saturating_sub(FINISHED_AT_MOST);
        self.finished.drain(..excess);
        let (uid, spec_hash) = (version.uid.clone(), version.spec_hash.clone());
        self.finished.push(Finished { uid, spec_hash, exit: exit.clone() });
        self.problem = None;
        self.started = Some(version.clone());
    }

    /// It turned out well.
    pub fn well(&mut self) {
        let Some(Version { spec_hash, digest: Some(digest), .. }) = &self.started else { return };
        self.good = Some(Pinned { spec_hash: spec_hash.clone(), digest: digest.clone() });
    }
}

// === impl Version ===

impl Version {
    /// Whether it is the version of this uid and spec.
    #[must_use]
    pub fn is(&self, uid: &str, spec_hash: &str) -> bool {
        self.uid == uid && self.spec_hash == spec_hash
    }
}
