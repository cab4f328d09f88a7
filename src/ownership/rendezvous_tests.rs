//! Pure: tests of who works for what.

use super::*;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

fn named(name: &str) -> Member {
    Member::new(name, 1, None)
}

fn pods(count: usize) -> Vec<Member> {
    (0..count).map(|number| named(&format!("praetor-manager-{number}"))).collect()
}

fn seen_by(me: &str, members: Vec<Member>) -> Arc<View> {
    Arc::new(View::new(1, members, me))
}

fn assign(view: &Arc<View>, devices: &[u64]) -> Assignment {
    let mut assignment = Assignment::new(view.clone());
    devices.iter().for_each(|device| assignment.push(*device));
    assignment
}

fn fleet(count: usize) -> Vec<u64> {
    (0..count).map(|number| device_hash(&format!("device-{number:05}"))).collect()
}

fn owners(assignment: &Assignment) -> Vec<Option<Arc<str>>> {
    (0..assignment.len()).map(|position| assignment.owner(position).map(|member| member.identity.clone())).collect()
}

/// Computed by another implementation of SipHash-2-4 and of the finalizer.
#[test]
fn golden_vectors() {
    assert_eq!(device_hash("tor1-01"), 0x7ac5_97ec_4a88_7ab5);
    assert_eq!(device_hash("a"), 0xd9fc_14b6_77ae_1e7e);
    assert_eq!(device_hash("rack-7.site-2.example.org"), 0x556a_7829_6171_b865);
    let members = [
        ("praetor-manager-0", 0xd311_3eef_a18c_6fcf, 0x120f_e67e_8317_2920, 0x94c8_198c_6ba4_3075),
        ("praetor-manager-1", 0xbaa6_f2f2_f081_8f93, 0x46b1_c2af_6c6d_6bd8, 0xf9cc_42d8_f070_3f9b),
        ("praetor-manager-2", 0x17d6_6b43_0b78_540c, 0x245a_7084_e4b3_836c, 0xa922_6c45_5953_2ef9),
    ];
    for (name, hash, first, second) in members {
        assert_eq!(member_hash(name), hash, "{name}");
        assert_eq!(weight(hash, device_hash("tor1-01")), first, "{name}");
        assert_eq!(weight(hash, device_hash("a")), second, "{name}");
    }
    let chosen: Vec<_> = (0..24).map(|n| choose(&pods(3), device_hash(&format!("tor1-{n:02}"))).unwrap()).collect();
    assert_eq!(chosen, [0, 1, 2, 1, 0, 2, 2, 0, 2, 1, 0, 0, 2, 2, 1, 0, 1, 2, 1, 1, 2, 0, 2, 2]);
}

/// Names as StatefulSets, Deployments and plain processes give them; 3 to 10 members, 10,000 devices.
#[test]
fn shares_are_even() {
    let families: [fn(usize) -> String; 3] = [
        |n| format!("praetor-manager-{n}"),
        |n| {
            format!(
                "praetor-manager-7d9c5b8f6-{}",
                ["x2k9q", "b7xvf", "mz4tw", "c8hrd", "q5nlp", "t6jgs", "w9zkm", "d3fbc", "v8xqh", "n4rtj"][n]
            )
        },
        |n| format!("node{n}-{}", 4000 + 37 * n),
    ];
    let devices = fleet(10_000);
    for family in families {
        for count in 3..=10 {
            let members: Vec<_> = (0..count).map(family).map(|name| named(&name)).collect();
            let mut shares = vec![0_u32; count];
            devices.iter().for_each(|device| shares[choose(&members, *device).unwrap()] += 1);
            let most = f64::from(*shares.iter().max().unwrap());
            let mean = 10_000.0 / f64::from(u32::try_from(count).unwrap());
            assert!(most / mean <= 1.10, "{count} members: {shares:?}");
        }
    }
}

/// One member more or less moves its share, and nothing else.
#[test]
fn a_change_moves_one_share() {
    let devices = fleet(10_000);
    for count in 2..=10 {
        let (fewer, more) = (seen_by("x", pods(count - 1)), seen_by("x", pods(count)));
        let mut assignment = assign(&fewer, &devices);
        let joined = assignment.apply(&more).moved;
        let left = assignment.apply(&fewer).moved;
        assert_eq!(joined, left);
        assert!(joined <= 10_000 / count + 300, "{joined} of 10,000 moved to the {count}th member");
    }
}

#[test]
fn nobody_visible_means_me_and_only_others_means_none_of_it() {
    let devices = fleet(100);
    let mut assignment = assign(&seen_by("me", Vec::new()), &devices);
    assert_eq!(assignment.mine(), 100);
    assert!(assignment.is_mine(0) && assignment.owner(0).is_none() && !assignment.is_mine(100));

    let others = assignment.apply(&seen_by("me", pods(2)));
    assert_eq!((assignment.mine(), others.lost.len(), others.moved), (0, 100, 100));
    let again = assignment.apply(&seen_by("me", vec![named("me")]));
    assert_eq!((assignment.mine(), again.gained.len(), again.moved), (100, 100, 100));
    assert_eq!(assignment.apply(&assignment.view().clone()), Moved::default());
}

/// A restarted member is the same one.
#[test]
fn an_incarnation_moves_nothing() {
    let devices = fleet(1000);
    let mut assignment = assign(&seen_by("praetor-manager-0", pods(3)), &devices);
    let mut restarted = pods(3);
    restarted[1].incarnation = 7;
    assert_eq!(assignment.apply(&seen_by("praetor-manager-0", restarted)), Moved::default());
    assert_eq!(assignment.view().members[1].incarnation, 7);
}

fn some_members() -> impl Strategy<Value = Vec<Member>> {
    subsequence((0..12).collect::<Vec<_>>(), 0..=12)
        .prop_map(|numbers| numbers.into_iter().map(|number| named(&format!("m{number}"))).collect())
}

proptest! {
    /// Whatever views came before, the result is what a replica that starts now computes, and the change says so.
    #[test]
    fn step_by_step_is_from_scratch(
        views in prop::collection::vec(some_members(), 1..6),
        devices in prop::collection::vec(any::<u64>(), 0..200),
        late in any::<Index>(),
    ) {
        let known = if devices.is_empty() { 0 } else { late.index(devices.len()) };
        let mut assignment = assign(&seen_by("m3", Vec::new()), &devices[..known]);
        for (step, members) in views.iter().enumerate() {
            if step == views.len() / 2 {
                devices[known..].iter().for_each(|device| assignment.push(*device));
            }
            let view = seen_by("m3", members.clone());
            let before = assignment.clone();
            let change = assignment.apply(&view);
            let scratch = assign(&view, &devices[..assignment.len()]);
            prop_assert_eq!(owners(&assignment), owners(&scratch));
            prop_assert_eq!(assignment.mine(), scratch.mine());
            let positions = 0..assignment.len();
            let gained: Vec<_> = positions.clone().filter(|at| assignment.is_mine(*at) && !before.is_mine(*at)).collect();
            let lost: Vec<_> = positions.clone().filter(|at| !assignment.is_mine(*at) && before.is_mine(*at)).collect();
            prop_assert_eq!(change.gained, gained);
            prop_assert_eq!(change.lost, lost);
            let (old, new) = (owners(&before), owners(&assignment));
            prop_assert_eq!(change.moved, old.iter().zip(&new).filter(|(a, b)| a != b).count());
            for position in positions {
                prop_assert_eq!(assignment.is_mine(position), view.is_mine(devices[position]));
            }
        }
    }

    /// The order in which members are named plays no part, and every replica says the same of every device.
    #[test]
    fn order_free(members in some_members().prop_shuffle(), device in any::<u64>()) {
        let mut sorted = members.clone();
        sorted.sort_by(|a, b| a.identity.cmp(&b.identity));
        let (one, other) = (seen_by("x", members.clone()), seen_by("x", sorted));
        prop_assert_eq!(&*one, &*other);
        prop_assert_eq!(one.why(device), other.why(device));
        let owners = members.iter().filter(|member| seen_by(&member.identity, members.clone()).is_mine(device)).count();
        prop_assert_eq!(owners, usize::from(!members.is_empty()));
        if let Some((first, _)) = one.why(device).first() {
            prop_assert_eq!(first, &one.members[choose(&one.members, device).unwrap()].identity);
        }
    }
}
