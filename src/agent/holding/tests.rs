//! Pure: tests of what may change what the device should run.

use super::*;
use proptest::prelude::*;

const DEVICE: &str = "tor1-01";

fn item(uid: u32, generation: i64) -> DesiredItem {
    DesiredItem {
        uid: format!("u{uid}"),
        namespace: "infra".into(),
        name: format!("p{uid}"),
        generation,
        spec: serde_json::value::RawValue::from_string(format!(r#"{{"g":{generation}}}"#)).unwrap(),
        spec_hash: format!("sha256:{uid}.{generation}"),
    }
}

fn state(items: &[(u32, i64)]) -> DesiredState {
    DesiredState {
        device_name: DEVICE.into(),
        heartbeat_interval_seconds: 15,
        items: items.iter().map(|(uid, generation)| item(*uid, *generation)).collect(),
    }
}

fn etag(items: &[(u32, i64)]) -> String {
    format!("\"{items:?}\"")
}

fn desired(revision: u64, items: &[(u32, i64)]) -> Answer {
    Answer::Desired { etag: Some(etag(items)), revision: Some(revision), state: state(items) }
}

fn held(holding: &Holding) -> Vec<(u32, i64)> {
    let mut held: Vec<_> = holding.items().iter().map(|i| (i.uid[1..].parse().unwrap(), i.generation)).collect();
    held.sort_unstable();
    held
}

/// A restart of the agent, through the bytes of the state file.
fn restarted(holding: &Holding) -> Holding {
    Holding::restore(serde_json::from_slice(&serde_json::to_vec(&holding.record()).unwrap()).unwrap())
}

fn kinds(verdict: &Verdict) -> Vec<ChangeKind> {
    match verdict {
        Verdict::Changed(changes) => changes.iter().map(|c| c.kind).collect(),
        other => panic!("{other:?}"),
    }
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[test]
fn a_list_is_taken_over_and_kept_across_a_restart() {
    let now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    assert_eq!(holding.question(now), Question::default());
    let verdict = holding.received(now, 0, desired(7, &[(1, 1), (2, 3)]));
    assert_eq!(kinds(&verdict), [ChangeKind::Wanted, ChangeKind::Wanted]);
    let mut holding = restarted(&holding);
    assert_eq!(held(&holding), [(1, 1), (2, 3)]);
    assert_eq!(holding.items()[1].spec.get(), r#"{"g":3}"#);
    assert_eq!(holding.question(now), Question { etag: Some(etag(&[(1, 1), (2, 3)])), min_revision: Some(7) });
    assert_eq!(holding.received(now, 0, Answer::NotModified { revision: Some(9) }), Verdict::Unchanged);
    assert_eq!(holding.question(now).min_revision, Some(9));
    assert_eq!(
        holding.received(now, 0, desired(9, &[(1, 1), (2, 3)])),
        Verdict::Unchanged,
        "a server that ignores If-None-Match"
    );
    assert_eq!(kinds(&holding.received(now, 0, desired(10, &[(2, 4)]))), [ChangeKind::Updated, ChangeKind::Dropped]);
    assert_eq!(held(&holding), [(2, 4)]);
}

#[test]
fn an_answer_from_the_past_takes_nothing_away() {
    let now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    holding.received(now, 0, desired(10, &[(1, 2)]));
    assert_eq!(holding.received(now, 0, desired(9, &[])), Verdict::Old);
    assert_eq!(holding.received(now, 0, Answer::NotModified { revision: Some(9) }), Verdict::Old);
    assert_eq!(holding.received(now, 0, Answer::Behind), Verdict::Old);
    // Without the header only the generation tells.
    let older = Answer::Desired { etag: None, revision: None, state: state(&[(1, 1), (2, 1)]) };
    assert_eq!(kinds(&holding.received(now, 0, older)), [ChangeKind::Older, ChangeKind::Wanted]);
    assert_eq!(held(&holding), [(1, 2), (2, 1)]);
    assert_eq!(holding.revision(), Some(10));
}

#[test]
fn nonsense_is_refused() {
    let now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    assert!(matches!(holding.received(now, 0, Answer::NotModified { revision: None }), Verdict::Refused(_)));
    holding.received(now, 0, desired(10, &[(1, 2)]));
    let mut other = state(&[]);
    other.device_name = "tor1-02".into();
    let mut nameless = state(&[(1, 3)]);
    nameless.items[0].name.clear();
    for state in [other, nameless, state(&[(1, 3), (1, 4)])] {
        let answer = Answer::Desired { etag: None, revision: Some(11), state };
        assert!(matches!(holding.received(now, 0, answer), Verdict::Refused(_)));
    }
    assert_eq!(held(&holding), [(1, 2)]);
    assert_eq!(holding.revision(), Some(10));
}

#[test]
fn what_was_dropped_returns_only_after_a_minute_of_being_listed() {
    let start = Instant::now();
    let mut holding = Holding::new(DEVICE);
    holding.received(start, 0, desired(1, &[(1, 1)]));
    holding.received(start, 0, desired(2, &[]));
    let mut holding = restarted(&holding);
    assert_eq!(kinds(&holding.received(start, 0, desired(3, &[(1, 1)]))), [ChangeKind::Returning]);
    assert!(holding.record().etag.is_none(), "after a restart the list must come anew");
    assert_eq!(holding.received(start + seconds(59), 0, Answer::NotModified { revision: Some(3) }), Verdict::Unchanged);
    assert_eq!(held(&holding), []);
    // Not listed in between: the minute starts again.
    holding.received(start + seconds(59), 0, desired(4, &[]));
    holding.received(start + seconds(60), 0, desired(5, &[(1, 1)]));
    assert_eq!(holding.received(start + seconds(61), 0, Answer::NotModified { revision: Some(5) }), Verdict::Unchanged);
    assert_eq!(
        kinds(&holding.received(start + seconds(120), 0, Answer::NotModified { revision: Some(5) })),
        [ChangeKind::Wanted]
    );
    assert_eq!(held(&holding), [(1, 1)]);
    assert!(holding.record().dropped.is_empty() && holding.record().etag.is_some());
}

#[test]
fn dropped_processes_are_forgotten_one_day() {
    let now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    let all: Vec<_> = (0..2000).map(|uid| (uid, 1)).collect();
    holding.received(now, 5_000_000, desired(1, &all));
    holding.received(now, 5_000_000, desired(2, &[]));
    assert_eq!(holding.record().dropped.len(), REMEMBER_AT_MOST);
    // The clock was wrong: the time starts when that is noticed.
    holding.received(now, 1000, desired(3, &[(3000, 1)]));
    assert!(holding.record().dropped.iter().all(|d| d.at == 1000));
    holding.received(now, 1000 + REMEMBER_SECONDS + 1, desired(4, &[(3000, 2)]));
    assert!(holding.record().dropped.is_empty());
}

/// Old answers of every kind, every 20 s.
fn old_answers(holding: &mut Holding, now: &mut Instant, how_long: u64) {
    for i in 0..=how_long / 20 {
        assert!(!holding.asks_afresh());
        assert_ne!(holding.question(*now), Question::default());
        holding.received(*now, 0, if i % 2 == 0 { Answer::Behind } else { desired(5, &[(1, 1)]) });
        *now += seconds(20);
    }
}

#[test]
fn a_restored_cluster_is_believed_after_ten_minutes() {
    let mut now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    holding.received(now, 0, desired(1000, &[(1, 2), (2, 1)]));
    old_answers(&mut holding, &mut now, 580);
    // A single current answer ends the doubt.
    assert_eq!(holding.received(now, 0, Answer::NotModified { revision: Some(1000) }), Verdict::Unchanged);
    old_answers(&mut holding, &mut now, 580);
    // So does a long silence.
    now += seconds(150);
    old_answers(&mut holding, &mut now, 600);
    assert_eq!(held(&holding), [(1, 2), (2, 1)]);
    assert_eq!(holding.question(now), Question::default());
    // A plain request may fail, too.
    assert_eq!(holding.received(now, 0, Answer::Behind), Verdict::Old);
    assert_eq!(holding.question(now), Question::default());
    assert_eq!(kinds(&holding.received(now, 0, desired(5, &[(1, 1)]))), [ChangeKind::Updated, ChangeKind::Dropped]);
    assert_eq!((held(&holding), holding.revision()), (vec![(1, 1)], Some(5)));
    assert_eq!(holding.question(now).min_revision, Some(5));

    // A gateway that knows no revisions: there is none to insist on any more.
    holding.received(now, 0, desired(2000, &[(1, 4)]));
    old_answers(&mut holding, &mut now, 600);
    holding.question(now);
    holding.received(now, 0, Answer::Desired { etag: None, revision: None, state: state(&[(1, 1)]) });
    assert_eq!((held(&holding), holding.question(now)), (vec![(1, 1)], Question::default()));
}

#[test]
fn a_restore_that_raised_the_revisions_is_believed_after_ten_minutes() {
    let mut now = Instant::now();
    let mut holding = Holding::new(DEVICE);
    holding.received(now, 0, desired(1000, &[(1, 5)]));
    assert_eq!(kinds(&holding.received(now, 0, desired(9000, &[(1, 3)]))), [ChangeKind::Older]);
    assert!(holding.record().etag.is_none());
    for _ in 0..20 {
        assert_eq!(holding.question(now), Question { etag: Some(etag(&[(1, 3)])), min_revision: Some(9000) });
        now += seconds(30);
        assert_eq!(holding.received(now, 0, Answer::NotModified { revision: Some(9000) }), Verdict::Unchanged);
        assert_eq!(held(&holding), [(1, 5)]);
    }
    assert_eq!(holding.question(now), Question::default());
    holding.received(now, 0, desired(9000, &[(1, 3)]));
    assert_eq!(held(&holding), [(1, 3)]);
}

#[derive(Debug, Clone)]
enum Step {
    /// The cluster moves on: a process appears, changes or goes.
    Edit(u32, u8),
    /// A replica catches up with the cluster.
    CatchUp(usize),
    /// The agent asks a replica.
    Ask(usize),
    /// The agent asks a replica that does not know revisions.
    AskLegacy(usize),
    /// The agent gets 401, 404, 500 or nothing.
    Fail,
    Restart,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u32..4, 0_u8..3).prop_map(|(uid, what)| Step::Edit(uid, what)),
        3 => (0_usize..3).prop_map(Step::CatchUp),
        6 => (0_usize..3).prop_map(Step::Ask),
        1 => (0_usize..3).prop_map(Step::AskLegacy),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
        1 => (1_u64..90).prop_map(Step::Wait),
    ]
}

type Items = Vec<(u32, i64)>;

/// A truthful gateway at one point of the cluster's history.
fn answer(question: &Question, revision: u64, items: &Items, knows_revisions: bool) -> Answer {
    if knows_revisions && question.min_revision.is_some_and(|min| min > revision) {
        return Answer::Behind;
    }
    let revision = knows_revisions.then_some(revision);
    if question.etag.as_ref() == Some(&etag(items)) {
        return Answer::NotModified { revision };
    }
    Answer::Desired { etag: Some(etag(items)), revision, state: state(items) }
}

proptest! {
    /// Replicas that lag behind, restarts, failures: a device that asks replicas which know revisions never goes
    /// back in time, and ends where the cluster ends.
    #[test]
    fn time_never_runs_backwards(steps in prop::collection::vec(step(), 1..80), legacy in any::<bool>()) {
        let mut now = Instant::now();
        let mut holding = Holding::new(DEVICE);
        let mut history: Vec<Items> = vec![vec![]];
        let mut replicas = [0_usize; 3];
        let mut seen = 0; // how far in the history the agent is
        let mut generations = HashMap::new();
        for step in steps {
            match step {
                Step::Edit(uid, what) => {
                    let mut items = history.last().unwrap().clone();
                    let at = items.iter().position(|(u, _)| *u == uid);
                    match (at, what) {
                        (Some(at), 0) => { items.remove(at); }
                        (Some(at), _) => items[at].1 += 1,
                        (None, _) => { items.push((uid, 1 + history.len() as i64)); items.sort_unstable(); }
                    }
                    history.push(items);
                }
                Step::CatchUp(replica) => replicas[replica] = history.len() - 1,
                Step::Ask(replica) | Step::AskLegacy(replica) => {
                    let knows = !(legacy && matches!(step, Step::AskLegacy(_)));
                    let question = holding.question(now);
                    if holding.asks_afresh() {
                        return Ok(()); // ten minutes of lagging replicas alone: another test's subject
                    }
                    let before = held(&holding);
                    let at = replicas[replica];
                    let answer = answer(&question, at as u64 + 1, &history[at], knows);
                    let listed = matches!(answer, Answer::Desired { .. });
                    let verdict = holding.received(now, 0, answer);
                    let after = held(&holding);
                    if !matches!(verdict, Verdict::Changed(_)) {
                        prop_assert_eq!(&before, &after);
                    }
                    for (uid, _) in &before {
                        let gone = !after.iter().any(|(u, _)| u == uid);
                        prop_assert!(!gone || listed && !history[at].iter().any(|(u, _)| u == uid));
                    }
                    if !legacy && verdict != Verdict::Old {
                        prop_assert!(at >= seen);
                        seen = at;
                        // All that is listed, except what has to wait for its minute.
                        prop_assert!(after.iter().all(|i| history[at].contains(i)));
                        for i in &history[at] {
                            let waits = holding.returning.iter().any(|(r, _)| r.uid == format!("u{}", i.0));
                            prop_assert!(waits != after.contains(i));
                        }
                    }
                }
                Step::Fail => {}
                Step::Restart => {
                    let before = (held(&holding), holding.revision());
                    holding = restarted(&holding);
                    prop_assert_eq!((held(&holding), holding.revision()), before);
                }
                Step::Wait(s) => now += seconds(s),
            }
            for (uid, generation) in held(&holding) {
                let last = generations.insert(uid, generation);
                // Only without revisions a process may be dropped and come back older.
                prop_assert!(legacy || last.is_none_or(|last| generation >= last));
            }
        }
        // Everybody catches up and the agent keeps asking: it ends with the cluster's last word.
        let last = history.len() - 1;
        for _ in 0..5 {
            now += RETURN_AFTER;
            let question = holding.question(now);
            holding.received(now, 0, answer(&question, last as u64 + 1, &history[last], true));
        }
        prop_assert_eq!(&held(&holding), &history[last]);
    }

    /// Whatever is answered, in whatever order: nothing is dropped but by a 200, a process that was dropped never
    /// returns within a minute, revisions and generations fall only when the cluster's word was asked for.
    #[test]
    fn no_answer_does_harm(
        answers in prop::collection::vec((0_u8..4, prop::option::of(0_u64..20), prop::collection::btree_map(0_u32..4, 1_i64..5, 0..4), 0_u64..200), 1..100),
    ) {
        let mut now = Instant::now();
        let mut holding = Holding::new(DEVICE);
        let mut dropped_at: HashMap<u32, Instant> = HashMap::new();
        for (kind, revision, items, pause) in answers {
            now += seconds(pause);
            let items: Items = items.into_iter().collect();
            let question = holding.question(now);
            let afresh = holding.asks_afresh();
            prop_assert!(!afresh || question == Question::default());
            let (before, revision_before) = (held(&holding), holding.revision());
            match kind {
                0 => holding.received(now, 0, Answer::Behind),
                1 => holding.received(now, 0, Answer::NotModified { revision }),
                _ => holding.received(now, 0, Answer::Desired { etag: Some(etag(&items)), revision, state: state(&items) }),
            };
            let after = held(&holding);
            prop_assert!(afresh || holding.revision() >= revision_before);
            for (uid, generation) in &before {
                match after.iter().find(|(u, _)| u == uid) {
                    Some((_, new)) => prop_assert!(afresh || new >= generation),
                    None => {
                        prop_assert!(kind > 1 && !items.iter().any(|(u, _)| u == uid));
                        dropped_at.insert(*uid, now);
                    }
                }
            }
            for (uid, _) in &after {
                if !before.iter().any(|(u, _)| u == uid) {
                    prop_assert!(dropped_at.get(uid).is_none_or(|at| now - *at >= RETURN_AFTER));
                }
            }
        }
    }
}
