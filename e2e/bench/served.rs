//! The real gateway, index, intake and writer over synthetic objects, without a cluster: `serve DEVICES PROCESSES PLACE`.
//!
//! The apiserver is a function that knows the same objects, merges status patches and takes events, so the first
//! report of a device is written and adopted as in life, and the ones after it change nothing.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use kube::client::Body;
use praetor::desired::directory::Directory;
use praetor::desired::index::{Kind, Settings};
use praetor::desired::lean::Key;
use praetor::desired::object::Raw;
use praetor::gateway::access_log::AccessLog;
use praetor::gateway::credentials::{AuthArguments, Credentials};
use praetor::gateway::metrics::GatewayMetrics;
use praetor::gateway::report::forwarded;
use praetor::gateway::server;
use praetor::gateway::service::Gateway;
use praetor::ownership::members::{Member, View};
use praetor::ownership::shared::Ownership;
use praetor::presence::roll::Roll;
use praetor::status::events::Events;
use praetor::status::intake::{Intake, NoRelay, Outcome, Relay, Unanswered};
use praetor::status::metrics::StatusMetrics;
use praetor::status::pace::Pace;
use praetor::status::writer::Writer;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The HMAC secret of the server.
pub const SECRET: &str = "praetor-bench-secret";
/// Where everything is.
pub const NAMESPACE: &str = "infra-system";

const WINDOW: Duration = Duration::from_secs(45);

/// The owner of all devices, without a wire in between.
struct Owner(Arc<Intake>);

impl Relay for Owner {
    fn forward<'a>(
        &'a self,
        _: &'a Member,
        device: &'a str,
        connect: bool,
        body: bytes::Bytes,
    ) -> BoxFuture<'a, Result<Outcome, Unanswered>> {
        Box::pin(async move { forwarded(&self.0, device, connect, body).await.map_err(|_| Unanswered::Refused) })
    }
}

/// The n-th device's name.
pub fn device(number: usize) -> String {
    format!("tor-{number:06}")
}

/// The name of a device's n-th process.
pub fn process_name(device: &str, number: usize) -> String {
    format!("agent-{number:02}-{device}")
}

fn switch(name: &str) -> Value {
    json!({
        "apiVersion": "azure.com/v1alpha1", "kind": "NetworkSwitch",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("s-{name}"), "resourceVersion": "1", "generation": 1,
                     "creationTimestamp": "2025-12-12T23:54:58Z", "labels": {"role": "tor", "site": "a"}},
        "spec": {}
    })
}

fn process(device: &str, number: usize, revision: usize) -> Value {
    let name = process_name(device, number);
    json!({
        "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcess",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("{revision:08x}-8f0e-4b6e-9b1a-2f6c0d5e7a91"), "resourceVersion": (revision + 2).to_string(),
                     "generation": 1, "creationTimestamp": "2025-12-12T23:54:58Z", "labels": {"app": format!("agent-{number:02}"), "role": "tor", "apollo.azure.com/deviceName": device}},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": device},
                 "artifact": {"type": "oci", "url": format!("registry.example.com/infra/agent-{number:02}:1.0.0")},
                 "execution": {"backend": "systemd", "command": ["/usr/bin/switch-agent"], "args": ["--verbose"]}, "restartPolicy": "Always"},
        "status": {"phase": "Pending"}
    })
}

/// The apiserver's part: objects as they are after the patches so far.
#[derive(Default)]
struct Apiserver {
    patched: HashMap<String, Value>,
    revision: u64,
}

impl Apiserver {
    fn answer(&mut self, method: &http::Method, path: &str, body: &[u8]) -> Value {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let [_, _, _, _, _, plural, name, ..] = parts[..] else { return body };
        let object = self.patched.entry(format!("{plural}/{name}")).or_insert_with(|| {
            if plural == "networkswitches" {
                switch(name)
            } else {
                let (number, device) =
                    name.strip_prefix("agent-").and_then(|rest| rest.split_once('-')).expect("a process's name");
                process(device, number.parse().expect("a number"), 0)
            }
        });
        if method == http::Method::PATCH {
            json_patch::merge(object, &json!({"status": body["status"]}));
            self.revision += 1;
            object["metadata"]["resourceVersion"] = (1_000_000_000 + self.revision).to_string().into();
        }
        object.clone()
    }
}

fn client() -> Client {
    let apiserver = Arc::new(Mutex::new(Apiserver::default()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let apiserver = apiserver.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let answer = apiserver.lock().expect("no panic").answer(&head.method, head.uri.path(), &body);
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(answer.to_string()))))
        }
    });
    Client::new(service, "default")
}

fn fill(directory: &Directory, devices: usize, processes: usize) {
    let raw = |object: Value| serde_json::from_value::<Raw>(object).expect("an object");
    let key = |name: &str| Key { namespace: NAMESPACE.into(), name: name.into() };
    let last = (devices * processes + 2) as u64;
    let (mut switches, mut children) = (HashSet::new(), HashSet::new());
    for number in 0..devices {
        let name = device(number);
        switches.insert(key(&name));
        directory.apply_all(Kind::Switch, vec![raw(switch(&name))], last);
        let of_device: Vec<Raw> = (0..processes).map(|n| raw(process(&name, n, number * processes + n))).collect();
        children.extend(of_device.iter().map(|process| key(process.name())));
        directory.apply_all(Kind::Process, of_device, last);
    }
    directory.finish_list(Kind::Switch, &switches, last);
    directory.finish_list(Kind::Process, &children, last);
    directory.finish_list(Kind::Deployment, &HashSet::new(), last);
}

/// Serves on a free port of the loopback device, which the first line of the output names, until it is killed.
pub fn serve(devices: usize, processes: usize, other: bool) {
    // As the manager does; under taskset this is one thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let before = resident();
        let (directory, mut dirty) =
            Directory::new(Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false });
        fill(&directory, devices, processes);
        let used = resident().saturating_sub(before);
        tokio::spawn(async move { while dirty.recv().await.is_some() {} });
        let registry = Registry::new();
        let metrics = StatusMetrics::register(&registry).expect("metrics");
        let roll = Arc::new(Roll::new(WINDOW));
        let pace = Pace::new(10_000, metrics.clone());
        let events = Events::new(client(), "bench", pace.clone(), metrics.clone());
        let writer = Writer::new(client(), directory.clone(), roll.clone(), events, metrics.clone(), pace, 200_000);
        let never = CancellationToken::new();
        tokio::spawn(writer.clone().run(never.clone()));
        let alone = Ownership::alone("bench");
        let owner = |roll: &Arc<Roll>| {
            Intake::new(
                directory.clone(),
                roll.clone(),
                writer.clone(),
                alone.clone(),
                Arc::new(NoRelay),
                metrics.clone(),
            )
        };
        let intake = if other {
            // The owner is another replica, in this process and with one cache, as if its watch had no delay.
            let view = View::new(1, vec![Member::new("owner", 1, None)], "bench");
            let (ownership, relay) = (Ownership::fixed("bench", view), Owner(owner(&Arc::new(Roll::new(WINDOW)))));
            Intake::new(directory.clone(), roll.clone(), writer.clone(), ownership, Arc::new(relay), metrics.clone())
        } else {
            owner(&roll)
        };
        let auth = AuthArguments { device_token_secret: vec![SECRET.to_owned()], ..AuthArguments::default() };
        let credentials = Credentials::load(&auth).expect("credentials");
        let gateway = Gateway::new(
            directory,
            intake,
            credentials,
            GatewayMetrics::register(&registry).expect("metrics"),
            AccessLog::Errors,
        );
        roll.open();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{} {used}", listener.local_addr().expect("an address"));
        std::io::stdout().flush().expect("standard output");
        server::serve(listener, gateway, None, 16_384, never).await;
    });
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
