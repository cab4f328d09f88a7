//! Edge: the own Lease: written when it is this replica's turn to join, renewed, and deleted first thing at the end.

use super::keeper::{Keeper, KeeperError, failed, recovered};
use super::leases::{CALL_TIMEOUT, LeaseError};
use super::metrics::Which;
use super::objects::{self, join_delay_seconds, member_lease, member_name};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(super) const RENEW_EVERY: Duration = Duration::from_secs(3);
/// After a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
/// Between two tries when nothing is wrong with the apiserver.
const BREATH: Duration = Duration::from_millis(100);
/// Who finds a Lease of its own name watches it for longer than a live replica would take to renew it.
pub(super) const SUSPICION: Duration = Duration::from_secs(4);
/// A replica that lives for so long is no longer one that keeps dying.
pub(super) const SETTLED: Duration = Duration::from_secs(300);

/// The own Lease as it was last written.
struct Own {
    version: u64,
    uid: String,
}

// === impl Keeper ===

impl Keeper {
    /// Joins, renews, leaves.
    pub(super) async fn belong(
        &self,
        synced: &CancellationToken,
        joined: &CancellationToken,
        leaving: &CancellationToken,
    ) -> Result<(), KeeperError> {
        let mut own = None;
        let result = tokio::select! {
            () = leaving.cancelled() => Ok(()),
            result = async {
                synced.cancelled().await;
                let (crashes, inherited) = self.settle_in().await?;
                self.stay(crashes, inherited, &mut own, joined).await
            } => result,
        };
        self.members.lock().gone();
        self.ownership.left();
        self.refresh();
        if result.is_ok() {
            self.delete_own(own).await;
        }
        result
    }

    async fn delete_own(&self, own: Option<Own>) {
        let name = member_name(&self.me.identity);
        let own = match own {
            Some(own) => Some(own),
            // The first write may have been under way.
            None => match self.leases.get(Which::Member, &name, CALL_TIMEOUT).await {
                Ok(found) => {
                    found.filter(|lease| objects::incarnation(lease) == self.me.incarnation).as_ref().and_then(owned)
                }
                Err(_) => None,
            },
        };
        let Some(own) = own else { return };
        let mut deleted = self.leases.delete(&name, &own.uid, None).await;
        if deleted.is_err() {
            // Once more, since it costs the devices 15 s when others wait for it to expire. The lost call may have done it.
            deleted = self.leases.delete(&name, &own.uid, None).await;
        }
        match deleted {
            Ok(()) => tracing::info!("left the other replicas"),
            Err(LeaseError::NotFound(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "the own lease could not be deleted; others notice in 15 s that this replica is gone");
            }
        }
    }

    /// Waits until it is this replica's turn to join: how often it has died in a row, and the Lease that it left.
    async fn settle_in(&self) -> Result<(u32, Option<Lease>), KeeperError> {
        if self.options.alone {
            // Others that live show it by then, which ends this replica before it has disturbed them.
            while self.members.lock().listed_ms().is_none() {
                sleep(BREATH).await;
            }
            if self.members.lock().knows_others() {
                sleep(SUSPICION).await;
            }
        }
        let Some(found) = self.find_own().await else { return Ok((0, None)) };
        let crashes = objects::crashes(&found).saturating_add(1);
        let wait = Duration::from_secs(join_delay_seconds(crashes)).max(SUSPICION);
        tracing::warn!(crashes, ?wait, "a lease of this identity is there: it died, or another process has its name");
        let version = objects::version(&found);
        let watched = async {
            loop {
                sleep(RENEW_AGAIN).await;
                match self.find_own().await {
                    Some(now) if objects::version(&now) == version => {}
                    // Somebody deleted it.
                    None => return Ok(()),
                    Some(_) => return Err(KeeperError::IdentityTaken(self.me.identity.to_string())),
                }
            }
        };
        match timeout(wait, watched).await {
            Ok(Ok(())) => Ok((crashes, None)),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok((crashes, Some(found))),
        }
    }

    /// The Lease of the own name; does not give up.
    async fn find_own(&self) -> Option<Lease> {
        loop {
            match self.leases.get(Which::Member, &member_name(&self.me.identity), CALL_TIMEOUT).await {
                Ok(found) => {
                    recovered(&self.renew_failed, "the own lease can be read again");
                    return found;
                }
                Err(error) => failed(&self.renew_failed, "the own lease cannot be read", &error),
            }
            sleep(RENEW_AGAIN).await;
        }
    }

    /// Renews for ever, from the first write on. `inherited` may be replaced although another incarnation wrote it.
    async fn stay(
        &self,
        mut crashes: u32,
        mut inherited: Option<Lease>,
        own: &mut Option<Own>,
        joined: &CancellationToken,
    ) -> Result<(), KeeperError> {
        let since_ms = self.ownership.now_ms();
        let since = Timestamp::now();
        loop {
            let sent_ms = self.ownership.now_ms();
            if Duration::from_millis(sent_ms.saturating_sub(since_ms)) >= SETTLED {
                crashes = 0;
            }
            let mut lease = member_lease(&self.me, crashes, since, Timestamp::now());
            let over = match (&*own, &inherited) {
                (Some(own), _) => Some((own.version.to_string(), own.uid.clone())),
                (None, Some(found)) => found.metadata.resource_version.clone().zip(found.metadata.uid.clone()),
                (None, None) => None,
            };
            if let Some((version, uid)) = over {
                lease.metadata.resource_version = Some(version);
                lease.metadata.uid = Some(uid);
            }
            match self.leases.write(Which::Member, &lease, CALL_TIMEOUT).await {
                Ok(written) => {
                    recovered(&self.renew_failed, "the own lease is renewed again");
                    *own = owned(&written);
                    inherited = None;
                    self.members.lock().renewed(sent_ms);
                    self.ownership.renewed(sent_ms);
                    self.refresh();
                    if !joined.is_cancelled() {
                        joined.cancel();
                        self.look.notify_one();
                    }
                    sleep(RENEW_EVERY).await;
                    continue;
                }
                // What is not found when creating is the namespace.
                Err(LeaseError::NotFound(_)) if lease.metadata.resource_version.is_some() => {
                    tracing::info!("the own lease is gone: writing it anew");
                    (*own, inherited) = (None, None);
                    continue;
                }
                Err(LeaseError::Conflict) => match self.find_own().await {
                    None => (*own, inherited) = (None, None),
                    // The answer of a write was lost, or somebody edited it.
                    Some(found) if objects::incarnation(&found) == self.me.incarnation => *own = owned(&found),
                    Some(_) => return Err(KeeperError::IdentityTaken(self.me.identity.to_string())),
                },
                Err(error) => {
                    if !joined.is_cancelled() {
                        self.hopeless(&error)?;
                    }
                    failed(&self.renew_failed, "the own lease cannot be written", &error);
                    self.refresh();
                    sleep(RENEW_AGAIN - BREATH).await;
                }
            }
            sleep(BREATH).await;
        }
    }
}

fn owned(lease: &Lease) -> Option<Own> {
    Some(Own { version: objects::version(lease)?, uid: lease.metadata.uid.clone()? })
}
