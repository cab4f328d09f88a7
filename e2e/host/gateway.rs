//! A gateway that answers every request by a rule, with TLS or without.

use crate::authority::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request: its method, its path and its token.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub token: Option<String>,
    /// The entity tag that is known.
    pub etag: Option<String>,
}

/// Status, headers with line ends, body; none: silence.
pub type Answer = Option<(u16, String, String)>;
type Rule = dyn Fn(&Asked) -> Answer + Send + Sync;

#[derive(Clone)]
pub struct Gateway {
    pub port: u16,
    https: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Gateway {
    pub fn start(rule: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(rule))
    }

    pub fn with_tls(identity: &Identity, rule: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let certificates = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .unwrap();
        Self::listen(Some(Arc::new(config)), Arc::new(rule))
    }

    fn listen(tls: Option<Arc<ServerConfig>>, rule: Arc<Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = Self { port: listener.local_addr().unwrap().port(), https: tls.is_some(), asked: Arc::default() };
        let asked = Arc::clone(&gateway.asked);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, rule, asked) = (tls.clone(), Arc::clone(&rule), Arc::clone(&asked));
                thread::spawn(move || match tls {
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(connection, stream.unwrap()), &*rule, &asked)
                    }
                    None => serve(stream.unwrap(), &*rule, &asked),
                });
            }
        });
        gateway
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.https { "https" } else { "http" }, self.port)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }
}

fn serve(stream: impl Read + Write, rule: &Rule, log: &Mutex<Vec<Asked>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let asked = read(&mut stream)?;
        log.lock().unwrap().push(asked.clone());
        match rule(&asked) {
            Some((status, headers, body)) => {
                let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
                stream.get_mut().write_all((head + &body).as_bytes()).ok()?;
                stream.get_mut().flush().ok()?;
            }
            None => loop {
                thread::park();
            },
        }
    }
}

fn read(stream: &mut impl BufRead) -> Option<Asked> {
    let mut line = || {
        let mut line = String::new();
        (stream.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut asked = Asked { method: words.next()?, path: words.next()?, token: None, etag: None };
    let mut length = 0;
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "x-device-token" => asked.token = Some(value.to_owned()),
            "if-none-match" => asked.etag = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    std::io::copy(&mut stream.take(length), &mut std::io::sink()).ok()?;
    Some(asked)
}

/// The truth about a device that should run these, for whoever has the token; what is known already is not told
/// again. What they are made of does not exist, so that nothing is ever started on the machine of the test.
pub fn good(names: &[&str]) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let item = |name: &&str| {
        format!(
            r#"{{"uid":"uid-{name}","namespace":"infra","name":"{name}","generation":1,"specHash":"sha256:0011223344556677",
            "spec":{{"artifact":{{"type":"file","url":"/nowhere/at/all"}},"execution":{{"backend":"initd","command":["/nowhere/at/all"]}}}}}}"#
        )
    };
    let items: Vec<_> = names.iter().map(item).collect();
    let body =
        format!(r#"{{"deviceName":"{}","heartbeatIntervalSeconds":1,"items":[{}]}}"#, crate::DEVICE, items.join(","));
    move |asked| {
        let headers = |more: &str| format!("{more}Content-Type: application/json\r\n");
        match (asked.method.as_str(), asked.token.as_deref()) {
            (_, token) if token != Some(crate::TOKEN) => {
                Some((401, headers(""), r#"{"title":"Unauthorized","status":401}"#.to_owned()))
            }
            ("POST", _) => Some((200, headers(""), r#"{"ack":true}"#.to_owned())),
            _ if asked.etag.is_some() => {
                Some((304, headers("ETag: \"e\"\r\nX-Praetor-Revision: 7\r\n"), String::new()))
            }
            _ => Some((200, headers("ETag: \"e\"\r\nX-Praetor-Revision: 7\r\n"), body.clone())),
        }
    }
}

/// Listens and never answers, not even to a handshake.
pub fn deaf() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// An address where nothing listens.
pub fn closed() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    format!("http://127.0.0.1:{port}")
}
