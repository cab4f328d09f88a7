//! What changes nothing: faults, strangers, and what comes too late.

use super::*;

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
    recorder.caught_up(cluster, Kind::Process, namespace, "p").await;
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
