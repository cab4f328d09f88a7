//! Edge: the command line: the agent itself, or one of the commands that look after it.

use super::doctor::{self, Doctor};
use super::install::{self, Install};
use super::settings::{DEFAULT_PATH, SettingError, SettingsFile};
use super::status::{self, Status};
use super::uninstall::{self, Uninstall};
use crate::agent::arguments::{ArgumentError, Arguments};
use crate::agent::run::{self, StartError};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs on a device: asks the gateway which processes the device should run, runs them, and reports what it has seen.
///
/// Without a command it is the agent. Every setting is a flag, a variable or a line of the settings file; a flag wins
/// over its variable, the variable over the file, and an empty one counts as absent. What it was told is kept in the
/// state file and goes on while the gateway is away.
#[derive(Parser)]
#[command(name = "praetor-agent", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct CommandLine {
    #[command(flatten)]
    agent: Arguments,

    #[command(flatten)]
    file: FileFlag,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Where settings are that are neither flags nor variables.
#[derive(Debug, Default, Clone, Args)]
pub struct FileFlag {
    /// File with lines NAME=value for variables that are not set, as `praetor-agent install` writes it
    ///
    /// The commands read /etc/apollo/agent.env, if it is there, unless another one is named; the agent itself reads
    /// only what is named.
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_SETTINGS_FILE")]
    pub settings_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    Install(Install),
    Uninstall(Uninstall),
    Status(Status),
    Doctor(Doctor),
}

/// What the command line and the settings file come to.
pub struct Invocation {
    line: CommandLine,
    /// Every setting that was given in any way, by the name of its variable.
    pub given: Vec<(String, String)>,
    /// The settings file that counts, and what became of it.
    pub file: FileRead,
}

/// The settings file, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileRead {
    /// None was named, and there is none where it would be looked for.
    Absent,
    /// It is in use.
    Used(PathBuf, SettingsFile),
    /// It is there and may not be read; only the commands go on without it.
    Denied(PathBuf),
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command line is no good, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The settings file cannot be read.
    #[error("--settings-file (APOLLO_AGENT_SETTINGS_FILE) {0}: {1}")]
    File(PathBuf, io::Error),
    /// It holds something else.
    #[error("--settings-file (APOLLO_AGENT_SETTINGS_FILE) {0}: {1}")]
    Setting(PathBuf, SettingError),
    /// The agent's settings.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The agent's start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Installing, or removing.
    #[error(transparent)]
    Install(#[from] install::InstallError),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Does what the command line says. The exit code is 0 when all is well, 1 when not, and 2 for a command line that makes
/// no sense.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Invocation::read(arguments.into_iter().collect()).and_then(Invocation::carry_out) {
        Ok(code) => code,
        Err(CommandError::Usage(error)) => {
            // Help goes to stdout and is no failure.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
        }
        // Whoever reads the output has seen enough.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            // Not eprintln: that ends in a panic where nobody listens.
            let _ = writeln!(io::stderr(), "praetor-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Standard output, for what must be done to its end whether somebody listens or not.
struct Unheard(io::Stdout);

impl Write for Unheard {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

// === impl Invocation ===

impl Invocation {
    /// Reads the command line twice: the second time with what the settings file adds, so that a line of the file is
    /// judged like the flag that it stands for.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn read(mut arguments: Vec<OsString>) -> Result<Self, CommandError> {
        let first = CommandLine::command().try_get_matches_from(&arguments)?;
        let file = find(&first)?;
        if let FileRead::Used(_, file) = &file {
            arguments.extend(missing(&first, file));
        }
        let matches = CommandLine::command().try_get_matches_from(&arguments)?;
        let given = given(&matches);
        Ok(Self { line: CommandLine::from_arg_matches(&matches)?, given, file })
    }

    fn carry_out(self) -> Result<ExitCode, CommandError> {
        let Self { line, given, file } = self;
        match line.command {
            None => {
                run::run(line.agent.settle()?)?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Install(command)) => {
                Ok(install::install(&command, &given, &file, &mut Unheard(io::stdout()))?)
            }
            Some(Command::Uninstall(command)) => Ok(uninstall::uninstall(&command, &mut Unheard(io::stdout()))?),
            Some(Command::Status(command)) => Ok(status::status(&command, &file, &mut io::stdout().lock())?),
            Some(Command::Doctor(command)) => Ok(doctor::doctor(&command, &file, &mut io::stdout().lock())?),
        }
    }
}

/// The matches of the command that is meant, and the command.
fn meant(matches: &ArgMatches) -> (&ArgMatches, clap::Command) {
    let whole = CommandLine::command();
    match matches.subcommand() {
        Some((name, inner)) => (inner, whole.find_subcommand(name).cloned().unwrap_or(whole)),
        None => (matches, whole),
    }
}

fn find(matches: &ArgMatches) -> Result<FileRead, CommandError> {
    let (inner, command) = meant(matches);
    let has = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
    let named = |id: &str| if has(id) { inner.get_one::<PathBuf>(id) } else { None };
    if !has("settings_file") {
        return Ok(FileRead::Absent);
    }
    let named_file = named("settings_file").filter(|path| !path.as_os_str().is_empty());
    let path = match named_file {
        Some(path) => path.clone(),
        None if matches.subcommand().is_none() => return Ok(FileRead::Absent),
        None => PathBuf::from(DEFAULT_PATH),
    };
    let installs = matches.subcommand_name() == Some("install");
    let at = named("root").map_or(path.clone(), |root| install::below(root, &path));
    match std::fs::read_to_string(&at) {
        Ok(text) => match SettingsFile::parse(&text) {
            Ok(file) => Ok(FileRead::Used(path, file)),
            Err(error) => Err(CommandError::Setting(at, error)),
        },
        // The installer is about to write it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && (named_file.is_none() || installs) => {
            Ok(FileRead::Absent)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && matches.subcommand().is_some() => {
            Ok(FileRead::Denied(path))
        }
        Err(error) => Err(CommandError::File(at, error)),
    }
}

/// Flags for what the file says and nobody else.
fn missing(matches: &ArgMatches, file: &SettingsFile) -> Vec<OsString> {
    let (inner, command) = meant(matches);
    let is_given = |id: &str| {
        let source = inner.try_contains_id(id).ok().and_then(|_| inner.value_source(id));
        let text = inner.try_get_raw(id).ok().flatten().is_some_and(|mut values| values.any(|v| !v.is_empty()));
        match source {
            Some(ValueSource::CommandLine) => true,
            Some(ValueSource::EnvVariable) => text,
            _ => false,
        }
    };
    let token = is_given("device_token") || is_given("device_token_file");
    let mut flags = Vec::new();
    for argument in command.get_arguments() {
        let (Some(long), Some(variable)) = (argument.get_long(), argument.get_env().and_then(OsStr::to_str)) else {
            continue;
        };
        let id = argument.get_id().as_str();
        // One token takes the place of another, in whatever way it is given.
        let skip = id == "settings_file" || is_given(id) || (token && id.starts_with("device_token"));
        match file.get(variable) {
            Some(value) if !skip && matches!(argument.get_action(), ArgAction::SetTrue) => {
                let off = ["0", "f", "false", "n", "no", "off"].contains(&value.to_ascii_lowercase().as_str());
                flags.extend((!off).then(|| format!("--{long}").into()));
            }
            Some(value) if !skip => flags.push(format!("--{long}={value}").into()),
            _ => {}
        }
    }
    flags
}

fn given(matches: &ArgMatches) -> Vec<(String, String)> {
    let (inner, command) = meant(matches);
    let mut all = Vec::new();
    for argument in command.get_arguments() {
        let (id, variable) = (argument.get_id().as_str(), argument.get_env().and_then(OsStr::to_str));
        let Some(variable) = variable.filter(|_| id != "settings_file") else { continue };
        let source = inner.value_source(id);
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        let value = if matches!(argument.get_action(), ArgAction::SetTrue) {
            if inner.get_flag(id) { "true".to_owned() } else { String::new() }
        } else {
            let values = inner.get_raw(id).unwrap_or_default();
            let values: Vec<_> = values.map(|v| v.to_string_lossy()).filter(|v| !v.is_empty()).collect();
            values.join(",")
        };
        all.push((variable.to_owned(), value));
    }
    all
}

// === impl FileRead ===

impl FileRead {
    /// Its path, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Absent => None,
            Self::Used(path, _) | Self::Denied(path) => Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    /// Whoever adds a flag to the agent gives it a variable, too: installed agents have a settings file alone.
    #[test]
    fn every_flag_of_the_agent_has_a_variable() {
        for argument in
            CommandLine::command().get_arguments().filter(|a| a.get_id() != "help" && a.get_id() != "version")
        {
            assert!(argument.get_env().is_some(), "--{}", argument.get_long().unwrap());
        }
    }

    fn read(arguments: &[&str]) -> Result<Invocation, String> {
        let all = std::iter::once("praetor-agent").chain(arguments.iter().copied()).map(OsString::from);
        Invocation::read(all.collect()).map_err(|e| e.to_string())
    }

    fn value<'a>(invocation: &'a Invocation, name: &str) -> Option<&'a str> {
        invocation.given.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn the_settings_file_says_what_nobody_else_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.env");
        fs::write(
            &path,
            "APOLLO_DEVICE_NAME='tor1-01'\nAPOLLO_GATEWAY_URL='http://a,http://b'\nAPOLLO_DEVICE_TOKEN_FILE=/x\nAPOLLO_AGENT_OBSERVE_ONLY=true\nOTHER=1\n",
        )
        .unwrap();
        let file = format!("--settings-file={}", path.display());
        let all = read(&[&file]).unwrap();
        let settings = |i: &Invocation| (i.line.agent.device().unwrap(), i.line.agent.gateways().unwrap().len());
        assert_eq!(settings(&all), ("tor1-01".to_owned(), 2));
        assert_eq!(value(&all, "APOLLO_AGENT_OBSERVE_ONLY"), Some("true"));
        let some = read(&[&file, "--device-name=tor1-02", "--gateway-url=http://c", "--device-token=t"]).unwrap();
        assert_eq!(settings(&some), ("tor1-02".to_owned(), 1));
        assert_eq!(value(&some, "APOLLO_DEVICE_TOKEN_FILE"), None, "the token that is given takes its place");
        let doctor = read(&["doctor", &file]).unwrap();
        assert_eq!(doctor.file.path(), Some(path.as_path()));
        fs::write(&path, "APOLLO_AGENT_OBSERVE_ONLY=false\nAPOLLO_AGENT_LOG_LEVEL=loud\n").unwrap();
        assert!(read(&[&file]).err().unwrap().contains("loud"));
        fs::write(&path, "what\n").unwrap();
        assert!(read(&[&file]).err().unwrap().contains("agent.env: line 1: expected NAME=value"));
        fs::remove_file(&path).unwrap();
        for command in [vec![], vec!["doctor"], vec!["status"]] {
            let line = read(&[command.as_slice(), &[file.as_str()]].concat()).err().unwrap();
            assert!(line.contains("--settings-file (APOLLO_AGENT_SETTINGS_FILE)"), "{line}");
        }
    }

    #[test]
    fn flags_of_the_agent_are_not_for_commands() {
        let line = read(&["--observe-only", "status"]).err().unwrap();
        assert!(line.contains("--observe-only"), "{line}");
        assert!(read(&["restart"]).err().unwrap().contains("unrecognized subcommand"));
    }
}
