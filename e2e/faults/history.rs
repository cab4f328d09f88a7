//! Pure: judges what happened: every version of every object, every event, and what the devices did and were told,
//! against the promises. It knows nothing of how the faults were made, and cannot be argued with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::crowd::content;
use crate::harness::{Ack, Attempt, EventSeen, Kind, Ledger, Said, Seen, Silence, condition_status};

/// One version of an object, as far as it matters.
#[derive(Debug, Clone)]
pub struct Version {
    /// When it was seen.
    pub at: Instant,
    /// `DeviceProcess`, `NetworkSwitch`, …
    pub kind: Kind,
    /// Its uid.
    pub uid: Arc<str>,
    /// `namespace/name`.
    pub name: Arc<str>,
    /// The device it is for; a switch is its own.
    pub device: Arc<str>,
    /// The uid of the deployment that it is a child of.
    pub owner: Arc<str>,
    /// Whether this is its end.
    pub deleted: bool,
    /// Whether it was there before the recording began.
    pub initial: bool,
    /// AgentConnected, once it is there.
    pub connected: Option<bool>,
    /// The content that was reported last.
    pub content: Option<u64>,
    /// `status.transitions`.
    pub transitions: u64,
    /// `status.lastEvents.reasons`.
    pub reasons: Vec<String>,
    /// The conditions that are True.
    pub conditions: BTreeSet<String>,
    /// Everything whose change is worth a write.
    pub substance: String,
}

/// An event as it was seen.
#[derive(Debug, Clone)]
pub struct Event {
    /// The uid of the object it is about.
    pub uid: Arc<str>,
    /// Why.
    pub reason: String,
}

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// In the order in which they were seen.
    pub versions: Vec<Version>,
    /// Each once.
    pub events: Vec<Event>,
    /// What the devices did and were told.
    pub attempts: Vec<Attempt>,
    /// What was acknowledged.
    pub acks: Vec<Ack>,
    /// When devices were away.
    pub silences: Vec<Silence>,
    /// What was said when for the first time.
    pub said: Vec<Said>,
    /// What devices complained of.
    pub complaints: Vec<String>,
    /// Objects (`namespace/name`) that were deleted on purpose.
    pub removed: Vec<String>,
}

/// What is promised, in times.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// So long a device may be silent.
    pub window: Duration,
    /// So long after the window a verdict may take at most, whatever else has failed.
    pub verdict: Duration,
    /// So much later than it was written a version may have been seen.
    pub lag: Duration,
    /// The same for acknowledgements, where being generous costs little: what is lost is missing at the end, too.
    pub ack_lag: Duration,
    /// The end of the story.
    pub end: Instant,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Called dead although it had been heard within the window.
    FalseDisconnect { object: String, silent: Duration },
    /// Silent for longer than window and verdict allow, and never called dead.
    NoVerdict { object: String, silent: Duration },
    /// A report was acknowledged and the object still says that the device is away.
    StaysDisconnected { object: String },
    /// A transition whose patch names no event.
    TransitionWithoutEvent { object: String, reason: String },
    /// Fewer or more events than transitions.
    EventCount { object: String, reason: String, transitions: usize, events: usize },
    /// Acknowledged, and not in the object by then.
    AckNotWritten { object: String, content: u64, late: Option<Duration> },
    /// Acknowledged, and missing at the end.
    AckLost { object: String, acked: u64, last: Option<u64> },
    /// A later version shows an earlier content.
    WentBack { object: String, from: u64, to: u64 },
    /// Two children of one deployment for one device at a time.
    ChildTwice { device: String, children: [String; 2] },
    /// An object was deleted that nobody wanted away.
    WronglyDeleted { object: String },
    /// A version in which nothing changed that is worth a write.
    NeedlessWrite { object: String },
    /// What a device saw and should not.
    Complaint(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Version {
    /// From what the recorder saw; none for kinds that are not judged.
    pub fn of(seen: &Seen) -> Option<Self> {
        let object = &seen.object;
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let device = match seen.kind {
            Kind::Process => text("/spec/deviceRef/name"),
            Kind::Switch => &seen.name,
            _ => return None,
        };
        let status = &object["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let reasons = status["lastEvents"]["reasons"].as_array().into_iter().flatten();
        Some(Self {
            at: seen.at,
            kind: seen.kind,
            uid: text("/metadata/uid").into(),
            name: format!("{}/{}", seen.namespace, seen.name).into(),
            device: device.into(),
            owner: text("/metadata/ownerReferences/0/uid").into(),
            deleted: seen.deleted,
            initial: seen.initial,
            connected: match condition_status(object, "AgentConnected") {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            content: content(object),
            transitions: status["transitions"].as_u64().unwrap_or(0),
            reasons: reasons.filter_map(|reason| Some(reason.as_str()?.to_owned())).collect(),
            conditions: conditions
                .filter(|condition| condition["status"] == "True")
                .filter_map(|condition| Some(condition["type"].as_str()?.to_owned()))
                .collect(),
            substance: substance(object),
        })
    }
}

/// What is worth a write: the spec, the metadata that somebody asked for, and the status without what only goes along.
fn substance(object: &Value) -> String {
    let mut status = object["status"].clone();
    if let Some(status) = status.as_object_mut() {
        status.retain(|field, _| {
            !matches!(field.as_str(), "lastReport" | "lastEvents" | "transitions" | "lastTransitionTime")
        });
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            condition.as_object_mut().map(|condition| condition.remove("lastTransitionTime"));
        }
    }
    let meta = &object["metadata"];
    let parts = ["labels", "annotations", "ownerReferences", "deletionTimestamp", "generation"].map(|key| &meta[key]);
    format!("{status}{}", parts.map(Value::to_string).join(""))
}

impl Story {
    /// What the recorder and the devices know.
    pub fn new(seen: &[Seen], events: &[EventSeen], ledger: Ledger) -> Self {
        let event = |event: &EventSeen| Event {
            uid: event.raw["regarding"]["uid"].as_str().unwrap_or_default().into(),
            reason: event.reason.clone(),
        };
        Self {
            versions: seen.iter().filter_map(Version::of).collect(),
            events: events.iter().map(event).collect(),
            attempts: ledger.attempts,
            acks: ledger.acks,
            silences: ledger.silences,
            said: ledger.said,
            complaints: ledger.complaints,
            removed: Vec::new(),
        }
    }

    /// When each content that was said in the time between could be read from its object, counted from when it was
    /// said first; none: never.
    pub fn delays(&self, from: Instant, until: Instant) -> Vec<(Said, Option<Duration>)> {
        let objects = self.objects();
        let said = self.said.iter().filter(|said| (from..until).contains(&said.at));
        said.map(|said| {
            let versions = objects.values().flatten().filter(|version| version.name == said.process);
            let shown = versions.filter(|v| !v.deleted && v.content >= Some(said.content)).map(|v| v.at).min();
            (said.clone(), shown.map(|at| at.saturating_duration_since(said.at)))
        })
        .collect()
    }

    /// The versions of each object, by uid.
    fn objects(&self) -> BTreeMap<Arc<str>, Vec<&Version>> {
        let mut objects: BTreeMap<_, Vec<&Version>> = BTreeMap::new();
        for version in &self.versions {
            objects.entry(version.uid.clone()).or_default().push(version);
        }
        objects
    }
}

/// Every promise that was not kept.
pub fn check(story: &Story, rules: &Rules) -> Vec<Violation> {
    let mut found: Vec<_> = story.complaints.iter().cloned().map(Violation::Complaint).collect();
    let mut contacts: HashMap<&str, Vec<&Attempt>> = HashMap::new();
    for attempt in story.attempts.iter().filter(|a| a.report && a.status == 200) {
        contacts.entry(&attempt.device).or_default().push(attempt);
    }
    let objects = story.objects();
    for versions in objects.values() {
        let heard = contacts.get(&*versions[0].device).map_or(&[][..], Vec::as_slice);
        verdicts(versions, heard, rules, &mut found);
        writes(versions, &mut found);
    }
    silences(story, &objects, rules, &mut found);
    events(story, &objects, &mut found);
    acks(story, &objects, rules, &mut found);
    children(story, &mut found);
    found
}

/// No False for a device that was heard, no lasting one for a device that is acknowledged.
fn verdicts(versions: &[&Version], heard: &[&Attempt], rules: &Rules, found: &mut Vec<Violation>) {
    let object = || versions[0].name.to_string();
    for (number, pair) in versions.windows(2).enumerate() {
        let (before, dead) = (pair[0], pair[1]);
        if dead.deleted || dead.connected != Some(false) || before.connected == Some(false) {
            continue;
        }
        // Answered clearly before the verdict was seen, and sent after its window began: no clock can explain that.
        let latest = heard.iter().filter(|a| a.ended + rules.lag <= dead.at).map(|a| a.sent).max();
        if let Some(latest) = latest.filter(|sent| dead.at < *sent + rules.window) {
            found.push(Violation::FalseDisconnect { object: object(), silent: dead.at - latest });
        }
        let back = versions[number + 2..].iter().find(|v| v.connected != Some(false) || v.deleted);
        let back = back.map_or(rules.end, |version| version.at);
        // Sent clearly after it was called dead, answered clearly before it was called alive.
        if heard.iter().any(|a| a.sent >= dead.at + rules.lag && a.ended + rules.lag < back) {
            found.push(Violation::StaysDisconnected { object: object() });
        }
    }
}

/// Silence is found out.
fn silences(story: &Story, objects: &BTreeMap<Arc<str>, Vec<&Version>>, rules: &Rules, found: &mut Vec<Violation>) {
    for silence in &story.silences {
        let until = silence.until.unwrap_or(rules.end).min(rules.end);
        let silent = until.saturating_duration_since(silence.from);
        if silent < rules.window + rules.verdict {
            continue;
        }
        for versions in objects.values().filter(|versions| versions[0].device == silence.device) {
            let at = |moment: Instant| versions.iter().rfind(|version| version.at <= moment);
            let was = at(silence.from + rules.lag).and_then(|version| version.connected);
            let limit = silence.from + rules.window + rules.verdict;
            let is = at(limit).filter(|version| !version.deleted);
            if was == Some(true) && is.is_some_and(|version| version.connected != Some(false)) {
                found.push(Violation::NoVerdict { object: versions[0].name.to_string(), silent });
            }
        }
    }
}

/// A version in which something changed that is worth it; and none that goes back.
fn writes(versions: &[&Version], found: &mut Vec<Violation>) {
    let mut highest = None;
    for (number, version) in versions.iter().enumerate() {
        let object = || version.name.to_string();
        if version.deleted {
            break;
        }
        if let (Some(from), to) = (highest, version.content)
            && to < Some(from)
        {
            found.push(Violation::WentBack { object: object(), from, to: to.unwrap_or(0) });
        }
        highest = highest.max(version.content);
        if number > 0 && versions[number - 1].substance == version.substance {
            found.push(Violation::NeedlessWrite { object: object() });
        }
    }
}

/// As many events as transitions, for each object and reason.
fn events(story: &Story, objects: &BTreeMap<Arc<str>, Vec<&Version>>, found: &mut Vec<Violation>) {
    let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
    for event in &story.events {
        *seen.entry((&event.uid, &event.reason)).or_default() += 1;
    }
    for (uid, versions) in objects {
        let object = || versions[0].name.to_string();
        // A switch has no events. What was there before the recording has events from before.
        if versions[0].kind != Kind::Process || versions[0].initial {
            continue;
        }
        let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
        let mut missed = false;
        for pair in versions.windows(2).filter(|pair| !pair[1].deleted) {
            let (before, after) = (pair[0], pair[1]);
            // The watch was broken for longer than the apiserver remembers.
            missed |= after.transitions > before.transitions + 1;
            let emits = after.transitions > before.transitions;
            for reason in happened(before, after) {
                if !emits || !after.reasons.iter().any(|known| known == reason) {
                    found.push(Violation::TransitionWithoutEvent { object: object(), reason: reason.into() });
                }
            }
            if emits {
                after.reasons.iter().for_each(|reason| *expected.entry(reason).or_default() += 1);
            }
        }
        let there = seen.keys().filter(|(about, _)| *about == &**uid).map(|(_, reason)| *reason);
        for reason in expected.keys().copied().chain(there).collect::<BTreeSet<_>>() {
            let transitions = expected.get(reason).copied().unwrap_or(0);
            let events = seen.get(&(&**uid, reason)).copied().unwrap_or(0);
            if if missed { events < transitions } else { events != transitions } {
                found.push(Violation::EventCount { object: object(), reason: reason.into(), transitions, events });
            }
        }
    }
}

/// The events that two successive versions call for.
fn happened(before: &Version, after: &Version) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    match (before.connected, after.connected) {
        (None | Some(false), Some(true)) => reasons.push("AgentConnected"),
        (Some(true), Some(false)) => reasons.push("AgentDisconnected"),
        _ => {}
    }
    for (condition, reason) in [("ProcessStarted", "ProcessStarted"), ("SpecWarning", "SpecWarning")] {
        if !before.conditions.contains(condition) && after.conditions.contains(condition) {
            reasons.push(reason);
        }
    }
    if before.conditions.contains("Healthy") && !after.conditions.contains("Healthy") {
        reasons.push("Unhealthy");
    }
    reasons
}

/// What was acknowledged is there, at once and in the end.
fn acks(story: &Story, objects: &BTreeMap<Arc<str>, Vec<&Version>>, rules: &Rules, found: &mut Vec<Violation>) {
    let mut by_name: HashMap<&str, Vec<&Version>> = HashMap::new();
    for versions in objects.values() {
        by_name.entry(&versions[0].name).or_default().extend(versions);
    }
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for ack in &story.acks {
        let top = highest.entry(&ack.process).or_default();
        *top = (*top).max(ack.content);
        let versions = by_name.get(&*ack.process).map_or(&[][..], Vec::as_slice);
        let shown = versions.iter().filter(|v| v.content >= Some(ack.content)).map(|v| v.at).min();
        let late = shown.map(|at| at.saturating_duration_since(ack.at));
        if late.is_none_or(|late| late > rules.ack_lag) && seen.insert((&ack.process, ack.content)) {
            let object = ack.process.to_string();
            found.push(Violation::AckNotWritten { object, content: ack.content, late });
        }
    }
    for (process, acked) in highest {
        let Some(last) = by_name.get(process).and_then(|versions| versions.iter().max_by_key(|v| v.at)) else {
            continue;
        };
        if !last.deleted && last.content < Some(acked) {
            found.push(Violation::AckLost { object: process.into(), acked, last: last.content });
        }
    }
}

/// One child for each device of a deployment, and none deleted.
fn children(story: &Story, found: &mut Vec<Violation>) {
    let mut living: HashMap<(&str, &str), BTreeMap<&str, &str>> = HashMap::new();
    for version in story.versions.iter().filter(|v| v.kind == Kind::Process) {
        if version.deleted && !story.removed.iter().any(|name| **name == *version.name) {
            found.push(Violation::WronglyDeleted { object: version.name.to_string() });
        }
        if version.owner.is_empty() {
            continue;
        }
        let siblings = living.entry((&version.owner, &version.device)).or_default();
        if version.deleted {
            siblings.remove(&*version.uid);
            continue;
        }
        let new = siblings.insert(&version.uid, &version.name).is_none();
        if new && siblings.len() > 1 {
            let mut names = siblings.values();
            let children = [names.next(), names.next()].map(|name| name.copied().unwrap_or_default().to_owned());
            found.push(Violation::ChildTwice { device: version.device.to_string(), children });
        }
    }
}
