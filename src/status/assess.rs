//! Pure: what a report changes, and who has to see to it.

use super::observed::Observed;
use super::projection::{Input, Introduction, Reported, project, project_switch};
use crate::desired::index::{Index, Kind};
use crate::desired::lean::{Key, Text};
use crate::desired::record::{ConditionType, LastReport};
use crate::presence::order::{Order, fingerprint};
use crate::presence::said::Footing;
use crate::presence::staleness::{AgentState, Hearing};
use crate::wire::report::Rejection;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A report, read and checked.
#[derive(Debug, Clone, Default)]
pub struct Incoming {
    /// What the agent says of itself.
    pub introduction: Introduction,
    /// Random per start of the agent. Without it the sequence is ignored.
    pub boot_id: Option<Text>,
    /// Grows within the bootId.
    pub sequence: Option<u64>,
    /// The observations that could be read.
    pub observations: Vec<Observed>,
    /// Hash of what the agent says of itself and what the observations say, the same at every replica and never 0;
    /// `None` when some could not be read.
    pub fingerprint: Option<u64>,
    /// Whether it came as a connect.
    pub connect: bool,
    /// As the device sent it, for another replica.
    pub body: Bytes,
}

/// How a report is answered. This is also what one replica answers another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Outcome {
    /// Written, or nothing to write.
    Done {
        /// Observations that were not applied.
        rejected: Vec<Rejection>,
    },
    /// There were observations, and all of them were of other devices' processes.
    AllNotYours,
    /// Not (yet) written.
    Later {
        /// When to repeat the report, seconds.
        retry_after_seconds: u64,
    },
}

/// What is to be written of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The observation, of a DeviceProcess.
    pub reported: Option<Arc<Reported>>,
    /// What its agent says of itself, of a NetworkSwitch.
    pub introduction: Introduction,
    /// Whether the acknowledgement waits for it.
    pub urgent: bool,
}

/// Objects to be written, sorted, so that two replicas go through them in one order.
pub type Jobs = BTreeMap<(Kind, Key), Wanted>;

/// A report compared with the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What the status does not say yet, or may be about to stop saying.
    pub jobs: Jobs,
    /// Observations of other devices' processes.
    pub rejected: Vec<Rejection>,
    /// Objects that the index does not know: only a live read can tell.
    pub unknown: Vec<Key>,
    /// Objects whose status says what was observed, as far as the index knows.
    pub agreed: Vec<Key>,
}

/// What a replica is to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It works for the device, and nobody else ever does. Not so when no other replica shows: one that is about to
    /// leave or to join, or cannot renew its Lease, takes in reports, too.
    Alone,
    /// It works for the device, and every other replica was heard just now.
    InTouch,
    /// It works for the device.
    Owner,
    /// It does not, but whoever does cannot be reached.
    Fallback,
    /// Another replica does.
    Other,
}

/// Who has to see to a report, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// There is nothing to do: it is acknowledged here.
    Answer,
    /// The owner decides.
    Forward,
    /// What differs is written here; what agrees needs nothing.
    Apply,
    /// As [`Course::Apply`], but what agrees with the index is first read live, since the index may be old. Without a
    /// live read it is not acknowledged.
    Verify,
}

// === impl Place ===

impl Place {
    /// Whether a report counts as taken in here: from then on what it changed is in the cache, or in the queue. Not so
    /// where another replica sees to it, nor where it was believed because the one before it said the same: that says
    /// nothing of the cache's age.
    #[must_use]
    pub fn takes_in(self, footing: Footing) -> bool {
        self != Self::Other && footing != Footing::Same
    }

    /// Whether a cache that agrees with a report proves nothing, so that only a live read does. See
    /// [`crate::presence::said`] for what a footing is worth.
    #[must_use]
    pub fn doubts(self, footing: Footing) -> bool {
        matches!(
            (footing, self),
            (Footing::Elsewhere { same_words: false }, Self::InTouch)
                | (Footing::Elsewhere { .. } | Footing::Unknown, Self::Owner | Self::Fallback)
        )
    }

    /// What an owner is when it is asked how well it knows the others: in touch where all of them were heard just now;
    /// where nothing is known of any report, also where nobody else shows, if the apiserver that says so answers.
    /// `peers` are the other replicas in the view. `hearing` and `apiserver` are asked only where it matters.
    #[must_use]
    pub fn in_touch(
        self,
        footing: Footing,
        peers: usize,
        hearing: impl FnOnce() -> Hearing,
        apiserver: impl FnOnce() -> bool,
    ) -> Self {
        let in_touch = self == Self::Owner
            && match footing {
                Footing::Elsewhere { same_words: true } => peers > 0 && hearing().is_in_touch(peers),
                Footing::Unknown if peers == 0 => apiserver(),
                Footing::Unknown => hearing().is_in_touch(peers),
                _ => false,
            };
        if in_touch { Self::InTouch } else { self }
    }
}

// === impl Incoming ===

impl Incoming {
    /// Takes the observations, with their place in the order of reports.
    #[must_use]
    pub fn reported(&mut self) -> Vec<Arc<Reported>> {
        let order = self.boot_id.clone().zip(self.sequence);
        let order = order.map(|(boot_id, sequence)| LastReport { boot_id, sequence });
        let observations = std::mem::take(&mut self.observations);
        observations.into_iter().map(|observed| Arc::new(Reported { observed, order: order.clone() })).collect()
    }

    /// What is left of a report when a newer one is known: a bare sign of life. So it changes nothing wherever it is
    /// forwarded to, also where nobody knows of the newer one yet.
    pub fn outdate(&mut self) {
        *self = Self { connect: true, body: Bytes::from_static(b"{}"), ..Self::default() };
    }

    /// Whether it is a sign of life and nothing else.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.introduction.is_empty() && self.observations.is_empty()
    }
}

// === impl Assessment ===

impl Assessment {
    /// Compares a report with what the index knows. `reported` are its observations; `is_pending` tells objects for
    /// which something waits to be written here; `gone` those that a live read did not find; `now` is wall time,
    /// seconds since 1970.
    #[must_use]
    pub fn new(
        index: &Index,
        device: &str,
        introduction: &Introduction,
        reported: &[Arc<Reported>],
        is_pending: impl Fn(Kind, &Key) -> bool,
        gone: impl Fn(&Key) -> bool,
        now: i64,
    ) -> Self {
        let mut assessment = Self { jobs: reconnected(index, device), ..Self::default() };
        for reported in reported {
            assessment.observation(index, device, reported, &is_pending, &gone, now);
        }
        if !introduction.is_empty() {
            assessment.introduction(index, device, introduction);
        }
        assessment
    }

    fn observation(
        &mut self,
        index: &Index,
        device: &str,
        reported: &Arc<Reported>,
        is_pending: impl Fn(Kind, &Key) -> bool,
        gone: impl Fn(&Key) -> bool,
        now: i64,
    ) {
        let Observed { namespace, name, .. } = &reported.observed;
        let Some(process) = index.process(namespace, name) else {
            let key = Key { namespace: namespace.as_str().into(), name: name.as_str().into() };
            if !gone(&key) {
                self.unknown.push(key);
            }
            return;
        };
        let cross = index.settings().allow_cross_namespace;
        let counts = index.device(device).is_some_and(|device| device.counts(namespace, cross));
        if &*process.device != device || !counts {
            let (namespace, name) = (namespace.clone(), name.clone());
            self.rejected.push(Rejection { namespace, name, reason: "NotYours".into() });
            return;
        }
        let input = Input { agent: AgentState::Alive, counts: true, reported: Some(reported) };
        let change = project(process, input, now);
        if change.is_none() && !is_pending(Kind::Process, &process.key) {
            self.agreed.push(process.key.clone());
            return;
        }
        let urgent = change.is_none_or(|change| change.is_urgent());
        let wanted = Wanted { reported: Some(reported.clone()), introduction: Introduction::default(), urgent };
        self.jobs.insert((Kind::Process, process.key.clone()), wanted);
    }

    fn introduction(&mut self, index: &Index, device: &str, introduction: &Introduction) {
        let switches = index.device(device).map(|device| device.switches.as_slice()).unwrap_or_default();
        for switch in switches {
            if project_switch(&switch.status, AgentState::Alive, introduction, 0).is_some() {
                let wanted = Wanted { reported: None, introduction: introduction.clone(), urgent: true };
                self.jobs.insert((Kind::Switch, switch.key.clone()), wanted);
            }
        }
    }

    /// Whether there is nothing to write and nothing to look up.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.jobs.is_empty() && self.unknown.is_empty()
    }

    /// Whether every observation of so many was of another device's process.
    #[must_use]
    pub fn is_all_not_yours(&self, count: usize) -> bool {
        count > 0 && self.rejected.len() == count
    }

    /// Who has to see to it. `bare` is [`Incoming::is_bare`]. See [`crate::presence::said`] for what a footing is
    /// worth.
    #[must_use]
    pub fn course(&self, footing: Footing, bare: bool, place: Place) -> Course {
        if place == Place::Other {
            // What says nothing cannot be forgotten.
            let believed = bare || matches!(footing, Footing::Same | Footing::Here);
            return if believed && self.is_done() { Course::Answer } else { Course::Forward };
        }
        // What differs is written under a version, and a conflict reads live: no doubt is needed there. What differs and
        // waits is read by whoever lets it wait.
        match place.doubts(footing) && !self.agreed.is_empty() {
            true => Course::Verify,
            false if self.is_done() => Course::Answer,
            false => Course::Apply,
        }
    }
}

/// The order of reports that the statuses of a device's processes remember: the latest one's.
#[must_use]
pub fn remembered(index: &Index, device: &str) -> Option<Order> {
    let processes = index.device(device)?.processes.iter();
    let latest =
        processes.filter(|process| process.status.last_report.is_some()).max_by_key(|process| process.revision)?;
    latest.status.last_report.as_ref().map(|last| Order::seeded(fingerprint(&last.boot_id), last.sequence))
}

/// Everything of a device whose status does not say yet that it reports.
fn reconnected(index: &Index, device: &str) -> Jobs {
    let Some(known) = index.device(device) else { return Jobs::new() };
    let cross = index.settings().allow_cross_namespace;
    let processes = known.processes.iter().filter(|process| {
        known.counts(&process.key.namespace, cross) && process.status.is(ConditionType::AgentConnected) != Some(true)
    });
    let switches = known.switches.iter().filter(|switch| switch.status.connected.map(|c| c.0) != Some(true));
    processes
        .map(|process| (Kind::Process, process.key.clone()))
        .chain(switches.map(|switch| (Kind::Switch, switch.key.clone())))
        .map(|key| (key, Wanted { reported: None, introduction: Introduction::default(), urgent: true }))
        .collect()
}

#[cfg(test)]
#[path = "assess_tests.rs"]
mod tests;
