//! Pure: what reports come to, and who sees to them.

use super::*;
use crate::desired::index::Settings;
use crate::desired::object::Opened;
use crate::wire::report::Observation;
use serde_json::{Value, json};

const HASH: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn raw(value: &Value) -> Opened {
    serde_json::from_value(value.clone()).unwrap()
}

fn connected() -> Value {
    json!([{"type": "AgentConnected", "status": "True", "reason": "AgentConnected", "message": "agent is reporting", "lastTransitionTime": "2025-12-12T23:55:00Z"}])
}

/// A switch with a process, another one of another device, all connected.
fn index() -> Index {
    let mut index = Index::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
    for (name, device, revision) in [("p", "d", "4"), ("q", "e", "5")] {
        let metadata =
            json!({"namespace": "n", "name": name, "uid": name, "generation": 1, "resourceVersion": revision});
        let spec = json!({"deviceRef": {"kind": "NetworkSwitch", "name": device}});
        index.apply(
            Kind::Process,
            raw(&json!({"metadata": metadata, "spec": spec, "status": {"conditions": connected()}})),
        );
    }
    let metadata = json!({"namespace": "n", "name": "d", "uid": "d", "resourceVersion": "6"});
    let status = json!({"agentVersion": "1", "conditions": connected()});
    index.apply(Kind::Switch, raw(&json!({"metadata": metadata, "spec": {}, "status": status})));
    index
}

fn observed(name: &str, more: &Value) -> Arc<Reported> {
    let mut says = json!({"namespace": "n", "name": name, "observedSpecHash": HASH});
    says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let text = says.to_string();
    let observation: Observation = serde_json::from_str(&text).unwrap();
    Arc::new(Reported { observed: Observed::read(&observation).unwrap(), order: None })
}

fn assess(index: &Index, version: Option<&str>, reported: &[Arc<Reported>]) -> Assessment {
    let introduction = Introduction { version: version.map(Into::into), capabilities: None };
    Assessment::new(index, "d", &introduction, reported, |_, _| false, |_| false, 100)
}

/// Takes in what was written.
fn write(index: &mut Index, assessment: &Assessment) {
    for (kind, key) in assessment.jobs.keys() {
        let reported = assessment.jobs[&(*kind, key.clone())].reported.as_deref();
        let Some(process) = index.process(&key.namespace, &key.name).cloned() else { continue };
        let input = Input { agent: AgentState::Alive, counts: true, reported };
        let Some(change) = project(&process, input, 100) else { continue };
        let metadata = json!({"namespace": "n", "name": &*key.name, "uid": &*process.uid, "generation": 1, "resourceVersion": (process.revision + 10).to_string()});
        let spec = json!({"deviceRef": {"kind": "NetworkSwitch", "name": &*process.device}});
        index.apply(Kind::Process, raw(&json!({"metadata": metadata, "spec": spec, "status": change.record.write()})));
    }
}

const NOT_SURE: [Footing; 3] =
    [Footing::Unknown, Footing::Elsewhere { same_words: true }, Footing::Elsewhere { same_words: false }];

#[test]
fn a_bare_sign_of_life_is_answered_anywhere_unless_it_brings_the_device_back() {
    let mut index = index();
    for footing in NOT_SURE {
        assert_eq!(assess(&index, None, &[]).course(footing, true, Place::Other), Course::Answer);
    }
    // The same agent version is something that could have changed meanwhile.
    assert_eq!(assess(&index, Some("1"), &[]).course(Footing::Unknown, false, Place::Other), Course::Forward);
    assert_eq!(assess(&index, Some("1"), &[]).course(Footing::Same, false, Place::Other), Course::Answer);
    assert_eq!(assess(&index, Some("2"), &[]).course(Footing::Same, false, Place::Other), Course::Forward);
    let metadata = json!({"namespace": "n", "name": "d", "uid": "d", "resourceVersion": "99"});
    index.apply(Kind::Switch, raw(&json!({"metadata": metadata, "spec": {}})));
    assert_eq!(assess(&index, None, &[]).course(Footing::Same, true, Place::Other), Course::Forward);
}

#[test]
fn what_agrees_is_believed_by_its_footing() {
    let mut index = index();
    let report = [observed("p", &json!({"processStarted": true}))];
    let first = assess(&index, None, &report);
    assert_eq!(first.jobs.len(), 1);
    assert_eq!(first.course(Footing::Same, false, Place::Other), Course::Forward);
    assert_eq!(first.course(Footing::Elsewhere { same_words: false }, false, Place::Owner), Course::Apply);
    write(&mut index, &first);
    let again = assess(&index, None, &report);
    assert!(again.is_done() && again.agreed.len() == 1);
    for footing in [Footing::Same, Footing::Here] {
        for place in [Place::Alone, Place::Owner, Place::Fallback, Place::Other] {
            assert_eq!(again.course(footing, false, place), Course::Answer);
        }
    }
    for footing in NOT_SURE {
        assert_eq!(again.course(footing, false, Place::Other), Course::Forward);
        assert_eq!(again.course(footing, false, Place::Alone), Course::Answer);
    }
    let elsewhere = |same_words| Footing::Elsewhere { same_words };
    assert_eq!(again.course(elsewhere(true), false, Place::Owner), Course::Verify);
    assert_eq!(again.course(elsewhere(false), false, Place::Owner), Course::Verify);
    assert_eq!(again.course(elsewhere(true), false, Place::InTouch), Course::Answer);
    assert_eq!(again.course(elsewhere(false), false, Place::InTouch), Course::Verify);
    assert_eq!(again.course(Footing::Unknown, false, Place::InTouch), Course::Answer);
    assert_eq!(again.course(Footing::Unknown, false, Place::Owner), Course::Verify);
    assert_eq!(again.course(Footing::Unknown, false, Place::Fallback), Course::Verify);
}

#[test]
fn counters_alone_go_to_the_owner_and_nobody_waits_for_them() {
    let mut index = index();
    let first = assess(&index, None, &[observed("p", &json!({"processStarted": true, "pid": 7}))]);
    write(&mut index, &first);
    let moved = assess(&index, None, &[observed("p", &json!({"processStarted": true, "pid": 8}))]);
    assert_eq!(moved.jobs.values().map(|wanted| wanted.urgent).collect::<Vec<_>>(), [false]);
    // The owner that had them may be gone by now, and its queue with it: so the status has to be seen to say them.
    assert_eq!(moved.course(Footing::Same, false, Place::Other), Course::Forward);
    assert_eq!(moved.course(Footing::Same, false, Place::Owner), Course::Apply);
}

#[test]
fn what_is_not_known_here_goes_to_the_owner_and_is_read_there() {
    let index = index();
    let report = [observed("x", &json!({})), observed("q", &json!({}))];
    let assessment = assess(&index, None, &report);
    assert_eq!(assessment.unknown.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["x"]);
    assert_eq!(assessment.rejected.iter().map(|rejection| &*rejection.name).collect::<Vec<_>>(), ["q"]);
    assert_eq!(assessment.course(Footing::Same, false, Place::Other), Course::Forward);
    assert_eq!(assessment.course(Footing::Same, false, Place::Owner), Course::Apply);
    let gone =
        Assessment::new(&index, "d", &Introduction::default(), &report, |_, _| false, |key| &*key.name == "x", 0);
    assert!(gone.unknown.is_empty() && !gone.is_all_not_yours(2) && gone.is_all_not_yours(1));
}

#[test]
fn what_waits_to_be_written_is_never_agreed() {
    let mut index = index();
    let report = [observed("p", &json!({"processStarted": true}))];
    let first = assess(&index, None, &report);
    write(&mut index, &first);
    let pending =
        Assessment::new(&index, "d", &Introduction::default(), &report, |_, key| &*key.name == "p", |_| false, 100);
    assert_eq!((pending.jobs.len(), pending.agreed.len()), (1, 0));
    assert!(pending.jobs.values().all(|wanted| wanted.urgent));
}

#[test]
fn an_owner_is_in_touch_when_it_hears_everybody_and_somebody_is_there() {
    let (words, other) = (Footing::Elsewhere { same_words: true }, Footing::Elsewhere { same_words: false });
    let heard = |heard| Hearing { peers: 2, heard, oldest_ms: 1_000 };
    let place = |footing, peers, hearing, apiserver| Place::Owner.in_touch(footing, peers, || hearing, || apiserver);
    for footing in [words, Footing::Unknown] {
        assert_eq!(place(footing, 2, heard(2), false), Place::InTouch);
        assert_eq!(place(footing, 2, heard(1), true), Place::Owner);
    }
    // Nobody shows: the apiserver's word is enough where nothing is known of any report.
    let nobody = Hearing::default();
    assert_eq!(place(Footing::Unknown, 0, nobody, true), Place::InTouch);
    assert_eq!(place(Footing::Unknown, 0, nobody, false), Place::Owner);
    assert_eq!(place(words, 0, nobody, true), Place::Owner);
    for footing in [other, Footing::Same, Footing::Here] {
        assert_eq!(place(footing, 2, heard(2), true), Place::Owner);
    }
    // Where it makes no difference nobody is asked.
    for elsewhere in [Place::Alone, Place::Fallback, Place::Other] {
        assert_eq!(elsewhere.in_touch(words, 2, || panic!("asked"), || panic!("asked")), elsewhere);
    }
}

#[test]
fn the_latest_status_remembers_the_order_of_reports() {
    let mut index = index();
    assert_eq!(remembered(&index, "d"), None);
    assert_eq!(remembered(&index, "nobody"), None);
    for (name, revision, boot_id, sequence) in [("p", "20", "new", 3), ("r", "19", "old", 9)] {
        let metadata =
            json!({"namespace": "n", "name": name, "uid": name, "generation": 1, "resourceVersion": revision});
        let spec = json!({"deviceRef": {"kind": "NetworkSwitch", "name": "d"}});
        let status = json!({"lastReport": {"bootId": boot_id, "sequence": sequence}});
        index.apply(Kind::Process, raw(&json!({"metadata": metadata, "spec": spec, "status": status})));
    }
    assert_eq!(remembered(&index, "d"), Some(Order::seeded(fingerprint("new"), 3)));
}

#[test]
fn an_old_report_is_a_bare_sign_of_life_wherever_it_goes() {
    let mut incoming = Incoming {
        introduction: Introduction { version: Some("2".into()), capabilities: None },
        boot_id: Some("b".into()),
        sequence: Some(4),
        fingerprint: Some(5),
        body: Bytes::from_static(b"old"),
        ..Incoming::default()
    };
    assert!(!incoming.is_bare());
    incoming.outdate();
    assert!(incoming.is_bare() && incoming.connect && incoming.sequence.is_none() && incoming.fingerprint.is_none());
    assert_eq!(&*incoming.body, b"{}");
}

#[test]
fn outcomes_travel_as_json() {
    for (outcome, text) in [
        (Outcome::Done { rejected: vec![] }, r#"{"done":{"rejected":[]}}"#),
        (Outcome::AllNotYours, r#""allNotYours""#),
        (Outcome::Later { retry_after_seconds: 7 }, r#"{"later":{"retryAfterSeconds":7}}"#),
    ] {
        assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
        assert_eq!(serde_json::from_str::<Outcome>(text).unwrap(), outcome);
    }
}
