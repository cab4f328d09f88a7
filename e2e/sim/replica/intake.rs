//! Mirrors `src/status/intake.rs`: takes reports in, sees to them here or at the owner, and answers them.

use super::super::apiserver::{Answer, Verb};
use super::super::guards::Guard;
use super::super::network::Node;
use super::super::report::{Body, Report, ReportAnswer, device_name};
use super::super::world::{Address, Event, World};
use super::writer::Job;
use super::{Process, Then, Timer};
use praetor::desired::index::Kind;
use praetor::desired::lean::{Key, Text};
use praetor::ownership::members::{Owner, View};
use praetor::ownership::rendezvous::device_hash;
use praetor::peers::envelope::Refusal;
use praetor::presence::order::{Freshness, fingerprint};
use praetor::presence::said::Footing;
use praetor::status::assess::{Assessment, Course, Outcome, Place, remembered};
use praetor::status::intake::Unanswered;
use praetor::status::limiter::TokenBucket;
use praetor::status::projection::{Introduction, Reported};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const DEADLINE_MS: u64 = 8_000;
const FORWARDED_DEADLINE_MS: u64 = 3_000;
const VERIFY_DEADLINE_MS: u64 = 1_500;
const READ_TIMEOUT_MS: u64 = 5_000;
const MISS_TTL_MS: u64 = 2_000;
const LIVE_READS: u32 = 20;
const VERIFYING_READS: u32 = 100;

/// Who waits for the answer.
#[derive(Debug, Clone, Copy)]
enum From {
    Device(Option<u64>),
    /// With the request that the device made.
    Peer(Address, u64, Option<u64>),
}

/// What a case waits for.
enum Stage {
    Forwarding,
    Verifying { left: Vec<Key> },
    LookingUp { left: Vec<Key>, found: bool, unread: bool },
    Writing { waits: usize, unread: bool, settled: bool, all_rejected: bool },
}

/// A report that is being seen to.
struct Case {
    device: String,
    body: Arc<Body>,
    from: From,
    received: u64,
    reported: Vec<Arc<Reported>>,
    introduction: Introduction,
    order: Option<(Text, u64)>,
    said: Option<u64>,
    version: Option<u64>,
    gone: HashSet<Key>,
    footing: Footing,
    bare: bool,
    take: bool,
    doubts: bool,
    assessment: Assessment,
    /// The objects that it was compared with, by name, with their uids; for the checker.
    compared: Vec<(String, String)>,
    stage: Stage,
}

/// See the module.
pub struct Intake {
    cases: BTreeMap<u64, Case>,
    misses: HashMap<Key, u64>,
    live_reads: TokenBucket,
    verifying_reads: TokenBucket,
}

impl Intake {
    pub fn new() -> Self {
        Self {
            cases: BTreeMap::new(),
            misses: HashMap::new(),
            live_reads: TokenBucket::new(LIVE_READS),
            verifying_reads: TokenBucket::new(VERIFYING_READS),
        }
    }
}

impl Process {
    /// A device's report, at the gateway.
    pub fn on_report(&mut self, world: &mut World, report: Report) {
        let Report { body, ticket } = report;
        let device = device_name(body.device);
        let from = From::Device(ticket);
        if !self.is_open() {
            return self.answer(world, &body, from, world.now, &Outcome::Later { retry_after_seconds: 3 });
        }
        let Some(version) = self.index.device(&device).map(|device| device.version) else {
            return self.answer(world, &body, from, world.now, &Outcome::AllNotYours);
        };
        let (hash, now) = (device_hash(&device), self.now_ms(world));
        if self.presence.is_isolated {
            self.presence.table.heard(hash, now);
            return self.answer(world, &body, from, world.now, &Outcome::Later { retry_after_seconds: 3 });
        }
        world.checker.heard(body.device, self.at);
        let incoming = body.incoming();
        let said = incoming.fingerprint.unwrap_or(0);
        if world.guards.on(Guard::SequenceOrder)
            && self.presence.table.heard_the_same(hash, fingerprint(&body.boot), body.sequence, said, version, now)
        {
            return self.answer(world, &body, from, world.now, &Outcome::Done { rejected: Vec::new() });
        }
        let view = self.view.clone();
        let place = match view.owner(hash) {
            Owner::Me if self.is_alone => Place::Alone,
            Owner::Me => Place::Owner,
            Owner::Peer(_) => Place::Other,
        };
        self.see_to(world, &body, from, &view, place, DEADLINE_MS, 1);
    }

    /// A report that a peer passed on.
    pub fn on_forwarded(
        &mut self,
        world: &mut World,
        from: Address,
        call: u64,
        body: Arc<Body>,
        ticket: Option<u64>,
        hop: u32,
    ) {
        let device = device_name(body.device);
        let view = self.view.clone();
        let mine = view.is_mine(device_hash(&device));
        if !self.is_open() || self.index.device(&device).is_none() || (!mine && world.guards.on(Guard::HopLimit)) {
            return self.reply(world, from, call, Err(Refusal::NotOwner));
        }
        world.checker.heard(body.device, self.at);
        let place = if mine { Place::Owner } else { Place::Other };
        self.see_to(world, &body, From::Peer(from, call, ticket), &view, place, FORWARDED_DEADLINE_MS, hop + 1);
    }

    #[allow(clippy::too_many_arguments)]
    fn see_to(
        &mut self,
        world: &mut World,
        body: &Arc<Body>,
        from: From,
        view: &View,
        mut place: Place,
        deadline: u64,
        hop: u32,
    ) {
        let (device, mut incoming) = (device_name(body.device), body.incoming());
        let (hash, now, said) = (device_hash(&device), self.now_ms(world), incoming.fingerprint.unwrap_or(0));
        self.presence.table.heard(hash, now);
        let seed = if self.presence.table.is_seeded(hash) { None } else { remembered(&self.index, &device) };
        let (boot, sequence) = if world.guards.on(Guard::SequenceOrder) {
            (fingerprint(&body.boot), Some(body.sequence))
        } else {
            (incoming.boot_id, incoming.sequence) = (None, None);
            (0, None)
        };
        let (freshness, footing) = self.presence.table.order(hash, boot, sequence, said, seed, now);
        let footing = match (freshness, footing) {
            (Freshness::Old, _) => {
                incoming.outdate();
                Footing::Unknown
            }
            (_, Footing::Lost) => {
                return self.tell(world, body, from, Outcome::Later { retry_after_seconds: 2 });
            }
            (_, footing) => footing,
        };
        let boot = self.boot_ms(world);
        let apiserver = || !self.doubt(boot).apiserver;
        place = place.in_touch(footing, view.peers().count(), || self.presence.hearing(now, boot), apiserver);
        let mut case = Case {
            version: self.index.device(&device).map(|device| device.version),
            device,
            body: body.clone(),
            from,
            received: world.now,
            bare: incoming.is_bare(),
            reported: incoming.reported(),
            order: incoming.boot_id.clone().zip(incoming.sequence),
            said: incoming.fingerprint,
            introduction: incoming.introduction,
            gone: HashSet::new(),
            footing,
            take: place.takes_in(footing),
            doubts: place.doubts(footing),
            assessment: Assessment::default(),
            compared: Vec::new(),
            stage: Stage::Forwarding,
        };
        self.assess(world, &mut case);
        let course = case.assessment.course(footing, case.bare, place);
        world.say(|| {
            let (replica, Body { boot, sequence, .. }) = (self.at.replica, &**body);
            format!("r{replica}: report {boot}/{sequence} {freshness:?} {footing:?} {place:?} {course:?}")
        });
        let number = self.number();
        world.timer(self.at, deadline, Timer::Deadline(number));
        if course != Course::Forward {
            return self.proceed(world, number, case, course);
        }
        let Owner::Peer(owner) = view.owner(hash) else { return };
        self.intake.cases.insert(number, case);
        let (From::Device(ticket) | From::Peer(_, _, ticket)) = from;
        // An old one is forwarded as a bare sign of life.
        let body = if freshness == Freshness::Old { bare(body) } else { body.clone() };
        self.forward(world, owner, number, body, ticket, hop);
    }

    /// The owner's answer, or why there is none.
    pub fn on_forward_answer(&mut self, world: &mut World, number: u64, answer: Result<Outcome, Unanswered>) {
        let waiting = |case: &Case| matches!(case.stage, Stage::Forwarding);
        if !self.intake.cases.get(&number).is_some_and(waiting) {
            return;
        }
        let Some(mut case) = self.intake.cases.remove(&number) else { return };
        match answer {
            Ok(outcome) => {
                if matches!(outcome, Outcome::Done { .. }) {
                    self.acknowledge(world, &case, false);
                }
                // What the owner acknowledged was checked there.
                return self.tell(world, &case.body, case.from, outcome);
            }
            Err(error) if error.is_at_work() => return self.later(world, &case),
            Err(_) => {}
        }
        case.take = Place::Fallback.takes_in(case.footing);
        case.doubts = Place::Fallback.doubts(case.footing);
        self.assess(world, &mut case);
        let course = case.assessment.course(case.footing, case.bare, Place::Fallback);
        world.say(|| format!("r{}: falls back for {}: {course:?}", self.at.replica, case.device));
        self.proceed(world, number, case, course);
    }

    fn proceed(&mut self, world: &mut World, number: u64, mut case: Case, course: Course) {
        if course == Course::Verify {
            let left = std::mem::take(&mut case.assessment.agreed);
            case.stage = Stage::Verifying { left };
            self.intake.cases.insert(number, case);
            world.timer(self.at, VERIFY_DEADLINE_MS, Timer::Verify(number));
            return self.verify_next(world, number);
        }
        self.look_up(world, number, case);
    }

    fn verify_next(&mut self, world: &mut World, number: u64) {
        let now = self.now_ms(world);
        let Some(Case { stage: Stage::Verifying { left }, .. }) = self.intake.cases.get_mut(&number) else { return };
        let Some(key) = left.pop() else { return self.verified(world, number, true) };
        if self.intake.verifying_reads.take(now).is_err() {
            return self.verified(world, number, false);
        }
        self.call(world, Verb::Get(Kind::Process, key.clone()), READ_TIMEOUT_MS, Then::Verified(number, key));
    }

    pub fn on_verified(&mut self, world: &mut World, number: u64, key: Key, answer: Answer) {
        let read = self.adopt(&key, answer).is_some();
        if !self.intake.cases.get(&number).is_some_and(|case| matches!(case.stage, Stage::Verifying { .. })) {
            return;
        }
        if read { self.verify_next(world, number) } else { self.verified(world, number, false) }
    }

    pub fn on_unverified(&mut self, world: &mut World, number: u64) {
        if self.intake.cases.get(&number).is_some_and(|case| matches!(case.stage, Stage::Verifying { .. })) {
            self.verified(world, number, false);
        }
    }

    fn verified(&mut self, world: &mut World, number: u64, success: bool) {
        let Some(mut case) = self.intake.cases.remove(&number) else { return };
        if !success {
            return self.later(world, &case);
        }
        self.assess(world, &mut case);
        self.look_up(world, number, case);
    }

    fn look_up(&mut self, world: &mut World, number: u64, mut case: Case) {
        let left = std::mem::take(&mut case.assessment.unknown);
        if !world.guards.on(Guard::LiveRead) {
            case.gone.extend(left.iter().cloned());
            return self.apply(world, number, case, false);
        }
        case.stage = Stage::LookingUp { left, found: false, unread: false };
        self.intake.cases.insert(number, case);
        self.look_up_next(world, number);
    }

    fn look_up_next(&mut self, world: &mut World, number: u64) {
        let now = self.now_ms(world);
        loop {
            let Some(case) = self.intake.cases.get_mut(&number) else { return };
            let Stage::LookingUp { left, found, unread } = &mut case.stage else { return };
            let Some(key) = left.pop() else {
                let (found, unread) = (*found, *unread);
                let Some(mut case) = self.intake.cases.remove(&number) else { return };
                if found {
                    self.assess(world, &mut case);
                    case.gone.extend(std::mem::take(&mut case.assessment.unknown));
                }
                return self.apply(world, number, case, unread);
            };
            if self.intake.misses.get(&key).is_some_and(|at| at + MISS_TTL_MS > now) {
                case.gone.insert(key);
            } else if self.intake.live_reads.take(now).is_err() {
                *unread = true;
            } else {
                let then = Then::Looked(number, key.clone());
                return self.call(world, Verb::Get(Kind::Process, key), READ_TIMEOUT_MS, then);
            }
        }
    }

    pub fn on_looked(&mut self, world: &mut World, number: u64, key: Key, answer: Answer) {
        let (now, read) = (self.now_ms(world), self.adopt(&key, answer));
        if read == Some(false) {
            self.intake.misses.insert(key.clone(), now);
        }
        let Some(case) = self.intake.cases.get_mut(&number) else { return };
        let Stage::LookingUp { found, unread, .. } = &mut case.stage else { return };
        match read {
            Some(true) => *found = true,
            Some(false) => {
                case.gone.insert(key);
            }
            None => *unread = true,
        }
        self.look_up_next(world, number);
    }

    /// Takes in what a live read returned: whether the object exists, if that is known now.
    pub fn adopt(&mut self, _: &Key, answer: Answer) -> Option<bool> {
        match answer {
            Answer::Object(Some(object)) => {
                self.index.adopt(Kind::Process, *object);
                Some(true)
            }
            Answer::Object(None) => Some(false),
            _ => None,
        }
    }

    fn apply(&mut self, world: &mut World, number: u64, mut case: Case, unread: bool) {
        let jobs = std::mem::take(&mut case.assessment.jobs);
        let all_rejected = case.assessment.is_all_not_yours(case.reported.len());
        let settled = jobs.is_empty() && case.assessment.rejected.is_empty() && case.gone.is_empty() && !unread;
        if all_rejected && jobs.is_empty() {
            return self.tell(world, &case.body, case.from, Outcome::AllNotYours);
        }
        let overtaken = |(boot, sequence): &(Text, u64)| {
            self.presence.table.is_overtaken(device_hash(&case.device), fingerprint(boot), *sequence)
        };
        if case.order.as_ref().is_some_and(overtaken) {
            return self.later(world, &case);
        }
        let mut waits = 0;
        let mut submitted = Vec::new();
        for ((kind, key), wanted) in jobs {
            let mut job = Job::wanted(wanted.reported, wanted.introduction, !wanted.urgent);
            job.unsure = case.doubts;
            if wanted.urgent || case.doubts {
                job.waiting.push(number);
                waits += 1;
            }
            submitted.push((kind, key, job));
        }
        if let Some((boot, sequence)) = case.order.clone().filter(|_| case.take && !unread) {
            self.presence.took(&case.device, &boot, sequence);
        }
        case.stage = Stage::Writing { waits, unread, settled, all_rejected };
        self.intake.cases.insert(number, case);
        for (kind, key, job) in submitted {
            self.submit(world, kind, key, job);
        }
        if waits == 0 {
            self.written(world, number, 0);
        }
    }

    /// Something that a case waits for was written, or there was nothing to write.
    pub fn written(&mut self, world: &mut World, number: u64, count: usize) {
        let Some(case) = self.intake.cases.get_mut(&number) else { return };
        let Stage::Writing { waits, unread, settled, all_rejected } = &mut case.stage else { return };
        *waits -= count.min(*waits);
        if *waits > 0 {
            return;
        }
        let (unread, settled, all_rejected) = (*unread, *settled, *all_rejected);
        let Some(case) = self.intake.cases.remove(&number) else { return };
        if unread || self.presence.is_lost(&case.device) {
            return self.later(world, &case);
        }
        self.acknowledge(world, &case, settled);
        if all_rejected {
            return self.tell(world, &case.body, case.from, Outcome::AllNotYours);
        }
        let rejected = case.assessment.rejected;
        // What is old or a bare sign of life acknowledges nothing.
        if !case.bare {
            let names: Vec<String> = rejected.iter().map(|rejection| rejection.name.clone()).collect();
            world.checker.acked(self.at, &case.body, case.received, &names, &case.compared);
        }
        self.tell(world, &case.body, case.from, Outcome::Done { rejected });
    }

    /// What a case waits for will not be written now.
    pub fn unwritten(&mut self, world: &mut World, number: u64) {
        if let Some(case) = self.intake.cases.remove(&number) {
            self.later(world, &case);
        }
    }

    pub fn on_deadline(&mut self, world: &mut World, number: u64) {
        // Reads and forwards have deadlines of their own, which are shorter together.
        if let Some(case) = self.intake.cases.remove_if_writing(number) {
            self.later(world, &case);
        }
    }

    fn later(&mut self, world: &mut World, case: &Case) {
        let retry_after_seconds = self.rng.range(2, 7);
        self.tell(world, &case.body, case.from, Outcome::Later { retry_after_seconds });
    }

    fn answer(&mut self, world: &mut World, body: &Body, from: From, received: u64, outcome: &Outcome) {
        if matches!(outcome, Outcome::Done { .. }) {
            world.checker.acked(self.at, body, received, &[], &self.compared(body));
        }
        self.tell(world, body, from, outcome.clone());
    }

    fn tell(&mut self, world: &mut World, body: &Body, from: From, outcome: Outcome) {
        match from {
            From::Device(None) => {}
            From::Device(Some(ticket)) => {
                let answer = match outcome {
                    Outcome::Done { .. } => ReportAnswer::Ack,
                    Outcome::AllNotYours => ReportAnswer::Refused,
                    Outcome::Later { retry_after_seconds } => ReportAnswer::Later(retry_after_seconds),
                };
                let (me, device) = (Node::Replica(self.at.replica), Node::Device(body.device));
                world.send(me, device, Event::Answered(body.device, ticket, answer));
            }
            From::Peer(to, call, _) => self.reply(world, to, call, Ok(Some(outcome))),
        }
    }

    fn assess(&self, world: &World, case: &mut Case) {
        case.compared = self.compared(&case.body);
        case.assessment = Assessment::new(
            &self.index,
            &case.device,
            &case.introduction,
            &case.reported,
            |kind, key| self.writer.is_pending(kind, key),
            |key| case.gone.contains(key),
            self.wall(world),
        );
    }

    fn compared(&self, body: &Body) -> Vec<(String, String)> {
        let known = body.observations.iter().filter_map(|said| {
            Some((
                said.name.clone(),
                self.index.process(super::super::apiserver::NAMESPACE, &said.name)?.uid.to_string(),
            ))
        });
        known.collect()
    }

    fn acknowledge(&mut self, world: &World, case: &Case, settled: bool) {
        if let (Some((boot, sequence)), Some(said)) = (&case.order, case.said) {
            let (hash, now) = (device_hash(&case.device), self.now_ms(world));
            let version = case.version.filter(|_| settled);
            self.presence.table.acknowledged(hash, fingerprint(boot), *sequence, said, version, now);
        }
    }
}

trait RemoveIfWriting {
    fn remove_if_writing(&mut self, number: u64) -> Option<Case>;
}

impl RemoveIfWriting for BTreeMap<u64, Case> {
    fn remove_if_writing(&mut self, number: u64) -> Option<Case> {
        let writing = self.get(&number).is_some_and(|case| matches!(case.stage, Stage::Writing { .. }));
        if writing { self.remove(&number) } else { None }
    }
}

/// What is left of an old report: a sign of life.
fn bare(body: &Body) -> Arc<Body> {
    Arc::new(Body { device: body.device, boot: "".into(), sequence: 0, observations: Vec::new() })
}
