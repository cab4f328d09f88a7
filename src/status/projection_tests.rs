//! Pure: tests of the projection.

use super::*;
use crate::desired::lean::Pool;
use crate::desired::record::merge_patch;
use crate::wire::canonical::SpecHash;
use crate::wire::report::Observation;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const NOW: i64 = 1_765_583_700;

/// A DeviceProcess as it is in the index.
fn process(policy: &str, generation: u64, url: &str, status: &Value) -> Process {
    let raw = json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": "1", "generation": generation},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": "d"}, "artifact": {"type": "oci", "url": url}, "restartPolicy": policy},
        "status": status,
    });
    Pool::default().process(&serde_json::from_value(raw).unwrap())
}

fn fresh(policy: &str) -> Process {
    process(policy, 1, "r/agent:1.2.3", &Value::Null)
}

/// A report of what is said besides the three required fields; it has seen the current spec unless it says so.
fn reported(process: &Process, says: &Value, order: Option<(&str, u64)>) -> Reported {
    let mut observation = json!({"namespace": "n", "name": "p", "observedSpecHash": process.spec.hash.to_string()});
    for (key, value) in says.as_object().into_iter().flatten() {
        observation[key] = value.clone();
    }
    let text = observation.to_string();
    let observed = Observed::read(&serde_json::from_str::<Observation>(&text).unwrap()).unwrap();
    Reported { observed, order: order.map(|(boot_id, sequence)| LastReport { boot_id: boot_id.into(), sequence }) }
}

fn alive(reported: &Reported) -> Input<'_> {
    Input { agent: AgentState::Alive, counts: true, reported: Some(reported) }
}

fn of(agent: AgentState) -> Input<'static> {
    Input { agent, counts: true, reported: None }
}

/// Writes a change, as the apiserver would show it.
fn write(process: &mut Process, change: &Change) {
    process.status = Record::read(&change.record.write(), |text| text.into());
}

/// Takes in one report, and returns what it brought about.
fn report(process: &mut Process, says: Value, now: i64) -> Option<Change> {
    let reported = reported(process, &says, None);
    let change = project(process, alive(&reported), now)?;
    write(process, &change);
    assert_eq!(project(process, alive(&reported), now + 1), None, "a repeated report writes nothing");
    Some(change)
}

fn condition(record: &Record, kind: ConditionType) -> Option<(bool, String, String, i64)> {
    record.condition(kind).map(|c| (c.status, c.reason.to_string(), c.message.to_string(), c.since))
}

fn hash_of(byte: u8) -> String {
    SpecHash([byte; 32]).to_string()
}

#[test]
fn the_first_report_says_three_things() {
    let mut process = fresh("Always");
    let hash = process.spec.hash;
    let change = report(&mut process, json!({}), NOW).unwrap();
    assert!(change.is_urgent());
    assert_eq!(change.reasons, [Reason::AgentConnected, Reason::SpecObserved]);
    let record = &process.status;
    assert_eq!(
        condition(record, ConditionType::AgentConnected),
        Some((true, "AgentConnected".into(), "agent is reporting".into(), NOW))
    );
    assert_eq!(
        condition(record, ConditionType::SpecObserved),
        Some((true, "SpecObserved".into(), format!("observed {hash}"), NOW))
    );
    assert_eq!(record.conditions.len(), 2);
    assert_eq!((record.observed, record.running, record.observed_generation), (Some(hash), None, Some(1)));
    assert_eq!(
        (record.phase, record.transitions, record.artifact_version.as_deref()),
        (Phase::Pending, 1, Some("1.2.3"))
    );
    assert!(record.daemon_set);
    // The patch holds what the contract promises, and nothing that was there already.
    let patch = merge_patch(&Record::default().write(), &change.record.write()).unwrap();
    assert_eq!(
        (&patch["runtimeSemantics"], &patch["transitions"], patch.get("phase")),
        (&json!("DaemonSet"), &json!(1), None)
    );
}

#[test]
fn losing_the_agent_changes_one_condition() {
    let mut process = fresh("Always");
    assert_eq!(project(&process, of(AgentState::Stale), NOW), None, "never seen: nothing to lose");
    assert_eq!(project(&process, of(AgentState::Unjudged), NOW), None);
    report(&mut process, json!({"processStarted": true, "healthy": true, "pid": 5}), NOW).unwrap();
    let before = process.status.clone();
    assert_eq!(project(&process, of(AgentState::Unjudged), NOW + 60), None);
    let lost = project(&process, of(AgentState::Stale), NOW + 60).unwrap();
    assert_eq!((lost.reasons.as_slice(), lost.is_urgent()), (&[Reason::AgentDisconnected][..], true));
    let mut expected = before.clone();
    expected.conditions[0] = Condition {
        kind: ConditionType::AgentConnected,
        status: false,
        since: NOW + 60,
        reason: "HeartbeatMissed".into(),
        message: "no report within the staleness window".into(),
    };
    expected.transitions += 1;
    expected.outbox = Some(Box::new(Outbox { time: NOW + 60, reasons: vec![Reason::AgentDisconnected] }));
    assert_eq!(lost.record, expected);
    write(&mut process, &lost);
    for agent in [AgentState::Stale, AgentState::Unjudged] {
        assert_eq!(project(&process, of(agent), NOW + 90), None);
    }
    let back = project(&process, of(AgentState::Alive), NOW + 99).unwrap();
    assert_eq!((back.reasons, back.record.phase), (vec![Reason::AgentConnected], Phase::Running));
}

#[test]
fn the_phase_is_the_first_that_fits() {
    use Phase::{Failed, Pending, Running, Succeeded};
    let (started, ended) =
        (json!({"processStarted": true}), |code: i64| json!({"processStarted": false, "exitCode": code}));
    let with = |mut says: Value, key: &str, value: Value| {
        says[key] = value;
        says
    };
    for (policy, says, phase) in [
        ("Always", json!({}), Pending),
        ("Always", json!({"processStarted": false}), Pending),
        ("Always", started.clone(), Running),
        ("Always", ended(0), Pending),
        ("Always", ended(1), Pending),
        ("OnFailure", ended(0), Succeeded),
        ("OnFailure", ended(1), Pending),
        ("Never", ended(0), Succeeded),
        ("Never", ended(1), Failed),
        ("Never", ended(-9), Failed),
        ("Never", json!({"processStarted": false}), Pending),
        // It runs; the exit code is the last run's.
        ("Never", with(started.clone(), "exitCode", json!(1)), Running),
        ("OnFailure", with(started.clone(), "exitCode", json!(0)), Running),
        // An error comes before Running and after Succeeded.
        ("Always", with(started.clone(), "errorMessage", json!("bad")), Failed),
        ("Always", with(ended(0), "errorMessage", json!("bad")), Failed),
        ("Never", with(ended(0), "errorMessage", json!("bad")), Succeeded),
        ("Always", json!({"errorMessage": "no such file"}), Failed),
        // A backend that the device lacks is a warning.
        ("Always", json!({"processStarted": false, "warningMessage": "no systemd here"}), Pending),
    ] {
        let mut process = fresh(policy);
        let change = report(&mut process, says.clone(), NOW).unwrap();
        assert_eq!(process.status.phase, phase, "{policy} {says}");
        assert_eq!(process.status.phase_since, (phase != Pending).then_some(NOW), "{policy} {says}");
        // From absent, too; and whoever is started again has failed all the same.
        let crashed = says["processStarted"] == false && says["exitCode"].as_i64().is_some_and(|code| code != 0);
        let failed = change.reasons.contains(&Reason::ProcessFailed);
        assert_eq!(failed, phase == Failed || crashed, "{policy} {says}");
    }
}

#[test]
fn an_observation_that_leaves_the_process_out_leaves_it_as_it_was() {
    let mut process = fresh("Always");
    report(
        &mut process,
        json!({"processStarted": true, "healthy": true, "pid": 5, "restartCount": 2, "artifactDownloaded": true, "artifactDigest": "sha256:x"}),
        NOW,
    );
    assert_eq!(report(&mut process, json!({}), NOW + 1), None);
    // What is said is taken in, even without its flag.
    let change =
        report(&mut process, json!({"healthy": false, "pid": 6, "artifactDigest": "sha256:y"}), NOW + 2).unwrap();
    assert_eq!((change.reasons.as_slice(), change.is_urgent()), (&[Reason::Unhealthy][..], true));
    let details = process.status.details.as_deref().unwrap();
    assert_eq!(
        (details.counters.pid, details.counters.restart_count, details.artifact_digest.as_deref()),
        (Some(6), Some(2), Some("sha256:y"))
    );
    assert_eq!((process.status.phase, process.status.is(ConditionType::ProcessStarted)), (Phase::Running, Some(true)));
}

#[test]
fn unhealthy_is_an_event_from_absent_too() {
    let mut process = fresh("Always");
    let change = report(&mut process, json!({"processStarted": true, "healthy": false}), NOW).unwrap();
    assert_eq!(
        change.reasons,
        [Reason::AgentConnected, Reason::SpecObserved, Reason::ProcessStarted, Reason::Unhealthy]
    );
    assert_eq!(process.status.transitions, 1, "one patch, one transition");
    let change =
        report(&mut process, json!({"processStarted": true, "healthy": false, "errorMessage": "probe: 503"}), NOW + 1)
            .unwrap();
    assert_eq!(change.reasons, [Reason::ProcessFailed], "a new message is no event");
    assert_eq!(
        condition(&process.status, ConditionType::Healthy),
        Some((false, "Unhealthy".into(), "probe: 503".into(), NOW))
    );
    let change =
        report(&mut process, json!({"processStarted": true, "healthy": false, "errorMessage": "probe: 504"}), NOW + 2)
            .unwrap();
    assert_eq!((change.reasons.len(), change.is_urgent(), process.status.transitions), (0, true, 2));
    assert_eq!(report(&mut process, json!({"processStarted": true, "healthy": true}), NOW + 3).unwrap().reasons, []);
    assert_eq!(
        condition(&process.status, ConditionType::Healthy).unwrap(),
        (true, "Healthy".into(), "the process is healthy".into(), NOW + 3)
    );
}

#[test]
fn the_verdict_on_one_run_is_not_the_next_ones() {
    let mut process = fresh("Always");
    report(&mut process, json!({"processStarted": true, "healthy": true}), NOW);
    report(&mut process, json!({"processStarted": true, "pid": 9, "observedSpecHash": hash_of(7)}), NOW + 1);
    assert_eq!(process.status.is(ConditionType::Healthy), None);
}

#[test]
fn why_the_process_is_not_there() {
    let started = |says: Value| {
        let mut process = fresh("Always");
        report(&mut process, says, NOW);
        condition(&process.status, ConditionType::ProcessStarted)
            .map(|(status, reason, message, _)| (status, reason, message))
    };
    for (says, status, reason, message) in [
        (json!({"processStarted": true}), true, "Started", "the process is running"),
        (
            json!({"processStarted": true, "lastTerminationReason": "OOMKilled"}),
            true,
            "Started",
            "the process is running",
        ),
        (json!({"processStarted": true, "errorMessage": "odd"}), true, "Started", "odd"),
        (json!({"processStarted": false}), false, "NotStarted", "the process is not running"),
        (json!({"processStarted": false, "errorMessage": "no such file"}), false, "NotStarted", "no such file"),
        (json!({"errorMessage": "no such file"}), false, "NotStarted", "no such file"),
        (json!({"processStarted": false, "exitCode": 3}), false, "Exited", "the process has ended"),
        (json!({"processStarted": false, "exitCode": 3, "lastTerminationReason": "Error"}), false, "Exited", "Error"),
    ] {
        assert_eq!(started(says.clone()), Some((status, reason.into(), message.into())), "{says}");
    }
    assert_eq!(started(json!({})), None);
}

#[test]
fn every_new_hash_is_an_event_and_the_generation_says_whether_it_is_current() {
    let mut process = fresh("Always");
    report(&mut process, json!({}), NOW);
    // The spec changes; the device has not seen it yet.
    let mut process = process_with(&process, 2, "r/agent:2.0.0");
    let old = process.status.observed.unwrap().to_string();
    assert_eq!(report(&mut process, json!({"observedSpecHash": old}), NOW + 1), None);
    assert_eq!(
        (process.status.observed_generation, process.status.artifact_version.as_deref()),
        (Some(1), Some("1.2.3"))
    );
    let change = report(&mut process, json!({}), NOW + 2).unwrap();
    assert_eq!(change.reasons, [Reason::SpecObserved]);
    assert_eq!(
        (process.status.observed_generation, process.status.artifact_version.as_deref()),
        (Some(2), Some("2.0.0"))
    );
    let (status, _, message, since) = condition(&process.status, ConditionType::SpecObserved).unwrap();
    assert_eq!(
        (status, message, since),
        (true, format!("observed {}", process.spec.hash), NOW),
        "it was True before, so the time stands"
    );
    // Another generation with the same hash is seen as soon as it is there.
    let mut process = process_with(&process, 3, "r/agent:2.0.0");
    let change = report(&mut process, json!({}), NOW + 3).unwrap();
    assert_eq!((change.reasons.len(), process.status.observed_generation), (0, Some(3)));
    // A url without a tag has no version.
    let mut process = process_with(&process, 4, "/opt/agent");
    report(&mut process, json!({}), NOW + 4);
    assert_eq!(process.status.artifact_version, None);
}

fn process_with(before: &Process, generation: u64, url: &str) -> Process {
    process("Always", generation, url, &before.status.write())
}

#[test]
fn which_spec_the_process_was_started_from() {
    let mut process = fresh("Never");
    let observed = process.spec.hash.to_string();
    let mut running = |says: Value| {
        report(&mut process, says, NOW);
        process.status.running.map(|hash| hash.to_string())
    };
    assert_eq!(running(json!({"processStarted": false})), None, "seen is not started");
    assert_eq!(running(json!({"processStarted": true, "runningSpecHash": hash_of(7)})), Some(hash_of(7)));
    assert_eq!(running(json!({"processStarted": true})), Some(observed.clone()));
    assert_eq!(
        running(json!({"processStarted": false, "exitCode": 0})),
        Some(observed),
        "what has succeeded was started from it"
    );
    assert_eq!(
        running(json!({"processStarted": false, "exitCode": 0, "runningSpecHash": hash_of(8)})),
        Some(hash_of(8))
    );
}

#[test]
fn warnings_come_and_go() {
    let mut process = fresh("Always");
    let change = report(&mut process, json!({"warningMessage": "disk nearly full"}), NOW).unwrap();
    assert!(change.reasons.contains(&Reason::SpecWarning));
    assert_eq!(
        condition(&process.status, ConditionType::SpecWarning),
        Some((true, "AgentWarning".into(), "disk nearly full".into(), NOW))
    );
    assert_eq!(report(&mut process, json!({"warningMessage": "disk full"}), NOW + 1).unwrap().reasons, []);
    // A switch of that name appears in another namespace.
    let away = Input { counts: false, ..of(AgentState::Alive) };
    let change = project(&process, away, NOW + 2).unwrap();
    write(&mut process, &change);
    assert_eq!(
        (change.reasons.len(), condition(&process.status, ConditionType::SpecWarning).unwrap().1),
        (0, "DeviceNotInNamespace".into())
    );
    assert_eq!(project(&process, away, NOW + 3), None);
    // What it says is not taken in, whatever came first.
    let said = reported(&process, &json!({"processStarted": true}), Some(("b", 1)));
    assert_eq!(project(&process, Input { counts: false, ..alive(&said) }, NOW + 3), None);
    // Gone again, while the agent still warns: True all the time.
    let warned = reported(&process, &json!({"warningMessage": "disk full"}), None);
    let change = project(&process, alive(&warned), NOW + 4).unwrap();
    assert_eq!(
        (change.reasons.len(), condition(&change.record, ConditionType::SpecWarning)),
        (0, Some((true, "AgentWarning".into(), "disk full".into(), NOW)))
    );
    // Or without.
    let change = project(&process, of(AgentState::Alive), NOW + 5).unwrap();
    assert_eq!((change.reasons.len(), condition(&change.record, ConditionType::SpecWarning)), (0, None));
    write(&mut process, &change);
    report(&mut process, json!({"warningMessage": "again"}), NOW + 6);
    assert_eq!(report(&mut process, json!({}), NOW + 7).unwrap().reasons, []);
    assert_eq!(process.status.is(ConditionType::SpecWarning), None);
}

#[test]
fn a_process_that_does_not_count_has_no_agent() {
    let mut process = fresh("Always");
    let change = project(&process, Input { counts: false, ..of(AgentState::Alive) }, NOW).unwrap();
    assert_eq!((change.reasons.as_slice(), change.is_urgent()), (&[Reason::SpecWarning][..], true));
    write(&mut process, &change);
    assert_eq!(process.status.conditions.len(), 1);
    // One that had an agent can still lose it.
    report(&mut process, json!({}), NOW);
    assert!(
        project(&process, Input { counts: false, ..of(AgentState::Stale) }, NOW)
            .unwrap()
            .reasons
            .contains(&Reason::AgentDisconnected)
    );
}

#[test]
fn how_the_artifact_came() {
    use ConditionType::{ArtifactDownloaded, ArtifactVerified};
    for (says, kind, status, reason, message) in [
        (json!({"artifactDownloaded": true}), ArtifactDownloaded, true, "Succeeded", "the artifact is on the device"),
        (json!({"artifactDownloaded": false}), ArtifactDownloaded, false, "Pending", "not yet"),
        (json!({"artifactDownloaded": false, "artifactLastError": "404"}), ArtifactDownloaded, false, "Failed", "404"),
        (
            json!({"artifactDownloaded": false, "artifactLastError": "404", "artifactDownloadReason": "NotFound", "artifactDownloadMessage": "no such tag"}),
            ArtifactDownloaded,
            false,
            "NotFound",
            "no such tag",
        ),
        (json!({"artifactVerified": true}), ArtifactVerified, true, "Succeeded", "the checksum is right"),
        (json!({"artifactVerified": false}), ArtifactVerified, false, "Pending", "not yet"),
        (
            json!({"artifactVerified": false, "artifactVerifyReason": "ChecksumMismatch", "artifactVerifyMessage": "it is other"}),
            ArtifactVerified,
            false,
            "ChecksumMismatch",
            "it is other",
        ),
    ] {
        let mut process = fresh("Always");
        report(&mut process, says.clone(), NOW);
        assert_eq!(condition(&process.status, kind), Some((status, reason.into(), message.into(), NOW)), "{says}");
    }
    let mut process = fresh("Always");
    let attempts = |n: u64| json!({"artifactDownloaded": false, "artifactDownloadAttempts": n, "lastArtifactAttemptTime": format!("2025-12-12T23:5{n}:00Z"), "artifactLastError": "404"});
    report(&mut process, attempts(1), NOW);
    assert!(!report(&mut process, attempts(2), NOW).unwrap().is_urgent());
    let done = report(
        &mut process,
        json!({"artifactDownloaded": true, "artifactVerified": true, "artifactDigest": "sha256:d"}),
        NOW,
    )
    .unwrap();
    assert!(done.is_urgent());
    let details = done.record.details.unwrap();
    assert_eq!(
        (details.artifact_digest.as_deref(), details.artifact_last_error, details.counters.artifact_download_attempts),
        (Some("sha256:d"), None, None)
    );
}

#[test]
fn what_may_wait_and_what_may_not() {
    let base = json!({"processStarted": true, "healthy": true, "pid": 1, "startTime": "2025-12-12T23:54:58Z", "restartCount": 0, "artifactDownloaded": true,
        "artifactDownloadAttempts": 1, "lastArtifactAttemptTime": "2025-12-12T23:54:00Z"});
    for (key, value, urgent) in [
        ("pid", json!(2), false),
        ("startTime", json!("2025-12-12T23:59:58Z"), false),
        ("restartCount", json!(1), false),
        ("artifactDownloadAttempts", json!(2), false),
        ("lastArtifactAttemptTime", json!("2025-12-12T23:59:00Z"), false),
        ("runningSpecHash", json!(hash_of(9)), true),
        ("observedSpecHash", json!(hash_of(9)), true),
        ("artifactDigest", json!("sha256:d"), true),
        ("artifactLastError", json!("404"), true),
        ("exitCode", json!(1), true),
        ("lastTerminationReason", json!("OOMKilled"), true),
        ("healthy", json!(false), true),
        ("errorMessage", json!("e"), true),
        ("warningMessage", json!("w"), true),
    ] {
        let mut process = fresh("Always");
        report(&mut process, base.clone(), NOW);
        let mut says = base.clone();
        says[key] = value;
        let change = report(&mut process, says, NOW + 1).unwrap();
        assert_eq!(change.is_urgent(), urgent, "{key}");
        assert!(urgent || change.reasons.is_empty());
    }
}

#[test]
fn the_last_report_rides_along() {
    let mut process = fresh("Always");
    let said = |process: &Process, pid: u64, order| {
        reported(process, &json!({"processStarted": true, "pid": pid}), Some(order))
    };
    let first = said(&process, 1, ("boot", 5));
    let change = project(&process, alive(&first), NOW).unwrap();
    assert_eq!(change.record.last_report, first.order);
    write(&mut process, &change);
    assert_eq!(project(&process, alive(&said(&process, 1, ("boot", 6))), NOW), None, "a later one that says the same");
    assert_eq!(project(&process, alive(&said(&process, 2, ("boot", 4))), NOW), None, "an older one");
    let repeat = said(&process, 2, ("boot", 5));
    assert!(project(&process, alive(&repeat), NOW).is_some());
    let rebooted = said(&process, 2, ("other", 1));
    let change = project(&process, alive(&rebooted), NOW).unwrap();
    assert_eq!((&change.record.last_report, change.is_urgent()), (&rebooted.order, false));
    let endless = project(&process, alive(&said(&process, 3, ("third", u64::MAX))), NOW).unwrap();
    assert_eq!(endless.record.last_report, first.order, "Kubernetes stores no such number");
    // The sign of life counts all the same.
    let lost = project(&process, of(AgentState::Stale), NOW).unwrap();
    write(&mut process, &lost);
    let back = project(&process, alive(&said(&process, 2, ("boot", 4))), NOW).unwrap();
    assert_eq!((back.reasons, back.record.last_report), (vec![Reason::AgentConnected], first.order));
}

#[test]
fn what_somebody_took_out_of_the_status_is_put_right() {
    let mut process = fresh("Always");
    report(&mut process, json!({"processStarted": true, "healthy": true}), NOW);
    let whole = process.status.clone();
    process.status.conditions.clear();
    let change = report(&mut process, json!({"processStarted": true, "healthy": true}), NOW).unwrap();
    assert_eq!(change.record.conditions, whole.conditions);
}

#[test]
fn a_switch_is_written_on_transitions() {
    let (alive, stale, unjudged) = (AgentState::Alive, AgentState::Stale, AgentState::Unjudged);
    let version: Text = "1.0".into();
    let nothing = Introduction::default();
    let said = |version: &Text| Introduction { version: Some(version.clone()), capabilities: None };
    let never = SwitchRecord::default();
    assert_eq!(project_switch(&never, stale, &nothing, NOW), None);
    assert_eq!(project_switch(&never, unjudged, &nothing, NOW), None);
    let connected = project_switch(&never, alive, &said(&version), NOW).unwrap();
    assert_eq!(
        connected,
        SwitchRecord { agent_version: Some(version.clone()), capabilities: None, connected: Some((true, NOW)) }
    );
    assert_eq!(project_switch(&connected, alive, &said(&version), NOW + 1), None);
    assert_eq!(
        project_switch(&connected, alive, &nothing, NOW + 1),
        None,
        "a report without a version takes none away"
    );
    let newer: Text = "1.1".into();
    assert_eq!(project_switch(&connected, alive, &said(&newer), NOW + 1).unwrap().connected, Some((true, NOW)));
    let able = |text: &str| Introduction { version: None, capabilities: Some(text.into()) };
    let knows = project_switch(&connected, alive, &able("{}"), NOW + 1).unwrap();
    assert_eq!((knows.capabilities.as_deref(), &knows.agent_version), (Some("{}"), &connected.agent_version));
    assert_eq!(project_switch(&knows, alive, &able("{}"), NOW + 2), None);
    assert_eq!(project_switch(&knows, alive, &nothing, NOW + 2), None, "a report without any takes none away");
    let lost = project_switch(&connected, stale, &nothing, NOW + 2).unwrap();
    assert_eq!(
        lost,
        SwitchRecord { agent_version: Some(version), capabilities: None, connected: Some((false, NOW + 2)) }
    );
    assert_eq!(project_switch(&lost, stale, &nothing, NOW + 3), None);
    assert_eq!(project_switch(&lost, alive, &nothing, NOW + 3).unwrap().connected, Some((true, NOW + 3)));
}

#[path = "projection_model.rs"]
mod model;
#[path = "projection_situations.rs"]
mod situations;
