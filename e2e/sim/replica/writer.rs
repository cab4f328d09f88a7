//! Mirrors `src/status/writer.rs`: derives patches when they are sent, and sends them.

use super::super::apiserver::{Answer, Patch, Verb};
use super::super::guards::Guard;
use super::super::world::World;
use super::{Process, Then, Timer, replica_of};
use praetor::desired::index::Kind;
use praetor::desired::lean::{Key, Process as Lean, Text};
use praetor::desired::record::{Record, merge_patch};
use praetor::ownership::rendezvous::device_hash;
use praetor::presence::order::fingerprint;
use praetor::presence::staleness::AgentState;
use praetor::status::budget::Budgets;
use praetor::status::job::{self, CONFLICTS};
use praetor::status::limiter::{Class, Limiter};
use praetor::status::projection::{Change, project_switch};
use praetor::status::queue::{Lane, Queue};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

const WORKERS: usize = 16;
const CALL_TIMEOUT_MS: u64 = 5_000;
const CAPACITY: usize = 10_000;
/// Status writes a second.
const RATE: u32 = 20;

/// As production's job; who waits is named by the number of the case.
pub type Job = job::Job<u64>;

/// A job that is being worked on.
struct Flight {
    kind: Kind,
    key: Key,
    job: Job,
    /// How often it was looked at.
    rounds: u32,
    class: Class,
    /// What is about to be sent or has been sent.
    patch: Option<Patch>,
    /// The object that it is based on, and what it becomes.
    base: Option<(Arc<Lean>, Box<Change>)>,
    /// The verdict that it was derived with.
    agent: AgentState,
}

/// See the module.
pub struct Writer {
    queue: Queue<Text, (Kind, Key), Job>,
    limiter: Limiter,
    budgets: Budgets,
    flights: BTreeMap<u64, Flight>,
    pumps: u64,
    hurried: bool,
}

/// What goes on when the events of a transition are written.
#[derive(Debug, Clone)]
pub enum After {
    Nothing,
    /// The object may be written again.
    Done((Kind, Key)),
    /// A flight goes on.
    Derive(u64),
}

enum Next {
    Done,
    Emit(Arc<Lean>, Box<Record>),
    Later(u64),
}

impl Writer {
    pub fn new() -> Self {
        Self {
            queue: Queue::new(CAPACITY),
            limiter: Limiter::new(RATE),
            budgets: Budgets::default(),
            flights: BTreeMap::new(),
            pumps: 0,
            hurried: false,
        }
    }

    pub fn is_pending(&self, kind: Kind, key: &Key) -> bool {
        !self.queue.is_empty() && self.queue.contains(&(kind, key.clone()))
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// While closing, everything is due.
    pub fn hurry(&mut self) {
        self.hurried = true;
    }
}

impl Process {
    pub fn submit(&mut self, world: &mut World, kind: Kind, key: Key, job: Job) {
        let device = match kind {
            Kind::Switch => Some(key.name.clone()),
            _ => self.index.process(&key.namespace, &key.name).map(|process| process.device.clone()),
        };
        let now = self.now_ms(world);
        // Never full here.
        let _ = self.writer.queue.push(device.unwrap_or_default(), (kind, key), job, now, now);
        self.pump(world);
    }

    /// Takes what is due, as far as there are workers.
    pub fn pump(&mut self, world: &mut World) {
        loop {
            let now = if self.writer.hurried { u64::MAX } else { self.now_ms(world) };
            let counters = if self.writer.hurried {
                Ok(())
            } else {
                self.writer.limiter.check(Class::Counters, self.now_ms(world))
            };
            if self.writer.flights.len() >= WORKERS {
                return;
            }
            let next = self.writer.queue.pop(now, |lane| lane == Lane::Transitions || counters.is_ok());
            let Some(((kind, key), job)) = next else {
                let now = self.now_ms(world);
                let open = counters.err().filter(|_| !self.writer.queue.is_empty()).map(|wait| now + wait);
                if let Some(due) = self.writer.queue.next_due_ms().into_iter().chain(open).min() {
                    self.writer.pumps += 1;
                    world.timer(self.at, due.saturating_sub(now), Timer::Pump(self.writer.pumps));
                }
                return;
            };
            let number = self.number();
            let flight = Flight {
                kind,
                key,
                job,
                rounds: 0,
                class: Class::Transitions,
                patch: None,
                base: None,
                agent: AgentState::Unjudged,
            };
            self.writer.flights.insert(number, flight);
            self.derive(world, number);
        }
    }

    pub fn on_pump(&mut self, world: &mut World, number: u64) {
        if number == self.writer.pumps {
            self.pump(world);
        }
    }

    /// What the patch must say now.
    fn derive(&mut self, world: &mut World, number: u64) {
        let Some(mut flight) = self.writer.flights.remove(&number) else { return };
        flight.rounds += 1;
        if flight.rounds > CONFLICTS {
            let at = self.now_ms(world) + flight.job.conflict_pause_ms(|low, high| self.rng.range(low, high));
            return self.end(world, flight, Next::Later(at));
        }
        match flight.kind {
            Kind::Process => self.derive_process(world, number, flight),
            Kind::Switch => {
                let switch = self.index.switch(&flight.key.namespace, &flight.key.name).cloned();
                let Some(switch) = switch else { return self.finish(world, flight) };
                let agent = self.state(world, &flight.key.name.clone());
                flight.agent = agent;
                let wall = self.wall(world);
                let next = project_switch(&switch.status, agent, &flight.job.introduction, wall);
                let Some(next) = next else { return self.finish(world, flight) };
                let status = merge_patch(&switch.status.write(), &next.write()).unwrap_or(Value::Null);
                flight.patch = Some(self.patch_of(world, &flight, switch.revision, &switch.uid, status));
                self.send_patch(world, number, flight);
            }
            Kind::Deployment => self.finish(world, flight),
        }
    }

    fn derive_process(&mut self, world: &mut World, number: u64, mut flight: Flight) {
        let key = flight.key.clone();
        let Some(process) = self.index.process(&key.namespace, &key.name).cloned() else {
            return self.finish(world, flight);
        };
        let counts = self.index.device(&process.device).is_some_and(|device| device.counts(&key.namespace, false));
        if flight.job.settle_doubt(&process) {
            self.emit(world, &process, &process.status, After::Nothing);
        }
        if self.is_superseded(&flight.job, &process.device) {
            for case in flight.job.supersede() {
                self.unwritten(world, case);
            }
        }
        let agent = self.state(world, &process.device);
        flight.agent = agent;
        let change = flight.job.change(&process, agent, counts, self.wall(world));
        let Some(change) = change else {
            return if flight.job.unsure { self.make_sure(world, number, flight) } else { self.over(world, flight) };
        };
        if !change.reasons.is_empty() && self.owes(world, &process) {
            // Its events must not be forgotten with the next ones.
            self.writer.flights.insert(number, flight);
            return self.emit(world, &process, &process.status, After::Derive(number));
        }
        let now = self.now_ms(world);
        if !self.writer.hurried
            && let Some(due) = flight.job.defer(&change, &process, &self.writer.budgets, now)
        {
            if flight.job.unsure {
                return self.make_sure(world, number, flight);
            }
            self.tell_written(world, &mut flight.job);
            return self.end(world, flight, Next::Later(due));
        }
        flight.class = if change.is_urgent() { Class::Transitions } else { Class::Counters };
        let status = merge_patch(&process.status.write(), &change.record.write()).unwrap_or(Value::Null);
        flight.patch = Some(self.patch_of(world, &flight, process.revision, &process.uid, status));
        flight.base = Some((process, Box::new(change)));
        self.send_patch(world, number, flight);
    }

    fn is_superseded(&self, job: &Job, device: &str) -> bool {
        job.order().is_some_and(|order| {
            self.presence.table.is_superseded(device_hash(device), fingerprint(&order.boot_id), order.sequence)
        })
    }

    fn patch_of(&self, world: &World, flight: &Flight, revision: u64, uid: &str, status: Value) -> Patch {
        let precondition = world.guards.on(Guard::Version);
        Patch {
            kind: flight.kind,
            key: flight.key.clone(),
            uid: precondition.then(|| uid.into()),
            revision: precondition.then_some(revision),
            status,
            decided: world.now,
            members: self.members(),
        }
    }

    /// Waits for leave to write, and writes.
    fn send_patch(&mut self, world: &mut World, number: u64, mut flight: Flight) {
        let now = self.now_ms(world);
        if let Err(wait) = self.writer.limiter.take(flight.class, now) {
            self.writer.flights.insert(number, flight);
            return world.timer(self.at, wait, Timer::Limited(number));
        }
        let Some(mut patch) = flight.patch.take() else { return };
        let device = match &flight.base {
            Some((process, ..)) => process.device.clone(),
            None => flight.key.name.clone(),
        };
        let revived = flight.agent == AgentState::Stale && self.state(world, &device) != AgentState::Stale;
        if revived || self.is_superseded(&flight.job, &device) {
            // Nobody is called dead by an old verdict, and no old report undoes a newer one.
            self.writer.flights.insert(number, flight);
            return self.derive(world, number);
        }
        // Whatever was decided, it is answered for when it is sent.
        patch.decided = world.now;
        flight.patch = Some(patch.clone());
        self.writer.flights.insert(number, flight);
        self.call(world, Verb::Patch(Box::new(patch)), CALL_TIMEOUT_MS, Then::Patched(number));
    }

    pub fn on_limited(&mut self, world: &mut World, number: u64) {
        if let Some(flight) = self.writer.flights.remove(&number) {
            self.send_patch(world, number, flight);
        }
    }

    pub fn on_patched(&mut self, world: &mut World, number: u64, answer: Answer) {
        let now = self.now_ms(world);
        let Some(mut flight) = self.writer.flights.remove(&number) else { return };
        match &answer {
            Answer::Busy(seconds) => self.writer.limiter.refuse(flight.class, now, (seconds * 1_000).max(1_000)),
            Answer::Lost => self.writer.limiter.refuse(flight.class, now, 0),
            _ => self.writer.limiter.succeed(flight.class, now),
        }
        match answer {
            Answer::Object(Some(object)) => {
                self.index.adopt(flight.kind, *object);
                if let Some((_, change)) = &flight.base {
                    self.writer.budgets.written(&flight.key, change, now);
                }
                self.tell_written(world, &mut flight.job);
                match flight.base.take() {
                    Some((process, change)) if !change.reasons.is_empty() => {
                        self.end(world, flight, Next::Emit(process, Box::new(change.record)));
                    }
                    _ => self.end(world, flight, Next::Done),
                }
            }
            Answer::Conflict => {
                let get = Verb::Get(flight.kind, flight.key.clone());
                self.writer.flights.insert(number, flight);
                self.call(world, get, CALL_TIMEOUT_MS, Then::Reread(number));
            }
            Answer::NotFound => self.finish(world, flight),
            _ => self.failed(world, flight),
        }
    }

    pub fn on_reread(&mut self, world: &mut World, number: u64, answer: Answer) {
        let Some(mut flight) = self.writer.flights.remove(&number) else { return };
        match answer {
            Answer::Object(Some(object)) => {
                self.index.adopt(flight.kind, *object);
                flight.job.unsure = false;
                self.writer.flights.insert(number, flight);
                self.derive(world, number);
            }
            Answer::Object(None) => self.finish(world, flight),
            _ => self.failed(world, flight),
        }
    }

    fn failed(&mut self, world: &mut World, mut flight: Flight) {
        let now = self.now_ms(world);
        if let Some((process, ..)) = &flight.base {
            flight.job.doubt(process, now);
        }
        let at = now + flight.job.back_off_ms(|low, high| self.rng.range(low, high));
        self.end(world, flight, Next::Later(at));
    }

    /// Reads an object live of which nothing is to be written now, if it may have changed unseen.
    fn make_sure(&mut self, world: &mut World, number: u64, mut flight: Flight) {
        let get = Verb::Get(flight.kind, flight.key.clone());
        // Nothing was sent that could be in doubt.
        flight.base = None;
        self.writer.flights.insert(number, flight);
        self.call(world, get, CALL_TIMEOUT_MS, Then::Reread(number));
    }

    /// There is nothing to write, but perhaps something to be seen to.
    fn over(&mut self, world: &mut World, mut flight: Flight) {
        self.tell_written(world, &mut flight.job);
        let next = flight.job.look_again(self.now_ms(world)).map_or(Next::Done, Next::Later);
        self.end(world, flight, next);
    }

    /// There was nothing to write.
    fn finish(&mut self, world: &mut World, mut flight: Flight) {
        self.tell_written(world, &mut flight.job);
        self.end(world, flight, Next::Done);
    }

    fn tell_written(&mut self, world: &mut World, job: &mut Job) {
        for case in std::mem::take(&mut job.waiting) {
            self.written(world, case, 1);
        }
    }

    fn end(&mut self, world: &mut World, mut flight: Flight, next: Next) {
        let now = self.now_ms(world);
        let slot = (flight.kind, flight.key.clone());
        match next {
            Next::Later(at) if !self.writer.hurried => self.writer.queue.retry(&slot, flight.job, now, at),
            Next::Later(_) => {
                let process = self.index.process(&flight.key.namespace, &flight.key.name);
                if let Some(device) = process.map(|process| &process.device).or(match flight.kind {
                    Kind::Switch => Some(&flight.key.name),
                    _ => None,
                }) {
                    self.presence.lose(device);
                }
                let newer = self.writer.queue.give_up(&slot).unwrap_or_default();
                let waiting = [flight.job, newer].into_iter().flat_map(|job| job.waiting);
                waiting.for_each(|case| self.unwritten(world, case));
            }
            Next::Emit(process, record) => {
                self.emit(world, &process, &record, After::Done(slot));
                return self.pump(world);
            }
            _ => {
                let waiting = std::mem::take(&mut flight.job.waiting);
                self.writer.queue.done(&slot, now);
                waiting.into_iter().for_each(|case| self.unwritten(world, case));
            }
        }
        self.pump(world);
    }

    /// The events of a transition are written, or go on in the background: the object may be written again.
    pub fn emitted(&mut self, world: &mut World, after: After) {
        let now = self.now_ms(world);
        match after {
            After::Nothing => {}
            After::Done(slot) => self.writer.queue.done(&slot, now),
            After::Derive(number) => return self.derive(world, number),
        }
        self.pump(world);
    }

    /// Who is taken for alive, this replica left out, as the world knows them.
    fn members(&self) -> Vec<super::super::world::Address> {
        self.view
            .peers()
            .filter_map(|member| {
                let replica = replica_of(&member.identity)?;
                Some(super::super::world::Address { replica, life: super::keeper::life_of(member)? })
            })
            .collect()
    }
}
