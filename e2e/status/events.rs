//! Events exactly once, whatever dies or is lost.

use super::*;
use tokio::time::MissedTickBehavior;

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
    // With another artifact each time: what a process does over and over would be written only once a minute.
    let ill = |sequence: u64, healthy: bool| {
        let digest = format!("sha256:{sequence:064x}");
        let says = json!({ "processStarted": true, "healthy": healthy, "artifactDigest": digest });
        observed(sequence, "boot", namespace, "p", &hash, &says)
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

    // A storm of foreign writes, one each 5 ms or as fast as they are answered: every ack is true, no event comes
    // twice.
    let storm = tokio::spawn({
        let (cluster, namespace) = (cluster.clone(), namespace.to_owned());
        async move {
            let mut pace = tokio::time::interval(Duration::from_millis(5));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0.. {
                pace.tick().await;
                cluster.label(Kind::Process, &namespace, "p", "number", Some(&format!("{number}"))).await;
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
    // An event that met trouble is tried again beside the others.
    recorder.wait_events("Unhealthy", "p", 21, Duration::from_secs(30)).await;
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
