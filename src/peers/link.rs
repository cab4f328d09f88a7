//! Edge: all that goes to one peer: a batch each second, and forwarded reports in between.

use super::batch::{encode, parts};
use super::client::{CallError, Client, Reply};
use super::envelope::{Refusal, Route};
use super::metrics::PeerMetrics;
use super::outbound::{Met, Outbound, Plan, Stamp};
use crate::presence::roll::Roll;
use crate::presence::table::Heard;
use bytes::Bytes;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// How often a batch is sent.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time for each part of a batch.
pub const DEADLINE: Duration = Duration::from_millis(2_500);
/// Longest time for a forwarded report in all. A peer that does not answer at all is given up sooner, with the batch that
/// it does not answer either.
const FORWARD_TIME: Duration = Duration::from_secs(7);
/// Longest time for the last batch of a process.
pub const LAST_BATCH_TIME: Duration = Duration::from_secs(1);
/// Forwarded reports that are under way to one peer at a time.
const FORWARDS: usize = 32;
/// Longest time of it that one waits for its turn; the rest is what the peer takes at most to answer.
const TURN_TIME: Duration = Duration::from_millis(3_500);
/// How often a batch is made anew before the next second, after the peer said what was wrong with it.
const TRIES: usize = 3;

/// The table of last signs of life, as batches need it. Times are milliseconds of its own clock.
pub trait Presence: Send + Sync + 'static {
    /// Its clock.
    fn now_ms(&self) -> u64;
    /// Takes in what a peer heard; see [`Roll::merge`].
    fn merge(&self, heard: &[Heard], horizon_ms: u64);
    /// Whom this replica heard itself since a mark, and the next mark.
    fn heard_since(&self, mark_ms: u64) -> (Vec<Heard>, u64);
    /// Everything that is known, and the next mark.
    fn whole(&self) -> (Vec<Heard>, u64);
    /// All is in that a peer heard up to a moment; see [`Roll::witness`].
    fn witness(&self, incarnation: u64, horizon_ms: u64);
    /// A peer has taken in a batch; see [`Roll::told`].
    fn told(&self);
}

/// Why a peer has not got a batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinkError {
    /// No answer that can be believed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The peer does not take it.
    #[error("refused with status {0}")]
    Refused(u16),
    /// The peer asked for something else again and again.
    #[error("the peer does not agree on clocks and numbers")]
    Disagreed,
    /// Nobody else is there.
    #[error("its address leads to this replica itself: see --peer-advertise-addr")]
    Myself,
}

/// Why a report was not taken in by the peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForwardError {
    /// The peer is not reached, or did not answer the last batch. The report may have arrived if it was sent just now.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time. The report may have arrived.
    #[error("no answer in time")]
    Timeout,
    /// So many reports are under way to it that this one was not sent.
    #[error("too many reports are under way to it")]
    Busy,
    /// Another replica works for the device, as the peer sees it; or it does, and cannot write for now.
    #[error("it does not work for the device")]
    NotOwner,
    /// Anything else.
    #[error("refused with status {0}")]
    Refused(u16),
}

/// See the module.
pub struct Link {
    identity: Arc<str>,
    address: SocketAddr,
    client: Arc<Client>,
    presence: Arc<dyn Presence>,
    metrics: PeerMetrics,
    outbound: Mutex<Outbound>,
    forwards: Semaphore,
    /// Whether the last batch did not get through.
    failing: watch::Sender<bool>,
    since: Instant,
}

// === impl Presence for Roll ===

impl Presence for Roll {
    fn now_ms(&self) -> u64 {
        self.now_ms()
    }

    fn merge(&self, heard: &[Heard], horizon_ms: u64) {
        self.merge(heard, horizon_ms);
    }

    fn heard_since(&self, mark_ms: u64) -> (Vec<Heard>, u64) {
        self.heard_since(mark_ms)
    }

    fn whole(&self) -> (Vec<Heard>, u64) {
        self.whole()
    }

    fn witness(&self, incarnation: u64, horizon_ms: u64) {
        self.witness(incarnation, horizon_ms);
    }

    fn told(&self) {
        self.told();
    }
}

// === impl Link ===

impl Link {
    /// A link to the process that is to be found at an address, if the view is right.
    #[must_use]
    pub fn new(
        identity: &Arc<str>,
        address: SocketAddr,
        outbound: Outbound,
        client: Arc<Client>,
        presence: Arc<dyn Presence>,
        metrics: PeerMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity: identity.clone(),
            address,
            client,
            presence,
            metrics,
            outbound: Mutex::new(outbound),
            forwards: Semaphore::new(FORWARDS),
            failing: watch::Sender::new(false),
            since: Instant::now(),
        })
    }

    /// Where it leads.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Since when it exists.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The view shows this incarnation of the peer.
    pub fn turn_to(&self, incarnation: u64) {
        self.outbound.lock().turn_to(incarnation);
    }

    /// Sends a batch each second; at the shutdown a last one.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut seconds = interval(BATCH_INTERVAL);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let batches = async {
            loop {
                seconds.tick().await;
                let sent = self.exchange().await;
                self.note(sent);
            }
        };
        let _: Option<()> = shutdown.run_until_cancelled(batches).await;
        let last = timeout(LAST_BATCH_TIME, self.exchange()).await;
        tracing::debug!(peer = %self.identity, sent = matches!(last, Ok(Ok(()))), "last batch");
    }

    fn note(&self, sent: Result<(), LinkError>) {
        let failed = self.failing.send_replace(sent.is_err());
        match sent {
            Err(error) if !failed => {
                tracing::warn!(peer = %self.identity, address = %self.address, %error, "a peer does not get our presence");
            }
            Err(error) => tracing::debug!(peer = %self.identity, %error, "a peer still does not get our presence"),
            Ok(()) if failed => tracing::info!(peer = %self.identity, "the peer gets our presence again"),
            Ok(()) => {}
        }
    }

    /// Sends one batch, in as many parts as it needs. What was lost goes again with the next one.
    ///
    /// # Errors
    /// When not all of it was taken in by the peer.
    pub async fn exchange(&self) -> Result<(), LinkError> {
        for _ in 0..TRIES {
            let deadline = Instant::now() + DEADLINE;
            let Some(plan) = self.plan(deadline).await? else { continue };
            let (heard, mark_ms) = match plan.since_ms {
                Some(mark_ms) => self.presence.heard_since(mark_ms),
                None => self.presence.whole(),
            };
            if self.deliver(&plan, &heard, mark_ms).await? {
                self.outbound.lock().delivered(&plan, mark_ms);
                self.presence.told();
                return Ok(());
            }
        }
        Err(LinkError::Disagreed)
    }

    /// What a batch must show. The first time the peer is asked who it is and what its clock says.
    async fn plan(&self, deadline: Instant) -> Result<Option<Plan>, LinkError> {
        if let Some(plan) = self.outbound.lock().plan() {
            return Ok(Some(plan));
        }
        self.meet(deadline).await?;
        Ok(self.outbound.lock().plan())
    }

    async fn meet(&self, deadline: Instant) -> Result<(), LinkError> {
        let stamp = self.outbound.lock().stamp();
        match self.call(Route::Clock, stamp, Bytes::new(), deadline).await?.status {
            200..300 | 409 => Ok(()),
            status => Err(LinkError::Refused(status)),
        }
    }

    /// Sends all parts; false when the peer wants something else first.
    async fn deliver(&self, plan: &Plan, heard: &[Heard], taken_ms: u64) -> Result<bool, LinkError> {
        for (part, last) in parts(heard) {
            let Some(stamp) = self.outbound.lock().stamp_for(plan) else { return Ok(false) };
            let older_ms = self.presence.now_ms().saturating_sub(taken_ms);
            let body = encode(plan.since_ms.is_none(), last, plan.horizon_ms, part, older_ms);
            let reply = self.call(Route::Presence, stamp, body.into(), Instant::now() + DEADLINE).await;
            let status = reply.as_ref().map_or(0, |reply| reply.status);
            self.metrics.batch("sent", (200..300).contains(&status));
            match reply?.status {
                200..300 => {}
                409 => return Ok(false),
                status => return Err(LinkError::Refused(status)),
            }
        }
        Ok(true)
    }

    /// Sends a report on. The answer is what the peer says of it. A peer that is busy is waited for, one that does not
    /// take the batches is not.
    ///
    /// # Errors
    /// When the peer has not taken it in, or it is not known.
    pub async fn forward(&self, device: &str, connect: bool, body: Bytes) -> Result<Bytes, ForwardError> {
        let mut failing = self.failing.subscribe();
        tokio::select! {
            biased;
            _ = failing.wait_for(|failing| *failing) => {
                Err(ForwardError::Unreachable("it did not take the last batch".into()))
            }
            answer = self.forward_in_turn(device, connect, body) => answer,
        }
    }

    async fn forward_in_turn(&self, device: &str, connect: bool, body: Bytes) -> Result<Bytes, ForwardError> {
        let deadline = Instant::now() + FORWARD_TIME;
        let Ok(Ok(_turn)) = timeout(TURN_TIME, self.forwards.acquire()).await else { return Err(ForwardError::Busy) };
        let route = Route::Device { device, connect };
        let mut again = true;
        loop {
            if !self.outbound.lock().knows_time() {
                self.meet(deadline).await?;
            }
            let stamp = self.outbound.lock().stamp();
            let reply = self.call(route, stamp, body.clone(), deadline).await?;
            match reply.status {
                200..300 => return Ok(reply.body),
                421 => return Err(ForwardError::NotOwner),
                // Nothing has happened there but that we know now what was wrong.
                409 if again => again = false,
                status => return Err(ForwardError::Refused(status)),
            }
        }
    }

    /// One request; learns from the answer.
    async fn call(&self, route: Route<'_>, stamp: Stamp, body: Bytes, deadline: Instant) -> Result<Reply, LinkError> {
        let reply = self.client.call(self.address, route, stamp, body, deadline).await?;
        let mut outbound = self.outbound.lock();
        match outbound.answered(stamp.to, reply.incarnation, reply.time_ms) {
            Met::Known => {}
            Met::Other => tracing::debug!(peer = %self.identity, "another process answers than the one in the view"),
            Met::Myself => return Err(LinkError::Myself),
        }
        if reply.is(Refusal::Whole) {
            outbound.send_whole(stamp.to);
        }
        Ok(reply)
    }
}

// === impl ForwardError ===

impl From<LinkError> for ForwardError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Call(CallError::Timeout) => Self::Timeout,
            LinkError::Call(CallError::Forged(status)) | LinkError::Refused(status) => Self::Refused(status),
            error => Self::Unreachable(error.to_string()),
        }
    }
}
