//! What must hold, looked at after every step, and at the end when all faults are over.

use super::apiserver::{ApiServer, Patch};
use super::report::{Body, Item, content_of, spin_of};
use super::rng::Rng;
use super::world::Address;
use praetor::desired::index::Kind;
use praetor::desired::object::Opened;
use praetor::status::budget::{BURST, PERIOD_MS};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Silence after which a device is called dead, milliseconds.
pub const WINDOW_MS: u64 = 45_000;
/// The same for the fastest clock, less rounding.
const SHORTEST_WINDOW_MS: u64 = WINDOW_MS * 98 / 100 - 100;
/// What a live member heard in this time before a verdict may not be known yet.
const FRESH_MS: u64 = 5_300;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub at: u64,
    pub rule: &'static str,
    pub what: String,
}

/// A DeviceProcess as the apiserver has it.
#[derive(Debug, Default)]
struct Live {
    uid: String,
    device: usize,
    created: u64,
    content: Option<u32>,
    /// The highest serial that was acknowledged for this uid, when and by whom.
    acked: usize,
    acked_at: u64,
    acked_by: Option<Address>,
    acked_boot: Arc<str>,
    /// When it went back to an older report, by one of the ways that are left to the next report to heal.
    regressed: Option<u64>,
}

/// What a process of a device has been, oldest first.
#[derive(Debug, Default)]
struct Truth {
    contents: Vec<u32>,
    spin: u32,
}

/// See the module.
#[derive(Default)]
pub struct Checker {
    pub violations: Vec<Violation>,
    now: u64,
    truths: HashMap<(usize, String), Truth>,
    live: BTreeMap<String, Live>,
    /// When devices were heard and by whom, latest last.
    contacts: HashMap<usize, VecDeque<(u64, Address)>>,
    /// Reports that reached processes while they stood still.
    unread: Vec<(u64, usize, Address)>,
    /// The lives of replicas that go on now, and those that do not stand still.
    lives: BTreeSet<Address>,
    running: BTreeSet<Address>,
    /// When the latest batch was made that one replica took in from another.
    told: HashMap<(Address, Address), u64>,
    /// Transitions that were written: uid, reason, counter; and the name of the object.
    transitions: BTreeMap<(String, String, u64), String>,
    /// Events that were written, by name.
    events: HashMap<String, (String, String, u64)>,
    /// Events that may be lost.
    lost: HashSet<(String, String, u64)>,
    /// How often a request of a device was forwarded.
    forwards: HashMap<(usize, u64), u32>,
    /// What devices have been served since their last start: uids with the highest generation, and uids that were
    /// taken away.
    served: HashMap<usize, Served>,
    /// uids that were deleted, with the revision at which they were.
    deleted: HashMap<String, u64>,
    /// Status writes so far.
    pub writes: u64,
    pub last_write: u64,
    /// AgentConnected went to False so often.
    pub deaths: u64,
    /// Reports that were forwarded.
    pub forwarded: u64,
    /// Reports that were acknowledged.
    pub acks: u64,
    /// Turns that processes took.
    pub spins: u64,
    /// What each life of a replica wrote of an object, by uid, since it last wrote of another spec: how often because
    /// of the process alone.
    turns: HashMap<(Address, String), Turns>,
    /// Replicas that end: they write down at once whatever they hold.
    ending: HashSet<Address>,
}

#[derive(Debug, Default)]
struct Served {
    generations: HashMap<String, i64>,
    last: HashSet<String>,
    gone: HashSet<String>,
}

/// Writes because of what a process does over and over, and others.
#[derive(Debug)]
struct Turns {
    paid: u64,
    free: u64,
    since: u64,
}

impl Checker {
    /// Time moves.
    pub fn tick(&mut self, now: u64) {
        self.now = now;
    }

    /// Notes a violation.
    pub fn fail(&mut self, rule: &'static str, what: String) {
        self.violations.push(Violation { at: self.now, rule, what });
    }

    // --- what devices are ---

    /// The latest serial and content of a process, and its spin.
    pub fn truth(&mut self, device: usize, name: &str) -> (usize, u32, u32) {
        let truth = self.truths.entry((device, name.to_owned())).or_default();
        if truth.contents.is_empty() {
            truth.contents.push(1);
        }
        (truth.contents.len() - 1, truth.contents[truth.contents.len() - 1], truth.spin)
    }

    /// A process of a device changes; often it goes back to what it was before.
    pub fn changes(&mut self, device: usize, name: &str, rng: &mut Rng) {
        self.truth(device, name);
        let contents = &mut self.truths.get_mut(&(device, name.to_owned())).expect("just looked at").contents;
        let back = contents.len() >= 2 && rng.chance(400);
        let next = if back { contents[contents.len() - 2] } else { contents.iter().max().unwrap_or(&0) + 1 };
        contents.push(next);
    }

    /// A process of a device ends or starts.
    pub fn spins(&mut self, device: usize, name: &str) {
        self.spins += 1;
        self.truths.entry((device, name.to_owned())).or_default().spin += 1;
    }

    /// A device starts (again): it knows nothing of what it was served.
    pub fn restarted(&mut self, device: usize) {
        self.served.remove(&device);
    }

    // --- replicas ---

    /// A life of a replica begins or ends.
    pub fn runs(&mut self, address: Address, runs: bool) {
        if runs {
            self.lives.insert(address);
        } else {
            self.lives.remove(&address);
        }
        self.stands_still(address, !runs);
    }

    /// A replica begins to end.
    pub fn ends(&mut self, address: Address) {
        self.ending.insert(address);
    }

    /// A replica took in a sign of life.
    pub fn heard(&mut self, device: usize, by: Address) {
        let contacts = self.contacts.entry(device).or_default();
        contacts.push_back((self.now, by));
        while contacts.front().is_some_and(|(at, _)| at + 120_000 < self.now) {
            contacts.pop_front();
        }
    }

    /// A report reached a process that stands still.
    pub fn waits(&mut self, device: usize, at: Address) {
        self.unread.push((self.now, device, at));
    }

    /// A process stands still, or goes on.
    pub fn stands_still(&mut self, address: Address, still: bool) {
        // Others cannot know what it has in its sockets.
        if still {
            self.running.remove(&address);
        } else {
            self.running.insert(address);
        }
    }

    /// A replica forwards a device's request.
    pub fn forwarded(&mut self, device: usize, ticket: Option<u64>) {
        self.forwarded += 1;
        if let Some(ticket) = ticket {
            let count = self.forwards.entry((device, ticket)).or_default();
            *count += 1;
            if *count > 1 {
                self.fail("one forward", format!("request {ticket} of tor-{device} is forwarded again"));
            }
        }
    }

    /// The leads that replicas hold by their own clocks at this moment.
    pub fn leads(&mut self, holders: &[usize]) {
        if holders.len() > 1 {
            self.fail("one leader", format!("replicas {holders:?} hold the lead"));
        }
    }

    /// A replica acknowledges a report. `compared` names the objects that it knew, with their
    /// uids.
    pub fn acked(
        &mut self,
        by: Address,
        body: &Body,
        received: u64,
        rejected: &[String],
        compared: &[(String, String)],
    ) {
        let now = self.now;
        self.acks += 1;
        for said in body.observations.iter().filter(|said| !rejected.contains(&said.name)) {
            let Some(live) = self.live.get_mut(&said.name) else { continue };
            let known = compared.iter().find(|(name, _)| *name == said.name);
            let contents = &self.truths[&(body.device, said.name.clone())].contents;
            let problem = match known {
                Some((_, uid)) if *uid == live.uid => {
                    if said.serial > live.acked || live.acked_by.is_none() {
                        (live.acked, live.acked_at, live.acked_by) = (said.serial, now, Some(by));
                        live.acked_boot = body.boot.clone();
                    }
                    let holds = live.content.is_some_and(|content| contents[said.serial..].contains(&content));
                    // Whose watch is behind does not see yet that there is something to heal.
                    let healing = live.regressed.is_some_and(|at| at + 100_000 > now);
                    (!holds && !healing).then_some(("acked is written", live.content))
                }
                // A miss is believed for two seconds, after a read that took some.
                None if live.created + 8_000 < received => Some(("acked is written", None)),
                _ => None,
            };
            if let Some((rule, content)) = problem {
                let what = format!(
                    "r{} acknowledges content {} (serial {}) of {}, which has {content:?}; {}/{}",
                    by.replica, said.content, said.serial, said.name, body.boot, body.sequence
                );
                self.fail(rule, what);
            }
        }
    }

    /// A device was given its desired state, having seen a revision before.
    pub fn served(&mut self, now: u64, device: usize, seen: u64, revision: u64, items: &[Item]) {
        let served = self.served.entry(device).or_default();
        let mut problems = Vec::new();
        let uids: HashSet<String> = items.iter().map(|item| item.uid.clone()).collect();
        for item in items {
            let generation = served.generations.entry(item.uid.clone()).or_insert(item.generation);
            if item.generation < *generation {
                problems.push(format!("{} goes from generation {generation} to {}", item.name, item.generation));
            }
            *generation = item.generation.max(*generation);
            if served.gone.contains(&item.uid) {
                problems.push(format!("{} ({}) comes back", item.name, item.uid));
            }
        }
        for uid in served.last.difference(&uids) {
            // A replica whose first list came after a deletion cannot name its revision.
            if self.deleted.get(uid).is_some_and(|deleted| *deleted <= revision) {
                served.gone.insert(uid.clone());
            }
            if !self.deleted.contains_key(uid) {
                problems.push(format!("{uid} is missing, though it was never deleted"));
            }
        }
        served.last = uids;
        for problem in problems {
            self.violations.push(Violation {
                at: now,
                rule: "no way back in time",
                what: format!("tor-{device}, which has seen {seen}: {problem}"),
            });
        }
    }

    /// A replica took in a batch that another one made at a moment.
    pub fn told(&mut self, from: Address, to: Address, made: u64) {
        let last = self.told.entry((from, to)).or_default();
        *last = made.max(*last);
    }

    // --- the apiserver ---

    /// An object was created or got another spec.
    pub fn put(&mut self, kind: Kind, name: &str, uid: &str, device: usize) {
        if kind == Kind::Process && self.live.get(name).is_none_or(|live| live.uid != uid) {
            let live = Live { uid: uid.into(), device, created: self.now, ..Live::default() };
            self.live.insert(name.into(), live);
        }
    }

    /// An object was deleted.
    pub fn deleted(&mut self, kind: Kind, name: &str, revision: u64) {
        if kind == Kind::Process
            && let Some(live) = self.live.remove(name)
        {
            self.transitions.retain(|(uid, _, _), _| *uid != live.uid);
            self.deleted.insert(live.uid, revision);
        }
    }

    /// A status was written.
    pub fn committed(&mut self, by: Address, patch: &Patch, before: &Opened, after: &Opened) {
        self.writes += 1;
        self.last_write = self.now;
        let name = before.name().to_owned();
        if before.status == after.status {
            self.fail("no idle writes", format!("r{} writes nothing new to {name}", by.replica));
        }
        let (was, is) = (connected(&before.status), connected(&after.status));
        if was == Some(true) && is == Some(false) {
            self.deaths += 1;
            self.died(by, patch, &name);
        }
        if patch.kind == Kind::Process {
            // A write that its sender has given up, or did not live to see, cannot be told from one in time.
            // And a replica that nobody told of the newer report may write an older one; the next report heals that.
            let late = self.now - patch.decided > 5_050 || !self.lives.contains(&by);
            let told = self.live.get(&name).is_some_and(|live| {
                // A new boot is told from the one before by time alone, and that is told with some inaccuracy.
                if after.status["lastReport"]["bootId"] != *live.acked_boot && live.acked_at + 15_000 > patch.decided {
                    return false;
                }
                let told =
                    |who: &Address| *who == by || self.told.get(&(*who, by)).is_some_and(|at| *at > live.acked_at);
                live.acked_by.as_ref().is_some_and(told)
            });
            self.content(by, &name, after, late || !told);
            self.turn(by, &name, before, after);
            // It may have come between somebody's live read and what that one acknowledges.
            let now = self.now;
            if let Some(live) = self.live.get_mut(&name).filter(|_| late) {
                live.regressed = Some(now);
            }
            self.transition(by, before, after);
        }
    }

    fn content(&mut self, by: Address, name: &str, after: &Opened, late: bool) {
        let content = content_of(&after.status);
        let Some(live) = self.live.get_mut(name) else { return };
        if content == live.content {
            return;
        }
        let contents = &self.truths[&(live.device, name.to_owned())].contents;
        if late {
            let said = content.and_then(|content| contents[..=live.acked].iter().rposition(|known| *known == content));
            live.regressed = said.filter(|said| *said < live.acked).map(|_| self.now);
            live.acked = said.unwrap_or(live.acked);
        }
        if live.acked > 0 && !content.is_some_and(|content| contents[live.acked..].contains(&content)) {
            let what = format!(
                "r{} writes content {content:?} over {:?} of {name}, where serial {} was acknowledged",
                by.replica, live.content, live.acked
            );
            live.content = content;
            self.fail("never back to an older report", what);
            return;
        }
        live.content = content;
    }

    /// What a process does over and over is written a few times at once, and then once a minute.
    fn turn(&mut self, by: Address, name: &str, before: &Opened, after: &Opened) {
        let uid = after.metadata.uid.clone().unwrap_or_default();
        let differs = |key: &str| before.status[key] != after.status[key];
        if ["observedSpecHash", "runningSpecHash", "observedGeneration", "artifactVersion"].into_iter().any(differs) {
            self.turns.remove(&(by, uid));
            return;
        }
        let of_process = |status: &Value| {
            let mut status = status.clone();
            status.as_object_mut().map(|status| status.remove("lastReport"));
            status
        };
        if of_process(&before.status) == of_process(&after.status) || self.ending.contains(&by) {
            return;
        }
        let (now, free) =
            (self.now, differs("artifactDigest") || connected(&before.status) != connected(&after.status));
        let turns = self.turns.entry((by, uid)).or_insert(Turns { paid: 0, free: 0, since: now });
        // What is free leaves something for the bad news that may follow.
        *(if free { &mut turns.free } else { &mut turns.paid }) += 1;
        // Those whose answers were lost are not counted by who wrote them.
        let most = BURST + 2 + turns.free + (now - turns.since) / (PERIOD_MS * 95 / 100);
        if turns.paid > most {
            let what = format!("r{} writes {name}: {turns:?}", by.replica);
            self.fail("a crash loop has a budget", what);
        }
    }

    fn transition(&mut self, by: Address, before: &Opened, after: &Opened) {
        let count = |object: &Opened| object.status["transitions"].as_u64().unwrap_or(0);
        let uid = after.metadata.uid.clone().unwrap_or_default();
        let name = after.name().to_owned();
        let (was, is) = (connected(&before.status), connected(&after.status));
        let moved = was != is;
        if count(after) == count(before) {
            if moved {
                self.fail("one event each", format!("r{} moves AgentConnected of {name} without an event", by.replica));
            }
            return;
        }
        let reasons: Vec<String> =
            serde_json::from_value(after.status["lastEvents"]["reasons"].clone()).unwrap_or_default();
        let told = reasons.iter().any(|reason| reason == "AgentConnected" || reason == "AgentDisconnected");
        if moved != told || count(after) != count(before) + 1 {
            let what = format!("r{} writes {name}: connected {was:?} to {is:?} with {reasons:?}", by.replica);
            self.fail("one event each", what);
        }
        for reason in reasons {
            self.transitions.insert((uid.clone(), reason, count(after)), name.clone());
        }
    }

    /// An Event was written (again).
    pub fn event(&mut self, name: &str, uid: &str, reason: &str, transition: u64) {
        let about = (uid.to_owned(), reason.to_owned(), transition);
        if self.events.values().any(|known| *known == about) && !self.events.contains_key(name) {
            self.fail("one event each", format!("a second event of {about:?}"));
        }
        let exists = self.live.values().any(|live| live.uid == uid);
        if exists && !self.transitions.contains_key(&about) {
            self.fail("one event each", format!("an event of {about:?}, which never happened"));
        }
        self.events.insert(name.to_owned(), about);
    }

    /// AgentConnected goes to False: nobody may have heard of the device for a whole window, as far as the writer
    /// could know when it decided.
    fn died(&mut self, by: Address, patch: &Patch, name: &str) {
        let device = match patch.kind {
            Kind::Process => self.live.get(name).map(|live| live.device),
            _ => name.strip_prefix("tor-").and_then(|number| number.parse().ok()),
        };
        let Some(contacts) = device.and_then(|device| self.contacts.get(&device)) else { return };
        let recent = contacts.iter().filter(|(at, _)| *at <= patch.decided && patch.decided - *at < SHORTEST_WINDOW_MS);
        let known = recent.filter(|(at, who)| {
            *who == by || (patch.members.contains(who) && self.running.contains(who) && at + FRESH_MS <= patch.decided)
        });
        let unread = self.unread.iter().filter(|(at, whose, who)| {
            // Shorter absences are not noticed, and need not be.
            *who == by
                && Some(*whose) == device
                && patch.decided - at < SHORTEST_WINDOW_MS
                && at + 4_500 <= patch.decided
        });
        let unread = unread.map(|(at, _, who)| (*at, *who)).next_back();
        if let Some((at, who)) = known.copied().last().or(unread) {
            let what = format!(
                "r{} calls {name} dead at {} (decided {}), which r{} heard at {at}",
                by.replica, self.now, patch.decided, who.replica
            );
            self.fail("no live device is called dead", what);
        }
    }

    /// Events that a process has tried to write for five seconds when it died: they may be lost.
    pub fn lost_events(&mut self, events: Vec<(String, String, u64)>) {
        self.lost.extend(events);
    }

    /// A device has been dead for so long that its objects must say so.
    pub fn known_dead(&mut self, api: &ApiServer, device: usize) {
        for ((_, key), object) in &api.objects {
            if key.name.ends_with(&super::report::device_name(device)) && connected(&object.status) == Some(true) {
                let heard = self.contacts.get(&device).and_then(|contacts| contacts.back());
                self.fail("the dead are not, in time", format!("{} is connected, last heard {heard:?}", key.name));
            }
        }
    }

    // --- the end ---

    /// What must hold when there have been no faults for long enough. `alive` says which devices live.
    pub fn converged(&mut self, api: &ApiServer, alive: &[bool]) {
        let mut problems = Vec::new();
        for ((kind, key), object) in &api.objects {
            let name = &*key.name;
            let device = match kind {
                Kind::Process => self.live.get(name).map(|live| live.device),
                Kind::Switch => name.strip_prefix("tor-").and_then(|number| number.parse().ok()),
                Kind::Deployment => None,
            };
            let Some(device) = device else { continue };
            let is = connected(&object.status);
            if alive[device] && is != Some(true) {
                problems.push(("the living are connected", format!("{name} has AgentConnected {is:?}")));
            }
            if !alive[device] && is == Some(true) {
                let heard = self.contacts.get(&device).and_then(|contacts| contacts.back());
                problems.push(("the dead are not", format!("{name} is connected, last heard {heard:?}")));
            }
            let Some(live) = self.live.get(name).filter(|_| *kind == Kind::Process) else { continue };
            let Some(truth) = self.truths.get(&(device, name.to_owned())) else { continue };
            let latest = truth.contents.last().copied();
            let spin = spin_of(&object.status);
            if alive[device] && spin != Some(truth.spin) {
                problems.push(("statuses say what is", format!("{name} has spin {spin:?}, the device {}", truth.spin)));
            }
            if alive[device] && live.content != latest {
                let what = format!("{name} has content {:?}, the device {latest:?}", live.content);
                problems.push(("statuses say what is", what));
            }
            if live.acked > 0 && !live.content.is_some_and(|content| truth.contents[live.acked..].contains(&content)) {
                let what = format!("{name} has content {:?}, serial {} was acknowledged", live.content, live.acked);
                problems.push(("nothing acknowledged is lost", what));
            }
            let generation = object.metadata.generation;
            if alive[device] && object.status["observedGeneration"].as_i64() != generation {
                problems.push(("statuses say what is", format!("{name}: the new spec was not observed")));
            }
        }
        let written: HashSet<_> = self.events.values().chain(&self.lost).collect();
        for (transition, name) in self.transitions.iter().filter(|(transition, _)| !written.contains(transition)) {
            problems.push(("one event each", format!("no event of {transition:?} of {name}")));
        }
        for (rule, what) in problems {
            self.fail(rule, what);
        }
    }
}

/// The status of AgentConnected.
pub fn connected(status: &Value) -> Option<bool> {
    let conditions = status["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == "AgentConnected").map(|c| c["status"] == "True")
}
