//! Pure: what the engine says about our containers, and what that means.

use super::config::{ARTIFACT, DEVICE, IDENTITY, SEQUENCE, SPEC_HASH, UID, is_stopped};
use super::tally::Tally;
use crate::agent::backend::{Activity, Exit, Found, Launch};
use crate::agent::process::identity::Identity;
use crate::wire::time::{self, UnixTime};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Of the answer to `GET /containers/{id}/json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The id of its image.
    #[serde(default)]
    pub image: String,
    /// Its name, with a slash before it.
    #[serde(default)]
    pub name: String,
    /// How often the engine has started it again by itself, since somebody started it or the engine came up.
    #[serde(default)]
    pub restart_count: u64,
    /// What it does.
    pub state: State,
    /// What it was made with.
    pub config: Config,
    /// How it is run.
    #[serde(default)]
    pub host_config: HostConfig,
}

/// What a container does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    /// `created`, `running`, `restarting`, `paused`, `exited`, `removing`, `dead`; Podman has some more.
    #[serde(default)]
    pub status: String,
    /// 0 when it does not run.
    #[serde(default)]
    pub pid: i64,
    /// Of the last run.
    #[serde(default)]
    pub exit_code: i32,
    /// The kernel has killed it for want of memory.
    #[serde(default, rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Why it could not be started.
    #[serde(default, deserialize_with = "or_default")]
    pub error: String,
    /// RFC 3339 with up to nine digits; of year 1 when it has never been started.
    #[serde(default, deserialize_with = "or_default")]
    pub started_at: String,
}

/// What a container was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// The labels, ours among them.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The environment, the image's included.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The working directory.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
}

/// How a container is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// When the engine starts it again.
    #[serde(default)]
    pub restart_policy: EngineRestart,
}

/// When the engine starts a container again by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineRestart {
    /// `no`, `on-failure`, `always`, `unless-stopped`
    #[serde(default)]
    pub name: String,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

// === impl Container ===

impl Container {
    fn label(&self, key: &str) -> &str {
        self.config.labels.get(key).map_or("", String::as_str)
    }

    /// Whose it is, if it carries our marks.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        Identity::parse(self.label(IDENTITY))
    }

    /// The device that it runs for; empty: any.
    #[must_use]
    pub fn device(&self) -> &str {
        self.label(DEVICE)
    }

    /// Whether it is for the agent of this device to keep; empty: of any.
    #[must_use]
    pub fn is_of(&self, device: &str) -> bool {
        device.is_empty() || self.device().is_empty() || self.device() == device
    }

    /// Later ones have higher numbers.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.label(SEQUENCE).parse().unwrap_or(0)
    }

    /// The name without the slash.
    #[must_use]
    pub fn plain_name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// Whether it was made for this.
    #[must_use]
    pub fn is_for(&self, launch: &Launch) -> bool {
        let wanted = [(UID, &launch.uid), (SPEC_HASH, &launch.spec_hash), (ARTIFACT, &launch.artifact.digest)];
        !self.is_going() && wanted.iter().all(|(key, value)| self.label(key) == **value)
    }

    /// When it was started last; none: never.
    #[must_use]
    pub fn started_nanos(&self) -> Option<i64> {
        let UnixTime { seconds, nanos } = time::parse(&self.state.started_at)?;
        // The year 1 stands for never; a clock that was never set says 1970.
        let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(nanos))?;
        (seconds >= 0).then_some(nanos)
    }

    /// It has been started at least once.
    #[must_use]
    pub fn was_started(&self) -> bool {
        self.started_nanos().is_some() || self.is_alive()
    }

    /// There may be a process of it now, or soon without anybody doing anything.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state.status.as_str(), "running" | "restarting" | "paused" | "stopping")
    }

    /// Its name says that its last run was stopped, or is about to be.
    #[must_use]
    pub fn is_being_stopped(&self) -> bool {
        self.started_nanos().is_some_and(|started| is_stopped(self.plain_name(), started))
    }

    /// Nothing can be done with it any more but to remove it.
    fn is_going(&self) -> bool {
        matches!(self.state.status.as_str(), "removing" | "dead")
    }

    fn exit(&self) -> Exit {
        exit(self.state.exit_code, self.state.oom_killed)
    }

    /// What it does.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let Some(started) = self.started_nanos() else { return Activity::Stopped };
        let restarting = self.state.status == "restarting";
        if self.is_alive() && !restarting {
            return Activity::Running { pid: self.state.pid, started: started / 1_000_000_000 };
        }
        if restarting {
            return Activity::Restarting(self.exit());
        }
        if self.is_being_stopped() {
            return Activity::Stopped;
        }
        Activity::Ended(self.exit())
    }
}

/// What runs, or ran last, under a name.
#[must_use]
pub fn live(containers: &[Container]) -> Option<&Container> {
    let started = containers.iter().filter(|c| c.was_started());
    started.max_by_key(|c| (c.is_alive(), c.sequence()))
}

/// What the next start starts.
#[must_use]
pub fn installed(containers: &[Container]) -> Option<&Container> {
    containers.iter().filter(|c| !c.is_going()).max_by_key(|c| c.sequence())
}

/// What the containers of one identity come to, with the ends that were counted.
#[must_use]
pub fn found(identity: &Identity, containers: &[Container], tally: &Tally) -> Option<Found> {
    let installed = installed(containers)?;
    let live = live(containers);
    Some(Found {
        identity: identity.clone(),
        uid: installed.label(UID).to_owned(),
        installed: installed.label(SPEC_HASH).to_owned(),
        running: live.map(|c| c.label(SPEC_HASH).to_owned()),
        activity: live.map_or(Activity::Stopped, Container::activity),
        exits: tally.exits(),
        epoch: tally.epoch.clone(),
        last_exit: tally.last_exit.clone(),
    })
}

/// How a run ended, from its exit code.
#[must_use]
pub fn exit(code: i32, oom_killed: bool) -> Exit {
    let reason = match code {
        _ if oom_killed => "OOMKilled".to_owned(),
        0 => "Completed".to_owned(),
        // Engines do not tell a signal from an exit code like it: only what nobody exits with is taken for one.
        129..=159 => signal(code - 128).map_or_else(|| "Error".to_owned(), |name| format!("Signal {name}")),
        _ => "Error".to_owned(),
    };
    Exit { code, reason }
}

fn signal(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
#[path = "found_tests.rs"]
pub mod tests;
