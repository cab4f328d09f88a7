//! Pure: everything the watches have shown, by device, by namespace and by owner.
//!
//! Written by the watch tasks and, with what a write returned, by the writers; read by everybody. The
//! resourceVersion decides which of two views of an object is the newer one, so the order in which they
//! arrive does not matter.

use super::lean::{Deployment, Key, Pool, Process, Switch, Text};
use super::object::Opened;
use crate::wire::etag::{ETag, ETagBuilder};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What does not change while the manager runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Told to every device, seconds.
    pub heartbeat_interval_seconds: u64,
    /// Whether a DeviceProcess may be for a switch of another namespace.
    pub allow_cross_namespace: bool,
}

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// NetworkSwitch.
    Switch,
    /// DeviceProcess.
    Process,
    /// DeviceProcessDeployment.
    Deployment,
}

/// What an event changed for others.
#[derive(Debug, Default)]
pub struct Changes {
    /// Devices whose entity tag changed.
    pub devices: Vec<Text>,
    /// Deployments that may have something to do.
    pub deployments: Vec<Key>,
}

/// One device: known from the first NetworkSwitch or DeviceProcess that names it until the manager restarts.
#[derive(Debug)]
pub struct Device {
    /// Entity tag of the desired state.
    pub etag: ETag,
    /// resourceVersion of the last event about this device: of a DeviceProcess, or of a NetworkSwitch that changed the
    /// entity tag.
    pub revision: u64,
    /// Moves whenever anything about the device changes, its statuses included.
    pub version: u64,
    /// The DeviceProcesses that name it, sorted by namespace, then name; not all of them count.
    pub processes: Vec<Arc<Process>>,
    /// The NetworkSwitches of this name, at most one a namespace.
    pub switches: Vec<Arc<Switch>>,
}

/// What an event about a device was about, and its resourceVersion.
#[derive(Debug, Clone, Copy)]
enum About {
    Process(u64),
    /// Counts only when it changes the entity tag: others say nothing about desired state.
    Switch(u64),
}

type ByName<T> = HashMap<Text, HashMap<Text, Arc<T>>>;

/// See the module.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    pool: Pool,
    devices: HashMap<Text, Device>,
    /// Every known device in the order in which it came to be known, so that a walk can be taken in steps.
    names: Vec<Text>,
    versions: u64,
    switches: ByName<Switch>,
    processes: ByName<Process>,
    deployments: ByName<Deployment>,
    owned: HashMap<Text, HashSet<Key>>,
    synced: [bool; 3],
    progress: [u64; 3],
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Switch, Self::Process, Self::Deployment];
    /// Those without which no device can be answered.
    pub const SERVED: [Self; 2] = [Self::Switch, Self::Process];

    /// The kind as Kubernetes spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "NetworkSwitch",
            Self::Process => "DeviceProcess",
            Self::Deployment => "DeviceProcessDeployment",
        }
    }
}

// === impl Changes ===

impl Changes {
    /// Whether nobody needs to hear of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.deployments.is_empty()
    }

    /// Adds what another event changed.
    pub fn merge(&mut self, other: Self) {
        self.devices.extend(other.devices);
        self.deployments.extend(other.deployments);
    }

    fn once_each(&mut self) {
        self.devices.sort_unstable();
        self.devices.dedup();
        self.deployments.sort_unstable();
        self.deployments.dedup();
    }

    fn deployment(&mut self, key: &Key) {
        if !self.deployments.contains(key) {
            self.deployments.push(key.clone());
        }
    }
}

// === impl Device ===

impl Device {
    /// Whether a DeviceProcess of a namespace counts for this device.
    #[must_use]
    pub fn counts(&self, namespace: &str, allow_cross_namespace: bool) -> bool {
        allow_cross_namespace
            || self.switches.is_empty()
            || self.switches.iter().any(|switch| &*switch.key.namespace == namespace)
    }
}

// === impl Index ===

impl Index {
    /// An empty index that has not synced.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pool: Pool::default(),
            devices: HashMap::new(),
            names: Vec::new(),
            versions: 0,
            switches: HashMap::new(),
            processes: HashMap::new(),
            deployments: HashMap::new(),
            owned: HashMap::new(),
            synced: [false; 3],
            progress: [0; 3],
        }
    }

    /// What was given to [`Index::new`].
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Whether the first complete list of a kind is in.
    #[must_use]
    pub fn synced(&self, kind: Kind) -> bool {
        self.synced[kind as usize]
    }

    /// Whether devices can be answered: NetworkSwitches and DeviceProcesses have synced.
    #[must_use]
    pub fn serves_devices(&self) -> bool {
        Kind::SERVED.into_iter().all(|kind| self.synced(kind))
    }

    /// The resourceVersion up to which the watch of a kind has shown everything.
    #[must_use]
    pub fn progress(&self, kind: Kind) -> u64 {
        self.progress[kind as usize]
    }

    /// A device, if it is known.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.get(name)
    }

    /// Known devices from the `from`-th on, at most `most`. None is ever forgotten, so a walk in steps meets
    /// every device that was known when it began.
    pub fn devices(&self, from: usize, most: usize) -> impl Iterator<Item = (&Text, &Device)> {
        let names = self.names.get(from..).unwrap_or_default();
        names.iter().take(most).filter_map(|name| Some((name, self.devices.get(name)?)))
    }

    /// How many devices are known.
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.names.len()
    }

    /// A DeviceProcess.
    #[must_use]
    pub fn process(&self, namespace: &str, name: &str) -> Option<&Arc<Process>> {
        self.processes.get(namespace)?.get(name)
    }

    /// A NetworkSwitch.
    #[must_use]
    pub fn switch(&self, namespace: &str, name: &str) -> Option<&Arc<Switch>> {
        self.switches.get(namespace)?.get(name)
    }

    /// A DeviceProcessDeployment.
    #[must_use]
    pub fn deployment(&self, namespace: &str, name: &str) -> Option<&Arc<Deployment>> {
        self.deployments.get(namespace)?.get(name)
    }

    /// Every DeviceProcessDeployment.
    pub fn deployments(&self) -> impl Iterator<Item = &Arc<Deployment>> {
        self.deployments.values().flat_map(HashMap::values)
    }

    /// Every NetworkSwitch of a namespace.
    pub fn switches_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Switch>> {
        self.switches.get(namespace).into_iter().flat_map(HashMap::values)
    }

    /// The DeviceProcesses whose controller has a uid.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Process>> {
        self.owned.get(uid).into_iter().flatten().filter_map(|key| self.process(&key.namespace, &key.name))
    }

    /// How many objects of a kind are known.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Switch => self.switches.values().map(HashMap::len).sum(),
            Kind::Process => self.processes.values().map(HashMap::len).sum(),
            Kind::Deployment => self.deployments.values().map(HashMap::len).sum(),
        }
    }

    /// uids of controllers that own DeviceProcesses, of whatever kind.
    pub fn owners(&self) -> impl Iterator<Item = &Text> {
        self.owned.keys()
    }

    /// The resourceVersion of an object as it is known; `None` when it is not.
    #[must_use]
    pub fn revision(&self, kind: Kind, namespace: &str, name: &str) -> Option<u64> {
        match kind {
            Kind::Switch => self.switch(namespace, name).map(|known| known.revision),
            Kind::Process => self.process(namespace, name).map(|known| known.revision),
            Kind::Deployment => self.deployment(namespace, name).map(|known| known.revision),
        }
    }

    /// The name of an object that is known, without another copy of its text.
    #[must_use]
    pub fn key(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Key> {
        match kind {
            Kind::Switch => self.switch(namespace, name).map(|known| &known.key),
            Kind::Process => self.process(namespace, name).map(|known| &known.key),
            Kind::Deployment => self.deployment(namespace, name).map(|known| &known.key),
        }
    }

    /// Takes in what a watch showed. A watch that is behind a list which somebody else took never brings back what
    /// was gone at that list.
    pub fn apply(&mut self, kind: Kind, raw: impl Into<Opened>) -> Changes {
        let raw = raw.into();
        let revision = raw.revision();
        let changes = self.adopt(kind, raw);
        self.advance(kind, revision);
        changes
    }

    /// Takes in an object of a list taken at a resourceVersion. The list is one moment, but its end alone says that
    /// the watch has come so far. What the index knows of moments up to then the list knows better, even if that
    /// means going back: then the cluster was restored from a copy.
    pub fn list_item(&mut self, kind: Kind, raw: impl Into<Opened>, at: u64) -> Changes {
        let raw = raw.into();
        match self.revision(kind, raw.namespace(), raw.name()) {
            Some(known) if known == raw.revision() || known > at => Changes::default(),
            None if at < self.progress(kind) => Changes::default(),
            _ => self.upsert(kind, raw),
        }
    }

    /// Takes in what a write or a live read returned, which the watch may not have shown yet. It never brings
    /// back what the watch has already shown to be gone.
    pub fn adopt(&mut self, kind: Kind, raw: impl Into<Opened>) -> Changes {
        let raw = raw.into();
        let known = self.revision(kind, raw.namespace(), raw.name()).unwrap_or_else(|| self.progress(kind));
        if raw.revision() > known { self.upsert(kind, raw) } else { Changes::default() }
    }

    /// Takes in a deletion that happened at a resourceVersion.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str, revision: u64) -> Changes {
        self.advance(kind, revision);
        self.remove(kind, namespace, name, revision)
    }

    /// The end of a complete list taken at a resourceVersion, whose items have been applied: what it did not
    /// hold, and was not written since, is gone.
    pub fn finish_list(&mut self, kind: Kind, listed: &HashSet<Key>, revision: u64) -> Changes {
        fn gone<T>(all: &ByName<T>, listed: &HashSet<Key>, key: impl Fn(&T) -> (&Key, u64), revision: u64) -> Vec<Key> {
            let objects = all.values().flat_map(HashMap::values).map(|object| key(object));
            objects
                .filter(|(key, seen)| *seen <= revision && !listed.contains(*key))
                .map(|(key, _)| key.clone())
                .collect()
        }
        let gone = match kind {
            Kind::Switch => gone(&self.switches, listed, |o| (&o.key, o.revision), revision),
            Kind::Process => gone(&self.processes, listed, |o| (&o.key, o.revision), revision),
            Kind::Deployment => gone(&self.deployments, listed, |o| (&o.key, o.revision), revision),
        };
        let mut changes = Changes::default();
        for key in gone {
            changes.merge(self.remove(kind, &key.namespace, &key.name, revision));
        }
        changes.once_each();
        self.synced[kind as usize] = true;
        self.advance(kind, revision);
        changes
    }

    /// Notes how far the watch of a kind has come.
    pub fn advance(&mut self, kind: Kind, revision: u64) {
        let progress = &mut self.progress[kind as usize];
        *progress = revision.max(*progress);
    }

    /// Puts an object in the place of what is known of it.
    fn upsert(&mut self, kind: Kind, raw: Opened) -> Changes {
        match kind {
            Kind::Switch => self.upsert_switch(&raw),
            Kind::Process => self.upsert_process(&raw),
            Kind::Deployment => self.upsert_deployment(raw),
        }
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str, revision: u64) -> Changes {
        match kind {
            Kind::Switch => self.remove_switch(namespace, name, revision),
            Kind::Process => self.remove_process(namespace, name, revision),
            Kind::Deployment => {
                let Some(known) = self.deployment(namespace, name).filter(|known| known.revision <= revision) else {
                    return Changes::default();
                };
                let key = known.key.clone();
                take(&mut self.deployments, namespace, name);
                // Its children are still to be cleaned up.
                Changes { devices: Vec::new(), deployments: vec![key] }
            }
        }
    }

    fn upsert_deployment(&mut self, raw: Opened) -> Changes {
        let deployment = Arc::new(self.pool.deployment(raw));
        let key = deployment.key.clone();
        put(&mut self.deployments, &key, deployment);
        Changes { devices: Vec::new(), deployments: vec![key] }
    }

    fn upsert_switch(&mut self, raw: &Opened) -> Changes {
        let known = self.switch(raw.namespace(), raw.name()).cloned();
        let switch = Arc::new(self.pool.switch(raw));
        put(&mut self.switches, &switch.key, switch.clone());
        let mut changes = Changes::default();
        if known.is_none_or(|known| {
            known.labels != switch.labels || known.uid != switch.uid || known.deleting != switch.deleting
        }) {
            self.wake_namespace(&switch.key.namespace, &mut changes);
        }
        let device = self.device_mut(&switch.key.name.clone());
        match device.switches.iter_mut().find(|known| known.key == switch.key) {
            Some(known) => *known = switch.clone(),
            None => device.switches.push(switch.clone()),
        }
        self.refresh(&switch.key.name, About::Switch(switch.revision), &mut changes);
        changes
    }

    fn remove_switch(&mut self, namespace: &str, name: &str, revision: u64) -> Changes {
        let mut changes = Changes::default();
        if self.switch(namespace, name).is_some_and(|known| known.revision <= revision) {
            take(&mut self.switches, namespace, name);
            self.wake_namespace(namespace, &mut changes);
            if let Some(device) = self.devices.get_mut(name) {
                device.switches.retain(|switch| &*switch.key.namespace != namespace);
            }
            self.refresh(name, About::Switch(revision), &mut changes);
        }
        changes
    }

    fn upsert_process(&mut self, raw: &Opened) -> Changes {
        let known = self.process(raw.namespace(), raw.name()).cloned();
        let process = Arc::new(self.pool.process(raw));
        let mut changes = Changes::default();
        if let Some(known) = known.filter(|known| known.device != process.device || known.owner != process.owner) {
            // Recreated or adopted between two looks.
            self.unlink(&known);
            if known.device != process.device {
                self.refresh(&known.device, About::Process(process.revision), &mut changes);
            }
            self.wake_owner(&known, &mut changes);
        }
        put(&mut self.processes, &process.key, process.clone());
        if let Some(owner) = &process.owner {
            self.owned.entry(owner.uid.clone()).or_default().insert(process.key.clone());
        }
        self.wake_owner(&process, &mut changes);
        if !process.device.is_empty() {
            let device = self.device_mut(&process.device.clone());
            match device.processes.binary_search_by(|known| known.key.cmp(&process.key)) {
                Ok(at) => device.processes[at] = process.clone(),
                Err(at) => {
                    device.processes.reserve_exact(1);
                    device.processes.insert(at, process.clone());
                }
            }
            self.refresh(&process.device, About::Process(process.revision), &mut changes);
        }
        changes
    }

    fn remove_process(&mut self, namespace: &str, name: &str, revision: u64) -> Changes {
        let mut changes = Changes::default();
        if let Some(known) = self.process(namespace, name).filter(|known| known.revision <= revision).cloned() {
            take(&mut self.processes, namespace, name);
            self.unlink(&known);
            self.wake_owner(&known, &mut changes);
            self.refresh(&known.device, About::Process(revision), &mut changes);
        }
        changes
    }

    /// Takes a DeviceProcess from its device and its owner.
    fn unlink(&mut self, process: &Process) {
        if let Some(device) = self.devices.get_mut(&process.device) {
            device.processes.retain(|known| known.key != process.key);
        }
        if let Some(owner) = &process.owner
            && let Some(owned) = self.owned.get_mut(&owner.uid)
        {
            owned.remove(&process.key);
            if owned.is_empty() {
                self.owned.remove(&owner.uid);
            }
        }
    }

    fn device_mut(&mut self, name: &Text) -> &mut Device {
        let heartbeat = self.settings.heartbeat_interval_seconds;
        self.devices.entry(name.clone()).or_insert_with(|| {
            self.names.push(name.clone());
            Device {
                etag: ETagBuilder::new(heartbeat).finish(),
                revision: 0,
                version: 0,
                processes: Vec::new(),
                switches: Vec::new(),
            }
        })
    }

    /// Derives a device's entity tag anew.
    fn refresh(&mut self, name: &str, about: About, changes: &mut Changes) {
        let settings = self.settings;
        let Some(device) = self.devices.get_mut(name) else { return };
        self.versions += 1;
        device.version = self.versions;
        let mut etag = ETagBuilder::new(settings.heartbeat_interval_seconds);
        for process in desired(device, settings.allow_cross_namespace) {
            etag.item(
                &process.uid,
                &process.key.namespace,
                &process.key.name,
                process.generation,
                &process.spec.hash.0,
            );
        }
        let etag = etag.finish();
        let changed = device.etag != etag;
        device.revision = match about {
            About::Process(revision) => revision.max(device.revision),
            About::Switch(revision) if changed => revision.max(device.revision),
            About::Switch(_) => device.revision,
        };
        if changed {
            device.etag = etag;
            changes.devices.extend(self.devices.get_key_value(name).map(|(name, _)| name.clone()));
        }
    }

    /// A switch came, went or changed its labels: every deployment of its namespace may match anew.
    fn wake_namespace(&self, namespace: &str, changes: &mut Changes) {
        for deployment in self.deployments.get(namespace).into_iter().flat_map(HashMap::values) {
            changes.deployment(&deployment.key);
        }
    }

    /// A child changed; or an object that may stand where a child should.
    fn wake_owner(&self, process: &Process, changes: &mut Changes) {
        if let Some(owner) = &process.owner {
            changes.deployment(&Key { namespace: process.key.namespace.clone(), name: owner.name.clone() });
        }
        for deployment in self.deployments.get(&process.key.namespace).into_iter().flat_map(HashMap::values) {
            if process.key.name.starts_with(&*deployment.key.name) {
                changes.deployment(&deployment.key);
            }
        }
    }
}

/// What a device should run: what names it, counts for it and is not being deleted.
pub fn desired(device: &Device, allow_cross_namespace: bool) -> impl Iterator<Item = &Arc<Process>> {
    device
        .processes
        .iter()
        .filter(move |process| !process.deleting && device.counts(&process.key.namespace, allow_cross_namespace))
}

fn put<T>(all: &mut ByName<T>, key: &Key, object: Arc<T>) {
    all.entry(key.namespace.clone()).or_default().insert(key.name.clone(), object);
}

fn take<T>(all: &mut ByName<T>, namespace: &str, name: &str) {
    if let Some(objects) = all.get_mut(namespace) {
        objects.remove(name);
        if objects.is_empty() {
            all.remove(namespace);
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
