//! Init scripts, judged on the machine itself, in folders that stand for its `/etc`, its `/var/log` and the agent's own.

use crate::conformance::{self, Site};
use crate::device::{self, until};
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::initd::{Initd, Places};
use praetor::agent::backend::{Activity, Backend, Exit, Folders, Launch};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{BackendKind, RestartPolicy};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const GRACE: Duration = Duration::from_secs(10);

/// A device of init in a folder: nothing of the machine's own is touched.
pub struct Device {
    folder: TempDir,
    initd: Initd,
}

impl Device {
    /// With the runlevels of Debian.
    pub fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can start processes as another user".to_owned());
        }
        let folder = tempfile::tempdir().unwrap();
        // Other users must be able to come to the programs.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for level in ["0", "1", "2", "3", "4", "5", "6", "S"] {
            fs::create_dir_all(folder.path().join(format!("etc/rc{level}.d"))).unwrap();
        }
        fs::create_dir_all(folder.path().join("etc/init.d")).unwrap();
        fs::create_dir_all(folder.path().join("log")).unwrap();
        let initd = Self::backend_in(folder.path());
        Ok(Self { folder, initd })
    }

    fn backend_in(folder: &Path) -> Initd {
        Self::backend_of(folder, "state", "")
    }

    /// The agent of one device of several on this machine.
    fn backend_of(folder: &Path, state: &str, device: &str) -> Initd {
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_praetor-agent"));
        let places = Places { etc: folder.join("etc"), log: folder.join("log"), launcher: agent.clone(), agent };
        Initd::at(Folders { state: folder.join(state), device: device.to_owned() }, places)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn record(&self, identity: &Identity) -> serde_json::Value {
        let text = fs::read_to_string(self.path(&format!("state/initd/{identity}.run"))).unwrap();
        serde_json::from_str(text.trim()).unwrap()
    }

    fn shim(&self, identity: &Identity) -> i64 {
        self.record(identity)["shim"]["pid"].as_i64().unwrap()
    }

    /// Runs the init script as init or an operator does.
    fn script(&self, identity: &Identity, verb: &str) -> Output {
        let mut command = Command::new(self.path(&format!("etc/init.d/{identity}")));
        command.arg(verb).env("APOLLO_DEVICE_TOKEN", "secret").output().unwrap()
    }

    fn launch(&self, name: &str, version: u8, script: &str) -> Launch {
        let (artifact, program) = self.artifact(script);
        Launch {
            identity: Identity::new("initd", name),
            uid: format!("uid-{name}"),
            spec_hash: format!("sha256:{}", hex::encode([version; 32])),
            program,
            args: vec![],
            env: vec![],
            working_dir: None,
            user: None,
            restart_policy: RestartPolicy::Always,
            artifact,
        }
    }

    async fn run(&self, launch: &Launch) -> i64 {
        self.initd.install(launch).await.unwrap();
        self.initd.start(launch, GRACE).await.unwrap();
        self.running(launch).await
    }

    async fn running(&self, launch: &Launch) -> i64 {
        until("it runs", || async {
            match self.activity(&launch.identity).await {
                Activity::Running { pid, .. } if device::has_begun(pid, &launch.program) => Some(pid),
                _ => None,
            }
        })
        .await
    }

    async fn activity(&self, identity: &Identity) -> Activity {
        self.initd.find(identity).await.unwrap().unwrap().activity
    }

    fn links(&self, identity: &Identity) -> Vec<String> {
        let mut links = Vec::new();
        for level in ["0", "1", "2", "3", "4", "5", "6", "S"] {
            for entry in fs::read_dir(self.path(&format!("etc/rc{level}.d"))).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if name.ends_with(identity.as_str()) {
                    // It leads to the script.
                    assert!(fs::canonicalize(&path).unwrap().ends_with(format!("init.d/{identity}")));
                    links.push(format!("{level}{}", &name[..3]));
                }
            }
        }
        links.sort();
        links
    }
}

impl Drop for Device {
    /// Also after a failure nothing is left running. In a thread of its own: the test's may be in a runtime.
    fn drop(&mut self) {
        let path = self.folder.path().to_owned();
        let remove_all = || {
            let initd = Self::backend_in(&path);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for found in runtime.block_on(initd.list()).unwrap_or_default() {
                if let Err(error) = runtime.block_on(initd.remove(&found.identity, Duration::from_millis(100))) {
                    println!("{} could not be removed: {error}", found.identity);
                }
            }
        };
        let _ = std::thread::scope(|scope| scope.spawn(remove_all).join());
    }
}

impl Site for Device {
    fn backend(&self) -> &dyn Backend {
        &self.initd
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Initd
    }

    fn restarts(&self) -> bool {
        false
    }

    fn on_the_device(&self) -> bool {
        true
    }

    fn artifact(&self, script: &str) -> (Fetched, String) {
        let digest = hex::encode(Sha256::digest(script));
        let root = self.path(&format!("artifacts/{digest}"));
        let program = root.join("program");
        if !program.exists() {
            fs::create_dir_all(&root).unwrap();
            device::write_script(&program, script);
        }
        (Fetched { digest: format!("sha256:{digest}"), root: Some(root) }, program.to_str().unwrap().to_owned())
    }

    fn plant(&self, identity: &Identity) {
        device::write_script(&self.path(&format!("etc/init.d/{identity}")), FOREIGN);
    }

    fn intact(&self, identity: &Identity) -> bool {
        fs::read_to_string(self.path(&format!("etc/init.d/{identity}"))).is_ok_and(|text| text == FOREIGN)
    }

    fn uproot(&self, identity: &Identity) {
        fs::remove_file(self.path(&format!("etc/init.d/{identity}"))).unwrap();
    }

    fn remains(&self, identity: &Identity) -> Vec<String> {
        fn below(folder: &Path, all: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                all.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    below(&entry.path(), all);
                }
            }
        }
        let mut all = Vec::new();
        below(self.folder.path(), &mut all);
        let names = all.into_iter().map(|path| path.to_string_lossy().into_owned());
        names.filter(|path| path.contains(identity.as_str())).collect()
    }
}

const FOREIGN: &str = "#!/bin/sh\n# Somebody else's.\nexit 0\n";

/// What only init scripts have, one scene after the other.
pub fn scenes() {
    let device = match Device::new() {
        Ok(device) => device,
        Err(lacking) => return println!("initd: skipped: {lacking}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        the_script_is_one_of_init(&device).await;
        only_what_always_runs_is_linked(&device).await;
        what_waits_may_be_killed(&device).await;
        a_reboot_stops_everything_and_forgets_nothing(&device).await;
        a_lost_script_or_state_makes_no_second_copy(&device).await;
        what_cannot_be_read_hides_nothing(&device).await;
        two_devices_on_one_machine(&device).await;
        what_will_not_run_costs_nothing(&device).await;
        a_daemon_and_its_children_end_together(&device).await;
        logs_stay_short(&device).await;
        half_a_start_keeps_others_out(&device).await;
        a_look_is_cheap(&Device::new().unwrap()).await;
        kills_at_any_moment_leave_one_copy(&device).await;
    });
}

async fn the_script_is_one_of_init(device: &Device) {
    let launch = device.launch("script", 1, conformance::OBEDIENT);
    let identity = &launch.identity;
    device.initd.install(&launch).await.unwrap();
    let ends = |verb: &str| {
        let output = device.script(identity, verb);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
        (output.status.code().unwrap(), said)
    };
    assert_eq!(ends("status"), (3, format!("{identity} does not run")));
    assert_eq!(ends("stop"), (0, format!("{identity} did not run")));
    assert_eq!(ends("start"), (0, format!("{identity} started")));
    let pid = device.running(&launch).await;
    assert_eq!(ends("start"), (0, format!("{identity} runs already: process {pid}")));
    assert_eq!(ends("status"), (0, format!("{identity} runs: process {pid}, from {}", launch.spec_hash)));
    assert!(!device::environment(pid).iter().any(|variable| variable.contains("secret")));
    let shim = device.shim(identity);
    assert!(device::environment(shim).is_empty() && device::arguments(shim)[1..3] == ["launch", "run"]);
    assert_eq!(ends("restart").0, 0);
    let again = device.running(&launch).await;
    assert!(again != pid && !device::alive(pid));
    assert_eq!(ends("force-reload").0, 0);
    assert_eq!(ends("stop"), (0, format!("{identity} stopped")));
    assert!(!device::alive(again));
    // Stopped by an operator: no end that counts.
    let found = device.initd.find(identity).await.unwrap().unwrap();
    assert_eq!((found.activity, found.exits), (Activity::Stopped, 0));
    assert_eq!(ends("sing").0, 2);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(device.path(&format!("etc/init.d/{identity}"))), 0o755);
    assert_eq!(mode(device.path(&format!("state/initd/{identity}.json"))), 0o600);
    assert_eq!(mode(device.path("state/initd")), 0o700);
}

async fn only_what_always_runs_is_linked(device: &Device) {
    let mut launch = device.launch("links", 1, conformance::OBEDIENT);
    let all = ["0K01", "1K01", "2S99", "3S99", "4S99", "5S99", "6K01"];
    device.run(&launch).await;
    assert_eq!(device.links(&launch.identity), all);
    device.initd.stop(&launch.identity, GRACE).await.unwrap();
    assert_eq!(device.links(&launch.identity), Vec::<String>::new());
    device.run(&launch).await;
    assert_eq!(device.links(&launch.identity), all);
    for policy in [RestartPolicy::Never, RestartPolicy::OnFailure] {
        launch.restart_policy = policy;
        device.run(&launch).await;
        assert_eq!(device.links(&launch.identity), Vec::<String>::new());
    }
    // What other tools have made of it is removed, too; what only looks like it is not.
    let (own, other) = (device.path(&format!("etc/rc2.d/S07{}", launch.identity)), device.path("etc/rc2.d/S07other"));
    std::os::unix::fs::symlink(format!("../init.d/{}", launch.identity), &own).unwrap();
    std::os::unix::fs::symlink("../init.d/other", &other).unwrap();
    device.initd.remove(&launch.identity, GRACE).await.unwrap();
    assert!(own.symlink_metadata().is_err() && other.symlink_metadata().is_ok());
}

async fn what_waits_may_be_killed(device: &Device) {
    let launch = device.launch("shim", 1, conformance::OBEDIENT);
    let identity = &launch.identity;
    let pid = device.run(&launch).await;
    let shim = device.shim(identity);
    // Until only what is to come wakes whoever waits.
    while tokio::time::timeout(Duration::from_millis(200), device.initd.changed()).await.is_ok() {}
    device::signal(shim, "KILL");
    device::end(shim).await;
    let found = device.initd.find(identity).await.unwrap().unwrap();
    assert!(matches!(found.activity, Activity::Running { pid: same, .. } if same == pid), "{found:?}");
    let begun = Instant::now();
    let (told, ()) = tokio::join!(tokio::time::timeout(GRACE, device.initd.changed()), async {
        tokio::task::yield_now().await;
        device::signal(pid, "USR1");
    });
    assert!(told.is_ok(), "nobody was told");
    println!("initd: the end of a process that nobody waits for was noticed after {:?}", begun.elapsed());
    let unknown = Exit { code: 255, reason: "Unknown".to_owned() };
    for _ in 0..2 {
        let found = device.initd.find(identity).await.unwrap().unwrap();
        assert_eq!((found.activity, found.exits), (Activity::Ended(unknown.clone()), 1));
    }
    // Stopped, it is no end that counts, although nobody waits.
    let pid = device.run(&launch).await;
    device::signal(device.shim(identity), "KILL");
    device.initd.stop(identity, GRACE).await.unwrap();
    assert!(!device::alive(pid));
    let found = device.initd.find(identity).await.unwrap().unwrap();
    assert_eq!((found.activity, found.exits), (Activity::Stopped, 1));
}

async fn a_reboot_stops_everything_and_forgets_nothing(device: &Device) {
    let launch = device.launch("boot", 1, conformance::OBEDIENT);
    let identity = &launch.identity;
    let reboot = || {
        let (file, mut record) = (device.path(&format!("state/initd/{identity}.run")), device.record(identity));
        record["boot"] = "of another time".into();
        fs::write(file, record.to_string()).unwrap();
    };
    // One that ran when the power failed.
    let pid = device.run(&launch).await;
    let this_boot = device.record(identity)["boot"].clone();
    device::signal(device.shim(identity), "KILL");
    device::signal(pid, "KILL");
    device::end(pid).await;
    reboot();
    let found = device.initd.find(identity).await.unwrap().unwrap();
    assert_eq!(
        (&found.activity, found.exits, found.running.as_ref()),
        (&Activity::Stopped, 0, Some(&launch.spec_hash))
    );
    // Its number is another's now: that one is left alone.
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut record = device.record(identity);
    record["process"]["pid"] = bystander.id().into();
    record["shim"]["pid"] = bystander.id().into();
    record["boot"] = this_boot;
    fs::write(device.path(&format!("state/initd/{identity}.run")), record.to_string()).unwrap();
    device.initd.stop(identity, GRACE).await.unwrap();
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();

    // One that was over before.
    let mut never = launch.clone();
    never.restart_policy = RestartPolicy::Never;
    let pid = device.run(&never).await;
    device::signal(pid, "USR1");
    until("it has ended", || async { matches!(device.activity(identity).await, Activity::Ended(_)).then_some(()) })
        .await;
    let before = device.initd.find(identity).await.unwrap().unwrap();
    reboot();
    assert_eq!(device.initd.find(identity).await.unwrap().unwrap(), before);
    assert!(matches!(before.activity, Activity::Ended(Exit { code: 3, .. })));
}

async fn a_lost_script_or_state_makes_no_second_copy(device: &Device) {
    let mut launch = device.launch("lost", 1, conformance::OBEDIENT);
    launch.env = vec![("MARK".to_owned(), "lost-and-found".to_owned())];
    let identity = &launch.identity;
    let pid = device.run(&launch).await;
    fs::remove_file(device.path(&format!("etc/init.d/{identity}"))).unwrap();
    let list = device.initd.list().await.unwrap();
    let found = list.iter().find(|found| &found.identity == identity).unwrap();
    assert!(matches!(found.activity, Activity::Running { pid: same, .. } if same == pid) && found.installed.is_empty());
    device.initd.remove(identity, GRACE).await.unwrap();
    assert!(!device::alive(pid));
    assert_eq!(device.remains(identity), Vec::<String>::new());

    let pid = device.run(&launch).await;
    let shim = device.shim(identity);
    fs::remove_dir_all(device.path("state")).unwrap();
    let again = device.run(&launch).await;
    assert!(!device::alive(pid));
    // Whoever waited for the first one ends what is left of that, and of no other.
    device::end(shim).await;
    device::shows_with_variable("MARK=lost-and-found", again).await;
    assert_eq!(device::roots_with_variable("MARK=lost-and-found"), [again]);

    // Not wanted any more, it ends, although nothing is remembered of it but its script.
    fs::remove_dir_all(device.path("state")).unwrap();
    device.initd.remove(identity, GRACE).await.unwrap();
    assert!(!device::alive(again));
    assert!(!device.path(&format!("etc/init.d/{identity}")).exists());
}

async fn what_cannot_be_read_hides_nothing(device: &Device) {
    let [one, two] = ["sound", "torn"].map(|name| device.launch(name, 1, conformance::OBEDIENT));
    device.run(&one).await;
    device.run(&two).await;
    let list = || async {
        let mut all = device.initd.list().await.unwrap();
        all.retain(|found| [&one.identity, &two.identity].contains(&&found.identity));
        all
    };
    let before = list().await;
    assert_eq!(before.len(), 2);
    let journal = device.path(&format!("state/runs/{}", two.identity));
    let kept = device.path("journal");
    fs::rename(&journal, &kept).unwrap();
    fs::create_dir(&journal).unwrap();
    assert_eq!(list().await, before);
    assert_eq!(device.initd.find(&two.identity).await.unwrap().as_ref(), before.last());
    // An agent that has just begun knows less, and yet that it lives.
    let found = Device::backend_in(device.folder.path()).find(&two.identity).await.unwrap().unwrap();
    assert_eq!((&found.activity, &found.running), (&before[1].activity, &before[1].running));
    fs::remove_dir(&journal).unwrap();
    fs::rename(&kept, &journal).unwrap();
    assert_eq!(list().await, before);
    for launch in [one, two] {
        device.initd.remove(&launch.identity, GRACE).await.unwrap();
    }
}

async fn two_devices_on_one_machine(device: &Device) {
    let [mine, other] = ["a", "b"].map(|name| Device::backend_of(device.folder.path(), &format!("state-{name}"), name));
    let launch = device.launch("shared", 1, conformance::OBEDIENT);
    let identity = &launch.identity;
    mine.install(&launch).await.unwrap();
    mine.start(&launch, GRACE).await.unwrap();
    let Activity::Running { pid, .. } = mine.find(identity).await.unwrap().unwrap().activity else { panic!("it runs") };
    assert!(other.find(identity).await.unwrap().is_none());
    assert!(!other.list().await.unwrap().iter().any(|found| found.identity == *identity));
    let why = other.install(&launch).await.unwrap_err().to_string();
    assert!(why.ends_with("belongs to the agent of device a"), "{why}");
    other.stop(identity, GRACE).await.unwrap();
    other.remove(identity, GRACE).await.unwrap();
    // Nor when the script is away, by which it is known.
    let (script, kept) = (device.path(&format!("etc/init.d/{identity}")), device.path("script"));
    fs::rename(&script, &kept).unwrap();
    other.remove(identity, GRACE).await.unwrap();
    fs::rename(&kept, &script).unwrap();
    assert!(device::alive(pid));
    mine.remove(identity, GRACE).await.unwrap();
    assert!(!device::alive(pid) && !script.exists());
}

async fn what_will_not_run_costs_nothing(device: &Device) {
    let launch = device.launch("bad", 1, conformance::OBEDIENT);
    let pid = device.run(&launch).await;
    let root = launch.artifact.root.clone().unwrap();
    let file = |name: &str, bytes: &[u8], mode: u32| {
        let path = root.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut other = fs::read("/bin/true").unwrap();
    other[18] ^= 1;
    let private = device.path("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let inside = private.join("program");
    device::write_script(&inside, conformance::OBEDIENT);
    type Change<'a> = (&'a str, String, Option<&'a str>, Option<String>);
    let cases: [Change<'_>; 7] = [
        ("may not be executed", file("plain", b"#!/bin/sh\n", 0o644), None, None),
        ("is neither a program nor a script", file("text", b"hello\n", 0o755), None, None),
        ("is built for another kind of processor", file("alien", &other, 0o755), None, None),
        ("needs /no/such/sh, which cannot be executed", file("lost", b"#!/no/such/sh -e\n", 0o755), None, None),
        ("is no file", root.to_str().unwrap().to_owned(), None, None),
        ("Permission denied", inside.to_str().unwrap().to_owned(), Some("nobody"), None),
        ("execution.workingDir", launch.program.clone(), Some("nobody"), Some(private.to_str().unwrap().to_owned())),
    ];
    let mut bad = Launch { spec_hash: format!("sha256:{}", hex::encode([2; 32])), ..launch.clone() };
    for (expected, program, user, folder) in cases {
        (bad.program, bad.user, bad.working_dir) = (program, user.map(str::to_owned), folder);
        let refused = [device.initd.install(&bad).await, device.initd.start(&bad, GRACE).await];
        for refused in refused {
            let why = refused.unwrap_err().to_string();
            assert!(why.contains(expected), "{why}");
            assert!(!why.contains('\n') && why.contains("execution."), "{why}");
        }
        println!("initd: {}", device.initd.install(&bad).await.unwrap_err());
        let found = device.initd.find(&launch.identity).await.unwrap().unwrap();
        assert!(matches!(found.activity, Activity::Running { pid: same, .. } if same == pid), "{found:?}");
        assert_eq!((found.installed, found.exits), (launch.spec_hash.clone(), 0));
    }
}

async fn a_daemon_and_its_children_end_together(device: &Device) {
    // One child in a session of its own, one with no environment, one that is stopped.
    let script = "#!/bin/sh\nsetsid sleep 771234 &\nenv -i sleep 771234 &\nsleep 771234 &\n\
        while ! grep -q sleep /proc/$!/comm; do :; done\nkill -STOP $!\ntrap 'exit 0' TERM USR2\n\
        while :; do sleep 771234 & wait $!; done\n";
    let launch = device.launch("family", 1, script);
    let children = || device::with_argument("771234");
    device.run(&launch).await;
    until("it has children", || async { (children().len() == 4).then_some(()) }).await;
    device.initd.stop(&launch.identity, GRACE).await.unwrap();
    assert_eq!(children(), Vec::<i64>::new());
    // It ends by itself: so does the rest.
    let pid = device.run(&launch).await;
    until("it has children", || async { (children().len() == 4).then_some(()) }).await;
    device::signal(pid, "USR2");
    until("all have ended", || async { children().is_empty().then_some(()) }).await;
    assert_eq!(
        device.activity(&launch.identity).await,
        Activity::Ended(Exit { code: 0, reason: "Completed".to_owned() })
    );
}

async fn logs_stay_short(device: &Device) {
    let writing = "#!/bin/sh\n(while ! [ -e \"$GO\" ]; do sleep 0.02; done; seq 1 100000; echo last >&2) &\n";
    let mut launch = device.launch("log", 1, &conformance::OBEDIENT.replace("#!/bin/sh\n", writing));
    let go = device.path("go");
    launch.env = vec![("GO".to_owned(), go.to_str().unwrap().to_owned())];
    let log = device.path(&format!("log/{}.log", launch.identity));
    let written = || async { fs::read_to_string(&log).unwrap().ends_with("last\n").then_some(()) };
    let pid = device.run(&launch).await;
    fs::write(&go, "").unwrap();
    until("all is written", written).await;
    device.activity(&launch.identity).await;
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    let former = fs::read_to_string(log.with_extension("log.1")).unwrap();
    assert!(former.ends_with("100000\nlast\n") && former.len() == 256 * 1024);
    // It is as little for everybody as the log itself.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&log), mode(&log.with_extension("log.1"))), (0o640, 0o640));
    // The next run goes on where the file begins now.
    device::signal(pid, "KILL");
    fs::remove_file(&go).unwrap();
    device.run(&launch).await;
    fs::write(&go, "").unwrap();
    until("the next run is written", written).await;
    assert!(fs::read_to_string(&log).unwrap().starts_with("1\n2\n"));
}

/// What the agent does from time to time, although nothing has happened, costs next to nothing.
async fn a_look_is_cheap(device: &Device) {
    let launches: Vec<_> = (0..10).map(|n| device.launch(&format!("look-{n}"), 1, conformance::OBEDIENT)).collect();
    for launch in &launches {
        device.run(launch).await;
    }
    const LOOKS: u32 = 50;
    let begun = Instant::now();
    for _ in 0..LOOKS {
        assert_eq!(device.initd.list().await.unwrap().len(), 10);
    }
    let each = begun.elapsed() / LOOKS;
    println!("initd: a look at 10 processes takes {each:?}");
    // Once a minute that is a thousandth of a processor, also in a build for tests.
    assert!(each < Duration::from_millis(60), "{each:?}");
    let (mut ticks, mut memory) = (0, 0);
    let own = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let inherited: Vec<PathBuf> = own.filter(|target| !target.starts_with(device.folder.path())).collect();
    for launch in &launches {
        let shim = device.shim(&launch.identity);
        let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
        let fields: Vec<u64> = stat.rsplit_once(") ").unwrap().1.split(' ').filter_map(|f| f.parse().ok()).collect();
        ticks += fields[10] + fields[11];
        let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap_or("0");
        memory += line.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        // Nothing that the agent has open itself; a test has what was open in the shell that it was called from.
        let open = fs::read_dir(format!("/proc/{shim}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
        let others: Vec<_> =
            open.filter(|target| target != Path::new("/dev/null") && !inherited.contains(target)).collect();
        assert_eq!(others, Vec::<PathBuf>::new(), "the waiting one has it open");
    }
    println!("initd: ten that wait have used {ticks} hundredths of a second and hold {} KiB each", memory / 10);
}

/// A start that was cut off between the lock and the record keeps the next one out until it is known what became of it.
async fn half_a_start_keeps_others_out(device: &Device) {
    let mut launch = device.launch("half", 1, conformance::OBEDIENT);
    launch.env = vec![("MARK".to_owned(), "half".to_owned())];
    device.initd.install(&launch).await.unwrap();
    let description = device.path(&format!("state/initd/{}.json", launch.identity));
    let restart = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_praetor-agent"));
        command.args(["launch", "restart"]).arg(&description).arg("10000");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut kept_out = 0;
    for _ in 0..40 {
        let mut first = restart();
        let launcher = i64::from(first.id());
        let run = loop {
            let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
            let mut children = children.split_whitespace().filter_map(|pid| pid.parse::<i64>().ok());
            if let Some(run) = children.find(|pid| device::arguments(*pid).get(2).is_some_and(|verb| verb == "run")) {
                break Some(run);
            }
            if first.try_wait().unwrap().is_some() {
                break None;
            }
        };
        let Some(run) = run else { continue };
        // It may have ended already.
        let stopped = Command::new("kill").args(["-STOP", &run.to_string()]).status().unwrap().success();
        let _ = first.kill();
        first.wait().unwrap();
        let mut second = restart();
        tokio::time::sleep(Duration::from_millis(150)).await;
        if stopped {
            kept_out += u32::from(second.try_wait().unwrap().is_none());
            let _ = Command::new("kill").args(["-CONT", &run.to_string()]).status();
        }
        assert!(second.wait().unwrap().success());
        let copies = || device::roots_with_variable("MARK=half");
        until("what was held up goes on", || async { (copies().len() == 1).then_some(()) }).await;
        assert!(!device::arguments(run).iter().any(|a| a == "run") || device.shim(&launch.identity) == run);
    }
    println!("initd: of 40 half starts {kept_out} kept the next one out");
    assert!(kept_out > 0, "no start was held up in time: nothing was shown");
}

/// Whoever is killed at whatever moment, and whoever comes at the same time: one copy or none, and the next call makes
/// it right.
async fn kills_at_any_moment_leave_one_copy(device: &Device) {
    let rounds: u32 = std::env::var_os("PRAETOR_KILLS").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(60);
    let mark = "MARK=storm";
    let (mut before, mut killed) = (0, std::collections::BTreeMap::<String, u32>::new());
    let pause = || tokio::time::sleep(Duration::from_micros(u64::from(rand::random_range(0..25_000u32))));
    for round in 0..rounds {
        let mut launch = device.launch("storm", (round % 250) as u8, conformance::OBEDIENT);
        launch.env = vec![("MARK".to_owned(), "storm".to_owned())];
        let identity = launch.identity.clone();
        device.initd.install(&launch).await.unwrap();
        let description = device.path(&format!("state/initd/{identity}.json"));
        let restart = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_praetor-agent"));
            command.args(["launch", "restart"]).arg(&description).arg("10000");
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        };
        // A restart takes about 20 ms here: before it, in the middle and behind it.
        let mut launchers = [restart(), restart()];
        pause().await;
        let all = device::with_argument(description.to_str().unwrap());
        let victims: Vec<i64> = match round % 4 {
            0 => launchers.iter().map(|launcher| launcher.id().into()).take(1).collect(),
            1 => all,
            2 => all
                .into_iter()
                .filter(|pid| device::arguments(*pid).iter().any(|a| a == "run" || a == "enter"))
                .collect(),
            _ => device::roots_with_variable(mark),
        };
        for victim in victims {
            let verb = device::arguments(victim).get(2).cloned().unwrap_or_default();
            let _ = Command::new("kill").args(["-9", &victim.to_string()]).stderr(std::process::Stdio::null()).status();
            *killed.entry(verb).or_default() += 1;
        }
        for launcher in &mut launchers {
            launcher.wait().unwrap();
        }
        let copies = device::roots_with_variable(mark);
        assert!(copies.len() <= 1, "round {round}: {copies:?}");
        // What lives is found.
        let found = device.initd.find(&identity).await.unwrap().unwrap();
        if let (Activity::Running { pid, .. }, [copy]) = (&found.activity, copies.as_slice()) {
            assert_eq!(pid, copy, "round {round}");
        }
        if round % 3 == 0 {
            let pid = device.run(&launch).await;
            assert_eq!(device::roots_with_variable(mark), [pid], "round {round}");
            let found = device.initd.find(&identity).await.unwrap().unwrap();
            assert_eq!(found.running.as_ref(), Some(&launch.spec_hash), "round {round}");
            assert!(found.exits >= before, "round {round}");
            before = found.exits;
        }
    }
    println!("initd: {rounds} storms, never two copies; killed: {killed:?}");
    assert!(rounds < 40 || killed.contains_key("restart") && killed.contains_key("run"), "{killed:?}");
}
