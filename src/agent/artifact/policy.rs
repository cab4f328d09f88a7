//! Pure: what this agent fetches, how large it may be, and with whom it speaks without TLS.

use core::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Most bytes of an artifact, packed and unpacked, unless told otherwise: 4 GiB.
pub const DEFAULT_MAX_BYTES: u64 = 4 << 30;

/// What the operator of the device allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Registries besides loopback that are spoken to over plain HTTP.
    pub insecure_registries: Vec<InsecureRegistry>,
    /// A docker `config.json` with the credentials of registries; read at each fetch.
    pub registry_config: Option<PathBuf>,
    /// Further CAs, in PEM, besides the system's; read at each fetch.
    pub ca_file: Option<PathBuf>,
    /// Downloads by HTTPS, or from loopback, need no checksum.
    pub allow_missing_checksum: bool,
    /// Files keep their setuid, setgid and sticky bits; otherwise these are dropped.
    pub allow_setuid: bool,
    /// How large an artifact may be.
    pub limits: Limits,
    /// How long a server may be silent, or all but silent.
    pub stall: Duration,
}

/// How large an artifact may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, packed and unpacked, of all layers together.
    pub bytes: u64,
    /// Entries of all its archives together.
    pub files: u64,
    /// Bytes that one packed byte may become.
    pub ratio: u64,
    /// Unpacked bytes up to which the ratio is not looked at.
    pub ratio_from: u64,
}

/// A registry that is spoken to over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsecureRegistry {
    host: String,
    /// None: any.
    port: Option<u16>,
}

/// Not `HOST[:PORT]`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST[:PORT]")]
pub struct InsecureRegistryError(String);

// === impl Policy ===

impl Default for Policy {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            registry_config: None,
            ca_file: None,
            allow_missing_checksum: false,
            allow_setuid: false,
            limits: Limits::default(),
            stall: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// Whether this registry may be spoken to without TLS.
    #[must_use]
    pub fn allows_plain(&self, host: &str, port: Option<u16>) -> bool {
        is_loopback(host)
            || self.insecure_registries.iter().any(|registry| {
                registry.host.eq_ignore_ascii_case(host) && (registry.port.is_none() || registry.port == port)
            })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: DEFAULT_MAX_BYTES, files: 100_000, ratio: 200, ratio_from: 16 << 20 }
    }
}

// === impl InsecureRegistry ===

impl InsecureRegistry {
    /// Reads `HOST[:PORT]`; an IPv6 address stands in brackets. Without a port all of the host's are meant.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, InsecureRegistryError> {
        split_port(text)
            .map(|(host, port)| Self { host: host.to_owned(), port })
            .ok_or_else(|| InsecureRegistryError(text.to_owned()))
    }
}

/// Host, without brackets, and port of `HOST[:PORT]`.
#[must_use]
pub fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(digits) => Some(digits.parse::<u16>().ok().filter(|port| *port != 0 && !digits.starts_with('+'))?),
        None => None,
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    (!host.is_empty() && !host.starts_with('-') && host.chars().all(sound)).then_some((host, port))
}

/// Whether a host, without brackets, is this device itself.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_the_list() {
        let mut policy = Policy::default();
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(policy.allows_plain(host, Some(5000)), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "10.0.0.1", "::2", "registry"] {
            assert!(!policy.allows_plain(host, Some(5000)), "{host}");
        }
        policy.insecure_registries =
            ["registry:5000", "10.0.0.1", "[fd00::1]:80"].map(|r| InsecureRegistry::parse(r).unwrap()).into();
        for (host, port, allowed) in [
            ("registry", Some(5000), true),
            ("Registry", Some(5000), true),
            ("registry", Some(5001), false),
            ("registry", None, false),
            ("10.0.0.1", None, true),
            ("10.0.0.1", Some(7), true),
            ("fd00::1", Some(80), true),
            ("registry.example", Some(5000), false),
        ] {
            assert_eq!(policy.allows_plain(host, port), allowed, "{host} {port:?}");
        }
        for text in ["", ":5000", "a:b", "a:0", "a:99999", "http://a", "a/b", "[::1", "[x]:1", "a:1:2", "a b", "-a"] {
            assert!(InsecureRegistry::parse(text).is_err(), "{text}");
        }
    }
}
