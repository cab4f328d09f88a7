//! `praetor-agent install` and `uninstall`, into the tree of an image; and what they have written, at work.

use super::*;
use crate::gateway::{Gateway, good};

const FLAGS: [&str; 6] = [
    "--device-name=tor1-01",
    "--gateway-url=https://gw-1.example.com:8443",
    "--gateway-url=https://gw-2.example.com:8443",
    "--device-token-file=/etc/apollo/token",
    "--gateway-ca-file=/etc/apollo/ca.crt",
    "--log-format=json",
];

/// An image of a device with these folders.
fn image(folders: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for folder in folders {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    root
}

fn install(root: &Path, more: &[&str]) -> Said {
    call(&[&["install", "--root", text(root)], more].concat())
}

#[test]
fn a_dry_run_shows_everything_and_does_nothing() {
    for init in ["systemd", "initd"] {
        let root = image(&["etc/rc2.d", "etc/rc6.d"]);
        let said = install(root.path(), &[&FLAGS[..], &["--init", init, "--dry-run"]].concat());
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        let golden = format!("{}/e2e/host/dry-run-{init}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("PRAETOR_UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &said.out).unwrap();
        }
        assert_eq!(said.out, fs::read_to_string(&golden).unwrap(), "PRAETOR_UPDATE_GOLDEN=1 writes it anew");
        assert!(!root.path().join("etc/apollo").exists() && !root.path().join("var").exists());
    }
}

#[test]
fn into_an_image_with_systemd() {
    let root = image(&["usr/lib/systemd"]);
    write(&root.path().join("usr/lib/systemd/systemd"), "", 0o755);
    let said = install(root.path(), &FLAGS);
    assert_eq!(said.code, 0, "{said:?}");
    let at = |path: &str| root.path().join(path);
    let unit = at("etc/systemd/system/praetor-agent.service");
    let modes = ["var/lib/apollo/agent", "etc/apollo", "etc/apollo/agent.env"].map(|path| mode(&at(path)));
    assert_eq!((modes, mode(&unit)), ([0o700, 0o755, 0o600], 0o644));
    let settings = fs::read_to_string(at("etc/apollo/agent.env")).unwrap();
    assert!(
        settings.contains("\nAPOLLO_GATEWAY_URL='https://gw-1.example.com:8443,https://gw-2.example.com:8443'\n"),
        "{settings}"
    );
    let link = at("etc/systemd/system/multi-user.target.wants/praetor-agent.service");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/etc/systemd/system/praetor-agent.service"));
    assert!(said.out.contains("made file /etc/apollo/agent.env (mode 0600)\n"), "{said:?}");

    // Again: nothing is changed, and what was given is kept without being said again.
    let said = install(root.path(), &[]);
    assert!(said.code == 0 && !said.out.contains("made") && !said.out.contains("replaced"), "{said:?}");
    assert_eq!(fs::read_to_string(at("etc/apollo/agent.env")).unwrap(), settings);
    let said = install(root.path(), &["--device-name=tor1-02"]);
    assert_eq!(said.line("replaced"), "replaced file /etc/apollo/agent.env (mode 0600)");
    assert_eq!(fs::read_to_string(at("etc/apollo/agent.env")).unwrap(), settings.replace("tor1-01", "tor1-02"));
    // Modes are put right, too, also of a folder that is in use.
    for kept in ["processes", "runs", "units", "initd", "containers"] {
        fs::create_dir(at("var/lib/apollo/agent").join(kept)).unwrap();
    }
    fs::set_permissions(at("etc/apollo/agent.env"), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(at("var/lib/apollo/agent"), Permissions::from_mode(0o755)).unwrap();
    let said = install(root.path(), &[]);
    assert!(said.out.contains("tightened folder /var/lib/apollo/agent"), "{said:?}");
    assert_eq!((mode(&at("etc/apollo/agent.env")), mode(&at("var/lib/apollo/agent"))), (0o600, 0o700));

    verify(&unit);

    // What the agent keeps and what others have put there stay.
    write(&at("var/lib/apollo/agent/state.json"), &held(), 0o600);
    write(&at("etc/apollo/token"), TOKEN, 0o600);
    let dry = call(&["uninstall", "--dry-run", "--root", text(root.path())]);
    assert!(dry.out.contains("would remove") && unit.exists(), "{dry:?}");
    let said = call(&["uninstall", "--root", text(root.path())]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!unit.exists() && !link.is_symlink() && !at("etc/apollo/agent.env").exists(), "{said:?}");
    assert!(at("etc/apollo/token").exists() && at("var/lib/apollo/agent/state.json").exists());
    assert!(said.out.contains("What runs of these goes on") && said.out.contains("  infra/a (systemd)\n"), "{said:?}");
    let said = call(&["uninstall", "--root", text(root.path())]);
    assert_eq!((said.code, said.out.as_str()), (0, "Nothing is installed.\n"));
}

/// The state file of a device with one process.
fn held() -> String {
    format!(
        r#"{{"deviceName":"{DEVICE}","items":[{{"uid":"u","namespace":"infra","name":"a","generation":1,"specHash":"sha256:1",
        "spec":{{"artifact":{{"type":"file","url":"/x"}},"execution":{{"backend":"systemd","command":["x"]}}}}}}]}}"#
    )
}

/// What systemd itself says of the unit, where there is one to ask.
fn verify(unit: &Path) {
    let folder = tempfile::tempdir().unwrap();
    // The program need not be there: the check is about the unit.
    let checked = folder.path().join("praetor-agent.service");
    fs::write(&checked, fs::read_to_string(unit).unwrap().replace("/usr/local/bin/praetor-agent", "/bin/true"))
        .unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no", text(&checked)]).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours: Vec<_> = said.lines().filter(|line| line.contains("praetor-agent.service")).collect();
            assert!(ours.is_empty(), "{said}");
        }
        Err(error) => eprintln!("skipped: systemd-analyze verify ({error})"),
    }
}

#[test]
fn what_was_not_written_by_it_is_left_alone() {
    let root = image(&["etc/init.d", "etc/rc2.d", "etc/apollo", "etc/systemd/system"]);
    let at = |path: &str| root.path().join(path);
    for path in ["etc/init.d/praetor-agent", "etc/apollo/agent.env"] {
        write(&at(path), "# mine\n", 0o600);
        let said = install(root.path(), &FLAGS);
        assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
        assert!(said.err.contains(path) && said.err.contains("move it away first"), "{said:?}");
        assert_eq!(fs::read_to_string(at(path)).unwrap(), "# mine\n");
        assert!(!at("var/lib/apollo").exists(), "nothing is done by halves");
        fs::remove_file(at(path)).unwrap();
    }
    // A masked unit is somebody's decision.
    std::os::unix::fs::symlink("/dev/null", at("etc/systemd/system/praetor-agent.service")).unwrap();
    let said = install(root.path(), &[&FLAGS[..], &["--init=systemd"]].concat());
    assert!(said.code == 1 && said.err.contains("move it away first"), "{said:?}");
    // A link that somebody has moved to another place in its runlevel stays there.
    std::os::unix::fs::symlink("../init.d/praetor-agent", at("etc/rc2.d/S03praetor-agent")).unwrap();
    let said = install(root.path(), &FLAGS);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(fs::read_dir(at("etc/rc2.d")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_installed_is_one_line() {
    let empty = image(&[]);
    let initd = image(&["etc/init.d"]);
    let name = "--device-name=tor1-01";
    let url = "--gateway-url=http://gw";
    for (root, arguments, part) in [
        (&empty, vec![name, url], "--init"),
        (&initd, vec![url], "--device-name"),
        (&initd, vec![name], "--gateway-url"),
        (&initd, vec!["--device-name=Tor", url], "\"Tor\""),
        (&initd, vec![name, url, "--device-token=x"], "from a file alone"),
        (&initd, vec![name, url, "--device-token-file=/tmp/t"], "--device-token-file /tmp/t"),
        (&initd, vec![name, url, "--binary=/var/tmp/a"], "/usr/local/bin"),
        (&initd, vec![name, url, "--binary=a"], "absolute path"),
        (&initd, vec![name, url, "--state-file=/a b/s"], "absolute path"),
        (&initd, vec![name, "--gateway-url=http://gw/it's"], "APOLLO_GATEWAY_URL"),
    ] {
        let said = install(root.path(), &arguments);
        assert_eq!((said.code, said.err.lines().count()), (1, 1), "{arguments:?} {said:?}");
        assert!(said.err.contains(part), "{said:?}");
        assert!(!root.path().join("etc/apollo").exists());
    }
    let said = install(initd.path(), &[name, url]);
    assert!(said.code == 0 && said.line("note: no token").contains("--device-token-file"), "{said:?}");
    assert!(said.line("note: this device has no folders of runlevels").contains("start"), "{said:?}");
    let said = call(&["install", "--init=upstart"]);
    assert_eq!(said.code, 2, "{said:?}");
}

/// The script of an image, its paths put to where the test may write.
fn script(parent: &Path, gateway: &Gateway, token: &Path) -> PathBuf {
    let root = image(&["etc/init.d"]);
    let said = install(root.path(), &["--device-name=tor1-01", "--gateway-url=http://gw"]);
    assert_eq!(said.code, 0, "{said:?}");
    let settings = parent.join("agent.env");
    let state = parent.join("agent/state.json");
    let lines = [
        format!("APOLLO_DEVICE_NAME={DEVICE}"),
        format!("APOLLO_GATEWAY_URL={}", gateway.url()),
        format!("APOLLO_DEVICE_TOKEN_FILE={}", token.display()),
        format!("APOLLO_AGENT_STATE_FILE='{}'", state.display()),
    ];
    write(&settings, &lines.join("\n"), 0o600);
    let text = fs::read_to_string(root.path().join("etc/init.d/praetor-agent")).unwrap();
    let text = text
        .replace("agent=/usr/local/bin/praetor-agent\n", &format!("agent={}\n", binary()))
        .replace("settings=/etc/apollo/agent.env\n", &format!("settings={}\n", settings.display()))
        .replace("pidfile=/run/", &format!("pidfile={}/", parent.display()));
    let script = parent.join("praetor-agent");
    write(&script, &text, 0o755);
    script
}

#[test]
fn the_init_script_keeps_the_agent_running() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let script = script(parent.path(), &gateway, &token);
    // Busybox's shell, too, where there is one.
    let lint = Command::new("sh").arg("-n").arg(&script).status().unwrap();
    assert!(lint.success());
    let run = |verb: &str| Said::of(Command::new(&script).arg(verb).stdin(Stdio::null()).output().unwrap());
    let pid = || {
        let state = parent.path().join("agent/state.json");
        let said = call(&["status", "--output=json", "--state-file", text(&state)]);
        serde_json::from_str::<serde_json::Value>(&said.out).unwrap()["agent"]["pid"].as_u64()
    };
    let kill = |signal: &str, pid: u64| {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success())
    };
    assert_eq!(run("status").code, 3);
    assert_eq!(run("nonsense").code, 2);
    struct Stop<'a>(&'a dyn Fn(&str) -> Said);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            (self.0)("stop");
        }
    }
    let stop = Stop(&run);
    let said = run("start");
    assert_eq!(said.code, 0, "{said:?}");
    let first = await_some("the agent", pid);
    assert_eq!(run("status").code, 0);
    assert!(run("start").out.contains("runs already"));
    assert_eq!(pid(), Some(first), "there is one agent");
    kill("-KILL", first);
    let second = await_some("another agent", || pid().filter(|pid| *pid != first));
    let said = run("restart");
    assert_eq!(said.code, 0, "{said:?}");
    let third = await_some("a third agent", || pid().filter(|pid| *pid != second));
    assert_eq!(run("stop").code, 0);
    assert!(!Path::new(&format!("/proc/{third}")).exists(), "the agent ends before its script says so");
    assert_eq!((run("status").code, pid()), (3, None));
    // A pid file whose number somebody else has by now is nobody's.
    write(&parent.path().join("praetor-agent.pid"), &format!("{}\n", std::process::id()), 0o644);
    assert_eq!((run("status").code, run("stop").code), (3, 0));
    drop(stop);
}
