//! Every way to prove which device one is.

use super::*;

#[tokio::test]
async fn every_way_to_prove_who_one_is() {
    let stage = Stage::enter("auth").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let builder = async || Manager::builder(stage.plane).await.no_secret();
    let folder = Folder::new("auth");
    let (name, listed, revoked) = (unique("tor"), unique("listed"), unique("revoked"));
    for name in [&name, &listed, &revoked] {
        cluster.create(&switch(namespace, name, &[])).await;
    }
    let status = async |manager: &Manager, device: &str, token: &str| {
        Device { address: manager.address(), name: device.into(), token: token.into() }.desired().await.status
    };

    // One shared token, by flag and by variable.
    for manager in
        [builder().await.args(&["--device-token=shared"]), builder().await.env("APOLLO_GATEWAY_TOKEN", "shared")]
    {
        let manager = manager.start().await;
        for (token, expected) in [("shared", 200), ("", 401), ("other", 401), ("share", 401), ("shared2", 401)] {
            assert_eq!(status(&manager, &name, token).await, expected, "{token}");
        }
        assert_eq!(status(&manager, "nobody", "shared").await, 404);
    }

    // Several secrets, by flag and by variable: each verifies.
    let several = builder().await.args(&["--device-token-secret=new", "--device-token-secret=old"]);
    for manager in [several, builder().await.env("APOLLO_GATEWAY_TOKEN_SECRET", "new,old")] {
        let manager = manager.start().await;
        for (secret, device, expected) in
            [("new", &name, 200), ("old", &name, 200), ("new", &listed, 401), ("older", &name, 401)]
        {
            assert_eq!(status(&manager, &name, &derived_token(secret, device)).await, expected, "{secret} {device}");
        }
        assert_eq!(status(&manager, &name, "new").await, 401, "the secret is no token");
    }

    // The explicit opening: a warning, and everybody passes.
    let open = builder().await.args(&["--insecure-no-auth"]).start().await;
    assert_eq!((status(&open, &name, "").await, status(&open, &name, "anything").await), (200, 200));
    assert!(
        open.log().lines().any(|line| line.contains("WARN") && line.contains("insecure-no-auth")),
        "{}",
        open.log()
    );
    drop(open);

    // Files, all together: one device's own entry is the only judge of that device.
    let token_file = folder.write("token", "shared-1\n");
    let secret_file = folder.write("secrets", "secret-1\nsecret-0\n");
    let devices_file = folder.write("devices.yaml", format!("{listed}: own-1\n{revoked}: \"\"\n"));
    let paths = [&token_file, &secret_file, &devices_file].map(|path| path.to_str().unwrap());
    let flags =
        ["--device-token-file", paths[0], "--device-token-secret-file", paths[1], "--device-tokens-file", paths[2]];
    let manager = builder().await.args(&flags).start().await;
    let check = async |expected: &[(&str, String, u16)]| -> Result<(), String> {
        for (device, token, code) in expected {
            let got = status(&manager, device, token).await;
            if got != *code {
                return Err(format!("{device} {token}: {got}, not {code}"));
            }
        }
        Ok(())
    };
    let derived = |secret: &str, device: &str| derived_token(secret, device);
    check(&[
        (&name, "shared-1".into(), 200),
        (&name, derived("secret-1", &name), 200),
        (&name, derived("secret-0", &name), 200),
        (&name, "own-1".into(), 401),
        (&listed, "own-1".into(), 200),
        (&listed, "shared-1".into(), 401),
        (&listed, derived("secret-1", &listed), 401),
        (&revoked, String::new(), 401),
        (&revoked, "shared-1".into(), 401),
        (&revoked, derived("secret-1", &revoked), 401),
    ])
    .await
    .unwrap();

    // A keep-alive connection that was good before the change is judged anew, too.
    let mut connection = harness::Connection::open(manager.address()).await.unwrap();
    let mut old = async |path: String, token: &str| {
        connection.send(Method::GET, &path, &[("x-device-token", token)], "").await.unwrap().status
    };
    let path = format!("/v1/devices/{listed}/desired");
    assert_eq!(old(path.clone(), "own-1").await, 200);
    // Rotation: within 10 s of the change the new ones hold; nobody with a secret of both versions sees a 401.
    folder.write("token", "shared-2");
    folder.write("secrets", "secret-2\nsecret-1\n");
    folder.write("devices.yaml", format!("{listed}: own-2\n"));
    wait_for(Duration::from_secs(11), "the new files", async || {
        check(&[(&name, derived("secret-1", &name), 200)]).await.unwrap();
        check(&[
            (&name, "shared-2".into(), 200),
            (&name, "shared-1".into(), 401),
            (&name, derived("secret-2", &name), 200),
            (&name, derived("secret-0", &name), 401),
            (&listed, "own-2".into(), 200),
            (&listed, "own-1".into(), 401),
            (&revoked, "shared-2".into(), 200),
        ])
        .await
    })
    .await;
    assert_eq!(old(path, "own-1").await, 401);

    // A broken new version is logged, and the old one stays.
    folder.write("devices.yaml", "- no\n- map: at all\n");
    folder.write("secrets", "\n");
    std::fs::remove_file(&token_file).unwrap();
    wait_for(Duration::from_secs(11), "three complaints", async || {
        let log = manager.log();
        paths.iter().all(|path| log.lines().any(|line| line.contains("ERROR") && line.contains(path)))
    })
    .await;
    check(&[
        (&name, "shared-2".into(), 200),
        (&name, derived("secret-2", &name), 200),
        (&listed, "own-2".into(), 200),
        (&listed, "shared-2".into(), 401),
    ])
    .await
    .unwrap();

    // No token, wrong ones: no state.
    let metrics = manager.metrics().await;
    assert_eq!(metrics.get("praetor_devices{state=\"connected\"}"), 0.0);
    let log = manager.log();
    for secret in ["shared-1", "shared-2", "own-1", "own-2", "secret-1", "secret-2", &derived("secret-2", &name)] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn tokens_over_plain_http_beyond_loopback_are_a_warning() {
    let stage = Stage::enter("plain").await;
    let kubeconfig = stage.plane.service_account_kubeconfig().await.to_str().unwrap().to_owned();
    let folder = Folder::new("plain");
    let (device, admin) = (harness::free_port(), harness::free_port());
    let launch = |addr: String| {
        harness::Launch::new(harness::programs::binary("praetor-manager"))
            .env("APOLLO_GATEWAY_TOKEN_SECRET", SECRET)
            .args(["--kubeconfig", &kubeconfig, "--addr", &addr, "--admin-addr", &format!("127.0.0.1:{admin}")])
    };
    // `:PORT` means all interfaces.
    let mut process =
        harness::Process::spawn("praetor-manager", &launch(format!(":{device}")), &folder.join("beyond.log"));
    wait_for(SOON, "the warning", async || {
        assert_eq!(process.exited(), None, "{}", process.log_tail());
        if process.log().lines().any(|line| line.contains("WARN") && line.contains("HTTP")) {
            Ok(())
        } else {
            Err(process.log_tail())
        }
    })
    .await;
    for host in ["127.0.0.1", "[::1]"] {
        let address = format!("{host}:{device}").parse().unwrap();
        if host.starts_with('[') && std::net::TcpListener::bind("[::1]:0").is_err() {
            continue;
        }
        let answer =
            wait_for(SOON, host, async || request(address, Method::GET, "/v1/devices/x/desired", &[], "").await).await;
        assert!([401, 503].contains(&answer.status));
    }
    process.kill9();
    let mut process = harness::Process::spawn(
        "praetor-manager",
        &launch(format!("127.0.0.1:{device}")),
        &folder.join("loopback.log"),
    );
    wait_for(SOON, "readiness", async || {
        assert_eq!(process.exited(), None, "{}", process.log_tail());
        request(([127, 0, 0, 1], admin).into(), Method::GET, "/readyz", &[], "").await.is_ok_and(|a| a.status == 200)
    })
    .await;
    assert!(!process.log().contains("WARN"), "{}", process.log());
}
