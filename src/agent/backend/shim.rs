//! Edge: the start of a process of init, and the one that waits for its end.
//!
//! `launch run` is a process of the agent's own program that only waits: it is the head of a session of its own, has no
//! environment and nothing open, and writes down how the program has ended. Its child, `launch enter`, writes the
//! journal's line and the record with its *own* id and start time, lets go of root and becomes the program. So there
//! is no moment in which the program runs and is not known, whoever is killed.
//!
//! When the waiting one is killed the program goes on; the agent knows it by the record, and how it ends then is not
//! known to anybody (255, `Unknown`). All of the program ends with its first process: what that leaves behind is
//! ended, as systemd does it.

use super::BackendError;
use super::accounts::User;
use super::exec::{CANNOT, NOT_BEGUN, find_user};
use super::files::head;
use super::footprint::Footprint;
use super::journal::{EXITED, Line, SIGNAL, UNKNOWN};
use super::proc::{Mark, Stat, boot_id};
use super::program::{self, Kind, OTHER_FORMATS};
use super::script::{Description, RUN, Record, run_of};
use crate::runtime::clock::unix_seconds;
use rustix::fs::Access;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

/// The agent's own program, also when its file was replaced meanwhile.
pub const SELF: &str = "/proc/self/exe";
/// What lists of processes call those that wait; `killall praetor-agent` does not mean them.
const NAME: &str = "praetor-run";
/// What the rest of a process may take to end, once its first process has.
const REST_GRACE: Duration = Duration::from_secs(1);
/// What `enter` says on its standard output when it is about to become the program; what follows is why not.
pub const BEGINS: &str = "1";

/// `launch run`: standard input is the lock, standard output is for `enter`.
pub fn run(footprint: &Footprint, invocation: &str) -> ExitCode {
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/comm", NAME);
    // Not for the child to find out: who is killed now leaves it to init, and that is not to be taken for this.
    let Some(own) = Mark::own() else { return ExitCode::FAILURE };
    let child = again("enter")
        .arg(footprint.description_file())
        .args([invocation, &own.pid.to_string(), &own.ticks.to_string()])
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .spawn();
    // Lock and answer are the child's alone now: it closes both by becoming the program.
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    let Ok(status) = child.and_then(|mut child| child.wait()) else { return ExitCode::FAILURE };
    let (result, code) = words(status);
    let (result, at) = (result.to_owned(), unix_seconds());
    footprint.note(&Line::Exit { result, code, at, invocation: invocation.to_owned() });
    match footprint.end_rest(invocation, REST_GRACE) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The agent's program with another task, without its environment: that may hold the agent's token.
pub fn again(verb: &str) -> Command {
    let mut command = Command::new(SELF);
    command.arg0("praetor-agent").args(["launch", verb]).env_clear().current_dir("/").stderr(Stdio::null());
    command
}

fn words(status: ExitStatus) -> (&'static str, String) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (EXITED, code.to_string()),
        (None, Some(signal)) => (SIGNAL, signal.to_string()),
        (None, None) => (UNKNOWN, "-".to_owned()),
    }
}

/// `launch enter`: becomes the program. Returns only when it cannot, and has said why.
pub fn enter(footprint: &Footprint, invocation: &str, shim: Mark) -> ExitCode {
    let Ok(mut answer) = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3).map(File::from) else {
        return ExitCode::from(NOT_BEGUN);
    };
    let error = match begin(footprint, invocation, shim, &mut answer) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let kind = if matches!(error, BackendError::Refused(_)) { 'R' } else { 'F' };
    let _ = write!(answer, "{kind}{error}");
    ExitCode::from(NOT_BEGUN)
}

fn begin(
    footprint: &Footprint,
    invocation: &str,
    shim: Mark,
    answer: &mut File,
) -> Result<std::convert::Infallible, BackendError> {
    let failed = |what: &str, error: io::Error| BackendError::Failed(format!("{what}: {error}"));
    let path = footprint.description_file();
    let description = Footprint::description(&path).map_err(|error| failed(&path.display().to_string(), error))?;
    let user = description.user.as_deref().map(find_user).transpose()?;
    let _ = rustix::process::setpgid(None, None);
    // Whatever the agent has, a program creates its files as programs of init do.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Nor is a program as precious as an agent may be.
    if fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|score| score.starts_with('-')) {
        let _ = fs::write("/proc/self/oom_score_adj", "0");
    }
    let output = description.log.as_deref().and_then(open_log);

    let own = i32::try_from(std::process::id()).ok().and_then(Stat::of);
    let process = own.ok_or_else(|| BackendError::Failed("/proc cannot be read".to_owned()))?;
    let (started, spec_hash) = (unix_seconds(), description.spec_hash.clone());
    let invocation = invocation.to_owned();
    footprint.note(&Line::Start { spec_hash: spec_hash.clone(), at: started, invocation: invocation.clone() });
    let record =
        Record { boot: boot_id(), process: process.mark(), shim, invocation: invocation.clone(), spec_hash, started };
    // Without it nobody would know the process, so that another could be started beside it.
    footprint.write_record(&record).map_err(|error| failed("the record of the run cannot be written", error))?;
    let _ = answer.write_all(BEGINS.as_bytes());

    let mut journal = OpenOptions::new().append(true).open(footprint.runs.file(&footprint.identity));
    let error = match become_user(&description, user.as_ref()) {
        Err(error) => error,
        Ok(()) => {
            let copy = || output.as_ref().and_then(|file| file.try_clone().ok()).map_or_else(Stdio::null, Stdio::from);
            let error = Command::new(&description.program)
                .args(&description.args)
                .env_clear()
                .envs(description.env.iter().map(|(name, value)| (name, value)))
                .env(RUN, run_of(&footprint.identity, &invocation, &description.device))
                .stdin(Stdio::null())
                .stdout(copy())
                .stderr(copy())
                .exec();
            BackendError::Refused(format!("execution.command: {}: {error}", description.program))
        }
    };
    // Nothing has run, so it must not count as an end. The file was opened as root.
    if let Ok(journal) = &mut journal {
        let _ = journal.write_all(format!("{}\n", Line::Stop { at: unix_seconds(), invocation }).as_bytes());
    }
    Err(error)
}

/// `launch try`: whether `enter` would work, found out as the user itself.
///
/// # Errors
/// [`BackendError::Refused`] with the field that is wrong.
pub fn attempt(path: &Path) -> Result<(), BackendError> {
    let description =
        Footprint::description(path).map_err(|error| BackendError::Failed(format!("{}: {error}", path.display())))?;
    let user = description.user.as_deref().map(find_user).transpose()?;
    let own = head(Path::new(SELF));
    become_user(&description, user.as_ref())?;
    let program = &description.program;
    let refused = |why: String| BackendError::Refused(format!("execution.command: {program} {why}"));
    let about = fs::metadata(program)
        .map_err(|error| BackendError::Refused(format!("execution.command: {program}: {error}")))?;
    if !about.is_file() {
        return Err(refused("is no file".to_owned()));
    }
    if rustix::fs::access(program.as_str(), Access::EXEC_OK).is_err() {
        return Err(refused("may not be executed".to_owned()));
    }
    // One may execute what one may not read.
    let begin = head(Path::new(program));
    if begin.is_empty() && about.len() > 0 {
        return Ok(());
    }
    match program::kind(&begin, &own) {
        Ok(Kind::Script(interpreter)) if rustix::fs::access(interpreter.as_str(), Access::EXEC_OK).is_err() => {
            Err(refused(format!("needs {interpreter}, which cannot be executed")))
        }
        Ok(_) => Ok(()),
        // The device may know formats of its own.
        Err(_) if Path::new(OTHER_FORMATS).exists() => Ok(()),
        Err(why) => Err(refused(why.to_string())),
    }
}

/// `launch as UID GID GROUPS FOLDER PROGRAM…`: becomes a health check.
pub fn become_check(arguments: &[String]) -> ExitCode {
    let number = |text: &String| text.parse::<u32>().ok();
    if let [uid, gid, groups, folder, program, rest @ ..] = arguments
        && let (Some(uid), Some(gid)) = (number(uid), number(gid))
    {
        let groups: Vec<u32> = groups.split(',').filter_map(|group| group.parse().ok()).collect();
        let error = match let_go(uid, gid, &groups).and_then(|()| rustix::process::chdir(folder.as_str())) {
            Ok(()) => Command::new(program).args(rest).exec(),
            Err(error) => error.into(),
        };
        eprintln!("{CANNOT}{program}: {error}");
    }
    ExitCode::from(NOT_BEGUN)
}

/// Lets go of root, for good, and goes where the program should begin.
fn become_user(description: &Description, user: Option<&User>) -> Result<(), BackendError> {
    if let Some(user) = user {
        let refused = |error| BackendError::Failed(format!("execution.user: cannot become {}: {error}", user.uid));
        let_go(user.uid, user.gid, &user.groups).map_err(refused)?;
    }
    let folder = &description.working_dir;
    rustix::process::chdir(folder.as_str())
        .map_err(|error| BackendError::Refused(format!("execution.workingDir: {folder}: {}", io::Error::from(error))))
}

/// Only good as long as the process has one thread: it is that thread's identity that changes.
fn let_go(uid: u32, gid: u32, groups: &[u32]) -> Result<(), rustix::io::Errno> {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

fn open_log(path: &str) -> Option<File> {
    // Never through a link that somebody else has put there.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).ok()?;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path).ok()
}
