//! Pure: replicas with caches of differing age, and a device that changes its mind.

use super::*;
use crate::desired::index::Kind;
use crate::desired::lean::Key;
use crate::presence::table::{Table, Taken};
use crate::status::assess::{Assessment, Course, Place, Wanted};
use crate::status::projection::Introduction;
use proptest::prelude::*;

const REPLICAS: usize = 3;
const DEVICE: u64 = 7;
const BOOT: u64 = 9;

/// One of the things that the world does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The device says something (0, 1, 2) to a replica. What becomes of it on the way is in the second number.
    Say { what: u64, to: usize, fate: Fate },
    /// A replica's watch shows a little more.
    Show { replica: usize, writes: usize },
    /// One replica tells another what it heard.
    Gossip { from: usize, to: usize },
    /// A replica takes another one for the owner.
    View { replica: usize, owner: usize },
    /// A late copy of an old report reaches a replica.
    Echo { back: usize, to: usize },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Arrives,
    /// The device hears no answer and says the same again, elsewhere.
    AnswerLost,
    /// It never arrives.
    Lost,
    /// The owner is not reached from where it arrives.
    NoForward,
    /// The owner is reached, but its answer is not.
    ForwardUnanswered,
}

struct Replica {
    table: Table,
    /// How many writes its cache has seen.
    seen: usize,
    owner: usize,
}

struct World {
    replicas: Vec<Replica>,
    /// What the status said after each write.
    writes: Vec<u64>,
    now_ms: u64,
    sequence: u64,
    said: Vec<(u64, u64)>,
    arrived: u64,
    /// Every cache that agrees is believed: the guard is switched off.
    naive: bool,
}

impl World {
    fn new(naive: bool) -> Self {
        let replica = |_| Replica { table: Table::default(), seen: 1, owner: 0 };
        let mut world = Self {
            replicas: (0..REPLICAS).map(replica).collect(),
            writes: vec![0],
            now_ms: 10_000,
            sequence: 0,
            said: Vec::new(),
            arrived: 0,
            naive,
        };
        // The device has reported before, and everybody knows.
        world.say(0, 0, Fate::Arrives);
        for to in 1..REPLICAS {
            world.gossip(0, to);
        }
        world
    }

    fn status(&self) -> u64 {
        self.writes[self.writes.len() - 1]
    }

    fn cached(&self, replica: usize) -> u64 {
        self.writes[self.replicas[replica].seen - 1]
    }

    fn assess(&self, replica: usize, what: u64) -> Assessment {
        let key = Key { namespace: "n".into(), name: "p".into() };
        let mut assessment = Assessment::default();
        if self.cached(replica) == what {
            assessment.agreed.push(key);
        } else {
            let wanted = Wanted { reported: None, introduction: Introduction::default(), urgent: true };
            assessment.jobs.insert((Kind::Process, key), wanted);
        }
        assessment
    }

    /// As the intake does; whether it was acknowledged.
    fn take_in(&mut self, at: usize, sequence: u64, what: u64, mut place: Place, fate: Fate) -> bool {
        let now = self.now_ms;
        let fingerprint = what + 1;
        let table = &mut self.replicas[at].table;
        let (freshness, footing) = table.order(DEVICE, BOOT, Some(sequence), fingerprint, None, now);
        if freshness == Freshness::Old {
            return true;
        }
        let footing = if self.naive { Footing::Same } else { footing };
        let mut course = self.assess(at, what).course(footing, false, place);
        if course == Course::Forward {
            let owner = self.replicas[at].owner;
            if fate != Fate::NoForward && self.replicas[owner].owner == owner {
                let acked = self.take_in(owner, sequence, what, Place::Owner, fate);
                if fate != Fate::ForwardUnanswered {
                    self.replicas[at].table.acknowledged(DEVICE, BOOT, sequence, fingerprint, None, now);
                    return acked;
                }
            }
            place = Place::Fallback;
            course = self.assess(at, what).course(footing, false, place);
        }
        if course == Course::Verify {
            self.replicas[at].seen = self.writes.len();
        }
        if self.cached(at) != what {
            // Under the version: whoever has not seen the last write reads it, and derives again.
            if self.status() != what {
                self.writes.push(what);
            }
            self.replicas[at].seen = self.writes.len();
        }
        let table = &mut self.replicas[at].table;
        if place.takes_in(footing) {
            table.took(DEVICE, BOOT, sequence);
        }
        table.acknowledged(DEVICE, BOOT, sequence, fingerprint, None, now);
        true
    }

    fn place(&self, at: usize) -> Place {
        if self.replicas[at].owner == at { Place::Owner } else { Place::Other }
    }

    fn say(&mut self, what: u64, to: usize, fate: Fate) -> bool {
        self.sequence += 1;
        let sequence = self.sequence;
        self.said.push((sequence, what));
        if fate == Fate::Lost {
            return true;
        }
        self.arrived = sequence;
        let mut acked = self.take_in(to, sequence, what, self.place(to), fate);
        if fate == Fate::AnswerLost {
            let to = (to + 1) % REPLICAS;
            acked = self.take_in(to, sequence, what, self.place(to), Fate::Arrives);
        }
        !acked || self.status() == what
    }

    fn gossip(&mut self, from: usize, to: usize) {
        let (mut heard, now) = (Vec::new(), self.now_ms);
        self.replicas[from].table.since(0, now, &mut heard);
        for heard in heard {
            self.replicas[to].table.merge(&heard, Taken { from_ms: now, until_ms: now });
        }
    }

    /// False when an acknowledged report is not what the status says.
    fn step(&mut self, step: Step) -> bool {
        self.now_ms += 100;
        match step {
            Step::Say { what, to, fate } => self.say(what, to, fate),
            Step::Show { replica, writes } => {
                let seen = &mut self.replicas[replica].seen;
                *seen = (*seen + writes).min(self.writes.len());
                true
            }
            Step::Gossip { from, to } => {
                self.gossip(from, to);
                true
            }
            Step::View { replica, owner } => {
                self.replicas[replica].owner = owner;
                true
            }
            Step::Echo { back, to } => {
                // Late means: everybody has told since; see the last paragraph of the module.
                for from in (0..REPLICAS).filter(|from| *from != to) {
                    self.gossip(from, to);
                }
                let Some((sequence, what)) = self.said.iter().rev().skip(1).nth(back).copied() else { return true };
                let before = self.status();
                // Without a newer one that did arrive it is none of the past.
                if sequence <= self.arrived {
                    self.take_in(to, sequence, what, self.place(to), Fate::Arrives);
                }
                self.status() == before
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let replica = || 0..REPLICAS;
    let fate = prop_oneof![
        6 => Just(Fate::Arrives),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Lost),
        2 => Just(Fate::NoForward),
        1 => Just(Fate::ForwardUnanswered),
    ];
    prop_oneof![
        6 => (0..3_u64, replica(), fate).prop_map(|(what, to, fate)| Step::Say { what, to, fate }),
        2 => (replica(), 0..3_usize).prop_map(|(replica, writes)| Step::Show { replica, writes }),
        3 => (replica(), replica()).prop_map(|(from, to)| Step::Gossip { from, to }),
        1 => (replica(), replica()).prop_map(|(replica, owner)| Step::View { replica, owner }),
        1 => (0..4_usize, replica()).prop_map(|(back, to)| Step::Echo { back, to }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// However old the caches, however wrong the views, whatever is lost on the way: when a report is acknowledged,
    /// the status says what it said.
    #[test]
    fn an_acknowledged_report_is_what_the_status_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(false);
        for (at, step) in steps.iter().enumerate() {
            prop_assert!(world.step(*step), "step {at} {step:?}: the status says {}", world.status());
        }
    }
}

/// The shortest case: A, then B elsewhere, then A again where B has not been seen.
#[test]
fn a_cache_that_agrees_is_not_believed() {
    let steps = [
        Step::Say { what: 0, to: 1, fate: Fate::Arrives },
        Step::Say { what: 1, to: 0, fate: Fate::Arrives },
        Step::Say { what: 0, to: 1, fate: Fate::Arrives },
    ];
    let run = |naive| {
        let mut world = World::new(naive);
        steps.iter().all(|step| world.step(*step))
    };
    assert!(run(false));
    assert!(!run(true), "this test does not show anything");
}

/// Words that were believed for the report before them say nothing of the cache, not even at the owner: it shows an old
/// state that agrees by chance, then one in between, which the next words agree with.
#[test]
fn believed_words_leave_the_cache_as_old_as_it_was() {
    let steps = [
        Step::Say { what: 1, to: 2, fate: Fate::NoForward },
        Step::Say { what: 0, to: 0, fate: Fate::Arrives },
        Step::Say { what: 2, to: 0, fate: Fate::Arrives },
        Step::Say { what: 1, to: 1, fate: Fate::AnswerLost },
        Step::View { replica: 2, owner: 2 },
        Step::Say { what: 1, to: 2, fate: Fate::NoForward },
        Step::Show { replica: 2, writes: 2 },
        Step::Say { what: 2, to: 2, fate: Fate::Arrives },
    ];
    let mut world = World::new(false);
    assert!(steps.iter().all(|step| world.step(*step)));
}

/// What every device says all day is answered where it arrives, also when that is somewhere else each time.
#[test]
fn the_same_words_need_no_owner() {
    let mut world = World::new(false);
    for round in 0..30 {
        let at = round % REPLICAS;
        world.sequence += 1;
        let (sequence, now) = (world.sequence, world.now_ms);
        let (_, footing) = world.replicas[at].table.order(DEVICE, BOOT, Some(sequence), 1, None, now);
        assert_eq!(footing, Footing::Same);
        world.replicas[at].table.acknowledged(DEVICE, BOOT, sequence, 1, Some(5), now);
        for to in (0..REPLICAS).filter(|to| *to != at) {
            world.gossip(at, to);
        }
        world.now_ms += 15_000;
    }
    // And the short way is open everywhere, once each replica has looked.
    let (sequence, now) = (world.sequence + 1, world.now_ms);
    for replica in &mut world.replicas {
        assert!(replica.table.heard_the_same(DEVICE, BOOT, sequence, 1, 5, now));
        assert!(!replica.table.heard_the_same(DEVICE, BOOT, sequence + 2, 1, 5, now), "one in between is missing");
        assert!(!replica.table.heard_the_same(DEVICE, BOOT, sequence + 1, 2, 5, now), "other words");
        assert!(!replica.table.heard_the_same(DEVICE, BOOT, sequence + 1, 1, 6, now), "another state of the index");
        assert!(!replica.table.heard_the_same(DEVICE, BOOT + 1, sequence + 1, 1, 5, now), "another start of the agent");
    }
}

#[test]
fn a_report_without_an_order_leaves_nothing_to_believe() {
    let mut order = Order::default();
    let mut said = Said::default();
    assert_eq!(said.judge(&mut order, BOOT, Some(1), 4), (Freshness::New, Footing::Unknown));
    said.take();
    said.acknowledge(4, Some(1));
    assert_eq!(said.judge(&mut order, BOOT, Some(2), 4), (Freshness::New, Footing::Same));
    assert_eq!(said.judge(&mut order, BOOT, Some(3), 5), (Freshness::New, Footing::Here));
    assert_eq!(said.judge(&mut order, 0, None, 6), (Freshness::New, Footing::Unknown));
    assert_eq!(said.judge(&mut order, BOOT, Some(4), 5).1, Footing::Elsewhere { same_words: false });
    assert_eq!(said.judge(&mut order, BOOT + 1, Some(1), 5), (Freshness::New, Footing::Unknown));
}

#[test]
fn what_was_given_up_is_not_believed_again() {
    let (mut said, mut order) = (Said::default(), Order::default());
    let mut judge = |said: &mut Said, sequence, words| said.judge(&mut order, 5, Some(sequence), words).1;
    judge(&mut said, 1, 9);
    said.take();
    assert_eq!(judge(&mut said, 2, 8), Footing::Here);
    said.take();
    said.lose();
    // Neither the next report, nor one that says the same, nor what another replica knows of it.
    assert_eq!(judge(&mut said, 3, 8), Footing::Lost);
    said.acknowledge(8, Some(1));
    said.merge(true, 8);
    assert_eq!(judge(&mut said, 4, 8), Footing::Lost);
    assert_eq!(said.judge(&mut Order::default(), 0, None, 8).1, Footing::Lost);
}
