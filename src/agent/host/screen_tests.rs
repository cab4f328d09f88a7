//! Pure: tests of the screen.

use super::*;
use crate::agent::process::spec::BackendKind;

const OLD: &str = "sha256:00112233445566778899";
const NEW: &str = "sha256:aabbccddeeff00112233";

fn wanted(name: &str, restart: Restart) -> Wanted {
    Wanted {
        namespace: "infra".into(),
        name: name.into(),
        spec_hash: NEW.into(),
        backend: Some(BackendKind::Systemd),
        restart,
    }
}

fn seen(name: &'static str) -> Observation<'static> {
    Observation {
        namespace: Some("infra".into()),
        name: Some(name.into()),
        observed_spec_hash: Some(NEW.into()),
        ..Observation::default()
    }
}

fn running(name: &'static str) -> Observation<'static> {
    Observation {
        process_started: Some(true),
        healthy: Some(true),
        running_spec_hash: Some(NEW.into()),
        pid: Some(4711),
        restart_count: Some(2),
        artifact_digest: Some("sha256:0123456789abcdef".into()),
        ..seen(name)
    }
}

fn live(wanted: Vec<Wanted>, observations: Vec<Observation<'static>>) -> Live<'static> {
    let good = Contact { seconds_ago: Some(3), gateway: Some("https://gw:8080".into()), problem: None };
    Live {
        version: "0.1.0".into(),
        pid: 900,
        up_seconds: 93_784,
        device: "tor1-01".into(),
        gateways: vec!["https://gw:8080".into(), "https://gw2:8080".into()],
        token: "/etc/apollo/token".into(),
        heartbeat_seconds: 15,
        revision: Some(1234),
        desired: good.clone(),
        report: good,
        wanted,
        observations,
        ..Live::default()
    }
}

fn belief(live: &Live<'_>) -> Belief {
    let mut belief = Belief { state_folder: "/var/lib/apollo/agent".into(), ..Belief::default() };
    belief.take(live);
    belief.judge();
    belief
}

#[test]
fn one_screen() {
    let failing = Observation {
        running_spec_hash: Some(OLD.into()),
        artifact_last_error: Some("the checksum\nis wrong".into()),
        ..running("b")
    };
    let live =
        live(vec![wanted("a", Restart::Always), wanted("b", Restart::Always)], vec![running("a"), failing, seen("c")]);
    let belief = belief(&live);
    assert!(!belief.well);
    assert_eq!(
        belief.render(),
        "\
device     tor1-01
agent      runs for 1 d 2 h as process 900, version 0.1.0
gateways   https://gw:8080, https://gw2:8080
asking     last good answer 3 s ago from https://gw:8080
reporting  last good answer 3 s ago from https://gw:8080
token      /etc/apollo/token
state      /var/lib/apollo/agent, revision 1234

PROCESS  BACKEND  PHASE    HEALTHY  PID   RESTARTS  WANTED    RUNNING   ARTIFACT
infra/a  systemd  Running  yes      4711  2         aabbccdd  aabbccdd  01234567
infra/b  systemd  Running  yes      4711  2         aabbccdd  00112233  01234567
    the checksum is wrong
infra/c  -        Pending  -        -     -         gone      -         -
"
    );
}

#[test]
fn without_an_agent() {
    let mut belief =
        Belief { state_folder: "/s".into(), remarks: vec!["as root it would say more".into()], ..Belief::default() };
    belief.processes = rows(&[wanted("a", Restart::Always)], &[]);
    belief.judge();
    let text = belief.render();
    assert!(!belief.well && text.contains("agent      does not run\n"), "{text}");
    assert!(text.contains("note       as root it would say more\n"), "{text}");
    assert!(text.contains("infra/a  systemd  Unknown"), "{text}");
}

#[test]
fn well_is_when_everything_is() {
    let good = || live(vec![wanted("a", Restart::Always)], vec![running("a")]);
    assert!(belief(&good()).well);
    assert!(belief(&live(vec![], vec![])).well);
    type Break = fn(&mut Live<'static>);
    let broken: [(&str, Break); 8] = [
        ("asking fails", |l| l.desired.problem = Some("x".into())),
        ("never reported", |l| l.report.seconds_ago = None),
        ("unhealthy", |l| l.observations[0].healthy = Some(false)),
        ("old", |l| l.observations[0].running_spec_hash = Some(OLD.into())),
        ("not started", |l| l.observations[0].process_started = None),
        ("warned", |l| l.observations[0].warning_message = Some("x".into())),
        ("nothing is said of it", |l| l.observations.clear()),
        ("too many", |l| l.observations.push(running("b"))),
    ];
    for (what, breaks) in broken {
        let mut live = good();
        breaks(&mut live);
        assert!(!belief(&live).well, "{what}");
    }
    let mut idle = good();
    idle.observe_only = true;
    idle.observations = vec![seen("a")];
    assert!(belief(&idle).well, "nothing is run on purpose");
}

#[test]
fn phases_are_those_of_the_cluster() {
    let ended = |code| Observation { process_started: Some(false), exit_code: Some(code), ..seen("a") };
    for (observation, restart, expected) in [
        (seen("a"), Restart::Always, "Pending"),
        (running("a"), Restart::Never, "Running"),
        (ended(0), Restart::Always, "Pending"),
        (ended(0), Restart::OnFailure, "Succeeded"),
        (ended(0), Restart::Never, "Succeeded"),
        (ended(1), Restart::OnFailure, "Pending"),
        (ended(1), Restart::Never, "Failed"),
        (Observation { error_message: Some("x".into()), ..running("a") }, Restart::Always, "Failed"),
    ] {
        assert_eq!(phase(&observation, restart), expected, "{observation:?} {restart:?}");
    }
}

#[test]
fn what_has_failed_for_good_says_how() {
    let ended = Observation {
        process_started: Some(false),
        exit_code: Some(137),
        last_termination_reason: Some("OOMKilled".into()),
        ..seen("a")
    };
    let problem = |restart| rows(&[wanted("a", restart)], std::slice::from_ref(&ended))[0].problem.clone();
    assert_eq!(
        problem(Restart::Never).unwrap(),
        "it has ended with exit code 137 (OOMKilled) and is not started again"
    );
    assert_eq!(problem(Restart::Always), None);
    let sick = Observation { healthy: Some(false), health_message: Some("no link".into()), ..running("a") };
    assert_eq!(rows(&[wanted("a", Restart::Always)], &[sick])[0].problem.as_deref(), Some("no link"));
}

#[test]
fn ages() {
    for (seconds, text) in [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")] {
        assert_eq!(age(seconds), text);
    }
}
