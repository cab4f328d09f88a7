//! Artifacts: fetched, checked and kept, each under its digest.

use std::path::PathBuf;
use std::time::Duration;

/// An artifact that is on the device, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it is known by: `sha256:` and 64 hexadecimal digits. oci: of the manifest; otherwise of the bytes.
    pub digest: String,
    /// The folder with its content. Of an image in the engine's own store there is none.
    pub root: Option<PathBuf>,
}

/// How far a fetch came before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is not on the device.
    Download,
    /// It is there, and not what it should be.
    Verify,
}

/// Why an artifact cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// How far it came.
    pub stage: Stage,
    /// Reason of the condition in CamelCase: `ChecksumMismatch`, `NotFound`, `DiskFull`, …
    pub reason: &'static str,
    /// A sentence that names the cause. No times, no counters, no secrets: it is repeated in a condition.
    pub message: String,
    /// The server's own word on when to come again.
    pub retry_after: Option<Duration>,
}
