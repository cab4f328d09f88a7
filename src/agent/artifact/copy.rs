//! Edge: artifacts that are files of the device.

use super::FetchError;
use super::download::Blob;
use super::fault;
use super::flight::Work;
use rustix::fs::{OFlags, ioctl_ficlone};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 64 << 10;

/// Copies a file of the device, and hashes what is copied: it may change under our hands.
///
/// # Errors
/// There is no such file, it is not what it should be, or there is no space.
pub async fn fetch(work: &Work, url: &str, checksum: Option<&str>, most: u64) -> Result<Blob, FetchError> {
    let from = PathBuf::from(url);
    if !from.is_absolute() {
        let message = format!("{url:?} is no absolute path, which the url of an artifact of type file has to be");
        return Err(FetchError::download(fault::BAD_REFERENCE, message));
    }
    let to = work.folder().join("file.copy");
    let (room, checksum) = (work.clone(), checksum.map(str::to_owned));
    let _turn = work.turn().await;
    work.blocking(move |cancelled| {
        let source = open(&from)?;
        let size = source.metadata().map(|data| data.len()).unwrap_or(0);
        if size > most {
            return Err(too_large(&from, most));
        }
        let target = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&to);
        let mut target = target.map_err(|error| FetchError::disk("create a file for the artifact", &error))?;
        // On file systems that can, a copy costs nothing.
        let cloned = ioctl_ficlone(&target, &source).is_ok();
        if !cloned {
            room.room_for(size)?;
        }
        let digest = copy(source, &mut target, cloned, most, cancelled)?.ok_or_else(|| too_large(&from, most))?;
        match checksum {
            Some(expected) if expected != digest => Err(FetchError::verify(
                fault::CHECKSUM_MISMATCH,
                format!("the SHA-256 of {} is {digest}, not {expected} as checksumSHA256 says", from.display()),
            )),
            _ => Ok(Blob { path: to, digest }),
        }
    })
    .await
}

fn open(path: &Path) -> Result<File, FetchError> {
    let told = path.display();
    // A pipe, which would wait for a writer, is never opened for good.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            FetchError::download(fault::NOT_FOUND, format!("there is no file {told} on the device"))
        }
        _ => FetchError::download(fault::DISK_ERROR, format!("cannot open {told}: {error}")),
    })?;
    if file.metadata().is_ok_and(|data| data.is_file()) {
        Ok(file)
    } else {
        Err(FetchError::download(fault::BAD_REFERENCE, format!("{told} is no regular file")))
    }
}

/// The digest of what was copied; `None` when it is more than `most`.
fn copy(
    mut source: File,
    target: &mut File,
    cloned: bool,
    most: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<String>, FetchError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    if cloned {
        target.seek(SeekFrom::Start(0)).map_err(|error| FetchError::disk("read the artifact", &error))?;
    }
    loop {
        let read = if cloned { target.read(&mut buffer) } else { source.read(&mut buffer) };
        let read = read.map_err(|error| FetchError::disk("read the artifact", &error))?;
        if read == 0 || cancelled() {
            return Ok(Some(hex::encode(hash.finalize())));
        }
        bytes += read as u64;
        if bytes > most {
            return Ok(None);
        }
        hash.update(&buffer[..read]);
        if !cloned {
            target.write_all(&buffer[..read]).map_err(|error| FetchError::disk("write the artifact", &error))?;
        }
    }
}

fn too_large(path: &Path, most: u64) -> FetchError {
    FetchError::download(
        fault::TOO_LARGE,
        format!(
            "{} is larger than the {most} bytes that --max-artifact-bytes (APOLLO_AGENT_MAX_ARTIFACT_BYTES) allows",
            path.display()
        ),
    )
}
