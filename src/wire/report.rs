//! Pure: what a device says, read so that one bad observation never hides the others.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// Body of `POST /v1/devices/{device}/report` and `/connect`. Every field is optional; an empty string or
/// `null` means absent; unknown fields are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    /// Version of the agent.
    #[serde(borrow, default, deserialize_with = "absent")]
    pub agent_version: Option<Cow<'a, str>>,
    /// When the device sent it by its own clock, RFC 3339. For people only.
    #[serde(borrow, default, deserialize_with = "absent")]
    pub timestamp: Option<Cow<'a, str>>,
    /// Ignored: every readable, authenticated report is a sign of life.
    #[serde(default, deserialize_with = "absent")]
    pub heartbeat: Option<bool>,
    /// Random per start of the agent process.
    #[serde(borrow, default, deserialize_with = "absent")]
    pub boot_id: Option<Cow<'a, str>>,
    /// Grows within one `boot_id`.
    #[serde(default, deserialize_with = "absent")]
    pub sequence: Option<u64>,
    /// What the device can do, still unread: an object. Sent with the first report of a start and when it changes;
    /// absent, it is as it was.
    #[serde(borrow, default, deserialize_with = "object")]
    pub capabilities: Option<&'a RawValue>,
    /// What the device saw of its processes, each still unread.
    #[serde(borrow, default)]
    pub observations: Option<Vec<&'a RawValue>>,
}

/// One observation of one process. Only the first three fields are required.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation<'a> {
    /// Namespace of the DeviceProcess.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Cow<'a, str>>,
    /// Name of the DeviceProcess.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// The spec that the device has seen, `sha256:…`.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub observed_spec_hash: Option<Cow<'a, str>>,
    /// The spec that the live process was started from; absent, it is the observed one if `process_started`.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub running_spec_hash: Option<Cow<'a, str>>,
    /// Whether the process has been started and lives.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub process_started: Option<bool>,
    /// The verdict of the health check.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// What the health check said when it began to fail.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub health_message: Option<Cow<'a, str>>,
    /// Process id on the device.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    /// When the process was started, RFC 3339.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Cow<'a, str>>,
    /// How often the process was restarted.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<i64>,
    /// Exit code of the last run, when it is over.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Why the last run ended.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub last_termination_reason: Option<Cow<'a, str>>,
    /// What makes the process fail.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub error_message: Option<Cow<'a, str>>,
    /// What the operator should know although the process may run.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub warning_message: Option<Cow<'a, str>>,
    /// Why, in one word in CamelCase: `BackendUnavailable`, or another; absent, it is `AgentWarning`.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub warning_reason: Option<Cow<'a, str>>,
    /// Digest of the artifact, `sha256:…`.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_digest: Option<Cow<'a, str>>,
    /// Whether the artifact is on the device.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_downloaded: Option<bool>,
    /// Whether the artifact's checksum was right.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_verified: Option<bool>,
    /// Downloads that were tried.
    #[serde(default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_download_attempts: Option<i64>,
    /// When the last download was tried, RFC 3339.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub last_artifact_attempt_time: Option<Cow<'a, str>>,
    /// Why the last download failed.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_last_error: Option<Cow<'a, str>>,
    /// Reason of the condition ArtifactDownloaded.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_download_reason: Option<Cow<'a, str>>,
    /// Message of the condition ArtifactDownloaded.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_download_message: Option<Cow<'a, str>>,
    /// Reason of the condition ArtifactVerified.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_verify_reason: Option<Cow<'a, str>>,
    /// Message of the condition ArtifactVerified.
    #[serde(borrow, default, deserialize_with = "absent", skip_serializing_if = "Option::is_none")]
    pub artifact_verify_message: Option<Cow<'a, str>>,
}

/// Body of `200` at `report` and `connect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Everything that was not rejected is written to Kubernetes, or there was nothing to write.
    pub ack: bool,
    /// Observations that were not applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejection>,
}

// === impl Report ===

impl<'a> Report<'a> {
    /// Reads a body. Anything but a JSON object with fields of the right types is an error.
    ///
    /// # Errors
    /// Says what was expected and where, without quoting the body.
    pub fn parse(body: &'a [u8]) -> serde_json::Result<Self> {
        parse_object(std::str::from_utf8(body).map_err(|_| de::Error::custom("the body is not UTF-8"))?)
    }
}

// === impl Observation ===

impl<'a> Observation<'a> {
    /// Reads one observation of a report.
    ///
    /// # Errors
    /// When it is no JSON object or a field has a wrong type.
    pub fn parse(raw: &'a RawValue) -> serde_json::Result<Self> {
        parse_object(raw.get())
    }
}

/// A derived `Deserialize` would take an array for an object, field by field.
fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    if text.trim_ascii_start().starts_with('{') {
        serde_json::from_str(text)
    } else {
        Err(de::Error::custom("expected a JSON object"))
    }
}

/// An observation that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Namespace as sent, cut and cleaned; empty when it could not be read.
    pub namespace: String,
    /// Name as sent, cut and cleaned; empty when it could not be read.
    pub name: String,
    /// `NotYours` or `Invalid`.
    pub reason: String,
}

/// Cuts a string at a character boundary to [`super::MAX_STRING_BYTES`] and drops control characters
/// (Unicode category Cc).
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    let cut = if text.len() <= super::MAX_STRING_BYTES {
        text
    } else {
        let mut end = super::MAX_STRING_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        &text[..end]
    };
    if cut.chars().any(char::is_control) {
        Cow::Owned(cut.chars().filter(|c| !c.is_control()).collect())
    } else {
        Cow::Borrowed(cut)
    }
}

/// A scalar that a device may also leave out by `null` or an empty string.
trait Scalar<'de>: Sized {
    const EXPECTED: &'static str;
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_i64(_: i64) -> Option<Self> {
        None
    }
    fn from_u64(_: u64) -> Option<Self> {
        None
    }
    fn from_borrowed(_: &'de str) -> Option<Self> {
        None
    }
    fn from_string(_: &str) -> Option<Self> {
        None
    }
}

impl Scalar<'_> for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Scalar<'_> for i64 {
    const EXPECTED: &'static str = "an integer of 64 bits";
    fn from_i64(value: i64) -> Option<Self> {
        Some(value)
    }
    fn from_u64(value: u64) -> Option<Self> {
        Self::try_from(value).ok()
    }
}

impl Scalar<'_> for u64 {
    // Kubernetes stores integers as 64 bits with a sign.
    const EXPECTED: &'static str = "an integer from 0 to 9223372036854775807";
    fn from_i64(value: i64) -> Option<Self> {
        Self::try_from(value).ok()
    }
    fn from_u64(value: u64) -> Option<Self> {
        (value <= i64::MAX as u64).then_some(value)
    }
}

impl<'de> Scalar<'de> for Cow<'de, str> {
    const EXPECTED: &'static str = "a string";
    fn from_borrowed(value: &'de str) -> Option<Self> {
        Some(Cow::Borrowed(value))
    }
    fn from_string(value: &str) -> Option<Self> {
        Some(Cow::Owned(value.to_owned()))
    }
}

fn absent<'de, D: Deserializer<'de>, T: Scalar<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct AbsentVisitor<T>(PhantomData<T>);

    impl<'de, T: Scalar<'de>> Visitor<'de> for AbsentVisitor<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
            T::from_bool(value).map(Some).ok_or_else(|| E::invalid_type(de::Unexpected::Bool(value), &self))
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
            T::from_i64(value).map(Some).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
            T::from_u64(value).map(Some).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
        }
        fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Self::Value, E> {
            if value.is_empty() {
                return Ok(None);
            }
            T::from_borrowed(value).map(Some).ok_or_else(|| E::invalid_type(de::Unexpected::Str("…"), &self))
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
            if value.is_empty() {
                return Ok(None);
            }
            T::from_string(value).map(Some).ok_or_else(|| E::invalid_type(de::Unexpected::Str("…"), &self))
        }
    }

    deserializer.deserialize_any(AbsentVisitor(PhantomData))
}

/// A JSON object, unread; `null` and an empty string mean absent.
fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    match raw.get() {
        "null" | "\"\"" => Ok(None),
        text if text.starts_with('{') => Ok(Some(raw)),
        _ => Err(de::Error::custom("invalid type, expected a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_and_null_mean_absent() {
        let report: Report = serde_json::from_str(
            r#"{"agentVersion":"","timestamp":null,"heartbeat":null,"bootId":"","sequence":"","capabilities":"","observations":null,"later":{"x":[1]}}"#,
        )
        .unwrap();
        assert!(report.agent_version.is_none() && report.timestamp.is_none() && report.boot_id.is_none());
        assert!(report.sequence.is_none() && report.observations.is_none() && report.capabilities.is_none());
        let report = Report::parse(br#"{"capabilities": null}"#).unwrap();
        assert!(report.capabilities.is_none());
        let report = Report::parse(br#"{"capabilities": {"backends": 5}}"#).unwrap();
        assert_eq!(report.capabilities.map(RawValue::get), Some(r#"{"backends": 5}"#));
    }

    #[test]
    fn wrong_top_level_types_are_refused() {
        for body in [
            "",
            "[]",
            "1",
            "\"x\"",
            "{",
            r#"{"agentVersion":1}"#,
            r#"{"heartbeat":"yes"}"#,
            r#"{"sequence":-1}"#,
            r#"{"sequence":1.5}"#,
            r#"{"sequence":9223372036854775808}"#,
            r#"{"observations":{}}"#,
            r#"{"bootId":["x"]}"#,
            r#"{"capabilities":["systemd"]}"#,
            r#"{"capabilities":"systemd"}"#,
            r#"{"capabilities":true}"#,
        ] {
            assert!(Report::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_bad_observation_leaves_the_others_readable() {
        let body = format!(
            r#"{{"observations":[{{"name":"a","pid":"x"}},{}{},{{"name":"b"}}]}}"#,
            "[".repeat(10_000),
            "]".repeat(10_000)
        );
        let report = Report::parse(body.as_bytes()).unwrap();
        let observations = report.observations.unwrap();
        let read: Vec<_> = observations.iter().map(|raw| Observation::parse(raw)).collect();
        assert!(read[0].is_err() && read[1].is_err());
        assert_eq!(read[2].as_ref().unwrap().name.as_deref(), Some("b"));
    }

    #[test]
    fn strings_are_cut_and_stripped() {
        assert_eq!(clean("a\u{1b}[31mb\n\0c\u{85}"), "a[31mbc");
        let long = "é".repeat(600);
        assert_eq!(clean(&long).len(), 1024);
        assert!(matches!(clean("plain"), Cow::Borrowed("plain")));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(report) = Report::parse(&body) {
                for raw in report.observations.unwrap_or_default() {
                    let _ = Observation::parse(raw);
                }
            }
        }

        #[test]
        fn clean_is_idempotent_and_bounded(text in any::<String>()) {
            let once = clean(&text).into_owned();
            prop_assert!(once.len() <= 1024 && !once.chars().any(char::is_control));
            prop_assert_eq!(clean(&once).into_owned(), once);
        }
    }
}
