//! Units of the systemd that is this machine's first process.

use super::conformance::Site;
use super::device;
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::systemd::Systemd;
use praetor::agent::backend::{Activity, Backend, BackendError, Folders, Launch};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{BackendKind, RestartPolicy};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
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
    pub fn of_this_machine() -> Result<Box<dyn Site>, String> {
        lacks().map_or(Ok(()), Err)?;
        let state = tempfile::tempdir().unwrap();
        let artifacts = tempfile::tempdir().unwrap();
        fs::set_permissions(artifacts.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let backend = Systemd::new(&Folders { state: state.path().to_owned(), device: String::new() });
        Ok(Box::new(Self { backend, state, artifacts, planted: RefCell::default() }))
    }

    fn file(identity: &Identity) -> PathBuf {
        Path::new(UNITS).join(format!("{identity}.service"))
    }
}

/// Why nothing can be tested here. Units are written into the machine's own folder, so that somebody must ask for it.
fn lacks() -> Option<String> {
    let asked = std::env::var_os("PRAETOR_BACKENDS").unwrap_or_default();
    if !asked.to_string_lossy().split(',').any(|word| word.trim() == "systemd") {
        return Some("units are tested in a switch of their own, by hack/backends.sh".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("only root can make units".to_owned());
    }
    let booted = Path::new("/run/systemd/system").is_dir();
    (!booted)
        .then(|| "systemd is not the first process here: hack/backends.sh brings up a switch where it is".to_owned())
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

async fn bring_up(backend: &Systemd, launch: &Launch) {
    backend.install(launch).await.unwrap();
    backend.start(launch, GRACE).await.unwrap();
}

fn kept_backend() -> Systemd {
    Systemd::new(&Folders { state: PathBuf::from(KEPT), device: String::new() })
}

#[tokio::test]
#[ignore = "hack/backends.sh reboots the switch behind it"]
async fn before_a_reboot() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let grace = Duration::from_secs(10);
    // Nothing but what this test has made.
    let own = Identity::new("reboot", "");
    for old in backend.list().await.unwrap().into_iter().filter(|old| old.identity.as_str().starts_with(own.as_str())) {
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
    if !here() {
        return;
    }
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

/// Whether the tests below can run here.
fn here() -> bool {
    match lacks() {
        None => true,
        Some(why) => {
            println!("skipped: {why}");
            false
        }
    }
}

/// systemd says of no line that it does not know or does not like it.
#[tokio::test]
async fn systemd_takes_every_line() {
    if !here() {
        return;
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

const GRACE: Duration = Duration::from_secs(5);

/// Somebody else's unit need not lie where ours do.
#[tokio::test]
async fn units_of_others_are_left_alone_wherever_they_are() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let launch = kept("foreign", RestartPolicy::Always);
    let unit = format!("{}.service", launch.identity);
    let theirs = Path::new("/run/systemd/system").join(&unit);
    fs::write(&theirs, "[Service]\nExecStart=/bin/sleep 1000000\n").unwrap();
    systemctl(&["daemon-reload"]);
    systemctl(&["start", &unit]);
    let run = property(&launch.identity, "InvocationID");
    for _ in 0..2 {
        let refused = backend.install(&launch).await;
        assert!(matches!(&refused, Err(BackendError::Refused(why)) if why.contains(&unit)), "{refused:?}");
        assert!(backend.start(&launch, GRACE).await.is_err());
        assert_eq!(backend.find(&launch.identity).await, Ok(None));
        backend.stop(&launch.identity, GRACE).await.unwrap();
        backend.remove(&launch.identity, GRACE).await.unwrap();
    }
    let now = (property(&launch.identity, "InvocationID"), property(&launch.identity, "ActiveState"));
    assert_eq!(now, (run, "active".to_owned()));
    systemctl(&["stop", &unit]);
    fs::remove_file(&theirs).unwrap();

    // An administrator who does not want it at all. systemd has not yet been told of the change.
    let mask = Units::file(&launch.identity);
    symlink("/dev/null", &mask).unwrap();
    let refused = backend.install(&launch).await;
    assert!(matches!(&refused, Err(BackendError::Refused(_))), "{refused:?}");
    backend.remove(&launch.identity, GRACE).await.unwrap();
    assert_eq!(fs::read_link(&mask).unwrap(), Path::new("/dev/null"));
    fs::remove_file(&mask).unwrap();

    bring_up(&backend, &launch).await;
    backend.remove(&launch.identity, GRACE).await.unwrap();
}

/// What only the kernel can find out. When to try again is for the agent to say, so systemd does not go on by itself.
#[tokio::test]
async fn a_start_that_fails_is_the_end_of_it() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let mut launch = kept("no-loader", RestartPolicy::Always);
    // A program for another C library.
    let mut bytes = fs::read("/bin/true").unwrap();
    let at = bytes.windows(7).position(|window| window == b"/ld-lin").unwrap();
    bytes[at..at + 7].copy_from_slice(b"/no-lin");
    launch.program = format!("{KEPT}/no-loader");
    fs::create_dir_all(KEPT).unwrap();
    fs::write(&launch.program, bytes).unwrap();
    fs::set_permissions(&launch.program, fs::Permissions::from_mode(0o755)).unwrap();
    backend.install(&launch).await.unwrap();
    for _ in 0..2 {
        let refused = backend.start(&launch, GRACE).await;
        let why = format!("{refused:?}");
        assert!(matches!(&refused, Err(BackendError::Refused(why)) if why.starts_with("execution.command: ")), "{why}");
        assert_eq!(backend.find(&launch.identity).await.unwrap().unwrap().activity, Activity::Stopped);
        assert!(["inactive", "failed"].contains(&property(&launch.identity, "ActiveState").as_str()));
        assert!(!Path::new(UNITS).join(format!("multi-user.target.wants/{}.service", launch.identity)).exists());
    }
    // Put right, it runs.
    fs::copy("/bin/sleep", &launch.program).unwrap();
    launch.args = vec!["1000000".to_owned()];
    bring_up(&backend, &launch).await;
    let found = backend.find(&launch.identity).await.unwrap().unwrap();
    assert!(matches!(found.activity, Activity::Running { .. }), "{found:?}");
    backend.remove(&launch.identity, GRACE).await.unwrap();
}

/// To systemd an end by SIGTERM is a good one; to Kubernetes it is a failure unless somebody asked for it.
#[tokio::test]
async fn a_signal_from_outside_is_a_failure() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let mut launch = kept("signalled", RestartPolicy::OnFailure);
    launch.program = "/bin/sleep".to_owned();
    launch.args = vec!["1000000".to_owned()];
    bring_up(&backend, &launch).await;
    let find = || async { backend.find(&launch.identity).await.unwrap().unwrap() };
    let Activity::Running { pid, .. } = find().await.activity else { panic!("it does not run") };
    device::signal(pid, "TERM");
    let found = device::until("it runs again", || async {
        Some(find().await).filter(|f| matches!(f.activity, Activity::Running { pid: again, .. } if again != pid))
    })
    .await;
    let exit = found.last_exit.map(|exit| (exit.code, exit.reason));
    assert_eq!((found.exits, exit), (1, Some((143, "Signal SIGTERM".to_owned()))));
    backend.remove(&launch.identity, GRACE).await.unwrap();
}

/// What runs and how it ended is known although the hooks have written nothing.
#[tokio::test]
async fn hooks_that_fail_are_made_up_for() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let mut launch = kept("no-hooks", RestartPolicy::Never);
    launch.program = "/bin/true".to_owned();
    let changes = PathBuf::from(format!("/run/systemd/system/{}.service.d", launch.identity));
    fs::create_dir_all(&changes).unwrap();
    fs::write(changes.join("no-hooks.conf"), "[Service]\nExecStartPre=\nExecStopPost=\n").unwrap();
    systemctl(&["daemon-reload"]);
    bring_up(&backend, &launch).await;
    let found = device::until("its end is known", || async {
        let found = backend.find(&launch.identity).await.unwrap().unwrap();
        matches!(found.activity, Activity::Ended(_)).then_some(found)
    })
    .await;
    assert_eq!((found.running, found.exits), (Some(launch.spec_hash.clone()), 1));
    assert_eq!(found.last_exit.map(|exit| exit.code), Some(0));
    fs::remove_dir_all(&changes).unwrap();
    backend.remove(&launch.identity, GRACE).await.unwrap();
}

/// What the operator tells the loader is for the program, and not for root's shell in the hooks: each process that hears
/// of it writes a file.
#[tokio::test]
async fn the_loader_is_told_for_the_program_alone() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let mut launch = kept("loader", RestartPolicy::Never);
    let said = tempfile::tempdir().unwrap();
    fs::set_permissions(said.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let output = said.path().join("said").to_str().unwrap().to_owned();
    launch.env = vec![("LD_DEBUG".to_owned(), "libs".to_owned()), ("LD_DEBUG_OUTPUT".to_owned(), output)];
    launch.program = "/bin/true".to_owned();
    launch.user = Some("nobody".to_owned());
    bring_up(&backend, &launch).await;
    let found = device::until("its end is known", || async {
        let found = backend.find(&launch.identity).await.unwrap().unwrap();
        matches!(found.activity, Activity::Ended(_)).then_some(found)
    })
    .await;
    assert_eq!(found.last_exit.map(|exit| exit.code), Some(0));
    let files: Vec<_> = fs::read_dir(said.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("not one process was told: {files:?}") };
    assert!(fs::read_to_string(file).unwrap().contains("/bin/true"));
    backend.remove(&launch.identity, GRACE).await.unwrap();
}

/// The file with the environment is made again when somebody has lost it, and a journal that nobody can read is that of
/// one process.
#[tokio::test]
async fn what_is_lost_or_unreadable_is_made_up_for() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let launches = ["lost", "unreadable"].map(|name| kept(name, RestartPolicy::Always));
    for launch in &launches {
        backend.install(launch).await.unwrap();
        fs::remove_dir_all(Path::new(KEPT).join("units")).unwrap();
        backend.start(launch, GRACE).await.unwrap();
    }
    let journal = Path::new(KEPT).join("runs").join(launches[1].identity.as_str());
    fs::remove_file(&journal).unwrap();
    fs::create_dir(&journal).unwrap();
    let all = backend.list().await.unwrap();
    for launch in &launches {
        let found = all.iter().find(|found| found.identity == launch.identity).unwrap();
        assert!(matches!(found.activity, Activity::Running { .. }), "{found:?}");
        assert_eq!(found.running.as_ref(), Some(&launch.spec_hash));
    }
    fs::remove_dir(&journal).unwrap();
    for launch in &launches {
        backend.remove(&launch.identity, GRACE).await.unwrap();
    }
}

/// Two agents on one machine leave each other's units alone.
#[tokio::test]
async fn units_of_another_device_are_left_alone() {
    if !here() {
        return;
    }
    let of =
        |device: &str| Systemd::new(&Folders { state: PathBuf::from(KEPT).join(device), device: device.to_owned() });
    let (ours, theirs) = (of("ours"), of("theirs"));
    let launch = kept("device", RestartPolicy::Always);
    bring_up(&theirs, &launch).await;
    let run = property(&launch.identity, "InvocationID");
    assert_eq!((ours.find(&launch.identity).await, theirs.list().await.unwrap().len()), (Ok(None), 1));
    assert!(ours.list().await.unwrap().iter().all(|found| found.identity != launch.identity));
    ours.stop(&launch.identity, GRACE).await.unwrap();
    ours.remove(&launch.identity, GRACE).await.unwrap();
    for refused in [ours.install(&launch).await, ours.start(&launch, GRACE).await] {
        let Err(BackendError::Refused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.ends_with("is there already and belongs to the agent of device theirs"), "{why}");
    }
    assert_eq!(property(&launch.identity, "InvocationID"), run);
    theirs.remove(&launch.identity, GRACE).await.unwrap();
}

/// Ticks of the processor that a process has used, and with `children` those of its children that have ended.
fn used(pid: u32, children: bool) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = text.rsplit_once(") ").unwrap().1.split(' ').map(|f| f.parse().unwrap_or(0)).collect();
    fields[11..if children { 15 } else { 13 }].iter().sum()
}

/// What the agent's own looking costs with ten processes that do nothing: at most 0.1 % of a core, systemd's share
/// included.
#[tokio::test]
#[ignore = "it takes two minutes: hack/backends.sh --idle"]
async fn idle_it_costs_next_to_nothing() {
    if !here() {
        return;
    }
    let backend = kept_backend();
    let launches: Vec<_> = (0..10).map(|n| kept(&format!("idle-{n}"), RestartPolicy::Always)).collect();
    for launch in &launches {
        backend.install(launch).await.unwrap();
        backend.start(launch, GRACE).await.unwrap();
    }
    // What the starts have left to be seen.
    while tokio::time::timeout(Duration::from_secs(3), backend.changed()).await.is_ok() {}
    let me = std::process::id();
    let before = (used(me, true), used(1, false));
    let begun = tokio::time::Instant::now();
    let mut looks = 0;
    while let Ok(()) = tokio::time::timeout_at(begun + Duration::from_secs(130), backend.changed()).await {
        looks += 1;
        let list = backend.list().await.unwrap();
        assert!(list.iter().filter(|found| matches!(found.activity, Activity::Running { .. })).count() >= 10);
    }
    assert!(looks >= 2, "it never looked");
    let seconds = begun.elapsed().as_secs_f64();
    let (agent, systemd) = (used(me, true) - before.0, used(1, false) - before.1);
    println!("{looks} looks in {seconds:.0} s: {agent} hundredths of a second here, {systemd} in systemd");
    for launch in &launches {
        backend.remove(&launch.identity, GRACE).await.unwrap();
    }
    assert!((agent + systemd) as f64 / 100.0 / seconds <= 0.001, "more than 0.1 % of a core");
}
