//! Pure: a small model of a device: two backends, a store, a disk. What `next` says is done there, cut off at any point.

use super::super::*;
use crate::agent::artifact::{FetchError, Fetched, Stage};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

pub const KINDS: [BackendKind; 2] = [BackendKind::Systemd, BackendKind::Initd];
/// Steps within which everything must have come to rest.
pub const PATIENCE: usize = 40;

/// uid, hash, backend, policy, and what is wrong with it.
pub type Row = (&'static str, &'static str, &'static str, &'static str, Wrong);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Nothing,
    Artifact,
    Command,
    Spec,
}

pub const VERSIONS: [Row; 9] = [
    ("a", "h0", "systemd", "Always", Wrong::Nothing),
    ("a", "h1", "systemd", "Always", Wrong::Nothing),
    ("a", "h2", "initd", "Always", Wrong::Nothing),
    ("a", "h3", "systemd", "Always", Wrong::Artifact),
    ("a", "h4", "initd", "Never", Wrong::Nothing),
    ("a", "h5", "initd", "OnFailure", Wrong::Nothing),
    ("a", "h6", "initd", "Always", Wrong::Command),
    ("a", "h7", "launchd", "Always", Wrong::Spec),
    // The same spec for an object that was deleted and made again.
    ("b", "h0", "systemd", "Always", Wrong::Nothing),
];

pub fn json(row: &Row) -> String {
    format!(
        r#"{{"artifact": {{"type": "file", "url": "/x"}}, "execution": {{"backend": "{}", "command": ["x"]}}, "restartPolicy": "{}"}}"#,
        row.2, row.3
    )
}

/// Something of ours under a backend.
#[derive(Debug, Clone)]
pub struct Unit {
    pub uid: &'static str,
    pub installed: &'static str,
    pub policy: RestartPolicy,
    /// Hash and uid of what runs or ran last.
    pub ran: Option<(&'static str, &'static str)>,
    pub activity: Activity,
    pub exits: u64,
    /// Comes up with the device.
    pub enabled: bool,
}

#[derive(Debug, Default)]
pub struct Device {
    pub units: BTreeMap<BackendKind, Unit>,
    pub down: BTreeSet<BackendKind>,
    pub store: BTreeSet<String>,
    /// The disk's copy of the record and the one before.
    pub disk: Option<Record>,
    pub disk_before: Option<Record>,
    /// The agent's memory.
    pub record: Record,
    pub wanted: Option<usize>,
    pub word: Option<Word>,
    /// Uids that the state file remembers as dropped.
    pub dropped: HashSet<String>,
    pub now: Duration,
    pub fetch_due: Option<Duration>,
    pub retry_due: Option<Duration>,
    pub current_retry_due: Option<Duration>,
    pub restart_due: Option<Duration>,
    /// Runs that were remembered as over, and starts after that.
    pub over: BTreeSet<(&'static str, &'static str)>,
    pub forgot: bool,
}

#[derive(Debug, Clone)]
pub enum Op {
    Want(Option<usize>),
    /// A step that is cut off by the agent's death after so many of its parts; 9: not at all.
    Step(u8),
    /// The agent dies and comes again.
    Die,
    LoseRecord,
    StaleRecord,
    Exit(bool),
    /// What lives ends, and the disk does not take how.
    Vanish,
    Reboot,
    /// The state file could not be written since before the process was wanted, and the agent is started again.
    StaleList,
    Toggle(usize),
    Wait(u16),
    LoseArtifacts,
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => prop::option::weighted(0.85, 0..VERSIONS.len()).prop_map(Op::Want),
        12 => Just(Op::Step(9)),
        4 => (0_u8..3).prop_map(Op::Step),
        1 => Just(Op::Die),
        1 => Just(Op::LoseRecord),
        1 => Just(Op::StaleRecord),
        3 => any::<bool>().prop_map(Op::Exit),
        2 => Just(Op::Vanish),
        1 => Just(Op::Reboot),
        1 => Just(Op::StaleList),
        2 => (0..KINDS.len()).prop_map(Op::Toggle),
        2 => (0_u16..400).prop_map(Op::Wait),
        1 => Just(Op::LoseArtifacts),
    ]
}

impl Device {
    pub fn row(&self) -> Option<&'static Row> {
        self.wanted.map(|i| &VERSIONS[i])
    }

    pub fn live(&self) -> Vec<(BackendKind, &Unit)> {
        self.units.iter().filter(|(_, u)| is_live(&u.activity)).map(|(k, u)| (*k, u)).collect()
    }

    pub fn save(&mut self) {
        self.disk_before = self.disk.take();
        self.disk = Some(self.record.clone());
    }

    /// The agent comes up from what is on the disk.
    pub fn restart(&mut self) {
        self.record = self.disk.clone().unwrap_or_else(|| Record::new("ns", "n"));
        (self.fetch_due, self.retry_due, self.restart_due, self.current_retry_due) = (None, None, None, None);
        self.word = Some(Word::Remembered);
    }

    pub fn found(&self, kind: BackendKind) -> Option<Found> {
        self.units.get(&kind).map(|unit| Found {
            identity: self.record.identity(),
            uid: unit.uid.into(),
            installed: unit.installed.into(),
            running: unit.ran.map(|(_, hash)| hash.into()),
            activity: unit.activity.clone(),
            exits: unit.exits,
            epoch: "e".into(),
            last_exit: None,
        })
    }

    pub fn decide(&mut self) -> Step {
        let base = Instant::now();
        let at = |due: Option<Duration>| due.map(|due| base + due);
        let found: Vec<_> = KINDS.map(|kind| (kind, self.found(kind))).into();
        let places: Vec<_> = found
            .iter()
            .map(|(kind, found)| {
                let place =
                    if self.down.contains(kind) { Place::Unavailable("down") } else { Place::Seen(found.as_ref()) };
                (*kind, place)
            })
            .collect();
        for (kind, found) in &found {
            if let (Some(found), false) = (found, self.down.contains(kind))
                && self.record.saw(*kind, found)
            {
                self.save();
            }
        }
        let row = self.row();
        let spec = row.map(|row| Spec::parse(&json(row)));
        let wanted =
            row.zip(spec.as_ref()).map(|(row, spec)| Wanted { uid: row.0, spec_hash: row.1, spec: spec.as_ref() });
        let present = |digest: Option<&str>| digest.is_some_and(|digest| self.store.contains(digest));
        let current = self.record.started.as_ref();
        let supply =
            if row.is_some_and(|row| present(self.record.pinned(row.1))) { Supply::Present } else { Supply::Missing };
        let step = next(&Situation {
            wanted,
            word: self.word.unwrap_or(Word::Nobody),
            dropped: &self.dropped,
            record: &self.record,
            places: &places,
            supply,
            current_present: current.is_some_and(|version| present(version.digest.as_deref())),
            current_policy: current.map_or(RestartPolicy::Always, |v| Spec::parse(&v.spec).unwrap().restart_policy),
            fetch_due: at(self.fetch_due),
            restart_due: at(self.restart_due),
            retry_due: at(self.retry_due),
            current_retry_due: at(self.current_retry_due),
            now: base + self.now,
        });
        // Times in the model count from 0.
        match step.action {
            Action::Hold(Some(due)) => Step { action: Action::Hold(Some(base + (due - base))), ..step },
            _ => step,
        }
    }

    pub fn version(&self, which: Which) -> Version {
        match which {
            Which::Current => self.record.started.clone().unwrap(),
            Which::Wanted => {
                let row = self.row().unwrap();
                let spec = Spec::parse(&json(row));
                let wanted = Wanted { uid: row.0, spec_hash: row.1, spec: spec.as_ref() };
                version(&wanted, &json(row), self.record.pinned(row.1)).unwrap()
            }
        }
    }

    /// Does a step as the supervisor does it: remember, act, remember; cut off after `parts` of the three.
    /// False when there was nothing to do.
    pub fn step(&mut self, parts: u8) -> bool {
        if let Some(row) = self.row()
            && self.record.wanted(row.0)
        {
            self.save();
        }
        let step = self.decide();
        match step.action.clone() {
            Action::Hold(None) => return false,
            Action::Hold(Some(_)) => self.now += Duration::from_secs(5),
            Action::Fetch => {
                let row = *self.row().unwrap();
                self.record.fetching(row.1, 0);
                self.save();
                if parts < 1 {
                    return self.die();
                }
                let digest = format!("sha256:{}", row.1);
                let outcome = if row.4 == Wrong::Artifact {
                    let message = "the checksum is wrong".to_owned();
                    Err(FetchError { stage: Stage::Verify, reason: "ChecksumMismatch", message, retry_after: None })
                } else {
                    self.store.insert(digest.clone());
                    Ok(Fetched { digest, root: None })
                };
                if parts < 2 {
                    return self.die();
                }
                self.fetch_due = outcome.is_err().then(|| self.now + Duration::from_secs(10));
                self.record.fetched(row.1, &outcome);
                self.save();
            }
            Action::Install(which) => {
                let version = self.version(which);
                self.record.installing(&version);
                self.save();
                if parts < 1 {
                    return self.die();
                }
                let refused = VERSIONS.iter().any(|row| row.1 == version.spec_hash && row.4 == Wrong::Command);
                if refused {
                    let due = Some(self.now + Duration::from_secs(2));
                    if which == Which::Wanted { self.retry_due = due } else { self.current_retry_due = due }
                } else {
                    self.install(&version);
                }
            }
            Action::Start(which) => {
                if parts < 1 {
                    return self.die();
                }
                let version = self.version(which);
                self.start(&version, which);
                if parts < 2 {
                    return self.die();
                }
                self.restart_due = Some(self.now + Duration::from_secs(10));
                self.record.started(&version);
                self.save();
            }
            Action::Adopt => {
                let version = self.version(Which::Wanted);
                self.record.adopted(&version);
                self.save();
            }
            Action::Remove(kind) => {
                let unit = self.units.get(&kind).unwrap();
                if let (Some(row), true) = (self.row(), is_live(&unit.activity)) {
                    self.may_be_stopped(row);
                } else if self.row().is_none() {
                    assert!(self.is_dropped(unit.uid), "{}", step.why);
                }
                if parts < 1 {
                    return self.die();
                }
                self.units.remove(&kind);
                if parts < 2 {
                    return self.die();
                }
                self.record.removed(kind);
                self.save();
            }
            Action::Finish(which, exit) => {
                let version = self.version(which);
                self.record.finish(&version, &exit);
                if parts < 1 {
                    return self.die();
                }
                self.save();
                let uid = VERSIONS.iter().find(|row| row.0 == version.uid).unwrap().0;
                let hash = VERSIONS.iter().find(|row| row.1 == version.spec_hash).unwrap().1;
                self.over.insert((uid, hash));
            }
            Action::Forget => {
                assert!(self.is_dropped(&self.record.uid), "{}", step.why);
                (self.disk, self.disk_before) = (None, None);
                self.record = Record::new("ns", "n");
                self.over.clear();
                return false;
            }
        }
        self.check();
        true
    }

    pub fn die(&mut self) -> bool {
        self.check();
        self.restart();
        true
    }

    pub fn install(&mut self, version: &Version) {
        assert!(self.store.contains(version.digest.as_ref().unwrap()), "only what is there and checked is installed");
        let row = VERSIONS.iter().find(|r| r.0 == version.uid && r.1 == version.spec_hash).unwrap();
        let policy = Spec::parse(&version.spec).unwrap().restart_policy;
        let unit = self.units.entry(version.backend).or_insert(Unit {
            uid: row.0,
            installed: row.1,
            policy,
            ran: None,
            activity: Activity::Stopped,
            exits: 0,
            enabled: false,
        });
        (unit.uid, unit.installed, unit.policy) = (row.0, row.1, policy);
    }

    pub fn start(&mut self, version: &Version, which: Which) {
        assert!(!self.down.contains(&version.backend));
        let unit = &self.units[&version.backend];
        assert_eq!((unit.uid, unit.installed), (&*version.uid, &*version.spec_hash), "what is started is installed");
        assert!(self.store.contains(version.digest.as_ref().unwrap()), "only what is there and checked is started");
        let hash = unit.installed;
        assert!(!self.over.contains(&(unit.uid, hash)) || self.forgot, "a run that is over stays so");
        if is_live(&unit.activity) {
            assert_eq!(which, Which::Wanted, "the old one is not restarted while it lives");
            // The twin with another uid cannot be told apart when memory is lost.
            assert!(unit.ran.unwrap().1 != hash || hash == "h0", "what runs as it should is not restarted");
            self.may_be_stopped(self.row().unwrap());
        }
        let again = self.record.started.as_ref().is_some_and(|old| old.is(&version.uid, &version.spec_hash));
        let early = self.restart_due.is_some_and(|due| due > self.now);
        assert!(!(again && early), "what has just been started is not started again at once");
        let unit = self.units.get_mut(&version.backend).unwrap();
        unit.ran = Some((unit.uid, unit.installed));
        unit.activity = Activity::Running { pid: 1, started: 1 };
        unit.enabled = unit.policy == RestartPolicy::Always;
    }

    /// Something that is wanted no more, or in another version, may be stopped only when the new one can start.
    pub fn may_be_stopped(&self, row: &Row) {
        let over = self.record.finished(row.0, row.1).is_some();
        let kind = KINDS.into_iter().find(|kind| kind.as_str() == row.2);
        let ready = kind.is_some_and(|kind| {
            let unit = self.units.get(&kind).is_some_and(|u| u.uid == row.0 && u.installed == row.1);
            // With nothing to be fetched for what runs already.
            unit && !self.down.contains(&kind)
        });
        assert!(over || ready, "the old one is stopped before the new one is installed");
    }

    /// Whether anybody has said that it is not wanted; a state file that lacks it may be an old one.
    fn is_dropped(&self, uid: &str) -> bool {
        self.word == Some(Word::Heard) || (self.word == Some(Word::Remembered) && self.dropped.contains(uid))
    }

    pub fn check(&self) {
        assert!(self.live().len() <= 1, "two copies: {:?}", self.live());
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Want(wanted) => {
                self.dropped.extend(self.row().map(|row| row.0.to_owned()));
                self.wanted = *wanted;
                if let Some(row) = self.row() {
                    self.dropped.remove(row.0);
                }
                // A good answer, taken over.
                self.word = Some(Word::Heard);
                (self.fetch_due, self.retry_due) = (None, None);
            }
            Op::Step(parts) => drop(self.step(*parts)),
            Op::Die => self.restart(),
            Op::LoseRecord => {
                (self.disk, self.disk_before) = (None, None);
                self.forgot = true;
                self.restart();
                // With no memory and no view nobody could know.
                self.down.clear();
                self.decide();
            }
            Op::StaleRecord => {
                self.disk = self.disk_before.take();
                self.forgot = true;
                self.restart();
            }
            Op::Exit(well) => {
                for unit in self.units.values_mut().filter(|u| is_live(&u.activity)) {
                    let exit = Exit { code: i32::from(!well), reason: "x".into() };
                    unit.exits += 1;
                    // systemd restarts by itself, initd does not.
                    let over = is_over(unit.policy, &exit);
                    if over || unit.installed.as_bytes()[1] % 2 == 0 {
                        unit.activity = Activity::Ended(exit);
                    } else {
                        unit.ran = Some((unit.uid, unit.installed));
                    }
                }
            }
            Op::Vanish => {
                for unit in self.units.values_mut().filter(|unit| is_live(&unit.activity)) {
                    unit.activity = Activity::Stopped;
                }
            }
            Op::StaleList => {
                self.restart();
                self.wanted = None;
                self.dropped.clear();
            }
            Op::Reboot => {
                for (kind, unit) in &mut self.units {
                    if is_live(&unit.activity) {
                        unit.activity = Activity::Stopped;
                    }
                    if unit.enabled && !self.down.contains(kind) {
                        unit.ran = Some((unit.uid, unit.installed));
                        unit.activity = Activity::Running { pid: 2, started: 2 };
                    }
                }
                self.restart();
            }
            Op::Toggle(i) => {
                if !self.down.remove(&KINDS[*i]) {
                    self.down.insert(KINDS[*i]);
                }
            }
            Op::Wait(seconds) => self.now += Duration::from_secs(u64::from(*seconds)),
            Op::LoseArtifacts => self.store.clear(),
        }
        self.check();
    }

    /// Lets it run until nothing is left to do.
    pub fn settle(&mut self) {
        self.down.clear();
        for _ in 0..PATIENCE {
            if !self.step(9) {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.decide());
    }

    pub fn settled(&self) {
        let Some(row) = self.row() else {
            assert!(self.units.is_empty(), "what is not wanted is gone");
            return;
        };
        let kind = KINDS.into_iter().find(|kind| kind.as_str() == row.2).unwrap();
        if self.record.finished(row.0, row.1).is_some() {
            assert!(self.live().iter().all(|(_, unit)| unit.ran == Some((row.0, row.1))), "what is over is over");
            return;
        }
        let [(at, unit)] = self.live()[..] else { panic!("it runs: {:?}", self.units) };
        assert_eq!((at, unit.uid, unit.installed), (kind, row.0, row.1));
        assert_eq!(unit.ran.unwrap().1, row.1, "the right one runs");
        assert_eq!(self.units.len(), 1, "nothing else is left");
        let started = self.record.started.as_ref().unwrap();
        assert!(started.is(row.0, row.1) && self.disk.as_ref() == Some(&self.record), "and that is remembered");
    }
}
