//! Edge: files that are replaced all at once, and only when they differ; how files begin.

use super::{BackendError, program};
use crate::agent::durable::place;
use std::fs::{self, File};
use std::io::{self, Read};
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
    place(path, text.as_bytes(), mode).map_err(|error| failed(path, "write", &error))?;
    Ok(true)
}

/// How a file begins, as far as [`program::kind`] looks; empty when it cannot be read.
pub fn head(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(program::HEAD as u64).read_to_end(&mut bytes);
    }
    bytes
}
