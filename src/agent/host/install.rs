//! Edge: `praetor-agent install`: the service, its settings, its folder; nothing of any process.

use super::answer::ask;
use super::commands::{FileFlag, FileRead};
use super::live::Live;
use super::lock::folder_of;
use super::plan::{Item, Plan, PlanError, Wishes};
use super::service::Init;
use super::settings::{DEFAULT_PATH, MARK, SettingsFile};
use crate::agent::arguments::{ArgumentError, Arguments, DEFAULT_STATE_FILE};
use crate::agent::durable::place;
use clap::Args;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long the service may take until the agent answers.
const STARTING: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const NO_TOKEN: &str =
    "no token: only a gateway with --insecure-no-auth takes requests without one (--device-token-file)";
/// Where the program is in an image, unless somebody says otherwise.
const BINARY_IN_IMAGES: &str = "/usr/local/bin/praetor-agent";

/// Install the agent as a service that starts with this device
///
/// Writes a unit of systemd or an init script, a settings file (0600) from the flags and variables that are given, and
/// the state folder (0700); then starts the agent, or restarts it if something has changed: no process ends by that.
/// The service runs this very program where it is now. Called again, it changes what is different and keeps the rest,
/// settings included; after an upgrade of the program it is called without flags.
#[derive(Debug, Default, Args)]
pub struct Install {
    /// Show every file with its mode and content, and every command; change nothing
    #[arg(long)]
    dry_run: bool,

    /// What starts services here [default: found out]
    #[arg(long, value_name = "INIT")]
    init: Option<Init>,

    /// Absolute path of the program that the service runs [default: this one]
    #[arg(long, value_name = "PATH")]
    binary: Option<String>,

    /// Write into the tree of an image instead of this device; nothing is run
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    #[command(flatten)]
    agent: Arguments,

    #[command(flatten)]
    file: FileFlag,
}

/// Why it is not (wholly) installed or removed. One line that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Not root.
    #[error("{0} changes this device and must run as root; --dry-run shows what it would do")]
    Root(&'static str),
    /// A setting.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Neither of the two that are known.
    #[error("neither systemd nor /etc/init.d starts services here: say which one does with --init")]
    NoInit,
    /// The program.
    #[error("the program {0}: {1}")]
    Binary(String, String),
    /// Somebody else's.
    #[error("{0} is there and was not written by praetor-agent install: move it away first")]
    Foreign(PathBuf),
    /// The file system.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// A command.
    #[error("`{0}` failed: {1}")]
    Command(String, String),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// What is done to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Make,
    Replace,
    Tighten(u32),
    /// The folder is open to others, and holds what is not the agent's.
    Open(u32),
}

/// `path`, which is absolute, in the tree of an image.
#[must_use]
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Installs, and says what it has changed.
///
/// # Errors
/// At the first thing that is wrong; called again it goes on from there.
pub fn install(
    command: &Install,
    given: &[(String, String)],
    file: &FileRead,
    out: &mut impl Write,
) -> Result<ExitCode, InstallError> {
    let may = command.dry_run || command.root.is_some() || rustix::process::geteuid().is_root();
    if !may {
        return Err(InstallError::Root("install"));
    }
    let mut notes = Vec::new();
    check(command, &mut notes)?;
    let root = command.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let wishes = Wishes {
        init: command.init.map_or_else(|| find_init(&root, command.root.is_none()), Ok)?,
        binary: binary(command, &root, &mut notes)?,
        settings_file: named(command.file.settings_file.as_ref(), command.root.is_none()),
        settings: settings(given, file, command.root.is_none())?,
        live: command.root.is_none(),
    };
    let runlevels: Vec<char> =
        "0123456".chars().filter(|level| below(&root, Path::new(&format!("/etc/rc{level}.d"))).is_dir()).collect();
    let plan = wishes.plan(&runlevels)?;
    if wishes.init == Init::Initd && runlevels.is_empty() {
        notes.push("this device has no folders of runlevels (/etc/rc2.d …): let what starts it call /etc/init.d/praetor-agent start".to_owned());
    }
    let needs = plan.items.iter().map(|item| need(&root, item)).collect::<Result<Vec<_>, _>>()?;
    if command.dry_run {
        show(&plan, &needs, out)?;
    } else {
        apply(&plan, &needs, &root, &wishes, out)?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the agent would refuse at its start is refused now.
fn check(command: &Install, notes: &mut Vec<String>) -> Result<(), InstallError> {
    let agent = &command.agent;
    agent.device()?;
    agent.gateways()?;
    if let Some(root) = &command.root {
        in_image(agent, root, notes);
        return Ok(());
    }
    let fatal = !command.dry_run;
    match agent.token() {
        Ok(token) if token.value.is_none() => notes.push(NO_TOKEN.to_owned()),
        Ok(token) => notes.extend(token.concern().map(str::to_owned)),
        Err(error @ (ArgumentError::TwoTokens | ArgumentError::Token(_))) if fatal => return Err(error.into()),
        Err(error) => notes.push(error.to_string()),
    }
    let rest = [agent.trust().map(|_| ()), agent.policy().map(|_| ())];
    for error in rest.into_iter().filter_map(Result::err) {
        if fatal {
            return Err(error.into());
        }
        notes.push(error.to_string());
    }
    Ok(())
}

/// Files of an image may still be missing, and their owners are put right when it is packed.
fn in_image(agent: &Arguments, root: &Path, notes: &mut Vec<String>) {
    let (token, ca) = agent.files();
    if token.is_none() {
        notes.push(NO_TOKEN.to_owned());
    }
    for (what, path) in [("the token's file", &token), ("the CAs' file", &ca)] {
        let Some(path) = path else { continue };
        match fs::metadata(below(root, path)) {
            Ok(file) if token.as_ref() == Some(path) && file.mode() & 0o006 != 0 => {
                notes.push(format!("{what} {} can be read by every user: chmod 0600", path.display()));
            }
            Ok(_) => {}
            Err(_) => notes.push(format!("{what} {} is not in the image yet", path.display())),
        }
    }
}

fn find_init(root: &Path, live: bool) -> Result<Init, InstallError> {
    let there = |path: &str| below(root, Path::new(path)).exists();
    // As sd_booted(3) finds out; an image does not run.
    let systemd = if live {
        there("/run/systemd/system")
    } else {
        there("/lib/systemd/systemd") || there("/usr/lib/systemd/systemd")
    };
    match (systemd, there("/etc/init.d")) {
        (true, _) => Ok(Init::Systemd),
        (false, true) => Ok(Init::Initd),
        (false, false) => Err(InstallError::NoInit),
    }
}

fn binary(command: &Install, root: &Path, notes: &mut Vec<String>) -> Result<String, InstallError> {
    let path = match (&command.binary, &command.root) {
        (Some(path), _) => path.clone(),
        (None, Some(_)) => BINARY_IN_IMAGES.to_owned(),
        (None, None) => std::env::current_exe()?.display().to_string(),
    };
    match fs::metadata(below(root, Path::new(&path))) {
        Ok(file) if !file.is_file() || file.mode() & 0o111 == 0 => {
            return Err(InstallError::Binary(path, "it is no program".to_owned()));
        }
        Ok(file) if file.mode() & 0o002 != 0 => {
            let text = format!("every user can change it, and root would run it; run: chmod 0755 {path}");
            return Err(InstallError::Binary(path, text));
        }
        Ok(_) => {}
        Err(error) if command.root.is_none() && !command.dry_run => {
            return Err(InstallError::Binary(path, error.to_string()));
        }
        Err(_) => notes.push(format!("the program {path} is not there yet")),
    }
    Ok(path)
}

pub(super) fn named(path: Option<&PathBuf>, live: bool) -> String {
    let path = path.filter(|path| !path.as_os_str().is_empty()).cloned().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    absolute(&path.display().to_string(), live)
}

/// A name that means the same file wherever the service is started from. In an image there is nothing to start from.
fn absolute(path: &str, live: bool) -> String {
    match std::path::absolute(path) {
        Ok(whole) if live => whole.display().to_string(),
        _ => path.to_owned(),
    }
}

/// What the settings file has said so far, and what is given now.
fn settings(given: &[(String, String)], file: &FileRead, live: bool) -> Result<SettingsFile, PlanError> {
    let mut settings = match file {
        FileRead::Used(_, settings) => settings.clone(),
        FileRead::Absent | FileRead::Denied(_) => SettingsFile::default(),
    };
    for (name, value) in given {
        let path = ["_FILE", "_CONFIG", "_FOLDER"].iter().any(|end| name.ends_with(end)) && !value.is_empty();
        let value = if path { absolute(value, live) } else { value.clone() };
        settings.set(name, &value)?;
    }
    Ok(settings)
}

fn need(root: &Path, item: &Item) -> Result<Need, InstallError> {
    let path = below(root, Path::new(item.path()));
    let failed = |error| InstallError::Io(path.clone(), error);
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let other = matches!(item, Item::Link { .. }) && has_other_link(&path);
            return Ok(if other { Need::Nothing } else { Need::Make });
        }
        Err(error) => return Err(failed(error)),
    };
    match item {
        Item::Folder { mode, .. } => {
            let is = fs::metadata(&path).map_err(failed)?.mode() & 0o7777;
            // Only the state folder is nobody else's business, and only if nobody else uses it.
            if *mode != 0o700 || is & 0o077 == 0 {
                return Ok(Need::Nothing);
            }
            Ok(if holds_only_ours(&path) { Need::Tighten(is) } else { Need::Open(is) })
        }
        Item::File { content, mode, .. } => {
            let mut old = String::new();
            let file = File::open(&path).map_err(failed)?;
            let read = file.take(1 << 20).read_to_string(&mut old);
            if !found.is_file() || read.is_err() || !old.lines().take(20).any(|line| line.starts_with(MARK)) {
                return Err(InstallError::Foreign(path));
            }
            let same = old == *content && found.mode() & 0o7777 == *mode;
            Ok(if same { Need::Nothing } else { Need::Replace })
        }
        Item::Link { target, .. } => match fs::read_link(&path) {
            Ok(leads) if leads == Path::new(target) => Ok(Need::Nothing),
            _ => Err(InstallError::Foreign(path)),
        },
    }
}

/// Whether the service has a link in this folder of a runlevel already, at a place that somebody else has chosen.
fn has_other_link(path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let kind = |name: &str| name.chars().next();
    let mine = name(path);
    let Some(service) = mine.get(3..).filter(|_| mine.starts_with(['S', 'K'])) else { return false };
    let folder = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    folder.into_iter().flatten().flatten().map(|entry| name(&entry.path())).any(|other| {
        let place = other.get(1..3).is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        place && kind(&other) == kind(&mine) && other.get(3..) == Some(service)
    })
}

fn holds_only_ours(folder: &Path) -> bool {
    const OURS: [&str; 8] =
        ["state.json", "agent.sock", "processes", "artifacts", "runs", "units", "initd", "containers"];
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().all(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        OURS.iter().any(|ours| name == *ours || name.starts_with("state.json."))
    })
}

fn show(plan: &Plan, needs: &[Need], out: &mut impl Write) -> io::Result<()> {
    for (item, need) in plan.items.iter().zip(needs) {
        let word = match need {
            Need::Nothing | Need::Open(_) => "keep",
            Need::Make => "make",
            Need::Replace => "replace",
            Need::Tighten(_) => "tighten",
        };
        writeln!(out, "would {word} {}", item.describe(true))?;
    }
    for command in plan.register.iter().chain(&plan.restart) {
        writeln!(out, "would run {}", command.join(" "))?;
    }
    writeln!(out, "Nothing was changed.")
}

fn apply(plan: &Plan, needs: &[Need], root: &Path, wishes: &Wishes, out: &mut impl Write) -> Result<(), InstallError> {
    let mut changed = false;
    for (item, need) in plan.items.iter().zip(needs) {
        let path = below(root, Path::new(item.path()));
        carry_out(item, *need, &path).map_err(|error| InstallError::Io(path.clone(), error))?;
        let word = match need {
            Need::Nothing => "unchanged",
            Need::Make => "made",
            Need::Replace => "replaced",
            Need::Tighten(_) => "tightened",
            Need::Open(_) => "unchanged, though other users can look into it,",
        };
        writeln!(out, "{word} {}", item.describe(false))?;
        changed |= matches!(need, Need::Make | Need::Replace);
    }
    let enabled = !needs.is_empty()
        && wishes.init.links(&[]).iter().all(|link| fs::symlink_metadata(below(root, Path::new(link.path()))).is_ok());
    if changed || !enabled {
        for command in &plan.register {
            run(command, out)?;
        }
    }
    let (Some(start), Some(restart)) = (&plan.start, &plan.restart) else { return Ok(()) };
    let state_file = wishes.settings.get("APOLLO_AGENT_STATE_FILE").unwrap_or(DEFAULT_STATE_FILE);
    let folder = folder_of(Path::new(state_file));
    match pid(folder) {
        Some(pid) if !changed && runs_this(pid, &wishes.binary) => {
            writeln!(out, "The agent runs already, as process {pid}: nothing to do.")?;
            return Ok(());
        }
        Some(_) => run(restart, out)?,
        None => run(start, out)?,
    }
    match await_agent(folder) {
        Some(pid) => {
            writeln!(out, "The agent runs as process {pid}, and {} will start it with the device.", wishes.init.path())?
        }
        None => writeln!(out, "The agent does not answer yet: `praetor-agent doctor` says what keeps it.")?,
    }
    Ok(())
}

fn carry_out(item: &Item, need: Need, path: &Path) -> io::Result<()> {
    match (item, need) {
        (_, Need::Nothing | Need::Open(_)) => Ok(()),
        (Item::Folder { mode, .. }, Need::Tighten(_)) => fs::set_permissions(path, Permissions::from_mode(*mode)),
        (Item::Folder { mode, .. }, _) => {
            parents(path)?;
            DirBuilder::new().mode(*mode).create(path)?;
            // Whatever the caller's umask.
            fs::set_permissions(path, Permissions::from_mode(*mode))
        }
        (Item::File { mode, content, .. }, _) => {
            parents(path)?;
            place(path, content.as_bytes(), *mode)
        }
        (Item::Link { target, .. }, _) => {
            parents(path)?;
            symlink(target, path)
        }
    }
}

fn parents(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(0o755).create(parent))
}

pub(super) fn run(command: &[String], out: &mut impl Write) -> Result<(), InstallError> {
    let line = command.join(" ");
    let failed = |why: String| InstallError::Command(line.clone(), why);
    let (program, arguments) = command.split_first().ok_or_else(|| failed("there is none".to_owned()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        return Err(failed(format!("{}: {last}", output.status)));
    }
    writeln!(out, "ran {line}")?;
    Ok(())
}

fn pid(folder: &Path) -> Option<u32> {
    let answer = ask(folder).ok()?;
    serde_json::from_slice::<Live<'_>>(&answer).ok().map(|live| live.pid)
}

/// Whether a process runs the program as it is now: not an older one that has been replaced since.
fn runs_this(pid: u32, binary: &str) -> bool {
    let file = |path: String| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    file(format!("/proc/{pid}/exe")).is_some_and(|running| Some(running) == file(binary.to_owned()))
}

#[allow(clippy::disallowed_methods, reason = "a pause between two looks, with a deadline")]
fn await_agent(folder: &Path) -> Option<u32> {
    let deadline = Instant::now() + STARTING;
    loop {
        if let Some(pid) = pid(folder) {
            return Some(pid);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_the_same_wherever_the_service_begins() {
        let here = std::env::current_dir().unwrap();
        for name in ["APOLLO_AGENT_STATE_FILE", "APOLLO_AGENT_REGISTRY_CONFIG", "APOLLO_AGENT_ARTIFACT_FOLDER"] {
            let given = [(name.to_owned(), "kept/there".to_owned())];
            let read = |live| settings(&given, &FileRead::Absent, live).unwrap().get(name).map(PathBuf::from);
            assert_eq!(read(true), Some(here.join("kept/there")));
            assert_eq!(read(false), Some(PathBuf::from("kept/there")), "in an image");
        }
    }
}
