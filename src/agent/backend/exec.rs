//! Edge: health checks on the device itself: a command as a user, in a folder, with an environment, within a time.
//!
//! No shell sees it. It has a process group of its own, and all of that is killed when it is over, one way or another.

use super::accounts::User;
use super::{BackendError, Checked, Launch};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

/// Most of the output that is kept, bytes: its end. The whole message must not be longer than 1 KiB.
const OUTPUT: usize = 1024;
/// Longest beginning of a message.
const PREFIX: usize = 60;
/// What a program finds its own programs in, unless its spec says otherwise.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit code of the launcher when the command did not even begin.
pub const NOT_BEGUN: u8 = 254;
/// What it says then.
pub const CANNOT: &str = "cannot be run: ";

/// Runs a check of a process that runs on the device. `launcher`: the agent's own program, which can take up all groups
/// of a user before it becomes another program (`/proc/self/exe`, except in tests).
///
/// # Errors
/// [`BackendError::Refused`] when the user does not exist.
pub async fn check(
    launch: &Launch,
    command: &[String],
    timeout: Duration,
    launcher: &Path,
) -> Result<Checked, BackendError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(BackendError::Refused("healthCheck.exec.command is empty".to_owned()));
    };
    let user = launch.user.as_deref().map(find_user).transpose()?;
    let folder = working_dir(launch);
    let mut process = match &user {
        // The standard library lets go of all further groups; this one has some.
        Some(user) if user.groups.len() > 1 => {
            let mut process = Command::new(launcher);
            let groups: Vec<_> = user.groups.iter().map(u32::to_string).collect();
            process.args(["launch", "as", &user.uid.to_string(), &user.gid.to_string(), &groups.join(",")]);
            process.arg(&folder).arg(program).args(arguments).current_dir("/");
            process
        }
        Some(user) if !user.is_root() => {
            let mut process = Command::new(program);
            process.args(arguments).current_dir(&folder).uid(user.uid).gid(user.gid);
            process
        }
        _ => {
            let mut process = Command::new(program);
            process.args(arguments).current_dir(&folder);
            process
        }
    };
    process.env_clear().envs(environment(launch, user.as_ref())).process_group(0).kill_on_drop(true);
    Ok(match run(process, timeout).await {
        Ok((status, output)) => judge(status, timeout, &output),
        // The folder is named, since the system's word does not tell which of the two it means.
        Err(error) if !folder.is_dir() => Checked::Failed(format!("{CANNOT}{}: {error}", folder.display())),
        Err(error) => Checked::Failed(format!("{CANNOT}{program}: {error}")),
    })
}

/// The user of this name or number, from the device's own files.
///
/// # Errors
/// [`BackendError::Refused`]: there is none. [`BackendError::Failed`]: the files cannot be read.
pub fn find_user(wanted: &str) -> Result<User, BackendError> {
    let read = |path: &str| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|error| BackendError::Failed(format!("{path} cannot be read: {error}"))),
    };
    User::find(wanted, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|error| BackendError::Refused(error.to_string()))
}

/// Where a process runs: as its spec says, else in its artifact.
#[must_use]
pub fn working_dir(launch: &Launch) -> PathBuf {
    let root = || launch.artifact.root.clone();
    launch.working_dir.as_ref().map(PathBuf::from).or_else(root).unwrap_or_else(|| PathBuf::from("/"))
}

/// All variables of a process on the device: who it is and where programs are, then those of its spec.
#[must_use]
pub fn environment(launch: &Launch, user: Option<&User>) -> Vec<(String, String)> {
    let base = [("PATH", PATH)].into_iter().chain(user.into_iter().flat_map(User::environment));
    let missing = base.filter(|(name, _)| !launch.env.iter().any(|(own, _)| own == name));
    let mut all: Vec<_> = missing.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    all.extend(launch.env.iter().cloned());
    all
}

/// A process group that does not outlive its owner, also when a future is dropped.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group keeps its number as long as one of it lives, or the leader was not waited for; afterwards a new
        // group could get it, so this is done once, right behind the wait.
        if let Some(leader) = self.leader.take() {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// How it ended, none: it took too long; and the end of what it said.
async fn run(mut process: Command, timeout: Duration) -> io::Result<(Option<ExitStatus>, Vec<u8>)> {
    let until = Instant::now() + timeout;
    let (reader, writer) = io::pipe()?;
    process.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let child = process.spawn()?;
    // It holds the other end of the pipe as well.
    drop(process);
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group { child, leader };
    let pipe = Receiver::from_owned_fd(reader.into())?;
    let mut output = VecDeque::new();
    let watched = async {
        let mut open = true;
        loop {
            tokio::select! {
                status = group.child.wait() => return status,
                // Many programs close their output long before they end.
                ready = pipe.readable(), if open => open = ready.is_ok() && drain(&pipe, &mut output),
            }
        }
    };
    let status = match timeout_at(until, watched).await {
        Ok(status) => Some(status?),
        Err(_) => None,
    };
    if let Some(leader) = group.leader.take() {
        let _ = kill_process_group(leader, Signal::KILL);
    }
    if status.is_none() {
        group.child.wait().await?;
    }
    drain(&pipe, &mut output);
    Ok((status, output.into()))
}

/// Takes what is there; whether more may come.
fn drain(pipe: &Receiver, output: &mut VecDeque<u8>) -> bool {
    let mut buffer = [0; 4096];
    // So much at a time that a check which never stops talking does not keep the agent from everything else.
    for _ in 0..16 {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(size) => {
                output.extend(&buffer[..size]);
                output.drain(..output.len().saturating_sub(OUTPUT));
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

fn judge(status: Option<ExitStatus>, timeout: Duration, output: &[u8]) -> Checked {
    use std::os::unix::process::ExitStatusExt;
    let said = tail(output);
    let prefix = match status {
        Some(status) if status.success() => return Checked::Passed,
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) if code == i32::from(NOT_BEGUN) && said.starts_with(CANNOT) => {
                return Checked::Failed(said);
            }
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
        None => format!("timed out after {} s", timeout.as_secs()),
    };
    Checked::Failed(if said.is_empty() { prefix } else { format!("{prefix}: {said}") })
}

/// The end of an output as text, so short that the whole message is not cut at its end.
fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    let mut from = text.len().saturating_sub(OUTPUT - PREFIX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::artifact::Fetched;
    use crate::agent::process::identity::Identity;
    use crate::agent::process::spec::RestartPolicy;

    fn launch(user: Option<&str>) -> Launch {
        Launch {
            identity: Identity::new("infra", "agent"),
            uid: "u".to_owned(),
            spec_hash: "sha256:1".to_owned(),
            program: "/bin/agent".to_owned(),
            args: vec![],
            env: vec![("COLOUR".to_owned(), "deep blue".to_owned()), ("HOME".to_owned(), "/own".to_owned())],
            working_dir: Some("/tmp".to_owned()),
            user: user.map(str::to_owned),
            restart_policy: RestartPolicy::Always,
            artifact: Fetched { digest: "sha256:2".to_owned(), root: None },
        }
    }

    async fn shell(script: &str, millis: u64) -> Checked {
        let command = ["sh", "-c", script].map(str::to_owned);
        check(&launch(None), &command, Duration::from_millis(millis), Path::new("/nonexistent")).await.unwrap()
    }

    fn failed(why: &str) -> Checked {
        Checked::Failed(why.to_owned())
    }

    #[tokio::test]
    async fn exit_code_and_output_are_said() {
        assert_eq!(shell("exit 0", 9000).await, Checked::Passed);
        assert_eq!(shell("echo all is bad >&2; exit 3", 9000).await, failed("exit code 3: all is bad"));
        assert_eq!(shell("exit 254", 9000).await, failed("exit code 254"));
        assert_eq!(shell("kill -9 $$", 9000).await, failed("ended by signal 9"));
        assert_eq!(shell("echo $COLOUR $HOME; pwd; exit 1", 9000).await, failed("exit code 1: deep blue /own\n/tmp"));
        // Nothing of the agent's own environment; the shell adds PWD and such.
        assert_eq!(shell("env | grep -c CARGO; exit 1", 9000).await, failed("exit code 1: 0"));
    }

    #[tokio::test]
    async fn only_the_end_of_the_output_is_kept() {
        let Checked::Failed(why) = shell("seq 1 20000; exit 1", 20_000).await else { panic!() };
        assert!(why.ends_with("19999\n20000") && why.len() <= OUTPUT && why.len() > OUTPUT / 2, "{why}");
        let Checked::Failed(why) = shell("printf '\\377%s' $(seq 1 2000 | sed s/.*/äöü/); exit 1", 20_000).await
        else {
            panic!()
        };
        assert!(why.len() <= OUTPUT && why.ends_with('ü'), "{why}");
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_when_the_time_is_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let script = format!("echo so far; sleep 1000 & echo $! $$ >{}; wait", file.display());
        assert_eq!(shell(&script, 1500).await, failed("timed out after 1 s: so far"));
        for pid in fs::read_to_string(&file).unwrap().split_whitespace() {
            let pid: i32 = pid.parse().unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            while super::super::proc::Stat::of(pid).is_some_and(|stat| stat.lives()) {
                assert!(Instant::now() < until, "{pid} is still there");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn what_a_check_leaves_behind_does_not_hold_it_up() {
        let began = Instant::now();
        assert_eq!(shell("sleep 1000 & exit 0", 60_000).await, Checked::Passed);
        assert_eq!(shell("exec >&- 2>&-; exit 5", 60_000).await, failed("exit code 5"));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_said() {
        let none = Path::new("/nonexistent");
        let second = Duration::from_secs(1);
        let checked = check(&launch(None), &["/no/such/thing".to_owned()], second, none).await;
        assert_eq!(checked, Ok(failed("cannot be run: /no/such/thing: No such file or directory (os error 2)")));
        let mut lost = launch(None);
        lost.working_dir = Some("/no/such/folder".to_owned());
        let checked = check(&lost, &["true".to_owned()], second, none).await;
        assert_eq!(checked, Ok(failed("cannot be run: /no/such/folder: No such file or directory (os error 2)")));
        let refused = check(&launch(Some("nobody-at-all")), &["true".to_owned()], second, none).await;
        let why = "execution.user: the device has no user \"nobody-at-all\"".to_owned();
        assert_eq!(refused, Err(BackendError::Refused(why)));
        assert!(matches!(check(&launch(None), &[], second, none).await, Err(BackendError::Refused(_))));
    }

    #[tokio::test]
    async fn it_runs_as_its_user() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can become another user");
            return;
        }
        let command = ["sh", "-c", "id -u; id -g; id -G; exit 1"].map(str::to_owned);
        let patience = Duration::from_secs(20);
        let checked = check(&launch(Some("4242")), &command, patience, Path::new("/nonexistent")).await;
        assert_eq!(checked, Ok(failed("exit code 1: 4242\n4242\n4242")));
    }
}
