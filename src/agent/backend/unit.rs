//! Pure: the systemd unit of a process, and the file with its environment.
//!
//! systemd reads far more into a line than a shell does not: quotes, backslashes, `%` specifiers and `$` variables. Every
//! string of the operator is written so that it comes out as it went in; what systemd cannot take is refused with a
//! sentence. No shell ever sees such a string: the hooks that keep the journal get the name of a file and a hash.

use super::Launch;
use crate::agent::process::identity::Identity;
use crate::agent::process::spec::RestartPolicy;
use std::fmt::Write;

/// Gives variables to a program: run as the program's user, and itself without them.
const ENV: &str = "/usr/bin/env";
/// First line of every unit of ours.
const HEAD: &str = "# Made by praetor-agent, which replaces and removes it. Changes belong into the DeviceProcess.";
/// Section with our marks; systemd passes over sections that begin with X-.
const SECTION: &str = "[X-Praetor]";
const UID: &str = "X-Praetor-Uid=";
const SPEC_HASH: &str = "X-Praetor-SpecHash=";
const DEVICE: &str = "X-Praetor-Device=";
/// systemd reads no longer line, and says so nowhere that an operator would look.
const LONGEST_LINE: usize = 1024 * 1024 - 4096;

/// Variables that make a loader, a C library or a shell do something before a program's first line: those that glibc drops
/// for programs with more rights than their user (ld.so(8)), musl's, and those of the shells. The hooks are root's shell
/// and have the environment of the unit, so none of them may be there: the program alone gets them.
const FOR_THE_PROGRAM_ALONE: [&str; 24] = [
    "BASHOPTS",
    "CDPATH",
    "ENV",
    "FPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "HOSTALIASES",
    "IFS",
    "LIBPATH",
    "LOCALDOMAIN",
    "LOCPATH",
    "MUSL_LOCPATH",
    "NIS_PATH",
    "NLSPATH",
    "POSIXLY_CORRECT",
    "PS4",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "SHELLOPTS",
    "TMPDIR",
    "TZDIR",
    "ZDOTDIR",
];
/// Beginnings of more of them.
const FOR_THE_PROGRAM_ALONE_SO_BEGUN: [&str; 3] = ["LD_", "BASH_", "MALLOC_"];

/// The journal does not outgrow this when nobody compacts it: blocks of 512 or 1024 bytes, as the shell has it.
const JOURNAL_BLOCKS: u32 = 4096;
/// Longest time that systemd itself waits after SIGTERM, seconds: when the device shuts down. The agent kills sooner
/// when its own grace is shorter.
pub const STOP_SECONDS: u32 = 30;

/// From this version on systemd knows units of `Type=exec`.
pub const OLDEST_SYSTEMD: u32 = 240;
/// From this version on it can wait longer with each restart.
const SYSTEMD_WITH_STEPS: u32 = 254;

/// What a unit says besides what the process's [`Launch`] says.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Where the process runs, an absolute path without `..`.
    pub working_dir: &'a str,
    /// The file with its environment, an absolute path.
    pub environment_file: &'a str,
    /// The file that the hooks append lines about it to, an absolute path.
    pub journal: &'a str,
    /// The device that it runs for: the third mark. Empty: there is none.
    pub device: &'a str,
    /// The version of systemd.
    pub version: u32,
}

/// What marks a unit as ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// Whose it is.
    pub uid: String,
    /// What it was made from.
    pub spec_hash: String,
    /// The device that it runs for; empty: it was made before units said so, or for any.
    pub device: String,
}

impl Marks {
    /// Whether what carries them is for the agent of this device to keep; empty: of any.
    #[must_use]
    pub fn are_of(&self, device: &str) -> bool {
        device.is_empty() || self.device.is_empty() || self.device == device
    }
}

/// What systemd cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// systemd would pass over the line.
    #[error("execution.command: systemd runs no program with quotes, backslashes or control characters in its path")]
    Program,
    /// It would be read as something else.
    #[error("{0}: systemd takes no path with control characters, or with a blank or a backslash at its end")]
    Path(&'static str),
    /// It would be read as a variable.
    #[error("execution.command: a program with = in its path cannot be run with the variable {0}")]
    Equals(String),
    /// It would be left out of the environment.
    #[error("execution.env: systemd takes no variable of the name {0:?}: letters, digits and _ only, no digit first")]
    VariableName(String),
    /// It would be left out of the environment.
    #[error("execution.env: systemd takes no control characters in the value of {0}, but for tabs and newlines")]
    VariableValue(String),
    /// It would be read as something else.
    #[error("execution.user: {0:?} is no name of a user")]
    User(String),
    /// Not from a cluster.
    #[error("uid or specHash of the process, or the name of the device, contain what cannot be written into a unit")]
    Marks,
    /// systemd would not read all of it.
    #[error("execution.args: systemd takes no more than 1 MiB of arguments")]
    TooLong,
}

/// The name of a process's unit.
#[must_use]
pub fn name(identity: &Identity) -> String {
    format!("{identity}.service")
}

/// The unit of a process.
///
/// # Errors
/// A string of the operator that no unit can hold.
pub fn render(launch: &Launch, around: &Surroundings<'_>) -> Result<String, Refusal> {
    let mark = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b":-_.".contains(&c));
    if !mark(&launch.uid) || !mark(&launch.spec_hash) || !(around.device.is_empty() || mark(around.device)) {
        return Err(Refusal::Marks);
    }
    let identity = &launch.identity;
    let hook = |script: &str| {
        let words = ["/bin/sh", "-c", script, "sh", around.journal, &launch.spec_hash];
        words.map(quote).join(" ")
    };
    let mut text = format!("{HEAD}\n{SECTION}\n{UID}{}\n{SPEC_HASH}{}\n", launch.uid, launch.spec_hash);
    if !around.device.is_empty() {
        text.push_str(&format!("{DEVICE}{}\n", around.device));
    }
    let mut line = |key: &str, value: &str| {
        // A String takes everything.
        let _ = writeln!(text, "{key}{value}");
    };
    line("\n[Unit]", "");
    line("Description=", &format!("{identity} of Praetor"));
    line("After=", "network.target");
    line("StartLimitIntervalSec=", "0");
    line("\n[Service]", "");
    // A program that cannot be run is a failed start then, with a code that says why.
    line("Type=", "exec");
    // Who fails to keep the journal does not keep the process from running; and they are root whoever that is.
    line("ExecStartPre=-+", &hook(&hook_script(r#""start $2""#)));
    line("ExecStart=", &command_line(launch)?);
    // Only when somebody asks for a stop is there a process that still runs.
    line("ExecStop=-+", &hook(&format!(r#"test -z "$MAINPID" || {{ {}; }}"#, hook_script("stop"))));
    line("ExecStopPost=-+", &hook(&hook_script(r#""exit $SERVICE_RESULT $EXIT_STATUS""#)));
    line("EnvironmentFile=", &path("the agent's state folder", around.environment_file)?);
    line("WorkingDirectory=", &path("execution.workingDir", around.working_dir)?);
    if let Some(user) = &launch.user {
        let sound = |c: u8| c.is_ascii_alphanumeric() || b"_.-$".contains(&c);
        if user.is_empty() || !user.bytes().all(sound) {
            return Err(Refusal::User(user.clone()));
        }
        line("User=", user);
    }
    match launch.restart_policy {
        RestartPolicy::Always => line("Restart=", "always"),
        RestartPolicy::OnFailure => {
            line("Restart=", "on-failure");
            // To systemd these are good ends.
            line("RestartForceExitStatus=", "SIGHUP SIGINT SIGTERM SIGPIPE");
        }
        RestartPolicy::Never => line("Restart=", "no"),
    }
    if around.version >= SYSTEMD_WITH_STEPS {
        line("RestartSec=", "500ms");
        line("RestartSteps=", "6");
        line("RestartMaxDelaySec=", "60");
    } else {
        line("RestartSec=", "2");
    }
    line("TimeoutStartSec=", "30");
    line("TimeoutStopSec=", &STOP_SECONDS.to_string());
    line("KillMode=", "control-group");
    line("IgnoreSIGPIPE=", "no");
    line("\n[Install]", "");
    line("WantedBy=", "multi-user.target");
    if text.lines().any(|line| line.len() > LONGEST_LINE) {
        return Err(Refusal::TooLong);
    }
    Ok(text)
}

/// Appends a line to the journal: what, when, and which run. A line that was cut off before it stays apart.
fn hook_script(what: &str) -> String {
    format!(
        r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin; unset TZ; umask 077; ulimit -f {JOURNAL_BLOCKS}; printf "\n%s %s %s\n" {what} "$(/bin/date +%s)" "$INVOCATION_ID" >>"$1""#
    )
}

/// Whether root's shell must not see a variable.
fn is_for_the_program_alone(name: &str) -> bool {
    FOR_THE_PROGRAM_ALONE.contains(&name) || FOR_THE_PROGRAM_ALONE_SO_BEGUN.iter().any(|begun| name.starts_with(begun))
}

/// The program with its arguments. Its own name is given apart: in the path `$` means nothing, in what it is told it does.
fn command_line(launch: &Launch) -> Result<String, Refusal> {
    let program = &launch.program;
    if program.chars().any(|c| c.is_ascii_control() || "'\"\\".contains(c)) {
        return Err(Refusal::Program);
    }
    let alone: Vec<_> = launch.env.iter().filter(|(name, _)| is_for_the_program_alone(name)).collect();
    let first = if alone.is_empty() { program } else { ENV };
    let mut words = vec![format!("\"@{}\"", first.replace('%', "%%"))];
    if let Some((name, _)) = alone.first() {
        if program.contains('=') {
            return Err(Refusal::Equals(name.clone()));
        }
        words.push(quote(ENV));
        for (name, value) in alone {
            sound(name, value)?;
            words.push(quote(&format!("{name}={value}")));
        }
    }
    words.push(quote(program));
    words.extend(launch.args.iter().map(|argument| quote(argument)));
    Ok(words.join(" "))
}

/// One word of a command line that comes out as the text.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A path that is the whole rest of a line.
fn path(field: &'static str, text: &str) -> Result<String, Refusal> {
    let sound = !text.chars().any(char::is_control) && !text.ends_with(|c: char| c == '\\' || c.is_whitespace());
    if sound { Ok(text.replace('%', "%%")) } else { Err(Refusal::Path(field)) }
}

/// The file with the environment of a process, as far as the hooks may see it.
///
/// # Errors
/// A variable that systemd would leave out.
pub fn environment(variables: &[(String, String)]) -> Result<String, Refusal> {
    let mut text = String::new();
    for (name, value) in variables {
        sound(name, value)?;
        if is_for_the_program_alone(name) {
            continue;
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            if "\"\\`$".contains(c) {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

/// Refuses a variable that systemd would leave out.
fn sound(name: &str, value: &str) -> Result<(), Refusal> {
    let sound = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    if name.is_empty() || !name.bytes().all(sound) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Refusal::VariableName(name.to_owned()));
    }
    if value.chars().any(|c| c.is_ascii_control() && c != '\t' && c != '\n') {
        return Err(Refusal::VariableValue(name.to_owned()));
    }
    Ok(())
}

/// The marks of a unit; none: it is not ours.
#[must_use]
pub fn marks(text: &str) -> Option<Marks> {
    let mut lines = text.lines();
    if lines.next()? != HEAD || lines.next()? != SECTION {
        return None;
    }
    let uid = lines.next()?.strip_prefix(UID)?.to_owned();
    let spec_hash = lines.next()?.strip_prefix(SPEC_HASH)?.to_owned();
    let device = lines.next().and_then(|line| line.strip_prefix(DEVICE)).unwrap_or_default().to_owned();
    Some(Marks { uid, spec_hash, device })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::artifact::Fetched;
    use proptest::prelude::*;

    fn launch(program: &str, args: &[&str]) -> Launch {
        Launch {
            identity: Identity::new("infra", "agent"),
            uid: "0f-9a".to_owned(),
            spec_hash: "sha256:12".to_owned(),
            program: program.to_owned(),
            args: args.iter().map(|&text| text.to_owned()).collect(),
            env: vec![],
            working_dir: None,
            user: None,
            restart_policy: RestartPolicy::Always,
            artifact: Fetched { digest: "sha256:2".to_owned(), root: None },
        }
    }

    fn around(version: u32) -> Surroundings<'static> {
        let device = "tor1-01";
        Surroundings { working_dir: "/srv/a %b", environment_file: "/s/e", journal: "/state/runs/x", device, version }
    }

    fn unit(launch: &Launch) -> String {
        render(launch, &around(252)).unwrap()
    }

    fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    }

    /// As systemd does it: words in quotes, C escapes, then specifiers, then variables. None: it would be refused, or
    /// would depend on the device.
    fn words(line: &str) -> Option<Vec<String>> {
        let mut words = vec![];
        let mut rest = line.chars().peekable();
        loop {
            while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
            if rest.peek().is_none() {
                return Some(words);
            }
            let (mut word, mut quote) = (String::new(), None);
            loop {
                match (rest.next(), quote) {
                    (None, Some(_)) => return None,
                    (None, None) => break,
                    (Some('\\'), _) => word.push(match rest.next()? {
                        'n' => '\n',
                        't' => '\t',
                        's' => ' ',
                        c @ ('\\' | '"' | '\'') => c,
                        'x' => {
                            let digits: String = [rest.next()?, rest.next()?].iter().collect();
                            char::from(u8::from_str_radix(&digits, 16).ok().filter(u8::is_ascii)?)
                        }
                        _ => return None,
                    }),
                    (Some(c), Some(q)) if c == q => quote = None,
                    (Some(c @ ('"' | '\'')), None) => quote = Some(c),
                    (Some(c), None) if c.is_ascii_whitespace() => break,
                    (Some(c), _) => word.push(c),
                }
            }
            words.push(word);
        }
    }

    fn specifiers(word: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = word.chars();
        while let Some(c) = rest.next() {
            // Anything else behind a % means something, or is an error.
            out.push(if c == '%' { rest.next().filter(|c| *c == '%')? } else { c });
        }
        Some(out)
    }

    fn variables(word: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = word.chars().peekable();
        while let Some(c) = rest.next() {
            match (c, rest.peek()) {
                ('$', Some('$')) => out.extend(rest.next()),
                ('$', Some('{')) => return None,
                // A whole word that begins so is a variable.
                ('$', _) if out.is_empty() => return None,
                (c, _) => out.push(c),
            }
        }
        Some(out)
    }

    /// Path and arguments of a command line, the program's own name first.
    fn command(line: &str) -> Option<(String, Vec<String>)> {
        let mut all = words(line)?.into_iter().map(|word| specifiers(&word));
        let path = all.next()??.strip_prefix('@')?.to_owned();
        let rest = all.map(|word| variables(&word?)).collect::<Option<_>>()?;
        Some((path, rest))
    }

    /// A file of variables, as systemd reads it.
    fn read_environment(text: &str) -> Vec<(String, String)> {
        let mut all = vec![];
        let mut rest = text.chars();
        loop {
            let name: String = rest.by_ref().take_while(|c| *c != '=').collect();
            if name.is_empty() {
                return all;
            }
            assert_eq!(rest.next(), Some('"'));
            let mut value = String::new();
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                match c {
                    '\\' => match rest.next().unwrap() {
                        '\n' => {}
                        c if "\"\\`$".contains(c) => value.push(c),
                        c => value.extend(['\\', c]),
                    },
                    c => value.push(c),
                }
            }
            assert_eq!(rest.next(), Some('\n'));
            all.push((name, value));
        }
    }

    #[test]
    fn a_unit_reads_like_this() {
        let mut launch = launch("/opt/a b/agent", &["--listen", ":80", "100%", "a$b"]);
        launch.user = Some("nobody".to_owned());
        let unit = unit(&launch);
        assert_eq!(
            values(&unit, "ExecStart"),
            [r#""@/opt/a b/agent" "/opt/a b/agent" "--listen" ":80" "100%%" "a$$b""#]
        );
        assert_eq!(values(&unit, "User"), ["nobody"]);
        assert_eq!(values(&unit, "WorkingDirectory"), ["/srv/a %%b"]);
        assert_eq!(values(&unit, "Restart"), ["always"]);
        assert_eq!(values(&unit, "RestartSec"), ["2"]);
        let [uid, spec_hash, device] = ["0f-9a", "sha256:12", "tor1-01"].map(str::to_owned);
        assert_eq!(marks(&unit), Some(Marks { uid, spec_hash, device }));
        let hook = values(&unit, "ExecStartPre")[0];
        let (_, argv) = command(&format!("\"@/bin/sh\" {}", hook.strip_prefix("-+").unwrap())).unwrap();
        assert_eq!(argv[..2], ["/bin/sh", "-c"]);
        assert_eq!(argv[3..], ["sh", "/state/runs/x", "sha256:12"]);
        assert_eq!(
            argv[2],
            r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin; unset TZ; umask 077; ulimit -f 4096; printf "\n%s %s %s\n" "start $2" "$(/bin/date +%s)" "$INVOCATION_ID" >>"$1""#
        );
    }

    #[test]
    fn what_loads_code_is_for_the_program_alone() {
        let mut launch = launch("/opt/agent", &["-v"]);
        let value = "/tmp/a b%n$X\"\\\n\t";
        let alone =
            ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH", "LOCPATH", "NLSPATH", "BASH_ENV", "ENV", "IFS"];
        launch.env = alone.iter().chain(&["LDAP", "HOME"]).map(|name| (name.to_string(), value.to_owned())).collect();
        let file = read_environment(&environment(&launch.env).unwrap());
        assert_eq!(file.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["LDAP", "HOME"]);
        let unit = unit(&launch);
        let (path, argv) = command(values(&unit, "ExecStart")[0]).unwrap();
        let mut expected = vec!["/usr/bin/env".to_owned()];
        expected.extend(alone.iter().map(|name| format!("{name}={value}")));
        expected.extend(["/opt/agent", "-v"].map(str::to_owned));
        assert_eq!((path.as_str(), argv), ("/usr/bin/env", expected));
        // The hooks are run by systemd itself, and it is told of them in no other line.
        for line in unit.lines().filter(|line| !line.starts_with("ExecStart=")) {
            assert!(!alone.iter().any(|name| line.contains(&format!("{name}="))), "{line}");
        }
        launch.program = "/opt/a=b".to_owned();
        assert_eq!(render(&launch, &around(252)), Err(Refusal::Equals("LD_PRELOAD".to_owned())));
        launch.program = "/opt/agent".to_owned();
        launch.env[0].1 = "\u{1}".to_owned();
        assert!(render(&launch, &around(252)).is_err() && environment(&launch.env).is_err());
    }

    #[test]
    fn restarts_are_as_the_policy_says() {
        let mut launch = launch("/bin/agent", &[]);
        for (policy, restart) in
            [(RestartPolicy::Always, "always"), (RestartPolicy::OnFailure, "on-failure"), (RestartPolicy::Never, "no")]
        {
            launch.restart_policy = policy;
            let unit = unit(&launch);
            assert_eq!(values(&unit, "Restart"), [restart]);
            assert_eq!(values(&unit, "RestartForceExitStatus").len(), usize::from(policy == RestartPolicy::OnFailure));
        }
        assert!(render(&launch, &around(257)).unwrap().contains("RestartSteps=6\nRestartMaxDelaySec=60\n"));
    }

    #[test]
    fn what_no_unit_can_hold_is_refused() {
        for program in ["/a'b", "/a\"b", "/a\\b", "/a\nb", "/a\u{1b}b"] {
            assert_eq!(render(&launch(program, &[]), &around(252)), Err(Refusal::Program), "{program:?}");
        }
        for folder in ["/a\nUser=root", "/a ", "/a\\", "/a\u{85}"] {
            let around = Surroundings { working_dir: folder, ..around(252) };
            assert_eq!(render(&launch("/a", &[]), &around), Err(Refusal::Path("execution.workingDir")));
        }
        for user in ["", "a b", "a\nGroup=x", "%u", "ü"] {
            let mut launch = launch("/a", &[]);
            launch.user = Some(user.to_owned());
            assert_eq!(render(&launch, &around(252)), Err(Refusal::User(user.to_owned())));
        }
        for uid in ["", "a b", "a\n[Service]"] {
            let mut launch = launch("/a", &[]);
            launch.uid = uid.to_owned();
            assert_eq!(render(&launch, &around(252)), Err(Refusal::Marks));
        }
        for (name, value) in
            [("", "x"), ("1A", "x"), ("A-B", "x"), ("A\n", "x"), ("A", "\r"), ("A", "\u{0}"), ("Ä", "x")]
        {
            assert!(environment(&[(name.to_owned(), value.to_owned())]).is_err(), "{name:?}={value:?}");
        }
        let long = "x".repeat(300_000);
        assert_eq!(render(&launch("/a", &[long.as_str(); 4]), &around(252)), Err(Refusal::TooLong));
    }

    #[test]
    fn a_unit_is_of_one_device() {
        let launch = launch("/a", &[]);
        let on = |device| render(&launch, &Surroundings { device, ..around(252) });
        let marks = |device| marks(&on(device).unwrap()).unwrap();
        assert!(marks("a").are_of("a") && marks("a").are_of("") && !marks("a").are_of("b"));
        // Made by an agent that did not say so.
        assert!(marks("").are_of("a") && marks("").are_of(""));
        assert_eq!(on("a\nb"), Err(Refusal::Marks));
    }

    #[test]
    fn foreign_units_have_no_marks() {
        let ours = unit(&launch("/a", &[]));
        for text in ["", "[Unit]\n", &ours[1..], &ours[..60], &format!("\n{ours}"), &ours.replace(SECTION, "[Unit]")] {
            assert_eq!(marks(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arguments_come_out_as_they_went_in(args in proptest::collection::vec(any::<String>(), 0..6), program in "/[^'\"\\\\\\x00-\\x1f\\x7f]{1,20}") {
            let args: Vec<_> = args.iter().map(|text| text.replace('\0', "")).collect();
            let mut launch = launch(&program, &[]);
            launch.args.clone_from(&args);
            let unit = unit(&launch);
            let (path, mut argv) = command(values(&unit, "ExecStart")[0]).unwrap();
            prop_assert_eq!(path, program.as_str());
            prop_assert_eq!(argv.remove(0), program);
            prop_assert_eq!(argv, args);
        }

        #[test]
        fn specials_come_out_as_they_went_in(args in proptest::collection::vec("[-@:;#$%{}\"'\\\\ \t\nnxs0-9a]{0,12}", 0..6)) {
            let mut launch = launch("/bin/a", &[]);
            launch.args.clone_from(&args);
            let unit = unit(&launch);
            let (_, argv) = command(values(&unit, "ExecStart")[0]).unwrap();
            prop_assert_eq!(&argv[1..], &args);
        }

        #[test]
        fn no_argument_adds_a_line(args in proptest::collection::vec(any::<String>(), 0..4)) {
            let mut with = launch("/bin/a", &[]);
            with.args.clone_from(&args);
            let lines = |unit: String| unit.split(['\n', '\r']).map(|line| line.split('=').next().unwrap_or("").to_owned()).collect::<Vec<_>>();
            prop_assert_eq!(lines(unit(&with)), lines(unit(&launch("/bin/a", &[]))));
        }

        #[test]
        fn variables_come_out_as_they_went_in(values in proptest::collection::vec("[^\\x00-\\x08\\x0b-\\x1f\\x7f]{0,20}|[$`\"'\\\\ \n\t=#;a]{0,12}", 0..6)) {
            let all: Vec<_> = values.into_iter().enumerate().map(|(i, value)| (format!("_V{i}"), value)).collect();
            prop_assert_eq!(read_environment(&environment(&all).unwrap()), all);
        }
    }
}
