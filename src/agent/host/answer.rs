//! Edge: the socket in the state folder, on which a running agent says what it believes. Whoever connects is told once;
//! nothing is read, and nothing is ever written to a disk for it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

/// The socket's name in the state folder.
pub const SOCKET: &str = "agent.sock";
/// Longest path that a socket's address holds, with room to spare.
const MAX_PATH_BYTES: usize = 100;
/// How long who has connected may take to read.
const READING: Duration = Duration::from_secs(2);
/// How long an agent may take to answer: it has one thread, and may be unpacking.
const ANSWERING: Duration = Duration::from_secs(3);
/// Longest answer, bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The agent's side; the socket goes with it.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

// === impl Door ===

impl Door {
    /// Makes the socket, in a folder that nobody else has: what is left of a former one is replaced.
    ///
    /// # Errors
    /// When the folder is not writable, or something else has the name.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        if fs::symlink_metadata(&path).is_ok_and(|old| old.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let listener = with_address(folder, |address| UnixListener::bind(address))?;
        // The folder is for its owner alone, but it may be an older one.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Answers for ever with what `say` says then.
    pub async fn serve(&self, say: impl Fn() -> Vec<u8>) {
        loop {
            match self.listener.accept().await {
                Ok((mut stream, _)) => {
                    let text = say();
                    let told = timeout(READING, async {
                        stream.write_all(&text).await?;
                        stream.shutdown().await
                    });
                    if let Ok(Err(error)) = told.await {
                        tracing::trace!(%error, "nobody reads the answer on the socket");
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the socket takes no connection");
                    sleep(READING).await;
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the agent that runs with this state folder.
///
/// # Errors
/// `NotFound` and `ConnectionRefused`: there is none.
pub fn ask(folder: &Path) -> io::Result<Vec<u8>> {
    let stream = with_address(folder, UnixStream::connect)?;
    stream.set_read_timeout(Some(ANSWERING))?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// A path may be longer than the address of a socket can be: then by way of the folder's descriptor.
fn with_address<T>(folder: &Path, and: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let path = folder.join(SOCKET);
    if path.as_os_str().len() <= MAX_PATH_BYTES {
        return and(path);
    }
    let folder = File::open(folder)?;
    and(PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(folder: &Path) -> String {
        let door = Door::open(folder).unwrap();
        let path = folder.to_owned();
        let asked = tokio::task::spawn_blocking(move || ask(&path).unwrap());
        tokio::select! {
            () = door.serve(|| b"all of it".to_vec()) => unreachable!(),
            answer = asked => String::from_utf8(answer.unwrap()).unwrap(),
        }
    }

    #[tokio::test]
    async fn who_asks_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ask(folder.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(told(folder.path()).await, "all of it");
        assert!(!folder.path().join(SOCKET).exists());
        // What a killed agent leaves is replaced.
        drop(std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap());
        assert_eq!(ask(folder.path()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(told(folder.path()).await, "all of it");
        // A long path.
        let long = folder.path().join("x".repeat(200));
        fs::create_dir(&long).unwrap();
        assert_eq!(told(&long).await, "all of it");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(SOCKET), "mine").unwrap();
        assert!(Door::open(folder.path()).is_err());
        assert_eq!(fs::read(folder.path().join(SOCKET)).unwrap(), b"mine");
    }
}
