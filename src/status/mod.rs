//! What Kubernetes is told about devices and their processes, and when.
//!
//! - [`observed`]: one observation, read and checked
//! - [`projection`]: status + what is known → next status and its events, or nothing
//! - [`job`]: what is known of an object that is to be written, and when it is tried again
//! - [`queue`], [`limiter`], [`pace`]: what waits to be written, and how fast it may be
//! - [`budget`]: how often for one object, whatever its process does
//! - [`assess`]: what a report changes, and who has to see to it
//! - [`intake`]: takes reports in and answers them, here or through the owner of the device
//! - [`writer`]: derives patches when they are sent, and sends them
//! - [`events`]: each transition's event exactly once
//! - [`metrics`]
pub mod assess;
pub mod budget;
pub mod events;
pub mod intake;
pub mod job;
pub mod limiter;
pub mod metrics;
pub mod observed;
pub mod pace;
pub mod projection;
pub mod queue;
pub mod writer;
