//! `praetor-agent status`, with and without an agent.

use super::*;
use crate::gateway::{Gateway, good};

fn start(gateway: &str, folder: &Path, token: &Path) -> Agent {
    let mut command = command();
    command.env("APOLLO_DEVICE_NAME", DEVICE).env("APOLLO_GATEWAY_URL", gateway);
    command.env("APOLLO_DEVICE_TOKEN_FILE", token).env("APOLLO_AGENT_STATE_FILE", folder.join("state.json"));
    Agent::start(command)
}

fn status(folder: &Path, more: &[&str]) -> Said {
    let state = folder.join("state.json");
    call(&[&["status", "--state-file", text(&state)], more].concat())
}

fn json(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&status(folder, &["--output=json"]).out).unwrap()
}

#[test]
fn an_agent_that_runs_says_what_it_believes() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    let nothing = status(&folder, &[]);
    assert_eq!(nothing.code, 1);
    assert!(
        nothing.line("agent ").contains("does not run") && nothing.line("note").contains("never told"),
        "{nothing:?}"
    );

    let agent = start(&gateway.url(), &folder, &token);
    let pid = agent.0.id();
    let said = await_some("a status in which all is well", || Some(status(&folder, &[])).filter(|said| said.code == 0));
    assert!(said.line("agent ").contains(&format!("as process {pid}, version {}", env!("CARGO_PKG_VERSION"))));
    assert_eq!(said.line("device"), format!("device     {DEVICE}"));
    assert_eq!(said.line("gateways"), format!("gateways   {}", gateway.url()));
    assert!(said.line("asking").contains("last good answer") && said.line("reporting").contains("last good answer"));
    assert_eq!(said.line("state"), format!("state      {}, revision 7", folder.display()));
    assert_eq!(said.line("token"), format!("token      {}", token.display()));
    assert!(!said.out.contains(TOKEN) && said.err.is_empty(), "{said:?}");
    assert_eq!(mode(&folder.join("agent.sock")), 0o600);
    let told = json(&folder);
    assert_eq!((told["well"].as_bool(), told["agent"]["state"].as_str()), (Some(true), Some("running")));
    assert_eq!((told["agent"]["pid"].as_u64(), told["revision"].as_u64()), (Some(pid.into()), Some(7)));

    // One that is killed leaves its socket, and nobody takes that for an agent.
    agent.kill();
    assert!(folder.join("agent.sock").exists());
    let said = status(&folder, &[]);
    assert!(said.code == 1 && said.line("agent ").contains("does not run"), "{said:?}");
    assert_eq!(said.line("device"), format!("device     {DEVICE}"));
    let again = start(&gateway.url(), &folder, &token);
    await_true("the next agent", || status(&folder, &[]).code == 0);
    drop(again);
}

#[test]
fn what_is_not_well_is_exit_code_1() {
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    // A process that nothing runs.
    let gateway = Gateway::start(good(&["a", "b"]));
    let agent = start(&gateway.url(), &folder, &token);
    let told =
        await_some("two processes", || Some(json(&folder)).filter(|told| told["processes"][1]["wanted"].is_string()));
    assert_eq!(
        (told["processes"][0]["name"].as_str(), told["processes"][0]["backend"].as_str()),
        (Some("a"), Some("initd"))
    );
    assert_eq!((told["well"].as_bool(), told["processes"][0]["phase"].as_str()), (Some(false), Some("Pending")));
    agent.kill();
    let said = status(&folder, &[]);
    assert!(said.line("infra/a").contains("00112233") && said.line("infra/b").contains("00112233"), "{said:?}");

    // A gateway that refuses.
    write(&token, "another", 0o600);
    let _agent = start(&gateway.url(), &folder, &token);
    let said = await_some("a refusal", || Some(status(&folder, &[])).filter(|said| said.out.contains("401")));
    assert!(said.code == 1 && said.line("asking").contains("fails: 401"), "{said:?}");
}

#[test]
fn a_device_has_one_agent() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    let first = start(&gateway.url(), &folder, &token);
    await_true("the first agent", || status(&folder, &[]).code == 0);
    let mut second = command();
    second.args(["--device-name=x", "--gateway-url=http://127.0.0.1:1"]);
    second.arg(format!("--state-file={}", folder.join("other.json").display()));
    let said = Said::of(second.output().unwrap());
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.contains("another agent runs") && said.err.contains(text(&folder)), "{said:?}");
    assert_eq!(status(&folder, &[]).code, 0, "the first one has not noticed");
    first.kill();
    let third = start(&gateway.url(), &folder, &token);
    await_true("the next agent", || status(&folder, &[]).code == 0);
    drop(third);
}

#[test]
fn an_agent_outlives_whoever_takes_its_log() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    let mut command = command();
    command.args(["--device-name", DEVICE, "--gateway-url", &gateway.url(), "--log-level=trace"]);
    command.args(["--device-token-file", text(&token), "--state-file", text(&folder.join("state.json"))]);
    let mut agent = Agent(command.stderr(Stdio::piped()).spawn().unwrap());
    drop(agent.0.stderr.take());
    let reports = || gateway.paths().iter().filter(|path| path.ends_with("/report")).count();
    await_true("three reports, each with lines that go nowhere", || reports() >= 3);
    assert!(agent.0.try_wait().unwrap().is_none());
    assert_eq!(status(&folder, &[]).code, 0);
}

#[test]
fn an_agent_that_stands_still_is_called_silent() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    let agent = start(&gateway.url(), &folder, &token);
    await_true("the agent", || status(&folder, &[]).code == 0);
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &agent.0.id().to_string()]).status().unwrap().success());
    };
    signal("-STOP");
    let start = Instant::now();
    let said = status(&folder, &[]);
    assert!(said.code == 1 && said.line("agent ").contains("does not answer"), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    signal("-CONT");
    await_true("the agent again", || status(&folder, &[]).code == 0);
}
