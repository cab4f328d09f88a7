//! Replicas that should not be there, and messages that no replica sent.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::harness::device::request;
use crate::harness::programs::PEER_SECRET;
use crate::harness::{Exit, Kind, Manager, Replicas, Stage, free_port, unique, wait_for};
use crate::world::seconds;
use praetor::peers::envelope::{Route, request_headers};
use praetor::peers::signature::{BodyHash, Claims, PeerKey};

const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn one_line(exit: Exit, manager: &Manager, says: &[&str]) {
    let log = manager.log();
    let last = log.lines().last().unwrap_or_default();
    assert_eq!(exit.code, Some(1), "{log}");
    assert!(last.starts_with("praetor-manager: ") && says.iter().all(|word| last.contains(word)), "{says:?}: {log}");
}

#[tokio::test]
async fn who_cannot_work_with_others_ends_with_one_clear_line() {
    let stage = Stage::enter("strangers").await;
    let first = Manager::builder(stage.plane).await.start().await;
    // No secret, and somebody else is certainly there.
    let mut second = Manager::builder(stage.plane).await.spawn();
    let exit = second.wait_exit(SOON).await;
    one_line(exit, &second, &["another live manager", first.identity(), "--peer-secret-file"]);
    drop((first, second));
    stage.plane.forget_managers().await;

    // With a secret, but under the same name.
    let replica = async |name: &str| {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Manager::builder(stage.plane).await.identity(name).peers(port, address)
    };
    let name = unique("twin");
    let one = replica(&name).await.start().await;
    let mut twin = replica(&name).await.spawn();
    let mut one = one;
    // Each sees the other's writes; the first to notice ends.
    let exit =
        wait_for(SOON, "one of them to end", async || one.process.exited().or_else(|| twin.process.exited())).await;
    let ended = if one.process.exited().is_some() { &one } else { &twin };
    one_line(exit, ended, &["identity", &name]);
    drop((one, twin));
    stage.plane.forget_managers().await;

    // Flags and rights.
    for (args, says) in [
        (["--namespace=no-such-namespace"].as_slice(), "no-such-namespace"),
        (&["--namespace=default"], "config/rbac"),
        (&["--peer-secret-file=/no/such/file"], "--peer-secret-file"),
    ] {
        let mut manager = Manager::builder(stage.plane).await.args(args).spawn();
        let exit = manager.wait_exit(SOON).await;
        one_line(exit, &manager, &[says]);
    }
    let mut manager = Manager::builder(stage.plane).await.env("APOLLO_PEER_SECRET", "short").spawn();
    let exit = manager.wait_exit(SOON).await;
    one_line(exit, &manager, &["APOLLO_PEER_SECRET", "16"]);
    assert!(!manager.log().contains("short\""), "{}", manager.log());
}

#[tokio::test]
async fn what_no_peer_has_said_changes_nothing() {
    let stage = Stage::enter("forged").await;
    // Alone, but it listens to others.
    let port = free_port();
    let peer = SocketAddr::from(([127, 0, 0, 1], port));
    let manager = Manager::builder(stage.plane).await.peers(port, peer).start().await;
    let name = unique("tor");
    let process = crate::harness::scenario::device_process(
        &stage.namespace,
        "p",
        &name,
        json!({
        "artifact": { "type": "oci", "url": "registry.example.com/a:1" },
        "execution": { "backend": "systemd", "command": ["/bin/a"] } }),
    );
    stage.cluster.create(&process).await;
    crate::harness::stage::known(&manager.device(&name)).await;

    let path = Route::Device { device: &name, connect: false }.path();
    let body =
        json!({ "observations": [{ "namespace": stage.namespace, "name": "p", "observedSpecHash": "sha256:x" }] });
    let body = body.to_string();
    let send = async |protocol: u32, hop: u32, secret: &str, time_ms: u64, body: &str, sent: &str| {
        let claims = Claims {
            protocol,
            hop,
            sender: "mallory".into(),
            incarnation: 7,
            to: 8,
            time_ms,
            sequence: 1,
            digest: BodyHash::of(body.as_bytes()),
        };
        let signature = PeerKey::new(secret.as_bytes()).unwrap().sign("POST", &path, &claims);
        let headers = request_headers(&claims, &signature);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        request(peer, Method::POST, &path, &headers, sent.to_owned()).await.unwrap().status
    };
    let plain = async |target: &str, body: String| request(peer, Method::POST, target, &[], body).await.unwrap().status;
    let refused =
        async |reason: &str| manager.metrics().await.get(&format!("praetor_peer_refused_total{{reason=\"{reason}\"}}"));
    let large = " ".repeat(400 * 1024);
    for (reason, status, got) in [
        ("unsigned", 401, plain(&path, body.clone()).await),
        ("route", 404, plain("/v1/peer/nothing", String::new()).await),
        ("forged", 401, send(1, 1, "another-secret-of-somebody", 0, &body, &body).await),
        ("hop", 508, send(1, 2, PEER_SECRET, 0, &body, &body).await),
        ("protocol", 400, send(2, 1, PEER_SECRET, 0, &body, &body).await),
        ("receiver", 409, send(1, 1, PEER_SECRET, 0, &body, &body).await),
        ("too_large", 413, send(1, 1, PEER_SECRET, 0, &large, &large).await),
    ] {
        assert_eq!(got, status, "{reason}");
        assert!(refused(reason).await >= 1.0, "{reason} is not counted");
    }
    // Devices are not told here, and peers not there.
    assert_eq!(plain(&manager.device(&name).path("report"), body.clone()).await, 404);
    let there = request(manager.address(), Method::POST, &path, &[], body.clone()).await.unwrap();
    assert_eq!(there.status, 404);
    let object = stage.cluster.get(Kind::Process, &stage.namespace, "p").await.unwrap();
    assert_eq!(object["status"], json!({ "phase": "Pending" }));
    assert!(!manager.log().contains(PEER_SECRET));
}

#[tokio::test]
async fn who_owns_what_and_why() {
    let stage = Stage::enter("owners").await;
    let mut replicas = Replicas::start(stage.plane, 3, &[]).await;
    for name in crate::harness::scenario::fleet("tor", 20) {
        let owner = replicas.get(replicas.owner(&name)).name().to_owned();
        for which in replicas.running() {
            let page = replicas.get(which).manager.admin(&format!("/debug/ownership?device={name}")).await.expect(200);
            let page = page.json();
            assert_eq!(page["device"]["owner"], *owner, "{page:#}");
            assert_eq!(page["view"]["members"].as_array().unwrap().len(), 3, "{page:#}");
            assert_eq!(page["identity"], *replicas.get(which).name());
        }
    }
    // A leader that ends hands over at once; one that is killed is waited for.
    let leader = replicas.led(SOON).await;
    replicas.end(leader).await;
    let ended = std::time::Instant::now();
    let next = replicas.led(SOON).await;
    eprintln!("the next leader {:.1} s after the end of the first", ended.elapsed().as_secs_f64());
    assert!(ended.elapsed() < Duration::from_secs(3), "{:?}", ended.elapsed());
    replicas.kill9(next);
    let killed = std::time::Instant::now();
    replicas.led(SOON * 2).await;
    eprintln!("the next leader {:.1} s after the kill of the second", killed.elapsed().as_secs_f64());
    // 2 s until the last renewal is seen, and the 15 of the Lease; in short the machine does other things, too.
    assert!(killed.elapsed() < seconds(20, 17), "{:?}", killed.elapsed());
}
