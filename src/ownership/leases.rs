//! Edge: calls about Leases: each ends within two seconds, and writes replace only what they have seen.

use super::metrics::{OwnershipMetrics, Which};
use super::objects;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest wait for an answer. Leases have a client of their own, so this is the apiserver's time alone.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// No answer in time; a write may have happened.
    #[error("no answer in time")]
    Timeout,
    /// The Lease is not what it was, or is there already.
    #[error("changed meanwhile")]
    Conflict,
    /// There is no such Lease, or no such namespace.
    #[error("not found: {0}")]
    NotFound(String),
    /// The apiserver does not allow it.
    #[error("refused: {0}")]
    Refused(String),
    /// Anything else; a write may have happened.
    #[error("{0}")]
    Other(String),
}

/// The Leases of one namespace.
#[derive(Clone)]
pub struct Leases {
    api: Api<Lease>,
    metrics: OwnershipMetrics,
}

// === impl LeaseError ===

impl From<kube::Error> for LeaseError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 => Self::NotFound(status.message.clone()),
                409 => Self::Conflict,
                401 | 403 => Self::Refused(status.message.clone()),
                _ => Self::Other(status.message.clone()),
            },
            other => Self::Other(other.to_string()),
        }
    }
}

// === impl Leases ===

impl Leases {
    /// The client must not retry by itself.
    #[must_use]
    pub fn new(client: Client, namespace: &str, metrics: OwnershipMetrics) -> Self {
        Self { api: Api::namespaced(client, namespace), metrics }
    }

    /// All Leases of replicas, as etcd has them now.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        let parameters = ListParams::default().labels(objects::SELECTOR);
        self.call(Which::List, CALL_TIMEOUT, self.api.list(&parameters)).await.map(|list| list.items)
    }

    /// A Lease, if it is there.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn get(&self, which: Which, name: &str, patience: Duration) -> Result<Option<Lease>, LeaseError> {
        self.call(which, patience, self.api.get_opt(name)).await
    }

    /// Whether Leases can be made here, without making one.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn try_create(&self, lease: &Lease) -> Result<(), LeaseError> {
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        self.call(Which::Member, CALL_TIMEOUT, self.api.create(&parameters, lease)).await.map(|_| ())
    }

    /// Creates a Lease that has no version, or replaces the one with its version and uid, and no other.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn write(&self, which: Which, lease: &Lease, patience: Duration) -> Result<Lease, LeaseError> {
        let started = Instant::now();
        let parameters = PostParams::default();
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        let written = if lease.metadata.resource_version.is_none() {
            self.call(which, patience, self.api.create(&parameters, lease)).await
        } else {
            self.call(which, patience, self.api.replace(name, &parameters, lease)).await
        };
        if written.is_ok() {
            self.metrics.written(which, started.elapsed().as_secs_f64());
        }
        written
    }

    /// Deletes a Lease if it is still the one of this uid and, when given, of this version.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn delete(&self, name: &str, uid: &str, version: Option<u64>) -> Result<(), LeaseError> {
        let preconditions =
            Preconditions { uid: Some(uid.to_owned()), resource_version: version.map(|version| version.to_string()) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.call(Which::Member, CALL_TIMEOUT, self.api.delete(name, &parameters)).await.map(|_| ())
    }

    async fn call<T>(
        &self,
        which: Which,
        patience: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, LeaseError> {
        let answer = match tokio::time::timeout(patience.min(CALL_TIMEOUT), request).await {
            Ok(answer) => answer.map_err(LeaseError::from),
            Err(_) => Err(LeaseError::Timeout),
        };
        if matches!(answer, Err(LeaseError::Timeout | LeaseError::Refused(_) | LeaseError::Other(_))) {
            self.metrics.failed(which);
        }
        answer
    }
}
