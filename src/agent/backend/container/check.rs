//! Edge: health checks in containers.

use super::backend::Containers;
use super::engine::{EngineError, Question};
use super::found::Container;
use super::frames::Tail;
use super::refusals;
use crate::agent::backend::proc::Stat;
use crate::agent::backend::{BackendError, Checked};
use http::Method;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use serde_json::json;
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

/// Bytes of the end of the output that are shown.
const OUTPUT_BYTES: usize = 1024;
/// Before the first look at whether a check is over although its output is not; doubles each time.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Longest time between two looks.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    running: bool,
    exit_code: Option<i64>,
    #[serde(default)]
    pid: i32,
}

impl Containers {
    /// Runs a command in a container that runs: as its user, with its environment and its working directory.
    pub(super) async fn check_in(
        &self,
        container: &Container,
        command: &[String],
        limit: Duration,
    ) -> Result<Checked, BackendError> {
        let deadline = Instant::now() + limit;
        let body = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let path = format!("/containers/{}/exec", container.id);
        let made = self.engine.ask::<Made>(Question::new(Method::POST, &path).with(&body)).await;
        let id = match made {
            Ok(Made { id }) => id,
            // It has ended or was paused meanwhile.
            Err(error) if matches!(error.status(), Some(404 | 409)) => {
                return Ok(Checked::Failed("the container does not run".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let mut tail = Tail::new(OUTPUT_BYTES);
        let code = match timeout_at(deadline, self.run(&id, &mut tail)).await {
            Ok(Ok(code)) => Some(code),
            Ok(Err(EngineError::Refused { status, message })) if status < 500 => {
                return Ok(Checked::Failed(cannot_run(command, &message)));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => None,
        };
        let execution = self.execution(&id).await?;
        kill(container, &execution);
        Ok(verdict(command, code, limit, &tail.text()))
    }

    /// Reads what the command writes until it is over; its exit code. It may close its output before that, and leave
    /// somebody with the output after that.
    async fn run(&self, id: &str, tail: &mut Tail) -> Result<i64, EngineError> {
        let body = json!({"Detach": false, "Tty": false});
        let path = format!("/exec/{id}/start");
        let mut output = self.engine.open(Question::new(Method::POST, &path).with(&body)).await?;
        let (mut pause, mut closed) = (FIRST_LOOK, false);
        loop {
            let next = Instant::now() + pause;
            while !closed {
                match timeout_at(next, output.bytes()).await {
                    Ok(Ok(Some(bytes))) => tail.push(&bytes),
                    Ok(Ok(None) | Err(_)) => closed = true,
                    Err(_) => break,
                }
            }
            let execution = self.execution(id).await?;
            if let Some(code) = execution.exit_code.filter(|_| !execution.running) {
                // What it has written is on the way.
                while !closed && let Ok(Ok(Some(bytes))) = timeout(FIRST_LOOK, output.bytes()).await {
                    tail.push(&bytes);
                }
                return Ok(code);
            }
            if closed {
                tokio::time::sleep_until(next).await;
            }
            pause = LONGEST_LOOK.min(pause * 2);
        }
    }

    async fn execution(&self, id: &str) -> Result<Execution, EngineError> {
        self.engine.ask(Question::new(Method::GET, &format!("/exec/{id}/json"))).await
    }
}

/// Kills a command that still runs, or what one has left, with its process group. No engine does it: they only tell the
/// process id, as the device sees it.
fn kill(container: &Container, execution: &Execution) {
    let Some(group) = Some(execution.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return };
    // Each command leads a session of its own; what it leaves becomes a child of the container's first process.
    let member = if execution.running {
        Some(execution.pid)
    } else {
        children(container.state.pid)
            .into_iter()
            .find(|pid| Stat::of(*pid).is_some_and(|stat| stat.group == execution.pid))
    };
    let Some(member) = member else { return };
    // The number may have been given to somebody else meanwhile, or the agent itself be in a container.
    let cgroup = fs::read_to_string(format!("/proc/{member}/cgroup")).unwrap_or_default();
    if !cgroup.contains(&container.id) {
        debug!(pid = member, "a health check that takes too long is not seen from here and goes on");
        return;
    }
    if let Err(error) = kill_process_group(group, Signal::KILL).or_else(|_| kill_process(group, Signal::KILL)) {
        debug!(pid = member, %error, "a health check was over before it was killed");
    }
}

fn children(pid: i64) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn verdict(command: &[String], code: Option<i64>, limit: Duration, output: &str) -> Checked {
    let how = match code {
        Some(0) => return Checked::Passed,
        // Engines report it so when there is nothing to run, with their own words as the output.
        Some(126 | 127) if output.contains("OCI runtime exec failed") => {
            return Checked::Failed(cannot_run(command, output));
        }
        Some(code) => format!("exit code {code}"),
        None => format!("no result within {} s", limit.as_secs_f64()),
    };
    Checked::Failed(if output.is_empty() { how } else { format!("{how}: {output}") })
}

fn cannot_run(command: &[String], words: &str) -> String {
    let program = command.first().map_or("", String::as_str);
    if words.contains("not found") || words.contains("no such file") {
        format!("healthCheck.exec.command: {program} is not in the image")
    } else if words.contains("permission denied") {
        format!("healthCheck.exec.command: {program} may not be executed in the image")
    } else {
        format!("the container engine: {}", refusals::without_ids(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_sees_code_and_output() {
        let command = ["/bin/x".to_owned()];
        let said = |code, output| match verdict(&command, code, Duration::from_secs(5), output) {
            Checked::Passed => "passed".to_owned(),
            Checked::Failed(why) => why,
        };
        assert_eq!(said(Some(0), "all well"), "passed");
        assert_eq!(said(Some(3), ""), "exit code 3");
        assert_eq!(said(Some(3), "no route"), "exit code 3: no route");
        assert_eq!(said(None, "waiting"), "no result within 5 s: waiting");
        let words = "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/x\": \
                     stat /bin/x: no such file or directory: unknown";
        assert_eq!(said(Some(127), words), "healthCheck.exec.command: /bin/x is not in the image");
        assert_eq!(said(Some(127), "x: y: not found"), "exit code 127: x: y: not found");
    }
}
