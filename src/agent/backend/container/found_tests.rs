//! Pure: what containers come to.

use super::super::config::stopped_name;
use super::super::config::tests::launch;
use super::*;
use proptest::prelude::*;
use serde_json::json;

const STARTED: &str = "2026-11-21T20:17:03.788680526Z";
const NEVER: &str = "0001-01-01T00:00:00Z";

/// As the engine answers, shortened.
pub fn container(sequence: u64, hash: &str, status: &str, more: &serde_json::Value) -> Container {
    let started = if status == "created" { NEVER } else { STARTED };
    let mut answer = json!({
        "Id": format!("id-{sequence}"), "Name": format!("/praetor-a.b.{sequence}"), "Image": "sha256:i", "RestartCount": 0,
        "State": {"Status": status, "Running": true, "Pid": 42, "ExitCode": 0, "OOMKilled": false, "Error": "",
            "StartedAt": started, "FinishedAt": NEVER},
        "Config": {"Env": null, "WorkingDir": "", "Entrypoint": ["/x"], "Labels": {
            IDENTITY: "praetor-a.b", UID: "u", SPEC_HASH: hash, ARTIFACT: "sha256:d", SEQUENCE: sequence.to_string()}},
        "HostConfig": {"NetworkMode": "host"}});
    json_patch::merge(&mut answer, more);
    serde_json::from_value(answer).unwrap()
}

fn identity() -> Identity {
    Identity::new("a", "b")
}

fn plain(sequence: u64, hash: &str, status: &str) -> Container {
    container(sequence, hash, status, &json!({}))
}

fn found_of(containers: &[Container]) -> Found {
    found(&identity(), containers, &Tally::new("e".into())).unwrap()
}

fn error(code: i32) -> Exit {
    Exit { code, reason: "Error".into() }
}

#[test]
fn what_a_container_does() {
    let started = plain(1, "h", "running").started_nanos().unwrap();
    assert_eq!(started, 1_795_292_223_788_680_526);
    let running = Activity::Running { pid: 42, started: 1_795_292_223 };
    let failed = json!({"State": {"ExitCode": 3, "Pid": 0}});
    let stopped = json!({"State": {"ExitCode": 143}, "Name": format!("/{}", stopped_name(&identity(), started))});
    let stale = json!({"State": {"ExitCode": 3}, "Name": format!("/{}", stopped_name(&identity(), started - 1))});
    for (status, more, expected) in [
        ("created", json!({}), Activity::Stopped),
        ("running", json!({}), running.clone()),
        ("paused", json!({}), running.clone()),
        ("running", stopped.clone(), running),
        ("restarting", failed.clone(), Activity::Restarting(error(3))),
        ("exited", failed.clone(), Activity::Ended(error(3))),
        ("exited", json!({}), Activity::Ended(Exit { code: 0, reason: "Completed".into() })),
        ("exited", stopped, Activity::Stopped),
        ("exited", stale, Activity::Ended(error(3))),
        ("dead", failed, Activity::Ended(error(3))),
    ] {
        assert_eq!(container(1, "h", status, &more).activity(), expected, "{status} {more}");
    }
}

#[test]
fn the_new_one_waits_beside_the_old_one() {
    let found = found_of(&[plain(2, "new", "created"), plain(1, "old", "running")]);
    assert_eq!((found.installed.as_str(), found.running.as_deref()), ("new", Some("old")));
    assert!(matches!(found.activity, Activity::Running { .. }));
    // Between the stop of one and the start of the other.
    let name = stopped_name(&identity(), plain(1, "", "exited").started_nanos().unwrap());
    let halted = container(1, "old", "exited", &json!({"Name": name}));
    let found = found_of(&[plain(2, "new", "created"), halted.clone()]);
    assert_eq!((found.installed.as_str(), found.running.as_deref()), ("new", Some("old")));
    assert_eq!(found.activity, Activity::Stopped);
    // The new one is started, the old one not yet removed.
    let found = found_of(&[halted, plain(2, "new", "running")]);
    assert_eq!((found.installed.as_str(), found.running.as_deref()), ("new", Some("new")));
}

#[test]
fn nothing_started_is_nothing_that_runs() {
    let found = found_of(&[plain(1, "h", "created")]);
    assert_eq!((found.running, found.activity, found.exits), (None, Activity::Stopped, 0));
    assert_eq!(super::found(&Identity::new("a", "b"), &[], &Tally::new("e".into())), None);
}

#[test]
fn exits_have_reasons() {
    for (code, oom, reason) in [
        (0, false, "Completed"),
        (1, false, "Error"),
        (137, true, "OOMKilled"),
        (137, false, "Signal SIGKILL"),
        (139, false, "Signal SIGSEGV"),
        (128, false, "Error"),
        (158, false, "Error"),
        (255, false, "Error"),
    ] {
        assert_eq!(exit(code, oom), Exit { code, reason: reason.into() });
    }
}

#[test]
fn marks_say_whose_it_is() {
    let mut launch = launch();
    (launch.uid, launch.spec_hash, launch.artifact.digest) = ("u".into(), "h".into(), "sha256:d".into());
    assert!(plain(1, "h", "exited").is_for(&launch));
    assert!(!plain(1, "h", "removing").is_for(&launch) && !plain(1, "g", "exited").is_for(&launch));
    let mut other = plain(1, "h", "running");
    other.config.labels.insert(ARTIFACT.into(), "sha256:e".into());
    assert!(!other.is_for(&launch), "the same spec from another image");
    other.config.labels.insert(IDENTITY.into(), "nginx".into());
    assert_eq!(other.identity(), None);
}

fn any_container() -> impl Strategy<Value = Container> {
    let status = prop::sample::select(vec!["created", "running", "restarting", "paused", "exited", "removing", "dead"]);
    (0..5_u64, status, 0..3_u64).prop_map(|(sequence, status, count)| {
        container(sequence, &format!("h{sequence}"), status, &json!({"RestartCount": count}))
    })
}

proptest! {
    /// Whatever is there in whatever order: what lives is what is reported.
    #[test]
    fn the_living_one_is_reported(mut containers in prop::collection::vec(any_container(), 0..5)) {
        containers.sort_by_key(Container::sequence);
        containers.dedup_by_key(|c| c.sequence());
        let identity = identity();
        let tally = Tally::new("e".into());
        let result = found(&identity, &containers, &tally);
        let mut reversed = containers.clone();
        reversed.reverse();
        prop_assert_eq!(&found(&identity, &reversed, &tally), &result);
        if let Some(result) = result {
            let alive = containers.iter().any(Container::is_alive);
            let lives = matches!(result.activity, Activity::Running { .. } | Activity::Restarting(_));
            prop_assert_eq!(alive, lives);
            prop_assert!(!lives || result.running.is_some());
        } else {
            prop_assert!(containers.iter().all(|c| matches!(c.state.status.as_str(), "removing" | "dead")));
        }
    }
}
