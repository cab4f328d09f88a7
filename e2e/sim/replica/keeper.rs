//! Mirrors `src/ownership/keeper.rs`: the member Lease, the list of members, and the election.

use super::super::apiserver::{Answer, Body, LEADER, Lease, Verb};
use super::super::world::World;
use super::events::somebody_left;
use super::presence::EVERY_MS;
use super::{Process, Then, Timer, writer};
use praetor::desired::index::Kind;
use praetor::desired::record::ConditionType;
use praetor::ownership::lease::{Candidate, Holder, Lead, Outcome, Record, Step};
use praetor::ownership::members::{LIST_EVERY_MS, Member, Members, Sighting, View};
use praetor::ownership::objects::join_delay_seconds;
use praetor::ownership::rendezvous::device_hash;
use praetor::presence::staleness::{AgentState, Doubt};
use std::sync::Arc;

const RENEW_EVERY_MS: u64 = 3_000;
/// Who finds a Lease of its own name watches it for a while.
const SUSPICION_MS: u64 = 4_000;
const CALL_TIMEOUT_MS: u64 = 2_000;
const LEASE_GOOD_MS: u64 = 10_000;
const APISERVER_GOOD_MS: u64 = 6_000;

/// See the module.
pub struct Keeper {
    members: Members,
    member: Member,
    lease: Arc<str>,
    /// The own Lease as last seen.
    own: Option<Lease>,
    /// Whether it has been written by this process.
    joined: bool,
    renewals: u64,
    renewing: bool,
    crashes: u32,
    /// Since when it is known that the last life ended badly.
    suspicious: bool,
    /// By the boot clock.
    renewed: Option<u64>,
    listed: Option<u64>,
    candidate: Candidate,
    leads: u64,
    asking: bool,
    pub lead: Option<Lead>,
}

/// The life that an incarnation belongs to.
pub fn life_of(member: &Member) -> Option<u32> {
    u32::try_from(member.incarnation & 0xffff).ok()
}

impl Keeper {
    pub fn new(identity: &Arc<str>, incarnation: u64) -> Self {
        let member = Member::new(identity, incarnation, None);
        Self {
            members: Members::new(member.clone()),
            member,
            lease: format!("praetor-member-{identity}").into(),
            own: None,
            joined: false,
            renewals: 0,
            renewing: false,
            crashes: 0,
            suspicious: false,
            renewed: None,
            listed: None,
            candidate: Candidate::new(identity, incarnation),
            leads: 0,
            asking: false,
            lead: None,
        }
    }

    /// Nobody is known yet.
    pub fn first_view(&self) -> Arc<View> {
        Arc::new(View::new(0, Vec::new(), &self.member.identity))
    }
}

impl Process {
    /// The caches are synced: join the others, after a while if the last life ended badly.
    pub fn start_keeper(&mut self, world: &mut World) {
        self.list_members(world);
        let get = Verb::GetLease(self.keeper.lease.clone());
        self.call(world, get, CALL_TIMEOUT_MS, Then::Own);
        self.elect(world);
    }

    pub fn on_own(&mut self, world: &mut World, answer: Answer) {
        match answer {
            Answer::Lease(own) => {
                let inherited = own.as_ref().filter(|_| !self.keeper.joined).map(|own| own.body.crashes + 1);
                self.keeper.own = own;
                match inherited.filter(|_| !std::mem::replace(&mut self.keeper.suspicious, true)) {
                    // The last life ended badly: others may settle first.
                    Some(crashes) => {
                        self.keeper.crashes = crashes;
                        let wait = (join_delay_seconds(crashes) * 1_000).max(SUSPICION_MS);
                        world.timer(self.at, wait, Timer::Renew);
                    }
                    None => self.renew(world),
                }
            }
            _ => {
                let get = Verb::GetLease(self.keeper.lease.clone());
                self.call(world, get, CALL_TIMEOUT_MS, Then::Own);
            }
        }
    }

    /// Writes the own Lease.
    pub fn renew(&mut self, world: &mut World) {
        if self.closing || self.keeper.renewing {
            return;
        }
        self.keeper.renewing = true;
        self.keeper.renewals += 1;
        let body = Body {
            holder: None,
            term: 0,
            renewals: self.keeper.renewals,
            crashes: self.keeper.crashes,
            member: Some(self.keeper.member.clone()),
        };
        let name = self.keeper.lease.clone();
        let verb = match &self.keeper.own {
            None => Verb::CreateLease(name, body),
            Some(own) => Verb::ReplaceLease(name, own.revision, body),
        };
        let sent = self.boot_ms(world);
        self.call(world, verb, CALL_TIMEOUT_MS, Then::Renewed(sent));
    }

    pub fn on_renewed(&mut self, world: &mut World, sent: u64, answer: Answer) {
        self.keeper.renewing = false;
        if self.closing {
            // A renewal that overtook the farewell.
            return self.leave(world);
        }
        match answer {
            Answer::Lease(Some(lease)) => {
                self.keeper.own = Some(lease);
                self.keeper.joined = true;
                self.keeper.renewed = Some(self.keeper.renewed.map_or(sent, |before| before.max(sent)));
                self.keeper.members.renewed(sent);
                self.look(world);
                world.timer(self.at, RENEW_EVERY_MS, Timer::Renew);
            }
            _ => {
                // Read before the next try: it may have been written.
                let get = Verb::GetLease(self.keeper.lease.clone());
                self.call(world, get, CALL_TIMEOUT_MS, Then::Own);
            }
        }
    }

    /// Deletes the own Lease, and lets go of the lead.
    pub fn leave(&mut self, world: &mut World) {
        self.keeper.members.gone();
        self.keeper.joined = false;
        self.keeper.renewed = None;
        if let Some(own) = self.keeper.own.take() {
            let delete = Verb::DeleteLease(self.keeper.lease.clone(), Some(own.uid), None);
            self.call(world, delete, CALL_TIMEOUT_MS, Then::Left);
        }
        if let Some(lead) = self.keeper.lead.take() {
            lead.end();
        }
        if let Some((version, term)) = self.keeper.candidate.release() {
            let body = Body { holder: None, term, renewals: 0, crashes: 0, member: None };
            self.call(world, Verb::ReplaceLease(LEADER.into(), version, body), CALL_TIMEOUT_MS, Then::Released);
        }
    }

    /// Asks who is there.
    pub fn list_members(&mut self, world: &mut World) {
        self.call(world, Verb::Leases, CALL_TIMEOUT_MS, Then::Members);
        world.timer(self.at, LIST_EVERY_MS, Timer::Members);
    }

    pub fn on_members(&mut self, world: &mut World, answer: Answer) {
        let Answer::Leases(leases) = answer else { return };
        let now = self.boot_ms(world);
        self.keeper.listed = Some(now);
        let sightings = leases.iter().filter_map(|lease| {
            let member = lease.body.member.clone()?;
            Some(Sighting { name: lease.name.clone(), uid: lease.uid.clone(), version: lease.revision, member })
        });
        self.keeper.members.listed(sightings, now);
        self.look(world);
    }

    /// Who is there now.
    fn look(&mut self, world: &mut World) {
        let now = self.boot_ms(world);
        let view = self.keeper.members.view(now);
        if !Arc::ptr_eq(&view, &self.view) {
            world.say(|| {
                let members: Vec<&str> = view.members.iter().map(|member| &*member.identity).collect();
                format!("r{}: sees {members:?}", self.at.replica)
            });
            let before = std::mem::replace(&mut self.view, view);
            if somebody_left(&before, &self.view) || (before.me.is_none() && self.view.me.is_some()) {
                self.repair_all(world);
            }
        }
    }

    pub(super) fn doubt(&self, boot: u64) -> Doubt {
        let within = |when: Option<u64>, span| when.is_some_and(|when| boot.saturating_sub(when) < span);
        Doubt {
            lease: !(self.keeper.joined && within(self.keeper.renewed, LEASE_GOOD_MS)),
            apiserver: !within(self.keeper.listed, APISERVER_GOOD_MS),
            peers: self.view.peers().map(|member| member.incarnation).collect(),
        }
    }

    /// Mirrors `src/presence/sweeper.rs`.
    pub fn sweep(&mut self, world: &mut World) {
        world.timer(self.at, EVERY_MS, Timer::Sweep);
        let (now, boot) = (self.now_ms(world), self.boot_ms(world));
        self.look(world);
        let doubt = self.doubt(boot);
        self.presence.tick(&doubt, now, boot);
        if !self.is_open() || self.closing {
            return;
        }
        let boot = self.boot_ms(world);
        let outlook = self.presence.outlook(now, boot);
        let mut silent = Vec::new();
        for (name, device) in self.index.devices(0, usize::MAX) {
            let hash = device_hash(name);
            if !self.view.is_mine(hash) || outlook.judge(self.presence.table.contact(hash)) != Ok(AgentState::Stale) {
                continue;
            }
            let processes =
                device.processes.iter().filter(|p| p.status.is(ConditionType::AgentConnected) == Some(true));
            let switches = device.switches.iter().filter(|switch| switch.status.connected.map(|c| c.0) == Some(true));
            silent.extend(
                processes
                    .map(|process| (Kind::Process, process.key.clone()))
                    .chain(switches.map(|switch| (Kind::Switch, switch.key.clone()))),
            );
        }
        for (kind, key) in silent {
            self.submit(world, kind, key, writer::Job::default());
        }
    }

    // --- the election ---

    fn elect(&mut self, world: &mut World) {
        if self.keeper.asking || self.closing {
            return;
        }
        let now = self.boot_ms(world);
        let step = self.keeper.candidate.decide(now);
        let body = |term: u64| Body {
            holder: Some(Holder { identity: self.identity.clone(), incarnation: self.incarnation }),
            term,
            renewals: now,
            crashes: 0,
            member: None,
        };
        let verb = match step {
            Step::Wait(wait) => {
                self.keeper.leads += 1;
                return world.timer(self.at, wait.min(2_000), Timer::Lead(self.keeper.leads));
            }
            Step::Lost => {
                if let Some(lead) = self.keeper.lead.take() {
                    lead.end();
                }
                return self.elect(world);
            }
            Step::Look => Verb::GetLease(LEADER.into()),
            Step::Create { term } => Verb::CreateLease(LEADER.into(), body(term)),
            Step::Acquire { version, term } | Step::Renew { version, term } => {
                Verb::ReplaceLease(LEADER.into(), version, body(term))
            }
        };
        self.keeper.asking = true;
        self.call(world, verb, CALL_TIMEOUT_MS, Then::Led(step, now));
    }

    pub fn on_lead_timer(&mut self, world: &mut World, number: u64) {
        if number == self.keeper.leads {
            self.elect(world);
        }
    }

    pub fn on_led(&mut self, world: &mut World, step: Step, sent: u64, answer: Answer) {
        self.keeper.asking = false;
        let now = self.boot_ms(world);
        match (step, answer) {
            (Step::Look, Answer::Lease(lease)) => {
                let record = lease.map(|lease| Record {
                    version: lease.revision,
                    holder: lease.body.holder,
                    term: lease.body.term,
                });
                self.keeper.candidate.observe(record, sent, now);
            }
            (Step::Look, _) => self.keeper.candidate.result(step, sent, now, Outcome::Unknown),
            (_, Answer::Lease(Some(lease))) => {
                self.keeper.candidate.result(step, sent, now, Outcome::Written(lease.revision));
            }
            (_, Answer::Conflict | Answer::NotFound) => {
                self.keeper.candidate.result(step, sent, now, Outcome::Conflict);
            }
            _ => self.keeper.candidate.result(step, sent, now, Outcome::Unknown),
        }
        if let Some((until, term)) = self.keeper.candidate.held() {
            match &self.keeper.lead {
                Some(lead) if lead.term() == term => lead.extend(until),
                _ => {
                    world.say(|| format!("r{}: leads in term {term}", self.at.replica));
                    self.keeper.lead = Some(Lead::new(term, until));
                }
            }
        }
        self.elect(world);
    }

    /// Whether it leads, by its own clock.
    pub fn leads(&self, world: &World) -> bool {
        self.keeper.lead.as_ref().is_some_and(|lead| lead.check(self.boot_ms(world)).is_ok())
    }
}
