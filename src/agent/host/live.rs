//! Pure: what a running agent says of itself to whoever asks on the device.

use crate::agent::holding::Holding;
use crate::agent::process::spec::{BackendKind, RestartPolicy, Spec};
use crate::wire::desired::DesiredItem;
use crate::wire::report::{Observation, Rejection};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Live<'a> {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// How long it has run, seconds.
    pub up_seconds: u64,
    /// The device's name.
    pub device: String,
    /// The gateways, in order.
    pub gateways: Vec<String>,
    /// Where the token comes from, in words; never the token.
    pub token: String,
    /// It runs nothing.
    pub observe_only: bool,
    /// How often it reports, seconds.
    pub heartbeat_seconds: u64,
    /// The highest revision seen.
    pub revision: Option<u64>,
    /// How it stands with asking what to run.
    pub desired: Contact,
    /// How it stands with reporting.
    pub report: Contact,
    /// What the gateway did not take.
    pub rejected: Vec<Rejection>,
    /// What should run.
    pub wanted: Vec<Wanted>,
    /// What it reports of each process.
    #[serde(borrow)]
    pub observations: Vec<Observation<'a>>,
}

/// How it stands with one of the two ways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Contact {
    /// Seconds since the last good answer; none: there was none since the agent's start.
    pub seconds_ago: Option<u64>,
    /// Who gave it.
    pub gateway: Option<String>,
    /// Why there was none at the last try.
    pub problem: Option<String>,
}

/// The same as the agent keeps it.
#[derive(Debug, Default)]
pub struct Note {
    answered: Option<(Instant, String)>,
    problem: Option<String>,
}

/// A process that should run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// Hash of the spec.
    pub spec_hash: String,
    /// What is to run it; none when this agent cannot read the spec.
    pub backend: Option<BackendKind>,
    /// Whether one that has ended is started again.
    pub restart: Restart,
}

/// [`RestartPolicy`] with a name on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// After any exit.
    #[default]
    Always,
    /// After one that is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

// === impl Note ===

impl Note {
    /// What became of a request to `gateway`.
    pub fn set(&mut self, now: Instant, gateway: &impl ToString, problem: Option<&String>) {
        if problem.is_none() {
            match &mut self.answered {
                // The same one nearly always: nothing is allocated.
                Some((at, name)) if *name == gateway.to_string() => *at = now,
                answered => *answered = Some((now, gateway.to_string())),
            }
        }
        self.problem = problem.cloned();
    }

    /// As it is told.
    #[must_use]
    pub fn contact(&self, now: Instant) -> Contact {
        let since = |at: Instant| now.saturating_duration_since(at).as_secs();
        Contact {
            seconds_ago: self.answered.as_ref().map(|(at, _)| since(*at)),
            gateway: self.answered.as_ref().map(|(_, name)| name.clone()),
            problem: self.problem.clone(),
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// Everything that is held, in its order.
    #[must_use]
    pub fn all(holding: &Holding) -> Vec<Self> {
        holding.items().iter().map(Self::of).collect()
    }

    /// One process.
    #[must_use]
    pub fn of(item: &DesiredItem) -> Self {
        let spec = Spec::parse(item.spec.get()).ok();
        Self {
            namespace: item.namespace.clone(),
            name: item.name.clone(),
            spec_hash: item.spec_hash.clone(),
            backend: spec.as_ref().map(|spec| spec.execution.backend),
            restart: spec.map_or(Restart::Always, |spec| match spec.restart_policy {
                RestartPolicy::Always => Restart::Always,
                RestartPolicy::OnFailure => Restart::OnFailure,
                RestartPolicy::Never => Restart::Never,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_good_answer_is_remembered_beside_a_later_problem() {
        let (start, mut note) = (Instant::now(), Note::default());
        assert_eq!(note.contact(start), Contact::default());
        note.set(start, &"http://a", None);
        note.set(start + Duration::from_secs(5), &"http://b", Some(&"broken".to_owned()));
        let contact = note.contact(start + Duration::from_secs(9));
        assert_eq!((contact.seconds_ago, contact.gateway.as_deref()), (Some(9), Some("http://a")));
        assert_eq!(contact.problem.as_deref(), Some("broken"));
        note.set(start + Duration::from_secs(9), &"http://b", None);
        let contact = note.contact(start + Duration::from_secs(9));
        assert_eq!(
            (contact.seconds_ago, contact.gateway.as_deref(), contact.problem),
            (Some(0), Some("http://b"), None)
        );
    }

    #[test]
    fn a_later_agent_is_understood() {
        let text = r#"{"version":"9","new":1,"observations":[{"namespace":"a","name":"b","newer":2}]}"#;
        let live: Live<'_> = serde_json::from_str(text).unwrap();
        assert_eq!((live.version.as_str(), live.observations[0].name.as_deref()), ("9", Some("b")));
        let again = serde_json::to_string(&live).unwrap();
        assert_eq!(serde_json::from_str::<Live<'_>>(&again).unwrap().observations, live.observations);
    }
}
