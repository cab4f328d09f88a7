//! Pure: the files that make a process a service of init: its script, the description that the script's launcher
//! reads, and the record of its last run.
//!
//! The script holds nothing of what an operator wrote: it only hands over to the launcher, so no shell ever sees a
//! command, an argument or a variable. The marks in it say whose it is.

use super::Launch;
use super::proc::Mark;
use crate::agent::process::identity::Identity;
use crate::agent::process::spec::RestartPolicy;
use serde::{Deserialize, Serialize};

const UID: &str = "# X-Praetor-Uid: ";
const SPEC_HASH: &str = "# X-Praetor-SpecHash: ";
const DEVICE: &str = "# X-Praetor-Device: ";
/// The variable that tells every process of a run whose it is: `<identity>/<invocation>[/<device>]`.
pub const RUN: &str = "APOLLO_RUN";

/// What the launcher has to know to start a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// The stable name.
    pub identity: String,
    /// The first mark.
    pub uid: String,
    /// The second mark.
    pub spec_hash: String,
    /// The third mark: the device that it runs for; empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// An absolute path.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment, but for what its user adds.
    pub env: Vec<(String, String)>,
    /// An absolute path.
    pub working_dir: String,
    /// A name or a number; none: root.
    pub user: Option<String>,
    /// Where its output goes; none: nowhere.
    pub log: Option<String>,
}

/// What is known of the last run. It is written before the program begins, and stays when it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The boot of the device in which it was written; the marks mean nothing in another one.
    pub boot: String,
    /// The program itself.
    pub process: Mark,
    /// Who waits for its end and writes it down; also the number of their session.
    pub shim: Mark,
    /// Which run of the journal it is.
    pub invocation: String,
    /// What it was started from.
    pub spec_hash: String,
    /// When, seconds since 1970 by the clock of then.
    pub started: i64,
}

/// Whose a script is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: String,
    /// Hash of the spec that it starts.
    pub spec_hash: String,
    /// The device that it runs for; empty: it was made before scripts said so, or for any.
    pub device: String,
}

/// What must not be in a script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It would end the comment that it stands in.
    #[error("{0} contains characters that cannot be in an init script")]
    Characters(&'static str),
    /// The format of the environment has no room for it.
    #[error("execution.env: {0:?} cannot be the name of a variable")]
    Variable(String),
}

// === impl Marks ===

impl Marks {
    /// Whether what carries them is for the agent of this device to keep; empty: of any.
    #[must_use]
    pub fn are_of(&self, device: &str) -> bool {
        agree(&self.device, device)
    }
}

fn agree(one: &str, other: &str) -> bool {
    one.is_empty() || other.is_empty() || one == other
}

/// The value of [`RUN`] for a run.
#[must_use]
pub fn run_of(identity: &Identity, invocation: &str, device: &str) -> String {
    if device.is_empty() { format!("{identity}/{invocation}") } else { format!("{identity}/{invocation}/{device}") }
}

/// Whether a value of [`RUN`] is that of a run of this identity and device; `invocation` empty: of any run.
#[must_use]
pub fn is_run_of(value: &str, identity: &Identity, invocation: &str, device: &str) -> bool {
    let Some(rest) = value.strip_prefix(identity.as_str()).and_then(|rest| rest.strip_prefix('/')) else {
        return false;
    };
    let (run, theirs) = rest.split_once('/').unwrap_or((rest, ""));
    (invocation.is_empty() || run == invocation) && agree(theirs, device)
}

// === impl Description ===

impl Description {
    /// Of a process of this device, with its folder, its environment and its log.
    ///
    /// # Errors
    /// What cannot be in a script, or in an environment.
    pub fn new(
        launch: &Launch,
        device: &str,
        working_dir: String,
        env: Vec<(String, String)>,
        log: Option<String>,
    ) -> Result<Self, ScriptError> {
        for (field, text) in [("metadata.uid", &launch.uid), ("the spec's hash", &launch.spec_hash)] {
            if text.is_empty() || !text.bytes().all(|c| c.is_ascii_graphic()) {
                return Err(ScriptError::Characters(field));
            }
        }
        if !device.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(ScriptError::Characters("the device's name"));
        }
        if let Some((name, _)) = env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err(ScriptError::Variable(name.clone()));
        }
        Ok(Self {
            identity: launch.identity.to_string(),
            uid: launch.uid.clone(),
            spec_hash: launch.spec_hash.clone(),
            device: device.to_owned(),
            program: launch.program.clone(),
            args: launch.args.clone(),
            env,
            working_dir,
            user: launch.user.clone(),
            log,
        })
    }

    /// As the launcher reads it.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and lists of them: there is nothing that JSON could not hold.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The text of an init script. `agent` and `description` are absolute paths.
///
/// # Errors
/// A path that a line cannot hold.
pub fn text(
    identity: &Identity,
    marks: &Marks,
    policy: RestartPolicy,
    agent: &str,
    description: &str,
) -> Result<String, ScriptError> {
    if [agent, description].iter().any(|path| path.contains(char::is_control)) {
        return Err(ScriptError::Characters("the agent's own path"));
    }
    // Only what is always to run comes up with the device; the agent knows whether the others are over.
    let levels = if policy == RestartPolicy::Always { " 2 3 4 5" } else { "" };
    let (agent, description) = (quoted(agent), quoted(description));
    let Marks { uid, spec_hash, device } = marks;
    let device = if device.is_empty() { String::new() } else { format!("{DEVICE}{device}\n") };
    Ok(format!(
        r#"#!/bin/sh
### BEGIN INIT INFO
# Provides:          {identity}
# Required-Start:    $local_fs $remote_fs
# Required-Stop:     $local_fs $remote_fs
# Should-Start:      $network $syslog $time
# Should-Stop:       $network $syslog
# Default-Start:    {levels}
# Default-Stop:      0 1 6
# Short-Description: A process that praetor-agent manages
### END INIT INFO
# Written by praetor-agent, which also replaces it.
{UID}{uid}
{SPEC_HASH}{spec_hash}
{device}# Whatever else the caller has open is not for what is started.
exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
case "$1" in
  start | stop | restart | status) exec {agent} launch "$1" {description} ;;
  force-reload) exec {agent} launch restart {description} ;;
  *)
    echo "usage: $0 {{start|stop|restart|force-reload|status}}" >&2
    exit 2
    ;;
esac
"#
    ))
}

/// The marks of a script; none: it is not ours.
#[must_use]
pub fn marks(text: &str) -> Option<Marks> {
    let mark = |prefix: &str| {
        let mark = text.lines().find_map(|line| line.strip_prefix(prefix))?.trim();
        (!mark.is_empty()).then(|| mark.to_owned())
    };
    text.starts_with("#!").then_some(())?;
    Some(Marks { uid: mark(UID)?, spec_hash: mark(SPEC_HASH)?, device: mark(DEVICE).unwrap_or_default() })
}

/// One word for a shell, whatever is in it.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::artifact::Fetched;
    use proptest::prelude::*;

    fn launch() -> Launch {
        Launch {
            identity: Identity::new("infra", "agent"),
            uid: "3f0c".to_owned(),
            spec_hash: "sha256:1".to_owned(),
            program: "/bin/agent".to_owned(),
            args: vec!["$(reboot)".to_owned(), "`id`; '".to_owned()],
            env: vec![("A".to_owned(), "x\ny".to_owned())],
            working_dir: None,
            user: None,
            restart_policy: RestartPolicy::Always,
            artifact: Fetched { digest: "sha256:2".to_owned(), root: None },
        }
    }

    fn of(device: &str) -> Marks {
        Marks { uid: "3f0c".to_owned(), spec_hash: "sha256:1".to_owned(), device: device.to_owned() }
    }

    fn script(policy: RestartPolicy) -> String {
        let marks = of("tor1-01");
        let (agent, description) = ("/opt/a b/it's", "/var/lib/x.json");
        text(&Identity::new("infra", "agent"), &marks, policy, agent, description).unwrap()
    }

    #[test]
    fn a_script_knows_whose_it_is() {
        let script = script(RestartPolicy::Always);
        assert_eq!(marks(&script), Some(of("tor1-01")));
        assert!(script.contains("# Provides:          praetor-infra.agent\n"), "{script}");
        assert!(script.contains(r"exec '/opt/a b/it'\''s' launch "), "{script}");
        for foreign in ["", "#!/bin/sh\n", "# X-Praetor-Uid: a\n# X-Praetor-SpecHash: b\n", "#!\n# X-Praetor-Uid: a\n"]
        {
            assert_eq!(marks(foreign), None);
        }
    }

    #[test]
    fn a_script_and_a_run_are_of_one_device() {
        let identity = Identity::new("infra", "agent");
        let marks = |device| {
            let text = text(&identity, &of(device), RestartPolicy::Always, "/a", "/b").unwrap();
            marks(&text).unwrap()
        };
        let is = |made: &str, device: &str| is_run_of(&run_of(&identity, "1a", made), &identity, "1a", device);
        for (made, device, ours) in
            [("a", "a", true), ("a", "", true), ("", "a", true), ("", "", true), ("a", "b", false)]
        {
            assert_eq!((marks(made).are_of(device), is(made, device)), (ours, ours), "{made} {device}");
        }
        assert!(is_run_of("praetor-infra.agent/1a/x", &identity, "", "x"));
        for value in ["praetor-infra.agent/1b", "praetor-infra.agent-2/1a", "praetor-infra.agent", ""] {
            assert!(!is_run_of(value, &identity, "1a", ""), "{value}");
        }
        assert!(Description::new(&launch(), "a\nb", "/".to_owned(), vec![], None).is_err());
    }

    #[test]
    fn only_what_always_runs_comes_up_with_the_device() {
        assert!(script(RestartPolicy::Always).contains("# Default-Start:     2 3 4 5\n"));
        for policy in [RestartPolicy::OnFailure, RestartPolicy::Never] {
            assert!(script(policy).contains("# Default-Start:    \n"));
        }
    }

    #[test]
    fn nothing_of_the_spec_is_in_a_script() {
        let description = Description::new(&launch(), "tor1-01", "/".to_owned(), launch().env, None).unwrap();
        assert_eq!(serde_json::from_str::<Description>(&description.to_json()).unwrap(), description);
        for bad in ["a\nreboot", "a b", "", "ä"] {
            let uid = Launch { uid: bad.to_owned(), ..launch() };
            assert!(Description::new(&uid, "", "/".to_owned(), vec![], None).is_err());
            let spec_hash = Launch { spec_hash: bad.to_owned(), ..launch() };
            assert!(Description::new(&spec_hash, "", "/".to_owned(), vec![], None).is_err());
        }
        for name in ["", "A=B"] {
            let env = vec![(name.to_owned(), String::new())];
            let error = Description::new(&launch(), "", "/".to_owned(), env, None).unwrap_err();
            assert_eq!(error.to_string(), format!("execution.env: {name:?} cannot be the name of a variable"));
        }
        let identity = Identity::new("a", "b");
        assert!(text(&identity, &of(""), RestartPolicy::Never, "/a\nreboot", "/b").is_err());
    }

    proptest! {
        #[test]
        fn a_quoted_path_is_one_word(path in "[ -~]{1,40}") {
            // What a shell makes of it: outside of quotes only \' is left.
            let quoted = quoted(&path);
            let mut inside = false;
            let mut read = String::new();
            let mut chars = quoted.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\'' => inside = !inside,
                    '\\' if !inside => read.push(chars.next().unwrap()),
                    c => { prop_assert!(inside); read.push(c); }
                }
            }
            prop_assert!(!inside);
            prop_assert_eq!(read, path);
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,200}") {
            let _ = marks(&text);
        }
    }
}
