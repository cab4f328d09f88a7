//! Pure: what an agent that executes gets into, told report by report, and what the status says of it.

use super::*;

/// What a report is to bring about: phase, conditions, events, whether the running spec is the current one, how soon it
/// is written.
struct Expect<'a> {
    phase: Phase,
    conditions: &'a [&'a str],
    events: &'a [Reason],
    runs: &'a str,
    weight: Option<Weight>,
}

/// Conditions besides AgentConnected and SpecObserved, as TYPE=STATUS/REASON, sorted.
fn conditions(record: &Record) -> Vec<String> {
    let others = record
        .conditions
        .iter()
        .filter(|condition| !matches!(condition.kind, ConditionType::AgentConnected | ConditionType::SpecObserved));
    let mut all: Vec<String> = others
        .map(|c| format!("{}={}/{}", c.kind.as_str(), if c.status { "True" } else { "False" }, c.reason))
        .collect();
    all.sort();
    all
}

/// A device's life: each report, and what it is to bring about.
struct Story {
    process: Process,
    now: i64,
    what: &'static str,
}

impl Story {
    fn new(what: &'static str, policy: &str) -> Self {
        Self { process: fresh(policy), now: NOW, what }
    }

    /// The spec as it is now, by name: `new`; any other was there before.
    fn runs(&self) -> &'static str {
        match self.process.status.running {
            None => "nothing",
            Some(hash) if hash == self.process.spec.hash => "new",
            Some(_) => "old",
        }
    }

    fn says(&mut self, says: Value, expect: &Expect) -> &mut Self {
        self.now += 1;
        let what = format!("{}: {says}", self.what);
        let change = super::report(&mut self.process, says, self.now);
        let status = &self.process.status;
        assert_eq!(status.phase, expect.phase, "{what}");
        assert_eq!(conditions(status), expect.conditions, "{what}");
        assert_eq!(change.as_ref().map_or(&[][..], |change| &change.reasons), expect.events, "{what}");
        assert_eq!(change.map(|change| change.weight), expect.weight, "{what}");
        assert_eq!(self.runs(), expect.runs, "{what}");
        assert!(status.conditions.iter().all(|condition| !condition.message.is_empty()), "{what}");
        assert_eq!(status.observed, Some(self.process.spec.hash), "{what}");
        self
    }

    /// The operator edits the object.
    fn edit(&mut self, policy: &str, generation: u64, url: &str) -> &mut Self {
        self.process = process(policy, generation, url, &self.process.status.write());
        self
    }

    fn old(&self) -> String {
        self.process.status.running.unwrap().to_string()
    }

    fn details(&self) -> &Details {
        self.process.status.details.as_deref().unwrap()
    }

    /// The device falls silent.
    fn goes_silent(&mut self) -> &mut Self {
        let change = project(&self.process, of(AgentState::Stale), self.now).unwrap();
        assert_eq!((change.reasons.as_slice(), change.weight), (&[Reason::AgentDisconnected][..], Weight::Step));
        let phase = self.process.status.phase;
        write(&mut self.process, &change);
        assert_eq!(self.process.status.phase, phase, "only AgentConnected changes");
        self
    }
}

const FETCHED: [&str; 2] = ["ArtifactDownloaded=True/Succeeded", "ArtifactVerified=True/Succeeded"];

fn running(more: &Value) -> Value {
    let mut says = json!({"processStarted": true, "pid": 7, "startTime": "2025-12-12T23:55:00Z", "restartCount": 0,
        "artifactDownloaded": true, "artifactVerified": true, "artifactDigest": "sha256:d"});
    says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    says
}

/// One that runs and is well.
fn well(what: &'static str, policy: &str) -> Story {
    let mut story = Story::new(what, policy);
    let all = [FETCHED[0], FETCHED[1], "Healthy=True/Healthy", "ProcessStarted=True/Started"];
    story.says(
        running(&json!({"healthy": true})),
        &Expect {
            phase: Phase::Running,
            conditions: &all,
            events: &[Reason::AgentConnected, Reason::SpecObserved, Reason::ProcessStarted],
            runs: "new",
            weight: Some(Weight::Spec),
        },
    );
    story
}

#[test]
fn the_first_artifact_is_fetched_and_the_process_comes_up() {
    let mut story = Story::new("first", "Always");
    let fetching = |attempts: u64, more: &Value| {
        let mut says = json!({"processStarted": false, "artifactDownloaded": false, "artifactVerified": false,
            "artifactDownloadAttempts": attempts, "lastArtifactAttemptTime": format!("2025-12-12T23:5{attempts}:00Z")});
        says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        says
    };
    let waits =
        ["ArtifactDownloaded=False/Pending", "ArtifactVerified=False/Pending", "ProcessStarted=False/NotStarted"];
    let pending =
        |conditions, events, weight| Expect { phase: Phase::Pending, conditions, events, runs: "nothing", weight };
    story
        .says(
            fetching(1, &json!({})),
            &pending(&waits, &[Reason::AgentConnected, Reason::SpecObserved], Some(Weight::Spec)),
        )
        .says(fetching(2, &json!({})), &pending(&waits, &[], Some(Weight::Counters)));
    let failed = json!({"artifactDownloadReason": "RegistryUnreachable", "artifactDownloadMessage": "no answer",
        "artifactLastError": "no answer"});
    let fails = [
        "ArtifactDownloaded=False/RegistryUnreachable",
        "ArtifactVerified=False/Failed",
        "ProcessStarted=False/NotStarted",
    ];
    story
        .says(fetching(3, &failed), &pending(&fails, &[], Some(Weight::Turn)))
        // Tries that fail for the same cause are counted, and no more.
        .says(fetching(4, &failed), &pending(&fails, &[], Some(Weight::Counters)))
        .says(fetching(5, &failed), &pending(&fails, &[], Some(Weight::Counters)));
    assert_eq!(story.details().artifact_last_error.as_deref(), Some("no answer"));
    let comes_up = Expect {
        phase: Phase::Running,
        conditions: &[FETCHED[0], FETCHED[1], "ProcessStarted=True/Started"],
        events: &[Reason::ProcessStarted],
        runs: "new",
        weight: Some(Weight::Spec),
    };
    story.says(running(&json!({"artifactDownloadAttempts": 6})), &comes_up);
    assert_eq!((story.details().artifact_last_error.as_deref(), story.details().exit_code), (None, None));
    let well = Expect {
        conditions: &[FETCHED[0], FETCHED[1], "Healthy=True/Healthy", "ProcessStarted=True/Started"],
        events: &[],
        weight: Some(Weight::Turn),
        ..comes_up
    };
    story.says(running(&json!({"artifactDownloadAttempts": 6, "healthy": true})), &well);
    story.says(running(&json!({"artifactDownloadAttempts": 6, "healthy": true})), &Expect { weight: None, ..well });
}

#[test]
fn the_old_version_runs_while_the_new_one_cannot_be_had() {
    let mut story = well("update", "Always");
    story.edit("Always", 2, "r/agent:2.0.0");
    let old = story.old();
    let keeps = |more: &Value| {
        let mut says = running(&json!({"healthy": true, "runningSpecHash": old, "artifactDownloaded": false,
            "artifactVerified": false, "artifactDigest": null}));
        says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        says
    };
    let expect = |conditions, events, weight| Expect { phase: Phase::Running, conditions, events, runs: "old", weight };
    let alive = ["Healthy=True/Healthy", "ProcessStarted=True/Started"];
    let fetching = ["ArtifactDownloaded=False/Pending", "ArtifactVerified=False/Pending", alive[0], alive[1]];
    story.says(keeps(&json!({})), &expect(&fetching, &[Reason::SpecObserved], Some(Weight::Spec)));
    assert_eq!(story.process.status.observed_generation, Some(2));
    assert_eq!(story.process.status.artifact_version.as_deref(), Some("1.2.3"), "the version that runs");
    let failing = ["ArtifactDownloaded=False/NotFound", "ArtifactVerified=False/Failed", alive[0], alive[1]];
    let not_found = |attempts: u64| {
        keeps(
            &json!({"artifactDownloadReason": "NotFound", "artifactLastError": "404", "artifactDownloadAttempts": attempts}),
        )
    };
    story
        .says(not_found(1), &expect(&failing, &[], Some(Weight::Turn)))
        .says(not_found(2), &expect(&failing, &[], Some(Weight::Counters)));
    // It was fetched, and is not what it should be.
    let other = ["ArtifactDownloaded=True/Succeeded", "ArtifactVerified=False/ChecksumMismatch", alive[0], alive[1]];
    let mismatch = keeps(&json!({"artifactDownloaded": true, "artifactVerifyReason": "ChecksumMismatch",
        "artifactVerifyMessage": "the checksum is another", "artifactLastError": "the checksum is another"}));
    story.says(mismatch, &expect(&other, &[], Some(Weight::Turn)));
    // The switch-over: one restart.
    let all = [FETCHED[0], FETCHED[1], alive[1]];
    story.says(
        running(&json!({"pid": 8, "artifactDigest": "sha256:e"})),
        &Expect { phase: Phase::Running, conditions: &all, events: &[], runs: "new", weight: Some(Weight::Spec) },
    );
    assert_eq!(story.process.status.artifact_version.as_deref(), Some("2.0.0"));
}

#[test]
fn an_artifact_that_is_not_what_it_should_be_never_runs() {
    let mut story = Story::new("verify", "Always");
    let says = json!({"processStarted": false, "artifactDownloaded": true, "artifactVerified": false,
        "artifactVerifyReason": "ChecksumMismatch", "artifactVerifyMessage": "the checksum is another"});
    story.says(
        says,
        &Expect {
            phase: Phase::Pending,
            conditions: &[
                "ArtifactDownloaded=True/Succeeded",
                "ArtifactVerified=False/ChecksumMismatch",
                "ProcessStarted=False/NotStarted",
            ],
            events: &[Reason::AgentConnected, Reason::SpecObserved],
            runs: "nothing",
            weight: Some(Weight::Spec),
        },
    );
}

#[test]
fn ill_and_well_again() {
    let mut story = well("health", "Always");
    let ill = [FETCHED[0], FETCHED[1], "Healthy=False/Unhealthy", "ProcessStarted=True/Started"];
    let fine = [FETCHED[0], FETCHED[1], "Healthy=True/Healthy", "ProcessStarted=True/Started"];
    let expect = |conditions, events, weight| Expect { phase: Phase::Running, conditions, events, runs: "new", weight };
    let turn = Some(Weight::Turn);
    story
        .says(running(&json!({"healthy": false})), &expect(&ill, &[Reason::Unhealthy], turn))
        .says(running(&json!({"healthy": false})), &expect(&ill, &[], None))
        // What the check says is no failure of the process, and another word of it no event.
        .says(running(&json!({"healthy": false, "healthMessage": "exit code 2: no peers"})), &expect(&ill, &[], turn));
    let message = |story: &Story| condition(&story.process.status, ConditionType::Healthy).unwrap().2;
    assert_eq!(message(&story), "exit code 2: no peers");
    story
        .says(running(&json!({"healthy": true})), &expect(&fine, &[], turn))
        .says(running(&json!({"healthy": false})), &expect(&ill, &[Reason::Unhealthy], turn));
}

#[test]
fn a_crash_loop_is_one_event_for_each_turn() {
    let mut story = well("crash loop", "Always");
    let ended = |restarts: u64, code: i64| {
        running(&json!({"processStarted": false, "pid": null, "startTime": null, "exitCode": code,
            "lastTerminationReason": "Error", "restartCount": restarts}))
    };
    let again = |restarts: u64| {
        running(
            &json!({"exitCode": 1, "lastTerminationReason": "Error", "restartCount": restarts, "pid": 7 + restarts}),
        )
    };
    let down = [FETCHED[0], FETCHED[1], "ProcessStarted=False/Exited"];
    let up = [FETCHED[0], FETCHED[1], "ProcessStarted=True/Started"];
    let is = |phase, conditions, events, weight| Expect { phase, conditions, events, runs: "new", weight };
    let (turn, counters) = (Some(Weight::Turn), Some(Weight::Counters));
    for round in 1..4 {
        story
            .says(ended(round - 1, 1), &is(Phase::Pending, &down, &[Reason::ProcessFailed], turn))
            .says(again(round), &is(Phase::Running, &up, &[Reason::ProcessStarted], turn));
    }
    // Seen at the same point of the next round: counted only.
    story.says(again(5), &is(Phase::Running, &up, &[], counters));
    assert_eq!(story.details().counters.restart_count, Some(5));
    // Another exit code while it is down is no other failure; an exit without an error none at all.
    story
        .says(ended(5, 1), &is(Phase::Pending, &down, &[Reason::ProcessFailed], turn))
        .says(ended(5, 2), &is(Phase::Pending, &down, &[], turn))
        .says(again(6), &is(Phase::Running, &up, &[Reason::ProcessStarted], turn))
        .says(ended(6, 0), &is(Phase::Pending, &down, &[], turn));
    // Given up for now, with a cause: Failed, and said once.
    let mut failing = ended(6, 1);
    failing["errorMessage"] = json!("it ended at once");
    story
        .says(failing.clone(), &is(Phase::Failed, &down, &[Reason::ProcessFailed], turn))
        .says(failing, &is(Phase::Failed, &down, &[], None));
}

#[test]
fn a_run_that_is_over_stays_over() {
    for (policy, code, phase, ends) in [
        ("OnFailure", 0, Phase::Succeeded, &[][..]),
        ("Never", 0, Phase::Succeeded, &[]),
        ("Never", 3, Phase::Failed, &[Reason::ProcessFailed]),
    ] {
        let mut story = well("over", policy);
        let over = || {
            running(&json!({"processStarted": false, "pid": null, "startTime": null, "exitCode": code,
                "lastTerminationReason": if code == 0 { "Completed" } else { "Error" }}))
        };
        let down = [FETCHED[0], FETCHED[1], "ProcessStarted=False/Exited"];
        let is = |phase, events, weight| Expect { phase, conditions: &down, events, runs: "new", weight };
        story.says(over(), &is(phase, ends, Some(Weight::Turn)));
        let since = story.process.status.phase_since;
        // The device starts again, and is away before it says so.
        story.says(over(), &is(phase, &[], None)).goes_silent();
        story.says(over(), &is(phase, &[Reason::AgentConnected], Some(Weight::Step)));
        assert_eq!((story.process.status.phase_since, story.details().exit_code), (since, Some(code)));
    }
    // OnFailure: what failed is started again.
    let mut story = well("again", "OnFailure");
    story.says(
        running(&json!({"processStarted": false, "pid": null, "startTime": null, "exitCode": 3})),
        &Expect {
            phase: Phase::Pending,
            conditions: &[FETCHED[0], FETCHED[1], "ProcessStarted=False/Exited"],
            events: &[Reason::ProcessFailed],
            runs: "new",
            weight: Some(Weight::Turn),
        },
    );
}

#[test]
fn what_happened_while_nobody_listened_is_told_on_return() {
    let mut story = well("offline", "Always");
    story.goes_silent();
    let fine = [FETCHED[0], FETCHED[1], "Healthy=True/Healthy", "ProcessStarted=True/Started"];
    let back = running(&json!({"healthy": true, "restartCount": 5, "pid": 99, "startTime": "2025-12-13T01:00:00Z",
        "exitCode": 137, "lastTerminationReason": "OOMKilled"}));
    story.says(
        back,
        &Expect {
            phase: Phase::Running,
            conditions: &fine,
            events: &[Reason::AgentConnected],
            runs: "new",
            weight: Some(Weight::Step),
        },
    );
    let details = story.details();
    assert_eq!(
        (details.counters.restart_count, details.counters.pid, details.exit_code),
        (Some(5), Some(99), Some(137))
    );
    assert_eq!(details.last_termination_reason.as_deref(), Some("OOMKilled"));
}

#[test]
fn a_new_object_of_the_same_name_begins_anew() {
    let story = well("made anew", "Always");
    let (old, digest) = (story.old(), story.details().artifact_digest.clone());
    let mut anew = Story::new("made anew", "Always");
    anew.edit("Always", 1, "r/agent:3.0.0");
    // The device has not heard of it yet: what it says is of another spec.
    let change = report(&mut anew.process, running(&json!({"healthy": true, "observedSpecHash": old})), NOW).unwrap();
    assert_eq!(change.reasons, [Reason::AgentConnected, Reason::SpecObserved, Reason::ProcessStarted]);
    let status = &anew.process.status;
    assert_eq!((status.observed_generation, status.artifact_version.as_deref()), (None, None));
    assert_eq!((anew.runs(), status.transitions), ("old", 1));
    assert_eq!(anew.details().artifact_digest, digest);
    // It has: the same run, under the same name, is switched over.
    let all = [FETCHED[0], FETCHED[1], "ProcessStarted=True/Started"];
    anew.says(
        running(&json!({"pid": 8})),
        &Expect {
            phase: Phase::Running,
            conditions: &all,
            events: &[Reason::SpecObserved],
            runs: "new",
            weight: Some(Weight::Spec),
        },
    );
    assert_eq!(anew.process.status.artifact_version.as_deref(), Some("3.0.0"));
}

#[test]
fn a_backend_that_the_device_lacks_is_waited_for() {
    let mut story = Story::new("backend", "Always");
    let lacks = |more: &Value| {
        let mut says = json!({"processStarted": false, "warningReason": "BackendUnavailable",
            "warningMessage": "this device has no container engine"});
        says.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        says
    };
    let warned = ["ProcessStarted=False/NotStarted", "SpecWarning=True/BackendUnavailable"];
    let is = |events, weight| Expect { phase: Phase::Pending, conditions: &warned, events, runs: "nothing", weight };
    story.says(
        lacks(&json!({})),
        &is(&[Reason::AgentConnected, Reason::SpecObserved, Reason::SpecWarning], Some(Weight::Spec)),
    );
    // Whoever calls it an error, too, does not make it a failure.
    story.says(lacks(&json!({"errorMessage": "no container engine"})), &is(&[], Some(Weight::Turn)));
    // It is there at last.
    let up = Expect {
        phase: Phase::Running,
        conditions: &[FETCHED[0], FETCHED[1], "ProcessStarted=True/Started"],
        events: &[Reason::ProcessStarted],
        runs: "new",
        weight: Some(Weight::Spec),
    };
    story.says(running(&json!({})), &up);
    // The old one runs on where the new spec asks for what is not there.
    let old = story.old();
    story.edit("Always", 2, "r/agent:2.0.0");
    let mut says = running(&json!({"runningSpecHash": old, "warningReason": "BackendUnavailable"}));
    says["warningMessage"] = json!("this device has no container engine");
    story.says(
        says,
        &Expect {
            conditions: &[FETCHED[0], FETCHED[1], "ProcessStarted=True/Started", "SpecWarning=True/BackendUnavailable"],
            events: &[Reason::SpecObserved, Reason::SpecWarning],
            runs: "old",
            ..up
        },
    );
    // A device cannot say what only the manager knows.
    let mut says = running(&json!({"runningSpecHash": old}));
    (says["warningReason"], says["warningMessage"]) = (json!("DeviceNotInNamespace"), json!("really"));
    story.says(
        says,
        &Expect {
            conditions: &[FETCHED[0], FETCHED[1], "ProcessStarted=True/Started", "SpecWarning=True/AgentWarning"],
            events: &[],
            runs: "old",
            weight: Some(Weight::Turn),
            ..up
        },
    );
}
