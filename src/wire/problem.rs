//! Pure: error bodies, `application/problem+json` (RFC 9457).

use serde::{Deserialize, Serialize};

/// Media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem details object (RFC 9457 §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`: the status code says it all (RFC 9457 §4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason phrase of the status code.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// What was wrong with this request and what would be right.
    pub detail: String,
}
