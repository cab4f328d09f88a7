//! Pure: what a device should run, as it is sent.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Body of `200` at `GET /v1/devices/{device}/desired`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredState {
    /// The device that asked.
    pub device_name: String,
    /// How often the device should report, seconds.
    pub heartbeat_interval_seconds: u64,
    /// Every process that the device should run, sorted by namespace, then name.
    pub items: Vec<DesiredItem>,
}

/// One process that a device should run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredItem {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: String,
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// `metadata.generation` of the DeviceProcess.
    pub generation: i64,
    /// The spec exactly as the apiserver returned it.
    pub spec: Box<RawValue>,
    /// `sha256:…` over the spec (see [`crate::wire::canonical::SpecHash`]).
    pub spec_hash: String,
}
