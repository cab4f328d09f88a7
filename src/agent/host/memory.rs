//! Pure: what can be said of a process while no agent runs: what is remembered of it, and what its backend has.

use crate::agent::backend::{Activity, Found};
use crate::agent::process::record::Record;
use crate::wire::report::Observation;
use crate::wire::time;

/// As the agent would say it, as far as one can without it. One of the two is enough; `wanted` is the hash of the spec
/// that should run.
#[must_use]
pub fn recall(record: Option<&Record>, found: Option<&Found>, wanted: Option<&str>) -> Observation<'static> {
    let text = |text: &str| Some(text.to_owned().into()).filter(|_| !text.is_empty());
    let mut said = Observation::default();
    match (record, found) {
        (Some(record), _) => (said.namespace, said.name) = (text(&record.namespace), text(&record.name)),
        // Its marks do not tell where the namespace ends.
        (None, Some(found)) => (said.namespace, said.name) = (text("unknown"), text(found.identity.as_str())),
        (None, None) => {}
    }
    said.observed_spec_hash = wanted.and_then(text);
    let started = record.and_then(|record| record.started.as_ref()).map(|version| version.spec_hash.as_str());
    said.running_spec_hash = found.and_then(|found| found.running.as_deref()).or(started).and_then(text);
    let finished = record.and_then(|r| r.finished.iter().find(|run| Some(run.spec_hash.as_str()) == wanted));
    match found.map(|found| &found.activity) {
        Some(Activity::Running { pid, started }) => {
            said.process_started = Some(true);
            said.pid = Some(*pid).filter(|pid| *pid > 0);
            said.start_time = Some(*started).filter(|at| *at > 0).map(|at| time::format(at).into());
            let verdict = record.and_then(|record| record.verdict.as_ref());
            let verdict = verdict.filter(|verdict| (verdict.run.pid, verdict.run.started) == (*pid, *started));
            said.healthy = verdict.map(|verdict| verdict.healthy);
            said.health_message = verdict.and_then(|verdict| verdict.message.as_deref()).and_then(text);
        }
        Some(Activity::Ended(exit) | Activity::Restarting(exit)) => {
            said.process_started = Some(false);
            said.exit_code = Some(exit.code.into());
            said.last_termination_reason = text(&exit.reason);
        }
        Some(Activity::Stopped) => said.process_started = Some(false),
        None => {}
    }
    if let (Some(finished), None | Some(false)) = (finished, said.process_started) {
        said.process_started = Some(false);
        said.running_spec_hash = text(&finished.spec_hash);
        said.exit_code = Some(finished.exit.code.into());
        said.last_termination_reason = text(&finished.exit.reason);
    }
    let Some(record) = record else { return said };
    said.restart_count = i64::try_from(record.restart_count(found.map(|found| &found.activity))).ok();
    let digest = |hash: &str| {
        let pins = [&record.pinned, &record.good].into_iter().flatten().find(|pin| pin.spec_hash == hash);
        let installed = [&record.installed, &record.started].into_iter().flatten().find(|v| v.spec_hash == hash);
        pins.map(|pin| pin.digest.clone()).or_else(|| installed.and_then(|version| version.digest.clone()))
    };
    said.artifact_digest = said.running_spec_hash.as_deref().or(wanted).and_then(digest).map(Into::into);
    let current = |hash: &str| wanted.is_none() || wanted == Some(hash);
    if let Some(failure) = record.download.failure.as_ref().filter(|_| current(&record.download.spec_hash)) {
        said.artifact_last_error = text(&failure.message);
    }
    if let Some(problem) = record.problem.as_ref().filter(|problem| current(&problem.spec_hash)) {
        let lives = said.process_started == Some(true);
        *(if lives { &mut said.warning_message } else { &mut said.error_message }) = text(&problem.message);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::backend::Exit;
    use crate::agent::process::identity::Identity;
    use crate::agent::process::record::{Finished, Pinned, Problem};

    const HASH: &str = "sha256:aa";

    fn record() -> Record {
        Record { namespace: "infra".into(), name: "a".into(), ..Record::default() }
    }

    fn found(activity: Activity) -> Found {
        Found {
            identity: Identity::new("infra", "a"),
            uid: "u".into(),
            installed: HASH.into(),
            running: Some(HASH.into()),
            activity,
            exits: 0,
            epoch: String::new(),
            last_exit: None,
        }
    }

    #[test]
    fn what_lives_without_an_agent_is_seen() {
        let running = found(Activity::Running { pid: 7, started: 1_765_583_700 });
        let pinned = Some(Pinned { spec_hash: HASH.into(), digest: "sha256:dd".into() });
        let problem = Some(Problem { spec_hash: HASH.into(), message: "no room".into() });
        let mut record = Record { pinned, problem, ..record() };
        (record.restarts.ends, record.restarts.last_ends) = (3, 1);
        let said = recall(Some(&record), Some(&running), Some(HASH));
        assert_eq!((said.process_started, said.pid, said.restart_count), (Some(true), Some(7), Some(2)));
        assert_eq!(
            (said.artifact_digest.as_deref(), said.warning_message.as_deref()),
            (Some("sha256:dd"), Some("no room"))
        );
        assert_eq!((said.start_time.as_deref(), said.error_message), (Some("2025-12-12T23:55:00Z"), None));
        let alone = recall(None, Some(&running), None);
        assert_eq!((alone.name.as_deref(), alone.running_spec_hash.as_deref()), (Some("praetor-infra.a"), Some(HASH)));
    }

    #[test]
    fn what_has_ended_is_told_with_its_exit() {
        let exit = Exit { code: 3, reason: "Error".into() };
        let said = recall(Some(&record()), Some(&found(Activity::Ended(exit.clone()))), Some(HASH));
        assert_eq!((said.process_started, said.exit_code), (Some(false), Some(3)));
        let finished = vec![Finished { uid: "u".into(), spec_hash: HASH.into(), exit }];
        let problem = Some(Problem { spec_hash: "sha256:old".into(), message: "of another spec".into() });
        let said = recall(Some(&Record { finished, problem, ..record() }), None, Some(HASH));
        assert_eq!((said.exit_code, said.running_spec_hash.as_deref()), (Some(3), Some(HASH)));
        assert_eq!(said.error_message, None);
        // Nobody has looked, and nothing is remembered: nothing is claimed.
        assert_eq!(recall(Some(&record()), None, Some(HASH)).process_started, None);
    }
}
