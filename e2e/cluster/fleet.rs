//! Simulated devices with a process each, by which all promises are judged: who was called dead, what was acknowledged
//! and lost, which event came twice, what was written for nothing, which request failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::forwards::Forwards;
use crate::harness::scenario::{create_switches, deployment, fleet, process_spec};
use crate::harness::{Cluster, Crowd, Kind, Pace, Recorder, Turn, condition_status, unique, wait_for};
use crate::history::{Rules, Story, check};
use crate::play::{Play, seconds};

/// How many.
pub const DEVICES: usize = 100;
/// As the manager is installed: a heartbeat of 15 s, stale after three.
pub const WINDOW: Duration = Duration::from_secs(45);
/// How late a verdict may come when a replica has died, too.
const TAKE_OVER: Duration = Duration::from_secs(30);
/// Between reports; shorter than the window by far, so that each is silent for the manager's sake only.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long questions are parked.
const WAIT: Duration = Duration::from_secs(20);
/// A report that was put off or overtaken has to be acknowledged after so long.
const ACKED: Duration = Duration::from_secs(10);

/// The devices, and everything that the cluster shows of them.
pub struct Fleet {
    /// Their names.
    pub names: Vec<String>,
    /// What they do.
    pub crowd: Arc<Crowd>,
    /// Where their objects are.
    pub namespace: String,
    recorder: Recorder,
    cluster: Cluster,
    judged: Arc<AtomicBool>,
}

/// A device that says nothing more.
pub struct Silent {
    /// Which.
    pub device: String,
    since: Instant,
}

/// Things happen to devices all the time, until it is dropped.
pub struct Load(JoinHandle<()>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fleet {
    /// Creates them, and returns when everything that they have to say is in the cluster.
    pub async fn start(play: &Play, forwards: &Forwards, recorder: Recorder) -> Self {
        let cluster = play.cluster.clone();
        let namespace = cluster.namespace("fleet").await;
        let names = fleet(&unique("tor"), DEVICES);
        let begun = Instant::now();
        let mut manifest = deployment(&namespace, "agent", &[("role", "tor")], process_spec("1"));
        manifest["spec"]["updateStrategy"] = json!({ "rollingUpdate": { "maxUnavailable": "25%" } });
        cluster.create(&manifest).await;
        create_switches(&cluster, &namespace, &names, &[("role", "tor")]).await;
        let pace = Pace {
            heartbeat: HEARTBEAT,
            look: Duration::from_secs(1),
            wait: WAIT,
            patience: Duration::from_secs(4),
            give_up: Duration::from_secs(10),
            keep: true,
            items: 1,
        };
        let crowd = Arc::new(Crowd::start(&forwards.gates(), &names, pace));
        crowd.acked(Duration::from_secs(90)).await;
        let fleet = Self { names, crowd, namespace, recorder, cluster, judged: Arc::default() };
        fleet.verify("the beginning").await;
        let seen = |kind: &str| fleet.recorder.events(kind, "").len();
        play.ok(format!(
            "{DEVICES} simulated devices through forwards to {} replicas: all connected and acknowledged after {}, {} \
             events AgentConnected",
            forwards.ready().len(),
            seconds(begun.elapsed()),
            seen("AgentConnected")
        ));
        fleet
    }

    /// Every half a second something happens to some of these devices, but while they are judged.
    pub fn load(&self) -> Load {
        let (crowd, names, judged) = (self.crowd.clone(), self.names.clone(), self.judged.clone());
        Load(tokio::spawn(async move {
            loop {
                let some: Vec<_> = names.choose_multiple(&mut rand::rng(), 4).cloned().collect();
                if !judged.load(Ordering::Relaxed) {
                    crowd.change(&some);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }))
    }

    /// Another version for all of them; returns when all run it.
    pub async fn edit(&self, version: &str) -> Duration {
        let begun = Instant::now();
        let edit = json!({ "spec": { "template": { "spec": process_spec(version) } } });
        self.cluster.merge(Kind::Deployment, &self.namespace, "agent", &edit).await;
        let done = |object: &Value| {
            let status = &object["status"];
            status["observedGeneration"] == object["metadata"]["generation"]
                && status["updatedNumberScheduled"] == DEVICES
                && status["currentNumberScheduled"] == DEVICES
        };
        let deadline = Duration::from_secs(120);
        self.cluster.wait_object(Kind::Deployment, &self.namespace, "agent", deadline, "rolled out", done).await;
        begun.elapsed()
    }

    /// Everything that is known so far.
    fn story(&self) -> Story {
        let events = self.recorder.events("", "");
        self.recorder.look(|seen| Story::new(seen, &events, self.crowd.ledger()))
    }

    /// Waits until no promise is broken: events may still be on their way. Most broken ones stay so.
    pub async fn verify(&self, act: &str) {
        wait_for(Duration::from_secs(15), format!("all promises to be kept after {act}"), async || {
            let rules = Rules {
                window: WINDOW,
                verdict: TAKE_OVER,
                lag: Duration::from_secs(2),
                ack_lag: Duration::from_secs(5),
                end: Instant::now(),
            };
            let found = check(&self.story(), &rules);
            let some: Vec<_> = found.iter().take(10).map(ToString::to_string).collect();
            if found.is_empty() { Ok(()) } else { Err(format!("{} broken:\n  {}", found.len(), some.join("\n  "))) }
        })
        .await;
    }

    /// Events of objects that were called dead so far, of all namespaces.
    pub fn disconnects(&self) -> Vec<String> {
        self.recorder.events("AgentDisconnected", "").into_iter().map(|event| event.object).collect()
    }

    /// One falls silent; somebody has to find out.
    pub fn silence(&self) -> Silent {
        let device = self.names.choose(&mut rand::rng()).expect("some").clone();
        self.crowd.silence(std::slice::from_ref(&device));
        Silent { device, since: Instant::now() }
    }

    /// It was called dead, not before its time, and comes back at once. Nobody else was.
    pub async fn found_out(&self, silent: Silent) -> (Duration, Duration) {
        let process = format!("agent-{}", silent.device);
        let dead = |object: &Value| condition_status(object, "AgentConnected") == "False";
        let left = (WINDOW + TAKE_OVER).saturating_sub(silent.since.elapsed());
        let at = self.recorder.wait_first(Kind::Process, &self.namespace, &process, left, "called dead", dead).await;
        let found = at - silent.since;
        assert!(found + HEARTBEAT >= WINDOW, "called dead after {}", seconds(found));
        let begun = Instant::now();
        self.crowd.revive(std::slice::from_ref(&silent.device));
        let alive = |object: &Value| condition_status(object, "AgentConnected") == "True";
        self.cluster
            .wait_object(Kind::Process, &self.namespace, &process, Duration::from_secs(5), "alive again", alive)
            .await;
        (found, begun.elapsed())
    }

    /// Waits until every living device has had a report answered that began later than this.
    async fn heard_again(&self) {
        let begun = Instant::now();
        wait_for(HEARTBEAT + ACKED, "a new report of every living device", async || {
            self.crowd.look(|ledger| {
                let heard: BTreeSet<&str> =
                    ledger.turns.iter().filter(|it| it.acked && it.begun >= begun).map(|it| &*it.device).collect();
                let away: BTreeSet<&str> =
                    ledger.silences.iter().filter(|it| it.until.is_none()).map(|it| &*it.device).collect();
                let missing = |name: &&String| !heard.contains(name.as_str()) && !away.contains(name.as_str());
                let missing: Vec<_> = self.names.iter().filter(missing).collect();
                if missing.is_empty() { Ok(()) } else { Err(format!("{} are missing: {missing:?}", missing.len())) }
            })
        })
        .await;
    }

    /// Judges all that ended since then, and says it in some words: nobody was called dead but those who were, every
    /// report and every long-poll was answered by the first or the second manager that was asked. With all living
    /// devices heard again, nothing more on its way.
    pub async fn calm(&self, since: Instant, act: &str) -> String {
        self.judged.store(true, Ordering::Relaxed);
        self.heard_again().await;
        self.crowd.acked(Duration::from_secs(20)).await;
        self.verify(act).await;
        self.judged.store(false, Ordering::Relaxed);
        let silent =
            self.crowd.look(|it| it.silences.iter().map(|it| format!("agent-{}", it.device)).collect::<Vec<_>>());
        let dead: Vec<_> = self.disconnects().into_iter().filter(|process| !silent.contains(process)).collect();
        assert!(dead.is_empty(), "called dead during {act}: {dead:?}");
        let [reports, polls] = self.crowd.look(|ledger| {
            [("reports", &ledger.turns, true), ("long-polls", &ledger.questions, false)].map(|(what, turns, late)| {
                let (failed, text) = judge(turns, since, late);
                assert!(failed.is_empty(), "{act}: {what} that failed beyond one retry: {failed:#?}");
                format!("{text} {what}")
            })
        });
        format!("0 disconnects, 0 lost, {reports}, {polls}")
    }

    /// All of it once more, when also those polls are over that were parked during the last act; with what answers
    /// there were.
    pub async fn in_all(&self, since: Instant) -> String {
        let begun = Instant::now();
        wait_for(WAIT + ACKED, "a new question of every device", async || {
            self.crowd.look(|ledger| {
                let asked: BTreeSet<_> =
                    ledger.questions.iter().filter(|it| it.ended >= begun).map(|it| &it.device).collect();
                if asked.len() == self.names.len() { Ok(()) } else { Err(format!("{}", asked.len())) }
            })
        })
        .await;
        let calm = self.calm(since, "all of it").await;
        let mut answers: BTreeMap<(bool, u16), usize> = BTreeMap::new();
        self.crowd
            .look(|it| it.attempts.iter().for_each(|it| *answers.entry((it.report, it.status)).or_default() += 1));
        let answers = answers.into_iter().map(|((report, status), count)| {
            let what = if report { "reports" } else { "polls" };
            if status == 0 { format!("{count} {what} without an answer") } else { format!("{count} {what} {status}") }
        });
        format!("{calm}; answers: {}", answers.collect::<Vec<_>>().join(", "))
    }
}

/// Those of the turns that ended since then and were not answered by the first or the second manager that was asked, and
/// a text: how many there were, and how many needed a retry. A report that is put off (503) counts by the next of its device; a
/// question may not be.
fn judge(turns: &[Turn], since: Instant, put_off_is_fine: bool) -> (Vec<&Turn>, String) {
    let recent: Vec<&Turn> = turns.iter().filter(|turn| turn.ended >= since).collect();
    let good = |turn: &Turn| turn.acked && turn.attempts <= 2;
    let healed = |bad: &Turn| {
        let limit = bad.ended + ACKED;
        let next = |it: &&&Turn| it.device == bad.device && it.begun >= bad.begun && it.ended <= limit;
        put_off_is_fine && bad.attempts <= 2 && recent.iter().filter(next).any(|it| good(it))
    };
    let failed = recent.iter().filter(|turn| !good(turn) && !healed(turn)).copied().collect();
    let retried = recent.iter().filter(|turn| turn.attempts > 1).count();
    let put_off = recent.iter().filter(|turn| !turn.acked).count();
    (failed, format!("{retried} retried and {put_off} put off of {}", recent.len()))
}
