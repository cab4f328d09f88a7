//! What replicas say to each other.

use super::report::Body;
use super::world::Address;
use praetor::peers::envelope::Refusal;
use praetor::peers::signature::Claims;
use praetor::status::assess::Outcome;
use std::sync::Arc;

/// A request on its way to a peer. Signatures are taken for granted here; everything else of the claims is judged.
#[derive(Debug, Clone)]
pub struct Letter {
    pub from: Address,
    pub call: u64,
    pub claims: Claims,
    pub what: What,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum What {
    /// Devices that were heard, as bytes, and when it was made, for the checker.
    Batch(Vec<u8>, u64),
    /// A device's report, and the request that it came with.
    Report(Arc<Body>, Option<u64>),
}

/// The answer, with what every answer tells.
#[derive(Debug, Clone)]
pub struct Reply {
    pub call: u64,
    pub incarnation: u64,
    pub time_ms: u64,
    pub result: Result<Option<Outcome>, Refusal>,
}
