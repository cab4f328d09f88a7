//! The processes of the device: what they are, what is remembered of them, and what is done next.
//!
//! - [`spec`], [`identity`]: what a process is, and its name on the device
//! - [`record`]: what is remembered of it
//! - [`reconcile`]: what is done next about it
//! - [`observation`]: what is reported of it
//! - [`supervisor`], `worker`: who looks and does it
//! - [`launch`], [`records`]: what a backend has to know; the files of what is remembered
//! - [`backoff`], [`health`]: when to try again; whether it is well

pub mod backoff;
pub mod health;
pub mod identity;
pub mod launch;
pub mod observation;
pub mod reconcile;
pub mod record;
pub mod records;
pub mod spec;
pub mod supervisor;
mod worker;
