//! Edge: the way to the apiserver, and whether it has what is needed.

use crate::desired::index::Kind;
use crate::desired::watch;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::timeout;

/// How long an apiserver that cannot be reached is waited for at the start.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(2);

/// Why the cluster cannot be used.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The file cannot be read, or is no kubeconfig.
    #[error("--kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither in a cluster nor with a default kubeconfig.
    #[error("no way to a cluster: not in a pod, and the default kubeconfig cannot be used ({0}); use --kubeconfig")]
    Nowhere(String),
    /// A CustomResourceDefinition is missing.
    #[error("the cluster does not know {0} of azure.com/v1alpha1: install the CRDs first (kubectl apply -k crd)")]
    MissingCrd(&'static str),
    /// Credentials are refused.
    #[error("the apiserver does not let this identity list {kind}: {reason}; see config/rbac")]
    Refused {
        /// The kind.
        kind: &'static str,
        /// The apiserver's words.
        reason: String,
    },
    /// No answer.
    #[error("the apiserver at {url} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// The last error.
        reason: String,
    },
}

/// Clients with connections of their own, so that status writes never wait behind watches and fan-out, and Leases
/// behind nothing. None retries by itself: whoever calls decides what a failure means.
#[derive(Clone)]
pub struct Clients {
    /// For lists, watches and the fan-out.
    pub watch: Client,
    /// For status and events.
    pub status: Client,
    /// For Leases.
    pub leases: Client,
    url: String,
}

/// Makes the clients; asks nothing of the cluster yet.
///
/// # Errors
/// See [`ClusterError`].
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Clients, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let fault = |error: kube::config::KubeconfigError| ClusterError::Kubeconfig {
                path: path.display().to_string(),
                reason: chain(&error),
            };
            let file = Kubeconfig::read_from(path).map_err(fault)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(fault)?
        }
        None => match Config::incluster() {
            Ok(config) => config,
            Err(_) => Config::from_kubeconfig(&KubeConfigOptions::default())
                .await
                .map_err(|error| ClusterError::Nowhere(chain(&error)))?,
        },
    };
    config.default_retry = false;
    config.connect_timeout = Some(CALL_TIMEOUT);
    let url = config.cluster_url.to_string();
    let client = |config: Config| {
        Client::try_from(config).map_err(|error| ClusterError::Kubeconfig {
            path: kubeconfig.map_or_else(String::new, |p| p.display().to_string()),
            reason: chain(&error),
        })
    };
    Ok(Clients { watch: client(config.clone())?, status: client(config.clone())?, leases: client(config)?, url })
}

/// Waits until the apiserver answers, and makes sure that it knows the kinds and lets them be listed.
///
/// # Errors
/// See [`ClusterError`].
pub async fn check(clients: &Clients) -> Result<(), ClusterError> {
    let started = Instant::now();
    for kind in Kind::ALL {
        let api = watch::all(clients.watch.clone(), kind);
        loop {
            let reason = match timeout(CALL_TIMEOUT, api.list(&ListParams::default().limit(1))).await {
                Ok(Ok(_)) => break,
                // By the code: for a group that it does not know the apiserver's 404 is plain text, without a reason.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                    return Err(ClusterError::MissingCrd(kind.as_str()));
                }
                Ok(Err(kube::Error::Api(status))) if status.is_forbidden() || status.code == 401 => {
                    return Err(ClusterError::Refused { kind: kind.as_str(), reason: status.message });
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no answer within {CALL_TIMEOUT:?}"),
            };
            if started.elapsed() >= PATIENCE {
                return Err(ClusterError::Unreachable { url: clients.url.clone(), reason });
            }
            tracing::warn!(url = clients.url, reason, "the apiserver cannot be reached, trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// An error with its causes on one line, none said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}
