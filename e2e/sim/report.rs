//! What devices send and get, and what a report says in the simulator.
//!
//! The state of a process is two numbers. Its content stands for what is written as soon as it is acknowledged; it is
//! in `artifactDigest`, where the checker finds it. Its spin stands for what a process does by itself, over and over,
//! and what has a budget: with every odd one it is down; it is in `lastTerminationReason`.

use bytes::Bytes;
use praetor::status::assess::Incoming;
use praetor::status::observed::{Artifact, Observed};
use praetor::status::projection::Introduction;
use praetor::wire::canonical::SpecHash;
use serde_json::Value;
use std::sync::Arc;

/// A report as a device made it.
#[derive(Debug)]
pub struct Body {
    pub device: usize,
    pub boot: Arc<str>,
    pub sequence: u64,
    pub observations: Vec<Observation>,
}

/// What it says of one process.
#[derive(Debug, Clone)]
pub struct Observation {
    pub name: String,
    pub spec: SpecHash,
    /// How many contents the process had before this one.
    pub serial: usize,
    pub content: u32,
    pub spin: u32,
}

/// A report on its way.
#[derive(Debug, Clone)]
pub struct Report {
    pub body: Arc<Body>,
    /// The request, for the answer; none for a copy that nobody waits for.
    pub ticket: Option<u64>,
}

/// How a report was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportAnswer {
    Ack,
    /// 403 or 404.
    Refused,
    /// 503.
    Later(u64),
    /// The connection broke, or could not be opened.
    Failed,
}

/// A request for desired state.
#[derive(Debug, Clone)]
pub struct Get {
    pub device: usize,
    pub ticket: u64,
    /// The highest revision that the device has seen.
    pub seen: u64,
}

/// One desired process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub spec: SpecHash,
}

/// The answer.
#[derive(Debug, Clone)]
pub enum GetAnswer {
    State(u64, Vec<Item>),
    /// 404.
    Unknown,
    /// 503, or no answer.
    Later,
}

/// The name of a device.
pub fn device_name(device: usize) -> String {
    format!("tor-{device}")
}

impl Body {
    /// As a gateway reads it.
    pub fn incoming(&self) -> Incoming {
        let said = self.observations.iter().fold(self.device as u64 + 1, |hash, observation| {
            let name = observation
                .name
                .bytes()
                .fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
            let spec = u64::from_le_bytes(observation.spec.0[..8].try_into().unwrap_or_default());
            (name ^ u64::from(observation.content) ^ u64::from(observation.spin) << 32 ^ spec)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        Incoming {
            introduction: Introduction { version: Some("1".into()), capabilities: None },
            boot_id: Some(self.boot.clone()),
            sequence: Some(self.sequence),
            observations: self.observations.iter().map(Observation::observed).collect(),
            fingerprint: Some(said.max(1)),
            connect: false,
            body: Bytes::new(),
        }
    }
}

impl Observation {
    fn observed(&self) -> Observed {
        let (content, spin) = (self.content, self.spin);
        let started = content % 5 != 4 && spin.is_multiple_of(2);
        Observed {
            namespace: super::apiserver::NAMESPACE.into(),
            name: self.name.clone(),
            spec: self.spec,
            running: None,
            started: Some(started),
            healthy: started.then_some(!content.is_multiple_of(3)),
            health_message: None,
            pid: None,
            start_time: None,
            restart_count: Some(i64::from(content / 2 + spin)),
            // A crash is an event of its own; an end that is none is not.
            exit_code: (!started).then_some(i64::from(spin % 2)),
            last_termination_reason: Some(format!("spin {spin}")),
            error: (content % 7 == 6).then(|| "it fails".into()),
            warning: None,
            warning_reason: None,
            artifact: Artifact { digest: Some(format!("content {content}")), ..Artifact::default() },
        }
    }
}

/// The content that a status holds.
pub fn content_of(status: &Value) -> Option<u32> {
    status["artifactDigest"].as_str()?.strip_prefix("content ")?.parse().ok()
}

/// The spin that a status holds.
pub fn spin_of(status: &Value) -> Option<u32> {
    status["lastTerminationReason"].as_str()?.strip_prefix("spin ")?.parse().ok()
}
