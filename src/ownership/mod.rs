//! Which replica should do what: who leads, who is there, and who writes the status of which device.
//!
//! Leases only say who *should* work. Two leaders or two owners at a time are harmless, because every write carries
//! the version of what it changes; they would only be wasteful.
//!
//! - [`rendezvous`]: which of some members works for a device
//! - [`members`]: which replicas are alive, judged on the own clock alone, and the [`members::View`] of them
//! - [`lease`]: when the lead may be taken, how long it is held, and the [`lease::Lead`] that every leader write shows
//! - [`objects`]: all of that as Lease objects
//! - [`shared`]: what the rest of the process sees, an [`shared::Ownership`]
//! - [`keeper`]: watches the Leases of all; `membership` keeps the own one, `election` stands for the lead
//! - [`leases`]: the calls to the apiserver
//! - [`metrics`]
mod election;
pub mod keeper;
pub mod lease;
pub mod leases;
pub mod members;
mod membership;
pub mod metrics;
pub mod objects;
pub mod rendezvous;
pub mod shared;
