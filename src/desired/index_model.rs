//! Pure: the index against a naive model.

use super::*;

type Id = (Kind, String, String);

/// One state of one object in the apiserver's history.
#[derive(Debug, Clone)]
struct Version {
    id: Id,
    revision: u64,
    /// None: it was deleted.
    object: Option<Value>,
}

/// What happens in the cluster, and what of it the index is shown.
#[derive(Debug, Clone)]
enum Step {
    Switch {
        namespace: usize,
        device: usize,
        label: u8,
        deleting: bool,
    },
    Process {
        namespace: usize,
        name: usize,
        device: usize,
        spec: u8,
        generation: u8,
        owner: usize,
        deleting: bool,
        status: u8,
    },
    Deployment {
        namespace: usize,
        name: usize,
    },
    Delete {
        kind: usize,
        namespace: usize,
        name: usize,
    },
    /// The watch of a kind shows its next events.
    Watch {
        kind: usize,
        events: usize,
    },
    /// The last event comes twice.
    Again {
        kind: usize,
    },
    /// A bookmark, after everything before it.
    Bookmark {
        kind: usize,
    },
    /// A write or a live read returns some state of the past, however late.
    Adopt {
        version: usize,
    },
    /// A list is taken now; its pages come later. There are two who list: the one that watches, and another one that
    /// does so beside the watch.
    List {
        kind: usize,
        beside: bool,
    },
    Page {
        kind: usize,
        beside: bool,
        items: usize,
    },
    /// The rest of the list, and its end.
    Finish {
        kind: usize,
        beside: bool,
    },
    Abort {
        kind: usize,
        beside: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2_usize, 0..3_usize, 0..3_u8, any::<bool>()).prop_map(|(namespace, device, label, deleting)| Step::Switch { namespace, device, label, deleting }),
        8 => (0..2_usize, 0..3_usize, 0..4_usize, 0..3_u8, 1..3_u8, 0..3_usize, prop::bool::weighted(0.2), 0..2_u8).prop_map(
            |(namespace, name, device, spec, generation, owner, deleting, status)| Step::Process { namespace, name, device, spec, generation, owner, deleting, status }),
        1 => (0..2_usize, 0..2_usize).prop_map(|(namespace, name)| Step::Deployment { namespace, name }),
        4 => (0..3_usize, 0..2_usize, 0..3_usize).prop_map(|(kind, namespace, name)| Step::Delete { kind, namespace, name }),
        9 => (0..3_usize, 1..4_usize).prop_map(|(kind, events)| Step::Watch { kind, events }),
        1 => (0..3_usize).prop_map(|kind| Step::Again { kind }),
        1 => (0..3_usize).prop_map(|kind| Step::Bookmark { kind }),
        4 => any::<usize>().prop_map(|version| Step::Adopt { version }),
        3 => (0..3_usize, any::<bool>()).prop_map(|(kind, beside)| Step::List { kind, beside }),
        4 => (0..3_usize, any::<bool>(), 1..3_usize).prop_map(|(kind, beside, items)| Step::Page { kind, beside, items }),
        3 => (0..3_usize, any::<bool>()).prop_map(|(kind, beside)| Step::Finish { kind, beside }),
        1 => (0..3_usize, any::<bool>()).prop_map(|(kind, beside)| Step::Abort { kind, beside }),
    ];
    prop::collection::vec(step, 1..70)
}

#[derive(Default)]
struct Listing {
    revision: u64,
    left: Vec<Version>,
    listed: HashSet<Key>,
}

/// The cluster, the index, and what the index should say.
struct World {
    index: Index,
    history: Vec<Version>,
    /// Up to where everything has been shown.
    seen: [u64; 3],
    /// How far each watch has come: it may be behind a list that was taken beside it.
    watched: [u64; 3],
    last: [Option<Version>; 3],
    /// By kind, and whether beside the watch.
    lists: [[Option<Listing>; 2]; 3],
    adopted: Vec<Version>,
    known: BTreeSet<String>,
    tags: HashMap<String, ETag>,
    highest: u64,
}

/// What can be seen from outside at one moment, by the model.
struct View {
    shown: BTreeMap<Id, Version>,
    /// By device: what its entity tag is derived from.
    desired: BTreeMap<String, String>,
}

impl World {
    fn new(allow_cross_namespace: bool) -> Self {
        Self {
            index: Index::new(Settings { allow_cross_namespace, ..settings() }),
            history: Vec::new(),
            seen: [0; 3],
            watched: [0; 3],
            last: [None, None, None],
            lists: [[None, None], [None, None], [None, None]],
            adopted: Vec::new(),
            known: BTreeSet::new(),
            tags: HashMap::new(),
            highest: 0,
        }
    }

    fn live(&self, id: &Id) -> Option<&Value> {
        self.history.iter().rev().find(|version| version.id == *id).and_then(|version| version.object.as_ref())
    }

    fn happens(&mut self, kind: Kind, namespace: usize, name: &str, object: impl FnOnce(u64, &str) -> Option<Value>) {
        let id = (kind, NAMESPACES[namespace].to_owned(), name.to_owned());
        let revision = 10 + self.history.len() as u64;
        let uid = self
            .live(&id)
            .map_or_else(|| format!("u{revision}"), |known| known["metadata"]["uid"].as_str().unwrap().to_owned());
        let mut object = object(revision, &uid);
        if object.is_none() && self.live(&id).is_none() {
            return;
        }
        if let Some(object) = &mut object {
            object["metadata"]["namespace"] = id.1.as_str().into();
            object["metadata"]["name"] = name.into();
            object["metadata"]["uid"] = uid.into();
            object["metadata"]["resourceVersion"] = revision.to_string().into();
        }
        self.history.push(Version { id, revision, object });
    }

    /// By the model: the newest of what the watch has shown and of what was adopted beyond that.
    fn view(&self) -> View {
        let mut shown = BTreeMap::new();
        for version in self.history.iter().filter(|version| version.revision <= self.seen[version.id.0 as usize]) {
            shown.insert(version.id.clone(), version.clone());
        }
        let mut adopted: Vec<_> =
            self.adopted.iter().filter(|version| version.revision > self.seen[version.id.0 as usize]).collect();
        adopted.sort_by_key(|version| version.revision);
        shown.extend(adopted.into_iter().map(|version| (version.id.clone(), version.clone())));
        shown.retain(|_, version| version.object.is_some());
        let mut desired = BTreeMap::new();
        for device in DEVICES {
            let home: Vec<_> = shown
                .keys()
                .filter(|(kind, _, name)| *kind == Kind::Switch && name == device)
                .map(|(_, namespace, _)| namespace)
                .collect();
            let mut items = String::new();
            for ((kind, namespace, name), version) in &shown {
                let object = version.object.as_ref().unwrap();
                let counts =
                    self.index.settings().allow_cross_namespace || home.is_empty() || home.contains(&namespace);
                let here = *kind == Kind::Process && object["spec"]["deviceRef"]["name"] == device;
                if here && counts && object["metadata"]["deletionTimestamp"].is_null() {
                    let spec = &object["spec"]["execution"]["backend"];
                    items += &format!(
                        "{}/{namespace}/{name}/{}/{spec};",
                        object["metadata"]["uid"], object["metadata"]["generation"]
                    );
                }
            }
            desired.insert(device.to_owned(), items);
        }
        View { shown, desired }
    }

    fn processes<'a>(view: &'a View, device: &str) -> Vec<(&'a Id, u64)> {
        let all = view.shown.iter().filter(|((kind, ..), _)| *kind == Kind::Process);
        all.filter(|(_, v)| v.object.as_ref().unwrap()["spec"]["deviceRef"]["name"] == device)
            .map(|(id, v)| (id, v.revision))
            .collect()
    }

    /// Shows the index something, and compares everything that it says then with the model.
    /// `event` is the resourceVersion of what is shown.
    fn shows(&mut self, exact: bool, event: u64, show: impl FnOnce(&mut Self) -> Changes) -> Result<(), TestCaseError> {
        let before = self.view();
        let device =
            |index: &Index, name: &str| index.device(name).map(|device| (device.etag, device.revision, device.version));
        let devices: BTreeMap<_, _> = DEVICES.into_iter().map(|name| (name, device(&self.index, name))).collect();
        let changes = show(self);
        let after = self.view();
        let index = &self.index;

        for ((kind, _, name), version) in &after.shown {
            let names = version.object.as_ref().unwrap()["spec"]["deviceRef"]["name"]
                .as_str()
                .filter(|name| DEVICES.contains(name));
            self.known.extend(
                if *kind == Kind::Switch { Some(name.clone()) } else { names.map(str::to_owned) }
                    .filter(|_| *kind != Kind::Deployment),
            );
        }
        let walked: Vec<_> =
            (0..4).flat_map(|from| index.devices(from, 1)).map(|(name, _)| (**name).to_owned()).collect();
        prop_assert_eq!(walked.iter().cloned().collect::<BTreeSet<_>>(), self.known.clone());
        prop_assert_eq!((walked.len(), index.device_count()), (self.known.len(), self.known.len()));

        let nothing = ETagBuilder::new(15).finish();
        let mut changed = BTreeSet::new();
        for name in DEVICES {
            let Some((etag, revision, version)) = device(index, name) else { continue };
            let known = index.device(name).unwrap();
            let (old_etag, old_revision, old_version) = devices[name].unwrap_or((nothing, 0, 0));
            // Equal tags exactly for equal items, over the whole run.
            let tag = self.tags.entry(after.desired[name].clone()).or_insert(etag);
            prop_assert_eq!(*tag, etag, "{}", name);
            prop_assert_eq!(self.tags.values().map(ETag::as_bytes).collect::<HashSet<_>>().len(), self.tags.len());
            if etag != old_etag {
                changed.insert(name.to_owned());
            }
            prop_assert_eq!(etag != old_etag, before.desired[name] != after.desired[name]);
            // In order, and each one the newest.
            let processes: Vec<_> = known
                .processes
                .iter()
                .map(|p| ((Kind::Process, (*p.key.namespace).to_owned(), (*p.key.name).to_owned()), p.revision))
                .collect();
            let expected = Self::processes(&after, name);
            prop_assert_eq!(
                processes.iter().map(|(id, revision)| (id, *revision)).collect::<Vec<_>>(),
                expected.clone()
            );
            prop_assert!(revision >= old_revision && expected.iter().all(|(_, of_item)| *of_item <= revision));
            for (id, _) in Self::processes(&before, name)
                .into_iter()
                .filter(|(id, _)| !expected.iter().any(|(left, _)| left == id))
            {
                let happened =
                    after.shown.get(id).map_or(self.seen[Kind::Process as usize], |elsewhere| elsewhere.revision);
                prop_assert!(revision >= happened, "a deletion is an event about the device, too");
            }
            prop_assert!(revision <= self.highest);
            // An event that changed the entity tag counts, whatever it was about: nobody may be shown the former one.
            prop_assert!(etag == old_etag || revision >= event);
            // Whoever remembers the version notices every change of anything.
            let of_switches = |view: &View| {
                NAMESPACES.map(|namespace| {
                    view.shown.get(&(Kind::Switch, namespace.to_owned(), name.to_owned())).map(|v| v.revision)
                })
            };
            let same = Self::processes(&before, name) == expected && of_switches(&before) == of_switches(&after);
            prop_assert!(same || version > old_version);
            prop_assert_eq!(known.switches.len(), of_switches(&after).iter().flatten().count());
        }
        let woken: BTreeSet<_> = changes.devices.iter().map(|name| (**name).to_owned()).collect();
        prop_assert_eq!(woken.len(), changes.devices.len(), "each once");
        prop_assert!(
            if exact { woken == changed } else { woken.is_superset(&changed) },
            "woken {:?}, changed {:?}",
            woken,
            changed
        );

        let concerned = Self::concerned(&before, &after);
        let woken: BTreeSet<_> =
            changes.deployments.iter().map(|key| ((*key.namespace).to_owned(), (*key.name).to_owned())).collect();
        prop_assert_eq!(woken.len(), changes.deployments.len(), "each once");
        prop_assert!(
            woken.is_superset(&concerned) && (!exact || woken == concerned),
            "woken {:?}, concerned {:?}",
            woken,
            concerned
        );

        for kind in Kind::ALL {
            prop_assert_eq!(index.count(kind), after.shown.keys().filter(|id| id.0 == kind).count());
            prop_assert_eq!(index.progress(kind), self.seen[kind as usize]);
        }
        for owner in ["o1", "o2"] {
            let owned: BTreeSet<_> = index
                .owned_by(owner)
                .map(|p: &std::sync::Arc<Process>| ((*p.key.namespace).to_owned(), (*p.key.name).to_owned()))
                .collect();
            let expected = after
                .shown
                .iter()
                .filter(|(_, v)| v.object.as_ref().unwrap()["metadata"]["ownerReferences"][0]["uid"] == owner);
            prop_assert_eq!(
                owned,
                expected.map(|((_, namespace, name), _)| (namespace.clone(), name.clone())).collect()
            );
            prop_assert_eq!(index.owners().any(|uid| &**uid == owner), index.owned_by(owner).next().is_some());
        }
        for namespace in NAMESPACES {
            let switches: BTreeSet<_> =
                index.switches_in(namespace).map(|switch| (*switch.key.name).to_owned()).collect();
            prop_assert_eq!(
                switches,
                after
                    .shown
                    .keys()
                    .filter(|id| id.0 == Kind::Switch && id.1 == namespace)
                    .map(|id| id.2.clone())
                    .collect()
            );
        }
        Ok(())
    }

    /// The deployments that a change may concern.
    fn concerned(before: &View, after: &View) -> BTreeSet<(String, String)> {
        let mut concerned = BTreeSet::new();
        let ids: BTreeSet<_> = before.shown.keys().chain(after.shown.keys()).collect();
        for id in ids {
            let (old, new) = (before.shown.get(id), after.shown.get(id));
            if old.map(|v| v.revision) == new.map(|v| v.revision) {
                continue;
            }
            let (kind, namespace, name) = id;
            let of = |version: Option<&Version>, member: &str| {
                version.map(|v| v.object.as_ref().unwrap()["metadata"][member].clone())
            };
            let here =
                after.shown.keys().filter(|id| id.0 == Kind::Deployment && id.1 == *namespace).map(|id| id.2.clone());
            match kind {
                Kind::Deployment => concerned.extend([(namespace.clone(), name.clone())]),
                Kind::Switch if ["labels", "uid", "deletionTimestamp"].iter().all(|m| of(old, m) == of(new, m)) => {}
                Kind::Switch => concerned.extend(here.map(|deployment| (namespace.clone(), deployment))),
                Kind::Process => {
                    concerned.extend(
                        here.filter(|deployment| name.starts_with(deployment))
                            .map(|deployment| (namespace.clone(), deployment)),
                    );
                    let owners = [old, new]
                        .into_iter()
                        .filter_map(|v| of(v, "ownerReferences")?[0]["name"].as_str().map(str::to_owned));
                    concerned.extend(owners.map(|owner| (namespace.clone(), owner)));
                }
            }
        }
        concerned
    }

    fn event(&mut self, version: Version) -> Result<(), TestCaseError> {
        let kind = version.id.0;
        self.last[kind as usize] = Some(version.clone());
        self.highest = self.highest.max(version.revision);
        self.watched[kind as usize] = version.revision;
        self.shows(true, version.revision, |world| {
            world.seen[kind as usize] = version.revision.max(world.seen[kind as usize]);
            match &version.object {
                Some(object) => world.index.apply(kind, raw(object)),
                None => world.index.delete(kind, &version.id.1, &version.id.2, version.revision),
            }
        })
    }

    fn watch(&mut self, kind: usize, events: usize) -> Result<(), TestCaseError> {
        // There is no watch before a list is in, nor beside one.
        if self.watched[kind] == 0 || self.lists[kind][0].is_some() {
            return Ok(());
        }
        let news: Vec<_> = self
            .history
            .iter()
            .filter(|v| v.id.0 as usize == kind && v.revision > self.watched[kind])
            .take(events)
            .cloned()
            .collect();
        news.into_iter().try_for_each(|version| self.event(version))
    }

    fn page(&mut self, kind: usize, beside: bool, items: usize) -> Result<(), TestCaseError> {
        for _ in 0..items {
            let Some(listing) = &mut self.lists[kind][usize::from(beside)] else { break };
            let at = listing.revision;
            let Some(version) = listing.left.pop() else { break };
            listing.listed.insert(Key { namespace: version.id.1.as_str().into(), name: version.id.2.as_str().into() });
            self.highest = self.highest.max(version.revision);
            self.shows(true, version.revision, |world| {
                world.adopted.push(version.clone());
                world.index.list_item(version.id.0, raw(version.object.as_ref().unwrap()), at)
            })?;
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let time = json!("2025-01-01T00:00:00Z");
        match *step {
            Step::Switch { namespace, device, label, deleting } => self.happens(Kind::Switch, namespace, DEVICES[device], |_, _| {
                Some(json!({"metadata": {"labels": {"l": label.to_string()}, "deletionTimestamp": deleting.then_some(time)}}))
            }),
            Step::Process { namespace, name, device, spec, generation, owner, deleting, status } => {
                self.happens(Kind::Process, namespace, PROCESSES[name], |_, _| {
                    let owners = [None, Some(("o1", "dep")), Some(("o2", "other"))][owner];
                    Some(json!({
                        "metadata": {"generation": generation, "deletionTimestamp": deleting.then_some(time), "ownerReferences": owners.map(|(uid, name)| json!([
                            {"apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcessDeployment", "name": name, "uid": uid, "controller": true}]))},
                        "spec": {"deviceRef": {"kind": "Server", "name": DEVICES.get(device)}, "execution": {"backend": spec.min(1), "args": (spec == 2).then_some([0; 0])}},
                        "status": {"pid": status},
                    }))
                });
            }
            Step::Deployment { namespace, name } => self.happens(Kind::Deployment, namespace, DEPLOYMENTS[name], |_, _| Some(json!({"metadata": {}}))),
            Step::Delete { kind, namespace, name } => {
                let names: &[&str] = [&DEVICES[..], &PROCESSES, &DEPLOYMENTS][kind];
                self.happens(Kind::ALL[kind], namespace, names[name % names.len()], |_, _| None);
            }
            Step::Watch { kind, events } => self.watch(kind, events)?,
            Step::Again { kind } => {
                if let Some(last) = self.last[kind].clone().filter(|last| last.revision == self.watched[kind]) {
                    self.event(last)?;
                }
            }
            Step::Bookmark { kind } => {
                self.watch(kind, usize::MAX)?;
                if self.watched[kind] > 0 && self.lists[kind][0].is_none() {
                    let revision = self.history.last().map_or(0, |v| v.revision).max(self.seen[kind]);
                    (self.seen[kind], self.watched[kind]) = (revision, revision);
                    self.index.advance(Kind::ALL[kind], revision);
                }
            }
            Step::Adopt { version } => {
                let versions: Vec<_> = self.history.iter().filter(|v| v.object.is_some()).cloned().collect();
                let Some(version) = versions.get(version % versions.len().max(1)) else { return Ok(()) };
                self.highest = self.highest.max(version.revision);
                self.shows(true, version.revision, |world| {
                    world.adopted.push(version.clone());
                    world.index.adopt(version.id.0, raw(version.object.as_ref().unwrap()))
                })?;
            }
            Step::List { kind, beside } => {
                let mut state: BTreeMap<&Id, &Version> = BTreeMap::new();
                state.extend(self.history.iter().filter(|v| v.id.0 as usize == kind).map(|v| (&v.id, v)));
                let left = state.into_values().filter(|v| v.object.is_some()).cloned().collect();
                self.lists[kind][usize::from(beside)] = Some(Listing { revision: self.history.last().map_or(1, |v| v.revision), left, listed: HashSet::new() });
            }
            Step::Page { kind, beside, items } => self.page(kind, beside, items)?,
            Step::Finish { kind, beside } => {
                self.page(kind, beside, usize::MAX)?;
                if let Some(Listing { revision, listed, .. }) = self.lists[kind][usize::from(beside)].take() {
                    if !beside {
                        self.watched[kind] = revision;
                    }
                    self.highest = self.highest.max(revision);
                    self.shows(false, revision, |world| {
                        world.seen[kind] = revision.max(world.seen[kind]);
                        world.index.finish_list(Kind::ALL[kind], &listed, revision)
                    })?;
                    prop_assert!(self.index.synced(Kind::ALL[kind]));
                }
            }
            Step::Abort { kind, beside } => self.lists[kind][usize::from(beside)] = None,
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_index_says_what_the_newest_objects_say(steps in steps(), cross in prop::bool::weighted(0.2)) {
        let mut world = World::new(cross);
        for kind in 0..3 {
            world.take(&Step::List { kind, beside: false })?;
            world.take(&Step::Finish { kind, beside: false })?;
        }
        for step in &steps {
            world.take(step)?;
        }
    }

    #[test]
    fn nothing_is_said_of_devices_before_the_first_lists_are_in(steps in steps()) {
        let mut world = World::new(false);
        let mut finished = BTreeSet::new();
        for step in &steps {
            if let Step::Finish { kind, beside } = step {
                finished.extend(world.lists[*kind][usize::from(*beside)].is_some().then_some(*kind));
            }
            world.take(step)?;
            prop_assert_eq!(world.index.serves_devices(), finished.contains(&0) && finished.contains(&1));
        }
    }
}
