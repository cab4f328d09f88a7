//! Pure: tests of the statuses.

use super::*;
use proptest::option::of;
use proptest::prelude::*;

/// Times that Kubernetes can store.
const TIMES: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;

fn read(status: &Value) -> Record {
    Record::read(status, |text| text.into())
}

fn text() -> impl Strategy<Value = Text> {
    ".{0,12}".prop_map(Into::into)
}

fn hash() -> impl Strategy<Value = SpecHash> {
    any::<u8>().prop_map(|byte| SpecHash([byte; 32]))
}

fn condition() -> impl Strategy<Value = Condition> {
    let kind = prop::sample::select(&ConditionType::ALL[..]);
    (kind, any::<bool>(), TIMES, text(), text()).prop_map(|(kind, status, since, reason, message)| Condition {
        kind,
        status,
        since,
        reason,
        message,
    })
}

fn details() -> impl Strategy<Value = Details> {
    let counters = (of(any::<i64>()), of(TIMES), of(any::<i64>()), of(any::<i64>()), of(TIMES)).prop_map(
        |(pid, start_time, restart_count, artifact_download_attempts, last_artifact_attempt_time)| Counters {
            pid,
            start_time,
            restart_count,
            artifact_download_attempts,
            last_artifact_attempt_time,
        },
    );
    (of(any::<i64>()), of(text()), of(text()), of(text()), counters).prop_map(
        |(exit_code, last_termination_reason, artifact_last_error, artifact_digest, counters)| Details {
            exit_code,
            last_termination_reason,
            artifact_last_error,
            artifact_digest,
            counters,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let phase = prop::sample::select(vec![Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed]);
    let last_report = (text(), any::<u64>()).prop_map(|(boot_id, sequence)| LastReport { boot_id, sequence });
    let outbox = (TIMES, prop::collection::vec(prop::sample::select(&Reason::ALL[..]), 0..4))
        .prop_map(|(time, reasons)| Box::new(Outbox { time, reasons }));
    let conditions = prop::collection::vec(condition(), 0..5);
    let first = (phase, of(TIMES), conditions, of(hash()), of(hash()), of(any::<i64>()));
    (first, any::<u64>(), any::<bool>(), of(last_report), of(outbox), of(text()), of(details())).prop_map(
        |(
            (phase, phase_since, conditions, observed, running, observed_generation),
            transitions,
            daemon_set,
            last_report,
            outbox,
            artifact_version,
            details,
        )| Record {
            phase,
            phase_since,
            conditions,
            observed,
            running,
            observed_generation,
            transitions,
            daemon_set,
            last_report,
            outbox,
            artifact_version,
            details: details.filter(|details| *details != Details::default()).map(Box::new),
        },
    )
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec![
            "True",
            "Healthy",
            "Running",
            "2025-12-12T23:55:00.5+02:00",
            "0000-00-00T00:00:00Z",
            "sha256:00"
        ])
        .prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "phase",
        "conditions",
        "type",
        "status",
        "reason",
        "lastTransitionTime",
        "observedSpecHash",
        "observedGeneration",
        "transitions",
        "lastReport",
        "bootId",
        "sequence",
        "lastEvents",
        "time",
        "reasons",
        "pid",
        "exitCode",
        "startTime",
        "agentVersion",
        "capabilities",
        "backends",
        "other",
    ]);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// RFC 7396, §2.
fn apply_merge_patch(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            apply_merge_patch(&mut target[key], value);
        }
    }
}

/// Merge patches cannot say `null`, and the apiserver stores none.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().filter(|item| !item.is_null()).map(without_nulls).collect(),
        other => other,
    }
}

#[test]
fn a_new_object_has_an_empty_record() {
    assert_eq!(read(&Value::Null), Record::default());
    assert_eq!(read(&json!({"phase": "Pending"})), Record::default());
    assert_eq!(Record::default().write(), json!({"phase": "Pending"}));
}

#[test]
fn the_names_are_those_of_the_schema() {
    let everything = json!({
        "phase": "Failed", "lastTransitionTime": "2025-12-12T23:55:00Z", "runtimeSemantics": "DaemonSet",
        "observedSpecHash": SpecHash([1; 32]).to_string(), "runningSpecHash": SpecHash([2; 32]).to_string(), "observedGeneration": 3,
        "transitions": 4, "lastReport": {"bootId": "b", "sequence": 5}, "lastEvents": {"time": "2025-12-12T23:55:00Z", "reasons": ["Unhealthy"]},
        "artifactVersion": "1.2.3", "artifactDigest": "sha256:x", "artifactDownloadAttempts": 6, "lastArtifactAttemptTime": "2025-12-12T23:54:00Z",
        "artifactLastError": "no", "pid": 7, "startTime": "2025-12-12T23:53:00Z", "exitCode": 8, "restartCount": 9, "lastTerminationReason": "Error",
        "conditions": [{"type": "Healthy", "status": "False", "lastTransitionTime": "2025-12-12T23:55:00Z", "reason": "Unhealthy", "message": "m"}],
    });
    assert_eq!(read(&everything).write(), everything);
    // The typed view of the same status knows every one of them.
    let typed: crate::api::DeviceProcessStatus = serde_json::from_value(everything.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), everything);
}

#[test]
fn what_cannot_be_read_is_absent() {
    let record = read(&json!({
        "phase": 7, "observedSpecHash": "sha256:xyz", "transitions": -1, "lastReport": {"bootId": "b"}, "pid": "7", "startTime": "noon",
        "conditions": [3, {"type": "Mood", "status": "True"}, {"type": "Healthy"}, {"type": "ProcessStarted", "status": "Unknown"}],
    }));
    let unknown = Condition {
        kind: ConditionType::ProcessStarted,
        status: false,
        since: 0,
        reason: "".into(),
        message: "".into(),
    };
    assert_eq!(record, Record { conditions: vec![unknown], ..Record::default() });
}

#[test]
fn a_switch_has_one_condition() {
    let capabilities = Some(r#"{"backends":["systemd"],"artifactTypes":[]}"#.into());
    let record =
        SwitchRecord { agent_version: Some("1.0".into()), capabilities, connected: Some((false, 1_765_583_700)) };
    let status = json!({"agentVersion": "1.0", "capabilities": {"backends": ["systemd"], "artifactTypes": []}, "conditions": [{
        "type": "AgentConnected", "status": "False", "reason": "HeartbeatMissed", "message": "no report within the staleness window",
        "lastTransitionTime": "2025-12-12T23:55:00Z"}]});
    assert_eq!(record.write(), status);
    assert_eq!(SwitchRecord::read(&status, |text| text.into()), record);
    assert_eq!(
        SwitchRecord::read(&json!({"conditions": 5, "capabilities": "all"}), |text| text.into()),
        SwitchRecord::default()
    );
}

#[test]
fn a_patch_names_what_changed_alone() {
    let from = json!({"phase": "Pending", "pid": 1, "lastReport": {"bootId": "b", "sequence": 1, "x": 1}, "conditions": [1, 2]});
    let to = json!({"phase": "Pending", "lastReport": {"bootId": "b", "sequence": 2}, "conditions": [1]});
    assert_eq!(
        merge_patch(&from, &to),
        Some(json!({"pid": null, "lastReport": {"sequence": 2, "x": null}, "conditions": [1]}))
    );
    assert_eq!(merge_patch(&from, &from), None);
    assert_eq!(merge_patch(&Value::Null, &json!({"a": 1})), Some(json!({"a": 1})));
}

proptest! {
    #[test]
    fn a_record_reads_back_as_it_was_written(record in record()) {
        prop_assert_eq!(read(&record.write()), record);
    }

    #[test]
    fn no_status_is_too_odd_to_be_read(status in json_value()) {
        let record = read(&status);
        prop_assert_eq!(read(&record.write()), record);
        let switch = SwitchRecord::read(&status, |text| text.into());
        prop_assert_eq!(SwitchRecord::read(&switch.write(), |text| text.into()), switch);
    }

    #[test]
    fn a_patch_leads_from_one_record_to_the_other(from in record(), to in record()) {
        let (mut status, to) = (from.write(), to.write());
        match merge_patch(&status, &to) {
            Some(patch) => apply_merge_patch(&mut status, &patch),
            None => prop_assert_eq!(&status, &to),
        }
        prop_assert_eq!(status, to);
    }

    #[test]
    fn a_patch_leads_from_any_object_to_any_other(from in json_value(), to in json_value()) {
        let (from, to) = (without_nulls(json!({"a": from, "b": 1})), without_nulls(json!({"a": to})));
        let mut status = from.clone();
        apply_merge_patch(&mut status, &merge_patch(&from, &to).unwrap());
        prop_assert_eq!(status, to);
    }
}
