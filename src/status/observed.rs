//! Pure: one observation of a device, read, cleaned and checked.

use crate::wire::canonical::SpecHash;
use crate::wire::name::is_device_name;
use crate::wire::report::{Observation, clean};
use crate::wire::time;

/// What a device saw of one of its processes.
///
/// `process_started` (or an error) speaks for everything about the process, `artifact_downloaded` or
/// `artifact_verified` for everything about the artifact: with it, what is left out is not so. Without it, what is
/// left out stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// The spec that the device has seen.
    pub spec: SpecHash,
    /// The spec that the live process was started from.
    pub running: Option<SpecHash>,
    /// Whether the process has been started and lives.
    pub started: Option<bool>,
    /// The verdict of the health check.
    pub healthy: Option<bool>,
    /// What the health check said.
    pub health_message: Option<String>,
    /// Process id on the device.
    pub pid: Option<i64>,
    /// When the process was started, seconds since 1970.
    pub start_time: Option<i64>,
    /// How often it was restarted.
    pub restart_count: Option<i64>,
    /// Exit code of the last run.
    pub exit_code: Option<i64>,
    /// Why the last run ended.
    pub last_termination_reason: Option<String>,
    /// What makes the process fail.
    pub error: Option<String>,
    /// What the operator should know.
    pub warning: Option<String>,
    /// Why, in one word; none unless there is a warning.
    pub warning_reason: Option<String>,
    /// The artifact, when the device said anything of it.
    pub artifact: Artifact,
}

/// What a device saw of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Artifact {
    /// Digest of what was downloaded.
    pub digest: Option<String>,
    /// Whether it is on the device, with a reason and a message of the agent's own.
    pub downloaded: Option<(bool, Option<String>, Option<String>)>,
    /// Whether its checksum was right, with a reason and a message of the agent's own.
    pub verified: Option<(bool, Option<String>, Option<String>)>,
    /// Downloads that were tried.
    pub attempts: Option<i64>,
    /// When the last download was tried, seconds since 1970.
    pub last_attempt: Option<i64>,
    /// Why the last download failed.
    pub last_error: Option<String>,
}

/// An observation with a field that is missing, malformed or out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

// === impl Observed ===

impl Observed {
    /// Reads an observation.
    ///
    /// # Errors
    /// When a required field is missing, a hash is none, a time is not RFC 3339, or a number is out of range.
    pub fn read(observation: &Observation) -> Result<Self, Invalid> {
        let hash = |text: &str| SpecHash::parse(text).ok_or(Invalid);
        let seconds = |text: &Option<std::borrow::Cow<str>>| {
            text.as_deref()
                .map(|text| time::parse(text).map(|t| t.seconds).filter(|s| YEARS.contains(s)).ok_or(Invalid))
                .transpose()
        };
        let count = |number: Option<i64>| {
            number.map(|n| if (0..=MAX_NUMBER).contains(&n) { Ok(n) } else { Err(Invalid) }).transpose()
        };
        let text = |text: &Option<std::borrow::Cow<str>>| {
            text.as_deref().map(|text| clean(text).into_owned()).filter(|text| !text.is_empty())
        };
        let condition = |flag: Option<bool>, reason, message| {
            flag.map(|flag| (flag, text(reason).filter(|reason| is_reason(reason)), text(message)))
        };
        let warning_reason = text(&observation.warning_reason).filter(|reason| is_reason(reason));
        let exit_code = observation.exit_code;
        if exit_code.is_some_and(|code| i32::try_from(code).is_err()) {
            return Err(Invalid);
        }
        Ok(Self {
            // Both become part of a path at the apiserver: nothing but what an object can be called may pass.
            namespace: text(&observation.namespace).filter(|namespace| is_namespace(namespace)).ok_or(Invalid)?,
            name: text(&observation.name).filter(|name| is_device_name(name.as_bytes())).ok_or(Invalid)?,
            spec: hash(observation.observed_spec_hash.as_deref().ok_or(Invalid)?)?,
            running: observation.running_spec_hash.as_deref().map(hash).transpose()?,
            started: observation.process_started,
            healthy: observation.healthy,
            health_message: text(&observation.health_message),
            pid: count(observation.pid)?,
            start_time: seconds(&observation.start_time)?,
            restart_count: count(observation.restart_count)?,
            exit_code,
            last_termination_reason: text(&observation.last_termination_reason),
            error: text(&observation.error_message),
            warning: text(&observation.warning_message).or_else(|| warning_reason.clone()),
            warning_reason,
            artifact: Artifact {
                digest: text(&observation.artifact_digest),
                downloaded: condition(
                    observation.artifact_downloaded,
                    &observation.artifact_download_reason,
                    &observation.artifact_download_message,
                ),
                verified: condition(
                    observation.artifact_verified,
                    &observation.artifact_verify_reason,
                    &observation.artifact_verify_message,
                ),
                attempts: count(observation.artifact_download_attempts)?,
                last_attempt: seconds(&observation.last_artifact_attempt_time)?,
                last_error: text(&observation.artifact_last_error),
            },
        })
    }
}

/// The years 0 to 9999, which Kubernetes can store.
const YEARS: std::ops::Range<i64> = -62_167_219_200..253_402_300_800;
/// JSON numbers beyond 2^53 are not exact everywhere.
const MAX_NUMBER: i64 = 1 << 53;

/// Whether a namespace can be called so: an RFC 1123 label. (The name of an object is an RFC 1123 subdomain, as a
/// device's is.)
fn is_namespace(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_device_name(text.as_bytes())
}

/// Whether a text can be the reason of a condition (Kubernetes API conventions: CamelCase, at most 1,024).
fn is_reason(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value) -> Result<Observed, Invalid> {
        let text = value.to_string();
        Observed::read(&serde_json::from_str::<Observation>(&text).unwrap())
    }

    fn hash() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    #[test]
    fn three_fields_suffice() {
        let observed = read(&json!({"namespace": "n", "name": "p", "observedSpecHash": hash()})).unwrap();
        assert_eq!((observed.started, observed.artifact), (None, Artifact::default()));
    }

    #[test]
    fn faults_are_invalid() {
        for (field, value) in [
            ("namespace", json!("")),
            ("name", json!(null)),
            ("namespace", json!("..")),
            ("namespace", json!("a.b")),
            ("namespace", json!("a".repeat(64))),
            ("name", json!("../../secrets/x")),
            ("name", json!("a?b")),
            ("name", json!("Upper")),
            ("observedSpecHash", json!("sha256:12")),
            ("observedSpecHash", json!(null)),
            ("runningSpecHash", json!("md5:1")),
            ("startTime", json!("yesterday")),
            ("lastArtifactAttemptTime", json!("2025-99-99T00:00:00Z")),
            ("pid", json!(-1)),
            ("restartCount", json!(i64::MAX)),
            ("exitCode", json!(1_i64 << 40)),
        ] {
            let mut observation = json!({"namespace": "n", "name": "p", "observedSpecHash": hash()});
            observation[field] = value;
            assert_eq!(read(&observation), Err(Invalid), "{observation}");
        }
    }

    #[test]
    fn what_cannot_be_a_reason_is_no_reason() {
        let observed =
            read(&json!({"namespace": "n", "name": "p", "observedSpecHash": hash(), "artifactDownloaded": false,
            "artifactDownloadReason": "no way!", "artifactDownloadMessage": "a\u{1b}b"}))
            .unwrap();
        assert_eq!(observed.artifact.downloaded, Some((false, None, Some("ab".into()))));
        for (reason, message, expected) in [
            (json!("BackendUnavailable"), json!("no systemd"), (Some("BackendUnavailable"), Some("no systemd"))),
            (json!("backend unavailable"), json!("no systemd"), (None, Some("no systemd"))),
            (json!("Odd\u{7}"), json!(""), (Some("Odd"), Some("Odd"))),
            (json!(null), json!(null), (None, None)),
        ] {
            let observed =
                read(&json!({"namespace": "n", "name": "p", "observedSpecHash": hash(), "warningReason": reason,
                "warningMessage": message}))
                .unwrap();
            assert_eq!((observed.warning_reason.as_deref(), observed.warning.as_deref()), expected);
        }
    }
}
