//! Pure: the projection against a naive model.

use super::*;

fn maybe<T: Clone + std::fmt::Debug + Into<Value> + 'static>(values: Vec<T>) -> impl Strategy<Value = Value> {
    prop_oneof![1 => Just(Value::Null), 2 => prop::sample::select(values).prop_map(Into::into)]
}

fn says() -> impl Strategy<Value = Value> {
    let hashes = || maybe(vec![hash_of(1), hash_of(2)]);
    let process = (
        maybe(vec![true, false]),
        maybe(vec![true, false]),
        maybe(vec![0, 1]),
        maybe(vec!["e1", "e2"]),
        (maybe(vec!["w1", "w2"]), maybe(vec!["BackendUnavailable", "DeviceNotInNamespace", "no reason"])),
    );
    let facts = (maybe(vec![1, 2]), maybe(vec![0, 1]), maybe(vec!["Error"]), maybe(vec!["2025-12-12T23:54:58.5Z"]));
    let artifact = (
        maybe(vec![true, false]),
        maybe(vec![true, false]),
        maybe(vec!["404"]),
        maybe(vec!["sha256:d"]),
        maybe(vec![1, 2]),
        maybe(vec!["NotFound"]),
    );
    (hashes(), hashes(), process, facts, artifact).prop_map(|(observed, running, process, facts, artifact)| {
        let mut says = json!({
            "runningSpecHash": running, "processStarted": process.0, "healthy": process.1, "exitCode": process.2, "errorMessage": process.3, "warningMessage": process.4.0,
            "warningReason": process.4.1,
            "pid": facts.0, "restartCount": facts.1, "lastTerminationReason": facts.2, "startTime": facts.3,
            "artifactDownloaded": artifact.0, "artifactVerified": artifact.1, "artifactLastError": artifact.2, "artifactDigest": artifact.3,
            "artifactDownloadAttempts": artifact.4, "artifactDownloadReason": artifact.5,
        });
        if !observed.is_null() {
            says["observedSpecHash"] = observed;
        }
        says
    })
}

#[derive(Debug, Clone)]
enum Step {
    Report { says: Value, boot: u8, sequence: u64 },
    Silence(AgentState),
    Counts(bool),
    Spec { policy: &'static str, generation: u64, url: &'static str },
}

fn step() -> impl Strategy<Value = Step> {
    let policies = prop::sample::select(vec!["Always", "OnFailure", "Never"]);
    let urls = prop::sample::select(vec!["r/a:1", "r/a:2", "/opt/a"]);
    prop_oneof![
        8 => (says(), 0..2_u8, 0..8_u64).prop_map(|(says, boot, sequence)| Step::Report { says, boot, sequence }),
        2 => prop::sample::select(vec![AgentState::Alive, AgentState::Stale, AgentState::Unjudged]).prop_map(Step::Silence),
        1 => any::<bool>().prop_map(Step::Counts),
        1 => (policies, 1..5_u64, urls).prop_map(|(policy, generation, url)| Step::Spec { policy, generation, url }),
    ]
}

fn statuses(record: &Record) -> BTreeMap<&'static str, bool> {
    record.conditions.iter().map(|c| (c.kind.as_str(), c.status)).collect()
}

/// The conditions that must hold after an observation that is taken in.
fn expected_conditions(
    before: &Record,
    says: Option<&Value>,
    agent: AgentState,
    counts: bool,
) -> BTreeMap<&'static str, bool> {
    let mut all = statuses(before);
    let connected = all.get("AgentConnected").copied();
    if agent == AgentState::Alive && counts {
        all.insert("AgentConnected", true);
    } else if agent == AgentState::Stale && connected.is_some() {
        all.insert("AgentConnected", false);
    }
    let placed_wrong =
        before.condition(ConditionType::SpecWarning).is_some_and(|c| &*c.reason == "DeviceNotInNamespace");
    if !counts {
        all.insert("SpecWarning", true);
    } else if placed_wrong {
        all.remove("SpecWarning");
    }
    let Some(says) = says else { return all };
    all.insert("SpecObserved", true);
    let has_reason = matches!(says["warningReason"].as_str(), Some(reason) if !reason.contains(' '));
    if says["warningMessage"].is_null() && !has_reason {
        all.remove("SpecWarning")
    } else {
        all.insert("SpecWarning", true)
    };
    for (member, kind) in [
        ("artifactDownloaded", "ArtifactDownloaded"),
        ("artifactVerified", "ArtifactVerified"),
        ("processStarted", "ProcessStarted"),
        ("healthy", "Healthy"),
    ] {
        all.extend(says[member].as_bool().map(|status| (kind, status)));
    }
    if says["processStarted"].is_null() && !says["errorMessage"].is_null() {
        all.insert("ProcessStarted", false);
    }
    if says["healthy"].is_null() && !(says["processStarted"].is_null() && says["errorMessage"].is_null()) {
        all.remove("Healthy");
    }
    all
}

fn expected_phase(before: Phase, says: &Value, policy: RestartPolicy) -> Phase {
    let ended = says["exitCode"].as_i64().filter(|_| says["processStarted"] != true);
    let over = match (policy, ended) {
        (RestartPolicy::Never, Some(_)) | (RestartPolicy::OnFailure, Some(0)) => true,
        (_, _) => false,
    };
    let lacks_backend = says["warningReason"] == "BackendUnavailable";
    match (&says["processStarted"], &says["errorMessage"]) {
        (Value::Null, Value::Null) => before,
        _ if over && ended == Some(0) => Phase::Succeeded,
        (_, error) if over || !error.is_null() && !lacks_backend => Phase::Failed,
        (Value::Bool(true), _) => Phase::Running,
        _ => Phase::Pending,
    }
}

/// Which events a transition must have, by nothing but its two ends.
fn expected_reasons(before: &Record, after: &Record) -> BTreeSet<&'static str> {
    let became = |kind, status| after.is(kind) == Some(status) && before.is(kind) != Some(status);
    let all = [
        ("AgentConnected", became(ConditionType::AgentConnected, true)),
        (
            "AgentDisconnected",
            before.is(ConditionType::AgentConnected) == Some(true) && became(ConditionType::AgentConnected, false),
        ),
        ("SpecObserved", after.observed != before.observed),
        ("ProcessStarted", became(ConditionType::ProcessStarted, true)),
        ("ProcessFailed", failed(after) && !failed(before)),
        ("Unhealthy", became(ConditionType::Healthy, false)),
        ("SpecWarning", became(ConditionType::SpecWarning, true)),
    ];
    all.into_iter().filter(|(_, happened)| *happened).map(|(reason, _)| reason).collect()
}

/// Whether it failed to start, or its last run failed and it has not been started since.
fn failed(record: &Record) -> bool {
    let status = record.write();
    let started = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "ProcessStarted");
    status["phase"] == "Failed"
        || started.is_some_and(|c| c["reason"] == "Exited") && status["exitCode"].as_i64().is_some_and(|code| code != 0)
}

/// How soon a change has to be written, from the status alone.
fn expected_weight(before: &Record, after: &Record) -> Weight {
    let (before, after) = (must_be_written(before), must_be_written(after));
    let differs = |keys: &[&str]| keys.iter().any(|key| before[key] != after[key]);
    let connected = |status: &Value| {
        let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == "AgentConnected")?;
        Some(found["status"].clone())
    };
    if differs(&["observedSpecHash", "runningSpecHash", "observedGeneration", "artifactVersion"]) {
        Weight::Spec
    } else if differs(&["artifactDigest"]) || connected(&before) != connected(&after) {
        Weight::Step
    } else if before != after {
        Weight::Turn
    } else {
        Weight::Counters
    }
}

/// A status without what may wait and what only rides along.
fn must_be_written(record: &Record) -> Value {
    let mut status = record.write();
    for key in [
        "pid",
        "startTime",
        "restartCount",
        "artifactDownloadAttempts",
        "lastArtifactAttemptTime",
        "lastReport",
        "lastEvents",
        "transitions",
        "runtimeSemantics",
    ] {
        status.as_object_mut().unwrap().remove(key);
    }
    status
}

proptest! {
    #[test]
    fn a_status_says_what_it_should_whatever_comes(steps in prop::collection::vec(step(), 1..25)) {
        let mut process = fresh("Always");
        let mut counts = true;
        for (step, now) in steps.iter().zip(NOW..) {
            let mut agent = AgentState::Alive;
            let mut report = None;
            match step {
                Step::Report { says, boot, sequence } => report = Some((says, reported(&process, says, Some((["b0", "b1"][usize::from(*boot)], *sequence))))),
                Step::Silence(state) => agent = *state,
                Step::Counts(now) => counts = *now,
                Step::Spec { policy, generation, url } => process = self::process(policy, *generation, url, &process.status.write()),
            }
            let input = Input { agent, counts, reported: report.as_ref().map(|(_, reported)| reported) };
            let before = process.status.clone();
            let older = report.as_ref().is_some_and(|(_, reported)| before.last_report.as_ref().zip(reported.order.as_ref())
                .is_some_and(|(last, order)| last.boot_id == order.boot_id && last.sequence > order.sequence));
            let taken = report.as_ref().filter(|_| counts && !older);
            let change = project(&process, input, now);
            let after = change.as_ref().map_or(&before, |change| &change.record);

            prop_assert_eq!(statuses(after), expected_conditions(&before, taken.map(|(says, _)| *says), agent, counts));
            prop_assert_eq!(after.conditions.len(), statuses(after).len(), "one of each type");
            prop_assert_eq!(after.phase, taken.map_or(before.phase, |(says, _)| expected_phase(before.phase, says, process.spec.restart_policy)));
            for c in &after.conditions {
                let known = before.condition(c.kind).filter(|known| known.status == c.status);
                prop_assert_eq!(c.since, known.map_or(now, |known| known.since), "{:?}: the time moves with the status", c.kind);
                prop_assert!(!c.reason.is_empty() && !c.message.is_empty());
            }
            prop_assert_eq!(after.phase_since, if after.phase == before.phase { before.phase_since } else { Some(now) });
            match taken {
                None => prop_assert_eq!((after.observed, after.running, after.observed_generation, &after.details), (before.observed, before.running, before.observed_generation, &before.details)),
                Some((says, Reported { observed, .. })) => {
                    prop_assert_eq!(after.observed, Some(observed.spec));
                    let current = observed.spec == process.spec.hash;
                    prop_assert_eq!(after.observed_generation, if current { Some(process.generation) } else { before.observed_generation });
                    let version = &process.spec.artifact_version;
                    let version = Some(version.clone()).filter(|version| !version.is_empty());
                    let older_runs = after.running.is_some_and(|running| running != process.spec.hash);
                    prop_assert_eq!(&after.artifact_version, if current && !older_runs { &version } else { &before.artifact_version });
                    prop_assert_eq!(after.running, observed.running.or(if says["processStarted"] == true { Some(observed.spec) } else { before.running }));
                }
            }
            let Some(change) = &change else {
                prop_assert_eq!(project(&process, input, now + 1), None);
                continue;
            };
            let reasons: BTreeSet<_> = change.reasons.iter().map(|reason| reason.as_str()).collect();
            prop_assert_eq!(reasons.len(), change.reasons.len(), "each once");
            prop_assert_eq!(reasons, expected_reasons(&before, after));
            prop_assert_eq!(after.transitions, before.transitions + u64::from(!change.reasons.is_empty()));
            let outbox = Some(Box::new(Outbox { time: now, reasons: change.reasons.clone() })).filter(|_| !change.reasons.is_empty());
            prop_assert_eq!(&after.outbox, &outbox.or(before.outbox.clone()));
            prop_assert_eq!(change.is_urgent(), must_be_written(&before) != must_be_written(after));
            prop_assert_eq!(change.weight, expected_weight(&before, after));
            prop_assert_eq!(&after.last_report, &taken.map_or(before.last_report.clone(), |(_, reported)| reported.order.clone()));
            prop_assert!(merge_patch(&before.write(), &after.write()).is_some(), "there is something to send");
            write(&mut process, change);
            prop_assert_eq!(&process.status, after, "it reads back as it was written");
            prop_assert_eq!(project(&process, input, now + 1), None, "and then there is nothing left to do");
        }
    }
}
