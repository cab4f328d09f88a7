//! Edge: `praetor-agent uninstall`: takes away what `install` has written, and nothing else.

use super::install::{InstallError, below, named, run};
use super::live::Wanted;
use super::lock::folder_of;
use super::service::Init;
use super::settings::{MARK, SettingsFile};
use crate::agent::arguments::DEFAULT_STATE_FILE;
use crate::agent::holding::Record;
use clap::Args;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Remove the service and its settings file
///
/// Processes that the agent has started go on, and nobody looks after them any more: to have them stopped, delete their
/// DeviceProcesses first and wait until they are gone. The state folder, the token and the program stay.
#[derive(Debug, Default, Args)]
pub struct Uninstall {
    /// The settings file that `install` has written [default: /etc/apollo/agent.env]
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_SETTINGS_FILE")]
    settings_file: Option<PathBuf>,

    /// Show what would be removed and run; change nothing
    #[arg(long)]
    dry_run: bool,

    /// Remove it from the tree of an image instead of this device; nothing is run
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Removes what [`super::install::install`] has written, and says what stays.
///
/// # Errors
/// At the first thing that is wrong; called again it goes on from there.
pub fn uninstall(command: &Uninstall, out: &mut impl Write) -> Result<ExitCode, InstallError> {
    let live = command.root.is_none();
    if live && !command.dry_run && !rustix::process::geteuid().is_root() {
        return Err(InstallError::Root("uninstall"));
    }
    let root = command.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let settings_file = PathBuf::from(named(command.settings_file.as_ref(), live));
    let settings = fs::read_to_string(below(&root, &settings_file)).unwrap_or_default();
    let settings = SettingsFile::parse(&settings).unwrap_or_default();
    let mut removed = 0;
    let mut remove = |path: &Path, out: &mut dyn Write| -> Result<(), InstallError> {
        removed += 1;
        if command.dry_run {
            return Ok(writeln!(out, "would remove {}", path.display())?);
        }
        fs::remove_file(path).map_err(|error| InstallError::Io(path.to_owned(), error))?;
        Ok(writeln!(out, "removed {}", path.display())?)
    };
    let act = |words: &str, out: &mut dyn Write| -> Result<(), InstallError> {
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        match (live, command.dry_run) {
            (false, _) => Ok(()),
            (true, true) => Ok(writeln!(out, "would run {}", words.join(" "))?),
            (true, false) => run(&words, &mut &mut *out),
        }
    };
    for init in [Init::Systemd, Init::Initd] {
        let service = below(&root, Path::new(&init.path()));
        match fs::read_to_string(&service) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(InstallError::Io(service, error)),
            Ok(text) if !text.lines().take(20).any(|line| line.starts_with(MARK)) => {
                return Err(InstallError::Foreign(service));
            }
            Ok(_) => {}
        }
        match init {
            Init::Systemd => act("systemctl disable --now praetor-agent.service", out)?,
            Init::Initd => act(&format!("{} stop", init.path()), out)?,
        }
        for link in links(&root, init) {
            remove(&link, out)?;
        }
        remove(&service, out)?;
        if init == Init::Systemd {
            act("systemctl daemon-reload", out)?;
        }
    }
    let settings_at = below(&root, &settings_file);
    match fs::read_to_string(&settings_at) {
        Ok(text) if text.starts_with(MARK) => remove(&settings_at, out)?,
        Ok(_) => writeln!(out, "kept {}: it was not written by praetor-agent install", settings_at.display())?,
        Err(_) => {}
    }
    if removed == 0 {
        writeln!(out, "Nothing is installed.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let state_file = below(&root, Path::new(settings.get("APOLLO_AGENT_STATE_FILE").unwrap_or(DEFAULT_STATE_FILE)));
    leave(&state_file, settings.get("APOLLO_DEVICE_TOKEN_FILE"), out)?;
    Ok(ExitCode::SUCCESS)
}

/// The links of a service that there are, wherever somebody has put them.
fn links(root: &Path, init: Init) -> Vec<PathBuf> {
    if init == Init::Systemd {
        // Those that systemd has made it has removed by now.
        let all = init.links(&[]).into_iter().map(|link| below(root, Path::new(link.path())));
        return all.filter(|path| fs::symlink_metadata(path).is_ok()).collect();
    }
    let mut found = Vec::new();
    for level in "0123456S".chars() {
        let entries = fs::read_dir(below(root, Path::new(&format!("/etc/rc{level}.d"))));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.starts_with(['S', 'K']) && name.get(3..) == Some("praetor-agent");
            if ours && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn leave(state_file: &Path, token: Option<&str>, out: &mut impl Write) -> io::Result<()> {
    let folder = folder_of(state_file);
    if folder.exists() {
        writeln!(
            out,
            "kept {}: the state, and artifacts of processes that may still run from there",
            folder.display()
        )?;
    }
    if let Some(token) = token {
        writeln!(out, "kept {token}: the token")?;
    }
    let bytes = fs::read(state_file).unwrap_or_default();
    let wanted: Vec<_> = serde_json::from_slice::<Record<'_>>(&bytes)
        .map(|record| record.items.iter().map(Wanted::of).collect())
        .unwrap_or_default();
    if !wanted.is_empty() {
        writeln!(out, "What runs of these goes on, and nobody looks after it any more:")?;
        for process in wanted {
            let backend = process.backend.map_or("unknown", |backend| backend.as_str());
            writeln!(out, "  {}/{} ({backend})", process.namespace, process.name)?;
        }
    }
    Ok(())
}
