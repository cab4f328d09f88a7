//! What everybody shares: the queue of what happens next, clocks, the network, and who checks.

use super::apiserver::{Answer, Request, Shown};
use super::checker::Checker;
use super::device::DeviceTimer;
use super::guards::Guards;
use super::network::{Network, Node};
use super::peer::{Letter, Reply};
use super::replica::Timer;
use super::report::{Get, GetAnswer, Report, ReportAnswer};
use super::rng::Rng;
use praetor::desired::index::Kind;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// One life of a replica's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The replica.
    pub replica: usize,
    /// How often it has been started.
    pub life: u32,
}

/// What reaches a replica.
#[derive(Debug)]
pub enum Input {
    /// A time that it set.
    Timer(Timer),
    /// The apiserver's answer to one of its calls.
    Answer(u64, Answer),
    /// Something of a watch, by its number.
    Shown(Kind, u64, Vec<Shown>),
    /// A device's report.
    Report(Report),
    /// A device asks for its desired state.
    Get(Get),
    /// Something from a peer.
    Letter(Letter),
    /// A peer's answer.
    Reply(Reply),
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The next act of the script.
    Act(usize),
    /// All faults are over.
    Calm,
    /// A request arrives at the apiserver.
    Request(Request),
    /// A watch has something to deliver.
    Stream(usize, Kind, u64),
    /// The apiserver tells how far watches are.
    Bookmarks,
    /// A process starts.
    Start(usize),
    /// A process that was stopped goes on.
    Resume(Address),
    /// Something reaches a life of a replica; of whatever life when none is named.
    Replica(usize, Option<u32>, Input),
    /// A device's own time.
    Device(usize, DeviceTimer),
    /// An answer reaches a device.
    Answered(usize, u64, ReportAnswer),
    /// An answer about desired state reaches a device.
    Served(usize, u64, GetAnswer),
}

struct Scheduled(u64, u64, Event);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// A replica's clocks. They run at a rate of their own, and one of them stands still while the machine sleeps.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Local milliseconds in 1,000,000 true ones.
    pub rate: u64,
    /// When the process started, true time.
    pub started: u64,
    /// For how long the machine has slept since the process started, true milliseconds.
    pub slept: u64,
    /// Seconds by which the wall clock is wrong.
    pub wrong: i64,
}

impl Clock {
    /// Milliseconds since the process started, without sleep.
    pub fn monotonic(&self, now: u64) -> u64 {
        now.saturating_sub(self.started).saturating_sub(self.slept) * self.rate / 1_000_000
    }

    /// Milliseconds since the machine was started, sleep included.
    pub fn boot(&self, now: u64) -> u64 {
        now * self.rate / 1_000_000
    }

    /// Seconds since 1970 as this machine believes.
    pub fn wall(&self, now: u64) -> i64 {
        1_765_500_000 + self.wrong + i64::try_from(now / 1_000).unwrap_or(0)
    }
}

/// See the module.
pub struct World {
    /// True time, milliseconds.
    pub now: u64,
    order: u64,
    heap: BinaryHeap<Scheduled>,
    pub net: Network,
    pub rng: Rng,
    pub clocks: Vec<Clock>,
    pub checker: Checker,
    pub guards: Guards,
    /// Whether what happens is told.
    pub trace: bool,
}

impl World {
    pub fn new(seed: u64, replicas: usize, guards: Guards, trace: bool, checker: Checker) -> Self {
        let mut rng = Rng::new(seed, "clocks");
        let clocks = (0..replicas).map(|_| Clock {
            rate: rng.range(985_000, 1_015_000),
            started: 0,
            slept: 0,
            wrong: i64::try_from(rng.range(0, 400)).unwrap_or(0) - 200,
        });
        let clocks = clocks.collect();
        Self {
            now: 0,
            order: 0,
            heap: BinaryHeap::new(),
            net: Network::new(seed),
            rng: Rng::new(seed, "world"),
            clocks,
            checker,
            guards,
            trace,
        }
    }

    /// Something is to happen after some true milliseconds.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.heap.push(Scheduled(self.now + delay, self.order, event));
    }

    /// The next thing, and time moves to it.
    pub fn next(&mut self, until: u64) -> Option<Event> {
        if self.heap.peek().is_none_or(|next| next.0 > until) {
            self.now = until;
            return None;
        }
        let Scheduled(at, _, event) = self.heap.pop()?;
        self.now = at;
        Some(event)
    }

    /// A time that a replica sets by its own clock.
    pub fn timer(&mut self, to: Address, local_ms: u64, timer: Timer) {
        let delay = local_ms * 1_000_000 / self.clocks[to.replica].rate;
        self.after(delay.max(1), Event::Replica(to.replica, Some(to.life), Input::Timer(timer)));
    }

    /// A message over the network; false when it is lost.
    pub fn send(&mut self, from: Node, to: Node, event: Event) -> bool {
        let now = self.now;
        let delay = self.net.delay(from, to, now);
        if let Some(delay) = delay {
            self.after(delay, event);
        }
        delay.is_some()
    }

    /// Tells what happens, when somebody wants to know.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9.3} {}", self.now as f64 / 1_000.0, what());
        }
    }
}
