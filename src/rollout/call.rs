//! Edge: one call to the apiserver: never for ever, its errors told apart.

use crate::ownership::lease::LostLead;
use std::time::Duration;
use thiserror::Error;

/// Longest wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, Error)]
pub enum CallError {
    /// This replica does not lead (any more); nothing was sent.
    #[error(transparent)]
    Lost(#[from] LostLead),
    /// No answer in time; the write may have happened.
    #[error("no answer within {CALL_TIMEOUT:?}")]
    Timeout,
    /// The apiserver is overloaded.
    #[error("the apiserver is busy")]
    Busy(Option<Duration>),
    /// The object is not what it was.
    #[error("changed meanwhile")]
    Conflict,
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// There is an object of that name.
    #[error("exists already")]
    Exists,
    /// The apiserver will not have it, however often it is asked.
    #[error("refused: {0}")]
    Refused(String),
    /// What came back is not what was asked for, so asking again would not help.
    #[error("the apiserver (an admission webhook?) changed what was written: {0}")]
    Altered(&'static str),
    /// Anything else.
    #[error(transparent)]
    Other(kube::Error),
    /// The request could not be built.
    #[error("cannot be asked for: {0}")]
    Request(String),
}

/// Waits for a call, but not for ever, and sorts its errors.
///
/// # Errors
/// See [`CallError`].
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(CallError::from),
        Err(_) => Err(CallError::Timeout),
    }
}

// === impl CallError ===

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else { return Self::Other(error) };
        let retry_after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let retry_after = (retry_after > 0).then(|| Duration::from_secs(u64::from(retry_after)));
        match status.code {
            404 => Self::NotFound,
            409 if status.is_already_exists() => Self::Exists,
            409 => Self::Conflict,
            429 | 503 => Self::Busy(retry_after),
            400..=499 => Self::Refused(status.message.clone()),
            _ => Self::Other(error),
        }
    }
}

impl CallError {
    /// The value of the metrics' label `result`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Conflict | Self::Exists | Self::NotFound => "conflict",
            Self::Refused(_) | Self::Altered(_) | Self::Request(_) => "refused",
            Self::Timeout | Self::Busy(_) | Self::Other(_) | Self::Lost(_) => "error",
        }
    }

    /// Whether the same call may succeed later although nobody changes anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Altered(_) | Self::Request(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use serde_json::json;

    fn error(code: u16, reason: &str, retry_after_seconds: u32) -> CallError {
        let status: Status =
            serde_json::from_value(json!({"code": code, "reason": reason, "message": "m", "details": {"retryAfterSeconds": retry_after_seconds}})).unwrap();
        CallError::from(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn errors_are_told_apart() {
        for (code, reason, label, may_pass) in [
            (404, "NotFound", "conflict", true),
            (409, "AlreadyExists", "conflict", true),
            (409, "Conflict", "conflict", true),
            (403, "Forbidden", "refused", false),
            (422, "Invalid", "refused", false),
            (429, "TooManyRequests", "error", true),
            (500, "InternalError", "error", true),
            (503, "ServiceUnavailable", "error", true),
        ] {
            let error = error(code, reason, 0);
            assert_eq!((error.label(), error.may_pass()), (label, may_pass), "{code}");
        }
        assert!(
            matches!(error(429, "TooManyRequests", 7), CallError::Busy(Some(delay)) if delay == Duration::from_secs(7))
        );
        assert!(matches!(error(409, "AlreadyExists", 0), CallError::Exists));
    }
}
