//! What only containers have: images, and an engine that comes and goes.

use super::conformance::{OBEDIENT, Site};
use super::container::{Docker, PROGRAM, image};
use super::device::{self, until};
use praetor::agent::artifact::{FetchError, Fetched, Stage};
use praetor::agent::backend::container::Containers;
use praetor::agent::backend::{Activity, Backend, BackendError, Found, Launch};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{Artifact, ArtifactType, RestartPolicy};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(10);

fn launch(name: &str, version: u8, artifact: &Fetched) -> Launch {
    Launch {
        identity: Identity::new("cases", name),
        uid: format!("uid-{name}"),
        spec_hash: format!("sha256:{}", hex::encode([version; 32])),
        program: PROGRAM.to_owned(),
        args: vec![],
        env: vec![("MARK".to_owned(), name.to_owned())],
        working_dir: None,
        user: None,
        restart_policy: RestartPolicy::Always,
        artifact: artifact.clone(),
    }
}

async fn fetch(containers: &Containers, artifact: &Artifact, pin: Option<&str>) -> Result<String, FetchError> {
    containers.fetch(artifact, pin).unwrap().await.map(|fetched| fetched.digest)
}

async fn found(containers: &Containers, launch: &Launch) -> Found {
    containers.find(&launch.identity).await.unwrap().unwrap()
}

async fn run(containers: &Containers, launch: &Launch) -> i64 {
    containers.install(launch).await.unwrap();
    containers.start(launch, GRACE).await.unwrap();
    runs(containers, launch).await
}

async fn runs(containers: &Containers, launch: &Launch) -> i64 {
    until("it runs", || async {
        match containers.find(&launch.identity).await {
            Ok(Some(Found { activity: Activity::Running { pid, .. }, .. })) if device::alive(pid) => Some(pid),
            _ => None,
        }
    })
    .await
}

/// A tag is resolved once; what comes is what was promised; each cause has its reason.
pub async fn images(docker: &Docker) {
    let (containers, engine) = (docker.containers(), &docker.engine);
    let url = format!("oci://{}/team/agent:stable", engine.registry());
    let one = engine.image("team/agent:stable", "#!/bin/sh\n# one\n");
    assert_eq!(fetch(containers, &image(&url, None), None).await.as_ref(), Ok(&one));
    let two = engine.image("team/agent:stable", "#!/bin/sh\n# two\n");
    assert_eq!(fetch(containers, &image(&url, None), Some(&one)).await.as_ref(), Ok(&one), "pinned");
    assert_eq!(fetch(containers, &image(&url, None), None).await.as_ref(), Ok(&two), "asked again");
    let by_digest = format!("{}/team/agent:other@{one}", engine.registry());
    assert_eq!(fetch(containers, &image(&by_digest, None), None).await.as_ref(), Ok(&one));
    // Nothing of it is called by the tag, which might be somebody else's.
    assert_eq!(engine.docker(&["images", "--quiet", "--filter", "reference=*/team/agent:*"]), "");

    let sum = two.trim_start_matches("sha256:");
    assert_eq!(fetch(containers, &image(&url, Some(sum)), None).await.as_ref(), Ok(&two));
    let wrong = "0".repeat(64);
    for url in [&url, &by_digest] {
        let error = fetch(containers, &image(url, Some(&wrong)), None).await.unwrap_err();
        assert_eq!((error.stage, error.reason), (Stage::Verify, "ChecksumMismatch"), "{error}");
        assert!(error.message.contains(&wrong), "{error}");
    }

    let locked = format!("{}/team/agent@{one}", engine.locked());
    let (registry, missing) = (engine.registry(), "f".repeat(64));
    for (url, reason) in [
        (format!("{registry}/team/agent:none"), "NotFound"),
        (format!("{registry}/team/none:none"), "NotFound"),
        (format!("{registry}/team/agent@sha256:{missing}"), "NotFound"),
        ("127.0.0.1:1/team/agent:1".to_owned(), "RegistryUnreachable"),
        ("no-such-host.invalid/team/agent:1".to_owned(), "RegistryUnreachable"),
        (format!("{}/team/agent:stable", engine.locked()), "Unauthorized"),
        (format!("{registry}/Team/agent:stable"), "BadReference"),
    ] {
        let error = fetch(containers, &image(&url, None), None).await.unwrap_err();
        println!("{reason}: {error}");
        assert_eq!((error.stage, error.reason), (Stage::Download, reason), "{url}: {error}");
        assert_eq!(fetch(containers, &image(&url, None), None).await, Err(error), "equal causes, equal words");
    }
    let file = Artifact { r#type: ArtifactType::File, url: "/bin/sh".into(), checksum_sha256: None };
    let error = fetch(containers, &file, None).await.unwrap_err();
    assert!(error.message.contains("artifact.type"), "{error}");

    // Pulled by another name, so that it really comes from there.
    let known = docker.another(Some(engine.config()));
    assert_eq!(fetch(&known, &image(&locked, None), None).await.as_ref(), Ok(&one));
    let three = engine.image("team/secret:1", "#!/bin/sh\n# three\n");
    let secret = format!("{}/team/secret:1", engine.locked());
    assert_eq!(fetch(containers, &image(&secret, None), None).await.unwrap_err().reason, "Unauthorized");
    assert_eq!(fetch(&known, &image(&secret, None), None).await.as_ref(), Ok(&three));
    let lost = docker.another(Some("/nowhere/config.json".into()));
    let error = fetch(&lost, &image(&secret.replace("team/secret", "team/x"), None), None).await.unwrap_err();
    assert!(error.reason == "BadRegistryConfig" && error.message.contains("/nowhere/config.json"), "{error}");
}

/// What nobody needs goes, what somebody needs stays: a container, an operator.
pub async fn collection(docker: &Docker) {
    let (containers, engine) = (docker.containers(), &docker.engine);
    let mut digests = Vec::new();
    for name in ["keep", "used", "theirs", "drop"] {
        let digest = engine.image(&format!("shelf/{name}:1"), &format!("{OBEDIENT}# {name}\n"));
        let url = format!("{}/shelf/{name}:1", engine.registry());
        if name == "theirs" {
            engine.docker(&["pull", "--quiet", &url]);
        }
        assert_eq!(fetch(containers, &image(&url, None), None).await.as_ref(), Ok(&digest));
        digests.push(digest);
    }
    let used = launch("collection", 1, &Fetched { digest: digests[1].clone(), root: None });
    run(containers, &used).await;
    // Whoever tidies up by hand takes none of ours.
    engine.docker(&["image", "prune", "--force"]);

    let present = || {
        let lines =
            engine.docker(&["images", "--all", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}}"]);
        let names: BTreeSet<String> = lines.lines().map(str::to_owned).collect();
        let has = |digest: &String| names.iter().any(|line| line.contains(digest.trim_start_matches("sha256:")));
        (digests.iter().map(has).collect::<Vec<_>>(), names)
    };
    assert_eq!(present().0, [true, true, true, true]);
    for _ in 0..2 {
        containers.collect(&digests[..1].iter().cloned().collect()).await;
        let (there, names) = present();
        assert_eq!(there, [true, true, true, false], "{names:?}");
        assert!(names.iter().any(|line| line.contains("shelf/theirs:1")), "{names:?}");
        assert!(!names.iter().any(|line| line.contains("praetor.local/found")), "{names:?}");
    }
    containers.remove(&used.identity, GRACE).await.unwrap();
    containers.collect(&HashSet::new()).await;
    assert_eq!(present().0, [false, false, true, false], "{:?}", present().1);
}

/// While the engine is away nothing is said of the processes; when it is back they run, but for those that were stopped.
pub async fn an_engine_that_goes_and_comes(docker: &Docker) {
    let (containers, engine) = (docker.containers(), &docker.engine);
    let artifact = docker.artifact(OBEDIENT).0;
    let always = launch("always", 1, &artifact);
    let stopped = launch("stopped", 1, &artifact);
    let never = Launch { restart_policy: RestartPolicy::Never, ..launch("never", 1, &artifact) };
    let mut pid = run(containers, &always).await;
    run(containers, &stopped).await;
    containers.stop(&stopped.identity, GRACE).await.unwrap();
    device::signal(run(containers, &never).await, "USR1");
    let ended = until("it has ended", || async {
        Some(found(containers, &never).await).filter(|found| matches!(found.activity, Activity::Ended(_)))
    })
    .await;
    assert_eq!(ended.exits, 1);
    // One end that is counted, before the engine forgets it.
    device::signal(pid, "KILL");
    let counted =
        until("it is counted", || async { Some(found(containers, &always).await).filter(|found| found.exits == 1) })
            .await;
    runs(containers, &always).await;

    for order in ["halt", "kill"] {
        engine.order(order);
        let BackendError::Unavailable(why) = containers.probe().await.unwrap_err() else { panic!("it is away") };
        println!("{order}: {why}");
        assert!(why.contains(&engine.socket().display().to_string()), "{why}");
        let unavailable =
            |result: Result<(), BackendError>| assert_eq!(result, Err(BackendError::Unavailable(why.clone())));
        unavailable(containers.list().await.map(|_| ()));
        unavailable(containers.find(&always.identity).await.map(|_| ()));
        unavailable(containers.install(&always).await);
        unavailable(containers.start(&always, GRACE).await);
        unavailable(containers.check(&always, &["/bin/true".to_owned()], GRACE).await.map(|_| ()));
        let error = fetch(containers, &image(&format!("{}/team/agent:1", engine.registry()), None), None).await;
        assert_eq!(error.unwrap_err().reason, "BackendUnavailable");
        containers.collect(&HashSet::new()).await;

        // Nobody asks, and yet it is noticed.
        let mut order = Box::pin(async {
            let _ = tokio::time::timeout(Duration::from_millis(100), containers.changed()).await;
            engine.order("start");
            tokio::time::timeout(Duration::from_secs(60), containers.changed()).await
        });
        assert_eq!(order.as_mut().await, Ok(()));
        pid = runs(containers, &always).await;
        // A later agent knows the same.
        for containers in [containers, &docker.another(None)] {
            let now = found(containers, &always).await;
            assert_eq!(now.epoch, counted.epoch);
            // The engine's own end is nobody's; what was counted before it stays.
            assert!((1..3).contains(&now.exits), "{now:?}");
            assert_eq!(found(containers, &stopped).await.activity, Activity::Stopped);
            assert_eq!(found(containers, &never).await.activity, ended.activity);
        }
        device::shows_with_variable("MARK=always", pid).await;
        assert_eq!(device::roots_with_variable("MARK=always"), [pid], "two copies");
        assert!(
            device::roots_with_variable("MARK=stopped").is_empty()
                && device::roots_with_variable("MARK=never").is_empty()
        );
    }
    for launch in [always, stopped, never] {
        containers.remove(&launch.identity, GRACE).await.unwrap();
    }
}

/// The agent dies anywhere in an update, and another one goes on: never two copies, and always the new version in the end.
pub async fn agents_that_die_in_updates(docker: &Docker) {
    let artifact = docker.artifact(OBEDIENT).0;
    let done = Arc::new(AtomicBool::new(false));
    let watch = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                // Those that are alive before and after an instant, alive at that instant: first processes of containers.
                let first = |pid: &i64| device::arguments(*pid).first().is_some_and(|a| a.contains("docker-init"));
                let seen: Vec<i64> = device::roots_with_variable("MARK=dying").into_iter().filter(first).collect();
                most = most.max(seen.into_iter().filter(|pid| device::alive(*pid)).count());
            }
            most
        }
    });
    let mut longest = Duration::ZERO;
    for round in 0..30_u8 {
        let launch = launch("dying", round, &artifact);
        let first = docker.another(None);
        let patience = Duration::from_millis(rand::random_range(0..500));
        let update = async {
            first.install(&launch).await?;
            first.start(&launch, GRACE).await
        };
        let begun = Instant::now();
        let _ = tokio::time::timeout(patience, update).await;
        let second = docker.another(None);
        second.collect(&HashSet::from([artifact.digest.clone()])).await;
        run(&second, &launch).await;
        longest = longest.max(begun.elapsed());
        let now = found(&second, &launch).await;
        assert_eq!((now.running.as_ref(), now.exits), (Some(&launch.spec_hash), 0), "round {round}");
    }
    done.store(true, Ordering::Relaxed);
    assert_eq!(watch.join().unwrap(), 1, "copies at one time");
    println!("the longest of 30 updates with a death in it took {} ms", longest.as_millis());
    let last = launch("dying", 0, &artifact);
    docker.containers().remove(&last.identity, GRACE).await.unwrap();
    assert_eq!(docker.remains(&last.identity), Vec::<String>::new());
}
