//! Artifacts from a real registry, Debian's docker-registry: images, credentials, TLS, breaks, kills, full disks, and
//! what it costs in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

#[path = "tls/authority.rs"]
#[allow(dead_code, reason = "others use more of it")]
mod authority;
#[path = "harness/process.rs"]
#[allow(dead_code, reason = "others use more of it")]
mod process;
#[path = "artifacts/registry.rs"]
mod registry;

use authority::Authority;
use praetor::agent::artifact::policy::{InsecureRegistry, Policy};
use praetor::agent::artifact::store::Store;
use praetor::agent::artifact::{FetchError, Fetched};
use praetor::agent::process::spec::{Artifact, ArtifactType};
use process::{Folder, Launch, Process, free_port};
use registry::{Registry, layer, noise, program};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a fetch is killed, at points that are spread over it.
const KILLS: u32 = 24;
const PATIENCE: Duration = Duration::from_secs(900);

async fn get(store: &Store, reference: &str) -> Result<Fetched, FetchError> {
    let wanted = Artifact { r#type: ArtifactType::Oci, url: reference.to_owned(), checksum_sha256: None };
    tokio::time::timeout(PATIENCE, store.fetch(&wanted, None)).await.expect("in time")
}

fn store(folder: &Folder, policy: Policy) -> Store {
    Store::open(folder.join("artifacts"), policy)
}

fn read(fetched: &Fetched, name: &str) -> Vec<u8> {
    fs::read(fetched.root.as_ref().unwrap().join(name)).unwrap()
}

/// Passes connections on to a port, and cuts each after so many bytes of answers; how many there were in all.
fn cutting_proxy(to: u16, after: u64) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let passed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&passed);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut questions, mut upstream) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut questions, &mut upstream));
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let (mut buffer, mut left) = (vec![0; 16384], after);
                while left > 0 {
                    let Ok(read @ 1..) = server.read(&mut buffer) else { break };
                    let read = read.min(usize::try_from(left).unwrap_or(usize::MAX));
                    if client.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                    left -= read as u64;
                    count.fetch_add(read as u64, Ordering::Relaxed);
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, passed)
}

#[tokio::test]
async fn images_from_a_real_registry() {
    let Some(program) = program() else { return };
    let folder = Folder::new("registry");
    let mut registry = Registry::start(&program, &folder, "", "");
    let first = layer(&[("usr/bin/agent", b"one", 0o755), ("etc/gone", b"x", 0o644)]);
    let old = registry.image(
        "net/agent",
        "1",
        &[first.clone(), layer(&[("etc/.wh.gone", b"", 0), ("etc/new", b"y", 0o644)])],
    );
    let store = store(&folder, Policy::default());
    let reference = registry.reference("net/agent:1");
    let one = get(&store, &reference).await.unwrap();
    assert_eq!(
        (one.digest.as_str(), read(&one, "usr/bin/agent"), read(&one, "etc/new")),
        (&*old, b"one".to_vec(), b"y".to_vec())
    );
    assert!(!one.root.as_ref().unwrap().join("etc/gone").exists());

    // The tag moves on; who is pinned stays.
    let new = registry.image("net/agent", "1", &[layer(&[("usr/bin/agent", b"two", 0o755)])]);
    let wanted = Artifact { r#type: ArtifactType::Oci, url: reference.clone(), checksum_sha256: None };
    assert_eq!(store.fetch(&wanted, Some(&old)).await.unwrap(), one);
    let two = get(&store, &reference).await.unwrap();
    assert_eq!((two.digest.as_str(), read(&two, "usr/bin/agent")), (&*new, b"two".to_vec()));
    assert!(store.collect(&HashSet::from([new.clone()])).unwrap() > 0 && store.have(&old).is_none());
    assert_eq!(store.fetch(&wanted, Some(&old)).await.unwrap(), one);

    // An index, as for several platforms.
    let (architecture, kind) =
        (if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "application/vnd.oci.image.index.v1+json");
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let size = json!({}).to_string().len();
    let entry = json!({"mediaType": manifest, "digest": old, "size": size, "platform": {"os": "linux", "architecture": architecture}});
    let index =
        registry.manifest("net/agent", "multi", &json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}));
    let checked = Artifact {
        r#type: ArtifactType::Oci,
        url: registry.reference("net/agent:multi"),
        checksum_sha256: Some(index["sha256:".len()..].to_owned()),
    };
    assert_eq!(store.fetch(&checked, None).await.unwrap(), one);

    let missing = get(&store, &registry.reference("net/agent:9")).await.unwrap_err();
    assert_eq!(missing.reason, "NotFound", "{missing}");
    registry.stop();
    let dead = get(&store, &reference).await.unwrap_err();
    assert_eq!(dead.reason, "RegistryUnreachable", "{dead}");
    assert_eq!(store.fetch(&wanted, Some(&old)).await.unwrap(), one, "what is there needs no registry");
    registry.again();
    assert_eq!(get(&store, &reference).await.unwrap(), two);

    // One megabyte, from the edit to its being there.
    let program = noise(7, 1 << 20);
    registry.image("net/agent", "mb", &[layer(&[("agent", &program, 0o755)])]);
    let begun = Instant::now();
    let big = get(&store, &registry.reference("net/agent:mb")).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(read(&big, "agent"), program);
    eprintln!("1 MB from a local registry: {} ms", took.as_millis());
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn layers_come_through_a_line_that_breaks() {
    let Some(program) = program() else { return };
    let folder = Folder::new("breaks");
    let registry = Registry::start(&program, &folder, "", "");
    let content = noise(3, 5 << 20);
    let digest = registry.image("agent", "1", &[layer(&[("agent", &content, 0o755)])]);
    let (port, passed) = cutting_proxy(registry.port, 1 << 20);
    let store = store(&folder, Policy::default());
    let mut tries = 0;
    let fetched = loop {
        tries += 1;
        match get(&store, &format!("127.0.0.1:{port}/agent:1")).await {
            Ok(fetched) => break fetched,
            Err(error) => assert_eq!(error.reason, "Interrupted", "{error}"),
        }
        assert!(tries < 20 && store.have(&digest).is_none());
    };
    assert_eq!((fetched.digest.as_str(), read(&fetched, "agent")), (&*digest, content));
    let passed = passed.load(Ordering::Relaxed);
    assert!(tries > 4 && passed < (7 << 20), "{tries} tries, {passed} bytes: it went on where it was");
}

#[tokio::test]
async fn a_registry_with_credentials() {
    let Some(program) = program() else { return };
    let folder = Folder::new("credentials");
    let open = Registry::start(&program, &folder, "", "");
    let digest = open.image("agent", "1", &[layer(&[("agent", b"x", 0o755)])]);
    // "secret" with bcrypt, the only kind that this registry takes.
    let users = folder.write("htpasswd", "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n");
    let auth = format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", users.display());
    let closed = Registry::start(&program, &folder, "", &auth);
    let reference = closed.reference("agent:1");
    let error = get(&store(&folder, Policy::default()), &reference).await.unwrap_err();
    assert!(error.reason == "Unauthorized" && error.message.contains("--registry-config"), "{error}");
    // bWU6c2VjcmV0 is "me:secret", bWU6bm8= is "me:no".
    for (auth, good) in [("bWU6bm8=", false), ("bWU6c2VjcmV0", true)] {
        let key = format!("127.0.0.1:{}", closed.port);
        let config = folder.write("config.json", json!({"auths": {key: {"auth": auth}}}).to_string());
        let policy = Policy { registry_config: Some(config), ..Policy::default() };
        match get(&store(&folder, policy), &reference).await {
            Ok(fetched) => assert!(good && fetched.digest == digest),
            Err(error) => {
                assert!(!good && error.reason == "Unauthorized" && !error.message.contains("bWU6"), "{error}")
            }
        }
    }
}

#[tokio::test]
async fn a_registry_with_tls() {
    let Some(program) = program() else { return };
    let folder = Folder::new("registry-tls");
    let open = Registry::start(&program, &folder, "", "");
    let digest = open.image("agent", "1", &[layer(&[("agent", b"x", 0o755)])]);
    let authority = Authority::new("test");
    let ca = folder.write("ca.pem", authority.pem());
    // An address that leads here and is not loopback by its looks.
    let here = "0.0.0.0";
    let (good, early) =
        (authority.issue(&[here, "127.0.0.1"], authority::GOOD), authority.issue(&[here], authority::FUTURE));
    let serve = |name: &str, identity: &authority::Identity| {
        let cert = folder.write(&format!("{name}.pem"), &identity.cert);
        let key = folder.write(&format!("{name}.key"), &identity.key);
        let tls = format!("  tls: {{certificate: {}, key: {}}}\n", cert.display(), key.display());
        Registry::start(&program, &folder, &tls, "")
    };
    let (closed, future) = (serve("good", &good), serve("early", &early));
    let trusting = Policy { ca_file: Some(ca), ..Policy::default() };
    let fetch = async |policy: &Policy, reference: String| {
        let folder = Folder::new("tls");
        get(&store(&folder, policy.clone()), &reference).await.map(|fetched| fetched.digest)
    };
    assert_eq!(fetch(&trusting, format!("{here}:{}/agent:1", closed.port)).await.unwrap(), digest);
    // Plain HTTP is allowed on loopback; TLS is spoken where the registry wants it.
    assert_eq!(fetch(&trusting, closed.reference("agent:1")).await.unwrap(), digest);
    let error = fetch(&Policy::default(), format!("{here}:{}/agent:1", closed.port)).await.unwrap_err();
    assert!(error.reason == "Untrusted" && error.message.contains("not signed by a CA"), "{error}");
    let error = fetch(&trusting, format!("{here}:{}/agent:1", future.port)).await.unwrap_err();
    assert!(error.reason == "Untrusted" && error.message.contains("the clock may be wrong"), "{error}");
    // Without TLS: only if it is on the list.
    let plain = format!("{here}:{}", open.port);
    let error = fetch(&trusting, format!("{plain}/agent:1")).await.unwrap_err();
    assert_eq!(error.reason, "InsecureRegistry", "{error}");
    let listed = Policy { insecure_registries: vec![InsecureRegistry::parse(&plain).unwrap()], ..Policy::default() };
    assert_eq!(fetch(&listed, format!("{plain}/agent:1")).await.unwrap(), digest);
}

// === A process that fetches, to be killed and measured ===

/// Not a test by itself: what [`child`] starts.
#[test]
#[ignore = "started by other tests"]
fn fetching() {
    let text = |name: &str| std::env::var_os(name).map(|value| value.into_string().unwrap());
    let (Some(folder), Some(reference)) = (text("ARTIFACT_FOLDER"), text("ARTIFACT_REFERENCE")) else { return };
    // As in the agent.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Store::open(folder.into(), Policy::default());
        // Whatever is loaded at the first use is loaded.
        if let Some(small) = text("ARTIFACT_SMALL") {
            get(&store, &small).await.unwrap();
        }
        let before = memory("VmRSS:");
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let begun = Instant::now();
        let fetched = get(&store, &reference).await.unwrap();
        let (most, took) = (memory("VmHWM:"), begun.elapsed());
        println!("digest={} before={before} most={most} ms={}", fetched.digest, took.as_millis());
    });
}

/// KiB.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn child(artifacts: &Path, reference: &str) -> Launch {
    Launch::new(std::env::current_exe().unwrap())
        .args(["fetching", "--exact", "--ignored", "--nocapture"])
        .env("ARTIFACT_FOLDER", artifacts)
        .env("ARTIFACT_REFERENCE", reference)
}

/// Whatever is visible is whole; returns how many.
fn visible(artifacts: &Path, digest: &str, hash: &[u8]) -> usize {
    let mut found = 0;
    for entry in fs::read_dir(artifacts).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name == "incoming" {
            continue;
        }
        assert_eq!(format!("sha256:{name}"), digest);
        for file in ["agent", "lib/one", "lib/two"] {
            assert_eq!(Sha256::digest(fs::read(entry.path().join(file)).unwrap())[..], *hash, "{file}");
        }
        found += 1;
    }
    found
}

#[tokio::test]
async fn kills_leave_nothing_unchecked_and_it_converges() {
    let Some(program) = program() else { return };
    let folder = Folder::new("kills");
    let registry = Registry::start(&program, &folder, "", "");
    let content = noise(11, 2 << 20);
    let layers =
        [layer(&[("agent", &content, 0o755)]), layer(&[("lib/one", &content, 0o644), ("lib/two", &content, 0o644)])];
    let digest = registry.image("agent", "1", &layers);
    let hash = Sha256::digest(&content);
    let (artifacts, log) = (folder.join("artifacts"), folder.join("fetching.log"));
    let launch = child(&artifacts, &registry.reference("agent:1"));
    // How long one takes by itself, so that kills come at all points of it.
    let begun = Instant::now();
    Process::spawn("fetching", &launch, &log).wait_exit(PATIENCE).await;
    let whole = begun.elapsed();
    assert_eq!(visible(&artifacts, &digest, &hash), 1);
    let mut seen = [0, 0];
    for round in 0..KILLS {
        if round % 6 == 0 {
            fs::remove_dir_all(&artifacts).unwrap();
        }
        let mut process = Process::spawn("fetching", &launch, &log);
        // A moment of the run, not a wait for something.
        tokio::time::sleep(whole * (round * 7 % KILLS) / KILLS).await;
        process.kill9();
        seen[visible(&artifacts, &digest, &hash)] += 1;
    }
    let exit = Process::spawn("fetching", &launch, &log).wait_exit(PATIENCE).await;
    assert_eq!(exit.code, Some(0), "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(visible(&artifacts, &digest, &hash), 1);
    assert_eq!(fs::read_dir(artifacts.join("incoming")).unwrap().count(), 0);
    eprintln!("{KILLS} kills: {} with nothing visible, {} with all of it", seen[0], seen[1]);
    assert!(seen[0] > 0, "some kills came in time");
}

/// `PRAETOR_ARTIFACT_MB=1024` for the size that is promised.
#[tokio::test]
async fn memory_does_not_grow_with_the_artifact() {
    let Some(program) = program() else { return };
    let folder = Folder::new("memory");
    let registry = Registry::start(&program, &folder, "", "");
    let megabytes: usize =
        std::env::var_os("PRAETOR_ARTIFACT_MB").map_or(64, |value| value.into_string().unwrap().parse().unwrap());
    registry.image("small", "1", &[layer(&[("agent", b"x", 0o755)])]);
    // Half noise, half not, so that something is to be unpacked.
    let piece = [noise(5, 8 << 20), vec![b'x'; 8 << 20]].concat();
    let files: Vec<_> = (0..megabytes / 16).map(|n| format!("data/{n}")).collect();
    let files: Vec<_> = files.iter().map(|name| (name.as_str(), piece.as_slice(), 0o644)).collect();
    let digest = registry.image("large", "1", &[layer(&files)]);
    let log = folder.join("fetching.log");
    let launch = child(&folder.join("artifacts"), &registry.reference("large:1"))
        .env("ARTIFACT_SMALL", registry.reference("small:1"));
    let mut process = Process::spawn("fetching", &launch, &log);
    let exit = process.wait_exit(PATIENCE).await;
    let said = process.log();
    assert_eq!(exit.code, Some(0), "{said}");
    let number = |name: &str| -> u64 {
        let at = said.find(name).unwrap() + name.len();
        said[at..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let (before, most, took) = (number("before="), number("most="), number("ms="));
    eprintln!("{megabytes} MB downloaded and unpacked: RSS {before} KiB before, {most} KiB at most, {took} ms");
    assert!(said.contains(&digest) && most < before + 8 * 1024, "{before} KiB grew to {most} KiB");
}

// === Disks ===

/// A small file system of its own; unmounted when it is dropped.
struct Mount(std::path::PathBuf);

impl Mount {
    fn small(folder: &Folder) -> Option<Self> {
        let path = folder.join("disk");
        fs::create_dir(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&path).output().unwrap();
        if !mounted.status.success() {
            eprintln!("SKIPPED: cannot mount a small file system here: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self(path))
    }

    fn remount(&self, how: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn full_and_read_only_disks_are_named_and_heal() {
    let Some(program) = program() else { return };
    let folder = Folder::new("disks");
    let Some(disk) = Mount::small(&folder) else { return };
    let registry = Registry::start(&program, &folder, "", "");
    let digest = registry.image("agent", "1", &[layer(&[("agent", &noise(1, 2 << 20), 0o755)])]);
    registry.image("large", "1", &[layer(&[("agent", &noise(2, 7 << 20), 0o755)])]);
    // Small to fetch, large to unpack.
    registry.image("zeros", "1", &[layer(&[("agent", &vec![0; 12 << 20], 0o755)])]);
    let store = Store::open(disk.0.join("artifacts"), Policy::default());
    let left = || fs::read_dir(disk.0.join("artifacts/incoming")).map_or(0, Iterator::count);
    disk.remount("ro");
    let error = get(&store, &registry.reference("agent:1")).await.unwrap_err();
    assert_eq!(error.reason, "ReadOnlyFileSystem", "{error}");
    disk.remount("rw");
    for image in ["large:1", "zeros:1"] {
        let error = get(&store, &registry.reference(image)).await.unwrap_err();
        assert_eq!((error.reason, left()), ("DiskFull", 0), "{error}");
    }
    fs::write(disk.0.join("other"), vec![1; 6 << 20]).unwrap();
    let error = get(&store, &registry.reference("agent:1")).await.unwrap_err();
    assert_eq!((error.reason, left()), ("DiskFull", 0), "{error}");
    fs::remove_file(disk.0.join("other")).unwrap();
    assert_eq!(get(&store, &registry.reference("agent:1")).await.unwrap().digest, digest);
}

/// A server that does not say how much it sends fills the disk no more than one that does.
#[tokio::test]
async fn a_body_of_unknown_length_leaves_the_reserve_free() {
    let folder = Folder::new("unknown-length");
    let Some(disk) = Mount::small(&folder) else { return };
    let body = noise(3, (8 << 20) - (100 << 10));
    let checksum = Some(hex::encode(Sha256::digest(&body)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/agent", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").and_then(|()| stream.write_all(&body));
    });
    let store = Store::open(disk.0.join("artifacts"), Policy::default());
    let wanted = Artifact { r#type: ArtifactType::Http, url, checksum_sha256: checksum };
    // It would fit, but only just.
    let error = tokio::time::timeout(PATIENCE, store.fetch(&wanted, None)).await.expect("in time").unwrap_err();
    assert_eq!(error.reason, "DiskFull", "{error}");
    assert_eq!(fs::read_dir(disk.0.join("artifacts/incoming")).map_or(0, Iterator::count), 0);
    server.join().unwrap();
}

/// Nothing listens there.
#[tokio::test]
async fn a_dead_registry_is_named() {
    let folder = Folder::new("dead");
    let reference = format!("127.0.0.1:{}/agent:1", free_port());
    let error = get(&store(&folder, Policy::default()), &reference).await.unwrap_err();
    assert_eq!(error.reason, "RegistryUnreachable", "{error}");
    assert!(error.message.contains("connection refused"), "{error}");
}
