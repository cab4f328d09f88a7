//! The harness itself: a real control plane starts, survives the loss of each of its parts, and what the library
//! says about it is true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use harness::controlplane::client_of;
use harness::{
    Cluster, ControlPlane, Exit, Folder, Kind, Launch, Metrics, Part, Process, Proxy, Recorder, scenario, unique,
    wait_for,
};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn metrics_are_read() {
    let metrics = Metrics::parse("# HELP a b\na{code=\"200\"} 3\na{code=\"304\",x=\"y z\"} 4.5\nab 1e3\nnonsense\n");
    assert_eq!(
        (metrics.get("a{code=\"200\"}"), metrics.sum("a"), metrics.get("ab"), metrics.sum("none")),
        (3.0, 7.5, 1000.0, 0.0)
    );
    assert!(metrics.has("a") && !metrics.has("b"));
}

#[tokio::test]
#[should_panic(expected = "for three; last state: counted to 2")]
async fn a_wait_tells_what_it_saw_last() {
    let mut count = 0;
    wait_for(Duration::from_millis(500), "three", async || {
        count = (count + 1).min(2);
        Err::<(), _>(format!("counted to {count}"))
    })
    .await;
}

#[tokio::test]
async fn a_child_is_stopped_seen_and_killed() {
    let folder = Folder::new("child");
    // What it says last shows that the trap is set.
    let launch = Launch::new("sh")
        .args(["-c", "trap 'exit 7' TERM; echo \"$COLOUR\"; echo \"${HOME-no home}\"; while :; do sleep 0.05; done"])
        .env("COLOUR", "red");
    let mut process = Process::spawn("sh", &launch, &folder.join("log"));
    wait_for(
        SOON,
        "its output",
        async || if process.log() == "red\nno home\n" { Ok(()) } else { Err(process.log_tail()) },
    )
    .await;
    assert!(process.rss() > 100_000 && process.exited().is_none());
    process.signal("TERM");
    assert_eq!(process.wait_exit(SOON).await, Exit { code: Some(7), signal: None });

    let mut process = Process::spawn("sleep", &Launch::new("sleep").arg("1000"), &folder.join("log"));
    assert_eq!(process.kill9(), Exit { code: None, signal: Some(9) });
    let path = folder.path().to_owned();
    drop(folder);
    assert!(!path.exists());
}

/// One test function: each control plane costs seconds on two cores.
#[tokio::test]
async fn a_control_plane_starts_and_survives() {
    let begun = Instant::now();
    let plane = ControlPlane::start().await;
    eprintln!("ready after {:.1} s", begun.elapsed().as_secs_f64());

    let kubectl = plane.kubectl();
    let namespaces = kubectl.run(&["get", "namespaces", "-o", "name"]).await;
    assert!(namespaces.lines().any(|line| line == "namespace/default"), "{namespaces}");
    assert!(kubectl.run(&["version"]).await.contains("Server Version: v1."));

    // The apiserver talks to etcd: what the library says about connections is not always empty.
    let remotes = plane
        .process(Part::Apiserver, |p| p.connections().into_iter().map(|(_, remote)| remote).collect::<Vec<_>>())
        .unwrap();
    assert!(remotes.iter().any(|remote| remote.ip().is_loopback()), "{remotes:?}");
    let rss = plane.process(Part::Apiserver, Process::rss).unwrap();
    eprintln!("apiserver holds {} MB", rss / 1_000_000);

    audit_counts(&plane).await;
    survives_losses(&plane).await;
    tokens_are_signed_and_rbac_holds(&plane).await;
    the_proxy_misbehaves(&plane).await;
    the_manager_is_no_admin(&plane).await;
    the_recorder_sees_every_version(&plane).await;
}

async fn audit_counts(plane: &ControlPlane) {
    let cluster = plane.cluster().await;
    let mark = plane.audit_mark();
    let namespace = cluster.namespace("audit").await;
    wait_for(SOON, "the creation in the audit log", async || {
        let audit =
            plane.audit_since(mark).by("admin").verb("create").resource("namespaces").name(&namespace).code(201);
        if audit.count() == 1 { Ok(()) } else { Err(plane.audit_since(mark).describe()) }
    })
    .await;
    assert_eq!(plane.audit_since(mark).by("admin").writes().count(), 1);
    assert_eq!(plane.audit_since(mark).by(harness::MANAGER_USER).count(), 0);
}

async fn survives_losses(plane: &ControlPlane) {
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("survivor").await;
    let kubectl = plane.kubectl();

    plane.kill(Part::Apiserver);
    assert!(
        !kubectl.output(&["get", "--raw=/api/v1/namespaces/default", "--request-timeout=1s"], None).await.ok,
        "a killed apiserver answered"
    );
    plane.restart(Part::Apiserver).await;
    kubectl.run(&["get", "namespace", &namespace]).await;

    plane.kill(Part::Etcd);
    plane.restart(Part::Etcd).await;
    kubectl.run(&["get", "namespace", &namespace]).await;

    plane.freeze(Part::Apiserver);
    assert!(
        !kubectl.output(&["get", "--raw=/api/v1/namespaces/default", "--request-timeout=1s"], None).await.ok,
        "a frozen apiserver answered"
    );
    plane.thaw(Part::Apiserver);
    plane.wait_ready().await;
    kubectl.run(&["get", "namespace", &namespace]).await;
}

async fn tokens_are_signed_and_rbac_holds(plane: &ControlPlane) {
    let kubectl = plane.kubectl();
    kubectl.run(&["-n", "default", "create", "serviceaccount", "nobody"]).await;
    let token = kubectl.run(&["-n", "default", "create", "token", "nobody"]).await;
    let as_nobody = |verb: &'static str, what: &'static str| {
        let (kubectl, token) = (kubectl.clone(), token.clone());
        async move {
            kubectl
                .output(
                    &[
                        "--kubeconfig=/dev/null",
                        "--insecure-skip-tls-verify",
                        "--server",
                        &plane.url(),
                        "--token",
                        token.trim(),
                        verb,
                        what,
                    ],
                    None,
                )
                .await
        }
    };
    let namespaces = as_nobody("get", "namespaces").await;
    assert!(!namespaces.ok && namespaces.stderr.contains("Forbidden"), "{namespaces:?}");
    assert!(namespaces.stderr.contains("system:serviceaccount:default:nobody"), "{namespaces:?}");
}

async fn the_proxy_misbehaves(plane: &ControlPlane) {
    let proxy = Proxy::start(plane.address()).await;
    let kubectl = plane.kubectl_as(&plane.kubeconfig_via(plane.admin_kubeconfig(), proxy.port()));
    let path = "--raw=/api/v1/namespaces/default";
    let (get, impatient) = (["get", path], ["get", path, "--request-timeout=1s"]);
    kubectl.run(&get).await;
    assert!(proxy.accepted() > 0);
    for (fault, name) in
        [(Proxy::cut as fn(&Proxy), "cut"), (Proxy::stall, "stall"), (Proxy::lose_answers, "lose answers")]
    {
        fault(&proxy);
        assert!(!kubectl.output(&impatient, None).await.ok, "{name}: an answer came through");
        proxy.drop_connections();
        proxy.resume();
        kubectl.run(&get).await;
    }
    // An answer that is lost on an open connection: the server has done what it was asked all the same.
    let through =
        Cluster { client: client_of(&plane.kubeconfig_via(plane.admin_kubeconfig(), proxy.port())).await.unwrap() };
    through.namespace("answer-kept").await;
    proxy.lose_answers();
    let lost = tokio::time::timeout(Duration::from_secs(1), through.namespace("answer-lost")).await;
    assert!(lost.is_err(), "the answer came through");
    let names = plane.kubectl().run(&["get", "namespaces", "-o", "name"]).await;
    assert_eq!(names.lines().filter(|line| line.starts_with("namespace/answer-")).count(), 2, "{names}");
}

async fn the_manager_is_no_admin(plane: &ControlPlane) {
    plane.install_crds().await;
    let kubectl = plane.kubectl_as(plane.service_account_kubeconfig().await);
    assert_eq!(
        kubectl.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await,
        harness::MANAGER_USER
    );
    kubectl.run(&["get", "networkswitches,deviceprocesses,deviceprocessdeployments", "--all-namespaces"]).await;
    for forbidden in [
        ["get", "secrets"],
        ["get", "customresourcedefinitions"],
        ["get", "namespaces"],
        ["delete", "networkswitches"],
        ["get", "nodes"],
    ] {
        let output = kubectl.output(&[forbidden[0], forbidden[1], "x"], None).await;
        assert!(!output.ok && output.stderr.contains("Forbidden"), "{forbidden:?}: {output:?}");
    }
}

async fn the_recorder_sees_every_version(plane: &ControlPlane) {
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("recorder").await;
    cluster.create(&scenario::switch(&namespace, &unique("before"), &[])).await;
    let recorder = Recorder::start(plane).await;

    let fleet = scenario::fleet(&unique("tor"), 200);
    let begun = Instant::now();
    scenario::create_switches(&cluster, &namespace, &fleet, &[("site", "a")]).await;
    eprintln!("200 switches in {:.2} s", begun.elapsed().as_secs_f64());
    cluster.label(Kind::Switch, &namespace, &fleet[7], "site", Some("b")).await;
    cluster.label(Kind::Switch, &namespace, &fleet[7], "site", None).await;
    cluster.delete(Kind::Switch, &namespace, &fleet[7]).await;
    cluster.wait_gone(Kind::Switch, &namespace, &fleet[7], SOON).await;

    wait_for(SOON, "the end of one switch on record", async || {
        recorder.history(Kind::Switch, &namespace, &fleet[7]).last().is_some_and(|s| s.deleted)
    })
    .await;
    let history = recorder.history(Kind::Switch, &namespace, &fleet[7]);
    let sites: Vec<_> = history.iter().map(|s| s.object["metadata"]["labels"]["site"].as_str()).collect();
    assert_eq!(sites, [Some("a"), Some("b"), None, None]);
    assert_eq!(recorder.of_kind(Kind::Switch).len(), fleet.len() + 3);
    assert_eq!(cluster.list_labelled(Kind::Switch, &namespace, "site=a").await.len(), fleet.len() - 1);

    // A break of its watch costs it nothing and repeats nothing.
    plane.restart(Part::Apiserver).await;
    cluster.label(Kind::Switch, &namespace, &fleet[8], "site", Some("b")).await;
    wait_for(SOON, "the change after the restart on record", async || {
        recorder.writes(Kind::Switch, &namespace, &fleet[8]) >= 2
    })
    .await;
    assert_eq!(recorder.of_kind(Kind::Switch).len(), fleet.len() + 4);
}
