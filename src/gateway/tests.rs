//! Edge: the device port from the outside: a directory with two devices, and reports that end as scripted.

mod connections;
mod contract;
mod model;
mod shortcut;
mod tls;

use super::access_log::AccessLog;
use super::answer::Answer;
use super::connection::State;
use super::credentials::{AuthArguments, Credentials};
use super::metrics::GatewayMetrics;
use super::report::Reports;
use super::service::{Gateway, Session};
use crate::desired::directory::Directory;
use crate::desired::index::{Kind, Settings};
use crate::desired::lean::Key;
use crate::desired::object::Raw;
use crate::status::intake::{Incoming, Outcome};
use crate::wire::token::derive;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECRET: &str = "secret";
/// Known, with one process.
const DEVICE: &str = "tor1-01";
/// Known, with nothing to do.
const BARE: &str = "tor1-02";
/// resourceVersion that the lists are of.
const LISTED: u64 = 100;

/// Ends reports as scripted; without a script they are done.
#[derive(Default)]
struct Script {
    settled: AtomicBool,
    outcomes: Mutex<VecDeque<Outcome>>,
    seen: Mutex<Vec<(String, Incoming)>>,
    /// Sequence and fingerprint of whatever was asked to be settled.
    asked: Mutex<Vec<(u64, u64)>>,
    panics: AtomicBool,
    slow: Option<Duration>,
}

impl Reports for Script {
    fn is_settled(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64) -> bool {
        assert!(device == DEVICE && !boot_id.is_empty());
        self.asked.lock().push((sequence, fingerprint));
        self.settled.load(Ordering::Relaxed)
    }

    async fn report(&self, device: &str, incoming: Incoming) -> Outcome {
        assert!(!self.panics.load(Ordering::Relaxed), "as scripted");
        self.seen.lock().push((device.to_owned(), incoming));
        if let Some(slow) = self.slow {
            tokio::time::sleep(slow).await;
        }
        self.outcomes.lock().pop_front().unwrap_or(Outcome::Done { rejected: vec![] })
    }
}

struct Fixture {
    directory: Arc<Directory>,
    script: Arc<Script>,
    gateway: Arc<Gateway<Script>>,
    registry: Registry,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self::with(Script::default());
        fixture.sync();
        fixture
    }

    fn with(script: Script) -> Self {
        let (directory, _) = Directory::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
        let arguments = AuthArguments { device_token_secret: vec![SECRET.into()], ..AuthArguments::default() };
        let credentials = Credentials::load(&arguments).unwrap();
        let (script, registry) = (Arc::new(script), Registry::new());
        let metrics = GatewayMetrics::register(&registry).unwrap();
        let gateway = Gateway::new(directory.clone(), script.clone(), credentials, metrics, AccessLog::All);
        Self { directory, script, gateway, registry }
    }

    /// The first complete lists are in.
    fn sync(&self) {
        let switch = |name: &str| {
            raw(
                json!({"metadata": {"namespace": "infra", "name": name, "uid": name, "resourceVersion": "7"}, "spec": {}}),
            )
        };
        self.directory.apply_all(Kind::Switch, vec![switch(DEVICE), switch(BARE)], LISTED);
        self.directory.apply_all(Kind::Process, vec![process(1, 50)], LISTED);
        let key = |name: &str| Key { namespace: "infra".into(), name: name.into() };
        self.directory.finish_list(Kind::Switch, &HashSet::from([key(DEVICE), key(BARE)]), LISTED);
        self.directory.finish_list(Kind::Process, &HashSet::from([key("p")]), LISTED);
    }

    /// The process gets another generation.
    fn change(&self, generation: i64, revision: u64) {
        self.directory.apply(Kind::Process, process(generation, revision));
    }

    fn session(&self) -> Session<Script> {
        Session::new(self.gateway.clone(), State::new())
    }

    /// The answer on a connection of its own.
    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::of(self.session().answer(request.body(Full::new(body.into())).unwrap()).await.unwrap()).await
    }

    async fn get(&self, device: &str, query: &str, headers: &[(&str, &str)]) -> Reply {
        let token = token(device);
        self.send(
            "GET",
            &format!("/v1/devices/{device}/desired{query}"),
            &[headers, &[("x-device-token", &token)]].concat(),
            "",
        )
        .await
    }

    async fn post(&self, device: &str, route: &str, body: impl Into<Bytes>) -> Reply {
        self.send("POST", &format!("/v1/devices/{device}/{route}"), &[("x-device-token", &token(device))], body).await
    }

    /// The value of a counter or gauge.
    fn metric(&self, name: &str, code: Option<&str>) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let fits = |metric: &&prometheus::proto::Metric| {
            code.is_none_or(|code| metric.get_label().iter().any(|label| label.value() == code))
        };
        let metric = family.get_metric().iter().find(fits).unwrap();
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }

    /// Waits until so many polls are parked.
    async fn parked(&self, count: u32) {
        tokio::time::timeout(Duration::from_secs(10), async {
            while self.metric("praetor_longpolls_parked", None) != f64::from(count) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("parked");
    }
}

/// An answer, read to its end.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn of(answer: Answer) -> Self {
        let (head, body) = answer.into_parts();
        Self { status: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// What holds for every answer.
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("cache-control"), "no-store", "{self:?}");
        match status {
            304 => assert!(self.body.is_empty()),
            200 => assert_eq!(self.header("content-type"), "application/json"),
            _ => {
                assert_eq!(self.header("content-type"), "application/problem+json");
                let problem = self.json();
                assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)));
                assert!(
                    !problem["title"].as_str().unwrap().is_empty() && problem["detail"].as_str().unwrap().len() > 20,
                    "{problem}"
                );
            }
        }
        let retry_after = self.header("retry-after");
        assert!(
            if status == 503 {
                (1..=60).contains(&retry_after.parse::<u64>().unwrap())
            } else {
                retry_after.is_empty()
            },
            "{self:?}"
        );
        assert_eq!(self.headers.contains_key("allow"), status == 405, "{self:?}");
        assert_eq!(self.headers.contains_key("www-authenticate"), status == 401, "{self:?}");
        self
    }
}

fn token(device: &str) -> String {
    derive(SECRET.as_bytes(), device).unwrap()
}

fn raw(value: Value) -> Raw {
    serde_json::from_value(value).unwrap()
}

fn process(generation: i64, revision: u64) -> Raw {
    raw(json!({
        "metadata": {"namespace": "infra", "name": "p", "uid": "u", "resourceVersion": revision.to_string(), "generation": generation},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": DEVICE}, "execution": {"command": [format!("v{generation}")]}},
    }))
}
