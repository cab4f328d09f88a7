//! Answers that wait: long-polls, and managers that are behind.

use super::*;

#[tokio::test]
async fn long_polls_wake_and_end() {
    let stage = Stage::enter("polls").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let manager = Manager::builder(stage.plane).await.start().await;
    let (device, other) = (manager.device(&unique("tor")), manager.device(&unique("other")));
    for (name, device) in [("p", &device), ("q", &other)] {
        cluster.create(&device_process(namespace, name, &device.name, process_spec("1"))).await;
        desires(device, &[&format!("{namespace}/{name}")]).await;
    }
    let tag = device.desired().await.etag().to_owned();

    // Nothing changes: 304 after the time that was asked for.
    let begun = Instant::now();
    let answer = device.desired_unless(&tag, 1).await.expect(304);
    assert_eq!((answer.etag(), answer.body.len()), (tag.as_str(), 0));
    assert!((1_000..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    // Something else than the device holds: at once. So without If-None-Match.
    let begun = Instant::now();
    device.desired_unless("\"other\"", 30).await.expect(200);
    device.send(Method::GET, &device.path("desired?waitSeconds=30"), &[], "").await.expect(200);
    assert!(begun.elapsed() < Duration::from_secs(5));

    // An edit wakes the poll, and only its device's.
    let poll = park(&manager, &device, &tag, 60).await;
    cluster.merge(Kind::Process, namespace, "q", &json!({ "spec": { "restartPolicy": "Never" } })).await;
    wait_for(SOON, "the other edit to be served", async || other.desired().await.json()["items"][0]["generation"] == 2)
        .await;
    cluster.label(Kind::Process, namespace, "p", "colour", Some("red")).await;
    assert!(!poll.is_finished());
    let edited = Instant::now();
    let p = cluster.merge(Kind::Process, namespace, "p", &json!({ "spec": { "restartPolicy": "Never" } })).await;
    let (answer, at) = poll.await.unwrap();
    let answer = answer.expect(200);
    assert!(at - edited < Duration::from_secs(2), "{:?}", at - edited);
    assert_eq!((answer.etag(), &answer.json()["items"][0]["generation"]), (tag_of(15, &[&p]).as_str(), &json!(2)));
    assert_eq!(answer.header("x-praetor-revision"), p["metadata"]["resourceVersion"].as_str().unwrap());

    // So does a deletion, and a new process.
    let poll = park(&manager, &device, answer.etag(), 60).await;
    cluster.delete(Kind::Process, namespace, "p").await;
    let (answer, _) = poll.await.unwrap();
    let answer = answer.expect(200);
    assert_eq!(answer.json()["items"], json!([]));
    let poll = park(&manager, &device, answer.etag(), 60).await;
    cluster.create(&device_process(namespace, "p", &device.name, process_spec("1"))).await;
    assert_eq!(poll.await.unwrap().0.expect(200).json()["items"][0]["name"], "p");

    // A client that goes away leaves nothing behind.
    let tag = device.desired().await.etag().to_owned();
    park(&manager, &device, &tag, 60).await.abort();
    wait_for(SOON, "the poll to be forgotten", async || manager.metrics().await.get("praetor_longpolls_parked") == 0.0)
        .await;
}

#[tokio::test]
async fn nobody_travels_back_in_time() {
    let stage = Stage::enter("revisions").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let proxy = Proxy::start(stage.plane.address()).await;
    let builder = Manager::builder(stage.plane).await;
    let kubeconfig = stage.plane.kubeconfig_via(stage.plane.service_account_kubeconfig().await, proxy.port());
    let manager = builder.kubeconfig(kubeconfig).start().await;
    let device = manager.device(&unique("tor"));
    let p = cluster.create(&device_process(namespace, "p", &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{namespace}/p")]).await;
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let answer = device.desired().await;
    let (tag, revision) = (answer.etag().to_owned(), answer.header("x-praetor-revision").to_owned());
    assert_eq!(revision, version(&p));
    let get = async |min: &str, tag: &str| {
        let begun = Instant::now();
        (
            device
                .send(
                    Method::GET,
                    &device.path("desired"),
                    &[("x-praetor-min-revision", min), ("if-none-match", tag)],
                    "",
                )
                .await,
            begun.elapsed(),
        )
    };

    // What the replica has seen, and what is no number, changes nothing.
    for min in [revision.as_str(), "1", "0", "", "x", "-5", "1.5"] {
        assert_eq!(get(min, &tag).await.0.expect(304).header("x-praetor-revision"), revision, "{min}");
        get(min, "\"other\"").await.0.expect(200);
    }

    // The watch is held back: old news only for those who ask for no more.
    proxy.stall();
    let edited = cluster.merge(Kind::Process, namespace, "p", &json!({ "spec": { "restartPolicy": "Never" } })).await;
    let (late, took) = get(&version(&edited), &tag).await;
    is_problem(&late, 503);
    assert_eq!(late.header("retry-after"), "1");
    assert!((1_500..6_000).contains(&took.as_millis()), "{took:?}");
    get(&revision, &tag).await.0.expect(304);
    device.desired_unless(&tag, 0).await.expect(304);

    // It catches up while the request waits.
    let (ready, wait) = (version(&edited), Duration::from_millis(300));
    let (caught, ()) = tokio::join!(get(&ready, &tag), async {
        tokio::time::sleep(wait).await;
        proxy.resume();
    });
    let caught = caught.0.expect(200);
    assert_eq!(
        (caught.json()["items"][0]["generation"].clone(), caught.header("x-praetor-revision")),
        (json!(2), version(&edited).as_str())
    );
    // Nobody has seen this yet.
    is_problem(&get("99999999999999999999", caught.etag()).await.0, 503);
    // A revision from elsewhere that both watches have passed.
    let other = cluster.create(&device_process(namespace, "q", &unique("other"), process_spec("1"))).await;
    cluster.create(&switch(namespace, &unique("passing"), &[])).await;
    cluster.create(&device_process(namespace, "r", &unique("passing"), process_spec("1"))).await;
    wait_for(SOON, "the watches to pass", async || get(&version(&other), caught.etag()).await.0.status == 304).await;
}

#[tokio::test]
async fn until_the_first_lists_are_in_nobody_is_told_anything() {
    let stage = Stage::enter("lists").await;
    let device = unique("tor");
    stage.cluster.create(&device_process(&stage.namespace, "p", &device, process_spec("1"))).await;
    let proxy = Proxy::start(stage.plane.address()).await;
    proxy.stall();
    let builder = Manager::builder(stage.plane).await;
    let kubeconfig = stage.plane.kubeconfig_via(stage.plane.service_account_kubeconfig().await, proxy.port());
    let mut manager = builder.kubeconfig(kubeconfig).spawn();
    let device = manager.device(&device);
    wait_for(SOON, "the device port", async || {
        assert_eq!(manager.process.exited(), None, "{}", manager.process.log_tail());
        device.try_send(Method::GET, &device.path("desired"), &[], "").await.map(drop)
    })
    .await;
    let unknown = manager.device(&unique("nobody"));
    for who in [&device, &unknown] {
        for answer in [
            who.desired().await,
            who.report(&scenario::heartbeat(1, "boot")).await,
            who.connect().await,
            who.desired_unless("*", 30).await,
        ] {
            is_problem(&answer, 503);
            assert!((1..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
        }
    }
    let stranger = Device { token: "wrong".into(), ..device.clone() };
    is_problem(&stranger.desired().await, 401);
    assert_eq!((manager.admin("/healthz").await.status, manager.admin("/readyz").await.status), (200, 503));
    proxy.resume();
    manager.wait_ready().await;
    desires(&device, &[&format!("{}/p", stage.namespace)]).await;
    is_problem(&unknown.desired().await, 404);
}
