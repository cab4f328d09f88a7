//! Units of the systemd that is this machine's first process.

use super::conformance::Site;
use super::device;
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::systemd::Systemd;
use praetor::agent::backend::{Backend, Folders};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::BackendKind;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const UNITS: &str = "/etc/systemd/system";

pub struct Units {
    backend: Systemd,
    state: TempDir,
    artifacts: TempDir,
    planted: RefCell<HashMap<Identity, String>>,
}

impl Units {
    pub fn new() -> Result<Box<dyn Site>, String> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Err("systemd is not the first process here: hack/backends.sh brings up a switch where it is".into());
        }
        let state = tempfile::tempdir().unwrap();
        let artifacts = tempfile::tempdir().unwrap();
        fs::set_permissions(artifacts.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let backend = Systemd::new(&Folders { state: state.path().to_owned() });
        Ok(Box::new(Self { backend, state, artifacts, planted: RefCell::default() }))
    }

    fn file(identity: &Identity) -> PathBuf {
        Path::new(UNITS).join(format!("{identity}.service"))
    }
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn property(identity: &Identity, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, &format!("{identity}.service")])
}

impl Site for Units {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Systemd
    }

    fn restarts(&self) -> bool {
        true
    }

    fn on_the_device(&self) -> bool {
        true
    }

    fn artifact(&self, script: &str) -> (Fetched, String) {
        device::artifact(self.artifacts.path(), script)
    }

    fn plant(&self, identity: &Identity) {
        fs::write(Self::file(identity), "[Service]\nExecStart=/bin/sleep 1000000\n").unwrap();
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &format!("{identity}.service")]);
        self.planted.borrow_mut().insert(identity.clone(), property(identity, "InvocationID"));
    }

    fn intact(&self, identity: &Identity) -> bool {
        let text = fs::read_to_string(Self::file(identity)).unwrap_or_default();
        text == "[Service]\nExecStart=/bin/sleep 1000000\n"
            && property(identity, "ActiveState") == "active"
            && property(identity, "InvocationID") == self.planted.borrow()[identity]
    }

    fn uproot(&self, identity: &Identity) {
        systemctl(&["stop", &format!("{identity}.service")]);
        fs::remove_file(Self::file(identity)).unwrap();
        systemctl(&["daemon-reload"]);
    }

    fn remains(&self, identity: &Identity) -> Vec<String> {
        let mut remains: Vec<_> = [UNITS, "/etc/systemd/system/multi-user.target.wants"]
            .iter()
            .map(PathBuf::from)
            .chain(["runs", "units"].iter().map(|name| self.state.path().join(name)))
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
            .filter(|entry| entry.file_name().to_string_lossy().contains(identity.as_str()))
            .map(|entry| entry.path().display().to_string())
            .collect();
        if property(identity, "LoadState") != "not-found" {
            remains.push(format!("the unit {identity}.service in memory"));
        }
        remains
    }
}
