//! Where the experiments take place: a control plane, replicas, a crowd of devices with two processes each, and
//! somebody who writes everything down.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::scenario::{create_switches, deployment, device_process, fleet, process_spec};
use crate::harness::{
    Cluster, ControlPlane, Crowd, Kind, MANAGER_USER, Metrics, Pace, Part, Recorder, Replicas, Turn, condition_status,
    unique, wait_for,
};
use crate::history::{Rules, Story, Version, Violation, check};

/// Whether times and sizes are the true ones.
pub fn full() -> bool {
    std::env::var_os("PRAETOR_FAULTS").is_some_and(|value| value == "full")
}

/// Seconds: in short, and in full.
pub fn seconds(short: u64, true_ones: u64) -> Duration {
    Duration::from_secs(if full() { true_ones } else { short })
}

/// By how many seconds the wall clocks of replicas are off: little but what people read may depend on them.
const CLOCKS: [i64; 3] = [0, 3_600, -3_600];
/// How late a verdict may come when a replica has died, too: until all others have noticed.
pub const TAKE_OVER: Duration = Duration::from_secs(30);
/// How late a verdict may come when all is well but the device.
pub const VERDICT: Duration = Duration::from_secs(10);
/// Until all replicas agree on who is there: a Lease lasts 15 s from when its last renewal was seen, which may take 2 s,
/// and its end is seen with the next look 2 s later; the rest is for a slow machine.
pub const AGREED: Duration = Duration::from_secs(30);

/// Devices that are called disconnected in a second at most when many are, by each replica.
pub fn trickle() -> usize {
    seconds(2, 20).as_secs() as usize
}

/// A heartbeat, a window, a number of devices.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Between two reports.
    pub heartbeat: Duration,
    /// Heartbeats that may be missed.
    pub multiplier: u32,
    /// Devices.
    pub devices: usize,
}

impl Scale {
    fn get() -> Self {
        if full() {
            return Self { heartbeat: Duration::from_secs(15), multiplier: 3, devices: 1_000 };
        }
        Self { heartbeat: Duration::from_secs(1), multiplier: 6, devices: 60 }
    }

    /// So long a device may be silent.
    pub fn window(self) -> Duration {
        self.heartbeat * self.multiplier
    }
}

/// Everything of one play.
pub struct World {
    /// The managers.
    pub replicas: Replicas,
    /// The devices.
    pub crowd: Arc<Crowd>,
    /// Their names.
    pub names: Vec<String>,
    /// What the cluster showed.
    pub recorder: Recorder,
    /// As admin.
    pub cluster: Cluster,
    /// Where the objects are.
    pub namespace: String,
    /// Times and sizes.
    pub scale: Scale,
    /// Its servers end with it.
    pub plane: &'static ControlPlane,
    removed: Vec<String>,
    /// How much later verdicts may come: nobody was there to judge, or a mass of them is written at a trickle.
    pub unjudged: Duration,
    begun: Instant,
}

impl Drop for World {
    fn drop(&mut self) {
        self.plane.kill(Part::Apiserver);
        self.plane.kill(Part::Etcd);
    }
}

/// Events of connections, by which peace is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peace {
    connected: usize,
    disconnected: usize,
}

/// Things happen to devices all the time, until it is dropped.
pub struct Load(JoinHandle<()>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl World {
    /// A world in which everybody is connected and everything is written. Of the wall clocks one is right.
    pub async fn open(name: &str, replicas: usize) -> Self {
        Self::open_with_clocks(name, replicas, &CLOCKS).await
    }

    /// As [`World::open`], with clocks that are all right: events whose writer died are looked for by wall clocks.
    pub async fn open_on_time(name: &str, replicas: usize) -> Self {
        Self::open_with_clocks(name, replicas, &[0]).await
    }

    async fn open_with_clocks(name: &str, replicas: usize, clocks: &'static [i64]) -> Self {
        let plane: &'static ControlPlane = Box::leak(Box::new(ControlPlane::start().await));
        plane.install_crds().await;
        let scale = Scale::get();
        let cluster = plane.cluster().await;
        let namespace = cluster.namespace(name).await;
        let recorder = Recorder::start(plane).await;
        let flags = [
            format!("--default-heartbeat-seconds={}", scale.heartbeat.as_secs()),
            format!("--stale-multiplier={}", scale.multiplier),
            format!("--mass-disconnects-per-second={}", trickle()),
            format!("--drain-seconds={}", seconds(3, 5).as_secs()),
        ];
        let flags = flags.each_ref().map(String::as_str);
        let replicas = Replicas::start_with_clocks(plane, replicas, &flags, clocks).await;
        let names = fleet(&unique("tor"), scale.devices);
        let mut manifest = deployment(&namespace, "agent", &[("role", "tor")], process_spec("1"));
        manifest["spec"]["updateStrategy"] = json!({ "rollingUpdate": { "maxUnavailable": "25%" } });
        cluster.create(&manifest).await;
        create_switches(&cluster, &namespace, &names, &[("role", "tor")]).await;
        let own = names.iter().map(|name| device_process(&namespace, &format!("own-{name}"), name, process_spec("1")));
        cluster.create_all(own, 32).await;
        let pace = Pace {
            heartbeat: scale.heartbeat,
            look: scale.heartbeat.max(Duration::from_secs(2)),
            wait: Duration::ZERO,
            patience: seconds(2, 4),
            give_up: Duration::from_secs(10),
            keep: false,
            items: 2,
        };
        let crowd = Arc::new(Crowd::start(&replicas.gates(), &names, pace));
        crowd.acked(seconds(120, 180)).await;
        let (removed, unjudged, begun) = (Vec::new(), Duration::ZERO, Instant::now());
        let world =
            Self { replicas, crowd, names, recorder, cluster, namespace, scale, plane, removed, unjudged, begun };
        world.verify("the beginning").await;
        world
    }

    /// Says what comes now.
    pub fn act(&self, what: &str) {
        eprintln!("{:6.1} s {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Everything that is known so far.
    pub fn story(&self) -> Story {
        let versions = self.recorder.look(|seen| seen.iter().filter_map(Version::of).collect());
        let removed = self.removed.clone();
        Story { versions, removed, ..Story::new(&[], &self.recorder.events("", ""), self.crowd.ledger()) }
    }

    /// Waits until no promise is broken: events may still be on their way. Most broken ones stay so.
    pub async fn verify(&self, act: &str) {
        let begun = Instant::now();
        loop {
            let rules = Rules {
                window: self.scale.window(),
                verdict: TAKE_OVER + self.unjudged,
                lag: Duration::from_secs(2),
                ack_lag: Duration::from_secs(10),
                end: Instant::now(),
            };
            let found = check(&self.story(), &rules);
            if found.is_empty() {
                return;
            }
            let some: Vec<_> = found.iter().take(10).map(ToString::to_string).collect();
            assert!(
                begun.elapsed() < Duration::from_secs(12),
                "{act}: {} promises were broken, among them\n  {}\n{}\n{}",
                found.len(),
                some.join("\n  "),
                found.first().map(|violation| self.about(violation)).unwrap_or_default(),
                self.replicas.tails()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What happened to the object of a violation: its versions and the requests of its device, in seconds.
    fn about(&self, violation: &Violation) -> String {
        let text = violation.to_string();
        let story = self.story();
        let Some(first) = story.versions.iter().find(|v| text.contains(&*v.name)) else { return String::new() };
        let (uid, device) = (first.uid.clone(), first.device.clone());
        let since = |at: Instant| format!("{:.2}", at.saturating_duration_since(first.at).as_secs_f64());
        let versions = story.versions.iter().filter(|v| v.uid == uid);
        let versions = versions.map(|v| format!("{} {:?} {:?} {}", since(v.at), v.connected, v.content, v.transitions));
        let attempts = story.attempts.iter().filter(|a| a.report && a.device == device);
        let attempts = attempts.map(|a| format!("{}-{} {} {}", since(a.sent), since(a.ended), a.gate, a.status));
        let [versions, attempts] = [versions.collect::<Vec<_>>(), attempts.collect()];
        let last = |lines: &[String]| lines[lines.len().saturating_sub(30)..].join("\n    ");
        format!("{}:\n    {}\n  {device}:\n    {}", first.name, last(&versions), last(&attempts))
    }

    /// How many were connected and disconnected so far.
    pub fn peace(&self) -> Peace {
        self.recorder.look(|seen| {
            let count =
                |reason: &str| seen.iter().filter(|s| s.kind == Kind::Event && s.object["reason"] == reason).count();
            Peace { connected: count("AgentConnected"), disconnected: count("AgentDisconnected") }
        })
    }

    /// Every promise holds, and nobody was connected or disconnected since.
    pub async fn kept(&self, peace: Peace, act: &str) {
        self.verify(act).await;
        assert_eq!(self.peace(), peace, "{act}: somebody was called dead or alive\n{}", self.replicas.tails());
    }

    /// Some devices, all different, out of some.
    pub fn some(&self, count: usize, of: &[String]) -> Vec<String> {
        of.choose_multiple(&mut rand::rng(), count).cloned().collect()
    }

    /// The devices of one replica.
    pub fn owned(&self, which: usize) -> Vec<String> {
        self.names.iter().filter(|name| self.replicas.owner(name) == which).cloned().collect()
    }

    /// Every half a second something happens to some of these devices.
    pub fn load(&self, of: &[String]) -> Load {
        // About 10 writes a second in short, 40 in full.
        let (crowd, of, count) = (self.crowd.clone(), of.to_vec(), of.len().div_ceil(if full() { 100 } else { 20 }));
        Load(tokio::spawn(async move {
            loop {
                let some: Vec<_> = of.choose_multiple(&mut rand::rng(), count).cloned().collect();
                crowd.change(&some);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }))
    }

    /// Deletes a DeviceProcess; that one may go.
    pub async fn remove(&mut self, name: &str) {
        self.removed.push(format!("{}/{name}", self.namespace));
        self.cluster.delete(Kind::Process, &self.namespace, name).await;
    }

    /// Waits for the fault's own time: what happens within it is judged afterwards.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The devices of which an object says that they are away.
    pub async fn dead(&self) -> BTreeSet<String> {
        let objects = self.cluster.list(Kind::Process, &self.namespace).await;
        let away = objects.iter().filter(|object| condition_status(object, "AgentConnected") == "False");
        away.map(|object| object["spec"]["deviceRef"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until exactly these devices are away, by both of their processes and their switch.
    pub async fn only_dead(&self, names: &[String], deadline: Duration) {
        let expected: BTreeSet<_> = names.iter().cloned().collect();
        wait_for(deadline, format!("{} devices to be away", names.len()), async || {
            let dead = self.dead().await;
            if dead != expected {
                return Err(format!("{} are, one too many: {:?}", dead.len(), dead.difference(&expected).next()));
            }
            let switches = self.cluster.list(Kind::Switch, &self.namespace).await;
            let silent = switches.iter().filter(|object| condition_status(object, "AgentConnected") == "False");
            let silent = silent.count();
            if silent == expected.len() { Ok(()) } else { Err(format!("{silent} switches are")) }
        })
        .await;
    }

    /// Every device is owned by exactly one replica.
    pub async fn shared_out(&self) {
        wait_for(AGREED, "each device to be owned once", async || {
            let owned = self.replicas.sum("praetor_owned_devices").await;
            if owned == self.names.len() as f64 { Ok(()) } else { Err(format!("{owned} of {}", self.names.len())) }
        })
        .await;
    }

    /// What was said in this time could be read within so long.
    pub fn arrived(&self, from: Instant, until: Instant, within: Duration) {
        let delays = self.story().delays(from, until);
        let slow: Vec<_> = delays.iter().filter(|(_, delay)| delay.is_none_or(|delay| delay > within)).collect();
        assert!(
            !delays.is_empty() && slow.is_empty(),
            "{} of {} came late: {:?}",
            slow.len(),
            delays.len(),
            slow.first()
        );
        let slowest = delays.iter().filter_map(|(_, delay)| *delay).max().unwrap_or_default();
        eprintln!("         {} contents, the slowest was written after {:.1} s", delays.len(), slowest.as_secs_f64());
    }

    /// Reports since then: all acknowledged within so long, with so many managers asked at most.
    pub fn answered(&self, from: Instant, managers: usize, within: Duration) {
        self.crowd.look(|ledger| {
            let turns: Vec<_> = ledger.turns.iter().filter(|turn| turn.begun >= from).collect();
            // A report that is overtaken by the next of its device may be refused: the next one counts.
            let mut latest: HashMap<_, Vec<_>> = HashMap::new();
            for turn in turns.iter().filter(|turn| turn.acked && turn.attempts <= managers) {
                latest.entry(&turn.device).or_default().push((turn.begun, turn.ended));
            }
            let good = |turn: &Turn| {
                let acked = latest.get(&turn.device).into_iter().flatten();
                acked.into_iter().any(|(begun, ended)| *begun >= turn.begun && *ended <= turn.begun + within)
            };
            let bad: Vec<_> = turns.iter().filter(|turn| turn.begun + within < Instant::now() && !good(turn)).collect();
            let again = turns.iter().filter(|turn| turn.attempts > 1).count();
            let slowest = turns.iter().map(|turn| turn.ended - turn.begun).max().unwrap_or_default();
            eprintln!(
                "         {} reports, {again} of them twice, {:.1} s at most",
                turns.len(),
                slowest.as_secs_f64()
            );
            let tell = |turn: &&&Turn| {
                let tries = ledger.attempts.iter().filter(|a| a.report && a.device == turn.device);
                let tries = tries.filter(|a| a.sent >= turn.begun && a.sent <= turn.ended).map(|a| {
                    let times = [a.sent, a.ended].map(|at| format!("{:.2}", (at - from).as_secs_f64()));
                    format!("{} {} {}", a.gate, times.join("-"), a.status)
                });
                format!("\n  {} {}", turn.device, tries.collect::<Vec<_>>().join(", "))
            };
            let some: String = bad.iter().take(20).map(tell).collect();
            assert!(
                !turns.is_empty() && bad.is_empty(),
                "{} of {} reports not answered, or slowly; seconds since it began:{some}\n{}",
                bad.len(),
                turns.len(),
                self.replicas.tails()
            );
        });
    }

    /// Nothing but Leases is written, for so long.
    pub async fn quiet(&self, time: Duration) {
        // Counters and deployments' numbers may still be on their way.
        wait_for(Duration::from_secs(90), "a moment without writes", async || {
            let mark = self.plane.audit_mark();
            tokio::time::sleep(Duration::from_secs(3)).await;
            self.plane.audit_since(mark).by(MANAGER_USER).writes().count() == 0
        })
        .await;
        let mark = self.plane.audit_mark();
        self.pass(time).await;
        let asked = self.plane.audit_since(mark).by(MANAGER_USER);
        let written = asked.clone().writes();
        assert_eq!(written.count(), 0, "{}", written.describe());
        let rate = asked.count() as f64 / time.as_secs_f64();
        let others = asked.filter(|entry| entry.resource != "leases" && entry.verb != "watch");
        assert_eq!(others.count(), 0, "{}", others.describe());
        eprintln!("         {rate:.2} requests a second");
        assert!(rate <= 4.0, "{rate:.2} requests a second of an idle fleet");
    }

    /// Waits until the deployment has this many processes of the newest template, all available.
    pub async fn rolled_out(&self, deadline: Duration) {
        let count = self.names.len();
        let done = move |object: &Value| {
            let status = &object["status"];
            status["observedGeneration"] == object["metadata"]["generation"]
                && status["updatedNumberScheduled"] == count
                && status["numberAvailable"] == count
        };
        self.cluster.wait_object(Kind::Deployment, &self.namespace, "agent", deadline, "rolled out", done).await;
    }

    /// Waits until every replica's watches are open and have shown what is there now. After an outage each is opened
    /// again at its own time.
    pub async fn caught_up(&self) {
        let (begun, stamp) = (Instant::now(), unique("seen"));
        let process = format!("own-{}", self.names[0]);
        for (kind, name) in [(Kind::Switch, &*self.names[0]), (Kind::Process, &process), (Kind::Deployment, "agent")] {
            self.cluster.label(kind, &self.namespace, name, "seen", Some(&stamp)).await;
        }
        wait_for(AGREED, "every watch to tell of it", async || {
            let silent = |page: &Metrics| page.starting("praetor_watch_last_event_seconds{");
            let since = begun.elapsed().as_secs_f64();
            let pages = self.replicas.metrics().await;
            let kinds = ["DeviceProcess", "DeviceProcessDeployment", "NetworkSwitch"];
            let series = kinds.map(|kind| format!("praetor_watch_last_event_seconds{{kind=\"{kind}\"}}"));
            let heard =
                |page: &Metrics| series.iter().all(|series| page.0.get(series).is_some_and(|silent| *silent < since));
            if pages.iter().all(heard) { Ok(()) } else { Err(pages.iter().map(silent).collect::<String>()) }
        })
        .await;
    }

    /// Waits until every device was acknowledged so many times more.
    pub async fn all_repeated(&self, times: usize, deadline: Duration) {
        let begun = Instant::now();
        wait_for(deadline, format!("{times} reports of each device to be acknowledged"), async || {
            let acked = self.crowd.look(|ledger| {
                let mut acked: HashMap<_, usize> = HashMap::new();
                for turn in ledger.turns.iter().filter(|turn| turn.begun >= begun && turn.acked) {
                    *acked.entry(turn.device.clone()).or_default() += 1;
                }
                acked
            });
            let missing = self.names.iter().find(|name| acked.get(&***name).is_none_or(|count| *count < times));
            missing.map_or(Ok(()), |name| Err(format!("{name}: {:?}", acked.get(&**name))))
        })
        .await;
    }

    /// Changes many objects a little, as admin.
    pub async fn touch(&self, value: &str) {
        let touches = self.names.iter().map(|name| async move {
            self.cluster.label(Kind::Switch, &self.namespace, name, "touched", Some(value)).await
        });
        futures::stream::iter(touches).buffer_unordered(16).count().await;
    }
}
