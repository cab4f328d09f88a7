//! Pure: tests of who is alive.

use super::*;
use proptest::prelude::*;

fn lease(name: &str, incarnation: u64, version: u64) -> Sighting {
    let uid = format!("uid-of-{name}").into();
    Sighting { name: format!("lease-{name}").into(), uid, version, member: Member::new(name, incarnation, None) }
}

fn names(view: &View) -> Vec<&str> {
    view.members.iter().map(|member| &*member.identity).collect()
}

fn members() -> Members {
    Members::new(Member::new("me", 9, None))
}

#[test]
fn a_view_knows_its_members() {
    let all = || vec![Member::new("b", 2, None), Member::new("c", 3, None), Member::new("a", 1, None)];
    let view = View::new(4, all(), "b");
    assert_eq!(names(&view), ["a", "b", "c"]);
    assert_eq!((view.epoch, view.me), (4, Some(1)));
    assert_eq!(view.peers().map(|peer| peer.incarnation).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(view.member("c").map(|member| member.incarnation), Some(3));
    assert_eq!(view.member("d"), None);
    // Equal for everybody who sees the same, and for nobody else.
    assert_eq!(View::new(9, all(), "c").fingerprint, view.fingerprint);
    let mut restarted = all();
    restarted[0].incarnation = 4;
    assert_ne!(View::new(4, restarted, "b").fingerprint, view.fingerprint);
    let three = ["praetor-manager-0", "praetor-manager-1", "praetor-manager-2"];
    let three = three.iter().zip(1..).map(|(name, incarnation)| Member::new(name, incarnation, None)).collect();
    assert_eq!(View::new(1, three, "x").fingerprint, 0x617a_ae1c_38de_ed39);
}

#[test]
fn alone_is_me() {
    let view = View::alone("me");
    assert_eq!((view.me, view.members.len(), view.owner(7)), (Some(0), 1, Owner::Me));
    assert_eq!(View::new(1, Vec::new(), "me").owner(7), Owner::Me);
    let others = View::new(1, vec![Member::new("other", 1, None)], "me");
    assert_eq!(others.owner(7), Owner::Peer(&others.members[0]));
    assert_eq!(others.why(7), [("other".into(), weight(member_hash("other"), 7))]);
}

#[test]
fn nothing_is_seen_before_the_first_list() {
    let mut members = members();
    members.renewed(0);
    assert_eq!(members.view(5).epoch, 0);
    members.listed([], 10);
    assert_eq!(members.view(10).epoch, 1);
    assert_eq!(members.view(11).epoch, 1);
}

#[test]
fn dead_is_who_does_not_change_on_my_clock() {
    let mut members = members();
    for step in 0..=20 {
        let now = 100_000 + step * 1000;
        // One is renewed all the time, the other stands still since its third second.
        members.listed([lease("alive", 1, 50 + step), lease("dead", 1, 10 + step.min(3))], now);
        let expected: &[_] = if step < 18 { &["alive", "dead"] } else { &["alive"] };
        assert_eq!(names(&members.view(now)), expected, "after {step} s");
    }
    // Who comes back is back at once.
    members.listed([lease("alive", 1, 71), lease("dead", 2, 72)], 121_000);
    assert_eq!(names(&members.view(121_000)), ["alive", "dead"]);
    // Who deletes its Lease is gone at once.
    members.listed([lease("alive", 1, 73)], 121_500);
    assert_eq!(names(&members.view(121_500)), ["alive"]);
}

/// An apiserver that is away, and a process that was stopped, must not cost the others their lives.
#[test]
fn time_without_lists_does_not_count() {
    let mut members = members();
    members.listed([lease("a", 1, 5), lease("b", 1, 6)], 0);
    members.listed([lease("a", 1, 5), lease("b", 1, 6)], 1500);
    let before = members.view(1500);
    assert_eq!(members.view(300_000), before, "nobody has looked since");
    // Neither could be renewed while the apiserver was away; a does it soon, b never again.
    members.listed([lease("a", 1, 5), lease("b", 1, 6)], 300_000);
    assert_eq!(members.view(300_000), before);
    for now in (301_500..312_000).step_by(1500) {
        members.listed([lease("a", 1, now), lease("b", 1, 6)], now);
        assert_eq!(names(&members.view(now)), ["a", "b"], "at {now}");
    }
    members.listed([lease("a", 1, 400_000), lease("b", 1, 6)], 313_500);
    assert_eq!(names(&members.view(313_500)), ["a"]);
    assert!(members.litter().is_empty());
}

#[test]
fn i_am_there_while_my_lease_is_good_and_known() {
    let mut members = members();
    members.listed([lease("other", 1, 1)], 0);
    assert_eq!(members.view(0).me, None);
    members.renewed(1000);
    let joined = members.view(1100);
    assert_eq!((names(&joined), joined.me), (vec!["me", "other"], Some(0)));
    assert!(members.renewed_within(10_000, 10_999) && !members.renewed_within(10_000, 11_000));
    // A list that was answered before the Lease was written may lack it; the next one will not.
    members.listed([lease("other", 1, 3)], 1200);
    assert_eq!(members.view(1200), joined);
    members.listed([lease("me", 9, 2), lease("other", 1, 3)], 1500);
    assert_eq!(members.view(1500), joined);
    for now in (3000..15_999).step_by(1500) {
        members.listed([lease("me", 9, 2), lease("other", 1, now)], now);
        assert_eq!(members.view(now), joined, "at {now}");
    }
    members.listed([lease("me", 9, 2), lease("other", 1, 16_000)], 16_000);
    assert_eq!(members.view(16_000).me, None, "not renewed for 15 s: others no longer see it either");
    members.renewed(16_500);
    assert_eq!(members.view(16_500).me, Some(0));
    // Somebody deleted it; it has to be written again.
    members.listed([lease("other", 1, 17_000)], 17_000);
    assert_eq!(members.view(17_000).me, Some(0));
    members.listed([lease("other", 1, 17_000)], 17_400);
    assert_eq!(members.view(17_400).me, None);
    members.renewed(17_500);
    assert_eq!(members.view(17_500).me, Some(0));
    members.gone();
    assert_eq!(members.view(17_600).me, None);
    assert_eq!(names(&members.view(17_600)), ["other"]);
}

#[test]
fn a_dead_self_is_no_member() {
    let mut members = members();
    members.listed([lease("me", 3, 2)], 0);
    assert!(members.view(0).members.is_empty());
    assert!(members.view(0).is_mine(1));
}

#[test]
fn only_who_changes_certainly_lives() {
    let mut members = members();
    members.listed([lease("a", 1, 5), lease("b", 1, 6)], 0);
    assert_eq!(members.certainly_live(), None, "either may be what a crash left behind");
    members.listed([lease("a", 1, 5), lease("b", 1, 7)], 1500);
    assert_eq!(members.certainly_live().map(|member| &*member.identity), Some("b"));
    for now in (3000..=17_000).step_by(1000) {
        members.listed([lease("a", 1, 5), lease("b", 1, 7)], now);
    }
    assert_eq!(members.certainly_live(), None);
}

#[test]
fn litter_is_five_minutes_old_on_my_clock() {
    let mut members = members();
    for now in (0..=300_000).step_by(1500) {
        members.listed([lease("alive", 1, now + 10), lease("dead", 1, 6)], now);
        let litter: Vec<_> = members.litter().into_iter().map(|lease| lease.version).collect();
        assert_eq!(litter, if now < 300_000 { vec![] } else { vec![6] });
    }
}

proptest! {
    /// A member that renews every 3 seconds stays in the view of whoever manages to list, however irregularly.
    #[test]
    fn who_renews_is_never_dropped(gaps in prop::collection::vec(1_u64..120_000, 1..60)) {
        let mut members = members();
        let mut now = 0;
        for gap in gaps {
            members.listed([lease("a", 1, 1 + now / 3000)], now);
            prop_assert_eq!(members.view(now).members.len(), 1);
            now += gap;
        }
    }

    /// One that stands still is dropped after 15 seconds of regular lists, not before, whatever its version says.
    #[test]
    fn who_stands_still_is_dropped(start in 0_u64..1 << 40, period in 100_u64..4000, version in any::<u64>()) {
        let mut members = members();
        for now in (start..start + 30_000).step_by(usize::try_from(period).unwrap()) {
            members.listed([lease("a", 1, version)], now);
            prop_assert_eq!(members.view(now).members.len(), usize::from(now - start < DEAD_AFTER_MS));
        }
    }
}
