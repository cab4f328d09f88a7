//! Edge: the index behind its lock, shared by everybody.
//!
//! One `RwLock`, held for microseconds and never across an await. Whoever changes the index wakes the parked
//! polls of the devices concerned and tells the rollout controller which deployments to look at.

use super::index::{Changes, Index, Kind, Settings, desired};
use super::lean::{Key, Text};
use super::object::{Opened, Raw};
use crate::wire::desired::{DesiredItem, DesiredState};
use crate::wire::etag::ETag;
use bytes::Bytes;
use dashmap::DashMap;
use moka::sync::Cache;
use parking_lot::RwLock;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};

/// Most bytes of encoded bodies that are kept. A body is rarely asked for twice, since its entity tag answers the next
/// time: this is for devices that ask too often, not for the fleet.
const BODY_CACHE_BYTES: u64 = 1024 * 1024;

/// What is known of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The first complete lists are not in.
    NotSynced,
    /// Nothing names it.
    Unknown,
    /// Something names it, or did since the start.
    Known {
        /// Entity tag of its desired state.
        etag: ETag,
        /// resourceVersion of the last event about it.
        revision: u64,
    },
}

/// The body of an answer, with the validators that belong to it.
#[derive(Debug, Clone)]
pub struct Body {
    /// Entity tag of `bytes`.
    pub etag: ETag,
    /// resourceVersion of the last event that `bytes` includes.
    pub revision: u64,
    /// A [`DesiredState`] as JSON.
    pub bytes: Bytes,
}

/// See the module.
pub struct Directory {
    index: RwLock<Index>,
    /// Devices with parked polls. A poll registers before it looks, so no wake-up is lost.
    parked: DashMap<Text, Polls>,
    bodies: Cache<Text, (ETag, Bytes)>,
    /// How far the watches have come.
    progress: watch::Sender<Progress>,
    dirty: mpsc::UnboundedSender<Key>,
}

// === impl Directory ===

impl Directory {
    /// An empty directory, and the deployments that may have something to do as they change. The receiver must
    /// be drained; what waits in it is bounded by the number of changes.
    #[must_use]
    pub fn new(settings: Settings) -> (Arc<Self>, mpsc::UnboundedReceiver<Key>) {
        let (dirty, deployments) = mpsc::unbounded_channel();
        let directory = Self {
            index: RwLock::new(Index::new(settings)),
            parked: DashMap::new(),
            bodies: Cache::builder()
                .max_capacity(BODY_CACHE_BYTES)
                .weigher(|name: &Text, (_, bytes): &(ETag, Bytes)| {
                    u32::try_from(name.len() + bytes.len() + 128).unwrap_or(u32::MAX)
                })
                .build(),
            progress: watch::Sender::default(),
            dirty,
        };
        (Arc::new(directory), deployments)
    }

    /// Looks at the index. The closure must be short and must not block.
    pub fn read<R>(&self, look: impl FnOnce(&Index) -> R) -> R {
        look(&self.index.read())
    }

    /// What is known of a device; allocates nothing.
    #[must_use]
    pub fn lookup(&self, device: &str) -> Lookup {
        let index = self.index.read();
        if !index.serves_devices() {
            return Lookup::NotSynced;
        }
        index
            .device(device)
            .map_or(Lookup::Unknown, |device| Lookup::Known { etag: device.etag, revision: device.revision })
    }

    /// The body of a device's answer; `None` when the device is unknown.
    #[must_use]
    pub fn body(&self, device: &str) -> Option<Body> {
        let (name, etag, revision, items) = {
            let index = self.index.read();
            let known = index.device(device)?;
            let name: Text = known.processes.first().map_or_else(|| device.into(), |process| process.device.clone());
            if let Some((etag, bytes)) = self.bodies.get(device).filter(|(etag, _)| *etag == known.etag) {
                return Some(Body { etag, revision: known.revision, bytes });
            }
            let items: Vec<_> = desired(known, index.settings().allow_cross_namespace).cloned().collect();
            (name, known.etag, known.revision, items)
        };
        let items = items.iter().map(|process| DesiredItem {
            uid: (*process.uid).to_owned(),
            namespace: (*process.key.namespace).to_owned(),
            name: (*process.key.name).to_owned(),
            generation: process.generation,
            spec: with_device(process),
            spec_hash: process.spec.hash.to_string(),
        });
        let state = DesiredState {
            device_name: device.to_owned(),
            heartbeat_interval_seconds: self.index.read().settings().heartbeat_interval_seconds,
            items: items.collect(),
        };
        let bytes = Bytes::from(serde_json::to_vec(&state).unwrap_or_default().into_boxed_slice());
        self.bodies.insert(name, (etag, bytes.clone()));
        Some(Body { etag, revision, bytes })
    }

    /// Returns when the device's entity tag differs from the given one, or the device is unknown.
    pub async fn changed(&self, device: &str, etag: &ETag) {
        loop {
            let parked = Parked::new(self, device);
            let mut notified = std::pin::pin!(parked.changed.notified());
            notified.as_mut().enable();
            match self.lookup(device) {
                Lookup::Known { etag: now, .. } if now == *etag => notified.await,
                _ => return,
            }
        }
    }

    /// Whether everything about a device is in up to a resourceVersion that somebody was told for it.
    ///
    /// The watch of DeviceProcesses must have come so far. That of NetworkSwitches must have, too, unless the device
    /// itself shows the event that the number came from: switches change seldom, and an idle watch tells only once a
    /// minute how far it is.
    #[must_use]
    pub fn synced_through(&self, device: &str, revision: u64) -> bool {
        let progress = *self.progress.borrow();
        self.includes(progress, device, revision)
    }

    fn includes(&self, progress: Progress, device: &str, revision: u64) -> bool {
        let shown = || matches!(self.lookup(device), Lookup::Known { revision: known, .. } if known >= revision);
        progress.processes >= revision && (progress.switches >= revision || shown())
    }

    /// Returns when [`Directory::synced_through`] a resourceVersion.
    pub async fn caught_up(&self, device: &str, revision: u64) {
        let mut progress = self.progress.subscribe();
        // The sender lives in self, so this ends only when the condition holds.
        let _ = progress.wait_for(|progress| self.includes(*progress, device, revision)).await;
    }

    /// Returns when the first complete lists of these kinds are in; see [`Index::synced`].
    pub async fn listed(&self, kinds: &[Kind]) {
        let mut progress = self.progress.subscribe();
        // As above.
        let _ = progress.wait_for(|progress| kinds.iter().all(|kind| progress.listed[*kind as usize])).await;
    }

    /// Takes in what a watch showed.
    pub fn apply(&self, kind: Kind, raw: Raw) {
        if self.knows(kind, &raw) {
            return self.advance(kind, raw.revision());
        }
        // Read before the lock is taken.
        let opened = Opened::from(raw);
        self.change(|index| index.apply(kind, opened));
    }

    /// Takes in a page of a list that was taken at a resourceVersion. Returns the names of what was on it.
    pub fn apply_all(&self, kind: Kind, raws: Vec<Raw>, at: u64) -> Vec<Key> {
        let one = |raw: Raw| {
            let (namespace, name) = (raw.namespace().to_owned(), raw.name().to_owned());
            if !self.knows(kind, &raw) {
                let opened = Opened::from(raw);
                // Not advanced: a page says nothing about objects of other pages.
                self.change(|index| index.list_item(kind, opened, at));
            }
            let known = self.read(|index| index.key(kind, &namespace, &name).cloned());
            known.unwrap_or_else(|| Key { namespace: namespace.into(), name: name.into() })
        };
        raws.into_iter().map(one).collect()
    }

    /// Takes in what a write or a live read returned.
    pub fn adopt(&self, kind: Kind, raw: Raw) {
        if !self.knows(kind, &raw) {
            let opened = Opened::from(raw);
            self.change(|index| index.adopt(kind, opened));
        }
    }

    /// Whether exactly this is known already. A manager's own writes come back to it by the watch, and a list shows
    /// mostly what is known: none of it is read again.
    fn knows(&self, kind: Kind, raw: &Raw) -> bool {
        let revision = raw.revision();
        revision > 0 && self.read(|index| index.revision(kind, raw.namespace(), raw.name())) == Some(revision)
    }

    /// Takes in a deletion that the watch showed.
    pub fn delete(&self, kind: Kind, raw: &Raw) {
        self.change(|index| index.delete(kind, raw.namespace(), raw.name(), raw.revision()));
    }

    /// The end of a complete list.
    pub fn finish_list(&self, kind: Kind, listed: &HashSet<Key>, revision: u64) {
        self.change(|index| index.finish_list(kind, listed, revision));
    }

    /// Notes how far a watch has come.
    pub fn advance(&self, kind: Kind, revision: u64) {
        self.change(|index| {
            index.advance(kind, revision);
            Changes::default()
        });
    }

    fn change(&self, change: impl FnOnce(&mut Index) -> Changes) {
        let (changes, progress) = {
            let mut index = self.index.write();
            let changes = change(&mut index);
            let (processes, switches) = (index.progress(Kind::Process), index.progress(Kind::Switch));
            (changes, Progress { processes, switches, listed: Kind::ALL.map(|kind| index.synced(kind)) })
        };
        for device in &changes.devices {
            if let Some(polls) = self.parked.get(device) {
                polls.changed.notify_waiters();
            }
        }
        for deployment in changes.deployments {
            // Fails only when the controller has ended, and then nobody needs it.
            let _ = self.dirty.send(deployment);
        }
        self.progress.send_if_modified(|known| known.advance(progress));
    }
}

/// resourceVersions up to which watches have shown everything, and of which kinds there was a complete list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    processes: u64,
    switches: u64,
    listed: [bool; Kind::ALL.len()],
}

impl Progress {
    /// Takes in what may come late. Says whether anything moved.
    fn advance(&mut self, other: Self) -> bool {
        let before = *self;
        self.processes = other.processes.max(self.processes);
        self.switches = other.switches.max(self.switches);
        for kind in Kind::ALL.map(|kind| kind as usize) {
            self.listed[kind] |= other.listed[kind];
        }
        *self != before
    }
}

/// The parked polls of one device.
#[derive(Default)]
struct Polls {
    count: usize,
    changed: Arc<Notify>,
}

/// One parked poll. A device's entry is forgotten when its last one goes.
struct Parked<'a> {
    directory: &'a Directory,
    device: &'a str,
    changed: Arc<Notify>,
}

impl<'a> Parked<'a> {
    fn new(directory: &'a Directory, device: &'a str) -> Self {
        let mut polls = directory.parked.entry(device.into()).or_default();
        polls.count += 1;
        Self { directory, device, changed: polls.changed.clone() }
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.directory.parked.remove_if_mut(self.device, |_, polls| {
            polls.count -= 1;
            polls.count == 0
        });
    }
}

/// The spec with its `deviceRef` again.
fn with_device(process: &super::lean::Process) -> Box<RawValue> {
    let mut device = serde_json::json!({"name": &*process.device});
    if !process.device_kind.is_empty() {
        device["kind"] = (*process.device_kind).into();
    }
    if let Some(namespace) = &process.device_namespace {
        device["namespace"] = (**namespace).into();
    }
    let body = process.spec.body.get();
    let rest = body.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    RawValue::from_string(format!("{{\"deviceRef\":{device}{comma}{rest}"))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
