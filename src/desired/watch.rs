//! Edge: list and watch, one task per kind.
//!
//! kube's own watcher hides the resourceVersion of lists and bookmarks, and with it how far a watch has come,
//! which `X-Praetor-Revision` needs; so the loop is ours, on kube's list and watch calls.

use super::directory::Directory;
use super::index::Kind;
use super::lean::Key;
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
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// A page that takes longer is given up.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch is asked to end after so long (seconds), plus up to half of it: a silently dropped connection is
/// noticed 5 s after that.
const WATCH_SECONDS: u32 = 60;
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

#[derive(Debug, Error)]
enum WatchError {
    #[error("history was compacted, listing again")]
    Gone,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Kube(#[from] kube::Error),
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

/// Lists and watches a kind into the directory until shutdown. A failed list changes nothing.
pub async fn run(
    client: Client,
    kind: Kind,
    directory: Arc<Directory>,
    last_events: Arc<LastEvents>,
    shutdown: CancellationToken,
) {
    let api = all(client, kind);
    let follow = async {
        let mut delays = retry::delays(Duration::from_millis(500), Duration::from_secs(30));
        let mut at: Option<String> = None;
        loop {
            let started = Instant::now();
            let result = match at.take() {
                None => list(&api, kind, &directory).await,
                Some(revision) => watch(&api, kind, &directory, &last_events, revision).await,
            };
            match result {
                Ok(revision) => {
                    last_events.heard(kind);
                    at = Some(revision);
                    // Only a call that lasted shows that the apiserver is well again.
                    if started.elapsed() >= SHORT_WATCH {
                        delays = retry::delays(Duration::from_millis(500), Duration::from_secs(30));
                    }
                }
                Err((WatchError::Gone, _)) => {
                    let spread = Duration::from_millis(rand::rng().random_range(0..RELIST_SPREAD_MS));
                    tracing::info!(kind = kind.as_str(), ?spread, "history was compacted, listing again");
                    tokio::time::sleep(spread).await;
                }
                Err((error, revision)) => {
                    at = revision;
                    let delay = delays.next().unwrap_or(Duration::from_secs(30));
                    tracing::warn!(kind = kind.as_str(), %error, ?delay, "watch failed");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow => {}
    }
}

/// An error, and the resourceVersion from which the watch may go on.
type Failure = (WatchError, Option<String>);

async fn list(api: &Api<Raw>, kind: Kind, directory: &Directory) -> Result<String, Failure> {
    let mut listed = HashSet::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page =
            timeout(LIST_TIMEOUT, api.list(&params)).await.map_err(|_| (WatchError::Timeout(LIST_TIMEOUT), None))?;
        let page = page.map_err(|error| (classify(error), None))?;
        listed.extend(page.items.iter().map(|raw| Key { namespace: raw.namespace().into(), name: raw.name().into() }));
        directory.apply_all(kind, page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
            None => {
                let version = page.metadata.resource_version.unwrap_or_default();
                directory.finish_list(kind, &listed, revision(Some(&version)));
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
) -> Result<String, Failure> {
    let seconds = WATCH_SECONDS + rand::rng().random_range(0..=WATCH_SECONDS / 2);
    let patience = Duration::from_secs(u64::from(seconds) + 5);
    let started = Instant::now();
    let mut at = from;
    let params = WatchParams::default().timeout(seconds);
    let opened = timeout(LIST_TIMEOUT, api.watch(&params, &at)).await;
    let opened = opened.map_err(|_| (WatchError::Timeout(LIST_TIMEOUT), Some(at.clone())))?;
    let stream = opened.map_err(|error| failure(classify(error), &at))?;
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
