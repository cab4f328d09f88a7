//! Debian's docker-registry as a process, and pushing to it.

use super::process::{Folder, Launch, Process, free_port};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What an image's layers are.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PATIENCE: Duration = Duration::from_secs(20);

/// The program; none, with the reason said, where it cannot be had.
pub fn program() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/registry.sh");
    let said = Command::new(script).output().expect("bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match said.status.code() {
        Some(0) => Some(PathBuf::from(text(&said.stdout))),
        Some(3) => {
            eprintln!("SKIPPED: no docker-registry on this machine. {}", text(&said.stderr));
            None
        }
        _ => panic!("hack/registry.sh: {}", text(&said.stderr)),
    }
}

/// A running registry; it ends when this is dropped.
pub struct Registry {
    process: Process,
    launch: Launch,
    log: PathBuf,
    pub port: u16,
}

impl Registry {
    /// One on the storage in `folder`; `http` and `auth` are further lines of its configuration.
    pub fn start(program: &Path, folder: &Folder, http: &str, auth: &str) -> Self {
        let port = free_port();
        let name = format!("registry-{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 0.0.0.0:{port}\n{http}{auth}",
            folder.join("storage").display()
        );
        let config = folder.write(&format!("{name}.yml"), config);
        let launch = Launch::new(program).arg("serve").arg(config).env("OTEL_TRACES_EXPORTER", "none");
        let log = folder.join(&format!("{name}.log"));
        let process = Process::spawn(&name, &launch, &log);
        let mut this = Self { process, launch, log, port };
        this.wait();
        this
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.process.exited().is_none(), "the registry ended; {}", self.process.log_tail());
            assert!(begun.elapsed() < PATIENCE, "the registry does not listen; {}", self.process.log_tail());
            std::thread::yield_now();
        }
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        self.process.kill9();
    }

    /// Starts it again on its port.
    pub fn again(&mut self) {
        self.process = Process::spawn("registry", &self.launch, &self.log);
        self.wait();
    }

    /// A reference of the repository.
    pub fn reference(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// Pushes a blob; its descriptor.
    pub fn blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> Value {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        assert_eq!(status, 202, "{head}");
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).expect("a location").trim();
        let path = &location[location.find("/v2/").unwrap()..];
        let (status, head) = self.send("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(status, 201, "{head}");
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    /// Pushes a manifest or an index under a tag; its digest.
    pub fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap();
        let (status, head) = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, &bytes);
        assert_eq!(status, 201, "{head}");
        format!("sha256:{}", hex::encode(Sha256::digest(&bytes)))
    }

    /// Pushes an image of these layers, each already compressed; its digest.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> String {
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(repository, LAYER, layer)).collect();
        let config = self.blob(repository, "application/vnd.oci.image.config.v1+json", b"{}");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.manifest(
            repository,
            tag,
            &json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}),
        )
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

/// A layer of files: path, content, mode.
pub fn layer(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// Bytes that hardly compress, the same ones for the same seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(bytes + 8);
    while all.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend(state.to_le_bytes());
    }
    all.truncate(bytes);
    all
}
