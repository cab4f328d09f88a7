//! Edge: one signed request to a peer, and its verified answer.

use super::envelope::{PROTOCOL, Refusal, Route, header_safe, read_reply, request_headers};
use super::metrics::PeerMetrics;
use super::outbound::Stamp;
use super::signature::{BodyHash, Claims, PeerKey};
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

/// Longest time for a connection to come about.
const CONNECT_TIME: Duration = Duration::from_secs(1);
/// Unused connections are closed after this time: before the other side does it, so that none is used while it ends.
const IDLE_TIME: Duration = Duration::from_secs(3);
/// Longest answer, bytes; every observation of the longest report may be listed in it.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Why there is no answer that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// Not connected, or cut off. The request may have arrived.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time. The request may have arrived.
    #[error("no answer in time")]
    Timeout,
    /// An answer that nobody with the key has given to this request.
    #[error("the answer (status {0}) is not signed with our key: another secret or version, or no replica")]
    Forged(u16),
}

/// A verified answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The process that answered.
    pub incarnation: u64,
    /// Its clock, milliseconds.
    pub time_ms: u64,
    /// What it says.
    pub body: Bytes,
}

/// Sends requests in the name of this process.
#[derive(Debug)]
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    key: PeerKey,
    sender: String,
    incarnation: u64,
    /// The number of the last request. One for all peers: whatever leads to a peer, by whatever way and how often anew,
    /// no number comes to it twice.
    sequence: AtomicU64,
    metrics: PeerMetrics,
}

// === impl Reply ===

impl Reply {
    /// Whether it is a refusal for this reason.
    #[must_use]
    pub fn is(&self, refusal: Refusal) -> bool {
        self.status == refusal.status() && self.body == refusal.label().as_bytes()
    }
}

// === impl Client ===

impl Client {
    /// Of the process with this identity and incarnation.
    #[must_use]
    pub fn new(key: PeerKey, identity: &str, incarnation: u64, metrics: PeerMetrics) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIME));
        connector.set_nodelay(true);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .build(connector);
        Self { http, key, sender: header_safe(identity), incarnation, sequence: AtomicU64::new(0), metrics }
    }

    /// Asks a peer, and waits for its answer until the deadline.
    ///
    /// # Errors
    /// When there is no answer that can be believed.
    pub async fn call(
        &self,
        address: SocketAddr,
        route: Route<'_>,
        stamp: Stamp,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let answer = timeout_at(deadline, self.ask(address, route, stamp, body)).await;
        let answer = answer.unwrap_or(Err(CallError::Timeout));
        let result = match &answer {
            Ok(reply) => match reply.status {
                200..300 => "ok",
                409 => "resync",
                421 => "not_owner",
                _ => "refused",
            },
            Err(CallError::Unreachable(_)) => "unreachable",
            Err(CallError::Timeout) => "timeout",
            Err(CallError::Forged(_)) => "forged",
        };
        self.metrics.sent(route.label(), result);
        answer
    }

    async fn ask(&self, address: SocketAddr, route: Route<'_>, stamp: Stamp, body: Bytes) -> Result<Reply, CallError> {
        let (method, path) = (route.method(), route.path());
        let claims = Claims {
            protocol: PROTOCOL,
            hop: 1,
            sender: self.sender.clone(),
            incarnation: self.incarnation,
            to: stamp.to,
            time_ms: stamp.time_ms,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            digest: BodyHash::of(&body),
        };
        let signature = self.key.sign(method, &path, &claims);
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path);
        let uri = uri.build().map_err(|error| CallError::Unreachable(error.to_string()))?;
        let request = Request::builder().method(method).uri(uri).body(Full::new(body));
        let mut request = request.map_err(|error| CallError::Unreachable(error.to_string()))?;
        request.headers_mut().extend(request_headers(&claims, &signature));
        let response = self.http.request(request).await.map_err(|error| CallError::Unreachable(chain(&error)))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| CallError::Unreachable(chain(&*error)))?.to_bytes();
        let status = head.status.as_u16();
        let reply = read_reply(&self.key, &signature, status, &head.headers, &body);
        let reply = reply.ok_or(CallError::Forged(status))?;
        Ok(Reply { status, incarnation: reply.incarnation, time_ms: reply.time_ms, body })
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
