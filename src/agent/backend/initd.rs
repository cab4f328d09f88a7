//! Edge: processes as scripts of init.
//!
//! `<etc>/init.d/<identity>` with links in the runlevels that a device comes up to, if the process is always to run.
//! Init restarts nothing: the agent does, and is woken by the journal. The launcher does what takes time or must not
//! be half done, so that it is the same from the agent, from init and from an operator's shell.
//!
//! Output of a process goes to `/var/log/<identity>.log`. The agent cuts it when it is over 256 KiB, and keeps
//! the former part as `….log.1`.

use super::footprint::{Footprint, write_private};
use super::launcher::{failure, own_path};
use super::proc::{Mark, boot_id};
use super::script::{self, Description, Marks, Record};
use super::{Activity, Backend, BackendError, Checked, Folders, Found, Launch, Pending, exec, journal, shim};
use crate::agent::durable::place;
use crate::agent::process::identity::Identity;
use crate::agent::process::spec::{BackendKind, RestartPolicy};
use rustix::fs::Access;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::future::{Future, poll_fn};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Above this a log is cut, bytes. There is one former part of it.
const LOG_BYTES: u64 = 256 * 1024;
/// How much of a script is read to find the marks, bytes.
const SCRIPT_BYTES: u64 = 64 * 1024;
/// How long whoever waits for a process may take to write down its end.
const SHIM_TIME: Duration = Duration::from_secs(1);
/// Runlevels in which a device runs, and those in which it goes down.
const LEVELS: [(char, &[char]); 2] = [('S', &['2', '3', '4', '5']), ('K', &['0', '1', '6'])];

/// Where the parts of init are. Tests have their own.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc`: `init.d`, and `rc?.d` or `rc.d/rc?.d`.
    pub etc: PathBuf,
    /// `/var/log`.
    pub log: PathBuf,
    /// The agent's program, as scripts call it.
    pub agent: PathBuf,
    /// The agent's program, as the agent calls it.
    pub launcher: PathBuf,
}

/// Runs processes as scripts of init.
#[derive(Debug)]
pub struct Initd {
    state: PathBuf,
    /// Whose scripts are ours.
    device: String,
    places: Places,
    runs: super::runs::Runs,
    /// Those that nobody waits for any more: their ends are in no journal.
    orphans: RefCell<BTreeMap<Mark, Rc<Receiver>>>,
    /// There is one more of them.
    orphan: Notify,
    /// What was seen of each last: what goes on being said while it cannot be looked at.
    seen: RefCell<BTreeMap<Identity, Found>>,
    /// Those that cannot be looked at.
    unreadable: RefCell<BTreeSet<Identity>>,
}

/// What is under the name of a script.
enum Script {
    Absent,
    /// Not Praetor's.
    Foreign,
    /// Of the agent of another device.
    Of(String),
    Ours(Marks),
}

// === impl Initd ===

impl Initd {
    /// In the device's own folders.
    #[must_use]
    pub fn new(folders: Folders) -> Self {
        let agent = own_path().unwrap_or_else(|_| PathBuf::from("praetor-agent"));
        let (etc, log, launcher) = (PathBuf::from("/etc"), PathBuf::from("/var/log"), PathBuf::from(shim::SELF));
        Self::at(folders, Places { etc, log, agent, launcher })
    }

    /// In folders elsewhere.
    #[must_use]
    pub fn at(folders: Folders, places: Places) -> Self {
        let runs = super::runs::Runs::new(&folders.state);
        let (orphans, seen, unreadable) = Default::default();
        Self {
            state: folders.state,
            device: folders.device,
            places,
            runs,
            orphans,
            orphan: Notify::new(),
            seen,
            unreadable,
        }
    }

    fn footprint(&self, identity: &Identity) -> Footprint {
        Footprint::new(&self.state, identity.clone())
    }

    fn init_d(&self) -> PathBuf {
        self.places.etc.join("init.d")
    }

    fn script_file(&self, identity: &Identity) -> PathBuf {
        self.init_d().join(identity.as_str())
    }

    fn log_file(&self, identity: &Identity) -> PathBuf {
        self.places.log.join(format!("{identity}.log"))
    }

    fn look(&self) -> Result<(), BackendError> {
        let folder = self.init_d();
        let missing = |why: String| BackendError::Unavailable(format!("{}: {why}", folder.display()));
        if !folder.is_dir() {
            return Err(missing("there is no such folder: the device has no init scripts".to_owned()));
        }
        rustix::fs::access(&folder, Access::WRITE_OK)
            .map_err(|error| missing(format!("scripts cannot be written: {}", io::Error::from(error))))
    }

    fn script(&self, identity: &Identity) -> io::Result<Script> {
        let path = self.script_file(identity);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Script::Absent),
            Err(error) => return Err(error),
            Ok(about) if !about.is_file() => return Ok(Script::Foreign),
            Ok(_) => {}
        }
        let mut bytes = Vec::new();
        File::open(&path)?.take(SCRIPT_BYTES).read_to_end(&mut bytes)?;
        Ok(match script::marks(&String::from_utf8_lossy(&bytes)) {
            None => Script::Foreign,
            Some(marks) if marks.are_of(&self.device) => Script::Ours(marks),
            Some(marks) => Script::Of(marks.device),
        })
    }

    /// What is there of one. That it cannot be read is no reason to take it, or any other, for gone.
    async fn found(&self, identity: &Identity) -> Result<Option<Found>, BackendError> {
        let looked = self.look_at(identity).await;
        let mut unreadable = self.unreadable.borrow_mut();
        match looked {
            Ok(found) => {
                unreadable.remove(identity);
                match &found {
                    Some(found) => drop(self.seen.borrow_mut().insert(identity.clone(), found.clone())),
                    None => drop(self.seen.borrow_mut().remove(identity)),
                }
                Ok(found)
            }
            Err(error) => {
                if unreadable.insert(identity.clone()) {
                    tracing::warn!(%identity, %error, "not all of a process can be read; what is known of it stays");
                }
                self.remembered(identity).map(Some).ok_or(error)
            }
        }
    }

    /// What can be said without what cannot be read.
    fn remembered(&self, identity: &Identity) -> Option<Found> {
        let footprint = self.footprint(identity);
        let described = || {
            let about = Footprint::description(&footprint.description_file()).ok()?;
            let (identity, activity) = (identity.clone(), Activity::Stopped);
            let (uid, installed, epoch) = (about.uid, about.spec_hash, String::new());
            Some(Found { identity, uid, installed, running: None, activity, exits: 0, epoch, last_exit: None })
        };
        let seen = self.seen.borrow().get(identity).cloned();
        let mut found = seen.or_else(described)?;
        match footprint.live() {
            Some(record) => {
                found.activity = Activity::Running { pid: record.process.pid.into(), started: started(&record) };
                found.running = Some(record.spec_hash);
            }
            None if matches!(found.activity, Activity::Running { .. }) => {
                found.activity = Activity::Ended(journal::unknown_exit());
            }
            None => {}
        }
        Some(found)
    }

    async fn look_at(&self, identity: &Identity) -> Result<Option<Found>, BackendError> {
        let failed = |error: io::Error| BackendError::Failed(format!("{identity}: {error}"));
        let footprint = self.footprint(identity);
        let marks = match self.script(identity).map_err(failed)? {
            Script::Ours(marks) => marks,
            Script::Foreign | Script::Of(_) => return Ok(None),
            // Somebody has removed the script of one that lives: it is ours all the same.
            Script::Absent => match (footprint.live(), Footprint::description(&footprint.description_file())) {
                (Some(_), Ok(description)) => {
                    Marks { uid: description.uid, spec_hash: String::new(), device: description.device }
                }
                _ => return Ok(None),
            },
        };
        self.cut_log(identity);
        let record = footprint.record();
        let here = record.as_ref().filter(|record| record.boot == boot_id());
        let running = here.filter(|record| record.process.lives());
        if let Some(record) = running {
            self.mind(record);
        } else if let Some(record) = here {
            self.wait_for_the_end(&footprint, record).await;
        }
        let journal = self.runs.read(identity).map_err(failed)?;
        let last = journal.last_run();
        // The record is written when the program begins; a run without one has not begun.
        let run = match &record {
            Some(record) => journal.run(&record.invocation),
            None => last,
        };
        let activity = match (running, run) {
            (Some(record), _) => Activity::Running { pid: record.process.pid.into(), started: started(record) },
            (None, Some(run)) if !run.asked => run.exit.clone().map_or(Activity::Stopped, Activity::Ended),
            (None, _) => Activity::Stopped,
        };
        let from = record.as_ref().map(|record| record.spec_hash.clone());
        Ok(Some(Found {
            identity: identity.clone(),
            uid: marks.uid,
            installed: marks.spec_hash,
            running: from.or_else(|| last.map(|run| run.spec_hash.clone())),
            activity,
            exits: journal.exits(),
            epoch: journal.epoch().to_owned(),
            last_exit: journal.last_exit(),
        }))
    }

    /// Between the end of a process and its line in the journal.
    async fn wait_for_the_end(&self, footprint: &Footprint, record: &Record) {
        let until = Instant::now() + SHIM_TIME;
        loop {
            let shim_lives = record.shim.lives();
            let journal = self.runs.read(&footprint.identity).unwrap_or_default();
            if journal.run(&record.invocation).is_none_or(|run| run.exit.is_some()) {
                return;
            }
            if !shim_lives {
                return footprint.settle(record);
            }
            if Instant::now() > until {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Makes sure that the end of one is noticed that nobody waits for.
    fn mind(&self, record: &Record) {
        if record.shim.lives() || self.orphans.borrow().contains_key(&record.process) {
            return;
        }
        let held = Pid::from_raw(record.process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
        // Before kernel 5.3 it is noticed at the next look.
        if let Some(held) = held.and_then(|held| Receiver::from_owned_fd_unchecked(held).ok()) {
            tracing::debug!(pid = record.process.pid, "nobody waits for this process; its end is watched from here");
            self.orphans.borrow_mut().insert(record.process, Rc::new(held));
            self.orphan.notify_one();
        }
    }

    /// Returns when one of those has ended.
    async fn orphaned(&self) {
        let all: Vec<_> = self.orphans.borrow().iter().map(|(mark, held)| (*mark, held.clone())).collect();
        let mut ends: Vec<Pin<Box<dyn Future<Output = Mark>>>> = Vec::new();
        for (mark, held) in all {
            ends.push(Box::pin(async move {
                let _ = held.readable().await;
                mark
            }));
        }
        let ended = poll_fn(|context| {
            for end in &mut ends {
                if let Poll::Ready(mark) = end.as_mut().poll(context) {
                    return Poll::Ready(mark);
                }
            }
            Poll::Pending
        })
        .await;
        self.orphans.borrow_mut().remove(&ended);
    }

    async fn launcher(&self, verb: &str, file: &Path, grace: Option<Duration>) -> Result<(), BackendError> {
        let mut command = Command::new(&self.places.launcher);
        command.args(["launch", verb]).arg(file).args(grace.map(|grace| grace.as_millis().to_string()));
        command.args(grace.map(|_| &self.device).filter(|device| !device.is_empty()));
        // Neither the agent's token nor its end nor a key on its terminal reaches what is started.
        command.env_clear().current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        let failed = |error| BackendError::Failed(format!("cannot start {}: {error}", self.places.launcher.display()));
        let output = command.stderr(Stdio::piped()).output().await.map_err(failed)?;
        if output.status.success() { Ok(()) } else { Err(failure(output.status.code(), &output.stderr)) }
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), BackendError> {
        self.look()?;
        let (identity, path) = (&launch.identity, self.script_file(&launch.identity));
        let failed = |error: io::Error| BackendError::Failed(format!("{}: {error}", path.display()));
        let there = |whose: String| BackendError::Refused(format!("{} is there already and {whose}", path.display()));
        match self.script(identity).map_err(failed)? {
            Script::Foreign => return Err(there("is not ours".to_owned())),
            Script::Of(device) => return Err(there(format!("belongs to the agent of device {device}"))),
            Script::Absent | Script::Ours(_) => {}
        }
        let user = launch.user.as_deref().map(exec::find_user).transpose()?;
        let refused = |error: script::ScriptError| BackendError::Refused(error.to_string());
        let log = self.log_file(identity).to_str().map(str::to_owned);
        let folder = exec::working_dir(launch).to_string_lossy().into_owned();
        let env = exec::environment(launch, user.as_ref());
        let description = Description::new(launch, &self.device, folder, env, log).map_err(refused)?.to_json();
        let footprint = self.footprint(identity);
        let file = footprint.description_file();
        let (uid, spec_hash, device) = (launch.uid.clone(), launch.spec_hash.clone(), self.device.clone());
        let marks = Marks { uid, spec_hash, device };
        let (agent, target) = (self.places.agent.to_string_lossy(), file.to_string_lossy());
        let text = script::text(identity, &marks, launch.restart_policy, &agent, &target).map_err(refused)?;

        footprint.prepare().map_err(failed)?;
        // What is right already is not written anew: it must be possible to start it on a full disk.
        if fs::read(&file).is_ok_and(|there| there == description.as_bytes()) {
            self.launcher("try", &file, None).await?;
        } else {
            let draft = footprint.draft_file();
            let drafted = |error: io::Error| BackendError::Failed(format!("{}: {error}", draft.display()));
            write_private(&draft, description.as_bytes()).map_err(drafted)?;
            if let Err(error) = self.launcher("try", &draft, None).await {
                let _ = fs::remove_file(&draft);
                return Err(error);
            }
            fs::rename(&draft, &file).map_err(drafted)?;
        }
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        place(&path, text.as_bytes(), 0o755).map_err(failed)
    }

    async fn begin(&self, launch: &Launch, grace: Duration) -> Result<(), BackendError> {
        // Again, so that it is whole whatever happened to the files since.
        self.prepare(launch).await?;
        let file = self.footprint(&launch.identity).description_file();
        self.launcher("restart", &file, Some(grace)).await?;
        self.link(&launch.identity, launch.restart_policy == RestartPolicy::Always);
        Ok(())
    }

    async fn end(&self, identity: &Identity, grace: Duration) -> Result<(), BackendError> {
        if let Ok(Script::Foreign | Script::Of(_)) = self.script(identity) {
            return Ok(());
        }
        self.link(identity, false);
        // Also without a description: the state may be lost of what runs.
        self.launcher("stop", &self.footprint(identity).description_file(), Some(grace)).await
    }

    async fn erase(&self, identity: &Identity, grace: Duration) -> Result<(), BackendError> {
        let path = self.script_file(identity);
        let failed = |error: io::Error| BackendError::Failed(format!("{}: {error}", path.display()));
        let ours = match self.script(identity).map_err(failed)? {
            Script::Foreign | Script::Of(_) => return Ok(()),
            Script::Ours(_) => true,
            Script::Absent => false,
        };
        self.end(identity, grace).await?;
        for log in [self.log_file(identity), self.log_file(identity).with_extension("log.1")] {
            let _ = fs::remove_file(log);
        }
        self.footprint(identity).remove_files().map_err(failed)?;
        // The last: as long as it is there, the rest is found.
        if ours {
            fs::remove_file(&path)
                .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Makes or removes the links in the runlevels. A device without runlevels has none: there the agent starts it.
    fn link(&self, identity: &Identity, wanted: bool) {
        for (kind, levels) in LEVELS {
            let name = format!("{kind}{}{identity}", if kind == 'S' { "99" } else { "01" });
            for level in levels {
                let folders = [format!("rc{level}.d"), format!("rc.d/rc{level}.d")];
                let folders = folders.map(|folder| self.places.etc.join(folder));
                let Some((number, folder)) = folders.iter().enumerate().find(|(_, folder)| folder.is_dir()) else {
                    continue;
                };
                let script = format!("{}init.d/{identity}", ["../", "../../"][number]);
                let result = if wanted { make_link(folder, &name, &script) } else { remove_links(folder, identity) };
                if let Err(error) = result {
                    tracing::warn!(%identity, folder = %folder.display(), %error, "the link of a runlevel is not as it should be");
                }
            }
        }
    }

    /// Keeps a log short. Whoever writes it appends, so that it may be cut at any time.
    fn cut_log(&self, identity: &Identity) {
        let log = self.log_file(identity);
        let long = fs::symlink_metadata(&log).is_ok_and(|about| about.is_file() && about.len() > LOG_BYTES);
        if long {
            let cut = || {
                let mut from = File::options().read(true).write(true).open(&log)?;
                // Of a very long one the end.
                io::Seek::seek(&mut from, io::SeekFrom::End(-i64::try_from(LOG_BYTES).unwrap_or(0)))?;
                let former = log.with_extension("log.1");
                let _ = fs::remove_file(&former);
                let mut to = File::options().write(true).create_new(true).mode(0o640).open(former)?;
                io::copy(&mut Read::by_ref(&mut from).take(LOG_BYTES), &mut to)?;
                from.set_len(0)
            };
            if let Err(error) = cut() {
                tracing::debug!(%identity, %error, "a log cannot be cut");
            }
        }
    }
}

/// When a process was started: as it was written then, unless the clock was set since.
fn started(record: &Record) -> i64 {
    match record.process.started() {
        Some(now) if now.abs_diff(record.started) > 2 => now,
        _ => record.started,
    }
}

fn make_link(folder: &Path, name: &str, script: &str) -> io::Result<()> {
    let link = folder.join(name);
    if fs::read_link(&link).is_ok_and(|there| there == Path::new(script)) {
        return Ok(());
    }
    match std::os::unix::fs::symlink(script, &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        made => made,
    }
}

/// Also those that another tool has made or renumbered for this script: `S05name`.
fn remove_links(folder: &Path, identity: &Identity) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ours = name.strip_prefix(['S', 'K']).and_then(|rest| rest.get(2..)) == Some(identity.as_str());
        if ours && fs::read_link(&path).is_ok_and(|target| target.ends_with(format!("init.d/{identity}"))) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

impl Backend for Initd {
    fn kind(&self) -> BackendKind {
        BackendKind::Initd
    }

    fn probe(&self) -> Pending<'_, Result<(), BackendError>> {
        Box::pin(async { self.look() })
    }

    fn list(&self) -> Pending<'_, Result<Vec<Found>, BackendError>> {
        Box::pin(async {
            let failed = |error: io::Error| BackendError::Failed(format!("{}: {error}", self.init_d().display()));
            let entries = match fs::read_dir(self.init_d()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(failed)?,
            };
            let mut names = Footprint::all(&self.state);
            for entry in entries {
                names.extend(entry.map_err(failed)?.file_name().to_str().and_then(Identity::parse));
            }
            names.sort();
            names.dedup();
            let mut all = Vec::new();
            for identity in names {
                // Of the others of which nothing is known it is not known either whether they are ours.
                all.extend(self.found(&identity).await.ok().flatten());
            }
            Ok(all)
        })
    }

    fn find<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<Option<Found>, BackendError>> {
        Box::pin(self.found(identity))
    }

    fn install<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.prepare(launch))
    }

    fn start<'a>(&'a self, launch: &'a Launch, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.begin(launch, grace))
    }

    fn stop<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.end(identity, grace))
    }

    fn remove<'a>(&'a self, identity: &'a Identity, grace: Duration) -> Pending<'a, Result<(), BackendError>> {
        Box::pin(self.erase(identity, grace))
    }

    fn check<'a>(
        &'a self,
        launch: &'a Launch,
        command: &'a [String],
        timeout: Duration,
    ) -> Pending<'a, Result<Checked, BackendError>> {
        Box::pin(exec::check(launch, command, timeout, &self.places.launcher))
    }

    fn changed(&self) -> Pending<'_, ()> {
        Box::pin(async {
            loop {
                tokio::select! {
                    () = self.runs.changed() => return,
                    () = self.orphaned() => return,
                    () = self.orphan.notified() => {}
                }
            }
        })
    }
}
