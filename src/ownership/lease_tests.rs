//! Pure: tests of the election.

use super::*;
use proptest::prelude::*;

fn held_by(identity: &str, incarnation: u64, version: u64) -> Option<Record> {
    Some(Record { version, holder: Some(Holder { identity: identity.into(), incarnation }), term: 4 })
}

fn released(version: u64) -> Option<Record> {
    Some(Record { version, holder: None, term: 4 })
}

fn me() -> Candidate {
    Candidate::new("me", 7)
}

/// A candidate that took the Lease at 1,000 with version 10.
fn leader() -> Candidate {
    let mut candidate = me();
    candidate.observe(held_by("me", 3, 9), 0, 1000);
    let step = candidate.decide(1000);
    assert_eq!(step, Step::Acquire { version: 9, term: 5 }, "the same name with another incarnation is dead");
    candidate.result(step, 1000, 1010, Outcome::Written(10));
    candidate
}

#[test]
fn a_lead_ends_and_stays_ended() {
    let lead = Lead::new(3, 1000);
    let clone = lead.clone();
    assert_eq!((lead.check(999), lead.check(1000), lead.term()), (Ok(()), Err(LostLead), 3));
    lead.extend(2000);
    lead.extend(1500);
    assert_eq!((clone.check(1999), clone.check(2000)), (Ok(()), Err(LostLead)));
    clone.end();
    lead.extend(3000);
    assert_eq!(lead.check(0), Err(LostLead));
    assert!(lead == clone && lead != Lead::new(3, 1000));
    Lead::unlimited().extend(5);
    assert_eq!(Lead::unlimited().check(u64::MAX - 1), Ok(()));
}

#[test]
fn looks_before_it_does_anything() {
    let mut candidate = me();
    assert_eq!(candidate.decide(0), Step::Look);
    candidate.result(Step::Look, 0, 2000, Outcome::Unknown);
    assert_eq!(candidate.decide(2000), Step::Wait(500));
    assert_eq!(candidate.decide(2500), Step::Look);
    candidate.observe(None, 2500, 2510);
    let Step::Wait(spread) = candidate.decide(2510) else { panic!("candidates spread") };
    assert!(spread < 300);
    assert_eq!(candidate.decide(2510 + spread), Step::Create { term: 1 });
}

#[test]
fn a_foreign_holder_is_given_up_when_nothing_changes_for_15_seconds() {
    let mut candidate = me();
    candidate.observe(held_by("other", 1, 5), 0, 10);
    let Step::Wait(wait) = candidate.decide(10) else { panic!("it has a holder") };
    assert!((15_000..15_300).contains(&wait));
    candidate.observe(held_by("other", 1, 5), 9000, 9010);
    assert_eq!(candidate.decide(10 + wait), Step::Acquire { version: 5, term: 5 });
    // Any change starts it over, also of an old record that arrives late: it is not news.
    candidate.observe(held_by("other", 1, 6), 14_000, 14_000);
    candidate.observe(held_by("other", 1, 5), 13_000, 15_000);
    let Step::Wait(again) = candidate.decide(15_000) else { panic!("it was renewed") };
    assert!((14_000..14_300).contains(&again));
    // Released: soon, but not all at once.
    candidate.observe(released(8), 15_500, 15_500);
    let Step::Wait(wait) = candidate.decide(15_500) else { panic!("candidates spread") };
    assert!(wait < 300);
}

#[test]
fn a_deleted_lease_may_still_be_believed_in() {
    let mut candidate = me();
    candidate.observe(held_by("other", 1, 5), 0, 0);
    candidate.observe(None, 1000, 1010);
    assert!(matches!(candidate.decide(1010), Step::Wait(13_990..)));
    candidate.observe(None, 9000, 9010);
    assert!(matches!(candidate.decide(9010), Step::Wait(5_990..6_400)));
    assert_eq!(candidate.decide(15_300), Step::Create { term: 1 });
}

#[test]
fn holds_from_before_the_request_and_renews_in_time() {
    let mut leader = leader();
    assert_eq!(leader.held(), Some((11_000, 5)));
    assert_eq!(leader.decide(1010), Step::Wait(1990));
    let step = leader.decide(3000);
    assert_eq!(step, Step::Renew { version: 10, term: 5 });
    leader.result(step, 3000, 4900, Outcome::Written(11));
    assert!(leader.holds(12_999) && !leader.holds(13_000));
    assert_eq!(leader.decide(4900), Step::Wait(100));
    assert_eq!(leader.decide(13_000), Step::Lost);
    // What worked has stopped. The record still names me.
    assert_eq!(leader.decide(14_000), Step::Acquire { version: 11, term: 6 });
}

#[test]
fn a_lost_answer_is_found_out_and_counts_for_nothing() {
    let mut leader = leader();
    let step = leader.decide(3000);
    leader.result(step, 3000, 5000, Outcome::Unknown);
    assert_eq!(leader.decide(5000), Step::Wait(500));
    assert_eq!(leader.decide(5500), Step::Look);
    leader.observe(held_by("me", 7, 11), 5500, 5510);
    assert_eq!(leader.held(), Some((11_000, 5)), "nobody knows when it was written");
    let step = leader.decide(5510);
    assert_eq!(step, Step::Renew { version: 11, term: 5 });
    leader.result(step, 5510, 5520, Outcome::Written(12));
    assert_eq!(leader.held(), Some((15_510, 5)));
    // Found out too late: what was written names me, so that I may have it again at once, for another term.
    let step = leader.decide(8000);
    leader.result(step, 8000, 18_100, Outcome::Unknown);
    assert_eq!(leader.decide(18_100), Step::Lost);
    assert_eq!(leader.decide(18_700), Step::Look);
    leader.observe(held_by("me", 7, 13), 18_700, 18_710);
    assert_eq!(leader.decide(18_710), Step::Acquire { version: 13, term: 5 });
}

#[test]
fn an_answer_that_comes_too_late_gives_nothing() {
    let mut leader = leader();
    let step = leader.decide(3000);
    leader.result(step, 3000, 60_000, Outcome::Written(11));
    assert!(!leader.holds(60_000));
    assert_eq!(leader.decide(60_000), Step::Lost);
}

#[test]
fn somebody_elses_record_ends_it() {
    let mut leader = leader();
    leader.observe(held_by("other", 1, 12), 2000, 2010);
    assert!(!leader.holds(2010));
    assert_eq!(leader.decide(2010), Step::Lost);
    assert!(matches!(leader.decide(3010), Step::Wait(13_000..)));
    assert_eq!(leader.leader().map(|name| &**name), Some("other"));
    assert_eq!(leader.release(), None);
}

#[test]
fn somebodys_edit_does_not() {
    let mut leader = leader();
    let step = leader.decide(3000);
    leader.result(step, 3000, 3010, Outcome::Conflict);
    assert_eq!(leader.decide(3010), Step::Look);
    leader.observe(held_by("me", 7, 12), 3010, 3020);
    assert_eq!(leader.decide(3020), Step::Renew { version: 12, term: 5 });
    // Deleted by hand: written anew.
    leader.observe(None, 3030, 3040);
    assert_eq!(leader.decide(3040), Step::Create { term: 5 });
    assert!(leader.holds(3040));
}

/// A Lease without labels is in no list.
#[test]
fn what_a_list_lacks_is_looked_for() {
    let mut candidate = me();
    candidate.missed();
    assert_eq!(candidate.decide(0), Step::Look);
    candidate.observe(held_by("other", 1, 5), 0, 0);
    for now in (1500..15_000).step_by(1500) {
        candidate.missed();
        assert_eq!(candidate.decide(now), Step::Look);
        candidate.observe(held_by("other", 1, 5), now, now);
    }
    assert_eq!(candidate.decide(15_100), Step::Acquire { version: 5, term: 5 });
}

/// The answer of a list can overtake that of a write.
#[test]
fn observations_come_in_between() {
    let mut leader = leader();
    let step = leader.decide(3000);
    leader.observe(held_by("me", 7, 11), 3005, 3010);
    leader.observe(held_by("me", 7, 10), 3001, 3011);
    leader.result(step, 3000, 3020, Outcome::Written(11));
    assert_eq!(leader.held(), Some((13_000, 5)));
    assert_eq!(leader.decide(5000), Step::Renew { version: 11, term: 5 });
    // Asked before the Lease was there.
    leader.observe(None, 2999, 5001);
    assert_eq!(leader.decide(5001), Step::Renew { version: 11, term: 5 });
}

#[test]
fn release_is_for_the_holder() {
    let mut leader = leader();
    assert_eq!(leader.release(), Some((10, 5)));
    assert!(!leader.holds(1011));
    assert_eq!(me().release(), None);
}

/// A model of the apiserver's one Lease, of two candidates with their clocks, and of the wires between them.
mod race {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, Copy)]
    struct Clock {
        offset: u64,
        /// What it counts of a thousand milliseconds.
        rate: u64,
    }

    /// What becomes of a request; times are milliseconds.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        /// On the way there, and back, however long: a process that stood still takes a late answer, too.
        Answered(u64, u64),
        /// The sender gives up after 2 s, and the server gets it then, or later, or had it.
        Unanswered(u64),
        /// The sender gives up after 2 s, and the server never gets it.
        Lost,
    }

    #[derive(Debug)]
    enum Event {
        Think(usize),
        Arrive { who: usize, step: Step, sent: u64, back: Option<u64> },
        Result { who: usize, step: Step, sent: u64, outcome: Outcome },
        Observe { who: usize, sent: u64, lease: Option<Record> },
    }

    struct World {
        clocks: [Clock; 2],
        candidates: [Candidate; 2],
        lease: Option<Record>,
        versions: u64,
        agenda: BTreeMap<(u64, u64), Event>,
        scheduled: u64,
        /// Real times at which a candidate came to hold the lead.
        won: Vec<(u64, usize)>,
    }

    impl Clock {
        fn read(self, real: u64) -> u64 {
            self.offset + real * self.rate / 1000
        }
    }

    impl World {
        fn new(clocks: [Clock; 2]) -> Self {
            let candidates = [Candidate::new("a", 1), Candidate::new("b", 2)];
            let mut world = Self {
                clocks,
                candidates,
                lease: None,
                versions: 100,
                agenda: BTreeMap::new(),
                scheduled: 0,
                won: Vec::new(),
            };
            world.at(0, Event::Think(0));
            world.at(1, Event::Think(1));
            world
        }

        fn at(&mut self, real: u64, event: Event) {
            self.scheduled += 1;
            self.agenda.insert((real, self.scheduled), event);
        }

        /// The server's compare-and-swap.
        fn write(&mut self, who: usize, step: Step) -> Outcome {
            let (expected, term) = match step {
                Step::Create { term } => (None, term),
                Step::Acquire { version, term } | Step::Renew { version, term } => (Some(version), term),
                _ => unreachable!("no write"),
            };
            if self.lease.as_ref().map(|record| record.version) != expected {
                return Outcome::Conflict;
            }
            self.versions += 1;
            self.lease = Some(Record { version: self.versions, holder: Some(self.candidates[who].me.clone()), term });
            Outcome::Written(self.versions)
        }

        fn send(&mut self, real: u64, who: usize, step: Step, sent: u64, fate: Fate) {
            let given_up = Event::Result { who, step, sent, outcome: Outcome::Unknown };
            match fate {
                Fate::Answered(there, back) => {
                    self.at(real + there, Event::Arrive { who, step, sent, back: Some(back) })
                }
                Fate::Unanswered(there) => {
                    self.at(real + there, Event::Arrive { who, step, sent, back: None });
                    self.at(real + 2000, given_up);
                }
                Fate::Lost => self.at(real + 2000, given_up),
            }
        }

        /// One event. `fate` of a request that is sent, `pause` of a process that has nothing to do.
        fn step(&mut self, fate: impl FnOnce() -> Fate, pause: impl FnOnce() -> u64) -> Option<u64> {
            let ((real, _), event) = self.agenda.pop_first()?;
            match event {
                Event::Think(who) => {
                    let sent = self.clocks[who].read(real);
                    match self.candidates[who].decide(sent) {
                        Step::Lost => self.at(real + 1, Event::Think(who)),
                        Step::Wait(wait) => {
                            // A list each 1.5 s, whatever happens; then a moment, or a minute, goes by.
                            let next = real + wait.clamp(1, 1500) + pause();
                            self.at(next, Event::Arrive { who, step: Step::Look, sent, back: Some(0) });
                        }
                        step => self.send(real, who, step, sent, fate()),
                    }
                }
                Event::Arrive { who, step: Step::Look, sent, back } => {
                    let lease = self.lease.clone();
                    if let Some(back) = back {
                        self.at(real + back, Event::Observe { who, sent, lease });
                    }
                }
                Event::Arrive { who, step, sent, back } => {
                    let outcome = self.write(who, step);
                    if let Some(back) = back {
                        self.at(real + back, Event::Result { who, step, sent, outcome });
                    }
                }
                Event::Result { who, step, sent, outcome } => {
                    let now = self.clocks[who].read(real);
                    let held = self.candidates[who].holds(now);
                    self.candidates[who].result(step, sent, now, outcome);
                    if !held && self.candidates[who].holds(now) {
                        self.won.push((real, who));
                    }
                    self.at(real, Event::Think(who));
                }
                Event::Observe { who, sent, lease } => {
                    let now = self.clocks[who].read(real);
                    self.candidates[who].observe(lease, sent, now);
                    self.at(real, Event::Think(who));
                }
            }
            Some(real)
        }

        fn holders(&self, real: u64) -> usize {
            (0..2).filter(|who| self.candidates[*who].holds(self.clocks[*who].read(real))).count()
        }
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            6 => (0_u64..300, 0_u64..300).prop_map(|(there, back)| Fate::Answered(there, back)),
            2 => (0_u64..30_000, 0_u64..20_000).prop_map(|(there, back)| Fate::Answered(there, back)),
            1 => (0_u64..30_000).prop_map(Fate::Unanswered),
            1 => Just(Fate::Lost),
        ]
    }

    fn clock() -> impl Strategy<Value = Clock> {
        (0_u64..1 << 40, 950_u64..=1050).prop_map(|(offset, rate)| Clock { offset, rate })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Clocks that start anywhere and drift by 5 %, answers that are late or lost, requests that arrive when their
        /// sender has given them up, processes that stand still: never do both hold it.
        #[test]
        fn never_both(
            clocks in [clock(), clock()],
            fates in prop::collection::vec(fate(), 1..100),
            pauses in prop::collection::vec(prop_oneof![9 => Just(0_u64), 1 => 0_u64..70_000], 1..50),
        ) {
            let mut world = World::new(clocks);
            let (mut fates, mut pauses) = (fates.into_iter().cycle(), pauses.into_iter().cycle());
            for _ in 0..600 {
                let Some(real) = world.step(|| fates.next().unwrap(), || pauses.next().unwrap()) else { break };
                prop_assert!(world.holders(real) <= 1, "at {} ms both hold the lead", real);
            }
        }

        /// When all is well one of them holds it without a break; when that one dies the other has it in time.
        #[test]
        fn somebody_leads(clocks in [clock(), clock()], there in 0_u64..100, back in 0_u64..100, killed in 5_000_u64..60_000) {
            let mut world = World::new(clocks);
            let well = || Fate::Answered(there, back);
            let mut real = 0;
            while real < killed {
                real = world.step(well, || 0).unwrap();
                prop_assert!(real < 1500 || world.holders(real) == 1, "nobody leads at {} ms", real);
            }
            prop_assert_eq!(world.won.len(), 1);
            let dead = world.won[0].1;
            // What it has sent still arrives.
            world.agenda.retain(|_, event| match event {
                Event::Arrive { who, back, .. } if *who == dead => {
                    *back = None;
                    true
                }
                Event::Think(who) | Event::Result { who, .. } | Event::Observe { who, .. } => *who != dead,
                Event::Arrive { .. } => true,
            });
            while world.won.len() == 1 {
                real = world.step(well, || 0).unwrap();
            }
            // 15 s of a slow clock after a list that came late.
            prop_assert!(real < killed + 15_000 * 1000 / 950 + 1500 + 300 + 2 * (there + back), "took {} ms", real - killed);
        }
    }
}
