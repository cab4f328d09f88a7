//! Mirrors the edges of `src/peers`: a batch to every other member each second, and forwarded reports.

use super::super::guards::Guard;
use super::super::network::Node;
use super::super::peer::{Letter, Reply, What};
use super::super::report::Body;
use super::super::world::{Address, Event, Input, World};
use super::{Process, Timer, replica_of};
use praetor::ownership::members::Member;
use praetor::peers::batch;
use praetor::peers::envelope::Refusal;
use praetor::peers::inbound::Inbound;
use praetor::peers::outbound::{Met, Outbound, Plan};
use praetor::peers::signature::{BodyHash, Claims};
use praetor::status::assess::Outcome;
use praetor::status::intake::Unanswered;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const BATCH_TIMEOUT_MS: u64 = 2_000;
const FORWARD_TIMEOUT_MS: u64 = 7_000;

/// A request under way.
struct Pending {
    to: usize,
    /// Whom it meant.
    meant: u64,
    about: About,
    /// It is the second try.
    again: bool,
}

#[derive(Clone)]
enum About {
    /// With the mark of the own clock.
    Batch(Option<(Plan, u64)>),
    /// A report of a case.
    Forward(u64, Arc<Body>, Option<u64>, u32),
}

/// What a replica knows of its peers.
pub struct Peers {
    me: u64,
    outbound: HashMap<usize, Outbound>,
    inbound: Inbound,
    pending: BTreeMap<u64, Pending>,
    /// Those that did not take the last batch.
    failing: HashSet<usize>,
    digest: BodyHash,
    sequence: u64,
}

impl Peers {
    pub fn new(me: u64) -> Self {
        Self {
            me,
            outbound: HashMap::new(),
            inbound: Inbound::new(me),
            pending: BTreeMap::new(),
            failing: HashSet::new(),
            digest: BodyHash::of(b""),
            sequence: 0,
        }
    }
}

impl Process {
    /// One batch to everybody whose last one is answered.
    pub fn send_batches(&mut self, world: &mut World) {
        let view = self.view.clone();
        let there: HashSet<_> = view.peers().filter_map(|member| replica_of(&member.identity)).collect();
        self.peers.failing.retain(|to| there.contains(to));
        for member in view.peers() {
            let Some(to) = replica_of(&member.identity) else { continue };
            self.meant(to, member.incarnation);
            let busy = self.peers.pending.values().any(|p| p.to == to && matches!(p.about, About::Batch(_)));
            if !busy {
                self.send_batch(world, to, false);
            }
        }
        if !self.closing {
            world.timer(self.at, 1_000, Timer::Batches);
        }
    }

    fn meant(&mut self, to: usize, incarnation: u64) {
        let me = self.peers.me;
        self.peers.outbound.entry(to).or_insert_with(|| Outbound::new(me, incarnation)).turn_to(incarnation);
    }

    fn send_batch(&mut self, world: &mut World, to: usize, again: bool) {
        let now = self.now_ms(world);
        let Some(outbound) = self.peers.outbound.get(&to) else { return };
        // Nothing is said before the receiver has told its time; asking for it is refused, and tells it.
        let plan = outbound.plan();
        let (mut heard, whole) = (Vec::new(), plan.is_none_or(|plan| plan.since_ms.is_none()));
        match plan {
            Some(Plan { since_ms: Some(since), .. }) => self.presence.table.since(since, now, &mut heard),
            Some(_) if world.guards.on(Guard::WholeTable) => self.presence.table.whole(now, &mut heard),
            _ => {}
        }
        heard.sort_unstable_by_key(|heard| heard.device);
        let bytes = batch::encode(whole, true, plan.map_or(0, |plan| plan.horizon_ms), &heard, 0);
        self.post(world, to, What::Batch(bytes, world.now), About::Batch(plan.map(|plan| (plan, now))), again, 1);
    }

    fn post(&mut self, world: &mut World, to: usize, what: What, about: About, again: bool, hop: u32) {
        let call = self.number();
        let Some(outbound) = self.peers.outbound.get_mut(&to) else { return };
        let stamp = outbound.stamp();
        self.peers.sequence += 1;
        let claims = Claims {
            protocol: 1,
            hop,
            sender: self.identity.to_string(),
            incarnation: self.incarnation,
            to: stamp.to,
            time_ms: stamp.time_ms,
            sequence: self.peers.sequence,
            digest: self.peers.digest,
        };
        let patience = if matches!(about, About::Batch(_)) { BATCH_TIMEOUT_MS } else { FORWARD_TIMEOUT_MS };
        self.peers.pending.insert(call, Pending { to, meant: stamp.to, about, again });
        let letter = Letter { from: self.at, call, claims, what };
        let (from, node) = (Node::Replica(self.at.replica), Node::Replica(to));
        // A network that repeats what it carries.
        if let Some(delay) = world.net.duplicate() {
            world.after(delay, Event::Replica(to, None, Input::Letter(letter.clone())));
        }
        world.send(from, node, Event::Replica(to, None, Input::Letter(letter)));
        world.timer(self.at, patience, Timer::Letter(call));
    }

    /// Passes a report on to the owner of its device.
    pub fn forward(
        &mut self,
        world: &mut World,
        to: &Member,
        case: u64,
        body: Arc<Body>,
        ticket: Option<u64>,
        hop: u32,
    ) {
        let Some(replica) = replica_of(&to.identity) else { return };
        self.meant(replica, to.incarnation);
        if self.peers.failing.contains(&replica) {
            return self.on_forward_answer(world, case, Err(Unanswered::Unreachable));
        }
        world.checker.forwarded(body.device, ticket);
        world.say(|| format!("r{}: forwards {}/{} to {}", self.at.replica, body.boot, body.sequence, to.identity));
        let about = About::Forward(case, body.clone(), ticket, hop);
        self.post(world, replica, What::Report(body, ticket), about, false, hop);
    }

    /// Something from a peer.
    pub fn on_letter(&mut self, world: &mut World, letter: Letter) {
        let now = self.now_ms(world);
        let Letter { from, call, claims, what } = letter;
        if let Err(refusal) = self.peers.inbound.admit(&claims, now) {
            return self.reply(world, from, call, Err(refusal));
        }
        match what {
            What::Batch(bytes, made) => {
                let Ok(batch) = batch::decode(&bytes) else {
                    return self.reply(world, from, call, Err(Refusal::Malformed));
                };
                let taken = self.peers.inbound.take(&claims, batch.whole, batch.last, batch.horizon_ms);
                if let Ok(horizon) = taken {
                    self.presence.merge(&batch.heard, batch.horizon_ms, now);
                    world.checker.told(from, self.at, made);
                    if let Some(horizon) = horizon {
                        let boot = self.boot_ms(world);
                        self.presence.witness(claims.incarnation, horizon, now, boot);
                    }
                }
                self.reply(world, from, call, taken.map(|_| None));
            }
            What::Report(body, ticket) => {
                if claims.hop > 1 && world.guards.on(Guard::HopLimit) {
                    return self.reply(world, from, call, Err(Refusal::Hop));
                }
                self.on_forwarded(world, from, call, body, ticket, claims.hop);
            }
        }
    }

    /// Answers a peer.
    pub fn reply(&mut self, world: &mut World, to: Address, call: u64, result: Result<Option<Outcome>, Refusal>) {
        let time_ms = self.now_ms(world);
        let reply = Reply { call, incarnation: self.incarnation, time_ms, result };
        let event = Event::Replica(to.replica, Some(to.life), Input::Reply(reply));
        world.send(Node::Replica(self.at.replica), Node::Replica(to.replica), event);
    }

    /// A peer's answer.
    pub fn on_reply(&mut self, world: &mut World, reply: Reply) {
        let Some(Pending { to, meant, about, again }) = self.peers.pending.remove(&reply.call) else { return };
        let Some(outbound) = self.peers.outbound.get_mut(&to) else { return };
        if outbound.answered(meant, reply.incarnation, reply.time_ms) == Met::Myself {
            return;
        }
        match (reply.result, about) {
            (Err(Refusal::Receiver | Refusal::Time), About::Batch(_)) if !again => self.send_batch(world, to, true),
            // Only for the process that was meant: another one may not be the owner.
            (Err(Refusal::Receiver | Refusal::Time), About::Forward(case, body, ticket, hop))
                if !again && reply.incarnation == meant =>
            {
                let about = About::Forward(case, body.clone(), ticket, hop);
                self.post(world, to, What::Report(body, ticket), about, true, hop);
            }
            (Err(Refusal::Whole), About::Batch(_)) => outbound.send_whole(meant),
            (Ok(_), About::Batch(Some((plan, mark)))) => {
                outbound.delivered(&plan, mark);
                self.peers.failing.remove(&to);
                let now = self.now_ms(world);
                self.presence.told(now);
            }
            (Ok(Some(outcome)), About::Forward(case, ..)) => self.on_forward_answer(world, case, Ok(outcome)),
            (Err(Refusal::NotOwner), About::Forward(case, ..)) => {
                self.on_forward_answer(world, case, Err(Unanswered::NotOwner));
            }
            (_, About::Forward(case, ..)) => self.on_forward_answer(world, case, Err(Unanswered::Refused)),
            (_, About::Batch(_)) => self.fails(world, to),
        }
    }

    /// No answer of a peer.
    pub fn on_silence(&mut self, world: &mut World, call: u64) {
        match self.peers.pending.remove(&call) {
            Some(Pending { about: About::Forward(case, ..), .. }) => {
                self.on_forward_answer(world, case, Err(Unanswered::Timeout));
            }
            Some(Pending { about: About::Batch(_), to, .. }) => self.fails(world, to),
            None => {}
        }
    }

    /// A batch was lost: nobody waits any longer for what was sent to that one.
    fn fails(&mut self, world: &mut World, to: usize) {
        self.peers.failing.insert(to);
        let pending = std::mem::take(&mut self.peers.pending);
        let (lost, pending) = pending.into_iter().partition::<BTreeMap<_, _>, _>(|(_, pending)| pending.to == to);
        self.peers.pending = pending;
        for pending in lost.into_values() {
            if let About::Forward(case, ..) = pending.about {
                self.on_forward_answer(world, case, Err(Unanswered::Unreachable));
            }
        }
    }
}
