//! Edge: everything that a replica refuses is answered clearly, counted once, and changes nothing.

use super::*;

/// One request as it goes over the wire, to be spoilt.
struct Message {
    method: &'static str,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
    chunked: bool,
    signature: Signature,
}

impl Message {
    fn new(claims: &Claims, key: &PeerKey, route: Route, body: &[u8]) -> Self {
        let claims = Claims { digest: BodyHash::of(body), ..claims.clone() };
        let (method, path) = (route.method(), route.path());
        let signature = key.sign(method, &path, &claims);
        let headers = request_headers(&claims, &signature);
        Self { method, path, headers, body: body.to_vec(), chunked: false, signature }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    async fn send(&self, to: SocketAddr) -> (u16, HeaderMap, Bytes) {
        let stream = TcpStream::connect(to).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let body = if self.chunked {
            let chunk = Frame::data(Bytes::from(self.body.clone()));
            StreamBody::new(futures::stream::iter([Ok::<_, std::convert::Infallible>(chunk)])).boxed()
        } else {
            Full::new(Bytes::from(self.body.clone())).boxed()
        };
        let mut request =
            Request::builder().method(self.method).uri(&self.path).header("host", "peer").body(body).unwrap();
        request.headers_mut().extend(self.headers.clone());
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
    }
}

/// What replica `from` would say to `to` now.
fn claims(from: &Replica, to: &Replica, sequence: u64) -> Claims {
    Claims {
        protocol: 1,
        hop: 1,
        sender: from.identity.into(),
        incarnation: from.incarnation(),
        to: to.incarnation(),
        time_ms: to.notes.now_ms(),
        sequence,
        digest: BodyHash::of(b""),
    }
}

fn batch(whole: bool, horizon_ms: u64) -> Vec<u8> {
    encode(whole, true, horizon_ms, &[Heard { device: 7, age_ms: 0, boot: 0, sequence: 0, said: 0 }], 0)
}

#[tokio::test]
async fn clear_refusals_that_change_nothing() {
    let [a, b] = Replica::several(["a", "b"]).await;
    // Time passes at the receiver before anything is sent, so that there is a time that is too old.
    b.notes.advance(60_000);
    let (own, foreign) = (b.device(), a.device());
    let sequence = AtomicU64::new(1);
    let say = || claims(&a, &b, sequence.fetch_add(1, Ordering::Relaxed));
    let good = batch(true, 0);
    let presence = |claims: &Claims| Message::new(claims, &key(), Route::Presence, &good);
    let report =
        |device: &str, body: &[u8]| Message::new(&say(), &key(), Route::Device { device, connect: false }, body);
    let stranger = PeerKey::new(b"another secret, as long").unwrap();
    let huge = vec![0; 1024 * 1024 + 1];
    let cases: Vec<(Refusal, Message, bool)> = vec![
        (Refusal::Forged, Message::new(&say(), &stranger, Route::Presence, &good), false),
        (Refusal::Forged, presence(&say()).with(|it| it.body[9] ^= 1), false),
        (
            Refusal::Forged,
            presence(&say()).with(|it| it.path = "/v1/peer/clock".into()).with(|it| it.method = "GET"),
            false,
        ),
        (
            Refusal::Forged,
            presence(&say()).with(|it| drop(it.headers.insert("x-praetor-sequence", HeaderValue::from(99)))),
            false,
        ),
        (Refusal::Unsigned, presence(&say()).with(|it| drop(it.headers.remove("x-praetor-signature"))), false),
        (Refusal::Malformed, presence(&say()).with(|it| drop(it.headers.remove("x-praetor-time"))), false),
        (Refusal::Protocol, presence(&Claims { protocol: 2, ..say() }), false),
        (Refusal::Hop, presence(&Claims { hop: 2, ..say() }), false),
        (Refusal::Route, presence(&say()).with(|it| it.path = "/v2/peer/presence".into()), false),
        (Refusal::TooLarge, Message::new(&say(), &key(), Route::Presence, &huge), false),
        (Refusal::TooLarge, Message::new(&say(), &key(), Route::Presence, &huge).with(|it| it.chunked = true), false),
        (Refusal::TooLarge, report(&own, &huge[..400_000]), false),
        (Refusal::Receiver, presence(&Claims { to: 77, ..say() }), true),
        (Refusal::Receiver, presence(&Claims { incarnation: b.incarnation(), ..say() }), true),
        (Refusal::Time, presence(&Claims { time_ms: b.notes.now_ms() - 30_001, ..say() }), true),
        (Refusal::Time, presence(&Claims { time_ms: b.notes.now_ms() + HOUR_MS, ..say() }), true),
        (Refusal::Malformed, Message::new(&say(), &key(), Route::Presence, &good[..5]), true),
        (Refusal::Malformed, Message::new(&say(), &key(), Route::Presence, &batch(true, u64::MAX)), true),
        (Refusal::Whole, Message::new(&say(), &key(), Route::Presence, &batch(false, 0)), true),
        (Refusal::NotOwner, report(&foreign, b"{}"), true),
        (Refusal::Malformed, report(&own, b"bad"), true),
        (
            Refusal::Hop,
            {
                let route = Route::Device { device: &own, connect: false };
                Message::new(&Claims { hop: 2, ..say() }, &key(), route, b"{}")
            },
            false,
        ),
    ];
    for (refusal, message, signed) in cases {
        let before = b.metrics.refusals(refusal);
        let (status, headers, body) = message.send(b.address).await;
        assert_eq!((status, &body[..]), (refusal.status(), refusal.label().as_bytes()));
        assert_eq!(b.metrics.refusals(refusal), before + 1, "{refusal:?}");
        let reply = read_reply(&key(), &message.signature, status, &headers, &body);
        assert_eq!(reply.map(|reply| reply.incarnation), signed.then(|| b.incarnation()), "{refusal:?}");
        assert!(b.notes.is_untouched() && b.taken.reports.lock().is_empty(), "{refusal:?}");
    }

    // What is good is taken in, once.
    let (batch, forwarded) = (presence(&say()), report(&own, b"{}"));
    for message in [&batch, &forwarded] {
        assert_eq!(message.send(b.address).await.0, 200);
        assert_eq!(message.send(b.address).await.0, 409);
    }
    assert_eq!(b.metrics.refusals(Refusal::Replayed), 2);
    assert_eq!((b.notes.merged.lock().len(), b.taken.reports.lock().len()), (1, 1));
}

#[tokio::test]
async fn whoever_says_nothing_is_shown_out() {
    let [_a, b] = Replica::several(["a", "b"]).await;
    // A head that never ends.
    let mut stream = TcpStream::connect(b.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"POST /v1/peer/presence HTTP/1.1\r\nhost: b\r\n").await.unwrap();
    let mut rest = Vec::new();
    let ended =
        tokio::time::timeout(Duration::from_secs(10), tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest));
    assert!(ended.await.is_ok(), "still connected");
}

#[tokio::test]
async fn an_answer_counts_only_with_its_signature() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = a.link(&b, stranger.local_addr().unwrap());
    // Says 200 to everything, with the headers of an answer that was good for another request.
    let message = Message::new(&claims(&a, &b, 1), &key(), Route::Clock, b"");
    let (status, mut headers, _) = message.send(b.address).await;
    assert_eq!(status, 200);
    headers.remove("content-length");
    tokio::spawn(async move {
        loop {
            let (stream, _) = stranger.accept().await.unwrap();
            let service = hyper::service::service_fn(|_| {
                let mut answer = http::Response::new(Full::new(Bytes::new()));
                answer.headers_mut().extend(headers.clone());
                async { Ok::<_, std::convert::Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    });
    a.notes.hear(1);
    let forged = |error: LinkError| matches!(error, LinkError::Call(super::super::client::CallError::Forged(200)));
    assert!(forged(link.exchange().await.unwrap_err()));
    let refused = link.forward(&b.device(), false, Bytes::new()).await;
    assert_eq!(refused, Err(ForwardError::Refused(200)));
    assert!(b.notes.is_untouched() && b.taken.reports.lock().is_empty());
}
