//! The model of the apiserver: versions, conflicts, watches that lag, answers that get lost after the commit.

use super::network::Node;
use super::rng::Rng;
use super::world::{Address, Event, Input, World};
use praetor::desired::index::Kind;
use praetor::desired::lean::Key;
use praetor::desired::object::{Opened, Raw};
use praetor::ownership::lease::Holder;
use praetor::ownership::members::Member;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// The namespace of everything.
pub const NAMESPACE: &str = "infra";
/// The name of the leader's Lease.
pub const LEADER: &str = "praetor-leader";

/// What a replica asks for.
#[derive(Debug, Clone)]
pub enum Verb {
    List(Kind),
    /// From a resourceVersion on; the last is the watch's number.
    Watch(Kind, u64, u64),
    Get(Kind, Key),
    /// A merge patch of a status.
    Patch(Box<Patch>),
    /// An Event: its name, and the uid, the reason and the transition that it is about.
    Event(Box<(String, String, String, u64)>),
    Leases,
    GetLease(Arc<str>),
    CreateLease(Arc<str>, Body),
    /// With the version that it replaces.
    ReplaceLease(Arc<str>, u64, Body),
    /// With the uid and the version that it deletes.
    DeleteLease(Arc<str>, Option<Arc<str>>, Option<u64>),
}

/// A write of a status, and what the checker wants to know of who makes it.
#[derive(Debug, Clone)]
pub struct Patch {
    pub kind: Kind,
    pub key: Key,
    pub uid: Option<Box<str>>,
    pub revision: Option<u64>,
    pub status: Value,
    /// When it was decided, true time.
    pub decided: u64,
    /// Who the writer takes for alive.
    pub members: Vec<Address>,
}

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub holder: Option<Holder>,
    pub term: u64,
    /// Moves with each renewal, as the time in a real one.
    pub renewals: u64,
    pub crashes: u32,
    pub member: Option<Member>,
}

/// A Lease as it is stored.
#[derive(Debug, Clone)]
pub struct Lease {
    pub name: Arc<str>,
    pub uid: Arc<str>,
    pub revision: u64,
    pub body: Body,
}

/// A request on its way.
#[derive(Debug, Clone)]
pub struct Request {
    pub from: Address,
    pub call: u64,
    pub verb: Verb,
}

/// What comes back.
#[derive(Debug, Clone)]
pub enum Answer {
    Listed(Vec<Opened>, u64),
    Watching,
    /// None: 404 to a read.
    Object(Option<Box<Opened>>),
    Leases(Vec<Lease>),
    Lease(Option<Lease>),
    Done,
    /// 409.
    Conflict,
    /// 404 to a write.
    NotFound,
    /// 429 or 503 with its Retry-After in seconds.
    Busy(u64),
    /// 410.
    Gone,
    /// No answer within the caller's patience, or the connection broke.
    Lost,
}

/// What a watch shows.
#[derive(Debug, Clone)]
pub enum Shown {
    Object(Arc<Opened>),
    Deleted(Arc<Opened>),
    Bookmark(u64),
    /// History was compacted.
    Gone,
    /// The connection ended.
    Closed,
}

/// How the apiserver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Up,
    /// Refuses connections.
    Down,
    /// Takes connections and says nothing.
    Hanging,
}

struct Stream {
    life: u32,
    number: u64,
    waiting: VecDeque<(u64, Shown)>,
    last: u64,
    armed: bool,
}

/// See the module.
pub struct ApiServer {
    revision: u64,
    pub objects: BTreeMap<(Kind, Key), Opened>,
    pub leases: BTreeMap<Arc<str>, Lease>,
    pub events: BTreeSet<String>,
    log: Vec<(u64, Kind, Shown)>,
    compacted: u64,
    streams: HashMap<(usize, Kind), Stream>,
    /// Until when a watch is held back, by replica and kind.
    held: HashMap<(usize, Kind), u64>,
    pub health: Health,
    hung: Vec<Request>,
    rng: Rng,
    uids: u64,
    /// Requests so far.
    pub requests: u64,
}

impl ApiServer {
    pub fn new(seed: u64) -> Self {
        Self {
            revision: 100,
            objects: BTreeMap::new(),
            leases: BTreeMap::new(),
            events: BTreeSet::new(),
            log: Vec::new(),
            compacted: 0,
            streams: HashMap::new(),
            held: HashMap::new(),
            health: Health::Up,
            hung: Vec::new(),
            rng: Rng::new(seed, "apiserver"),
            uids: 0,
            requests: 0,
        }
    }

    /// An object, by its name in the one namespace.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Opened> {
        self.objects.get(&(kind, key(name)))
    }

    /// Creates an object, or gives one a new spec, as an operator does.
    pub fn put(&mut self, world: &mut World, kind: Kind, name: &str, mut spec: Value, device: &str) {
        if kind == Kind::Process {
            spec["deviceRef"] = json!({"kind": "NetworkSwitch", "name": device});
        }
        let known = self.get(kind, name);
        let generation = known.map_or(0, |known| known.metadata.generation.unwrap_or(0)) + 1;
        let status = known.map_or(json!(null), |known| known.status.clone());
        let uid = known.and_then(|known| known.metadata.uid.clone());
        let uid = uid.unwrap_or_else(|| {
            self.uids += 1;
            format!("uid-{}", self.uids)
        });
        let object = json!({
            "metadata": {"namespace": NAMESPACE, "name": name, "uid": uid, "generation": generation, "labels": {"role": "tor"}},
            "spec": spec, "status": status,
        });
        let number = device.strip_prefix("tor-").and_then(|number| number.parse().ok()).unwrap_or(0);
        world.checker.put(kind, name, &uid, number);
        let raw: Raw = serde_json::from_str(&object.to_string()).expect("an object");
        self.commit(world, kind, Opened::from(raw));
    }

    /// Deletes an object, as an operator does.
    pub fn delete(&mut self, world: &mut World, kind: Kind, name: &str) {
        if let Some(mut object) = self.objects.remove(&(kind, key(name))) {
            self.revision += 1;
            object.metadata.resource_version = Some(self.revision.to_string());
            world.checker.deleted(kind, name, self.revision);
            world.say(|| format!("api: {name} is deleted at {}", self.revision));
            self.show(world, kind, Shown::Deleted(Arc::new(object)));
        }
    }

    fn commit(&mut self, world: &mut World, kind: Kind, mut object: Opened) {
        self.revision += 1;
        object.metadata.resource_version = Some(self.revision.to_string());
        self.objects.insert((kind, key(object.name())), object.clone());
        self.show(world, kind, Shown::Object(Arc::new(object)));
    }

    fn show(&mut self, world: &mut World, kind: Kind, shown: Shown) {
        self.log.push((self.revision, kind, shown.clone()));
        for replica in 0..world.clocks.len() {
            self.queue(world, replica, kind, shown.clone());
        }
    }

    fn queue(&mut self, world: &mut World, replica: usize, kind: Kind, shown: Shown) {
        let lag = if self.rng.chance(30) { self.rng.range(200, 3_000) } else { self.rng.range(1, 60) };
        if let Some(stream) = self.streams.get_mut(&(replica, kind)) {
            stream.last = stream.last.max(world.now + lag);
            stream.waiting.push_back((stream.last, shown));
            if !std::mem::replace(&mut stream.armed, true) {
                let delay = stream.waiting[0].0.saturating_sub(world.now);
                world.after(delay, Event::Stream(replica, kind, stream.number));
            }
        }
    }

    /// Delivers what is due of a watch.
    pub fn deliver(&mut self, world: &mut World, replica: usize, kind: Kind, number: u64) {
        let held = self.held.get(&(replica, kind)).copied().unwrap_or(0).max(world.now);
        let cut = world.net.is_cut(Node::Api, Node::Replica(replica), world.now) || self.health == Health::Hanging;
        let Some(stream) = self.streams.get_mut(&(replica, kind)).filter(|stream| stream.number == number) else {
            return;
        };
        if held > world.now || cut {
            // A connection that stalls delivers everything later.
            let delay = (held - world.now).max(500);
            world.after(delay, Event::Stream(replica, kind, number));
            return;
        }
        let mut due = Vec::new();
        while stream.waiting.front().is_some_and(|(at, _)| *at <= world.now) {
            due.extend(stream.waiting.pop_front().map(|(_, shown)| shown));
        }
        stream.armed = !stream.waiting.is_empty();
        if let Some((at, _)) = stream.waiting.front() {
            world.after(at - world.now, Event::Stream(replica, kind, number));
        }
        let life = stream.life;
        if matches!(due.last(), Some(Shown::Gone | Shown::Closed)) {
            self.streams.remove(&(replica, kind));
        }
        world.after(0, Event::Replica(replica, Some(life), Input::Shown(kind, number, due)));
    }

    /// Tells every watch how far it is.
    pub fn bookmarks(&mut self, world: &mut World) {
        for (replica, kind) in self.open() {
            self.queue(world, replica, kind, Shown::Bookmark(self.revision));
        }
    }

    /// Holds a watch back until a moment.
    pub fn hold(&mut self, replica: usize, kind: Kind, until: u64) {
        self.held.insert((replica, kind), until);
    }

    /// Forgets history; every open watch is told so when `tell`.
    pub fn compact(&mut self, world: &mut World, tell: bool) {
        self.compacted = self.revision;
        if tell {
            for (replica, kind) in self.open() {
                self.queue(world, replica, kind, Shown::Gone);
            }
        }
    }

    /// Ends the watches of a replica, or of all.
    pub fn disconnect(&mut self, world: &mut World, whose: Option<usize>) {
        for (replica, kind) in self.open() {
            if whose.is_none_or(|whose| whose == replica) {
                self.queue(world, replica, kind, Shown::Closed);
            }
        }
    }

    /// Changes how it is. What hung is worked off, though nobody may be waiting for it any more.
    pub fn set_health(&mut self, world: &mut World, health: Health) {
        self.health = health;
        if health == Health::Down {
            self.streams.values_mut().for_each(|stream| stream.waiting.clear());
            self.disconnect(world, None);
            self.hung.clear();
        }
        if health == Health::Up {
            for request in std::mem::take(&mut self.hung) {
                let delay = self.rng.range(1, 200);
                world.after(delay, Event::Request(request));
            }
        }
    }

    /// No fault is left.
    pub fn heal(&mut self, world: &mut World) {
        self.held.clear();
        self.set_health(world, Health::Up);
    }

    fn open(&self) -> Vec<(usize, Kind)> {
        let mut open: Vec<_> = self.streams.keys().copied().collect();
        open.sort_unstable();
        open
    }

    /// Takes a request.
    pub fn take(&mut self, world: &mut World, request: Request) {
        let Request { from, call, .. } = request;
        match self.health {
            Health::Down => return self.answer(world, from, call, Answer::Lost),
            Health::Hanging => {
                // Some are dropped with their connection, some are committed when it wakes up.
                if self.rng.chance(500) {
                    self.hung.push(request);
                }
                return;
            }
            Health::Up => {}
        }
        self.requests += 1;
        if self.rng.chance(world.net.weather.refused) {
            let seconds = self.rng.range(0, 2);
            return self.answer(world, from, call, Answer::Busy(seconds));
        }
        let lease = matches!(request.verb, Verb::CreateLease(..) | Verb::ReplaceLease(..) | Verb::DeleteLease(..));
        let writes = lease || matches!(request.verb, Verb::Patch(_) | Verb::Event(_));
        let answer = self.perform(world, request);
        if writes && self.rng.chance(world.net.weather.lost_answers) {
            return;
        }
        self.answer(world, from, call, answer);
    }

    fn answer(&mut self, world: &mut World, to: Address, call: u64, answer: Answer) {
        let event = Event::Replica(to.replica, Some(to.life), Input::Answer(call, answer));
        world.send(Node::Api, Node::Replica(to.replica), event);
    }

    fn perform(&mut self, world: &mut World, request: Request) -> Answer {
        match request.verb {
            Verb::List(kind) => {
                let items = self.objects.iter().filter(|((k, _), _)| *k == kind).map(|(_, object)| object.clone());
                Answer::Listed(items.collect(), self.revision)
            }
            Verb::Watch(kind, from, number) => self.watch(world, request.from, kind, from, number),
            Verb::Get(kind, key) => Answer::Object(self.objects.get(&(kind, key)).cloned().map(Box::new)),
            Verb::Patch(patch) => self.patch(world, request.from, *patch),
            Verb::Event(event) => {
                let (name, uid, reason, transition) = *event;
                world.checker.event(&name, &uid, &reason, transition);
                let new = self.events.insert(name.clone());
                world.say(|| format!("api: event {reason} {name}{}", if new { "" } else { " exists" }));
                if new { Answer::Done } else { Answer::Conflict }
            }
            Verb::Leases => Answer::Leases(self.leases.values().cloned().collect()),
            Verb::GetLease(name) => Answer::Lease(self.leases.get(&name).cloned()),
            Verb::CreateLease(name, body) => {
                if self.leases.contains_key(&name) {
                    return Answer::Conflict;
                }
                self.uids += 1;
                self.store(Lease { name, uid: format!("lease-{}", self.uids).into(), revision: 0, body })
            }
            Verb::ReplaceLease(name, revision, body) => match self.leases.get(&name) {
                None => Answer::NotFound,
                Some(lease) if lease.revision != revision => Answer::Conflict,
                Some(lease) => self.store(Lease { name, uid: lease.uid.clone(), revision: 0, body }),
            },
            Verb::DeleteLease(name, uid, revision) => match self.leases.get(&name) {
                None => Answer::NotFound,
                Some(lease)
                    if uid.is_some_and(|uid| uid != lease.uid) || revision.is_some_and(|r| r != lease.revision) =>
                {
                    Answer::Conflict
                }
                Some(_) => {
                    self.leases.remove(&name);
                    self.revision += 1;
                    Answer::Done
                }
            },
        }
    }

    fn store(&mut self, mut lease: Lease) -> Answer {
        self.revision += 1;
        lease.revision = self.revision;
        self.leases.insert(lease.name.clone(), lease.clone());
        Answer::Lease(Some(lease))
    }

    fn watch(&mut self, world: &mut World, from: Address, kind: Kind, revision: u64, number: u64) -> Answer {
        if revision < self.compacted {
            return Answer::Gone;
        }
        let stream = Stream { life: from.life, number, waiting: VecDeque::new(), last: world.now, armed: false };
        self.streams.insert((from.replica, kind), stream);
        let missed = self.log.partition_point(|(at, _, _)| *at <= revision);
        let missed: Vec<Shown> =
            self.log[missed..].iter().filter(|(_, k, _)| *k == kind).map(|(_, _, shown)| shown.clone()).collect();
        for shown in missed {
            self.queue(world, from.replica, kind, shown);
        }
        Answer::Watching
    }

    fn patch(&mut self, world: &mut World, from: Address, patch: Patch) -> Answer {
        let Some(object) = self.objects.get(&(patch.kind, patch.key.clone())) else { return Answer::NotFound };
        if patch.revision.is_some_and(|revision| revision != object.revision())
            || patch.uid.as_deref().is_some_and(|uid| object.metadata.uid.as_deref() != Some(uid))
        {
            return Answer::Conflict;
        }
        let mut next = object.clone();
        json_patch::merge(&mut next.status, &patch.status);
        world.checker.committed(from, &patch, object, &next);
        world.say(|| format!("api: r{} writes {} {}", from.replica, patch.key.name, patch.status));
        self.commit(world, patch.kind, next.clone());
        next.metadata.resource_version = Some(self.revision.to_string());
        Answer::Object(Some(Box::new(next)))
    }
}

/// A key in the one namespace.
pub fn key(name: &str) -> Key {
    Key { namespace: NAMESPACE.into(), name: name.into() }
}
