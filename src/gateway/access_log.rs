//! Edge: one line a request.

use super::path::Route;
use std::time::Duration;

/// Which requests are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AccessLog {
    /// Every request.
    All,
    /// Requests that were answered with 400 or above.
    #[default]
    Errors,
    /// None.
    Off,
}

// === impl AccessLog ===

impl AccessLog {
    /// Whether an answer of this status is written down.
    #[must_use]
    pub fn wants(self, status: u16) -> bool {
        match self {
            Self::All => true,
            Self::Errors => status >= 400,
            Self::Off => false,
        }
    }
}

/// Writes a line. `target` is the device, or the path when there is no such route.
pub fn write(route: Option<Route>, target: &str, status: u16, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match route {
        Some(route) => tracing::info!(target: "access", device = target, route = route.name(), status, micros),
        None => {
            tracing::info!(target: "access", path = %target.chars().take(200).collect::<String>().escape_debug(), route = "none", status, micros)
        }
    }
}
