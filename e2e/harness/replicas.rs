//! Several managers of one control plane, and every wire between them in the test's hands: each reaches the apiserver
//! through a proxy of its own, and is reached by its peers through another that tells them apart.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use praetor::ownership::rendezvous::{device_hash, member_hash, weight};

use super::clock;
use super::cluster::{Cluster, Kind};
use super::controlplane::{ControlPlane, MANAGER_NAMESPACE};
use super::process::{Exit, free_port, unique};
use super::programs::{Manager, Metrics};
use super::proxy::Proxy;
use super::wait::wait_for;

/// The header by which replicas say who they are.
const PEER_HEADER: &str = "x-praetor-peer";

/// Where devices find managers, as a load balancer would know it: by name, also those that have just died.
#[derive(Debug, Clone, Default)]
pub struct Gates(Arc<Mutex<Vec<(String, SocketAddr)>>>);

impl Gates {
    /// All of them.
    pub fn all(&self) -> Vec<(String, SocketAddr)> {
        self.0.lock().unwrap().clone()
    }

    /// Adds one, or changes its address.
    pub fn open(&self, name: &str, address: SocketAddr) {
        self.close(name);
        self.0.lock().unwrap().push((name.into(), address));
    }

    /// Takes one away.
    pub fn close(&self, name: &str) {
        self.0.lock().unwrap().retain(|(known, _)| known != name);
    }
}

/// One manager with its wires.
#[derive(Debug)]
pub struct Replica {
    /// The process.
    pub manager: Manager,
    /// Its way to the apiserver.
    pub apiserver: Proxy,
    /// The way of its peers to it.
    pub peers: Proxy,
    running: bool,
}

impl Replica {
    /// Its identity.
    pub fn name(&self) -> &str {
        self.manager.identity()
    }

    /// Whether it was started and neither killed nor ended since.
    pub fn runs(&self) -> bool {
        self.running
    }
}

/// The managers; they end when it is dropped.
pub struct Replicas {
    plane: &'static ControlPlane,
    cluster: Cluster,
    flags: Vec<String>,
    /// By how many seconds the wall clock of each is off, in turn.
    clocks: &'static [i64],
    prefix: String,
    all: Vec<Replica>,
    gates: Gates,
}

impl Replicas {
    /// Starts so many with these flags, and returns when they agree on who is there.
    pub async fn start(plane: &'static ControlPlane, count: usize, flags: &[&str]) -> Self {
        Self::start_with_clocks(plane, count, flags, &[0]).await
    }

    /// As [`Replicas::start`], with wall clocks that are off by so many seconds: the first one's by the first number, and
    /// so on in turn.
    pub async fn start_with_clocks(
        plane: &'static ControlPlane,
        count: usize,
        flags: &[&str],
        clocks: &'static [i64],
    ) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        let (cluster, prefix) = (plane.cluster().await, unique("replica"));
        let (all, gates) = (Vec::new(), Gates::default());
        let mut replicas = Self { plane, cluster, flags, clocks, prefix, all, gates };
        plane.service_account_kubeconfig().await;
        plane.forget_managers().await;
        replicas.grow(count).await;
        replicas
    }

    /// Where devices find them.
    pub fn gates(&self) -> Gates {
        self.gates.clone()
    }

    /// One of them, also one that was killed.
    pub fn get(&self, which: usize) -> &Replica {
        &self.all[which]
    }

    /// Those that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|which| self.all[*which].running).collect()
    }

    /// Starts new ones until so many run, and returns when all agree.
    pub async fn grow(&mut self, count: usize) {
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let mut fresh = Vec::new();
        while self.running().len() + fresh.len() < count {
            let apiserver = Proxy::start(self.plane.address()).await;
            let port = free_port();
            let peers = Proxy::telling_apart(([127, 0, 0, 1], port).into(), PEER_HEADER).await;
            let account = self.plane.service_account_kubeconfig().await;
            let number = self.all.len() + fresh.len();
            let clock = clock::off_by(self.clocks[number % self.clocks.len()]);
            let builder = Manager::builder(self.plane).await;
            let manager = clock
                .iter()
                .fold(builder, |builder, (key, value)| builder.env(key, value))
                .identity(&format!("{}-{number}", self.prefix))
                .kubeconfig(self.plane.kubeconfig_via(account, apiserver.port()))
                .peers(port, peers.address())
                .args(&flags)
                .spawn();
            fresh.push(Replica { manager, apiserver, peers, running: true });
        }
        for mut replica in fresh {
            replica.manager.wait_ready().await;
            let wanted = Some(self.clocks[self.all.len() % self.clocks.len()]);
            let wanted = wanted.filter(|seconds| *seconds != 0 && clock::can_be_wrong()).unwrap_or(0);
            let off = replica.manager.wall_clock_off();
            assert!((off - wanted).abs() < 600, "a clock is off by {off} s instead of {wanted} s");
            self.gates.open(replica.name(), replica.manager.address());
            self.all.push(replica);
        }
        self.agreed(Duration::from_secs(20)).await;
    }

    /// Ends the latest ones, cleanly and one after the other, until so many run, and returns when the rest agrees.
    pub async fn shrink(&mut self, count: usize) {
        while self.running().len() > count {
            let last = *self.running().last().expect("more than none");
            self.end(last).await;
        }
        self.agreed(Duration::from_secs(20)).await;
    }

    /// SIGTERM. The load balancer learns of it one second later; returns when the process has ended.
    pub async fn end(&mut self, which: usize) -> Exit {
        let gates = self.gates.clone();
        let replica = &mut self.all[which];
        replica.manager.sigterm();
        tokio::time::sleep(Duration::from_secs(1)).await;
        gates.close(replica.manager.identity());
        replica.running = false;
        replica.manager.wait_exit(Duration::from_secs(30)).await
    }

    /// SIGKILL; devices go on to find it for a while.
    pub fn kill9(&mut self, which: usize) {
        self.all[which].manager.kill9();
        self.all[which].running = false;
    }

    /// Starts one again under its name and address, and returns when it is ready; until then no device is sent to it.
    pub async fn restart(&mut self, which: usize) {
        let replica = &mut self.all[which];
        self.gates.close(replica.manager.identity());
        replica.manager.restart().await;
        replica.running = true;
        self.gates.open(replica.manager.identity(), replica.manager.address());
    }

    /// SIGSTOP: it holds its connections and answers nothing.
    pub fn freeze(&mut self, which: usize) {
        self.all[which].manager.process.signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&mut self, which: usize) {
        self.all[which].manager.process.signal("CONT");
    }

    /// What those that run say of themselves now.
    pub async fn metrics(&self) -> Vec<Metrics> {
        let mut pages = Vec::new();
        for which in self.running() {
            pages.push(self.all[which].manager.metrics().await);
        }
        pages
    }

    /// One metric of all that run, summed.
    pub async fn sum(&self, name: &str) -> f64 {
        self.metrics().await.iter().map(|page| page.sum(name)).sum()
    }

    /// Waits until all that run see each other and nobody else, and hear each other.
    #[track_caller]
    pub fn agreed(&self, deadline: Duration) -> impl Future<Output = ()> {
        let count = self.running().len() as f64;
        wait_for(deadline, format!("a view of {count} members everywhere"), async move || {
            let seen: Vec<_> = self
                .metrics()
                .await
                .iter()
                .map(|page| ["praetor_members", "praetor_peers", "praetor_peers_heard"].map(|name| page.sum(name)))
                .collect();
            let agreed = seen.iter().all(|seen| *seen == [count, count - 1.0, count - 1.0]);
            if agreed { Ok(()) } else { Err(format!("members, peers, heard peers: {seen:?}")) }
        })
    }

    /// Who leads, by the Lease; none when nobody that runs does.
    pub async fn leader(&self) -> Option<usize> {
        let lease = self.cluster.get(Kind::Lease, MANAGER_NAMESPACE, "praetor-leader").await?;
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        self.running().into_iter().find(|which| self.all[*which].name() == holder)
    }

    /// Waits for a leader among those that run.
    #[track_caller]
    pub fn led(&self, deadline: Duration) -> impl Future<Output = usize> {
        wait_for(deadline, "a leader", async || self.leader().await)
    }

    /// Who should work for a device once all that run agree, by the published rule.
    pub fn owner(&self, device: &str) -> usize {
        let weight = |which: &usize| weight(member_hash(self.all[*which].name()), device_hash(device));
        self.running().into_iter().max_by_key(weight).expect("one that runs")
    }

    /// What all of them logged last, transitions left out, for messages.
    pub fn tails(&self) -> String {
        let tail = |replica: &Replica| {
            let log = replica.manager.log();
            let lines: Vec<_> = log.lines().filter(|line| !line.contains(" transition ")).collect();
            format!("{}:\n  {}", replica.name(), lines[lines.len().saturating_sub(12)..].join("\n  "))
        };
        self.all.iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}
