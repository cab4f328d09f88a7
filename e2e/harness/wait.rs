//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::fmt::Display;
use std::panic::Location;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(50);

/// What a condition may return: `true`, `Some(value)` or `Ok(value)` ends the wait; anything else is the last state
/// that the panic tells of.
pub trait Outcome {
    /// What the wait returns.
    type Value;
    /// The value, or a description of what is still missing.
    fn settle(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();
    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not yet".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".into())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}

/// Polls until the condition holds and returns its value; panics at the caller's line after `deadline`.
#[track_caller]
pub fn wait_for<O: Outcome>(
    deadline: Duration,
    what: impl Into<String>,
    mut poll: impl AsyncFnMut() -> O,
) -> impl Future<Output = O::Value> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        let begun = Instant::now();
        let mut last = String::from("never looked");
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            // A poll that hangs (a stopped server) must not outlive the deadline.
            match tokio::time::timeout(left.max(POLL), poll()).await.map(Outcome::settle) {
                Ok(Ok(value)) => return value,
                Ok(Err(state)) => last = state,
                Err(_) => last = format!("{last} (and the last look did not end)"),
            }
            assert!(
                begun.elapsed() < deadline,
                "{caller}: waited {:.1} s for {what}; last state: {last}",
                deadline.as_secs_f64()
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Polls for the whole duration and panics at the caller's line as soon as the condition does not hold.
#[track_caller]
pub fn holds_for<O: Outcome>(
    duration: Duration,
    what: impl Into<String>,
    mut poll: impl AsyncFnMut() -> O,
) -> impl Future<Output = ()> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        let begun = Instant::now();
        while begun.elapsed() < duration {
            if let Err(state) = poll().await.settle() {
                panic!("{caller}: {what} did not hold after {:.1} s: {state}", begun.elapsed().as_secs_f64());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
