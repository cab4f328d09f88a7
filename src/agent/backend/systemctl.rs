//! Edge: the only way to talk to systemd here: its own client, with no terminal, no translation and no patience for ever.

use super::{BackendError, exec};
use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// Runs systemctl: whether it was content, and what it said.
///
/// # Errors
/// There is no systemctl, or it does not come back in time.
pub async fn systemctl<S: AsRef<OsStr>>(arguments: &[S], patience: Duration) -> Result<(bool, String), BackendError> {
    let mut command = Command::new("systemctl");
    command.args(["--no-pager", "--no-ask-password", "--quiet"]).args(arguments);
    command.env_clear().env("PATH", exec::PATH).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match timeout(patience, command.output()).await {
        Ok(Ok(output)) => Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())),
        Ok(Err(error)) => Err(BackendError::Unavailable(format!("systemctl cannot be run: {error}"))),
        Err(_) => Err(BackendError::Failed("systemd does not answer systemctl".to_owned())),
    }
}
