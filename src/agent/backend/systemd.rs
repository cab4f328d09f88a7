//! Edge: processes as units of systemd.
//!
//! systemd runs them, starts them again and starts them at boot, whether the agent is there or not; the hooks of each
//! unit keep its journal. What the agent does here can be done again at any time: files are replaced by renames and only
//! when they differ, and systemd itself finishes what it was told.

mod judgement;

use super::exec;
use super::files::{failed, replace, unlink};
use super::fits::fits_the_device;
use super::journal::Line;
use super::runs::Runs;
use super::show::{PROPERTIES, Phase, Shown};
use super::systemctl::systemctl;
use super::unit::{self, Marks, Surroundings};
use super::{Activity, Backend, BackendError, Checked, Folders, Found, Launch, Pending};
use crate::agent::process::identity::{Identity, PREFIX};
use crate::agent::process::spec::{BackendKind, RestartPolicy};
use crate::runtime::clock::unix_seconds;
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Where an administrator's units are, before those of packages.
const UNITS: &str = "/etc/systemd/system";
/// Links to the units that are started at boot.
const AT_BOOT: &str = "multi-user.target.wants";
/// There while systemd is the first process.
const BOOTED: &str = "/run/systemd/system";
/// Longest time that systemd may take to answer, beyond what it waits for itself.
const ANSWER: Duration = Duration::from_secs(20);
/// A step from one state to the next takes so long at most, on a busy device.
const SETTLE: Duration = Duration::from_secs(2);
/// How often a unit between two states is looked at.
const LOOK: Duration = Duration::from_millis(15);
/// How soon to look again at a unit that has stayed between two states.
const SOON: Duration = Duration::from_secs(1);
/// How often to look anyway: hooks may have failed to write, and a unit may be changed by hand.
const RESYNC: Duration = Duration::from_secs(60);
/// Running for so long it is well, and its next restart comes at once.
const WELL: i64 = 600;

/// Units of systemd.
#[derive(Debug)]
pub struct Systemd {
    units: PathBuf,
    /// Environments and the marks of those that were stopped.
    own: PathBuf,
    runs: Runs,
    /// Whose units are ours.
    device: String,
    version: Cell<Option<u32>>,
    /// When to look anyway; none: a while from now. It outlives the calls that wait for it.
    due: Cell<Option<Instant>>,
    /// Hash of the spec of runs that we have started, for when no journal can be written.
    started: RefCell<HashMap<Identity, (String, String)>>,
    /// Those with something about them that cannot be read, which was said.
    unreadable: RefCell<HashSet<Identity>>,
}

// === impl Systemd ===

impl Systemd {
    /// Those of this device. Touches nothing yet.
    #[must_use]
    pub fn new(folders: &Folders) -> Self {
        Self {
            units: PathBuf::from(UNITS),
            own: folders.state.join("units"),
            runs: Runs::new(&folders.state),
            device: folders.device.clone(),
            version: Cell::default(),
            due: Cell::default(),
            started: RefCell::default(),
            unreadable: RefCell::default(),
        }
    }

    fn unit_file(&self, identity: &Identity) -> PathBuf {
        self.units.join(unit::name(identity))
    }

    fn boot_link(&self, identity: &Identity) -> PathBuf {
        self.units.join(AT_BOOT).join(unit::name(identity))
    }

    /// There when we have stopped it.
    fn stop_mark(&self, identity: &Identity) -> PathBuf {
        self.own.join(format!("{identity}@stopped"))
    }

    /// The marks of a unit of this name; none: there is no unit, or it is not ours.
    fn marks(&self, identity: &Identity) -> Result<Option<Marks>, BackendError> {
        Ok(self.marks_of_any(identity)?.filter(|marks| marks.are_of(&self.device)))
    }

    /// The same, whatever device it runs for.
    fn marks_of_any(&self, identity: &Identity) -> Result<Option<Marks>, BackendError> {
        let file = self.unit_file(identity);
        match fs::read(&file) {
            Ok(bytes) => Ok(unit::marks(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&file, "read", &error)),
        }
    }

    /// Refuses what somebody else has put there under our name; otherwise systemd's word on it.
    async fn must_be_ours(&self, identity: &Identity) -> Result<Shown, BackendError> {
        let file = self.unit_file(identity);
        let foreign = |file: &str| {
            let unit = unit::name(identity);
            Err(BackendError::Refused(format!("the device has a unit {unit} that is not of Praetor, in {file}")))
        };
        let marks = self.marks_of_any(identity)?;
        if let Some(theirs) = marks.as_ref().filter(|marks| !marks.are_of(&self.device)) {
            return Err(BackendError::Refused(format!(
                "the unit {} is there already and belongs to the agent of device {}",
                unit::name(identity),
                theirs.device
            )));
        }
        if marks.is_none() && file.symlink_metadata().is_ok() {
            return foreign(&file.to_string_lossy());
        }
        // Of a package, made from an init script or only in memory: ours would hide it.
        let mut shown = self.show_one(identity).await?;
        if shown.load != "not-found" && Path::new(&shown.file) != file && shown.outdated {
            self.reload().await?;
            shown = self.show_one(identity).await?;
        }
        if shown.load != "not-found" && Path::new(&shown.file) != file {
            let place = if shown.file.is_empty() { "memory" } else { &shown.file };
            return foreign(place);
        }
        Ok(shown)
    }

    async fn show_one(&self, identity: &Identity) -> Result<Shown, BackendError> {
        let all = self.show(std::iter::once(identity)).await?;
        all.into_iter().next().ok_or_else(|| BackendError::Failed("systemd does not tell of its units".to_owned()))
    }

    /// What systemd says of each of them, in this order.
    async fn show(&self, all: impl Iterator<Item = &Identity>) -> Result<Vec<Shown>, BackendError> {
        let mut arguments = vec!["show".to_owned(), format!("--property={PROPERTIES}"), "--".to_owned()];
        arguments.extend(all.map(unit::name));
        if arguments.len() == 3 {
            return Ok(vec![]);
        }
        let (good, text) = systemctl(&arguments, ANSWER).await?;
        let shown = Shown::parse(&text);
        if !good || shown.len() + 3 != arguments.len() {
            return Err(BackendError::Failed("systemd does not tell of its units".to_owned()));
        }
        Ok(shown)
    }

    /// The same for one, when it has come from one state to the next.
    async fn show_settled(&self, identity: &Identity) -> Result<Shown, BackendError> {
        let mut all = [self.show_one(identity).await?];
        self.settle(&[identity], &mut all).await?;
        let [shown] = all;
        Ok(shown)
    }

    /// Waits until each of them has come from one state to the next, for all of them together no longer than for one.
    async fn settle(&self, all: &[&Identity], shown: &mut [Shown]) -> Result<(), BackendError> {
        let until = Instant::now() + SETTLE;
        loop {
            let mut passing: Vec<_> =
                all.iter().zip(&mut *shown).filter(|(_, shown)| shown.phase() == Phase::Passing).collect();
            if passing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                self.due.set(Some(Instant::now() + SOON));
                return Ok(());
            }
            sleep(LOOK).await;
            let again = self.show(passing.iter().map(|(identity, _)| **identity)).await?;
            for ((_, slot), now) in passing.iter_mut().zip(again) {
                **slot = now;
            }
        }
    }

    async fn reload(&self) -> Result<(), BackendError> {
        match systemctl(&["daemon-reload"], ANSWER * 3).await? {
            (true, _) => Ok(()),
            (false, _) => Err(BackendError::Failed("systemd cannot read its units anew".to_owned())),
        }
    }

    /// The version of a systemd that answers and is not too old.
    async fn version(&self) -> Result<u32, BackendError> {
        if let Some(version) = self.version.get() {
            return Ok(version);
        }
        let unavailable = |why: &str| Err(BackendError::Unavailable(why.to_owned()));
        if !Path::new(BOOTED).is_dir() {
            return unavailable("the device does not run systemd");
        }
        let Ok((true, text)) = systemctl(&["show", "--property=Version"], ANSWER).await else {
            return unavailable("systemd does not answer systemctl");
        };
        let digits: String =
            text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(version) if version >= unit::OLDEST_SYSTEMD => {
                self.version.set(Some(version));
                Ok(version)
            }
            _ => unavailable(&format!("systemd {} or newer is needed", unit::OLDEST_SYSTEMD)),
        }
    }

    /// Everything of ours, by the files that carry our marks.
    fn ours(&self) -> Result<Vec<(Identity, Marks)>, BackendError> {
        let entries = match fs::read_dir(&self.units) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(|error| failed(&self.units, "read", &error))?,
        };
        let mut ours = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| failed(&self.units, "read", &error))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let Some(identity) = name.strip_suffix(".service").and_then(Identity::parse) else { continue };
            match self.marks(&identity) {
                Ok(Some(marks)) => ours.push((identity, marks)),
                Ok(None) => {}
                // Nobody knows whose it is; the others are well.
                Err(error) => self.complain(&identity, &error),
            }
        }
        ours.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(ours)
    }

    async fn list_all(&self) -> Result<Vec<Found>, BackendError> {
        self.version().await?;
        let ours = self.ours()?;
        let names: Vec<&Identity> = ours.iter().map(|(identity, _)| identity).collect();
        let mut shown = self.show(names.iter().copied()).await?;
        self.settle(&names, &mut shown).await?;
        let mut all = Vec::with_capacity(ours.len());
        for ((identity, marks), shown) in ours.into_iter().zip(shown) {
            let found = self.judge(&identity, marks, &shown);
            if let Activity::Running { started, .. } = found.activity
                && shown.restarts > 0
                && unix_seconds() - started > WELL
            {
                // So that systemd's next restart does not wait as if the ones of last week had been today.
                if let Err(error) = systemctl(&["reset-failed", &unit::name(&identity)], ANSWER).await {
                    tracing::debug!(%identity, %error, "old restarts go on counting");
                }
            }
            all.push(found);
        }
        Ok(all)
    }

    async fn find_one(&self, identity: &Identity) -> Result<Option<Found>, BackendError> {
        self.version().await?;
        let Some(marks) = self.marks(identity)? else { return Ok(None) };
        let shown = self.show_settled(identity).await?;
        Ok(Some(self.judge(identity, marks, &shown)))
    }

    async fn install_one(&self, launch: &Launch) -> Result<(), BackendError> {
        let version = self.version().await?;
        let identity = &launch.identity;
        let working_dir = fits_the_device(launch)?;
        let environment = unit::environment(&exec::environment(launch, None)).map_err(refused)?;
        let digest = hex::encode(Sha256::digest(&environment));
        // By its content: what runs may be started again from the old one until systemd knows the new unit.
        let environment_file = self.own.join(format!("{identity}@{}", &digest[..16]));
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| BackendError::Refused(format!("{} is no text that a unit can hold", path.display())))
        };
        let around = Surroundings {
            working_dir: &text(&working_dir)?,
            environment_file: &text(&environment_file)?,
            journal: &text(&self.runs.file(identity))?,
            device: &self.device,
            version,
        };
        let unit = unit::render(launch, &around).map_err(refused)?;
        self.must_be_ours(identity).await?;

        // Without a journal it runs all the same.
        if let Err(error) = self.runs.prepare() {
            tracing::warn!(%identity, %error, "no journal can be kept");
        }
        let folder = DirBuilder::new().recursive(true).mode(0o700).create(&self.own);
        folder.map_err(|error| failed(&self.own, "make", &error))?;
        replace(&environment_file, &environment, 0o600)?;
        let file = self.unit_file(identity);
        let changed = replace(&file, &unit, 0o644)?;
        if launch.restart_policy != RestartPolicy::Always {
            unlink(&self.boot_link(identity))?;
        }
        if changed || self.show_one(identity).await?.outdated {
            self.reload().await?;
        }
        let shown = self.show_one(identity).await?;
        if shown.load != "loaded" {
            return Err(BackendError::Refused(format!(
                "systemd does not take the unit {}: {}",
                file.display(),
                shown.load
            )));
        }
        for entry in self.own_files(identity) {
            if entry != environment_file && entry != self.stop_mark(identity) {
                unlink(&entry)?;
            }
        }
        Ok(())
    }

    /// Our own files about it.
    fn own_files(&self, identity: &Identity) -> Vec<PathBuf> {
        let beside = format!("{identity}@");
        let entries = fs::read_dir(&self.own).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&beside)));
        ours.map(|entry| entry.path()).collect()
    }

    async fn start_one(&self, launch: &Launch, grace: Duration) -> Result<(), BackendError> {
        self.version().await?;
        let identity = &launch.identity;
        let unit = unit::name(identity);
        self.must_be_ours(identity).await?;
        match self.marks(identity)? {
            Some(marks) if marks.spec_hash == launch.spec_hash && marks.uid == launch.uid => {}
            _ => return Err(BackendError::Failed(format!("the unit {unit} is not that of this process"))),
        }
        // It may have been cut off, so that systemd would start what it has in mind; and the file with the environment may
        // be lost. Nobody would see, since the marks are right.
        self.install_one(launch).await?;
        if launch.restart_policy == RestartPolicy::Always {
            self.start_at_boot(identity)?;
        }
        unlink(&self.stop_mark(identity))?;
        let before =
            self.runs.read(identity).ok().and_then(|journal| journal.last_run().map(|run| run.invocation.clone()));
        self.announce_stop(identity).await?;
        let good = self.end_or_kill(&["restart", &unit], identity, grace).await?;
        let shown = self.show_settled(identity).await?;
        if !good && !shown.began() {
            // Otherwise systemd would go on trying; when to try again is for the agent to say.
            self.stop_unit(identity, grace).await?;
            return Err(match shown.refusal(launch) {
                Some(why) => BackendError::Refused(why),
                None => BackendError::Failed(format!("systemd could not start {unit}: {}", shown.result)),
            });
        }
        self.complete_start(launch, shown, before.as_deref());
        Ok(())
    }

    fn start_at_boot(&self, identity: &Identity) -> Result<(), BackendError> {
        let link = self.boot_link(identity);
        if fs::read_link(&link).is_ok() {
            return Ok(());
        }
        let folder = self.units.join(AT_BOOT);
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, "make", &error))?;
        symlink(self.unit_file(identity), &link).map_err(|error| failed(&link, "make", &error))
    }

    /// Has systemd do something that stops the unit, and kills what is left of it when the grace is over.
    async fn end_or_kill(&self, verb: &[&str], identity: &Identity, grace: Duration) -> Result<bool, BackendError> {
        let call = systemctl(verb, grace + ANSWER + Duration::from_secs(unit::STOP_SECONDS.into()));
        tokio::pin!(call);
        if let Ok(answer) = timeout(grace, &mut call).await {
            return answer.map(|(good, _)| good);
        }
        let unit = unit::name(identity);
        loop {
            // A start that takes long is none of this.
            if self.show_one(identity).await?.active == "deactivating" {
                systemctl(&["kill", "--signal=SIGKILL", &unit], ANSWER).await?;
            }
            if let Ok(answer) = timeout(SOON, &mut call).await {
                return answer.map(|(good, _)| good);
            }
        }
    }

    /// Writes down that the end of what runs is asked for. What is being started is waited for: stopped in between it
    /// gets no ExecStop, and its end would count as one that nobody asked for.
    async fn announce_stop(&self, identity: &Identity) -> Result<(), BackendError> {
        let shown = self.show_settled(identity).await?;
        if matches!(shown.phase(), Phase::Runs(_)) && !shown.invocation.is_empty() {
            self.note(identity, &Line::Stop { at: unix_seconds(), invocation: shown.invocation });
        }
        Ok(())
    }

    async fn stop_unit(&self, identity: &Identity, grace: Duration) -> Result<(), BackendError> {
        let unit = unit::name(identity);
        self.announce_stop(identity).await?;
        unlink(&self.boot_link(identity))?;
        let folder = DirBuilder::new().recursive(true).mode(0o700).create(&self.own);
        folder.map_err(|error| failed(&self.own, "make", &error))?;
        replace(&self.stop_mark(identity), "", 0o600)?;
        if !self.end_or_kill(&["stop", &unit], identity, grace).await? {
            let shown = self.show_settled(identity).await?;
            if shown.load != "not-found" && shown.phase() != Phase::Rests {
                return Err(BackendError::Failed(format!("systemd could not stop {unit}")));
            }
        }
        Ok(())
    }

    async fn stop_one(&self, identity: &Identity, grace: Duration) -> Result<(), BackendError> {
        self.version().await?;
        if self.marks(identity)?.is_none() {
            return Ok(());
        }
        self.stop_unit(identity, grace).await
    }

    async fn remove_one(&self, identity: &Identity, grace: Duration) -> Result<(), BackendError> {
        self.version().await?;
        let file = self.unit_file(identity);
        if self.marks(identity)?.is_some() {
            self.stop_unit(identity, grace).await?;
            unlink(&file)?;
            self.reload().await?;
            // It is kept in memory as long as it has failed; when it has not, there is nothing to reset.
            systemctl(&["reset-failed", &unit::name(identity)], ANSWER).await?;
        } else if file.symlink_metadata().is_ok() {
            return Ok(());
        } else if self.show_one(identity).await?.file == file.to_string_lossy() {
            // Cut off between the two above.
            self.reload().await?;
        }
        for entry in self.own_files(identity) {
            unlink(&entry)?;
        }
        self.started.borrow_mut().remove(identity);
        self.runs.forget(identity).map_err(|error| failed(&self.runs.file(identity), "remove", &error))
    }
}

impl Backend for Systemd {
    fn kind(&self) -> BackendKind {
        BackendKind::Systemd
    }

    fn probe(&self) -> Pending<'_, Result<(), BackendError>> {
        Box::pin(async { self.version().await.map(|_| ()) })
    }

    fn list(&self) -> Pending<'_, Result<Vec<Found>, BackendError>> {
        Box::pin(self.list_all())
    }

    fn find<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<Option<Found>, BackendError>> {
        Box::pin(self.find_one(identity))
    }

    fn install<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.install_one(launch))
    }

    fn start<'a>(&'a self, launch: &'a Launch, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.start_one(launch, grace))
    }

    fn stop<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.stop_one(identity, grace))
    }

    fn remove<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.remove_one(identity, grace))
    }

    fn check<'a>(
        &'a self,
        launch: &'a Launch,
        command: &'a [String],
        timeout: Duration,
    ) -> Pending<'a, Result<Checked, BackendError>> {
        Box::pin(exec::check(launch, command, timeout, Path::new("/proc/self/exe")))
    }

    fn changed(&self) -> Pending<'_, ()> {
        Box::pin(async {
            let due = self.due.get().unwrap_or_else(|| Instant::now() + RESYNC);
            self.due.set(Some(due));
            // Nobody asks how it ended: either way it is time to look.
            let _ = timeout_at(due, self.runs.changed()).await;
            if due <= Instant::now() {
                self.due.set(None);
            }
        })
    }
}

fn refused(refusal: unit::Refusal) -> BackendError {
    BackendError::Refused(refusal.to_string())
}
