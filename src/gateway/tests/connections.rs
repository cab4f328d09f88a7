//! Edge: what holds for connections as bytes: limits of time and size, ends in order.

use super::super::limits::{GRACE_SECONDS, HEAD_SECONDS, IDLE_SECONDS, LIFETIME_SECONDS};
use super::super::server::{Connections, serve};
use super::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A device's end of a connection.
pub(super) struct Device<T>(pub(super) T);

impl<T: AsyncRead + AsyncWrite + Unpin> Device<T> {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer; `None` when the connection has ended.
    pub(super) async fn answer(&mut self, has_body: bool) -> Option<Reply> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = http::HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let length = headers.get("content-length").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        let mut body = vec![0; if has_body { length } else { 0 }];
        self.0.read_exact(&mut body).await.unwrap();
        Some(Reply { status, headers, body: body.into() })
    }

    /// Seconds until the server ends the connection without another word.
    async fn end(&mut self) -> u64 {
        let start = Instant::now();
        assert!(timeout(Duration::from_secs(2_000), self.answer(true)).await.unwrap().is_none());
        start.elapsed().as_secs()
    }
}

pub(super) fn get(headers: &str) -> String {
    format!(
        "GET /v1/devices/{DEVICE}/desired HTTP/1.1\r\nHost: x\r\nX-Device-Token: {}\r\n{headers}\r\n",
        token(DEVICE)
    )
}

pub(super) fn post(headers: &str, body: &str) -> String {
    format!(
        "POST /v1/devices/{DEVICE}/report HTTP/1.1\r\nHost: x\r\nX-Device-Token: {}\r\n{headers}\r\n{body}",
        token(DEVICE)
    )
}

struct Port {
    fixture: Fixture,
    connections: Arc<Connections<Script>>,
}

impl Port {
    fn new() -> Self {
        Self::of(Fixture::new())
    }

    fn of(fixture: Fixture) -> Self {
        let connections = Arc::new(Connections::new(fixture.gateway.clone(), None, 100));
        let swept = connections.clone();
        tokio::spawn(async move { swept.sweep().await });
        Self { fixture, connections }
    }

    fn connect(&self) -> Device<DuplexStream> {
        self.connect_with(64 * 1024)
    }

    fn connect_with(&self, buffer: usize) -> Device<DuplexStream> {
        let (near, far) = duplex(buffer);
        self.connections.start(far, None);
        Device(near)
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_ten_seconds() {
    let port = Port::new();
    let range = u64::from(HEAD_SECONDS)..=u64::from(HEAD_SECONDS) + 2;
    for part in ["", "G", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        let mut device = port.connect();
        device.send(part).await;
        assert!(range.contains(&device.end().await), "{part}");
    }
    // Byte by byte is no progress, and a good request before is no excuse.
    let mut device = port.connect();
    device.send(get("")).await;
    device.answer(true).await.unwrap().expect(200);
    let start = Instant::now();
    while device.0.write_all(b"G").await.is_ok() {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(range.contains(&start.elapsed().as_secs()));
    while port.fixture.metric("praetor_device_connections", None) > 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(port.fixture.metric("praetor_device_connections_cut_total", None), 4.0);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_of_devices_live_on() {
    let port = Port::new();
    let mut device = port.connect();
    device.send(get("")).await;
    device.answer(true).await.unwrap().expect(200);
    let idle = device.end().await;
    assert!((u64::from(IDLE_SECONDS)..=u64::from(IDLE_SECONDS) + 2).contains(&idle), "{idle}");

    // Who has shown no token may not linger.
    let mut stranger = port.connect();
    stranger.send("GET /v1/devices/tor1-01/desired HTTP/1.1\r\nHost: x\r\n\r\n").await;
    stranger.answer(true).await.unwrap().expect(401);
    let idle = stranger.end().await;
    assert!((u64::from(HEAD_SECONDS)..=u64::from(HEAD_SECONDS) + 2).contains(&idle), "{idle}");
}

#[tokio::test(start_paused = true)]
async fn connections_end_after_a_random_five_to_ten_minutes() {
    let port = Port::new();
    let mut ages = Vec::new();
    for _ in 0..5 {
        let mut device = port.connect();
        let start = Instant::now();
        loop {
            sleep(Duration::from_secs(9)).await;
            device.send(get("")).await;
            let reply = device.answer(true).await.unwrap().expect(200);
            if reply.header("connection") == "close" {
                break;
            }
        }
        ages.push(start.elapsed().as_secs());
        assert_eq!(device.end().await, 0);
    }
    assert!(
        ages.iter()
            .all(|age| (u64::from(*LIFETIME_SECONDS.start())..=u64::from(*LIFETIME_SECONDS.end()) + 10).contains(age)),
        "{ages:?}"
    );
    assert!(ages.iter().any(|age| *age != ages[0]), "{ages:?}");

    // A parked poll is answered in its own time, and then it is over.
    let mut device = port.connect();
    device.send(get("")).await;
    let etag = device.answer(true).await.unwrap().header("etag").to_owned();
    loop {
        let long_poll = get(&format!("If-None-Match: {etag}\r\n")).replace("desired", "desired?waitSeconds=60");
        device.send(long_poll).await;
        if device.answer(true).await.unwrap().expect(304).header("connection") == "close" {
            break;
        }
    }
    assert_eq!(device.end().await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_cut_off() {
    let port = Port::new();
    let mut device = port.connect_with(64);
    let start = Instant::now();
    let requests = get("").repeat(1_000);
    let _ = device.0.write_all(requests.as_bytes()).await;
    while port.fixture.metric("praetor_device_connections", None) > 0.0 {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(start.elapsed().as_secs() < 40 && GRACE_SECONDS > 40);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_long_or_never_end() {
    let port = Port::new();
    // Refused by what is promised, before it is read; the client may finish sending and still reads the answer.
    let mut device = port.connect();
    device.send(post("Content-Length: 1073741824\r\n", "{")).await;
    let reply = device.answer(true).await.unwrap().expect(413);
    assert_eq!(reply.header("connection"), "close");
    for _ in 0..100 {
        let _ = device.0.write_all(&[b' '; 8192]).await;
    }
    assert!(device.end().await <= 4);

    // Refused by what comes.
    let mut device = port.connect();
    device.send(post("Transfer-Encoding: chunked\r\n", "")).await;
    for _ in 0..65 {
        if device.0.write_all(format!("1000\r\n{}\r\n", " ".repeat(4096)).as_bytes()).await.is_err() {
            break;
        }
    }
    device.answer(true).await.unwrap().expect(413);
    drop(device);

    // Too slow.
    for framing in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut device = port.connect();
        let start = Instant::now();
        device.send(post(framing, "2\r\n{ \r\n")).await;
        let reply = device.answer(true).await.unwrap().expect(408);
        assert_eq!((reply.header("connection"), start.elapsed().as_secs()), ("close", 10));
        assert!(device.end().await <= 4);
    }

    // Broken framing, and a client that goes away in the middle.
    let mut device = port.connect();
    device.send(post("Transfer-Encoding: chunked\r\n", "zz\r\n")).await;
    device.answer(true).await.unwrap().expect(400);
    let mut device = port.connect();
    device.send(post("Content-Length: 100\r\n", "{")).await;
    drop(device);
    // An unread body after a refusal does not confuse the next request.
    let mut device = port.connect();
    device.send(post("Content-Length: 2\r\n", "{}").replace("X-Device-Token", "X-Other")).await;
    device.answer(true).await.unwrap().expect(401);
    device.send(get("")).await;
    device.answer(true).await.unwrap().expect(200);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_told_so() {
    let port = Port::new();
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let target = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(14_000));
    for (bytes, status) in [
        ("garbage\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\n\r\n", 400),
        (huge.as_str(), 431),
        (target.as_str(), 404),
    ] {
        let mut device = port.connect();
        device.send(bytes).await;
        let reply = device.answer(true).await.unwrap().expect(status);
        assert_eq!(reply.header("connection"), if status == 404 { "" } else { "close" }, "{bytes}");
        assert!(!reply.header("date").is_empty());
    }
    // After a good one, too.
    let mut device = port.connect();
    device.send(format!("{}garbage\r\n\r\n", get(""))).await;
    device.answer(true).await.unwrap().expect(200);
    assert!(device.answer(true).await.is_none_or(|reply| reply.expect(400).status == 400));
}

#[tokio::test(start_paused = true)]
async fn head_is_get_without_the_body() {
    let port = Port::new();
    let mut device = port.connect();
    device.send(get("")).await;
    let full = device.answer(true).await.unwrap().expect(200);
    for (target, status) in [("desired", 200), ("desired?waitSeconds=x", 400), ("desired/", 404)] {
        device.send(get("").replacen("GET", "HEAD", 1).replace("desired", target)).await;
        let reply = device.answer(false).await.unwrap();
        assert_eq!((reply.status, reply.header("cache-control")), (status, "no-store"));
        if status == 200 {
            for name in ["etag", "content-length", "content-type", "x-praetor-revision"] {
                assert_eq!(reply.header(name), full.header(name));
            }
        }
    }
    device.send(get(&format!("If-None-Match: {}\r\n", full.header("etag"))).replacen("GET", "HEAD", 1)).await;
    let reply = device.answer(false).await.unwrap().expect(304);
    assert_eq!(reply.header("content-length"), "");
}

#[tokio::test(start_paused = true)]
async fn a_poll_of_a_device_that_went_away_is_not_parked() {
    let port = Port::new();
    let mut device = port.connect();
    device.send(get("If-None-Match: *\r\n").replace("desired", "desired?waitSeconds=60")).await;
    port.fixture.parked(1).await;
    drop(device);
    port.fixture.parked(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_shutdown_answers_parked_polls_and_finishes_reports() {
    let port = Port::of(Fixture::with(Script { slow: Some(Duration::from_secs(5)), ..Script::default() }));
    port.fixture.sync();
    let (mut parked, mut reporting, mut idle, mut half) =
        (port.connect(), port.connect(), port.connect(), port.connect());
    parked.send(get("If-None-Match: *\r\n").replace("desired", "desired?waitSeconds=60")).await;
    reporting.send(post("Content-Length: 2\r\n", "{}")).await;
    idle.send(get("")).await;
    idle.answer(true).await.unwrap().expect(200);
    half.send("GET / HTTP/1.1\r\n").await;
    port.fixture.parked(1).await;
    let connections = port.connections.clone();
    let closing = tokio::spawn(async move { connections.close().await });
    let start = Instant::now();
    let reply = parked.answer(true).await.unwrap().expect(304);
    assert_eq!((reply.header("connection"), start.elapsed()), ("close", Duration::ZERO));
    assert_eq!(idle.end().await, 0);
    reporting.answer(true).await.unwrap().expect(200);
    assert_eq!(start.elapsed().as_secs(), 5);
    closing.await.unwrap();
}

#[tokio::test]
async fn over_tcp_to_the_end() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, fixture.gateway.clone(), None, 1, shutdown.clone()));
    let mut first = Device(TcpStream::connect(address).await.unwrap());
    first.send(get("")).await;
    first.answer(true).await.unwrap().expect(200);
    // Further connections wait for their turn; they are not refused.
    let mut second = Device(TcpStream::connect(address).await.unwrap());
    second.send(get("If-None-Match: *\r\n").replace("desired", "desired?waitSeconds=60")).await;
    while fixture.metric("praetor_device_connections_full_total", None) == 0.0 {
        tokio::task::yield_now().await;
    }
    drop(first);
    fixture.parked(1).await;
    shutdown.cancel();
    second.answer(true).await.unwrap().expect(304);
    timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
