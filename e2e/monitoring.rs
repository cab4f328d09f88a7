//! What operators see: three real replicas with devices, scraped by a real Prometheus with the shipped rules. Every
//! metric that rules and dashboard ask for exists, every query answers with numbers, the numbers are right, and no
//! alert fires.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;
#[path = "monitoring/prometheus.rs"]
mod prometheus;
#[path = "monitoring/queries.rs"]
mod queries;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::controlplane::repository;
use harness::device::derived_token;
use harness::programs::SECRET;
use harness::scenario::{deployment, fleet, process_spec, report_running, switch};
use harness::{Device, Kind, Metrics, Replicas, Stage, condition_status, unique, wait_for};
use prometheus::Prometheus;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);
const FLAGS: [&str; 2] = ["--default-heartbeat-seconds=5", "--stale-multiplier=3"];
const DEVICES: usize = 8;
/// So often each device polls and reports, each time at another replica.
const EVERY: Duration = Duration::from_millis(250);
/// Grafana's `$__rate_interval` for scrapes once a second and the last minutes on the screen.
const RATE_INTERVAL: &str = "30s";

fn dashboard() -> Value {
    let path = repository().join("config/monitoring/dashboard.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).expect("JSON")
}

/// A device that polls with its entity tag and reports what it was told, at one replica after the other.
async fn live(name: String, gates: Vec<SocketAddr>, turns: Arc<AtomicU64>) {
    let token = derived_token(SECRET, &name);
    let (boot, mut etag, mut items) = (unique("boot"), String::new(), Vec::new());
    for turn in 1.. {
        let next = tokio::time::Instant::now() + EVERY;
        let device =
            |which: usize| Device { address: gates[which % gates.len()], name: name.clone(), token: token.clone() };
        let turn_of = usize::try_from(turn).unwrap();
        let answer = device(turn_of).desired_unless(&etag, 0).await;
        if answer.status == 200 {
            etag = answer.etag().to_owned();
            items = answer.json()["items"].as_array().cloned().unwrap_or_default();
        }
        if let [item] = items.as_slice() {
            let text = |key: &str| item[key].as_str().unwrap_or_default();
            let report = report_running(turn, &boot, text("namespace"), text("name"), text("specHash"));
            device(turn_of + 1).report(&report).await;
            turns.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep_until(next).await;
    }
}

/// A sum of one series over all replicas.
fn total(pages: &[Metrics], series: &str) -> f64 {
    pages.iter().map(|page| page.get(series)).sum()
}

/// No alert fires, and none would if this lasted; but Leases may be slow on a machine that is busy with other tests.
async fn no_alert(prometheus: &Prometheus) {
    for query in ["ALERTS{alertstate=\"firing\"}", "ALERTS{alertname!=\"PraetorApiserverOutOfReach\"}"] {
        assert_eq!(prometheus.ask(query).await, Ok(Vec::new()), "{query}");
    }
}

#[test]
fn the_dashboard_is_well_formed() {
    let dashboard = dashboard();
    assert_eq!(queries::structure(&dashboard), Vec::<String>::new());
    assert_eq!(dashboard["schemaVersion"], 39);
    assert!(queries::panels(&dashboard).len() >= 20 && queries::queries(&dashboard).len() >= 40);
    let variables: Vec<_> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "namespace", "job"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_answers_and_the_numbers_are_right() {
    let stage = Stage::enter("monitoring").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let replicas = Replicas::start(stage.plane, 3, &FLAGS).await;
    let names = fleet(&unique("tor"), DEVICES);
    for name in &names {
        cluster.create(&switch(namespace, name, &[])).await;
    }
    cluster.create(&deployment(namespace, "agent", &[], process_spec("1"))).await;

    let gates: Vec<SocketAddr> = (0..3).map(|which| replicas.get(which).manager.address()).collect();
    let (turns, mut devices) = (Arc::<AtomicU64>::default(), JoinSet::new());
    let settled = async |version: &str| {
        for name in &names {
            let object = format!("agent-{name}");
            cluster
                .wait_object(Kind::Process, namespace, &object, SOON, "running the version", |object| {
                    object["status"]["artifactVersion"] == version
                        && object["status"]["observedGeneration"] == object["metadata"]["generation"]
                        && condition_status(object, "AgentConnected") == "True"
                        && condition_status(object, "Healthy") == "True"
                })
                .await;
            cluster
                .wait_object(Kind::Switch, namespace, name, SOON, "connected", |object| {
                    condition_status(object, "AgentConnected") == "True"
                })
                .await;
        }
    };
    for name in &names {
        devices.spawn(live(name.clone(), gates.clone(), turns.clone()));
    }
    settled("1").await;

    let more_turns = async |each: u64| {
        let until = turns.load(Ordering::Relaxed) + each * DEVICES as u64;
        wait_for(SOON, format!("{each} further turns of each device"), async || turns.load(Ordering::Relaxed) >= until)
            .await;
    };
    wait_for(SOON, "an end of writes", async || {
        let before = replicas.sum("praetor_status_patches_total").await;
        more_turns(4).await;
        let after = replicas.sum("praetor_status_patches_total").await;
        if after == before { Ok(()) } else { Err(format!("{before} patches, then {after}")) }
    })
    .await;

    // From here on nothing changes, as far as Prometheus has ever seen.
    let admins: Vec<SocketAddr> = (0..3).map(|which| replicas.get(which).manager.admin_address()).collect();
    let prometheus = Prometheus::start(&admins).await;
    wait_for(SOON, "ten scrapes of each replica", async || {
        let least = prometheus.value("min(count_over_time(praetor_leader[1m]))").await?;
        if least >= 10.0 { Ok(()) } else { Err(format!("{least} scrapes")) }
    })
    .await;
    prometheus.catch_up().await;
    for (query, wanted) in [
        ("count(up{job=\"praetor\"} == 1)", 3.0),
        ("praetor:status_patches:rate_5m", 0.0),
        ("praetor:desired_304:ratio_5m", 1.0),
        ("praetor:device_errors:ratio_5m", 0.0),
        ("praetor:auth_failures:ratio_5m", 0.0),
        ("praetor:devices_stale:ratio", 0.0),
        ("sum(praetor_leader)", 1.0),
        ("min(praetor_members)", 3.0),
        ("sum(praetor_owned_devices)", DEVICES as f64),
        ("max(praetor_devices{state=\"connected\"})", DEVICES as f64),
        ("max(praetor_objects{kind=\"DeviceProcess\"})", DEVICES as f64),
    ] {
        let value = prometheus.value(query).await.unwrap();
        // Sums in another order differ by a hair.
        assert!((value - wanted).abs() < 1e-9, "steady: {query} is {value}, not {wanted}");
    }
    assert_eq!(prometheus.ask("praetor:status_writes_per_transition:ratio_1h").await, Ok(Vec::new()), "no transition");
    no_alert(&prometheus).await;

    // An edit, and somebody without a token.
    let before = replicas.metrics().await;
    let edit = json!({ "spec": { "template": { "spec": process_spec("2") } } });
    cluster.merge(Kind::Deployment, namespace, "agent", &edit).await;
    settled("2").await;
    let stranger = Device { address: gates[0], name: names[0].clone(), token: String::new() };
    stranger.desired().await.expect(401);
    more_turns(4).await;
    let after = replicas.metrics().await;
    let grown = |series: &str| total(&after, series) - total(&before, series);
    let all = |pages: &[Metrics]| pages.iter().map(|page| page.sum("praetor_status_patches_total")).sum::<f64>();
    let (patches, transitions) = (all(&after) - all(&before), grown("praetor_status_transitions_total"));
    assert!(transitions >= DEVICES as f64, "{transitions} transitions");
    assert!(grown("praetor_desired_requests_total{code=\"200\"}") >= DEVICES as f64);
    prometheus.catch_up().await;
    let writes = prometheus.value("praetor:status_writes_per_transition:ratio_1h").await.unwrap();
    assert!((writes - patches / transitions).abs() < 0.05, "{writes}, not {patches} patches for {transitions}");
    // The range of a rate is never shorter than five minutes, also where there are only seconds of it.
    let rate = prometheus.value("praetor:status_patches:rate_5m").await.unwrap();
    assert!(rate >= 0.9 * patches / 300.0, "{rate} a second after {patches} patches");
    let share = prometheus.value("praetor:desired_304:ratio_5m").await.unwrap();
    assert!((0.8..1.0).contains(&share), "{share} of the polls after {DEVICES} answers with a body");
    assert!(prometheus.value("praetor:auth_failures:ratio_5m").await.unwrap() > 0.0);
    let owners = prometheus.value("sum(increase(praetor_forwards_total{result=\"ok\"}[1m]))").await.unwrap();
    assert!(owners > 0.0, "reports went to every replica, so some were passed on to the owner");

    // Everything that rules and dashboard ask.
    let rules = prometheus.rules().await.unwrap();
    assert!(rules.len() >= 18, "{rules:#?}");
    let mut faults = Vec::new();
    for rule in &rules {
        if rule.health != "ok" {
            faults.push(format!("{}: {} {}", rule.name, rule.health, rule.error));
        }
        let looked = if rule.alert {
            prometheus.selects(&rule.query).await
        } else {
            prometheus.selects(&rule.query).await.and(prometheus.answers(&rule.name).await)
        };
        faults.extend(looked.err().map(|fault| format!("{}: {fault}", rule.name)));
    }
    let dashboard = dashboard();
    for (title, query) in queries::queries(&dashboard) {
        let query = queries::substituted(&query, RATE_INTERVAL);
        faults.extend(prometheus.answers(&query).await.err().map(|fault| format!("panel '{title}': {fault}")));
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        let query = queries::substituted(annotation["expr"].as_str().unwrap(), RATE_INTERVAL);
        faults.extend(prometheus.selects(&query).await.err());
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    no_alert(&prometheus).await;

    // All that could only be seen because it can be missed.
    for (query, said) in [
        ("rate(praetor_no_such_total[1m])", "there is no praetor_no_such_total"),
        ("praetor_reports_total{code=\"299\"}", "there is no praetor_reports_total{code=\"299\"}"),
        ("praetor_leader > 1", "no result"),
        ("praetor_leader / 0 * 0", "NaN"),
        ("sum(praetor_leader", "parse error"),
        ("vector(1)", "no series at all"),
    ] {
        let fault = prometheus.answers(query).await.expect_err(query);
        assert!(fault.contains(said), "{query}: {fault}");
    }
}
