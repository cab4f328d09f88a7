//! Edge: the table of last signs of life, one entry for each device that has reported since the start.

use super::order::{Freshness, Order};
use super::staleness::{AgentState, Held, Observer};
use crate::desired::lean::Text;
use crate::runtime::clock;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Entry {
    heard_ms: u64,
    order: Order,
    /// The last report that left nothing to do: what it said, and the state of the index then.
    settled: Option<(u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct Roll {
    start: Instant,
    observer: Mutex<Observer>,
    devices: DashMap<Text, Entry>,
}

// === impl Roll ===

impl Roll {
    /// An empty roll. `window` is the silence after which a device is called dead.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            start: Instant::now(),
            observer: Mutex::new(Observer::new(milliseconds(window), 0)),
            devices: DashMap::new(),
        }
    }

    /// The device port is open now: silence counts from here.
    pub fn open(&self) {
        self.observer.lock().restart(self.now_ms());
    }

    /// Notes a sign of life of a known device.
    pub fn heard(&self, device: &str) {
        let now = self.now_ms();
        if let Some(mut entry) = self.devices.get_mut(device) {
            entry.heard_ms = now;
            return;
        }
        self.devices
            .entry(device.into())
            .or_insert(Entry { heard_ms: now, order: Order::default(), settled: None })
            .heard_ms = now;
    }

    /// Judges the order of a report of a device that has been [`Roll::heard`]. `seed` gives the report that the
    /// status remembers and is called only when this process knows of none.
    pub fn order(
        &self,
        device: &str,
        boot_id: Option<&str>,
        sequence: Option<u64>,
        seed: impl FnOnce() -> Option<Order>,
    ) -> Freshness {
        let known = self.devices.get(device).is_some_and(|entry| !entry.order.is_empty());
        let seed = if known { None } else { seed() };
        let Some(mut entry) = self.devices.get_mut(device) else { return Freshness::New };
        if let Some(seed) = seed.filter(|_| entry.order.is_empty()) {
            entry.order = seed;
        }
        entry.order.judge(boot_id, sequence)
    }

    /// Remembers that a report with a fingerprint left nothing to do while the index stood as `version` says.
    pub fn settle(&self, device: &str, fingerprint: u64, version: u64) {
        if let Some(mut entry) = self.devices.get_mut(device) {
            entry.settled = Some((fingerprint, version));
        }
    }

    /// The short way for the report that every device sends all day: notes the sign of life and says whether
    /// the very same report left nothing to do before. Otherwise the order stays as it was.
    pub fn heard_the_same(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64, version: u64) -> bool {
        let now = self.now_ms();
        let Some(mut entry) = self.devices.get_mut(device) else { return false };
        if entry.settled != Some((fingerprint, version)) {
            return false;
        }
        entry.heard_ms = now;
        entry.order.judge(Some(boot_id), Some(sequence)) != Freshness::Old
    }

    /// Whether the device's agent lives.
    ///
    /// # Errors
    /// Why its silence was not taken for death.
    pub fn judge(&self, device: &str) -> Result<AgentState, Held> {
        // The table first: a sign of life that comes between the two looks can only make the verdict milder.
        let heard = self.devices.get(device).map(|entry| entry.heard_ms);
        self.observer.lock().judge(heard, self.now_ms())
    }

    /// As [`Roll::judge`], with every doubt as [`AgentState::Unjudged`].
    #[must_use]
    pub fn state(&self, device: &str) -> AgentState {
        self.judge(device).unwrap_or(AgentState::Unjudged)
    }

    /// Whether the device has reported since the start.
    #[must_use]
    pub fn has_heard(&self, device: &str) -> bool {
        self.devices.contains_key(device)
    }

    /// Looks at the clocks; see [`Observer::tick`].
    pub fn tick(&self, every: Duration) -> Option<Duration> {
        let boot = clock::since_boot().map(milliseconds);
        let away = self.observer.lock().tick(self.now_ms(), boot, milliseconds(every));
        away.map(Duration::from_millis)
    }

    fn now_ms(&self) -> u64 {
        milliseconds(self.start.elapsed())
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
