//! Edge: connections that begin with a TLS handshake, and the certificate that they get.

use super::super::answer::date;
use super::super::limits::{HEAD_SECONDS, STALLED_SECONDS};
use super::super::metrics::Handshake;
use super::super::server::{Connections, serve};
use super::super::tls::{Tls, TlsArguments};
use super::connections::{Device, get, post};
use super::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// A certificate that has signed itself, in files.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    fn new(until: i32) -> Self {
        let pair = Self { folder: tempfile::tempdir().unwrap() };
        let (cert, key) = made(until);
        pair.write(&cert, &key);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, cert: &str, key: &str) {
        std::fs::write(self.path("cert"), cert).unwrap();
        std::fs::write(self.path("key"), key).unwrap();
    }

    fn load(&self) -> Arc<Tls> {
        let arguments = TlsArguments { tls_cert_file: Some(self.path("cert")), tls_key_file: Some(self.path("key")) };
        Tls::load(&arguments).unwrap().unwrap()
    }

    /// A device that trusts what is in the files now.
    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("cert")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

fn made(until: i32) -> (String, String) {
    let (mut params, key) = (CertificateParams::new(["gw".to_owned()]).unwrap(), KeyPair::generate().unwrap());
    params.not_after = date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

async fn shake<T: AsyncRead + AsyncWrite + Unpin>(connector: &TlsConnector, stream: T) -> TlsStream<T> {
    connector.connect(ServerName::try_from("gw").unwrap(), stream).await.unwrap()
}

/// A device on a connection with so small a buffer, after the handshake.
async fn connect(connections: &Connections<Script>, pair: &Pair, buffer: usize) -> Device<TlsStream<DuplexStream>> {
    let (near, far) = duplex(buffer);
    let (connector, acceptor) = (pair.connector(), TlsAcceptor::from(pair.load().config()));
    let (near, far) = tokio::join!(shake(&connector, near), acceptor.accept(far));
    connections.start(far.unwrap(), None);
    Device(near)
}

#[tokio::test(start_paused = true)]
async fn the_short_way_works_within_tls() {
    let (fixture, pair) = (Fixture::new(), Pair::new(2049));
    fixture.script.settled.store(true, Ordering::Relaxed);
    let connections = Connections::new(fixture.gateway.clone(), None, 100);
    let mut device = connect(&connections, &pair, 64 * 1024).await;
    let etag = fixture.get(DEVICE, "", &[]).await.header("etag").to_owned();
    // Answers of the short way carry the gateway's date, which nobody moves here; hyper has its own.
    *fixture.gateway.date.write() = date(0);
    let body = r#"{"bootId":"b","sequence":1}"#;
    for (request, status) in [
        (get(&format!("If-None-Match: {etag}\r\n")), 304),
        (post(&format!("Content-Length: {}\r\n", body.len()), body), 200),
    ] {
        for round in 0..4 {
            device.send(&request).await;
            let reply = device.answer(true).await.unwrap().expect(status);
            assert_eq!(reply.header("date").ends_with("1970 00:00:00 GMT"), round > 0, "{request} {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_tls_holds_back_are_sent_when_the_client_reads() {
    let (fixture, pair) = (Fixture::new(), Pair::new(2049));
    let connections = Arc::new(Connections::new(fixture.gateway.clone(), None, 100));
    let swept = connections.clone();
    tokio::spawn(async move { swept.sweep().await });
    let etag = fixture.get(DEVICE, "", &[]).await.header("etag").to_owned();
    let request = get(&format!("If-None-Match: {etag}\r\n"));
    // A request fits, two answers do not.
    let mut device = connect(&connections, &pair, 300).await;
    for round in 0..5 {
        for _ in 0..2 {
            device.send(&request).await;
            device.0.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..2 {
            let reply = timeout(Duration::from_secs(5), device.answer(true)).await;
            reply.unwrap_or_else(|_| panic!("no answer in round {round}")).unwrap().expect(304);
        }
    }
    // Who never reads on is cut off.
    device.send(&request).await;
    device.send(&request).await;
    device.0.flush().await.unwrap();
    let start = Instant::now();
    while fixture.metric("praetor_device_connections_cut_total", None) == 0.0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(start.elapsed().as_secs() <= u64::from(STALLED_SECONDS) + 3);
    }
}

/// A port that speaks HTTPS.
async fn port(fixture: &Fixture, tls: Arc<Tls>) -> (std::net::SocketAddr, CancellationToken) {
    let (listener, shutdown) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, fixture.gateway.clone(), Some(tls), 2, shutdown.clone()));
    (address, shutdown)
}

async fn counted(fixture: &Fixture, result: Handshake, count: f64) {
    let seen = || fixture.metric("praetor_tls_handshakes_total", Some(result.as_str()));
    let reached = timeout(Duration::from_secs(60), async {
        while seen() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "{result:?}: {}", seen());
}

#[tokio::test]
async fn each_end_of_a_handshake_is_counted_and_frees_its_place() {
    let (fixture, pair) = (Fixture::new(), Pair::new(2049));
    let (address, shutdown) = port(&fixture, pair.load()).await;
    for result in Handshake::ALL {
        counted(&fixture, result, 0.0).await;
    }
    for round in [1.0, 2.0, 3.0] {
        let mut good = Device(shake(&pair.connector(), TcpStream::connect(address).await.unwrap()).await);
        good.send(get("")).await;
        good.answer(true).await.unwrap().expect(200);
        counted(&fixture, Handshake::Ok, round).await;
        drop(good);

        // The answer comes whole although more was sent than is read.
        let mut plain = Device(TcpStream::connect(address).await.unwrap());
        plain.send(post("Content-Length: 5000\r\n", &"x".repeat(5000))).await;
        let reply = plain.answer(true).await.unwrap().expect(400);
        assert!(reply.json()["detail"].as_str().unwrap().contains("https://") && reply.header("connection") == "close");
        assert!(plain.answer(true).await.is_none());
        drop(plain);
        counted(&fixture, Handshake::PlainHttp, round).await;

        // Somebody who trusts another certificate.
        let stranger = Pair::new(2049).connector();
        let stream = TcpStream::connect(address).await.unwrap();
        assert!(stranger.connect(ServerName::try_from("gw").unwrap(), stream).await.is_err());
        counted(&fixture, Handshake::Refused, round).await;

        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(&[0x16, 3, 1, 0, 4, 1, 2, 3, 4]).await.unwrap();
        let _ = garbage.read_to_end(&mut Vec::new()).await;
        counted(&fixture, Handshake::Failed, round).await;

        drop(TcpStream::connect(address).await.unwrap());
        counted(&fixture, Handshake::Closed, round).await;
    }
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_the_time_of_a_head() {
    let (fixture, pair) = (Fixture::new(), Pair::new(2049));
    let (address, _shutdown) = port(&fixture, pair.load()).await;
    for (number, part) in [(1.0, &b""[..]), (2.0, b"\x16"), (3.0, b"\x16\x03\x01\x02\x00\x01"), (4.0, b"GET / HT")] {
        let start = Instant::now();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(part).await.unwrap();
        while !matches!(slow.read(&mut [0; 512]).await, Ok(0) | Err(_)) {}
        if part.starts_with(b"G") {
            // Who does not speak TLS is not waited for.
            counted(&fixture, Handshake::PlainHttp, 1.0).await;
        } else {
            assert!(start.elapsed().as_secs() >= u64::from(HEAD_SECONDS) - 1, "{part:?}: {:?}", start.elapsed());
            counted(&fixture, Handshake::Timeout, number).await;
        }
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_handshakes() {
    let (fixture, pair) = (Fixture::new(), Pair::new(2049));
    let (address, shutdown) = port(&fixture, pair.load()).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"\x16\x03").await.unwrap();
    while fixture.metric("praetor_device_connections", None) == 0.0 {
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    let ended = timeout(Duration::from_secs(5), slow.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok());
    assert_eq!(fixture.metric("praetor_device_connections_cut_total", None), 0.0);
}

#[test]
fn a_new_pair_counts_and_a_broken_one_is_told_once() {
    let pair = Pair::new(2040);
    let tls = pair.load();
    let until = |tls: &Tls| crate::wire::time::format(tls.validity().unwrap().not_after);
    assert_eq!(until(&tls), "2040-01-01T00:00:00Z");
    let first = tls.config();
    tls.reload();
    assert!(Arc::ptr_eq(&first, &tls.config()));

    // The certificate is there, its key not yet; told only when that stays so, and only once.
    let (cert, key) = made(2041);
    std::fs::write(pair.path("cert"), &cert).unwrap();
    assert_eq!(tls.told_after_reload(), Some(false));
    assert_eq!(tls.told_after_reload(), Some(true));
    assert_eq!(tls.told_after_reload(), Some(true));
    assert!(Arc::ptr_eq(&first, &tls.config()));
    std::fs::write(pair.path("key"), &key).unwrap();
    assert_eq!(tls.told_after_reload(), None);
    assert_eq!(until(&tls), "2041-01-01T00:00:00Z");

    // Gone and back again.
    std::fs::remove_file(pair.path("key")).unwrap();
    assert_eq!(tls.told_after_reload(), Some(false));
    std::fs::write(pair.path("key"), &key).unwrap();
    assert_eq!(tls.told_after_reload(), None);
    assert!(!format!("{tls:?}").contains("PRIVATE"));
}

#[test]
fn a_pair_that_does_not_count_now_replaces_none_that_does() {
    let pair = Pair::new(2040);
    let tls = pair.load();
    let at = |text: &str| crate::wire::time::parse(text).unwrap().seconds;
    let until = |tls: &Tls| crate::wire::time::format(tls.validity().unwrap().not_after);
    let (cert, key) = made(2030);
    pair.write(&cert, &key);
    // The new one has expired and the old one counts: it stays.
    tls.look(at("2031-01-01T00:00:00Z"));
    assert_eq!(until(&tls), "2040-01-01T00:00:00Z");
    // Neither counts: what the files hold.
    tls.look(at("2041-01-01T00:00:00Z"));
    assert_eq!(until(&tls), "2030-01-01T00:00:00Z");
    // Nor before both.
    let (cert, key) = made(2035);
    pair.write(&cert, &key);
    tls.look(at("1970-01-02T00:00:00Z"));
    assert_eq!(until(&tls), "2035-01-01T00:00:00Z");
}

#[test]
fn the_end_of_the_certificate_in_force_is_told_once() {
    let pair = Pair::new(2040);
    let tls = pair.load();
    let at = |text: &str| crate::wire::time::parse(text).unwrap().seconds;
    let end = at("2040-01-01T00:00:00Z");
    assert_eq!([end - 5, end, end + 1, end + 6].map(|now| tls.look(now)), [false, false, true, false]);
    // A new one ends once more; one that has expired when it comes is told of as it is taken up.
    let (cert, key) = made(2041);
    pair.write(&cert, &key);
    assert_eq!([end + 9, at("2041-01-01T00:00:01Z"), end * 2].map(|now| tls.look(now)), [false, true, false]);
    let (cert, key) = made(2030);
    pair.write(&cert, &key);
    assert!(!tls.look(end * 2));
    assert_eq!(tls.validity().unwrap().not_after, at("2030-01-01T00:00:00Z"));
}

#[test]
fn what_is_no_certificate_with_its_key_is_refused_in_one_line() {
    let pair = Pair::new(2049);
    let ((cert, key), (_, other)) = (made(2049), made(2049));
    let both = TlsArguments { tls_cert_file: Some(pair.path("cert")), tls_key_file: Some(pair.path("key")) };
    let half = TlsArguments { tls_key_file: None, ..both.clone() };
    assert!(Tls::load(&half).unwrap_err().to_string().contains("--tls-key-file is missing"));
    let half = TlsArguments { tls_cert_file: None, ..both.clone() };
    assert!(Tls::load(&half).unwrap_err().to_string().contains("--tls-cert-file is missing"));
    let empty = TlsArguments { tls_cert_file: Some(PathBuf::new()), ..both.clone() };
    assert!(Tls::load(&empty).unwrap_err().to_string().contains("--tls-cert-file is empty"));
    assert!(Tls::load(&TlsArguments::default()).unwrap().is_none());
    for (cert, key, says) in [
        ("", key.as_str(), "no certificate in PEM"),
        (&key, &key, "no certificate in PEM"),
        (&cert[..cert.len() / 2], &key, "not readable as PEM"),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", &key, "certificate cannot be used"),
        (&cert, "", "no private key in PEM"),
        (&cert, &cert, "no private key in PEM"),
        (&cert, &key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "an encrypted one cannot be used"),
        (&cert, "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "the key cannot be used"),
        (&cert, &other, "the key is not the one of the certificate"),
    ] {
        pair.write(cert, key);
        let line = Tls::load(&both).unwrap_err().to_string();
        assert!(line.contains(says) && !line.contains('\n') && line.contains("--tls-"), "{says}: {line}");
    }
    // The chain may have more in it, and the key may be in the same file.
    pair.write(&format!("{key}{cert}{}", made(2030).0), &format!("{cert}{key}"));
    assert_eq!(pair.load().validity().map(|validity| validity.not_after), Some(2_493_072_000));
}
