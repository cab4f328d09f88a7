//! Edge: tests of leaders against an apiserver in memory: two of them, and what one that lost the lead still does.

use super::super::apiserver::{Apiserver, Seen};
use super::*;
use crate::desired::index::{Kind, Settings};
use crate::ownership::lease::Lead;
use http::Method;
use prometheus::Registry;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

/// A replica that may be asked to lead. No watch feeds its directory: it is as stale as can be.
struct Replica {
    directory: Arc<Directory>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn metrics() -> Metrics {
    Metrics::register(&Registry::new()).unwrap()
}

fn directory() -> (Arc<Directory>, UnboundedReceiver<Key>) {
    let (directory, dirty) = Directory::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
    for kind in Kind::ALL {
        directory.finish_list(kind, &std::collections::HashSet::new(), 0);
    }
    (directory, dirty)
}

impl Replica {
    /// Leads as long as a lead lasts.
    fn leading(apiserver: &Arc<Apiserver>, who: &'static str, lead: &Lead) -> Self {
        let (directory, mut dirty) = directory();
        let leader = Leader::new(apiserver.client(who), lead.clone(), who.into());
        let stop = CancellationToken::new();
        let (shown, stopped) = (directory.clone(), stop.clone());
        let task = tokio::spawn(async move { controller::run(leader, shown, &mut dirty, metrics(), stopped).await });
        Self { directory, stop, task }
    }

    fn show(&self, kind: Kind, object: &Value) {
        self.directory.apply(kind, serde_json::from_value(object.clone()).unwrap());
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").unwrap();
    }
}

fn stage(devices: usize) -> (Arc<Apiserver>, Value) {
    let apiserver = Arc::new(Apiserver::default());
    for device in 0..devices {
        apiserver
            .put(&format!("networkswitches/s{device}"), json!({"metadata": {"labels": {"role": "tor"}}, "spec": {}}));
    }
    let spec = json!({"execution": {"backend": "initd", "command": ["a"]}, "artifact": {"type": "file", "url": "/a"}});
    let deployment = json!({"metadata": {}, "spec": {
        "selector": {"matchLabels": {"role": "tor"}}, "template": {"spec": spec}, "updateStrategy": {"type": "Recreate"}}});
    let deployment = apiserver.put("deviceprocessdeployments/d", deployment);
    (apiserver, deployment)
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_write(seen: &Seen) -> bool {
    seen.method != Method::GET
}

fn to_children(seen: &&Seen) -> bool {
    is_write(seen) && seen.path.starts_with("deviceprocesses")
}

/// Writes to children that had an effect, by what they did.
fn effects(apiserver: &Apiserver) -> Vec<(Method, String)> {
    let seen = apiserver.seen();
    let done = seen.iter().filter(to_children).filter(|seen| seen.code < 300);
    done.map(|seen| (seen.method.clone(), seen.path.clone())).collect()
}

fn complete(apiserver: &Apiserver, devices: usize) -> bool {
    let status = &apiserver.all("deviceprocessdeployments")[0]["status"];
    apiserver.all("deviceprocesses").len() == devices && status["currentNumberScheduled"] == devices
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_leaders_write_every_child_once() {
    const DEVICES: usize = 60;
    let (apiserver, deployment) = stage(DEVICES);
    let lead = Lead::unlimited();
    let one = Replica::leading(&apiserver, "one", &lead);
    let other = Replica::leading(&apiserver, "other", &lead);
    wait("every child is there", || complete(&apiserver, DEVICES)).await;
    let created = effects(&apiserver);
    assert_eq!(created.len(), DEVICES, "each once, and nothing else: {created:?}");
    let names: BTreeSet<_> =
        apiserver.all("deviceprocesses").iter().map(|child| child["metadata"]["name"].clone().to_string()).collect();
    assert_eq!(names, (0..DEVICES).map(|device| format!("\"d-s{device}\"")).collect());
    let seen = apiserver.seen();
    let tried: BTreeSet<_> = seen.iter().filter(to_children).map(|seen| seen.who).collect();
    assert_eq!(tried.len(), 2, "both tried");

    // Another spec, which both see at once.
    let mut edited = deployment.clone();
    edited["spec"]["template"]["spec"]["execution"]["command"] = json!(["b"]);
    let edited = apiserver.put("deviceprocessdeployments/d", edited);
    for replica in [&one, &other] {
        replica.show(Kind::Deployment, &edited);
    }
    let updated = || {
        let children = apiserver.all("deviceprocesses");
        children.iter().filter(|child| child["spec"]["execution"]["command"] == json!(["b"])).count()
    };
    wait("every child has the spec", || updated() == DEVICES).await;
    // Both find that there is nothing left to do.
    wait("the status is current", || apiserver.all("deviceprocessdeployments")[0]["status"]["observedGeneration"] == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let patched = effects(&apiserver).split_off(DEVICES);
    assert_eq!(patched.len(), DEVICES, "each once: {patched:?}");
    assert!(apiserver.all("deviceprocesses").iter().all(|child| child["metadata"]["generation"] == 2));

    let told: Vec<_> = apiserver.all("events").iter().map(|event| event["reason"].clone()).collect();
    let started = told.iter().filter(|reason| **reason == "RolloutStarted").count();
    assert_eq!(started, 2, "one for each spec: {told:?}");
    one.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lead_stops_every_write_and_the_next_leader_goes_on() {
    const DEVICES: usize = 200;
    const LAST: usize = 40;
    let (apiserver, _) = stage(DEVICES);
    let lead = Lead::unlimited();
    let (ending, writes) = (lead.clone(), AtomicUsize::new(0));
    *apiserver.before.lock() = Some(Box::new(move |seen: &Seen| {
        if to_children(&seen) && writes.fetch_add(1, Ordering::SeqCst) + 1 == LAST {
            ending.end();
        }
    }));
    let loser = Replica::leading(&apiserver, "loser", &lead);
    tokio::time::timeout(PATIENCE, loser.task).await.expect("it ends by itself").unwrap();
    let seen = apiserver.seen();
    let children = seen.iter().filter(to_children).count();
    // Those that were on their way when the lead ended, and no more.
    assert!((LAST..LAST + super::super::execute::CONCURRENCY).contains(&children), "{children}");
    let end = seen.iter().filter(|seen| is_write(seen)).skip_while(|seen| !to_children(seen)).skip(2 * LAST);
    assert!(end.clone().all(|seen| !seen.path.ends_with("/status")), "{:?}", end.collect::<Vec<_>>());

    // The next one begins with nothing but what it lists.
    *apiserver.before.lock() = None;
    let next = Replica::leading(&apiserver, "next", &Lead::unlimited());
    wait("every child is there", || complete(&apiserver, DEVICES)).await;
    assert_eq!(effects(&apiserver).len(), DEVICES);
    next.end().await;
    // Nobody who has lost the lead may write: not even once.
    let late = Replica::leading(&apiserver, "late", &lead);
    tokio::time::timeout(PATIENCE, late.task).await.expect("it does not even begin").unwrap();
    assert!(apiserver.seen().iter().all(|seen| seen.who != "late"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_plans_from_what_it_lists_not_from_what_it_remembers() {
    const DEVICES: usize = 5;
    let (apiserver, deployment) = stage(DEVICES);
    let first = Replica::leading(&apiserver, "first", &Lead::unlimited());
    wait("every child is there", || complete(&apiserver, DEVICES)).await;
    first.end().await;
    let before = effects(&apiserver).len();
    // Its watches showed the deployment and a switch that is gone by now, but no child.
    let (directory, mut dirty) = directory();
    let stale = json!({"metadata": {"namespace": "n", "name": "gone", "uid": "x", "resourceVersion": "1", "labels": {"role": "tor"}}});
    directory.apply(Kind::Switch, serde_json::from_value(stale).unwrap());
    directory.apply(Kind::Deployment, serde_json::from_value(deployment).unwrap());
    let leader = Leader::new(apiserver.client("second"), Lead::unlimited(), "second".into());
    let stop = CancellationToken::new();
    let (shown, stopped) = (directory.clone(), stop.clone());
    let second = tokio::spawn(async move { controller::run(leader, shown, &mut dirty, metrics(), stopped).await });
    wait("it has listed", || directory.read(|index| index.count(Kind::Process)) == DEVICES).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(effects(&apiserver).len(), before, "{:?}", apiserver.seen());
    stop.cancel();
    second.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_given_away_only_when_nothing_is_under_way() {
    const DEVICES: usize = 200;
    let (apiserver, _) = stage(DEVICES);
    let (directory, dirty) = directory();
    let ownership = Ownership::new("me");
    let stop = CancellationToken::new();
    let client = apiserver.client("me");
    let task = tokio::spawn(run(client, directory.clone(), ownership.clone(), dirty, metrics(), stop.clone()));
    let children = || apiserver.all("deviceprocesses").len();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(apiserver.seen().is_empty(), "who does not lead asks for nothing");
    // Taken away in the middle of the work, however fast that is.
    let (owner, writes) = (ownership.clone(), AtomicUsize::new(0));
    *apiserver.before.lock() = Some(Box::new(move |seen: &Seen| {
        if to_children(&seen) && writes.fetch_add(1, Ordering::SeqCst) + 1 == 20 {
            owner.publish(None);
        }
    }));
    ownership.publish(Some(Lead::unlimited()));
    wait("it works", || children() >= 19 && ownership.lead().borrow().is_none()).await;
    tokio::time::timeout(PATIENCE, ownership.drained()).await.expect("it drains");
    let done = apiserver.seen().len();
    assert!(children() < DEVICES, "it was stopped in the middle");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(apiserver.seen().len(), done, "nothing came after that");
    *apiserver.before.lock() = None;
    // What changes meanwhile is not lost.
    apiserver.put("networkswitches/late", json!({"metadata": {"labels": {"role": "tor"}}, "spec": {}}));
    ownership.publish(Some(Lead::unlimited()));
    wait("every child is there", || complete(&apiserver, DEVICES + 1)).await;
    assert_eq!(effects(&apiserver).len(), DEVICES + 1);
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await.expect("it ends").unwrap();
}
