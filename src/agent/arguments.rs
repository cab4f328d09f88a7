//! Edge: flags and environment, read once.

use super::artifact::policy::{DEFAULT_MAX_BYTES, InsecureRegistry, InsecureRegistryError, Limits, Policy};
use super::endpoint::{Endpoint, EndpointError};
use super::trust::{Trust, TrustError};
use crate::wire::name::is_device_name;
use clap::Parser;
use clap::builder::FalseyValueParser;
use http::HeaderValue;
use std::path::PathBuf;
use std::rc::Rc;
use tracing::level_filters::LevelFilter;

const DEFAULT_STATE_FILE: &str = "/var/lib/apollo/agent/state.json";

/// Runs on a device: asks the gateway which processes the device should run, and reports what it has seen.
///
/// Every setting is a flag or an environment variable; the flag wins, and an empty one counts as absent. The agent
/// keeps what it was told in the state file and holds it while the gateway is away. This version starts no process.
#[derive(Parser)]
#[command(name = "praetor-agent", version)]
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
    #[arg(long)]
    observe_only: bool,

    #[command(flatten)]
    artifacts: ArtifactArguments,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,

    /// Least important log lines that are shown
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,
}

/// Where artifacts may come from, and what they may hold.
#[derive(clap::Args, Default)]
struct ArtifactArguments {
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
    /// JSON lines instead of text.
    pub log_json: bool,
    /// Least important log lines that are shown.
    pub log_level: LevelFilter,
}

/// How the device proves who it is.
#[derive(Debug)]
pub struct Token {
    /// The header's value, marked sensitive; none: no header is sent.
    pub value: Option<HeaderValue>,
    file: Option<PathBuf>,
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
    /// Not a header's value.
    #[error("the device token has characters that no HTTP header can carry")]
    Token,
    /// The token's file.
    #[error("--device-token-file (APOLLO_DEVICE_TOKEN_FILE) {0}: {1}")]
    TokenFile(PathBuf, String),
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
        let device = present(self.device_name).ok_or(ArgumentError::NoName)?;
        if !is_device_name(device.as_bytes()) {
            return Err(ArgumentError::Name(device));
        }
        let urls = self.gateway_url.iter().map(|url| url.trim()).filter(|url| !url.is_empty());
        let gateways = urls
            .enumerate()
            .map(|(i, url)| Endpoint::parse(url).map_err(|why| ArgumentError::Gateway(i + 1, why)))
            .collect::<Result<Vec<_>, _>>()?;
        if gateways.is_empty() {
            return Err(ArgumentError::NoGateway);
        }
        let token = match (present(self.device_token), present(self.device_token_file)) {
            (Some(_), Some(_)) => return Err(ArgumentError::TwoTokens),
            (Some(text), None) => Token { value: Some(header(text.trim())?), file: None },
            (None, Some(path)) => Token::read(PathBuf::from(path))?,
            (None, None) => Token::none(),
        };
        let trust = Rc::new(Trust::new(present(self.gateway_ca_file).map(PathBuf::from))?);
        Ok(Settings {
            device,
            gateways,
            trust,
            token,
            state_file: present(self.state_file).unwrap_or_else(|| DEFAULT_STATE_FILE.to_owned()).into(),
            observe_only: self.observe_only,
            artifacts: self.artifacts.settle()?,
            log_json: self.log_format == "json",
            log_level: self.log_level.parse().unwrap_or(LevelFilter::INFO),
        })
    }
}

// === impl ArtifactArguments ===

impl ArtifactArguments {
    fn settle(self) -> Result<Policy, ArgumentError> {
        let registries = self.insecure_registry.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        let ca_file = present(self.artifact_ca_file).map(PathBuf::from);
        // Wrong from the start: said at the start. Later a fetch says it.
        Trust::of_artifacts(ca_file.clone()).check()?;
        let bytes = match present(self.max_artifact_bytes) {
            None => DEFAULT_MAX_BYTES,
            Some(text) => {
                let bytes = text.trim().parse().ok().filter(|bytes| *bytes > 0);
                bytes.ok_or(ArgumentError::MaxArtifactBytes(text))?
            }
        };
        Ok(Policy {
            insecure_registries: registries.map(InsecureRegistry::parse).collect::<Result<_, _>>()?,
            registry_config: present(self.registry_config).map(PathBuf::from),
            ca_file,
            allow_missing_checksum: self.allow_missing_checksum,
            allow_setuid: self.allow_setuid,
            limits: Limits { bytes, ..Limits::default() },
            ..Policy::default()
        })
    }
}

// === impl Token ===

impl Token {
    /// No token: requests carry no header.
    #[must_use]
    pub fn none() -> Self {
        Self { value: None, file: None }
    }

    fn read(path: PathBuf) -> Result<Self, ArgumentError> {
        let text = std::fs::read_to_string(&path)
            .map_err(|error| ArgumentError::TokenFile(path.clone(), error.to_string()))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(ArgumentError::TokenFile(path, "the file is empty".to_owned()));
        }
        Ok(Self { value: Some(header(text)?), file: Some(path) })
    }

    /// Reads the token's file again, if there is one; `true` when it holds another token now.
    ///
    /// # Errors
    /// When the file cannot be read; the token that is known stays.
    pub fn reload(&mut self) -> Result<bool, ArgumentError> {
        let Some(path) = self.file.clone() else { return Ok(false) };
        let new = Self::read(path)?;
        let differs = new.value != self.value;
        *self = new;
        Ok(differs)
    }
}

fn present(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn header(token: &str) -> Result<HeaderValue, ArgumentError> {
    let mut value = HeaderValue::from_str(token).map_err(|_| ArgumentError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(arguments: &[&str]) -> Result<Settings, String> {
        // Starts from nothing, whatever the environment of the test says.
        let empty = Arguments {
            device_name: None,
            gateway_url: Vec::new(),
            gateway_ca_file: None,
            device_token: None,
            device_token_file: None,
            state_file: None,
            observe_only: false,
            artifacts: ArtifactArguments::default(),
            log_format: "text".into(),
            log_level: "info".into(),
        };
        let mut filled = empty;
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
        let none = settle(&["name=d", "url=http://a", "artifact-ca=", "bytes="]).unwrap();
        assert_eq!(none.artifacts, Policy::default());
    }

    #[test]
    fn a_tokens_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let argument = format!("file={}", file.path().display());
        let arguments = ["name=d", "url=http://a", &argument];
        assert!(settle(&arguments).unwrap_err().contains("empty"));
        std::fs::write(&file, "one\n").unwrap();
        let mut token = settle(&arguments).unwrap().token;
        assert_eq!(token.value.as_ref().unwrap(), "one");
        assert!(!token.reload().unwrap());
        std::fs::write(&file, "two").unwrap();
        assert!(token.reload().unwrap());
        std::fs::write(&file, "").unwrap();
        assert!(token.reload().is_err());
        assert_eq!(token.value.as_ref().unwrap(), "two");
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
