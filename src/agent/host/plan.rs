//! Pure: what installing means: which folders, files and links there should be, and what is run then.

use super::service::{Init, NAME, is_plain};
use super::settings::{SettingError, SettingsFile};
use crate::agent::arguments::DEFAULT_STATE_FILE;
use std::path::Path;

/// Folders whose content is gone after a reboot, or anybody's.
const FLEETING: [&str; 5] = ["/tmp", "/var/tmp", "/run", "/var/run", "/dev"];
/// Runlevels in which the agent runs and in which it does not, and its place among the scripts. It starts late and ends
/// early: what it has started is none of its business then.
const RUNS: [char; 4] = ['2', '3', '4', '5'];
const RESTS: [char; 3] = ['0', '1', '6'];
const START: &str = "S95";
const STOP: &str = "K05";

/// What the operator has said.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// What starts services.
    pub init: Init,
    /// Absolute path of the program.
    pub binary: String,
    /// Absolute path of the settings file.
    pub settings_file: String,
    /// What stands in it.
    pub settings: SettingsFile,
    /// This device, which runs; otherwise an image of one, which has nothing to be started with.
    pub live: bool,
}

/// Something that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A folder.
    Folder {
        /// Its path.
        path: String,
        /// Its permissions when it is made.
        mode: u32,
    },
    /// A file with exactly this content.
    File {
        /// Its path.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Its content.
        content: String,
    },
    /// A symbolic link.
    Link {
        /// Its path.
        path: String,
        /// Where it leads.
        target: String,
    },
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are made.
    pub items: Vec<Item>,
    /// Commands, run when something of the unit or script has changed.
    pub register: Vec<Vec<String>>,
    /// The command that starts the agent.
    pub start: Option<Vec<String>>,
    /// The command that starts it anew.
    pub restart: Option<Vec<String>>,
}

/// Why there is no plan. One line that says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A setting cannot be kept.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A path is not good for a unit or a script.
    #[error("{0} {1:?}: expected an absolute path of letters, digits and / . _ + @ : , -")]
    Path(&'static str, String),
    /// It would be gone after a reboot.
    #[error("{0} {1} is in a folder that does not outlive a reboot, or is anybody's: move it, for instance to {2}")]
    Fleeting(&'static str, String, &'static str),
    /// The token itself.
    #[error("install takes the token from a file alone: put it into one (0600) and name it with --device-token-file")]
    Token,
}

// === impl Wishes ===

impl Wishes {
    /// What should be there. `runlevels` are the folders `/etc/rcN.d` that exist, by their digit.
    ///
    /// # Errors
    /// When a path is no good, or a setting cannot be kept.
    pub fn plan(&self, runlevels: &[char]) -> Result<Plan, PlanError> {
        if self.settings.get("APOLLO_DEVICE_TOKEN").is_some() {
            return Err(PlanError::Token);
        }
        lasting("the program", &self.binary, "/usr/local/bin")?;
        lasting("--settings-file", &self.settings_file, "/etc/apollo")?;
        let state_file = self.settings.get("APOLLO_AGENT_STATE_FILE").unwrap_or(DEFAULT_STATE_FILE);
        lasting("--state-file", state_file, "/var/lib/apollo/agent")?;
        for (flag, variable) in
            [("--device-token-file", "APOLLO_DEVICE_TOKEN_FILE"), ("--gateway-ca-file", "APOLLO_GATEWAY_CA_FILE")]
        {
            if let Some(path) = self.settings.get(variable) {
                lasting(flag, path, "/etc/apollo")?;
            }
        }
        let mut items = vec![
            Item::Folder { path: parent(state_file), mode: 0o700 },
            Item::Folder { path: parent(&self.settings_file), mode: 0o755 },
            Item::File { path: self.settings_file.clone(), mode: 0o600, content: self.settings.render() },
            Item::File {
                path: self.init.path(),
                mode: self.init.mode(),
                content: self.init.render(&self.binary, &self.settings_file),
            },
        ];
        // A systemd that runs makes its link itself.
        let links = self.init == Init::Initd || !self.live;
        items.extend(self.init.links(runlevels).into_iter().filter(|_| links));
        let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (register, control): (_, fn(&str) -> String) = match self.init {
            Init::Systemd => (
                vec![words("systemctl daemon-reload".into()), words(format!("systemctl enable {NAME}.service"))],
                |verb| format!("systemctl {verb} {NAME}.service"),
            ),
            Init::Initd => (Vec::new(), |verb| format!("/etc/init.d/{NAME} {verb}")),
        };
        Ok(Plan {
            items,
            register: if self.live { register } else { Vec::new() },
            start: self.live.then(|| words(control("start"))),
            restart: self.live.then(|| words(control("restart"))),
        })
    }
}

// === impl Init ===

impl Init {
    /// The links that make the device start it: into the folders of the runlevels, or for systemd what
    /// `systemctl enable` makes.
    #[must_use]
    pub fn links(self, runlevels: &[char]) -> Vec<Item> {
        match self {
            Self::Systemd => vec![Item::Link {
                path: format!("/etc/systemd/system/multi-user.target.wants/{NAME}.service"),
                target: self.path(),
            }],
            Self::Initd => {
                let all = RUNS.iter().map(|level| (level, START)).chain(RESTS.iter().map(|level| (level, STOP)));
                all.filter(|(level, _)| runlevels.contains(level))
                    .map(|(level, order)| Item::Link {
                        path: format!("/etc/rc{level}.d/{order}{NAME}"),
                        target: format!("../init.d/{NAME}"),
                    })
                    .collect()
            }
        }
    }
}

// === impl Item ===

impl Item {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Folder { path, .. } | Self::File { path, .. } | Self::Link { path, .. } => path,
        }
    }

    /// What it is, for people; with `content` also what a file holds.
    #[must_use]
    pub fn describe(&self, content: bool) -> String {
        match self {
            Self::Folder { path, mode } => format!("folder {path} (mode {mode:04o})"),
            Self::Link { path, target } => format!("link {path} -> {target}"),
            Self::File { path, mode, content: text } => {
                let mut said = format!("file {path} (mode {mode:04o})");
                if content {
                    said.extend(text.lines().map(|line| format!("\n    | {line}").trim_end().to_owned()));
                }
                said
            }
        }
    }
}

fn lasting(what: &'static str, path: &str, better: &'static str) -> Result<(), PlanError> {
    let odd = path.split('/').any(|part| part == ".." || part == ".");
    if !is_plain(path) || odd {
        return Err(PlanError::Path(what, path.to_owned()));
    }
    if FLEETING.iter().any(|folder| Path::new(path).starts_with(folder)) {
        return Err(PlanError::Fleeting(what, path.to_owned(), better));
    }
    Ok(())
}

fn parent(path: &str) -> String {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(init: Init, settings: &[(&str, &str)]) -> Wishes {
        let mut file = SettingsFile::default();
        for (name, value) in settings {
            file.set(name, value).unwrap();
        }
        Wishes {
            init,
            binary: "/usr/local/bin/praetor-agent".into(),
            settings_file: "/etc/apollo/agent.env".into(),
            settings: file,
            live: true,
        }
    }

    #[test]
    fn with_systemd() {
        let plan = wishes(Init::Systemd, &[("APOLLO_DEVICE_NAME", "tor1-01")]).plan(&['2']).unwrap();
        let said: Vec<_> = plan.items.iter().map(|item| item.describe(false)).collect();
        assert_eq!(
            said,
            [
                "folder /var/lib/apollo/agent (mode 0700)",
                "folder /etc/apollo (mode 0755)",
                "file /etc/apollo/agent.env (mode 0600)",
                "file /etc/systemd/system/praetor-agent.service (mode 0644)",
            ]
        );
        assert!(plan.items[2].describe(true).ends_with("\n    | APOLLO_DEVICE_NAME='tor1-01'"));
        assert_eq!(plan.restart.unwrap().join(" "), "systemctl restart praetor-agent.service");
        assert_eq!(plan.register.len(), 2);
        let image = Wishes { live: false, ..wishes(Init::Systemd, &[]) }.plan(&[]).unwrap();
        assert_eq!(
            image.items[4].describe(true),
            "link /etc/systemd/system/multi-user.target.wants/praetor-agent.service -> /etc/systemd/system/praetor-agent.service"
        );
        assert!(image.register.is_empty() && image.start.is_none());
    }

    #[test]
    fn with_scripts() {
        let mut wishes = wishes(Init::Initd, &[("APOLLO_AGENT_STATE_FILE", "/mnt/flash/agent/s.json")]);
        wishes.live = false;
        let plan = wishes.plan(&['0', '3', 'S']).unwrap();
        let paths: Vec<_> = plan.items.iter().map(Item::path).collect();
        assert_eq!(
            paths,
            [
                "/mnt/flash/agent",
                "/etc/apollo",
                "/etc/apollo/agent.env",
                "/etc/init.d/praetor-agent",
                "/etc/rc3.d/S95praetor-agent",
                "/etc/rc0.d/K05praetor-agent"
            ]
        );
        assert!(plan.register.is_empty() && plan.start.is_none() && plan.restart.is_none());
    }

    #[test]
    fn what_would_not_last_is_refused() {
        for (settings, part) in [
            (vec![("APOLLO_DEVICE_TOKEN", "x")], "from a file alone"),
            (vec![("APOLLO_DEVICE_TOKEN_FILE", "/tmp/token")], "--device-token-file /tmp/token"),
            (vec![("APOLLO_GATEWAY_CA_FILE", "/run/ca")], "/etc/apollo"),
            (vec![("APOLLO_AGENT_STATE_FILE", "state.json")], "absolute path"),
            (vec![("APOLLO_AGENT_STATE_FILE", "/var/lib/../../tmp/s")], "absolute path"),
        ] {
            let line = wishes(Init::Systemd, &settings).plan(&[]).unwrap_err().to_string();
            assert!(line.contains(part), "{line}");
        }
        for (binary, part) in [("/tmp/praetor-agent", "/usr/local/bin"), ("/a b", "\"/a b\""), ("/x%n", "expected")] {
            let mut wishes = wishes(Init::Systemd, &[]);
            wishes.binary = binary.into();
            let line = wishes.plan(&[]).unwrap_err().to_string();
            assert!(line.contains(part), "{line}");
        }
        assert!(wishes(Init::Systemd, &[("APOLLO_DEVICE_TOKEN_FILE", "/tmpfiles/t")]).plan(&[]).is_ok());
    }
}
