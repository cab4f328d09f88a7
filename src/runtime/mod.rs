//! Leaves that edges use: clocks, retries, logs, supervised tasks. Nothing that decides is here.
//!
//! - [`clock`]: wall time, and time that goes on while the machine sleeps
//! - [`retry`]: delays that grow, with jitter (`backon`; its predecessor `backoff` is unmaintained,
//!   RUSTSEC-2025-0012)
//! - [`tasks`]: tasks whose loss ends the process
pub mod clock;
#[cfg(feature = "manager")]
pub mod retry;
pub mod tasks;
pub mod telemetry;
