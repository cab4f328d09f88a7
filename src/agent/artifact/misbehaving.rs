//! Edge: servers for tests that answer as they are told to, also wrongly. They record what they were asked.

use super::policy::Policy;
use super::store::Store;
use super::{FetchError, Fetched};
use crate::agent::process::spec::{Artifact, ArtifactType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What a server does with a request, in turn.
pub enum Act {
    Send(Vec<u8>),
    /// The same bytes for ever.
    Endless(Vec<u8>),
    Hang,
    Close,
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: String,
    pub headers: HashMap<String, String>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub struct Server {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `answer` gets the request and how many came before it.
    pub async fn start(answer: impl Fn(&Seen, usize) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    loop {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let Ok(byte) = stream.read_u8().await else { return };
                            if head.is_empty() && byte == 0x16 {
                                // TLS, answered as servers without it do.
                                let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here").await;
                                return;
                            }
                            head.push(byte);
                        }
                        let head = String::from_utf8_lossy(&head).into_owned();
                        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        let pairs = head.lines().skip(1).filter_map(|line| line.split_once(": "));
                        let headers = pairs.map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
                        let request = Seen { target, headers };
                        let number = {
                            let mut log = log.lock().unwrap();
                            log.push(request.clone());
                            log.len() - 1
                        };
                        for act in answer(&request, number) {
                            match act {
                                Act::Send(bytes) => {
                                    if stream.write_all(&bytes).await.is_err() {
                                        return;
                                    }
                                }
                                Act::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
                                Act::Hang => std::future::pending().await,
                                Act::Close => return,
                            }
                        }
                    }
                });
            }
        });
        Self { host, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.host)
    }
}

/// A whole answer.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<Act> {
    let mut all = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len()).into_bytes();
    all.extend(body);
    vec![Act::Send(all)]
}

pub fn ok(body: &[u8]) -> Vec<Act> {
    answer("200 OK", "", body)
}

/// The first `sent` bytes of an answer, then the end.
pub fn cut(headers: &str, body: &[u8], sent: usize) -> Vec<Act> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    vec![Act::Send([head.as_bytes(), &body[..sent]].concat()), Act::Close]
}

/// As a good server answers a request for a part.
pub fn part(request: &Seen, headers: &str, body: &[u8]) -> Vec<Act> {
    match request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()) {
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n{headers}", body.len() - 1, body.len());
            answer("206 Partial Content", &range, &body[from..])
        }
        None => answer("200 OK", headers, body),
    }
}

/// A store in a folder of its own.
pub struct Shop {
    pub folder: TempDir,
    pub store: Store,
}

impl Shop {
    pub fn new(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy { stall: Duration::from_secs(20), ..Policy::default() };
        change(&mut policy);
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("artifacts"), policy);
        Self { folder, store }
    }

    pub async fn get(&self, kind: ArtifactType, url: &str, checksum: Option<&str>) -> Result<Fetched, FetchError> {
        self.store.fetch(&artifact(kind, url, checksum), None).await
    }

    /// What there is: digests, and what is under way.
    pub fn listed(&self) -> (Vec<String>, Vec<String>) {
        let list = |path: &Path| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let artifacts = self.folder.path().join("artifacts");
        let mut whole = list(&artifacts);
        whole.retain(|name| name != "incoming");
        (whole, list(&artifacts.join("incoming")))
    }
}

pub fn artifact(kind: ArtifactType, url: &str, checksum: Option<&str>) -> Artifact {
    Artifact { r#type: kind, url: url.to_owned(), checksum_sha256: checksum.map(str::to_owned) }
}

pub fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What to put into an archive.
#[derive(Debug, Clone)]
pub enum Put<'a> {
    File(&'a str, &'a [u8], u32),
    Folder(&'a str, u32),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

/// An archive of these, whatever their paths are.
pub fn tar(puts: &[Put<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for put in puts {
        let mut header = tar::Header::new_gnu();
        let (path, kind, target, content, mode): (_, _, _, &[u8], _) = match put {
            Put::File(path, content, mode) => (path, tar::EntryType::Regular, "", content, *mode),
            Put::Folder(path, mode) => (path, tar::EntryType::Directory, "", &[], *mode),
            Put::Link(path, target) => (path, tar::EntryType::Symlink, *target, &[], 0o777),
            Put::Hard(path, target) => (path, tar::EntryType::Link, *target, &[], 0o644),
            Put::Device(path) => (path, tar::EntryType::Char, "", &[], 0o666),
        };
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.extend(header.as_bytes());
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// What a registry has: paths below `/v2/` and their bytes.
#[derive(Clone, Default)]
pub struct Shelf {
    pub items: HashMap<String, Vec<u8>>,
}

impl Shelf {
    /// Adds a blob of the repository `r`; its descriptor.
    pub fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        self.items.insert(format!("/v2/r/blobs/sha256:{}", sha(bytes)), bytes.to_owned());
        json!({"mediaType": kind, "digest": format!("sha256:{}", sha(bytes)), "size": bytes.len()})
    }

    /// Adds a manifest under its digest and, if there is one, a tag; its digest.
    pub fn manifest(&mut self, tag: Option<&str>, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", sha(&bytes));
        for name in [Some(digest.as_str()), tag].into_iter().flatten() {
            self.items.insert(format!("/v2/r/manifests/{name}"), bytes.clone());
        }
        digest
    }

    /// Adds an image of layers of tar with gzip; its digest.
    pub fn image(&mut self, tag: &str, layers: &[Vec<u8>]) -> String {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(kind, &gzip(layer))).collect();
        self.manifest(Some(tag), &json!({"schemaVersion": 2, "layers": layers}))
    }

    /// As a good registry answers.
    pub fn answer(&self, request: &Seen) -> Vec<Act> {
        match self.items.get(&request.target) {
            Some(bytes) => part(request, "", bytes),
            None => answer("404 Not Found", "", b"{}"),
        }
    }

    pub async fn serve(self) -> Server {
        Server::start(move |request, _| self.answer(request)).await
    }
}
