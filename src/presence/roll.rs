//! Edge: the table of last signs of life, shared by all tasks, and the observer's clock.

use super::order::{Freshness, Order, fingerprint};
use super::said::Footing;
use super::staleness::{AgentState, Doubt, Hearing, Held, Observer, Outlook};
use super::table::{Contact, Heard, Table, Taken};
use crate::ownership::rendezvous::device_hash;
use crate::runtime::clock;
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Parts of the table with a lock of their own; a power of two.
const SHARDS: usize = 64;
/// Where the clock starts, so that ages from before the start are moments too: more than the highest age.
const EPOCH_MS: u64 = 1 << 33;

/// See the module. Times are milliseconds of [`Roll::now_ms`].
#[derive(Debug)]
pub struct Roll {
    start: Instant,
    observer: RwLock<Observer>,
    /// As of the last tick.
    isolated: AtomicBool,
    shards: Vec<Mutex<Table>>,
}

// === impl Roll ===

impl Roll {
    /// An empty roll. `window` is the silence after which a device is called dead.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            start: Instant::now(),
            observer: RwLock::new(Observer::new(milliseconds(window), EPOCH_MS)),
            isolated: AtomicBool::new(false),
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
        }
    }

    /// The device port is open now: silence counts from here.
    pub fn open(&self) {
        let now_ms = self.now_ms();
        self.observer.write().restart(now_ms);
    }

    /// Notes a sign of life of a known device.
    pub fn heard(&self, device: &str) {
        let device = device_hash(device);
        let mut table = self.shard(device).lock();
        // The clock is read under the lock, here and below: what a sender of batches did not see when it looked at
        // the table is later than its mark.
        table.heard(device, self.now_ms());
    }

    /// Judges the order of a report of a device that has been [`Roll::heard`], and what is known of the one before
    /// it; `said` is a fingerprint of what it says, 0 for none. `seed` gives the report that the status remembers and
    /// is called once for each device.
    pub fn order(
        &self,
        device: &str,
        boot_id: Option<&str>,
        sequence: Option<u64>,
        said: u64,
        seed: impl FnOnce() -> Option<Order>,
    ) -> (Freshness, Footing) {
        let device = device_hash(device);
        let shard = self.shard(device);
        let seed = if shard.lock().is_seeded(device) { None } else { seed() };
        let boot = boot_id.map_or(0, fingerprint);
        let mut table = shard.lock();
        table.order(device, boot, sequence, said, seed, self.now_ms())
    }

    /// A report was compared with the index here, and what it changes is queued.
    pub fn took(&self, device: &str, boot_id: &str, sequence: u64) {
        let device = device_hash(device);
        self.shard(device).lock().took(device, fingerprint(boot_id), sequence);
    }

    /// What a device's reports changed here is given up, and nobody knows whether it was written.
    pub fn lose(&self, device: &str) {
        let device = device_hash(device);
        self.shard(device).lock().lose(device);
    }

    /// Whether [`Roll::lose`] was called for a device.
    #[must_use]
    pub fn is_lost(&self, device: &str) -> bool {
        let device = device_hash(device);
        self.shard(device).lock().is_lost(device)
    }

    /// A report was acknowledged; `settled` is the state of the index in which it left nothing to do.
    pub fn acknowledged(&self, device: &str, boot_id: &str, sequence: u64, said: u64, settled: Option<u64>) {
        let device = device_hash(device);
        let mut table = self.shard(device).lock();
        table.acknowledged(device, fingerprint(boot_id), sequence, said, settled, self.now_ms());
    }

    /// Whether a report that still waits to be written here is known to be overtaken by one that another replica had.
    #[must_use]
    pub fn is_superseded(&self, device: &str, boot_id: &str, sequence: u64) -> bool {
        let device = device_hash(device);
        self.shard(device).lock().is_superseded(device, fingerprint(boot_id), sequence)
    }

    /// Whether a newer report is known than the one of a bootId and a sequence.
    #[must_use]
    pub fn is_overtaken(&self, device: &str, boot_id: &str, sequence: u64) -> bool {
        let device = device_hash(device);
        self.shard(device).lock().is_overtaken(device, fingerprint(boot_id), sequence)
    }

    /// The short way for the report that every device sends all day: notes the sign of life and says whether
    /// the very same report left nothing to do before. Otherwise the order stays as it was.
    pub fn heard_the_same(&self, device: &str, boot_id: &str, sequence: u64, said: u64, version: u64) -> bool {
        let (device, boot) = (device_hash(device), fingerprint(boot_id));
        let mut table = self.shard(device).lock();
        table.heard_the_same(device, boot, sequence, said, version, self.now_ms())
    }

    /// Takes in what another replica tells it heard. `horizon_ms` is a moment of the own clock that the sender knew of
    /// *before* it looked at its table.
    pub fn merge(&self, heard: &[Heard], horizon_ms: u64) {
        let until_ms = self.now_ms();
        let taken = Taken { from_ms: horizon_ms.min(until_ms), until_ms };
        for heard in heard {
            self.shard(heard.device).lock().merge(heard, taken);
        }
    }

    /// Whom this replica itself heard since a mark, and the mark for the next time. A mark of 0 means since the start.
    #[must_use]
    pub fn heard_since(&self, mark_ms: u64) -> (Vec<Heard>, u64) {
        self.collect(|table, now_ms, into| table.since(mark_ms, now_ms, into))
    }

    /// Everything that is known, also from others, and the mark from which [`Roll::heard_since`] goes on.
    #[must_use]
    pub fn whole(&self) -> (Vec<Heard>, u64) {
        self.collect(Table::whole)
    }

    /// Everything that another live replica heard up to a moment of the own clock has been [`Roll::merge`]d. To be
    /// called after that, and for a whole table only when all of it is in. `horizon_ms` is what the sender knew of the
    /// own clock *before* it looked at its table (for a whole table: before the first part).
    pub fn witness(&self, incarnation: u64, horizon_ms: u64) {
        let boot_ms = clock::since_boot().map(milliseconds);
        let now_ms = self.now_ms();
        self.observer.write().witness(incarnation, horizon_ms, now_ms, boot_ms);
    }

    /// Takes in the own standing and who else is there; to be called each second, before [`Roll::tick`].
    pub fn observe(&self, doubt: &Doubt) {
        let now_ms = self.now_ms();
        let mut observer = self.observer.write();
        observer.observe(doubt, now_ms);
        self.isolated.store(observer.is_isolated(now_ms), Ordering::Relaxed);
    }

    /// Another replica has taken in what this one heard.
    pub fn told(&self) {
        let now_ms = self.now_ms();
        self.observer.write().told(now_ms);
    }

    /// See [`Observer::is_isolated`].
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.isolated.load(Ordering::Relaxed)
    }

    /// Looks at the clocks; see [`Observer::tick`].
    pub fn tick(&self, every: Duration) -> Option<Duration> {
        let boot_ms = clock::since_boot().map(milliseconds);
        let now_ms = self.now_ms();
        let away = self.observer.write().tick(now_ms, boot_ms, milliseconds(every));
        away.map(Duration::from_millis)
    }

    /// What can be said of devices now, by their [`Roll::contact`] that is looked up afterwards.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        let boot_ms = clock::since_boot().map(milliseconds);
        let now_ms = self.now_ms();
        self.observer.read().outlook(now_ms, boot_ms)
    }

    /// Whether the device's agent lives.
    ///
    /// # Errors
    /// Why its silence was not taken for death.
    pub fn judge(&self, device: &str) -> Result<AgentState, Held> {
        let outlook = self.outlook();
        outlook.judge(self.contact(device_hash(device)))
    }

    /// As [`Roll::judge`], with every doubt as [`AgentState::Unjudged`].
    #[must_use]
    pub fn state(&self, device: &str) -> AgentState {
        self.judge(device).unwrap_or(AgentState::Unjudged)
    }

    /// The last sign of life of a device, given by its hash, at any replica as far as is known here.
    #[must_use]
    pub fn contact(&self, device: u64) -> Option<Contact> {
        self.shard(device).lock().contact(device)
    }

    /// How well the other replicas are heard.
    #[must_use]
    pub fn hearing(&self) -> Hearing {
        let boot_ms = clock::since_boot().map(milliseconds);
        let now_ms = self.now_ms();
        self.observer.read().hearing(now_ms, boot_ms)
    }

    /// The own monotonic clock, milliseconds since some moment before the start. It stands still while the machine
    /// sleeps. Never 0.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        EPOCH_MS + milliseconds(self.start.elapsed())
    }

    fn collect(&self, mut look: impl FnMut(&Table, u64, &mut Vec<Heard>)) -> (Vec<Heard>, u64) {
        let mark_ms = self.now_ms();
        let mut heard = Vec::new();
        for shard in &self.shards {
            look(&shard.lock(), mark_ms, &mut heard);
        }
        (heard, mark_ms)
    }

    fn shard(&self, device: u64) -> &Mutex<Table> {
        // Neither the bits by which the map finds its bucket nor those by which it tells entries apart.
        #[allow(clippy::cast_possible_truncation)]
        let shard = (device >> 40) as usize % SHARDS;
        &self.shards[shard]
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "roll_tests.rs"]
mod tests;
