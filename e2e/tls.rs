//! TLS between devices and the manager, with a CA of the test's own: who is trusted and who is not, and certificates
//! and CAs that change while everything runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "tls/authority.rs"]
mod authority;
mod harness;
#[path = "tls/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use authority::{Authority, EXPIRED, FUTURE, GOOD, Identity};
use harness::programs::{AgentBuilder, ManagerBuilder, SECRET, binary};
use harness::scenario::{device_process, process_spec, switch};
use harness::{
    Agent, Exit, Folder, Kind, Launch, Manager, Process, Stage, condition_status, free_port, holds_for, unique,
    wait_for,
};
use praetor::wire::canonical::SpecHash;
use rustls::ProtocolVersion;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wire::{BOTH, Impostor, Secure};

const SOON: Duration = Duration::from_secs(20);
/// How long an agent that is refused may take until it reports: a reload by the manager, the longest pause of an agent
/// that knows no heartbeat yet (15 s), and some for the report.
const HEALED: Duration = Duration::from_secs(40);
/// What the manager promises for a changed file, and a look of the test's.
const RELOAD: Duration = Duration::from_secs(12);

/// Where a manager finds its certificate.
struct Served {
    cert: PathBuf,
    key: PathBuf,
}

impl Served {
    fn new(folder: &Folder, identity: &Identity) -> Self {
        let served = Self { cert: folder.join("tls.crt"), key: folder.join("tls.key") };
        served.show(identity);
        served
    }

    /// As a careful person would: the key first, and each file as a whole.
    fn show(&self, identity: &Identity) {
        for (path, content) in [(&self.key, &identity.key), (&self.cert, &identity.cert)] {
            replace(path, content);
        }
    }

    fn manager(&self, builder: ManagerBuilder) -> ManagerBuilder {
        let flag = |name: &str, path: &Path| format!("--tls-{name}-file={}", path.display());
        builder.args(&[&flag("cert", &self.cert), &flag("key", &self.key)])
    }
}

fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn https(manager: &Manager) -> String {
    format!("https://{}", manager.address())
}

/// An agent that asks these gateways with the device's token and trusts the CAs in a file.
fn agent(manager: &Manager, device: &str, urls: &str, ca: &Path) -> AgentBuilder {
    Agent::builder(device, urls).token(&manager.token(device)).env("APOLLO_GATEWAY_CA_FILE", ca.to_str().unwrap())
}

/// A switch of this name with one process, of which the manager knows; returns the process. An agent that starts
/// earlier may be told that there is no such device.
async fn device(stage: &Stage, manager: &Manager, ca: &Authority, name: &str) -> Value {
    stage.cluster.create(&switch(&stage.namespace, name, &[])).await;
    let process = stage.cluster.create(&device_process(&stage.namespace, name, name, process_spec("1"))).await;
    let mut connection = Secure::open(manager.address(), ca, BOTH, &[]).await.unwrap();
    let (target, token) = (format!("/v1/devices/{name}/desired"), manager.token(name));
    wait_for(SOON, format!("{name} to be told of its process"), async || {
        let (status, _, body) = connection.get(&target, &token, "").await?;
        let told = serde_json::from_slice::<Value>(&body).unwrap_or_default()["items"][0]["name"] == name;
        if status == 200 && told { Ok(()) } else { Err(format!("{status} {}", String::from_utf8_lossy(&body))) }
    })
    .await;
    process
}

/// Waits until the status says what only the device's agent can have told.
async fn observed(stage: &Stage, process: &Value) {
    let (name, hash) = (process["metadata"]["name"].as_str().unwrap(), SpecHash::of_spec(&process["spec"]).to_string());
    wait_for(HEALED, format!("the status of {name}"), async || {
        let object = stage.cluster.get(Kind::Process, &stage.namespace, name).await.unwrap();
        let seen = object["status"]["observedSpecHash"] == hash.as_str();
        if seen && condition_status(&object, "AgentConnected") == "True" {
            Ok(())
        } else {
            Err(object["status"].to_string())
        }
    })
    .await;
}

async fn logs(agent: &Agent, says: &str) {
    wait_for(SOON, format!("{says:?} in the log"), async || {
        let log = agent.log();
        if log.contains(says) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn an_agent_reports_over_tls() {
    let stage = Stage::enter("tls").await;
    let (folder, ca) = (Folder::new("tls"), Authority::new("ca"));
    // A bundle with another one in front.
    let bundle = folder.write("ca.crt", format!("{}{}", Authority::new("other").pem(), ca.pem()));
    let identity = ca.local();
    let manager = Served::new(&folder, &identity).manager(Manager::builder(stage.plane).await).start().await;
    let name = unique("tor");
    let process = device(&stage, &manager, &ca, &name).await;
    let shaken = async || manager.metrics().await.get("praetor_tls_handshakes_total{result=\"ok\"}");
    let before = shaken().await;
    // The name in the URL counts, be it an address or a name.
    let url = format!("https://localhost:{}", manager.address().port());
    let agent = agent(&manager, &name, &url, &bundle).start();
    observed(&stage, &process).await;
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
    assert!(!agent.log().contains(&manager.token(&name)) && !manager.log().contains(&manager.token(&name)));

    let metrics = manager.metrics().await;
    // 2049-01-01T00:00:00Z.
    assert_eq!(metrics.get("praetor_tls_certificate_not_after_timestamp_seconds"), 2_493_072_000.0);
    assert_eq!(shaken().await, before + 2.0, "one to ask and one to report");

    // Who speaks HTTP is told so, and the connection ends in order.
    let answer = manager.device(&name).desired().await.expect(400);
    assert!(answer.text().contains("https://") && answer.header("connection") == "close", "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    // It is counted when the client has gone.
    let plain = "praetor_tls_handshakes_total{result=\"plain_http\"}";
    wait_for(SOON, "one that spoke HTTP", async || manager.metrics().await.get(plain) == 1.0).await;
    assert_eq!(manager.metrics().await.get("praetor_auth_failures_total"), 0.0);
}

#[tokio::test]
async fn who_is_not_trusted_learns_no_token_and_the_next_one_is_asked() {
    let stage = Stage::enter("distrust").await;
    let (folder, ca) = (Folder::new("distrust"), Authority::new("ca"));
    let bundle = folder.write("ca.crt", ca.pem());
    let manager = Served::new(&folder, &ca.local()).manager(Manager::builder(stage.plane).await).start().await;
    let cases = [
        (Authority::new("stranger").local(), "not signed by a CA that this device trusts ("),
        // The same name, another key.
        (Authority::new("ca").local(), "not signed by a CA that this device trusts ("),
        (ca.issue(&["127.0.0.1"], EXPIRED), "expired at 2021-01-01T00:00:00Z; this device's clock says 20"),
        (ca.issue(&["127.0.0.1"], FUTURE), "counts from 2048-01-01T00:00:00Z on, and this device's clock says 20"),
        (ca.issue(&["gateway.example"], GOOD), "is not for 127.0.0.1; it is for"),
        (ca.itself(), "is a CA's own"),
    ];
    let mut agents = Vec::new();
    for (number, (identity, says)) in cases.iter().enumerate() {
        let (impostor, name) = (Impostor::start(identity).await, unique(&format!("tor{number}")));
        let process = device(&stage, &manager, &ca, &name).await;
        let urls = format!("{},{}", impostor.url(), https(&manager));
        agents.push((agent(&manager, &name, &urls, &bundle).start(), impostor, process, name, *says));
    }
    // No TLS at all, on a port of the manager's that speaks HTTP.
    let name = unique("plain");
    let process = device(&stage, &manager, &ca, &name).await;
    let plain = format!("https://{}", manager.admin_address());
    let plain_agent = agent(&manager, &name, &format!("{plain},{}", https(&manager)), &bundle).start();

    for (agent, impostor, process, name, says) in &agents {
        observed(&stage, process).await;
        logs(agent, says).await;
        let log = agent.log();
        let warning = log.lines().find(|line| line.contains(says)).unwrap();
        let gateway = format!("gateway=\"{}\"", impostor.url());
        assert!(warning.contains("WARN") && warning.contains(&gateway) && warning.contains("route="), "{warning}");
        assert!(!log.contains(&manager.token(name)), "{log}");
        assert_eq!(impostor.heard(), 0, "{says}");
        assert!(impostor.tries() > 0);
    }
    let clock = agents[3].0.log();
    assert!(clock.contains("the clock may be wrong"), "{clock}");
    observed(&stage, &process).await;
    logs(&plain_agent, "does not speak TLS").await;

    // They go on as they are, without a warning for each request.
    let warnings = |agent: &Agent| agent.log().lines().filter(|line| line.contains("WARN")).count();
    for (agent, ..) in &agents {
        assert!(warnings(agent) <= 2, "{}", agent.log());
    }
    let refused = manager.metrics().await;
    assert_eq!(refused.get("praetor_auth_failures_total"), 0.0);
}

#[tokio::test]
async fn a_new_certificate_counts_without_dropping_anything() {
    let stage = Stage::enter("rotated").await;
    let (folder, ca) = (Folder::new("rotated"), Authority::new("ca"));
    let bundle = folder.write("ca.crt", ca.pem());
    let (old, new) = (ca.local(), ca.issue(&["127.0.0.1"], (2024, 2048)));
    let served = Served::new(&folder, &old);
    let manager = served.manager(Manager::builder(stage.plane).await).start().await;
    let name = unique("tor");
    let process = device(&stage, &manager, &ca, &name).await;
    let agent = agent(&manager, &name, &https(&manager), &bundle).start();
    observed(&stage, &process).await;
    let shown = async || Secure::open(manager.address(), &ca, BOTH, &[]).await.unwrap().shown;
    let (token, target) = (manager.token(&name), format!("/v1/devices/{name}/desired"));
    let mut parked = Secure::open(manager.address(), &ca, BOTH, &[]).await.unwrap();
    assert_eq!(parked.shown, old.der);
    let (status, headers, _) = parked.get(&target, &token, "").await.unwrap();
    assert_eq!(status, 200);
    let etag = headers["etag"].to_str().unwrap().to_owned();

    // Broken ones, one after the other: a line each, and the old one is shown.
    for (broken, says) in [
        (Identity { cert: "nonsense".into(), ..old.clone() }, "holds no certificate"),
        (Identity { cert: new.cert.clone(), ..old.clone() }, "the key is not the one of the certificate"),
        (ca.issue(&["127.0.0.1"], EXPIRED), "has expired at 2021-01-01T00:00:00Z, and the one in force counts"),
    ] {
        served.show(&broken);
        wait_for(RELOAD, format!("{says:?} in the log"), async || manager.log().contains(says)).await;
        assert_eq!(shown().await, old.der);
    }
    // Another look comes and goes without another line.
    holds_for(Duration::from_secs(6), "one line", async || {
        manager.log().lines().filter(|line| line.contains("the last good certificate stays in force")).count() == 3
    })
    .await;

    // The agent's own poll ends now and then and begins anew, so the number is waited for.
    let longpolls = async || manager.metrics().await.get("praetor_longpolls_parked");
    let poll = tokio::spawn(async move {
        let answer = parked.get(&format!("{target}?waitSeconds=60"), &token, &etag).await;
        (parked, answer)
    });
    wait_for(SOON, "both long-polls", async || longpolls().await == 2.0).await;
    served.show(&new);
    let begun = Instant::now();
    wait_for(RELOAD, "the new certificate", async || shown().await == new.der).await;
    println!("new certificate shown after {:?}", begun.elapsed());
    // 2048-01-01T00:00:00Z.
    let not_after = "praetor_tls_certificate_not_after_timestamp_seconds";
    wait_for(SOON, "the gauge", async || manager.metrics().await.get(not_after) == 2_461_449_600.0).await;
    wait_for(SOON, "both long-polls still", async || longpolls().await == 2.0).await;
    assert!(!poll.is_finished());
    let patch = serde_json::json!({ "spec": { "artifact": { "url": "registry.example.com/infra/switch-agent:2" } } });
    let patched = stage.cluster.merge(Kind::Process, &stage.namespace, &name, &patch).await;
    let (mut parked, answer) = poll.await.unwrap();
    assert_eq!(answer.unwrap().0, 200);
    // The connection of the old one is as good as before.
    let again = parked.get(&format!("/v1/devices/{name}/desired"), &manager.token(&name), "").await.unwrap();
    assert_eq!((again.0, parked.shown == old.der), (200, true));
    observed(&stage, &patched).await;
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
}

#[tokio::test]
async fn agents_heal_when_the_certificate_or_the_ca_is_replaced() {
    let stage = Stage::enter("healed").await;
    let folder = Folder::new("healed");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (trusts_old, trusts_new) = (folder.write("old.crt", old.pem()), folder.write("new.crt", new.pem()));
    let served = Served::new(&folder, &old.local());
    let mut manager =
        served.manager(Manager::builder(stage.plane).await).args(&["--default-heartbeat-seconds=2"]).start().await;
    let (early, late) = (unique("early"), unique("late"));
    let early_process = device(&stage, &manager, &old, &early).await;
    let late_process = device(&stage, &manager, &old, &late).await;
    let early_agent = agent(&manager, &early, &https(&manager), &trusts_old).start();
    let late_agent = agent(&manager, &late, &https(&manager), &trusts_new).start();
    observed(&stage, &early_process).await;
    logs(&late_agent, "not signed by a CA that this device trusts").await;
    assert!(manager.metrics().await.get("praetor_tls_handshakes_total{result=\"refused\"}") > 0.0);

    // The server's certificate is replaced: who trusts the new CA comes in, and who has a connection keeps it.
    served.show(&new.local());
    observed(&stage, &late_process).await;
    logs(&late_agent, "the gateway answers").await;
    assert!(!early_agent.log().contains("not signed by"), "{}", early_agent.log());

    // All connections end: now the first one is out, until its file is replaced, too.
    manager.restart().await;
    logs(&early_agent, "not signed by a CA that this device trusts").await;
    replace(&trusts_old, "");
    logs(&early_agent, "it holds no certificate in PEM").await;
    replace(&trusts_old, &format!("{}{}", old.pem(), new.pem()));
    logs(&early_agent, "the CA certificates have changed").await;
    logs(&early_agent, "the gateway answers again").await;
    let patch = serde_json::json!({ "spec": { "artifact": { "url": "registry.example.com/infra/switch-agent:2" } } });
    observed(&stage, &stage.cluster.merge(Kind::Process, &stage.namespace, &early, &patch).await).await;
}

#[tokio::test]
async fn versions_and_protocols() {
    let stage = Stage::enter("versions").await;
    let (folder, ca) = (Folder::new("versions"), Authority::new("ca"));
    let manager = Served::new(&folder, &ca.local()).manager(Manager::builder(stage.plane).await).start().await;
    let (address, name) = (manager.address(), unique("tor"));
    for (version, expected) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut secure = Secure::open(address, &ca, &[version], &["h2", "http/1.1"]).await.unwrap();
        assert_eq!((secure.version, secure.alpn.clone()), (Some(expected), Some(b"http/1.1".to_vec())));
        assert_eq!(secure.get(&format!("/v1/devices/{name}/desired"), &manager.token(&name), "").await.unwrap().0, 404);
    }
    let http2 = Secure::open(address, &ca, BOTH, &["h2"]).await.err().unwrap();
    assert!(http2.contains("NoApplicationProtocol"), "{http2}");

    // A hello of TLS 1.1 (RFC 4346): two ciphers of its time, no extensions. Then one that knows of signature
    // algorithms, but offers no version above 1.1. The answers are fatal alerts: handshake_failure, protocol_version.
    for (extensions, alert) in [(&[][..], 40), (&[0, 8, 0, 13, 0, 4, 0, 2, 4, 3], 70)] {
        let mut hello = [&[3, 2][..], &[7; 32], &[0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0], extensions].concat();
        for kind in [&[1, 0, 0][..], &[0x16, 3, 1, 0]] {
            let length = u8::try_from(hello.len()).unwrap();
            hello = [kind, &[length], &hello].concat();
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!((answer[0], &answer[5..]), (0x15, &[2, alert][..]), "{answer:?}");
    }
    // Something that is neither.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0; 64]).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() && answer.first().is_none_or(|first| *first == 0x15), "{answer:?}");
    let failed = "praetor_tls_handshakes_total{result=\"failed\"}";
    wait_for(SOON, "four failures", async || manager.metrics().await.get(failed) == 4.0).await;
}

#[tokio::test]
async fn a_wrong_flag_ends_the_start_with_one_clear_line() {
    let (folder, ca) = (Folder::new("flags"), Authority::new("ca"));
    let path = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (good, other) = (ca.local(), ca.local());
    let cert = path(folder.write("cert", &good.cert));
    let key = path(folder.write("key", &good.key));
    let other = path(folder.write("other", &other.key));
    let empty = path(folder.write("empty", ""));
    let cut = path(folder.write("cut", &good.cert[..good.cert.len() / 2]));
    let odd = path(folder.write("odd", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"));
    let sealed = path(folder.write("sealed", good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")));
    let missing = path(folder.join("missing"));
    for (cert, key, says) in [
        (Some(&cert), None, "go together, and --tls-key-file is missing"),
        (None, Some(&key), "go together, and --tls-cert-file is missing"),
        (Some(&String::new()), Some(&key), "--tls-cert-file is empty"),
        (Some(&cert), Some(&String::new()), "--tls-key-file is empty"),
        (Some(&missing), Some(&key), "--tls-cert-file"),
        (Some(&cert), Some(&missing), "No such file"),
        (Some(&path(folder.path().to_owned())), Some(&key), "directory"),
        (Some(&empty), Some(&key), "holds no certificate in PEM"),
        (Some(&key), Some(&cert), "holds no certificate in PEM"),
        (Some(&cut), Some(&key), "not readable as PEM"),
        (Some(&odd), Some(&key), "certificate cannot be used"),
        (Some(&cert), Some(&empty), "holds no private key in PEM"),
        (Some(&cert), Some(&cert), "holds no private key in PEM"),
        (Some(&cert), Some(&sealed), "an encrypted one cannot be used"),
        (Some(&cert), Some(&other), "the key is not the one of the certificate in"),
    ] {
        let mut launch = Launch::new(binary("praetor-manager"))
            .env("HOME", folder.path())
            .args([format!("--device-token-secret={SECRET}"), format!("--addr=127.0.0.1:{}", free_port())]);
        for (flag, value) in [("cert", cert), ("key", key)] {
            launch = value.iter().fold(launch, |launch, value| launch.arg(format!("--tls-{flag}-file={value}")));
        }
        one_line("praetor-manager", &launch, &folder, says).await;
    }
    for (ca, says) in [
        (&missing, "missing: No such file"),
        (&path(folder.path().to_owned()), "directory"),
        (&empty, "holds no certificate in PEM"),
        (&key, "holds no certificate in PEM"),
        (&cut, "not readable as PEM"),
        (&odd, "certificate 1 cannot be used"),
    ] {
        let launch = Launch::new(binary("praetor-agent"))
            .args(["--device-name=tor1-01", "--gateway-url=https://127.0.0.1:1", "--device-token=secret-token"])
            .arg(format!("--gateway-ca-file={ca}"));
        one_line("praetor-agent", &launch, &folder, says).await;
    }
}

async fn one_line(program: &str, launch: &Launch, folder: &Folder, says: &str) {
    let mut process = Process::spawn(program, launch, &folder.join(&unique("run")));
    let exit = process.wait_exit(SOON).await;
    let log = process.log();
    assert_eq!(exit, Exit { code: Some(1), signal: None }, "{says}: {log}");
    let last = log.lines().last().unwrap();
    assert!(last.starts_with(&format!("{program}: ")) && last.contains(says), "{says:?} is not in:\n{log}");
    assert!(log.lines().count() == 1 && !log.contains("panicked") && !log.contains("secret-token"), "{log}");
}

#[tokio::test]
async fn an_expired_certificate_and_plain_http_are_warnings() {
    let stage = Stage::enter("warnings").await;
    let (folder, ca) = (Folder::new("warnings"), Authority::new("ca"));
    let served = Served::new(&folder, &ca.issue(&["127.0.0.1"], EXPIRED));
    let kubeconfig = stage.plane.service_account_kubeconfig().await;
    let start = |tls: bool| {
        // All interfaces, which the harness never uses.
        let mut launch = Launch::new(binary("praetor-manager"))
            .env("HOME", folder.path())
            .args([format!("--addr=:{}", free_port()), format!("--admin-addr=127.0.0.1:{}", free_port())])
            .args([format!("--identity={}", unique("warned")), format!("--device-token-secret={SECRET}")])
            .arg(format!("--kubeconfig={}", kubeconfig.display()));
        if tls {
            launch = launch.arg(format!("--tls-cert-file={}", served.cert.display()));
            launch = launch.arg(format!("--tls-key-file={}", served.key.display()));
        }
        Process::spawn("praetor-manager", &launch, &folder.join(&unique("run")))
    };
    for (tls, says, not) in [
        (true, "the certificate has expired", "plain HTTP"),
        (false, "come over plain HTTP", "certificate has expired"),
    ] {
        let mut manager = start(tls);
        wait_for(SOON, "a manager that serves", async || manager.log().contains("serving devices")).await;
        let log = manager.log();
        assert!(log.contains(says) && !log.contains(not), "{log}");
        manager.kill9();
        stage.plane.forget_managers().await;
    }
}
