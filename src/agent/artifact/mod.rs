//! Artifacts: fetched, checked and kept, each under its digest.
//!
//! - [`store`]: what is on the device; all that others call
//! - [`policy`]: what may be fetched, and how large it may be
//! - [`fault`]: why something cannot be had, with the reasons that conditions show
//! - [`flight`]: one fetch at a time of one artifact
//! - [`copy`], [`web`], [`registry`]: the three kinds of artifacts
//! - [`address`], [`http`], [`resume`], [`download`]: bytes from a server, gone on with where they broke off
//! - [`mod@reference`], [`manifest`], [`challenge`], [`credentials`]: what a registry is asked, and what it answers
//! - [`paths`], [`entries`], [`budget`], [`tree`], [`unpack`]: archives, none of which can write outside of its folder

use std::path::PathBuf;
use std::time::Duration;

pub mod address;
pub mod budget;
pub mod challenge;
pub mod copy;
pub mod credentials;
pub mod download;
pub mod entries;
pub mod fault;
pub mod flight;
pub mod http;
pub mod manifest;
#[cfg(test)]
mod misbehaving;
pub mod paths;
pub mod policy;
pub mod reference;
pub mod registry;
pub mod resume;
pub mod store;
pub mod tree;
pub mod unpack;
pub mod web;

/// An artifact that is on the device, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it is known by: `sha256:` and 64 hexadecimal digits. oci: of the manifest for this device's platform;
    /// otherwise of the bytes.
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
    /// Reason of the condition in CamelCase: `ChecksumMismatch`, `NotFound`, `DiskFull`, …; all are in [`fault`].
    pub reason: &'static str,
    /// A sentence that names the cause. No times, no counters, no secrets: it is repeated in a condition.
    pub message: String,
    /// The server's own word on when to come again.
    pub retry_after: Option<Duration>,
}
