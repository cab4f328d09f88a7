//! Pure: objects as the apiserver sends them, read so leniently that a malformed one is never lost.
//!
//! A typed read would refuse an object that a newer or a broken schema let through; the device would then be
//! told to stop its process. So metadata is typed (the apiserver guarantees it) and the rest stays JSON.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An object of any kind with its spec and status unread.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Raw {
    /// Metadata without managedFields, which are long and of no use here.
    #[serde(default, deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The spec exactly as sent; `null` when there is none.
    #[serde(default)]
    pub spec: Value,
    /// The status exactly as sent; `null` when there is none.
    #[serde(default)]
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
        assert_eq!(raw.spec["surprise"][1], json!({"x": null}));
        let bare: Raw = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        assert!(bare.spec.is_null() && bare.status.is_null() && bare.revision() == 0);
    }
}
