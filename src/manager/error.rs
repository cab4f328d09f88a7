//! Edge: why the manager does not run, or runs no more; one line for the operator each.

use super::cluster::ClusterError;
use crate::api::schema::RenderError;
use crate::gateway::credentials::AuthError;
use crate::gateway::tls::TlsError;
use crate::ownership::keeper::KeeperError;
use crate::peers::key::KeyError;
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// See the module.
#[derive(Debug, Error)]
pub enum RunError {
    /// `--log-level` cannot be read.
    #[error("{0}")]
    Logs(String),
    /// How devices prove who they are.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The certificate of the device port.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The way to the apiserver.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Leases and other replicas.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The secret of the replicas.
    #[error(transparent)]
    PeerKey(#[from] KeyError),
    /// A port cannot be opened.
    #[error("{flag} {address}: cannot listen: {source}")]
    Listen {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others could not reach this replica.
    #[error(
        "there is a peer secret, but no address to tell other replicas: set --peer-advertise-addr IP:PORT, or POD_IP, \
         or name an interface in --peer-addr"
    )]
    Unadvertised,
    /// The system refuses something.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// A metric is there twice.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Not a device's name.
    #[error("{0:?} is no device name: use a lower-case RFC 1123 subdomain of at most 253 bytes")]
    DeviceName(String),
    /// Nothing to derive a token from.
    #[error("no secret or token is configured for {0}")]
    NoToken(String),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The CRDs cannot be rendered.
    #[error("cannot render the CRDs: {0}")]
    Crds(#[from] RenderError),
    /// Half a manager is worse than none.
    #[error("a vital part was lost: {0}")]
    Lost(String),
}
