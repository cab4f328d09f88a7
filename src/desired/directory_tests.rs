//! Edge: tests of the directory.

use super::*;
use crate::wire::canonical::SpecHash;
use crate::wire::etag::ETagBuilder;
use futures::poll;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::task::JoinSet;

const SETTINGS: Settings = Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false };

fn process(namespace: &str, name: &str, device: &str, revision: u64, generation: u64) -> Raw {
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "generation": generation, "resourceVersion": revision.to_string()},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": device}, "execution": {"backend": "initd", "command": ["x"], "env": []}},
        "status": {"pid": revision},
    }))
    .unwrap()
}

fn synced() -> (Arc<Directory>, mpsc::UnboundedReceiver<Key>) {
    let (directory, dirty) = Directory::new(SETTINGS);
    directory.finish_list(Kind::Switch, &HashSet::new(), 1);
    directory.finish_list(Kind::Process, &HashSet::new(), 1);
    (directory, dirty)
}

fn etag(directory: &Directory, device: &str) -> ETag {
    match directory.lookup(device) {
        Lookup::Known { etag, .. } => etag,
        other => panic!("{other:?}"),
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("it takes too long")
}

#[test]
fn nothing_is_answered_before_both_lists_are_in() {
    let (directory, _dirty) = Directory::new(SETTINGS);
    directory.apply_all(Kind::Process, vec![process("a", "p", "d", 3, 1)], 5);
    assert_eq!(directory.lookup("d"), Lookup::NotSynced);
    directory.finish_list(Kind::Process, &HashSet::from([Key { namespace: "a".into(), name: "p".into() }]), 5);
    assert_eq!(directory.lookup("d"), Lookup::NotSynced);
    directory.finish_list(Kind::Switch, &HashSet::new(), 5);
    assert!(matches!(directory.lookup("d"), Lookup::Known { revision: 3, .. }));
    assert_eq!(directory.lookup("e"), Lookup::Unknown);
    assert!(directory.body("e").is_none());
}

#[tokio::test]
async fn the_first_complete_lists_are_waited_for() {
    let (directory, _dirty) = Directory::new(SETTINGS);
    let (mut served, mut all) = (pin!(directory.listed(&Kind::SERVED)), pin!(directory.listed(&Kind::ALL)));
    assert!(poll!(&mut served).is_pending() && poll!(&mut all).is_pending());
    // A page is no list, and a watch's progress none either. An empty cluster's list has no number to go by.
    directory.apply_all(Kind::Process, vec![process("a", "p", "d", 3, 1)], 5);
    directory.advance(Kind::Switch, 5);
    directory.finish_list(Kind::Process, &HashSet::new(), 5);
    assert!(poll!(&mut served).is_pending());
    directory.finish_list(Kind::Switch, &HashSet::new(), 0);
    soon(served).await;
    assert!(poll!(&mut all).is_pending());
    directory.finish_list(Kind::Deployment, &HashSet::new(), 0);
    soon(all).await;
    // Whoever comes later does not wait.
    assert!(poll!(pin!(directory.listed(&Kind::ALL))).is_ready());
}

#[test]
fn a_body_holds_the_sorted_items_with_their_whole_specs() {
    let (directory, _dirty) = synced();
    directory.apply(Kind::Process, process("b", "p", "d", 2, 7));
    directory.apply(Kind::Process, process("a", "z", "d", 3, 1));
    let mut bare = process("a", "q", "d", 4, 1);
    bare.spec = to_raw_value(&json!({"deviceRef": {"name": "d", "namespace": "n"}})).unwrap();
    directory.apply(Kind::Process, bare);
    let body = directory.body("d").unwrap();
    let read: Value = serde_json::from_slice(&body.bytes).unwrap();
    assert_eq!((body.revision, body.etag), (4, etag(&directory, "d")));
    assert_eq!((&read["deviceName"], &read["heartbeatIntervalSeconds"]), (&json!("d"), &json!(15)));
    let items = read["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|item| item["name"].as_str().unwrap()).collect::<Vec<_>>(), ["q", "z", "p"]);
    assert_eq!(items[0]["spec"], json!({"deviceRef": {"name": "d", "namespace": "n"}}), "nothing is made up");
    let spec: Value = serde_json::from_str(process("b", "p", "d", 2, 7).spec.get()).unwrap();
    assert_eq!(
        items[2],
        json!({"uid": "b-p", "namespace": "b", "name": "p", "generation": 7, "spec": spec, "specHash": SpecHash::of_spec(&spec).to_string()})
    );
    // What did not change is not encoded again, but the revision moves on.
    directory.apply(Kind::Process, process("b", "p", "d", 9, 7));
    let again = directory.body("d").unwrap();
    assert_eq!((again.bytes.as_ptr(), again.revision), (body.bytes.as_ptr(), 9));
    for name in [("a", "q"), ("a", "z"), ("b", "p")] {
        directory.delete(Kind::Process, &process(name.0, name.1, "d", 20, 1));
    }
    let empty = directory.body("d").unwrap();
    assert_eq!(&empty.bytes[..], br#"{"deviceName":"d","heartbeatIntervalSeconds":15,"items":[]}"#);
}

#[tokio::test]
async fn a_poll_wakes_when_the_entity_tag_changes_and_not_before() {
    let (directory, _dirty) = synced();
    directory.apply(Kind::Process, process("a", "p", "d", 2, 1));
    let known = etag(&directory, "d");
    {
        let mut poll = pin!(directory.changed("d", &known));
        let mut other = pin!(directory.changed("d", &known));
        assert!(poll!(&mut poll).is_pending() && poll!(&mut other).is_pending());
        // Its status, another device, a switch in the same namespace: nothing of that changes what it should run.
        directory.apply(Kind::Process, process("a", "p", "d", 3, 1));
        directory.apply(Kind::Process, process("a", "q", "e", 4, 1));
        let switch = json!({"metadata": {"namespace": "a", "name": "d", "resourceVersion": "5"}});
        directory.apply(Kind::Switch, serde_json::from_value(switch).unwrap());
        assert!(poll!(&mut poll).is_pending());
        directory.apply(Kind::Process, process("a", "p", "d", 6, 2));
        assert!(poll!(&mut poll).is_ready() && poll!(&mut other).is_ready());
    }
    assert!(directory.parked.is_empty());
    // Whoever comes with an old tag, or for nothing that is known, does not wait at all.
    assert!(poll!(pin!(directory.changed("d", &known))).is_ready());
    assert!(poll!(pin!(directory.changed("nobody", &known))).is_ready());
    assert!(directory.parked.is_empty());
}

#[tokio::test]
async fn a_change_that_was_taken_back_wakes_nobody_for_good() {
    let (directory, _dirty) = synced();
    directory.apply(Kind::Process, process("a", "p", "d", 2, 1));
    let known = etag(&directory, "d");
    let mut poll = pin!(directory.changed("d", &known));
    assert!(poll!(&mut poll).is_pending());
    directory.apply(Kind::Process, process("a", "p", "d", 3, 2));
    directory.apply(Kind::Process, process("a", "p", "d", 4, 1));
    assert!(poll!(&mut poll).is_pending());
    directory.delete(Kind::Process, &process("a", "p", "d", 5, 1));
    assert!(poll!(&mut poll).is_ready());
}

#[tokio::test]
async fn catching_up_waits_for_the_watch_of_processes_alone() {
    let (directory, _dirty) = synced();
    assert!(directory.synced_through("d", 0) && directory.synced_through("d", 1) && !directory.synced_through("d", 2));
    let mut waiting = pin!(directory.caught_up("d", 10));
    assert!(poll!(&mut waiting).is_pending());
    directory.advance(Kind::Switch, 50);
    directory.apply_all(Kind::Process, vec![process("a", "p", "d", 30, 1)], 40);
    directory.adopt(Kind::Process, process("a", "q", "d", 40, 1));
    directory.apply(Kind::Process, process("a", "r", "d", 9, 1));
    assert!(poll!(&mut waiting).is_pending() && !directory.synced_through("d", 10));
    directory.advance(Kind::Process, 12);
    assert!(poll!(&mut waiting).is_ready() && directory.synced_through("d", 12) && !directory.synced_through("d", 13));
    directory.advance(Kind::Process, 5);
    assert!(directory.synced_through("d", 12), "it never goes back");
    assert!(poll!(pin!(directory.caught_up("d", 12))).is_ready());
}

#[tokio::test]
async fn the_controller_hears_of_deployments() {
    let (directory, mut dirty) = synced();
    let deployment = json!({"metadata": {"namespace": "a", "name": "dep", "resourceVersion": "2"}});
    directory.apply(Kind::Deployment, serde_json::from_value(deployment).unwrap());
    directory.apply(Kind::Process, process("a", "dep-d", "d", 3, 1));
    let key = Key { namespace: "a".into(), name: "dep".into() };
    assert_eq!((dirty.try_recv(), dirty.try_recv()), (Ok(key.clone()), Ok(key)));
    directory.advance(Kind::Deployment, 9);
    assert!(dirty.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_while_everything_moves() {
    const GENERATIONS: u64 = 400;
    let (directory, _dirty) = synced();
    let devices = ["d0", "d1", "d2"];
    for (revision, device) in (2..).zip(devices) {
        directory.apply(Kind::Process, process("a", device, device, revision, 0));
    }
    let last = devices.map(|device| {
        let mut last = ETagBuilder::new(15);
        let spec: Value = serde_json::from_str(process("a", device, device, 0, 0).spec.get()).unwrap();
        last.item(
            &format!("a-{device}"),
            "a",
            device,
            i64::try_from(GENERATIONS).unwrap(),
            &SpecHash::of_spec(&spec).0,
        );
        last.finish()
    });
    let mut tasks = JoinSet::new();
    for (device, last) in devices.into_iter().zip(last).cycle().take(12) {
        let directory = directory.clone();
        tasks.spawn(async move {
            loop {
                let seen = etag(&directory, device);
                if seen == last {
                    return;
                }
                directory.changed(device, &seen).await;
                // What is sent always belongs together.
                let body = directory.body(device).unwrap();
                let state: DesiredState = serde_json::from_slice(&body.bytes).unwrap();
                let mut derived = ETagBuilder::new(state.heartbeat_interval_seconds);
                for item in &state.items {
                    derived.item(
                        &item.uid,
                        &item.namespace,
                        &item.name,
                        item.generation,
                        &SpecHash::parse(&item.spec_hash).unwrap().0,
                    );
                }
                assert_eq!(derived.finish(), body.etag);
            }
        });
    }
    let writer = directory.clone();
    tasks.spawn_blocking(move || {
        for generation in 1..=GENERATIONS {
            for device in devices {
                writer.apply(Kind::Process, process("a", device, device, 10 + generation, generation));
            }
            std::thread::yield_now();
        }
    });
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    assert!(directory.parked.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn polls_that_are_given_up_leave_nothing_behind() {
    let (directory, _dirty) = synced();
    directory.apply(Kind::Process, process("a", "p", "d", 2, 1));
    let known = etag(&directory, "d");
    for _ in 0..50 {
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let directory = directory.clone();
            tasks.spawn(async move { directory.changed("d", &known).await });
        }
        let all_parked = async {
            while directory.parked.get("d").is_none_or(|polls| polls.count < 16) {
                tokio::task::yield_now().await;
            }
        };
        soon(all_parked).await;
        soon(tasks.shutdown()).await;
        assert!(directory.parked.is_empty());
    }
}
