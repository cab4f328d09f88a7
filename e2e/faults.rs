//! The promise of a control plane of several replicas, as experiments on real processes: whatever is killed, stopped
//! or cut, no living device is called dead, nothing acknowledged is lost, no event comes twice, nothing is written
//! without a reason. With short heartbeats and few devices here; `PRAETOR_FAULTS=full` plays the same at true times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/apiserver_away.rs"]
mod apiserver_away;
#[path = "faults/cuts.rs"]
mod cuts;
mod harness;
#[path = "faults/history.rs"]
mod history;
#[path = "faults/history_tests.rs"]
mod history_tests;
#[path = "faults/replicas_die.rs"]
mod replicas_die;
#[path = "faults/stopped.rs"]
mod stopped;
#[path = "faults/storms.rs"]
mod storms;
#[path = "faults/strangers.rs"]
mod strangers;
#[path = "faults/world.rs"]
mod world;
