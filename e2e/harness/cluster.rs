//! Objects of the cluster as plain JSON, read and written as admin (or whoever the client is).

use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, Resource as _};
use serde_json::{Value, json};

use super::process::unique;
use super::wait::wait_for;

/// The kinds that tests touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `networkswitches`
    Switch,
    /// `deviceprocesses`
    Process,
    /// `deviceprocessdeployments`
    Deployment,
    /// `events` of events.k8s.io
    Event,
    /// `leases` of coordination.k8s.io
    Lease,
}

impl Kind {
    /// Group, version, kind and plural.
    pub fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = match self {
            Self::Switch => ("azure.com", "v1alpha1", "NetworkSwitch", "networkswitches"),
            Self::Process => ("azure.com", "v1alpha1", "DeviceProcess", "deviceprocesses"),
            Self::Deployment => ("azure.com", "v1alpha1", "DeviceProcessDeployment", "deviceprocessdeployments"),
            Self::Event => ("events.k8s.io", "v1", "Event", "events"),
            Self::Lease => ("coordination.k8s.io", "v1", "Lease", "leases"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    /// By the `kind` of a manifest.
    pub fn of(manifest: &Value) -> Self {
        match manifest["kind"].as_str() {
            Some("NetworkSwitch") => Self::Switch,
            Some("DeviceProcess") => Self::Process,
            Some("DeviceProcessDeployment") => Self::Deployment,
            Some("Event") => Self::Event,
            Some("Lease") => Self::Lease,
            other => panic!("no test knows the kind {other:?}"),
        }
    }
}

/// The condition of one type in an object's status.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// `True`, `False` or `Unknown`; empty when the condition is absent.
pub fn condition_status<'a>(object: &'a Value, kind: &str) -> &'a str {
    condition(object, kind).and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// A client with the few calls that tests make. Belongs to the runtime it was made on: make one per test.
#[derive(Clone)]
pub struct Cluster {
    /// For everything else.
    pub client: Client,
}

impl Cluster {
    /// The objects of one kind in one namespace.
    pub fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// Makes a namespace with a name of its own.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = unique(prefix);
        let mut namespace = Namespace::default();
        namespace.meta_mut().name = Some(name.clone());
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a new namespace");
        name
    }

    /// Creates the manifest's object; panics when the apiserver refuses.
    pub async fn create(&self, manifest: &Value) -> Value {
        self.try_create(manifest).await.unwrap_or_else(|e| panic!("create refused: {e}\n{manifest:#}"))
    }

    /// Creates the manifest's object.
    ///
    /// # Errors
    /// What the apiserver says.
    pub async fn try_create(&self, manifest: &Value) -> Result<Value, kube::Error> {
        let namespace = manifest["metadata"]["namespace"].as_str().expect("a namespace");
        let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("a manifest");
        self.api(Kind::of(manifest), namespace).create(&PostParams::default(), &object).await.map(plain)
    }

    /// Creates all of them, at most `concurrency` at a time, and panics at the first refusal.
    pub async fn create_all(&self, manifests: impl IntoIterator<Item = Value>, concurrency: usize) -> usize {
        let created = stream::iter(manifests)
            .map(|manifest| async move { self.create(&manifest).await })
            .buffer_unordered(concurrency);
        created.count().await
    }

    /// The object, or `None` when there is none.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.api(kind, namespace)
            .get_opt(name)
            .await
            .unwrap_or_else(|e| panic!("get {kind:?} {namespace}/{name}: {e}"))
            .map(plain)
    }

    /// All objects of one kind in one namespace, by name.
    pub async fn list(&self, kind: Kind, namespace: &str) -> Vec<Value> {
        self.list_labelled(kind, namespace, "").await
    }

    /// The same with a label selector.
    pub async fn list_labelled(&self, kind: Kind, namespace: &str, selector: &str) -> Vec<Value> {
        let listed = self.api(kind, namespace).list(&ListParams::default().labels(selector)).await;
        let mut items: Vec<Value> = listed
            .unwrap_or_else(|e| panic!("list {kind:?} in {namespace}: {e}"))
            .items
            .into_iter()
            .map(plain)
            .collect();
        items.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
        items
    }

    /// Changes an object by merge patch; panics when the apiserver refuses.
    pub async fn merge(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> Value {
        let patched = self.api(kind, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        plain(patched.unwrap_or_else(|e| panic!("patch of {kind:?} {namespace}/{name} refused: {e}\n{patch:#}")))
    }

    /// Changes an object's status by merge patch.
    pub async fn merge_status(&self, kind: Kind, namespace: &str, name: &str, status: &Value) -> Value {
        let patch = json!({ "status": status });
        let patched = self.api(kind, namespace).patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        plain(patched.unwrap_or_else(|e| panic!("status patch of {kind:?} {namespace}/{name} refused: {e}")))
    }

    /// Sets or, with `None`, removes one label.
    pub async fn label(&self, kind: Kind, namespace: &str, name: &str, key: &str, value: Option<&str>) -> Value {
        self.merge(kind, namespace, name, &json!({ "metadata": { "labels": { key: value } } })).await
    }

    /// Deletes an object that must exist.
    pub async fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let deleted = self.api(kind, namespace).delete(name, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|e| panic!("delete {kind:?} {namespace}/{name}: {e}"));
    }

    /// Waits until the object exists and the condition holds, and returns it; panics with the object as seen last.
    #[track_caller]
    pub fn wait_object(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        deadline: Duration,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Value> {
        let what = format!("{kind:?} {namespace}/{name}: {what}");
        let (cluster, namespace, name) = (self.clone(), namespace.to_owned(), name.to_owned());
        // Called here, outside of any async block, so that the panic names the caller's line.
        wait_for(deadline, what, async move || match cluster.get(kind, &namespace, &name).await {
            Some(object) if holds(&object) => Ok(object),
            Some(object) => Err(format!("{object:#}")),
            None => Err("there is no such object".into()),
        })
    }

    /// Waits until the object is gone.
    #[track_caller]
    pub fn wait_gone(&self, kind: Kind, namespace: &str, name: &str, deadline: Duration) -> impl Future<Output = ()> {
        let what = format!("{kind:?} {namespace}/{name} to be gone");
        let (cluster, namespace, name) = (self.clone(), namespace.to_owned(), name.to_owned());
        wait_for(deadline, what, async move || match cluster.get(kind, &namespace, &name).await {
            None => Ok(()),
            Some(object) => Err(format!("{object:#}")),
        })
    }
}

fn plain(object: DynamicObject) -> Value {
    serde_json::to_value(object).expect("JSON")
}
