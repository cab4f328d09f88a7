//! Edge: one agent for each state folder. Two would undo each other's work.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long somebody else may hold it at the start: whoever only looks whether it is held, or an agent that ends.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Held until it is dropped, or the process ends in whatever way. It is the folder itself that is locked: there is no
/// file to leave behind, and a read-only folder will do.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "it is held, not used")] File);

/// Another agent has the folder.
#[derive(Debug, thiserror::Error)]
#[error(
    "another agent runs with the state folder {0}: a device has one agent; for a second one, name a --state-file (APOLLO_AGENT_STATE_FILE) in another folder"
)]
pub struct Taken(pub PathBuf);

/// Who has a folder.
#[derive(Debug)]
pub enum Holder {
    /// An agent.
    Somebody,
    /// No agent.
    Nobody,
    /// It cannot be found out.
    Unknown(io::Error),
}

/// The folder of a state file.
#[must_use]
pub fn folder_of(state_file: &Path) -> &Path {
    state_file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The same as an absolute path: what backends write down holds wherever it is read.
#[must_use]
pub fn absolute_folder_of(state_file: &Path) -> PathBuf {
    absolute(folder_of(state_file))
}

/// An absolute path, without a look at the disk.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes the folder (0700) if it is missing, and locks it. A folder that cannot be had or locked is nobody's: the agent
/// runs from memory then.
///
/// # Errors
/// When another agent has it, for longer than a moment.
pub async fn take(folder: &Path) -> Result<Option<Lock>, Taken> {
    let made = if folder.exists() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o700).create(folder) };
    let file = match made.and_then(|()| File::open(folder)) {
        Ok(file) => file,
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "the state folder cannot be opened");
            return Ok(None);
        }
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(Lock(file))),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(folder = %folder.display(), %error, "the state folder cannot be locked: nothing keeps a second agent from it");
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(Taken(folder.to_owned())),
            Err(TryLockError::WouldBlock) => sleep(LOOK_EVERY).await,
        }
    }
}

/// Whether an agent has the folder.
#[must_use]
pub fn holder(folder: &Path) -> Holder {
    match File::open(folder).map(|file| file.try_lock_shared()) {
        Ok(Ok(())) => Holder::Nobody,
        Ok(Err(TryLockError::WouldBlock)) => Holder::Somebody,
        Ok(Err(TryLockError::Error(error))) => Holder::Unknown(error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Holder::Nobody,
        Err(error) => Holder::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        assert!(matches!(holder(&folder), Holder::Nobody));
        let first = take(&folder).await.unwrap();
        assert!(first.is_some() && matches!(holder(&folder), Holder::Somebody));
        let line = take(&folder).await.unwrap_err().to_string();
        assert!(line.contains(folder.to_str().unwrap()) && line.contains("--state-file"), "{line}");
        drop(first);
        assert!(matches!(holder(&folder), Holder::Nobody));
        assert!(take(&folder).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_only_looks_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let looking = File::open(folder.path()).unwrap();
        looking.try_lock_shared().unwrap();
        let (taken, ()) = tokio::join!(take(folder.path()), async {
            sleep(PATIENCE / 2).await;
            drop(looking);
        });
        assert!(taken.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_is_nobodys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(take(&file.path().join("x")).await.unwrap().is_none());
        assert!(matches!(holder(&file.path().join("x")), Holder::Unknown(_)));
    }
}
