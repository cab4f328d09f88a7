//! Pure: the status of a DeviceProcess and of a NetworkSwitch, read from JSON and written back.
//!
//! Kept lean, since there is one for every process of the fleet: times are seconds, texts are shared.

use super::lean::Text;
use crate::wire::canonical::SpecHash;
use crate::wire::capabilities::Capabilities;
use crate::wire::time;
use serde_json::{Map, Value, json};

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Not started; the schema's default.
    #[default]
    Pending,
    /// Started.
    Running,
    /// Ended with exit code 0 and not to be restarted.
    Succeeded,
    /// Ended, or cannot be started.
    Failed,
}

/// The types of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionType {
    /// Whether the device reports; absent means that it never did.
    AgentConnected,
    /// Which spec the device has seen; never False.
    SpecObserved,
    /// Something that the operator should know although the process may run.
    SpecWarning,
    /// Whether the artifact is on the device.
    ArtifactDownloaded,
    /// Whether the artifact's checksum was right.
    ArtifactVerified,
    /// Whether the process has been started and lives.
    ProcessStarted,
    /// The verdict of the health check.
    Healthy,
}

/// A condition that is True or False; Unknown is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: ConditionType,
    /// Its status.
    pub status: bool,
    /// When the status last changed, seconds since 1970.
    pub since: i64,
    /// One word in CamelCase.
    pub reason: Text,
    /// For people.
    pub message: Text,
}

/// `status.lastReport`: seeds the order of reports after a restart of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastReport {
    /// Random per start of the agent.
    pub boot_id: Text,
    /// Grows within the bootId.
    pub sequence: u64,
}

/// `status.lastEvents`: the events of the latest transition, so that a manager that dies between the patch
/// and the event leaves enough for another to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// When the transition was written, seconds since 1970.
    pub time: i64,
    /// Reasons of the events.
    pub reasons: Vec<Reason>,
}

/// Reasons of events on a DeviceProcess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The device reports (again).
    AgentConnected,
    /// The device fell silent.
    AgentDisconnected,
    /// The device has seen a new spec.
    SpecObserved,
    /// The process was started.
    ProcessStarted,
    /// The process ended or cannot be started.
    ProcessFailed,
    /// The health check fails.
    Unhealthy,
    /// See the condition of the same name.
    SpecWarning,
}

/// What a process has been through; written at most once a minute when it changes alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Process id on the device.
    pub pid: Option<i64>,
    /// When the process was started, seconds since 1970.
    pub start_time: Option<i64>,
    /// How often it was restarted.
    pub restart_count: Option<i64>,
    /// Downloads that were tried.
    pub artifact_download_attempts: Option<i64>,
    /// When the last download was tried, seconds since 1970.
    pub last_artifact_attempt_time: Option<i64>,
}

/// Facts that most processes lack, boxed to keep the record small.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// Exit code of the last run.
    pub exit_code: Option<i64>,
    /// Why the last run ended.
    pub last_termination_reason: Option<Text>,
    /// Why the last download failed.
    pub artifact_last_error: Option<Text>,
    /// Digest of the artifact.
    pub artifact_digest: Option<Text>,
    /// See [`Counters`].
    pub counters: Counters,
}

/// The status of a DeviceProcess.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// `phase`.
    pub phase: Phase,
    /// When the phase last changed, seconds since 1970.
    pub phase_since: Option<i64>,
    /// `conditions`, in the order in which they came to be.
    pub conditions: Vec<Condition>,
    /// `observedSpecHash`.
    pub observed: Option<SpecHash>,
    /// `runningSpecHash`.
    pub running: Option<SpecHash>,
    /// `observedGeneration`.
    pub observed_generation: Option<i64>,
    /// `transitions`: how many patches have emitted events.
    pub transitions: u64,
    /// Whether `runtimeSemantics` says `DaemonSet`, the only value there is.
    pub daemon_set: bool,
    /// `lastReport`.
    pub last_report: Option<LastReport>,
    /// `lastEvents`.
    pub outbox: Option<Box<Outbox>>,
    /// `artifactVersion`.
    pub artifact_version: Option<Text>,
    /// Everything that a process which never ran lacks.
    pub details: Option<Box<Details>>,
}

/// The status of a NetworkSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwitchRecord {
    /// `agentVersion`.
    pub agent_version: Option<Text>,
    /// `capabilities`, as [`Capabilities::text`]: one text for all switches of a kind.
    pub capabilities: Option<Text>,
    /// The condition AgentConnected: its status and since when, seconds since 1970.
    pub connected: Option<(bool, i64)>,
}

/// The value of `status.runtimeSemantics`.
const DAEMON_SET: &str = "DaemonSet";

/// Reason and message of AgentConnected.
#[must_use]
pub fn agent_connected(connected: bool) -> (&'static str, &'static str) {
    if connected {
        ("AgentConnected", "agent is reporting")
    } else {
        ("HeartbeatMissed", "no report within the staleness window")
    }
}

// === impl Phase ===

impl Phase {
    /// As Kubernetes shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

// === impl ConditionType ===

impl ConditionType {
    const ALL: [Self; 7] = [
        Self::AgentConnected,
        Self::SpecObserved,
        Self::SpecWarning,
        Self::ArtifactDownloaded,
        Self::ArtifactVerified,
        Self::ProcessStarted,
        Self::Healthy,
    ];

    /// As Kubernetes shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentConnected => "AgentConnected",
            Self::SpecObserved => "SpecObserved",
            Self::SpecWarning => "SpecWarning",
            Self::ArtifactDownloaded => "ArtifactDownloaded",
            Self::ArtifactVerified => "ArtifactVerified",
            Self::ProcessStarted => "ProcessStarted",
            Self::Healthy => "Healthy",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

// === impl Reason ===

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::AgentConnected,
        Self::AgentDisconnected,
        Self::SpecObserved,
        Self::ProcessStarted,
        Self::ProcessFailed,
        Self::Unhealthy,
        Self::SpecWarning,
    ];

    /// As Kubernetes shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentConnected => "AgentConnected",
            Self::AgentDisconnected => "AgentDisconnected",
            Self::SpecObserved => "SpecObserved",
            Self::ProcessStarted => "ProcessStarted",
            Self::ProcessFailed => "ProcessFailed",
            Self::Unhealthy => "Unhealthy",
            Self::SpecWarning => "SpecWarning",
        }
    }

    /// Whether the event is a Warning.
    #[must_use]
    pub fn is_warning(self) -> bool {
        !matches!(self, Self::AgentConnected | Self::SpecObserved | Self::ProcessStarted)
    }
}

// === impl Record ===

impl Record {
    /// Reads a status leniently: what cannot be read is absent, and is written anew with the next transition.
    pub fn read(status: &Value, mut text: impl FnMut(&str) -> Text) -> Self {
        let string = |key: &str| status[key].as_str();
        let seconds = |key: &str| string(key).and_then(time::parse).map(|t| t.seconds);
        let hash = |key: &str| string(key).and_then(SpecHash::parse);
        let conditions = status["conditions"].as_array().into_iter().flatten().filter_map(|condition| {
            Some(Condition {
                kind: ConditionType::parse(condition["type"].as_str()?)?,
                status: condition["status"].as_str()? == "True",
                since: condition["lastTransitionTime"].as_str().and_then(time::parse).map_or(0, |t| t.seconds),
                reason: text(condition["reason"].as_str().unwrap_or_default()),
                message: text(condition["message"].as_str().unwrap_or_default()),
            })
        });
        let conditions = conditions.collect();
        let outbox = &status["lastEvents"];
        let outbox = outbox["time"].as_str().and_then(time::parse).map(|time| {
            let reasons = outbox["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let reasons = reasons.filter_map(|reason| Reason::ALL.into_iter().find(|known| known.as_str() == reason));
            Box::new(Outbox { time: time.seconds, reasons: reasons.collect() })
        });
        let details = Details {
            exit_code: status["exitCode"].as_i64(),
            last_termination_reason: string("lastTerminationReason").map(&mut text),
            artifact_last_error: string("artifactLastError").map(&mut text),
            artifact_digest: string("artifactDigest").map(&mut text),
            counters: Counters {
                pid: status["pid"].as_i64(),
                start_time: seconds("startTime"),
                restart_count: status["restartCount"].as_i64(),
                artifact_download_attempts: status["artifactDownloadAttempts"].as_i64(),
                last_artifact_attempt_time: seconds("lastArtifactAttemptTime"),
            },
        };
        let last_report = &status["lastReport"];
        Self {
            phase: match string("phase") {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                _ => Phase::Pending,
            },
            phase_since: seconds("lastTransitionTime"),
            conditions,
            observed: hash("observedSpecHash"),
            running: hash("runningSpecHash"),
            observed_generation: status["observedGeneration"].as_i64(),
            transitions: status["transitions"].as_u64().unwrap_or(0),
            daemon_set: string("runtimeSemantics") == Some(DAEMON_SET),
            last_report: last_report["bootId"]
                .as_str()
                .zip(last_report["sequence"].as_u64())
                .map(|(boot_id, sequence)| LastReport { boot_id: text(boot_id), sequence }),
            outbox,
            artifact_version: string("artifactVersion").map(&mut text),
            details: (details != Details::default()).then(|| Box::new(details)),
        }
    }

    /// The condition of a type, if it is present.
    #[must_use]
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// The status of a condition, if it is present.
    #[must_use]
    pub fn is(&self, kind: ConditionType) -> Option<bool> {
        self.condition(kind).map(|condition| condition.status)
    }

    /// The whole status as the apiserver takes it.
    #[must_use]
    pub fn write(&self) -> Value {
        let mut status = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                status.insert(key.to_owned(), value);
            }
        };
        let text = |text: &Option<Text>| text.as_deref().map(Value::from);
        let seconds = |seconds: Option<i64>| seconds.map(|seconds| Value::from(time::format(seconds)));
        put("phase", Some(self.phase.as_str().into()));
        put("runtimeSemantics", self.daemon_set.then(|| DAEMON_SET.into()));
        put("lastTransitionTime", seconds(self.phase_since));
        put("observedSpecHash", self.observed.map(|hash| hash.to_string().into()));
        put("runningSpecHash", self.running.map(|hash| hash.to_string().into()));
        put("observedGeneration", self.observed_generation.map(Value::from));
        put("transitions", (self.transitions > 0).then(|| self.transitions.into()));
        put("artifactVersion", text(&self.artifact_version));
        put(
            "lastReport",
            self.last_report.as_ref().map(|last| json!({"bootId": &*last.boot_id, "sequence": last.sequence})),
        );
        put(
            "lastEvents",
            self.outbox.as_ref().map(|outbox| {
                let reasons: Vec<&str> = outbox.reasons.iter().map(|reason| reason.as_str()).collect();
                json!({"time": time::format(outbox.time), "reasons": reasons})
            }),
        );
        if let Some(details) = &self.details {
            put("exitCode", details.exit_code.map(Value::from));
            put("lastTerminationReason", text(&details.last_termination_reason));
            put("artifactLastError", text(&details.artifact_last_error));
            put("artifactDigest", text(&details.artifact_digest));
            put("pid", details.counters.pid.map(Value::from));
            put("startTime", seconds(details.counters.start_time));
            put("restartCount", details.counters.restart_count.map(Value::from));
            put("artifactDownloadAttempts", details.counters.artifact_download_attempts.map(Value::from));
            put("lastArtifactAttemptTime", seconds(details.counters.last_artifact_attempt_time));
        }
        let conditions =
            self.conditions.iter().map(|c| condition(c.kind.as_str(), c.status, c.since, &c.reason, &c.message));
        put("conditions", (!self.conditions.is_empty()).then(|| conditions.collect()));
        Value::Object(status)
    }
}

// === impl SwitchRecord ===

impl SwitchRecord {
    /// Reads a status leniently.
    pub fn read(status: &Value, mut text: impl FnMut(&str) -> Text) -> Self {
        let connected = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "AgentConnected");
        Self {
            agent_version: status["agentVersion"].as_str().map(&mut text),
            capabilities: Capabilities::read(&status["capabilities"]).map(|known| text(&known.text())),
            connected: connected.map(|condition| {
                let since = condition["lastTransitionTime"].as_str().and_then(time::parse).map_or(0, |t| t.seconds);
                (condition["status"] == "True", since)
            }),
        }
    }

    /// The whole status as the apiserver takes it.
    #[must_use]
    pub fn write(&self) -> Value {
        let mut status = Map::new();
        if let Some(version) = &self.agent_version {
            status.insert("agentVersion".into(), Value::from(&**version));
        }
        if let Some(capabilities) = self.capabilities.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
            status.insert("capabilities".into(), capabilities);
        }
        if let Some((connected, since)) = self.connected {
            let (reason, message) = agent_connected(connected);
            status.insert("conditions".into(), json!([condition("AgentConnected", connected, since, reason, message)]));
        }
        Value::Object(status)
    }
}

fn condition(kind: &str, status: bool, since: i64, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": time::format(since),
        "reason": reason, "message": message,
    })
}

/// A JSON merge patch (RFC 7396) that turns one status into another. Objects are compared member by member, as
/// they are merged; everything else whole. `None` when there is nothing to change.
#[must_use]
pub fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    let empty = Map::new();
    let (from, to) = (from.as_object().unwrap_or(&empty), to.as_object().unwrap_or(&empty));
    let mut patch = Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(known) if known == value => {}
            Some(known) if known.is_object() && value.is_object() => {
                patch.extend(merge_patch(known, value).map(|part| (key.clone(), part)));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
