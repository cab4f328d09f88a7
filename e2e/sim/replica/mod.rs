//! A replica: production's pure code, and around it its edges as small state machines that do step by step what the
//! tasks in `src/` do.

pub mod desired;
pub mod events;
pub mod intake;
pub mod keeper;
pub mod peers;
pub mod presence;
pub mod watch;
pub mod writer;

use super::apiserver::{Answer, Request, Verb};
use super::checker::WINDOW_MS;
use super::network::Node;
use super::rng::Rng;
use super::world::{Address, Event, Input, World};
use events::Emissions;
use intake::Intake;
use keeper::Keeper;
use peers::Peers;
use praetor::desired::index::{Index, Kind, Settings};
use praetor::ownership::members::View;
use praetor::presence::staleness::AgentState;
use presence::{EVERY_MS, Presence};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use watch::Watch;
use writer::Writer;

/// Times that a replica sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A call to the apiserver has taken too long.
    Call(u64),
    /// A request to a peer has.
    Letter(u64),
    /// A watch or list is to be tried (again).
    Follow(Kind, u64),
    /// A watch has been open for as long as it may.
    Patience(Kind, u64),
    /// The sweep.
    Sweep,
    /// The keeper's member Lease and list.
    Renew,
    Members,
    /// The election.
    Lead(u64),
    /// Presence batches.
    Batches,
    /// A report must be answered.
    Deadline(u64),
    /// Live reads that confirm have taken long enough.
    Verify(u64),
    /// The queue may have something due.
    Pump(u64),
    /// A patch may be sent.
    Limited(u64),
    /// An event is to be tried again.
    Event(u64),
    /// Events have been waited for long enough.
    Inline(u64),
    /// A GET has waited long enough for a watch.
    CatchUp(u64),
    /// The end of a clean stop.
    Exit,
}

/// What becomes of an answer of the apiserver.
pub enum Then {
    Listed(Kind, u64),
    Watching(Kind, u64),
    /// A read that the intake asked for, by its case.
    Looked(u64, praetor::desired::lean::Key),
    Verified(u64, praetor::desired::lean::Key),
    /// A write, or the read after its conflict.
    Patched(u64),
    Reread(u64),
    Event(u64),
    Members,
    /// The member Lease, looked for at the start.
    Own,
    /// Written; when it was sent, by the boot clock.
    Renewed(u64),
    Left,
    /// The election, with when it was sent.
    Led(praetor::ownership::lease::Step, u64),
    Released,
}

/// One life of a replica's process.
pub struct Process {
    pub at: Address,
    pub identity: Arc<str>,
    pub incarnation: u64,
    pub index: Index,
    pub presence: Presence,
    pub view: Arc<View>,
    pub keeper: Keeper,
    pub intake: Intake,
    pub writer: Writer,
    pub emissions: Emissions,
    pub peers: Peers,
    watches: [Watch; 3],
    parked: HashMap<u64, super::report::Get>,
    calls: BTreeMap<u64, Then>,
    numbers: u64,
    /// When the device port was opened; none before the lists are in.
    open: bool,
    pub closing: bool,
    /// Whether there never is another replica.
    pub is_alone: bool,
    pub rng: Rng,
}

impl Process {
    /// A process that has just started.
    pub fn new(world: &mut World, at: Address) -> Self {
        let identity: Arc<str> = identity(at.replica).into();
        let mut rng = Rng::new(world.rng.next(), "process");
        // The life is in it, so that the checker can tell whom somebody means.
        let incarnation = rng.next() << 16 | u64::from(at.life);
        let settings = Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false };
        let keeper = Keeper::new(&identity, incarnation);
        let mut process = Self {
            at,
            view: keeper.first_view(),
            keeper,
            incarnation,
            index: Index::new(settings),
            presence: Presence::new(WINDOW_MS, world.guards),
            intake: Intake::new(),
            writer: Writer::new(),
            emissions: Emissions::default(),
            peers: Peers::new(incarnation),
            watches: Default::default(),
            parked: HashMap::new(),
            calls: BTreeMap::new(),
            numbers: 0,
            open: false,
            closing: false,
            is_alone: world.clocks.len() == 1,
            identity,
            rng,
        };
        for kind in [Kind::Switch, Kind::Process] {
            process.follow(world, kind);
        }
        world.timer(at, EVERY_MS, Timer::Sweep);
        process
    }

    /// The monotonic clock, as the table counts.
    pub fn now_ms(&self, world: &World) -> u64 {
        Presence::clock(world.clocks[self.at.replica].monotonic(world.now))
    }

    /// The boot clock.
    pub fn boot_ms(&self, world: &World) -> u64 {
        world.clocks[self.at.replica].boot(world.now)
    }

    /// The wall clock.
    pub fn wall(&self, world: &World) -> i64 {
        world.clocks[self.at.replica].wall(world.now)
    }

    /// The state of a device's agent.
    pub fn state(&mut self, world: &World, device: &str) -> AgentState {
        let now = self.now_ms(world);
        let boot = self.boot_ms(world);
        self.presence.state(device, now, boot)
    }

    /// A number that this process has not used yet.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Asks the apiserver.
    pub fn call(&mut self, world: &mut World, verb: Verb, patience_ms: u64, then: Then) {
        let call = self.number();
        self.calls.insert(call, then);
        let request = Request { from: self.at, call, verb };
        world.send(Node::Replica(self.at.replica), Node::Api, Event::Request(request));
        world.timer(self.at, patience_ms, Timer::Call(call));
    }

    /// Whether nothing is left to be done.
    pub fn is_idle(&self) -> bool {
        self.writer.is_idle() && self.emissions.is_empty()
    }

    /// Something arrives.
    pub fn on(&mut self, world: &mut World, input: Input) {
        match input {
            Input::Timer(timer) => self.on_timer(world, timer),
            Input::Answer(call, answer) => self.on_answer(world, call, answer),
            Input::Shown(kind, number, shown) => self.on_shown(world, kind, number, shown),
            Input::Report(report) => self.on_report(world, report),
            Input::Get(get) => self.on_get(world, get),
            Input::Letter(letter) => self.on_letter(world, letter),
            Input::Reply(reply) => self.on_reply(world, reply),
        }
    }

    fn on_timer(&mut self, world: &mut World, timer: Timer) {
        match timer {
            Timer::Call(call) => self.on_answer(world, call, Answer::Lost),
            Timer::Letter(call) => self.on_silence(world, call),
            Timer::Follow(kind, number) => self.on_follow(world, kind, number),
            Timer::Patience(kind, number) => self.on_patience(world, kind, number),
            Timer::Sweep => self.sweep(world),
            Timer::Renew => self.renew(world),
            Timer::Members => self.list_members(world),
            Timer::Lead(number) => self.on_lead_timer(world, number),
            Timer::Batches => self.send_batches(world),
            Timer::Deadline(case) => self.on_deadline(world, case),
            Timer::Verify(case) => self.on_unverified(world, case),
            Timer::Pump(number) => self.on_pump(world, number),
            Timer::Limited(flight) => self.on_limited(world, flight),
            Timer::Event(task) => self.try_event(world, task),
            Timer::Inline(emission) => self.on_inline(world, emission),
            Timer::CatchUp(number) => self.on_catch_up(world, number),
            // The world ends the process.
            Timer::Exit => {}
        }
    }

    fn on_answer(&mut self, world: &mut World, call: u64, answer: Answer) {
        let Some(then) = self.calls.remove(&call) else { return };
        match then {
            Then::Listed(kind, number) => self.on_listed(world, kind, number, answer),
            Then::Watching(kind, number) => self.on_watching(world, kind, number, &answer),
            Then::Looked(case, key) => self.on_looked(world, case, key, answer),
            Then::Verified(case, key) => self.on_verified(world, case, key, answer),
            Then::Patched(flight) => self.on_patched(world, flight, answer),
            Then::Reread(flight) => self.on_reread(world, flight, answer),
            Then::Event(task) => self.on_event(world, task, &answer),
            Then::Members => self.on_members(world, answer),
            Then::Own => self.on_own(world, answer),
            Then::Renewed(sent) => self.on_renewed(world, sent, answer),
            Then::Left | Then::Released => {}
            Then::Led(step, sent) => self.on_led(world, step, sent, answer),
        }
    }

    /// The lists are in: the device port opens, and the Leases are taken up.
    pub fn opened(&mut self, world: &mut World) {
        if self.open || !self.index.serves_devices() {
            return;
        }
        self.open = true;
        let now = self.now_ms(world);
        self.presence.open(now);
        self.start_keeper(world);
        self.repair_all(world);
        world.timer(self.at, 1_000, Timer::Batches);
    }

    /// Whether devices are answered.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// SIGTERM: leave, tell everybody the last news, write what waits, keep listening for a while.
    pub fn stop(&mut self, world: &mut World) {
        world.say(|| format!("r{}: is told to stop", self.at.replica));
        self.closing = true;
        self.leave(world);
        self.send_batches(world);
        self.writer.hurry();
        self.pump(world);
        world.timer(self.at, 6_000, Timer::Exit);
    }
}

/// The name of a replica.
pub fn identity(replica: usize) -> String {
    format!("r{replica}")
}

/// The replica of a name.
pub fn replica_of(identity: &str) -> Option<usize> {
    identity.strip_prefix('r')?.parse().ok()
}
