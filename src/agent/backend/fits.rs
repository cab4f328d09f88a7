//! Edge: whether what an operator has asked for can be run on this device, before anything that runs is touched.

use super::exec::{self, find_user};
use super::{BackendError, Launch};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Looks whether the program, its user and its folder are there. Where it will run, without `..`.
///
/// # Errors
/// [`BackendError::Refused`] with the field that names what is missing.
pub fn fits_the_device(launch: &Launch) -> Result<PathBuf, BackendError> {
    let refuse = |text: String| Err(BackendError::Refused(text));
    let program = Path::new(&launch.program);
    match fs::metadata(program) {
        Ok(meta) if !meta.is_file() => return refuse(format!("execution.command: {} is no file", launch.program)),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            return refuse(format!("execution.command: {} is not executable", launch.program));
        }
        Ok(_) => {}
        Err(error) => return refuse(format!("execution.command: {}: {}", launch.program, reason(&error))),
    }
    let folder = exec::working_dir(launch);
    match fs::metadata(&folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return refuse(format!("execution.workingDir: {} is no folder", folder.display())),
        Err(error) => return refuse(format!("execution.workingDir: {}: {}", folder.display(), reason(&error))),
    }
    if let Some(wanted) = &launch.user {
        let user = find_user(wanted)?;
        if user.name.is_none() && !user.is_root() {
            return refuse(format!("execution.user: the device has no user {wanted:?}"));
        }
        let closed = |meta: &fs::Metadata| {
            let bits = match meta.uid() == user.uid {
                true => meta.mode() >> 6,
                false if user.groups.contains(&meta.gid()) => meta.mode() >> 3,
                false => meta.mode(),
            };
            bits & 1 == 0 && !user.is_root()
        };
        // Said here by its name; systemd would only say that the program cannot be run.
        for above in program.ancestors().skip(1).chain(folder.ancestors()) {
            if fs::metadata(above).is_ok_and(|meta| closed(&meta)) {
                return refuse(format!("execution.user: {wanted} may not enter {}", above.display()));
            }
        }
    }
    // A unit holds no path with `..`.
    if folder.components().any(|part| part == Component::ParentDir) {
        return fs::canonicalize(&folder)
            .map_err(|error| BackendError::Failed(format!("cannot find {}: {error}", folder.display())));
    }
    Ok(folder)
}

/// The cause alone, without the system's number for it.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or folder on the device".to_owned(),
        _ => error.to_string(),
    }
}
