//! Edge: tests of the module of this name.

use super::*;
use crate::presence::staleness::Doubt;

#[test]
fn what_one_replica_hears_another_knows() {
    let (here, there) = (Roll::new(Duration::from_secs(45)), Roll::new(Duration::from_secs(45)));
    for device in ["tor-1", "tor-2"] {
        here.heard(device);
        let judged = here.order(device, Some("boot"), Some(4), 0, || None);
        assert_eq!(judged.0, Freshness::New);
    }
    let horizon = there.now_ms();
    let (heard, mark) = here.heard_since(0);
    assert_eq!(heard.len(), 2);
    there.merge(&heard, horizon);
    there.witness(1, horizon);
    assert_eq!(there.state("tor-1"), AgentState::Alive);
    assert_eq!(there.order("tor-1", Some("boot"), Some(3), 0, || None).0, Freshness::Old);
    assert!(there.contact(device_hash("tor-2")).is_some() && there.contact(device_hash("tor-3")).is_none());
    // What is not heard again is not told again.
    while here.now_ms() <= mark {
        std::thread::yield_now();
    }
    let (again, _) = here.heard_since(mark + 1);
    assert_eq!(again, []);
    here.heard("tor-2");
    let (again, _) = here.heard_since(mark + 1);
    assert_eq!(again.iter().map(|heard| heard.device).collect::<Vec<_>>(), [device_hash("tor-2")]);
    // Learned things are told only with the whole table.
    assert_eq!(there.heard_since(0).0.len(), 1, "only the report that came there itself");
    assert_eq!(there.whole().0.len(), 2);
}

#[test]
fn nobody_is_judged_without_knowing_the_own_standing() {
    let roll = Roll::new(Duration::from_millis(0));
    roll.open();
    assert_eq!(roll.judge("tor-1"), Err(Held::Lease));
    roll.observe(&Doubt::default());
    roll.tick(Duration::from_secs(1));
    assert_eq!(roll.judge("tor-1"), Ok(AgentState::Stale));
    roll.observe(&Doubt { peers: vec![5], ..Doubt::default() });
    assert_eq!(roll.judge("tor-1"), Err(Held::Peers));
    roll.witness(5, roll.now_ms());
    assert_eq!(roll.judge("tor-1"), Ok(AgentState::Stale));
    assert_eq!(roll.hearing().heard, 1);
}
