//! Edge: what the rest of the process sees of the Leases: who is there, who leads, and how good the own standing is.

use super::lease::{Lead, LostLead};
use super::members::View;
use crate::runtime::clock;
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The own Lease counts as renewed for so long.
const LEASE_GOOD_MS: u64 = 10_000;
/// The apiserver counts as reachable for so long after a list.
const APISERVER_GOOD_MS: u64 = 6_000;

/// Milliseconds of a clock that goes on while the process is stopped or the machine sleeps.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How far this replica may trust itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The own Lease was renewed, by a request sent in the last 10 seconds.
    pub lease: bool,
    /// The apiserver gave a list of the members in the last 6 seconds.
    pub apiserver: bool,
    /// This replica has joined the members, and not left them.
    pub joined: bool,
}

#[derive(Debug, Default)]
struct Times {
    renewed_ms: Option<u64>,
    listed_ms: Option<u64>,
    joined: bool,
}

/// See the module. One a process; the keeper of the Leases writes it, everybody reads it.
pub struct Ownership {
    identity: Arc<str>,
    incarnation: u64,
    clock: Clock,
    times: Mutex<Times>,
    /// Nothing is kept in Leases: the standing is always good, or always bad.
    fixed: Option<bool>,
    view: watch::Sender<Arc<View>>,
    lead: watch::Sender<Option<Lead>>,
    working: watch::Sender<usize>,
    leader: Mutex<Option<Arc<str>>>,
}

/// Somebody works under the lead. The Lease is not given away before all of these are dropped.
pub struct Working {
    ownership: Arc<Ownership>,
}

/// Milliseconds of `CLOCK_BOOTTIME`. Where the system does not tell, or once cannot, a monotonic clock goes on from
/// what is known.
#[must_use]
pub fn boot_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    static AHEAD: AtomicU64 = AtomicU64::new(0);
    let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let monotonic = milliseconds(START.get_or_init(Instant::now).elapsed());
    match clock::since_boot().map(milliseconds) {
        Some(boot) => {
            AHEAD.store(boot.saturating_sub(monotonic), Ordering::Relaxed);
            boot
        }
        None => monotonic + AHEAD.load(Ordering::Relaxed),
    }
}

// === impl Lead ===

impl Lead {
    /// Whether it is held now. To be asked right before each write.
    ///
    /// # Errors
    /// When it is not.
    pub fn holds(&self) -> Result<(), LostLead> {
        self.check(boot_ms())
    }
}

// === impl Working ===

impl Drop for Working {
    fn drop(&mut self) {
        self.ownership.working.send_modify(|count| *count -= 1);
    }
}

impl fmt::Debug for Working {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Working")
    }
}

// === impl Ownership ===

impl Ownership {
    /// Nobody is there yet, and this process is one incarnation of `identity`.
    #[must_use]
    pub fn new(identity: &str) -> Arc<Self> {
        Self::with_clock(identity, Arc::new(boot_ms))
    }

    pub(crate) fn with_clock(identity: &str, clock: Clock) -> Arc<Self> {
        let incarnation = rand::random::<u64>().max(1);
        Arc::new(Self::build(identity, incarnation, clock, View::new(0, Vec::new(), identity), None))
    }

    /// Owns everything, always in good standing, never leads; for tests.
    #[must_use]
    pub fn alone(identity: &str) -> Arc<Self> {
        Self::fixed(identity, View::alone(identity))
    }

    /// Sees what it is shown, always in good standing; for tests.
    #[must_use]
    pub fn fixed(identity: &str, view: View) -> Arc<Self> {
        Self::fixed_in(identity, view, true)
    }

    /// As [`Ownership::fixed`], but cut from the apiserver.
    #[cfg(test)]
    pub(crate) fn cut_off(identity: &str, view: View) -> Arc<Self> {
        Self::fixed_in(identity, view, false)
    }

    fn fixed_in(identity: &str, view: View, good: bool) -> Arc<Self> {
        let incarnation = view.member(identity).map_or(1, |me| me.incarnation);
        Arc::new(Self::build(identity, incarnation, Arc::new(boot_ms), view, Some(good)))
    }

    fn build(identity: &str, incarnation: u64, clock: Clock, view: View, fixed: Option<bool>) -> Self {
        Self {
            identity: identity.into(),
            incarnation,
            clock,
            times: Mutex::default(),
            fixed,
            view: watch::Sender::new(Arc::new(view)),
            lead: watch::Sender::new(None),
            working: watch::Sender::new(0),
            leader: Mutex::default(),
        }
    }

    /// The name of this replica.
    #[must_use]
    pub fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// This start of the process; never 0.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Who is there.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Who is there, and whenever that changes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Whether this replica works for a device, by its [`super::rendezvous::device_hash`].
    #[must_use]
    pub fn owner_is_me(&self, device: u64) -> bool {
        self.view.borrow().is_mine(device)
    }

    /// How far this replica may trust itself, now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if let Some(good) = self.fixed {
            return Standing { lease: good, apiserver: good, joined: good };
        }
        let now = (self.clock)();
        let within = |when: Option<u64>, span| when.is_some_and(|when| now.saturating_sub(when) < span);
        let times = self.times.lock();
        Standing {
            lease: within(times.renewed_ms, LEASE_GOOD_MS),
            apiserver: within(times.listed_ms, APISERVER_GOOD_MS),
            joined: times.joined,
        }
    }

    /// The lead while this replica has it. Whoever works under it holds a [`Ownership::work`] meanwhile and lets go
    /// when the value changes or the lead no longer [`Lead::holds`].
    #[must_use]
    pub fn lead(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.subscribe()
    }

    /// To be held while working under the lead, writes in flight included.
    #[must_use]
    pub fn work(self: &Arc<Self>) -> Working {
        self.working.send_modify(|count| *count += 1);
        Working { ownership: self.clone() }
    }

    /// Who leads, as far as this replica knows; for people.
    #[must_use]
    pub fn leader(&self) -> Option<Arc<str>> {
        self.leader.lock().clone()
    }

    /// Seconds since the last list of the members; infinite before the first one.
    #[must_use]
    pub fn view_age_seconds(&self) -> f64 {
        let listed = self.times.lock().listed_ms;
        #[allow(clippy::cast_precision_loss)]
        listed.map_or(f64::INFINITY, |listed| (self.clock)().saturating_sub(listed) as f64 / 1000.0)
    }

    /// Shows another view, unless it is the one that is shown.
    pub fn show(&self, view: Arc<View>) {
        self.view.send_if_modified(|shown| {
            let other = **shown != *view;
            if other {
                *shown = view;
            }
            other
        });
    }

    pub(super) fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    pub(super) fn renewed(&self, sent_ms: u64) {
        let mut times = self.times.lock();
        times.renewed_ms = Some(sent_ms);
        times.joined = true;
    }

    pub(super) fn leader_is(&self, leader: Option<Arc<str>>) {
        *self.leader.lock() = leader;
    }

    pub(super) fn left(&self) {
        let mut times = self.times.lock();
        times.renewed_ms = None;
        times.joined = false;
    }

    pub(super) fn listed(&self, now_ms: u64) {
        self.times.lock().listed_ms = Some(now_ms);
    }

    /// Gives the lead to whoever works under it, or takes it away.
    pub(crate) fn publish(&self, lead: Option<Lead>) {
        if let Some(before) = self.lead.send_replace(lead.clone()).filter(|before| Some(before) != lead.as_ref()) {
            before.end();
        }
    }

    /// Waits until nobody works under the lead.
    pub(crate) async fn drained(&self) {
        // The sender is this very value.
        let _ = self.working.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ownership")
            .field("identity", &self.identity)
            .field("view", &self.view())
            .finish_non_exhaustive()
    }
}
