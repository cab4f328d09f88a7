//! The device agent: asks the gateway what the device should run, fetches it, runs it, and reports what it has seen.
//!
//! It knows nothing of Kubernetes. What it decides is in the pure modules, which take `now` and chance as arguments;
//! the edges carry bytes, and tell systemd, init scripts or a container engine what to do.
//!
//! - [`arguments`]: flags and environment
//! - [`cadence`]: when to ask and when to report
//! - [`holding`]: what the device should run, and which answers may change it
//! - [`report`]: the bodies of reports
//! - [`endpoint`]: where a gateway is
//! - [`client`]: one keep-alive connection to a gateway
//! - [`refusal`]: what a gateway says of a request that it does not accept
//! - [`token`]: how the device proves who it is
//! - [`trust`], [`distrust`]: which CAs gateways are checked against; why one is not trusted
//! - [`state`], [`durable`]: the state file; files that are written all or nothing
//! - [`process`]: the processes: what they are, what is done about them
//! - [`artifact`]: what they run from
//! - [`backend`]: what runs them
//! - [`host`]: installing it, asking it, examining the device
//! - [`trouble`]: the log lines about a gateway that does not answer
//! - [`run`]: the two loops and the signals

pub mod arguments;
pub mod artifact;
pub mod backend;
pub mod cadence;
pub mod client;
pub mod distrust;
pub mod durable;
pub mod endpoint;
pub mod holding;
pub mod host;
pub mod process;
pub mod refusal;
pub mod report;
pub mod run;
pub mod state;
pub mod token;
pub mod trouble;
pub mod trust;
