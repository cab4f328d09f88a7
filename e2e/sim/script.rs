//! What goes wrong in a run, and when: drawn from the seed before the run, so that it can be shown and cut down.

use super::network::{Node, Weather};
use super::rng::Rng;
use praetor::desired::index::Kind;

/// When faults begin, milliseconds.
pub const START_MS: u64 = 60_000;
/// How long it takes until everything has come to rest: what has used up its budget is written two minutes later.
const REST_MS: u64 = 170_000;

/// Something that goes wrong, or that an operator does.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// kill -9, and a new start later.
    Crash { replica: usize, down: u64 },
    /// SIGTERM, and a new start later.
    Restart { replica: usize, down: u64 },
    /// SIGSTOP, then SIGCONT.
    Pause { replica: usize, pause: u64 },
    /// The machine sleeps.
    Sleep { replica: usize, pause: u64 },
    /// One direction is cut.
    Cut { from: Node, to: Node, time: u64 },
    /// Both directions are cut.
    Part { one: Node, other: Node, time: u64 },
    /// The apiserver is gone.
    ApiDown { time: u64 },
    /// The apiserver says nothing.
    ApiHangs { time: u64 },
    /// A watch stalls.
    Stall { replica: usize, kind: Kind, time: u64 },
    /// All watches of a replica end.
    EndWatches { replica: usize },
    /// History is compacted; every watch is told.
    Compact { tell: bool },
    /// The network, from now on.
    Weather(Weather),
    /// A device dies for a while, or for good.
    Death { device: usize, time: Option<u64>, reboot: bool },
    /// By now everybody knows that it is dead.
    KnownDead { device: usize },
    /// It is back.
    Return { device: usize, reboot: bool },
    /// The apiserver is well again.
    ApiBack,
    /// An operator edits the spec of a process.
    Edit { device: usize, process: usize },
    /// An operator deletes a process and creates it again.
    Recreate { device: usize, process: usize, gap: u64 },
    /// An operator deletes a process or creates it.
    Toggle { device: usize, process: usize },
}

/// How a run is set up.
#[derive(Debug, Clone)]
pub struct Script {
    pub seed: u64,
    pub replicas: usize,
    pub devices: usize,
    pub processes: usize,
    /// Sorted by time.
    pub faults: Vec<(u64, Fault)>,
    /// When all faults are over.
    pub calm: u64,
    /// When everything must be well.
    pub end: u64,
}

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Everything.
    All,
    /// One replica that is stopped now and then.
    Pauses,
    /// Replicas that do not hear each other.
    Cuts,
    /// Replicas that are replaced one after the other.
    Rolling,
    /// Replicas that come and go, so that they disagree about who is there.
    Moves,
    /// Reports that come late, or twice.
    Late,
    /// Watches that stall while objects come and go.
    Stalls,
}

impl Mix {
    pub const EVERY: [Self; 7] =
        [Self::All, Self::Pauses, Self::Cuts, Self::Rolling, Self::Moves, Self::Late, Self::Stalls];
}

impl Script {
    /// The script of a seed.
    pub fn new(seed: u64, mix: Mix) -> Self {
        let mut rng = Rng::new(seed, "script");
        let replicas = match mix {
            Mix::Pauses => 1,
            Mix::All => usize::try_from(rng.range(1, 5)).unwrap_or(1),
            Mix::Rolling => 3,
            _ => usize::try_from(rng.range(2, 4)).unwrap_or(2),
        };
        let devices = usize::try_from(rng.range(2, if mix == Mix::All { 6 } else { 4 })).unwrap_or(2);
        let processes = usize::try_from(rng.range(1, 2)).unwrap_or(1);
        let length = rng.range(60_000, 150_000);
        let mut script = Self {
            seed,
            replicas,
            devices,
            processes,
            faults: Vec::new(),
            calm: START_MS + length,
            end: START_MS + length + REST_MS,
        };
        if mix == Mix::Rolling {
            script.roll(&mut rng);
            return script;
        }
        let count = rng.range(4, 14);
        if mix != Mix::Rolling && (rng.chance(700) || mix == Mix::Late) {
            script.weather(&mut rng, mix);
        }
        for _ in 0..count {
            let at = START_MS + rng.range(0, length - 5_000);
            let fault = script.fault(&mut rng, mix);
            script.faults.push((at, fault));
        }
        script.faults.sort_by_key(|(at, _)| *at);
        script
    }

    fn weather(&mut self, rng: &mut Rng, mix: Mix) {
        let mut some = |most: u64| if rng.chance(500) { rng.range(0, most) } else { 0 };
        let mut weather = Weather {
            loss: some(80),
            duplicates: some(150),
            slow: some(60),
            lost_answers: some(120),
            refused: some(150),
        };
        if mix == Mix::Late {
            weather.duplicates = 250;
        }
        self.faults.push((START_MS, Fault::Weather(weather)));
    }

    /// A device dies, and then every replica is replaced; its age outlives them.
    fn roll(&mut self, rng: &mut Rng) {
        let device = rng.index(self.devices);
        self.faults.push((START_MS, Fault::Death { device, time: None, reboot: false }));
        for replica in 0..self.replicas {
            let at = START_MS + rng.range(500, 4_000) + 18_000 * replica as u64;
            self.faults.push((at, Fault::Restart { replica, down: rng.range(500, 2_000) }));
        }
        // A window, and twenty seconds in which replicas come and go.
        self.faults.push((START_MS + 67_000, Fault::KnownDead { device }));
        self.calm = START_MS + 90_000;
        self.end = self.calm + REST_MS;
    }

    fn fault(&self, rng: &mut Rng, mix: Mix) -> Fault {
        let replica = rng.index(self.replicas);
        let other = (replica + 1 + rng.index(self.replicas.max(2) - 1)) % self.replicas;
        let device = rng.index(self.devices);
        let process = rng.index(self.processes);
        let time = if rng.chance(300) { rng.range(20_000, 90_000) } else { rng.range(500, 20_000) };
        let choice = match mix {
            Mix::All => rng.range(0, 18),
            Mix::Pauses => [2, 2, 2, 3, 12][rng.index(5)],
            Mix::Cuts => [4, 4, 5, 12, 9][rng.index(5)],
            Mix::Rolling => 1,
            Mix::Moves => [0, 1, 1, 6, 7, 9][rng.index(6)],
            Mix::Late => [0, 1, 12, 13, 9][rng.index(5)],
            Mix::Stalls => [8, 8, 8, 14, 15, 16, 16][rng.index(7)],
        };
        let (one, two) = (Node::Replica(replica), Node::Replica(other));
        match choice {
            0 => Fault::Crash { replica, down: rng.range(500, 30_000) },
            1 => Fault::Restart { replica, down: rng.range(500, 15_000) },
            2 => Fault::Pause { replica, pause: if rng.chance(300) { rng.range(500, 4_000) } else { time } },
            3 => Fault::Sleep { replica, pause: time },
            4 if self.replicas > 1 => Fault::Cut { from: one, to: two, time },
            5 if self.replicas > 1 => Fault::Part { one, other: two, time },
            6 => {
                let (from, to) = if rng.chance(500) { (one, Node::Api) } else { (Node::Api, one) };
                Fault::Cut { from, to, time }
            }
            7 => Fault::Part { one, other: Node::Api, time },
            8 => Fault::Stall { replica, kind: [Kind::Process, Kind::Switch][rng.index(2)], time: time.min(60_000) },
            9 => {
                let node = Node::Device(device);
                let (from, to) = if rng.chance(500) { (node, one) } else { (one, node) };
                Fault::Cut { from, to, time }
            }
            10 => Fault::ApiDown { time: time.min(40_000) },
            11 => Fault::ApiHangs { time: time.min(40_000) },
            12 => Fault::Death { device, time: rng.chance(600).then_some(time), reboot: rng.chance(500) },
            13 => Fault::Death { device, time: Some(rng.range(100, 8_000)), reboot: true },
            14 => Fault::Edit { device, process },
            15 => Fault::Recreate { device, process, gap: rng.range(0, 8_000) },
            16 => Fault::Toggle { device, process },
            17 => Fault::Compact { tell: rng.chance(700) },
            _ => Fault::EndWatches { replica },
        }
    }
}
