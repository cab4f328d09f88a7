//! One DeviceProcess for every matching NetworkSwitch, on a real API server: who matches, names and marks, edits,
//! collisions, counters, deletion, and silence when everything is right. There is no garbage collector here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "fanout/deletion.rs"]
mod deletion;
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use harness::scenario::{deployment, device_process, process_spec, report_running, switch};
use harness::{Cluster, ControlPlane, Device, Kind, MANAGER_USER, Manager, Recorder, condition, holds_for, wait_for};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use praetor::api::marks::{ALLOW_MASS_DELETION_ANNOTATION, DEVICE_NAME_LABEL, child_name_with_hash, device_label};
use praetor::wire::canonical::SpecHash;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Long enough for a busy machine; what usually takes milliseconds must not fail there.
const SOON: Duration = Duration::from_secs(20);

/// A namespace of a test's own on the control plane, with the manager, that all tests share.
struct Stage {
    plane: &'static ControlPlane,
    manager: &'static Manager,
    cluster: Cluster,
    namespace: String,
}

impl Stage {
    async fn new(name: &str) -> Self {
        static MANAGER: OnceCell<Manager> = OnceCell::const_new();
        let plane = ControlPlane::shared().await;
        let manager = MANAGER.get_or_init(|| async { Manager::builder(plane).await.start().await }).await;
        let cluster = plane.cluster().await;
        let namespace = cluster.namespace(name).await;
        Self { plane, manager, cluster, namespace }
    }

    /// The name of a device that no other test has: device names are unique in the cluster.
    fn device(&self, name: &str) -> String {
        format!("{name}.{}", self.namespace)
    }

    async fn switch(&self, name: &str, labels: &[(&str, &str)]) {
        self.cluster.create(&switch(&self.namespace, &self.device(name), labels)).await;
    }

    async fn label(&self, name: &str, key: &str, value: Option<&str>) {
        self.cluster.label(Kind::Switch, &self.namespace, &self.device(name), key, value).await;
    }

    async fn deployment(&self, name: &str, selector: &Value) -> Value {
        let mut object = deployment(&self.namespace, name, &[], process_spec("1.0.0"));
        object["spec"]["selector"] = selector.clone();
        self.cluster.create(&object).await
    }

    async fn edit(&self, name: &str, patch: &Value) -> Value {
        self.cluster.merge(Kind::Deployment, &self.namespace, name, patch).await
    }

    fn child_name(&self, deployment: &str, device: &str) -> String {
        format!("{deployment}-{}", self.device(device))
    }

    /// Children of a deployment of this uid, by the short name of their device.
    async fn children(&self, deployment: &Value) -> BTreeMap<String, Value> {
        let tail = format!(".{}", self.namespace);
        let all = self.cluster.list(Kind::Process, &self.namespace).await;
        let mine = all
            .into_iter()
            .filter(|object| object["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"]);
        let device =
            |object: &Value| object["spec"]["deviceRef"]["name"].as_str().unwrap().trim_end_matches(&tail).to_owned();
        let mine: Vec<_> = mine.collect();
        let by_device: BTreeMap<String, Value> = mine.iter().map(|object| (device(object), object.clone())).collect();
        assert_eq!(by_device.len(), mine.len(), "two children of one device");
        by_device
    }

    async fn wait_devices(&self, deployment: &Value, devices: &[&str]) -> BTreeMap<String, Value> {
        let expected: BTreeSet<&str> = devices.iter().copied().collect();
        wait_for(SOON, format!("children on {expected:?}"), async || {
            let children = self.children(deployment).await;
            if children.keys().map(String::as_str).eq(expected.iter().copied()) {
                Ok(children)
            } else {
                Err(format!("{:?}", children.keys()))
            }
        })
        .await
    }

    async fn wait_child(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait_object(Kind::Process, &self.namespace, name, SOON, what, holds).await
    }

    async fn wait_progressing(&self, name: &str, status: &str, reason: &str) -> Value {
        let what = format!("Progressing={status}, {reason}");
        let holds = |object: &Value| {
            condition(object, "Progressing").is_some_and(|c| c["status"] == status && c["reason"] == reason)
        };
        self.cluster.wait_object(Kind::Deployment, &self.namespace, name, SOON, &what, holds).await
    }

    fn gateway(&self, device: &str) -> Device {
        self.manager.device(&self.device(device))
    }

    /// Reports that a device runs what it is told, as an agent would.
    async fn run(&self, device: &str, sequence: u64) {
        let gateway = self.gateway(device);
        // What the apiserver has may be on its way to the manager still.
        let (name, hash) = wait_for(SOON, format!("{device} to be told the newest spec"), async || {
            let desired = gateway.desired().await.json();
            let item = &desired["items"][0];
            let name = item["name"].as_str().ok_or_else(|| desired.to_string())?;
            let object = self.cluster.get(Kind::Process, &self.namespace, name).await.unwrap();
            let hash = SpecHash::of_spec(&object["spec"]).to_string();
            if item["specHash"] == *hash { Ok((name.to_owned(), hash)) } else { Err(desired.to_string()) }
        })
        .await;
        gateway.report(&report_running(sequence, "boot", &self.namespace, &name, &hash)).await.expect(200);
    }
}

fn require(key: &str, operator: &str, values: &[&str]) -> Value {
    let mut requirement = json!({"key": key, "operator": operator});
    if !values.is_empty() {
        requirement["values"] = json!(values);
    }
    json!({"matchExpressions": [requirement]})
}

#[tokio::test]
async fn who_matches() {
    let stage = Stage::new("matches").await;
    stage.switch("tor", &[("role", "tor")]).await;
    stage.switch("leaf", &[("role", "leaf"), ("rack", "r1")]).await;
    stage.switch("bare", &[]).await;
    let all = stage.deployment("all", &json!({})).await;
    let labels = stage.deployment("labels", &json!({"matchLabels": {"role": "tor"}})).await;
    let inside = stage.deployment("in", &require("role", "In", &["tor", "leaf"])).await;
    let outside = stage.deployment("notin", &require("role", "NotIn", &["tor"])).await;
    let exists = stage.deployment("exists", &require("rack", "Exists", &[])).await;
    let absent = stage.deployment("absent", &require("role", "DoesNotExist", &[])).await;
    stage.wait_devices(&all, &["tor", "leaf", "bare"]).await;
    stage.wait_devices(&labels, &["tor"]).await;
    let children = stage.wait_devices(&inside, &["tor", "leaf"]).await;
    assert_eq!(children["leaf"]["metadata"]["labels"]["role"], "leaf");
    stage.wait_devices(&outside, &["leaf", "bare"]).await;
    stage.wait_devices(&exists, &["leaf"]).await;
    stage.wait_devices(&absent, &["bare"]).await;

    // Labelled later: the child comes, and those whose selector no longer holds go.
    stage.label("bare", "role", Some("tor")).await;
    stage.wait_devices(&labels, &["tor", "bare"]).await;
    stage.wait_devices(&absent, &[]).await;
    stage.wait_devices(&outside, &["leaf"]).await;
    // Another value of a label that the selector mentions is carried over.
    stage.label("bare", "role", Some("leaf")).await;
    stage
        .wait_child(&stage.child_name("in", "bare"), "the new role", |child| {
            child["metadata"]["labels"]["role"] == "leaf"
        })
        .await;
    // Unlabelled, deleted.
    stage.label("leaf", "rack", None).await;
    stage.wait_devices(&exists, &[]).await;
    stage.cluster.delete(Kind::Switch, &stage.namespace, &stage.device("tor")).await;
    stage.wait_devices(&all, &["leaf", "bare"]).await;
    stage.wait_devices(&labels, &[]).await;
    // Another selector.
    stage.edit("labels", &json!({"spec": {"selector": {"matchLabels": {"role": "leaf"}}}})).await;
    stage.wait_devices(&labels, &["leaf", "bare"]).await;
    // A switch of another namespace is no concern of these.
    let elsewhere = stage.cluster.namespace("elsewhere").await;
    stage.cluster.create(&switch(&elsewhere, &stage.device("far"), &[("role", "leaf")])).await;
    stage.switch("near", &[("role", "leaf")]).await;
    stage.wait_devices(&labels, &["leaf", "bare", "near"]).await;
}

#[tokio::test]
async fn names_marks_and_edits() {
    let stage = Stage::new("edits").await;
    stage.switch("a", &[("role", "tor"), ("other", "x")]).await;
    let long = format!("{}-b", "x".repeat(60));
    stage.switch(&long, &[("role", "tor")]).await;
    let mut manifest = deployment(&stage.namespace, "d", &[("role", "tor")], process_spec("1.0.0"));
    manifest["spec"]["template"]["metadata"] = json!({
        "labels": {"team": "net", "role": "fake", DEVICE_NAME_LABEL: "fake"}, "annotations": {"note": "one"}});
    let owner = stage.cluster.create(&manifest).await;
    let children = stage.wait_devices(&owner, &["a", &long]).await;
    let child = &children["a"];
    let name = stage.child_name("d", "a");
    assert_eq!(child["metadata"]["name"], name.as_str());
    assert_eq!(
        child["metadata"]["labels"],
        json!({"team": "net", "role": "tor", DEVICE_NAME_LABEL: device_label(&stage.device("a"))})
    );
    assert_eq!(child["metadata"]["annotations"]["note"], "one");
    let reference = &child["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&reference["controller"], &reference["kind"], &reference["name"]),
        (&json!(true), &json!("DeviceProcessDeployment"), &json!("d"))
    );
    assert_eq!(child["status"]["phase"], "Pending");
    assert_eq!(child["spec"]["deviceRef"], json!({"kind": "NetworkSwitch", "name": stage.device("a")}));
    assert_eq!(SpecHash::of_spec(&child["spec"]), SpecHash::of_spec(&owner["spec"]["template"]["spec"]));
    assert_eq!(children[&long]["metadata"]["labels"][DEVICE_NAME_LABEL], device_label(&stage.device(&long)));

    // Labels and annotations: carried over, taken away, foreign ones left alone; nothing is rolled out.
    stage.cluster.label(Kind::Process, &stage.namespace, &name, "foreign", Some("stays")).await;
    let metadata = json!({"labels": {"team": null, "tier": "2"}, "annotations": {"note": null, "motto": "two"}});
    stage.edit("d", &json!({"spec": {"template": {"metadata": metadata}}})).await;
    let child = stage
        .wait_child(&name, "new marks", |child| {
            let (labels, annotations) = (&child["metadata"]["labels"], &child["metadata"]["annotations"]);
            labels["tier"] == "2"
                && labels["team"].is_null()
                && annotations["motto"] == "two"
                && annotations["note"].is_null()
        })
        .await;
    assert_eq!(child["metadata"]["labels"]["foreign"], "stays");
    assert_eq!(child["metadata"]["generation"], 1, "labels roll nothing out");

    // The spec: what left the template leaves the child.
    let mut spec = process_spec("2.0.0");
    spec["execution"]["args"] = json!(null);
    spec["execution"]["env"] = json!([{"name": "A", "value": "1"}]);
    let edited = stage.edit("d", &json!({"spec": {"template": {"spec": spec}}})).await;
    let wanted = SpecHash::of_spec(&edited["spec"]["template"]["spec"]);
    let child = stage.wait_child(&name, "the new spec", |child| SpecHash::of_spec(&child["spec"]) == wanted).await;
    assert!(child["spec"]["execution"].get("args").is_none());

    // Edits by hand are put right.
    let by_hand =
        json!({"spec": {"restartPolicy": "Never"}, "metadata": {"labels": {"tier": "9", DEVICE_NAME_LABEL: null}}});
    stage.cluster.merge(Kind::Process, &stage.namespace, &name, &by_hand).await;
    let right = |child: &Value| {
        let labels = &child["metadata"]["labels"];
        SpecHash::of_spec(&child["spec"]) == wanted
            && labels["tier"] == "2"
            && labels[DEVICE_NAME_LABEL] == device_label(&stage.device("a")).as_str()
    };
    stage.wait_child(&name, "put right", right).await;
    // Deleted by hand: created anew.
    let before = stage.wait_child(&name, "there", |_| true).await;
    stage.cluster.delete(Kind::Process, &stage.namespace, &name).await;
    stage.wait_child(&name, "another uid", |child| child["metadata"]["uid"] != before["metadata"]["uid"]).await;
}

#[tokio::test]
async fn names_that_are_taken() {
    let stage = Stage::new("taken").await;
    let recorder = Recorder::start(stage.plane).await;
    for device in ["orphan", "foreign", "former", "leaving"] {
        stage.switch(device, &[]).await;
    }
    let object = |device: &str| {
        device_process(&stage.namespace, &stage.child_name("d", device), &stage.device(device), process_spec("0.9.0"))
    };
    let owned = |mut object: Value, kind: &str, name: &str| {
        object["metadata"]["ownerReferences"] = json!([{"apiVersion": "azure.com/v1alpha1", "kind": kind, "name": name,
            "uid": format!("00000000-0000-0000-0000-00000000000{}", name.len()), "controller": true}]);
        object
    };
    let mut orphan = object("orphan");
    orphan["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "keeper", "uid": "11111111-0000-0000-0000-000000000000"}]);
    let orphan = stage.cluster.create(&orphan).await;
    let foreign = stage.cluster.create(&owned(object("foreign"), "Somebody", "else")).await;
    // Of a deployment of this name that is gone, and stopped from going by a finalizer.
    let mut former = owned(object("former"), "DeviceProcessDeployment", "d");
    former["metadata"]["finalizers"] = json!(["example.com/wait"]);
    stage.cluster.create(&former).await;
    let mut leaving = object("leaving");
    leaving["metadata"]["finalizers"] = json!(["example.com/wait"]);
    stage.cluster.create(&leaving).await;
    stage.cluster.delete(Kind::Process, &stage.namespace, &stage.child_name("d", "leaving")).await;

    let owner = stage.deployment("d", &json!({})).await;
    let uid = owner["metadata"]["uid"].as_str().unwrap();
    let name = |device: &str| stage.child_name("d", device);
    // Adopted: the same object, with its other owner, the template's spec and our marks.
    let adopted = stage
        .wait_child(&name("orphan"), "adopted", |child| {
            child["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        })
        .await;
    assert_eq!(adopted["metadata"]["uid"], orphan["metadata"]["uid"]);
    let owners = adopted["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!((owners.len(), &owners[0]["name"], &owners[1]["controller"]), (2, &json!("keeper"), &json!(true)));
    assert_eq!(SpecHash::of_spec(&adopted["spec"]), SpecHash::of_spec(&owner["spec"]["template"]["spec"]));
    assert_eq!(adopted["metadata"]["labels"]["app"], "d");
    // Foreign: left alone; the child gets a name with a hash, and an event tells.
    let hashed = child_name_with_hash("d", uid, &stage.device("foreign"));
    stage
        .wait_child(&hashed, "created", |child| child["spec"]["deviceRef"]["name"] == stage.device("foreign").as_str())
        .await;
    assert_eq!(
        stage.cluster.get(Kind::Process, &stage.namespace, &name("foreign")).await.unwrap()["metadata"],
        foreign["metadata"]
    );
    let taken = || {
        recorder
            .events("NameTaken", "d")
            .into_iter()
            .filter(|event| event.namespace == stage.namespace)
            .collect::<Vec<_>>()
    };
    let event = wait_for(SOON, "NameTaken", async || taken().pop()).await;
    assert!(
        event.kind == "Warning" && event.note.contains(&name("foreign")) && event.note.contains(&hashed),
        "{event:?}"
    );
    // The former owner's child is deleted and waited for; so is one that somebody else deletes.
    stage.wait_child(&name("former"), "being deleted", |child| !child["metadata"]["deletionTimestamp"].is_null()).await;
    for device in ["former", "leaving"] {
        let count = stage.children(&owner).await.keys().filter(|known| *known == device).count();
        assert_eq!(count, 0, "{device} is waited for");
        stage
            .cluster
            .merge(Kind::Process, &stage.namespace, &name(device), &json!({"metadata": {"finalizers": null}}))
            .await;
        stage.wait_child(&name(device), "ours", |child| child["metadata"]["ownerReferences"][0]["uid"] == uid).await;
    }
    assert_eq!(taken().len(), 1, "once per device");
}

#[tokio::test]
async fn counters_conditions_and_columns() {
    let stage = Stage::new("counters").await;
    let recorder = Recorder::start(stage.plane).await;
    for device in ["a", "b", "c"] {
        stage.switch(device, &[]).await;
    }
    let owner = stage.deployment("d", &json!({})).await;
    stage.wait_devices(&owner, &["a", "b", "c"]).await;
    let status = stage.wait_progressing("d", "True", "WaitingForDevices").await;
    assert_eq!(condition(&status, "Available").unwrap()["status"], "False", "3 of 3 is more than 10 %");
    for device in ["a", "b"] {
        stage.run(device, 1).await;
    }
    let numbers = async |what: &str, expected: [i64; 6]| {
        let fields = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "updatedNumberScheduled",
            "numberReady",
            "numberAvailable",
            "numberUnavailable",
        ];
        let holds =
            |object: &Value| fields.iter().zip(expected).all(|(field, number)| object["status"][field] == number);
        stage.cluster.wait_object(Kind::Deployment, &stage.namespace, "d", SOON, what, holds).await
    };
    let object = numbers("two of three", [3, 3, 2, 2, 2, 1]).await;
    assert_eq!(condition(&object, "Available").unwrap()["status"], "True", "1 of 3 is 10 %, rounded up");
    // The third was there in a life of the manager before this one: it knows of nothing that it would put right.
    let [there, away] = ["b", "c"].map(|device| stage.child_name("d", device));
    let status = stage.cluster.get(Kind::Process, &stage.namespace, &there).await.unwrap()["status"].clone();
    stage.cluster.merge_status(Kind::Process, &stage.namespace, &away, &status).await;
    let object = numbers("all three", [3, 3, 3, 3, 3, 0]).await;
    assert_eq!(object["status"]["observedGeneration"], 1);
    stage.wait_progressing("d", "True", "RolloutComplete").await;
    let table = stage.plane.kubectl().run(&["get", "-n", &stage.namespace, "dpd", "d"]).await;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "DESIRED", "CURRENT", "UPDATED", "READY", "AVAILABLE", "UNAVAILABLE", "AGE"]);
    assert_eq!(rows[1][..7], ["d", "3", "3", "3", "3", "3", "0"]);

    // An absent device keeps its spec while the others get the new one, and gets it when it is back.
    stage.cluster.merge_status(Kind::Process, &stage.namespace, &away, &json!({"conditions": [{
        "type": "AgentConnected", "status": "False", "reason": "HeartbeatMissed", "message": "no report within the staleness window",
        "lastTransitionTime": "2025-01-01T00:00:00Z"}]})).await;
    numbers("one is away", [3, 3, 3, 2, 2, 1]).await;
    let edited = stage.edit("d", &json!({"spec": {"template": {"spec": process_spec("2.0.0")}}})).await;
    let wanted = SpecHash::of_spec(&edited["spec"]["template"]["spec"]);
    for device in ["a", "b"] {
        stage
            .wait_child(&stage.child_name("d", device), "the new spec", |child| {
                SpecHash::of_spec(&child["spec"]) == wanted
            })
            .await;
        stage.run(device, 2).await;
    }
    stage.wait_progressing("d", "True", "WaitingForDevices").await;
    let kept = stage.wait_child(&away, "there", |_| true).await;
    assert_ne!(SpecHash::of_spec(&kept["spec"]), wanted, "an absent device keeps what it has");
    stage.run("c", 2).await;
    stage.wait_child(&away, "the new spec", |child| SpecHash::of_spec(&child["spec"]) == wanted).await;
    stage.run("c", 3).await;
    numbers("all three again", [3, 3, 3, 3, 3, 0]).await;
    stage.wait_progressing("d", "True", "RolloutComplete").await;

    // Each rollout began once and was complete once, whatever happened in between.
    let events = |reason: &str| {
        recorder.events(reason, "d").into_iter().filter(|event| event.namespace == stage.namespace).count()
    };
    for reason in ["RolloutStarted", "RolloutComplete"] {
        wait_for(SOON, format!("two {reason}"), async || {
            if events(reason) == 2 { Ok(()) } else { Err(events(reason).to_string()) }
        })
        .await;
    }
    let written: Vec<_> =
        recorder.history(Kind::Deployment, &stage.namespace, "d").into_iter().map(|seen| seen.at).collect();
    assert!(written.len() < 20, "{} versions of the deployment", written.len());
}

#[tokio::test]
async fn one_that_is_refused_stops_no_other() {
    let stage = Stage::new("broken").await;
    for device in ["a", "b"] {
        stage.switch(device, &[]).await;
    }
    // The cluster's own rule against one deployment's children and against one device's.
    let expression = format!(
        "object.metadata.namespace != '{0}' || !(object.metadata.name.startsWith('broken-') || object.metadata.name == 'half-a.{0}')",
        stage.namespace
    );
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": stage.namespace},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["azure.com"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["deviceprocesses"]}]},
            "validations": [{"expression": expression, "message": "not on this cluster"}]}});
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": stage.namespace},
        "spec": {"policyName": stage.namespace, "validationActions": ["Deny"]}});
    stage.plane.kubectl().apply(&format!("{policy}\n---\n{binding}")).await;
    let probe = device_process(&stage.namespace, "broken-probe", &stage.device("a"), process_spec("1.0.0"));
    wait_for(SOON, "the policy to hold", async || {
        let made = stage.cluster.try_create(&probe).await;
        if made.is_ok() {
            stage.cluster.delete(Kind::Process, &stage.namespace, "broken-probe").await;
        }
        made.is_err()
    })
    .await;

    let broken = stage.deployment("broken", &json!({})).await;
    let half = stage.deployment("half", &json!({})).await;
    let sound = stage.deployment("sound", &json!({})).await;
    stage.wait_devices(&sound, &["a", "b"]).await;
    stage.wait_devices(&half, &["b"]).await;
    for name in ["broken", "half"] {
        let object = stage.wait_progressing(name, "False", "DeviceProcessRefused").await;
        let message = condition(&object, "Progressing").unwrap()["message"].as_str().unwrap();
        assert!(message.contains("not on this cluster") && message.contains(&stage.device("a")), "{message}");
    }
    assert!(stage.children(&broken).await.is_empty());
    // The device that is refused delays no other one, however long it has been so.
    stage.switch("c", &[]).await;
    stage.wait_devices(&half, &["b", "c"]).await;
    let kubectl = stage.plane.kubectl();
    kubectl.run(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", &stage.namespace]).await;
    // It is tried again at ever longer intervals, of a minute at most.
    let deadline = Duration::from_secs(90);
    wait_for(deadline, "both to recover", async || {
        stage.children(&broken).await.len() + stage.children(&half).await.len() == 6
    })
    .await;
    stage.wait_progressing("broken", "True", "WaitingForDevices").await;
    stage.wait_progressing("half", "True", "WaitingForDevices").await;
}

/// On a control plane of its own: every request of the manager counts.
#[tokio::test]
async fn a_restart_with_everything_right_writes_nothing() {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let mut manager = Manager::builder(&plane).await.start().await;
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("fleet").await;
    let names = harness::scenario::fleet("sw", 300);
    harness::scenario::create_switches(&cluster, &namespace, &names, &[("role", "tor")]).await;
    let begun = Instant::now();
    cluster.create(&deployment(&namespace, "d", &[("role", "tor")], process_spec("1.0.0"))).await;
    let settled = |object: &Value| object["status"]["currentNumberScheduled"] == 300;
    cluster.wait_object(Kind::Deployment, &namespace, "d", Duration::from_secs(60), "300 children", settled).await;
    println!("300 children after {:?}", begun.elapsed());
    // The audit log gets its line after the answer was sent.
    let creates = |mark: usize| plane.audit_since(mark).by(MANAGER_USER).verb("create").resource("deviceprocesses");
    wait_for(SOON, "every request in the audit log", async || creates(0).count() >= 300).await;
    assert_eq!(creates(0).count(), 300, "one request per child");
    let gets = plane.audit().by(MANAGER_USER).verb("get").resource("deviceprocesses");
    assert_eq!(gets.count(), 0, "{}", gets.describe());

    // Quiet when nothing changes, and quiet after a restart: until a new child shows that all has been looked at.
    let mark = plane.audit_mark();
    manager.restart().await;
    cluster.create(&switch(&namespace, "one-more", &[("role", "tor")])).await;
    let done = |object: &Value| object["status"]["currentNumberScheduled"] == 301;
    cluster.wait_object(Kind::Deployment, &namespace, "d", SOON, "301 children", done).await;
    let writes = plane.audit_since(mark).by(MANAGER_USER).writes();
    let unexpected = writes.filter(|entry| {
        !(entry.name == "d-one-more"
            || entry.resource == "events"
            || entry.subresource == "status" && entry.name == "d")
    });
    // A create names its object in the body, so the audit log knows it by the URI alone.
    let unexpected = unexpected
        .filter(|entry| !(entry.verb == "create" && entry.resource == "deviceprocesses" && entry.code == 201));
    assert_eq!(unexpected.count(), 0, "{}", unexpected.describe());
    wait_for(SOON, "the request in the audit log", async || creates(mark).count() >= 1).await;
    assert_eq!(creates(mark).count(), 1, "{}", creates(mark).describe());

    // The names of those that were there before are the same objects still.
    let api: Api<DynamicObject> = cluster.api(Kind::Process, &namespace);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"foreign": "x"}}}));
    // The event of the new child, and the last of the numbers.
    wait_for(SOON, "the settling to end", async || {
        let mark = plane.audit_mark();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let writes = plane.audit_since(mark).by(MANAGER_USER).writes();
        if writes.count() == 0 { Ok(()) } else { Err(writes.describe()) }
    })
    .await;
    let mark = plane.audit_mark();
    api.patch("d-sw-00000", &PatchParams::default(), &patch).await.unwrap();
    holds_for(Duration::from_secs(2), "a foreign label changes nothing", async || {
        let writes = plane.audit_since(mark).by(MANAGER_USER).writes();
        if writes.count() == 0 { Ok(()) } else { Err(writes.describe()) }
    })
    .await;
}
