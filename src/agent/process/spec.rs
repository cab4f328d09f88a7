//! Pure: what a process is, read from the spec of its DeviceProcess.
//!
//! The cluster's schema has checked it already; an agent that is older than the cluster may still meet what it does not
//! know, and a cluster whose definitions are older may send what is missing. Each is one sentence for the operator.

use serde::Deserialize;
use std::time::Duration;

/// Stands for the device's name in values of the environment; nothing else is expanded.
const DEVICE_NAME: &str = "${APOLLO_DEVICE_NAME}";

/// What to run, how, and how to find out whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// What is fetched.
    pub artifact: Artifact,
    /// How it is run.
    pub execution: Execution,
    /// What happens when it has ended.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// How to find out whether it is well; none: it is once it has run for 5 s.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
}

/// Where the artifact comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Artifact {
    /// The way to fetch it.
    pub r#type: ArtifactType,
    /// oci: an image reference, with or without `oci://`; http: a URL; file: an absolute path.
    pub url: String,
    /// 64 hexadecimal digits.
    #[serde(default, rename = "checksumSHA256")]
    pub checksum_sha256: Option<String>,
}

/// Ways to fetch an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactType {
    /// From a registry.
    Oci,
    /// By HTTP or HTTPS.
    Http,
    /// It is on the device.
    File,
}

/// How a process is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// What runs it.
    pub backend: BackendKind,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// Further arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment, besides what every process on the device gets.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// An absolute path.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// A user's name or number.
    #[serde(default)]
    pub user: Option<String>,
}

/// What runs processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Units of systemd.
    Systemd,
    /// Scripts in `/etc/init.d`.
    Initd,
    /// A container engine.
    Container,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value, not expanded.
    #[serde(default)]
    pub value: String,
}

/// Whether a process that has ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum RestartPolicy {
    /// After any exit.
    #[default]
    Always,
    /// After one that is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// A command that is run from time to time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// It exits 0 when all is well.
    pub exec: Exec,
    /// Seconds between the starts of two checks.
    #[serde(default = "thirty")]
    pub period_seconds: u32,
    /// Seconds that a check may take.
    #[serde(default = "five")]
    pub timeout_seconds: u32,
    /// Successes in a row that make it healthy.
    #[serde(default = "one")]
    pub success_threshold: u32,
    /// Failures in a row that make it unhealthy.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Exec {
    /// The program first.
    pub command: Vec<String>,
}

/// Why a spec cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field is missing, of a wrong type or of a kind that this agent does not know.
    #[error("this agent cannot read the spec: {0}")]
    Unreadable(String),
    /// Nothing to run.
    #[error("execution.command is empty: its first element is the program")]
    NoCommand,
    /// The health check runs nothing.
    #[error("healthCheck.exec.command is empty: its first element is the program")]
    NoCheck,
    /// A NUL character, which no argument and no environment can hold.
    #[error("{0} contains a NUL character")]
    Nul(&'static str),
}

fn thirty() -> u32 {
    30
}
fn five() -> u32 {
    5
}
fn one() -> u32 {
    1
}
fn three() -> u32 {
    3
}

// === impl Spec ===

impl Spec {
    /// Reads a spec as the gateway sends it. Unknown fields are passed over.
    ///
    /// # Errors
    /// What is wrong, as a sentence that names the field.
    pub fn parse(json: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_str(json).map_err(|error| SpecError::Unreadable(error.to_string()))?;
        let execution = &spec.execution;
        if execution.command.first().is_none_or(String::is_empty) {
            return Err(SpecError::NoCommand);
        }
        if spec.health_check.as_ref().is_some_and(|check| check.exec.command.first().is_none_or(String::is_empty)) {
            return Err(SpecError::NoCheck);
        }
        let nul = |text: &String| text.contains('\0');
        if execution.command.iter().chain(&execution.args).any(nul) {
            return Err(SpecError::Nul("execution.command or execution.args"));
        }
        if execution.env.iter().any(|v| nul(&v.name) || nul(&v.value)) {
            return Err(SpecError::Nul("execution.env"));
        }
        if spec.health_check.iter().flat_map(|check| &check.exec.command).any(nul) {
            return Err(SpecError::Nul("healthCheck.exec.command"));
        }
        Ok(spec)
    }
}

// === impl Execution ===

impl Execution {
    /// Name and value of each variable, the device's name filled in.
    pub fn environment<'a>(&'a self, device: &'a str) -> impl Iterator<Item = (&'a str, String)> + 'a {
        self.env.iter().map(move |variable| (variable.name.as_str(), variable.value.replace(DEVICE_NAME, device)))
    }
}

// === impl BackendKind ===

impl BackendKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Systemd, Self::Initd, Self::Container];

    /// As it is written in a spec.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Initd => "initd",
            Self::Container => "container",
        }
    }
}

// === impl HealthCheck ===

impl HealthCheck {
    /// Between the starts of two checks, at least a second.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(u64::from(self.period_seconds.max(1)))
    }

    /// What a check may take, at least a second.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_seconds.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"deviceRef": {"kind": "NetworkSwitch", "name": "tor1-01"},
        "artifact": {"type": "file", "url": "/bin/agent"}, "execution": {"backend": "initd", "command": ["agent"]}}"#;

    #[test]
    fn defaults_are_those_of_the_cluster() {
        let spec = Spec::parse(SMALL).unwrap();
        assert_eq!((spec.restart_policy, spec.health_check), (RestartPolicy::Always, None));
        let check: HealthCheck = serde_json::from_str(r#"{"exec": {"command": ["true"]}}"#).unwrap();
        assert_eq!((check.period().as_secs(), check.timeout().as_secs()), (30, 5));
        assert_eq!((check.success_threshold, check.failure_threshold), (1, 3));
    }

    #[test]
    fn the_device_name_is_all_that_is_expanded() {
        let env = r#"[{"name": "A", "value": "x-${APOLLO_DEVICE_NAME}-${HOME}-$A"}, {"name": "B"}]"#;
        let spec = Spec::parse(&SMALL.replace(r#""command""#, &format!(r#""env": {env}, "command""#))).unwrap();
        let all: Vec<_> = spec.execution.environment("tor1-01").collect();
        assert_eq!(all, [("A", "x-tor1-01-${HOME}-$A".to_owned()), ("B", String::new())]);
    }

    #[test]
    fn what_cannot_be_run_is_said_with_its_field() {
        for (from, to, expected) in [
            (r#"["agent"]"#, "[]", "execution.command is empty"),
            (r#"["agent"]"#, r#"[""]"#, "execution.command is empty"),
            (r#"["agent"]"#, r#"["a\u0000b"]"#, "NUL"),
            ("initd", "launchd", "unknown variant `launchd`"),
            (r#""artifact""#, r#""art""#, "missing field `artifact`"),
        ] {
            let error = Spec::parse(&SMALL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
