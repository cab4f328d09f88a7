//! A device: asks what it should run, changes, and says so. One report at a time, the next with a new sequence.

use super::network::Node;
use super::report::{Body, Get, GetAnswer, Item, Observation, Report, ReportAnswer, device_name};
use super::rng::Rng;
use super::world::{Event, Input, World};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Interval of reports, milliseconds.
pub const HEARTBEAT_MS: u64 = 15_000;
/// An answer is waited for so long.
const PATIENCE_MS: u64 = 10_000;

/// A device's own times.
#[derive(Debug, Clone, Copy)]
pub enum DeviceTimer {
    /// Time to report, unless another time was set since.
    Report(u64),
    /// Time to ask.
    Ask(u64),
    /// A process changes.
    Change(u32),
    /// A process ends or starts, in a crash loop.
    Spin(u32),
    /// No answer to a report.
    NoAnswer(u64),
    /// No answer to a question.
    NoState(u64),
}

/// See the module.
pub struct Device {
    pub index: usize,
    pub name: String,
    /// Whether its agent lives.
    pub alive: bool,
    boots: u32,
    life: u32,
    boot: Arc<str>,
    sequence: u64,
    tickets: u64,
    /// The report that waits for its answer.
    flying: Option<(u64, Arc<Body>, usize)>,
    asking: Option<u64>,
    due: u64,
    /// What it runs.
    held: BTreeMap<String, Item>,
    /// The highest revision it has seen.
    seen: u64,
    /// Which replica it talks to.
    replica: usize,
    replicas: usize,
    /// Whether it talks to another replica each time.
    roams: bool,
    /// A change came while a report was under way.
    dirty: bool,
    /// Whether processes still change.
    pub restless: bool,
    /// Some devices have a process that crashes over and over.
    crashes: bool,
    rng: Rng,
    spins: Rng,
}

impl Device {
    pub fn new(seed: u64, index: usize, replicas: usize) -> Self {
        let mut rng = Rng::new(seed, &format!("device {index}"));
        Self {
            index,
            name: device_name(index),
            alive: false,
            boots: 0,
            life: 0,
            boot: "".into(),
            sequence: 0,
            tickets: 0,
            flying: None,
            asking: None,
            due: 0,
            held: BTreeMap::new(),
            seen: 0,
            replica: rng.index(replicas),
            replicas,
            roams: rng.chance(600),
            dirty: false,
            restless: true,
            // The seeds that are kept have other troubles, and are to stay as they are.
            crashes: seed % 10 == 6,
            rng,
            spins: Rng::new(seed, &format!("spins of {index}")),
        }
    }

    /// Starts it, with a new boot or as if it had only been unreachable.
    pub fn start(&mut self, world: &mut World, reboot: bool) {
        if std::mem::replace(&mut self.alive, true) {
            return;
        }
        self.life += 1;
        if reboot || self.boots == 0 {
            self.boots += 1;
            self.boot = format!("{}-{}-{:x}", self.name, self.boots, self.rng.next()).into();
            self.sequence = 0;
            // What it has seen is on its disk or lost; lost is the harder case, and the honest one.
            self.seen = 0;
        }
        world.checker.restarted(self.index);
        (self.flying, self.asking) = (None, None);
        world.say(|| format!("{}: starts as {}", self.name, self.boot));
        self.ask(world);
        let first = self.rng.range(10, 3_000);
        self.report_in(world, first);
        let change = self.rng.range(500, 20_000);
        world.after(change, Event::Device(self.index, DeviceTimer::Change(self.life)));
        if self.crashes {
            let first = self.spins.range(2_000, 30_000);
            world.after(first, Event::Device(self.index, DeviceTimer::Spin(self.life)));
        }
    }

    /// It dies, or can reach nobody: the same to everybody else.
    pub fn stop(&mut self, world: &mut World) {
        self.alive = false;
        self.life += 1;
        world.say(|| format!("{}: is gone", self.name));
    }

    /// Nothing changes any more.
    pub fn rest(&mut self) {
        self.restless = false;
    }

    pub fn on(&mut self, world: &mut World, timer: DeviceTimer) {
        if !self.alive {
            return;
        }
        match timer {
            DeviceTimer::Report(due) if due == self.due && self.flying.is_none() => self.report(world, None),
            DeviceTimer::Ask(ticket) if ticket == self.tickets || self.asking.is_none() => self.ask(world),
            DeviceTimer::Change(life) if life == self.life && self.restless => self.change(world),
            DeviceTimer::Spin(life) if life == self.life && self.restless => self.spin(world),
            DeviceTimer::NoAnswer(ticket) => self.answered(world, ticket, ReportAnswer::Failed),
            DeviceTimer::NoState(ticket) => self.served(world, ticket, GetAnswer::Later),
            _ => {}
        }
    }

    fn change(&mut self, world: &mut World) {
        if let Some(name) = self.held.keys().nth(self.rng.index(self.held.len())) {
            world.checker.changes(self.index, name, &mut self.rng);
            self.hurry(world);
        }
        // Now and then twice in a second.
        let next = if self.rng.chance(350) { self.rng.range(30, 900) } else { self.rng.range(2_000, 50_000) };
        world.after(next, Event::Device(self.index, DeviceTimer::Change(self.life)));
    }

    /// Agents report at once when something changed.
    fn hurry(&mut self, world: &mut World) {
        if self.flying.is_some() {
            self.dirty = true;
        } else {
            self.report_in(world, 1);
        }
    }

    fn spin(&mut self, world: &mut World) {
        if let Some(name) = self.held.keys().next() {
            world.checker.spins(self.index, name);
            self.hurry(world);
        }
        // Many turns in a row, then it runs for a while.
        let next = if self.spins.chance(930) { self.spins.range(300, 4_000) } else { self.spins.range(20_000, 90_000) };
        world.after(next, Event::Device(self.index, DeviceTimer::Spin(self.life)));
    }

    fn report_in(&mut self, world: &mut World, delay: u64) {
        self.due += 1;
        world.after(delay, Event::Device(self.index, DeviceTimer::Report(self.due)));
    }

    fn report(&mut self, world: &mut World, again: Option<Arc<Body>>) {
        let body = again.unwrap_or_else(|| {
            self.sequence += 1;
            let observations = self.held.values().map(|item| {
                let (serial, content, spin) = world.checker.truth(self.index, &item.name);
                Observation { name: item.name.clone(), spec: item.spec, serial, content, spin }
            });
            let observations = observations.collect();
            Arc::new(Body { device: self.index, boot: self.boot.clone(), sequence: self.sequence, observations })
        });
        if self.roams {
            self.replica = self.rng.index(self.replicas);
        }
        self.tickets += 1;
        let (ticket, to) = (self.tickets, self.replica);
        self.flying = Some((ticket, body.clone(), to));
        self.dirty = false;
        let report = Report { body: body.clone(), ticket: Some(ticket) };
        let (from, event) = (Node::Device(self.index), Event::Replica(to, None, Input::Report(report)));
        world.send(from, Node::Replica(to), event);
        if let Some(delay) = world.net.duplicate() {
            let elsewhere = self.rng.index(self.replicas);
            world.after(delay, Event::Replica(elsewhere, None, Input::Report(Report { body, ticket: None })));
        }
        world.after(PATIENCE_MS, Event::Device(self.index, DeviceTimer::NoAnswer(ticket)));
    }

    /// An answer came, or none.
    pub fn answered(&mut self, world: &mut World, ticket: u64, answer: ReportAnswer) {
        let Some((_, body, _)) = self.flying.take_if(|(flying, _, _)| *flying == ticket && self.alive) else { return };
        match answer {
            ReportAnswer::Ack | ReportAnswer::Refused => {
                let next = if self.dirty { 1 } else { HEARTBEAT_MS - self.rng.range(0, 300) };
                self.report_in(world, next);
            }
            ReportAnswer::Later(seconds) => {
                self.replica = (self.replica + 1) % self.replicas;
                let wait = (seconds * 1_000).min(self.rng.range(1_000, 2_000));
                self.report_in(world, wait);
            }
            ReportAnswer::Failed => {
                self.replica = (self.replica + 1) % self.replicas;
                if self.rng.chance(300) {
                    // A broken connection: the very same request again.
                    self.report(world, Some(body));
                } else {
                    let wait = self.rng.range(100, 2_000);
                    self.report_in(world, wait);
                }
            }
        }
    }

    fn ask(&mut self, world: &mut World) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.asking = Some(ticket);
        let to = self.rng.index(self.replicas);
        let get = Get { device: self.index, ticket, seen: self.seen };
        let from = Node::Device(self.index);
        world.send(from, Node::Replica(to), Event::Replica(to, None, Input::Get(get)));
        world.after(PATIENCE_MS, Event::Device(self.index, DeviceTimer::NoState(ticket)));
    }

    /// Desired state came, or did not.
    pub fn served(&mut self, world: &mut World, ticket: u64, answer: GetAnswer) {
        if self.asking.take_if(|asking| *asking == ticket && self.alive).is_none() {
            return;
        }
        let mut next = self.rng.range(1_000, 9_000);
        match answer {
            GetAnswer::State(revision, items) => {
                world.checker.served(world.now, self.index, self.seen, revision, &items);
                self.seen = self.seen.max(revision);
                let items: BTreeMap<String, Item> = items.into_iter().map(|item| (item.name.clone(), item)).collect();
                if items != self.held {
                    world.say(|| format!("{}: runs {:?}", self.name, items.keys().collect::<Vec<_>>()));
                    self.held = items;
                    if self.flying.is_some() {
                        self.dirty = true;
                    } else {
                        self.report_in(world, 5);
                    }
                }
            }
            GetAnswer::Unknown => {}
            GetAnswer::Later => next = 1_000,
        }
        self.tickets += 1;
        world.after(next, Event::Device(self.index, DeviceTimer::Ask(self.tickets)));
    }
}
