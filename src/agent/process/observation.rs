//! Pure: what is reported of one process.
//!
//! The manager makes phase and conditions of it; here is decided what it may conclude. An error says that the process
//! is not there and makes the phase Failed; so what stands in the way of a new version while the old one runs is a
//! warning. An exit code is told only of a run of the spec that is wanted: it makes Succeeded or Failed of it. What is
//! not known (a backend that does not answer) is left out, and stays as it was said last.

use super::reconcile::Wanted;
use super::record::Record;
use crate::agent::backend::{Activity, Exit, Found};
use crate::wire::BACKEND_UNAVAILABLE;
use crate::wire::report::Observation;
use crate::wire::time;
use std::borrow::Cow;

/// Everything that an observation follows from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What is wanted.
    pub wanted: Wanted<'a>,
    /// What is remembered.
    pub record: &'a Record,
    /// What is there, under whichever backend.
    pub found: Option<&'a Found>,
    /// Why it cannot be known what is there, or nothing can be run: the backend that is needed is not available.
    pub unavailable: Option<&'a str>,
    /// Nobody has looked yet what is there.
    pub unseen: bool,
    /// The artifact is on the device.
    pub present: bool,
}

/// What is reported.
#[must_use]
pub fn observation(view: &View<'_>) -> Observation<'static> {
    let View { wanted, record, .. } = view;
    let mut said = Observation {
        namespace: Some(record.namespace.clone().into()),
        name: Some(record.name.clone().into()),
        observed_spec_hash: Some(wanted.spec_hash.to_owned().into()),
        ..Observation::default()
    };
    if view.unseen {
        // The first look comes in a moment; until then nothing is claimed.
        return said;
    }
    let live = process(view, &mut said);
    artifact(view, &mut said);
    trouble(view, live, &mut said);
    said
}

/// Says what the process does; true when it lives.
fn process(view: &View<'_>, said: &mut Observation<'static>) -> bool {
    let View { wanted, record, found, .. } = view;
    let activity = found.map(|found| &found.activity);
    let ran = found.and_then(|found| found.running.clone());
    let ran = ran.or_else(|| record.started.as_ref().map(|version| version.spec_hash.clone()));
    if view.unavailable.is_some() && found.is_none() && record.started.is_some() {
        // It may run or not.
        return false;
    }
    let finished = record.finished(wanted.uid, wanted.spec_hash);
    said.restart_count = i64::try_from(record.restart_count(activity)).ok();
    if let Some(Exit { reason, .. }) = record.last_exit.as_ref() {
        said.last_termination_reason = text(reason);
    }
    if let Some(Activity::Running { pid, started }) = activity {
        said.process_started = Some(true);
        said.running_spec_hash = ran.map(Cow::Owned);
        said.pid = Some(*pid).filter(|pid| *pid > 0);
        said.start_time = Some(*started).filter(|s| *s > 0).map(|s| time::format(s).into());
        let verdict = record.verdict.as_ref().filter(|v| (v.run.pid, v.run.started) == (*pid, *started));
        said.healthy = verdict.map(|verdict| verdict.healthy);
        said.health_message = verdict.and_then(|verdict| verdict.message.as_deref()).and_then(text);
        return true;
    }
    said.process_started = Some(false);
    let mine = ran.as_deref() == Some(wanted.spec_hash);
    let exit = match activity {
        Some(Activity::Ended(exit) | Activity::Restarting(exit)) if mine => Some(exit),
        _ => None,
    };
    if let Some(exit) = finished.map(|finished| &finished.exit).or(exit) {
        said.exit_code = Some(exit.code.into());
        said.last_termination_reason = text(&exit.reason);
    }
    said.running_spec_hash = finished.map(|f| f.spec_hash.clone()).or(ran).map(Cow::Owned);
    // What its backend brings back to life is only away for a moment.
    matches!(activity, Some(Activity::Restarting(_)))
}

fn artifact(view: &View<'_>, said: &mut Observation<'static>) {
    let View { wanted, record, .. } = view;
    let download = record.download(wanted.spec_hash);
    said.artifact_download_attempts = download.map(|download| download.attempts.into());
    said.last_artifact_attempt_time = download.and_then(|d| d.last_attempt).map(|t| time::format(t).into());
    if let Some(digest) = record.pinned(wanted.spec_hash).filter(|_| view.present) {
        said.artifact_digest = text(digest);
        said.artifact_downloaded = Some(true);
        said.artifact_verified = Some(true);
        return;
    }
    let runs = record.started.as_ref().is_some_and(|version| version.is(wanted.uid, wanted.spec_hash));
    if download.is_none() && (runs || wanted.spec.is_err()) {
        // Found running, with nobody to remember what from; or nobody can read what it would be.
        return;
    }
    let failure = download.and_then(|download| download.failure.as_ref());
    said.artifact_downloaded = Some(failure.is_some_and(|failure| failure.downloaded));
    said.artifact_verified = Some(false);
    let Some(failure) = failure else { return };
    said.artifact_last_error = text(&failure.message);
    let (reason, message) = (text(&failure.reason), text(&failure.message));
    if failure.downloaded {
        (said.artifact_verify_reason, said.artifact_verify_message) = (reason, message);
    } else {
        (said.artifact_download_reason, said.artifact_download_message) = (reason, message);
        said.artifact_verify_reason = text("Pending");
        said.artifact_verify_message = text("not yet");
    }
}

fn trouble(view: &View<'_>, live: bool, said: &mut Observation<'static>) {
    let View { wanted, record, .. } = view;
    if let Some(why) = view.unavailable {
        // Nothing was tried, so nothing has failed.
        said.warning_message = text(why);
        said.warning_reason = Some(BACKEND_UNAVAILABLE.into());
        return;
    }
    let problem = record.problem.as_ref().map(|problem| problem.message.clone());
    let why = wanted.spec.err().map(ToString::to_string).or(problem);
    match why {
        Some(why) if live => said.warning_message = text(&why),
        Some(why) if said.exit_code.is_none() => said.error_message = text(&why),
        // How it ended says it all, unless it could not be brought back.
        Some(why) => said.warning_message = text(&why),
        None => {}
    }
}

/// Whether what changed should be reported at once: anything but counters and times of attempts.
#[must_use]
pub fn differs(before: &Observation<'_>, after: &Observation<'_>) -> bool {
    let core = |o: &Observation<'_>| {
        let mut core = o.clone();
        core.artifact_download_attempts = None;
        core.last_artifact_attempt_time = None;
        core.restart_count = core.restart_count.filter(|_| o.process_started == Some(true));
        serde_json::to_string(&core).unwrap_or_default()
    };
    core(before) != core(after)
}

fn text(text: &str) -> Option<Cow<'static, str>> {
    (!text.is_empty()).then(|| text.to_owned().into())
}

#[cfg(test)]
mod tests;
