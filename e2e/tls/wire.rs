//! Both ends of TLS without the manager or the agent: a device's connection that tells what it was shown, and a gateway
//! that nobody should trust.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::{Authority, Identity};

/// All that the manager speaks.
pub const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

/// One keep-alive connection over TLS.
pub struct Secure {
    sender: SendRequest<Full<Bytes>>,
    /// The certificate that the server has shown.
    pub shown: Vec<u8>,
    /// What was agreed on.
    pub version: Option<ProtocolVersion>,
    /// The protocol within.
    pub alpn: Option<Vec<u8>>,
}

impl Secure {
    /// Opens it; the server has to prove with this CA that it is `127.0.0.1`.
    ///
    /// # Errors
    /// When nobody listens, or the handshake fails.
    pub async fn open(
        address: SocketAddr,
        ca: &Authority,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
        let session = stream.get_ref().1;
        let shown = session.peer_certificates().unwrap()[0].to_vec();
        let (version, alpn) = (session.protocol_version(), session.alpn_protocol().map(<[u8]>::to_vec));
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Self { sender, shown, version, alpn })
    }

    /// A GET with this device's token: the status, the headers, the body.
    ///
    /// # Errors
    /// When the connection ends before the answer does.
    pub async fn get(&mut self, target: &str, token: &str, etag: &str) -> Result<(u16, HeaderMap, Bytes), String> {
        let mut request = Request::get(target).header("host", "127.0.0.1").header("x-device-token", token);
        if !etag.is_empty() {
            request = request.header("if-none-match", etag);
        }
        let request = request.body(Full::default()).map_err(|e| e.to_string())?;
        self.sender.ready().await.map_err(|e| e.to_string())?;
        let (parts, body) = self.sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((parts.status.as_u16(), parts.headers, body))
    }
}

/// A gateway that shows a certificate and counts what it hears behind the handshake.
pub struct Impostor {
    address: SocketAddr,
    heard: Arc<AtomicUsize>,
    tries: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Impostor {
    /// Listens.
    pub async fn start(identity: &Identity) -> Self {
        let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(BOTH)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (acceptor, listener) =
            (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let (heard, tries) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (count, tried) = (heard.clone(), tries.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tried.fetch_add(1, Relaxed);
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        count.fetch_add(read, Relaxed);
                    }
                }
            }
        });
        Self { address, heard, tries, task }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Bytes that it was told in confidence.
    pub fn heard(&self) -> usize {
        self.heard.load(Relaxed)
    }

    /// Connections so far.
    pub fn tries(&self) -> usize {
        self.tries.load(Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}
