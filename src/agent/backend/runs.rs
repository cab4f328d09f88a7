//! Edge: the folder of the journals, one for each process: `<state>/runs/<identity>`.
//!
//! Others append at any time, with a plain `>>` of a shell, too: nobody who compacts can hold them off. So a journal
//! that has grown is first renamed to `<identity>@<n>`: whoever has it open still writes to what is read. Only when
//! the next one has grown as well, hundreds of lines later, that file goes into `<identity>@base`, which says up to
//! which `n` it is complete: cut off at any point nothing is lost and nothing is counted twice.

use super::journal::{Journal, Line};
use crate::agent::process::identity::Identity;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::cell::RefCell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::time::sleep;

/// Above this a journal is compacted, bytes: about 150 lines.
const MUCH: u64 = 16 * 1024;
/// Most of one file that is read, bytes. More is no journal of ours.
const MOST: u64 = 4 * 1024 * 1024;
/// How often to look where the folder cannot be watched.
const POLL: Duration = Duration::from_secs(10);

/// The journals of all processes.
#[derive(Debug)]
pub struct Runs {
    folder: PathBuf,
    watch: RefCell<Option<Rc<Receiver>>>,
}

// === impl Runs ===

impl Runs {
    /// Those below the agent's state folder. Touches nothing yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("runs"), watch: RefCell::default() }
    }

    /// The file that lines about a process are appended to.
    #[must_use]
    pub fn file(&self, identity: &Identity) -> PathBuf {
        self.folder.join(identity.as_str())
    }

    /// Makes sure that the folder is there, mode 0700.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    /// Appends a line. It is on its own even if what came before was cut off.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn append(&self, identity: &Identity, line: &Line) -> io::Result<()> {
        self.prepare()?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(self.file(identity))?;
        // What is there may lack its newline; between this look and the write only whole lines are added.
        let mut last = *b"\n";
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            file.read_at(&mut last, at)?;
        }
        let text = if last == *b"\n" { format!("{line}\n") } else { format!("\n{line}\n") };
        // In one piece, so that lines of two writers do not mix.
        file.write_all(text.as_bytes())
    }

    /// Reads the journal of a process, and compacts it when it has grown. None was ever written: an empty one. Only for
    /// the one agent of the folder: two who compact at a time would rename over each other's lines.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn read(&self, identity: &Identity) -> io::Result<Journal> {
        self.take_in(identity, true)
    }

    /// Reads the journal of a process, and leaves it as it is. Compacted at this very moment, it may lack its last lines.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn peek(&self, identity: &Identity) -> io::Result<Journal> {
        self.take_in(identity, false)
    }

    fn take_in(&self, identity: &Identity, may_compact: bool) -> io::Result<Journal> {
        let mut journal = Journal::default();
        self.take(&mut journal, &self.beside(identity, "base"))?;
        let rotated = self.beside(identity, &(journal.generation() + 1).to_string());
        let mut whole = journal;
        let has_rotated = self.take(&mut whole, &rotated)?.is_some();
        let before_current = has_rotated.then(|| whole.clone());
        let size = self.take(&mut whole, &self.file(identity))?.unwrap_or(0);
        if may_compact && size > MUCH {
            // It stays long on a full disk, and just as true.
            if let Err(error) = self.compact(identity, &whole, before_current, &rotated) {
                tracing::debug!(%identity, %error, "a journal cannot be compacted");
            }
        }
        Ok(whole)
    }

    /// Removes everything about a process.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget(&self, identity: &Identity) -> io::Result<()> {
        let beside = format!("{identity}@");
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|name| name == identity.as_str() || name.starts_with(&beside));
            if ours {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Returns when a line was appended to a journal since it returned last: at once or within some seconds.
    pub async fn changed(&self) {
        let known = self.watch.borrow().clone();
        let watch = match known {
            Some(watch) => watch,
            None => match self.watched() {
                Ok(watch) => {
                    *self.watch.borrow_mut() = Some(Rc::new(watch));
                    // What was written before the watch began.
                    return;
                }
                Err(error) => {
                    tracing::debug!(folder = %self.folder.display(), %error, "the journals are not watched, but looked at");
                    return sleep(POLL).await;
                }
            },
        };
        if watch.readable().await.is_err() || !drain(&watch) {
            // The folder itself is gone.
            *self.watch.borrow_mut() = None;
        }
    }

    fn watched(&self) -> io::Result<Receiver> {
        self.prepare()?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, &self.folder, WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR)?;
        // No pipe, but read like one; tokio's own type for any file asks for a promise that only unsafe code can give.
        Receiver::from_owned_fd_unchecked(inotify)
    }

    fn beside(&self, identity: &Identity, what: &str) -> PathBuf {
        // No identity contains an @.
        self.folder.join(format!("{identity}@{what}"))
    }

    /// Adds a file to a journal; how long it is, none: there is no such file.
    fn take(&self, journal: &mut Journal, path: &Path) -> io::Result<Option<u64>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        let size = file.take(MOST).read_to_end(&mut bytes)?;
        journal.read(&String::from_utf8_lossy(&bytes));
        Ok(Some(size as u64))
    }

    fn compact(&self, identity: &Identity, whole: &Journal, past: Option<Journal>, rotated: &Path) -> io::Result<()> {
        let Some(past) = past else {
            // Left behind by a compaction that was cut off.
            gone(fs::remove_file(self.beside(identity, &whole.generation().to_string())))?;
            return fs::rename(self.file(identity), rotated);
        };
        let generation = whole.generation() + 1;
        let (base, new) = (self.beside(identity, "base"), self.beside(identity, "new"));
        gone(fs::remove_file(&new))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(past.compact(generation).as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, &base)?;
        gone(fs::remove_file(rotated))?;
        fs::rename(self.file(identity), self.beside(identity, &(generation + 1).to_string()))
    }
}

/// A file that is gone already is as good as removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Takes everything that has happened; whether the watch goes on.
fn drain(watch: &Receiver) -> bool {
    let mut buffer = [0; 4096];
    loop {
        let events = match watch.try_read(&mut buffer) {
            Ok(size) => &buffer[..size],
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if events.is_empty() || ended(events) {
            return false;
        }
    }
}

/// Whether one of the events says that there will be no more: watch, mask, cookie, length of the name, name.
fn ended(mut events: &[u8]) -> bool {
    while let Some((head, rest)) = events.split_first_chunk::<16>() {
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if ReadFlags::from_bits_retain(word(4)).contains(ReadFlags::IGNORED) {
            return true;
        }
        events = rest.get(usize::try_from(word(12)).unwrap_or(usize::MAX)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::journal::EXITED;
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    fn identity() -> Identity {
        Identity::new("infra", "agent")
    }
    fn start(n: u32) -> Line {
        Line::Start { spec_hash: format!("sha256:{n:064}"), at: 17, invocation: format!("{n:032x}") }
    }
    fn end(n: u32) -> Line {
        let invocation = format!("{n:032x}");
        Line::Exit { result: EXITED.to_owned(), code: "1".to_owned(), at: 18, invocation }
    }
    fn names(runs: &Runs) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&runs.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.replace(identity().as_str(), "x"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn folder_and_files_are_for_the_agent_alone() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        assert_eq!(runs.read(&identity()).unwrap(), Journal::default());
        runs.append(&identity(), &start(1)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&runs.folder), mode(&runs.file(&identity()))), (0o700, 0o600));
        assert_eq!(runs.read(&identity()).unwrap().last_run().unwrap().spec_hash, format!("sha256:{:064}", 1));
        runs.forget(&identity()).unwrap();
        assert_eq!(names(&runs), Vec::<String>::new());
    }

    #[test]
    fn a_line_after_a_torn_one_is_whole() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        runs.append(&identity(), &start(1)).unwrap();
        let mut file = OpenOptions::new().append(true).open(runs.file(&identity())).unwrap();
        file.write_all(b"exit exited 1 1").unwrap();
        runs.append(&identity(), &end(1)).unwrap();
        assert_eq!(runs.read(&identity()).unwrap().exits(), 1);
    }

    #[test]
    fn it_stays_small_and_keeps_its_totals() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        for n in 1..=2000 {
            runs.append(&identity(), &start(n)).unwrap();
            runs.append(&identity(), &end(n)).unwrap();
            if n % 20 == 0 {
                let before = names(&runs);
                let peeked = runs.peek(&identity()).unwrap();
                assert_eq!(names(&runs), before, "whoever peeks changes nothing");
                let journal = runs.read(&identity()).unwrap();
                assert_eq!((journal.exits(), journal.epoch()), (u64::from(n), format!("{:032x}", 1).as_str()));
                assert_eq!((peeked.exits(), peeked.epoch()), (journal.exits(), journal.epoch()));
            }
        }
        let size: u64 = fs::read_dir(&runs.folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(size < 3 * MUCH, "{size}");
        runs.forget(&identity()).unwrap();
        assert_eq!(names(&runs), Vec::<String>::new());
    }

    #[test]
    fn a_writer_that_had_it_open_loses_nothing() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        let mut straggler = None;
        for n in 1..=300 {
            runs.append(&identity(), &start(n)).unwrap();
            if n == 100 {
                straggler = Some(OpenOptions::new().append(true).open(runs.file(&identity())).unwrap());
                assert_eq!(runs.read(&identity()).unwrap().exits(), 0);
            }
        }
        assert_eq!(names(&runs), ["x"]);
        runs.read(&identity()).unwrap();
        assert_eq!(names(&runs), ["x@1"]);
        runs.append(&identity(), &start(301)).unwrap();
        let mut straggler = straggler.unwrap();
        straggler.write_all(format!("{}\n", end(299)).as_bytes()).unwrap();
        assert_eq!(runs.read(&identity()).unwrap().exits(), 1);
    }

    /// What is on the disk at each step of a compaction comes to the same.
    #[test]
    fn a_compaction_may_be_cut_off_anywhere() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        let fill = |from: u32, to: u32| {
            for n in from..to {
                runs.append(&identity(), &start(n)).unwrap();
                runs.append(&identity(), &end(n)).unwrap();
            }
        };
        fill(1, 101);
        runs.read(&identity()).unwrap();
        fill(101, 201);
        let (rotated, current) = (runs.beside(&identity(), "1"), runs.file(&identity()));
        let (first, second) = (fs::read(&rotated).unwrap(), fs::read(&current).unwrap());
        assert_eq!(runs.read(&identity()).unwrap().exits(), 200);
        assert_eq!(names(&runs), ["x@2", "x@base"]);
        // As if it had ended before the last rename, and before the removal.
        fs::rename(runs.beside(&identity(), "2"), &current).unwrap();
        fs::write(&rotated, &first).unwrap();
        fs::write(runs.beside(&identity(), "new"), "base 9").unwrap();
        assert_eq!(fs::read(&current).unwrap(), second);
        assert_eq!(runs.read(&identity()).unwrap().exits(), 200);
        assert_eq!(names(&runs), ["x@2", "x@base", "x@new"]);
        fill(201, 301);
        assert_eq!(runs.read(&identity()).unwrap().exits(), 300);
        assert_eq!(runs.read(&identity()).unwrap().exits(), 300);
    }

    #[tokio::test]
    async fn a_line_wakes_whoever_waits() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::new(state.path());
        runs.changed().await;
        let late = async {
            tokio::task::yield_now().await;
            runs.append(&identity(), &start(1)).unwrap();
        };
        let began = Instant::now();
        tokio::join!(runs.changed(), late);
        // Written while nobody waited.
        runs.append(&identity(), &end(1)).unwrap();
        runs.changed().await;
        // The folder is removed and made again.
        fs::remove_dir_all(&runs.folder).unwrap();
        runs.changed().await;
        runs.changed().await;
        assert!(runs.folder.is_dir());
        assert!(began.elapsed() < POLL / 2, "{:?}", began.elapsed());
        let quiet = tokio::time::timeout(Duration::from_millis(50), runs.changed()).await;
        assert!(quiet.is_err());
    }
}
