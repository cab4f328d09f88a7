//! Edge: tests of the keeper against a scripted apiserver that knows only Leases; time is paused.

use super::*;
use crate::ownership::members::View;
use crate::ownership::membership::{RENEW_EVERY, SETTLED, SUSPICION};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use prometheus::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::pending;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Never answered, never done.
    Hang,
    /// Done, but never answered.
    AnswerLost,
    Refused,
}

type Script = Box<dyn FnMut(&Method, &str) -> Fault + Send>;

struct Server {
    leases: BTreeMap<String, Value>,
    version: u64,
    namespace: bool,
    script: Script,
    log: Vec<String>,
}

type Shared = Arc<Mutex<Server>>;

fn server() -> Shared {
    Arc::new(Mutex::new(Server {
        leases: BTreeMap::new(),
        version: 100,
        namespace: true,
        script: Box::new(|_, _| Fault::None),
        log: Vec::new(),
    }))
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, dry_run: bool, body: &Value) -> (u16, Value) {
        let status = |code: u16, reason: &str, message: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}))
        };
        let name = path.rsplit('/').next().unwrap().to_owned();
        let precondition = |body: &Value, old: Option<&Value>| {
            ["uid", "resourceVersion"]
                .iter()
                .all(|field| body[field].is_null() || old.is_some_and(|old| old["metadata"][field] == body[field]))
        };
        match *method {
            Method::GET if name == "leases" => {
                let items: Vec<_> = self.leases.values().cloned().collect();
                (
                    200,
                    json!({"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1", "metadata": {}, "items": items}),
                )
            }
            Method::GET => match self.leases.get(&name) {
                Some(lease) => (200, lease.clone()),
                None => status(404, "NotFound", "no such lease"),
            },
            Method::POST if !self.namespace => status(404, "NotFound", "namespaces \"praetor-system\" not found"),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if self.leases.contains_key(&name) {
                    return status(409, "AlreadyExists", "it is there");
                }
                let uid = format!("uid-{}", self.version);
                if dry_run { (201, body.clone()) } else { (201, self.store(name, body, &json!(uid))) }
            }
            // A PUT creates what is not there, as the real one does for Leases.
            Method::PUT => {
                let old = self.leases.get(&name);
                if !precondition(&body["metadata"], old) && (old.is_some() || !body["metadata"]["uid"].is_null()) {
                    return status(409, "Conflict", "changed");
                }
                let uid = old.map_or_else(|| json!("uid-put"), |old| old["metadata"]["uid"].clone());
                (200, self.store(name, body, &uid))
            }
            Method::DELETE => {
                let Some(old) = self.leases.get(&name) else { return status(404, "NotFound", "no such lease") };
                if !precondition(&body["preconditions"], Some(old)) {
                    return status(409, "Conflict", "changed");
                }
                self.leases.remove(&name);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    fn store(&mut self, name: String, body: &Value, uid: &Value) -> Value {
        self.version += 1;
        let mut lease = body.clone();
        lease["metadata"]["uid"] = uid.clone();
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.leases.insert(name, lease.clone());
        lease
    }

    fn put(&mut self, lease: &Lease) {
        let name = lease.metadata.name.clone().unwrap();
        let uid = self.leases.get(&name).map_or_else(|| json!("uid-x"), |old| old["metadata"]["uid"].clone());
        self.store(name, &serde_json::to_value(lease).unwrap(), &uid);
    }

    fn holder(&self) -> Option<&str> {
        self.leases.get(LEADER)?["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty())
    }

    fn annotation(&self, lease: &str, key: &str) -> Option<&str> {
        self.leases.get(lease)?["metadata"]["annotations"][format!("apollo.azure.com/{key}")].as_str()
    }
}

fn client(server: &Shared) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let path = parts.uri.path().to_owned();
            let fault = {
                let mut server = server.lock();
                server.log.push(format!("{} {}", parts.method, path.rsplit('/').next().unwrap()));
                (server.script)(&parts.method, &path)
            };
            if fault == Fault::Hang {
                pending::<()>().await;
            }
            // A request takes a moment.
            sleep(Duration::from_millis(5)).await;
            let dry_run = parts.uri.query().is_some_and(|query| query.contains("dryRun=All"));
            let (code, answer) = match fault {
                Fault::Refused => (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "not you"}),
                ),
                _ => server.lock().answer(&parts.method, &path, dry_run, &body),
            };
            if fault == Fault::AnswerLost {
                pending::<()>().await;
            }
            Ok::<_, tower::BoxError>(Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())))?)
        }
    });
    Client::new(service, "praetor-system")
}

/// A replica with its keeper.
struct Replica {
    ownership: Arc<Ownership>,
    leaving: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<Result<(), KeeperError>>,
}

impl Replica {
    fn start(server: &Shared, identity: &str, alone: bool) -> Self {
        let start = Instant::now();
        let clock = Arc::new(move || 1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap());
        let ownership = Ownership::with_clock(identity, clock);
        let metrics = OwnershipMetrics::register(&Registry::new()).unwrap();
        let options = KeeperOptions { namespace: "praetor-system".to_owned(), address: None, alone };
        let keeper = Keeper::new(client(server), options, ownership.clone(), metrics);
        let (synced, leaving, stop) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        synced.cancel();
        let task = tokio::spawn(keeper.run(synced, leaving.clone(), stop.clone()));
        Self { ownership, leaving, stop, task }
    }

    fn now(&self) -> u64 {
        self.ownership.now_ms()
    }

    fn leads(&self) -> bool {
        self.ownership.lead().borrow().as_ref().is_some_and(|lead| lead.check(self.now()).is_ok())
    }

    fn names(&self) -> Vec<String> {
        self.ownership.view().members.iter().map(|member| member.identity.to_string()).collect()
    }

    async fn until_leading(&self) {
        until("it leads", 30, || self.leads()).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap().unwrap();
    }

    async fn error(self) -> KeeperError {
        timeout(Duration::from_secs(60), self.task).await.unwrap().unwrap().unwrap_err()
    }
}

/// Time passes (it is paused) until something is so.
async fn until(what: &str, seconds: u64, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !so() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn member_of(identity: &str) -> Lease {
    let now = Timestamp::UNIX_EPOCH;
    member_lease(&Member::new(identity, 77, None), 0, now, now)
}

#[tokio::test(start_paused = true)]
async fn joins_leads_and_leaves_clean() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    assert_eq!(a.ownership.view(), Arc::new(View::new(0, Vec::new(), "a")));
    until("a is there", 2, || a.names() == ["a"]).await;
    a.until_leading().await;
    assert!(Instant::now().elapsed() < Duration::from_secs(3));
    let standing = a.ownership.standing();
    assert!(standing.lease && standing.apiserver && standing.joined);
    assert_eq!(a.ownership.leader().as_deref(), Some("a"));

    let b = Replica::start(&server, "b", false);
    until("both see both", 4, || a.names() == ["a", "b"] && b.names() == ["a", "b"]).await;
    assert_eq!(a.ownership.view().fingerprint, b.ownership.view().fingerprint);
    let device = (0..).find(|device| a.ownership.owner_is_me(*device)).unwrap();
    assert!(!b.ownership.owner_is_me(device));
    sleep(Duration::from_secs(60)).await;
    assert!(a.leads() && !b.leads());
    assert_eq!((a.names(), a.ownership.view().epoch), (vec!["a".to_owned(), "b".to_owned()], 3));

    // Work under the lead delays its release, not the farewell.
    let working = a.ownership.work();
    let leaving = Instant::now();
    a.leaving.cancel();
    until("b sees that a is gone", 2, || b.names() == ["b"]).await;
    assert!(!a.leads() && server.lock().holder() == Some("a"));
    assert_eq!(a.names(), ["b"], "who has left forwards to those who are there");
    assert!(!a.ownership.standing().joined && a.ownership.standing().apiserver);
    drop(working);
    until("b leads", 2, || b.leads()).await;
    assert!(leaving.elapsed() < Duration::from_secs(4));
    a.stop().await;
    b.stop().await;
    let server = server.lock();
    assert_eq!((server.holder(), server.leases.len()), (None, 1), "only the free lease of the lead is left");
}

#[tokio::test(start_paused = true)]
async fn an_idle_trio_asks_little() {
    let server = server();
    let replicas = ["a", "b", "c"].map(|name| Replica::start(&server, name, false));
    until("all see all", 5, || replicas.iter().all(|replica| replica.names().len() == 3)).await;
    server.lock().log.clear();
    sleep(Duration::from_secs(60)).await;
    let requests = server.lock().log.len();
    assert!(requests <= 220, "{requests} requests a minute");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_in_17_seconds() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    let b = Replica::start(&server, "b", false);
    until("b sees a", 3, || b.names().len() == 2).await;
    for killed in [900, 1700, 2300] {
        sleep(Duration::from_millis(killed)).await;
        assert!(!b.leads());
    }
    a.task.abort();
    let killed = Instant::now();
    b.until_leading().await;
    assert!(killed.elapsed() < Duration::from_millis(16_900), "{:?}", killed.elapsed());
    assert_eq!(b.names(), ["b"]);
    assert!(b.ownership.owner_is_me(7));
    // The dead one comes back: it waits to see whether its namesake lives, and counts its death.
    let again = Replica::start(&server, "a", false);
    let started = Instant::now();
    until("a is back", 6, || b.names() == ["a", "b"]).await;
    assert!(started.elapsed() >= SUSPICION);
    assert_eq!(server.lock().annotation("praetor-member-a", "crashes"), Some("1"));
    sleep(SETTLED + RENEW_EVERY).await;
    assert_eq!(server.lock().annotation("praetor-member-a", "crashes"), Some("0"));
    again.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_lost_after_the_write_is_found_out() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    let mut losses = 0;
    server.lock().script = Box::new(move |method, _| {
        losses += usize::from(method == Method::PUT);
        if method == Method::PUT && losses <= 2 { Fault::AnswerLost } else { Fault::None }
    });
    let lead = a.ownership.lead();
    let epoch = a.ownership.view().epoch;
    for _ in 0..300 {
        sleep(Duration::from_millis(100)).await;
        assert!(a.leads() && a.ownership.standing().lease);
    }
    assert!(!lead.has_changed().unwrap(), "one term, without a break");
    assert_eq!(a.ownership.view().epoch, epoch);
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_is_tried_once_more() {
    for fault in [Fault::Hang, Fault::AnswerLost, Fault::Refused] {
        let server = server();
        let a = Replica::start(&server, "a", false);
        a.until_leading().await;
        let mut deletes = 0;
        server.lock().script = Box::new(move |method, _| {
            deletes += usize::from(method == Method::DELETE);
            if method == Method::DELETE && deletes == 1 { fault } else { Fault::None }
        });
        a.stop().await;
        assert!(!server.lock().leases.contains_key("praetor-member-a"), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_apiserver_ends_the_lead_in_10_seconds() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    let b = Replica::start(&server, "b", false);
    until("both see both", 4, || a.names().len() == 2 && b.names().len() == 2).await;
    server.lock().script = Box::new(|_, _| Fault::Hang);
    let hanging = Instant::now();
    let working = a.ownership.work();
    until("the lead is lost", 10, || !a.leads()).await;
    until("its end is told", 11, || a.ownership.lead().borrow().is_none()).await;
    assert!(hanging.elapsed() <= Duration::from_millis(10_100), "{:?}", hanging.elapsed());
    until("doubts itself", 11, || !a.ownership.standing().lease && !a.ownership.standing().apiserver).await;
    sleep(Duration::from_secs(120)).await;
    // Others are still believed in, since nobody could look; oneself is not.
    assert_eq!((a.names(), b.names()), (vec!["b".to_owned()], vec!["a".to_owned()]));
    server.lock().script = Box::new(|_, _| Fault::None);
    let back = Instant::now();
    until("both are back", 5, || a.names().len() == 2 && b.names().len() == 2).await;
    sleep(Duration::from_secs(5)).await;
    assert!(!a.leads(), "not before what worked under the last one has ended");
    drop(working);
    until("somebody leads", 15, || a.leads() != b.leads()).await;
    assert!(back.elapsed() < Duration::from_secs(20));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_cut_from_the_apiserver_owns_nothing() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    let b = Replica::start(&server, "b", false);
    until("both see both", 4, || a.names().len() == 2 && b.names().len() == 2).await;
    // What only a does: renew the Lease of a. Lists are common, so they stay.
    server.lock().script =
        Box::new(
            move |method, path| {
                if method == Method::PUT && path.ends_with("member-a") { Fault::Hang } else { Fault::None }
            },
        );
    until("a is gone for both", 20, || a.names() == ["b"] && b.names() == ["b"]).await;
    assert!((0..100).all(|device| b.ownership.owner_is_me(device) && !a.ownership.owner_is_me(device)));
    assert!(!a.ownership.standing().lease && a.ownership.standing().apiserver);
    server.lock().script = Box::new(|_, _| Fault::None);
    until("a is back", 5, || a.names().len() == 2 && b.names().len() == 2).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_leases_are_written_anew() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    server.lock().leases.clear();
    until("the own lease is back", 4, || server.lock().leases.contains_key("praetor-member-a")).await;
    until("the lead's, too", 4, || server.lock().holder() == Some("a")).await;
    assert!(a.leads());
    until("a sees itself", 4, || a.names() == ["a"]).await;
    // Edits of others are overwritten, not obeyed.
    let edited = server.lock().leases.get("praetor-member-a").cloned().unwrap();
    server.lock().store("praetor-member-a".to_owned(), &edited, &edited["metadata"]["uid"]);
    sleep(Duration::from_secs(10)).await;
    assert!(a.leads() && a.ownership.standing().lease);
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_identity_for_two_is_an_error() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    // The newcomer goes, and the one that is there has not noticed.
    let namesake = Replica::start(&server, "a", false);
    assert!(matches!(namesake.error().await, KeeperError::IdentityTaken(name) if name == "a"));
    assert!(a.leads() && a.ownership.standing().lease);
    // One that was thought dead and replaced goes, too.
    server.lock().put(&member_of("a"));
    assert!(matches!(a.error().await, KeeperError::IdentityTaken(_)));
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_others_are_an_error() {
    let server = server();
    let a = Replica::start(&server, "a", false);
    a.until_leading().await;
    let log = server.lock().log.len();
    let lonely = Replica::start(&server, "lonely", true);
    let ownership = lonely.ownership.clone();
    assert!(matches!(lonely.error().await, KeeperError::NotAlone(name) if name == "a"));
    assert!(!server.lock().log[log..].iter().any(|line| line.contains("lonely")), "it has not joined");
    assert!(ownership.lead().borrow().is_none());
    a.stop().await;
    // What the dead left behind is none.
    server.lock().put(&member_of("dead"));
    let alone = Replica::start(&server, "alone", true);
    alone.until_leading().await;
    until("the dead one is out of sight", 16, || alone.names() == ["alone"]).await;
    // The leader tidies up.
    until("its lease is gone", 310, || !server.lock().leases.contains_key("praetor-member-dead")).await;
    alone.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_work_is_said_at_the_start() {
    let server = server();
    let keeper = |server: &Shared| {
        let options = KeeperOptions { namespace: "praetor-system".to_owned(), address: None, alone: true };
        let metrics = OwnershipMetrics::register(&Registry::new()).unwrap();
        Keeper::new(client(server), options, Ownership::new("a"), metrics)
    };
    keeper(&server).check().await.unwrap();
    assert!(server.lock().leases.is_empty());
    server.lock().namespace = false;
    let error = keeper(&server).check().await.unwrap_err().to_string();
    assert!(error.starts_with("--namespace praetor-system: there is no such namespace"), "{error}");
    assert!(matches!(Replica::start(&server, "a", false).error().await, KeeperError::NoNamespace(_)));
    server.lock().script = Box::new(|_, _| Fault::Refused);
    let error = keeper(&server).check().await.unwrap_err().to_string();
    assert!(error.contains("praetor-system: not you; see config/rbac"), "{error}");
    // No answer is no verdict.
    server.lock().script = Box::new(|_, _| Fault::Hang);
    keeper(&server).check().await.unwrap();
}
