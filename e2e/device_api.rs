//! The device API of a real manager on a real apiserver: paths, names, methods, order of checks, desired state,
//! entity tags, long-polls, revisions, which devices exist, and who may speak for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "device_api/credentials.rs"]
mod credentials;
mod harness;
#[path = "device_api/waiting.rs"]
mod waiting;

use std::time::{Duration, Instant};

use harness::controlplane::ControlPlane;
use harness::device::{derived_token, request};
use harness::programs::SECRET;
use harness::scenario::{self, deployment, device_process, process_spec, switch};
use harness::stage::{desires, known};
use harness::{
    Answer, Device, Folder, Kind, MANAGER_USER, Manager, Proxy, Recorder, Stage, condition, condition_status, unique,
    wait_for,
};
use http::Method;
use praetor::wire::canonical::SpecHash;
use praetor::wire::etag::ETagBuilder;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
const LIMIT: usize = 256 * 1024;

#[track_caller]
fn is_problem(answer: &Answer, status: u16) {
    let body = answer.json();
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(body["status"], status);
    for member in ["type", "title", "detail"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
    }
}

/// The tag that contract.md derives, computed here from what the apiserver holds.
fn tag_of(heartbeat: u64, items: &[&Value]) -> String {
    let mut tag = ETagBuilder::new(heartbeat);
    for item in items {
        let text = |key: &str| item["metadata"][key].as_str().unwrap();
        let hash = SpecHash::of_spec(&item["spec"]);
        tag.item(
            text("uid"),
            text("namespace"),
            text("name"),
            item["metadata"]["generation"].as_i64().unwrap(),
            &hash.0,
        );
    }
    String::from_utf8(tag.finish().as_bytes().to_vec()).unwrap()
}

/// A long-poll that is under way when this returns.
async fn park(
    manager: &Manager,
    device: &Device,
    etag: &str,
    seconds: u64,
) -> tokio::task::JoinHandle<(Answer, Instant)> {
    let (device, etag) = (device.clone(), etag.to_owned());
    let poll = tokio::spawn(async move { (device.desired_unless(&etag, seconds).await, Instant::now()) });
    wait_for(SOON, "the poll to be parked", async || manager.metrics().await.get("praetor_longpolls_parked") == 1.0)
        .await;
    poll
}

#[tokio::test]
async fn paths_names_methods_tokens_and_bodies_in_this_order() {
    let stage = Stage::enter("routes").await;
    let manager = Manager::builder(stage.plane).await.start().await;
    let device = manager.device(&unique("tor"));
    stage.cluster.create(&switch(&stage.namespace, &device.name, &[])).await;
    known(&device).await;
    let unknown = manager.device(&unique("nobody"));

    // Paths: nothing but the three routes, and none of the admin port's.
    let prefix = format!("/v1/devices/{}", device.name);
    let admin = ["/healthz", "/readyz", "/metrics", "/debug/device", "/debug/"].map(str::to_owned);
    let near = ["", "/", "/desired/", "/desired/x", "/Desired", "/report/", "/connect/", "//desired"]
        .map(|tail| format!("{prefix}{tail}"));
    let far = [
        "/",
        "/v1",
        "/v1/devices",
        "/v1/devices/",
        "/v2/devices/x/desired",
        "/v1/devices/desired",
        "/v1//devices/x/desired",
    ];
    for path in
        admin.into_iter().chain(near).chain(far.map(str::to_owned)).chain(["/v1/devices/UPPER/nothing".to_owned()])
    {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            is_problem(&device.send(method, &path, &[], "").await, 404);
        }
    }

    // Names, before methods and tokens.
    let (longest, label) = (format!("{}.{}", "a".repeat(126), "b".repeat(126)), "a".repeat(64));
    for bad in [
        &format!("{longest}c"),
        "UPPER",
        "a_b",
        "-a",
        "a-",
        ".a",
        "a.",
        "a..b",
        "a%20b",
        "a%2fb",
        "..%2f",
        "..",
        "%2e%2e",
        "a%00",
        "%zz",
        "a%2",
        "a%252fb",
        "%C3%A9",
        "a%0a",
        "a:b",
        "*",
    ] {
        for (method, route) in
            [(Method::GET, "desired"), (Method::POST, "report"), (Method::POST, "connect"), (Method::PUT, "desired")]
        {
            let answer =
                request(manager.address(), method, &format!("/v1/devices/{bad}/{route}"), &[], "").await.unwrap();
            is_problem(&answer, 400);
        }
    }
    for good in [longest.as_str(), label.as_str(), "0", "a.b-c"] {
        is_problem(&manager.device(good).desired().await, 404);
    }
    // Judged after percent-decoding, the token too.
    let encoded: String = device.name.bytes().map(|b| format!("%{b:02x}")).collect();
    device.send(Method::GET, &format!("/v1/devices/{encoded}/desired"), &[], "").await.expect(200);

    // Methods, before tokens.
    for (route, allow, refused) in [
        (
            "desired",
            ["GET", "HEAD"].as_slice(),
            [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS].as_slice(),
        ),
        ("report", &["POST"], &[Method::GET, Method::HEAD, Method::PUT, Method::PATCH]),
        ("connect", &["POST"], &[Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS]),
    ] {
        for method in refused {
            let answer = request(manager.address(), method.clone(), &device.path(route), &[], "").await.unwrap();
            if *method == Method::HEAD {
                assert_eq!((answer.status, answer.body.len()), (405, 0))
            } else {
                is_problem(&answer, 405)
            }
            let mut allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
            allowed.sort_unstable();
            assert_eq!(allowed, allow, "{route}");
        }
    }

    // Tokens, before anything about the device is looked at.
    for who in [&device, &unknown] {
        for token in [
            None,
            Some(String::new()),
            Some("wrong".into()),
            Some(manager.token("another")),
            Some(format!("{}0", who.token)),
            Some(who.token.to_uppercase()),
        ] {
            let headers: Vec<_> = token.iter().map(|token| ("x-device-token", token.as_str())).collect();
            for (method, route) in [(Method::GET, "desired"), (Method::POST, "report"), (Method::POST, "connect")] {
                let answer = request(manager.address(), method, &who.path(route), &headers, "{garbage").await.unwrap();
                is_problem(&answer, 401);
            }
        }
    }

    // Known, before the body.
    for (method, route) in [
        (Method::GET, "desired"),
        (Method::GET, "desired?waitSeconds=x"),
        (Method::POST, "report"),
        (Method::POST, "connect"),
    ] {
        is_problem(&unknown.send(method, &unknown.path(route), &[], "{garbage").await, 404);
    }
    is_problem(&unknown.send(Method::POST, &unknown.path("report"), &[], vec![b' '; LIMIT + 1]).await, 404);

    // Bodies: their size, then what they say. The content type is not looked at.
    let report = device.path("report");
    is_problem(&device.send(Method::POST, &report, &[], vec![b' '; LIMIT + 1]).await, 413);
    let mut full = b"{}".to_vec();
    full.resize(LIMIT, b' ');
    device.send(Method::POST, &report, &[], full).await.expect(200);
    for bad in [
        "",
        "[]",
        "null",
        "1",
        "\"x\"",
        "{",
        "{}{}",
        "\u{feff}{}",
        "{\"sequence\":\"x\"}",
        "{\"sequence\":-1}",
        "{\"sequence\":1e400}",
        "{\"observations\":{}}",
        "{\"timestamp\":\"yesterday\"}",
        "{\"timestamp\":\"2025-13-12T23:55:00Z\"}",
        "{\"timestamp\":7}",
        "{\"agentVersion\":{}}",
        "{\"heartbeat\":1}",
    ] {
        is_problem(&device.send(Method::POST, &report, &[], bad.to_owned()).await, 400);
        is_problem(&device.send(Method::POST, &device.path("connect"), &[], bad.to_owned()).await, 400);
    }
    // Depth is a fault of the one observation that has it, or of nobody.
    let deep = |name: &str| format!("{{\"{name}\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let rejected = device.send(Method::POST, &report, &[], deep("observations")).await.expect(200).json();
    assert_eq!(rejected["rejected"], json!([{ "namespace": "", "name": "", "reason": "Invalid" }]));
    assert!([200, 400].contains(&device.send(Method::POST, &report, &[], deep("surprise")).await.status));
    is_problem(&device.send(Method::POST, &report, &[], b"{\"agentVersion\":\"\xff\"}".to_vec()).await, 400);
    for good in [
        "{}",
        " {\"timestamp\":\"2025-12-12T23:55:00Z\",\"surprise\":[{\"x\":1}]}",
        "{\"timestamp\":\"2025-12-12T23:55:00.123+02:00\"}",
        "{\"agentVersion\":null,\"timestamp\":\"\",\"heartbeat\":null,\"bootId\":\"\",\"sequence\":null,\"observations\":null}",
    ] {
        for kind in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"] {
            let answer =
                device.send(Method::POST, &report, &[("content-type", kind)], good.to_owned()).await.expect(200);
            assert_eq!((answer.json(), answer.header("cache-control")), (json!({ "ack": true }), "no-store"), "{good}");
        }
    }
    assert_eq!(device.connect().await.expect(200).json(), json!({ "ack": true }));
    assert!(manager.metrics().await.sum("praetor_request_panics_total") == 0.0, "{}", manager.process.log_tail());
}

#[tokio::test]
async fn desired_state_with_its_validators() {
    let stage = Stage::enter("desired").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let mut manager = Manager::builder(stage.plane).await.start().await;
    let device = manager.device(&unique("tor"));
    let mark = stage.plane.audit_mark();
    cluster.create(&switch(namespace, &device.name, &[])).await;

    // Nothing to run.
    let empty = known(&device).await;
    assert_eq!(empty.json(), json!({ "deviceName": device.name, "heartbeatIntervalSeconds": 15, "items": [] }));
    assert_eq!((empty.header("content-type"), empty.header("cache-control")), ("application/json", "no-store"));
    assert_eq!(empty.etag(), tag_of(15, &[]));

    // One item, with the spec as the apiserver returned it: defaults included.
    let mut spec = process_spec("1");
    spec["execution"]["env"] = json!([{ "name": "TOR", "value": "${APOLLO_DEVICE_NAME}" }]);
    let b = cluster.create(&device_process(namespace, "b", &device.name, spec)).await;
    let body = desires(&device, &[&format!("{namespace}/b")]).await;
    let expected = json!({ "uid": b["metadata"]["uid"], "namespace": namespace, "name": "b", "generation": 1, "spec": b["spec"],
        "specHash": SpecHash::of_spec(&b["spec"]).to_string() });
    assert_eq!(body["items"][0], expected);
    assert_eq!(b["spec"]["restartPolicy"], "Always");
    let answer = device.desired().await;
    assert_eq!(answer.etag(), tag_of(15, &[&b]));

    // HEAD is GET without the body.
    let head = device.send(Method::HEAD, &device.path("desired"), &[], "").await.expect(200);
    assert!(head.body.is_empty());
    for header in ["etag", "x-praetor-revision", "content-type", "cache-control", "content-length"] {
        assert_eq!(head.header(header), answer.header(header), "{header}");
    }

    // If-None-Match as RFC 9110 says.
    let tag = answer.etag().to_owned();
    let bare = tag.trim_matches('"');
    for (field, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"x\", {tag}"), 304),
        ("*".into(), 304),
        (bare.into(), 200),
        ("\"x\"".into(), 200),
        (empty.etag().into(), 200),
        (format!("{bare}, \"x\""), 200),
        (String::new(), 200),
    ] {
        for (method, target) in [
            (Method::GET, "desired"),
            (Method::HEAD, "desired"),
            (Method::GET, "desired?waitSeconds=0"),
            (Method::GET, "desired?waitSeconds="),
        ] {
            let answered = device
                .send(method.clone(), &device.path(target), &[("if-none-match", &field)], "")
                .await
                .expect(status);
            assert_eq!(answered.body.is_empty(), status == 304 || method == Method::HEAD, "{field}");
            for header in ["etag", "x-praetor-revision", "cache-control"] {
                assert_eq!(answered.header(header), answer.header(header), "{field} {header}");
            }
        }
    }
    for bad in ["x", "-1", "1.5", "+1", "1s", "%31x", "%201"] {
        is_problem(
            &device
                .send(Method::GET, &device.path(&format!("desired?waitSeconds={bad}")), &[("if-none-match", &tag)], "")
                .await,
            400,
        );
    }

    // Sorted by namespace, then name, for a device that no switch names.
    let (first, second) = (cluster.namespace("aaa").await, cluster.namespace("bbb").await);
    let lone = manager.device(&unique("lone"));
    for (namespace, name) in [(&second, "a"), (&first, "z"), (&first, "b.c"), (&second, "a-b"), (&first, "b-c")] {
        cluster.create(&device_process(namespace, name, &lone.name, process_spec("1"))).await;
    }
    let sorted = [
        format!("{first}/b-c"),
        format!("{first}/b.c"),
        format!("{first}/z"),
        format!("{second}/a"),
        format!("{second}/a-b"),
    ];
    desires(&lone, &sorted.each_ref().map(String::as_str)).await;
    let (one, two) = (cluster.list(Kind::Process, &first).await, cluster.list(Kind::Process, &second).await);
    assert_eq!(lone.desired().await.etag(), tag_of(15, &one.iter().chain(&two).collect::<Vec<_>>()));

    // What is no spec does not move the tag: labels, status, heartbeats, reports.
    let report = scenario::report_running(1, "boot", namespace, "b", body["items"][0]["specHash"].as_str().unwrap());
    device.report(&report).await.expect(200);
    cluster.label(Kind::Process, namespace, "b", "colour", Some("red")).await;
    let at = cluster.merge_status(Kind::Process, namespace, "b", &json!({ "lastTerminationReason": "by hand" })).await;
    let revision: u64 = at["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    wait_for(SOON, "these writes to be seen", async || {
        device.desired().await.header("x-praetor-revision").parse::<u64>().unwrap() >= revision
    })
    .await;
    assert_eq!(device.desired().await.etag(), tag);

    // The same at every replica: a restart of the manager changes nothing, and the highest revision is still good.
    let (tags, seen) = (
        async || [device.desired().await.etag().to_owned(), lone.desired().await.etag().to_owned()],
        device.desired().await,
    );
    let before = tags().await;
    manager.restart().await;
    assert_eq!(tags().await, before);
    let again = device
        .send(
            Method::GET,
            &device.path("desired"),
            &[("x-praetor-min-revision", seen.header("x-praetor-revision"))],
            "",
        )
        .await;
    assert_eq!(again.expect(200).json()["items"][0], expected);

    // Deleted for good: still known, nothing to run; and unknown after a restart.
    for (namespace, name) in [(&second, "a"), (&first, "z"), (&first, "b.c"), (&second, "a-b"), (&first, "b-c")] {
        cluster.delete(Kind::Process, namespace, name).await;
    }
    desires(&lone, &[]).await;
    assert_eq!(lone.report(&scenario::heartbeat(1, "boot")).await.status, 200);
    manager.restart().await;
    for answer in [lone.desired().await, lone.report(&json!({})).await, lone.connect().await] {
        is_problem(&answer, 404);
    }

    // Reading is no sign of life: the device that never reported was never written to.
    let written = stage
        .plane
        .audit_since(mark)
        .by(MANAGER_USER)
        .writes()
        .filter(|e| e.namespace == first || e.namespace == second);
    assert_eq!(written.count(), 0, "{}", written.describe());
}

#[tokio::test]
async fn an_object_that_is_going_is_not_desired() {
    let stage = Stage::enter("going").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let manager = Manager::builder(stage.plane).await.start().await;
    let device = manager.device(&unique("tor"));
    let mut held = device_process(namespace, "held", &device.name, process_spec("1"));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(&held).await;
    cluster.create(&device_process(namespace, "kept", &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{namespace}/held"), &format!("{namespace}/kept")]).await;
    let tag = device.desired().await.etag().to_owned();

    let poll = park(&manager, &device, &tag, 30).await;
    cluster.delete(Kind::Process, namespace, "held").await;
    let (answer, _) = poll.await.unwrap();
    let items = answer.expect(200).json()["items"].as_array().unwrap().clone();
    assert_eq!(items.iter().map(|item| item["name"].as_str().unwrap()).collect::<Vec<_>>(), ["kept"]);
    assert!(cluster.get(Kind::Process, namespace, "held").await.is_some(), "the finalizer holds it");
    cluster.merge(Kind::Process, namespace, "held", &json!({ "metadata": { "finalizers": null } })).await;
    cluster.wait_gone(Kind::Process, namespace, "held", SOON).await;
    desires(&device, &[&format!("{namespace}/kept")]).await;
}

#[tokio::test]
async fn a_process_counts_only_where_its_switch_is() {
    let stage = Stage::enter("home").await;
    let (cluster, home) = (&stage.cluster, stage.namespace.as_str());
    let away = cluster.namespace("away").await;
    let recorder = Recorder::start(stage.plane).await;
    let (device_port, admin_port) = (harness::free_port(), harness::free_port());
    let builder = Manager::builder(stage.plane).await.ports(device_port, admin_port);
    let mut manager = builder.clone().start().await;
    let device = manager.device(&unique("tor"));
    let (here, there) = (format!("{home}/p"), format!("{away}/p"));
    let warned = |object: &Value| {
        condition(object, "SpecWarning").is_some_and(|c| c["status"] == "True" && c["reason"] == "DeviceNotInNamespace")
    };
    let warning = async |expected: bool, why: &str| {
        cluster.wait_object(Kind::Process, &away, "p", SOON, why, |object| warned(object) == expected).await
    };
    cluster.create(&device_process(home, "p", &device.name, process_spec("1"))).await;
    cluster.create(&device_process(&away, "p", &device.name, process_spec("1"))).await;
    // No switch: both count.
    let mut both = [there.as_str(), here.as_str()];
    both.sort_unstable();
    desires(&device, &both).await;

    // A switch at home: the one away does not.
    cluster.create(&switch(home, &device.name, &[])).await;
    desires(&device, &[&here]).await;
    let object = warning(true, "warned").await;
    let message = condition(&object, "SpecWarning").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("--allow-cross-namespace"), "{message}");
    assert_eq!(object["status"]["phase"], "Pending");
    let hash = SpecHash::of_spec(&object["spec"]).to_string();
    // Reports about it are another's; the device's own go through.
    let answer = device.report(&scenario::report_running(1, "boot", &away, "p", &hash)).await.expect(403);
    is_problem(&answer, 403);
    device.report(&scenario::report_running(2, "boot", home, "p", &hash)).await.expect(200);
    let object = cluster.get(Kind::Process, &away, "p").await.unwrap();
    assert_eq!((condition_status(&object, "AgentConnected"), &object["status"]["runningSpecHash"]), ("", &Value::Null));
    let events = recorder.wait_events("SpecWarning", "p", 1, SOON).await;
    assert_eq!((events.len(), events[0].kind.as_str(), events[0].namespace.as_str()), (1, "Warning", away.as_str()));

    // Two switches of one name: both count, and the warning goes.
    cluster.create(&switch(&away, &device.name, &[])).await;
    warning(false, "no longer warned").await;
    assert_eq!(device.desired().await.json()["items"].as_array().unwrap().len(), 2);
    cluster.delete(Kind::Switch, &away, &device.name).await;
    warning(true, "warned again").await;
    desires(&device, &[&here]).await;

    // The flag lifts the rule.
    manager.kill9();
    drop(manager);
    let lifted = builder.args(&["--allow-cross-namespace"]).start().await;
    wait_for(SOON, "both to be served", async || {
        lifted.device(&device.name).desired().await.json()["items"].as_array().is_some_and(|i| i.len() == 2)
    })
    .await;
    warning(false, "no longer warned by the flag").await;
    lifted.device(&device.name).report(&scenario::report_running(3, "boot", &away, "p", &hash)).await.expect(200);
    recorder.wait_events("SpecWarning", "p", 2, SOON).await;
    assert_eq!(recorder.events("SpecWarning", "p").len(), 2, "{:?}", recorder.events("", "p"));
}

#[tokio::test]
async fn all_children_of_one_template_have_one_hash() {
    let stage = Stage::enter("hashes").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let manager = Manager::builder(stage.plane).await.start().await;
    let names = scenario::fleet(&unique("tor"), 5);
    scenario::create_switches(cluster, namespace, &names, &[]).await;
    let mut spec = process_spec("1");
    spec["healthCheck"] = json!({ "exec": { "command": ["/bin/true"] } });
    spec["execution"]["args"] = json!([]);
    cluster.create(&deployment(namespace, "agent", &[], spec)).await;
    let mut hashes = std::collections::BTreeSet::new();
    for name in &names {
        let body = desires(&manager.device(name), &[&format!("{namespace}/agent-{name}")]).await;
        let child = cluster.get(Kind::Process, namespace, &format!("agent-{name}")).await.unwrap();
        assert_eq!(body["items"][0]["specHash"], SpecHash::of_spec(&child["spec"]).to_string());
        assert_eq!(body["items"][0]["spec"]["deviceRef"]["name"], *name);
        hashes.insert(body["items"][0]["specHash"].to_string());
    }
    assert_eq!(hashes.len(), 1, "{hashes:?}");
}

/// A schema that lets everything through stands for the one of a newer version.
#[tokio::test]
async fn what_this_version_cannot_read_is_served_all_the_same() {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let kubectl = plane.kubectl();
    for plural in ["deviceprocesses", "networkswitches", "deviceprocessdeployments"] {
        let name = format!("{plural}.azure.com");
        let crd: Value = serde_json::from_str(&kubectl.run(&["get", "crd", &name, "-o", "json"]).await).unwrap();
        let mut version = crd["spec"]["versions"][0].clone();
        version["schema"]["openAPIV3Schema"] = open.clone();
        version.as_object_mut().unwrap().remove("selectableFields");
        let patch = json!({ "spec": { "versions": [version] } }).to_string();
        kubectl.run(&["patch", "crd", &name, "--type=merge", "-p", &patch]).await;
    }
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("newer").await;
    let object = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "azure.com/v1alpha1", "kind": kind, "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    // The new schema is in force when this is no longer refused.
    wait_for(SOON, "the open schema", async || {
        cluster.try_create(&object("DeviceProcess", "lost", json!([1, 2]))).await.map(drop)
    })
    .await;
    let manager = Manager::builder(&plane).await.start().await;
    let device = manager.device(&unique("tor"));
    let reference = json!({ "kind": "Toaster", "name": device.name });
    let strange = [
        (
            "a",
            json!({ "deviceRef": reference, "artifact": 7, "execution": ["x", { "y": null }], "number": 1.0e300, "big": 9_007_199_254_740_993_u64 }),
        ),
        (
            "b",
            json!({ "deviceRef": reference, "restartPolicy": { "new": "form" }, "surprise": { "deep": [{ "er": [] }] } }),
        ),
        ("c", json!({ "deviceRef": { "name": device.name } })),
    ];
    for (name, spec) in &strange {
        cluster.create(&object("DeviceProcess", name, spec.clone())).await;
    }
    // These are for nobody, and harm nobody.
    for (name, spec) in [
        ("none", json!({})),
        ("typed", json!({ "deviceRef": { "name": 7 } })),
        ("text", json!("text")),
        ("bad", json!({ "deviceRef": { "name": "Not A Name" } })),
    ] {
        cluster.create(&object("DeviceProcess", name, spec)).await;
    }
    cluster.create(&object("DeviceProcessDeployment", "odd", json!({ "selector": 7, "template": [] }))).await;
    cluster.create(&object("NetworkSwitch", &unique("odd"), json!("open"))).await;

    let names = strange.each_ref().map(|(name, _)| format!("{namespace}/{name}"));
    let body = desires(&device, &names.each_ref().map(String::as_str)).await;
    for (item, (name, _)) in body["items"].as_array().unwrap().iter().zip(&strange) {
        let stored = cluster.get(Kind::Process, &namespace, name).await.unwrap();
        assert_eq!(item["spec"], stored["spec"]);
        assert_eq!(item["specHash"], SpecHash::of_spec(&stored["spec"]).to_string());
    }
    // Its status is written as any other's.
    let hash = body["items"][0]["specHash"].as_str().unwrap();
    device.report(&scenario::report_running(1, "boot", &namespace, "a", hash)).await.expect(200);
    let object = cluster.get(Kind::Process, &namespace, "a").await.unwrap();
    assert_eq!((&object["status"]["phase"], &object["status"]["runningSpecHash"]), (&json!("Running"), &json!(hash)));
    // A status that nobody can read is written anew.
    cluster
        .merge_status(
            Kind::Process,
            &namespace,
            "b",
            &json!({ "conditions": "odd", "phase": 7, "transitions": "x", "lastReport": [] }),
        )
        .await;
    device
        .report(&scenario::report_running(2, "boot", &namespace, "b", body["items"][1]["specHash"].as_str().unwrap()))
        .await
        .expect(200);
    let object = cluster
        .wait_object(Kind::Process, &namespace, "b", SOON, "Running", |o| o["status"]["phase"] == "Running")
        .await;
    assert_eq!(condition_status(&object, "AgentConnected"), "True");
    // The watch lives on.
    cluster.create(&device_process(&namespace, "d", &device.name, process_spec("1"))).await;
    desires(&device, &[&names[0], &names[1], &names[2], &format!("{namespace}/d")]).await;
}
