//! Memory of the manager for each device that it knows, hears and has written about.

use std::time::Duration;

use super::harness::{ControlPlane, Folder, Kind, Manager, scenario, wait_for};
use super::heartbeats::{fleet, settled};
use super::table::{Table, commas};

/// Creates at a time.
const IN_FLIGHT: usize = 32;

/// See the module.
pub async fn memory(table: &mut Table) {
    let sizes = std::env::var("BENCH_DEVICES").unwrap_or_else(|_| "10000,50000".into());
    let sizes: Vec<usize> =
        sizes.split(',').map(|size| size.trim().parse().expect("BENCH_DEVICES is a list of numbers")).collect();
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let cluster = plane.cluster().await;
    let namespace = cluster.namespace("memory").await;
    let mut manager = Manager::builder(&plane).await.args(&["--status-writes-per-second=2000"]).start().await;
    let (mut known, mut grown, mut fresh) = (0, Vec::new(), Vec::new());
    cluster
        .create(&scenario::deployment(&namespace, "agent", &[(scenario::ROLE, "tor")], scenario::process_spec("1.0.0")))
        .await;
    for size in sizes {
        let names: Vec<String> = (known..size).map(|number| format!("tor-{number:05}")).collect();
        let switches = names.iter().map(|name| scenario::switch(&namespace, name, &[(scenario::ROLE, "tor")]));
        let begun = std::time::Instant::now();
        cluster.create_all(switches, IN_FLIGHT).await;
        known = size;
        wait_for(Duration::from_secs(900), "every child to exist", async || {
            let deployment = cluster.get(Kind::Deployment, &namespace, "agent").await.expect("the deployment");
            let scheduled = deployment["status"]["currentNumberScheduled"].as_u64().unwrap_or(0);
            if scheduled == size as u64 { Ok(()) } else { Err(format!("{scheduled} exist")) }
        })
        .await;
        eprintln!("   {size} switches and children after {:.0} s", begun.elapsed().as_secs_f64());
        // Every new device is heard and its status filled; connections are shared, so that they do not count.
        let folder = Folder::new("fleet");
        let mut agents =
            fleet(&manager, &folder, &names, &["--rounds=1", "--shared-connections=64", "--ramp-per-second=400"]);
        let exit = agents.wait_exit(Duration::from_secs(900)).await;
        assert_eq!(exit.code, Some(0), "{}", agents.log_tail());
        eprintln!("{}", agents.log_tail());
        wait_for(Duration::from_secs(300), "every status to be written", async || {
            let metrics = manager.metrics().await;
            let waiting = metrics.get("praetor_status_queue_depth");
            if waiting == 0.0 { Ok(()) } else { Err(format!("{waiting} wait")) }
        })
        .await;
        grown.push((size, manager.process.rss()));
        eprintln!("   {size} devices: {} MiB, {:.0} s", manager.process.rss() >> 20, begun.elapsed().as_secs_f64());
        manager.restart().await;
        settled(&plane, Duration::from_secs(3), Duration::from_secs(60)).await;
        fresh.push((size, manager.process.rss()));
        eprintln!("   {size} devices after a restart: {} MiB", manager.process.rss() >> 20);
    }
    let slope = |points: &[(usize, u64)]| {
        let ((few, small), (many, large)) = (points[0], points[points.len() - 1]);
        (large as f64 - small as f64) / (many - few) as f64
    };
    for (what, points) in [("after all were created, heard and written about", &grown), ("after a restart", &fresh)] {
        let each = slope(points);
        let sizes = points
            .iter()
            .map(|(size, bytes)| format!("{} MiB at {}", bytes >> 20, commas(*size as f64)))
            .collect::<Vec<_>>()
            .join(", ");
        table.gate(
            format!("resident memory of the manager for each device with one process, {what}"),
            format!("{} B ({sizes})", commas(each)),
            "≤ 2,048 B",
            each <= 2_048.0,
        );
    }
}
