//! Edge: what happens to containers of ours, as the engine tells it.

use super::config::{self, IDENTITY};
use super::engine::{Engine, EngineError, Question, Stream};
use super::found;
use crate::agent::backend::Exit;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

/// What changes the state of a container, as Docker and Podman call it. What health checks cause is not in it.
const EVENTS: [&str; 7] = ["start", "die", "died", "destroy", "remove", "pause", "unpause"];
/// Between the first two attempts to reach an engine; doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest time between two attempts.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A stream that has lived so long was a good one.
const GOOD_STREAM: Duration = Duration::from_secs(30);

/// The stream of events, opened when it is asked for and again when it breaks.
#[derive(Debug, Default)]
pub struct Events {
    stream: Option<Stream>,
    opened: Option<Instant>,
    failures: u32,
    next_try: Option<Instant>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

// === impl Events ===

impl Events {
    /// Returns after an event, and whenever events may have been missed. May be dropped and called again.
    pub async fn changed(&mut self, engine: &Engine) {
        loop {
            if let Some(stream) = &mut self.stream {
                match stream.line::<serde::de::IgnoredAny>().await {
                    Ok(Some(_)) => self.failures = 0,
                    Ok(None) => self.broken("it was closed"),
                    Err(error) => self.broken(&error.to_string()),
                }
                return;
            }
            if let Some(at) = self.next_try {
                sleep_until(at).await;
            }
            self.next_try = Some(Instant::now() + delay(self.failures));
            self.failures = self.failures.saturating_add(1);
            match open(engine).await {
                Ok(stream) => {
                    (self.stream, self.opened) = (Some(stream), Some(Instant::now()));
                    return;
                }
                Err(error) => debug!(%error, "no events of containers"),
            }
        }
    }

    /// Attempts to open the stream since the last good one.
    #[cfg(test)]
    pub fn attempts(&self) -> u32 {
        self.failures
    }

    fn broken(&mut self, why: &str) {
        debug!(why, "the stream of containers' events ended");
        self.stream = None;
        if self.opened.is_some_and(|opened| opened.elapsed() >= GOOD_STREAM) {
            self.failures = 0;
        }
    }
}

fn delay(failures: u32) -> Duration {
    LONGEST_DELAY.min(FIRST_DELAY * 2_u32.saturating_pow(failures.min(16)))
}

async fn open(engine: &Engine) -> Result<Stream, EngineError> {
    let wanted = json!({"type": ["container"], "label": [IDENTITY], "event": EVENTS});
    engine.open(Question::new(Method::GET, &format!("/events?{}", config::filters(&wanted)))).await
}

/// How the last run of a container ended, from the events that the engine still has.
pub(super) async fn last_exit(engine: &Engine, id: &str) -> Result<Option<Exit>, EngineError> {
    let wanted = json!({"type": ["container"], "container": [id], "event": ["die", "died", "oom"]});
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let path = format!("/events?since=0&until={until}&{}", config::filters(&wanted));
    let mut stream = engine.open(Question::new(Method::GET, &path)).await?;
    let (mut last, mut oom) = (None, false);
    let read = async {
        while let Some(Event { action, actor }) = stream.line().await? {
            if action == "oom" {
                oom = true;
                continue;
            }
            let code = actor.attributes.get("exitCode").or_else(|| actor.attributes.get("containerExitCode"));
            last = code.and_then(|code| code.parse().ok()).map(|code| found::exit(code, oom));
            oom = false;
        }
        Ok(())
    };
    // The past is told at once; what comes later is nobody's business here.
    match tokio::time::timeout(Duration::from_secs(5), read).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => Ok(last),
    }
}
