//! Edge: two replicas at one small apiserver, whose watches show what the test lets them.

use super::*;
use crate::desired::index::{Index, Settings};
use crate::desired::object::Raw;
use crate::gateway::report::{decode_for_tests, forwarded};
use crate::presence::staleness::Doubt;
use crate::status::events::Events;
use crate::status::pace::Pace;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use prometheus::Registry;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tokio_util::sync::CancellationToken;

const HASH: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
const NAMES: [&str; 2] = ["one", "two"];

/// Objects by path, versions, conflicts; nothing else.
#[derive(Default)]
struct Apiserver {
    objects: Mutex<HashMap<String, Value>>,
    revision: Mutex<u64>,
    /// Method and path of every request.
    asked: Mutex<Vec<String>>,
    /// Statuses that were written.
    written: Mutex<Vec<Value>>,
    away: AtomicBool,
    /// The next patch is written, but nothing is answered any more.
    falls_silent: AtomicBool,
}

impl Apiserver {
    fn put(&self, path: &str, mut object: Value) -> Value {
        let mut revision = self.revision.lock();
        *revision += 1;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        self.objects.lock().insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        self.asked.lock().push(format!("{method} {path}"));
        if self.away.load(Relaxed) {
            return (500, json!({"kind": "Status", "status": "Failure", "code": 500, "message": "away"}));
        }
        if *method == Method::POST {
            return (201, serde_json::from_slice(body).unwrap());
        }
        let path = path.trim_end_matches("/status");
        let Some(mut object) = self.objects.lock().get(path).cloned() else {
            return (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}));
        };
        if *method == Method::GET {
            return (200, object);
        }
        let patch: Value = serde_json::from_slice(body).unwrap();
        if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return (409, json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409}));
        }
        json_patch::merge(&mut object["status"], &patch["status"]);
        self.written.lock().push(patch["status"].clone());
        let object = self.put(path, object);
        if self.falls_silent.load(Relaxed) {
            self.away.store(true, Relaxed);
            return (500, json!({"kind": "Status", "status": "Failure", "code": 500, "message": "away"}));
        }
        (200, object)
    }

    fn client(self: &Arc<Self>) -> Client {
        let apiserver = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let apiserver = apiserver.clone();
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (code, answer) = apiserver.answer(&method, &path, &body);
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn status(&self, process: &str) -> Value {
        self.objects.lock()[&format!("/apis/azure.com/v1alpha1/namespaces/n/deviceprocesses/{process}")]["status"]
            .clone()
    }

    fn patches(&self) -> usize {
        self.asked.lock().iter().filter(|asked| asked.starts_with("PATCH")).count()
    }

    fn reads(&self) -> usize {
        self.asked.lock().iter().filter(|asked| asked.starts_with("GET")).count()
    }
}

/// The way to the other replica.
#[derive(Default)]
struct Link {
    other: OnceLock<Arc<Intake>>,
    /// What happens instead of an answer.
    fails: Mutex<Option<Unanswered>>,
    /// Whether the other one sees to it before that.
    taken_in: AtomicBool,
    forwards: Mutex<u32>,
}

impl Relay for Link {
    fn forward<'a>(
        &'a self,
        _: &'a Member,
        device: &'a str,
        connect: bool,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Outcome, Unanswered>> {
        Box::pin(async move {
            *self.forwards.lock() += 1;
            let fails = *self.fails.lock();
            if let Some(error) = fails.filter(|_| !self.taken_in.load(Relaxed)) {
                return Err(error);
            }
            let outcome = forwarded(self.other.get().unwrap(), device, connect, body).await;
            fails.map_or(outcome.map_err(|_| Unanswered::NotOwner), Err)
        })
    }
}

struct Replica {
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    intake: Arc<Intake>,
    link: Arc<Link>,
    registry: Registry,
    ownership: Arc<Ownership>,
}

/// Two replicas and a device with one process, `p`; the first replica is its owner.
struct Stage {
    apiserver: Arc<Apiserver>,
    owner: Replica,
    other: Replica,
    device: String,
    stop: CancellationToken,
    sequence: AtomicU64,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn view(me: &str) -> View {
    View::new(1, NAMES.iter().map(|name| Member::new(name, 1, None)).collect(), me)
}

impl Replica {
    fn new(apiserver: &Arc<Apiserver>, identity: &str, stop: &CancellationToken) -> Self {
        let registry = Registry::new();
        let metrics = StatusMetrics::register(&registry).unwrap();
        let (directory, _) = Directory::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
        let roll = Arc::new(Roll::new(Duration::from_secs(45)));
        let ownership = Ownership::fixed(identity, view(identity));
        let pace = Pace::new(1_000, metrics.clone());
        let events = Events::new(apiserver.client(), identity, pace.clone(), metrics.clone());
        let writer =
            Writer::new(apiserver.client(), directory.clone(), roll.clone(), events, metrics.clone(), pace, 100);
        tokio::spawn(writer.clone().run(stop.clone()));
        let link = Arc::new(Link::default());
        let intake = Intake::new(directory.clone(), roll.clone(), writer, ownership.clone(), link.clone(), metrics);
        Self { directory, roll, intake, link, registry, ownership }
    }

    fn show(&self, object: &Value) {
        self.directory.apply(Kind::Process, raw(object));
    }

    fn forwards(&self, result: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "praetor_forwards_total").unwrap();
        let of = family.get_metric().iter().find(|metric| metric.get_label()[0].value() == result).unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = of.get_counter().get_value() as u64;
        count
    }

    async fn report(&self, device: &str, body: &Value) -> Outcome {
        let body = Bytes::from(body.to_string());
        self.intake.report(device, decode_for_tests(body)).await
    }

    fn is_settled(&self, device: &str, body: &Value) -> bool {
        let incoming = decode_for_tests(Bytes::from(body.to_string()));
        self.intake.is_settled(
            device,
            &incoming.boot_id.unwrap(),
            incoming.sequence.unwrap(),
            incoming.fingerprint.unwrap(),
        )
    }
}

fn raw(object: &Value) -> Raw {
    serde_json::from_value(object.clone()).unwrap()
}

impl Stage {
    fn new() -> Self {
        let apiserver = Arc::new(Apiserver::default());
        let stop = CancellationToken::new();
        let [owner, other] = NAMES.map(|name| Replica::new(&apiserver, name, &stop));
        owner.link.other.set(other.intake.clone()).ok();
        other.link.other.set(owner.intake.clone()).ok();
        let view = view(NAMES[0]);
        let device = (0..).map(|n| format!("d{n}")).find(|device| view.is_mine(device_hash(device))).unwrap();
        let stage = Self { apiserver, owner, other, device, stop, sequence: AtomicU64::new(0) };
        let process = stage.apiserver.put(
            "/apis/azure.com/v1alpha1/namespaces/n/deviceprocesses/p",
            json!({
                "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcess",
                "metadata": {"namespace": "n", "name": "p", "uid": "u", "generation": 1},
                "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": stage.device}}, "status": {},
            }),
        );
        for replica in [&stage.owner, &stage.other] {
            replica.show(&process);
            replica.directory.finish_list(Kind::Switch, &HashSet::new(), 1);
            let key = Key { namespace: "n".into(), name: "p".into() };
            replica.directory.finish_list(Kind::Process, &HashSet::from([key]), 1);
        }
        stage
    }

    /// The next report: what the process's health is.
    fn says(&self, healthy: bool) -> Value {
        let sequence = self.sequence.fetch_add(1, Relaxed) + 1;
        json!({"bootId": "b", "sequence": sequence, "observations": [
            {"namespace": "n", "name": "p", "observedSpecHash": HASH, "processStarted": true, "healthy": healthy}]})
    }

    /// Everything that was written reaches both watches.
    fn show_all(&self) {
        let process = self.apiserver.objects.lock()["/apis/azure.com/v1alpha1/namespaces/n/deviceprocesses/p"].clone();
        self.owner.show(&process);
        self.other.show(&process);
    }

    fn healthy(&self) -> Option<bool> {
        let status = self.apiserver.status("p");
        let condition =
            status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Healthy")?.clone();
        Some(condition["status"] == "True")
    }
}

fn done() -> Outcome {
    Outcome::Done { rejected: vec![] }
}

#[tokio::test]
async fn what_differs_is_written_by_the_owner_and_what_agrees_is_answered_anywhere() {
    let stage = Stage::new();
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!((stage.healthy(), stage.apiserver.patches(), stage.other.forwards("ok")), (Some(true), 1, 1));
    // Its own watch has not shown it: asked once more, and the owner has nothing to do.
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!(stage.other.forwards("ok"), 2);
    stage.show_all();
    let mut again = stage.says(true);
    assert!(!stage.other.is_settled(&stage.device, &again));
    assert_eq!(stage.other.report(&stage.device, &again).await, done());
    assert_eq!(stage.other.forwards("ok"), 2, "it said the same before, and the status shows it");
    for _ in 0..3 {
        again = stage.says(true);
        assert!(stage.other.is_settled(&stage.device, &again));
    }
    assert_eq!((stage.apiserver.patches(), stage.apiserver.reads()), (1, 0));
    assert_eq!(stage.other.report(&stage.device, &json!({"heartbeat": true})).await, done());
    assert_eq!(stage.other.forwards("ok"), 2, "a bare sign of life");
}

#[tokio::test]
async fn the_newest_report_wins_over_a_cache_that_lags() {
    let stage = Stage::new();
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    stage.show_all();
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    // The owner writes something else, and the other one does not see it.
    assert_eq!(stage.owner.report(&stage.device, &stage.says(false)).await, done());
    assert_eq!(stage.healthy(), Some(false));
    let back = stage.says(true);
    assert!(!stage.other.is_settled(&stage.device, &back));
    assert_eq!(stage.other.report(&stage.device, &back).await, done());
    assert_eq!(stage.healthy(), Some(true));
}

#[tokio::test]
async fn without_the_owner_it_is_written_where_it_arrives() {
    let stage = Stage::new();
    *stage.other.link.fails.lock() = Some(Unanswered::Unreachable);
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!((stage.healthy(), stage.other.forwards("unreachable")), (Some(true), 1));
    // The owner's watch lags behind this; what it hears next is two reports further on, and seems to be known.
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!(stage.other.report(&stage.device, &stage.says(false)).await, done());
    assert_eq!(stage.healthy(), Some(false));
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!(stage.healthy(), Some(true), "read live, since somebody else had the report before");
    assert!(stage.apiserver.reads() > 0);
}

#[tokio::test]
async fn an_answer_that_is_lost_costs_a_conflict_and_nothing_else() {
    let stage = Stage::new();
    *stage.other.link.fails.lock() = Some(Unanswered::Unreachable);
    stage.other.link.taken_in.store(true, Relaxed);
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!((stage.healthy(), stage.apiserver.patches(), stage.other.forwards("unreachable")), (Some(true), 2, 1));
    assert_eq!(stage.apiserver.written.lock().len(), 1);
}

#[tokio::test]
async fn an_owner_that_is_busy_gets_no_help() {
    let stage = Stage::new();
    for (count, (busy, result)) in
        [(Unanswered::Busy, "busy"), (Unanswered::Timeout, "timeout")].into_iter().enumerate()
    {
        *stage.other.link.fails.lock() = Some(busy);
        // What was not sent is not taken in, what was is: either way the device says it again.
        stage.other.link.taken_in.store(busy == Unanswered::Timeout, Relaxed);
        let later = stage.other.report(&stage.device, &stage.says(true)).await;
        assert!(matches!(later, Outcome::Later { retry_after_seconds: 2..=10 }), "{later:?}");
        assert_eq!((stage.apiserver.patches(), stage.other.forwards(result)), (count, 1));
    }
    *stage.other.link.fails.lock() = None;
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!((stage.healthy(), stage.apiserver.patches()), (Some(true), 1));
}

#[tokio::test]
async fn what_is_passed_on_goes_no_further() {
    let stage = Stage::new();
    let body = Bytes::from(stage.says(true).to_string());
    let refused = stage.other.intake.forwarded(&stage.device, decode_for_tests(body.clone())).await;
    assert_eq!(refused, Err(NotTaken::NotOwner));
    let refused = stage.owner.intake.forwarded("nobody", decode_for_tests(body)).await;
    assert!(refused == Err(NotTaken::NotOwner) || refused == Err(NotTaken::Unknown));
    assert_eq!((*stage.other.link.forwards.lock(), stage.apiserver.patches()), (0, 0));
    // Two views that name each other: the report ends where it was passed on from.
    stage.owner.ownership.show(Arc::new(View::new(2, vec![Member::new(NAMES[1], 1, None)], NAMES[0])));
    assert_eq!(stage.other.report(&stage.device, &stage.says(true)).await, done());
    assert_eq!((stage.other.forwards("not_owner"), *stage.owner.link.forwards.lock()), (1, 0));
    assert_eq!(stage.healthy(), Some(true));
}

#[tokio::test]
async fn an_old_report_changes_nothing_at_an_owner_that_does_not_know() {
    let stage = Stage::new();
    let (old, newer) = (stage.says(false), stage.says(true));
    *stage.other.link.fails.lock() = Some(Unanswered::Unreachable);
    assert_eq!(stage.other.report(&stage.device, &newer).await, done());
    *stage.other.link.fails.lock() = None;
    // The cache of the other replica says that the device is not connected, so it does forward.
    let process = json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "generation": 1, "resourceVersion": "1000"},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": stage.device}}, "status": {},
    });
    stage.other.show(&process);
    assert_eq!(stage.other.report(&stage.device, &old).await, done());
    assert_eq!((*stage.other.link.forwards.lock(), stage.healthy()), (2, Some(true)));
}

#[tokio::test]
async fn while_the_apiserver_is_away_only_changes_have_to_wait() {
    let stage = Stage::new();
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    stage.show_all();
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    stage.apiserver.away.store(true, Relaxed);
    assert!(stage.owner.is_settled(&stage.device, &stage.says(true)));
    // A report was lost on the way. The other replica is heard, so it would have come here if it had made a change.
    let _lost = stage.says(true);
    stage.owner.roll.observe(&Doubt { peers: vec![1], ..Doubt::default() });
    stage.owner.roll.witness(1, stage.owner.roll.now_ms());
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    assert!(stage.owner.is_settled(&stage.device, &stage.says(true)));
    // Now it is not heard, and nobody can be asked.
    let _lost = stage.says(true);
    stage.owner.roll.observe(&Doubt { peers: vec![2], ..Doubt::default() });
    let later = stage.owner.report(&stage.device, &stage.says(true)).await;
    assert!(matches!(later, Outcome::Later { .. }), "{later:?}");
    let later = stage.other.report(&stage.device, &stage.says(false)).await;
    assert!(matches!(later, Outcome::Later { retry_after_seconds: 2..=10 }), "{later:?}");
    stage.apiserver.away.store(false, Relaxed);
    assert_eq!(stage.other.report(&stage.device, &stage.says(false)).await, done());
    assert_eq!(stage.healthy(), Some(false));
}

#[tokio::test]
async fn counters_alone_are_acknowledged_and_owed_by_the_owner() {
    let stage = Stage::new();
    let says = |pid: u64| {
        let mut report = stage.says(true);
        report["observations"][0]["pid"] = pid.into();
        report
    };
    assert_eq!(stage.other.report(&stage.device, &says(1)).await, done());
    stage.show_all();
    for _ in 0..3 {
        assert_eq!(stage.other.report(&stage.device, &says(2)).await, done());
    }
    assert_eq!((stage.apiserver.patches(), stage.other.forwards("ok")), (1, 4));
    assert!(stage.owner.intake.writer.is_pending(Kind::Process, &Key { namespace: "n".into(), name: "p".into() }));
    assert!(stage.owner.directory.read(Index::serves_devices));
}

#[tokio::test]
async fn a_read_that_confirms_the_cache_waits_for_its_turn_but_not_too_long() {
    let stage = Stage::new();
    let (intake, keys) = (&stage.owner.intake, [Key { namespace: "n".into(), name: "p".into() }]);
    let verify = || intake.verify(&keys, Instant::now() + DEADLINE);
    // One at once, and the next after a second; the third would have to wait longer than an answer may take.
    *intake.verifying_reads.lock() = TokenBucket::new(1);
    let begun = Instant::now();
    assert!(verify().await && verify().await && begun.elapsed() >= Duration::from_millis(900));
    *intake.verifying_reads.lock() = TokenBucket::new(1);
    let (first, second, third) = tokio::join!(verify(), verify(), verify());
    assert!(!(first && second && third), "the third had to wait for 2 s");
    assert!((3..=4).contains(&stage.apiserver.reads()));
}

#[tokio::test]
async fn what_may_wait_is_read_live_where_the_cache_may_be_old() {
    let stage = Stage::new();
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    stage.show_all();
    *stage.other.link.fails.lock() = Some(Unanswered::Unreachable);
    assert_eq!(stage.other.report(&stage.device, &stage.says(false)).await, done());
    // The owner's watch lags behind this: to its cache only the pid is another.
    let mut report = stage.says(true);
    report["observations"][0]["pid"] = 2.into();
    assert_eq!(stage.owner.report(&stage.device, &report).await, done());
    assert_eq!(stage.healthy(), Some(true), "what is acknowledged is written");
    // And once more, when nobody else had a report in between: nothing is read, nothing is written.
    let (reads, patches) = (stage.apiserver.reads(), stage.apiserver.patches());
    let mut report = stage.says(true);
    report["observations"][0]["pid"] = 3.into();
    assert_eq!(stage.owner.report(&stage.device, &report).await, done());
    assert_eq!((stage.apiserver.reads(), stage.apiserver.patches()), (reads, patches));
}

#[tokio::test]
async fn what_a_stop_gave_up_is_not_acknowledged_by_the_cache() {
    let stage = Stage::new();
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    stage.show_all();
    assert_eq!(stage.owner.report(&stage.device, &stage.says(true)).await, done());
    // It is written, and the owner does not get to know.
    stage.apiserver.falls_silent.store(true, Relaxed);
    let report = stage.says(false);
    let given_up = async {
        while stage.apiserver.patches() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stage.stop.cancel();
    };
    let (later, ()) = tokio::join!(stage.owner.report(&stage.device, &report), given_up);
    assert!(matches!(later, Outcome::Later { .. }), "{later:?}");
    assert_eq!(stage.healthy(), Some(false));
    // The device takes it back, which is what the owner's cache says all along.
    for _ in 0..2 {
        let back = stage.says(true);
        assert!(!stage.owner.is_settled(&stage.device, &back));
        let later = stage.owner.report(&stage.device, &back).await;
        assert!(matches!(later, Outcome::Later { .. }), "{later:?}");
    }
}
