//! Edge: files that are replaced all at once, and only when they differ.

use super::BackendError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The sentence about a file that something could not be done with.
pub fn failed(path: &Path, what: &str, error: &io::Error) -> BackendError {
    BackendError::Failed(format!("cannot {what} {}: {error}", path.display()))
}

/// Removes a file that may be gone already.
///
/// # Errors
/// Those of the file system.
pub fn unlink(path: &Path) -> Result<(), BackendError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove", &error)),
        _ => Ok(()),
    }
}

/// Gives a file this content, all or nothing; whether it had another one.
///
/// # Errors
/// Those of the file system.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<bool, BackendError> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    write_anew(path, text, mode).map_err(|error| failed(path, "write", &error))?;
    Ok(true)
}

fn write_anew(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // systemd reads no file whose name begins with a dot.
    let new = folder.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}
