//! What devices say over and over, and what they can do: few writes, few events, and the truth at the end.

use super::*;

/// Events of an object by reason.
fn count(recorder: &Recorder, reason: &str) -> usize {
    recorder.events(reason, "p").len()
}

/// Waits for minutes of the manager's life, so on a control plane of its own, beside the others.
#[tokio::test]
async fn a_crash_loop_costs_a_few_writes_and_then_one_a_minute() {
    const BURST: usize = 6;
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = &cluster.namespace("loop").await;
    let recorder = Recorder::start(&plane).await;
    let manager = builder(&plane).await.start().await;
    let (device, hash) = ready(&cluster, &manager, namespace, "p").await;
    let up = |sequence: u64, restarts: u64| {
        let says = json!({ "processStarted": true, "pid": 5_000 + restarts, "restartCount": restarts });
        observed(sequence, "boot", namespace, "p", &hash, &says)
    };
    let down = |sequence: u64, restarts: u64| {
        let says = json!({ "processStarted": false, "exitCode": 1, "lastTerminationReason": "Error", "restartCount": restarts });
        observed(sequence, "boot", namespace, "p", &hash, &says)
    };
    let status = async || cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"].clone();

    // The first start is written at once. Then it goes down and up thirty times in a minute; each report is
    // acknowledged at once, whether it is written now or not.
    device.report(&up(1, 0)).await.expect(200);
    let begun = Instant::now();
    let mark = plane.audit_mark();
    let mut pace = tokio::time::interval(Duration::from_millis(1_800));
    for number in 1..=30_u64 {
        pace.tick().await;
        let sent = Instant::now();
        let report = if number % 2 == 1 { down(1 + number, number / 2) } else { up(1 + number, number / 2) };
        assert_eq!(device.report(&report).await.expect(200).json(), json!({ "ack": true }));
        assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
        if number == 1 {
            assert_eq!(status().await["phase"], "Pending", "the first turns are shown when they are acknowledged");
        }
    }
    let looped = begun.elapsed();
    assert!(looped < Duration::from_secs(60), "{looped:?} is too slow to show anything");
    let writes = |mark| super::writes(&plane, mark, namespace).verb("patch").name("p").count();
    assert_eq!(writes(mark), BURST, "{}", super::writes(&plane, mark, namespace).describe());
    assert_eq!(count(&recorder, "ProcessFailed"), BURST / 2);
    assert_eq!(count(&recorder, "ProcessStarted"), 1 + BURST / 2);
    // What comes after that waits; seen at the same point of a later round, it is counters alone.
    let metrics = manager.metrics().await;
    let held =
        ["turns", "counters"].map(|what| metrics.get(&format!("praetor_status_deferred_total{{what=\"{what}\"}}")));
    assert_eq!(held, [12.0, 12.0], "looks at what waits");

    // It comes up, and stays so: that shows within two minutes, with the latest numbers, in one write.
    let mut well = up(40, 15);
    well["observations"][0]["healthy"] = json!(true);
    device.report(&well).await.expect(200);
    // A heartbeat that says it again is no reason for another.
    for _ in 0..5 {
        device.report(&well).await.expect(200);
    }
    recorder
        .wait_first(Kind::Process, namespace, "p", Duration::from_secs(135), "the state it came to", |object| {
            condition_status(object, "Healthy") == "True"
        })
        .await;
    let total = writes(mark);
    let minutes = usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
    assert!(total <= BURST + minutes && total > BURST, "{total} writes in {minutes} minutes");
    let end = status().await;
    assert_eq!((&end["phase"], &end["restartCount"], &end["pid"]), (&json!("Running"), &json!(15), &json!(5_015)));
    assert!(count(&recorder, "ProcessStarted") <= 2 + BURST / 2 && count(&recorder, "ProcessFailed") == BURST / 2);

    // The next crash is shown at once.
    device.report(&down(41, 15)).await.expect(200);
    assert_eq!(status().await["phase"], "Pending");

    // A fix is followed at once, however long it looped.
    for number in 42..=55_u64 {
        device.report(&if number % 2 == 0 { up(number, number) } else { down(number, number) }).await.expect(200);
    }
    let edited =
        cluster.merge(Kind::Process, namespace, "p", &json!({ "spec": { "restartPolicy": "OnFailure" } })).await;
    wait_for(SOON, "the edit to be served", async || device.desired().await.json()["items"][0]["generation"] == 2)
        .await;
    let fixed = hash_of(&edited);
    for (sequence, healthy) in [(60, false), (61, true)] {
        let says = json!({ "processStarted": true, "healthy": healthy, "pid": 6_000, "restartCount": 55 });
        device.report(&observed(sequence, "boot", namespace, "p", &fixed, &says)).await.expect(200);
        let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
        assert_eq!(condition_status(&object, "Healthy"), if healthy { "True" } else { "False" });
        assert_eq!(object["status"]["runningSpecHash"], json!(fixed));
    }
}

#[tokio::test]
async fn an_artifact_that_cannot_be_fetched_costs_one_write_for_each_cause() {
    let stage = Stage::enter("fetching").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;
    device.report(&report_running(1, "boot", namespace, "p", &hash)).await.expect(200);
    let edited = cluster.merge(Kind::Process, namespace, "p", &json!({ "spec": { "restartPolicy": "Never" } })).await;
    wait_for(SOON, "the edit to be served", async || device.desired().await.json()["items"][0]["generation"] == 2)
        .await;
    let new = hash_of(&edited);
    let failing = |sequence: u64, reason: &str, message: &str| {
        let says = json!({ "runningSpecHash": hash, "processStarted": true, "healthy": true, "pid": 4711,
            "startTime": "2025-12-12T23:54:58Z", "restartCount": 0, "artifactDownloaded": false, "artifactVerified": false,
            "artifactDownloadReason": reason, "artifactDownloadMessage": message, "artifactLastError": message,
            "artifactDownloadAttempts": sequence, "lastArtifactAttemptTime": format!("2025-12-12T23:55:{sequence:02}Z") });
        observed(sequence, "boot", namespace, "p", &new, &says)
    };
    recorder.caught_up(cluster, Kind::Process, namespace, "p").await;
    let before = recorder.writes(Kind::Process, namespace, "p");
    let mut sequence = 1;
    for (causes, (reason, message)) in
        (1..).zip([("RegistryUnreachable", "the registry does not answer"), ("NotFound", "there is no such tag")])
    {
        for _ in 0..10 {
            sequence += 1;
            device.report(&failing(sequence, reason, message)).await.expect(200);
        }
        let object = cluster.get(Kind::Process, namespace, "p").await.unwrap();
        let downloaded = condition(&object, "ArtifactDownloaded").unwrap();
        assert_eq!((&downloaded["reason"], &downloaded["message"]), (&json!(reason), &json!(message)));
        // The old version runs on, and is well.
        let status = &object["status"];
        assert_eq!((&status["phase"], condition_status(&object, "Healthy")), (&json!("Running"), "True"));
        assert_eq!((&status["runningSpecHash"], &status["observedSpecHash"]), (&json!(hash), &json!(new)));
        recorder.caught_up(cluster, Kind::Process, namespace, "p").await;
        assert_eq!(recorder.writes(Kind::Process, namespace, "p"), before + causes, "{reason}");
    }
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(recorder.events("ProcessFailed", "p").len(), 0);
}

#[tokio::test]
async fn what_a_device_can_do_is_written_when_it_changes() {
    let stage = Stage::enter("capabilities").await;
    let (cluster, namespace, kubectl) = (&stage.cluster, stage.namespace.as_str(), stage.plane.kubectl());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let (device, hash) = ready(cluster, &manager, namespace, "p").await;
    let able = |mut report: Value, backends: &Value| {
        report["capabilities"] = json!({ "backends": backends, "artifactTypes": ["oci", "http", "file"] });
        report
    };
    let status = async || cluster.get(Kind::Switch, namespace, &device.name).await.unwrap()["status"].clone();
    let both = json!(["systemd", "container"]);

    // With the first report, in the one write that says that the device is there.
    let mark = stage.plane.audit_mark();
    let running = |sequence| report_running(sequence, "boot", namespace, "p", &hash);
    device.report(&able(running(1), &both)).await.expect(200);
    let sorted = json!({ "backends": ["container", "systemd"], "artifactTypes": ["file", "http", "oci"] });
    assert_eq!((&status().await["capabilities"], &status().await["agentVersion"]), (&sorted, &json!("0.1.0")));
    // Heartbeats without them take nothing away; the same again, in another order or by a connect, is nothing new.
    for sequence in 2..8 {
        device.report(&running(sequence)).await.expect(200);
        device.report(&heartbeat(sequence, "boot")).await.expect(200);
        device.report(&able(running(sequence), &json!(["container", "systemd", "systemd"]))).await.expect(200);
        let connect = able(json!({ "agentVersion": "0.1.0" }), &both).to_string();
        device.send(Method::POST, &device.path("connect"), &[], connect).await.expect(200);
    }
    flushed(&recorder, cluster, &manager, namespace).await;
    let writes = || super::writes(stage.plane, mark, namespace).verb("patch").name(&device.name).count();
    assert_eq!((writes(), &status().await["capabilities"]), (1, &sorted));
    let wide = kubectl.run(&["get", "-n", namespace, "nsw", &device.name, "-o", "wide"]).await;
    assert!(wide.contains("BACKENDS") && wide.contains(r#"["container","systemd"]"#), "{wide}");

    // A change is one write, also by a connect, and also of words that nobody here knows; what is no word is left out.
    let connect = able(json!({}), &json!(["launchd-v2", "no word", 7])).to_string();
    device.send(Method::POST, &device.path("connect"), &[], connect).await.expect(200);
    assert_eq!(status().await["capabilities"]["backends"], json!(["launchd-v2"]));
    wait_for(SOON, "the write in the audit log", async || writes() == 2).await;

    // Another type altogether is no report, and changes nothing.
    for capabilities in [json!(["systemd"]), json!("systemd"), json!(1), json!(true)] {
        let mut report = running(20);
        report["capabilities"] = capabilities;
        device.report(&report).await.expect(400);
    }
    for capabilities in [json!(null), json!("")] {
        let mut report = running(21);
        report["capabilities"] = capabilities;
        device.report(&report).await.expect(200);
    }
    assert_eq!(status().await["capabilities"]["backends"], json!(["launchd-v2"]));
    flushed(&recorder, cluster, &manager, namespace).await;
    assert_eq!(writes(), 2);
}
