//! Edge: list and watch, one task per kind.
//!
//! kube's own watcher hides the resourceVersion of lists and bookmarks, and with it how far a watch has come,
//! which `X-Praetor-Revision` needs; so the loop is ours, on kube's list and watch calls.

use super::directory::Directory;
use super::index::Kind;
use super::object::{Raw, revision};
use crate::api::{GROUP, VERSION};
use crate::runtime::retry;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ApiResource, GroupVersionKind, ListParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use rand::Rng;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::{self, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Objects in one page of a list: its text is in memory as a whole.
const PAGE: u32 = 250;
/// A page that takes longer is given up.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch is asked to end after so many seconds, chosen anew each time. Shortly before, the apiserver says how far
/// it is; so a connection that was silently dropped is noticed a few seconds after that time.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 40..=60;
/// How long after that time silence is believed to be the network's.
const GRACE: Duration = Duration::from_secs(5);
/// After so many refusals in a row a watch is not asked for from the same moment any more, but everything is listed.
const REFUSALS: u32 = 5;
/// Longest pause between tries while the apiserver is away, up to doubled by chance: so old what devices are told may
/// be once it is back, and so long replicas put off what they cannot vouch for.
const LONGEST_DELAY: Duration = Duration::from_millis(2_500);
/// A watch that ends sooner is not opened again at once.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// When history was compacted all watchers of all replicas list at once; they spread over this time.
const RELIST_SPREAD_MS: u64 = 2_000;

/// When each watch last said anything, bookmarks included.
#[derive(Debug)]
pub struct LastEvents {
    start: Instant,
    heard_ms: [AtomicU64; 3],
}

/// Why a list or a watch failed.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The apiserver has forgotten the moment from which it was to go on.
    #[error("history was compacted")]
    Gone,
    /// The apiserver is at an earlier moment than it was: all that is known may be wrong.
    #[error("the cluster is at revision {now} but was at {before}: was it restored from a copy?")]
    WentBack {
        /// Where it was.
        before: u64,
        /// Where it is.
        now: u64,
    },
    /// No answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The call failed.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// The apiserver said so in the stream.
    #[error("the apiserver ended the watch: {0}")]
    Status(String),
}

// === impl LastEvents ===

impl LastEvents {
    /// All clocks start now.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), heard_ms: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)] })
    }

    /// How long the watch of a kind has been silent, seconds.
    #[must_use]
    pub fn silent_seconds(&self, kind: Kind) -> f64 {
        let heard = Duration::from_millis(self.heard_ms[kind as usize].load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard).as_secs_f64()
    }

    fn heard(&self, kind: Kind) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms[kind as usize].store(now, Ordering::Relaxed);
    }
}

/// The objects of a kind in all namespaces.
#[must_use]
pub fn all(client: Client, kind: Kind) -> Api<Raw> {
    Api::all_with(client, &resource(kind))
}

/// The objects of a kind in one namespace.
#[must_use]
pub fn namespaced(client: Client, kind: Kind, namespace: &str) -> Api<Raw> {
    Api::namespaced_with(client, namespace, &resource(kind))
}

fn resource(kind: Kind) -> ApiResource {
    let plural = match kind {
        Kind::Switch => "networkswitches",
        Kind::Process => "deviceprocesses",
        Kind::Deployment => "deviceprocessdeployments",
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind.as_str()), plural)
}

/// Lists and watches a kind into the directory until shutdown. A failed list changes nothing. Ends by itself only
/// when the cluster went back in time: then nothing that this process remembers is worth anything.
pub async fn run(
    client: Client,
    kind: Kind,
    directory: Arc<Directory>,
    last_events: Arc<LastEvents>,
    shutdown: CancellationToken,
) {
    let api = all(client, kind);
    let follow = async {
        let mut delays = retry::delays(Duration::from_millis(500), LONGEST_DELAY);
        let mut at: Option<String> = None;
        let mut refusals = 0;
        loop {
            let mut opened = None;
            let result = match at.take() {
                None => list(&api, kind, &directory).await,
                Some(revision) => watch(&api, kind, &directory, &last_events, revision, &mut opened).await,
            };
            // Only a watch that lasted shows that the apiserver is well again, also when it is cut off at last.
            if opened.is_some_and(|opened: time::Instant| opened.elapsed() >= SHORT_WATCH) {
                delays = retry::delays(Duration::from_millis(500), LONGEST_DELAY);
            }
            match result {
                Ok(revision) => {
                    last_events.heard(kind);
                    at = Some(revision);
                    refusals = 0;
                }
                Err((WatchError::Gone, _)) => {
                    let spread = Duration::from_millis(rand::rng().random_range(0..RELIST_SPREAD_MS));
                    tracing::info!(kind = kind.as_str(), ?spread, "history was compacted, listing again");
                    sleep(spread).await;
                }
                Err((error @ WatchError::WentBack { .. }, _)) => {
                    tracing::error!(kind = kind.as_str(), %error, "everything must be learned anew");
                    return;
                }
                Err((error, revision)) => {
                    at = revision;
                    refusals = if error.is_refusal() { refusals + 1 } else { 0 };
                    if refusals >= REFUSALS {
                        // It may be that this moment will never come again.
                        (at, refusals) = (None, 0);
                    }
                    let delay = delays.next().unwrap_or(LONGEST_DELAY);
                    tracing::warn!(kind = kind.as_str(), %error, ?delay, "watch failed");
                    sleep(delay).await;
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow => {}
    }
}

/// Lists every kind into the directory, as it is at the apiserver now (a quorum read), beside the watches. What a
/// watch shows late then changes nothing.
///
/// # Errors
/// When one of the lists failed; what is known stays as it is.
pub async fn relist_now(client: &Client, directory: &Directory) -> Result<(), WatchError> {
    let lists = Kind::ALL.map(|kind| async move {
        let api = all(client.clone(), kind);
        list(&api, kind, directory).await.map(drop).map_err(|(error, _)| error)
    });
    futures::future::try_join_all(lists).await.map(drop)
}

/// An error, and the resourceVersion from which the watch may go on.
type Failure = (WatchError, Option<String>);

async fn list(api: &Api<Raw>, kind: Kind, directory: &Directory) -> Result<String, Failure> {
    // Neither a watch nor a write has shown anything that a quorum read which begins now may lack.
    let before = directory.read(|index| index.progress(kind));
    let mut listed = HashSet::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page =
            timeout(LIST_TIMEOUT, api.list(&params)).await.map_err(|_| (WatchError::Timeout(LIST_TIMEOUT), None))?;
        let page = page.map_err(|error| (classify(error), None))?;
        let version = page.metadata.resource_version.unwrap_or_default();
        // Of all pages: they show one moment.
        let now = revision(Some(&version));
        if now < before {
            return Err((WatchError::WentBack { before, now }, None));
        }
        listed.extend(directory.apply_all(kind, page.items, now));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
            None => {
                directory.finish_list(kind, &listed, now);
                tracing::info!(kind = kind.as_str(), objects = listed.len(), revision = version, "listed");
                return Ok(version);
            }
        }
    }
}

/// Follows a watch until the apiserver ends it as asked; returns where the next one starts.
async fn watch(
    api: &Api<Raw>,
    kind: Kind,
    directory: &Directory,
    last_events: &LastEvents,
    from: String,
    begun: &mut Option<time::Instant>,
) -> Result<String, Failure> {
    let seconds = rand::rng().random_range(WATCH_SECONDS);
    let patience = Duration::from_secs(u64::from(seconds)) + GRACE;
    let started = time::Instant::now();
    let mut at = from;
    let params = WatchParams::default().timeout(seconds);
    let opened = timeout(LIST_TIMEOUT, api.watch(&params, &at)).await;
    let opened = opened.map_err(|_| (WatchError::Timeout(LIST_TIMEOUT), Some(at.clone())))?;
    let stream = opened.map_err(|error| failure(classify(error), &at))?;
    *begun = Some(time::Instant::now());
    let mut stream = std::pin::pin!(stream.into_stream());
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let Ok(event) = timeout(left, stream.next()).await else {
            return Err(failure(WatchError::Timeout(patience), &at));
        };
        let Some(event) = event else {
            if started.elapsed() < SHORT_WATCH {
                return Err(failure(WatchError::Status("it ended at once".into()), &at));
            }
            return Ok(at);
        };
        match event.map_err(|error| failure(classify(error), &at))? {
            WatchEvent::Added(raw) | WatchEvent::Modified(raw) => {
                at = raw.resource_version().unwrap_or(at);
                directory.apply(kind, raw);
            }
            WatchEvent::Deleted(raw) => {
                directory.delete(kind, &raw);
                at = raw.resource_version().unwrap_or(at);
            }
            WatchEvent::Bookmark(bookmark) => {
                at = bookmark.metadata.resource_version;
                directory.advance(kind, revision(Some(&at)));
            }
            WatchEvent::Error(status) if status.code == 410 => return Err((WatchError::Gone, None)),
            WatchEvent::Error(status) => return Err(failure(WatchError::Status(status.message.clone()), &at)),
        }
        last_events.heard(kind);
    }
}

// === impl WatchError ===

impl WatchError {
    /// Whether it is an answer, and not the lack of one or trouble that will pass.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Kube(kube::Error::Api(status)) => !matches!(status.code, 429 | 500 | 503),
            Self::Status(_) => true,
            _ => false,
        }
    }
}

fn failure(error: WatchError, at: &str) -> Failure {
    let from = (!matches!(error, WatchError::Gone)).then(|| at.to_owned());
    (error, from)
}

fn classify(error: kube::Error) -> WatchError {
    match &error {
        kube::Error::Api(status) if status.code == 410 => WatchError::Gone,
        _ => WatchError::Kube(error),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
