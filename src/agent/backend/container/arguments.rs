//! Edge: flags and environment about the container engine.

use super::backend::Options;
use clap::Args;
use std::path::PathBuf;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
const DEFAULT_NETWORK: &str = "host";

/// Where the container engine is, and how it is used.
#[derive(Debug, Default, Args)]
pub struct ContainerArguments {
    /// Socket of the container engine, Docker's or one that speaks its API [default: /var/run/docker.sock]
    #[arg(long, value_name = "PATH", env = "APOLLO_AGENT_CONTAINER_SOCKET")]
    container_socket: Option<String>,

    /// Network of containers: host, bridge, none, or one of the engine's own by its name [default: host]
    #[arg(long, value_name = "NAME", env = "APOLLO_AGENT_CONTAINER_NETWORK")]
    container_network: Option<String>,
}

// === impl ContainerArguments ===

impl ContainerArguments {
    /// An empty one counts as absent. `registry_config` is docker's config file, if there is one.
    #[must_use]
    pub fn settle(&self, registry_config: Option<PathBuf>) -> Options {
        let present = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Options {
            socket: present(&self.container_socket).unwrap_or_else(|| DEFAULT_SOCKET.to_owned()).into(),
            network: present(&self.container_network).unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
            registry_config,
        }
    }
}
