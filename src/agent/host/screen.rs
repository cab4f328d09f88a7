//! Pure: what the agent believes, on one screen.

use super::live::{Contact, Live, Restart, Wanted};
use crate::wire::report::Observation;
use serde::Serialize;
use std::fmt::Write;

/// Hexadecimal digits of a hash that are shown.
const HASH_DIGITS: usize = 8;

/// All of it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Belief {
    /// The agent runs, a gateway answers, and every process does what it should.
    pub well: bool,
    /// The device's name, as far as it is known.
    pub device: Option<String>,
    /// The agent itself.
    pub agent: AgentState,
    /// The gateways, in order.
    pub gateways: Vec<String>,
    /// Where the token comes from.
    pub token: Option<String>,
    /// The settings file that counts.
    pub settings_file: Option<String>,
    /// The state folder.
    pub state_folder: String,
    /// The highest revision seen.
    pub revision: Option<u64>,
    /// Its processes.
    pub processes: Vec<Row>,
    /// What the gateway did not take, and what could not be found out.
    pub remarks: Vec<String>,
}

/// Whether the agent runs.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "state")]
pub enum AgentState {
    /// It does not.
    #[default]
    NotRunning,
    /// Something holds the state folder and does not answer.
    Silent,
    /// It cannot be found out.
    Unknown {
        /// Why.
        why: String,
    },
    /// It does.
    Running {
        /// Its version.
        version: String,
        /// Its process id.
        pid: u32,
        /// For how long, seconds.
        up_seconds: u64,
        /// It runs no processes.
        observe_only: bool,
        /// How it stands with asking what to run.
        desired: Contact,
        /// How it stands with reporting.
        report: Contact,
    },
}

/// One process.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// What runs it.
    pub backend: Option<String>,
    /// As in the cluster, or `Unknown` when nothing is known of it.
    pub phase: &'static str,
    /// Hash of the spec that should run; none when it should be gone.
    pub wanted: Option<String>,
    /// Hash of the spec that runs.
    pub running: Option<String>,
    /// Its process id.
    pub pid: Option<i64>,
    /// How often it was restarted.
    pub restarts: Option<i64>,
    /// The verdict of the health check.
    pub healthy: Option<bool>,
    /// Digest of its artifact.
    pub artifact: Option<String>,
    /// What is wrong, in one line.
    pub problem: Option<String>,
}

// === impl Belief ===

impl Belief {
    /// What a running agent has said.
    pub fn take(&mut self, live: &Live<'_>) {
        self.device = Some(live.device.clone());
        self.gateways.clone_from(&live.gateways);
        self.token = Some(live.token.clone());
        self.revision = live.revision;
        self.processes = rows(&live.wanted, &live.observations);
        self.remarks.extend(live.rejected.iter().map(|rejection| {
            format!("the gateway does not take {}/{}: {}", rejection.namespace, rejection.name, rejection.reason)
        }));
        self.agent = AgentState::Running {
            version: live.version.clone(),
            pid: live.pid,
            up_seconds: live.up_seconds,
            observe_only: live.observe_only,
            desired: live.desired.clone(),
            report: live.report.clone(),
        };
    }

    /// Judges whether all is well.
    pub fn judge(&mut self) {
        self.well = match &self.agent {
            AgentState::Running { desired, report, observe_only, .. } => {
                let good = |contact: &Contact| contact.seconds_ago.is_some() && contact.problem.is_none();
                good(desired) && good(report) && (*observe_only || self.processes.iter().all(Row::is_well))
            }
            _ => false,
        };
    }

    /// The screen.
    #[must_use]
    pub fn render(&self) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        lines.push(("device", self.device.clone().unwrap_or_else(|| "unknown".to_owned())));
        match &self.agent {
            AgentState::NotRunning => lines.push(("agent", "does not run".to_owned())),
            AgentState::Silent => {
                lines.push((
                    "agent",
                    "holds the state folder and does not answer: starting, busy or stopped".to_owned(),
                ));
            }
            AgentState::Unknown { why } => lines.push(("agent", format!("unknown: {why}"))),
            AgentState::Running { version, pid, up_seconds, observe_only, .. } => {
                let only = if *observe_only { ", observes only" } else { "" };
                lines.push((
                    "agent",
                    format!("runs for {} as process {pid}, version {version}{only}", age(*up_seconds)),
                ));
            }
        }
        if !self.gateways.is_empty() {
            lines.push(("gateways", self.gateways.join(", ")));
        }
        if let AgentState::Running { desired, report, .. } = &self.agent {
            lines.push(("asking", contact(desired)));
            lines.push(("reporting", contact(report)));
        }
        if let Some(token) = &self.token {
            lines.push(("token", token.clone()));
        }
        if let Some(file) = &self.settings_file {
            lines.push(("settings", file.clone()));
        }
        let revision = self.revision.map_or(String::new(), |revision| format!(", revision {revision}"));
        lines.push(("state", format!("{}{revision}", self.state_folder)));
        lines.extend(self.remarks.iter().map(|remark| ("note", remark.clone())));
        let mut text = String::new();
        for (name, value) in lines {
            let _ = writeln!(text, "{name:<10} {}", one_line(&value));
        }
        text.push('\n');
        if self.processes.is_empty() {
            text.push_str("No process is known.\n");
        } else {
            text.push_str(&table(&self.processes));
        }
        text
    }
}

fn contact(contact: &Contact) -> String {
    let last = match (contact.seconds_ago, &contact.gateway) {
        (Some(ago), Some(gateway)) => format!("last good answer {} ago from {gateway}", age(ago)),
        _ => "no good answer since its start".to_owned(),
    };
    match &contact.problem {
        Some(problem) => format!("fails: {problem}; {last}"),
        None => last,
    }
}

/// Days, hours, minutes or seconds: the two largest.
#[must_use]
pub fn age(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn short(hash: &str) -> String {
    hash.strip_prefix("sha256:").unwrap_or(hash).chars().take(HASH_DIGITS).collect()
}

fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 9] =
        ["PROCESS", "BACKEND", "PHASE", "HEALTHY", "PID", "RESTARTS", "WANTED", "RUNNING", "ARTIFACT"];
    let nothing = || "-".to_owned();
    let cells = |row: &Row| -> [String; 9] {
        [
            format!("{}/{}", row.namespace, row.name),
            row.backend.clone().unwrap_or_else(nothing),
            row.phase.to_owned(),
            row.healthy.map_or_else(nothing, |healthy| if healthy { "yes" } else { "no" }.to_owned()),
            row.pid.map_or_else(nothing, |pid| pid.to_string()),
            row.restarts.map_or_else(nothing, |count| count.to_string()),
            row.wanted.as_deref().map_or_else(|| "gone".to_owned(), short),
            row.running.as_deref().map_or_else(nothing, short),
            row.artifact.as_deref().map_or_else(nothing, short),
        ]
    };
    let all: Vec<_> = rows.iter().map(cells).collect();
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|i| all.iter().map(|row| row[i].chars().count()).chain([HEAD[i].len()]).max().unwrap_or(0))
        .collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(HEAD.to_vec());
    for (row, cells) in rows.iter().zip(&all) {
        text.push_str(&line(cells.iter().map(String::as_str).collect()));
        if let Some(problem) = &row.problem {
            let _ = writeln!(text, "    {}", one_line(problem));
        }
    }
    text
}

// === impl Row ===

impl Row {
    fn is_well(&self) -> bool {
        let done = self.phase == "Succeeded";
        done || (self.phase == "Running"
            && self.healthy != Some(false)
            && self.running == self.wanted
            && self.problem.is_none())
    }
}

/// What should run and what is said of it, by namespace and name; also what is there and should not be.
#[must_use]
pub fn rows(wanted: &[Wanted], observations: &[Observation<'_>]) -> Vec<Row> {
    let is = |o: &Observation<'_>, namespace: &str, name: &str| {
        o.namespace.as_deref() == Some(namespace) && o.name.as_deref() == Some(name)
    };
    let mut rows: Vec<Row> = wanted
        .iter()
        .map(|wanted| {
            let seen = observations.iter().find(|o| is(o, &wanted.namespace, &wanted.name));
            let mut row = seen.map(|o| row(o, wanted.restart)).unwrap_or_default();
            row.phase = if row.phase.is_empty() { "Unknown" } else { row.phase };
            row.namespace.clone_from(&wanted.namespace);
            row.name.clone_from(&wanted.name);
            row.wanted = Some(wanted.spec_hash.clone());
            row.backend = wanted.backend.map(|backend| backend.as_str().to_owned());
            row
        })
        .collect();
    for observation in observations {
        let known = |w: &Wanted| is(observation, &w.namespace, &w.name);
        if !wanted.iter().any(known) {
            rows.push(row(observation, Restart::Always));
        }
    }
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    rows
}

fn row(seen: &Observation<'_>, restart: Restart) -> Row {
    let text = |field: &Option<std::borrow::Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
    let some = |field: &Option<std::borrow::Cow<'_, str>>| field.as_deref().map(str::to_owned);
    let verified = seen.artifact_verified == Some(false);
    let problem = some(&seen.error_message)
        .or_else(|| some(&seen.artifact_last_error))
        .or_else(|| if verified { some(&seen.artifact_verify_message) } else { None })
        .or_else(|| some(&seen.health_message).filter(|_| seen.healthy == Some(false)))
        .or_else(|| some(&seen.warning_message));
    let started = seen.process_started == Some(true);
    let phase = phase(seen, restart);
    let ended = || {
        let code = seen.exit_code.filter(|_| phase == "Failed")?;
        let reason = seen.last_termination_reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
        Some(format!("it has ended with exit code {code}{reason} and is not started again"))
    };
    let problem = problem.or_else(ended);
    Row {
        namespace: text(&seen.namespace),
        name: text(&seen.name),
        backend: None,
        phase,
        wanted: None,
        running: some(&seen.running_spec_hash).or_else(|| if started { some(&seen.observed_spec_hash) } else { None }),
        pid: seen.pid.filter(|_| started),
        restarts: seen.restart_count,
        healthy: seen.healthy,
        artifact: some(&seen.artifact_digest),
        problem,
    }
}

/// As the cluster will show it: the first that fits.
fn phase(seen: &Observation<'_>, restart: Restart) -> &'static str {
    let ended = seen.exit_code.filter(|_| seen.process_started != Some(true));
    let stays = |code: i64| match restart {
        Restart::Always => false,
        Restart::OnFailure => code == 0,
        Restart::Never => true,
    };
    match ended {
        Some(0) if stays(0) => "Succeeded",
        _ if seen.error_message.is_some() => "Failed",
        Some(code) if stays(code) => "Failed",
        _ if seen.process_started == Some(true) => "Running",
        _ => "Pending",
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
