//! From an edit to the body in a device's hands by long-poll, beside a bare watch of the same object.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::Method;
use kube::api::{WatchEvent, WatchParams};
use serde_json::json;
use tokio::sync::mpsc;

use super::harness::{Connection, ControlPlane, Kind, Manager, scenario};
use super::table::{Table, quantile};

const EDITS: usize = 300;
const WARM_UP: usize = 20;

/// See the module.
pub async fn latency(table: &mut Table) {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("latency").await;
    let name = format!("tor-{namespace}");
    cluster.create(&scenario::switch(&namespace, &name, &[])).await;
    let process =
        cluster.create(&scenario::device_process(&namespace, "agent", &name, scenario::process_spec("0"))).await;
    let version = process["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let manager = Manager::builder(&plane).await.start().await;

    let (seen, mut watched) = mpsc::unbounded_channel();
    // A client of its own: a watch beside edits on one connection would wait for them.
    let watcher = plane.cluster().await.api(Kind::Process, &namespace);
    let watch = tokio::spawn(async move {
        let stream = watcher.watch(&WatchParams::default(), &version).await.expect("a watch");
        tokio::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            if let WatchEvent::Modified(object) = event {
                let at = Instant::now();
                let _ = seen.send((object.metadata.generation.unwrap_or(0), at));
            }
        }
    });

    let device = manager.device(&name);
    let (got, mut polled) = mpsc::unbounded_channel();
    let poll = tokio::spawn(async move {
        let mut connection = Connection::open(device.address).await.expect("a connection");
        let mut etag = String::from("\"none\"");
        loop {
            let headers = [("x-device-token", device.token.as_str()), ("if-none-match", etag.as_str())];
            let answer = connection
                .send(Method::GET, &device.path("desired?waitSeconds=30"), &headers, "")
                .await
                .expect("an answer");
            let at = Instant::now();
            if answer.status == 200 {
                let _ = got.send((answer.json()["items"][0]["generation"].as_i64().unwrap_or(0), at));
                etag = answer.etag().to_owned();
            }
        }
    });

    let (mut edits, mut by_watch, mut by_poll) = (HashMap::new(), HashMap::new(), HashMap::new());
    for edit in 0..WARM_UP + EDITS {
        let gap = 60 + rand::random::<u64>() % 60;
        tokio::time::sleep(Duration::from_millis(gap)).await;
        let sent = Instant::now();
        let patch = json!({"spec": {"artifact": {"type": "oci", "url": format!("registry.example.com/infra/switch-agent:{}", edit + 1)}}});
        let edited = cluster.merge(Kind::Process, &namespace, "agent", &patch).await;
        let generation = edited["metadata"]["generation"].as_i64().expect("a generation");
        if edit >= WARM_UP {
            edits.insert(generation, sent);
        }
        // Both have it before the next edit, so none is skipped.
        let both = async {
            while !by_watch.contains_key(&generation) || !by_poll.contains_key(&generation) {
                tokio::select! {
                    Some((generation, at)) = watched.recv() => drop(by_watch.insert(generation, at)),
                    Some((generation, at)) = polled.recv() => drop(by_poll.insert(generation, at)),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("watch and agent see every edit");
    }
    watch.abort();
    poll.abort();
    let milliseconds = |at: &HashMap<i64, Instant>| -> Vec<f64> {
        edits.iter().map(|(generation, sent)| at[generation].duration_since(*sent).as_secs_f64() * 1e3).collect()
    };
    let (bare, ours) = (milliseconds(&by_watch), milliseconds(&by_poll));
    for (what, share, most) in [("p50", 0.5, 5.0), ("p99", 0.99, 20.0)] {
        let (bare, ours) = (quantile(&bare, share), quantile(&ours, share));
        table.gate(
            format!("from the request of an edit to the agent's new body by long-poll, beside a bare watch, {EDITS} edits, {what}"),
            format!("{ours:.1} ms : {bare:.1} ms = + {:.1} ms", ours - bare),
            format!("≤ + {most} ms"),
            ours - bare <= most,
        );
    }
}
