//! Pure: objects as the apiserver sends them, read so leniently that a malformed one is never lost.
//!
//! A typed read would refuse an object that a newer or a broken schema let through; the device would then be
//! told to stop its process. So metadata is typed (the apiserver guarantees it) and the rest stays text: most of it
//! is never read, since what a watch shows of a manager's own writes is known already.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An object of any kind with its spec and status unread.
///
/// They are text, which serde hands over only from JSON itself: an event of a watch must name its `type` before its
/// `object`, as the apiserver always does.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Raw {
    /// Metadata without managedFields, which are long and of no use here.
    #[serde(default, deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The spec exactly as sent; `null` when there is none.
    #[serde(default)]
    pub spec: Box<RawValue>,
    /// The status exactly as sent; `null` when there is none.
    #[serde(default)]
    pub status: Box<RawValue>,
}

/// An object with everything read that the index needs, so that nobody parses under its lock.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Raw")]
pub struct Opened {
    /// As in [`Raw`].
    pub metadata: ObjectMeta,
    /// As in [`Raw`].
    pub spec: Box<RawValue>,
    /// SHA-256 of the spec's text but for the value of its `deviceRef`: equal texts have equal spec hashes.
    pub fingerprint: [u8; 32],
    /// `spec.deviceRef`; `null` when there is none.
    pub device: Value,
    /// The status; `null` when there is none.
    pub status: Value,
}

// === impl Raw ===

impl Raw {
    /// The object's namespace, empty for none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The resourceVersion as a number (Kubernetes 1.35 promises it; every release so far has kept it), 0 when
    /// it is none.
    #[must_use]
    pub fn revision(&self) -> u64 {
        revision(self.metadata.resource_version.as_deref())
    }
}

// === impl Opened ===

impl From<Raw> for Opened {
    fn from(raw: Raw) -> Self {
        let text = raw.spec.get();
        let (device, before, after) = match DeviceOf::of(text) {
            Some((device, before, after)) => (read(device), before, after),
            None => (Value::Null, text, ""),
        };
        let mut digest = Sha256::new();
        // Length first: where the gap is must count.
        digest.update(before.len().to_le_bytes());
        digest.update(before);
        digest.update(after);
        let fingerprint = digest.finalize().into();
        Self { status: read(raw.status.get()), metadata: raw.metadata, device, fingerprint, spec: raw.spec }
    }
}

impl Opened {
    /// As [`Raw::namespace`].
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// As [`Raw::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// As [`Raw::revision`].
    #[must_use]
    pub fn revision(&self) -> u64 {
        revision(self.metadata.resource_version.as_deref())
    }
}

/// Reads JSON; `null` when it cannot be read (it is nested more than 127 deep).
pub(super) fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

#[derive(Deserialize)]
struct DeviceOf<'a> {
    #[serde(borrow, rename = "deviceRef", default)]
    device: Option<&'a RawValue>,
}

impl<'a> DeviceOf<'a> {
    /// The text of a spec's `deviceRef`, and what stands before and after it. `None` when there is none.
    fn of(spec: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let device = serde_json::from_str::<Self>(spec).ok()?.device?.get();
        let start = (device.as_ptr() as usize).checked_sub(spec.as_ptr() as usize)?;
        Some((device, spec.get(..start)?, spec.get(start + device.len()..)?))
    }
}

/// A resourceVersion as a number, 0 when it is none.
#[must_use]
pub fn revision(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl kube::Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = <DynamicObject as kube::Resource>::Scope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }
    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }
    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }
    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }
    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    #[derive(Default)]
    struct Wanted {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    let wanted = Wanted::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: wanted.name,
        namespace: wanted.namespace,
        uid: wanted.uid,
        resource_version: wanted.resource_version,
        generation: wanted.generation,
        labels: wanted.labels,
        annotations: wanted.annotations,
        owner_references: wanted.owner_references,
        creation_timestamp: wanted.creation_timestamp,
        deletion_timestamp: wanted.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_schema_never_promised_is_still_read() {
        let raw: Raw = serde_json::from_value(json!({
            "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcess",
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": "17", "generation": 2,
                         "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"deviceRef": {"name": 7}, "surprise": [1, {"x": null}]}, "status": "odd"
        }))
        .unwrap();
        assert_eq!((raw.namespace(), raw.name(), raw.revision()), ("n", "a", 17));
        assert!(raw.metadata.managed_fields.is_none());
        assert_eq!(read(raw.spec.get())["surprise"][1], json!({"x": null}));
        let bare: Raw = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        assert!(bare.spec.get() == "null" && bare.status.get() == "null" && bare.revision() == 0);
        let bare = Opened::from(bare);
        assert!(bare.device.is_null() && bare.status.is_null());
    }

    #[test]
    fn fingerprints_leave_out_the_device_alone() {
        let opened = |spec: &str| {
            Opened::from(serde_json::from_str::<Raw>(&format!(r#"{{"metadata":{{}},"spec":{spec}}}"#)).unwrap())
        };
        let one = opened(r#"{"a":1,"deviceRef":{"name":"x"},"b":{"deviceRef":2}}"#);
        assert_eq!(one.device, json!({"name": "x"}));
        assert_eq!(one.fingerprint, opened(r#"{"a":1,"deviceRef":"odd","b":{"deviceRef":2}}"#).fingerprint);
        let others = [
            r#"{"a":1,"deviceRef":{"name":"x"},"b":{"deviceRef":3}}"#,
            r#"{"a":2,"deviceRef":{"name":"x"},"b":{"deviceRef":2}}"#,
            r#"{"a":1,"b":{"deviceRef":2}}"#,
            "null",
            "3",
            r#"["deviceRef"]"#,
        ];
        let mut seen = vec![one.fingerprint];
        for other in others {
            let fingerprint = opened(other).fingerprint;
            assert!(!seen.contains(&fingerprint), "{other}");
            seen.push(fingerprint);
        }
        let deep = format!("{{\"deviceRef\":{{\"name\":\"d\"}},\"x\":{}{}}}", "[".repeat(500), "]".repeat(500));
        assert_eq!(opened(&deep).device, json!({"name": "d"}), "nothing is too deep to be kept");
    }

    #[test]
    fn watch_events_are_read_without_their_specs() {
        use kube::api::WatchEvent;
        let line = r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"3"},"spec":{"x": 1}}}"#;
        let WatchEvent::Added(raw) = serde_json::from_str::<WatchEvent<Raw>>(line).unwrap() else { panic!("added") };
        assert_eq!((raw.revision(), raw.spec.get()), (3, r#"{"x": 1}"#));
    }
}
