//! Edge: a small client of the Docker Engine API over its unix socket, HTTP/1.1, one connection for each request.
//!
//! Docker and Podman serve this API. It is asked for in the version that both sides know.

use super::frames::{Lines, MAX_LINE_BYTES};
use crate::wire::report::clean;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The version of the API that this is written for: the one of Docker 20.10. Newer engines are asked for their oldest
/// version when that is above it.
const WRITTEN_FOR: ApiVersion = ApiVersion(1, 41);
/// Older engines lack what is needed here: init processes, looking up a digest at the registry.
const OLDEST: ApiVersion = ApiVersion(1, 30);
/// Longest time for connecting and for the first answer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body of an answer, bytes: a list of some hundred containers has less.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Largest head of an answer, and how much of a body is read at a time, bytes.
const READ_BUFFER_BYTES: usize = 32 * 1024;

/// `1.41`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion(u32, u32);

/// What the engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    version: ApiVersion,
    /// It has an init process to put into containers, as far as it says so.
    pub has_init: bool,
}

/// Why there is no answer, or no good one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Nobody is there, or nobody answers.
    #[error("the container engine at {0} {1}")]
    Away(String, String),
    /// The engine says no.
    #[error("{message}")]
    Refused {
        /// 400 and above.
        status: u16,
        /// The engine's words, in one line.
        message: String,
    },
    /// It is no engine that can be spoken with, or what it says makes no sense.
    #[error("the container engine at {0} {1}")]
    Strange(String, String),
}

/// The engine behind a socket.
#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    about: RefCell<Option<About>>,
}

/// A request for [`Engine::ask`] and [`Engine::open`].
#[derive(Debug)]
pub struct Question<'a> {
    method: Method,
    path: &'a str,
    body: Option<&'a Value>,
    registry_auth: Option<&'a str>,
    timeout: Duration,
}

/// A body that comes bit by bit.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    lines: Lines,
    socket: String,
    _driver: Driver,
}

/// The task that moves a connection's bytes; it ends with the connection.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

#[derive(Deserialize)]
struct Message {
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersionAnswer {
    api_version: String,
    #[serde(default, rename = "MinAPIVersion")]
    min_api_version: String,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

// === impl Question ===

impl<'a> Question<'a> {
    /// A request without a body; `path` begins with a slash and is below the version.
    #[must_use]
    pub fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, body: None, registry_auth: None, timeout: Duration::from_secs(15) }
    }

    /// With a JSON body.
    #[must_use]
    pub fn with(mut self, body: &'a Value) -> Self {
        self.body = Some(body);
        self
    }

    /// With credentials for a registry: what the header `X-Registry-Auth` holds.
    #[must_use]
    pub fn authorized(mut self, registry_auth: Option<&'a str>) -> Self {
        self.registry_auth = registry_auth;
        self
    }

    /// How long the answer may take: the whole of it for [`Engine::ask`], its head for [`Engine::open`]. 15 s if not said.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

// === impl Engine ===

impl Engine {
    /// Not asked yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, about: RefCell::new(None) }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it is there and answers.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), EngineError> {
        let question = Question::new(Method::GET, "/_ping").within(GREETING_TIMEOUT);
        let answered = self.whole(&question, "/_ping").await;
        if answered.is_err() {
            // Whoever comes next may be another one.
            self.about.borrow_mut().take();
        }
        self.about().await?;
        answered.map(|_| ())
    }

    /// What it says of itself; asked once, and again after it was away.
    ///
    /// # Errors
    /// When it is away, or speaks another language.
    pub async fn about(&self) -> Result<About, EngineError> {
        if let Some(about) = self.about.borrow().clone() {
            return Ok(about);
        }
        let question = Question::new(Method::GET, "/version").within(GREETING_TIMEOUT);
        let body = self.whole(&question, "/version").await?.into_body();
        let answer: VersionAnswer = self.decode(&body)?;
        let strange = |what: String| EngineError::Strange(self.socket.display().to_string(), what);
        let newest =
            ApiVersion::parse(&answer.api_version).ok_or_else(|| strange("names no API version".to_owned()))?;
        if newest < OLDEST {
            return Err(strange(format!("is too old: its API is {}, {OLDEST} is needed", answer.api_version)));
        }
        let oldest = ApiVersion::parse(&answer.min_api_version).unwrap_or(OLDEST);
        // Docker lists its init with the version "N/A" when there is none; Podman lists none and finds its own.
        let missing = |c: &Component| c.name == "docker-init" && matches!(c.version.as_str(), "" | "N/A");
        let about =
            About { version: WRITTEN_FOR.min(newest).max(oldest), has_init: !answer.components.iter().any(missing) };
        *self.about.borrow_mut() = Some(about.clone());
        Ok(about)
    }

    /// Asks and reads the whole answer; `null` for an empty one.
    ///
    /// # Errors
    /// When there is no answer in time, and for every status from 400 on.
    pub async fn ask<T: DeserializeOwned>(&self, question: Question<'_>) -> Result<T, EngineError> {
        let path = self.path(question.path).await?;
        let answer = self.forget(self.whole(&question, &path).await)?;
        let body = answer.into_body();
        // Podman ends an empty answer with a newline.
        self.decode(if body.trim_ascii().is_empty() { b"null" } else { &body })
    }

    /// Asks and gives the body as it is.
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn raw(&self, question: Question<'_>) -> Result<Bytes, EngineError> {
        let path = self.path(question.path).await?;
        Ok(self.forget(self.whole(&question, &path).await)?.into_body())
    }

    /// Asks and reads the head of the answer: a HEAD request.
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn look(&self, path: &str) -> Result<http::HeaderMap, EngineError> {
        let path = self.path(path).await?;
        let question = Question::new(Method::HEAD, &path);
        Ok(self.forget(self.whole(&question, &path).await)?.headers().clone())
    }

    /// Asks for an answer that comes bit by bit.
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn open(&self, question: Question<'_>) -> Result<Stream, EngineError> {
        let path = self.path(question.path).await?;
        let opened = timeout(question.timeout, self.send(&question, &path)).await;
        let (answer, driver) = self.forget(opened.unwrap_or_else(|_| Err(self.late())))?;
        if answer.status().as_u16() >= 400 {
            let (head, body) = answer.into_parts();
            let collected = timeout(question.timeout, self.collect(body)).await.unwrap_or_else(|_| Err(self.late()))?;
            return Err(refusal(head.status, &collected));
        }
        let socket = self.socket.display().to_string();
        Ok(Stream { body: answer.into_body(), lines: Lines::default(), socket, _driver: driver })
    }

    async fn path(&self, path: &str) -> Result<String, EngineError> {
        Ok(format!("/v{}{path}", self.about().await?.version))
    }

    /// After the engine was away another one may come back.
    fn forget<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Away(..)) = result {
            self.about.borrow_mut().take();
        }
        result
    }

    async fn whole(&self, question: &Question<'_>, path: &str) -> Result<Response<Bytes>, EngineError> {
        let exchange = async {
            let (answer, _driver) = self.send(question, path).await?;
            let (head, body) = answer.into_parts();
            let body = self.collect(body).await?;
            if head.status.as_u16() >= 400 {
                return Err(refusal(head.status, &body));
            }
            Ok(Response::from_parts(head, body))
        };
        timeout(question.timeout, exchange).await.unwrap_or_else(|_| Err(self.late()))
    }

    async fn send(&self, question: &Question<'_>, path: &str) -> Result<(Response<Incoming>, Driver), EngineError> {
        let broken = |_| self.away("closed the connection");
        let connected = timeout(GREETING_TIMEOUT, UnixStream::connect(&self.socket)).await;
        let stream = connected.map_err(|_| self.late())?.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            Builder::new().max_buf_size(READ_BUFFER_BYTES).handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "connection to the engine ended");
            }
        }));
        let mut request =
            Request::builder().method(question.method.clone()).uri(path).header(header::HOST, "engine.local");
        if let Some(auth) = question.registry_auth {
            request = request.header("X-Registry-Auth", auth);
        }
        let body = match question.body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let strange = |error: http::Error| EngineError::Strange(self.shown(), format!("cannot be asked: {error}"));
        let request = request.body(Full::new(body)).map_err(strange)?;
        Ok((sender.send_request(request).await.map_err(broken)?, driver))
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, EngineError> {
        match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(EngineError::Strange(
                self.shown(),
                format!("gives an answer of more than {} MiB", MAX_ANSWER_BYTES / 1024 / 1024),
            )),
            Err(_) => Err(self.away("closed the connection")),
        }
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, EngineError> {
        serde_json::from_slice(body).map_err(|error| {
            EngineError::Strange(self.shown(), format!("gives an answer that cannot be read: {error}"))
        })
    }

    fn unreachable(&self, error: &std::io::Error) -> EngineError {
        use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        self.away(match error.kind() {
            NotFound => "is not there: no such socket",
            ConnectionRefused => "does not listen",
            PermissionDenied => "may not be used by the agent: permission denied",
            _ => "cannot be reached",
        })
    }

    fn late(&self) -> EngineError {
        self.away("does not answer in time")
    }

    fn away(&self, what: &str) -> EngineError {
        EngineError::Away(self.shown(), what.to_owned())
    }

    fn shown(&self) -> String {
        self.socket.display().to_string()
    }
}

/// What an engine says with a status from 400 on.
fn refusal(status: StatusCode, body: &[u8]) -> EngineError {
    let message = match serde_json::from_slice::<Message>(body) {
        Ok(Message { message }) => message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let mut message = clean(&message.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned();
    if message.is_empty() {
        message = format!("the container engine answers {status}");
    }
    EngineError::Refused { status: status.as_u16(), message }
}

// === impl EngineError ===

impl EngineError {
    /// The status of an answer from 400 on.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// 404 is an answer, too.
    ///
    /// # Errors
    /// All but 404.
    pub fn or_none<T>(result: Result<T, Self>) -> Result<Option<T>, Self> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

// === impl Stream ===

impl Stream {
    /// The next bytes; none: that was all. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, EngineError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => {
                    return Err(EngineError::Away(self.socket.clone(), "closed the connection".to_owned()));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The next line of JSON; none: that was all. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection breaks, or a line is none.
    pub async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, EngineError> {
        let strange = |socket: &str, what: String| EngineError::Strange(socket.to_owned(), what);
        loop {
            if let Some(line) = self.lines.next() {
                return match serde_json::from_slice(&line) {
                    Ok(value) => Ok(Some(value)),
                    Err(error) => Err(strange(&self.socket, format!("sends a line that cannot be read: {error}"))),
                };
            }
            match self.bytes().await? {
                None => return Ok(None),
                Some(data) if self.lines.push(&data) => {}
                Some(_) => {
                    return Err(strange(&self.socket, format!("sends a line of more than {MAX_LINE_BYTES} bytes")));
                }
            }
        }
    }
}

// === impl ApiVersion ===

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

// === impl Driver ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
