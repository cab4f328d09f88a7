//! Edge: whom a download trusts.

use super::*;
use crate::agent::artifact::misbehaving::{Shop, sha};
use crate::agent::process::spec::ArtifactType;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const BODY: &[u8] = b"content";

/// A CA, and a server's certificate for 127.0.0.1 that is good in these years.
fn certificate(from: i32, until: i32) -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
    let signed = params.signed_by(&own, &issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], key)
        .unwrap();
    (pem, TlsAcceptor::from(Arc::new(config)))
}

/// Answers every request with [`BODY`], or sends it on.
async fn serve(acceptor: TlsAcceptor, location: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let answer = match &location {
                Some(location) => format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"),
                None => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\ncontent", BODY.len()),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    host
}

#[tokio::test]
async fn only_who_is_vouched_for_is_asked() {
    let (ca, acceptor) = certificate(2020, 2120);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, ca).unwrap();
    let trusting = || Shop::new(|policy| policy.ca_file = Some(file.path().to_owned()));
    let url = format!("https://{}/a", serve(acceptor.clone(), None).await);
    let get = async |shop: Shop, url: &str| shop.get(ArtifactType::Http, url, Some(&sha(BODY))).await;
    assert!(get(trusting(), &url).await.is_ok());
    let error = get(Shop::new(|_| {}), &url).await.unwrap_err();
    assert_eq!(error.reason, fault::UNTRUSTED, "{error}");
    assert!(error.message.contains("127.0.0.1") && !error.message.contains("gateway "), "{error}");
    // Out of TLS leads no redirect.
    let leaving = serve(acceptor, Some("http://127.0.0.1:1/a".into())).await;
    let error = get(trusting(), &format!("https://{leaving}/a")).await.unwrap_err();
    assert!(error.reason == fault::BAD_REDIRECT && error.message.contains("from https to http"), "{error}");
    // The file is read at each fetch.
    std::fs::write(&file, "").unwrap();
    let error = get(trusting(), &url).await.unwrap_err();
    assert!(error.reason == fault::UNTRUSTED && error.message.contains("--artifact-ca-file"), "{error}");
}

/// A device without a battery for its clock starts in 1970: every certificate seems to be of the future.
#[tokio::test]
async fn a_wrong_clock_is_suspected() {
    for (from, until, says) in [(2100, 2120, "the clock may be wrong"), (1990, 2000, "this device's clock says")] {
        let (ca, acceptor) = certificate(from, until);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, ca).unwrap();
        let host = serve(acceptor, None).await;
        let shop = Shop::new(|policy| policy.ca_file = Some(file.path().to_owned()));
        let error = shop.get(ArtifactType::Http, &format!("https://{host}/a"), Some(&sha(BODY))).await.unwrap_err();
        assert!(error.reason == fault::UNTRUSTED && error.message.contains(says), "{error}");
        assert!(error.message.contains("the server's certificate"), "{error}");
    }
}
