//! The agent as a process against a scripted gateway: every sentence of the contract about the agent that can be
//! seen from outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "agent/gateways.rs"]
mod gateways;
#[path = "agent/stage.rs"]
mod stage;

use stage::*;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

// === Tests ===

#[test]
fn what_is_missing_or_wrong_is_one_line_and_exit_code_1() {
    let good = [("APOLLO_DEVICE_NAME", DEVICE), ("APOLLO_GATEWAY_URL", "http://127.0.0.1:1")];
    for (change, parts) in [
        (("APOLLO_DEVICE_NAME", ""), ["--device-name", "APOLLO_DEVICE_NAME"]),
        (("APOLLO_GATEWAY_URL", ""), ["--gateway-url", "APOLLO_GATEWAY_URL"]),
        (("APOLLO_GATEWAY_URL", ","), ["--gateway-url", "APOLLO_GATEWAY_URL"]),
        (("APOLLO_DEVICE_NAME", "Tor1"), ["\"Tor1\"", "--device-name"]),
        (("APOLLO_GATEWAY_URL", "127.0.0.1:8080"), ["--gateway-url", "expected http://"]),
        (("APOLLO_GATEWAY_URL", "https://gw,ftp://gw"), ["URL 2", "or https://"]),
        (("APOLLO_GATEWAY_CA_FILE", "/nowhere/ca"), ["--gateway-ca-file", "/nowhere/ca"]),
        (("APOLLO_DEVICE_TOKEN_FILE", "/nowhere/token"), ["--device-token-file", "/nowhere/token"]),
    ] {
        let output = command().envs(good).env(change.0, change.1).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let version = command().arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("praetor-agent {}\n", env!("CARGO_PKG_VERSION")));
    let help = command().arg("--help").env("APOLLO_DEVICE_TOKEN", TOKEN).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for name in [
        "APOLLO_DEVICE_NAME",
        "APOLLO_GATEWAY_URL",
        "APOLLO_DEVICE_TOKEN",
        "APOLLO_DEVICE_TOKEN_FILE",
        "APOLLO_GATEWAY_CA_FILE",
        "APOLLO_AGENT_STATE_FILE",
        "--observe-only",
    ] {
        assert!(help.contains(name), "{help}");
    }
    assert!(!help.contains(TOKEN));
}

#[test]
fn the_way_of_one_process() {
    let gateway = Gateway::start(desired(2, 10, &[("a", 1)]));
    let (_folder, state) = folder();
    let start = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, Some(TOKEN));

    // The first GET and the first report at once; what was learned is reported at once, too.
    let told = gateway.await_report(start, &["a@sha256:1"]);
    let (gets, reports) = (gateway.gets(), gateway.reports());
    assert_eq!(
        (gets[0].path.as_str(), gets[0].header("if-none-match")),
        ("/v1/devices/tor1-01/desired?waitSeconds=0", None)
    );
    assert_eq!(reports[0].path, "/v1/devices/tor1-01/report");
    assert!(gateway.all().iter().all(|s| s.header("x-device-token") == Some(TOKEN)));
    assert!(told.at - gets[0].at < Duration::from_secs(1));
    assert!(reports[0].at.max(gets[0].at) - reports[0].at.min(gets[0].at) < Duration::from_secs(1));
    // Its spec is none: that is said, and nothing is claimed about a process.
    let failed = |report: &Seen| report.body["observations"][0]["errorMessage"].is_string();
    let report = await_some("what is wrong", || gateway.reports().into_iter().find(failed));
    let observation = report.body["observations"][0].as_object().unwrap();
    assert!(observation["errorMessage"].as_str().unwrap().contains("missing field `artifact`"), "{observation:?}");
    let keys: Vec<_> = observation.keys().map(String::as_str).collect();
    let expected = ["errorMessage", "name", "namespace", "observedSpecHash", "processStarted", "restartCount"];
    assert_eq!(keys, expected);

    // Then a long-poll, a second later, with what is known.
    let poll = await_some("a long-poll", || gateway.gets().get(1).cloned());
    assert!((25..=35).contains(&poll.wait_seconds()) && poll.at - gets[0].at >= Duration::from_millis(700));
    assert_eq!((poll.header("if-none-match"), poll.header("x-praetor-min-revision")), (Some("\"2-a1\""), Some("10")));

    // Reports repeat everything each H, in one order.
    await_true("four reports", || gateway.reports().len() >= 4);
    let reports = gateway.reports();
    let gap = reports[3].at - reports[2].at;
    assert!(gap > Duration::from_millis(1500) && gap < Duration::from_millis(3500), "{gap:?}");
    let boot_id = reports[0].body["bootId"].as_str().unwrap();
    assert_eq!(boot_id.len(), 32);
    for (i, report) in reports.iter().enumerate() {
        assert_eq!(
            (report.body["bootId"].as_str(), report.body["sequence"].as_u64()),
            (Some(boot_id), Some(i as u64 + 1))
        );
        assert_eq!(report.body["agentVersion"], env!("CARGO_PKG_VERSION"));
    }

    // A change ends the long-poll and is reported at once.
    let edit = Instant::now();
    gateway.play(desired(2, 11, &[("a", 2), ("b", 1)]));
    let told = gateway.await_report(edit, &["a@sha256:2", "b@sha256:1"]);
    assert!(told.at - edit < Duration::from_secs(1), "{:?}", told.at - edit);
    assert!(gateway.gets().len() <= 3, "one answer for one change, and the next long-poll");

    let (status, took, log) = agent.end("-TERM");
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!log.contains(TOKEN) && !log.contains("WARN"), "{log}");
}

#[test]
fn nothing_is_dropped_but_by_a_list_that_lacks_it() {
    let gateway = Gateway::start(desired(1, 10, &[("a", 3), ("b", 1)]));
    let (_folder, state) = folder();
    let start = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, Some(TOKEN));
    let all = ["a@sha256:3", "b@sha256:1"];
    gateway.await_report(start, &all);
    let other = r#"{"deviceName":"other","heartbeatIntervalSeconds":1,"items":[]}"#;
    let replies: Vec<(&str, BoxedReply)> = vec![
        ("401", Box::new(|| answer(401, "", "{}"))),
        ("404", Box::new(|| answer(404, "", "{}"))),
        ("500", Box::new(|| answer(500, "", "{}"))),
        ("connection broke", Box::new(|| Reply::HangUp)),
        ("not readable", Box::new(|| answer(200, "ETag: \"x\"\r\nX-Praetor-Revision: 90\r\n", "{\"items\":[]}"))),
        ("another device", Box::new(move || answer(200, "ETag: \"x\"\r\nX-Praetor-Revision: 90\r\n", other))),
        ("behind", Box::new(|| answer(503, "Retry-After: 1\r\n", "{}"))),
    ];
    let mut expected = 0;
    for (log, reply) in replies {
        expected += 1;
        gateway.play(only_reports(reply));
        // Not anywhere in the line: times and ports hold any three digits.
        let tells = |line: &str| line.split_once("problem=").is_some_and(|(_, problem)| problem.contains(log));
        await_true(log, || agent.log().lines().filter(|l| l.contains("WARN") && tells(l)).count() == 1);
    }
    // From the past: a lower revision, with a list that lacks everything.
    gateway.play(desired(1, 9, &[]));
    await_true("an old answer", || {
        gateway.gets().iter().filter(|g| g.header("x-praetor-min-revision") == Some("10")).count() > expected
    });
    gateway.await_report(Instant::now(), &all);
    // A current list at a lower generation: that is ignored, the absence is not.
    let now = Instant::now();
    gateway.play(desired(1, 11, &[("a", 2)]));
    gateway.await_report(now, &["a@sha256:3"]);
    await_true("a line about the end of the trouble", || agent.log().contains("the gateway answers again"));
    // What was dropped does not return within a minute.
    gateway.play(desired(1, 12, &[("a", 3), ("b", 1)]));
    await_true("a line about the return", || agent.log().contains("listed again"));
    let now = Instant::now();
    gateway.await_report(now, &["a@sha256:3"]);
    let between = gateway.reports().into_iter().filter(|r| r.at > start + Duration::from_secs(1));
    assert!(between.into_iter().all(|r| r.observations()[0] == "a@sha256:3"));
}

#[test]
fn the_state_file_outlives_the_agent() {
    let gateway = Gateway::start(desired(1, 10, &[("a", 1)]));
    let (folder, state) = folder();
    let start = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, Some(TOKEN));
    gateway.await_report(start, &["a@sha256:1"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(state.parent().unwrap())), (0o600, 0o700));
    agent.end("-KILL");
    assert!(!fs::read_to_string(&state).unwrap().contains(TOKEN));

    // As after a crash in the middle of a write, with a gateway that refuses everything but reports.
    fs::write(state.with_file_name("state.json.new"), "{\"deviceNa").unwrap();
    gateway.play(only_reports(|| answer(401, "", "{}")));
    let restart = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, Some(TOKEN));
    gateway.await_report(restart, &["a@sha256:1"]);
    let get = await_some("a GET", || gateway.gets().into_iter().find(|g| g.at > restart));
    assert_eq!((get.header("if-none-match"), get.header("x-praetor-min-revision")), (Some("\"1-a1\""), Some("10")));
    let boots: std::collections::HashSet<_> = gateway.reports().iter().map(|r| r.body["bootId"].to_string()).collect();
    assert_eq!(boots.len(), 2);
    agent.end("-KILL");

    // A corrupt file is set aside, and the agent starts with nothing.
    fs::write(&state, "{\"deviceName\":\"tor1-01\",\"items\":[{").unwrap();
    gateway.play(desired(1, 10, &[("a", 1)]));
    let restart = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, Some(TOKEN));
    gateway.await_report(restart, &["a@sha256:1"]);
    let get = gateway.gets().into_iter().find(|g| g.at > restart).unwrap();
    assert_eq!((get.header("if-none-match"), get.header("x-praetor-min-revision")), (None, None));
    assert!(state.with_file_name("state.json.corrupt").exists());
    let (_, _, log) = agent.end("-TERM");
    assert_eq!(log.lines().filter(|l| l.contains("set aside")).count(), 1, "{log}");

    // A path that cannot be written: one warning, and from memory.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let restart = Instant::now();
    let agent = Agent::start(&gateway.url(), &blocked.join("state.json"), Some(TOKEN));
    gateway.await_report(restart, &["a@sha256:1"]);
    gateway.play(desired(1, 11, &[("a", 2)]));
    gateway.await_report(restart, &["a@sha256:2"]);
    let (_, _, log) = agent.end("-TERM");
    assert_eq!(log.lines().filter(|l| l.contains("running from memory")).count(), 1, "{log}");
}

#[test]
fn a_renewed_token_is_in_use_before_the_old_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    // As a rotation does it: the new content appears at once.
    let renew = |token: &str| {
        fs::write(folder.path().join("new"), format!("{token}\n")).unwrap();
        fs::set_permissions(folder.path().join("new"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
    };
    renew("old");
    // Both are good: nobody is refused. A poll that is parked holds the old one, so none is.
    let truth = desired(1, 10, &[("a", 1)]);
    let gateway = Gateway::start(move |seen| match (truth(seen), seen.header("x-device-token")) {
        (_, None) => answer(401, "", "{}"),
        (Reply::Park, _) => answer(304, "ETag: \"1-a1\"\r\nX-Praetor-Revision: 10\r\n", ""),
        (reply, _) => reply,
    });
    let mut command = command();
    command.env("APOLLO_DEVICE_NAME", DEVICE).env("APOLLO_GATEWAY_URL", gateway.url());
    command.env("APOLLO_DEVICE_TOKEN_FILE", &file).env("APOLLO_AGENT_STATE_FILE", folder.path().join("state.json"));
    let agent = Agent::spawn(command);
    let with = |token: &str, gets: bool| {
        gateway.all().iter().any(|s| s.is_get() == gets && s.header("x-device-token") == Some(token))
    };
    await_true("a report and a question with the first token", || with("old", false) && with("old", true));
    renew("new");
    await_true("a report and a question with the second token", || with("new", false) && with("new", true));
    let last = gateway.all().last().unwrap().header("x-device-token").map(str::to_owned);
    assert_eq!(last.as_deref(), Some("new"));

    // A file that is gone or empty takes away nothing.
    fs::write(&file, "").unwrap();
    let (reports, gone) = (gateway.reports().len(), Instant::now());
    await_true("two more reports", || gateway.reports().len() >= reports + 2);
    let after = gateway.all().into_iter().filter(|s| s.at > gone);
    assert!(after.into_iter().all(|s| s.header("x-device-token") == Some("new")));
    assert!(!agent.log().contains("401: "), "{}", agent.log());
}

#[test]
fn retry_after_is_obeyed_and_a_server_without_long_poll_is_spared() {
    let polite = Gateway::start(|_| answer(503, "Retry-After: 3\r\n", "{}"));
    let hasty = Gateway::start(|seen| {
        let heartbeat = desired(1, 10, &[]);
        match seen.header("if-none-match") {
            Some(tag) if seen.is_get() => answer(304, &format!("ETag: {tag}\r\n"), ""),
            _ => heartbeat(seen),
        }
    });
    let (_folder, state) = folder();
    let agents = [
        Agent::start(&polite.url(), &state, None),
        Agent::start(&hasty.url(), &state.with_file_name("other").join("state.json"), None),
    ];
    await_true("two GETs and two reports", || polite.gets().len() > 1 && polite.reports().len() > 1);
    for seen in [polite.gets(), polite.reports()] {
        let gap = seen[1].at - seen[0].at;
        assert!(gap >= Duration::from_secs(3) && gap < Duration::from_secs(5), "{gap:?}");
    }
    // 200, a second later 304 at once instead of a long-poll, and then 5 s of peace.
    await_true("three GETs", || hasty.gets().len() > 2);
    let gaps: Vec<_> = hasty.gets().windows(2).map(|w| w[1].at - w[0].at).collect();
    assert!(
        gaps[0] < Duration::from_secs(3) && gaps[1] >= Duration::from_millis(4500) && gaps[1] < Duration::from_secs(8),
        "{gaps:?}"
    );
    assert!(hasty.reports().len() >= 4, "reports have a timer of their own");
    drop(agents);
}

#[test]
fn sigterm_ends_it_within_a_second_whatever_it_is_doing() {
    // Neither answers; the second does not even accept.
    let silent = Gateway::start(|_| Reply::Park);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    for url in [silent.url(), format!("http://{}", deaf.local_addr().unwrap()), "http://127.0.0.1:1".to_owned()] {
        let (_folder, state) = folder();
        let agent = Agent::start(&url, &state, None);
        await_true("the start", || agent.log().contains("agent started"));
        let (status, took, log) = agent.end("-TERM");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn the_highest_revision_is_kept_across_an_orderly_end() {
    let gateway = Gateway::start(desired(1, 10, &[("a", 1)]));
    let (_folder, state) = folder();
    let start = Instant::now();
    let agent = Agent::start(&gateway.url(), &state, None);
    gateway.await_report(start, &["a@sha256:1"]);
    await_true("a long-poll", || gateway.gets().len() > 1);
    gateway.play(only_reports(|| answer(304, "ETag: \"1-a1\"\r\nX-Praetor-Revision: 77\r\n", "")));
    await_true("another GET", || gateway.gets().iter().any(|g| g.header("x-praetor-min-revision") == Some("77")));
    agent.end("-TERM");
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert_eq!((saved["revision"].as_u64(), saved["etag"].as_str()), (Some(77), Some("\"1-a1\"")));
}
