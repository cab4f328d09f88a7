//! What devices report becomes status: one write for each transition, none without, every event exactly once, and an
//! ack that means what it says. Real manager, real apiserver, counted in its audit log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use harness::scenario::{self, device_process, heartbeat, process_spec, report_running, switch};
use harness::stage::{desires, known};
use harness::{
    Audit, Cluster, ControlPlane, Device, Kind, MANAGER_USER, Manager, ManagerBuilder, Part, Proxy, Recorder, Stage,
    condition, condition_status, holds_for, unique, wait_for,
};
use http::Method;
use praetor::wire::canonical::SpecHash;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

/// No staleness disturbs: an hour of heartbeats.
async fn builder(plane: &ControlPlane) -> ManagerBuilder {
    Manager::builder(plane).await.args(&["--default-heartbeat-seconds=1200"])
}

fn hash_of(object: &Value) -> String {
    SpecHash::of_spec(&object["spec"]).to_string()
}

/// A switch, its process, and the hash of its spec, known to the manager.
async fn ready(cluster: &Cluster, manager: &Manager, namespace: &str, process: &str) -> (Device, String) {
    let device = manager.device(&unique("tor"));
    cluster.create(&switch(namespace, &device.name, &[])).await;
    let object = cluster.create(&device_process(namespace, process, &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{namespace}/{process}")]).await;
    known(&device).await;
    (device, hash_of(&object))
}

/// The manager's writes of one namespace since a mark.
fn writes(plane: &ControlPlane, mark: usize, namespace: &str) -> Audit {
    plane.audit_since(mark).by(MANAGER_USER).writes().namespace(namespace)
}

/// A report with one observation and whatever else it says.
fn observed(sequence: u64, boot: &str, namespace: &str, process: &str, hash: &str, more: &Value) -> Value {
    let mut report = scenario::report_observed(sequence, boot, namespace, process, hash);
    let observation = report["observations"][0].as_object_mut().unwrap();
    observation.extend(more.as_object().unwrap().clone());
    report
}

/// Waits until everything that was sent before is through every queue: a transition of an object of its own has come
/// out at the other end, event included.
async fn flushed(recorder: &Recorder, cluster: &Cluster, manager: &Manager, namespace: &str) {
    let marker = unique("marker");
    let (device, hash) = ready(cluster, manager, namespace, &marker).await;
    device.report(&report_running(1, "boot", namespace, &marker, &hash)).await.expect(200);
    recorder.wait_events("ProcessStarted", &marker, 1, SOON).await;
}

#[tokio::test]
async fn one_write_for_each_transition_and_none_without() {
    let stage = Stage::enter("writes").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;
    // A new object shows its phase without any write.
    let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
    assert_eq!(object["status"], json!({ "phase": "Pending" }));
    assert_eq!(cluster.get(Kind::Switch, namespace, &device.name).await.unwrap()["status"], Value::Null);

    // Everything that the first report says goes in one write, which is there when the ack is.
    let mark = stage.plane.audit_mark();
    let report = |sequence| report_running(sequence, "boot", namespace, "p", &hash);
    assert_eq!(device.report(&report(1)).await.expect(200).json(), json!({ "ack": true }));
    let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
    let status = &object["status"];
    for (kind, reason, message) in [
        ("AgentConnected", "AgentConnected", "agent is reporting"),
        ("SpecObserved", "SpecObserved", format!("observed {hash}").as_str()),
        ("ProcessStarted", "Started", ""),
        ("Healthy", "Healthy", ""),
    ] {
        let condition = condition(&object, kind).unwrap_or_else(|| panic!("{kind}: {status:#}"));
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!(reason)));
        assert!(message.is_empty() || condition["message"] == message, "{condition}");
        assert!(
            condition["message"].as_str().is_some_and(|m| !m.is_empty()) && condition["lastTransitionTime"].is_string()
        );
    }
    assert_eq!(status["conditions"].as_array().unwrap().len(), 4);
    for (field, value) in [
        ("phase", json!("Running")),
        ("observedSpecHash", json!(hash)),
        ("runningSpecHash", json!(hash)),
        ("observedGeneration", json!(1)),
        ("transitions", json!(1)),
        ("runtimeSemantics", json!("DaemonSet")),
        ("artifactVersion", json!("1")),
        ("pid", json!(4711)),
        ("startTime", json!("2025-12-12T23:54:58Z")),
        ("restartCount", json!(0)),
        ("lastReport", json!({ "bootId": "boot", "sequence": 1 })),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    let the_switch = cluster.get(Kind::Switch, namespace, &device.name).await.unwrap();
    assert_eq!(
        (condition_status(&the_switch, "AgentConnected"), &the_switch["status"]["agentVersion"]),
        ("True", &json!("0.1.0"))
    );
    recorder.wait_events("", "p", 3, SOON).await;
    let mut first: Vec<_> = recorder.events("", "p").into_iter().map(|e| (e.reason, e.kind)).collect();
    first.sort();
    let normal = |reason: &str| (reason.to_owned(), "Normal".to_owned());
    assert_eq!(first, [normal("AgentConnected"), normal("ProcessStarted"), normal("SpecObserved")]);

    // Repeats, later ones of the same content, heartbeats, connects: nothing.
    for sequence in [1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9] {
        assert_eq!(device.report(&report(sequence)).await.expect(200).json(), json!({ "ack": true }));
        device.report(&heartbeat(sequence, "boot")).await.expect(200);
        device.report(&json!({})).await.expect(200);
        device.connect().await.expect(200);
    }
    flushed(&recorder, cluster, &manager, namespace).await;
    let audit = writes(stage.plane, mark, namespace);
    let patches = |audit: &Audit, name: &str| audit.clone().verb("patch").name(name).count();
    assert_eq!((patches(&audit, "p"), patches(&audit, &device.name)), (1, 1), "{}", audit.describe());
    assert_eq!(recorder.events("", "p").len(), 3);

    // Each further transition: one write. A new message alone is one, too, but no event.
    let ill = |sequence, message: &str| {
        observed(
            sequence,
            "boot",
            namespace,
            "p",
            &hash,
            &json!({ "processStarted": true, "healthy": false, "errorMessage": message,
        "pid": 4711, "startTime": "2025-12-12T23:54:58Z", "restartCount": 0 }),
        )
    };
    for (count, (report, phase, transitions, warnings)) in (2..).zip([
        (ill(11, "disk"), "Failed", 2, 2),
        (ill(12, "disk full"), "Failed", 2, 2),
        (report(13), "Running", 2, 2),
        (ill(14, "disk"), "Failed", 3, 4),
    ]) {
        for _ in 0..3 {
            device.report(&report).await.expect(200);
        }
        let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
        assert_eq!(
            (&object["status"]["phase"], &object["status"]["transitions"]),
            (&json!(phase), &json!(transitions)),
            "{count}"
        );
        recorder.wait_events("", "p", 3 + warnings, SOON).await;
        wait_for(SOON, "the write in the audit log", async || {
            patches(&writes(stage.plane, mark, namespace), "p") >= count
        })
        .await;
        assert_eq!(
            patches(&writes(stage.plane, mark, namespace), "p"),
            count,
            "{}",
            writes(stage.plane, mark, namespace).describe()
        );
    }
    flushed(&recorder, cluster, &manager, namespace).await;
    let mut reasons: Vec<_> = recorder.events("", "p").into_iter().skip(3).map(|e| (e.reason, e.kind)).collect();
    reasons.sort();
    let warning = |reason: &str| (reason.to_owned(), "Warning".to_owned());
    assert_eq!(
        reasons,
        [warning("ProcessFailed"), warning("ProcessFailed"), warning("Unhealthy"), warning("Unhealthy")]
    );

    // A new spec, observed: one write and one event.
    let edited = cluster.merge(Kind::Process, namespace, "p", &json!({ "spec": { "restartPolicy": "Never" } })).await;
    wait_for(SOON, "the edit to be served", async || device.desired().await.json()["items"][0]["generation"] == 2)
        .await;
    let before = patches(&writes(stage.plane, mark, namespace), "p");
    let new = hash_of(&edited);
    for _ in 0..3 {
        let report = observed(
            15,
            "boot",
            namespace,
            "p",
            &new,
            &json!({ "runningSpecHash": hash, "processStarted": true, "healthy": true, "pid": 4711,
            "startTime": "2025-12-12T23:54:58Z", "restartCount": 0 }),
        );
        device.report(&report).await.expect(200);
    }
    let status = cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"].clone();
    assert_eq!(
        (&status["observedSpecHash"], &status["runningSpecHash"], &status["observedGeneration"]),
        (&json!(new), &json!(hash), &json!(2))
    );
    recorder.wait_events("SpecObserved", "p", 2, SOON).await;
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(patches(&writes(stage.plane, mark, namespace), "p"), before + 1);
    assert_eq!(recorder.events("SpecObserved", "p").len(), 2);

    // A new version of the agent is a transition of the switch alone.
    let (marked, of_process) = (stage.plane.audit_mark(), recorder.writes(Kind::Process, namespace, "p"));
    for _ in 0..3 {
        device.report(&json!({ "agentVersion": "0.2.0" })).await.expect(200);
    }
    assert_eq!(cluster.get(Kind::Switch, namespace, &device.name).await.unwrap()["status"]["agentVersion"], "0.2.0");
    device.report(&json!({})).await.expect(200);
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(patches(&writes(stage.plane, marked, namespace), &device.name), 1);
    assert_eq!(recorder.writes(Kind::Process, namespace, "p"), of_process);
}

/// Policy, what is reported, phase, conditions as TYPE=STATUS/REASON, events beside AgentConnected and SpecObserved.
type Case = (&'static str, Value, &'static str, &'static [&'static str], &'static [&'static str]);

#[tokio::test]
async fn phases_and_conditions() {
    let stage = Stage::enter("phases").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let device = manager.device(&unique("tor"));
    let ended = |code: i64| json!({ "processStarted": false, "exitCode": code, "lastTerminationReason": "it went" });
    let cases: Vec<Case> = vec![
        ("Always", json!({}), "Pending", &[], &[]),
        ("Always", json!({ "processStarted": false }), "Pending", &["ProcessStarted=False/NotStarted"], &[]),
        ("Always", json!({ "processStarted": true }), "Running", &["ProcessStarted=True/Started"], &["ProcessStarted"]),
        (
            "Always",
            json!({ "processStarted": true, "healthy": true }),
            "Running",
            &["ProcessStarted=True/Started", "Healthy=True/Healthy"],
            &["ProcessStarted"],
        ),
        (
            "Always",
            json!({ "processStarted": true, "healthy": false }),
            "Running",
            &["ProcessStarted=True/Started", "Healthy=False/Unhealthy"],
            &["ProcessStarted", "Unhealthy"],
        ),
        ("Always", ended(0), "Pending", &["ProcessStarted=False/Exited"], &[]),
        ("Always", ended(1), "Pending", &["ProcessStarted=False/Exited"], &[]),
        ("OnFailure", ended(0), "Succeeded", &["ProcessStarted=False/Exited"], &[]),
        ("OnFailure", ended(1), "Pending", &["ProcessStarted=False/Exited"], &[]),
        ("Never", ended(0), "Succeeded", &["ProcessStarted=False/Exited"], &[]),
        ("Never", ended(137), "Failed", &["ProcessStarted=False/Exited"], &["ProcessFailed"]),
        ("Never", ended(-9), "Failed", &["ProcessStarted=False/Exited"], &["ProcessFailed"]),
        (
            "Always",
            json!({ "errorMessage": "no such file" }),
            "Failed",
            &["ProcessStarted=False/NotStarted"],
            &["ProcessFailed"],
        ),
        (
            "Always",
            json!({ "processStarted": false, "errorMessage": "no such file" }),
            "Failed",
            &["ProcessStarted=False/NotStarted"],
            &["ProcessFailed"],
        ),
        (
            "Always",
            json!({ "warningMessage": "clock is off" }),
            "Pending",
            &["SpecWarning=True/AgentWarning"],
            &["SpecWarning"],
        ),
        (
            "Always",
            json!({ "processStarted": true, "warningMessage": "clock is off" }),
            "Running",
            &["SpecWarning=True/AgentWarning", "ProcessStarted=True/Started"],
            &["ProcessStarted", "SpecWarning"],
        ),
        (
            "Always",
            json!({ "artifactDownloaded": true, "artifactVerified": true }),
            "Pending",
            &["ArtifactDownloaded=True/Succeeded", "ArtifactVerified=True/Succeeded"],
            &[],
        ),
        ("Always", json!({ "artifactDownloaded": false }), "Pending", &["ArtifactDownloaded=False/Pending"], &[]),
        (
            "Always",
            json!({ "artifactDownloaded": false, "artifactLastError": "404" }),
            "Pending",
            &["ArtifactDownloaded=False/Failed"],
            &[],
        ),
        (
            "Always",
            json!({ "artifactDownloaded": true, "artifactVerified": false, "artifactLastError": "wrong sum" }),
            "Pending",
            &["ArtifactDownloaded=True/Succeeded", "ArtifactVerified=False/Failed"],
            &[],
        ),
        (
            "Always",
            json!({ "artifactDownloaded": false, "artifactDownloadReason": "DNS", "artifactDownloadMessage": "no such host", "artifactVerified": false,
            "artifactVerifyReason": "Waiting", "artifactVerifyMessage": "nothing there" }),
            "Pending",
            &["ArtifactDownloaded=False/DNS", "ArtifactVerified=False/Waiting"],
            &[],
        ),
    ];
    let mut observations = Vec::new();
    let mut hashes = Vec::new();
    for (number, (policy, said, ..)) in cases.iter().enumerate() {
        let mut spec = process_spec("1.2.3");
        spec["restartPolicy"] = json!(policy);
        let name = format!("p{number:02}");
        let object = cluster.create(&device_process(namespace, &name, &device.name, spec)).await;
        hashes.push(hash_of(&object));
        observations.push(observed(1, "boot", namespace, &name, &hashes[number], said)["observations"][0].clone());
    }
    let names: Vec<_> = (0..cases.len()).map(|number| format!("{namespace}/p{number:02}")).collect();
    desires(&device, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut report = heartbeat(1, "boot");
    report["observations"] = json!(observations);
    device.report(&report).await.expect(200);

    for (number, (policy, said, phase, conditions, events)) in cases.iter().enumerate() {
        let name = format!("p{number:02}");
        let object = cluster.get(Kind::Process, namespace, &name).await.unwrap();
        let status = &object["status"];
        let what = format!("{policy} {said}\n{status:#}");
        assert_eq!(status["phase"], *phase, "{what}");
        let mut got: Vec<_> = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                let text = |key: &str| c[key].as_str().unwrap();
                assert!(!text("message").is_empty(), "{what}");
                format!("{}={}/{}", text("type"), text("status"), text("reason"))
            })
            .collect();
        let mut expected: Vec<_> = conditions.iter().map(ToString::to_string).collect();
        expected.extend(["AgentConnected=True/AgentConnected".into(), "SpecObserved=True/SpecObserved".into()]);
        got.sort();
        expected.sort();
        assert_eq!(got, expected, "{what}");
        assert_eq!(
            status["runningSpecHash"],
            if said["processStarted"] == true { json!(hashes[number]) } else { Value::Null },
            "{what}"
        );
        assert_eq!(
            (&status["artifactVersion"], &status["observedGeneration"], &status["transitions"]),
            (&json!("1.2.3"), &json!(1), &json!(1)),
            "{what}"
        );
        assert_eq!(status["exitCode"], said["exitCode"], "{what}");
        let mut expected: Vec<_> = events.iter().map(ToString::to_string).collect();
        expected.extend(["AgentConnected".into(), "SpecObserved".into()]);
        let mut got: Vec<_> =
            recorder.wait_events("", &name, expected.len(), SOON).await.into_iter().map(|e| e.reason).collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected, "{what}");
    }
    let of = async |number: usize| cluster.get(Kind::Process, namespace, &format!("p{number:02}")).await.unwrap();
    assert_eq!(condition(&of(15).await, "SpecWarning").unwrap()["message"], "clock is off");
    assert_eq!(condition(&of(20).await, "ArtifactDownloaded").unwrap()["message"], "no such host");
    assert_eq!(of(10).await["status"]["lastTerminationReason"], "it went");

    // Strings are cut and stripped; an outdated spec is said to be observed, but not of this generation.
    let old = format!("sha256:{}", "0".repeat(64));
    let long = format!("\u{1b}[31m{}\n\0", "é".repeat(2_000));
    let report = observed(
        2,
        "boot",
        namespace,
        "p00",
        &old,
        &json!({ "errorMessage": long, "lastTerminationReason": "\u{7}", "pid": 7, "startTime": "2025-12-12T23:54:58Z" }),
    );
    device.report(&report).await.expect(200);
    let object = of(0).await;
    let message = condition(&object, "ProcessStarted").unwrap()["message"].as_str().unwrap();
    assert!(
        message.len() <= 1024
            && message.len() > 1000
            && message.starts_with("[31mé")
            && !message.chars().any(char::is_control),
        "{message:?}"
    );
    assert_eq!(
        (&object["status"]["observedSpecHash"], &object["status"]["observedGeneration"]),
        (&json!(old), &json!(1))
    );

    // An object that is not mentioned stays as it is.
    assert_eq!(of(3).await["status"]["phase"], "Running");
}

#[tokio::test]
async fn what_is_rejected_and_what_is_dropped() {
    let stage = Stage::enter("rejected").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "mine").await;
    let (_, other_hash) = ready(cluster, &manager, namespace, "theirs").await;
    let observation = |name: &str, hash: &str| {
        observed(1, "boot", namespace, name, hash, &json!({ "processStarted": true }))["observations"][0].clone()
    };
    let mut sequence = 0;
    let mut report = |observations: Vec<Value>| {
        sequence += 1;
        let mut report = heartbeat(sequence, "boot");
        report["observations"] = Value::Array(observations);
        report
    };
    let theirs = async || cluster.get(Kind::Process, namespace, "theirs").await.unwrap()["status"].clone();

    // Another device's, alone: 403, and nothing is written.
    for observations in [
        vec![observation("theirs", &other_hash)],
        vec![observation("theirs", &other_hash), observation("theirs", &hash)],
    ] {
        let answer = device.report(&report(observations)).await.expect(403);
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    assert_eq!(theirs().await, json!({ "phase": "Pending" }));
    // The sign of life counts all the same.
    wait_for(SOON, "the switch to be connected", async || {
        condition_status(&cluster.get(Kind::Switch, namespace, &device.name).await.unwrap(), "AgentConnected") == "True"
    })
    .await;

    // Among others, and with other faults: the rest is applied.
    let mut typed = observation("mine", &hash);
    typed["pid"] = json!("many");
    let mut huge = observation("mine", &hash);
    huge["restartCount"] = json!(u64::MAX);
    let mut nameless = observation("mine", &hash);
    nameless["name"] = json!("");
    let mut time = observation("mine", &hash);
    time["startTime"] = json!("2025-02-30T00:00:00Z");
    let faults = vec![
        observation("theirs", &other_hash),
        typed,
        huge,
        nameless,
        time,
        observation("mine", "md5:1"),
        json!(7),
        json!([]),
        json!(null),
        json!({}),
    ];
    let count = faults.len();
    let answer =
        device.report(&report([faults.clone(), vec![observation("mine", &hash)]].concat())).await.expect(200).json();
    assert_eq!(answer["ack"], true);
    let rejected = answer["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), count, "{answer:#}");
    for (number, rejection) in rejected.iter().enumerate() {
        let not_yours = rejection["name"] == "theirs";
        assert_eq!(rejection["reason"], if not_yours { "NotYours" } else { "Invalid" }, "{number}: {answer:#}");
        assert!(rejection["namespace"].is_string() && rejection["name"].is_string(), "{rejection}");
    }
    assert_eq!(rejected.iter().filter(|r| r["reason"] == "NotYours").count(), 1);
    assert_eq!(cluster.get(Kind::Process, namespace, "mine").await.unwrap()["status"]["phase"], "Running");
    assert_eq!(theirs().await, json!({ "phase": "Pending" }));
    // Only invalid ones: no 403.
    let answer = device.report(&report(vec![json!(7)])).await.expect(200).json();
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 1);

    // Gone, or never there: dropped silently, nothing is created.
    let mark = stage.plane.audit_mark();
    for _ in 0..5 {
        assert_eq!(
            device
                .report(&report(vec![observation("never-there", &hash), observation("mine", &hash)]))
                .await
                .expect(200)
                .json(),
            json!({ "ack": true })
        );
    }
    cluster.delete(Kind::Process, namespace, "mine").await;
    cluster.wait_gone(Kind::Process, namespace, "mine", SOON).await;
    desires(&device, &[]).await;
    assert_eq!(
        device.report(&report(vec![observation("mine", &hash)])).await.expect(200).json(),
        json!({ "ack": true })
    );
    let reads = stage
        .plane
        .audit_since(mark)
        .by(MANAGER_USER)
        .verb("get")
        .resource("deviceprocesses")
        .namespace(namespace)
        .name("never-there");
    assert!((1..5).contains(&reads.count()), "misses are cached: {}", reads.describe());
    assert_eq!(cluster.list(Kind::Process, namespace).await.len(), 1);
    // Names that no object can have never reach the apiserver.
    let mark = stage.plane.audit_mark();
    let secret = "../../../../../../api/v1/namespaces/praetor-system/serviceaccounts/praetor-manager";
    for (place, name) in [
        ("..", "../../x"),
        (namespace, "a/b?x=1#"),
        (namespace, secret),
        ("a.b", "x"),
        (namespace, "Ü"),
        (namespace, "status"),
        ("", "x"),
    ] {
        let mut strange = observation("x", &hash);
        (strange["namespace"], strange["name"]) = (json!(place), json!(name));
        let answer = device.report(&report(vec![strange])).await.expect(200).json();
        let rejected = answer["rejected"].as_array().map_or(0, Vec::len);
        assert_eq!(rejected, usize::from(name != "status"), "{place} {name}: {answer}");
    }
    let asked = stage
        .plane
        .audit_since(mark)
        .by(MANAGER_USER)
        .filter(|e| e.resource != "deviceprocesses" || e.uri.contains(".."));
    assert_eq!(asked.clone().filter(|e| e.verb == "get").count(), 0, "{}", asked.describe());

    // Numbers.
    let many = |count: usize| vec![observation("never-there", &hash); count];
    device.report(&report(many(256))).await.expect(200);
    let answer = device.report(&report(many(257))).await.expect(400);
    assert_eq!(answer.header("content-type"), "application/problem+json");

    // An object that the watch has not shown yet is known all the same: what is acked is written.
    for number in 0..20 {
        let name = format!("new-{number:02}");
        let object = cluster.create(&device_process(namespace, &name, &device.name, process_spec("1"))).await;
        let sent = report(vec![observation(&name, &hash_of(&object))]);
        assert_eq!(device.report(&sent).await.expect(200).json(), json!({ "ack": true }), "{name}");
        assert_eq!(cluster.get(Kind::Process, namespace, &name).await.unwrap()["status"]["phase"], "Running", "{name}");
    }
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(recorder.writes(Kind::Process, namespace, "theirs"), 1, "only created");
}

#[tokio::test]
async fn old_reports_change_nothing_across_restarts_too() {
    let stage = Stage::enter("order").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let mut manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;
    let failing = |sequence: u64, boot: &str| {
        observed(sequence, boot, namespace, "p", &hash, &json!({ "processStarted": false, "errorMessage": "old news" }))
    };
    let phase = async || {
        cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["phase"].as_str().unwrap().to_owned()
    };

    device.report(&report_running(10, "first", namespace, "p", &hash)).await.expect(200);
    let written = recorder.writes(Kind::Process, namespace, "p");
    // Older in the same start of the agent; the same again.
    for sequence in [9, 1, 0, 9] {
        assert_eq!(device.report(&failing(sequence, "first")).await.expect(200).json(), json!({ "ack": true }));
    }
    assert_eq!(phase().await, "Running");
    // A later start, even with lower numbers, is new; then the one before is old for good.
    device.report(&failing(1, "second")).await.expect(200);
    assert_eq!(phase().await, "Failed");
    for sequence in [10, 11, 1_000_000] {
        device.report(&report_running(sequence, "first", namespace, "p", &hash)).await.expect(200);
    }
    assert_eq!(phase().await, "Failed");
    device.report(&report_running(2, "second", namespace, "p", &hash)).await.expect(200);
    assert_eq!(phase().await, "Running");
    // Without a bootId there is no order, whatever the number says.
    let mut loose = failing(0, "x");
    loose.as_object_mut().unwrap().remove("bootId");
    device.report(&loose).await.expect(200);
    assert_eq!(phase().await, "Failed");
    device.report(&report_running(7, "second", namespace, "p", &hash)).await.expect(200);
    assert_eq!(phase().await, "Running");

    // The status seeds the order after a restart: below the last report is old, the same or above is not.
    let last = cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["lastReport"].clone();
    assert_eq!(last, json!({ "bootId": "second", "sequence": 7 }));
    manager.kill9();
    manager.restart().await;
    for sequence in [1, 6] {
        device.report(&failing(sequence, "second")).await.expect(200);
        assert_eq!(phase().await, "Running", "{sequence}");
    }
    device.report(&report_running(7, "second", namespace, "p", &hash)).await.expect(200);
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(
        recorder.writes(Kind::Process, namespace, "p"),
        written + 4,
        "{:#?}",
        recorder.history(Kind::Process, namespace, "p").iter().map(|s| &s.object["status"]).collect::<Vec<_>>()
    );
    device.report(&failing(8, "second")).await.expect(200);
    assert_eq!(phase().await, "Failed");
}

/// Waits for minutes of the manager's life, so on a control plane of its own, beside the others.
#[tokio::test]
async fn counters_are_written_lazily() {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = &cluster.namespace("lazy").await;
    let recorder = Recorder::start(&plane).await;
    let mut manager = builder(&plane).await.start().await;
    let (device, hash) = ready(&cluster, &manager, namespace, "p").await;
    let counted = |sequence: u64, restarts: u64| {
        let mut report = report_running(sequence, "boot", namespace, "p", &hash);
        report["observations"][0]["restartCount"] = json!(restarts);
        report["observations"][0]["pid"] = json!(5_000 + restarts);
        report["observations"][0]["artifactDownloaded"] = json!(true);
        report["observations"][0]["artifactDownloadAttempts"] = json!(restarts);
        report["observations"][0]["lastArtifactAttemptTime"] = json!("2025-12-12T23:54:58Z");
        report
    };
    let restarts =
        async || cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["restartCount"].as_u64().unwrap();
    let sent = Instant::now();
    device.report(&counted(1, 0)).await.expect(200);
    let first = recorder
        .wait_first(Kind::Process, namespace, "p", SOON, "the first status", |o| o["status"]["restartCount"] == 0)
        .await;
    let writes = recorder.writes(Kind::Process, namespace, "p");

    // They count as nothing to write: acked at once and not written.
    for number in 1..=20 {
        let begun = Instant::now();
        assert_eq!(device.report(&counted(1 + number, number)).await.expect(200).json(), json!({ "ack": true }));
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    assert_eq!((restarts().await, recorder.writes(Kind::Process, namespace, "p")), (0, writes));
    // They ride along with whatever is written at once.
    let mut ill = counted(30, 30);
    ill["observations"][0]["healthy"] = json!(false);
    let ridden = Instant::now();
    device.report(&ill).await.expect(200);
    assert_eq!(
        (
            restarts().await,
            cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["artifactDownloadAttempts"].as_u64()
        ),
        (30, Some(30))
    );
    assert!(sent.elapsed() < Duration::from_secs(55), "too slow to show anything");

    // Alone: at most once a minute, with the latest numbers.
    wait_for(SOON, "the ride on record", async || recorder.writes(Kind::Process, namespace, "p") == writes + 1).await;
    for number in 31..=40 {
        ill["observations"][0]["restartCount"] = json!(number);
        ill["sequence"] = json!(number);
        device.report(&ill).await.expect(200);
    }
    let alone = recorder
        .wait_first(Kind::Process, namespace, "p", Duration::from_secs(75), "the counters alone", |o| {
            o["status"]["restartCount"] == 40
        })
        .await;
    assert_eq!(recorder.writes(Kind::Process, namespace, "p"), writes + 2);
    assert!(alone - ridden >= Duration::from_secs(58) && alone > first, "{:?}", alone - ridden);
    assert_eq!(recorder.events("", "p").iter().filter(|e| e.reason == "Unhealthy").count(), 1);

    // On SIGTERM what waits is written.
    ill["observations"][0]["restartCount"] = json!(41);
    ill["sequence"] = json!(41);
    device.report(&ill).await.expect(200);
    assert_eq!(restarts().await, 40);
    manager.sigterm();
    assert_eq!(manager.wait_exit(Duration::from_secs(10)).await.code, Some(0));
    assert_eq!(restarts().await, 41);
    drop(recorder);
    assert!(!plane.log(Part::Apiserver).is_empty());
}

/// What each of an object's events is called, once each.
fn reasons(recorder: &Recorder, object: &str) -> Vec<String> {
    let mut reasons: Vec<_> = recorder.events("", object).into_iter().map(|e| e.reason).collect();
    reasons.sort();
    reasons
}

const FIRST: [&str; 3] = ["AgentConnected", "ProcessStarted", "SpecObserved"];

#[tokio::test]
async fn a_manager_that_dies_between_status_and_event_leaves_no_event_out() {
    let stage = Stage::enter("outbox").await;
    let (cluster, namespace, kubectl) = (&stage.cluster, stage.namespace.as_str(), stage.plane.kubectl());
    let recorder = Recorder::start(stage.plane).await;
    let mut manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;

    // Nobody may write events: the status is written, the events are owed.
    let role: Value =
        serde_json::from_str(&kubectl.run(&["get", "clusterrole", "praetor-manager", "-o", "json"]).await).unwrap();
    let rule =
        role["rules"].as_array().unwrap().iter().position(|r| r["apiGroups"] == json!(["events.k8s.io"])).unwrap();
    let allow = async |verbs: Value, expected: &str| {
        let patch = json!([{ "op": "replace", "path": format!("/rules/{rule}/verbs"), "value": verbs }]).to_string();
        kubectl.run(&["patch", "clusterrole", "praetor-manager", "--type=json", "-p", &patch]).await;
        wait_for(SOON, format!("events: {expected}"), async || {
            let said = kubectl
                .output(
                    &["auth", "can-i", "create", "events.events.k8s.io", "--as", MANAGER_USER, "-n", namespace],
                    None,
                )
                .await
                .stdout;
            if said.trim() == expected { Ok(()) } else { Err(said) }
        })
        .await;
    };
    allow(json!(["get"]), "no").await;
    device.report(&report_running(1, "boot", namespace, "p", &hash)).await.expect(200);
    wait_for(SOON, "a refused event", async || {
        stage.plane.audit().by(MANAGER_USER).verb("create").resource("events").namespace(namespace).code(403).count()
            > 0
    })
    .await;
    manager.kill9();
    assert_eq!(cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["phase"], "Running");
    assert!(reasons(&recorder, "p").is_empty());
    allow(json!(["create", "get"]), "yes").await;

    let begun = Instant::now();
    manager.restart().await;
    recorder.wait_events("", "p", 3, Duration::from_secs(30)).await;
    eprintln!("events {:.1} s after the start", begun.elapsed().as_secs_f64());
    assert_eq!(reasons(&recorder, "p"), FIRST);

    // Another restart looks for them, finds them, and writes none.
    let mark = stage.plane.audit_mark();
    manager.kill9();
    manager.restart().await;
    let looks =
        || stage.plane.audit_since(mark).by(MANAGER_USER).verb("get").resource("events").namespace(namespace).code(200);
    wait_for(SOON, "three looks", async || if looks().count() >= 3 { Ok(()) } else { Err(looks().describe()) }).await;
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(reasons(&recorder, "p"), FIRST);
    let created = stage
        .plane
        .audit_since(mark)
        .by(MANAGER_USER)
        .verb("create")
        .resource("events")
        .filter(|e| e.name.starts_with("p."));
    assert_eq!(created.count(), 0, "{}", created.describe());
}

/// A device with a process `p` and no switch: one patch for each of its reports.
async fn lone(stage: &Stage, manager: &Manager, process: &str) -> (Device, String) {
    let device = manager.device(&unique("lone"));
    let object =
        stage.cluster.create(&device_process(&stage.namespace, process, &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{}/{process}", stage.namespace)]).await;
    (device, hash_of(&object))
}

/// A manager behind a proxy that answers get lost at, with a connection for its writes, and a device that is ready
/// to report.
async fn behind_a_proxy(stage: &Stage, recorder: &Recorder) -> (Proxy, Manager, Device, String) {
    let proxy = Proxy::start(stage.plane.address()).await;
    let kubeconfig = stage.plane.kubeconfig_via(stage.plane.service_account_kubeconfig().await, proxy.port());
    let manager = builder(stage.plane).await.kubeconfig(kubeconfig).start().await;
    flushed(recorder, &stage.cluster, &manager, &stage.namespace).await;
    let (device, hash) = lone(stage, &manager, "p").await;
    (proxy, manager, device, hash)
}

#[tokio::test]
async fn a_lost_answer_makes_one_transition_and_one_event() {
    let stage = Stage::enter("lost").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let (proxy, manager, device, hash) = behind_a_proxy(&stage, &recorder).await;
    let report = |sequence| report_running(sequence, "boot", namespace, "p", &hash);
    let mark = stage.plane.audit_mark();

    // The patch is committed, its answer is lost: no ack within 8 s, but a time to come again.
    proxy.lose_answers();
    let begun = Instant::now();
    let answer = device.report(&report(1)).await.expect(503);
    let took = begun.elapsed();
    assert!((Duration::from_secs(7)..Duration::from_millis(9_500)).contains(&took), "{took:?}");
    assert!(
        (2..=10).contains(&answer.header("retry-after").parse::<u64>().unwrap()),
        "{}",
        answer.header("retry-after")
    );
    assert_eq!(cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["phase"], "Running");
    proxy.drop_connections();
    proxy.resume();
    wait_for(Duration::from_secs(30), "an ack", async || device.report(&report(1)).await.status == 200).await;
    recorder.wait_events("", "p", 3, Duration::from_secs(30)).await;
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(reasons(&recorder, "p"), FIRST);
    let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
    assert_eq!(object["status"]["transitions"], 1);
    let written = writes(stage.plane, mark, namespace).verb("patch").name("p").code(200);
    assert_eq!(written.count(), 1, "{}", written.describe());

    // The same when the manager dies before it learns of it.
    let (device, hash) = lone(&stage, &manager, "q").await;
    let mark = stage.plane.audit_mark();
    proxy.lose_answers();
    let sent = tokio::spawn({
        let (device, report) = (device.clone(), report_running(1, "boot", namespace, "q", &hash));
        async move { device.try_send(Method::POST, &device.path("report"), &[], report.to_string()).await }
    });
    let committed = || writes(stage.plane, mark, namespace).verb("patch").name("q").code(200).count();
    wait_for(SOON, "the patch to be committed", async || committed() == 1).await;
    let mut manager = manager;
    manager.kill9();
    assert!(sent.await.unwrap().is_err());
    proxy.drop_connections();
    proxy.resume();
    manager.restart().await;
    recorder.wait_events("", "q", 3, Duration::from_secs(30)).await;
    device.report(&report_running(1, "boot", namespace, "q", &hash)).await.expect(200);
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!((reasons(&recorder, "q"), committed()), (FIRST.map(str::to_owned).to_vec(), 1));
}

#[tokio::test]
async fn foreign_writers_are_no_trouble() {
    let stage = Stage::enter("foreign").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let (proxy, manager, device, hash) = behind_a_proxy(&stage, &recorder).await;
    device.report(&report_running(1, "boot", namespace, "p", &hash)).await.expect(200);
    let ill = |sequence: u64, healthy: bool| {
        observed(sequence, "boot", namespace, "p", &hash, &json!({ "processStarted": true, "healthy": healthy }))
    };

    // Somebody writes while the manager looks away: its patch is refused, derived again, and right.
    let conflicts = "praetor_status_patches_total{result=\"conflict\"}";
    proxy.stall();
    cluster.label(Kind::Process, namespace, "p", "colour", Some("red")).await;
    let report = tokio::spawn({
        let (device, report) = (device.clone(), ill(2, false));
        async move { device.report(&report).await }
    });
    wait_for(SOON, "the write to wait", async || manager.metrics().await.get("praetor_status_queue_depth") >= 1.0)
        .await;
    proxy.resume();
    report.await.unwrap().expect(200);
    let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
    assert_eq!(
        (
            condition_status(&object, "Healthy"),
            &object["metadata"]["labels"]["colour"],
            &object["status"]["transitions"]
        ),
        ("False", &json!("red"), &json!(2))
    );
    eprintln!("conflicts: {}", manager.metrics().await.get(conflicts));

    // A storm of foreign writes: every ack is true, no event comes twice.
    let storm = tokio::spawn({
        let (cluster, namespace) = (cluster.clone(), namespace.to_owned());
        async move {
            for number in 0.. {
                cluster.label(Kind::Process, &namespace, "p", "number", Some(&format!("{number}"))).await;
                tokio::task::yield_now().await;
            }
        }
    });
    for sequence in 3..43_u64 {
        device.report(&ill(sequence, sequence % 2 == 1)).await.expect(200);
        let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
        assert_eq!(
            condition_status(&object, "Healthy"),
            if sequence % 2 == 1 { "True" } else { "False" },
            "{sequence}"
        );
    }
    storm.abort();
    assert!(manager.metrics().await.get(conflicts) > 0.0, "the storm met nobody");
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(recorder.events("Unhealthy", "p").len(), 21);

    // What somebody else took away or put in is put right by the next report.
    cluster
        .merge_status(
            Kind::Process,
            namespace,
            "p",
            &json!({ "conditions": null, "phase": "Failed", "runningSpecHash": null, "observedSpecHash": null }),
        )
        .await;
    wait_for(SOON, "the status to be right again", async || {
        device.report(&report_running(100, "boot", namespace, "p", &hash)).await.expect(200);
        let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
        let status = &object["status"];
        let right =
            status["phase"] == "Running" && status["runningSpecHash"] == *hash && status["observedSpecHash"] == *hash;
        if right
            && condition_status(&object, "AgentConnected") == "True"
            && condition_status(&object, "Healthy") == "True"
        {
            Ok(())
        } else {
            Err(format!("{status:#}"))
        }
    })
    .await;
}

#[tokio::test]
async fn what_kubectl_shows() {
    let stage = Stage::enter("columns").await;
    let (cluster, namespace, kubectl) = (&stage.cluster, stage.namespace.as_str(), stage.plane.kubectl());
    let manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;
    let rows = async |what: &'static [&'static str]| {
        let mut args = vec!["get", "-n", namespace];
        args.extend(what);
        let table = kubectl.run(&args).await;
        let mut rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let header = rows.next().unwrap();
        let row = rows.next().unwrap();
        assert_eq!(header.len(), row.len(), "an empty cell:\n{table}");
        header
            .into_iter()
            .zip(row)
            .filter(|(header, _)| header != "AGE")
            .map(|(header, cell)| format!("{header}={cell}"))
            .collect::<Vec<_>>()
    };
    device.report(&report_running(1, "boot", namespace, "p", &hash)).await.expect(200);
    let row = [
        "NAME=p",
        &format!("DEVICE={}", device.name),
        "KIND=NetworkSwitch",
        "PHASE=Running",
        "CONNECTED=True",
        "HEALTHY=True",
        "VERSION=1",
        "RESTARTS=0",
    ]
    .map(str::to_owned);
    assert_eq!(rows(&["dp"]).await, row);
    assert_eq!(rows(&["nsw"]).await, [format!("NAME={}", device.name), "CONNECTED=True".into(), "AGENT=0.1.0".into()]);
    device
        .report(&observed(
            2,
            "boot",
            namespace,
            "p",
            &hash,
            &json!({ "processStarted": false, "healthy": false, "errorMessage": "disk-full", "restartCount": 3 }),
        ))
        .await
        .expect(200);
    let wide = kubectl.run(&["get", "-n", namespace, "dp", "-o", "wide"]).await;
    for part in ["HASH", "MESSAGE", "Failed", "False", &hash, "disk-full"] {
        assert!(wide.contains(part), "{part}:\n{wide}");
    }
    let events = wait_for(SOON, "events at kubectl", async || {
        let events = kubectl.run(&["events", "-n", namespace, "--for", "deviceprocess/p"]).await;
        let missing: Vec<_> = [
            "AgentConnected",
            "SpecObserved",
            "ProcessStarted",
            "ProcessFailed",
            "Unhealthy",
            "Warning",
            "Normal",
            "agent is reporting",
        ]
        .into_iter()
        .filter(|part| !events.contains(part))
        .collect();
        if missing.is_empty() { Ok(events) } else { Err(format!("{missing:?} in\n{events}")) }
    })
    .await;
    assert_eq!(events.lines().count(), 6, "{events}");
    holds_for(Duration::from_secs(1), "the device is still known", async || device.desired().await.status == 200).await;
}
