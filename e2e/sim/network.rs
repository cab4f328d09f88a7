//! Who can reach whom, and how long it takes.

use super::rng::Rng;
use std::collections::HashMap;

/// Somebody with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// The apiserver.
    Api,
    /// A replica, by its number.
    Replica(usize),
    /// A device, by its number.
    Device(usize),
}

/// How bad the network is while faults last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Messages lost, of a thousand. Of a connection that means: no answer.
    pub loss: u64,
    /// Reports that arrive a second time, late and perhaps elsewhere, of a thousand.
    pub duplicates: u64,
    /// Messages that take seconds, of a thousand.
    pub slow: u64,
    /// Answers of the apiserver lost after the commit, of a thousand.
    pub lost_answers: u64,
    /// Requests to the apiserver that get 429, 500 or 503, of a thousand.
    pub refused: u64,
}

/// The network.
pub struct Network {
    cuts: HashMap<(Node, Node), u64>,
    /// Right now.
    pub weather: Weather,
    rng: Rng,
}

impl Network {
    pub fn new(seed: u64) -> Self {
        Self { cuts: HashMap::new(), weather: Weather::default(), rng: Rng::new(seed, "network") }
    }

    /// Cuts one direction until a moment.
    pub fn cut(&mut self, from: Node, to: Node, until: u64) {
        let end = self.cuts.entry((from, to)).or_default();
        *end = until.max(*end);
    }

    /// Everything is well from now on.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.weather = Weather::default();
    }

    /// Whether one direction is cut.
    pub fn is_cut(&self, from: Node, to: Node, now: u64) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| now < *until)
    }

    /// How long a message takes; none when it never arrives.
    pub fn delay(&mut self, from: Node, to: Node, now: u64) -> Option<u64> {
        if self.is_cut(from, to, now) || self.rng.chance(self.weather.loss) {
            return None;
        }
        Some(if self.rng.chance(self.weather.slow) { self.rng.range(500, 8_000) } else { self.rng.range(1, 25) })
    }

    /// When a second copy of a report arrives, if there is one, in milliseconds from now.
    pub fn duplicate(&mut self) -> Option<u64> {
        self.rng.chance(self.weather.duplicates).then(|| self.rng.range(1, 40_000))
    }
}
