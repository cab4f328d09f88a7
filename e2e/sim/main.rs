//! Replicas, devices, an apiserver and everything between them, simulated: seeds decide what goes wrong, the very code
//! that runs in production decides what is done about it, and after every step the rules are checked.
//!
//! Pure code (index, projection, jobs, queue, limiter, assessment, presence, ownership, the peers' batches and windows)
//! is called as it is. What is an edge in production (tasks, calls, timers) is a state machine in [`replica`] that does
//! the same step by step; who changes an edge changes its mirror.
//!
//! `PRAETOR_SIM_SEEDS=n` runs more seeds. `PRAETOR_SIM_SEED=n` replays one and tells what happens; with
//! `PRAETOR_SIM_MIX=Cuts` (or another [`Mix`]) one of those that are aimed at something.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod apiserver;
mod checker;
mod device;
mod guards;
mod network;
mod peer;
mod regressions;
mod replica;
mod report;
mod rng;
mod script;
mod simulation;
mod world;

use guards::{Guard, Guards};
use script::{Mix, Script};
use simulation::{Report, run};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that every change has to get through.
const SEEDS: u64 = 2_000;
/// Without a guard something goes wrong within so many seeds.
const SOON: u64 = 300;
/// Failures after which a search ends.
const ENOUGH: usize = 10;

/// What each guard is for shows best when something goes wrong that it is made for.
const AIMED: [(Guard, Mix); 8] = [
    (Guard::Version, Mix::All),
    (Guard::HopLimit, Mix::Moves),
    (Guard::PauseCheck, Mix::Pauses),
    (Guard::FreshPresence, Mix::Cuts),
    (Guard::WholeTable, Mix::Rolling),
    (Guard::SequenceOrder, Mix::Late),
    (Guard::LiveRead, Mix::Stalls),
    (Guard::MinRevision, Mix::Stalls),
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs seeds on all cores, until enough have failed; those, the lowest first.
fn search(seeds: Range<u64>, mix: Mix, guards: Guards, enough: usize) -> Vec<(u64, Report)> {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || found.lock().unwrap().len() >= enough {
                        return;
                    }
                    let report = run(&Script::new(seed, mix), guards, false);
                    if report.violation.is_some() {
                        found.lock().unwrap().push((seed, report));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(seed, _)| *seed);
    found
}

/// Replays a seed, and then leaves out whatever is not needed for the same rule to break.
fn replay(seed: u64, mix: Mix) {
    let mut script = Script::new(seed, mix);
    let report = run(&script, Guards::default(), true);
    println!("{report:#?}");
    let Some(violation) = report.violation else { return };
    for fault in (0..script.faults.len()).rev() {
        let mut less = script.clone();
        less.faults.remove(fault);
        let report = run(&less, Guards::default(), false);
        if report.violation.is_some_and(|found| found.rule == violation.rule) {
            script = less;
        }
    }
    println!("These are enough to break {:?}: {:#?}", violation.rule, script.faults);
    panic!("seed {seed} of {mix:?}: {violation:?}");
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number("PRAETOR_SIM_SEED") {
        let mix = std::env::var("PRAETOR_SIM_MIX").unwrap_or_default();
        let mix = Mix::EVERY.into_iter().find(|known| format!("{known:?}") == mix).unwrap_or(Mix::All);
        return replay(seed, mix);
    }
    let seeds = number("PRAETOR_SIM_SEEDS").unwrap_or(SEEDS);
    let found = search(0..seeds, Mix::All, Guards::default(), ENOUGH);
    for (seed, report) in &found {
        println!("seed {seed}: {:?}", report.violation);
    }
    assert!(found.is_empty(), "{} seeds break a rule; to replay the first: make sim SEED={}", found.len(), found[0].0);
}

/// Without a guard the rules break soon, and with it they do not on the very same seeds.
#[test]
fn every_guard_matters() {
    for (guard, mix) in AIMED {
        let found = search(0..SOON, mix, Guards::without(guard), 1);
        let (seed, report) = found.first().unwrap_or_else(|| panic!("without {guard:?} nothing goes wrong"));
        println!("without {guard:?}, seed {seed} of {mix:?}: {:?}", report.violation);
        let broken = search(0..seed + 1, mix, Guards::default(), 1);
        let broken = broken.first().map(|(seed, report)| (seed, &report.violation));
        assert!(broken.is_none(), "with {guard:?}, {mix:?}: {broken:?}");
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..5 {
        let digests = [(); 2].map(|()| run(&Script::new(seed, Mix::All), Guards::default(), false).digest);
        assert_eq!(digests[0], digests[1], "seed {seed}");
    }
}

/// A run in which nothing happens would show nothing.
#[test]
fn much_happens() {
    let reports: Vec<Report> =
        (0..40).map(|seed| run(&Script::new(seed, Mix::All), Guards::default(), false)).collect();
    let sum = |what: fn(&Report) -> u64| reports.iter().map(what).sum::<u64>();
    let (writes, deaths, forwarded) = (sum(|r| r.writes), sum(|r| r.deaths), sum(|r| r.forwarded));
    let (acks, events, steps) = (sum(|r| r.acks), sum(|r| r.events), sum(|r| r.steps));
    let spins = sum(|r| r.spins);
    println!(
        "{steps} steps, {acks} acks, {forwarded} forwarded, {writes} writes, {events} events, {deaths} deaths, {spins} spins"
    );
    assert!(deaths > 8 && forwarded > 400 && writes > 1_000 && acks > 2_000 && events > 800 && spins > 200);
}
