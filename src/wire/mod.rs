//! The device contract, version 1: what a device and the gateway say to each other over HTTP.
//!
//! Everything here is a plain type or a pure function and is shared by the agent and the manager; nothing
//! here knows Kubernetes clients, sockets or clocks.
//!
//! - [`desired`]: the body of `GET /v1/devices/{device}/desired`
//! - [`report`]: the bodies of `POST …/report` and `…/connect`, read leniently and field by field
//! - [`capabilities`]: what a device can do
//! - [`canonical`]: RFC 8785 canonical JSON and the specHash
//! - [`etag`]: entity tags and `If-None-Match`
//! - [`name`]: what a device may be called
//! - [`token`]: per-device tokens derived from a secret
//! - [`time`]: RFC 3339 without a time-zone library
//! - [`problem`]: error bodies (RFC 9457)

pub mod canonical;
pub mod capabilities;
pub mod desired;
pub mod etag;
pub mod name;
pub mod problem;
pub mod report;
pub mod time;
pub mod token;

/// Request header that carries a device's token.
pub const TOKEN_HEADER: &str = "x-device-token";
/// Response header: the resourceVersion of the last event about the device that the answer includes.
pub const REVISION_HEADER: &str = "x-praetor-revision";
/// Request header: the highest [`REVISION_HEADER`] that the client has seen.
pub const MIN_REVISION_HEADER: &str = "x-praetor-min-revision";
/// `warningReason` of an observation: the device lacks the backend, which is no failure of the process.
pub const BACKEND_UNAVAILABLE: &str = "BackendUnavailable";
/// Longest body of a report, bytes.
pub const MAX_BODY_BYTES: usize = 256 * 1024;
/// Most observations in one report.
pub const MAX_OBSERVATIONS: usize = 256;
/// Longest string that is kept of a report, bytes; longer ones are cut.
pub const MAX_STRING_BYTES: usize = 1024;
/// Longest time that a long-poll waits, seconds.
pub const MAX_WAIT_SECONDS: u64 = 60;
