//! Edge: performs a plan: many writes at once, each under the version that the plan has seen.

use super::call::CallError;
use super::leader::Leader;
use super::metrics::Metrics;
use super::plan::{Action, DEVICE_KIND, OWNER_KIND, Plan, Step, Why};
use super::template::{MarkMap, Template};
use crate::api::{API_VERSION, GROUP, VERSION};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::{Deployment, Process, Text};
use crate::desired::object::Raw;
use crate::wire::canonical::SpecHash;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::header::CONTENT_TYPE;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions, Request};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Writes under way at once, over all deployments.
pub const CONCURRENCY: usize = 32;
/// So many failures in a row that are nobody's fault in particular end a pass: the apiserver is in trouble.
const FAILURES_IN_A_ROW: u32 = 8;

/// What a pass over a plan has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Names of children that were created.
    pub created: Vec<String>,
    /// Names and uids of children whose deletion was accepted.
    pub deleted: Vec<(String, Box<str>)>,
    /// Children that were adopted or changed.
    pub changed: usize,
    /// Highest resourceVersion that a write returned.
    pub revision: u64,
    /// Devices on which something was refused, and how.
    pub refused: Vec<(Text, String)>,
    /// How many writes failed, whatever the cause.
    pub failed: usize,
    /// The last failure that may pass.
    pub trouble: Option<CallError>,
    /// Writes that somebody else was faster than: what is there now is to be planned for.
    pub overtaken: usize,
    /// Whether steps are left: time was up, or there was trouble.
    pub unfinished: bool,
    /// The lead was lost meanwhile.
    pub lost: bool,
}

/// Performs steps; one for all deployments.
pub struct Executor {
    leader: Leader,
    directory: Arc<Directory>,
    metrics: Metrics,
    permits: Semaphore,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewChild<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: NewMeta<'a>,
    spec: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewMeta<'a> {
    name: &'a str,
    namespace: &'a str,
    labels: &'a MarkMap,
    annotations: &'a MarkMap,
    owner_references: [OwnerReference; 1],
}

/// A line of a JSON Patch (RFC 6902).
#[derive(Serialize)]
struct Op {
    op: &'static str,
    path: &'static str,
    value: Box<RawValue>,
}

/// One write.
#[derive(Clone, Copy)]
enum Job<'a> {
    Step { deployment: &'a Deployment, template: &'a Template, step: &'a Step },
    Delete(&'a Arc<Process>),
}

/// What became of one step.
enum Done {
    Created(String, u64),
    Deleted(String, Box<str>),
    Changed(u64),
    /// Somebody else was there first; the index has been told what is there now.
    Overtaken,
}

// === impl Executor ===

impl Executor {
    /// An executor for one term.
    #[must_use]
    pub fn new(leader: Leader, directory: Arc<Directory>, metrics: Metrics) -> Self {
        Self { leader, directory, metrics, permits: Semaphore::new(CONCURRENCY) }
    }

    /// Performs the steps of a plan, except on devices that rest, until all are done, time is up, the lead is lost or
    /// the token is cancelled; what has begun is always finished.
    pub async fn run(
        &self,
        deployment: &Deployment,
        plan: &Plan,
        resting: &HashSet<Text>,
        until: Instant,
        shutdown: &CancellationToken,
    ) -> Outcome {
        let Some(template) = &plan.template else { return Outcome::default() };
        let steps =
            plan.steps.iter().filter(|step| !matches!(step.action, Action::Wait) && !resting.contains(&step.device));
        self.run_all(steps.map(|step| Job::Step { deployment, template, step }).collect(), until, shutdown).await
    }

    /// Deletes children whose deployment is gone.
    pub async fn clean_up(&self, children: &[Arc<Process>], until: Instant, shutdown: &CancellationToken) -> Outcome {
        self.run_all(children.iter().map(Job::Delete).collect(), until, shutdown).await
    }

    async fn run_all(&self, jobs: Vec<Job<'_>>, until: Instant, shutdown: &CancellationToken) -> Outcome {
        let mut outcome = Outcome::default();
        let mut in_a_row = 0;
        let mut jobs = jobs.into_iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < CONCURRENCY
                && in_a_row < FAILURES_IN_A_ROW
                && Instant::now() < until
                && !outcome.lost
                && !shutdown.is_cancelled()
            {
                let Some(job) = jobs.next() else { break };
                under_way.push(self.perform(job));
            }
            let Some((job, done)) = under_way.next().await else { break };
            let (operation, device) = (job.operation(), job.device());
            if matches!(done, Err(CallError::Lost(_))) {
                outcome.lost = true;
                continue;
            }
            self.metrics
                .children_writes
                .with_label_values(&[operation, done.as_ref().map_or_else(CallError::label, Done::label)])
                .inc();
            match done {
                Ok(done) => {
                    in_a_row = 0;
                    outcome.take(done);
                }
                Err(error) => {
                    tracing::debug!(%device, operation, %error, "write failed");
                    outcome.failed += 1;
                    if error.may_pass() {
                        in_a_row += if matches!(error, CallError::Busy(_)) { FAILURES_IN_A_ROW } else { 1 };
                        outcome.trouble = Some(error);
                    } else {
                        // An answer all the same.
                        in_a_row = 0;
                        outcome.refused.push((device.clone(), error.to_string()));
                    }
                }
            }
        }
        outcome.unfinished = outcome.lost || jobs.next().is_some();
        outcome
    }

    async fn perform<'a>(&self, job: Job<'a>) -> (Job<'a>, Result<Done, CallError>) {
        // The semaphore is never closed, so there always is a permit in the end.
        let _permit = self.permits.acquire().await;
        let done = match job {
            Job::Delete(child) => self.delete(child).await,
            Job::Step { deployment, template, step } => match &step.action {
                Action::Create { name, labels } => self.create(deployment, template, &step.device, name, labels).await,
                Action::Adopt { object, spec, marks } => self.adopt(deployment, template, object, *spec, marks).await,
                Action::Update { child, spec, marks } => {
                    self.update(template, child, *spec, marks.as_ref(), None).await
                }
                Action::Delete { child } if step.why == Why::NotMatching => self.delete_unmatched(child).await,
                Action::Delete { child } => self.delete(child).await,
                Action::Wait => Ok(Done::Overtaken),
            },
        };
        (job, done)
    }

    async fn create(
        &self,
        deployment: &Deployment,
        template: &Template,
        device: &str,
        name: &str,
        labels: &MarkMap,
    ) -> Result<Done, CallError> {
        let namespace = &*deployment.key.namespace;
        let child = NewChild {
            api_version: API_VERSION,
            kind: Kind::Process.as_str(),
            metadata: NewMeta {
                name,
                namespace,
                labels,
                annotations: template.annotations(),
                owner_references: [owner(deployment)],
            },
            spec: &template.spec(DEVICE_KIND, device, None),
        };
        let body = serde_json::to_vec(&child).map_err(|error| CallError::Request(error.to_string()))?;
        let request = requests(namespace, Kind::Process).create(&PostParams::default(), body).map_err(unbuilt)?;
        match self.leader.write::<Raw>(request).await {
            Ok(raw) => {
                let revision = raw.revision();
                self.take_back(raw, Some(template.hash), labels, template.annotations())?;
                Ok(Done::Created(name.to_owned(), revision))
            }
            Err(CallError::Exists) => self.overtaken(namespace, name).await,
            Err(CallError::NotFound) => {
                Err(CallError::Refused(format!("there is no namespace {namespace}, or no CRD for DeviceProcesses")))
            }
            Err(error) => Err(error),
        }
    }

    async fn adopt(
        &self,
        deployment: &Deployment,
        template: &Template,
        object: &Process,
        spec: bool,
        marks: &(MarkMap, MarkMap),
    ) -> Result<Done, CallError> {
        // The index keeps no owner references but the controller's; there may be others, which stay.
        let (namespace, name) = (&*object.key.namespace, &*object.key.name);
        let live = self.get(Kind::Process, namespace, name).await?;
        let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
        let same = live.revision() == object.revision && owners.iter().all(|owner| owner.controller != Some(true));
        if !same {
            self.directory.adopt(Kind::Process, live);
            return Ok(Done::Overtaken);
        }
        owners.retain(|owner| owner.uid != *deployment.uid);
        owners.push(owner(deployment));
        self.update(template, object, spec, Some(marks), Some(&owners)).await
    }

    async fn update(
        &self,
        template: &Template,
        child: &Process,
        spec: bool,
        marks: Option<&(MarkMap, MarkMap)>,
        owners: Option<&[OwnerReference]>,
    ) -> Result<Done, CallError> {
        // A JSON Patch: a merge patch would leave behind what has left the template.
        let mut ops = vec![op("replace", "/metadata/resourceVersion", &child.revision.to_string())?];
        if spec {
            let value = template.spec(&child.device_kind, &child.device, child.device_namespace.as_deref());
            ops.push(Op { op: "replace", path: "/spec", value });
        }
        let none = BTreeMap::new();
        let (labels, annotations) = marks.map_or((&none, &none), |(labels, annotations)| (labels, annotations));
        if marks.is_some() {
            ops.push(op("add", "/metadata/labels", labels)?);
            ops.push(op("add", "/metadata/annotations", annotations)?);
        }
        if let Some(owners) = owners {
            ops.push(op("add", "/metadata/ownerReferences", owners)?);
        }
        let (namespace, name) = (&*child.key.namespace, &*child.key.name);
        let body = serde_json::to_vec(&ops).map_err(|error| CallError::Request(error.to_string()))?;
        let request = http::Request::patch(path(namespace, Kind::Process, name))
            .header(CONTENT_TYPE, "application/json-patch+json");
        let request = request.body(body).map_err(|error| CallError::Request(error.to_string()))?;
        match self.leader.write::<Raw>(request).await {
            Ok(raw) => {
                let revision = raw.revision();
                self.take_back(raw, spec.then_some(template.hash), labels, annotations)?;
                Ok(Done::Changed(revision))
            }
            Err(CallError::Conflict) => self.overtaken(namespace, name).await,
            // The watch will show that it is gone.
            Err(CallError::NotFound) => Ok(Done::Overtaken),
            Err(error) => Err(error),
        }
    }

    /// Deletes a child whose switch does not match, or is not there, unless that is only not known yet: the watch of
    /// switches may be behind that of children, and a switch may have come in between.
    async fn delete_unmatched(&self, child: &Process) -> Result<Done, CallError> {
        let seen = self.directory.read(|index| index.progress(Kind::Switch));
        if seen < child.revision && !child.device.is_empty() {
            match self.get(Kind::Switch, &child.key.namespace, &child.device).await {
                Ok(live) if live.revision() > seen => {
                    self.directory.adopt(Kind::Switch, live);
                    return Ok(Done::Overtaken);
                }
                Ok(_) | Err(CallError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.delete(child).await
    }

    async fn delete(&self, child: &Process) -> Result<Done, CallError> {
        let (namespace, name) = (&*child.key.namespace, &*child.key.name);
        let preconditions =
            Preconditions { resource_version: Some(child.revision.to_string()), uid: Some(child.uid.to_string()) };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let request = requests(namespace, Kind::Process).delete(name, &params).map_err(unbuilt)?;
        match self.leader.delete::<Raw>(request).await {
            Ok(left) => {
                // With a finalizer the object is still there, and says so.
                if let Some(raw) = left {
                    self.directory.adopt(Kind::Process, raw);
                }
                Ok(Done::Deleted(name.to_owned(), child.uid.clone()))
            }
            Err(CallError::NotFound) => Ok(Done::Overtaken),
            Err(CallError::Conflict) => self.overtaken(namespace, name).await,
            Err(error) => Err(error),
        }
    }

    /// Patches a deployment's status under its version and takes in the result.
    ///
    /// # Errors
    /// [`CallError::Conflict`] when the deployment changed meanwhile; the index then has it as it is.
    pub async fn patch_status(&self, deployment: &Deployment, status: &Value) -> Result<(), CallError> {
        let (namespace, name) = (&*deployment.key.namespace, &*deployment.key.name);
        let patch = json!({"metadata": {"resourceVersion": deployment.revision.to_string()}, "status": status});
        let request = requests(namespace, Kind::Deployment)
            .patch_subresource("status", name, &PatchParams::default(), &Patch::Merge(patch))
            .map_err(unbuilt)?;
        let result = self.leader.write::<Raw>(request).await;
        if let Err(error @ CallError::Lost(_)) = result {
            return Err(error);
        }
        self.metrics.status_patches.with_label_values(&[result.as_ref().map_or_else(CallError::label, |_| "ok")]).inc();
        match result {
            Ok(raw) => {
                self.directory.adopt(Kind::Deployment, raw);
                Ok(())
            }
            Err(CallError::Conflict) => {
                let live = self.get(Kind::Deployment, namespace, name).await?;
                self.directory.adopt(Kind::Deployment, live);
                Err(CallError::Conflict)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a live read confirms that a deployment of a uid is gone.
    ///
    /// # Errors
    /// When there was no answer: then it counts as there.
    pub async fn is_gone(&self, namespace: &str, name: &str, uid: &str) -> Result<bool, CallError> {
        match self.get(Kind::Deployment, namespace, name).await {
            Ok(live) => {
                let same = live.metadata.uid.as_deref() == Some(uid);
                self.directory.adopt(Kind::Deployment, live);
                Ok(!same)
            }
            Err(CallError::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The object as it is now (a quorum read).
    async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Raw, CallError> {
        let request = requests(namespace, kind).get(name, &GetParams::default()).map_err(unbuilt)?;
        self.leader.read(request).await
    }

    /// Reads what is there now, so that the next plan knows it even if the watch is late.
    async fn overtaken(&self, namespace: &str, name: &str) -> Result<Done, CallError> {
        match self.get(Kind::Process, namespace, name).await {
            Ok(raw) => self.directory.adopt(Kind::Process, raw),
            Err(CallError::NotFound) => {}
            Err(error) => return Err(error),
        }
        Ok(Done::Overtaken)
    }

    /// Takes in what a write returned. When that is not what was written, writing again would go on for ever.
    fn take_back(
        &self,
        raw: Raw,
        hash: Option<SpecHash>,
        labels: &MarkMap,
        annotations: &MarkMap,
    ) -> Result<(), CallError> {
        let have = |have: Option<&MarkMap>, want: &MarkMap| {
            want.iter().all(|(key, value)| have.and_then(|have| have.get(key)) == Some(value))
        };
        let labels = have(raw.metadata.labels.as_ref(), labels);
        let annotations = have(raw.metadata.annotations.as_ref(), annotations);
        let (namespace, name, revision) = (raw.namespace().to_owned(), raw.name().to_owned(), raw.revision());
        self.directory.adopt(Kind::Process, raw);
        // The index has just hashed it, unless it knows something newer by now.
        let taken = self.directory.read(|index| {
            let process = index.process(&namespace, &name).filter(|process| process.revision == revision);
            process.map(|process| process.spec.hash)
        });
        let altered = match (hash, taken) {
            (Some(hash), Some(taken)) if hash != taken => Some("spec"),
            _ if !labels => Some("labels"),
            _ => (!annotations).then_some("annotations"),
        };
        altered.map_or(Ok(()), |what| Err(CallError::Altered(what)))
    }
}

// === impl Job ===

impl Job<'_> {
    fn device(&self) -> &Text {
        match self {
            Self::Step { step, .. } => &step.device,
            Self::Delete(child) => &child.device,
        }
    }

    /// The metrics' label.
    fn operation(&self) -> &'static str {
        let Self::Step { step, .. } = self else { return "delete" };
        match step.action {
            Action::Create { .. } => "create",
            Action::Adopt { .. } => "adopt",
            Action::Update { .. } => "update",
            Action::Delete { .. } => "delete",
            Action::Wait => "none",
        }
    }
}

// === impl Done ===

impl Done {
    fn label(&self) -> &'static str {
        match self {
            Self::Overtaken => "conflict",
            _ => "ok",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    fn take(&mut self, done: Done) {
        match done {
            Done::Created(name, revision) => {
                self.created.push(name);
                self.revision = self.revision.max(revision);
            }
            Done::Deleted(name, uid) => self.deleted.push((name, uid)),
            Done::Changed(revision) => {
                self.changed += 1;
                self.revision = self.revision.max(revision);
            }
            Done::Overtaken => self.overtaken += 1,
        }
    }
}

fn owner(deployment: &Deployment) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.to_owned(),
        // Not blockOwnerDeletion: that would need the right to change the deployment's finalizers.
        block_owner_deletion: None,
        controller: Some(true),
        kind: OWNER_KIND.to_owned(),
        name: deployment.key.name.to_string(),
        uid: deployment.uid.to_string(),
    }
}

fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Switch => "networkswitches",
        Kind::Process => "deviceprocesses",
        Kind::Deployment => "deviceprocessdeployments",
    }
}

fn requests(namespace: &str, kind: Kind) -> Request {
    Request::new(format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{}", plural(kind)))
}

fn path(namespace: &str, kind: Kind, name: &str) -> String {
    format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{}/{name}", plural(kind))
}

fn op(op: &'static str, path: &'static str, value: &(impl Serialize + ?Sized)) -> Result<Op, CallError> {
    let value = to_raw_value(value).map_err(|error| CallError::Request(error.to_string()))?;
    Ok(Op { op, path, value })
}

fn unbuilt(error: impl std::fmt::Display) -> CallError {
    CallError::Request(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_carries_the_version_first() {
        let ops = [
            op("replace", "/metadata/resourceVersion", "17").unwrap(),
            op("add", "/metadata/labels", &BTreeMap::from([("a", "b")])).unwrap(),
        ];
        assert_eq!(
            serde_json::to_string(&ops).unwrap(),
            r#"[{"op":"replace","path":"/metadata/resourceVersion","value":"17"},{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]"#
        );
        assert_eq!(path("n", Kind::Process, "d-s"), "/apis/azure.com/v1alpha1/namespaces/n/deviceprocesses/d-s");
    }
}
