//! What the apiserver is asked: nothing while nothing changes, and once when something does.

use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::programs::SECRET;
use super::harness::{
    ControlPlane, Folder, Kind, Launch, MANAGER_USER, Manager, Process, condition_status, scenario, wait_for,
};
use super::table::Table;

/// A fleet of simulated devices; the caller keeps the folder.
pub fn fleet(manager: &Manager, folder: &Folder, names: &[String], flags: &[&str]) -> Process {
    let list = folder.write("names", names.join("\n"));
    let secret = folder.write("secret", SECRET);
    let launch = Launch::new(super::harness::programs::binary("praetor-fleet"))
        .arg(format!("--gateway-url={}", manager.url()))
        .arg(format!("--names-file={}", list.display()))
        .arg(format!("--device-token-secret-file={}", secret.display()))
        .args(flags.iter().copied());
    Process::spawn("praetor-fleet", &launch, &folder.join("fleet.log"))
}

/// Waits until nothing was written for some seconds.
pub async fn settled(plane: &ControlPlane, quiet: Duration, deadline: Duration) {
    let begun = Instant::now();
    loop {
        let mark = plane.audit_mark();
        tokio::time::sleep(quiet).await;
        if plane.audit_since(mark).by(MANAGER_USER).writes().count() == 0 {
            return;
        }
        assert!(begun.elapsed() < deadline, "the manager still writes after {} s", deadline.as_secs());
    }
}

/// Minutes of heartbeats of 1,000 agents.
pub async fn heartbeats(table: &mut Table) {
    const AGENTS: usize = 1_000;
    let minutes: f64 = std::env::var("BENCH_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("heartbeats").await;
    let names = scenario::fleet(&namespace, AGENTS);
    scenario::create_switches(&cluster, &namespace, &names, &[(scenario::ROLE, "tor")]).await;
    let manager = Manager::builder(&plane).await.start().await;
    cluster
        .create(&scenario::deployment(&namespace, "agent", &[(scenario::ROLE, "tor")], scenario::process_spec("1.0.0")))
        .await;
    let folder = Folder::new("fleet");
    let mut agents = fleet(&manager, &folder, &names, &["--ramp-per-second=200"]);
    wait_for(Duration::from_secs(180), "every process to be ready", async || {
        let deployment = cluster.get(Kind::Deployment, &namespace, "agent").await.expect("the deployment");
        let ready = deployment["status"]["numberReady"].as_u64().unwrap_or(0);
        if ready == AGENTS as u64 { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
    settled(&plane, Duration::from_secs(5), Duration::from_secs(120)).await;
    let reports = async || manager.metrics().await.sum("praetor_reports_total");
    let before = reports().await;
    let mark = plane.audit_mark();
    tokio::time::sleep(Duration::from_secs_f64(minutes * 60.0)).await;
    let heard = reports().await - before;
    let asked = plane.audit_since(mark).by(MANAGER_USER);
    let (writes, events) = (asked.clone().writes(), asked.clone().resource("events").count());
    if writes.count() > 0 {
        eprintln!("{}", writes.describe());
    }
    let watches = asked.clone().verb("watch").count();
    table.gate(
        format!("writes to the apiserver in {minutes} minutes of heartbeats of {AGENTS} agents ({heard} reports)"),
        format!(
            "{} writes, {events} events ({watches} watches renewed, {} other reads)",
            writes.count(),
            asked.count() - watches - writes.count()
        ),
        "0 writes, 0 events",
        writes.count() == 0 && events == 0 && heard > 0.0,
    );
    agents.signal("TERM");
    agents.wait_exit(Duration::from_secs(10)).await;
    eprintln!("{}", agents.log_tail());
}

/// How often each transition is measured.
const ROUNDS: u64 = 10;

fn process(round: u64) -> String {
    format!("agent-{round}")
}

/// One status write for each transition.
pub async fn transition(table: &mut Table) {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("transition").await;
    let name = format!("tor-{namespace}");
    cluster.create(&scenario::switch(&namespace, &name, &[])).await;
    // One process for each round: what the same one does over and over is written a few times at once, then once a minute.
    for round in 0..ROUNDS {
        let spec = scenario::process_spec("1.0.0");
        cluster.create(&scenario::device_process(&namespace, &process(round), &name, spec)).await;
    }
    let manager = Manager::builder(&plane).await.start().await;
    let device = manager.device(&name);
    let hash = device.desired().await.expect(200).json()["items"][0]["specHash"].as_str().expect("a hash").to_owned();
    let mut sequence = 0;
    let mut report = |round: u64, changes: serde_json::Value| {
        sequence += 1;
        let mut body = scenario::report_running(sequence, "boot", &namespace, &process(round), &hash);
        body["observations"][0]
            .as_object_mut()
            .expect("an object")
            .extend(changes.as_object().expect("changes").clone());
        body
    };
    let (mut transitions, mut worst) = (0_usize, String::new());
    let (mut fewest, mut most) = (usize::MAX, 0);
    for round in 0..ROUNDS {
        device.report(&report(round, json!({}))).await.expect(200);
        cluster
            .wait_object(
                Kind::Process,
                &namespace,
                &process(round),
                Duration::from_secs(10),
                "to be healthy",
                |object| condition_status(object, "Healthy") == "True",
            )
            .await;
        for (what, changes) in [
            ("unhealthy", json!({"healthy": false})),
            ("healthy", json!({"healthy": true})),
            (
                "ended",
                json!({"processStarted": false, "healthy": null, "exitCode": 1, "errorMessage": "exit 1", "pid": null}),
            ),
            ("restarted", json!({"pid": 5000 + round, "restartCount": round + 1})),
        ] {
            let mark = plane.audit_mark();
            let body = report(round, changes);
            device.report(&body).await.expect(200);
            // The same again, as every agent does: nothing more to write.
            device
                .report(&{
                    let mut again = body.clone();
                    again["sequence"] = (body["sequence"].as_u64().expect("a number")).into();
                    again
                })
                .await
                .expect(200);
            wait_for(Duration::from_secs(5), "the write in the audit log", async || {
                plane.audit_since(mark).by(MANAGER_USER).resource("deviceprocesses/status").count() > 0
            })
            .await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let writes =
                plane.audit_since(mark).by(MANAGER_USER).filter(|entry| entry.is_write() && entry.resource != "events");
            transitions += 1;
            if writes.count() != 1 {
                worst = format!(" ({what}: {})", writes.describe().replace('\n', "; "));
            }
            fewest = fewest.min(writes.count());
            most = most.max(writes.count());
        }
    }
    table.gate(
        format!(
            "writes for each transition of a process ({transitions} transitions: unhealthy, healthy, ended, restarted)"
        ),
        if fewest == most { format!("{most}") } else { format!("{fewest} to {most}{worst}") },
        "exactly 1",
        fewest == 1 && most == 1,
    );
}
