//! Edge: from a spec and its artifact to what a backend has to know.

use super::identity::Identity;
use super::record::Version;
use super::spec::{BackendKind, Spec};
use crate::agent::artifact::Fetched;
use crate::agent::backend::Launch;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// Where a name without a slash is looked for, after the artifact.
const SEARCH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What every process gets in its environment.
const DEVICE_NAME: &str = "APOLLO_DEVICE_NAME";
/// The folder of its artifact; a container has none on the device.
const ARTIFACT_DIR: &str = "APOLLO_ARTIFACT_DIR";

/// What of a spec cannot be on this device. Each is a sentence for a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// The program is nowhere.
    #[error("execution.command: {0:?} is neither in the artifact nor on the device")]
    NoProgram(String),
    /// There is a file, and it is no program.
    #[error("execution.command: {0:?} is in the artifact, but is no file that can be executed")]
    NotExecutable(String),
    /// The working directory.
    #[error("execution.workingDir: {0:?} is not an absolute path")]
    RelativeFolder(String),
    /// A variable's name.
    #[error("execution.env: {0:?} is not the name of a variable")]
    VariableName(String),
    /// The artifact has no folder on the device, and the backend needs one.
    #[error("artifact: it has no folder on the device, which the backend {0} needs")]
    NoFolder(&'static str),
}

/// Makes of a version of a process what its backend has to know.
///
/// # Errors
/// What of the spec cannot be on this device.
pub fn launch(
    identity: &Identity,
    version: &Version,
    spec: &Spec,
    fetched: &Fetched,
    device: &str,
) -> Result<Launch, LaunchError> {
    let execution = &spec.execution;
    let mut words = execution.command.iter().cloned();
    let command = words.next().unwrap_or_default();
    let args = words.chain(execution.args.iter().cloned()).collect();
    let mut env = vec![(DEVICE_NAME.to_owned(), device.to_owned())];
    let working_dir = execution.working_dir.clone().filter(|folder| !folder.is_empty());
    if let Some(folder) = working_dir.as_ref().filter(|folder| !folder.starts_with('/')) {
        return Err(LaunchError::RelativeFolder(folder.clone()));
    }
    let (program, working_dir) = if execution.backend == BackendKind::Container {
        (command, working_dir)
    } else {
        let root = fetched.root.as_deref().ok_or(LaunchError::NoFolder(execution.backend.as_str()))?;
        let folder = root.to_string_lossy().into_owned();
        env.push((ARTIFACT_DIR.to_owned(), folder.clone()));
        (program(&command, root)?, Some(working_dir.unwrap_or(folder)))
    };
    for (name, value) in execution.environment(device) {
        if name.is_empty() || name.contains('=') {
            return Err(LaunchError::VariableName(name.to_owned()));
        }
        // The last one counts, as in Kubernetes.
        env.retain(|(known, _)| known != name);
        env.push((name.to_owned(), value));
    }
    Ok(Launch {
        identity: identity.clone(),
        uid: version.uid.clone(),
        spec_hash: version.spec_hash.clone(),
        program,
        args,
        env,
        working_dir,
        user: execution.user.clone().filter(|user| !user.is_empty()),
        restart_policy: spec.restart_policy,
        artifact: fetched.clone(),
    })
}

/// The command of a health check: its program is looked for as the process's own is. What is found nowhere stays as it
/// is, and the check says so.
#[must_use]
pub fn check_command(command: &[String], artifact: &Fetched) -> Vec<String> {
    let mut words = command.to_vec();
    if let (Some(root), Some(first)) = (artifact.root.as_deref(), words.first_mut())
        && let Ok(path) = program(first, root)
    {
        *first = path;
    }
    words
}

/// The file of a command: in the artifact, else on the device.
fn program(command: &str, root: &Path) -> Result<String, LaunchError> {
    let inside = inside(command, root);
    let device = || {
        let path = Path::new(command);
        if path.is_absolute() {
            return Some(path.to_owned()).filter(|path| executable(path));
        }
        let name = Some(command).filter(|name| !name.contains('/'))?;
        SEARCH.iter().map(|folder| Path::new(folder).join(name)).find(|path| executable(path))
    };
    let path = match inside {
        Some(path) if executable(&path) => path,
        Some(_) => device().ok_or_else(|| LaunchError::NotExecutable(command.to_owned()))?,
        None => device().ok_or_else(|| LaunchError::NoProgram(command.to_owned()))?,
    };
    // A path that is no text cannot be in a unit or a script.
    path.to_str().map(str::to_owned).ok_or_else(|| LaunchError::NoProgram(command.to_owned()))
}

/// The file in the artifact that a command names, absolute or relative; nothing outside of it.
fn inside(command: &str, root: &Path) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for component in Path::new(command).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    // A link may lead out of it; then it is not the artifact's.
    let (real, root) = (fs::canonicalize(&path).ok()?, fs::canonicalize(root).ok()?);
    (real.starts_with(&root) && path != root).then_some(path)
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact() -> (tempfile::TempDir, Fetched) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        for (name, mode) in [("usr/local/bin/agent", 0o755), ("true", 0o755), ("data", 0o644)] {
            fs::write(root.join(name), "x").unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("/bin/sh", root.join("out")).unwrap();
        (folder, Fetched { digest: "sha256:d".into(), root: Some(root) })
    }

    fn make(more: &str, backend: &str, fetched: &Fetched) -> Result<Launch, LaunchError> {
        let json = format!(
            r#"{{"artifact": {{"type": "file", "url": "/x"}}, "execution": {{"backend": "{backend}", {more}}}}}"#
        );
        let spec = Spec::parse(&json).unwrap();
        let version = Version {
            uid: "u".into(),
            spec_hash: "sha256:h".into(),
            backend: spec.execution.backend,
            digest: Some(fetched.digest.clone()),
            spec: json,
        };
        launch(&Identity::new("a", "b"), &version, &spec, fetched, "tor1-01")
    }

    #[test]
    fn a_command_is_looked_for_in_the_artifact_first() {
        let (_folder, fetched) = artifact();
        let root = fetched.root.clone().unwrap();
        for (command, expected) in [
            ("/usr/local/bin/agent", root.join("usr/local/bin/agent")),
            ("usr/local/bin/agent", root.join("usr/local/bin/agent")),
            ("./true", root.join("true")),
            ("true", root.join("true")),
            ("/true", root.join("true")),
            ("/bin/sh", "/bin/sh".into()),
            ("sh", "/usr/bin/sh".into()),
        ] {
            let launch = make(&format!(r#""command": ["{command}", "1"], "args": ["2"]"#), "initd", &fetched).unwrap();
            assert_eq!(Path::new(&launch.program), expected, "{command}");
            assert_eq!((launch.args, launch.working_dir.as_deref()), (vec!["1".to_owned(), "2".into()], root.to_str()));
        }
        for (command, expected) in [
            ("nothing", "\"nothing\" is neither in the artifact nor on the device"),
            ("/no/thing", "\"/no/thing\" is neither"),
            ("data", "\"data\" is in the artifact, but is no file that can be executed"),
            ("../root/true", "is neither"),
            ("out", "is neither"),
            ("usr", "is no file that can be executed"),
            (".", "is neither"),
        ] {
            let error = make(&format!(r#""command": ["{command}"]"#), "systemd", &fetched).unwrap_err().to_string();
            assert!(error.contains(expected), "{command}: {error}");
        }
    }

    #[test]
    fn the_environment_is_the_devices_and_then_the_specs() {
        let (_folder, fetched) = artifact();
        let more = r#""command": ["true"], "workingDir": "/tmp", "user": "",
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "on ${APOLLO_DEVICE_NAME}"}]"#;
        let launch = make(more, "initd", &fetched).unwrap();
        let root = fetched.root.as_ref().unwrap().to_str().unwrap();
        let env: Vec<_> = launch.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(env, [(DEVICE_NAME, "tor1-01"), (ARTIFACT_DIR, root), ("A", "on tor1-01")]);
        assert_eq!((launch.working_dir.as_deref(), launch.user), (Some("/tmp"), None));
        for (more, expected) in [
            (r#""command": ["true"], "env": [{"name": "A=B"}]"#, "execution.env"),
            (r#""command": ["true"], "workingDir": "tmp""#, "execution.workingDir"),
        ] {
            assert!(make(more, "initd", &fetched).unwrap_err().to_string().contains(expected));
        }
    }

    #[test]
    fn a_check_is_looked_for_like_the_command() {
        let (_folder, fetched) = artifact();
        let root = fetched.root.as_ref().unwrap().to_str().unwrap();
        let check = |words: [&str; 2], fetched: &Fetched| check_command(&words.map(str::to_owned), fetched);
        let inside = format!("{root}/usr/local/bin/agent");
        assert_eq!(check(["/usr/local/bin/agent", "health"], &fetched), [inside.as_str(), "health"]);
        assert_eq!(check(["/bin/sh", "-c"], &fetched), ["/bin/sh", "-c"]);
        assert_eq!(check(["/no/such", "x"], &fetched), ["/no/such", "x"]);
        let image = Fetched { digest: "sha256:d".into(), root: None };
        assert_eq!(check(["true", "x"], &image), ["true", "x"]);
    }

    #[test]
    fn a_container_has_its_own_paths() {
        let fetched = Fetched { digest: "sha256:d".into(), root: None };
        let launch = make(r#""command": ["agent"]"#, "container", &fetched).unwrap();
        assert_eq!((launch.program.as_str(), launch.working_dir, launch.env.len()), ("agent", None, 1));
        let error = make(r#""command": ["agent"]"#, "systemd", &fetched).unwrap_err();
        assert_eq!(error, LaunchError::NoFolder("systemd"));
    }
}
