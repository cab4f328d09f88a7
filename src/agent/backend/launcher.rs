//! Edge: `praetor-agent launch`, not meant for people: what init scripts call, and the agent itself.
//!
//! ```text
//! launch start|stop|restart DESCRIPTION [GRACE_MS [DEVICE]]   0 done, 6 the spec is wrong, 1 another failure
//! launch status DESCRIPTION                                   0 it runs, 3 it does not
//! launch try DESCRIPTION                                      0 it could be started, 6 it could not
//! ```
//! Exit codes are those of the Linux Standard Base for init scripts. It does a whole restart, so that the agent's own
//! death in the middle of one leaves nothing half done.

use super::BackendError;
use super::footprint::Footprint;
use super::proc::Mark;
use super::shim::{self, BEGINS};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// First argument of all of this.
pub const COMMAND: &str = "launch";
/// "Program is not configured."
pub const REFUSED: u8 = 6;
/// "Program is not running."
const NOT_RUNNING: u8 = 3;
/// "User had insufficient privilege", and for the status "unknown".
const NOT_ALLOWED: u8 = 4;
/// "Invalid or excess arguments."
const USAGE: u8 = 2;
/// Grace of a stop that names none.
const GRACE: Duration = Duration::from_secs(10);
/// What a start may take until the program begins.
const START_TIME: Duration = Duration::from_secs(20);
/// What another start or stop may take beyond its grace.
const LOCK_TIME: Duration = Duration::from_secs(30);
/// Longest reason of a start that fails, bytes.
const LONGEST: u64 = 4096;

/// Does what the arguments of the program say if the first is `launch`; none: it is something else.
pub fn called(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    arguments.next().filter(|first| first == COMMAND)?;
    let rest: Option<Vec<String>> = arguments.map(|argument| argument.into_string().ok()).collect();
    let Some(rest) = rest else { return Some(usage()) };
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    if let ["as", ..] = *words {
        return Some(shim::become_check(&rest[1..]));
    }
    let [verb, file, ref more @ ..] = *words else { return Some(usage()) };
    if let ("try", []) = (verb, more) {
        return Some(done(shim::attempt(Path::new(file)).map(|()| None)));
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("praetor-agent launch: only root can do this");
        return Some(ExitCode::from(NOT_ALLOWED));
    }
    let Some(footprint) = Footprint::of(Path::new(file)) else { return Some(usage()) };
    let footprint = match more {
        // Who is told the device need not have the description any more.
        [_, device] => footprint.of_device(device),
        _ => footprint,
    };
    let grace = match more {
        [text] | [text, _] => text.parse().map(Duration::from_millis).unwrap_or(GRACE),
        _ => GRACE,
    };
    Some(match (verb, more) {
        ("run", [invocation]) => shim::run(&footprint, invocation),
        ("enter", [invocation, pid, ticks]) => match (pid.parse(), ticks.parse()) {
            (Ok(pid), Ok(ticks)) => shim::enter(&footprint, invocation, Mark { pid, ticks }),
            _ => usage(),
        },
        ("start", []) => done(start(&footprint, None).map(Some)),
        ("restart", [] | [_] | [_, _]) => done(start(&footprint, Some(grace)).map(Some)),
        ("stop", [] | [_] | [_, _]) => done(stop(&footprint, grace).map(Some)),
        ("status", []) => status(&footprint),
        _ => usage(),
    })
}

fn usage() -> ExitCode {
    eprintln!("praetor-agent launch: init scripts call it: start|stop|restart|status FILE");
    ExitCode::from(USAGE)
}

fn done(outcome: Result<Option<String>, BackendError>) -> ExitCode {
    match outcome {
        Ok(said) => {
            said.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if matches!(error, BackendError::Refused(_)) { REFUSED } else { 1 })
        }
    }
}

fn status(footprint: &Footprint) -> ExitCode {
    let identity = &footprint.identity;
    match footprint.live() {
        Some(record) => {
            println!("{identity} runs: process {}, from {}", record.process.pid, record.spec_hash);
            ExitCode::SUCCESS
        }
        None => {
            println!("{identity} does not run");
            ExitCode::from(NOT_RUNNING)
        }
    }
}

/// `replace`: what runs is stopped first, with this grace; none: what runs is left as it is.
fn start(footprint: &Footprint, replace: Option<Duration>) -> Result<String, BackendError> {
    // First of all, since what cannot run must not cost the one that does its life.
    attempt(&footprint.description_file())?;
    let lock = footprint.lock(replace.unwrap_or_default() + LOCK_TIME)?;
    if let (None, Some(record)) = (replace, footprint.live()) {
        return Ok(format!("{} runs already: process {}", footprint.identity, record.process.pid));
    }
    footprint.halt(replace.unwrap_or(GRACE))?;
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(|error| BackendError::Failed(format!("/proc/sys/kernel/random/uuid: {error}")))?;
    let invocation: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let mut child = shim::again("run")
        .arg(footprint.description_file())
        .arg(invocation)
        .stdin(Stdio::from(lock.0))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| BackendError::Failed(format!("cannot start {}: {error}", shim::SELF)))?;
    let answer = child.stdout.take().map(answer).unwrap_or_default();
    match answer.strip_prefix(BEGINS).unwrap_or(&answer) {
        "" if answer == BEGINS => Ok(format!("{} started", footprint.identity)),
        "" => Err(BackendError::Failed(format!("{} was killed before it began", footprint.identity))),
        why => Err(match (why.strip_prefix('R'), why.strip_prefix('F')) {
            (Some(why), _) => BackendError::Refused(why.to_owned()),
            (None, why_else) => BackendError::Failed(why_else.unwrap_or(why).to_owned()),
        }),
    }
}

/// Tries it as its user, in a process of its own: who has become another user does not come back.
fn attempt(description: &Path) -> Result<(), BackendError> {
    let cannot = |error: io::Error| BackendError::Failed(format!("cannot start {}: {error}", shim::SELF));
    let mut command = shim::again("try");
    let output = command.arg(description).stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(cannot)?;
    if output.status.success() { Ok(()) } else { Err(failure(output.status.code(), &output.stderr)) }
}

/// What a launcher's exit code and standard error mean.
#[must_use]
pub fn failure(code: Option<i32>, stderr: &[u8]) -> BackendError {
    let why = String::from_utf8_lossy(stderr).trim().replace('\n', " ");
    match code {
        Some(code) if code == i32::from(REFUSED) => BackendError::Refused(why),
        _ if why.is_empty() => BackendError::Failed("the launcher of init scripts was killed".to_owned()),
        _ => BackendError::Failed(why),
    }
}

/// What the new process says until it becomes the program, or as long as is waited for it.
fn answer(mut pipe: ChildStdout) -> String {
    let until = Instant::now() + START_TIME;
    let mut bytes = Vec::new();
    let mut buffer = [0; 512];
    while (bytes.len() as u64) < LONGEST {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        let ready = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left));
        match ready {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return format!("Fit did not begin within {} s", START_TIME.as_secs()),
            Ok(_) => {}
            Err(_) => break,
        }
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(size) => bytes.extend(&buffer[..size]),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn stop(footprint: &Footprint, grace: Duration) -> Result<String, BackendError> {
    let _lock = footprint.lock(grace + LOCK_TIME)?;
    let ran = footprint.live().is_some();
    footprint.halt(grace)?;
    Ok(format!("{} {}", footprint.identity, if ran { "stopped" } else { "did not run" }))
}

/// The absolute path of the agent's program, for scripts; also when its file was replaced since it was started.
///
/// # Errors
/// The system cannot tell.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}
