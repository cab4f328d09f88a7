//! A crowd that means it ill.

use super::*;

/// Bytes as they are, and what comes back until the other side is done, or the deadline.
async fn raw(address: SocketAddr, bytes: &[u8], deadline: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(deadline, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_means_it_ill_harms_nobody() {
    let stage = Stage::enter("abuse").await;
    let (cluster, namespace) = (&stage.cluster, stage.namespace.as_str());
    let mut manager = Manager::builder(stage.plane).await.start().await;
    let names = scenario::fleet(&unique("live"), 5);
    scenario::create_switches(cluster, namespace, &names, &[]).await;
    let device = manager.device(&names[0]);
    for name in &names {
        let device = manager.device(name);
        known(&device).await;
        device.report(&heartbeat(1, "boot")).await.expect(200);
    }
    // Living devices, ten heartbeats a second each, on connections of their own; times in milliseconds.
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let refused = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hearts: Vec<_> = names
        .iter()
        .map(|name| {
            let (device, times, refused) = (manager.device(name), times.clone(), refused.clone());
            tokio::spawn(async move {
                for sequence in 2.. {
                    let begun = Instant::now();
                    match device
                        .try_send(Method::POST, &device.path("report"), &[], heartbeat(sequence, "boot").to_string())
                        .await
                    {
                        Ok(answer) if answer.status == 200 => times.lock().unwrap().push(begun.elapsed()),
                        other => refused.lock().unwrap().push(format!("{other:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    let crowded = AtomicUsize::new(0);
    // Once through everything before memory is measured: pools and caches have their size then.
    let unknown = async |from: usize, to: usize| {
        let work: Vec<_> = (0..16)
            .map(|lane| {
                let (address, path) = (manager.address(), manager.device("x"));
                tokio::spawn(async move {
                    let mut connection = Connection::open(address).await.unwrap();
                    for number in (from..to).filter(|number| number % 16 == lane) {
                        let name = format!("unknown-{number:05}");
                        // Half with a good token, half with none.
                        let token = if number % 2 == 0 { derived_token(SECRET, &name) } else { path.token.clone() };
                        let (method, route) =
                            [(Method::GET, "desired"), (Method::POST, "report"), (Method::POST, "connect")][number % 3]
                                .clone();
                        let sent = connection
                            .send(method, &format!("/v1/devices/{name}/{route}"), &[("x-device-token", &token)], "{}")
                            .await;
                        assert_eq!(sent.unwrap().status, if number % 2 == 0 { 404 } else { 401 });
                    }
                })
            })
            .collect();
        for lane in work {
            lane.await.unwrap();
        }
    };
    unknown(0, 500).await;
    let before = manager.process.rss();

    // 10,000 names that nobody knows.
    unknown(500, 10_500).await;
    // Slow-loris: 300 connections with half a head, 100 with a body that never comes, 100 with one that never ends.
    let mut slow = Vec::new();
    for number in 0..500 {
        let mut stream = TcpStream::connect(manager.address()).await.unwrap();
        let path = device.path("report");
        let head = match number {
            0..300 => format!("POST {path} HTTP/1.1\r\nhost: x\r\nx-slow: "),
            300..400 => format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nx-device-token: {}\r\ncontent-length: 1000\r\n\r\n{{",
                device.token
            ),
            _ => format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nx-device-token: {}\r\ntransfer-encoding: chunked\r\n\r\n",
                device.token
            ),
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let (mut endless, mut cut) = (slow.split_off(400), 0_usize);
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    for stream in &mut endless {
        // 1 MiB each, unless it is refused before.
        for _ in 0..64 {
            if !matches!(
                tokio::time::timeout(Duration::from_secs(5), stream.write_all(chunk.as_bytes())).await,
                Ok(Ok(()))
            ) {
                cut += 1;
                break;
            }
        }
    }
    for mut stream in endless {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        // A connection that is cut while more is on the way may lose the answer with it.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 413 ") || answer.starts_with("HTTP/1.1 503 "),
            "{answer}"
        );
        crowded.fetch_add(usize::from(answer.starts_with("HTTP/1.1 413 ")), Ordering::Relaxed);
    }
    eprintln!("{cut} endless bodies cut while they were sent, {} heard 413", crowded.load(Ordering::Relaxed));
    // All of the slow ones are cut off by the server itself.
    let mut closed = 0;
    for mut stream in slow {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(25), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a slow connection is still open after 25 s");
        closed += 1;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408 ") || answer.starts_with("HTTP/1.1 503 "),
            "{answer}"
        );
    }
    assert_eq!(closed, 400);

    // Garbage on the wire.
    let path = device.path("desired");
    let huge = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-y: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\n{}\r\n",
        (0..5_000).map(|n| format!("x-{n}: y\r\n")).collect::<String>()
    );
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(1 << 20));
    let both = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        device.path("report")
    );
    let garbage: [&[u8]; 10] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        huge.as_bytes(),
        many.as_bytes(),
        long.as_bytes(),
        both.as_bytes(),
    ];
    for bytes in garbage {
        let answer = raw(manager.address(), bytes, Duration::from_secs(3)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // Bodies of many forms, from a device that may speak.
    let hash = format!("sha256:{}", "0".repeat(64));
    for body in [
        format!("{{\"observations\":[{}]}}", vec!["{}"; 256].join(",")),
        format!("{{\"observations\":[{}]}}", vec!["1"; 257].join(",")),
        format!("{{\"a\":{}", "[".repeat(200_000)),
        "9".repeat(200_000),
        format!("{{\"sequence\":{}}}", "9".repeat(400)),
        format!("{{\"agentVersion\":\"{}\"}}", "\\u0000".repeat(30_000)),
        format!("{{\"bootId\":\"{}\",\"sequence\":1}}", "b".repeat(200_000)),
        json!({ "observations": [{ "namespace": "x".repeat(100_000), "name": "y", "observedSpecHash": hash }] })
            .to_string(),
    ] {
        let answer = device.send(Method::POST, &device.path("report"), &[], body).await;
        assert!([200, 400, 403].contains(&answer.status), "{} {}", answer.status, answer.text());
    }

    // Nothing of it was felt.
    let rss = manager.process.rss();
    let grown = rss.saturating_sub(before) / 1024 / 1024;
    for heart in &hearts {
        heart.abort();
    }
    let mut times = times.lock().unwrap().clone();
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    eprintln!("RSS {} MiB, grown by {grown} MiB; {} heartbeats, p99 {p99:?}", rss / 1024 / 1024, times.len());
    assert!(grown < 64, "RSS grew by {grown} MiB");
    assert_eq!(*refused.lock().unwrap(), Vec::<String>::new());
    assert!(times.len() > 200 && p99 < Duration::from_secs(1), "{} {p99:?}", times.len());
    assert_eq!(manager.process.exited(), None);
    let metrics = manager.metrics().await;
    assert_eq!((metrics.get("praetor_owned_devices"), metrics.sum("praetor_request_panics_total")), (5.0, 0.0));
    assert!(!manager.log().contains("panicked"), "{}", manager.process.log_tail());
    // What they called themselves is in no metric, and there is a version that could be cut to fit.
    let version = cluster.get(Kind::Switch, namespace, &device.name).await.unwrap()["status"]["agentVersion"]
        .as_str()
        .unwrap_or_default()
        .len();
    assert!(version <= 1024, "{version}");
}
