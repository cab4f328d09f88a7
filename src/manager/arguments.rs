//! Edge: flags and environment of `praetor-manager`, read once.

use crate::gateway::access_log::AccessLog;
use crate::gateway::credentials::AuthArguments;
use crate::gateway::files::path as file;
use crate::gateway::tls::TlsArguments;
use crate::runtime::telemetry::LogFormat;
use clap::{Args, Parser, Subcommand};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Runs processes on devices that carry no kubelet: fans DeviceProcessDeployments out to DeviceProcesses, serves
/// them to devices over HTTP, and writes what devices report into their status.
#[derive(Debug, Parser)]
#[command(name = "praetor-manager", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Something else than running the manager.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Everything that the running manager needs.
    #[command(flatten)]
    pub run: RunArguments,
}

/// What the binary can do besides running the manager.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the token of a device, derived from the secret.
    Token {
        /// Name of the device.
        device: String,
        /// Where the secret is.
        #[command(flatten)]
        auth: AuthArguments,
    },
    /// Print the CustomResourceDefinitions as YAML.
    Crds {
        /// Write one file a kind into this folder instead.
        #[arg(long, value_name = "DIR")]
        output_dir: Option<PathBuf>,
    },
}

/// Flags of the running manager.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Address of the device API; `:PORT` means all interfaces.
    #[arg(long, value_name = "ADDRESS", default_value = ":8080", value_parser = address)]
    pub addr: SocketAddr,
    /// Address of health, metrics and debugging; `:PORT` means all interfaces.
    #[arg(long, value_name = "ADDRESS", default_value = ":8081", value_parser = address)]
    pub admin_addr: SocketAddr,
    /// Kubeconfig file; without it, or empty: in-cluster, then the default kubeconfig.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this replica in Leases and events, unique among the replicas; without it host name and process id.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// Namespace of the Leases by which replicas find each other and elect a leader; the same for all of them.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "praetor-system", value_parser = namespace)]
    pub namespace: String,
    /// Address on which other replicas are heard, where there is a peer secret; `:PORT` means all interfaces.
    #[arg(long, value_name = "ADDRESS", default_value = ":8082", value_parser = address)]
    pub peer_addr: SocketAddr,
    /// Where other replicas reach that address: IP:PORT. Without it the variable POD_IP with the port of --peer-addr,
    /// else --peer-addr itself where it names an interface.
    #[arg(long, value_name = "IP:PORT")]
    pub peer_advertise_addr: Option<SocketAddr>,
    /// The address of this pod, as Kubernetes tells it.
    #[arg(long, value_name = "IP", env = "POD_IP", hide = true)]
    pub pod_ip: Option<IpAddr>,
    /// File with the secret that all replicas share, at least 16 bytes. Without one this replica works alone and ends
    /// when it sees another. [env: APOLLO_PEER_SECRET, the secret itself]
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub peer_secret_file: Option<PathBuf>,
    /// How long devices are still answered after SIGTERM, while load balancers learn of it, seconds (0 to 300).
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=300))]
    pub drain_seconds: u32,
    /// How often devices are told to report, seconds (1 to 3600).
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub default_heartbeat_seconds: u32,
    /// A device is called disconnected after so many heartbeats of silence (2 to 100).
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub stale_multiplier: u32,
    /// Let a DeviceProcess be for a NetworkSwitch of another namespace.
    #[arg(long)]
    pub allow_cross_namespace: bool,
    /// Connections on the device port at most; further ones wait (1 to 1000000).
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Status patches a second at most (1 to 100000).
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub status_writes_per_second: u32,
    /// Objects whose status may wait to be written; beyond that devices are told to come back (1 to 10000000).
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub status_queue_capacity: u32,
    /// Devices a second that are called disconnected at most when a large share falls silent at once (1 to 100000).
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub mass_disconnects_per_second: u32,
    /// Which requests of devices get a log line.
    #[arg(long, value_enum, default_value_t)]
    pub access_log: AccessLog,
    /// The form of log lines.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Log level, or directives such as `info,praetor::rollout=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How the device port proves itself.
    #[command(flatten)]
    pub tls: TlsArguments,
    /// How devices prove who they are. Last, since its heading would stand over whatever follows.
    #[command(flatten)]
    pub auth: AuthArguments,
}

fn namespace(text: &str) -> Result<String, String> {
    let label = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let edges = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
    if label && text.len() <= 63 && edges(text.bytes().next()) && edges(text.bytes().last()) {
        return Ok(text.to_owned());
    }
    Err("use the name of a namespace: lower-case letters, digits and dashes, at most 63".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("{port:?} is no port: use 0 to 65535"))?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    text.parse().map_err(|_| "use IP:PORT, [IPv6]:PORT or :PORT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn addresses() {
        assert_eq!(address(":8080").unwrap().to_string(), "[::]:8080");
        assert_eq!(address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        for text in ["8080", ":http", "localhost:8080", ":70000", ""] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
