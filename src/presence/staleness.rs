//! Pure: when a device's silence becomes a verdict, and when the observer should doubt itself instead.
//!
//! Silence is not measured to now but to the *horizon*: the moment up to which everybody's knowledge is here. Each
//! message of another live replica shows everything that it heard up to some moment of the own clock; the oldest of
//! these moments is the horizon, and alone it is now. A device is called dead when
//!
//! - a whole window lies between its last sign of life, anywhere, and the horizon,
//! - the horizon is fresh: no live replica is unheard for longer than 5 s (less with windows shorter than that, so that
//!   a verdict is never about more than one window ago; but never less than 2.5 s, since messages come each second and
//!   show what was up to 2 s ago),
//! - the own Lease is renewed and the apiserver answers: else others may work for the device, unseen,
//! - this replica was not away meanwhile. After a start, and after a pause, silence counts from then on for devices
//!   that this replica heard last, or never; what others heard stays true where somebody else listened meanwhile.
//!
//! A replica that leaves without having told everything up to that moment takes knowledge with it: silence counts from
//! its departure; or from 10 s before, when it had not been heard for so long, since a replica whose Lease expired has
//! not lived for the last 10 s of it. (One that was never heard and is gone within 20 s of the start was dead before; it does not count.)
//! While the apiserver does not answer for more than 10 s others may come and go unseen: silence counts from its end.
//!
//! Every doubt ends by itself a window after its cause, but two last as long as that does: a live replica that is not
//! heard, and an own Lease that cannot be renewed, or an apiserver that does not answer.
//!
//! Times are milliseconds on one monotonic clock.

use super::table::Contact;
use std::collections::HashMap;

/// How long the watcher may be late before it takes itself for paused, milliseconds; with short windows a quarter of
/// one, so that what it did not see fits into the window with a heartbeat or two.
const PAUSE_MS: u64 = 3_000;
const SHORTEST_PAUSE_MS: u64 = 750;
/// How old the horizon may be; see the module.
const FRESH_MS: u64 = 5_000;
const SHORTEST_FRESH_MS: u64 = 2_500;
/// A report sees to it itself that the status says so, within this time.
const OWN_MATTER_MS: u64 = 1_000;
/// A dead replica's Lease is seen to be dead within so much of the start.
const INHERITED_MS: u64 = 20_000;
/// While the apiserver does not answer for so long, a replica can come and be killed unseen.
const BLIND_MS: u64 = 10_000;
/// A Lease is renewed every 3 s, or tried to within another 2 s, and expires 15 s after it was: whoever is gone with it
/// died so much before. Less with short windows, of which it must not take too much.
const DEAD_BEFORE_MS: u64 = 10_000;
/// A replica that was heard so lately could have reached this one.
const IN_TOUCH_MS: u64 = 3_000;
/// Whoever is not in the view and was not heard for so long is forgotten.
const FORGET_MS: u64 = 60_000;

/// What is known of a device's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It reported within the window.
    Alive,
    /// Nobody has heard of it for longer than the window.
    Stale,
    /// It has not reported since the start, or the observer was away: nothing can be said.
    Unjudged,
}

/// Why silence was not (yet) taken for death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The manager has not been up for one whole window.
    Start,
    /// The manager itself was paused or suspended.
    Pause,
    /// Too many at once: they are written at a trickle.
    Mass,
    /// Another live replica has not told (recently enough) whom it heard, or left without telling.
    Peers,
    /// The own member Lease is not renewed: others may have taken over.
    Lease,
    /// The apiserver does not answer, so nobody knows who else is there.
    Apiserver,
}

/// What an observer has to know about its own standing. The default is no doubt, and nobody else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The own member Lease is *not* renewed (or does not exist yet).
    pub lease: bool,
    /// The apiserver did *not* answer lately.
    pub apiserver: bool,
    /// Incarnations of the other live replicas.
    pub peers: Vec<u64>,
}

/// How well the other replicas are heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hearing {
    /// Other live replicas.
    pub peers: usize,
    /// Of these, the ones whose horizon is fresh.
    pub heard: usize,
    /// Age of the oldest horizon among those that were ever heard, milliseconds; 0 alone.
    pub oldest_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Witness {
    first_ms: u64,
    horizon_ms: u64,
    /// The same moment on the boot clock.
    horizon_boot_ms: Option<u64>,
}

/// The observer's own state.
#[derive(Debug, Clone)]
pub struct Observer {
    window_ms: u64,
    /// The last start or end of a pause.
    since_ms: u64,
    held: Held,
    /// When that pause began.
    away_ms: u64,
    every_ms: u64,
    last_tick_ms: u64,
    last_boot_ms: Option<u64>,
    lease: bool,
    /// Since when the apiserver has not answered.
    blind_since_ms: Option<u64>,
    /// The end of the last long outage.
    blind_until_ms: u64,
    /// When the members were first known.
    first_list_ms: Option<u64>,
    /// Incarnations of the other live replicas, and since when they are known.
    peers: HashMap<u64, u64>,
    witnesses: HashMap<u64, Witness>,
    /// Those that left, and when.
    departed: HashMap<u64, u64>,
    /// When another replica last took in what this one heard.
    told_ms: u64,
}

/// What an observer can say at one moment: look first, then look up devices, since what is heard in between makes the
/// verdict milder.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    now_ms: u64,
    window_ms: u64,
    away: bool,
    since_ms: u64,
    held: Held,
    /// Whether what others heard last is judged without regard to the own start or pause.
    covered: bool,
    /// Silence before these does not count: somebody left without telling, or could have.
    floors: [(u64, Held); 2],
    horizon_ms: u64,
    doubt: Option<Held>,
}

// === impl Held ===

impl Held {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 6] = [Self::Start, Self::Pause, Self::Mass, Self::Peers, Self::Lease, Self::Apiserver];

    /// Label value of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Mass => "mass",
            Self::Peers => "peers",
            Self::Lease => "lease",
            Self::Apiserver => "apiserver",
        }
    }
}

// === impl Hearing ===

impl Hearing {
    /// Whether every one of so many other replicas in the view, and of those that the observer knows, was heard just
    /// now.
    #[must_use]
    pub fn is_in_touch(self, peers: usize) -> bool {
        self.heard >= self.peers.max(peers) && self.oldest_ms <= IN_TOUCH_MS
    }
}

// === impl Observer ===

impl Observer {
    /// An observer that starts to listen now, and doubts until it is told of its standing.
    #[must_use]
    pub fn new(window_ms: u64, now_ms: u64) -> Self {
        Self {
            window_ms,
            since_ms: now_ms,
            held: Held::Start,
            away_ms: now_ms,
            every_ms: 0,
            last_tick_ms: now_ms,
            last_boot_ms: None,
            lease: true,
            blind_since_ms: Some(now_ms),
            blind_until_ms: 0,
            first_list_ms: None,
            peers: HashMap::new(),
            witnesses: HashMap::new(),
            departed: HashMap::new(),
            told_ms: now_ms,
        }
    }

    /// Listening starts only now: before, no device could be heard.
    pub fn restart(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
        self.away_ms = now_ms;
        self.last_tick_ms = now_ms;
        self.held = Held::Start;
    }

    /// Called every `every_ms`. A gap, or a boot clock that ran ahead of the monotonic one, means that the
    /// observer was away. Returns for how long, milliseconds.
    pub fn tick(&mut self, now_ms: u64, boot_ms: Option<u64>, every_ms: u64) -> Option<u64> {
        let passed = now_ms.saturating_sub(self.last_tick_ms);
        let late = passed.saturating_sub(every_ms);
        let suspended = self.suspended_ms(now_ms, boot_ms);
        let began_ms = std::mem::replace(&mut self.last_tick_ms, now_ms);
        self.last_boot_ms = boot_ms;
        self.every_ms = every_ms;
        let away = late.max(suspended);
        (away > self.pause_ms()).then(|| {
            self.since_ms = now_ms;
            self.away_ms = began_ms;
            self.held = Held::Pause;
            away
        })
    }

    /// Takes in the own standing and who else is there; to be called at every tick, and right before it where a pause
    /// is noticed.
    pub fn observe(&mut self, doubt: &Doubt, now_ms: u64) {
        self.lease = doubt.lease;
        if doubt.apiserver {
            self.blind_since_ms.get_or_insert(now_ms);
        } else if let Some(since_ms) = self.blind_since_ms.take() {
            // Before the first list it makes no difference: what devices say elsewhere is told.
            if self.first_list_ms.is_some() && now_ms.saturating_sub(since_ms) >= BLIND_MS {
                self.blind_until_ms = now_ms;
            }
            self.first_list_ms.get_or_insert(now_ms);
        }
        let before = std::mem::take(&mut self.peers);
        for peer in &doubt.peers {
            self.departed.remove(peer);
            self.peers.insert(*peer, before.get(peer).copied().unwrap_or(now_ms));
        }
        for (peer, known_ms) in before {
            let dead_before = self.first_list_ms == Some(known_ms)
                && now_ms.saturating_sub(known_ms) <= INHERITED_MS
                && !self.witnesses.contains_key(&peer)
                && !doubt.apiserver;
            if !self.peers.contains_key(&peer) && !dead_before {
                self.departed.insert(peer, now_ms);
            }
        }
        let (window_ms, fresh_ms) = (self.window_ms, self.fresh_ms());
        let witnesses = &self.witnesses;
        self.departed.retain(|peer, left_ms| {
            now_ms.saturating_sub(*left_ms) <= window_ms + fresh_ms && !told_all(witnesses, *peer, *left_ms)
        });
        let (peers, departed) = (&self.peers, &self.departed);
        self.witnesses.retain(|peer, witness| {
            peers.contains_key(peer)
                || departed.contains_key(peer)
                || now_ms.saturating_sub(witness.horizon_ms) <= FORGET_MS
        });
    }

    /// A message of another replica was taken in, and with those before it shows everything that it heard up to
    /// `horizon_ms` of the own clock. `boot_ms` is now by the boot clock, where there is one.
    pub fn witness(&mut self, incarnation: u64, horizon_ms: u64, now_ms: u64, boot_ms: Option<u64>) {
        let horizon_ms = horizon_ms.min(now_ms);
        let horizon_boot_ms = boot_ms.map(|boot_ms| boot_ms.saturating_sub(now_ms - horizon_ms));
        let new = Witness { first_ms: now_ms, horizon_ms, horizon_boot_ms };
        let witness = self.witnesses.entry(incarnation).or_insert(new);
        witness.horizon_ms = witness.horizon_ms.max(horizon_ms);
        witness.horizon_boot_ms = witness.horizon_boot_ms.max(horizon_boot_ms);
    }

    /// How well the others are heard. The boot clock tells what the monotonic one does not: that it stood still, and
    /// what was heard just before is old, also when no tick has seen that yet.
    #[must_use]
    pub fn hearing(&self, now_ms: u64, boot_ms: Option<u64>) -> Hearing {
        let ages = self.peers.keys().filter_map(|peer| {
            let witness = self.witnesses.get(peer)?;
            let on_boot_clock = match (boot_ms, witness.horizon_boot_ms) {
                (Some(now), Some(horizon)) => now.saturating_sub(horizon),
                (None, Some(_)) => return None,
                (_, None) => 0,
            };
            Some(now_ms.saturating_sub(witness.horizon_ms).max(on_boot_clock))
        });
        let mut hearing = Hearing { peers: self.peers.len(), ..Hearing::default() };
        for age in ages {
            hearing.heard += usize::from(age <= self.fresh_ms());
            hearing.oldest_ms = hearing.oldest_ms.max(age);
        }
        hearing
    }

    /// Another replica has taken in what this one heard.
    pub fn told(&mut self, now_ms: u64) {
        self.told_ms = self.told_ms.max(now_ms);
    }

    /// Whether nobody learns what this replica hears: it cannot renew its Lease, the apiserver does not answer, and
    /// none of the other replicas that were there takes anything in. Devices should talk to somebody else, where there
    /// is one. (Whether others are heard says nothing: they do not talk to who has left their view.)
    #[must_use]
    pub fn is_isolated(&self, now_ms: u64) -> bool {
        let untold = now_ms.saturating_sub(self.told_ms) > self.fresh_ms();
        self.lease && self.blind_since_ms.is_some() && !self.peers.is_empty() && untold
    }

    /// What can be said now. `boot_ms` is now by the boot clock, where there is one.
    #[must_use]
    pub fn outlook(&self, now_ms: u64, boot_ms: Option<u64>) -> Outlook {
        let (mut horizon_ms, mut unheard, mut listened) = (now_ms, false, false);
        for peer in self.peers.keys() {
            match self.witnesses.get(peer) {
                Some(witness)
                    if witness.horizon_ms >= self.since_ms
                        && now_ms.saturating_sub(witness.horizon_ms) <= self.fresh_ms() =>
                {
                    horizon_ms = horizon_ms.min(witness.horizon_ms);
                    listened |= witness.first_ms <= self.away_ms;
                }
                _ => unheard = true,
            }
        }
        let silent = self.departed.iter().filter(|(peer, left_ms)| !told_all(&self.witnesses, **peer, **left_ms));
        let left_ms = silent.map(|(peer, left_ms)| self.silent_since_ms(*peer, *left_ms)).max().unwrap_or(0);
        let doubts =
            [(self.lease, Held::Lease), (self.blind_since_ms.is_some(), Held::Apiserver), (unheard, Held::Peers)];
        Outlook {
            now_ms,
            window_ms: self.window_ms,
            // An own gap that no tick has seen yet: whoever asks first must not believe the clock.
            away: now_ms.saturating_sub(self.last_tick_ms) > self.every_ms + self.pause_ms()
                || self.suspended_ms(now_ms, boot_ms) > self.pause_ms(),
            since_ms: self.since_ms,
            held: self.held,
            // What others told of the time before the start is true; a pause needs somebody else who listened.
            covered: self.held == Held::Start || listened,
            floors: [(left_ms, Held::Peers), (self.blind_until_ms, Held::Apiserver)],
            horizon_ms,
            doubt: doubts.into_iter().find_map(|(doubt, held)| doubt.then_some(held)),
        }
    }

    /// Until when a replica that left may have heard what it did not tell.
    fn silent_since_ms(&self, peer: u64, left_ms: u64) -> u64 {
        let died_ms = left_ms.saturating_sub(DEAD_BEFORE_MS.min(self.window_ms / 5));
        let told_ms = self.witnesses.get(&peer).map_or(0, |witness| witness.horizon_ms);
        if told_ms < died_ms { died_ms } else { left_ms }
    }

    /// For how long the monotonic clock has stood still since the last tick.
    fn suspended_ms(&self, now_ms: u64, boot_ms: Option<u64>) -> u64 {
        let passed = now_ms.saturating_sub(self.last_tick_ms);
        boot_ms.zip(self.last_boot_ms).map_or(0, |(boot, last)| boot.saturating_sub(last).saturating_sub(passed))
    }

    fn pause_ms(&self) -> u64 {
        (self.window_ms / 4).clamp(SHORTEST_PAUSE_MS, PAUSE_MS)
    }

    fn fresh_ms(&self) -> u64 {
        self.window_ms.clamp(SHORTEST_FRESH_MS, FRESH_MS)
    }
}

// === impl Outlook ===

impl Outlook {
    /// Judges a device by when it was last heard; none means never.
    ///
    /// # Errors
    /// Why its silence was not taken for death.
    pub fn judge(&self, contact: Option<Contact>) -> Result<AgentState, Held> {
        let within = |since_ms: u64, until_ms: u64| until_ms.saturating_sub(since_ms) < self.window_ms;
        if contact.is_some_and(|contact| within(contact.sure_ms, self.now_ms)) {
            return Ok(AgentState::Alive);
        }
        if self.away {
            return Err(Held::Pause);
        }
        let heard_ms = contact.map_or(0, |contact| contact.heard_ms);
        let (mut base_ms, mut reason) = (heard_ms, Held::Peers);
        if self.since_ms > base_ms && !(self.covered && contact.is_some_and(|contact| !contact.direct)) {
            (base_ms, reason) = (self.since_ms, self.held);
        }
        for (floor_ms, held) in self.floors {
            if floor_ms > base_ms {
                (base_ms, reason) = (floor_ms, held);
            }
        }
        if within(base_ms, self.now_ms) {
            return Err(reason);
        }
        match self.doubt {
            Some(held) => Err(held),
            None if within(base_ms, self.horizon_ms) => Err(Held::Peers),
            None => Ok(AgentState::Stale),
        }
    }

    /// Whether a status that says "disconnected" is certainly wrong and nobody seems to mend it: a report that came
    /// just before the verdict, to a replica that did not know of it, found nothing to write. Not at the end of the
    /// window, where inaccurate ages would let a status flap.
    #[must_use]
    pub fn is_back(&self, contact: Contact) -> bool {
        (OWN_MATTER_MS..=self.window_ms / 2).contains(&self.now_ms.saturating_sub(contact.sure_ms))
    }
}

/// Whether a replica that left had told everything up to then.
fn told_all(witnesses: &HashMap<u64, Witness>, peer: u64, left_ms: u64) -> bool {
    witnesses.get(&peer).is_some_and(|witness| witness.horizon_ms >= left_ms)
}

#[cfg(test)]
#[path = "staleness_tests.rs"]
mod tests;
