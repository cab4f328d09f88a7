//! Two thousand children: beside a bare loop of creates, and a restart when they are all there.

use std::time::{Duration, Instant};

use super::harness::controlplane::client_of;
use super::harness::{Cluster, ControlPlane, Kind, MANAGER_USER, Manager, scenario, wait_for};
use super::heartbeats::settled;
use super::table::{Table, commas, median};

const CHILDREN: usize = 2_000;
const CONCURRENCIES: [usize; 4] = [8, 16, 32, 64];
const PAIRS: usize = 3;

/// Seconds that a bare loop takes for as many objects, each as the manager makes it.
async fn bare(plane: &ControlPlane, admin: &Cluster, concurrency: usize) -> f64 {
    let namespace = admin.namespace("bare").await;
    let names = scenario::fleet(&namespace, CHILDREN);
    // As the manager: the same account, no client-side limits.
    let cluster = Cluster { client: client_of(plane.service_account_kubeconfig().await).await.expect("a client") };
    let owner = serde_json::json!([{
        "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcessDeployment", "name": "agent", "uid": "6f1e9a52-4a53-4ad8-8f0a-0f4d5f2f1d11",
        "controller": true, "blockOwnerDeletion": true
    }]);
    let manifests: Vec<_> = names
        .iter()
        .map(|name| {
            let mut child =
                scenario::device_process(&namespace, &format!("agent-{name}"), name, scenario::process_spec("1.0.0"));
            child["metadata"]["labels"] =
                serde_json::json!({"app": "agent", scenario::ROLE: "tor", "apollo.azure.com/deviceName": name});
            child["metadata"]["ownerReferences"] = owner.clone();
            child
        })
        .collect();
    let begun = Instant::now();
    cluster.create_all(manifests, concurrency).await;
    let took = begun.elapsed().as_secs_f64();
    clean(admin, &namespace).await;
    took
}

/// Seconds from the deployment's acceptance to the last child's, by the apiserver's audit log.
async fn managed(plane: &ControlPlane, admin: &Cluster, namespace: &str) -> f64 {
    let mark = plane.audit_mark();
    admin
        .create(&scenario::deployment(namespace, "agent", &[(scenario::ROLE, "tor")], scenario::process_spec("1.0.0")))
        .await;
    wait_for(Duration::from_secs(120), "every child to exist", async || {
        let created =
            plane.audit_since(mark).by(MANAGER_USER).verb("create").resource("deviceprocesses").code(201).count();
        if created >= CHILDREN { Ok(()) } else { Err(format!("{created} exist")) }
    })
    .await;
    let audit = plane.audit_since(mark);
    let at = |entries: super::harness::Audit| entries.0.iter().map(|entry| micros(&entry.at)).fold(0.0, f64::max);
    let accepted = at(audit.clone().verb("create").resource("deviceprocessdeployments"));
    let last = at(audit.by(MANAGER_USER).verb("create").resource("deviceprocesses").code(201));
    (last - accepted) / 1e6
}

/// Microseconds since 1970 of a time with six digits.
fn micros(text: &str) -> f64 {
    let time = praetor::wire::time::parse(text).expect("RFC 3339");
    #[allow(clippy::cast_precision_loss)]
    let seconds = time.seconds as f64;
    seconds * 1e6 + f64::from(time.nanos) / 1e3
}

/// Removes a namespace's objects, so that every run meets the same apiserver.
async fn clean(admin: &Cluster, namespace: &str) {
    for kind in [Kind::Deployment, Kind::Process, Kind::Switch] {
        let deleted = admin
            .api(kind, namespace)
            .delete_collection(&kube::api::DeleteParams::default(), &kube::api::ListParams::default())
            .await;
        deleted.unwrap_or_else(|error| panic!("delete all {kind:?} of {namespace}: {error}"));
    }
}

/// See the module.
pub async fn fanout(table: &mut Table) {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let admin = plane.cluster().await;
    bare(&plane, &admin, 16).await; // the apiserver's first lap
    let mut best = (usize::MAX, f64::INFINITY);
    for concurrency in CONCURRENCIES {
        let took = bare(&plane, &admin, concurrency).await;
        eprintln!("   bare loop, {concurrency} at a time: {took:.2} s");
        if took < best.1 {
            best = (concurrency, took);
        }
    }
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut manager = None;
    for pair in 0..PAIRS {
        let floor = bare(&plane, &admin, best.0).await;
        let namespace = admin.namespace("fanout").await;
        scenario::create_switches(
            &admin,
            &namespace,
            &scenario::fleet(&namespace, CHILDREN),
            &[(scenario::ROLE, "tor")],
        )
        .await;
        let running = Manager::builder(&plane).await.start().await;
        settled(&plane, Duration::from_secs(1), Duration::from_secs(60)).await;
        let took = managed(&plane, &admin, &namespace).await;
        eprintln!("   pair {pair}: {took:.2} s, bare {floor:.2} s");
        ours.push(took);
        theirs.push(floor);
        ratios.push(floor / took);
        if pair + 1 == PAIRS {
            manager = Some(running);
        } else {
            drop(running);
            clean(&admin, &namespace).await;
        }
    }
    let ratio = median(ratios);
    let rate = |seconds: f64| commas(CHILDREN as f64 / seconds);
    table.gate(
        format!("fan-out of {} children beside a bare loop of creates ({} at a time, the best of 8, 16, 32, 64), median of {PAIRS} pairs", commas(CHILDREN as f64), best.0),
        format!("{} : {} a second = {ratio:.2} ×", rate(median(ours)), rate(median(theirs))),
        "≥ 0.90 ×",
        ratio >= 0.90,
    );

    let mut manager = manager.expect("the last one");
    settled(&plane, Duration::from_secs(5), Duration::from_secs(60)).await;
    let mark = plane.audit_mark();
    manager.restart().await;
    // One window of staleness and the repairs after it are over.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes = plane.audit_since(mark).by(MANAGER_USER).writes();
    if writes.count() > 0 {
        eprintln!("{}", writes.describe().lines().take(20).collect::<Vec<_>>().join("\n"));
    }
    table.gate(
        format!("writes after a restart with {} children that are right, 60 s", commas(CHILDREN as f64)),
        writes.count().to_string(),
        "0 writes",
        writes.count() == 0,
    );
}
