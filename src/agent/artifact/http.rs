//! Edge: one request after the other to servers that artifacts come from, bodies as streams. No proxy is used:
//! `HTTP_PROXY` and the like are not looked at.

use super::FetchError;
use super::address::{Address, AddressError};
use super::budget::Pace;
use super::fault::{self, Peer};
use super::policy::Policy;
use super::resume::retry_after;
use crate::agent::client::{Driver, HandshakeError, RequestError, connect, http1, shake};
use crate::agent::distrust::{explain_about, speaks_no_tls};
use crate::agent::trust::Trust;
use ::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use rustls::pki_types::ServerName;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

/// Longest time until there is a connection: name lookup, TCP, TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;

/// Sends requests and keeps the last connection for the next one.
pub struct Http {
    peer: Peer,
    stall: Duration,
    trust: Trust,
    kept: Option<Connection>,
}

struct Connection {
    origin: Address,
    sender: SendRequest<Full<Bytes>>,
    _driver: Driver,
}

/// The head of an answer, and its body to come.
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// Who has answered, after redirects.
    pub from: Address,
    body: Incoming,
    connection: Connection,
    peer: Peer,
    stall: Duration,
    pace: Pace,
}

/// What a request is about.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Headers beside `Host` and `Authorization`.
    pub headers: HeaderMap,
    /// Value of `Authorization`; it goes to the first server only, never to where it redirects.
    pub authorization: Option<String>,
    /// Nothing may be fetched where somebody could listen in and change it.
    pub private: bool,
}

// === impl Http ===

impl Http {
    /// Not connected yet.
    #[must_use]
    pub fn new(peer: Peer, policy: &Policy) -> Self {
        Self { peer, stall: policy.stall, trust: Trust::of_artifacts(policy.ca_file.clone()), kept: None }
    }

    /// GET, following redirects. An answer of any status is no error.
    ///
    /// # Errors
    /// There is no answer, or it redirects to where none may lead.
    pub async fn get(&mut self, address: &Address, ask: &Ask) -> Result<Reply, FetchError> {
        let mut at = address.clone();
        for _ in 0..=MAX_REDIRECTS {
            if ask.private && !at.is_private() {
                return Err(FetchError::download(
                    fault::CHECKSUM_MISSING,
                    format!("{at} is plain HTTP, by which nothing is fetched without checksumSHA256"),
                ));
            }
            let authorization = ask.authorization.as_ref().filter(|_| at.same_origin(address));
            let reply = self.exchange(&at, &ask.headers, authorization).await?;
            if !is_redirect(reply.status) {
                return Ok(reply);
            }
            let location = reply.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let bad = |why: String| {
                FetchError::download(fault::BAD_REDIRECT, format!("{at} redirects to where nothing is fetched: {why}"))
            };
            let next = match location {
                Some(location) => at.redirect(location).map_err(|error: AddressError| bad(error.to_string()))?,
                None => return Err(bad("it names no place".to_owned())),
            };
            // Its body, a page for people, may be long; the connection goes with it.
            drop(reply);
            at = next;
        }
        Err(FetchError::download(fault::BAD_REDIRECT, format!("{address} redirects more than {MAX_REDIRECTS} times")))
    }

    async fn exchange(
        &mut self,
        at: &Address,
        headers: &HeaderMap,
        authorization: Option<&String>,
    ) -> Result<Reply, FetchError> {
        let broken = |error: hyper::Error| {
            let why = if error.is_parse() { "it does not speak HTTP" } else { "the connection broke" };
            FetchError::download(self.peer.error(), format!("no answer from {}: {why}", at.authority()))
        };
        let mut request = Request::get(&at.target).body(Full::new(Bytes::new())).map_err(|error| {
            FetchError::download(fault::BAD_REFERENCE, format!("{at} cannot be asked for: {error}"))
        })?;
        let all = request.headers_mut();
        all.extend(headers.clone());
        all.insert(header::USER_AGENT, HeaderValue::from_static(concat!("praetor-agent/", env!("CARGO_PKG_VERSION"))));
        // What is asked for is counted and hashed byte by byte.
        all.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        all.extend(HeaderValue::try_from(at.authority()).ok().map(|host| (header::HOST, host)));
        if let Some(mut value) = authorization.and_then(|value| HeaderValue::try_from(value).ok()) {
            value.set_sensitive(true);
            all.insert(header::AUTHORIZATION, value);
        }
        if let Some(mut connection) = self.kept.take().filter(|kept| kept.origin.same_origin(at)) {
            match self.send(&mut connection, request.clone()).await? {
                Ok(answer) => return Ok(self.reply(at, connection, answer)),
                // It was closed while it lay idle.
                Err(error) => tracing::trace!(%error, "the kept connection broke"),
            }
        }
        let opened = timeout(CONNECT_TIMEOUT, self.open(at)).await;
        let mut connection = opened.unwrap_or_else(|_| {
            let message = format!("cannot connect to {} in time", at.authority());
            Err(FetchError::download(self.peer.unreachable(), message))
        })?;
        let answer = self.send(&mut connection, request).await?.map_err(broken)?;
        Ok(self.reply(at, connection, answer))
    }

    async fn send(
        &self,
        connection: &mut Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Result<::http::Response<Incoming>, hyper::Error>, FetchError> {
        let exchange = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        timeout(self.stall, exchange).await.map_err(|_| {
            let word = self.peer.word();
            FetchError::download(
                fault::STALLED,
                format!("the {word} {} does not answer", connection.origin.authority()),
            )
        })
    }

    fn reply(&self, at: &Address, connection: Connection, answer: ::http::Response<Incoming>) -> Reply {
        let (head, body) = answer.into_parts();
        Reply {
            status: head.status,
            headers: head.headers,
            from: at.clone(),
            body,
            connection,
            peer: self.peer,
            stall: self.stall,
            pace: Pace::new(Instant::now(), self.stall),
        }
    }

    async fn open(&self, at: &Address) -> Result<Connection, FetchError> {
        let unreachable = |message: String| FetchError::download(self.peer.unreachable(), message);
        let stream = connect(&at.host, at.port).await.map_err(|error| {
            unreachable(match error {
                // Which of several addresses was the last one is chance.
                RequestError::Connect(_, why) => format!("cannot connect to {}: {}", at.authority(), why.kind()),
                other => other.to_string(),
            })
        })?;
        let (sender, driver) = if at.tls {
            let untrusted = |message: String| FetchError::download(fault::UNTRUSTED, message);
            let name = ServerName::try_from(at.host.clone())
                .map_err(|_| untrusted(format!("{} is no name that a certificate can have", at.host)))?;
            let known = self.trust.known().map_err(|error| untrusted(error.to_string()))?;
            let stream = shake(&known.connector, &name, stream).await.map_err(|error| match error {
                HandshakeError::Tls(error) if speaks_no_tls(&error) && self.peer == Peer::Registry => {
                    FetchError::download(
                        fault::INSECURE_REGISTRY,
                        format!(
                            "the registry {} does not speak TLS, and without TLS only those are spoken to that \
                             --insecure-registry (APOLLO_AGENT_INSECURE_REGISTRY) names",
                            at.authority()
                        ),
                    )
                }
                HandshakeError::Tls(error) => {
                    let why = explain_about(self.peer.word(), &error, &self.trust.to_string());
                    untrusted(format!("{}: {why}", at.authority()))
                }
                HandshakeError::Io(_) => {
                    unreachable(format!("{} closes the connection in the TLS handshake", at.authority()))
                }
            })?;
            http1(stream).await
        } else {
            http1(stream).await
        }
        .map_err(|error| unreachable(error.to_string()))?;
        Ok(Connection { origin: at.clone(), sender, _driver: driver })
    }

    /// The whole body of a small answer; the connection is kept.
    ///
    /// # Errors
    /// It is longer than `most` bytes, or breaks off.
    pub async fn whole(&mut self, mut reply: Reply, most: usize) -> Result<Vec<u8>, FetchError> {
        let mut body = Vec::new();
        while let Some(bytes) = reply.next().await? {
            if body.len() + bytes.len() > most {
                let message = format!("the answer of {} is longer than {most} bytes", reply.from);
                return Err(FetchError::download(self.peer.error(), message));
            }
            body.extend_from_slice(&bytes);
        }
        self.keep(reply);
        Ok(body)
    }

    /// Takes the connection back of an answer that was read to its end.
    pub fn keep(&mut self, reply: Reply) {
        let closes = reply.headers.get(header::CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
        self.kept = (!closes).then_some(reply.connection);
    }

    /// Which kind of server is spoken to.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }
}

// === impl Reply ===

impl Reply {
    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection breaks, or nothing comes for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame = timeout(self.stall, self.body.frame()).await.map_err(|_| self.stalled())?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| {
                let message = format!("the {} broke off before all of {} had come", self.peer.word(), self.from);
                FetchError::download(fault::INTERRUPTED, message)
            })?;
            // Trailers say nothing here.
            if let Ok(bytes) = frame.into_data() {
                return if self.pace.came(Instant::now(), bytes.len()) { Ok(Some(bytes)) } else { Err(self.stalled()) };
            }
        }
    }

    fn stalled(&self) -> FetchError {
        FetchError::download(fault::STALLED, format!("the {} stopped sending {}", self.peer.word(), self.from))
    }

    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What a status that brings nothing means. `what` is what was asked for: "it", "the image a/b:1".
    #[must_use]
    pub fn refusal(&self, what: &str) -> FetchError {
        let who = format!("the {} {}", self.peer.word(), self.from.authority());
        let (reason, message) = match self.status {
            StatusCode::NOT_FOUND | StatusCode::GONE => (fault::NOT_FOUND, format!("{who} does not have {what}")),
            StatusCode::UNAUTHORIZED => (fault::UNAUTHORIZED, format!("{who} wants credentials for {what}")),
            StatusCode::FORBIDDEN => (fault::UNAUTHORIZED, format!("{who} refuses {what}")),
            StatusCode::TOO_MANY_REQUESTS => (self.peer.error(), format!("{who} is asked too often")),
            status => (self.peer.error(), format!("{who} answers {} to the request for {what}", status.as_u16())),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let after = self.header(header::RETRY_AFTER).and_then(|text| retry_after(text, now.as_secs()));
        FetchError::download(reason, message).again_after(after)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

#[cfg(test)]
mod tests;
