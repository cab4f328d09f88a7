//! What a test sees of processes on the device, by `/proc` and not by the backend that it judges.

use praetor::agent::artifact::Fetched;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time that anything is waited for; two busy cores are slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until the condition gives something; panics with what was waited for when it takes too long.
pub async fn until<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Arguments of a process, with its program; empty when it is gone.
pub fn arguments(pid: i64) -> Vec<String> {
    words(&format!("/proc/{pid}/cmdline"))
}

/// `NAME=value` of its environment.
pub fn environment(pid: i64) -> Vec<String> {
    words(&format!("/proc/{pid}/environ"))
}

fn words(file: &str) -> Vec<String> {
    let bytes = fs::read(file).unwrap_or_default();
    let Some(bytes) = bytes.strip_suffix(b"\0") else { return Vec::new() };
    bytes.split(|&b| b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Its working directory, as itself sees it.
pub fn working_dir(pid: i64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The number of the user that it runs as.
pub fn user(pid: i64) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// The fields of its `stat` after its name: the first is its state.
fn stat(pid: i64) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Whether it lives; one that has ended and was not yet waited for does not.
pub fn alive(pid: i64) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z" && fields[0] != "X")
}

/// When it was started, hundredths of a second since the machine's start.
pub fn started(pid: i64) -> Option<i64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// Now, hundredths of a second since the machine's start.
pub fn now() -> i64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
    (seconds * 100.0).round() as i64
}

/// Waits for its end, by looking every millisecond. Returns when it was.
pub async fn end(pid: i64) -> i64 {
    let begun = Instant::now();
    while alive(pid) {
        assert!(begun.elapsed() < PATIENCE, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    now()
}

/// All processes there are.
fn pids() -> Vec<i64> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Processes that have this word among their arguments.
pub fn with_argument(word: &str) -> Vec<i64> {
    pids().into_iter().filter(|&pid| alive(pid) && arguments(pid).iter().any(|a| a == word)).collect()
}

/// Processes whose environment has this, without those whose parent has it, too.
pub fn roots_with_variable(variable: &str) -> Vec<i64> {
    let all: Vec<i64> =
        pids().into_iter().filter(|&pid| alive(pid) && environment(pid).iter().any(|v| v == variable)).collect();
    let parent = |pid: i64| stat(pid).and_then(|fields| fields.get(1)?.parse::<i64>().ok());
    // One that has ended meanwhile is none.
    all.iter().copied().filter(|&pid| parent(pid).is_some_and(|parent| !all.contains(&parent))).collect()
}

/// Whether a process has become its program, and that runs: an engine may be a step ahead of the program, and a shell
/// ahead of its script, which has set its traps when it has a child.
pub fn has_begun(pid: i64, program: &String) -> bool {
    arguments(pid).contains(program) && family(pid).len() > 1
}

/// Waits until this one shows among them: one that was just started is there a moment before its own environment can be
/// read, and a child of it may be seen sooner.
pub async fn shows_with_variable(variable: &str, pid: i64) {
    let shows = || async { roots_with_variable(variable).contains(&pid).then_some(()) };
    until("a process shows with its environment", shows).await;
}

/// It and all its descendants.
pub fn family(pid: i64) -> Vec<i64> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        at += 1;
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|child| child.parse::<i64>().ok()));
    }
    family
}

/// Sends it a signal: `KILL`, `USR1`, …; not every small device has a program for it.
pub fn signal(pid: i64, name: &str) {
    let known = [("KILL", Signal::KILL), ("TERM", Signal::TERM), ("USR1", Signal::USR1), ("USR2", Signal::USR2)];
    let (_, signal) = known.into_iter().find(|(known, _)| *known == name).unwrap();
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Writes a program, executable for all.
pub fn write_script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An artifact in a folder of its own, as the agent's store would have it, and its only program.
pub fn artifact(store: &Path, script: &str) -> (Fetched, String) {
    let digest = hex::encode(Sha256::digest(script));
    let root = store.join(&digest);
    let program = root.join("program");
    if !program.exists() {
        fs::create_dir_all(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        write_script(&program, script);
    }
    (Fetched { digest: format!("sha256:{digest}"), root: Some(root) }, program.to_str().unwrap().to_owned())
}
