//! Pure: jobs that are merged, put off and looked at again.

use super::*;
use crate::desired::lean::Pool;
use crate::status::observed::Observed;
use crate::status::projection::Weight;
use crate::wire::report::Observation;
use proptest::prelude::*;
use serde_json::json;

const HASH: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn process(revision: u64, transitions: u64) -> Process {
    let raw = json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": revision.to_string(), "generation": 1},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": "d"}},
        "status": {"transitions": transitions},
    });
    Pool::default().process(&serde_json::from_value(raw).unwrap())
}

fn reported(boot_id: &str, sequence: u64) -> Option<Arc<Reported>> {
    let says = json!({"namespace": "n", "name": "p", "observedSpecHash": HASH}).to_string();
    let observation: Observation = serde_json::from_str(&says).unwrap();
    let order = Some(LastReport { boot_id: boot_id.into(), sequence });
    Some(Arc::new(Reported { observed: Observed::read(&observation).unwrap(), order }))
}

fn job(reported: Option<Arc<Reported>>, waiting: &[u32]) -> Job<u32> {
    Job { waiting: waiting.to_vec(), ..Job::wanted(reported, Introduction::default(), false) }
}

fn sequence(job: &Job<u32>) -> u64 {
    job.order().unwrap().sequence
}

#[test]
fn the_newer_job_has_the_last_word_unless_it_was_overtaken() {
    let mut newer = job(reported("b", 2), &[2]);
    newer.absorb(job(reported("b", 1), &[1]));
    assert_eq!((sequence(&newer), &*newer.waiting), (2, &[2, 1][..]));
    newer.absorb(job(reported("b", 3), &[]));
    assert_eq!(sequence(&newer), 3);
    newer.absorb(job(reported("other", 9), &[]));
    assert_eq!(sequence(&newer), 3);
    let mut silent = job(None, &[]);
    silent.absorb(Job { unsure: true, ..newer });
    assert_eq!((sequence(&silent), silent.unsure), (3, true), "what was not made sure of stays so");
}

#[test]
fn somebody_who_waits_makes_a_job_hurry() {
    let introduction = |version: &str, capabilities: Option<&str>| Introduction {
        version: Some(version.into()),
        capabilities: capabilities.map(Into::into),
    };
    let mut lazy = Job::<u32>::wanted(None, introduction("1", None), true);
    assert_eq!(lazy.lane(), Lane::Counters);
    lazy.absorb(Job::wanted(None, introduction("0", Some("{}")), true));
    assert_eq!((lazy.lane(), &lazy.introduction), (Lane::Counters, &introduction("1", Some("{}"))));
    lazy.absorb(job(None, &[1]));
    assert_eq!(lazy.lane(), Lane::Transitions);
}

#[test]
fn who_waits_for_an_overtaken_report_gets_no_acknowledgement() {
    let mut overtaken = job(reported("b", 1), &[7, 8]);
    assert_eq!(overtaken.supersede(), [7, 8]);
    assert!(overtaken.reported.is_none() && overtaken.waiting.is_empty());
}

#[test]
fn a_patch_whose_answer_was_lost_owes_events_only_when_it_was_written() {
    for (now, owed) in [(process(4, 7), false), (process(5, 7), false), (process(5, 8), true)] {
        let mut doubtful = job(None, &[]);
        assert!(!doubtful.settle_doubt(&now));
        doubtful.doubt(&process(4, 7), 0);
        assert_eq!(doubtful.settle_doubt(&now), owed);
        assert_eq!(doubtful.look_again(0).is_some(), now.revision == 4, "the doubt ends with the version");
    }
}

#[test]
fn while_a_patch_may_still_come_the_object_is_looked_at_again() {
    let mut doubtful = job(reported("b", 1), &[]);
    assert_eq!(doubtful.look_again(0), None);
    doubtful.doubt(&process(4, 7), 1_000);
    // A second lost answer does not make it last longer.
    doubtful.doubt(&process(5, 7), 90_000);
    assert_eq!(doubtful.look_again(120_999), Some(130_999));
    assert!(doubtful.lazy && doubtful.reported.is_none());
    assert_eq!(doubtful.look_again(121_000), None);
}

#[test]
fn a_report_that_changes_nothing_is_written_only_against_a_patch_that_may_still_come() {
    let mut process = process(4, 7);
    let change = |job: &Job<u32>, process: &Process| job.change(process, AgentState::Alive, true, 0);
    process.status = change(&job(reported("b", 1), &[]), &process).unwrap().record;
    let mut again = job(reported("b", 2), &[]);
    assert_eq!(change(&again, &process), None);
    again.doubt(&process, 0);
    let fence = change(&again, &process).unwrap();
    assert_eq!(
        (fence.record.last_report.as_ref(), fence.reasons.len(), fence.weight),
        (again.order(), 0, Weight::Step)
    );
    process.status = fence.record;
    assert_eq!(change(&again, &process), None);
}

#[test]
fn what_may_wait_goes_once_a_minute() {
    let process = process(1, 0);
    let change =
        |weight| Change { weight, ..job(reported("b", 1), &[]).change(&process, AgentState::Alive, true, 0).unwrap() };
    let (mut waits, mut budgets) = (job(None, &[]), Budgets::default());
    assert_eq!(waits.defer(&change(Weight::Counters), &process, &budgets, 2_000), None);
    budgets.written(&process.key, &change(Weight::Spec), 1_000);
    for weight in [Weight::Turn, Weight::Step, Weight::Spec] {
        assert_eq!(waits.defer(&change(weight), &process, &budgets, 2_000), None);
    }
    assert_eq!(waits.defer(&change(Weight::Counters), &process, &budgets, 61_000), None);
    assert!(!waits.lazy);
    assert_eq!(waits.defer(&change(Weight::Counters), &process, &budgets, 60_999), Some(61_000));
    assert!(waits.lazy);
}

#[test]
fn failures_wait_twice_as_long_each_time() {
    let mut failing = job(None, &[]);
    let longest = [(); 9].map(|()| failing.back_off_ms(|_, high| high));
    assert_eq!(longest, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]);
    let mut failing = job(None, &[]);
    assert_eq!([(); 2].map(|()| failing.back_off_ms(|low, _| low)), [100, 200]);
}

/// Conflicts must not use up the 8 s in which a report is answered, nor count as failures.
#[test]
fn conflicts_cost_a_moment_that_grows() {
    let mut contended = job(None, &[]);
    let pauses = [(); 7].map(|()| contended.conflict_pause_ms(|_, high| high));
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
    assert_eq!((contended.conflict_pause_ms(|low, _| low), contended.attempts()), (200, 0));
    let mut fresh = job(None, &[]);
    fresh.absorb(contended);
    assert_eq!(fresh.conflict_pause_ms(|_, high| high), 1_000);
}

proptest! {
    /// In whatever order jobs are merged, nobody who waits is forgotten, and none is counted less often than it failed.
    #[test]
    fn merging_loses_nobody(failures in prop::collection::vec(0_u32..4, 1..8)) {
        let mut merged = job(None, &[]);
        for (waits, failures) in (0_u32..).zip(&failures) {
            let mut older = job(None, &[waits]);
            for _ in 0..*failures {
                let _ = older.back_off_ms(|low, _| low);
            }
            merged.absorb(older);
        }
        prop_assert_eq!(merged.waiting.len(), failures.len());
        prop_assert_eq!(Some(merged.attempts()), failures.iter().max().copied());
    }
}
