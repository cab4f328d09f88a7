//! What replicas need, by the kubelet's own figure: the working set, for which it would evict or kill them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::Method;
use serde_json::Value;

use crate::forwards::Forwards;
use crate::harness::device::{Kept, derived_token};
use crate::harness::programs::SECRET;
use crate::harness::scenario::{create_switches, deployment, fleet, process_spec};
use crate::harness::{Device, unique, wait_for};
use crate::play::{MANAGER, NAMESPACE, Play, seconds};

/// The most without a device.
const IDLE: f64 = 12.0;
/// How many devices are many.
const MANY: usize = 10_000;
/// The most with so many.
const LOADED: f64 = 40.0;

/// MiB of each replica that is not ending; none before the kubelet has measured all of them later than `after` ago.
async fn measured(play: &Play, since: Instant) -> Result<BTreeMap<String, f64>, String> {
    let node = play.run("get nodes -o jsonpath={.items[0].metadata.name}").await;
    let summary = play.run(&format!("get --raw=/api/v1/nodes/{node}/proxy/stats/summary")).await;
    let summary: Value = serde_json::from_str(&summary).map_err(|e| e.to_string())?;
    let earliest = jiff::Timestamp::now() - since.elapsed();
    let mut found = BTreeMap::new();
    for name in play.living().await {
        let pod = summary["pods"].as_array().into_iter().flatten().find(|pod| pod["podRef"]["name"] == *name);
        let containers = pod.and_then(|pod| pod["containers"].as_array()).into_iter().flatten();
        let memory = containers.into_iter().find(|it| it["name"] == "manager").map(|it| it["memory"].clone());
        let memory = memory.ok_or_else(|| format!("nothing about {name}"))?;
        let at: jiff::Timestamp = memory["time"].as_str().unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
        let bytes = memory["workingSetBytes"].as_f64().unwrap_or(0.0);
        if at < earliest || bytes == 0.0 {
            return Err(format!("{name}: {memory}"));
        }
        found.insert(name, bytes / 1024.0 / 1024.0);
    }
    Ok(found)
}

fn describe(found: &BTreeMap<String, f64>) -> (f64, String) {
    let all: Vec<String> = found.values().map(|mib| format!("{mib:.1}")).collect();
    (found.values().copied().fold(0.0, f64::max), all.join(", "))
}

/// Of replicas that serve nobody.
pub async fn idle(play: &Play, since: Instant) {
    let found = wait_for(Duration::from_secs(60), "the kubelet's figures", async || measured(play, since).await).await;
    let (most, all) = describe(&found);
    assert!(most <= IDLE, "an idle replica needs {most:.1} MiB, more than {IDLE}");
    play.ok(format!("memory of idle replicas by the kubelet: {all} MiB (at most {IDLE})"));
}

/// Of replicas that serve many devices, each with a process and some reports: as they have grown, and after a restart.
pub async fn of_many(play: &Arc<Play>, forwards: &Forwards) {
    let begun = Instant::now();
    let cluster = &play.cluster;
    let namespace = cluster.namespace("many").await;
    let names = fleet(&unique("leaf"), MANY);
    create_switches(cluster, &namespace, &names, &[("role", "leaf")]).await;
    cluster.create(&deployment(&namespace, "agent", &[("role", "leaf")], process_spec("1"))).await;
    wait_for(Duration::from_secs(600), "all children", async || {
        let path =
            format!("get deviceprocessdeployment agent -n {namespace} -o jsonpath={{.status.currentNumberScheduled}}");
        let made = play.run(&path).await;
        if made == MANY.to_string() { Ok(()) } else { Err(format!("{made} of {MANY}")) }
    })
    .await;
    play.ok(format!("{MANY} switches and their processes created in {}", seconds(begun.elapsed())));
    report(forwards, &names).await;
    tell(play, "as they have grown").await;
    play.run(&format!("-n {NAMESPACE} rollout restart deployment/{MANAGER}")).await;
    play.ready(3, Instant::now(), Duration::from_secs(180)).await;
    report(forwards, &names).await;
    tell(play, "after a restart").await;
}

/// Every device says once that it is there and asks what to run, all on a few connections.
async fn report(forwards: &Forwards, names: &[String]) {
    let (gates, kept) = (forwards.gates(), Kept::default());
    let each = names.iter().enumerate().map(|(number, name)| {
        let gates = gates.all();
        let (_, address) = gates[number % gates.len()].clone();
        let device = Device { address, name: name.clone(), token: derived_token(SECRET, name) };
        let kept = &kept;
        async move {
            for (method, route) in [(Method::POST, "connect"), (Method::GET, "desired")] {
                wait_for(Duration::from_secs(60), format!("an answer to {name}"), async || {
                    let sent = device.try_send_on(kept, method.clone(), &device.path(route), &[], "{}").await?;
                    // Put off: this is faster than the statuses can be written.
                    if sent.status == 200 { Ok(()) } else { Err(format!("{} {}", sent.status, sent.text())) }
                })
                .await;
            }
        }
    });
    futures::stream::iter(each).buffer_unordered(16).count().await;
}

async fn tell(play: &Play, when: &str) {
    let since = Instant::now();
    let found = wait_for(Duration::from_secs(60), "the kubelet's figures", async || measured(play, since).await).await;
    let (most, all) = describe(&found);
    let verdict = if most <= LOADED { "ok  " } else { "MORE" };
    println!("{verdict} memory of replicas with {MANY} devices by the kubelet, {when}: {all} MiB (at most {LOADED})");
}
