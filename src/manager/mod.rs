//! The binary `praetor-manager`: arguments, wiring, the admin port, start and stop. Nothing uses this module.
//!
//! - [`arguments`]: flags and environment, read once
//! - [`cluster`]: the way to the apiserver, and whether it has what is needed
//! - [`run`]: start, supervise, stop
//! - [`admin`]: health, metrics, debugging
//! - [`metrics`]: what belongs to no other room
pub mod admin;
pub mod arguments;
pub mod cluster;
pub mod metrics;
pub mod run;
