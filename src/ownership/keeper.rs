//! Edge: watches the Leases of all replicas, and has the own one kept (`membership`) and the lead stood for
//! (`election`).

use super::lease::Candidate;
use super::leases::{LeaseError, Leases};
use super::members::{Member, Members};
use super::metrics::OwnershipMetrics;
use super::objects::{self, LEADER, member_lease};
use super::shared::Ownership;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

const LIST_EVERY: Duration = Duration::from_millis(super::members::LIST_EVERY_MS);

/// Why this replica cannot work with others, one line for the operator each.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The namespace does not exist.
    #[error("--namespace {0}: there is no such namespace; create it, or name the one of the managers (POD_NAMESPACE)")]
    NoNamespace(String),
    /// No permission.
    #[error(
        "the apiserver does not let this identity work with leases in namespace {namespace}: {reason}; see config/rbac"
    )]
    Refused {
        /// The namespace.
        namespace: String,
        /// The apiserver's words.
        reason: String,
    },
    /// Two live processes have one name.
    #[error("another live manager uses the identity {0}: give each its own (--identity, POD_NAME)")]
    IdentityTaken(String),
    /// Others are there, and there is no way to talk to them.
    #[error(
        "another live manager, {0}, is there, and without a secret for peers a manager works alone: give all of them \
         the same one (--peer-secret-file, APOLLO_PEER_SECRET), or run one"
    )]
    NotAlone(String),
}

/// What a keeper is told.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// Where the Leases are; the same for all replicas.
    pub namespace: String,
    /// Where peers reach this replica; told to them in its Lease.
    pub address: Option<SocketAddr>,
    /// There is no secret for peers: another live replica is an error.
    pub alone: bool,
}

/// See the module.
pub struct Keeper {
    pub(super) leases: Leases,
    pub(super) options: KeeperOptions,
    pub(super) ownership: Arc<Ownership>,
    pub(super) metrics: OwnershipMetrics,
    pub(super) me: Member,
    pub(super) members: Mutex<Members>,
    pub(super) candidate: Mutex<Candidate>,
    /// Version and uid of the newest known Lease of the lead.
    pub(super) leader_uid: Mutex<(u64, String)>,
    /// The election has something new to look at.
    pub(super) observed: Notify,
    /// Something about the members should be listed now.
    pub(super) look: Notify,
    /// Each of these is said once.
    pub(super) warned: AtomicBool,
    pub(super) list_failed: AtomicBool,
    pub(super) renew_failed: AtomicBool,
}

// === impl Keeper ===

impl Keeper {
    /// The client should be one of its own and must not retry by itself. Asks nothing of the cluster yet.
    #[must_use]
    pub fn new(
        client: Client,
        options: KeeperOptions,
        ownership: Arc<Ownership>,
        metrics: OwnershipMetrics,
    ) -> Arc<Self> {
        let me = Member::new(ownership.identity(), ownership.incarnation(), options.address);
        Arc::new(Self {
            leases: Leases::new(client, &options.namespace, metrics.clone()),
            options,
            members: Mutex::new(Members::new(me.clone())),
            candidate: Mutex::new(Candidate::new(&me.identity, me.incarnation)),
            me,
            ownership,
            metrics,
            leader_uid: Mutex::default(),
            observed: Notify::new(),
            look: Notify::new(),
            warned: AtomicBool::new(false),
            list_failed: AtomicBool::new(false),
            renew_failed: AtomicBool::new(false),
        })
    }

    /// Whether the namespace is there and Leases can be made in it, as far as the apiserver says so now.
    ///
    /// # Errors
    /// See [`KeeperError`]. No answer is none.
    pub async fn check(&self) -> Result<(), KeeperError> {
        let now = Timestamp::now();
        let trial = member_lease(&self.me, 0, now, now);
        for result in [self.leases.list().await.map(|_| ()), self.leases.try_create(&trial).await] {
            result.or_else(|error| self.hopeless(&error))?;
        }
        Ok(())
    }

    /// Watches the others from now on; joins them and stands for the lead once `synced` is cancelled; leaves when
    /// `leaving` is, and watches on until `stop` is.
    ///
    /// # Errors
    /// When this replica must not go on; see [`KeeperError`].
    pub async fn run(
        self: Arc<Self>,
        synced: CancellationToken,
        leaving: CancellationToken,
        stop: CancellationToken,
    ) -> Result<(), KeeperError> {
        let joined = CancellationToken::new();
        let watching = async {
            tokio::select! {
                result = self.watch() => result,
                () = stop.cancelled() => {
                    leaving.cancel();
                    Ok(())
                }
            }
        };
        let result = tokio::try_join!(watching, self.belong(&synced, &joined, &leaving), async {
            self.lead(&joined, &leaving).await;
            Ok(())
        });
        self.ownership.publish(None);
        self.metrics.leads(false);
        result.map(|_| ())
    }

    /// Lists the Leases again and again.
    async fn watch(&self) -> Result<(), KeeperError> {
        let mut ticks = interval(LIST_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.look.notified() => ticks.reset(),
            }
            let asked_ms = self.ownership.now_ms();
            match self.leases.list().await {
                Ok(leases) => {
                    recovered(&self.list_failed, "replicas can be listed again");
                    self.listed(&leases, asked_ms)?;
                    self.sweep().await;
                }
                Err(error) => failed(&self.list_failed, "replicas cannot be listed", &error),
            }
            self.refresh();
        }
    }

    fn listed(&self, leases: &[Lease], asked_ms: u64) -> Result<(), KeeperError> {
        let now_ms = self.ownership.now_ms();
        let leader = leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(LEADER));
        match leader {
            Some(lease) => self.observe(Some(lease), asked_ms, now_ms),
            None => {
                self.candidate.lock().missed();
                self.observed.notify_one();
            }
        }
        let mut sightings = Vec::new();
        for lease in leases {
            let Some(sighting) = objects::sighting(lease) else { continue };
            if !objects::hashes_alike(lease, &sighting.member) && !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(member = %sighting.member.identity, "this member shares devices out otherwise: another version?");
            }
            sightings.push(sighting);
        }
        let mut members = self.members.lock();
        members.listed(sightings, now_ms);
        self.ownership.listed(now_ms);
        match members.certainly_live() {
            Some(other) if self.options.alone => Err(KeeperError::NotAlone(other.identity.to_string())),
            _ => Ok(()),
        }
    }

    /// Tells everybody who is there, when that is something new.
    pub(super) fn refresh(&self) {
        let view = self.members.lock().view(self.ownership.now_ms());
        if view.epoch != self.ownership.view().epoch {
            let names: Vec<_> = view.members.iter().map(|member| &*member.identity).collect();
            tracing::info!(epoch = view.epoch, members = ?names, joined = view.me.is_some(), "who is there has changed");
            self.metrics.view(&view);
            self.ownership.show(view);
        }
    }

    /// The leader removes the Leases of those that died long ago.
    async fn sweep(&self) {
        if !self.candidate.lock().holds(self.ownership.now_ms()) {
            return;
        }
        // One a time: nothing waits for it.
        let litter = self.members.lock().litter().into_iter().next();
        if let Some(lease) = litter
            && self.leases.delete(&lease.name, &lease.uid, Some(lease.version)).await.is_ok()
        {
            tracing::info!(member = %lease.member.identity, "removed the lease of a replica that died long ago");
        }
    }

    /// What will not heal by waiting, unless it went well before.
    pub(super) fn hopeless(&self, error: &LeaseError) -> Result<(), KeeperError> {
        let namespace = self.options.namespace.clone();
        match error {
            LeaseError::NotFound(_) => Err(KeeperError::NoNamespace(namespace)),
            LeaseError::Refused(reason) => Err(KeeperError::Refused { namespace, reason: reason.clone() }),
            _ => Ok(()),
        }
    }
}

/// Says that something fails once, and not at every try.
pub(super) fn failed(before: &AtomicBool, what: &str, error: &LeaseError) {
    if before.swap(true, Ordering::Relaxed) {
        tracing::debug!(%error, "{what}");
    } else {
        tracing::warn!(%error, "{what}; trying again and again");
    }
}

pub(super) fn recovered(before: &AtomicBool, what: &str) {
    if before.swap(false, Ordering::Relaxed) {
        tracing::info!("{what}");
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
