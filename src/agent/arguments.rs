//! Edge: flags and environment, read once.

use super::artifact::policy::{DEFAULT_MAX_BYTES, InsecureRegistry, InsecureRegistryError, Limits, Policy};
use super::backend::container::Options;
use super::backend::container::arguments::ContainerArguments;
use super::endpoint::{Endpoint, EndpointError};
use super::token::{Token, TokenError};
use super::trust::{Trust, TrustError};
use crate::wire::name::is_device_name;
use clap::Args;
use clap::builder::{FalseyValueParser, PossibleValue, PossibleValuesParser};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tracing::level_filters::LevelFilter;

/// Where the state is kept unless somebody says otherwise.
pub const DEFAULT_STATE_FILE: &str = "/var/lib/apollo/agent/state.json";
/// Where artifacts are kept beside that state file. Its own folder is the agent's alone, and processes of other users
/// run from here.
const DEFAULT_ARTIFACT_FOLDER: &str = "/var/lib/apollo-artifacts";

/// The settings of the agent. Each is a flag and a variable, so that each can stand in a settings file.
#[derive(Debug, Default, Args)]
pub struct Arguments {
    /// Name of this device: the NetworkSwitch's name, or what deviceRef.name says
    #[arg(long, value_name = "NAME", env = "APOLLO_DEVICE_NAME")]
    device_name: Option<String>,

    /// Where the gateway is, https://HOST[:PORT][/PATH] or http://…; several (comma-separated or repeated) are tried in order
    #[arg(long, value_name = "URL", env = "APOLLO_GATEWAY_URL", value_delimiter = ',')]
    gateway_url: Vec<String>,

    /// File of the CA certificates (PEM) that gateways with https:// are checked against; read again when one is not trusted [default: those of the system]
    #[arg(long, value_name = "FILE", env = "APOLLO_GATEWAY_CA_FILE")]
    gateway_ca_file: Option<String>,

    /// This device's token; visible to other users of the device, so prefer the variable or the file
    #[arg(long, value_name = "TOKEN", env = "APOLLO_DEVICE_TOKEN", hide_env_values = true)]
    device_token: Option<String>,

    /// File that holds this device's token; read again for each report, and when the gateway refuses it
    #[arg(long, value_name = "FILE", env = "APOLLO_DEVICE_TOKEN_FILE")]
    device_token_file: Option<String>,

    /// Where to keep what the device should run [default: /var/lib/apollo/agent/state.json]
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_STATE_FILE")]
    state_file: Option<String>,

    /// Report, but run nothing
    #[arg(long, env = "APOLLO_AGENT_OBSERVE_ONLY", value_parser = FalseyValueParser::new())]
    observe_only: bool,

    #[command(flatten)]
    artifacts: ArtifactArguments,

    #[command(flatten)]
    containers: ContainerArguments,

    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "APOLLO_AGENT_LOG_FORMAT", value_parser = one_of(&["text", "json"]), hide_possible_values = true)]
    log_format: Option<String>,

    /// Least important log lines that are shown: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "APOLLO_AGENT_LOG_LEVEL", value_parser = one_of(&["error", "warn", "info", "debug", "trace"]), hide_possible_values = true)]
    log_level: Option<String>,
}

/// These, or nothing.
fn one_of(words: &[&'static str]) -> PossibleValuesParser {
    words.iter().map(|word| PossibleValue::new(*word)).chain([PossibleValue::new("").hide(true)]).into()
}

/// Where artifacts may come from, and what they may hold.
#[derive(Debug, Default, Args)]
struct ArtifactArguments {
    /// Where artifacts are kept; other users' processes need the way there [default: /var/lib/apollo-artifacts, with another state file: artifacts beside it]
    #[arg(long, value_name = "FOLDER", env = "APOLLO_AGENT_ARTIFACT_FOLDER")]
    artifact_folder: Option<String>,

    /// A registry that is spoken to over plain HTTP, all of a host's without a port; repeated or comma-separated. Loopback always is
    #[arg(long, value_name = "HOST[:PORT]", env = "APOLLO_AGENT_INSECURE_REGISTRY", value_delimiter = ',')]
    insecure_registry: Vec<String>,

    /// File like docker's config.json with the credentials of registries under auths; read at each fetch
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_REGISTRY_CONFIG")]
    registry_config: Option<String>,

    /// File of CA certificates (PEM) that servers and registries are checked against, besides those of the system; read at each fetch
    #[arg(long, value_name = "FILE", env = "APOLLO_AGENT_ARTIFACT_CA_FILE")]
    artifact_ca_file: Option<String>,

    /// Download artifacts of type http also without checksumSHA256, if they come by https:// or from loopback
    #[arg(long, env = "APOLLO_AGENT_ALLOW_MISSING_CHECKSUM", value_parser = FalseyValueParser::new())]
    allow_missing_checksum: bool,

    /// Keep the setuid and setgid bits of an artifact's files; they are dropped otherwise
    #[arg(long, env = "APOLLO_AGENT_ALLOW_SETUID", value_parser = FalseyValueParser::new())]
    allow_setuid: bool,

    /// Most bytes of one artifact, packed and unpacked [default: 4294967296]
    #[arg(long, value_name = "BYTES", env = "APOLLO_AGENT_MAX_ARTIFACT_BYTES")]
    max_artifact_bytes: Option<String>,
}

/// What the arguments mean.
#[derive(Debug)]
pub struct Settings {
    /// Name of this device.
    pub device: String,
    /// At least one gateway, in the order in which they are tried.
    pub gateways: Vec<Endpoint>,
    /// What gateways are checked against.
    pub trust: Rc<Trust>,
    /// How the device proves who it is.
    pub token: Token,
    /// Where to keep what is held.
    pub state_file: PathBuf,
    /// Run nothing.
    pub observe_only: bool,
    /// Where artifacts may come from, and what they may hold.
    pub artifacts: Policy,
    /// Where they are kept.
    pub artifact_folder: PathBuf,
    /// Where the container engine is, and how it is used.
    pub containers: Options,
    /// JSON lines instead of text.
    pub log_json: bool,
    /// Least important log lines that are shown.
    pub log_level: LevelFilter,
}

/// Why the agent cannot start. One line that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// No device name.
    #[error("no device name: set --device-name or APOLLO_DEVICE_NAME")]
    NoName,
    /// Not a name that a device can have.
    #[error(
        "{0:?} is no device name: --device-name (APOLLO_DEVICE_NAME) is a lower-case RFC 1123 subdomain of at most 253 bytes"
    )]
    Name(String),
    /// No gateway.
    #[error("no gateway: set --gateway-url or APOLLO_GATEWAY_URL")]
    NoGateway,
    /// Not a gateway's URL. `0` counts the URLs from 1; the URL itself may hold a password.
    #[error("gateway URL {0} of --gateway-url (APOLLO_GATEWAY_URL): {1}")]
    Gateway(usize, EndpointError),
    /// Two sources of one token.
    #[error(
        "two tokens: set either --device-token (APOLLO_DEVICE_TOKEN) or --device-token-file (APOLLO_DEVICE_TOKEN_FILE)"
    )]
    TwoTokens,
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The CAs.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Not a registry.
    #[error("--insecure-registry (APOLLO_AGENT_INSECURE_REGISTRY): {0}")]
    InsecureRegistry(#[from] InsecureRegistryError),
    /// Not a number of bytes.
    #[error("--max-artifact-bytes (APOLLO_AGENT_MAX_ARTIFACT_BYTES): {0:?} is no number of bytes above 0")]
    MaxArtifactBytes(String),
}

// === impl Arguments ===

impl Arguments {
    /// Checks the arguments and reads the files of the token and of the CAs.
    ///
    /// # Errors
    /// The first thing that is missing or wrong.
    pub fn settle(self) -> Result<Settings, ArgumentError> {
        let level = present(self.log_level.as_ref()).and_then(|level| level.parse().ok());
        Ok(Settings {
            device: self.device()?,
            gateways: self.gateways()?,
            token: self.token()?,
            trust: Rc::new(self.trust()?),
            state_file: self.state_file(),
            observe_only: self.observe_only,
            artifacts: self.policy()?,
            artifact_folder: self.artifact_folder(),
            containers: self.containers(),
            log_json: present(self.log_format.as_ref()).is_some_and(|format| format == "json"),
            log_level: level.unwrap_or(LevelFilter::INFO),
        })
    }

    /// The device's name.
    ///
    /// # Errors
    /// When there is none, or it is no device's.
    pub fn device(&self) -> Result<String, ArgumentError> {
        let device = present(self.device_name.as_ref()).ok_or(ArgumentError::NoName)?;
        if is_device_name(device.as_bytes()) { Ok(device) } else { Err(ArgumentError::Name(device)) }
    }

    /// The gateways, in the order in which they are tried.
    ///
    /// # Errors
    /// When there is none, or one of the URLs is no gateway's.
    pub fn gateways(&self) -> Result<Vec<Endpoint>, ArgumentError> {
        let urls = self.gateway_url.iter().map(|url| url.trim()).filter(|url| !url.is_empty());
        let gateways = urls
            .enumerate()
            .map(|(i, url)| Endpoint::parse(url).map_err(|why| ArgumentError::Gateway(i + 1, why)))
            .collect::<Result<Vec<_>, _>>()?;
        if gateways.is_empty() { Err(ArgumentError::NoGateway) } else { Ok(gateways) }
    }

    /// The token, perhaps none.
    ///
    /// # Errors
    /// When there are two, or the one cannot be used.
    pub fn token(&self) -> Result<Token, ArgumentError> {
        match (present(self.device_token.as_ref()), present(self.device_token_file.as_ref())) {
            (Some(_), Some(_)) => Err(ArgumentError::TwoTokens),
            (Some(text), None) => Ok(Token::given(&text)?),
            (None, Some(path)) => Ok(Token::read(path.into())?),
            (None, None) => Ok(Token::none()),
        }
    }

    /// The CAs.
    ///
    /// # Errors
    /// When their file cannot be used.
    pub fn trust(&self) -> Result<Trust, ArgumentError> {
        Ok(Trust::new(present(self.gateway_ca_file.as_ref()).map(PathBuf::from))?)
    }

    /// Where artifacts may come from, and what they may hold.
    ///
    /// # Errors
    /// When a setting makes no sense, or the file of their CAs cannot be used.
    pub fn policy(&self) -> Result<Policy, ArgumentError> {
        self.artifacts.settle()
    }

    /// Where artifacts are kept.
    #[must_use]
    pub fn artifact_folder(&self) -> PathBuf {
        let state_file = self.state_file();
        let beside = match state_file.parent() {
            _ if state_file.as_os_str() == DEFAULT_STATE_FILE => DEFAULT_ARTIFACT_FOLDER.into(),
            folder => folder.unwrap_or(Path::new("")).join("artifacts"),
        };
        present(self.artifacts.artifact_folder.as_ref()).map_or(beside, PathBuf::from)
    }

    /// Where the container engine is, and how it is used.
    #[must_use]
    pub fn containers(&self) -> Options {
        self.containers.settle(present(self.artifacts.registry_config.as_ref()).map(PathBuf::from))
    }

    /// The files of the token and of the CAs, as far as they are named.
    #[must_use]
    pub fn files(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        let path = |name: &Option<String>| present(name.as_ref()).map(PathBuf::from);
        (path(&self.device_token_file), path(&self.gateway_ca_file))
    }

    /// The state file.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        present(self.state_file.as_ref()).unwrap_or_else(|| DEFAULT_STATE_FILE.to_owned()).into()
    }
}

// === impl ArtifactArguments ===

impl ArtifactArguments {
    fn settle(&self) -> Result<Policy, ArgumentError> {
        let registries = self.insecure_registry.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        let ca_file = present(self.artifact_ca_file.as_ref()).map(PathBuf::from);
        // Wrong from the start: said at the start. Later a fetch says it.
        Trust::of_artifacts(ca_file.clone()).check()?;
        let bytes = match present(self.max_artifact_bytes.as_ref()) {
            None => DEFAULT_MAX_BYTES,
            Some(text) => {
                let bytes = text.trim().parse().ok().filter(|bytes| *bytes > 0);
                bytes.ok_or(ArgumentError::MaxArtifactBytes(text))?
            }
        };
        Ok(Policy {
            insecure_registries: registries.map(InsecureRegistry::parse).collect::<Result<_, _>>()?,
            registry_config: present(self.registry_config.as_ref()).map(PathBuf::from),
            ca_file,
            allow_missing_checksum: self.allow_missing_checksum,
            allow_setuid: self.allow_setuid,
            limits: Limits { bytes, ..Limits::default() },
            ..Policy::default()
        })
    }
}

fn present(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(arguments: &[&str]) -> Result<Settings, String> {
        // Starts from nothing, whatever the environment of the test says.
        let mut filled = Arguments::default();
        for argument in arguments {
            match argument.split_once('=').unwrap() {
                ("name", v) => filled.device_name = Some(v.into()),
                ("url", v) => filled.gateway_url.push(v.into()),
                ("ca", v) => filled.gateway_ca_file = Some(v.into()),
                ("token", v) => filled.device_token = Some(v.into()),
                ("file", v) => filled.device_token_file = Some(v.into()),
                ("state", v) => filled.state_file = Some(v.into()),
                ("insecure", v) => filled.artifacts.insecure_registry.push(v.into()),
                ("artifact-ca", v) => filled.artifacts.artifact_ca_file = Some(v.into()),
                ("folder", v) => filled.artifacts.artifact_folder = Some(v.into()),
                ("bytes", v) => filled.artifacts.max_artifact_bytes = Some(v.into()),
                other => panic!("{other:?}"),
            }
        }
        filled.settle().map_err(|e| e.to_string())
    }

    #[test]
    fn empty_means_absent() {
        let settings =
            settle(&["name=d", "url=", "url= http://a ", "url=https://b", "ca=", "token=", "file=", "state="]).unwrap();
        assert_eq!(settings.gateways.iter().map(ToString::to_string).collect::<Vec<_>>(), ["http://a", "https://b"]);
        assert!(settings.token.value.is_none());
        assert_eq!(settings.state_file.to_str(), Some(DEFAULT_STATE_FILE));
        assert!(settle(&["name=", "url=http://a"]).unwrap_err().contains("APOLLO_DEVICE_NAME"));
        assert!(settle(&["name=d", "url="]).unwrap_err().contains("--gateway-url"));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_without_secrets() {
        for (arguments, part) in [
            (vec!["name=A", "url=http://a"], "\"A\" is no device name"),
            (vec!["name=a\nb", "url=http://a"], "a\\nb"),
            (
                vec!["name=d", "url=http://a", "url=ftp://b"],
                "gateway URL 2 of --gateway-url (APOLLO_GATEWAY_URL): expected http://HOST",
            ),
            (vec!["name=d", "url=http://me:secret@a"], "user name or password"),
            (vec!["name=d", "url=http://a", "token=secret", "file=/x"], "either --device-token"),
            (vec!["name=d", "url=http://a", "token=sec\nret"], "no HTTP header"),
            (vec!["name=d", "url=http://a", "file=/nowhere/x"], "/nowhere/x"),
            (vec!["name=d", "url=http://a", "ca=/nowhere/ca"], "APOLLO_GATEWAY_CA_FILE) /nowhere/ca"),
            (vec!["name=d", "url=http://a", "artifact-ca=/nowhere/ca"], "APOLLO_AGENT_ARTIFACT_CA_FILE) /nowhere/ca"),
            (vec!["name=d", "url=http://a", "insecure=http://r"], "--insecure-registry"),
            (vec!["name=d", "url=http://a", "bytes=4Gi"], "\"4Gi\" is no number of bytes"),
            (vec!["name=d", "url=http://a", "bytes=0"], "--max-artifact-bytes"),
        ] {
            let line = settle(&arguments).unwrap_err();
            assert!(line.contains(part) && !line.contains('\n') && !line.contains("secret"), "{line}");
        }
        let settings = settle(&["name=d", "url=http://a", "token=secret"]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn what_artifacts_may_be() {
        let settings = settle(&["name=d", "url=http://a", "insecure=", "insecure= r:5000 ", "bytes=1000"]).unwrap();
        assert!(settings.artifacts.allows_plain("r", Some(5000)) && !settings.artifacts.allows_plain("r", None));
        assert_eq!(settings.artifacts.limits.bytes, 1000);
        assert_eq!(settings.artifact_folder.to_str(), Some("/var/lib/apollo-artifacts"));
        let folder =
            |more: &str| settle(&["name=d", "url=http://a", "state=/a/state.json", more]).unwrap().artifact_folder;
        assert_eq!(["folder=", "folder=/b"].map(folder), [PathBuf::from("/a/artifacts"), PathBuf::from("/b")]);
        let none = settle(&["name=d", "url=http://a", "artifact-ca=", "bytes="]).unwrap();
        assert_eq!(none.artifacts, Policy::default());
    }
}
