//! Edge: the way to the apiserver, and whether it has what is needed.

use crate::desired::index::Kind;
use crate::desired::watch;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::timeout;

/// How long an apiserver that cannot be reached is waited for at the start.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(2);
/// Oldest Kubernetes 1.x that is worked with.
const OLDEST_MINOR: u32 = 30;

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
    /// What the manager and its manifests rely on is not there yet.
    #[error("the apiserver is Kubernetes {0}: 1.{OLDEST_MINOR} or newer is needed")]
    TooOld(String),
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

/// Waits until the apiserver answers, and makes sure that it is new enough, knows the kinds and lets them be listed.
///
/// # Errors
/// See [`ClusterError`].
pub async fn check(clients: &Clients) -> Result<(), ClusterError> {
    let started = Instant::now();
    // Whoever may not ask for the version may still work; what is really missing shows below.
    if let Ok(version) = answered(clients, started, || clients.watch.apiserver_version()).await?
        && too_old(&version)
    {
        return Err(ClusterError::TooOld(version.git_version));
    }
    for kind in Kind::ALL {
        let api = watch::all(clients.watch.clone(), kind);
        let first = ListParams::default().limit(1);
        if let Err(refusal) = answered(clients, started, || api.list(&first)).await? {
            return Err(match refusal.code {
                // By the code: for a group that it does not know the apiserver's 404 is plain text, without a reason.
                404 => ClusterError::MissingCrd(kind.as_str()),
                _ => ClusterError::Refused { kind: kind.as_str(), reason: refusal.message },
            });
        }
    }
    Ok(())
}

/// Calls until there is an answer, or a refusal that no repetition changes (401, 403, 404).
async fn answered<T, F: Future<Output = kube::Result<T>>>(
    clients: &Clients,
    started: Instant,
    call: impl Fn() -> F,
) -> Result<Result<T, Box<Status>>, ClusterError> {
    loop {
        let reason = match timeout(CALL_TIMEOUT, call()).await {
            Ok(Ok(answer)) => return Ok(Ok(answer)),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403 | 404) => return Ok(Err(status)),
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

/// Some providers write the minor version as `29+`. What cannot be read is taken for new.
fn too_old(version: &Info) -> bool {
    let digits = version.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    version.major == "1" && digits.parse().is_ok_and(|minor: u32| minor < OLDEST_MINOR)
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

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    /// An apiserver of this version (none: it does not tell) that answers lists with `lists`.
    async fn check_against(minor: Option<&'static str>, lists: u16) -> Result<(), ClusterError> {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            let (code, body) = match (request.uri().path(), minor) {
                ("/version", None) => {
                    (403, json!({ "kind": "Status", "status": "Failure", "code": 403, "message": "no" }))
                }
                ("/version", Some(minor)) => (
                    200,
                    json!({
                        "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.3"), "gitCommit": "", "gitTreeState": "",
                        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
                    }),
                ),
                _ if lists == 200 => (200, json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": [] })),
                _ => (lists, json!({ "kind": "Status", "status": "Failure", "code": lists, "message": "no" })),
            };
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap(),
            )
        });
        let client = Client::new(service, "default");
        let url = "http://test".to_owned();
        check(&Clients { watch: client.clone(), status: client.clone(), leases: client, url }).await
    }

    #[tokio::test]
    async fn old_clusters_are_refused_in_one_line() {
        for minor in ["29", "28+", "9"] {
            let error = check_against(Some(minor), 200).await.unwrap_err().to_string();
            assert_eq!(error, format!("the apiserver is Kubernetes v1.{minor}.3: 1.30 or newer is needed"));
        }
        for minor in ["30", "34+", "130", "", "new"] {
            check_against(Some(minor), 200).await.unwrap_or_else(|error| panic!("{minor}: {error}"));
        }
    }

    #[tokio::test]
    async fn an_apiserver_may_keep_its_version_for_itself() {
        check_against(None, 200).await.unwrap();
        assert!(matches!(check_against(None, 404).await, Err(ClusterError::MissingCrd("NetworkSwitch"))));
        assert!(matches!(check_against(Some("34"), 403).await, Err(ClusterError::Refused { .. })));
    }
}
