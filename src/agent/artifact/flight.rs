//! Edge: one fetch at a time of one artifact, in this agent and on this device, and a folder for it.

use super::fault;
use super::{FetchError, Fetched};
use rustix::fs::{FlockOperation, flock, statvfs};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The folder of what is being unpacked.
pub const UNPACKED: &str = "root";
/// What names of files end in that are downloaded in part.
pub const PART: &str = "part";
/// How long to wait before another process is asked again whether it is done.
const LOCK_RETRY: Duration = Duration::from_millis(200);
/// Bytes that are left free for others, unless the disk is so small that a fiftieth of it is less.
const RESERVE_BYTES: u64 = 16 << 20;
const RESERVE_SHARE: u64 = 50;

type Outcome = Result<Fetched, FetchError>;

/// The fetches under way in this agent.
#[derive(Debug, Default)]
pub struct Flights {
    by_key: Mutex<HashMap<String, Weak<AsyncMutex<Option<Outcome>>>>>,
}

/// A turn at one artifact.
#[derive(Debug)]
pub struct Turn(OwnedMutexGuard<Option<Outcome>>);

/// The folder of one fetch, locked as long as anything uses it: also by what still runs on another thread after the
/// fetch itself was given up.
#[derive(Debug, Clone)]
pub struct Work {
    folder: PathBuf,
    lock: Arc<File>,
    heavy: Arc<AsyncMutex<()>>,
}

/// Set when nobody waits for the outcome any more.
struct Cancel(Arc<AtomicBool>);

// === impl Flights ===

impl Flights {
    /// Waits for its turn; if somebody else has fetched the same artifact in the meantime, what came of it.
    pub async fn turn(&self, key: &str) -> Result<Turn, Outcome> {
        let flight = {
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            by_key.retain(|_, flight| flight.strong_count() > 0);
            let known = by_key.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let flight = Arc::new(AsyncMutex::new(None));
                by_key.insert(key.to_owned(), Arc::downgrade(&flight));
                flight
            })
        };
        let guard = flight.lock_owned().await;
        match &*guard {
            Some(outcome) => Err(outcome.clone()),
            // The first, or the one before was given up.
            None => Ok(Turn(guard)),
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Tells those who wait.
    pub fn done(mut self, outcome: &Outcome) {
        *self.0 = Some(outcome.clone());
    }
}

// === impl Work ===

impl Work {
    /// The folder for `key`, made if it is missing, once nobody else uses it.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn begin(incoming: &Path, key: &str, heavy: Arc<AsyncMutex<()>>) -> Result<Self, FetchError> {
        let folder = incoming.join(key);
        let failed = |error: io::Error| FetchError::disk("make a folder for the download", &error);
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
            if let Some(lock) = try_lock(&folder).map_err(failed)? {
                return Ok(Self { folder, lock: Arc::new(lock), heavy });
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }

    /// Where parts and what is unpacked are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until no other artifact is hashed or unpacked: of the threads for what blocks, one has to stay free for
    /// what is short.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.heavy).lock_owned().await
    }

    /// Runs what blocks. When the caller is dropped it is told so, and the folder stays locked until it has ended.
    ///
    /// # Errors
    /// Its own.
    pub async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&dyn Fn() -> bool) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let cancel = Cancel(Arc::new(AtomicBool::new(false)));
        let (cancelled, lock) = (Arc::clone(&cancel.0), Arc::clone(&self.lock));
        let task = tokio::task::spawn_blocking(move || {
            let outcome = run(&|| cancelled.load(Ordering::Relaxed));
            drop(lock);
            outcome
        });
        task.await.unwrap_or_else(|_| {
            Err(FetchError::download(fault::DISK_ERROR, "the agent failed while it handled the artifact"))
        })
    }

    /// Whether so many bytes fit on the disk, and a little is left.
    ///
    /// # Errors
    /// They do not.
    pub fn room_for(&self, bytes: u64) -> Result<(), FetchError> {
        room_for(&self.folder, bytes)
    }

    /// Removes the folder and all that is in it; unless it is `over`, parts that can be gone on with stay. It blocks.
    pub fn end(self, over: bool) {
        let removed = if !over && holds_parts(&self.folder) {
            fs::remove_dir_all(self.folder.join(UNPACKED))
        } else {
            fs::remove_dir_all(&self.folder)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(folder = %self.folder.display(), %error, "cannot clean up after a download");
            }
            _ => {}
        }
    }
}

fn holds_parts(folder: &Path) -> bool {
    let part = |path: &Path| path.extension().is_some_and(|end| end == PART);
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| part(&entry.path()) && entry.metadata().is_ok_and(|data| data.len() > 0))
}

/// Whether so many bytes fit on the disk of this folder, and a little is left.
///
/// # Errors
/// They do not.
pub fn room_for(folder: &Path, bytes: u64) -> Result<(), FetchError> {
    let Ok(disk) = statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let whole = disk.f_blocks.saturating_mul(disk.f_frsize);
    let reserve = RESERVE_BYTES.min(whole / RESERVE_SHARE);
    if bytes.saturating_add(reserve) > free { Err(FetchError::disk_full()) } else { Ok(()) }
}

/// Locks a folder; `None` when somebody else has it, or has just removed it.
///
/// # Errors
/// It cannot be opened.
pub fn try_lock(folder: &Path) -> io::Result<Option<File>> {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let same = fs::metadata(folder)
        .is_ok_and(|now| file.metadata().is_ok_and(|locked| (now.ino(), now.dev()) == (locked.ino(), locked.dev())));
    Ok(same.then_some(file))
}

// === impl Cancel ===

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
