//! Edge: the port on which other replicas are heard.

use super::batch::decode;
use super::envelope::{Refusal, Route, read_request, reply_headers};
use super::hub::Peers;
use super::signature::{BodyHash, Claims, Reply, Signature};
use crate::gateway::report::{NotAnswered, forwarded};
use crate::ownership::rendezvous::device_hash;
use crate::status::intake::{Intake, Outcome};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections at a time. A peer has as many as reports that it forwards at a time, and one for presence.
const MAX_CONNECTIONS: usize = 512;
/// Longest time between two requests on a connection, and for the head of one.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Longest time for a whole request, its answer included.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Longest time that requests under way have at the shutdown.
const CLOSE_TIME: Duration = Duration::from_secs(3);
/// After a failed accept, most likely out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Largest head of a request, bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// Shortest time between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Why a forwarded report is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declined {
    /// This replica does not work for the device, or does not know it.
    NotOwner,
    /// The body is no report.
    Bad,
}

/// Where forwarded reports go.
pub trait Reports: Send + Sync + 'static {
    /// Takes in the body that a device sent to another replica, as if it had come here; never sends it on.
    ///
    /// # Errors
    /// When it is not taken in; then nothing has changed.
    fn report<'a>(&'a self, device: &'a str, connect: bool, body: Bytes) -> BoxFuture<'a, Result<Outcome, Declined>>;
}

impl Reports for Intake {
    fn report<'a>(&'a self, device: &'a str, connect: bool, body: Bytes) -> BoxFuture<'a, Result<Outcome, Declined>> {
        Box::pin(async move {
            forwarded(self, device, connect, body).await.map_err(|error| match error {
                NotAnswered::NotTaken(_) => Declined::NotOwner,
                NotAnswered::Bad(_) => Declined::Bad,
            })
        })
    }
}

struct Server {
    peers: Arc<Peers>,
    reports: Arc<dyn Reports>,
    warned: Mutex<Option<Instant>>,
}

type Answer = Response<Full<Bytes>>;

impl Peers {
    /// Hears other replicas until the shutdown; requests that are under way then are still answered.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, reports: Arc<dyn Reports>, shutdown: CancellationToken) {
        let server = Arc::new(Server { peers: self, reports, warned: Mutex::default() });
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if slots.available_permits() == 0 {
                server.peers.metrics.full.inc();
            }
            // Who waits is served when somebody else ends, which the limits of time make sure of.
            let next = async { (slots.clone().acquire_owned().await, listener.accept().await) };
            let Some((slot, accepted)) = shutdown.run_until_cancelled(next).await else { break };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let (server, shutdown) = (server.clone(), shutdown.clone());
                    connections.spawn(async move {
                        server.connection(stream, shutdown).await;
                        drop(slot);
                    });
                }
                // The client went away before it was accepted.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections of peers");
                    let _: Option<()> = shutdown.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

// === impl Server ===

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, shutdown: CancellationToken) {
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(CLOSE_TIME, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection of a peer ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match timeout(REQUEST_TIME, self.verify(request)).await.unwrap_or(Err(Refusal::Slow)) {
            Ok(answer) => answer,
            Err(refusal) => {
                self.note(refusal, None);
                // Whoever it is, it has not shown the key: it gets no signature, and has to connect anew.
                let mut answer = response(refusal.status(), HeaderMap::new(), refusal.label().into());
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                answer
            }
        }
    }

    /// Signed answers to verified requests; anything else is refused.
    async fn verify(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        let (method, path) = (head.method.as_str(), head.uri.path());
        let route = Route::parse(method, path).filter(|_| head.uri.query().is_none()).ok_or(Refusal::Route)?;
        let (claims, signature) = read_request(&self.peers.key, method, path, &head.headers)?;
        // Only who has the key gets its body read.
        let most = route.max_body_bytes();
        let told = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if told.is_some_and(|told| told > most) {
            return Err(Refusal::TooLarge);
        }
        let body = Limited::new(body, most)
            .collect()
            .await
            .map_err(|error| if error.is::<LengthLimitError>() { Refusal::TooLarge } else { Refusal::Malformed })?;
        let body = body.to_bytes();
        if BodyHash::of(&body) != claims.digest {
            return Err(Refusal::Forged);
        }
        let (status, body) = match self.perform(route, &claims, body).await {
            Ok(body) => (StatusCode::OK.as_u16(), body),
            Err(refusal) => {
                self.note(refusal, Some(&claims));
                (refusal.status(), Bytes::from_static(refusal.label().as_bytes()))
            }
        };
        Ok(self.sign(&signature, status, body))
    }

    async fn perform(&self, route: Route<'_>, claims: &Claims, body: Bytes) -> Result<Bytes, Refusal> {
        if route == Route::Clock {
            // Every answer holds what is asked for. It changes nothing, so it may also come from who does not know yet.
            return Ok(Bytes::new());
        }
        let peers = &*self.peers;
        peers.inbound.lock().admit(claims, peers.presence.now_ms())?;
        match route {
            Route::Clock => Ok(Bytes::new()),
            Route::Presence => {
                let taken = self.presence(claims, &body);
                peers.metrics.batch("received", taken.is_ok());
                taken.map(|()| Bytes::new())
            }
            Route::Device { device, connect } => {
                if !peers.ownership.owner_is_me(device_hash(device)) {
                    return Err(Refusal::NotOwner);
                }
                let outcome = self.reports.report(device, connect, body).await.map_err(|declined| match declined {
                    Declined::NotOwner => Refusal::NotOwner,
                    Declined::Bad => Refusal::Malformed,
                })?;
                // Who is cut from the apiserver stays in the view of the others for a while: the sender looks at what is
                // written by then, and writes the rest itself.
                if matches!(outcome, Outcome::Later { .. }) && !peers.ownership.standing().apiserver {
                    return Err(Refusal::NotOwner);
                }
                let json = serde_json::to_vec(&outcome).map_err(|_| Refusal::Malformed)?;
                Ok(json.into())
            }
        }
    }

    fn presence(&self, claims: &Claims, body: &[u8]) -> Result<(), Refusal> {
        let batch = decode(body).map_err(|error| {
            tracing::debug!(peer = claims.sender, %error, "not a presence batch");
            Refusal::Malformed
        })?;
        let peers = &*self.peers;
        let horizon_ms = peers.inbound.lock().take(claims, batch.whole, batch.last, batch.horizon_ms)?;
        peers.presence.merge(&batch.heard, batch.horizon_ms);
        if let Some(horizon_ms) = horizon_ms {
            peers.presence.witness(claims.incarnation, horizon_ms);
        }
        Ok(())
    }

    fn sign(&self, request: &Signature, status: u16, body: Bytes) -> Answer {
        let reply = Reply {
            status,
            incarnation: self.peers.ownership.incarnation(),
            time_ms: self.peers.presence.now_ms(),
            digest: BodyHash::of(&body),
        };
        response(status, reply_headers(&self.peers.key, request, &reply), body)
    }

    fn note(&self, refusal: Refusal, claims: Option<&Claims>) {
        self.peers.metrics.refuse(refusal);
        let reason = refusal.label();
        if let Some(claims) = claims {
            tracing::debug!(peer = claims.sender, reason, "a request of a peer is refused");
            return;
        }
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(reason, "a request on the peer port is refused; see praetor_peer_refused_total for more");
        }
    }
}

fn response(status: u16, headers: HeaderMap, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().extend(headers);
    response
}
