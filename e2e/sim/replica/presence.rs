//! The roll of a replica: its table and its observer.

use super::super::guards::{Guard, Guards};
use praetor::ownership::rendezvous::device_hash;
use praetor::presence::order::fingerprint;
use praetor::presence::staleness::{AgentState, Doubt, Hearing, Held, Observer, Outlook};
use praetor::presence::table::{Heard, Table, Taken};

/// Where the clock starts, as in production.
const EPOCH_MS: u64 = 1 << 33;
/// How often clocks are looked at, milliseconds.
pub const EVERY_MS: u64 = 1_000;

/// See the module.
pub struct Presence {
    pub table: Table,
    observer: Observer,
    /// As of the last tick.
    pub is_isolated: bool,
    guards: Guards,
    ticked: u64,
}

impl Presence {
    pub fn new(window_ms: u64, guards: Guards) -> Self {
        Self {
            table: Table::default(),
            observer: Observer::new(window_ms, EPOCH_MS),
            is_isolated: false,
            guards,
            ticked: EPOCH_MS,
        }
    }

    /// The replica's monotonic clock, as the table counts.
    pub fn clock(monotonic_ms: u64) -> u64 {
        EPOCH_MS + monotonic_ms
    }

    /// The device port is open.
    pub fn open(&mut self, now_ms: u64) {
        self.observer.restart(now_ms);
        self.ticked = now_ms;
    }

    /// Looks at the clocks.
    pub fn tick(&mut self, doubt: &Doubt, now_ms: u64, boot_ms: u64) {
        if !self.guards.on(Guard::FreshPresence) {
            for peer in &doubt.peers {
                self.observer.witness(*peer, now_ms, now_ms, None);
            }
        }
        self.observer.observe(doubt, now_ms);
        self.is_isolated = self.observer.is_isolated(now_ms);
        if self.guards.on(Guard::PauseCheck) {
            self.observer.tick(now_ms, Some(boot_ms), EVERY_MS);
        } else {
            self.catch_up(now_ms);
        }
        self.ticked = now_ms;
    }

    /// Without the check for pauses: as if no tick had ever been missed.
    fn catch_up(&mut self, now_ms: u64) {
        while self.ticked < now_ms {
            self.ticked = (self.ticked + EVERY_MS).min(now_ms);
            self.observer.tick(self.ticked, None, EVERY_MS);
        }
    }

    pub fn outlook(&mut self, now_ms: u64, boot_ms: u64) -> Outlook {
        let looks = self.guards.on(Guard::PauseCheck);
        if !looks {
            self.catch_up(now_ms);
        }
        self.observer.outlook(now_ms, looks.then_some(boot_ms))
    }

    pub fn judge(&mut self, device: &str, now_ms: u64, boot_ms: u64) -> Result<AgentState, Held> {
        let outlook = self.outlook(now_ms, boot_ms);
        outlook.judge(self.table.contact(device_hash(device)))
    }

    pub fn state(&mut self, device: &str, now_ms: u64, boot_ms: u64) -> AgentState {
        self.judge(device, now_ms, boot_ms).unwrap_or(AgentState::Unjudged)
    }

    pub fn merge(&mut self, heard: &[Heard], horizon_ms: u64, now_ms: u64) {
        let taken = Taken { from_ms: horizon_ms.min(now_ms), until_ms: now_ms };
        for heard in heard {
            self.table.merge(heard, taken);
        }
    }

    pub fn witness(&mut self, incarnation: u64, horizon_ms: u64, now_ms: u64, boot_ms: u64) {
        self.observer.witness(incarnation, horizon_ms, now_ms, Some(boot_ms));
    }

    pub fn told(&mut self, now_ms: u64) {
        self.observer.told(now_ms);
    }

    pub fn hearing(&self, now_ms: u64, boot_ms: u64) -> Hearing {
        self.observer.hearing(now_ms, Some(boot_ms))
    }

    pub fn took(&mut self, device: &str, boot: &str, sequence: u64) {
        self.table.took(device_hash(device), fingerprint(boot), sequence);
    }

    pub fn lose(&mut self, device: &str) {
        self.table.lose(device_hash(device));
    }

    pub fn is_lost(&self, device: &str) -> bool {
        self.table.is_lost(device_hash(device))
    }
}
