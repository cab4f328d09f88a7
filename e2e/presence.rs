//! Who is there: silence becomes a verdict in its window and not before, whatever happens to the manager or to the
//! apiserver meanwhile, and a fleet that lives is never written to. With short heartbeats, real processes throughout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use harness::scenario::{self, device_process, heartbeat, process_spec, report_running, switch};
use harness::stage::desires;
use harness::{
    Cluster, ControlPlane, Device, Heart, Kind, MANAGER_USER, Manager, ManagerBuilder, Part, Recorder, Stage,
    condition, condition_status, holds_for, unique, wait_for,
};
use http::Method;
use praetor::ownership::objects::member_name;
use praetor::wire::canonical::SpecHash;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
/// Heartbeat 2 s, stale after 3 of them.
const FLAGS: [&str; 2] = ["--default-heartbeat-seconds=2", "--stale-multiplier=3"];
const WINDOW: Duration = Duration::from_secs(6);
/// What contract.md allows a verdict to be late.
const SLACK: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_secs(1);

async fn builder(plane: &ControlPlane) -> ManagerBuilder {
    Manager::builder(plane).await.args(&FLAGS)
}

fn is_connected(object: &Value, status: &str) -> bool {
    condition_status(object, "AgentConnected") == status
}

/// A device with a switch and one running process of its name, both connected.
async fn connected(cluster: &Cluster, manager: &Manager, namespace: &str) -> (Device, Value) {
    let device = manager.device(&unique("tor"));
    cluster.create(&switch(namespace, &device.name, &[])).await;
    let process = cluster.create(&device_process(namespace, &device.name, &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{namespace}/{}", device.name)]).await;
    let hash = SpecHash::of_spec(&process["spec"]).to_string();
    let report = report_running(1, "boot", namespace, &device.name, &hash);
    device.report(&report).await.expect(200);
    for kind in [Kind::Process, Kind::Switch] {
        cluster.wait_object(kind, namespace, &device.name, SOON, "connected", |o| is_connected(o, "True")).await;
    }
    (device, report)
}

/// When the device's process was first called dead.
async fn called_dead(recorder: &Recorder, namespace: &str, device: &str, deadline: Duration) -> Instant {
    recorder
        .wait_first(Kind::Process, namespace, device, deadline, "AgentConnected=False", |o| is_connected(o, "False"))
        .await
}

fn ever_dead(recorder: &Recorder, namespace: &str, device: &str) -> bool {
    [Kind::Process, Kind::Switch]
        .iter()
        .any(|kind| recorder.first(*kind, namespace, device, |o| is_connected(o, "False")).is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_found_out_in_its_window_and_a_return_at_once() {
    let stage = Stage::enter("silence").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.start().await;
    let (alive, _) = connected(cluster, &manager, namespace).await;
    let _heart = Heart::start(&alive, BEAT);
    let (device, report) = connected(cluster, &manager, namespace).await;
    // Once more: until here other things took their time.
    let last_before = Instant::now();
    device.report(&report).await.expect(200);
    let last_after = Instant::now();
    let writes = async || {
        let mut counts = [0; 2];
        for (count, kind) in counts.iter_mut().zip([Kind::Process, Kind::Switch]) {
            recorder.caught_up(cluster, kind, namespace, &device.name).await;
            *count = recorder.writes(kind, namespace, &device.name);
        }
        counts
    };
    let written = writes().await;
    let before = cluster.get(Kind::Process, namespace, &device.name).await.unwrap();

    // Reading on does not count as a sign of life.
    let reader = tokio::spawn({
        let device = device.clone();
        async move {
            loop {
                device.desired().await.expect(200);
                tokio::time::sleep(BEAT).await;
            }
        }
    });
    let dead = called_dead(&recorder, namespace, &device.name, WINDOW + SLACK + SOON).await;
    assert!(dead - last_before >= WINDOW, "too early: {:?}", dead - last_before);
    assert!(dead - last_after <= WINDOW + SLACK, "too late: {:?}", dead - last_after);
    eprintln!("called dead after {:.1} s of silence", (dead - last_after).as_secs_f64());
    let object = cluster
        .wait_object(Kind::Switch, namespace, &device.name, SLACK, "disconnected", |o| is_connected(o, "False"))
        .await;
    let said = condition(&object, "AgentConnected").unwrap();
    assert_eq!(
        (&said["reason"], &said["message"]),
        (&json!("HeartbeatMissed"), &json!("no report within the staleness window"))
    );
    let events = recorder.wait_events("AgentDisconnected", &device.name, 1, SOON).await;
    assert_eq!(
        (events[0].kind.as_str(), events[0].note.as_str()),
        ("Warning", "no report within the staleness window")
    );

    // It changes that condition alone.
    let mut after = cluster.get(Kind::Process, namespace, &device.name).await.unwrap()["status"].clone();
    assert_eq!(condition(&json!({ "status": after }), "AgentConnected").unwrap()["reason"], "HeartbeatMissed");
    let mut before = before["status"].clone();
    assert_eq!((&before["transitions"], &after["transitions"]), (&json!(1), &json!(2)));
    for status in [&mut before, &mut after] {
        status["conditions"].as_array_mut().unwrap().retain(|c| c["type"] != "AgentConnected");
        status.as_object_mut().unwrap().retain(|field, _| field != "transitions" && field != "lastEvents");
    }
    assert_eq!(before, after);
    // One write each, and then no more, for as long as it is silent.
    holds_for(WINDOW + Duration::from_secs(2), "one write each", async || {
        let now = writes().await;
        if now == written.map(|count| count + 1) { Ok(()) } else { Err(format!("{now:?} after {written:?}")) }
    })
    .await;
    assert_eq!(recorder.events("AgentDisconnected", &device.name).len(), 1);
    assert!(!reader.is_finished(), "a read was not answered with 200");
    reader.abort();

    // Back again: the first report is enough.
    let back = Instant::now();
    device.report(&heartbeat(1, "second boot")).await.expect(200);
    for kind in [Kind::Process, Kind::Switch] {
        let at = wait_for(SOON, format!("{kind:?} connected again, on record"), async || {
            let history = recorder.history(kind, namespace, &device.name);
            history.into_iter().find(|seen| seen.at >= back && is_connected(&seen.object, "True")).map(|seen| seen.at)
        })
        .await;
        assert!(at - back <= Duration::from_secs(3), "{kind:?}: {:?}", at - back);
        assert!(is_connected(&cluster.get(kind, namespace, &device.name).await.unwrap(), "True"));
    }
    assert_eq!(recorder.wait_events("AgentConnected", &device.name, 2, SOON).await.len(), 2);
    assert_eq!(writes().await, written.map(|count| count + 2));
    assert!(!ever_dead(&recorder, namespace, &alive.name), "a living device was called dead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_dies_with_its_manager_is_found_out_after_a_whole_window() {
    let stage = Stage::enter("restart").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let mut manager = builder(stage.plane).await.start().await;
    let (alive, _) = connected(cluster, &manager, namespace).await;
    let (dead, report) = connected(cluster, &manager, namespace).await;
    // A device that was never there is not lost either.
    let never = unique("never");
    cluster.create(&switch(namespace, &never, &[])).await;
    cluster.create(&device_process(namespace, &never, &never, process_spec("1"))).await;
    let heart = Heart::start(&alive, BEAT);
    dead.report(&report).await.expect(200);
    manager.kill9();
    let started = Instant::now();
    manager.restart().await;
    let ready = Instant::now();
    let called = called_dead(&recorder, namespace, &dead.name, WINDOW + SLACK + SOON).await;
    assert!(called - started >= WINDOW, "judged {:?} after the start", called - started);
    assert!(called - ready <= WINDOW + SLACK, "only {:?} after it was ready", called - ready);
    recorder.wait_events("AgentDisconnected", &dead.name, 1, SOON).await;
    heart.wait_beats(3).await;
    assert_eq!(recorder.events("AgentDisconnected", "").len(), 1);
    assert!(!ever_dead(&recorder, namespace, &alive.name), "a living device was called dead");
    assert_eq!(recorder.writes(Kind::Process, namespace, &alive.name), 2, "created, connected");
    assert_eq!(recorder.writes(Kind::Process, namespace, &never), 1, "created");
    let devices = manager.metrics().await;
    for (state, count) in [("connected", 1.0), ("never", 2.0), ("stale", 0.0)] {
        assert_eq!(devices.get(&format!("praetor_devices{{state=\"{state}\"}}")), count, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_stopped_calls_nobody_dead_for_it() {
    let stage = Stage::enter("stopped").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let mut manager = builder(stage.plane).await.start().await;
    let mut living = Vec::new();
    for _ in 0..5 {
        let (device, _) = connected(cluster, &manager, namespace).await;
        living.push((Heart::start(&device, BEAT), device));
    }
    let (dead, report) = connected(cluster, &manager, namespace).await;
    dead.report(&report).await.expect(200);

    manager.process.signal("STOP");
    // Stopped for longer than the window: this is the fault, not a wait for anything.
    tokio::time::sleep(WINDOW + Duration::from_secs(4)).await;
    manager.process.signal("CONT");
    let resumed = Instant::now();
    let called = called_dead(&recorder, namespace, &dead.name, WINDOW + SLACK + SOON).await;
    assert!(called - resumed >= WINDOW, "judged {:?} after it was resumed", called - resumed);
    assert!(called - resumed <= WINDOW + SLACK, "only {:?} after it was resumed", called - resumed);
    for (heart, device) in &living {
        heart.wait_beats(2).await;
        assert!(!ever_dead(&recorder, namespace, &device.name), "{} was called dead", device.name);
        assert_eq!(recorder.writes(Kind::Process, namespace, &device.name), 2, "created, connected");
    }
    assert!(manager.log().lines().any(|line| line.contains("WARN") && line.contains("paused")), "{}", manager.log());
    recorder.wait_events("AgentDisconnected", &dead.name, 1, SOON).await;
    assert_eq!(recorder.events("AgentDisconnected", "").len(), 1);
}

/// On a control plane of its own: the others need theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apiserver_that_is_away_takes_nothing_from_the_devices() {
    let plane = &ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = &plane.cluster().await;
    let namespace = cluster.namespace("outage").await;
    let namespace = namespace.as_str();
    let recorder = Recorder::start(plane).await;
    let mut manager = builder(plane).await.start().await;
    let mut living = Vec::new();
    for _ in 0..3 {
        let (device, _) = connected(cluster, &manager, namespace).await;
        living.push((Heart::start(&device, BEAT), device));
    }
    let (device, mut report) = connected(cluster, &manager, namespace).await;
    let (silent, _) = connected(cluster, &manager, namespace).await;
    // Without a bootId: it would replace the one of the reports.
    let beating = Heart::start_with(&device, BEAT, |_| json!({}));
    let answer = device.desired().await;
    let pid = manager.process.pid();

    for fault in ["killed", "frozen"] {
        if fault == "killed" {
            plane.kill(Part::Apiserver)
        } else {
            plane.freeze(Part::Apiserver)
        }
        let began = Instant::now();
        // What devices should run comes from the cache.
        for _ in 0..3 {
            let cached = device.desired().await.expect(200);
            assert_eq!((cached.etag(), &cached.body), (answer.etag(), &answer.body));
            device.desired_unless(answer.etag(), 0).await.expect(304);
        }
        device.desired_unless(answer.etag(), 1).await.expect(304);
        assert!(began.elapsed() < Duration::from_secs(4), "{fault}: {:?}", began.elapsed());
        // What has to be written cannot be acked; what has not, can.
        let failing = fault == "killed";
        report["observations"][0]["healthy"] = json!(!failing);
        report["sequence"] = json!(report["sequence"].as_u64().unwrap() + 1);
        let asked = Instant::now();
        let refused = device.report(&report).await.expect(503);
        assert!(asked.elapsed() < Duration::from_secs(10), "{fault}: {:?}", asked.elapsed());
        assert!(
            (2..=10).contains(&refused.header("retry-after").parse::<u64>().unwrap()),
            "{}",
            refused.header("retry-after")
        );
        assert_eq!(refused.header("content-type"), "application/problem+json");
        for (heart, _) in &living {
            heart.wait_beats(2).await;
        }
        for path in ["/readyz", "/healthz"] {
            assert_eq!(manager.admin(path).await.status, 200, "{fault} {path}");
        }
        assert!(began.elapsed() > WINDOW, "the outage is too short to show anything");
        assert_eq!((manager.process.exited(), manager.process.pid()), (None, pid), "{}", manager.process.log_tail());

        if failing {
            plane.start_again(Part::Apiserver)
        } else {
            plane.thaw(Part::Apiserver)
        }
        plane.wait_ready().await;
        let back = Instant::now();
        // Nothing is lost: the status lands by itself, and the repeated report is acked.
        let expected = if failing { "False" } else { "True" };
        let right = |o: &Value| condition_status(o, "Healthy") == expected;
        cluster
            .wait_object(
                Kind::Process,
                namespace,
                &device.name,
                Duration::from_secs(30),
                "what was reported in the outage",
                right,
            )
            .await;
        wait_for(Duration::from_secs(30), "an ack", async || device.report(&report).await.status == 200).await;
        eprintln!("{fault}: all written {:.1} s after the apiserver was back", back.elapsed().as_secs_f64());
        // New objects arrive.
        let fresh = unique("fresh");
        cluster.create(&device_process(namespace, &fresh, &fresh, process_spec("1"))).await;
        wait_for(Duration::from_secs(60), "a new device", async || {
            manager.device(&fresh).desired().await.status == 200
        })
        .await;
    }
    // The one that really fell silent was found out; the living never were called dead, and no heartbeat was refused.
    called_dead(&recorder, namespace, &silent.name, Duration::from_secs(60)).await;
    // A status is there before its event.
    recorder.wait_events("AgentDisconnected", &silent.name, 1, SOON).await;
    recorder.wait_events("Unhealthy", &device.name, 1, SOON).await;
    for (heart, device) in &living {
        assert_eq!(heart.refused(), Vec::<String>::new());
        assert!(!ever_dead(&recorder, namespace, &device.name), "{} was called dead", device.name);
        assert_eq!(recorder.writes(Kind::Process, namespace, &device.name), 2, "created, connected");
    }
    assert!(!ever_dead(&recorder, namespace, &device.name) && beating.beats() > 0);
    assert_eq!((recorder.events("Unhealthy", "").len(), recorder.events("AgentDisconnected", "").len()), (1, 1));
}

/// On a control plane of its own, beside the others: it counts for a whole minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_heartbeats_costs_the_apiserver_nothing() {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = &cluster.namespace("steady").await;
    let manager =
        Manager::builder(&plane).await.args(&["--default-heartbeat-seconds=1", "--stale-multiplier=15"]).start().await;
    let names = scenario::fleet(&unique("tor"), 50);
    scenario::create_switches(&cluster, namespace, &names, &[("role", "tor")]).await;
    cluster.create(&scenario::deployment(namespace, "agent", &[("role", "tor")], process_spec("1"))).await;
    let agents: Vec<_> = names[..3].iter().map(|name| manager.agent(name).start()).collect();
    let mut hearts = Vec::new();
    for name in &names[3..] {
        let device = manager.device(name);
        let child = format!("agent-{name}");
        let body = desires(&device, &[&format!("{namespace}/{child}")]).await;
        let report = report_running(1, "boot", namespace, &child, body["items"][0]["specHash"].as_str().unwrap());
        device.report(&report).await.expect(200);
        hearts.push(full_reports(&device, report));
    }
    // Settled: everybody is connected, and the deployment's status says so.
    wait_for(Duration::from_secs(60), "everybody to be connected", async || {
        let children = cluster.list(Kind::Process, namespace).await;
        let there = children.iter().filter(|child| is_connected(child, "True")).count();
        let status = cluster.get(Kind::Deployment, namespace, "agent").await.unwrap()["status"].clone();
        if there == names.len() && status["numberReady"] == names.len() - 3 {
            Ok(())
        } else {
            Err(format!("{there} {status}"))
        }
    })
    .await;
    let quiet = async |seconds: u64| {
        let mark = plane.audit_mark();
        let begun = Instant::now();
        // The measurement itself: a stretch of time in which nothing may be written.
        while begun.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if plane.audit_since(mark).by(MANAGER_USER).writes().count() > 0 {
                break;
            }
        }
        plane.audit_since(mark).by(MANAGER_USER).writes()
    };
    // What the last of the settling still had to write.
    wait_for(Duration::from_secs(30), "the settling to end", async || quiet(3).await.count() == 0).await;
    let beats = || hearts.iter().map(Heart::beats).sum::<u64>();
    let (before, served) = (beats(), manager.metrics().await.sum("praetor_reports_total"));
    let written = quiet(60).await;
    assert_eq!(written.count(), 0, "{}", written.describe());
    let (beaten, answered) = (beats() - before, manager.metrics().await.sum("praetor_reports_total") - served);
    eprintln!("{beaten} heartbeats, {answered} reports, nothing written");
    assert!(beaten > 47 * 50 && answered >= beaten as f64);
    for heart in &hearts {
        assert_eq!(heart.refused(), Vec::<String>::new());
    }
    drop(agents);
}

/// Full reports once a second, the sequence growing, nothing else changing.
fn full_reports(device: &Device, mut report: Value) -> Heart {
    Heart::start_with(device, BEAT, move |sequence| {
        report["sequence"] = json!(1 + sequence);
        report.clone()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_falls_silent_at_once_trickles_and_returns_at_once() {
    const FLEET: usize = 60;
    const RATE: usize = 5;
    let stage = Stage::enter("mass").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let recorder = Recorder::start(stage.plane).await;
    let manager = builder(stage.plane).await.args(&["--mass-disconnects-per-second", "5"]).start().await;
    let names = scenario::fleet(&unique("tor"), FLEET);
    cluster.create_all(names.iter().map(|name| device_process(namespace, name, name, process_spec("1"))), 32).await;
    // All of them, many at a time; when each began.
    let reports = async |boot: &'static str| {
        let report = |name: &String| {
            let device = manager.device(name);
            async move {
                let begun = Instant::now();
                wait_for(SOON, "an ack", async || device.report(&heartbeat(1, boot)).await.status == 200).await;
                begun
            }
        };
        stream::iter(names.iter().map(report)).buffered(16).collect::<Vec<_>>().await
    };
    let silent = reports("first").await;
    let dead = || {
        names
            .iter()
            .filter_map(|name| recorder.first(Kind::Process, namespace, name, |o| is_connected(o, "False")))
            .collect::<Vec<_>>()
    };
    let trickle = Duration::from_secs((FLEET / RATE) as u64);
    wait_for(WINDOW + SLACK + trickle, "all to be found out", async || {
        if dead().len() == FLEET { Ok(()) } else { Err(format!("{} of {FLEET}", dead().len())) }
    })
    .await;
    let mut times = dead();
    for (heard, dead) in silent.iter().zip(&times) {
        assert!(*dead - *heard >= WINDOW, "{:?}", *dead - *heard);
    }
    times.sort_unstable();
    let spread = times[FLEET - 1] - times[0];
    eprintln!("{FLEET} disconnects within {:.1} s", spread.as_secs_f64());
    // The last ones are few enough to be no mass any more.
    assert!(spread >= Duration::from_secs(7), "{spread:?}");
    for at in &times[..FLEET / 2] {
        let together =
            times.iter().filter(|other| **other >= *at && **other - *at < Duration::from_millis(1_900)).count();
        assert!(together <= 3 * RATE, "{together} in 1.9 s");
    }
    for name in &names {
        recorder.wait_events("AgentDisconnected", name, 1, SOON).await;
    }
    assert!(manager.log().lines().any(|line| line.contains("WARN") && line.contains("trickle")), "{}", manager.log());
    assert!(manager.metrics().await.has("praetor_staleness_held"));
    let lease = member_name(manager.identity());
    let said = recorder.wait_events("MassDisconnect", &lease, 1, SOON).await;
    assert_eq!((said[0].kind.as_str(), said.len()), ("Warning", 1), "{:?}", said[0].note);

    // All back: each at once.
    let begun = Instant::now();
    reports("second").await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let objects = cluster.list(Kind::Process, namespace).await;
    assert_eq!(objects.iter().filter(|o| is_connected(o, "True")).count(), FLEET);
    for name in &names {
        recorder.wait_events("AgentConnected", name, 2, SOON).await;
        assert_eq!(
            (recorder.events("AgentDisconnected", name).len(), recorder.events("AgentConnected", name).len()),
            (1, 2)
        );
    }
    let request =
        manager.device(&names[0]).send(Method::GET, &manager.device(&names[0]).path("desired"), &[], "").await;
    request.expect(200);
}
