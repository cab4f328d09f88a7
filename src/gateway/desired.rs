//! Edge: answers about desired state that are more than an immediate 304.

use super::answer::{Answer, Refusal, json};
use super::metrics::Held;
use super::path::NoInteger;
use super::report::Reports;
use super::service::{Gateway, matches, unchanged, validators, with_validators};
use crate::desired::directory::Lookup;
use crate::wire::etag::ETag;
use http::header::HeaderMap;
use rand::Rng;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Longest time that a replica has to catch up with what a client has seen.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What a client asks for.
pub(super) struct Query {
    /// The request's headers.
    pub headers: HeaderMap,
    /// The revision that the answer must not be older than.
    pub min: Option<u64>,
    /// Seconds to wait for a change.
    pub wait: Result<u64, NoInteger>,
}

impl<R: Reports> Gateway<R> {
    /// Entity tag and revision of a known device.
    pub(super) fn known(&self, device: &str) -> Result<(ETag, u64), Refusal> {
        match self.directory.lookup(device) {
            Lookup::Known { etag, revision } => Ok((etag, revision)),
            Lookup::Unknown => Err(Refusal::UnknownDevice),
            // All devices ask at once after a restart; they come back one by one. Never 1: that means "behind".
            Lookup::NotSynced => Err(Refusal::NotSynced(rand::rng().random_range(2..=5))),
        }
    }

    pub(super) async fn desired(&self, device: &str, query: Query) -> Answer {
        self.find_desired(device, query).await.unwrap_or_else(|refusal| refusal.answer())
    }

    async fn find_desired(&self, device: &str, Query { headers, min, wait }: Query) -> Result<Answer, Refusal> {
        if let Some(min) = min.filter(|min| !self.directory.synced_through(device, *min)) {
            if let Err(refusal @ Refusal::NotSynced(_)) = self.known(device) {
                return Err(refusal);
            }
            // Before anything else is said of the device: 404 would be travelling back in time as well.
            let caught_up = timeout(CATCH_UP, self.directory.caught_up(device, min));
            if !matches!(self.draining.run_until_cancelled(caught_up).await, Some(Ok(()))) {
                return Err(Refusal::Behind);
            }
        }
        let (etag, _) = self.known(device)?;
        let wait = wait.map_err(|NoInteger| Refusal::BadWait)?;
        if wait > 0 && matches(&headers, &etag) {
            self.park(device, &etag, Duration::from_secs(wait)).await;
        }
        let (etag, revision) = self.known(device)?;
        if matches(&headers, &etag) {
            return Ok(unchanged(headers, validators(etag, revision)));
        }
        let body = self.directory.body(device).ok_or(Refusal::UnknownDevice)?;
        Ok(with_validators(json(headers, body.bytes), validators(body.etag, body.revision)))
    }

    /// Returns when the entity tag is another, the time is up, or the manager wants to stop.
    async fn park(&self, device: &str, etag: &ETag, wait: Duration) {
        let _parked = Held::one(&self.metrics.parked);
        let changed = async {
            while matches!(self.directory.lookup(device), Lookup::Known { etag: now, .. } if now == *etag) {
                self.directory.changed(device, etag).await;
            }
        };
        tokio::select! {
            biased;
            () = changed => {}
            () = self.draining.cancelled() => {}
            () = sleep(wait) => {}
        }
    }
}
