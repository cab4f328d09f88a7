//! Pure: who was heard when, by this replica and by the others, and the order of every device's reports.
//!
//! Devices are named by [`crate::ownership::rendezvous::device_hash`]. Times are milliseconds of the own monotonic
//! clock; 0 is never. What others tell are ages, which were taken at some moment of the own clock that is only known
//! to lie in a [`Taken`]: so a contact has a latest and an earliest moment. Death is judged by the latest and life by
//! the earliest, so that inaccuracy makes a verdict milder and never lets it flap.

use super::order::{Freshness, Order};
use super::said::{Footing, Said};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::hash::{BuildHasherDefault, Hasher};

/// What one replica tells another about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// [`crate::ownership::rendezvous::device_hash`] of its name.
    pub device: u64,
    /// How long ago it was heard when the message was made, milliseconds.
    pub age_ms: u32,
    /// [`super::order::fingerprint`] of the bootId with which it reported then; 0 when there was none.
    pub boot: u64,
    /// The highest sequence of that boot.
    pub sequence: u64,
    /// Fingerprint of what that report said, once it was acknowledged ([`Said::acked`]); 0: not (yet), or not known.
    pub said: u64,
}

/// When ages were taken, on the own clock: not before and not after, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// A moment before it; the horizon of the message.
    pub from_ms: u64,
    /// A moment after it; when the message came.
    pub until_ms: u64,
}

/// The last sign of life of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// It was certainly not heard after this.
    pub heard_ms: u64,
    /// It was certainly heard then or later.
    pub sure_ms: u64,
    /// Whether this replica itself heard it last, as far as it knows.
    pub direct: bool,
}

#[derive(Debug, Default)]
struct Entry {
    heard_ms: u64,
    sure_ms: u64,
    /// When this replica heard it; 0 never.
    direct_ms: u64,
    /// The latest report of the order's boot: between these two; 0 when only a status knows of it.
    boot_sure_ms: u64,
    boot_heard_ms: u64,
    order: Order,
    /// Whether the order contains what the status remembers.
    seeded: bool,
    /// What the newest report said.
    said: Said,
    /// When there was last something to tell others of the newest report: it was heard here, or acknowledged here.
    news_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    devices: HashMap<u64, Entry, BuildHasherDefault<AsIs>>,
}

/// The keys are hashes already.
#[derive(Debug, Default)]
struct AsIs(u64);

// === impl AsIs ===

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

// === impl Entry ===

impl Entry {
    fn hear(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
        self.sure_ms = self.sure_ms.max(now_ms);
        self.direct_ms = self.direct_ms.max(now_ms);
    }

    /// A report of a boot was heard just now.
    fn hear_boot(&mut self, boot: u64, now_ms: u64) {
        if boot != 0 && boot == self.order.boot() {
            self.boot_sure_ms = self.boot_sure_ms.max(now_ms);
            self.boot_heard_ms = self.boot_heard_ms.max(now_ms);
            self.news_ms = now_ms;
        }
    }

    fn merge(&mut self, heard: &Heard, sure_ms: u64, heard_ms: u64) {
        self.sure_ms = self.sure_ms.max(sure_ms);
        self.heard_ms = self.heard_ms.max(heard_ms);
        if heard.boot == 0 {
            return;
        }
        if heard.boot == self.order.boot() {
            match heard.sequence.cmp(&self.order.sequence()) {
                Ordering::Less => {}
                Ordering::Equal => self.said.merge(false, heard.said),
                Ordering::Greater => {
                    self.said.merge(true, heard.said);
                    // Who has heard it tells of it.
                    self.news_ms = 0;
                }
            }
            self.order.raise(heard.sequence);
            self.boot_sure_ms = self.boot_sure_ms.max(sure_ms);
            self.boot_heard_ms = self.boot_heard_ms.max(heard_ms);
        } else if sure_ms > self.boot_heard_ms {
            if self.order.succeed(heard.boot, Some(heard.sequence)) {
                (self.boot_sure_ms, self.boot_heard_ms) = (sure_ms, heard_ms);
                self.said.merge(true, heard.said);
                self.news_ms = 0;
            }
        } else if heard_ms < self.boot_sure_ms {
            self.order.outdate(heard.boot, heard.sequence);
        }
        // Else the times do not tell which of the two boots came first; the next message or report will.
    }

    /// A sign of life, and the newest report where there are news of it. Each has its own time: a device that has asked
    /// since it reported was heard then, but with no boot.
    fn tell(&self, device: u64, heard_ms: Option<u64>, news: bool, now_ms: u64, into: &mut Vec<Heard>) {
        let age_ms = |at_ms: u64| u32::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(u32::MAX);
        let reported_ms = Some(self.boot_heard_ms).filter(|at_ms| *at_ms != 0 && (news || heard_ms == Some(*at_ms)));
        if let Some(heard_ms) = heard_ms.filter(|_| heard_ms != reported_ms) {
            into.push(Heard { device, age_ms: age_ms(heard_ms), boot: 0, sequence: 0, said: 0 });
        }
        if let Some(reported_ms) = reported_ms {
            let (boot, sequence, said) = (self.order.boot(), self.order.sequence(), self.said.acked);
            into.push(Heard { device, age_ms: age_ms(reported_ms), boot, sequence, said });
        }
    }
}

// === impl Table ===

impl Table {
    /// How many devices have been heard of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Notes a sign of life.
    pub fn heard(&mut self, device: u64, now_ms: u64) {
        self.devices.entry(device).or_default().hear(now_ms);
    }

    /// Whether [`Table::order`] needs no seed for a device.
    #[must_use]
    pub fn is_seeded(&self, device: u64) -> bool {
        self.devices.get(&device).is_some_and(|entry| entry.seeded)
    }

    /// Notes a report and judges its order, and what is known of the one before it. `boot` is the
    /// [`super::order::fingerprint`] of its bootId, 0 without one; `said` is a fingerprint of what it says; `seed` is
    /// what the status remembers, looked at once for each device.
    pub fn order(
        &mut self,
        device: u64,
        boot: u64,
        sequence: Option<u64>,
        said: u64,
        seed: Option<Order>,
        now_ms: u64,
    ) -> (Freshness, Footing) {
        let entry = self.devices.entry(device).or_default();
        entry.hear(now_ms);
        if let Some(seed) = seed.filter(|_| !entry.seeded) {
            if entry.order.is_empty() {
                entry.order = seed;
            } else if entry.order.boot() == seed.boot() && seed.sequence() > entry.order.sequence() {
                entry.order.raise(seed.sequence());
                entry.said.merge(true, 0);
            }
        }
        entry.seeded = true;
        let judged = entry.said.judge(&mut entry.order, boot, sequence, said);
        entry.hear_boot(boot, now_ms);
        judged
    }

    /// A report was compared with the index here, and what it changes is queued. Nothing, if a newer one is known.
    pub fn took(&mut self, device: u64, boot: u64, sequence: u64) {
        if let Some(entry) = self.devices.get_mut(&device).filter(|entry| entry.order.is(boot, sequence)) {
            entry.said.take();
        }
    }

    /// What a device's reports changed here is given up, and nobody knows whether it was written.
    pub fn lose(&mut self, device: u64) {
        self.devices.entry(device).or_default().said.lose();
    }

    /// Whether [`Table::lose`] was called for a device.
    #[must_use]
    pub fn is_lost(&self, device: u64) -> bool {
        self.devices.get(&device).is_some_and(|entry| entry.said.is_lost())
    }

    /// A report was acknowledged; `settled` is the state of the index in which it left nothing to do. Nothing, if a
    /// newer one is known.
    pub fn acknowledged(
        &mut self,
        device: u64,
        boot: u64,
        sequence: u64,
        said: u64,
        settled: Option<u64>,
        now_ms: u64,
    ) {
        if let Some(entry) = self.devices.get_mut(&device).filter(|entry| entry.order.is(boot, sequence)) {
            entry.said.acknowledge(said, settled);
            entry.news_ms = now_ms;
        }
    }

    /// Whether a report that still waits to be written here is known to be overtaken by one that another replica had.
    #[must_use]
    pub fn is_superseded(&self, device: u64, boot: u64, sequence: u64) -> bool {
        let entry = self.devices.get(&device);
        entry.is_some_and(|entry| !entry.said.is_here() && entry.order.is_beyond(boot, sequence))
    }

    /// Whether a newer report is known than the one of a boot and a sequence.
    #[must_use]
    pub fn is_overtaken(&self, device: u64, boot: u64, sequence: u64) -> bool {
        self.devices.get(&device).is_some_and(|entry| entry.order.is_beyond(boot, sequence))
    }

    /// Whether the very same report, right before this one, left nothing to do: then it is noted.
    pub fn heard_the_same(
        &mut self,
        device: u64,
        boot: u64,
        sequence: u64,
        said: u64,
        version: u64,
        now_ms: u64,
    ) -> bool {
        let Some(entry) = self.devices.get_mut(&device) else { return false };
        if !entry.said.is_settled(said, version) || !entry.order.advance(boot, sequence) {
            return false;
        }
        entry.hear(now_ms);
        entry.hear_boot(boot, now_ms);
        true
    }

    /// Takes in what another replica tells. In any order and however often, the outcome is the same, as long as times
    /// tell one boot of a device from the next.
    pub fn merge(&mut self, heard: &Heard, taken: Taken) {
        let age = u64::from(heard.age_ms);
        let (sure_ms, heard_ms) = (taken.from_ms.saturating_sub(age), taken.until_ms.saturating_sub(age));
        match self.devices.entry(heard.device) {
            Slot::Occupied(entry) => entry.into_mut().merge(heard, sure_ms, heard_ms),
            Slot::Vacant(slot) => slot.insert(Entry::default()).merge(heard, sure_ms, heard_ms),
        }
    }

    /// What this replica itself has heard since a moment (inclusive), for the others.
    pub fn since(&self, mark_ms: u64, now_ms: u64, into: &mut Vec<Heard>) {
        for (device, entry) in self.devices.iter().filter(|(_, entry)| entry.direct_ms != 0) {
            let heard_ms = Some(entry.direct_ms).filter(|heard_ms| *heard_ms >= mark_ms);
            entry.tell(*device, heard_ms, entry.news_ms >= mark_ms.max(1), now_ms, into);
        }
    }

    /// Everything that is known, also from others, for a replica that knows nothing yet.
    pub fn whole(&self, now_ms: u64, into: &mut Vec<Heard>) {
        // Devices of which only an order is known were never heard.
        for (device, entry) in self.devices.iter().filter(|(_, entry)| entry.heard_ms != 0) {
            entry.tell(*device, Some(entry.heard_ms), true, now_ms, into);
        }
    }

    /// The last sign of life of a device, if there was one.
    #[must_use]
    pub fn contact(&self, device: u64) -> Option<Contact> {
        let entry = self.devices.get(&device)?;
        let direct = entry.direct_ms >= entry.heard_ms;
        Some(Contact { heard_ms: entry.heard_ms, sure_ms: entry.sure_ms, direct })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
