//! Pure: the small form in which objects are kept, with everything that many devices share kept once.

use super::object::{Opened, read};
use super::record::{Record, SwitchRecord};
use crate::wire::canonical::SpecHash;
use crate::wire::name::is_device_name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A string that is kept once, however many objects mention it.
pub type Text = Arc<str>;

/// Labels or annotations, sorted by key.
pub type Marks = Box<[(Text, Text)]>;

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

/// A spec without its `deviceRef`, kept once for all devices that share it.
#[derive(Debug)]
pub struct Spec {
    /// Hash of the spec.
    pub hash: SpecHash,
    /// The members as the apiserver returned them, without `deviceRef`.
    pub body: Box<RawValue>,
    /// What happens when a run ends.
    pub restart_policy: RestartPolicy,
    /// Tag or digest of the artifact's url; empty when it has none.
    pub artifact_version: Text,
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// Restarts after any exit.
    #[default]
    Always,
    /// Restarts after a non-zero exit.
    OnFailure,
    /// Does not restart.
    Never,
}

/// The controller of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its uid.
    pub uid: Text,
    /// Its API group.
    pub group: Text,
    /// Its kind.
    pub kind: Text,
    /// Its name, in the object's own namespace.
    pub name: Text,
}

/// A DeviceProcess.
#[derive(Debug)]
pub struct Process {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// resourceVersion as a number.
    pub revision: u64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.deviceRef.name`; empty when it is unreadable or no device name.
    pub device: Text,
    /// `spec.deviceRef.kind`.
    pub device_kind: Text,
    /// `spec.deviceRef.namespace`.
    pub device_namespace: Option<Text>,
    /// The rest of the spec.
    pub spec: Arc<Spec>,
    /// Labels.
    pub labels: Marks,
    /// Annotations, sorted by key; the children of a deployment mostly share them.
    pub annotations: Arc<[(Text, Text)]>,
    /// The controller, if there is one.
    pub owner: Option<Arc<Owner>>,
    /// Whether a deletionTimestamp is set.
    pub deleting: bool,
    /// The status.
    pub status: Record,
}

/// A NetworkSwitch.
#[derive(Debug)]
pub struct Switch {
    /// Namespace and name; the name is the device's name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// resourceVersion as a number.
    pub revision: u64,
    /// Labels.
    pub labels: Marks,
    /// Whether a deletionTimestamp is set.
    pub deleting: bool,
    /// The status.
    pub status: SwitchRecord,
}

/// A DeviceProcessDeployment: there are few, so they are kept whole.
#[derive(Debug)]
pub struct Deployment {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Text,
    /// resourceVersion as a number.
    pub revision: u64,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its spec.
    pub spec: Value,
    /// Its status.
    pub status: Value,
}

/// The strings and specs that objects share.
#[derive(Debug, Default)]
pub struct Pool {
    texts: HashSet<Text>,
    specs: HashMap<SpecHash, Arc<Spec>>,
    /// By [`Opened::fingerprint`]: a text that was hashed once is not read again.
    hashes: HashMap<[u8; 32], SpecHash>,
    owners: HashSet<Arc<Owner>>,
    marks: HashSet<Arc<[(Text, Text)]>>,
    sweep_at: usize,
}

/// The value of a label or annotation.
#[must_use]
pub fn mark<'a>(marks: &'a [(Text, Text)], key: &str) -> Option<&'a Text> {
    marks.iter().find(|(k, _)| &**k == key).map(|(_, value)| value)
}

// === impl Pool ===

impl Pool {
    /// The one copy of a string.
    pub fn text(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() + self.specs.len() >= self.sweep_at {
            // What nobody else holds is dropped whenever the pool has doubled: amortized, this costs nothing.
            self.owners.retain(|owner| Arc::strong_count(owner) > 1);
            self.marks.retain(|marks| Arc::strong_count(marks) > 1);
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.specs.retain(|_, spec| Arc::strong_count(spec) > 1);
            self.hashes.retain(|_, hash| self.specs.contains_key(hash));
            self.sweep_at = (2 * (self.texts.len() + self.specs.len())).max(1024);
        }
        let text: Text = text.into();
        self.texts.insert(text.clone());
        text
    }

    fn key(&mut self, raw: &Opened) -> Key {
        Key { namespace: self.text(raw.namespace()), name: self.text(raw.name()) }
    }

    fn marks(&mut self, marks: Option<&BTreeMap<String, String>>) -> Marks {
        marks.into_iter().flatten().map(|(key, value)| (self.text(key), self.text(value))).collect()
    }

    fn shared_marks(&mut self, marks: Option<&BTreeMap<String, String>>) -> Arc<[(Text, Text)]> {
        let marks = self.marks(marks);
        if let Some(known) = self.marks.get(&*marks) {
            return known.clone();
        }
        let marks: Arc<[_]> = marks.into();
        self.marks.insert(marks.clone());
        marks
    }

    fn owner(&mut self, owner: &OwnerReference) -> Arc<Owner> {
        let owner = Owner {
            uid: self.text(&owner.uid),
            group: self.text(owner.api_version.split_once('/').map_or("", |(group, _)| group)),
            kind: self.text(&owner.kind),
            name: self.text(&owner.name),
        };
        if let Some(known) = self.owners.get(&owner) {
            return known.clone();
        }
        let owner = Arc::new(owner);
        self.owners.insert(owner.clone());
        owner
    }

    /// The one copy of a spec, `deviceRef` left out.
    pub fn spec(&mut self, raw: &Opened) -> Arc<Spec> {
        if let Some(known) = self.hashes.get(&raw.fingerprint).and_then(|hash| self.specs.get(hash)) {
            return known.clone();
        }
        let spec = read(raw.spec.get());
        let hash = SpecHash::of_spec(&spec);
        self.hashes.insert(raw.fingerprint, hash);
        // The body may differ from another of the same hash in empty members, which mean nothing (contract §1).
        if let Some(known) = self.specs.get(&hash) {
            return known.clone();
        }
        let restart_policy = match spec["restartPolicy"].as_str() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        };
        let artifact_version = self.text(artifact_version(spec["artifact"]["url"].as_str().unwrap_or_default()));
        let mut bare = spec;
        if let Value::Object(members) = &mut bare {
            members.remove("deviceRef");
        }
        let body = serde_json::value::to_raw_value(&bare).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let spec = Arc::new(Spec { hash, body, restart_policy, artifact_version });
        self.specs.insert(hash, spec.clone());
        spec
    }

    /// A DeviceProcess in its lean form.
    pub fn process(&mut self, raw: &Opened) -> Process {
        let device = &raw.device;
        let name = device["name"].as_str().filter(|name| is_device_name(name.as_bytes())).unwrap_or_default();
        let owner = raw.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Process {
            key: self.key(raw),
            uid: raw.metadata.uid.as_deref().unwrap_or_default().into(),
            revision: raw.revision(),
            generation: raw.metadata.generation.unwrap_or(0),
            device: self.text(name),
            device_kind: self.text(device["kind"].as_str().unwrap_or_default()),
            device_namespace: device["namespace"].as_str().map(|namespace| self.text(namespace)),
            spec: self.spec(raw),
            labels: self.marks(raw.metadata.labels.as_ref()),
            annotations: self.shared_marks(raw.metadata.annotations.as_ref()),
            owner: owner.map(|owner| self.owner(owner)),
            deleting: raw.metadata.deletion_timestamp.is_some(),
            status: Record::read(&raw.status, |text| self.text(text)),
        }
    }

    /// A NetworkSwitch in its lean form.
    pub fn switch(&mut self, raw: &Opened) -> Switch {
        Switch {
            key: self.key(raw),
            uid: raw.metadata.uid.as_deref().unwrap_or_default().into(),
            revision: raw.revision(),
            labels: self.marks(raw.metadata.labels.as_ref()),
            deleting: raw.metadata.deletion_timestamp.is_some(),
            status: SwitchRecord::read(&raw.status, |text| self.text(text)),
        }
    }

    /// A DeviceProcessDeployment.
    pub fn deployment(&mut self, raw: Opened) -> Deployment {
        Deployment {
            key: self.key(&raw),
            uid: self.text(raw.metadata.uid.as_deref().unwrap_or_default()),
            revision: raw.revision(),
            spec: read(raw.spec.get()),
            metadata: raw.metadata,
            status: raw.status,
        }
    }
}

/// Tag or digest of an artifact's url: what follows `@`, else what follows the last `:` of the last path
/// segment.
fn artifact_version(url: &str) -> &str {
    let last = url.rsplit('/').next().unwrap_or_default();
    last.split_once('@')
        .map(|(_, digest)| digest)
        .or_else(|| last.rsplit_once(':').map(|(_, tag)| tag))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::object::Raw;
    use serde_json::json;

    fn opened(object: Value) -> Opened {
        serde_json::from_value::<Raw>(object).unwrap().into()
    }

    #[test]
    fn versions_of_artifacts() {
        for (url, version) in [
            ("ghcr.io/example/switch-agent:1.2.3", "1.2.3"),
            ("localhost:5000/agent", ""),
            ("localhost:5000/agent:v1", "v1"),
            ("oci://r/agent@sha256:abc", "sha256:abc"),
            ("r/agent:1@sha256:abc", "sha256:abc"),
            ("https://example.com/agent.tar", ""),
            ("/opt/agent", ""),
            ("", ""),
        ] {
            assert_eq!(artifact_version(url), version, "{url}");
        }
    }

    #[test]
    fn specs_that_differ_in_the_device_alone_are_one() {
        let mut pool = Pool::default();
        let mut spec = |spec: Value| pool.spec(&opened(json!({"metadata": {}, "spec": spec})));
        let one = spec(json!({"deviceRef": {"name": "a"}, "x": 1, "none": []}));
        let same = spec(json!({"deviceRef": {"name": "b"}, "x": 1, "none": []}));
        let other = spec(json!({"deviceRef": {"name": "b"}, "x": 1}));
        assert!(Arc::ptr_eq(&one, &same) && Arc::ptr_eq(&one, &other));
        assert_eq!(one.body.get(), r#"{"none":[],"x":1}"#);
        assert_ne!(spec(json!({"x": 2})).hash, one.hash);
    }

    #[test]
    fn an_unreadable_process_is_still_kept() {
        let raw =
            opened(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"deviceRef": "odd", "execution": 5}}));
        let process = Pool::default().process(&raw);
        assert_eq!(&*process.device, "");
        assert_eq!(process.spec.body.get(), r#"{"execution":5}"#);
    }

    #[test]
    fn what_nobody_holds_leaves_the_pool() {
        let mut pool = Pool::default();
        let kept = pool.text("kept");
        for i in 0..10_000 {
            pool.text(&i.to_string());
        }
        assert!(pool.texts.len() < 3_000);
        assert!(Arc::ptr_eq(&kept, &pool.text("kept")));
    }
}
