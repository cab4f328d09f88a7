//! Edge: whether what an operator has asked for can be run on this device, before anything that runs is touched.

use super::exec::{self, find_user};
use super::files::head;
use super::program::{self, Kind, OTHER_FORMATS};
use super::{BackendError, Launch};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Where a file system keeps a list of who may do what.
const ACCESS_LIST: &str = "system.posix_acl_access";

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
    match program::kind(&head(program), &head(Path::new("/proc/self/exe"))) {
        Ok(Kind::Script(interpreter)) if !Path::new(&interpreter).exists() => {
            return refuse(format!("execution.command: {} needs {interpreter}, which is not there", launch.program));
        }
        // What even root may not read, or is empty, or of a format that the device was told of.
        Err(why) if !head(program).is_empty() && !Path::new(OTHER_FORMATS).exists() => {
            return refuse(format!("execution.command: {} {why}", launch.program));
        }
        _ => {}
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
        // Said here by its name; systemd would only say that the program cannot be run. Where a list says more than the
        // mode, it is left to the kernel.
        let listed = |path: &Path| rustix::fs::getxattr(path, ACCESS_LIST, &mut [0_u8; 0]).is_ok();
        for above in program.ancestors().skip(1).chain(folder.ancestors()) {
            if fs::metadata(above).is_ok_and(|meta| closed(&meta)) && !listed(above) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::artifact::Fetched;
    use crate::agent::process::identity::Identity;
    use crate::agent::process::spec::RestartPolicy;

    #[test]
    fn what_cannot_run_is_said_with_its_field() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let good = file("good", "#!/bin/sh\n", 0o755);
        let inside = file("private/good", "#!/bin/sh\n", 0o755);
        let private = root.join("private");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        let private = private.to_str().unwrap().to_owned();
        let fits = |program: &str, user: Option<&str>, working_dir: Option<&str>| {
            fits_the_device(&Launch {
                identity: Identity::new("infra", "agent"),
                uid: "u".to_owned(),
                spec_hash: "sha256:1".to_owned(),
                program: program.to_owned(),
                args: vec![],
                env: vec![],
                working_dir: working_dir.map(str::to_owned),
                user: user.map(str::to_owned),
                restart_policy: RestartPolicy::Always,
                artifact: Fetched { digest: "sha256:2".to_owned(), root: Some(root.to_owned()) },
            })
        };
        assert_eq!(fits(&good, None, None).as_deref(), Ok(root));
        assert_eq!(fits(&inside, None, Some("/usr/../usr")).as_deref(), Ok(Path::new("/usr")));
        assert!(fits(&good, Some("nobody"), None).is_ok());
        for (program, user, working_dir, expected) in [
            ("/no/such/agent", None, None, "execution.command: /no/such/agent: there is no such file"),
            (root.to_str().unwrap(), None, None, "is no file"),
            (&file("plain", "#!/bin/sh\n", 0o644), None, None, "is not executable"),
            (&file("lost", "#!/no/such/sh -e\n", 0o755), None, None, "needs /no/such/sh, which is not there"),
            (&good, None, Some("/no/such/folder"), "execution.workingDir: /no/such/folder: there is no such"),
            (&good, None, Some(&good), "is no folder"),
            (&good, Some("nobody-at-all"), None, "execution.user: the device has no user \"nobody-at-all\""),
            (&good, Some("4242424"), None, "execution.user: the device has no user \"4242424\""),
            (&inside, Some("nobody"), None, "execution.user: nobody may not enter"),
            (&good, Some("nobody"), Some(&private), "execution.user: nobody may not enter"),
        ] {
            let Err(BackendError::Refused(why)) = fits(program, user, working_dir) else {
                panic!("{program} {user:?}")
            };
            assert!(why.contains(expected) && why.starts_with("execution."), "{why}");
        }
    }
}
