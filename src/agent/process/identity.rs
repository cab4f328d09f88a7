//! Pure: the name under which the device knows a process.

use sha2::{Digest, Sha256};
use std::fmt;

/// Longest identity, bytes: with any suffix of a unit, a script or a file it stays below the 255 of a file name.
const MAX_BYTES: usize = 200;
/// Hexadecimal digits that stand for what was cut off.
const HASH_DIGITS: usize = 16;
/// What all identities begin with.
pub const PREFIX: &str = "praetor-";

/// The stable name of a process on its device, made of the namespace and the name of its DeviceProcess. It is good as
/// the name of a systemd unit, of an init script, of a container and of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(String);

// === impl Identity ===

impl Identity {
    /// `praetor-<namespace>.<name>`; a namespace has no dot, so that no two processes have one identity. One that is
    /// too long is cut and ends in a part of its SHA-256.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut whole = format!("{PREFIX}{namespace}.{name}");
        if whole.len() > MAX_BYTES {
            let hash = hex::encode(Sha256::digest(&whole));
            whole.truncate(MAX_BYTES - HASH_DIGITS - 1);
            whole = format!("{}-{}", whole.trim_end_matches(['-', '.']), &hash[..HASH_DIGITS]);
        }
        Self(whole)
    }

    /// One that was read back from the device: a unit's, a script's or a container's name without its suffix.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let sound = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
        let good = text.starts_with(PREFIX) && text.len() <= MAX_BYTES && text.bytes().all(sound);
        good.then(|| Self(text.to_owned()))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_different_and_short() {
        assert_eq!(Identity::new("infra", "agent-tor1-01").as_str(), "praetor-infra.agent-tor1-01");
        let long = "x".repeat(253);
        let [one, two] = ["a", "b"].map(|end| Identity::new(&"n".repeat(63), &format!("{}{end}", &long[1..])));
        assert_ne!(one, two);
        for identity in [one, two, Identity::new("a", "b.c-d")] {
            assert!(identity.as_str().len() <= MAX_BYTES);
            assert_eq!(Identity::parse(identity.as_str()), Some(identity));
        }
    }

    #[test]
    fn foreign_names_are_none() {
        for name in ["nginx", "praetor_9", "praetor-a/b", "praetor-A", "praetor-a b", "praetor-a\n"] {
            assert_eq!(Identity::parse(name), None, "{name}");
        }
    }
}
