//! The shared control plane, for one test at a time: a manager looks at all namespaces, so two at once would write
//! over each other's verdicts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use super::cluster::Cluster;
use super::controlplane::{ControlPlane, Part};
use super::device::Device;
use super::scenario;
use super::wait::wait_for;

/// A test's turn: a control plane without any custom resource, and a namespace of its own.
pub struct Stage {
    /// The shared control plane, or one of the test's own.
    pub plane: &'static ControlPlane,
    /// As admin.
    pub cluster: Cluster,
    /// A new namespace.
    pub namespace: String,
    turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Waits for the test's turn and clears what the test before left behind.
    pub async fn enter(prefix: &str) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let plane = ControlPlane::shared().await;
        if !plane.kubectl().output(&["get", "--raw=/readyz", "--request-timeout=5s"], None).await.ok {
            // A test that failed in the middle of a fault.
            plane.restart(Part::Apiserver).await;
        }
        let kinds = "networkswitches,deviceprocessdeployments,deviceprocesses";
        plane.kubectl().run(&["delete", kinds, "--all", "--all-namespaces", "--wait=false"]).await;
        plane.forget_managers().await;
        let cluster = plane.cluster().await;
        let namespace = cluster.namespace(prefix).await;
        Self { plane, cluster, namespace, turn }
    }
}

/// Waits until the manager knows the device, and returns its answer.
#[track_caller]
pub fn known(device: &Device) -> impl Future<Output = super::device::Answer> {
    let device = device.clone();
    wait_for(Duration::from_secs(15), format!("{} to be known", device.name), async move || {
        let answer = device.desired().await;
        if answer.status == 200 { Ok(answer) } else { Err(format!("{} {}", answer.status, answer.text())) }
    })
}

/// Waits until the device is told of exactly these processes (`namespace/name`), and returns the whole body.
#[track_caller]
pub fn desires(device: &Device, processes: &[&str]) -> impl Future<Output = Value> {
    let device = device.clone();
    let processes: Vec<String> = processes.iter().map(ToString::to_string).collect();
    wait_for(Duration::from_secs(15), format!("{} to be told of {processes:?}", device.name), async move || {
        let answer = device.desired().await;
        let body = answer.json();
        let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let items = body["items"].as_array().cloned().unwrap_or_default();
        let told: Vec<_> = items.iter().map(|i| format!("{}/{}", text(i, "namespace"), text(i, "name"))).collect();
        if answer.status == 200 && told == processes { Ok(body) } else { Err(format!("{}: {told:?}", answer.status)) }
    })
}

/// Heartbeats of one device in the background, from the start until it is dropped. Each waits at most 1.5 s.
pub struct Heart {
    task: JoinHandle<()>,
    beats: Arc<AtomicU64>,
    refused: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Heart {
    /// Starts to beat with a bootId of its own.
    pub fn start(device: &Device, every: Duration) -> Self {
        let boot = super::process::unique("heart");
        Self::start_with(device, every, move |sequence| scenario::heartbeat(sequence, &boot))
    }

    /// Sends what is made of the growing sequence.
    pub fn start_with(device: &Device, every: Duration, mut say: impl FnMut(u64) -> Value + Send + 'static) -> Self {
        let (beats, refused) = (Arc::<AtomicU64>::default(), Arc::<std::sync::Mutex<Vec<String>>>::default());
        let (device, answered, complaints) = (device.clone(), beats.clone(), refused.clone());
        let task = tokio::spawn(async move {
            for sequence in 1.. {
                let next = Instant::now() + every;
                let (body, path) = (say(sequence).to_string(), device.path("report"));
                let sent = device.try_send(http::Method::POST, &path, &[], body);
                match tokio::time::timeout(Duration::from_millis(1_500), sent).await {
                    Ok(Ok(answer)) if answer.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                    Ok(Ok(answer)) => complaints.lock().unwrap().push(format!("{} {}", answer.status, answer.text())),
                    Ok(Err(error)) => complaints.lock().unwrap().push(error),
                    Err(_) => complaints.lock().unwrap().push("no answer in 1.5 s".into()),
                }
                tokio::time::sleep_until(next.into()).await;
            }
        });
        Self { task, beats, refused }
    }

    /// Heartbeats that were answered with 200 so far.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// What became of the other ones.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    /// Waits for more answered heartbeats.
    pub async fn wait_beats(&self, more: u64) {
        let until = self.beats() + more;
        wait_for(Duration::from_secs(60), format!("{more} heartbeats"), async || self.beats() >= until).await;
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.task.abort();
    }
}
