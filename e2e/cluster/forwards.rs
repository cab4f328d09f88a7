//! The way of devices into the cluster: `kubectl port-forward`. One to every pod that the Service counts as ready, made
//! and given up as the Service's EndpointSlices say, so that they are to devices what a load balancer would be; and one
//! to the Service itself, as an operator types it, made again whenever its pod ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::watcher;
use tokio::task::JoinHandle;

use crate::harness::device::request;
use crate::harness::{Gates, Process, free_port, wait_for};
use crate::play::{NAMESPACE, PODS, Play};

/// How often the forwards themselves are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A forward to a pod that is no longer ready is kept for so long at most: requests through it are still under way.
const KEPT: Duration = Duration::from_secs(60);

/// One `kubectl port-forward`.
struct Forward {
    process: Process,
    address: SocketAddr,
    left: Option<Instant>,
}

/// Which pods were ready, and since when.
type Sightings = Arc<Mutex<Vec<(Instant, BTreeSet<String>)>>>;

/// Forwards to all pods that are ready.
pub struct Forwards {
    gates: Gates,
    seen: Sightings,
    task: JoinHandle<()>,
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwards {
    /// Follows the Service's EndpointSlices and the pods' logs from now on.
    pub async fn start(play: &Arc<Play>) -> Self {
        let (gates, seen) = (Gates::default(), Sightings::default());
        let task = tokio::spawn(follow(play.clone(), gates.clone(), seen.clone()));
        let forwards = Self { gates, seen, task };
        wait_for(Duration::from_secs(30), "a forward to every ready pod", async || {
            let (open, ready) = (forwards.gates.all().len(), forwards.ready().len());
            if open == ready && open > 0 { Ok(()) } else { Err(format!("{open} of {ready}")) }
        })
        .await;
        forwards
    }

    /// Where devices find managers.
    pub fn gates(&self) -> Gates {
        self.gates.clone()
    }

    /// The pods that are ready now, by the EndpointSlices.
    pub fn ready(&self) -> BTreeSet<String> {
        self.seen.lock().unwrap().last().map(|(_, pods)| pods.clone()).unwrap_or_default()
    }

    /// The fewest that were ready at a time since then.
    pub fn fewest(&self, since: Instant) -> usize {
        let seen = self.seen.lock().unwrap();
        let before = seen.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        seen[before..].iter().map(|(_, pods)| pods.len()).min().unwrap_or(0)
    }

    /// Waits until the Service leads to exactly these pods.
    #[track_caller]
    pub fn lead_to(&self, pods: BTreeSet<String>) -> impl Future<Output = ()> {
        wait_for(Duration::from_secs(10), "the Service's endpoints to be the ready pods", async move || {
            let ready = self.ready();
            if ready == pods { Ok(()) } else { Err(format!("{ready:?} instead of {pods:?}")) }
        })
    }
}

/// The pods of one slice that are ready.
fn ready_of(slice: &EndpointSlice) -> BTreeSet<String> {
    let endpoints = slice.endpoints.iter().filter(|it| it.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.clone()).collect()
}

async fn follow(play: Arc<Play>, gates: Gates, seen: Sightings) {
    let slices: Api<EndpointSlice> = Api::namespaced(play.cluster.client.clone(), NAMESPACE);
    let config = watcher::Config::default().labels("kubernetes.io/service-name=praetor").timeout(60);
    let mut events = watcher(slices, config).boxed();
    let mut tick = tokio::time::interval(LOOK);
    let (mut known, mut listed): (BTreeMap<String, BTreeSet<String>>, BTreeMap<_, _>) = Default::default();
    let mut forwards: BTreeMap<String, Forward> = BTreeMap::new();
    let existing = Arc::<Mutex<BTreeSet<String>>>::default();
    let _logs = AbortOnDrop(tokio::spawn(keep_logs(play.clone(), existing.clone())));
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(watcher::Event::Apply(slice)) => drop(known.insert(slice.name_any(), ready_of(&slice))),
                Ok(watcher::Event::Delete(slice)) => drop(known.remove(&slice.name_any())),
                Ok(watcher::Event::InitApply(slice)) => drop(listed.insert(slice.name_any(), ready_of(&slice))),
                Ok(watcher::Event::InitDone) => known = std::mem::take(&mut listed),
                Ok(watcher::Event::Init) => listed.clear(),
                Err(_) => tokio::time::sleep(LOOK).await,
            },
            _ = tick.tick() => {}
        }
        let ready: BTreeSet<String> = known.values().flatten().cloned().collect();
        {
            let mut seen = seen.lock().unwrap();
            if seen.last().is_none_or(|(_, before)| *before != ready) {
                seen.push((Instant::now(), ready.clone()));
            }
        }
        for (pod, forward) in &mut forwards {
            if ready.contains(pod) {
                forward.left = None;
            } else {
                gates.close(pod);
                forward.left.get_or_insert_with(Instant::now);
            }
        }
        // With the pod the connections to it are gone, whatever kubectl makes of it.
        let existing = existing.lock().unwrap().clone();
        forwards.retain(|pod, it| it.left.is_none_or(|left| left.elapsed() < KEPT && existing.contains(pod)));
        for pod in &ready {
            let forward = forwards.entry(pod.clone()).or_insert_with(|| forward(&play, pod));
            if forward.process.exited().is_some() {
                gates.close(pod);
                *forward = self::forward(&play, pod);
            } else if !gates.all().iter().any(|(name, _)| name == pod) && listens(forward) {
                gates.open(pod, forward.address);
            }
        }
    }
}

/// Whether kubectl says that it listens.
fn listens(forward: &Forward) -> bool {
    forward.process.log().contains(&format!("Forwarding from {}", forward.address))
}

fn forward(play: &Play, pod: &str) -> Forward {
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let launch = play.kubectl_launch(&format!("-n {NAMESPACE} port-forward pod/{pod} {}:8080", address.port()));
    let process = Process::spawn("kubectl port-forward", &launch, &play.folder.join(format!("forward-{pod}.log")));
    Forward { process, address, left: None }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Every line that any replica logs, into a file each: a pod that is gone cannot be asked any more. And which pods
/// there are.
async fn keep_logs(play: Arc<Play>, existing: Arc<Mutex<BTreeSet<String>>>) {
    let mut followed: BTreeMap<String, Process> = BTreeMap::new();
    let api: Api<Pod> = Api::namespaced(play.cluster.client.clone(), NAMESPACE);
    loop {
        if let Ok(pods) = api.list(&ListParams::default().labels(PODS)).await {
            *existing.lock().unwrap() = pods.items.iter().map(ResourceExt::name_any).collect();
            for (name, restarts) in pods.items.iter().filter_map(running) {
                followed.entry(format!("{name}-{restarts}")).or_insert_with(|| {
                    let launch = play.kubectl_launch(&format!("-n {NAMESPACE} logs --follow --timestamps {name}"));
                    let log = play.folder.join("logs").join(format!("{name}-{restarts}.log"));
                    Process::spawn("kubectl logs", &launch, &log)
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A pod whose manager runs, with the number of its restarts.
fn running(pod: &Pod) -> Option<(String, i32)> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.running.as_ref()?;
    Some((pod.name_any(), status.restart_count))
}

/// `kubectl port-forward svc/praetor`, again and again on one port.
pub struct ServiceForward {
    /// Where it listens.
    pub address: SocketAddr,
    made: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for ServiceForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServiceForward {
    /// Starts it.
    pub async fn start(play: &Arc<Play>) -> Self {
        let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let made = Arc::<AtomicUsize>::default();
        let task = tokio::spawn(forward_service(play.clone(), address, made.clone()));
        let forward = Self { address, made, task };
        wait_for(Duration::from_secs(20), "the forward to the Service", async || {
            tokio::net::TcpStream::connect(address).await.map(drop)
        })
        .await;
        forward
    }

    /// How often it was made.
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

/// kubectl goes on listening when its pod is gone, and lets every connection wait: so it is tried out all the time.
async fn forward_service(play: Arc<Play>, address: SocketAddr, made: Arc<AtomicUsize>) {
    let launch = play.kubectl_launch(&format!("-n {NAMESPACE} port-forward service/praetor {}:8080", address.port()));
    loop {
        let mut process = Process::spawn("kubectl port-forward", &launch, &play.folder.join("forward-service.log"));
        made.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let mut worked = false;
        while process.exited().is_none() {
            // A path that there is none of: no device asks, and no metric counts it.
            let answer =
                tokio::time::timeout(Duration::from_secs(2), request(address, Method::GET, "/", &[], "")).await;
            match answer {
                Ok(Ok(_)) => worked = true,
                // It takes a moment until it listens.
                _ if !worked && begun.elapsed() < Duration::from_secs(5) => {}
                _ => break,
            }
            tokio::time::sleep(LOOK * 3).await;
        }
        process.kill9();
        tokio::time::sleep(LOOK).await;
    }
}
