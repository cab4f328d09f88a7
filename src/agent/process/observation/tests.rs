//! Pure: each situation, and what is said of it.

use super::*;
use crate::agent::artifact::{FetchError, Fetched, Stage};
use crate::agent::process::health::{Run, Verdict};
use crate::agent::process::identity::Identity;
use crate::agent::process::record::{Problem, Version};
use crate::agent::process::spec::{BackendKind, Spec};
use serde_json::{Value, json};

const SPEC: &str =
    r#"{"artifact": {"type": "file", "url": "/x"}, "execution": {"backend": "initd", "command": ["x"]}}"#;

struct Story {
    spec: Spec,
    record: Record,
    found: Option<Found>,
}

fn version(hash: &str) -> Version {
    let (uid, spec_hash, spec) = ("u".to_owned(), hash.to_owned(), SPEC.to_owned());
    Version { uid, spec_hash, backend: BackendKind::Initd, digest: Some(format!("sha256:{hash}")), spec }
}

fn found(hash: &str, activity: Activity) -> Found {
    Found {
        identity: Identity::new("ns", "n"),
        uid: "u".into(),
        installed: hash.into(),
        running: Some(hash.into()),
        activity,
        exits: 0,
        epoch: "e".into(),
        last_exit: None,
    }
}

fn running() -> Activity {
    Activity::Running { pid: 7, started: 1_765_583_698 }
}

fn exit(code: i32) -> Exit {
    Exit { code, reason: if code == 0 { "Completed" } else { "Error" }.into() }
}

impl Story {
    /// The spec `old` runs.
    fn new() -> Self {
        let mut record = Record::new("ns", "n");
        record.wanted("u");
        record.fetching("old", 0);
        record.fetched("old", &Ok(Fetched { digest: "sha256:old".into(), root: None }));
        record.installing(&version("old"));
        record.started(&version("old"));
        Self { spec: Spec::parse(SPEC).unwrap(), record, found: Some(found("old", running())) }
    }

    fn says(&self, wanted: &str, unavailable: Option<&str>) -> Value {
        let present = self.record.pinned(wanted).is_some();
        let wanted = Wanted { uid: "u", spec_hash: wanted, spec: Ok(&self.spec) };
        let (record, found) = (&self.record, self.found.as_ref());
        let said = observation(&View { wanted, record, found, unavailable, unseen: false, present });
        let mut said = serde_json::to_value(said).unwrap();
        for known in ["namespace", "name", "observedSpecHash"] {
            said.as_object_mut().unwrap().remove(known).unwrap();
        }
        said
    }

    fn fails(&mut self, hash: &str, stage: Stage) {
        let error = FetchError { stage, reason: "NotFound", message: "404".into(), retry_after: None };
        self.record.fetching(hash, 0);
        self.record.fetched(hash, &Err(error));
    }
}

#[test]
fn what_runs_is_told_with_its_health() {
    let mut story = Story::new();
    let mut expected = json!({"runningSpecHash": "old", "processStarted": true, "pid": 7, "startTime": "2025-12-12T23:54:58Z",
        "restartCount": 0, "artifactDigest": "sha256:old", "artifactDownloaded": true, "artifactVerified": true,
        "artifactDownloadAttempts": 1, "lastArtifactAttemptTime": "1970-01-01T00:00:00Z"});
    assert_eq!(story.says("old", None), expected);
    let run = Run { pid: 7, started: 1_765_583_698 };
    story.record.verdict = Some(Verdict { run, healthy: false, message: Some("exit code 1: no route".into()) });
    expected["healthy"] = json!(false);
    expected["healthMessage"] = json!("exit code 1: no route");
    assert_eq!(story.says("old", None), expected);
    // Another run's verdict says nothing of this one.
    story.record.verdict = Some(Verdict { run: Run { pid: 8, ..run }, healthy: true, message: None });
    assert_eq!(story.says("old", None)["healthy"], Value::Null);
}

#[test]
fn what_stands_in_the_way_of_the_new_version_is_no_error_while_the_old_one_runs() {
    let mut story = Story::new();
    let said = story.says("new", None);
    assert_eq!((&said["artifactDownloaded"], &said["artifactVerified"]), (&json!(false), &json!(false)));
    assert_eq!((&said["runningSpecHash"], &said["processStarted"]), (&json!("old"), &json!(true)));
    story.fails("new", Stage::Download);
    let said = story.says("new", None);
    let keys = ["artifactDownloadReason", "artifactDownloadMessage", "artifactLastError", "artifactVerifyReason"];
    assert_eq!(keys.map(|key| said[key].as_str().unwrap()), ["NotFound", "404", "404", "Pending"]);
    story.fails("new", Stage::Verify);
    let said = story.says("new", None);
    assert_eq!((&said["artifactDownloaded"], &said["artifactVerifyReason"]), (&json!(true), &json!("NotFound")));
    assert_eq!((&said["artifactVerified"], &said["artifactDownloadAttempts"]), (&json!(false), &json!(2)));
    story.record.problem = Some(Problem { spec_hash: "new".into(), message: "no such user".into() });
    let said = story.says("new", None);
    assert_eq!((&said["warningMessage"], &said["errorMessage"]), (&json!("no such user"), &Value::Null));
    // Nothing runs: then it is one.
    story.found = None;
    let said = story.says("new", None);
    assert_eq!((&said["warningMessage"], &said["errorMessage"]), (&Value::Null, &json!("no such user")));
    assert_eq!((&said["processStarted"], &said["exitCode"]), (&json!(false), &Value::Null));
}

#[test]
fn an_exit_code_is_told_only_of_what_is_wanted() {
    let mut story = Story::new();
    for activity in [Activity::Ended(exit(1)), Activity::Restarting(exit(1))] {
        story.found = Some(found("old", activity));
        let said = story.says("old", None);
        assert_eq!((&said["exitCode"], &said["lastTerminationReason"]), (&json!(1), &json!("Error")));
        assert_eq!((&said["processStarted"], &said["pid"]), (&json!(false), &Value::Null));
        let said = story.says("new", None);
        assert_eq!((&said["exitCode"], &said["runningSpecHash"]), (&Value::Null, &json!("old")));
    }
}

#[test]
fn a_run_that_is_over_is_told_for_ever() {
    let mut story = Story::new();
    let ended = Found { exits: 1, last_exit: Some(exit(0)), ..found("old", Activity::Ended(exit(0))) };
    story.record.saw(BackendKind::Initd, &ended);
    story.record.finish(&version("old"), &exit(0));
    for found in [Some(ended.clone()), Some(Found { activity: Activity::Stopped, ..ended }), None] {
        story.found = found;
        let said = story.says("old", None);
        assert_eq!((&said["exitCode"], &said["runningSpecHash"]), (&json!(0), &json!("old")));
        assert_eq!((&said["processStarted"], &said["restartCount"]), (&json!(false), &json!(0)));
        assert_eq!(story.says("new", None)["exitCode"], Value::Null);
    }
}

#[test]
fn what_cannot_be_known_is_not_claimed() {
    let mut story = Story::new();
    story.found = None;
    let said = story.says("old", Some("docker does not answer"));
    assert_eq!(
        (&said["warningReason"], &said["warningMessage"]),
        (&json!("BackendUnavailable"), &json!("docker does not answer"))
    );
    for unknown in ["processStarted", "exitCode", "errorMessage", "restartCount", "runningSpecHash"] {
        assert_eq!(said[unknown], Value::Null, "{unknown}");
    }
    // Nothing was ever started: that is known.
    story.record = Record::new("ns", "n");
    let said = story.says("new", Some("no docker"));
    assert_eq!((&said["processStarted"], &said["errorMessage"]), (&json!(false), &Value::Null));
}

#[test]
fn restarts_are_added_up_over_epochs_of_the_backend() {
    let mut record = Record::new("ns", "n");
    record.wanted("u");
    record.started(&version("old"));
    let mut seen = found("old", running());
    for (epoch, exits, expected) in [("a", 2, 2), ("a", 2, 2), ("a", 5, 5), ("b", 1, 6), ("b", 2, 7), ("c", 0, 7)] {
        (seen.epoch, seen.exits) = (epoch.into(), exits);
        record.saw(BackendKind::Initd, &seen);
        assert_eq!(record.restart_count(Some(&seen.activity)), expected, "{epoch} {exits}");
    }
    // The end of which nothing followed yet is no restart.
    (seen.exits, seen.activity) = (1, Activity::Ended(exit(1)));
    record.saw(BackendKind::Initd, &seen);
    assert_eq!(record.restart_count(Some(&seen.activity)), 7);
    // Another object of the same name begins anew.
    record.wanted("v");
    assert_eq!(record.restart_count(Some(&running())), 0);
}

#[test]
fn counters_alone_are_not_told_at_once() {
    let mut story = Story::new();
    let view = |story: &Story| {
        let wanted = Wanted { uid: "u", spec_hash: "old", spec: Ok(&story.spec) };
        let (record, found) = (&story.record, story.found.as_ref());
        observation(&View { wanted, record, found, unavailable: None, unseen: false, present: true })
    };
    let before = view(&story);
    story.record.fetching("old", 99);
    assert!(!differs(&before, &view(&story)));
    story.found = Some(found("old", Activity::Ended(exit(1))));
    assert!(differs(&before, &view(&story)));
}
