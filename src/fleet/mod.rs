//! Simulated devices for load and fault tests: thousands in one process, each with the manners of a real agent.
//!
//! A test tool for the operator's side: it holds the HMAC secret and derives every device's token from it, which
//! no device can. It knows the device contract and nothing of Kubernetes or of the agent's code, so that it can
//! find what the two have wrong together.
//!
//! - [`arguments`]: flags and environment
//! - [`device`]: what one simulated device knows and says
//! - [`pace`]: when it asks, reports, and comes back after a failure
//! - [`tally`]: what all of them saw, and the summary
//! - [`connection`]: one keep-alive connection, a device's own or shared
//! - [`run`]: the loops

pub mod arguments;
pub mod connection;
pub mod device;
pub mod pace;
pub mod run;
pub mod tally;
