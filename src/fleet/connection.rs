//! Edge: one keep-alive connection, a device's own or shared by several.

use super::arguments::Endpoint;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Longest body of an answer: thousands of processes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Largest head of an answer, bytes; there are thousands of connections.
const BUFFER_BYTES: usize = 16 * 1024;
/// Longest time for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request.
#[derive(Debug)]
pub struct Outgoing {
    /// GET or POST.
    pub method: Method,
    /// Path and query below the gateway's URL, with a leading slash.
    pub route: String,
    /// All headers but `Host`.
    pub headers: HeaderMap,
    /// Empty for a GET.
    pub body: Bytes,
    /// For the whole exchange.
    pub timeout: Duration,
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
    /// What the exchange took, connecting included.
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens.
    #[error("connect")]
    Connect,
    /// The connection broke, or the answer is not HTTP.
    #[error("broken")]
    Broken,
    /// The time was up.
    #[error("timeout")]
    Timeout,
}

/// At most one open connection. Whoever shares it takes turns.
#[derive(Debug, Default)]
pub struct Line {
    open: tokio::sync::Mutex<Option<Connection>>,
}

#[derive(Debug)]
struct Connection {
    gateway: usize,
    sender: SendRequest<Full<Bytes>>,
    /// Moves the connection's bytes; ends with it.
    driver: JoinHandle<()>,
}

// === impl Line ===

impl Line {
    /// Sends a request to the gateway that is counted `gateway`; the number of connections that were opened for
    /// it comes with the answer.
    ///
    /// # Errors
    /// When there is no whole answer in time. An answer of any status is no error.
    pub async fn send(
        &self,
        gateway: usize,
        endpoint: &Endpoint,
        request: &Outgoing,
    ) -> (Result<Incoming, RequestError>, u64) {
        let mut open = self.open.lock().await;
        let begun = Instant::now();
        let mut opened = 0;
        // Taken out while in use: whatever goes wrong half-way, the connection goes with it.
        let kept = open.take().filter(|connection| connection.gateway == gateway);
        let exchange = async {
            if let Some(mut connection) = kept
                && let Ok(answer) = connection.exchange(endpoint, request).await
            {
                return Ok((answer, connection));
            }
            // None was open, or the gateway closed it while it lay idle.
            let mut connection = Connection::open(gateway, endpoint).await?;
            opened += 1;
            let answer = connection.exchange(endpoint, request).await.map_err(|_| RequestError::Broken)?;
            Ok((answer, connection))
        };
        let result = match timeout(request.timeout, exchange).await {
            Ok(Ok(((head, body), connection))) => {
                let close = head
                    .headers
                    .get(header::CONNECTION)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
                *open = (!close).then_some(connection);
                Ok(Incoming { status: head.status, headers: head.headers, body, took: begun.elapsed() })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RequestError::Timeout),
        };
        (result, opened)
    }
}

// === impl Connection ===

impl Connection {
    async fn open(gateway: usize, endpoint: &Endpoint) -> Result<Self, RequestError> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(&endpoint.address)).await;
        let stream = stream.map_err(|_| RequestError::Connect)?.map_err(|_| RequestError::Connect)?;
        // A request is one small write; without the option it could wait for the last one's acknowledgement.
        let _ = stream.set_nodelay(true);
        let handshake = Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|_| RequestError::Broken)?;
        // How it ended is seen by the request that it was for.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { gateway, sender, driver })
    }

    async fn exchange(
        &mut self,
        endpoint: &Endpoint,
        request: &Outgoing,
    ) -> Result<(http::response::Parts, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let mut message = Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = format!("{}{}", endpoint.base, request.route).parse()?;
        *message.headers_mut() = request.headers.clone();
        message.headers_mut().insert(header::HOST, endpoint.host.clone());
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(message).await?.into_parts();
        Ok((head, Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    const LAST: &str = "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n";

    /// Answers one request after the other on one connection after the other; returns how many requests each saw.
    async fn scripted(listener: TcpListener, script: Vec<Vec<&'static str>>) -> Vec<usize> {
        let mut seen = Vec::new();
        for answers in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in &answers {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen.push(answers.len());
        }
        seen
    }

    fn get(timeout: Duration) -> Outgoing {
        Outgoing { method: Method::GET, route: "/x?y=1".into(), headers: HeaderMap::new(), body: Bytes::new(), timeout }
    }

    #[tokio::test]
    async fn a_line_is_kept_closed_and_opened_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(scripted(listener, vec![vec![OK, OK, LAST], vec![OK]]));
        let line = Line::default();
        let mut opened = Vec::new();
        for _ in 0..4 {
            let (answer, count) = line.send(0, &endpoint, &get(Duration::from_secs(10))).await;
            opened.push((answer.unwrap().status.as_u16(), count));
        }
        assert_eq!(opened, [(200, 1), (200, 0), (304, 0), (200, 1)]);
        assert_eq!(server.await.unwrap(), [3, 1]);
    }

    #[tokio::test]
    async fn failures_have_names() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let line = Line::default();
        let late = line.send(0, &endpoint, &get(Duration::from_millis(50))).await.0;
        assert!(matches!(late, Err(RequestError::Timeout)));
        let server = tokio::spawn(async move {
            drop(listener.accept().await);
            scripted(listener, vec![vec!["no http\r\n\r\n"]]).await
        });
        let garbage = line.send(0, &endpoint, &get(Duration::from_secs(10))).await.0;
        assert!(matches!(garbage, Err(RequestError::Broken)), "{garbage:?}");
        server.await.unwrap();
        let gone = line.send(0, &endpoint, &get(Duration::from_secs(10))).await.0;
        assert!(matches!(gone, Err(RequestError::Connect)), "{gone:?}");
    }
}
