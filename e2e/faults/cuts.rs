//! Wires are cut: to the apiserver, between replicas, in one direction, from devices. Scenarios 13 to 16.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::harness::{Kind, wait_for};
use crate::world::{AGREED, World, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wires_are_cut() {
    let mut world = World::open("cuts", 3).await;
    from_the_apiserver(&mut world).await;
    from_its_peers(&mut world).await;
    in_one_direction(&mut world).await;
    devices_from_a_replica(&mut world).await;
}

/// 13. It leaves the view, and passes on what it hears. It leads, too.
async fn from_the_apiserver(world: &mut World) {
    world.act("13: the leader is cut from the apiserver");
    let peace = world.peace();
    let cut = world.replicas.led(AGREED).await;
    let name = world.replicas.get(cut).name().to_owned();
    let load = world.load(&world.names);
    let begun = Instant::now();
    world.replicas.get(cut).apiserver.cut();
    let others: Vec<_> = world.replicas.running().into_iter().filter(|which| *which != cut).collect();
    wait_for(AGREED, "it to be out of the view", async || {
        let mut seen = Vec::new();
        for which in &others {
            seen.push(world.replicas.get(*which).manager.metrics().await.get("praetor_members"));
        }
        if seen.iter().all(|members| *members == others.len() as f64) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let out = Instant::now();
    eprintln!("         out of the view after {:.1} s", begun.elapsed().as_secs_f64());
    world.pass(seconds(6, 60)).await;
    let told = Instant::now();
    let counted: Vec<_> = world.replicas.metrics().await.iter().map(|page| page.starting("praetor_forwards_total praetor_peer praetor_status praetor_verif praetor_live praetor_presence praetor_members")).collect();
    world.crowd.look(|ledger| {
        let there = ledger.attempts.iter().filter(|a| *a.gate == *name && a.report && a.sent > out && a.ended < told);
        let (good, bad): (Vec<_>, Vec<_>) = there.partition(|attempt| attempt.status == 200);
        assert!(
            !good.is_empty() && bad.is_empty(),
            "{} good, {} bad: {:?}\n{}",
            good.len(),
            bad.len(),
            bad.first(),
            counted.join("\n\n")
        );
    });
    nobody_travels_back(world, cut).await;
    world.replicas.get(cut).apiserver.resume();
    world.replicas.agreed(AGREED).await;
    drop(load);
    world.crowd.acked(seconds(10, 30)).await;
    world.arrived(begun, told, Duration::from_secs(20));
    world.replicas.led(AGREED).await;
    world.kept(peace, "a replica was cut from the apiserver").await;
}

/// A device that has seen the newest spec elsewhere is never told an older one by a replica that has not heard of it.
async fn nobody_travels_back(world: &World, behind: usize) {
    let name = &world.names[0];
    let other = world.replicas.running().into_iter().find(|which| *which != behind).unwrap();
    let [old, new] = [behind, other].map(|which| world.replicas.get(which).manager.device(name));
    let before = old.desired().await.expect(200);
    let process = format!("own-{name}");
    let spec = json!({ "spec": { "artifact": { "url": "registry.example.com/infra/switch-agent:9" } } });
    world.cluster.merge(Kind::Process, &world.namespace, &process, &spec).await;
    let seen = wait_for(Duration::from_secs(10), "the news elsewhere", async || {
        let answer = new.desired().await.expect(200);
        if answer.etag() == before.etag() { Err("not yet") } else { Ok(answer.header("x-praetor-revision").to_owned()) }
    })
    .await;
    let path = old.path("desired");
    let asked = Instant::now();
    let answer = old.send(Method::GET, &path, &[("x-praetor-min-revision", &seen)], "").await.expect(503);
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(4), "{waited:?}");
    assert_eq!(answer.header("retry-after"), "1");
    // Who has seen nothing newer is content with what it knows.
    assert_eq!(old.desired().await.expect(200).etag(), before.etag());
}

/// 14. Everybody writes for himself, and nobody is called dead by those who hear nothing.
async fn from_its_peers(world: &mut World) {
    world.act("14: a replica is cut from its peers");
    let (peace, begun) = (world.peace(), Instant::now());
    let cut = world.replicas.running()[0];
    let name = world.replicas.get(cut).name().to_owned();
    let load = world.load(&world.names);
    for which in world.replicas.running() {
        let peers = &world.replicas.get(which).peers;
        if which == cut { peers.cut() } else { peers.cut_from(&name) }
    }
    world.pass(seconds(14, 90)).await;
    let ended = Instant::now();
    for which in world.replicas.running() {
        world.replicas.get(which).peers.resume();
    }
    world.replicas.agreed(AGREED).await;
    eprintln!("         converged after {:.1} s", ended.elapsed().as_secs_f64());
    drop(load);
    world.crowd.acked(seconds(10, 30)).await;
    world.answered(begun, 3, Duration::from_secs(8));
    world.arrived(begun, ended, Duration::from_secs(20));
    world.kept(peace, "a replica was cut from its peers").await;
}

/// 15. First nobody tells it, then it is told.
async fn in_one_direction(world: &mut World) {
    world.act("15: one replica cannot reach another, which can reach it");
    let (peace, begun) = (world.peace(), Instant::now());
    let running = world.replicas.running();
    let (from, to) = (world.replicas.get(running[0]).name().to_owned(), running[1]);
    // What only that one can write at once.
    let load = world.load(&world.owned(to));
    world.replicas.get(to).peers.stall_from(&from);
    world.pass(seconds(8, 60)).await;
    world.replicas.get(to).peers.cut_from(&from);
    world.pass(seconds(4, 30)).await;
    world.replicas.get(to).peers.resume();
    let ended = Instant::now();
    world.replicas.agreed(AGREED).await;
    drop(load);
    world.crowd.acked(seconds(10, 30)).await;
    world.answered(begun, 3, Duration::from_secs(8));
    world.arrived(begun, ended, Duration::from_secs(20));
    for page in world.replicas.metrics().await {
        assert_eq!(page.get("praetor_peer_refused_total{reason=\"hop\"}"), 0.0, "a report was passed on twice");
    }
    world.kept(peace, "one wire was cut in one direction").await;
}

/// 16. Whoever is heard anywhere lives, also where its owner hears nothing of it.
async fn devices_from_a_replica(world: &mut World) {
    world.act("16: devices are cut from their owner");
    let (peace, begun) = (world.peace(), Instant::now());
    let owner = world.replicas.running()[2];
    let owned = world.owned(owner);
    world.crowd.bar(&owned, world.replicas.get(owner).name());
    // And some of them from all but one.
    let (half, other) = (&owned[..owned.len() / 2], world.replicas.running()[0]);
    world.crowd.bar(half, world.replicas.get(other).name());
    world.pass(world.scale.window() * 2).await;
    world.crowd.change(&owned);
    world.crowd.acked(seconds(10, 30)).await;
    world.answered(begun, 1, Duration::from_secs(8));
    world.crowd.unbar(&owned, world.replicas.get(owner).name());
    world.crowd.unbar(half, world.replicas.get(other).name());
    world.kept(peace, "devices were cut from their owner").await;
}
