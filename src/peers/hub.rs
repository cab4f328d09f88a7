//! Edge: links to all peers of the view, and what comes from them.

use super::client::Client;
use super::inbound::Inbound;
use super::link::{ForwardError, LAST_BATCH_TIME, Link, Presence};
use super::metrics::PeerMetrics;
use super::outbound::Outbound;
use super::signature::PeerKey;
use crate::ownership::members::{Member, View};
use crate::ownership::shared::Ownership;
use crate::status::intake::{Outcome, Relay, Unanswered};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use rand::Rng;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// A member counts as heard while its horizon is not older than this, milliseconds.
const HEARD_MS: u64 = 5_000;
/// When a device is to come again that nobody can write anything of for now, seconds.
const AWAY_SECONDS: std::ops::RangeInclusive<u64> = 2..=10;
/// What is left for links to end after their last batch.
const MARGIN: Duration = Duration::from_millis(200);

/// All that this process has to do with other replicas. One a process.
pub struct Peers {
    pub(super) ownership: Arc<Ownership>,
    pub(super) key: PeerKey,
    pub(super) presence: Arc<dyn Presence>,
    pub(super) inbound: Mutex<Inbound>,
    pub(super) metrics: PeerMetrics,
    client: Arc<Client>,
    links: RwLock<HashMap<Arc<str>, Arc<Link>>>,
}

// === impl Relay for Peers ===

impl Relay for Peers {
    fn forward<'a>(
        &'a self,
        to: &'a Member,
        device: &'a str,
        connect: bool,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Outcome, Unanswered>> {
        Box::pin(async move {
            let answer = Self::forward(self, to, device, connect, body).await;
            answer.or_else(|error| match error {
                // Neither of them reaches the apiserver: one attempt is enough when it is back.
                ForwardError::NotOwner if !self.ownership.standing().apiserver => {
                    Ok(Outcome::Later { retry_after_seconds: rand::rng().random_range(AWAY_SECONDS) })
                }
                ForwardError::Unreachable(_) => Err(Unanswered::Unreachable),
                ForwardError::Busy => Err(Unanswered::Busy),
                ForwardError::Timeout => Err(Unanswered::Timeout),
                ForwardError::NotOwner => Err(Unanswered::NotOwner),
                ForwardError::Refused(_) => Err(Unanswered::Refused),
            })
        })
    }
}

// === impl Peers ===

impl Peers {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(
        ownership: &Arc<Ownership>,
        key: PeerKey,
        presence: Arc<dyn Presence>,
        metrics: PeerMetrics,
    ) -> Arc<Self> {
        let incarnation = ownership.incarnation();
        let client = Client::new(key.clone(), ownership.identity(), incarnation, metrics.clone());
        Arc::new(Self {
            ownership: ownership.clone(),
            key,
            presence,
            inbound: Mutex::new(Inbound::new(incarnation)),
            metrics,
            client: Arc::new(client),
            links: RwLock::default(),
        })
    }

    /// Keeps a link to every other member of the view, each in a task of its own. At the shutdown each sends a last
    /// batch. Ends before that only if one of them is lost.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let (mut tasks, mut running) = (JoinSet::new(), HashMap::new());
        let mut views = self.ownership.changed();
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let view = views.borrow_and_update().clone();
            self.connect(&view, &mut tasks, &mut running, &shutdown);
            self.look(&view);
            tokio::select! {
                () = shutdown.cancelled() => break,
                // The ownership is kept by this very value, so views never end.
                _ = views.changed() => {}
                _ = seconds.tick() => {}
                Some(Err(error)) = tasks.join_next() => {
                    if error.is_panic() {
                        tracing::error!(%error, "a link to a peer is lost");
                        return;
                    }
                }
            }
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(LAST_BATCH_TIME + MARGIN, all).await.is_err() {
            tracing::warn!("not every peer got the last presence batch");
        }
    }

    /// Sends a report of a device on to the member that works for it. Takes 7 s at most.
    ///
    /// # Errors
    /// When the member has not taken it in, or it is not known.
    pub async fn forward(
        &self,
        to: &Member,
        device: &str,
        connect: bool,
        body: Bytes,
    ) -> Result<Outcome, ForwardError> {
        let link = self.links.read().get(&to.identity).cloned();
        let link = link.ok_or_else(|| ForwardError::Unreachable("no link to it (yet)".into()))?;
        let answer = link.forward(device, connect, body).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            tracing::warn!(peer = %to.identity, device, %error, "a peer's answer makes no sense");
            ForwardError::Refused(200)
        })
    }

    /// Starts links to members that are new, and ends those to members that are gone.
    fn connect(
        &self,
        view: &View,
        tasks: &mut JoinSet<()>,
        running: &mut HashMap<Arc<str>, AbortHandle>,
        shutdown: &CancellationToken,
    ) {
        let mut links = self.links.write();
        links.retain(|identity, link| {
            let stays =
                self.others(view).any(|member| member.identity == *identity && member.address == Some(link.address()));
            if !stays && let Some(task) = running.remove(identity) {
                task.abort();
            }
            stays
        });
        for member in self.others(view) {
            let Some(address) = member.address else { continue };
            if let Some(link) = links.get(&member.identity) {
                // Nothing, unless it restarted.
                link.turn_to(member.incarnation);
                continue;
            }
            let outbound = Outbound::new(self.ownership.incarnation(), member.incarnation);
            let (client, presence, metrics) = (self.client.clone(), self.presence.clone(), self.metrics.clone());
            let link = Link::new(&member.identity, address, outbound, client, presence, metrics);
            running.insert(member.identity.clone(), tasks.spawn(link.clone().run(shutdown.clone())));
            links.insert(member.identity.clone(), link);
        }
    }

    fn others<'a>(&self, view: &'a View) -> impl Iterator<Item = &'a Member> {
        let me = self.ownership.identity().clone();
        view.members.iter().filter(move |member| member.identity != me)
    }

    /// How well the others are heard.
    #[allow(clippy::cast_precision_loss)]
    fn look(&self, view: &View) {
        let (now_ms, links, inbound) = (self.presence.now_ms(), self.links.read(), self.inbound.lock());
        let (mut oldest_ms, mut heard, mut peers) = (0, 0, 0);
        for member in self.others(view) {
            peers += 1;
            let age_ms = match inbound.horizon_ms(member.incarnation) {
                Some(horizon_ms) => now_ms.saturating_sub(horizon_ms),
                // Never heard: as long as it is there.
                None => links.get(&member.identity).map_or(0, |link| milliseconds(link.since())),
            };
            heard += i64::from(inbound.horizon_ms(member.incarnation).is_some() && age_ms <= HEARD_MS);
            oldest_ms = oldest_ms.max(age_ms);
        }
        self.metrics.oldest_batch.set(oldest_ms as f64 / 1000.0);
        self.metrics.heard.set(heard);
        self.metrics.peers.set(peers);
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
