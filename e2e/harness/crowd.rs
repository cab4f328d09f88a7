//! Many devices in one process: each reports on a timer of its own, every time to any manager, moves on when one does
//! not answer, asks what it should run and never accepts an older answer; and all that they were told is kept.
//!
//! What a process is like is a number that only grows, its *content*: the device says it as the artifact's digest, so
//! that each version of an object shows how far it has come. Every fourth content is an unhealthy one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use http::Method;
use parking_lot::Mutex;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use super::device::{Device, Kept, derived_token};
use super::ledger::{Ack, Attempt, Ledger, Said, Silence, Turn};
use super::process::unique;
use super::programs::SECRET;
use super::replicas::Gates;
use super::wait::wait_for;

/// A manager that did not answer is asked last for so long.
const SHUN: Duration = Duration::from_secs(5);
/// What devices take for the time; theirs stand still.
const CLOCKS: [&str; 3] = ["1970-01-01T00:00:07Z", "2013-03-04T05:06:07Z", "2061-12-31T23:59:59Z"];

/// What a process of this content reports as its artifact's digest.
pub fn digest(content: u64) -> String {
    format!("sha256:{content:064x}")
}

/// The content that a status shows; none before the first report.
pub fn content(object: &Value) -> Option<u64> {
    u64::from_str_radix(object["status"]["artifactDigest"].as_str()?.strip_prefix("sha256:")?, 16).ok()
}

/// Whether a process of this content is well.
pub fn is_healthy(content: u64) -> bool {
    content % 4 != 3
}

/// How devices behave.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between reports.
    pub heartbeat: Duration,
    /// Between questions for the desired state.
    pub look: Duration,
    /// So long a question may be parked until there is news, whole seconds; zero: it is answered at once.
    pub wait: Duration,
    /// After so long without an answer (beyond the wait) another manager is asked, too.
    pub patience: Duration,
    /// After so long (beyond the wait) no answer is expected any more.
    pub give_up: Duration,
    /// Whether connections stay open between requests; otherwise each is a new one.
    pub keep: bool,
    /// Processes of each device: fewer in an answer are a fault. 0: any.
    pub items: usize,
}

#[derive(Default)]
struct Item {
    hash: String,
    content: u64,
    said: Option<u64>,
    acked: Option<u64>,
}

struct State {
    alive: bool,
    boot: String,
    sequence: u64,
    /// When the report began that is under way.
    reporting: Option<Instant>,
    /// There is news since.
    again: bool,
    /// When a report that was put off is to be repeated.
    retry: Option<Instant>,
    items: BTreeMap<Arc<str>, Item>,
    etag: String,
    revision: u64,
    shunned: HashMap<String, Instant>,
    barred: BTreeSet<String>,
}

struct Member {
    name: Arc<str>,
    token: String,
    state: Mutex<State>,
    hurry: Notify,
    looking: Semaphore,
    kept: Kept,
    ledger: Arc<Mutex<Ledger>>,
    gates: Gates,
    pace: Pace,
}

/// The devices; they end when it is dropped.
pub struct Crowd {
    members: BTreeMap<String, Arc<Member>>,
    ledger: Arc<Mutex<Ledger>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Crowd {
    /// Starts all of them.
    pub fn start(gates: &Gates, names: &[String], pace: Pace) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let member = |name: &String| {
            let state = State {
                alive: true,
                boot: unique("boot"),
                sequence: 0,
                reporting: None,
                again: false,
                retry: None,
                items: BTreeMap::new(),
                etag: String::new(),
                revision: 0,
                shunned: HashMap::new(),
                barred: BTreeSet::new(),
            };
            let member = Member {
                name: name.as_str().into(),
                token: derived_token(SECRET, name),
                state: Mutex::new(state),
                hurry: Notify::new(),
                looking: Semaphore::new(1),
                kept: Kept::default(),
                ledger: ledger.clone(),
                gates: gates.clone(),
                pace,
            };
            (name.clone(), Arc::new(member))
        };
        let members: BTreeMap<_, _> = names.iter().map(member).collect();
        let tasks = members.values().map(|member| tokio::spawn(live(member.clone()))).collect();
        Self { members, ledger, tasks }
    }

    /// Everything so far.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().clone()
    }

    /// Looks at everything so far.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock())
    }

    fn member(&self, name: &str) -> &Arc<Member> {
        self.members.get(name).unwrap_or_else(|| panic!("no device {name} in the crowd"))
    }

    /// They die: nothing of them is under way after this.
    pub fn silence(&self, names: &[String]) {
        for name in names {
            let member = self.member(name);
            if std::mem::replace(&mut member.state.lock().alive, false) {
                let silence = Silence { device: member.name.clone(), from: Instant::now(), until: None };
                self.ledger.lock().silences.push(silence);
                member.hurry.notify_one();
            }
        }
    }

    /// They come back and report at once, with a bootId of their own.
    pub fn revive(&self, names: &[String]) {
        for name in names {
            let member = self.member(name);
            {
                let mut state = member.state.lock();
                (state.alive, state.boot, state.sequence) = (true, unique("boot"), 0);
                (state.reporting, state.again) = (None, false);
            }
            let mut ledger = self.ledger.lock();
            let open = ledger.silences.iter_mut().rfind(|s| *s.device == **name && s.until.is_none());
            open.expect("it was silent").until = Some(Instant::now());
            member.hurry.notify_one();
        }
    }

    /// Something happens to all their processes, and they say so at once.
    pub fn change(&self, names: &[String]) {
        for name in names {
            let member = self.member(name);
            member.state.lock().items.values_mut().for_each(|item| item.content += 1);
            member.hurry.notify_one();
        }
    }

    /// All processes that were ill are well again, and their devices say so at once.
    pub fn heal(&self) {
        for member in self.members.values() {
            let mut state = member.state.lock();
            for item in state.items.values_mut().filter(|item| !is_healthy(item.content)) {
                item.content += 1;
                member.hurry.notify_one();
            }
        }
    }

    /// These devices cannot reach this manager any more.
    pub fn bar(&self, names: &[String], gate: &str) {
        for name in names {
            self.member(name).state.lock().barred.insert(gate.into());
        }
    }

    /// Now they can.
    pub fn unbar(&self, names: &[String], gate: &str) {
        for name in names {
            self.member(name).state.lock().barred.remove(gate);
        }
    }

    /// What a device has to say and what it was told lately, seconds from a moment on.
    fn describe(&self, member: &Member, from: Instant) -> String {
        let items: Vec<_> = {
            let state = member.state.lock();
            state.items.iter().map(|(name, item)| format!("{name} {} {:?}", item.content, item.acked)).collect()
        };
        let since = |at: Instant| at.saturating_duration_since(from).as_secs_f64();
        let ledger = self.ledger.lock();
        let mine = ledger.attempts.iter().rev().filter(|a| a.device == member.name).take(20);
        let tries: Vec<_> = mine
            .map(|a| format!("{} {} {:.2}-{:.2} {}", a.gate, a.report, since(a.sent), since(a.ended), a.status))
            .collect();
        format!("{}: {}; its last requests:\n  {}", member.name, items.join(", "), tries.join("\n  "))
    }

    /// Waits until everything that living devices have to say is acknowledged, and returns how long that took.
    #[track_caller]
    pub fn acked(&self, deadline: Duration) -> impl Future<Output = Duration> {
        let begun = Instant::now();
        wait_for(deadline, "everything to be acknowledged", async move || {
            let waiting: Vec<_> = self.members.values().filter(|member| !member.is_settled()).collect();
            match waiting.first() {
                None => Ok(begun.elapsed()),
                Some(first) => Err(format!("{} devices wait, one is {}", waiting.len(), self.describe(first, begun))),
            }
        })
    }
}

impl Member {
    fn is_settled(&self) -> bool {
        let state = self.state.lock();
        let done = state.items.values().all(|item| item.acked == Some(item.content));
        !state.alive || (done && !state.items.is_empty() && state.items.len() >= self.pace.items)
    }

    fn complain(&self, what: String) {
        self.ledger.lock().complaints.push(format!("{}: {what}", self.name));
    }

    /// Any manager that was not tried yet; those that did not answer lately come last.
    fn choose(&self, tried: &[Arc<str>]) -> Option<(Arc<str>, SocketAddr)> {
        let state = self.state.lock();
        let mut gates = self.gates.all();
        gates.retain(|(name, _)| !state.barred.contains(name) && !tried.iter().any(|known| **known == **name));
        let now = Instant::now();
        let good: Vec<_> =
            gates.iter().filter(|(name, _)| state.shunned.get(name).is_none_or(|until| *until < now)).collect();
        let chosen = good.choose(&mut rand::rng()).copied().or_else(|| gates.choose(&mut rand::rng()));
        chosen.map(|(name, address)| (name.as_str().into(), *address))
    }

    fn shun(&self, gate: &str) {
        self.state.lock().shunned.insert(gate.into(), Instant::now() + SHUN);
    }

    /// How long an answer may be parked.
    fn wait(&self, method: &Method) -> Duration {
        if *method == Method::GET { self.pace.wait } else { Duration::ZERO }
    }

    async fn attempt(
        &self,
        gate: Arc<str>,
        address: SocketAddr,
        method: Method,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (Arc<str>, Option<super::Answer>) {
        let device = Device { address, name: self.name.to_string(), token: self.token.clone() };
        let report = method == Method::POST;
        let path = match self.wait(&method).as_secs() {
            _ if report => device.path("report"),
            0 => device.path("desired"),
            seconds => device.path(&format!("desired?waitSeconds={seconds}")),
        };
        let sent = Instant::now();
        let give_up = self.wait(&method) + self.pace.give_up;
        let exchange = async {
            if self.pace.keep {
                return device.try_send_on(&self.kept, method, &path, headers, body.to_owned()).await;
            }
            device.try_send(method, &path, headers, body.to_owned()).await
        };
        let answer = tokio::time::timeout(give_up, exchange).await.ok().and_then(Result::ok);
        self.ledger.lock().attempts.push(Attempt {
            device: self.name.clone(),
            gate: gate.clone(),
            report,
            sent,
            ended: Instant::now(),
            status: answer.as_ref().map_or(0, |answer| answer.status),
            retry_after: answer.as_ref().and_then(|answer| answer.header("retry-after").parse().ok()),
        });
        (gate, answer)
    }

    /// Asks one manager after the other, the next also when one takes long, until one answers.
    async fn ask(&self, method: Method, headers: &[(&str, &str)], body: &str) -> (usize, Option<super::Answer>) {
        let mut tried: Vec<Arc<str>> = Vec::new();
        let mut pending = FuturesUnordered::new();
        let (mut another, mut refused) = (true, None);
        loop {
            if another && let Some((gate, address)) = self.choose(&tried) {
                tried.push(gate.clone());
                pending.push(self.attempt(gate, address, method.clone(), headers, body));
            }
            tokio::select! {
                answered = pending.next() => match answered {
                    // One that is behind what the device has seen: another may not be.
                    Some((_, Some(answer))) if method == Method::GET && answer.status == 503 => {
                        (refused, another) = (Some(answer), true);
                    }
                    Some((_, Some(answer))) => return (tried.len(), Some(answer)),
                    Some((gate, None)) => {
                        self.shun(&gate);
                        another = true;
                    }
                    None => return (tried.len(), refused),
                },
                () = tokio::time::sleep(self.wait(&method) + self.pace.patience) => {
                    if let Some(slow) = tried.last() {
                        self.shun(slow);
                    }
                    another = true;
                }
            }
        }
    }

    async fn report(&self) {
        let (body, sequence, contents) = self.say();
        let begun = Instant::now();
        let (attempts, answer) =
            self.ask(Method::POST, &[("content-type", "application/json")], &body.to_string()).await;
        let ended = Instant::now();
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let rejected = answer.as_ref().is_some_and(|answer| answer.json()["rejected"].is_array());
        if rejected || !matches!(status, 0 | 200 | 500..) {
            self.complain(format!("report: {status} {}", answer.as_ref().map(super::Answer::text).unwrap_or_default()));
        }
        let acked = status == 200 && !rejected;
        if !acked {
            // As told, or soon.
            let wait = answer.as_ref().and_then(|answer| answer.header("retry-after").parse().ok());
            self.state.lock().retry = Some(ended + Duration::from_secs(wait.unwrap_or(2)));
        }
        let mut state = self.state.lock();
        if state.sequence == sequence {
            state.reporting = None;
            if std::mem::take(&mut state.again) {
                self.hurry.notify_one();
            }
        }
        let mut ledger = self.ledger.lock();
        ledger.turns.push(Turn { device: self.name.clone(), begun, ended, attempts, acked });
        // What was overtaken on the way by a later report is answered 200 and changes nothing.
        if acked && state.sequence == sequence {
            for (process, content) in contents {
                if let Some(item) = state.items.get_mut(&process) {
                    item.acked = item.acked.max(Some(content));
                }
                ledger.acks.push(Ack { device: self.name.clone(), process, content, sent: begun, at: ended });
            }
        }
    }

    /// The next report, its sequence, and what it says of each process.
    fn say(&self) -> (Value, u64, Vec<(Arc<str>, u64)>) {
        let mut state = self.state.lock();
        state.sequence += 1;
        state.reporting = Some(Instant::now());
        let (mut observations, mut contents) = (Vec::new(), Vec::new());
        let clock = CLOCKS[self.name.bytes().map(usize::from).sum::<usize>() % CLOCKS.len()];
        for (process, item) in &mut state.items {
            let (namespace, name) = process.split_once('/').expect("a namespace");
            observations.push(json!({
                "namespace": namespace, "name": name, "observedSpecHash": item.hash, "runningSpecHash": item.hash,
                "processStarted": true, "healthy": is_healthy(item.content), "pid": 4711, "startTime": clock,
                "artifactDigest": digest(item.content),
            }));
            contents.push((process.clone(), item.content));
            if item.said.replace(item.content) != Some(item.content) {
                let said = Said { process: process.clone(), content: item.content, at: Instant::now() };
                self.ledger.lock().said.push(said);
            }
        }
        let body = json!({
            "agentVersion": "0.1.0", "timestamp": clock, "heartbeat": true,
            "bootId": state.boot, "sequence": state.sequence,
            "observations": observations,
        });
        (body, state.sequence, contents)
    }

    /// Asks what to run. One at a time, so that answers have an order.
    async fn look(&self) {
        let Ok(_permit) = self.looking.try_acquire() else { return };
        let (etag, revision) = {
            let state = self.state.lock();
            (state.etag.clone(), state.revision)
        };
        let highest = revision.to_string();
        let mut headers = vec![("x-praetor-min-revision", highest.as_str())];
        if !etag.is_empty() {
            headers.push(("if-none-match", &etag));
        }
        let begun = Instant::now();
        let (attempts, answer) = self.ask(Method::GET, &headers, "").await;
        let acked = answer.as_ref().is_some_and(|answer| matches!(answer.status, 200 | 304));
        let turn = Turn { device: self.name.clone(), begun, ended: Instant::now(), attempts, acked };
        self.ledger.lock().questions.push(turn);
        let Some(answer) = answer else { return };
        match answer.status {
            200 | 304 => {}
            500.. => return,
            status => return self.complain(format!("desired: {status} {}", answer.text())),
        }
        let told = answer.header("x-praetor-revision").parse().unwrap_or(0);
        if told < revision {
            self.complain(format!("desired: revision {told} after {revision}"));
        }
        let mut state = self.state.lock();
        state.revision = told.max(revision);
        if answer.status == 304 {
            return;
        }
        state.etag = answer.etag().to_owned();
        let body = answer.json();
        let listed = body["items"].as_array().cloned().unwrap_or_default();
        // In the beginning there may be fewer: they are being made.
        if listed.len() < self.pace.items && state.items.len() >= self.pace.items {
            self.complain(format!("desired: {} items instead of {}", listed.len(), self.pace.items));
        }
        let mut news = false;
        let mut items = BTreeMap::new();
        for item in &listed {
            let text = |key: &str| item[key].as_str().unwrap_or_default();
            let process: Arc<str> = format!("{}/{}", text("namespace"), text("name")).into();
            let mut known = state.items.remove(&process).unwrap_or_default();
            if known.hash != text("specHash") {
                known.hash = text("specHash").to_owned();
                // Another spec is another artifact, as healthy as the one before.
                known.content += 4;
                news = true;
            }
            items.insert(process, known);
        }
        state.items = items;
        if news {
            self.hurry.notify_one();
        }
    }
}

/// The life of one device.
async fn live(member: Arc<Member>) {
    // Dropped, and with it all that is under way, when the device falls silent.
    let mut errands = JoinSet::new();
    let spread = member.pace.heartbeat.mul_f64(rand::rng().random_range(0.0..1.0));
    let mut beat = Instant::now() + spread;
    let mut look = Instant::now() + spread.min(Duration::from_secs(1));
    loop {
        let mut report = false;
        let next = member.state.lock().retry.map_or(beat, |retry| retry.min(beat));
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => report = true,
            () = tokio::time::sleep_until(look.into()) => {
                look = Instant::now() + member.pace.look;
                let member = member.clone();
                errands.spawn(async move { member.look().await });
            }
            () = member.hurry.notified() => report = true,
            Some(_) = errands.join_next(), if !errands.is_empty() => {}
        }
        while !member.state.lock().alive {
            errands.abort_all();
            member.hurry.notified().await;
            report = true;
        }
        if report {
            beat = Instant::now() + member.pace.heartbeat;
            let mut state = member.state.lock();
            state.retry = None;
            // One after the other, unless one takes so long that it may never come.
            if state.reporting.is_some_and(|begun| begun.elapsed() < member.pace.patience * 2) {
                state.again = true;
                continue;
            }
            drop(state);
            let member = member.clone();
            errands.spawn(async move { member.report().await });
        }
    }
}
