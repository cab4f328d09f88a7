//! Units of the systemd that is this machine's first process.

use super::conformance::Site;
use super::device;
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::systemd::Systemd;
use praetor::agent::backend::{Activity, Backend, Folders, Launch};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{BackendKind, RestartPolicy};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
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

/// Where the processes are that must live through a reboot.
const KEPT: &str = "/var/lib/praetor-reboot";

fn kept(name: &str, policy: RestartPolicy) -> Launch {
    let (artifact, program) = device::artifact(&Path::new(KEPT).join("artifacts"), super::conformance::OBEDIENT);
    Launch {
        identity: Identity::new("reboot", name),
        uid: "uid".to_owned(),
        spec_hash: format!("sha256:{name}"),
        program,
        args: vec![],
        env: vec![],
        working_dir: None,
        user: None,
        restart_policy: policy,
        artifact,
    }
}

fn kept_backend() -> Systemd {
    Systemd::new(&Folders { state: PathBuf::from(KEPT) })
}

#[tokio::test]
#[ignore = "hack/backends.sh reboots the switch behind it"]
async fn before_a_reboot() {
    let backend = kept_backend();
    let grace = Duration::from_secs(10);
    for old in backend.list().await.unwrap() {
        backend.remove(&old.identity, grace).await.unwrap();
    }
    for (name, policy) in [
        ("always", RestartPolicy::Always),
        ("stopped", RestartPolicy::Always),
        ("never", RestartPolicy::Never),
        ("over", RestartPolicy::Never),
    ] {
        let launch = kept(name, policy);
        backend.install(&launch).await.unwrap();
        backend.start(&launch, grace).await.unwrap();
    }
    let find = |name| {
        let backend = &backend;
        async move { backend.find(&kept(name, RestartPolicy::Never).identity).await.unwrap().unwrap() }
    };
    backend.stop(&find("stopped").await.identity, grace).await.unwrap();
    for (name, signal) in [("over", "USR1"), ("always", "KILL")] {
        let Activity::Running { pid, .. } = find(name).await.activity else { panic!("{name} does not run") };
        // Only when its traps are set.
        device::until("it sleeps", || async { Some(()).filter(|()| device::family(pid).len() > 1) }).await;
        device::signal(pid, signal);
        device::until("its end is known", || async { Some(()).filter(|()| !device::alive(pid)) }).await;
        device::until("its end is counted", || async { Some(find(name).await).filter(|found| found.exits == 1) }).await;
    }
    device::until("it runs again", || async {
        Some(find("always").await).filter(|found| matches!(found.activity, Activity::Running { .. }))
    })
    .await;
}

#[tokio::test]
#[ignore = "hack/backends.sh reboots the switch before it"]
async fn after_a_reboot() {
    let backend = kept_backend();
    let crashed = std::env::var_os("PRAETOR_HOW").is_some_and(|how| how == "crash");
    let all = backend.list().await.unwrap();
    let found = |name: &str| {
        let found = all.iter().find(|found| found.identity == Identity::new("reboot", name));
        found.unwrap_or_else(|| panic!("{name} is gone: {all:?}")).clone()
    };
    // systemd has started it, nobody else was there. A shutdown is no end that counts, and a loss of power is none that
    // anybody has seen.
    let always = found("always");
    assert!(matches!(always.activity, Activity::Running { .. }), "{always:?}");
    assert_eq!((always.running.as_deref(), always.exits), (Some("sha256:always"), 1), "crashed: {crashed}");
    assert_eq!(always.last_exit.map(|exit| exit.code), Some(137));
    assert_eq!(found("stopped").activity, Activity::Stopped);
    // It is for the agent to start it again, from its state file.
    assert_eq!((found("never").activity, found("never").exits), (Activity::Stopped, 0));
    let over = found("over");
    assert!(matches!(&over.activity, Activity::Ended(exit) if exit.code == 3), "{over:?}");
    assert_eq!((over.running.as_deref(), over.exits), (Some("sha256:over"), 1));
}

/// systemd says of no line that it does not know or does not like it.
#[tokio::test]
async fn systemd_takes_every_line() {
    if !Path::new("/run/systemd/system").is_dir() {
        return println!("skipped: systemd is not the first process here");
    }
    let backend = kept_backend();
    for (name, policy) in [("a", RestartPolicy::Always), ("b", RestartPolicy::OnFailure), ("c", RestartPolicy::Never)] {
        let mut launch = kept(&format!("lines-{name}"), policy);
        launch.args = ["%n", "$HOME ${HOME}", "\\", "\"", "'", "\u{1}\n", "ü"].map(str::to_owned).to_vec();
        launch.user = Some("daemon".to_owned());
        launch.working_dir = Some("/usr/../usr/bin".to_owned());
        backend.install(&launch).await.unwrap();
        let file = Units::file(&launch.identity);
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let about: Vec<_> = said.lines().filter(|line| line.contains("praetor-")).collect();
        assert_eq!((output.status.success(), about), (true, vec![]), "{said}");
        backend.remove(&launch.identity, Duration::from_secs(5)).await.unwrap();
    }
}
