//! Edge: stands for the lead, and while it leads hands out a [`Lead`].

use super::keeper::Keeper;
use super::lease::{Holder, Lead, Outcome, Step};
use super::leases::{CALL_TIMEOUT, LeaseError};
use super::metrics::Which;
use super::objects::{self, LEADER};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long whatever works under the lead may take to end when this replica stops.
const DRAIN: Duration = Duration::from_secs(8);

// === impl Keeper ===

impl Keeper {
    /// What a list or a read showed of the Lease of the lead.
    pub(super) fn observe(&self, lease: Option<&Lease>, asked_ms: u64, now_ms: u64) {
        let record = lease.and_then(objects::record);
        // One without a readable version does not count as none.
        if lease.is_some() && record.is_none() {
            return;
        }
        if let (Some(lease), Some(record)) = (lease, &record) {
            let mut newest = self.leader_uid.lock();
            if record.version > newest.0 {
                *newest = (record.version, lease.metadata.uid.clone().unwrap_or_default());
            }
        }
        let mut candidate = self.candidate.lock();
        candidate.observe(record, asked_ms, now_ms);
        self.ownership.leader_is(candidate.leader().cloned());
        self.observed.notify_one();
    }

    /// Stands for the lead until this replica leaves, and then gives it back.
    pub(super) async fn lead(&self, joined: &CancellationToken, leaving: &CancellationToken) {
        tokio::select! {
            () = joined.cancelled() => {}
            () = leaving.cancelled() => return,
        }
        self.stand(leaving).await;
        // Cancel, drain, flag, release.
        self.ownership.publish(None);
        let drained = timeout(DRAIN, self.ownership.drained()).await.is_ok();
        self.metrics.leads(false);
        if !drained {
            tracing::warn!("work under the lead does not end: it is left to expire");
            return;
        }
        self.release().await;
    }

    /// What is asked of the apiserver is waited for, also when leaving: a Lease must not be won unnoticed.
    async fn stand(&self, leaving: &CancellationToken) {
        let mut lead: Option<Lead> = None;
        let mut acquired = Timestamp::now();
        while !leaving.is_cancelled() {
            let sent_ms = self.ownership.now_ms();
            let (step, held) = {
                let mut candidate = self.candidate.lock();
                (candidate.decide(sent_ms), candidate.held())
            };
            // While leading an answer that comes after the end is none.
            let left =
                held.map_or(CALL_TIMEOUT, |(until, _)| Duration::from_millis(until.saturating_sub(sent_ms).max(1)));
            match step {
                Step::Wait(wait) => {
                    tokio::select! {
                        () = sleep(Duration::from_millis(wait.max(1))) => {}
                        () = self.observed.notified() => {}
                        () = leaving.cancelled() => {}
                    }
                }
                Step::Look => {
                    let looked = self.leases.get(Which::Leader, LEADER, left).await;
                    let now_ms = self.ownership.now_ms();
                    match looked {
                        Ok(found) => self.observe(found.as_ref(), sent_ms, now_ms),
                        Err(error) => {
                            tracing::debug!(%error, "the lease of the lead cannot be read");
                            self.candidate.lock().result(step, sent_ms, now_ms, Outcome::Unknown);
                        }
                    }
                }
                Step::Create { term } => {
                    acquired = if held.is_some() { acquired } else { Timestamp::now() };
                    self.write_leader(step, sent_ms, None, term, acquired, left).await;
                }
                Step::Acquire { version, term } => {
                    acquired = Timestamp::now();
                    self.write_leader(step, sent_ms, Some(version), term, acquired, left).await;
                }
                Step::Renew { version, term } => {
                    self.write_leader(step, sent_ms, Some(version), term, acquired, left).await;
                }
                Step::Lost => {
                    tracing::warn!("the lead is lost: it was not renewed in time, or another replica has it");
                    lead = None;
                    self.ownership.publish(None);
                    tokio::select! {
                        () = self.ownership.drained() => {}
                        () = leaving.cancelled() => {}
                    }
                    self.metrics.leads(false);
                    continue;
                }
            }
            let held = self.candidate.lock().held();
            match (held, &lead) {
                (Some((until_ms, _)), Some(lead)) => lead.extend(until_ms),
                (Some((until_ms, term)), None) => {
                    tracing::info!(term, "this replica leads");
                    let new = Lead::new(term, until_ms);
                    self.ownership.publish(Some(new.clone()));
                    self.metrics.leads(true);
                    lead = Some(new);
                }
                // Said by the next step.
                (None, _) => {}
            }
        }
    }

    async fn write_leader(
        &self,
        step: Step,
        sent_ms: u64,
        version: Option<u64>,
        term: u64,
        acquired: Timestamp,
        patience: Duration,
    ) {
        let holder = Holder { identity: self.me.identity.clone(), incarnation: self.me.incarnation };
        let mut lease = objects::leader_lease(Some(&holder), term, acquired, Timestamp::now());
        self.replacing(&mut lease, version);
        let written = self.leases.write(Which::Leader, &lease, patience).await;
        let now_ms = self.ownership.now_ms();
        let outcome = match &written {
            Ok(lease) => match objects::version(lease) {
                Some(version) => {
                    let mut newest = self.leader_uid.lock();
                    if version > newest.0 {
                        *newest = (version, lease.metadata.uid.clone().unwrap_or_default());
                    }
                    Outcome::Written(version)
                }
                None => Outcome::Unknown,
            },
            Err(LeaseError::Conflict | LeaseError::NotFound(_)) => Outcome::Conflict,
            Err(error) => {
                tracing::debug!(%error, "the lease of the lead cannot be written");
                Outcome::Unknown
            }
        };
        let mut candidate = self.candidate.lock();
        candidate.result(step, sent_ms, now_ms, outcome);
        self.ownership.leader_is(candidate.leader().cloned());
    }

    /// Leaves the Lease of the lead without a holder, if it is this process.
    async fn release(&self) {
        for _ in 0..2 {
            let Some((version, term)) = self.candidate.lock().release() else { return };
            let now = Timestamp::now();
            let mut lease = objects::leader_lease(None, term, now, now);
            self.replacing(&mut lease, Some(version));
            match self.leases.write(Which::Leader, &lease, CALL_TIMEOUT).await {
                Ok(_) => {
                    tracing::info!("gave the lead back");
                    return;
                }
                // A renewal that was under way was written after all.
                Err(LeaseError::Conflict) => {
                    let asked_ms = self.ownership.now_ms();
                    match self.leases.get(Which::Leader, LEADER, CALL_TIMEOUT).await {
                        Ok(found) => self.observe(found.as_ref(), asked_ms, self.ownership.now_ms()),
                        Err(_) => return,
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the lead could not be given back; others take it in 15 s");
                    return;
                }
            }
        }
    }

    /// Makes a write replace one version of one object. Without the uid the apiserver would create a Lease that has
    /// been deleted anew.
    fn replacing(&self, lease: &mut Lease, version: Option<u64>) {
        let newest = self.leader_uid.lock();
        lease.metadata.resource_version = version.map(|version| version.to_string());
        lease.metadata.uid = version.filter(|version| *version == newest.0).map(|_| newest.1.clone());
    }
}
