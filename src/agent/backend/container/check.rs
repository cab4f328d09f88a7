//! Edge: health checks in containers.

use super::backend::Containers;
use super::engine::{EngineError, Question};
use super::frames::Tail;
use super::refusals;
use crate::agent::backend::{BackendError, Checked};
use http::Method;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Bytes of the end of the output that are shown.
const OUTPUT_BYTES: usize = 1024;
/// Between two looks at a check that is over but not accounted for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
        container: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<Checked, BackendError> {
        let deadline = Instant::now() + limit;
        let body = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let path = format!("/containers/{container}/exec");
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
        let ended = match timeout_at(deadline, self.run(&id, &mut tail)).await {
            Ok(Ok(code)) => Some(code),
            Ok(Err(EngineError::Refused { status, message })) if status < 500 => {
                return Ok(Checked::Failed(cannot_run(command, &message)));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => None,
        };
        if ended.is_none() {
            self.kill(container, &id).await?;
        }
        Ok(verdict(command, ended, limit, &tail.text()))
    }

    /// Reads what the command writes until it is over; its exit code.
    async fn run(&self, id: &str, tail: &mut Tail) -> Result<i64, EngineError> {
        let body = json!({"Detach": false, "Tty": false});
        let path = format!("/exec/{id}/start");
        let mut output = self.engine.open(Question::new(Method::POST, &path).with(&body)).await?;
        while let Some(bytes) = output.bytes().await? {
            tail.push(&bytes);
        }
        loop {
            let execution = self.execution(id).await?;
            match execution.exit_code {
                Some(code) if !execution.running => return Ok(code),
                _ => sleep(LOOK_AGAIN).await,
            }
        }
    }

    async fn execution(&self, id: &str) -> Result<Execution, EngineError> {
        self.engine.ask(Question::new(Method::GET, &format!("/exec/{id}/json"))).await
    }

    /// Kills a command and its process group. No engine does it: they only tell the process id, as the device sees it.
    async fn kill(&self, container: &str, id: &str) -> Result<(), BackendError> {
        let execution = self.execution(id).await?;
        let pid = Some(execution.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| execution.running) else { return Ok(()) };
        // An agent that is itself in a container, or a number that was given to somebody else meanwhile.
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", execution.pid)).unwrap_or_default();
        if !cgroup.contains(container) {
            debug!(pid = execution.pid, "a health check that takes too long is not seen from here and goes on");
            return Ok(());
        }
        // Each command is the leader of a session of its own.
        let killed = kill_process_group(pid, Signal::KILL).or_else(|_| kill_process(pid, Signal::KILL));
        if let Err(error) = killed {
            debug!(pid = execution.pid, %error, "a health check that took too long was over before it was killed");
        }
        Ok(())
    }
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
