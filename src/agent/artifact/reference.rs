//! Pure: image references, read as docker reads them.

use super::policy::split_port;
use std::fmt;

/// Docker Hub, under the name that people write and the one that answers.
const HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The host that answers for Docker Hub.
pub const HUB_HOST: &str = "registry-1.docker.io";
/// Where Docker Hub keeps images whose name has no slash.
const HUB_LIBRARY: &str = "library/";
/// Longest name of a repository, bytes (the distribution specification's hint).
const MAX_REPOSITORY_BYTES: usize = 255;
/// Longest tag, bytes.
const MAX_TAG_BYTES: usize = 128;

/// `[oci://][HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host name or IP address of the registry, an IPv6 one without brackets.
    pub host: String,
    /// Its port, if one is named.
    pub port: Option<u16>,
    /// The repository's name there.
    pub repository: String,
    /// What is asked for.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// What stands behind a name now; `latest` when none is given.
    Tag(String),
    /// `sha256:` and 64 hexadecimal digits. A tag beside it is for people only.
    Digest(String),
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A URL.
    #[error("an image reference starts with the registry's host, not with http:// or https://")]
    Scheme,
    /// The host.
    #[error("{0:?} is no registry: expected HOST[:PORT]")]
    Registry(String),
    /// The repository.
    #[error("{0:?} is no name of a repository: lower-case letters, digits and single separators between slashes")]
    Repository(String),
    /// The tag.
    #[error("{0:?} is no tag: at most 128 letters, digits, dots, dashes and underscores")]
    Tag(String),
    /// The digest.
    #[error("{0:?} is no digest: expected sha256: and 64 lower-case hexadecimal digits")]
    Digest(String),
}

// === impl Reference ===

impl Reference {
    /// Reads a reference. Without a registry it is Docker Hub's.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let text = text.strip_prefix("oci://").unwrap_or(text);
        if text.contains("://") {
            return Err(ReferenceError::Scheme);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest)),
            Some((_, digest)) => return Err(ReferenceError::Digest(digest.to_owned())),
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => (HUB_NAMES[0], rest),
        };
        let (name, tag) = match path.split_once(':') {
            Some((name, tag)) if is_tag(tag) => (name, Some(tag)),
            Some((_, tag)) => return Err(ReferenceError::Tag(tag.to_owned())),
            None => (path, None),
        };
        if name.len() > MAX_REPOSITORY_BYTES || !name.split('/').all(is_component) {
            return Err(ReferenceError::Repository(name.to_owned()));
        }
        let (host, port) = split_port(registry).ok_or_else(|| ReferenceError::Registry(registry.to_owned()))?;
        let hub = HUB_NAMES.contains(&host) && port.is_none();
        let repository = if hub && !name.contains('/') { format!("{HUB_LIBRARY}{name}") } else { name.to_owned() };
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest.to_owned()),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { host: if hub { HUB_HOST } else { host }.to_owned(), port, repository, version })
    }

    /// `HOST[:PORT]`, as URLs, lists and files of credentials have it.
    #[must_use]
    pub fn registry(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or(host.clone(), |port| format!("{host}:{port}"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry(), self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry(), self.repository),
        }
    }
}

// === impl Version ===

impl Version {
    /// As it stands in a URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(text) | Self::Digest(text) => text,
        }
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Whether the first part of a reference is a host and not a part of the repository's name: docker's rule.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG_BYTES).contains(&tag.len())
        && tag.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && matches!(b, b'.' | b'-')))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .split(|b| word(*b))
            .all(|between| matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_read_as_docker_does() {
        for (text, whole) in [
            ("agent", "registry-1.docker.io/library/agent:latest"),
            ("acme/agent:1.2", "registry-1.docker.io/acme/agent:1.2"),
            ("docker.io/agent", "registry-1.docker.io/library/agent:latest"),
            ("index.docker.io/acme/agent", "registry-1.docker.io/acme/agent:latest"),
            ("localhost/agent:1", "localhost/agent:1"),
            ("registry:5000/agent", "registry:5000/agent:latest"),
            ("registry.example.com/network/switch-agent:1.4.0", "registry.example.com/network/switch-agent:1.4.0"),
            ("oci://registry.example.com/a/b/c", "registry.example.com/a/b/c:latest"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]:5000/a:x", "[::1]:5000/a:x"),
            ("docker.io:5000/a", "docker.io:5000/a:latest"),
            ("a/b__c/d--e.f", "registry-1.docker.io/a/b__c/d--e.f:latest"),
            ("x.y/a:V_1.0-rc.1", "x.y/a:V_1.0-rc.1"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), whole, "{text}");
        }
        let both = Reference::parse(&format!("x.y/a:1@{DIGEST}")).unwrap();
        assert_eq!(both.to_string(), format!("x.y/a@{DIGEST}"));
        assert_eq!((both.host.as_str(), both.registry()), ("x.y", "x.y".to_owned()));
        assert_eq!(Reference::parse("[fd00::1]:5000/a").unwrap().host, "fd00::1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("x.y/{}", "a".repeat(256));
        for (text, says) in [
            ("", "no name of a repository"),
            ("https://x.y/a", "not with http://"),
            ("x.y/", "no name of a repository"),
            ("x.y/A", "no name of a repository"),
            ("x.y/a//b", "no name of a repository"),
            ("x.y/../b", "no name of a repository"),
            ("x.y/a_-b", "no name of a repository"),
            (long.as_str(), "no name of a repository"),
            ("x.y/a:", "no tag"),
            ("x.y/a:b:c", "no tag"),
            ("x.y/a:-b", "no tag"),
            ("x.y/a:b/c", "no tag"),
            ("x.y/a@sha256:1", "no digest"),
            ("x.y/a@sha512:1", "no digest"),
            ("x.y:no/a", "no registry"),
            ("[x]:1/a", "no registry"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_read_again_as_the_same(text in "(oci://)?([a-z.:0-9\\[\\]]{1,12}/)?[a-zA-Z0-9._/:@-]{0,30}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference.clone());
                prop_assert!(!reference.repository.split('/').any(|part| part == ".." || part.is_empty()));
            }
        }
    }
}
