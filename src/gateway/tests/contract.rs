//! Edge: the contract's sentences about the device API, one by one.

use super::*;
use crate::wire::desired::DesiredState;
use crate::wire::report::Rejection;
use tokio::time::Instant;

fn hash() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

fn observation(name: &str) -> Value {
    json!({"namespace": "infra", "name": name, "observedSpecHash": hash()})
}

#[tokio::test]
async fn checks_come_in_their_order() {
    let fixture = Fixture::new();
    let long = "a".repeat(254);
    let longest = "a".repeat(253);
    for (method, target, status) in [
        // Path.
        ("GET", "/", 404),
        ("GET", "/v1/devices/tor1-01", 404),
        ("GET", "/v1/devices/tor1-01/desired/", 404),
        ("DELETE", "/v1/devices/BAD/report/", 404),
        ("GET", "/healthz", 404),
        ("GET", "/metrics", 404),
        ("OPTIONS", "*", 404),
        ("GET", "http://host/v1/devices/tor1-01/nothing", 404),
        // Name, before the method.
        ("DELETE", "/v1/devices/Tor1-01/desired", 400),
        ("GET", "/v1/devices/..%2f/desired", 400),
        ("GET", "/v1/devices/../desired", 400),
        ("GET", "/v1/devices//desired", 400),
        ("GET", "/v1/devices/a%00/desired", 400),
        ("GET", "/v1/devices/tor1%252d01/desired", 400),
        ("GET", "/v1/devices/tor1%2/desired", 400),
        ("GET", &format!("/v1/devices/{long}/desired"), 400),
        // Method, before the token.
        ("POST", "/v1/devices/tor1-01/desired", 405),
        ("OPTIONS", "/v1/devices/unknown/desired", 405),
        ("GET", "/v1/devices/tor1-01/report", 405),
        ("HEAD", "/v1/devices/tor1-01/connect", 405),
        // Token, before whether the device is known.
        ("GET", "/v1/devices/tor1-01/desired", 401),
        ("GET", "/v1/devices/unknown/desired?waitSeconds=x", 401),
        ("POST", "/v1/devices/unknown/report", 401),
        ("GET", &format!("/v1/devices/{longest}/desired"), 401),
    ] {
        let reply = fixture.send(method, target, &[], "").await.expect(status);
        if status == 405 {
            assert_eq!(reply.header("allow"), if target.ends_with("desired") { "GET, HEAD" } else { "POST" });
        }
    }
    // Known, before the body and the query.
    fixture.get("unknown", "?waitSeconds=x", &[]).await.expect(404);
    fixture.post("unknown", "report", "junk").await.expect(404);
    fixture.post("unknown", "connect", "{}").await.expect(404);
    fixture.get(&longest, "", &[]).await.expect(404);
    assert!(fixture.script.seen.lock().is_empty());
    assert_eq!(fixture.metric("praetor_auth_failures_total", None), 4.0);
    assert_eq!(fixture.metric("praetor_unrouted_requests_total", None), 8.0);
    assert_eq!(fixture.metric("praetor_desired_requests_total", Some("400")), 8.0);
}

#[tokio::test]
async fn tokens_are_for_one_device() {
    let fixture = Fixture::new();
    let target = "/v1/devices/tor1-01/desired";
    let good = token(DEVICE);
    for bad in ["", "x", &token(BARE), &good.to_uppercase(), &good[1..], SECRET] {
        fixture.send("GET", target, &[("x-device-token", bad)], "").await.expect(401);
    }
    fixture.send("GET", "/v1/devices/tor1%2D01/desired", &[("X-Device-Token", &good)], "").await.expect(200);
    // A connection that has shown a good token for one device has shown it for that one alone.
    let session = fixture.session();
    for (device, token, status) in [
        (DEVICE, &good, 200),
        (BARE, &good, 401),
        (DEVICE, &token(BARE), 401),
        (DEVICE, &good, 200),
        (BARE, &token(BARE), 200),
    ] {
        let request = Request::get(format!("/v1/devices/{device}/desired")).header("x-device-token", token);
        Reply::of(session.answer(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()).await.expect(status);
    }
}

#[tokio::test]
async fn nothing_is_answered_before_the_first_lists() {
    let fixture = Fixture::with(Script::default());
    fixture.get(DEVICE, "?waitSeconds=x", &[]).await.expect(503);
    fixture.get(DEVICE, "", &[("x-praetor-min-revision", "1")]).await.expect(503);
    fixture.post(DEVICE, "report", "{}").await.expect(503);
    assert!(fixture.script.seen.lock().is_empty());
    fixture.sync();
    fixture.get(DEVICE, "", &[]).await.expect(200);
    assert_eq!(fixture.get(BARE, "", &[]).await.expect(200).json()["items"], json!([]));
}

#[tokio::test]
async fn desired_state_and_its_validators() {
    let fixture = Fixture::new();
    let reply = fixture.get(DEVICE, "", &[]).await.expect(200);
    let state: DesiredState = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((state.device_name.as_str(), state.heartbeat_interval_seconds, state.items.len()), (DEVICE, 15, 1));
    let etag = reply.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'));
    assert_eq!(reply.header("x-praetor-revision"), "50");
    let bare = etag.trim_matches('"');
    for (fields, status) in [
        (vec![etag.as_str()], 304),
        (vec!["*"], 304),
        (vec![&format!("W/{etag}")], 304),
        (vec!["\"other\"", &format!("\"x\" , {etag}")], 304),
        (vec!["\"other\"", "\"more\""], 200),
        (vec![bare], 200),
        (vec![""], 200),
    ] {
        let fields: Vec<_> = fields.iter().map(|field| ("if-none-match", *field)).collect();
        let reply = fixture.get(DEVICE, "?waitSeconds=0", &fields).await.expect(status);
        assert_eq!((reply.header("etag"), reply.header("x-praetor-revision")), (etag.as_str(), "50"));
    }
    fixture.change(2, 101);
    let reply = fixture.get(DEVICE, "", &[("if-none-match", &etag)]).await.expect(200);
    assert_ne!(reply.header("etag"), etag);
    assert_eq!(reply.header("x-praetor-revision"), "101");
    for code in ["200", "304"] {
        assert!(fixture.metric("praetor_desired_requests_total", Some(code)) > 2.0);
    }
}

#[tokio::test]
async fn waits_are_judged_last() {
    let fixture = Fixture::new();
    for (query, status) in [
        ("?waitSeconds=", 200),
        ("?other=1", 200),
        ("?waitSeconds=99999999999999999999", 200),
        ("?waitSeconds=-1", 400),
        ("?waitSeconds=1.0", 400),
        ("?waitSeconds=x", 400),
    ] {
        fixture.get(DEVICE, query, &[]).await.expect(status);
    }
}

#[tokio::test(start_paused = true)]
async fn long_polls() {
    let fixture = Fixture::new();
    let etag = fixture.get(DEVICE, "", &[]).await.header("etag").to_owned();
    let matching = [("if-none-match", etag.as_str())];

    // No match: at once.
    let start = Instant::now();
    fixture.get(DEVICE, "?waitSeconds=60", &[]).await.expect(200);
    fixture.get(DEVICE, "?waitSeconds=60", &[("if-none-match", "\"x\"")]).await.expect(200);
    assert_eq!(start.elapsed(), Duration::ZERO);

    // Nothing changes: after the time, and never more than a minute.
    for (query, seconds) in [("?waitSeconds=7", 7), ("?waitSeconds=3600", 60)] {
        let start = Instant::now();
        let reply = fixture.get(DEVICE, query, &matching).await.expect(304);
        assert_eq!((reply.header("etag"), start.elapsed().as_secs()), (etag.as_str(), seconds));
    }

    // A change ends it; one of another device does not, nor one that leaves the tag as it is.
    let start = Instant::now();
    let (reply, ()) = tokio::join!(fixture.get(DEVICE, "?waitSeconds=30", &matching), async {
        fixture.parked(1).await;
        fixture.change(1, 101);
        tokio::time::sleep(Duration::from_secs(3)).await;
        fixture.change(2, 102);
    });
    assert_eq!((reply.expect(200).header("x-praetor-revision"), start.elapsed().as_secs()), ("102", 3));
    fixture.parked(0).await;

    // A change that If-None-Match matches, too.
    let (reply, ()) = tokio::join!(fixture.get(DEVICE, "?waitSeconds=30", &[("if-none-match", "*")]), async {
        fixture.parked(1).await;
        fixture.change(3, 103);
    });
    assert_eq!(reply.expect(304).header("x-praetor-revision"), "103");

    // The manager wants to stop: at once, and nothing parks any more.
    let etag = fixture.get(DEVICE, "", &[]).await.header("etag").to_owned();
    let matching = [("if-none-match", etag.as_str())];
    let start = Instant::now();
    let (reply, ()) = tokio::join!(fixture.get(DEVICE, "?waitSeconds=30", &matching), async {
        fixture.parked(1).await;
        fixture.gateway.drain();
    });
    assert_eq!(reply.expect(304).header("connection"), "close");
    fixture.get(DEVICE, "?waitSeconds=30", &[("if-none-match", &etag)]).await.expect(304);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nobody_travels_back_in_time() {
    let fixture = Fixture::new();
    for field in ["", "x", "-1", "50", "100", "0"] {
        fixture.get(DEVICE, "", &[("x-praetor-min-revision", field)]).await.expect(200);
    }
    for field in ["101", "99999999999999999999999999"] {
        let start = Instant::now();
        let reply = fixture.get(DEVICE, "", &[("x-praetor-min-revision", field)]).await.expect(503);
        assert_eq!((reply.header("retry-after"), start.elapsed().as_secs()), ("1", 2));
    }
    // A device that this replica does not know yet is not unknown.
    let start = Instant::now();
    fixture.get("new", "", &[("x-praetor-min-revision", "101")]).await.expect(503);
    assert_eq!(start.elapsed().as_secs(), 2);
    fixture.get("new", "", &[("x-praetor-min-revision", "100")]).await.expect(404);

    let start = Instant::now();
    let (reply, ()) = tokio::join!(fixture.get(DEVICE, "", &[("x-praetor-min-revision", "101")]), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fixture.change(2, 101);
    });
    assert_eq!((reply.expect(200).header("x-praetor-revision"), start.elapsed().as_secs()), ("101", 1));
}

#[tokio::test]
async fn reports_reach_the_intake() {
    let fixture = Fixture::new();
    let body = json!({"agentVersion": "0.1\u{7}.0", "timestamp": "2025-12-12T23:55:00Z", "heartbeat": false, "bootId": "b", "sequence": 42, "more": {},
        "capabilities": {"backends": ["systemd", "initd", "no word"], "artifactTypes": ["oci", 7]},
        "observations": [observation("p")]});
    let reply = fixture.post(DEVICE, "report", body.to_string()).await.expect(200);
    assert_eq!(reply.json(), json!({"ack": true}));
    for body in ["{}", r#"{"observations":null,"bootId":"","agentVersion":"\u0001"}"#] {
        fixture.post(DEVICE, "report", body).await.expect(200);
    }
    // A connect is a report without observations.
    fixture.post(DEVICE, "connect", body.to_string()).await.expect(200);
    let seen = std::mem::take(&mut *fixture.script.seen.lock());
    let (device, incoming) = &seen[0];
    assert_eq!(
        (device.as_str(), incoming.introduction.version.as_deref(), incoming.boot_id.as_deref(), incoming.sequence),
        (DEVICE, Some("0.1.0"), Some("b"), Some(42))
    );
    let capabilities = r#"{"backends":["initd","systemd"],"artifactTypes":["oci"]}"#;
    assert_eq!(incoming.introduction.capabilities.as_deref(), Some(capabilities));
    assert_eq!((incoming.observations.len(), incoming.observations[0].name.as_str()), (1, "p"));
    for (_, incoming) in &seen[1..3] {
        assert!(incoming.introduction.is_empty() && incoming.boot_id.is_none() && incoming.observations.is_empty());
    }
    assert!(seen[3].1.observations.is_empty() && seen[3].1.fingerprint != incoming.fingerprint);

    // What is settled does not get as far.
    fixture.script.settled.store(true, Ordering::Relaxed);
    fixture.post(DEVICE, "report", body.to_string()).await.expect(200);
    assert!(fixture.script.seen.lock().is_empty());
    fixture.post(DEVICE, "report", r#"{"sequence":1}"#).await.expect(200);
    assert_eq!(fixture.script.seen.lock().len(), 1);
}

#[tokio::test]
async fn the_same_report_has_the_same_fingerprint() {
    let fixture = Fixture::new();
    let report = |sequence: u64, time: &str, version: &str, name: &str| {
        json!({"agentVersion": version, "bootId": "b", "sequence": sequence, "timestamp": time, "observations": [observation(name)]}).to_string()
    };
    for body in [
        report(1, "2025-12-12T23:55:00Z", "1", "p"),
        report(2, "2025-12-12T23:55:15Z", "1", "p"),
        report(3, "2025-12-12T23:55:15Z", "2", "p"),
        report(3, "2025-12-12T23:55:15Z", "1", "q"),
        report(3, "2025-12-12T23:55:15Z", "1", "p").replacen('{', r#"{"capabilities":{"backends":["systemd"]},"#, 1),
        report(3, "2025-12-12T23:55:15Z", "1", "p").replacen('{', r#"{"capabilities":{"backends":["initd"]},"#, 1),
        report(3, "2025-12-12T23:55:15Z", "1", "p").replacen('{', r#"{"capabilities":null,"#, 1),
    ] {
        fixture.post(DEVICE, "report", body).await.expect(200);
    }
    let prints: Vec<_> = fixture.script.seen.lock().iter().map(|(_, incoming)| incoming.fingerprint.unwrap()).collect();
    assert!(prints[0] == prints[1] && prints[0] == prints[6]);
    let different: std::collections::BTreeSet<_> = prints[..6].iter().collect();
    assert_eq!(different.len(), 5);
}

#[tokio::test]
async fn unreadable_reports() {
    let fixture = Fixture::new();
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let many = json!({"observations": vec![json!({}); 257]}).to_string();
    for body in [
        "",
        " ",
        "[]",
        "null",
        "{",
        "{}{}",
        "\u{feff}{}",
        "garbage",
        r#"{"agentVersion":1}"#,
        r#"{"sequence":-1}"#,
        r#"{"sequence":1e400}"#,
        r#"{"heartbeat":"yes"}"#,
        r#"{"observations":{}}"#,
        r#"{"observations":1}"#,
        r#"{"timestamp":"yesterday"}"#,
        r#"{"timestamp":12}"#,
        r#"{"bootId":["x"]}"#,
        r#"{"capabilities":["systemd"]}"#,
        &nested,
        &many,
    ] {
        for route in ["report", "connect"] {
            if route == "connect" && body == many {
                continue;
            }
            fixture.post(DEVICE, route, body.to_owned()).await.expect(400);
        }
    }
    fixture.post(DEVICE, "report", vec![b'{', 0xff, b'}']).await.expect(400);
    let exactly = format!("{{{}}}", " ".repeat(256 * 1024 - 2));
    fixture.post(DEVICE, "report", exactly.clone()).await.expect(200);
    let reply = fixture.post(DEVICE, "report", format!("{exactly} ")).await.expect(413);
    assert_eq!(reply.header("connection"), "close");
    assert_eq!(fixture.script.seen.lock().len(), 1);
    assert_eq!(fixture.metric("praetor_reports_total", Some("413")), 1.0);
}

#[tokio::test]
async fn faults_of_one_observation_do_not_hide_the_others() {
    let fixture = Fixture::new();
    let long = "x".repeat(2_000);
    let body = json!({"observations": [
        observation("p"), {"namespace": "infra", "name": "no-hash"}, 7, null, [1], {"name": "wrong\u{1b}type", "namespace": "n", "pid": "x"},
        {"name": long, "observedSpecHash": "md5:1"}, {"namespace": "n", "name": "neg", "observedSpecHash": hash(), "pid": -1},
    ]});
    fixture.script.outcomes.lock().push_back(Outcome::Done {
        rejected: vec![Rejection { namespace: "infra".into(), name: "p".into(), reason: "NotYours".into() }],
    });
    let reply = fixture.post(DEVICE, "report", body.to_string()).await.expect(200).json();
    let listed: Vec<_> = reply["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| [&r["namespace"], &r["name"], &r["reason"]].map(|v| v.as_str().unwrap()))
        .collect();
    assert_eq!(
        listed,
        [
            ["infra", "no-hash", "Invalid"],
            ["", "", "Invalid"],
            ["", "", "Invalid"],
            ["", "", "Invalid"],
            ["n", "wrong[31mtype".replace("[31m", "").as_str(), "Invalid"],
            ["", &long[..1024], "Invalid"],
            ["n", "neg", "Invalid"],
            ["infra", "p", "NotYours"],
        ]
    );
    assert_eq!(reply["ack"], json!(true));
    assert_eq!(fixture.script.seen.lock()[0].1.fingerprint, None);

    // The rest is NotYours, but not every one is.
    fixture.script.outcomes.lock().push_back(Outcome::AllNotYours);
    let body = json!({"observations": [observation("p"), 7]});
    let reply = fixture.post(DEVICE, "report", body.to_string()).await.expect(200).json();
    assert_eq!(reply["rejected"][1], json!({"namespace": "infra", "name": "p", "reason": "NotYours"}));
}

#[tokio::test]
async fn outcomes() {
    let fixture = Fixture::new();
    fixture.script.outcomes.lock().extend([
        Outcome::AllNotYours,
        Outcome::Later { retry_after_seconds: 7 },
        Outcome::Later { retry_after_seconds: 600 },
    ]);
    let body = json!({"observations": [observation("p")]}).to_string();
    fixture.post(DEVICE, "report", body.clone()).await.expect(403);
    assert_eq!(fixture.post(DEVICE, "report", body.clone()).await.expect(503).header("retry-after"), "7");
    assert_eq!(fixture.post(DEVICE, "connect", body).await.expect(503).header("retry-after"), "60");
}

#[tokio::test]
async fn a_panic_ends_one_request() {
    let fixture = Fixture::new();
    let session = fixture.session();
    for (panics, status) in [(true, 500), (false, 200)] {
        fixture.script.panics.store(panics, Ordering::Relaxed);
        let request = Request::post(format!("/v1/devices/{DEVICE}/report")).header("x-device-token", token(DEVICE));
        let answer = session.answer(request.body(Full::<Bytes>::from("{}")).unwrap()).await.unwrap();
        Reply::of(answer).await.expect(status);
    }
    assert_eq!(fixture.metric("praetor_request_panics_total", None), 1.0);
    assert_eq!(fixture.metric("praetor_reports_total", Some("500")), 1.0);
}
