//! The agent as a guest of its device: installing, asking, examining, with the real binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "tls/authority.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod authority;
#[path = "host/doctor.rs"]
mod doctor;
#[path = "host/gateway.rs"]
mod gateway;
#[path = "host/install.rs"]
mod install;
#[path = "host/status.rs"]
mod status;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const DEVICE: &str = "tor1-01";
const TOKEN: &str = "5bdcc146bf60754e6a042426089575c7";
/// Longest time that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_praetor-agent")
}

/// The agent's program, knowing nothing of the environment of the test.
fn command() -> Command {
    let mut command = Command::new(binary());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

/// What a call writes, and its exit code.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The whole line that holds `part`.
    fn line(&self, part: &str) -> &str {
        self.out.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part:?} is missing: {self:#?}"))
    }
}

fn call(arguments: &[&str]) -> Said {
    Said::of(command().args(arguments).output().unwrap())
}

/// A running agent; it ends with the test.
struct Agent(Child);

impl Agent {
    fn start(mut command: Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A folder with a token's file.
fn device() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    write(&token, &format!("{TOKEN}\n"), 0o600);
    (folder, token)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[allow(clippy::disallowed_methods, reason = "a pause between two looks, with a deadline")]
fn await_some<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn await_true(what: &str, mut condition: impl FnMut() -> bool) {
    await_some(what, || condition().then_some(()));
}

#[test]
fn a_tokens_file_is_nobody_elses_business() {
    let gateway = gateway::Gateway::start(gateway::good(&[]));
    let (folder, token) = device();
    let state = folder.path().join("s/state.json");
    let run = || {
        let mut command = command();
        command.args(["--device-name", DEVICE, "--gateway-url", &gateway.url(), "--state-file", text(&state)]);
        command.args(["--device-token-file", text(&token)]);
        command
    };
    for bad in [0o644, 0o604, 0o646] {
        write(&token, TOKEN, bad);
        let said = Said::of(run().output().unwrap());
        assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
        for part in ["--device-token-file", text(&token), &format!("mode 0{bad:o}"), "run: chmod 0600 "] {
            assert!(said.err.contains(part), "{said:?}");
        }
        assert!(!said.err.contains(TOKEN));
    }
    write(&token, TOKEN, 0o640);
    let mut child = run().stderr(Stdio::piped()).spawn().unwrap();
    await_true("the agent with a token that its group can read", || {
        gateway.paths().iter().any(|p| p.ends_with("/report"))
    });
    child.kill().unwrap();
    let said = child.wait_with_output().unwrap();
    let log = String::from_utf8(said.stderr).unwrap();
    assert_eq!(log.lines().filter(|l| l.contains("WARN") && l.contains("mode 0640")).count(), 1, "{log}");
    assert!(!log.contains(TOKEN), "{log}");
    // Only root can give a file away.
    write(&token, TOKEN, 0o600);
    if std::os::unix::fs::chown(&token, Some(12_345), None).is_ok() {
        let said = Said::of(run().output().unwrap());
        assert!(said.code == 1 && said.err.contains("belongs to user 12345"), "{said:?}");
    } else {
        eprintln!("skipped: a token's file of a stranger (needs root)");
    }
}
