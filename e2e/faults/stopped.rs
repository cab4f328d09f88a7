//! Replicas that stand still for a while, and all of them away at once. Scenarios 3, 4, 9 and 10.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Kind;
use crate::world::{AGREED, VERDICT, World, full, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_stand_still() {
    let mut world = World::open("still", 3).await;
    the_leader_is_stopped_in_a_rollout(&mut world).await;
    all_are_away(&mut world).await;
    if full() {
        one_replica_alone(&mut world).await;
    }
}

/// 9 and 10. The leader, which owns devices, too, is stopped for longer than its Lease, in the middle of a rollout.
async fn the_leader_is_stopped_in_a_rollout(world: &mut World) {
    world.act("9, 10: the leader is stopped in the middle of a rollout, and goes on");
    world.crowd.heal();
    world.crowd.acked(seconds(10, 30)).await;
    let (peace, begun) = (world.peace(), Instant::now());
    let leader = world.replicas.led(AGREED).await;
    let template = json!({ "spec": { "template": { "spec": { "artifact": {
        "url": "registry.example.com/infra/switch-agent:2" } } } } });
    world.cluster.merge(Kind::Deployment, &world.namespace, "agent", &template).await;
    // The first batch is out.
    world
        .cluster
        .wait_object(Kind::Deployment, &world.namespace, "agent", seconds(20, 60), "begun", |object| {
            object["status"]["updatedNumberScheduled"].as_u64().is_some_and(|count| count > 0)
                && object["status"]["observedGeneration"] == object["metadata"]["generation"]
        })
        .await;
    world.replicas.freeze(leader);
    let frozen = Instant::now();
    let rest: Vec<_> = world.names.iter().filter(|name| world.replicas.owner(name) != leader).cloned().collect();
    world.crowd.change(&world.some(5, &rest));
    world.crowd.heal();
    // As long as a Lease lasts, and then some for the others to take over.
    world.pass(seconds(20, 60)).await;
    world.replicas.thaw(leader);
    let resumed = Instant::now();
    world.replicas.agreed(AGREED).await;
    eprintln!("         agreed {:.1} s after it went on", resumed.elapsed().as_secs_f64());
    world.crowd.heal();
    world.rolled_out(seconds(60, 300)).await;
    eprintln!("         rolled out {:.1} s after it stopped", frozen.elapsed().as_secs_f64());
    assert!(world.replicas.led(AGREED).await != leader, "the old leader leads again: nobody had taken over");
    // Whoever called while it stood still has moved on.
    world.crowd.acked(seconds(15, 30)).await;
    world.arrived(begun, Instant::now(), Duration::from_secs(20));
    let log = world.replicas.get(leader).manager.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("paused")), "it did not notice:\n{log}");
    world.kept(peace, "the leader was stopped").await;
}

/// 3. Some die while nobody is there to see it.
async fn all_are_away(world: &mut World) {
    world.act("3: devices die while all replicas are away");
    world.crowd.acked(seconds(10, 30)).await;
    let dying = world.some(seconds(5, 50).as_secs() as usize, &world.names);
    let all = world.replicas.running();
    for which in &all {
        world.replicas.kill9(*which);
    }
    world.crowd.silence(&dying);
    world.unjudged = seconds(5, 120);
    world.pass(world.unjudged).await;
    world.replicas.restart(all[0]).await;
    let first = Instant::now();
    for which in &all[1..] {
        world.replicas.restart(*which).await;
    }
    world.only_dead(&dying, world.scale.window() + Duration::from_secs(15)).await;
    eprintln!("         found out {:.1} s after the first was back", first.elapsed().as_secs_f64());
    world.replicas.agreed(AGREED).await;
    world.crowd.revive(&dying);
    world.only_dead(&[], Duration::from_secs(5)).await;
    world.verify("all were away").await;
}

/// 4. The simplest case of all, at its true times; `e2e/presence.rs` plays it in short.
async fn one_replica_alone(world: &mut World) {
    world.act("4: a device dies, one replica");
    world.replicas.shrink(1).await;
    world.pass(world.scale.window()).await;
    let dying = world.some(1, &world.names);
    let died = Instant::now();
    world.crowd.silence(&dying);
    world.only_dead(&dying, world.scale.window() + VERDICT).await;
    let found = died.elapsed();
    eprintln!("         found out after {:.1} s", found.as_secs_f64());
    assert!(found + world.scale.heartbeat >= world.scale.window(), "{found:?}");
    world.quiet(Duration::from_secs(60)).await;
    world.crowd.revive(&dying);
    world.only_dead(&[], Duration::from_secs(5)).await;
    world.verify("one replica alone").await;
}
