//! Replicas that come and go: scaled, killed, replaced one by one. Scenarios 1, 2, 5, 6, 7 and 8.

use std::time::{Duration, Instant};

use crate::world::{AGREED, TAKE_OVER, VERDICT, World, full, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go() {
    let mut world = World::open("come-and-go", 1).await;
    scaled_under_load(&mut world).await;
    an_owner_is_killed(&mut world).await;
    an_owner_is_killed_with_some_of_its_devices(&mut world).await;
    nothing_happens(&world).await;
    all_are_replaced(&mut world).await;
}

/// 7. From 1 to 5, to 2, to 3.
async fn scaled_under_load(world: &mut World) {
    world.act("7: one replica, then five, two, three, under load");
    let (peace, begun) = (world.peace(), Instant::now());
    let load = world.load(&world.names);
    world.replicas.grow(5).await;
    world.shared_out().await;
    while world.replicas.running().len() > 2 {
        let last = *world.replicas.running().last().unwrap();
        let told = Instant::now();
        let exit = world.replicas.end(last).await;
        assert_eq!(exit.code, Some(0), "{}", world.replicas.get(last).manager.process.log_tail());
        // It leaves the view first of all, and ends when its devices have had time to move on.
        world.replicas.agreed(Duration::from_secs(8)).await;
        eprintln!("         ended, and out of every view, {:.1} s after SIGTERM", told.elapsed().as_secs_f64());
    }
    world.shared_out().await;
    world.replicas.grow(3).await;
    world.shared_out().await;
    drop(load);
    world.crowd.acked(seconds(10, 20)).await;
    // Where five begin at once on one machine some are put off, by 10 s at most.
    world.answered(begun, 2, seconds(5, 15));
    world.arrived(begun, Instant::now(), Duration::from_secs(20));
    world.kept(peace, "scaling").await;
}

/// 1. Nobody notices.
async fn an_owner_is_killed(world: &mut World) {
    world.act("1: kill -9 of an owner under load");
    let (peace, victim) = (world.peace(), world.replicas.running()[1]);
    let owned = world.owned(victim);
    let load = world.load(&owned);
    world.pass(Duration::from_secs(2)).await;
    let killed = Instant::now();
    world.crowd.change(&owned);
    world.replicas.kill9(victim);
    world.pass(Duration::from_secs(3)).await;
    world.crowd.change(&owned);
    world.replicas.agreed(AGREED).await;
    let agreed = killed.elapsed();
    eprintln!("         agreed {:.1} s after the kill", agreed.as_secs_f64());
    assert!(!full() || agreed <= Duration::from_secs(20), "{agreed:?}");
    drop(load);
    world.crowd.acked(seconds(10, 20)).await;
    world.answered(killed, 3, Duration::from_secs(8));
    world.arrived(killed - Duration::from_secs(2), Instant::now(), Duration::from_secs(20));
    world.kept(peace, "an owner was killed").await;
    world.replicas.restart(victim).await;
    world.replicas.agreed(AGREED).await;
    world.kept(peace, "it came back").await;
}

/// 2 and 5. Exactly those that died with it are away, and come back at once.
async fn an_owner_is_killed_with_some_of_its_devices(world: &mut World) {
    world.act("2: kill -9 of an owner and some of its devices at once");
    let victim = world.replicas.running()[0];
    let owned = world.owned(victim);
    let dying = world.some(seconds(5, 50).as_secs() as usize, &owned);
    // Whatever they had to say has been said: what is lost with them is no loss of ours.
    world.crowd.acked(seconds(10, 30)).await;
    let died = Instant::now();
    world.crowd.silence(&dying);
    world.replicas.kill9(victim);
    world.only_dead(&dying, world.scale.window() + TAKE_OVER).await;
    eprintln!("         found out after {:.1} s", died.elapsed().as_secs_f64());
    assert!(died.elapsed() >= world.scale.window());
    world.replicas.restart(victim).await;

    world.act("5: they return");
    let back = Instant::now();
    world.crowd.revive(&dying);
    world.only_dead(&[], Duration::from_secs(3) + seconds(0, 5)).await;
    eprintln!("         all back after {:.1} s", back.elapsed().as_secs_f64());
    world.replicas.agreed(AGREED).await;
    world.verify("an owner was killed with some of its devices").await;
}

/// 6. And costs nothing.
async fn nothing_happens(world: &World) {
    world.act("6: nothing happens");
    let peace = world.peace();
    world.quiet(seconds(12, 600)).await;
    world.kept(peace, "nothing happened").await;
}

/// 8. A rolling update: a new one, then the end of an old one. Somebody died just before.
async fn all_are_replaced(world: &mut World) {
    world.act("8: all replicas are replaced, one after the other");
    let old = world.replicas.running();
    let dying = world.some(1, &world.names);
    let begun = Instant::now();
    world.crowd.silence(&dying);
    let load = world.load(&world.names);
    for which in &old {
        world.replicas.grow(old.len() + 1).await;
        let exit = world.replicas.end(*which).await;
        assert_eq!(exit.code, Some(0), "{}", world.replicas.get(*which).manager.process.log_tail());
    }
    world.replicas.agreed(AGREED).await;
    drop(load);
    let left = (world.scale.window() + Duration::from_secs(20) + VERDICT).saturating_sub(begun.elapsed());
    world.only_dead(&dying, left).await;
    world.crowd.acked(seconds(10, 20)).await;
    world.answered(begun, 2, Duration::from_secs(5));
    world.crowd.look(|ledger| {
        let turns: Vec<_> = ledger.turns.iter().filter(|turn| turn.begun >= begun).collect();
        let again = turns.iter().filter(|turn| turn.attempts > 1).count();
        assert!(again * 100 <= turns.len(), "{again} of {} reports failed at first", turns.len());
    });
    world.crowd.revive(&dying);
    world.only_dead(&[], Duration::from_secs(5)).await;
    world.shared_out().await;
    world.verify("all were replaced").await;
}
