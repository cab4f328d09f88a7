//! What devices report becomes status: one write for each transition, none without, every event exactly once, and an
//! ack that means what it says. Real manager, real apiserver, counted in its audit log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "status/events.rs"]
mod events;
mod harness;
#[path = "status/loops.rs"]
mod loops;
#[path = "status/refused.rs"]
mod refused;

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
    // Each kind has a watch of its own.
    recorder.caught_up(cluster, Kind::Process, namespace, &marker).await;
    recorder.caught_up(cluster, Kind::Switch, namespace, &device.name).await;
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
        // What is started again has failed all the same.
        ("Always", ended(1), "Pending", &["ProcessStarted=False/Exited"], &["ProcessFailed"]),
        ("OnFailure", ended(0), "Succeeded", &["ProcessStarted=False/Exited"], &[]),
        ("OnFailure", ended(1), "Pending", &["ProcessStarted=False/Exited"], &["ProcessFailed"]),
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
        (
            "Always",
            json!({ "processStarted": false, "warningReason": "BackendUnavailable", "warningMessage": "no init scripts here" }),
            "Pending",
            &["ProcessStarted=False/NotStarted", "SpecWarning=True/BackendUnavailable"],
            &["SpecWarning"],
        ),
        (
            "Always",
            json!({ "warningReason": "no reason at all", "warningMessage": "clock is off" }),
            "Pending",
            &["SpecWarning=True/AgentWarning"],
            &["SpecWarning"],
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
