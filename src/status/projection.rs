//! Pure: status + what is known now → the next status and the events of the transition, or nothing.

use super::observed::Observed;
use crate::api::condition::reasons as known;
use crate::desired::lean::{Process, RestartPolicy, Text};
use crate::desired::record::{
    Condition, ConditionType, Counters, Details, LastReport, Outbox, Phase, Reason, Record, SwitchRecord,
    agent_connected,
};
use crate::presence::staleness::AgentState;

/// A device's observation, with its place in the order of reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// What was seen.
    pub observed: Observed,
    /// bootId and sequence of the report.
    pub order: Option<LastReport>,
}

/// Everything that a status follows from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Whether the device's agent lives.
    pub agent: AgentState,
    /// Whether the DeviceProcess counts for its device (contract §1, which devices exist).
    pub counts: bool,
    /// The newest observation.
    pub reported: Option<&'a Reported>,
}

/// What an agent says of itself. What it leaves out stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Its version.
    pub version: Option<Text>,
    /// What the device can do, as [`crate::wire::capabilities::Capabilities::text`].
    pub capabilities: Option<Text>,
}

/// What a patch is to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The next status.
    pub record: Record,
    /// Reasons of the events that go with it.
    pub reasons: Vec<Reason>,
    /// How soon it has to be written.
    pub weight: Weight,
}

/// How soon a change has to be written (contract §2, write classes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Counters alone: they ride along with the next change, or go once a minute.
    Counters,
    /// What a process does by itself and may do again and again: it starts, ends, falls ill, cannot be fetched. At
    /// once, within its budget (see [`super::budget`]).
    Turn,
    /// The connection, an artifact's digest: at once.
    Step,
    /// Another spec was seen, or runs: at once, and the budget is whole again.
    Spec,
}

/// The next status of a DeviceProcess; `None` when nothing changed. `now` is wall time, seconds since 1970.
#[must_use]
pub fn project(process: &Process, input: Input, now: i64) -> Option<Change> {
    let before = &process.status;
    let mut next = before.clone();
    let mut reasons = Vec::new();
    let reported = input.reported.filter(|reported| input.counts && !is_older(before, reported));
    project_agent(&mut next, &mut reasons, input, now);
    project_counts(&mut next, &mut reasons, input.counts, reported, now);
    if let Some(reported) = reported {
        project_observed(process, &mut next, &mut reasons, &reported.observed, now);
    }
    if next == *before {
        return None;
    }
    let weight = weigh(before, &next);
    // These ride along; alone they are no reason to write.
    next.daemon_set = true;
    // A number that Kubernetes cannot store would make it refuse the rest, too.
    if let Some(order) =
        reported.and_then(|reported| reported.order.as_ref()).filter(|order| i64::try_from(order.sequence).is_ok())
    {
        next.last_report = Some(order.clone());
    }
    if !reasons.is_empty() {
        next.transitions += 1;
        next.outbox = Some(Box::new(Outbox { time: now, reasons: reasons.clone() }));
    }
    Some(Change { record: next, reasons, weight })
}

/// What to write where there is nothing to write, but a patch may still come whose answer was lost: the place of the
/// report in the order alone. With it the object has another version, and that patch comes to nothing. `None` when
/// the status holds it already.
#[must_use]
pub fn fence(before: &Record, order: &LastReport) -> Option<Change> {
    let new = i64::try_from(order.sequence).is_ok() && before.last_report.as_ref() != Some(order);
    let record = Record { last_report: Some(order.clone()), ..before.clone() };
    new.then_some(Change { record, reasons: Vec::new(), weight: Weight::Step })
}

/// The next status of a NetworkSwitch; `None` when nothing changed.
#[must_use]
pub fn project_switch(
    before: &SwitchRecord,
    agent: AgentState,
    introduction: &Introduction,
    now: i64,
) -> Option<SwitchRecord> {
    let mut next = before.clone();
    match (agent, before.connected.map(|(connected, _)| connected)) {
        (AgentState::Alive, None | Some(false)) => next.connected = Some((true, now)),
        (AgentState::Stale, Some(true)) => next.connected = Some((false, now)),
        _ => {}
    }
    let Introduction { version, capabilities } = introduction;
    for (slot, said) in [(&mut next.agent_version, version), (&mut next.capabilities, capabilities)] {
        if said.is_some() {
            slot.clone_from(said);
        }
    }
    (next != *before).then_some(next)
}

// === impl Change ===

impl Change {
    /// Whether more than counters change.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.weight > Weight::Counters
    }

    /// Whether the process counts as ready in a rollout with it, if it runs the right spec.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let is = |kind| self.record.is(kind) == Some(true);
        self.record.phase == Phase::Succeeded || is(ConditionType::ProcessStarted) && is(ConditionType::Healthy)
    }
}

// === impl Introduction ===

impl Introduction {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over from an older one what this one does not say.
    pub fn absorb(&mut self, older: Self) {
        self.version = self.version.take().or(older.version);
        self.capabilities = self.capabilities.take().or(older.capabilities);
    }
}

/// Whether the status already holds a later report of the same start of the agent.
fn is_older(record: &Record, reported: &Reported) -> bool {
    match (&record.last_report, &reported.order) {
        (Some(last), Some(order)) => last.boot_id == order.boot_id && order.sequence < last.sequence,
        _ => false,
    }
}

fn weigh(before: &Record, next: &Record) -> Weight {
    let spec = |record: &Record| (record.observed, record.running, record.observed_generation);
    let digest = |record: &Record| record.details.as_ref().and_then(|details| details.artifact_digest.clone());
    let step = |record: &Record| (record.is(ConditionType::AgentConnected), digest(record));
    if spec(before) != spec(next) || before.artifact_version != next.artifact_version {
        Weight::Spec
    } else if step(before) != step(next) {
        Weight::Step
    } else if urgent_part(before) != urgent_part(next) {
        Weight::Turn
    } else {
        Weight::Counters
    }
}

/// Everything but what may wait: the counters.
fn urgent_part(record: &Record) -> Record {
    let mut part = record.clone();
    if let Some(details) = &mut part.details {
        details.counters = Counters::default();
    }
    tidy(&mut part);
    part
}

fn project_agent(next: &mut Record, reasons: &mut Vec<Reason>, input: Input, now: i64) {
    let connected = match (input.agent, next.is(ConditionType::AgentConnected)) {
        // A device says nothing of what it is not served.
        (AgentState::Alive, None | Some(false)) if input.counts => true,
        // Absent means never seen; there is nothing to lose.
        (AgentState::Stale, Some(true)) => false,
        _ => return,
    };
    let (reason, message) = agent_connected(connected);
    set(next, ConditionType::AgentConnected, connected, reason, message, now);
    reasons.push(if connected { Reason::AgentConnected } else { Reason::AgentDisconnected });
}

fn project_counts(next: &mut Record, reasons: &mut Vec<Reason>, counts: bool, reported: Option<&Reported>, now: i64) {
    let warned = next
        .condition(ConditionType::SpecWarning)
        .is_some_and(|c| c.status && &*c.reason == known::DEVICE_NOT_IN_NAMESPACE);
    if !counts && !warned {
        let message = "a NetworkSwitch of this name exists in another namespace: create the DeviceProcess there, or start praetor-manager with --allow-cross-namespace";
        if set(next, ConditionType::SpecWarning, true, known::DEVICE_NOT_IN_NAMESPACE, message, now) {
            reasons.push(Reason::SpecWarning);
        }
    } else if counts && warned && reported.is_none_or(|reported| reported.observed.warning.is_none()) {
        // Otherwise the agent's own warning takes its place, and it stays True.
        remove(next, ConditionType::SpecWarning);
    }
}

fn project_observed(process: &Process, next: &mut Record, reasons: &mut Vec<Reason>, observed: &Observed, now: i64) {
    let current = observed.spec == process.spec.hash;
    let another = next.observed.replace(observed.spec) != Some(observed.spec);
    let appeared =
        set(next, ConditionType::SpecObserved, true, known::SPEC_OBSERVED, &format!("observed {}", observed.spec), now);
    if another || appeared {
        reasons.push(Reason::SpecObserved);
    }
    if current {
        next.observed_generation = Some(process.generation);
    }
    match &observed.warning {
        Some(warning) => {
            // What a device must not be confused with.
            let reason = observed.warning_reason.as_deref().filter(|reason| *reason != known::DEVICE_NOT_IN_NAMESPACE);
            if set(next, ConditionType::SpecWarning, true, reason.unwrap_or(known::AGENT_WARNING), warning, now) {
                reasons.push(Reason::SpecWarning);
            }
        }
        // A warning is repeated as long as it holds.
        None => remove(next, ConditionType::SpecWarning),
    }
    project_artifact(next, observed, now);
    let had_failed = has_failed(next);
    project_process(next, reasons, observed, now);
    // As long as an older version runs, that is the version.
    if current && next.running.is_none_or(|running| running == process.spec.hash) {
        let version = &process.spec.artifact_version;
        keep(&mut next.artifact_version, Some(&**version).filter(|version| !version.is_empty()));
    }
    let phase = phase(next, observed, process.spec.restart_policy);
    if phase != next.phase {
        next.phase = phase;
        next.phase_since = Some(now);
    }
    if has_failed(next) && !had_failed {
        reasons.push(Reason::ProcessFailed);
    }
}

/// Whether the process cannot run, or its last run failed and no other is under way: in a crash loop once a round.
fn has_failed(record: &Record) -> bool {
    let exited =
        record.condition(ConditionType::ProcessStarted).is_some_and(|c| !c.status && &*c.reason == known::EXITED);
    let code = record.details.as_ref().and_then(|details| details.exit_code);
    record.phase == Phase::Failed || exited && code.is_some_and(|code| code != 0)
}

fn project_artifact(next: &mut Record, observed: &Observed, now: i64) {
    let artifact = &observed.artifact;
    for (kind, said, done, failed) in [
        (
            ConditionType::ArtifactDownloaded,
            &artifact.downloaded,
            "the artifact is on the device",
            "the download failed",
        ),
        (
            ConditionType::ArtifactVerified,
            &artifact.verified,
            "the checksum is right",
            "the artifact could not be verified",
        ),
    ] {
        let Some((done_now, reason, message)) = said else { continue };
        let error = artifact.last_error.as_deref();
        let (default_reason, default_message) = match (done_now, error) {
            (true, _) => (known::SUCCEEDED, done),
            (false, Some(error)) if kind == ConditionType::ArtifactDownloaded => (known::FAILED, error),
            (false, Some(_)) => (known::FAILED, failed),
            (false, None) => (known::PENDING, "not yet"),
        };
        set(
            next,
            kind,
            *done_now,
            reason.as_deref().unwrap_or(default_reason),
            message.as_deref().unwrap_or(default_message),
            now,
        );
    }
    let whole = artifact.downloaded.is_some() || artifact.verified.is_some();
    let details = details(next);
    fill_text(&mut details.artifact_digest, artifact.digest.as_deref(), whole);
    fill_text(&mut details.artifact_last_error, artifact.last_error.as_deref(), whole);
    fill(&mut details.counters.artifact_download_attempts, artifact.attempts, whole);
    fill(&mut details.counters.last_artifact_attempt_time, artifact.last_attempt, whole);
    tidy(next);
}

fn project_process(next: &mut Record, reasons: &mut Vec<Reason>, observed: &Observed, now: i64) {
    // An error says that the process is not there, whatever else is left out.
    let started = observed.started.or(observed.error.is_some().then_some(false));
    let whole = started.is_some();
    if let Some(started) = started {
        project_started(next, reasons, observed, started, now);
    }
    if let Some(healthy) = observed.healthy {
        let (reason, message) = if healthy {
            (known::HEALTHY, "the process is healthy")
        } else {
            let said = observed.health_message.as_deref().or(observed.error.as_deref());
            (known::UNHEALTHY, said.unwrap_or("the health check fails"))
        };
        if set(next, ConditionType::Healthy, healthy, reason, message, now) && !healthy {
            reasons.push(Reason::Unhealthy);
        }
    } else if whole {
        // The verdict on the run before says nothing of this one.
        remove(next, ConditionType::Healthy);
    }
    match (started, observed.running) {
        (Some(true), running) => next.running = running.or(Some(observed.spec)),
        (_, Some(running)) => next.running = Some(running),
        // What ran last is still what a finished process was started from.
        (_, None) => {}
    }
    let details = details(next);
    fill(&mut details.exit_code, observed.exit_code, whole);
    fill_text(&mut details.last_termination_reason, observed.last_termination_reason.as_deref(), whole);
    fill(&mut details.counters.pid, observed.pid, whole);
    fill(&mut details.counters.start_time, observed.start_time, whole);
    fill(&mut details.counters.restart_count, observed.restart_count, whole);
    tidy(next);
}

fn project_started(next: &mut Record, reasons: &mut Vec<Reason>, observed: &Observed, started: bool, now: i64) {
    let ended = !started && observed.exit_code.is_some();
    let reason = if started {
        known::STARTED
    } else if ended {
        known::EXITED
    } else {
        known::NOT_STARTED
    };
    let message = observed.error.as_deref().or(observed.last_termination_reason.as_deref().filter(|_| ended));
    let message = message.unwrap_or(if started {
        "the process is running"
    } else if ended {
        "the process has ended"
    } else {
        "the process is not running"
    });
    if set(next, ConditionType::ProcessStarted, started, reason, message, now) && started {
        reasons.push(Reason::ProcessStarted);
    }
}

/// The first that fits (contract §2). What the observation leaves out, the status still knows.
fn phase(next: &Record, observed: &Observed, policy: RestartPolicy) -> Phase {
    let started = next.is(ConditionType::ProcessStarted);
    if observed.started.is_none() && observed.error.is_none() {
        // It says nothing of the process; what was said before still holds.
        return next.phase;
    }
    let exit_code = observed.exit_code.filter(|_| started == Some(false));
    let over = match policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit_code == Some(0),
        RestartPolicy::Never => exit_code.is_some(),
    };
    if over && exit_code == Some(0) {
        Phase::Succeeded
    } else if over || observed.error.is_some() && observed.warning_reason.as_deref() != Some(known::BACKEND_UNAVAILABLE)
    {
        Phase::Failed
    } else if started == Some(true) {
        Phase::Running
    } else {
        Phase::Pending
    }
}

/// Sets a condition; true when its status changed or it is new. The time moves only then.
fn set(record: &mut Record, kind: ConditionType, status: bool, reason: &str, message: &str, now: i64) -> bool {
    if let Some(known) = record.conditions.iter_mut().find(|condition| condition.kind == kind) {
        let changed = known.status != status;
        if changed {
            known.status = status;
            known.since = now;
        }
        if &*known.reason != reason {
            known.reason = reason.into();
        }
        if &*known.message != message {
            known.message = message.into();
        }
        return changed;
    }
    record.conditions.push(Condition { kind, status, since: now, reason: reason.into(), message: message.into() });
    true
}

fn remove(record: &mut Record, kind: ConditionType) {
    record.conditions.retain(|condition| condition.kind != kind);
}

fn details(record: &mut Record) -> &mut Details {
    record.details.get_or_insert_default()
}

/// A record without any detail holds none, so that equal records compare equal.
fn tidy(record: &mut Record) {
    if record.details.as_deref() == Some(&Details::default()) {
        record.details = None;
    }
}

/// Takes in a fact. One that is left out is none when the observation speaks for its whole group, and is as it was
/// when it does not.
fn fill(slot: &mut Option<i64>, said: Option<i64>, whole: bool) {
    if whole || said.is_some() {
        *slot = said;
    }
}

fn fill_text(slot: &mut Option<Text>, said: Option<&str>, whole: bool) {
    if whole || said.is_some() {
        keep(slot, said);
    }
}

fn keep(slot: &mut Option<Text>, text: Option<&str>) {
    if slot.as_deref() != text {
        *slot = text.map(Into::into);
    }
}

#[cfg(test)]
#[path = "projection_tests.rs"]
mod tests;
