//! Edge: `praetor-agent status`: asks the running agent, else reads what it has left on the disk.

use super::answer::ask;
use super::commands::{FileFlag, FileRead};
use super::live::{Live, Wanted};
use super::lock::{self, Holder, absolute_folder_of};
use super::memory::recall;
use super::screen::{AgentState, Belief, rows};
use crate::agent::arguments::DEFAULT_STATE_FILE;
use crate::agent::backend::container::{self, arguments::ContainerArguments};
use crate::agent::backend::{self, Folders, Found};
use crate::agent::holding;
use crate::agent::process::identity::Identity;
use crate::agent::process::record::Record;
use clap::{Args, ValueEnum};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::timeout;

/// What a backend may take to say what it has.
const LISTING: Duration = Duration::from_secs(3);

/// Show what the agent of this device believes, on one screen
///
/// Asks the agent that runs with the state folder; without one, shows what it has left there. Exit code 0: the agent
/// runs, a gateway answers, and every process does what it should; otherwise 1.
#[derive(Debug, Default, Args)]
pub struct Status {
    #[command(flatten)]
    file: FileFlag,

    /// The agent's state file [default: /var/lib/apollo/agent/state.json]
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_STATE_FILE")]
    state_file: Option<PathBuf>,

    #[command(flatten)]
    containers: ContainerArguments,

    /// For people, or for programs
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// How the status is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One screen
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// Writes the status.
///
/// # Errors
/// When the output cannot be written.
pub fn status(command: &Status, file: &FileRead, out: &mut impl Write) -> io::Result<ExitCode> {
    let named = command.state_file.clone().filter(|path| !path.as_os_str().is_empty());
    let state_file = named.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_FILE));
    let mut belief = look(&state_file, file, command.containers.settle(None));
    belief.judge();
    match command.output {
        Output::Text => out.write_all(belief.render().as_bytes())?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &belief)?;
            writeln!(out)?;
        }
    }
    Ok(if belief.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn look(state_file: &Path, file: &FileRead, containers: container::Options) -> Belief {
    let folder = &absolute_folder_of(state_file);
    let mut belief = Belief {
        settings_file: file.path().map(|path| path.display().to_string()),
        state_folder: folder.display().to_string(),
        ..Belief::default()
    };
    if let FileRead::Denied(path) = file {
        belief.remarks.push(format!("{} may not be read: root sees more", path.display()));
    }
    let why = match ask(folder) {
        Ok(answer) => match serde_json::from_slice::<Live<'_>>(&answer) {
            Ok(live) => {
                belief.take(&live);
                return belief;
            }
            Err(error) => format!("it answers with something else: {error}"),
        },
        Err(error) => error.to_string(),
    };
    belief.agent = match lock::holder(folder) {
        Holder::Somebody => AgentState::Silent,
        Holder::Nobody => AgentState::NotRunning,
        Holder::Unknown(error) => AgentState::Unknown { why: format!("{}: {error}", folder.display()) },
    };
    if matches!(belief.agent, AgentState::Silent) {
        belief.remarks.push(format!("{}/agent.sock: {why}", folder.display()));
    }
    if let FileRead::Used(_, settings) = file {
        belief.device = settings.get("APOLLO_DEVICE_NAME").map(str::to_owned);
        let urls = settings.get("APOLLO_GATEWAY_URL").unwrap_or_default().split(',');
        belief.gateways = urls.map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect();
        belief.token = settings.get("APOLLO_DEVICE_TOKEN_FILE").map(str::to_owned);
    }
    remember(&mut belief, state_file, folder, containers);
    belief
}

/// What the state file says, and what is remembered and found of each process.
fn remember(belief: &mut Belief, state_file: &Path, folder: &Path, containers: container::Options) {
    let mut wanted = Vec::new();
    match std::fs::read(state_file).map(|bytes| held(belief, &bytes)) {
        Ok(Ok(all)) => wanted = all,
        Ok(Err(error)) => belief.remarks.push(format!("{} cannot be used: {error}", state_file.display())),
        Err(error) => belief.remarks.push(match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{} is not there: this device was never told what to run", state_file.display())
            }
            io::ErrorKind::PermissionDenied => format!("{} may not be read: root sees more", state_file.display()),
            _ => format!("{}: {error}", state_file.display()),
        }),
    }
    let records = records(&folder.join("processes"));
    let device = belief.device.clone().unwrap_or_default();
    let found = list(&Folders { state: folder.to_owned(), device }, containers);
    let identity = |wanted: &Wanted| Identity::new(&wanted.namespace, &wanted.name);
    let mut all: Vec<Identity> = wanted.iter().map(identity).collect();
    all.extend(records.iter().map(Record::identity).chain(found.iter().map(|found| found.identity.clone())));
    all.sort();
    all.dedup();
    let observations: Vec<_> = all
        .iter()
        .filter_map(|id| {
            let record = records.iter().find(|record| record.identity() == *id);
            let found = found.iter().find(|found| found.identity == *id);
            let wanted = wanted.iter().find(|wanted| identity(wanted) == *id);
            let mut said = recall(record, found, wanted.map(|wanted| wanted.spec_hash.as_str()));
            if let Some(wanted) = wanted {
                (said.namespace, said.name) = (Some(wanted.namespace.clone().into()), Some(wanted.name.clone().into()));
            }
            (record.is_some() || found.is_some()).then_some(said)
        })
        .collect();
    belief.processes = rows(&wanted, &observations);
}

fn held(belief: &mut Belief, bytes: &[u8]) -> serde_json::Result<Vec<Wanted>> {
    let record = serde_json::from_slice::<holding::Record<'_>>(bytes)?;
    belief.device = Some(record.device_name.to_string());
    belief.revision = record.revision;
    Ok(record.items.iter().map(Wanted::of).collect())
}

/// Only read: to set a broken one aside is the agent's business.
fn records(folder: &Path) -> Vec<Record> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    files.filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok()).collect()
}

/// What the backends have of ours.
fn list(folders: &Folders, containers: container::Options) -> Vec<Found> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let found = runtime.block_on(async {
        let mut all = Vec::new();
        for backend in backend::all(folders, containers) {
            let listing = async {
                backend.probe().await?;
                backend.list().await
            };
            if let Ok(Ok(found)) = timeout(LISTING, listing).await {
                all.extend(found);
            }
        }
        all
    });
    runtime.shutdown_timeout(Duration::ZERO);
    found
}
