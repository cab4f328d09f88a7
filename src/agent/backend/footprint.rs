//! Edge: what a process of init has on the device: its description, its record, its lock, and all that lives of it.

use super::BackendError;
use super::journal::{Line, UNKNOWN};
use super::proc::{self, Mark, Stat, boot_id, has_variable};
use super::runs::Runs;
use super::script::{Description, RUN, Record, is_run_of};
use crate::agent::process::identity::Identity;
use crate::runtime::clock::unix_seconds;
use rustix::process::Signal;
use rustix::thread::nanosleep;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often to look whether a process has ended, at first and at most. Only while one is being stopped.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// What a process may take to vanish after SIGKILL.
const KILL_TIME: Duration = Duration::from_secs(5);
/// What the one that waits for a process may take to write down its end.
const SHIM_TIME: Duration = Duration::from_secs(2);
/// Longest description or record that is read, bytes.
const MOST: u64 = 4 * 1024 * 1024;

/// The files and processes of one identity.
#[derive(Debug)]
pub struct Footprint {
    /// Whose it is.
    pub identity: Identity,
    /// The journals.
    pub runs: Runs,
    folder: PathBuf,
    /// The device that it runs for; none: the one of its description.
    device: Option<String>,
}

/// Held while a process is started or stopped, so that two who want it at a time do it one after the other. It is passed
/// on to the new process, which lets go of it by becoming the program: whoever has it next finds the record written.
#[derive(Debug)]
pub struct Lock(pub File);

// === impl Footprint ===

impl Footprint {
    /// Of an identity, below the agent's state folder.
    #[must_use]
    pub fn new(state: &Path, identity: Identity) -> Self {
        Self { identity, runs: Runs::new(state), folder: state.join("initd"), device: None }
    }

    /// Of the description at this path.
    #[must_use]
    pub fn of(description: &Path) -> Option<Self> {
        let identity = Identity::parse(description.file_name()?.to_str()?.strip_suffix(".json")?)?;
        Some(Self::new(description.parent()?.parent()?, identity))
    }

    /// The same for a device that is known, whatever has become of the description.
    #[must_use]
    pub fn of_device(self, device: &str) -> Self {
        Self { device: Some(device.to_owned()), ..self }
    }

    /// Identities that have a description.
    #[must_use]
    pub fn all(state: &Path) -> Vec<Identity> {
        let entries = fs::read_dir(state.join("initd")).into_iter().flatten().flatten();
        entries.filter_map(|entry| Identity::parse(entry.file_name().to_str()?.strip_suffix(".json")?)).collect()
    }

    /// Makes sure that the folders are there, mode 0700.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.runs.prepare()
    }

    /// Where the description is.
    #[must_use]
    pub fn description_file(&self) -> PathBuf {
        self.file("json")
    }

    /// Where a description is tried before it is put in the place of the former one.
    #[must_use]
    pub fn draft_file(&self) -> PathBuf {
        self.file("json.new")
    }

    fn file(&self, kind: &str) -> PathBuf {
        // An identity may have dots, so that what follows the last one must never be replaced.
        self.folder.join(format!("{}.{kind}", self.identity))
    }

    /// Reads a description, of whichever of the two files.
    ///
    /// # Errors
    /// Those of the file system; it is not readable.
    pub fn description(path: &Path) -> io::Result<Description> {
        let text = read(path)?;
        serde_json::from_str(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// What is known of the last run; none: there was none, or nothing of use.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        let parse = || serde_json::from_str(read(&self.file("run")).ok()?.trim_end()).ok();
        // Once more: where the disk is full it is written over in place.
        parse().or_else(parse)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        // Always as long as the other, so that there is room for it also on a full disk.
        let text = format!("{:<500}\n", serde_json::to_string(record)?);
        let (path, new) = (self.file("run"), self.file("run.new"));
        // Good for this boot only: nobody waits for the disk.
        let whole =
            anew(&new).and_then(|mut file| file.write_all(text.as_bytes())).and_then(|()| fs::rename(&new, &path));
        whole.or_else(|error| {
            let _ = fs::remove_file(&new);
            let mut file = OpenOptions::new().write(true).open(&path).map_err(|_| error)?;
            file.write_all(text.as_bytes())
        })
    }

    /// The run that lives now; what it was started from is in the record, whatever is installed meanwhile.
    #[must_use]
    pub fn live(&self) -> Option<Record> {
        self.record().filter(|record| record.process.lives() && record.boot == boot_id())
    }

    /// Waits until nobody else starts or stops it.
    ///
    /// # Errors
    /// [`BackendError::Failed`]: it takes too long, or no lock can be had.
    pub fn lock(&self, patience: Duration) -> Result<Lock, BackendError> {
        let refused = |error: io::Error| BackendError::Failed(format!("{}: {error}", self.folder.display()));
        self.prepare().map_err(refused)?;
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).open(self.file("lock")).map_err(refused)?;
        let mut failure = None;
        let free = wait_until(patience, || match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => {
                failure = Some(error);
                true
            }
        });
        match (free, failure) {
            (_, Some(error)) => Err(refused(error)),
            (true, None) => Ok(Lock(file)),
            (false, None) => {
                Err(BackendError::Failed(format!("{} is being started or stopped by another", self.identity)))
            }
        }
    }

    /// All processes of any run of it: those of the last run's sessions, and those whose environment says so. What
    /// runs under the same name for another device is none of them.
    #[must_use]
    pub fn members(&self) -> Vec<Mark> {
        let record = self.record().filter(|record| record.boot == boot_id());
        let Some(record) = record else { return self.of_run("", &[], &[]) };
        // The number of a session stays its own as long as one of these two is there to show it; and it is one of
        // theirs: whoever did not get a session of their own is in an operator's.
        let both = [record.shim, record.process];
        // Never that of init.
        let both: Vec<Mark> = both.into_iter().filter(|mark| mark.pid > 1).collect();
        let sessions = both.iter().filter_map(Mark::stat).map(|stat| stat.session);
        let sessions: Vec<i32> = sessions.filter(|session| both.iter().any(|mark| mark.pid == *session)).collect();
        let mut members = self.of_run("", &sessions, &[record.shim]);
        if record.process.lives() && !members.contains(&record.process) {
            members.push(record.process);
        }
        members
    }

    /// What is left of one run, for the head of its session.
    fn rest(&self, invocation: &str) -> Vec<Mark> {
        let own: Vec<i32> = Mark::own().map(|own| own.pid).into_iter().collect();
        self.of_run(invocation, &own, &[])
    }

    fn of_run(&self, invocation: &str, sessions: &[i32], without: &[Mark]) -> Vec<Mark> {
        let described = || Footprint::description(&self.description_file()).ok().map(|about| about.device);
        let device = self.device.clone().or_else(described).unwrap_or_default();
        let is_run = |value: &str| is_run_of(value, &self.identity, invocation, &device);
        let ours = |stat: &&Stat| {
            !without.contains(&stat.mark()) && (sessions.contains(&stat.session) || has_variable(stat.pid, RUN, is_run))
        };
        proc::others().iter().filter(ours).map(Stat::mark).collect()
    }

    /// Ends everything of it: SIGTERM, after the grace SIGKILL, to all of it. Says first that it was asked for.
    ///
    /// # Errors
    /// [`BackendError::Failed`]: something lives on.
    pub fn halt(&self, grace: Duration) -> Result<(), BackendError> {
        let record = self.record().filter(|record| record.boot == boot_id());
        let live = record.as_ref().filter(|record| record.process.lives());
        if let Some(record) = live {
            self.note(&Line::Stop { at: unix_seconds(), invocation: record.invocation.clone() });
        }
        let main = live.map(|record| record.process);
        self.end(main, grace, || self.members())?;
        let Some(record) = record else { return Ok(()) };
        // It writes down the end; then nothing of this run is written any more.
        if !wait_until(SHIM_TIME, || !record.shim.lives()) {
            let _ = record.shim.signal(Signal::KILL);
            if !wait_until(KILL_TIME, || !record.shim.lives()) {
                return Err(self.lives_on());
            }
        }
        self.settle(&record);
        Ok(())
    }

    /// Ends what is left of one run, and of no other. For the head of its session, when the first process has ended.
    ///
    /// # Errors
    /// [`BackendError::Failed`]: something lives on.
    pub fn end_rest(&self, invocation: &str, grace: Duration) -> Result<(), BackendError> {
        self.end(None, grace, || self.rest(invocation))
    }

    /// `main`: the first process, which is cheap to look at.
    fn end(&self, main: Option<Mark>, grace: Duration, members: impl Fn() -> Vec<Mark>) -> Result<(), BackendError> {
        let all = members();
        if all.is_empty() {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::CONT] {
            // One that is stopped would not notice the first.
            self.send(&all, signal);
        }
        if wait_until(grace, || !main.is_some_and(|main| main.lives()) && members().is_empty()) {
            return Ok(());
        }
        let killed = || {
            let all = members();
            self.send(&all, Signal::KILL);
            all.is_empty()
        };
        if wait_until(KILL_TIME, killed) { Ok(()) } else { Err(self.lives_on()) }
    }

    fn send(&self, members: &[Mark], signal: Signal) {
        for member in members {
            if let Err(error) = member.signal(signal) {
                tracing::debug!(identity = %self.identity, pid = member.pid, %error, "a signal cannot be sent");
            }
        }
    }

    /// When a run is over and nobody is left who could say how, says so.
    pub fn settle(&self, record: &Record) {
        // By the launcher, too, beside an agent: only that may compact.
        let journal = self.runs.peek(&self.identity).unwrap_or_default();
        let open = journal.run(&record.invocation).is_some_and(|run| run.exit.is_none() && !run.asked);
        if open {
            let (result, code) = (UNKNOWN.to_owned(), "-".to_owned());
            let invocation = record.invocation.clone();
            self.note(&Line::Exit { result, code, at: unix_seconds(), invocation });
        }
    }

    /// Writes a line into the journal. That it cannot be written is no reason to leave a process as it is.
    pub fn note(&self, line: &Line) {
        if let Err(error) = self.runs.append(&self.identity, line) {
            tracing::debug!(identity = %self.identity, %error, "a line of the journal is lost");
        }
    }

    /// Removes all files but the script and the log.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_files(&self) -> io::Result<()> {
        self.runs.forget(&self.identity)?;
        for kind in ["json", "json.new", "run", "run.new", "lock"] {
            match fs::remove_file(self.file(kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn lives_on(&self) -> BackendError {
        BackendError::Failed(format!("{} does not end, although it was killed", self.identity))
    }
}

/// Looks again and again until the condition holds or the time is up; whether it held.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    let mut pause = LOOK.0;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        // Kernels before 5.3 have nothing to wait on that is not one's own child.
        let _ = nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() });
        pause = (pause * 2).min(LOOK.1);
    }
}

/// Writes a file that only root may read, anew, and whole also when the power fails right after.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = anew(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn anew(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, MOST), &mut text)?;
    Ok(text)
}
