//! Edge: one keep-alive connection to a gateway, HTTP/1.1, with TLS or without.

use super::distrust::{explain, is_about_trust};
use super::endpoint::Endpoint;
use super::trust::{Trust, TrustError};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest time for a TCP connection, name lookup apart.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a TLS handshake; a slow device needs a part of a second for its share.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an answer, and how much of a body is read at a time, bytes.
const READ_BUFFER_BYTES: usize = 32 * 1024;
/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// A request as the loops see it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// GET or POST.
    pub method: Method,
    /// Path and query below the gateway's URL, without a leading slash.
    pub route: String,
    /// All headers but `Host`.
    pub headers: HeaderMap,
    /// Empty for a GET.
    pub body: Bytes,
    /// For the whole exchange, name lookup and connecting included.
    pub timeout: Duration,
    /// Longest body of the answer, bytes.
    pub max_answer: usize,
}

/// A whole answer.
#[derive(Debug)]
pub struct Incoming {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The gateway's name has no address.
    #[error("cannot find the address of {0}: {1}")]
    Lookup(String, std::io::Error),
    /// No address of the gateway accepts a connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    /// There is nothing to check the gateway's certificate against.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The gateway is not trusted, or speaks no TLS; nothing was sent to it.
    #[error("{0}")]
    Untrusted(String),
    /// The CAs cannot be read again, while those that are known do not do.
    #[error("{0} (and {1})")]
    Outdated(String, TrustError),
    /// The connection ended before it was one with TLS.
    #[error("the connection broke in the TLS handshake: {0}")]
    Handshake(io::Error),
    /// The request is none that HTTP allows.
    #[error("cannot make the request: {0}")]
    Request(#[from] http::Error),
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke: {0}")]
    Exchange(#[from] hyper::Error),
    /// The body is longer than allowed, or broke off.
    #[error("cannot read the answer: {0}")]
    Body(String),
    /// The time was up.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// At most one connection, kept alive between requests.
#[derive(Debug)]
pub struct Client {
    trust: Rc<Trust>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    gateway: usize,
    sender: SendRequest<Full<Bytes>>,
    _driver: Driver,
}

/// The task that moves a connection's bytes; it ends with the connection.
#[derive(Debug)]
pub(super) struct Driver(JoinHandle<()>);

/// Why a handshake failed.
pub(super) enum HandshakeError {
    Tls(Box<rustls::Error>),
    Io(io::Error),
}

// === impl Client ===

impl Client {
    /// Not connected yet.
    #[must_use]
    pub fn new(trust: Rc<Trust>) -> Self {
        Self { trust, connection: None }
    }

    /// Sends a request to the gateway that is counted `gateway`, over the kept connection if it leads there.
    ///
    /// # Errors
    /// When there is no whole answer in time. An answer of any status is no error.
    pub async fn send(
        &mut self,
        gateway: usize,
        endpoint: &Endpoint,
        request: &Outgoing,
    ) -> Result<Incoming, RequestError> {
        timeout(request.timeout, self.exchange(gateway, endpoint, request))
            .await
            .unwrap_or(Err(RequestError::Timeout(request.timeout)))
    }

    async fn exchange(
        &mut self,
        gateway: usize,
        endpoint: &Endpoint,
        request: &Outgoing,
    ) -> Result<Incoming, RequestError> {
        // Taken out while in use: whatever goes wrong or is cancelled half-way, the connection goes with it.
        let kept = self.connection.take().filter(|c| c.gateway == gateway);
        if let Some(mut connection) = kept {
            match connection.exchange(endpoint, request).await {
                Ok((answer, keep)) => {
                    self.connection = keep.then_some(connection);
                    return Ok(answer);
                }
                // The gateway closed it while it lay idle. All requests may be repeated: a GET by nature, a report
                // by its sequence.
                Err(RequestError::Exchange(error)) => tracing::trace!(%error, "the kept connection broke"),
                Err(error) => return Err(error),
            }
        }
        let mut connection = Connection::open(gateway, endpoint, &self.trust).await?;
        let (answer, keep) = connection.exchange(endpoint, request).await?;
        self.connection = keep.then_some(connection);
        Ok(answer)
    }
}

// === impl Connection ===

impl Connection {
    async fn open(gateway: usize, endpoint: &Endpoint, trust: &Trust) -> Result<Self, RequestError> {
        let (sender, driver) = match &endpoint.tls {
            None => http1(connect(&endpoint.host, endpoint.port).await?).await?,
            Some(name) => http1(connect_tls(endpoint, name, trust).await?).await?,
        };
        Ok(Self { gateway, sender, _driver: driver })
    }

    /// The answer, and whether the connection may be kept.
    async fn exchange(&mut self, endpoint: &Endpoint, request: &Outgoing) -> Result<(Incoming, bool), RequestError> {
        let mut message = Request::builder()
            .method(request.method.clone())
            .uri(endpoint.path(&request.route))
            .header(header::HOST, endpoint.authority.clone())
            .body(Full::new(request.body.clone()))?;
        message.headers_mut().extend(request.headers.clone());
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(message).await?.into_parts();
        let body = Limited::new(body, request.max_answer).collect().await.map_err(|error| {
            let too_long = error.downcast_ref::<LengthLimitError>().is_some();
            RequestError::Body(if too_long {
                format!("longer than {} bytes", request.max_answer)
            } else {
                error.to_string()
            })
        })?;
        let close = head.headers.get(header::CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
        Ok((Incoming { status: head.status, headers: head.headers, body: body.to_bytes() }, !close))
    }
}

/// A TCP connection.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, RequestError> {
    let no_address = |error| RequestError::Lookup(host.to_owned(), error);
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(no_address)?.take(MAX_ADDRESSES).collect();
    // One address that swallows packets must not use up the time of the others.
    let each = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut result = Err(no_address(std::io::ErrorKind::NotFound.into()));
    for address in addresses {
        match timeout(each, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => {
                result = Ok(stream);
                break;
            }
            Err(error) => result = Err(RequestError::Connect(address, error)),
        }
    }
    let stream = result?;
    // A request is one small write; without the option it could wait for the last one's acknowledgement.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A connection to somebody who has proved to be the gateway. When nobody has, the CAs are read again: they may have
/// been replaced since.
async fn connect_tls(
    endpoint: &Endpoint,
    name: &ServerName<'static>,
    trust: &Trust,
) -> Result<TlsStream<TcpStream>, RequestError> {
    let known = trust.known()?;
    let failed = |error: &rustls::Error| explain(error, &trust.to_string());
    let error = match shake(&known.connector, name, connect(&endpoint.host, endpoint.port).await?).await {
        Ok(stream) => return Ok(stream),
        Err(HandshakeError::Io(error)) => return Err(RequestError::Handshake(error)),
        Err(HandshakeError::Tls(error)) if !is_about_trust(&error) => {
            return Err(RequestError::Untrusted(failed(&error)));
        }
        Err(HandshakeError::Tls(error)) => error,
    };
    match trust.reload(&known) {
        Ok(false) => return Err(RequestError::Untrusted(failed(&error))),
        Err(unread) => return Err(RequestError::Outdated(failed(&error), unread)),
        Ok(true) => {
            tracing::info!(%trust, gateway = %endpoint, "the CA certificates have changed: trying with the new ones")
        }
    }
    shake(&trust.known()?.connector, name, connect(&endpoint.host, endpoint.port).await?).await.map_err(|error| {
        match error {
            HandshakeError::Io(error) => RequestError::Handshake(error),
            HandshakeError::Tls(error) => RequestError::Untrusted(failed(&error)),
        }
    })
}

/// TLS over a connection.
pub(super) async fn shake(
    connector: &TlsConnector,
    name: &ServerName<'static>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, HandshakeError> {
    let shaken = timeout(HANDSHAKE_TIMEOUT, connector.connect(name.clone(), stream)).await;
    shaken.unwrap_or_else(|late| Err(late.into())).map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => HandshakeError::Tls(Box::new(error.clone())),
            None => HandshakeError::Io(error),
        }
    })
}

/// HTTP/1.1 over a connection.
pub(super) async fn http1<T>(stream: T) -> Result<(SendRequest<Full<Bytes>>, Driver), RequestError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new().max_buf_size(READ_BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
    let driver = Driver(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "connection ended");
        }
    }));
    Ok((sender, driver))
}

// === impl Driver ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that reads one request per answer and plays the answers of each connection in turn; then it
    /// closes. It returns the heads of the requests by connection.
    async fn scripted(listener: TcpListener, connections: Vec<Vec<&'static str>>) -> Vec<Vec<String>> {
        let mut seen = Vec::new();
        for answers in connections {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heads = Vec::new();
            for answer in answers {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heads.push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen.push(heads);
        }
        seen
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nhi";
    const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nhi";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";

    fn client() -> Client {
        Client::new(Rc::new(Trust::new(None).unwrap()))
    }

    fn get(timeout: Duration) -> Outgoing {
        Outgoing {
            method: Method::GET,
            route: "v1/devices/d/desired?waitSeconds=0".into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout,
            max_answer: 5,
        }
    }

    async fn listen(address: &str) -> (TcpListener, Endpoint) {
        let listener = TcpListener::bind(address).await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}/base", listener.local_addr().unwrap())).unwrap();
        (listener, endpoint)
    }

    #[tokio::test]
    async fn one_connection_is_kept_and_replaced_when_it_is_closed() {
        let (listener, endpoint) = listen("127.0.0.1:0").await;
        // The server closes the first one silently and announces it on the second.
        let server = tokio::spawn(scripted(listener, vec![vec![OK, OK], vec![OK, OK_CLOSE], vec![OK]]));
        let mut client = client();
        for _ in 0..5 {
            let answer = client.send(0, &endpoint, &get(Duration::from_secs(10))).await.unwrap();
            assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"hi"[..]));
        }
        let heads = server.await.unwrap();
        assert_eq!(heads.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(
            heads[0][0].starts_with("GET /base/v1/devices/d/desired?waitSeconds=0 HTTP/1.1\r\n"),
            "{}",
            heads[0][0]
        );
        assert!(heads[0][0].contains(&format!("host: 127.0.0.1:{}\r\n", endpoint.port)), "{}", heads[0][0]);
    }

    #[tokio::test]
    async fn ipv6() {
        let (listener, endpoint) = listen("[::1]:0").await;
        let server = tokio::spawn(scripted(listener, vec![vec![OK]]));
        assert!(client().send(0, &endpoint, &get(Duration::from_secs(10))).await.is_ok());
        assert!(server.await.unwrap()[0][0].contains(&format!("host: [::1]:{}\r\n", endpoint.port)));
    }

    #[tokio::test]
    async fn another_gateway_is_another_connection() {
        let (first, one) = listen("127.0.0.1:0").await;
        let (second, two) = listen("127.0.0.1:0").await;
        let first = tokio::spawn(scripted(first, vec![vec![OK, OK]]));
        let second = tokio::spawn(scripted(second, vec![vec![CHUNKED]]));
        let mut client = client();
        let mut request = get(Duration::from_secs(10));
        request.max_answer = 6;
        assert_eq!(client.send(0, &one, &request).await.unwrap().body, "hi");
        assert_eq!(client.send(1, &two, &request).await.unwrap().body, "abcdef");
        second.await.unwrap();
        first.abort();
    }

    #[tokio::test]
    async fn what_is_too_long_too_late_or_no_http_is_an_error() {
        let (listener, endpoint) = listen("127.0.0.1:0").await;
        let server = tokio::spawn(scripted(
            listener,
            vec![
                vec![CHUNKED],
                vec!["no http\r\n\r\n"],
                vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi"],
                vec!["", OK],
            ],
        ));
        let mut client = client();
        let long = client.send(0, &endpoint, &get(Duration::from_secs(10))).await;
        assert!(matches!(&long, Err(RequestError::Body(why)) if why.contains("5 bytes")), "{long:?}");
        let garbage = client.send(0, &endpoint, &get(Duration::from_secs(10))).await;
        assert!(matches!(garbage, Err(RequestError::Exchange(_))), "{garbage:?}");
        let cut = client.send(0, &endpoint, &get(Duration::from_secs(10))).await;
        assert!(matches!(cut, Err(RequestError::Body(_))), "{cut:?}");
        let late = client.send(0, &endpoint, &get(Duration::from_millis(50))).await;
        assert!(matches!(late, Err(RequestError::Timeout(_))), "{late:?}");
        assert!(client.connection.is_none());
        server.abort();
        let refused = Endpoint::parse("http://127.0.0.1:1").unwrap();
        let refused = client.send(0, &refused, &get(Duration::from_secs(10))).await;
        assert!(matches!(refused, Err(RequestError::Connect(..))), "{refused:?}");
    }
}
