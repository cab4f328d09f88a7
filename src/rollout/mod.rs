//! Brings every matching device to what its deployment says: children, their specs and marks, the deployment's status.
//!
//! - [`template`]: what a child should look like, and what differs
//! - [`tally`]: the status of a deployment: counters and conditions
//! - [`plan`]: the only place that decides what is to be done, and why
//! - [`schedule`]: when a deployment is looked at
//! - [`execute`]: performs a plan
//! - [`leader`]: the leader's way to the apiserver, which shows the lead before every write
//! - [`call`]: one call to the apiserver
//! - [`events`]: events on deployments
//! - [`controller`]: one pass after the other, for one term as the leader
//! - [`terms`]: works while this replica leads, and drains what changes while it does not
//! - [`metrics`]: what Prometheus sees of it
#[cfg(test)]
mod apiserver;
pub mod call;
pub mod controller;
pub mod events;
pub mod execute;
pub mod leader;
pub mod metrics;
pub mod plan;
pub mod schedule;
pub mod tally;
pub mod template;
pub mod terms;
