//! Mirrors `src/status/events.rs`: each transition's event, until it is there.

use super::super::apiserver::{Answer, Verb};
use super::super::world::World;
use super::writer::After;
use super::{Process, Then, Timer};
use praetor::desired::lean::Process as Lean;
use praetor::desired::record::{Outbox, Record};
use praetor::ownership::members::View;
use praetor::ownership::rendezvous::device_hash;
use praetor::status::events::name;
use std::collections::{BTreeMap, HashMap};

const CALL_TIMEOUT_MS: u64 = 5_000;
const INLINE_MS: u64 = 5_000;
const PATIENCE_SECONDS: i64 = 600;

/// One event to be written.
struct Task {
    event: (String, String, String, u64),
    failures: u32,
    emission: Option<u64>,
}

/// The events of one transition, which hold up the object's next write for a while.
struct Emission {
    left: usize,
    after: After,
    about: (String, u64),
}

/// What is under way.
#[derive(Default)]
pub struct Emissions {
    tasks: BTreeMap<u64, Task>,
    emissions: BTreeMap<u64, Emission>,
    /// The latest transition of an object, by its uid, whose events this replica has made sure of.
    sure: HashMap<String, u64>,
}

impl Emissions {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl Process {
    /// The process dies: events that could not be written for five seconds die with it.
    pub fn lost_events(&self) -> Vec<(String, String, u64)> {
        let tasks = self.emissions.tasks.values();
        let lost =
            tasks.filter(|task| task.emission.is_none_or(|number| !self.emissions.emissions.contains_key(&number)));
        lost.map(|Task { event: (_, uid, reason, transition), .. }| (uid.clone(), reason.clone(), *transition))
            .collect()
    }

    /// Whether the events of the transition that a status remembers may be missing, as far as this replica knows.
    pub fn owes(&self, world: &World, process: &Lean) -> bool {
        let recent = |outbox: &Outbox| (self.wall(world) - outbox.time).abs() <= PATIENCE_SECONDS;
        process.status.outbox.as_deref().is_some_and(recent)
            && self.emissions.sure.get(&*process.uid).is_none_or(|sure| *sure < process.status.transitions)
    }

    /// Writes the events of a transition; goes on then, or after five seconds.
    pub fn emit(&mut self, world: &mut World, process: &Lean, record: &Record, after: After) {
        let reasons = record.outbox.as_ref().map_or(Vec::new(), |outbox| outbox.reasons.clone());
        let number = self.number();
        let about = (process.uid.to_string(), record.transitions);
        self.emissions.emissions.insert(number, Emission { left: reasons.len(), after, about });
        world.timer(self.at, INLINE_MS, Timer::Inline(number));
        let emission = Some(number);
        for reason in reasons {
            let event = (
                name(process, reason, record.transitions),
                process.uid.to_string(),
                reason.as_str().to_owned(),
                record.transitions,
            );
            let task = self.number();
            self.emissions.tasks.insert(task, Task { event, failures: 0, emission });
            self.try_event(world, task);
        }
    }

    pub fn on_inline(&mut self, world: &mut World, emission: u64) {
        if let Some(Emission { after, about: (uid, transition), .. }) = self.emissions.emissions.remove(&emission) {
            let sure = self.emissions.sure.entry(uid).or_default();
            *sure = transition.max(*sure);
            self.emitted(world, after);
        }
    }

    pub fn try_event(&mut self, world: &mut World, task: u64) {
        if let Some(Task { event, .. }) = self.emissions.tasks.get(&task) {
            let verb = Verb::Event(Box::new(event.clone()));
            self.call(world, verb, CALL_TIMEOUT_MS, Then::Event(task));
        }
    }

    pub fn on_event(&mut self, world: &mut World, number: u64, answer: &Answer) {
        let Some(task) = self.emissions.tasks.get_mut(&number) else { return };
        if matches!(answer, Answer::Done | Answer::Conflict) {
            let emission = task.emission;
            self.emissions.tasks.remove(&number);
            return self.event_done(world, emission);
        }
        task.failures += 1;
        let most = (100_u64 << task.failures.min(9)).min(30_000);
        let delay = self.rng.range(most / 2, most);
        world.timer(self.at, delay, Timer::Event(number));
    }

    fn event_done(&mut self, world: &mut World, emission: Option<u64>) {
        let Some(number) = emission else { return };
        let Some(emission) = self.emissions.emissions.get_mut(&number) else { return };
        emission.left -= 1;
        if emission.left == 0 {
            self.on_inline(world, number);
        }
    }

    /// Makes sure that the events of recent transitions of a device exist.
    fn repair(&mut self, world: &mut World, device: &str) {
        let now = self.wall(world);
        let Some(known) = self.index.device(device) else { return };
        let recent = known.processes.iter().filter(|process| {
            process.status.outbox.as_ref().is_some_and(|outbox| (now - outbox.time).abs() <= PATIENCE_SECONDS)
        });
        for process in recent.cloned().collect::<Vec<_>>() {
            // Existence is asked for first in production; a create that exists tells the same.
            self.emit(world, &process, &process.status, After::Nothing);
        }
    }

    /// After a start, and when somebody is lost who may have written a status and not its event.
    pub fn repair_all(&mut self, world: &mut World) {
        if !self.is_open() {
            return;
        }
        let view = self.view.clone();
        let mine = self.index.devices(0, usize::MAX).filter(|(name, _)| view.is_mine(device_hash(name)));
        for device in mine.map(|(name, _)| name.to_string()).collect::<Vec<_>>() {
            self.repair(world, &device);
        }
    }
}

/// Whether a replica that was there is not any more, or not in the same incarnation.
pub fn somebody_left(before: &View, now: &View) -> bool {
    before.peers().any(|peer| now.member(&peer.identity).is_none_or(|still| still.incarnation != peer.incarnation))
}
