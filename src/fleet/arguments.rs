//! Edge: flags, environment and files of `praetor-fleet`, read once.

use crate::wire::name::is_device_name;
use clap::{Parser, ValueEnum};
use http::HeaderValue;
use http::uri::Uri;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Simulates devices: each asks what it should run, by long-poll, and reports every heartbeat, with the cadence,
/// the back-off and the connections of a real agent. Tokens are derived from the HMAC secret. Ends on SIGINT,
/// SIGTERM, after --duration-seconds or --rounds, and prints a summary as JSON.
#[derive(Debug, Parser)]
#[command(name = "praetor-fleet", version)]
pub struct Arguments {
    /// Gateways, comma-separated; a device moves on to the next after a failed request.
    #[arg(long, value_name = "URL", env = "APOLLO_GATEWAY_URL", value_delimiter = ',', required = true)]
    gateway_url: Vec<String>,
    /// Which of several gateways a device talks to.
    #[arg(long, value_enum, default_value_t = Spread::Sticky)]
    spread: Spread,
    /// How many devices, named <PREFIX>-<NUMBER> with five digits.
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "names_file")]
    devices: usize,
    /// Prefix of the devices' names.
    #[arg(long, default_value = "device", conflicts_with = "names_file")]
    prefix: String,
    /// Number of the first device; lets several processes share a fleet.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "names_file")]
    first: usize,
    /// A file with a device's name a line, instead of numbered names.
    #[arg(long, value_name = "FILE")]
    names_file: Option<PathBuf>,
    /// The secret that tokens are derived from; the first line counts.
    #[arg(long, value_name = "FILE", env = "APOLLO_GATEWAY_TOKEN_SECRET_FILE")]
    device_token_secret_file: Option<PathBuf>,
    /// The secret itself; up to the first comma. Prefer the file: arguments are seen by others.
    #[arg(long, value_name = "SECRET", env = "APOLLO_GATEWAY_TOKEN_SECRET", hide_env_values = true)]
    device_token_secret: Option<String>,
    /// Devices that start in a second.
    #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = positive)]
    ramp_per_second: f64,
    /// Ends after so long, seconds; 0: not by itself.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    duration_seconds: u64,
    /// Ends when every device has had so many reports acknowledged that tell of what it should run; 0: not by itself.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rounds: u64,
    /// Time between a device's reports instead of what the gateway says, seconds.
    #[arg(long, value_name = "SECONDS")]
    heartbeat_seconds: Option<u64>,
    /// How much that time varies, percent either way.
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=50))]
    jitter_percent: u8,
    /// How long a poll may be parked, seconds (5 less to 5 more); 0: a plain GET with every heartbeat.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=55))]
    wait_seconds: u64,
    /// What reports say of the processes that the device should run.
    #[arg(long, value_enum, default_value_t = Observe::Running)]
    observe: Observe,
    /// All devices take turns on so many connections, and polls are not parked; 0: two connections a device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_connections: usize,
    /// A line on standard error every so often, seconds; 0: none.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    progress_seconds: u64,
}

/// Which of several gateways a device talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// Devices are spread over the gateways, and each stays with one as long as it answers, as real agents do.
    Sticky,
    /// Each request goes to a random one, to show that it does not matter which.
    Random,
}

/// What reports say of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Observe {
    /// Nothing: bare signs of life.
    None,
    /// That their specs have been seen.
    Seen,
    /// That they run and are well.
    Running,
}

/// What a fleet needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one.
    pub gateways: Vec<Endpoint>,
    /// Which of them a device talks to.
    pub spread: Spread,
    /// The devices' names.
    pub names: Vec<String>,
    /// Tokens are derived from it; empty: no tokens are sent.
    pub secret: Vec<u8>,
    /// Devices that start in a second.
    pub ramp_per_second: f64,
    /// Ends after this time.
    pub duration: Option<Duration>,
    /// Ends after so many reports of each device.
    pub rounds: Option<u64>,
    /// Instead of what the gateway says.
    pub heartbeat: Option<Duration>,
    /// Share of the heartbeat by which it varies, 0 to 0.5.
    pub jitter: f64,
    /// How long a poll may be parked; zero: plain GETs.
    pub wait: Duration,
    /// What reports say.
    pub observe: Observe,
    /// Connections of all devices together; `None`: two a device.
    pub shared_connections: Option<usize>,
    /// Time between lines of progress.
    pub progress: Option<Duration>,
}

/// A gateway's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address, and port, as `connect` wants it.
    pub address: String,
    /// Value of the `Host` header.
    pub host: HeaderValue,
    /// What stands before `/v1/…`, without a slash at its end.
    pub base: String,
}

/// Why a fleet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// Not `http://HOST[:PORT][/PATH]`.
    #[error("--gateway-url {0:?}: expected http://HOST[:PORT][/PATH]")]
    Url(String),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or flag holds nothing.
    #[error("{0} is empty")]
    Empty(String),
    /// A name that no device can have.
    #[error("{0:?} is no device name: use a lower-case RFC 1123 subdomain of at most 253 bytes")]
    Name(String),
    /// More connections than the process may open.
    #[error(
        "{needed} connections need more than the {limit} open files that this process may have: use fewer devices, several processes (--first) or --shared-connections"
    )]
    Files {
        /// Connections.
        needed: usize,
        /// The process's limit.
        limit: usize,
    },
}

// === impl Arguments ===

impl Arguments {
    /// Reads the files and checks what can be checked before the first connection.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub fn settle(self) -> Result<Settings, ArgumentError> {
        let gateways = self.gateway_url.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>, _>>()?;
        let listed = self.names_file.as_deref().map(read).transpose()?;
        let listed =
            listed.as_ref().map(|text| text.lines().map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>());
        let count = listed.as_ref().map_or(self.devices, Vec::len);
        let shared_connections = (self.shared_connections > 0).then_some(self.shared_connections);
        // A device that goes from one to the other keeps a connection to each.
        let ways = if self.spread == Spread::Random { gateways.len() } else { 1 };
        let needed = shared_connections.unwrap_or(count.saturating_mul(2 * ways));
        // Room for the runtime's own files.
        if let Some(limit) = open_files().filter(|limit| needed.saturating_add(32) > *limit) {
            return Err(ArgumentError::Files { needed, limit });
        }
        let names: Vec<String> = match listed {
            Some(listed) => listed.into_iter().map(ToOwned::to_owned).collect(),
            None => (self.first..).take(count).map(|number| format!("{}-{number:05}", self.prefix)).collect(),
        };
        if let Some(name) = names.iter().find(|name| !is_device_name(name.as_bytes())) {
            return Err(ArgumentError::Name(name.clone()));
        }
        if names.is_empty() {
            return Err(ArgumentError::Empty("the list of devices".to_owned()));
        }
        let secret = match (&self.device_token_secret_file, &self.device_token_secret) {
            (Some(path), _) => {
                let text = read(path)?;
                let first = text.lines().find(|line| !line.trim().is_empty());
                first.ok_or_else(|| ArgumentError::Empty(path.display().to_string()))?.to_owned()
            }
            (None, Some(list)) => list.split(',').next().unwrap_or_default().to_owned(),
            (None, None) => String::new(),
        };
        let seconds = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(Settings {
            gateways,
            spread: self.spread,
            names,
            secret: secret.into_bytes(),
            ramp_per_second: self.ramp_per_second,
            duration: seconds(self.duration_seconds),
            rounds: (self.rounds > 0).then_some(self.rounds),
            heartbeat: self.heartbeat_seconds.and_then(seconds),
            jitter: f64::from(self.jitter_percent) / 100.0,
            // A parked poll would keep a shared connection from everybody else.
            wait: if shared_connections.is_some() { Duration::ZERO } else { Duration::from_secs(self.wait_seconds) },
            observe: self.observe,
            shared_connections,
            progress: seconds(self.progress_seconds),
        })
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads `http://HOST[:PORT][/PATH]`.
    ///
    /// # Errors
    /// When the URL is anything else.
    pub fn parse(url: &str) -> Result<Self, ArgumentError> {
        let fault = || ArgumentError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| fault())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(fault)?;
        if uri.scheme_str() != Some("http") || uri.query().is_some() || authority.host().is_empty() {
            return Err(fault());
        }
        Ok(Self {
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| fault())?,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

fn read(path: &Path) -> Result<String, ArgumentError> {
    std::fs::read_to_string(path).map_err(|source| ArgumentError::File { path: path.to_owned(), source })
}

/// How many files this process may have open, where the system tells.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "use a positive number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn settle(flags: &str) -> Result<Settings, ArgumentError> {
        Arguments::try_parse_from(["praetor-fleet"].into_iter().chain(flags.split_whitespace())).unwrap().settle()
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["praetor-fleet", "--gateway-url=http://h", "--ramp-per-second=0"]).is_err());
    }

    #[test]
    fn names_come_by_number_or_from_a_file() {
        let settings = settle("--gateway-url=http://a:1,http://b/base/ --devices=2 --first=7 --prefix=tor").unwrap();
        assert_eq!(settings.names, ["tor-00007", "tor-00008"]);
        assert_eq!(settings.gateways[1].address, "b:80");
        assert_eq!(settings.gateways[1].base, "/base");
        let folder = tempfile::tempdir().unwrap();
        let (names, secret) = (folder.path().join("names"), folder.path().join("secret"));
        std::fs::write(&names, "a\n\n b.c \n").unwrap();
        std::fs::write(&secret, "\nfirst\nsecond\n").unwrap();
        let flags = format!(
            "--gateway-url=http://a --names-file={} --device-token-secret-file={}",
            names.display(),
            secret.display()
        );
        let settings = settle(&flags).unwrap();
        assert_eq!((settings.names, settings.secret), (vec!["a".to_owned(), "b.c".to_owned()], b"first".to_vec()));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(matches!(settle("--gateway-url=http://a --prefix=Tor"), Err(ArgumentError::Name(_))));
        assert!(matches!(settle("--gateway-url=http://a --names-file=/nowhere"), Err(ArgumentError::File { .. })));
        assert!(matches!(settle("--gateway-url=http://a --devices=0"), Err(ArgumentError::Empty(_))));
        assert!(matches!(settle("--gateway-url=http://a --devices=90000000"), Err(ArgumentError::Files { .. })));
        let limit = open_files().unwrap();
        let devices = |spread| format!("--gateway-url=http://a,http://b --devices={} --spread={spread}", limit / 3);
        assert!(settle(&devices("sticky")).is_ok());
        assert!(matches!(settle(&devices("random")), Err(ArgumentError::Files { .. })));
        assert!(settle("--gateway-url=http://a --devices=90000 --shared-connections=4").unwrap().wait.is_zero());
        for url in ["https://a", "a:80", "http://u@a", "http://", "http://a?x", "ftp://a"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
        assert_eq!(Endpoint::parse("http://[::1]:8080").unwrap().address, "[::1]:8080");
    }
}
