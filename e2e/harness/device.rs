//! What a device says over HTTP, without the agent: plain requests, each on a connection of its own or many on one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpStream;

/// The longest wait for one answer: a long-poll of 60 s and some.
const ANSWER: Duration = Duration::from_secs(75);

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// A header's value; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The `ETag` with its quotes; empty when absent.
    pub fn etag(&self) -> &str {
        self.header("etag")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The same answer, after a look at its status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "answer: {}", self.text());
        self
    }
}

/// One keep-alive connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Opens it.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // Ends by itself: when the sender is dropped or the server hangs up.
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string() })
    }

    /// Sends one request and reads the whole answer. `target` is the path as it goes over the wire.
    ///
    /// # Errors
    /// When the connection ends before the answer does, or after 75 s.
    pub async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(target).header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).map_err(|e| e.to_string())?;
        let exchange = async {
            self.sender.ready().await.map_err(|e| e.to_string())?;
            let (parts, body) = self.sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::time::timeout(ANSWER, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer in {} s", ANSWER.as_secs())))
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// When nobody listens or the connection ends before the answer does.
pub async fn request(
    address: SocketAddr,
    method: Method,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Answer, String> {
    Connection::open(address).await?.send(method, target, headers, body).await
}

/// Connections that stay open between requests, as agents keep theirs.
#[derive(Default)]
pub struct Kept(Mutex<HashMap<SocketAddr, Vec<Connection>>>);

impl Kept {
    /// One request on a connection that is open and free, or on a new one.
    ///
    /// # Errors
    /// When nobody listens or the connection ends before the answer does; a kept one may have ended unseen, so then a
    /// new one is tried.
    pub async fn send(
        &self,
        address: SocketAddr,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let body = body.into();
        let kept = || self.0.lock().unwrap().entry(address).or_default().pop();
        while let Some(mut connection) = kept() {
            if !connection.sender.is_closed()
                && let Ok(answer) = connection.send(method.clone(), target, headers, body.clone()).await
            {
                self.keep(address, connection, &answer);
                return Ok(answer);
            }
        }
        let mut connection = Connection::open(address).await?;
        let answer = connection.send(method, target, headers, body).await?;
        self.keep(address, connection, &answer);
        Ok(answer)
    }

    fn keep(&self, address: SocketAddr, connection: Connection, answer: &Answer) {
        if answer.header("connection") != "close" {
            self.0.lock().unwrap().entry(address).or_default().push(connection);
        }
    }
}

/// The token of a device under an HMAC secret, computed here on its own: lower-case hex of HMAC-SHA256(secret, name).
pub fn derived_token(secret: &str, device: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    mac.update(device.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// A device that talks to one manager; panics when there is no answer at all.
#[derive(Debug, Clone)]
pub struct Device {
    /// The manager's device port.
    pub address: SocketAddr,
    /// Its name.
    pub name: String,
    /// Its token; empty: no header.
    pub token: String,
}

impl Device {
    /// `/v1/devices/NAME/<route>`
    pub fn path(&self, route: &str) -> String {
        format!("/v1/devices/{}/{route}", self.name)
    }

    /// Any request with the token.
    pub async fn try_send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        request(self.address, method, target, &self.signed(headers), body).await
    }

    /// The same on a kept connection.
    pub async fn try_send_on(
        &self,
        kept: &Kept,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        kept.send(self.address, method, target, &self.signed(headers), body).await
    }

    fn signed<'a>(&'a self, headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut headers = headers.to_vec();
        if !self.token.is_empty() {
            headers.push(("x-device-token", &self.token));
        }
        headers
    }

    /// Any request with the token; panics without an answer.
    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let sent = self.try_send(method.clone(), target, headers, body).await;
        sent.unwrap_or_else(|e| panic!("{method} {target} of {}: {e}", self.name))
    }

    /// GET desired.
    pub async fn desired(&self) -> Answer {
        self.send(Method::GET, &self.path("desired"), &[], "").await
    }

    /// GET desired with `If-None-Match`, as a long-poll when `wait` is not 0.
    pub async fn desired_unless(&self, etag: &str, wait: u64) -> Answer {
        let target = self.path(&if wait == 0 { "desired".to_owned() } else { format!("desired?waitSeconds={wait}") });
        self.send(Method::GET, &target, &[("if-none-match", etag)], "").await
    }

    /// POST report.
    pub async fn report(&self, body: &Value) -> Answer {
        self.send(Method::POST, &self.path("report"), &[("content-type", "application/json")], body.to_string()).await
    }

    /// POST connect.
    pub async fn connect(&self) -> Answer {
        let body = serde_json::json!({ "agentVersion": "0.1.0" }).to_string();
        self.send(Method::POST, &self.path("connect"), &[("content-type", "application/json")], body).await
    }
}
