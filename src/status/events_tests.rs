//! Edge: events that somebody else owes, against an apiserver that has none of them; time is paused.

use super::*;
use crate::desired::index::Settings;
use crate::desired::object::Raw;
use crate::ownership::members::Member;
use crate::wire::time;
use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;

/// Notes which events it is given, and knows no other.
fn apiserver(created: &Arc<Mutex<Vec<String>>>) -> Client {
    let created = created.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let created = created.clone();
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            let (code, answer) = if method == Method::POST {
                let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
                created.lock().push(event["regarding"]["name"].as_str().unwrap().to_owned());
                (201, event)
            } else {
                assert!(path.contains("/events/"), "{method} {path}");
                (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}))
            };
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

/// Twenty devices with a process that has just been connected, and one whose transition was long ago.
fn directory() -> Arc<Directory> {
    let (directory, _) = Directory::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
    for n in 0..21_u64 {
        let at = clock::unix_seconds() - if n == 20 { 3_600 } else { 5 };
        let process: Raw = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": format!("p{n}"), "uid": format!("u{n}"), "resourceVersion": (n + 1).to_string()},
            "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": format!("d{n}")}},
            "status": {"transitions": 1, "lastEvents": {"time": time::format(at), "reasons": ["AgentConnected"]}},
        }))
        .unwrap();
        directory.apply(Kind::Process, process);
    }
    directory
}

fn view(epoch: u64, members: &[(&str, u64)]) -> View {
    View::new(epoch, members.iter().map(|(name, incarnation)| Member::new(name, *incarnation, None)).collect(), "me")
}

fn mine(view: &View) -> BTreeSet<String> {
    (0..20).filter(|n| view.is_mine(device_hash(&format!("d{n}")))).map(|n| format!("p{n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn events_that_a_lost_replica_owes_are_written_by_the_owners() {
    let created = Arc::new(Mutex::new(Vec::new()));
    let metrics = StatusMetrics::register(&Registry::new()).unwrap();
    let events = Events::new(apiserver(&created), "me", Pace::new(100, metrics.clone()), metrics);
    let directory = directory();
    let nobody = view(1, &[]);
    let ownership = Ownership::fixed("me", nobody);
    let stop = CancellationToken::new();
    let task = tokio::spawn(events.look_after(directory.clone(), ownership.clone(), stop.clone()));
    let mut done = Vec::new();
    let mut expect = async |what: &str, of: BTreeSet<String>| {
        let wait = async {
            while created.lock().len() < done.len() + of.len() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Whatever else there would be has time to come.
            tokio::time::sleep(Duration::from_secs(5)).await;
        };
        timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", created.lock()));
        let all = created.lock().clone();
        assert_eq!(all[done.len()..].iter().cloned().collect::<BTreeSet<_>>(), of, "{what}");
        assert_eq!(all.len(), done.len() + of.len(), "{what}: once each");
        done = all;
    };

    expect("before the lists", BTreeSet::new()).await;
    for kind in [Kind::Switch, Kind::Process] {
        directory.finish_list(kind, &HashSet::from_iter(listed(kind)), 50);
    }
    expect("not joined", BTreeSet::new()).await;
    let both = view(2, &[("me", 7), ("other", 1)]);
    ownership.show(Arc::new(both.clone()));
    expect("joined", mine(&both)).await;
    ownership.show(Arc::new(view(3, &[("me", 7), ("other", 1), ("third", 1)])));
    expect("one came", BTreeSet::new()).await;
    let again = view(4, &[("me", 7), ("other", 2), ("third", 1)]);
    ownership.show(Arc::new(again.clone()));
    expect("one was started anew", mine(&again)).await;
    let alone = view(5, &[("me", 7)]);
    ownership.show(Arc::new(alone.clone()));
    expect("alone", mine(&alone)).await;
    assert_eq!(mine(&alone).len(), 20);
    stop.cancel();
    task.await.unwrap();
}

fn listed(kind: Kind) -> Vec<crate::desired::lean::Key> {
    let key = |n| crate::desired::lean::Key { namespace: "n".into(), name: format!("p{n}").into() };
    if kind == Kind::Process { (0..21).map(key).collect() } else { Vec::new() }
}
