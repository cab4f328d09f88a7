//! Everything at once, and answers that get lost. Scenarios 18, 19, 21, 22 and 23.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::crowd::{content, digest};
use crate::harness::scenario::{device_process, process_spec};
use crate::harness::stage::desires;
use crate::harness::{Kind, MANAGER_USER, unique, wait_for};
use crate::world::{AGREED, VERDICT, World, full, seconds, trickle};
use praetor::wire::canonical::SpecHash;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_and_lost_answers() {
    let mut world = World::open_on_time("storms", 3).await;
    late_and_double(&mut world).await;
    a_lost_answer(&mut world).await;
    killed_between_status_and_event(&mut world).await;
    all_die(&mut world).await;
    all_return(&mut world).await;
}

/// 23. What was overtaken on its way changes nothing, wherever it arrives.
async fn late_and_double(world: &mut World) {
    world.act("23: late and double reports through other replicas");
    let running = world.replicas.running();
    let name = unique("late");
    let manifest = device_process(&world.namespace, &name, &name, process_spec("1"));
    let object = world.cluster.create(&manifest).await;
    let hash = SpecHash::of_spec(&object["spec"]).to_string();
    let owner = world.replicas.owner(&name);
    let [first, second] = [0, 1].map(|n| running.iter().filter(|which| **which != owner).nth(n).copied().unwrap());
    let devices = [owner, first, second].map(|which| world.replicas.get(which).manager.device(&name));
    for device in &devices {
        desires(device, &[&format!("{}/{name}", world.namespace)]).await;
    }
    let say = |sequence: u64, content: u64| {
        json!({ "bootId": "boot", "sequence": sequence, "observations": [{
            "namespace": world.namespace, "name": name, "observedSpecHash": hash, "processStarted": true,
            "healthy": true, "artifactDigest": digest(content) }] })
    };
    let shown = async || content(&world.cluster.get(Kind::Process, &world.namespace, &name).await.unwrap());
    devices[0].report(&say(1, 1)).await.expect(200);
    assert_eq!(shown().await, Some(1));
    // The second is under way for long. The third says what the status says: its receiver answers by itself, but
    // the owner has to learn that the second was overtaken.
    let heard = Instant::now();
    wait_for(AGREED, "the third to be answered", async || devices[1].report(&say(3, 1)).await.status == 200).await;
    world.pass(seconds(3, 30)).await;
    world.recorder.caught_up(&world.cluster, Kind::Process, &world.namespace, &name).await;
    let written = world.recorder.writes(Kind::Process, &world.namespace, &name);
    for device in [&devices[2], &devices[0], &devices[1]] {
        device.report(&say(2, 2)).await.expect(200);
        assert_eq!(shown().await, Some(1), "a report that was overtaken {:?} ago was applied", heard.elapsed());
    }
    // A repeat is acknowledged and writes nothing; a later one counts everywhere.
    devices[2].report(&say(3, 1)).await.expect(200);
    assert_eq!(world.recorder.writes(Kind::Process, &world.namespace, &name), written);
    devices[1].report(&say(4, 4)).await.expect(200);
    assert_eq!(shown().await, Some(4));
    for device in &devices {
        device.report(&say(4, 4)).await.expect(200);
        device.report(&say(3, 1)).await.expect(200);
    }
    assert_eq!(shown().await, Some(4));
    world.recorder.caught_up(&world.cluster, Kind::Process, &world.namespace, &name).await;
    assert_eq!(world.recorder.writes(Kind::Process, &world.namespace, &name), written + 1);
    world.remove(&name).await;
}

/// 21. Written, and the writer never learns of it.
async fn a_lost_answer(world: &mut World) {
    world.act("21: the answers to an owner's patches get lost");
    let (peace, begun) = (world.peace(), Instant::now());
    let victim = world.replicas.running()[1];
    let some = world.some(5, &world.owned(victim));
    world.replicas.get(victim).apiserver.lose_answers();
    world.crowd.change(&some);
    world.pass(Duration::from_secs(4)).await;
    world.replicas.get(victim).apiserver.drop_connections();
    world.replicas.get(victim).apiserver.resume();
    world.crowd.acked(Duration::from_secs(20)).await;
    world.replicas.agreed(AGREED).await;
    world.arrived(begun, Instant::now(), Duration::from_secs(20));
    world.verify("answers were lost").await;
    assert_eq!(world.peace(), peace);
}

/// 22. The status is written, its event is not, and the writer dies.
async fn killed_between_status_and_event(world: &mut World) {
    world.act("22: kill -9 between a status and its event");
    let peace = world.peace();
    // With the next content of each, some fall ill.
    world.crowd.heal();
    world.crowd.acked(seconds(10, 30)).await;
    let victim = world.replicas.running()[2];
    let owned = world.owned(victim);
    let ill = |world: &World| world.recorder.events("Unhealthy", "").len();
    let before = ill(world);
    let kubectl = world.plane.kubectl();
    let role: serde_json::Value =
        serde_json::from_str(&kubectl.run(&["get", "clusterrole", "praetor-manager", "-o", "json"]).await).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let rule = rules.iter().position(|rule| rule["apiGroups"] == json!(["events.k8s.io"])).unwrap();
    let allow = async |verbs: &[&str]| {
        let patch = json!([{ "op": "replace", "path": format!("/rules/{rule}/verbs"), "value": verbs }]).to_string();
        kubectl.run(&["patch", "clusterrole", "praetor-manager", "--type=json", "-p", &patch]).await;
    };
    allow(&["get"]).await;
    let mark = world.plane.audit_mark();
    let mut refused = 0;
    for _ in 0..8 {
        world.crowd.change(&owned);
        world.pass(Duration::from_millis(700)).await;
        let asked = world.plane.audit_since(mark).by(MANAGER_USER).verb("create").resource("events").code(403);
        refused = asked.count();
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "no event was refused");
    world.replicas.kill9(victim);
    let killed = Instant::now();
    allow(&["create", "get"]).await;
    world.replicas.agreed(AGREED).await;
    wait_for(
        (AGREED + Duration::from_secs(10)).saturating_sub(killed.elapsed()),
        "the events to be written",
        async || ill(world) > before,
    )
    .await;
    eprintln!("         events {:.1} s after the kill", killed.elapsed().as_secs_f64());
    world.crowd.acked(seconds(20, 30)).await;
    world.verify("killed between status and event").await;
    assert_eq!(world.peace(), peace);
    world.replicas.restart(victim).await;
    world.replicas.agreed(AGREED).await;
}

/// 18. A trickle, and Leases all the same.
async fn all_die(world: &mut World) {
    world.act("18: all devices die");
    world.crowd.acked(seconds(10, 30)).await;
    let leases = async || world.replicas.sum("praetor_lease_failures_total").await;
    let views = async || world.replicas.sum("praetor_view_changes_total").await;
    let (failures, changes) = (leases().await, views().await);
    let leader = world.replicas.led(AGREED).await;
    let count = world.names.len();
    let died = Instant::now();
    world.crowd.silence(&world.names);
    let time = Duration::from_secs_f64(count as f64 / trickle() as f64);
    world.only_dead(&world.names, world.scale.window() + VERDICT + Duration::from_secs(5) + time).await;
    world.unjudged = time;
    eprintln!("         all found out after {:.1} s", died.elapsed().as_secs_f64());
    let story = world.story();
    let mut verdicts: Vec<_> = story.versions.iter().filter(|v| v.at > died && v.connected == Some(false)).collect();
    verdicts.sort_by_key(|version| version.at);
    let together = |at: Instant| {
        verdicts
            .iter()
            .filter(|v| v.at >= at && v.at < at + Duration::from_secs(1))
            .map(|v| &v.device)
            .collect::<BTreeSet<_>>()
    };
    let most = verdicts.iter().map(|version| together(version.at).len()).max().unwrap_or_default();
    eprintln!("         {most} devices in one second at most");
    // Each replica trickles by itself, and the last ones are no mass any more; a second may hold two of its ticks.
    assert!(most <= (trickle() * 2 + 10) * 3, "{most} devices within a second");
    // A call may fail on a busy machine; a Lease that is not renewed in time would change the view.
    eprintln!("         {} calls about Leases failed", leases().await - failures);
    assert_eq!((views().await, world.replicas.leader().await), (changes, Some(leader)), "Leases had to wait");
    world.verify("all died").await;
    world.recorder.wait_events("MassDisconnect", "", 1, Duration::from_secs(15)).await;
    let said = world.recorder.events("MassDisconnect", "");
    assert!((1..=3).contains(&said.len()), "{} events of a mass disconnect", said.len());
}

/// 19. All at once, and nobody waits long.
async fn all_return(world: &mut World) {
    world.act("19: all return at once");
    let failures = world.replicas.sum("praetor_lease_failures_total").await;
    let back = Instant::now();
    world.crowd.revive(&world.names);
    world.only_dead(&[], Duration::from_secs(60)).await;
    eprintln!("         all back after {:.1} s", back.elapsed().as_secs_f64());
    world.crowd.acked(Duration::from_secs(60)).await;
    world.crowd.look(|ledger| {
        let since = || ledger.attempts.iter().filter(|attempt| attempt.sent >= back);
        let mut took: Vec<_> = since().filter(|a| !a.report).map(|a| a.ended - a.sent).collect();
        took.sort_unstable();
        let slow = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
        let waits: Vec<_> = since().filter(|a| a.status == 503).filter_map(|a| a.retry_after).collect();
        eprintln!("         p99 of {} questions: {} ms; {} were put off", took.len(), slow.as_millis(), waits.len());
        // In short it is a debug build on a machine that does other things, too.
        assert!(slow < seconds(3, 1), "{slow:?}");
        if waits.len() >= 50 {
            let spread = waits.iter().max().unwrap() - waits.iter().min().unwrap();
            assert!(spread >= 5, "all are told to come back at once: {waits:?}");
        }
    });
    assert!(!full() || world.replicas.sum("praetor_lease_failures_total").await <= failures, "Leases had to wait");
    world.verify("all returned").await;
}
