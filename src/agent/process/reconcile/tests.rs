//! Pure: what is decided, tried on a model of a device.

mod model;

use super::*;
use model::*;
use proptest::prelude::*;
use std::time::Duration;

fn device() -> Device {
    Device { record: Record::new("ns", "n"), word: Some(Word::Remembered), ..Device::default() }
}

fn good() -> impl Strategy<Value = usize> {
    (0..VERSIONS.len()).prop_filter("good", |i| VERSIONS[*i].4 == Wrong::Nothing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn from_any_interrupted_prefix_it_comes_to_what_is_wanted(
        ops in prop::collection::vec(op(), 0..60), last in prop::option::weighted(0.9, good()),
    ) {
        let mut device = device();
        for op in &ops {
            device.apply(op);
        }
        device.apply(&Op::Want(last));
        device.settle();
        device.settled();
        // And there it stays, also for an agent that is started again.
        device.restart();
        device.word = Some(Word::Heard);
        device.settle();
        device.settled();
    }

    #[test]
    fn the_old_one_goes_on_while_the_new_one_is_bad(
        old in good(), ops in prop::collection::vec(op(), 0..40), bad in prop::sample::select(vec![3_usize, 6, 7]),
    ) {
        let mut device = device();
        device.apply(&Op::Want(Some(old)));
        device.settle();
        let row = VERSIONS[old];
        device.apply(&Op::Want(Some(bad)));
        for op in ops {
            // Whoever forgets what ran cannot start it again.
            let forgets = matches!(op, Op::LoseRecord | Op::StaleRecord | Op::StaleList | Op::LoseArtifacts | Op::Want(_));
            if !forgets {
                device.apply(&op);
            }
        }
        device.down.clear();
        for _ in 0..PATIENCE {
            device.step(9);
        }
        let finished = device.record.finished(row.0, row.1).is_some();
        let live = device.live();
        prop_assert!(finished || live.len() == 1, "{:?}", device.units);
        prop_assert!(live.iter().all(|(_, unit)| unit.ran == Some((row.0, row.1))));
    }
}

#[test]
fn what_nobody_remembers_is_removed_only_on_a_word_of_the_gateway() {
    let mut device = device();
    device.apply(&Op::Want(Some(0)));
    device.settle();
    device.apply(&Op::LoseRecord);
    device.wanted = None;
    for word in [Word::Nobody, Word::Remembered] {
        device.word = Some(word);
        device.settle();
        assert_eq!(device.live().len(), 1);
    }
    device.word = Some(Word::Heard);
    device.settle();
    assert!(device.units.is_empty());
}

#[test]
fn what_is_remembered_is_not_removed_when_the_list_is_lost() {
    let mut device = device();
    device.apply(&Op::Want(Some(0)));
    device.settle();
    device.restart();
    (device.wanted, device.word) = (None, Some(Word::Nobody));
    device.settle();
    assert_eq!(device.live().len(), 1);
    // It was dropped by an answer, and the agent died before it could act: the state file's word is enough.
    device.word = Some(Word::Remembered);
    device.dropped.insert("a".into());
    device.settle();
    assert!(device.units.is_empty() && device.disk.is_none());
}

#[test]
fn a_state_file_that_could_not_be_written_stops_nothing() {
    let mut device = device();
    for (wanted, live) in [(0, 1), (4, 0)] {
        device.apply(&Op::Want(Some(wanted)));
        device.settle();
        if live == 0 {
            device.apply(&Op::Exit(true));
            device.settle();
        }
        // After a reboot the file is from before the process was wanted: it neither has it nor says that it was dropped.
        device.apply(&Op::Reboot);
        device.apply(&Op::StaleList);
        assert_eq!(device.word, Some(Word::Remembered));
        let units = device.units.len();
        device.settle();
        assert_eq!((device.live().len(), device.units.len()), (live, units));
        // Nor is a run forgotten that is over: it would be started again as soon as the gateway is heard.
        device.units.retain(|_, unit| is_live(&unit.activity));
        device.settle();
        assert_eq!(device.record.finished("a", "h4").is_some(), live == 0);
        device.apply(&Op::Want(Some(wanted)));
        device.settle();
        assert_eq!(device.live().len(), live);
    }
    device.apply(&Op::Want(None));
    device.settle();
    assert!(device.units.is_empty() && device.disk.is_none(), "an answer that lacks it is enough");
}

#[test]
fn a_backend_that_does_not_answer_costs_no_attempt() {
    let mut device = device();
    device.apply(&Op::Toggle(0));
    device.apply(&Op::Want(Some(0)));
    assert!(!device.step(9));
    assert_eq!(device.record.download.attempts, 0);
}

#[test]
fn a_move_to_another_backend_is_one_switch() {
    let mut device = device();
    device.apply(&Op::Want(Some(0)));
    device.settle();
    device.apply(&Op::Want(Some(2)));
    let mut actions = Vec::new();
    loop {
        let action = device.decide().action;
        if action == Action::Hold(None) {
            break;
        }
        actions.push(action);
        device.step(9);
    }
    let systemd = BackendKind::Systemd;
    let expected =
        [Action::Fetch, Action::Install(Which::Wanted), Action::Remove(systemd), Action::Start(Which::Wanted)];
    assert_eq!(actions, expected);
    device.settled();
    // While the old one's backend is away the new one waits.
    device.apply(&Op::Want(Some(1)));
    device.apply(&Op::Toggle(1));
    for _ in 0..PATIENCE {
        device.step(9);
    }
    assert_eq!(device.live()[0].0, BackendKind::Initd);
    assert_eq!(device.live().len(), 1);
}

#[test]
fn one_restart_for_an_edit() {
    let mut device = device();
    device.apply(&Op::Want(Some(0)));
    device.settle();
    for next in [1, 0, 8] {
        device.apply(&Op::Want(Some(next)));
        let mut starts = 0;
        loop {
            let action = device.decide().action;
            starts += usize::from(matches!(action, Action::Start(_)));
            assert!(!matches!(action, Action::Remove(_)));
            if !device.step(9) {
                break;
            }
        }
        assert_eq!(starts, 1, "{:?}", VERSIONS[next]);
        device.settled();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Answers with any revisions, in any order: what is wanted never goes back, so no step is ever taken back.
    #[test]
    fn an_answer_that_goes_back_in_time_moves_nothing(answers in prop::collection::vec((0_u64..40, 1_i64..9, any::<bool>()), 1..30)) {
        use crate::agent::holding::{Answer, Holding};
        use crate::wire::desired::{DesiredItem, DesiredState};
        let mut holding = Holding::new("d");
        let mut device = device();
        let (mut newest, mut generation) = (0, 0);
        for (second, (revision, number, listed)) in (0_u64..).zip(answers) {
            let item = DesiredItem {
                uid: "a".into(), namespace: "ns".into(), name: "n".into(), generation: number,
                spec: serde_json::value::RawValue::from_string("{}".into()).unwrap(), spec_hash: format!("h{}", number % 2),
            };
            let items = if listed { vec![item] } else { Vec::new() };
            let state = DesiredState { device_name: "d".into(), heartbeat_interval_seconds: 15, items };
            let before = holding.items().first().map(|item| item.spec_hash.clone());
            let now = Instant::now() + Duration::from_secs(second);
            holding.question(now);
            holding.received(now, 0, Answer::Desired { etag: Some(revision.to_string()), revision: Some(revision), state });
            let held = holding.items().first();
            if revision < newest || (listed && number < generation) {
                prop_assert_eq!(held.map(|item| item.spec_hash.clone()), before, "an old answer");
            }
            newest = newest.max(revision);
            generation = held.map_or(0, |item| item.generation);
            let wanted = held.map(|item| usize::from(item.spec_hash == "h1"));
            let moved = wanted != device.wanted;
            if moved || device.word != Some(Word::Heard) {
                device.apply(&Op::Want(wanted));
            }
            let live: Vec<_> = device.live().into_iter().map(|(_, unit)| unit.ran).collect();
            device.settle();
            if !moved && second > 0 {
                prop_assert_eq!(device.live().into_iter().map(|(_, unit)| unit.ran).collect::<Vec<_>>(), live);
            }
            device.settled();
        }
    }
}
