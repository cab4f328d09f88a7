//! Pure: budgets by hand, and processes that do what they like for hours.

use super::*;
use crate::desired::lean::{Pool, Process};
use crate::desired::record::{Reason, Record};
use crate::presence::staleness::AgentState;
use crate::status::job::Job;
use crate::status::observed::Observed;
use crate::status::projection::{Input, Introduction, Reported};
use crate::wire::report::Observation;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn process() -> Process {
    let raw = json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": "1", "generation": 1},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": "d"}, "restartPolicy": "Always"},
    });
    Pool::default().process(&serde_json::from_value(raw).unwrap())
}

fn reported(process: &Process, says: &Value) -> Arc<Reported> {
    let mut observation = json!({"namespace": "n", "name": "p", "observedSpecHash": process.spec.hash.to_string()});
    observation.as_object_mut().unwrap().extend(says.as_object().unwrap().clone());
    let text = observation.to_string();
    let observation: Observation = serde_json::from_str(&text).unwrap();
    Arc::new(Reported { observed: Observed::read(&observation).unwrap(), order: None })
}

/// The writer of one object: what it holds back, and what it has written.
struct Writer {
    process: Process,
    budgets: Budgets,
    held: Option<(Arc<Reported>, u64)>,
    /// What each write changed, and when.
    writes: Vec<(u64, Change)>,
}

impl Writer {
    fn new() -> Self {
        Self { process: process(), budgets: Budgets::default(), held: None, writes: Vec::new() }
    }

    /// As production's writer does it; an acknowledgement is given at once in any case.
    fn look(&mut self, reported: Arc<Reported>, agent: AgentState, now_ms: u64) {
        self.held = None;
        let mut job: Job<()> = Job::wanted(Some(reported.clone()), Introduction::default(), false);
        let Some(change) = job.change(&self.process, agent, true, 0) else { return };
        if let Some(due) = job.defer(&change, &self.process, &self.budgets, now_ms) {
            assert!(due > now_ms && job.lazy);
            self.held = Some((reported, due));
            return;
        }
        self.budgets.written(&self.process.key, &change, now_ms);
        self.process.status = Record::read(&change.record.write(), |text| text.into());
        self.writes.push((now_ms, change));
    }

    /// What was held back until now, or some time before, is written when it is due.
    fn until(&mut self, now_ms: u64) {
        while let Some((reported, due)) = self.held.take_if(|(_, due)| *due <= now_ms) {
            self.look(reported, AgentState::Alive, due);
        }
    }

    fn report(&mut self, says: &Value, now_ms: u64) {
        self.until(now_ms);
        let reported = reported(&self.process, says);
        self.look(reported, AgentState::Alive, now_ms);
    }

    /// Writes since the last of another spec, and when that was.
    fn paid(&self) -> (u64, u64) {
        let spec = self.writes.iter().rposition(|(_, change)| change.weight == Weight::Spec).unwrap();
        let paid = self.writes[spec..].iter().filter(|(_, change)| change.weight <= Weight::Turn);
        (paid.count() as u64, self.writes[spec].0)
    }

    fn is_ready(&self) -> bool {
        let change = Change { record: self.process.status.clone(), reasons: Vec::new(), weight: Weight::Turn };
        change.is_ready()
    }
}

fn up(restarts: u64) -> Value {
    json!({"processStarted": true, "pid": 100 + restarts, "restartCount": restarts})
}

fn well(restarts: u64) -> Value {
    json!({"processStarted": true, "healthy": true, "pid": 100 + restarts, "restartCount": restarts})
}

fn down(restarts: u64) -> Value {
    json!({"processStarted": false, "exitCode": 1, "lastTerminationReason": "Error", "restartCount": restarts})
}

#[test]
fn an_hour_in_a_crash_loop_costs_an_hour_of_writes() {
    let mut writer = Writer::new();
    let hour = 3_600_000;
    for (number, now) in (0..hour).step_by(2_000).enumerate() {
        let restarts = number as u64 / 2;
        writer.report(&if number % 2 == 0 { up(restarts) } else { down(restarts) }, now);
    }
    let (count, _) = writer.paid();
    assert!((60..=BURST + 60).contains(&count), "{count} writes");
    let failures = writer.writes.iter().filter(|(_, change)| change.reasons.contains(&Reason::ProcessFailed)).count();
    let starts = writer.writes.iter().filter(|(_, change)| change.reasons.contains(&Reason::ProcessStarted)).count();
    assert!(failures + starts <= writer.writes.len() && failures > 0 && starts > 0, "{failures} {starts}");
    // It is over: the counts and the state are right two minutes later at the latest.
    writer.report(&well(4_711), hour);
    writer.until(hour + 2 * PERIOD_MS);
    let counters = &writer.process.status.details.as_ref().unwrap().counters;
    assert!(writer.is_ready() && counters.restart_count == Some(4_711) && writer.held.is_none());
}

#[test]
fn a_usual_day_is_shown_at_once() {
    let mut writer = Writer::new();
    let steps = [
        json!({"processStarted": false, "artifactDownloaded": false}),
        json!({"processStarted": false, "artifactDownloaded": true, "artifactVerified": true, "artifactDigest": "sha256:d"}),
        up(0),
        well(0),
        // Killed twice, with a look in between.
        down(0),
        up(1),
        well(1),
        up(2),
    ];
    for (says, now) in steps.iter().zip((0..).step_by(500)) {
        writer.report(says, now);
        assert!(writer.held.is_none(), "{says}");
    }
    assert_eq!(writer.writes.len(), steps.len());
}

#[test]
fn another_spec_is_followed_at_once_however_long_the_loop_was() {
    let mut writer = Writer::new();
    for number in 0..200 {
        writer.report(&if number % 2 == 0 { up(number) } else { down(number) }, number * 1_000);
    }
    assert!(writer.held.is_some());
    let now = 200_000;
    let hash = format!("sha256:{}", "ab".repeat(32));
    let fix = |more: Value| {
        let mut says = more;
        says["observedSpecHash"] = json!(hash);
        says
    };
    for (step, says) in (0..).zip([fix(down(200)), fix(up(200)), fix(well(200))]) {
        writer.report(&says, now + step);
        assert!(writer.held.is_none(), "{says}");
    }
    assert!(writer.is_ready());
}

#[test]
fn a_lost_connection_is_said_at_once_and_takes_along_what_waits() {
    let mut writer = Writer::new();
    for number in 0..20 {
        writer.report(&if number % 2 == 0 { up(number) } else { down(number) }, number * 1_000);
    }
    let (held, _) = writer.held.take().unwrap();
    let before = writer.writes.len();
    writer.look(held, AgentState::Stale, 20_000);
    assert_eq!(writer.writes.len(), before + 1);
    let status = &writer.process.status;
    assert_eq!(status.details.as_ref().unwrap().counters.restart_count, Some(19));
}

#[test]
fn a_patch_that_may_still_come_is_never_waited_out() {
    let mut writer = Writer::new();
    for number in 0..20 {
        writer.report(&if number % 2 == 0 { up(number) } else { down(number) }, number * 1_000);
    }
    let (held, _) = writer.held.take().unwrap();
    let mut job: Job<()> = Job::wanted(Some(held), Introduction::default(), false);
    let change = job.change(&writer.process, AgentState::Alive, true, 0).unwrap();
    assert!(job.defer(&change, &writer.process, &writer.budgets, 20_000).is_some());
    job.doubt(&writer.process, 20_000);
    assert_eq!(job.defer(&change, &writer.process, &writer.budgets, 20_000), None);
}

#[test]
fn whole_budgets_are_forgotten() {
    let mut budgets = Budgets::default();
    let change = Change { record: Record::default(), reasons: Vec::new(), weight: Weight::Turn };
    for number in 0..3 * SWEEP as u64 {
        let key = Key { namespace: "n".into(), name: number.to_string().as_str().into() };
        budgets.written(&key, &change, number * 1_000);
    }
    assert!(budgets.spent.len() <= SWEEP + 1, "{}", budgets.spent.len());
}

/// What a process can be, in no order.
fn says() -> impl Strategy<Value = Value> {
    (0_u64..4, 0_u8..8).prop_map(|(restarts, what)| match what {
        0 | 1 => up(restarts),
        2 | 3 => well(restarts),
        4 => down(restarts),
        5 => json!({"processStarted": true, "healthy": false, "restartCount": restarts}),
        6 => json!({"errorMessage": format!("error {restarts}"), "restartCount": restarts}),
        _ => json!({"processStarted": true, "healthy": true, "warningMessage": format!("warning {restarts}")}),
    })
}

proptest! {
    /// Whatever a process does and however fast: a burst and one write a minute; it is never called ready longer than
    /// it is; and two minutes after it has come to rest its status says what it is.
    #[test]
    fn writes_are_bounded_and_nobody_is_ready_who_is_not(steps in prop::collection::vec((says(), 0_u64..40_000), 1..200)) {
        let mut writer = Writer::new();
        let mut now = 0;
        for (says, wait) in &steps {
            now += wait;
            writer.report(says, now);
            let ready = says["processStarted"] == true && says["healthy"] == true;
            prop_assert!(ready || !writer.is_ready(), "{says} at {now}");
            let (count, since) = writer.paid();
            prop_assert!(count <= BURST + (now - since) / PERIOD_MS, "{count} writes in {} ms", now - since);
        }
        let last = reported(&writer.process, &steps[steps.len() - 1].0);
        writer.until(now + 2 * PERIOD_MS);
        prop_assert!(writer.held.is_none());
        let input = Input { agent: AgentState::Alive, counts: true, reported: Some(&last) };
        prop_assert_eq!(crate::status::projection::project(&writer.process, input, 0), None);
        prop_assert!(writer.writes.iter().all(|(_, change)| change.reasons.len() <= 4));
    }
}
