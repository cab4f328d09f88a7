//! The manager as an operator meets it: starts that fail in one clear line, an end that loses nothing, metrics, logs,
//! subcommands, and a crowd that means it ill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "operations/abuse.rs"]
mod abuse;
mod harness;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::controlplane::{ControlPlane, repository};
use harness::device::derived_token;
use harness::programs::{SECRET, binary};
use harness::scenario::{self, device_process, heartbeat, process_spec, report_running, switch};
use harness::stage::{desires, known};
use harness::{
    Connection, Device, Exit, Folder, Kind, Launch, Manager, Process, Stage, condition_status, free_port, unique,
    wait_for,
};
use http::Method;
use praetor::wire::canonical::SpecHash;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(15);

/// praetor-manager with these arguments, and nothing else but a home of its own.
fn launch(folder: &Folder, args: &[&str]) -> Launch {
    Launch::new(binary("praetor-manager")).env("HOME", folder.path()).args(args.iter().copied())
}

/// Runs it to its end; the exit code and what it wrote, standard error included.
async fn run(launch: &Launch, folder: &Folder, deadline: Duration) -> (Exit, String) {
    let log = folder.join(&unique("run"));
    let mut process = Process::spawn("praetor-manager", launch, &log);
    let exit = process.wait_exit(deadline).await;
    (exit, process.log())
}

#[tokio::test]
async fn a_start_that_fails_ends_with_one_clear_line() {
    let stage = Stage::enter("starts").await;
    let folder = Folder::new("starts");
    let good = stage.plane.service_account_kubeconfig().await.to_str().unwrap().to_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let missing = path(&folder.join("missing"));
    let garbage = path(&folder.write("garbage", "{[}\n\u{1}"));
    let empty = path(&folder.write("empty", ""));
    let no_cluster =
        path(&folder.write("kubeconfig", "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n"));
    let ports = || [format!("--addr=127.0.0.1:{}", free_port()), format!("--admin-addr=127.0.0.1:{}", free_port())];
    let secret = format!("--device-token-secret={SECRET}");
    let kubeconfig = format!("--kubeconfig={good}");
    let cases: Vec<(Vec<String>, &str, &str)> = vec![
        (vec![], "", "no way for devices to authenticate"),
        (vec![], "APOLLO_GATEWAY_TOKEN_SECRET=", "APOLLO_GATEWAY_TOKEN_SECRET is empty"),
        (vec![], "APOLLO_GATEWAY_TOKEN=", "APOLLO_GATEWAY_TOKEN"),
        (vec!["--device-token=".into()], "", "--device-token"),
        (vec!["--device-token-secret=".into()], "", "--device-token-secret is empty"),
        (vec![format!("--device-token-file={missing}")], "", "missing"),
        (vec![format!("--device-token-file={empty}")], "", "empty"),
        (vec![format!("--device-token-secret-file={}", path(folder.path()))], "", "directory"),
        (vec![format!("--device-tokens-file={garbage}")], "", "garbage"),
        (vec!["--insecure-no-auth".into(), secret.clone()], "", "--insecure-no-auth cannot be combined"),
        (vec!["--insecure-no-auth".into()], "APOLLO_GATEWAY_TOKEN=x", "--insecure-no-auth cannot be combined"),
        (vec![secret.clone(), format!("--kubeconfig={missing}")], "", "missing"),
        (vec![secret.clone(), format!("--kubeconfig={garbage}")], "", "garbage"),
        (vec![secret.clone(), format!("--kubeconfig={empty}")], "", "empty"),
        (vec![secret.clone(), format!("--kubeconfig={no_cluster}")], "", "kubeconfig"),
        (vec![secret.clone()], "", "--kubeconfig"),
        (vec![secret.clone(), "--kubeconfig=".into()], "", "no way to a cluster"),
        (vec![secret.clone(), kubeconfig.clone(), "--log-level=nonsense=x=y".into()], "", "--log-level"),
    ];
    for (args, variable, says) in cases {
        let ports = ports();
        let mut launch = launch(&folder, &[ports[0].as_str(), ports[1].as_str()]).args(args.clone());
        if let Some((key, value)) = variable.split_once('=') {
            launch = launch.env(key, value);
        }
        let (exit, log) = run(&launch, &folder, SOON).await;
        one_line(exit, &log, says);
    }
    for flag in ["--addr", "--admin-addr"] {
        let other = if flag == "--addr" { "--admin-addr" } else { "--addr" };
        let free = format!("127.0.0.1:{}", free_port());
        let (exit, log) =
            run(&launch(&folder, &[flag, &taken, other, &free, &secret, &kubeconfig]), &folder, SOON).await;
        one_line(exit, &log, &taken);
        assert!(log.contains(flag) && log.contains("in use"), "{log}");
    }

    // What the flags' own grammar refuses.
    for args in [
        ["--addr", "nonsense"],
        ["--addr", ":99999"],
        ["--admin-addr", "localhost"],
        ["--default-heartbeat-seconds", "0"],
        ["--default-heartbeat-seconds", "x"],
        ["--stale-multiplier", "1"],
        ["--access-log", "some"],
        ["--log-format", "xml"],
        ["--no-such-flag", "1"],
        ["--max-connections", "0"],
        ["surprise", "x"],
    ] {
        let (exit, log) = run(&launch(&folder, &args), &folder, SOON).await;
        assert_eq!(exit.code, Some(2), "{log}");
        let first = log.lines().next().unwrap();
        assert!(first.starts_with("error: ") && (first.contains(args[0]) || first.contains(args[1])), "{log}");
    }

    // An identity without rights: what is missing, and where it is defined.
    let kubectl = stage.plane.kubectl();
    kubectl.run(&["-n", &stage.namespace, "create", "serviceaccount", "nobody"]).await;
    let token = kubectl.run(&["-n", &stage.namespace, "create", "token", "nobody"]).await;
    for (token, says) in [(token.trim(), "config/rbac"), ("expired", "apiserver")] {
        let text = std::fs::read_to_string(&good).unwrap();
        let old = text.split("token: '").nth(1).unwrap().split('\'').next().unwrap();
        let nobody = format!("--kubeconfig={}", path(&folder.write("nobody", text.replace(old, token))));
        let ports = ports();
        let (exit, log) = run(&launch(&folder, &[&ports[0], &ports[1], &secret, &nobody]), &folder, SOON).await;
        one_line(exit, &log, says);
        assert!(!log.contains(token.trim()), "a credential is in the log: {log}");
    }
}

#[track_caller]
fn one_line(exit: Exit, log: &str, says: &str) {
    assert_eq!(exit.code, Some(1), "{says}: {log}");
    let last = log.lines().last().unwrap();
    assert!(
        last.starts_with("praetor-manager: ") && last.contains(says) && last.len() < 500,
        "{says:?} is not in the last line of:\n{log}"
    );
    assert_eq!(log.lines().filter(|line| line.starts_with("praetor-manager: ")).count(), 1, "{log}");
    assert!(!log.contains("panicked") && !log.contains("RUST_BACKTRACE"), "{log}");
}

#[tokio::test]
async fn a_cluster_without_the_crds_or_without_an_apiserver() {
    let plane = ControlPlane::start().await;
    let folder = Folder::new("nothing");
    let kubeconfig = plane.service_account_kubeconfig().await;
    let args = |kubeconfig: &Path| {
        launch(
            &folder,
            &[&format!("--addr=127.0.0.1:{}", free_port()), &format!("--admin-addr=127.0.0.1:{}", free_port())],
        )
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--device-token=x")
    };
    let (exit, log) = run(&args(kubeconfig), &folder, SOON).await;
    one_line(exit, &log, "CRDs");
    assert!(log.contains("kubectl apply"), "{log}");

    // Nobody listens there: it tries for a while, says so, and then gives up; SIGTERM ends the waiting at once.
    let nobody = plane.kubeconfig_via(kubeconfig, free_port());
    let mut waiting = Process::spawn("praetor-manager", &args(&nobody), &folder.join("waiting"));
    let begun = Instant::now();
    let launch = args(&nobody);
    let giving_up = run(&launch, &folder, Duration::from_secs(90));
    let stopped = async {
        wait_for(SOON, "a warning", async || waiting.log().contains("WARN")).await;
        waiting.signal("TERM");
        waiting.wait_exit(Duration::from_secs(5)).await
    };
    let ((exit, log), stopped) = tokio::join!(giving_up, stopped);
    assert_eq!(stopped.code, Some(0), "{}", waiting.log());
    one_line(exit, &log, "cannot be reached");
    assert!(begun.elapsed() > Duration::from_secs(30), "it gave up after {:?}", begun.elapsed());
    assert!(log.lines().count() < 60, "{log}");
}

#[tokio::test]
async fn sigterm_answers_flushes_and_ends() {
    let stage = Stage::enter("sigterm").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let mut manager = Manager::builder(stage.plane).await.start().await;
    let device = manager.device(&unique("tor"));
    cluster.create(&switch(namespace, &device.name, &[])).await;
    let object = cluster.create(&device_process(namespace, "p", &device.name, process_spec("1"))).await;
    desires(&device, &[&format!("{namespace}/p")]).await;
    known(&device).await;
    let hash = SpecHash::of_spec(&object["spec"]).to_string();
    let mut report = report_running(1, "boot", namespace, "p", &hash);
    device.report(&report).await.expect(200);
    // Counters wait for up to a minute.
    (report["sequence"], report["observations"][0]["restartCount"]) = (json!(2), json!(7));
    device.report(&report).await.expect(200);
    let restarts = async || cluster.get(Kind::Process, namespace, "p").await.unwrap()["status"]["restartCount"].clone();
    assert_eq!(restarts().await, 0);
    let tag = device.desired().await.etag().to_owned();
    let polls: Vec<_> = (0..10)
        .map(|_| {
            let (device, tag) = (device.clone(), tag.clone());
            tokio::spawn(async move { (device.desired_unless(&tag, 60).await, Instant::now()) })
        })
        .collect();
    wait_for(SOON, "ten parked polls", async || manager.metrics().await.get("praetor_longpolls_parked") == 10.0).await;
    // A connection that does nothing holds nothing up.
    let _idle = Connection::open(manager.address()).await.unwrap();

    let told = Instant::now();
    manager.sigterm();
    for poll in polls {
        let (answer, at) = poll.await.unwrap();
        let answer = answer.expect(304);
        assert_eq!(answer.etag(), tag);
        assert!(at - told < Duration::from_secs(3), "{:?}", at - told);
    }
    assert_eq!(
        manager.wait_exit(Duration::from_secs(10)).await,
        Exit { code: Some(0), signal: None },
        "{}",
        manager.process.log_tail()
    );
    assert!(told.elapsed() < Duration::from_secs(10));
    assert_eq!(restarts().await, 7);
    assert_eq!(condition_status(&cluster.get(Kind::Process, namespace, "p").await.unwrap(), "AgentConnected"), "True");
    assert!(device.try_send(Method::GET, &device.path("desired"), &[], "").await.is_err());

    // SIGINT is the same.
    let mut again = Manager::builder(stage.plane).await.start().await;
    again.process.signal("INT");
    assert_eq!(again.wait_exit(Duration::from_secs(10)).await.code, Some(0));
}

/// Names that contract.md §5 promises.
const METRICS: [&str; 16] = [
    "praetor_desired_requests_total",
    "praetor_reports_total",
    "praetor_status_patches_total",
    "praetor_status_queue_depth",
    "praetor_status_queue_oldest_seconds",
    "praetor_events_total",
    "praetor_longpolls_parked",
    "praetor_devices",
    "praetor_owned_devices",
    "praetor_leader",
    "praetor_members",
    "praetor_forwards_total",
    "praetor_staleness_held",
    "praetor_watch_last_event_seconds",
    "praetor_reconcile_seconds",
    "praetor_build_info",
];

#[tokio::test]
async fn metrics_are_there_from_the_start_and_name_no_device() {
    let stage = Stage::enter("metrics").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let manager = Manager::builder(stage.plane).await.env("POD_NAME", "").start().await;
    let page = manager.admin("/metrics").await.expect(200);
    assert!(page.header("content-type").starts_with("text/plain"), "{}", page.header("content-type"));
    let text = page.text();
    let helped: BTreeSet<_> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# HELP ")?.split_once(' '))
        .filter(|(_, help)| help.len() > 10)
        .map(|(name, _)| name)
        .collect();
    let typed: Vec<_> = text.lines().filter_map(|l| Some(l.strip_prefix("# TYPE ")?.split_once(' ')?.0)).collect();
    for name in METRICS.iter().chain(&typed) {
        assert!(helped.contains(name), "{name} has no help");
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} has no series");
    }
    for series in [
        "praetor_devices{state=\"connected\"}",
        "praetor_devices{state=\"stale\"}",
        "praetor_devices{state=\"never\"}",
        "praetor_desired_requests_total{code=\"304\"}",
        "praetor_desired_requests_total{code=\"200\"}",
        "praetor_leader",
        "praetor_members",
        "praetor_build_info{version=\"0.1.0\"}",
    ] {
        assert!(text.lines().any(|line| line.starts_with(series)), "{series} is missing");
    }

    // They count.
    let names = scenario::fleet(&unique("counted"), 5);
    scenario::create_switches(cluster, namespace, &names, &[]).await;
    cluster.create(&scenario::deployment(namespace, "agent", &[], process_spec("1"))).await;
    for name in &names {
        let device = manager.device(name);
        let body = desires(&device, &[&format!("{namespace}/agent-{name}")]).await;
        device
            .report(&report_running(
                1,
                "boot",
                namespace,
                &format!("agent-{name}"),
                body["items"][0]["specHash"].as_str().unwrap(),
            ))
            .await
            .expect(200);
    }
    let before = manager.metrics().await;
    let device = manager.device(&names[0]);
    let tag = device.desired().await.etag().to_owned();
    for _ in 0..9 {
        device.desired_unless(&tag, 0).await.expect(304);
    }
    Device { token: "x".into(), ..device.clone() }.desired().await.expect(401);
    manager.device("unheard-of-device").desired().await.expect(404);
    device.report(&heartbeat(2, "boot")).await.expect(200);
    device.connect().await.expect(200);
    let after = manager.metrics().await;
    for (series, more) in [
        ("praetor_desired_requests_total{code=\"304\"}", 9.0),
        ("praetor_desired_requests_total{code=\"200\"}", 1.0),
        ("praetor_desired_requests_total{code=\"401\"}", 1.0),
        ("praetor_desired_requests_total{code=\"404\"}", 1.0),
        ("praetor_reports_total{code=\"200\"}", 2.0),
        ("praetor_status_patches_total{result=\"ok\"}", 0.0),
    ] {
        assert_eq!(after.get(series) - before.get(series), more, "{series}");
    }
    // Five children and five switches.
    assert!(after.get("praetor_status_patches_total{result=\"ok\"}") >= 10.0);
    wait_for(SOON, "gauges and events", async || {
        let now = manager.metrics().await;
        let events = now.get("praetor_events_total{reason=\"AgentConnected\",result=\"ok\"}");
        let (owned, there) = (now.get("praetor_owned_devices"), now.get("praetor_devices{state=\"connected\"}"));
        if (events, owned, there) == (5.0, 5.0, 5.0) { Ok(()) } else { Err(format!("{events} {owned} {there}")) }
    })
    .await;
    let text = manager.admin("/metrics").await.text();
    for word in names.iter().map(String::as_str).chain(["unheard-of-device", namespace, "agent-"]) {
        assert!(!text.contains(word), "{word} is in the metrics");
    }

    // The admin port's other pages; none of the device port's.
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        (&*format!("/debug/device?name={}", names[0]), 200),
        ("/debug/device?name=nobody", 404),
        ("/", 404),
        (&*device.path("desired"), 404),
    ] {
        assert_eq!(manager.admin(path).await.status, status, "{path}");
    }
    assert!(!manager.admin(&format!("/debug/device?name={}", names[0])).await.text().contains(&device.token));
}

#[tokio::test]
async fn logs_tell_the_story_and_no_secret() {
    let stage = Stage::enter("logs").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let mut all = String::new();
    for mode in ["default", "errors", "all", "off"] {
        let mut builder = Manager::builder(stage.plane).await.args(&["--log-format=json"]);
        if mode != "default" {
            builder = builder.args(&["--access-log", mode]);
        }
        let mut manager = builder.start().await;
        let device = manager.device(&unique("told"));
        cluster.create(&switch(namespace, &device.name, &[])).await;
        let object = cluster.create(&device_process(namespace, &device.name, &device.name, process_spec("1"))).await;
        desires(&device, &[&format!("{namespace}/{}", device.name)]).await;
        let tag = device.desired().await.etag().to_owned();
        let hash = SpecHash::of_spec(&object["spec"]).to_string();
        device.report(&report_running(1, "boot", namespace, &device.name, &hash)).await.expect(200);
        for _ in 0..20 {
            device.desired_unless(&tag, 0).await.expect(304);
            device.report(&heartbeat(2, "boot")).await.expect(200);
        }
        Device { token: "a-guessed-token".into(), ..device.clone() }.desired().await.expect(401);
        device.send(Method::POST, &device.path("report"), &[], "{\"secretish\": \"body-text\"").await.expect(400);
        device.send(Method::GET, "/no\u{7f}-such-path".replace('\u{7f}', "%0a").as_str(), &[], "").await.expect(404);
        manager.sigterm();
        assert_eq!(manager.wait_exit(Duration::from_secs(10)).await.code, Some(0));

        let log = manager.log();
        let lines: Vec<Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
        for line in &lines {
            for member in ["timestamp", "level", "target"] {
                assert!(line[member].is_string(), "{member}: {line}");
            }
        }
        let about: Vec<_> = lines.iter().filter(|line| line["device"] == *device.name).collect();
        let requests: Vec<_> = about.iter().filter(|line| line["status"].is_u64()).collect();
        let codes = |code: u16| requests.iter().filter(|line| line["status"] == code).count();
        let (ok, unchanged, bad, refused) = match mode {
            "all" => (21..1_000, 20..21, 1..2, 1..2),
            "off" => (0..1, 0..1, 0..1, 0..1),
            _ => (0..1, 0..1, 1..2, 1..2),
        };
        for (code, count) in [(200, ok), (304, unchanged), (400, bad), (401, refused)] {
            assert!(count.contains(&codes(code)), "{mode}: {} lines of {code}\n{log}", codes(code));
        }
        for line in &requests {
            assert!(
                line["route"].is_string() && line.as_object().unwrap().values().filter(|v| v.is_u64()).count() >= 2,
                "no route or duration: {line}"
            );
        }
        // The story of a device: its transitions; without a line for each poll.
        let story = about.len() - requests.len();
        assert!((1..20).contains(&story), "{mode}: {story} lines\n{log}");
        assert!(about.iter().any(|line| line["reason"] == "AgentConnected"), "{log}");
        if mode != "all" {
            assert!(lines.len() < 60, "{} lines", lines.len());
        }
        for secret in [SECRET, &device.token, "a-guessed-token", "body-text"] {
            assert!(!log.contains(secret), "{secret} is in the log");
        }
        let service_account = std::fs::read_to_string(stage.plane.service_account_kubeconfig().await).unwrap();
        assert!(!log.contains(service_account.split("token: '").nth(1).unwrap().split('\'').next().unwrap()));
        all.push_str(&log);
    }
    assert!(all.contains("stopped"));
    // Text for people is the default: no braces, no colour codes in a file.
    let manager = Manager::builder(stage.plane).await.args(&["--log-level=debug"]).start().await;
    let log = manager.log();
    assert!(!log.contains('\u{1b}') && log.lines().all(|line| !line.starts_with('{')), "{log}");
    assert!(!log.contains(SECRET) && !log.contains("Bearer"), "{log}");
}

#[tokio::test]
async fn subcommands() {
    let folder = Folder::new("subcommands");
    let run = async |launch: Launch| run(&launch, &folder, SOON).await;
    let secret_file = folder.write("secrets", "first\nsecond\n");
    let tokens_file = folder.write("tokens.yaml", "listed: own\nrevoked: \"\"\n");
    let (secrets, tokens) = (secret_file.to_str().unwrap(), tokens_file.to_str().unwrap());
    for (args, variable, token) in [
        (vec!["token", "tor1-01"], SECRET, derived_token(SECRET, "tor1-01")),
        (vec!["token", "tor1-01"], "new,old", derived_token("new", "tor1-01")),
        (
            vec!["token", "tor1-01", "--device-token-secret=a", "--device-token-secret=b"],
            "",
            derived_token("a", "tor1-01"),
        ),
        (vec!["token", "tor1-01", "--device-token-secret-file", secrets], "", derived_token("first", "tor1-01")),
        (vec!["token", "listed", "--device-tokens-file", tokens], "", "own".into()),
        (vec!["token", "tor1-01", "--device-token=shared"], "", "shared".into()),
    ] {
        let mut launch = launch(&folder, &args);
        if !variable.is_empty() {
            launch = launch.env("APOLLO_GATEWAY_TOKEN_SECRET", variable);
        }
        let (exit, output) = run(launch).await;
        assert_eq!((exit.code, output), (Some(0), format!("{token}\n")), "{args:?}");
    }
    for (args, says) in [
        (vec!["token", "Not A Name"], "device name"),
        (vec!["token", "tor1-01"], "authenticate"),
        (vec!["token", "revoked", "--device-tokens-file", tokens], "revoked"),
    ] {
        let mut launch = launch(&folder, &args);
        if says == "device name" {
            launch = launch.env("APOLLO_GATEWAY_TOKEN_SECRET", SECRET);
        }
        let (exit, output) = run(launch).await;
        one_line(exit, &output, says);
    }

    // The CRDs are the ones in the repository, in one stream or in files.
    let (exit, stream) = run(launch(&folder, &["crds"])).await;
    assert_eq!(exit.code, Some(0));
    let out = folder.join("crds");
    assert_eq!(run(launch(&folder, &["crds", "--output-dir", out.to_str().unwrap()])).await.0.code, Some(0));
    for plural in ["networkswitches", "deviceprocesses", "deviceprocessdeployments"] {
        let file = format!("azure.com_{plural}.yaml");
        let kept = std::fs::read_to_string(repository().join("crd").join(&file)).unwrap();
        assert_eq!(std::fs::read_to_string(out.join(&file)).unwrap(), kept);
        let tail = kept.split_once("apiVersion:").unwrap().1;
        assert!(stream.contains(tail), "{plural} is not in the stream");
    }

    let (exit, version) = run(launch(&folder, &["--version"])).await;
    assert_eq!((exit.code, version.as_str()), (Some(0), "praetor-manager 0.1.0\n"));
    let (exit, help) = run(launch(&folder, &["--help"])
        .env("APOLLO_GATEWAY_TOKEN_SECRET", SECRET)
        .env("APOLLO_GATEWAY_TOKEN", "hidden"))
    .await;
    assert_eq!(exit.code, Some(0));
    for flag in [
        "--addr",
        "--admin-addr",
        "--kubeconfig",
        "--device-token",
        "--device-token-file",
        "--device-token-secret",
        "--device-token-secret-file",
        "--device-tokens-file",
        "--insecure-no-auth",
        "--default-heartbeat-seconds",
        "--stale-multiplier",
        "--allow-cross-namespace",
        "--identity",
        "--access-log",
        "--log-format",
    ] {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
    assert!(!help.contains(SECRET) && !help.contains("hidden"), "{help}");
}
