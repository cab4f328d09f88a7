//! The apiserver is killed, hangs, and forgets what was. Scenarios 11, 12 and 20.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Attempt, Kind, MANAGER_USER, Part, wait_for};
use crate::world::{AGREED, World, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_apiserver_is_away() {
    let mut world = World::open("away", 3).await;
    an_outage(&mut world, false).await;
    an_outage(&mut world, true).await;
    everything_before_is_forgotten(&mut world).await;
}

/// 11 and 12. Devices are served from the cache; what has to be written waits, and nobody is called dead for it.
async fn an_outage(world: &mut World, hangs: bool) {
    let time = if hangs { seconds(16, 120) } else { seconds(16, 300) };
    world.act(if hangs { "12: the apiserver hangs" } else { "11: the apiserver is down" });
    world.crowd.acked(seconds(15, 30)).await;
    // What a cache has not seen, and what only one replica knows that it was said, nobody can vouch for later.
    world.caught_up().await;
    world.all_repeated(2, world.scale.heartbeat * 4).await;
    let (peace, begun) = (world.peace(), Instant::now());
    if hangs {
        world.plane.freeze(Part::Apiserver);
    } else {
        world.plane.kill(Part::Apiserver);
    }
    let changing = world.some(seconds(5, 50).as_secs() as usize, &world.names);
    world.crowd.change(&changing);
    // Ten seconds after its last renewal nobody leads any more; each renews every two.
    wait_for(Duration::from_secs(13), "the leader to step down", async || {
        world.replicas.sum("praetor_leader").await == 0.0
    })
    .await;
    eprintln!("         nobody leads after {:.1} s", begun.elapsed().as_secs_f64());
    world.pass(time.saturating_sub(begun.elapsed())).await;
    for which in world.replicas.running() {
        let manager = &world.replicas.get(which).manager;
        assert_eq!(manager.admin("/readyz").await.status, 200, "{}", manager.process.log_tail());
    }
    let ended = Instant::now();
    if hangs {
        world.plane.thaw(Part::Apiserver);
    } else {
        world.plane.start_again(Part::Apiserver);
    }
    world.plane.wait_ready().await;
    let back = Instant::now();
    world.crowd.acked(Duration::from_secs(30)).await;
    eprintln!("         all written {:.1} s after it was back", back.elapsed().as_secs_f64());
    world.replicas.led(AGREED).await;
    world.replicas.agreed(AGREED).await;
    world.crowd.look(|ledger| {
        let asked: Vec<_> = ledger.attempts.iter().filter(|a| a.sent >= begun && a.ended <= ended).collect();
        let refused: Vec<_> = asked.iter().filter(|a| !matches!(a.status, 200 | 304)).collect();
        let mut doubted = BTreeSet::new();
        for attempt in &refused {
            let changes = changing.iter().any(|name| **name == *attempt.device);
            let wait = if attempt.report { 2..=10 } else { 1..=1 };
            let put_off = attempt.status == 503 && attempt.retry_after.is_some_and(|soon| wait.contains(&soon));
            assert!(put_off, "{attempt:?}");
            // Nobody is told an older answer than another replica gave just before the outage.
            if attempt.report && !changes {
                doubted.insert(&attempt.device);
            }
        }
        // One whose last report before the outage was not acknowledged has said nobody knows what since.
        assert!(doubted.len() * 20 <= world.names.len(), "unchanged, and yet put off: {doubted:?}");
        eprintln!("         {} devices were put off although nothing had changed", doubted.len());
        for name in &world.names {
            let told = |a: &&&Attempt| *a.device == **name && !a.report && matches!(a.status, 200 | 304);
            assert!(asked.iter().any(|attempt| told(&attempt)), "{name} was told nothing");
        }
        let slowest = asked.iter().map(|a| a.ended - a.sent).max().unwrap_or_default();
        eprintln!("         {} of {} requests were put off", refused.len(), asked.len());
        assert!(!refused.is_empty() && slowest < Duration::from_millis(9_500), "{} {slowest:?}", refused.len());
    });
    world.arrived(begun, ended, time + (back - ended) + Duration::from_secs(30));
    world.kept(peace, "the apiserver was away").await;
}

/// 20. No watch can go on where it was: one list each, and devices notice nothing.
async fn everything_before_is_forgotten(world: &mut World) {
    world.act("20: compaction, and 410 on all watches");
    world.caught_up().await;
    let (peace, before) = (world.peace(), world.cluster.list(Kind::Process, &world.namespace).await.len());
    let all = world.replicas.running();
    for which in &all {
        world.replicas.get(*which).apiserver.stall();
    }
    // What they miss.
    world.touch("yes").await;
    world.cluster.label(Kind::Deployment, &world.namespace, "agent", "touched", Some("yes")).await;
    let touches = json!({ "metadata": { "labels": { "touched": "yes" } } });
    world.cluster.merge(Kind::Process, &world.namespace, &format!("own-{}", world.names[0]), &touches).await;
    world.plane.compact().await;
    // The apiserver's own memory of what was goes with it.
    world.plane.restart(Part::Apiserver).await;
    let mark = world.plane.audit_mark();
    for which in &all {
        let proxy = &world.replicas.get(*which).apiserver;
        proxy.drop_connections();
        proxy.resume();
    }
    let back = Instant::now();
    let lists = || {
        let kinds = ["networkswitches", "deviceprocesses", "deviceprocessdeployments"];
        let asked = world.plane.audit_since(mark).by(MANAGER_USER);
        // A watch that asks for the initial events is a list, too; the further pages of a list are not.
        asked.filter(|e| {
            kinds.contains(&&*e.resource)
                && e.code == 200
                && !e.uri.contains("continue=")
                && (e.verb == "list" || e.uri.contains("sendInitialEvents=true"))
        })
    };
    wait_for(Duration::from_secs(40), "every watcher to list again", async || {
        let count = lists().count();
        let state = || format!("{count}: {}\n{}", lists().describe(), world.replicas.tails());
        if count >= 3 * all.len() { Ok(()) } else { Err(state()) }
    })
    .await;
    eprintln!("         all listed after {:.1} s", back.elapsed().as_secs_f64());
    world.crowd.change(&world.some(5, &world.names));
    world.crowd.acked(seconds(30, 60)).await;
    world.replicas.agreed(AGREED).await;
    world.replicas.led(AGREED).await;
    world.pass(Duration::from_secs(3)).await;
    // A leader that has changed makes sure that it knows everything: one list of each kind more.
    let count = lists().count();
    assert!(count <= 3 * all.len() + 6, "{count} lists:\n{}", lists().describe());
    assert_eq!(world.cluster.list(Kind::Process, &world.namespace).await.len(), before);
    world.kept(peace, "everything was forgotten").await;
}
