//! The binary `praetor-manager`: arguments, wiring, the admin port, start and stop. Nothing uses this module.
//!
//! - [`arguments`]: flags and environment, read once
//! - [`cluster`]: the way to the apiserver, and whether it has what is needed
//! - [`run`]: what each command does
//! - [`replica`]: a running replica: its parts, its start and its stop
//! - [`error`]: why it does not run
//! - [`advice`]: and what to do about it in a pod
//! - [`admin`]: health, metrics, debugging
//! - [`metrics`]: what belongs to no other room
pub mod admin;
pub mod advice;
pub mod arguments;
pub mod cluster;
pub mod error;
pub mod metrics;
pub mod process;
pub mod replica;
pub mod run;
