//! Pure: where something is fetched from: a URL, what it may redirect to, and how it is shown without its secrets.

use super::policy::is_loopback;
use ::http::Uri;
use rustls::pki_types::ServerName;
use std::fmt;

/// Longest name of a file, bytes; so it is on every file system of Linux.
const MAX_NAME_BYTES: usize = 255;
/// What a file is called whose URL ends in none.
const NAMELESS: &str = "artifact";

/// An `http://` or `https://` URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether it is `https`.
    pub tls: bool,
    /// Host name or IP address, an IPv6 one without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query, as they are asked for.
    pub target: String,
    /// `user:password`, percent-decoded; never part of what is shown.
    pub credentials: Option<String>,
}

/// Why a text is no address. It is not quoted: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a URL, or one of another scheme.
    #[error("it is not http://HOST[:PORT]/PATH, or https:// and the same")]
    Malformed,
    /// From `https` to `http`.
    #[error("it leads from https to http")]
    Downgrade,
}

// === impl Address ===

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let malformed = AddressError::Malformed;
        let uri: Uri = url.parse().map_err(|_| malformed)?;
        let scheme = uri.scheme_str().ok_or(malformed)?;
        let tls = scheme.eq_ignore_ascii_case("https");
        if !tls && !scheme.eq_ignore_ascii_case("http") {
            return Err(malformed);
        }
        let authority = uri.authority().ok_or(malformed)?.as_str();
        let (credentials, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(String::from_utf8(decode(user)).map_err(|_| malformed)?), place),
            None => (None, authority),
        };
        let (host, port) = super::policy::split_port(place.strip_suffix(':').unwrap_or(place)).ok_or(malformed)?;
        if tls && ServerName::try_from(host).is_err() {
            return Err(malformed);
        }
        Ok(Self {
            tls,
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            target: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            credentials,
        })
    }

    /// Where an answer's `Location` leads (RFC 3986 §5.2). Credentials stay behind; those in a `Location` are not
    /// taken either.
    ///
    /// # Errors
    /// It leads nowhere, or out of TLS.
    pub fn redirect(&self, location: &str) -> Result<Self, AddressError> {
        let absolute = location.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        });
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or("/");
        let text = if absolute {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else {
            let (rest, query) = match location.split_once('?') {
                Some((rest, query)) => (rest, format!("?{query}")),
                None => (location, String::new()),
            };
            let whole = match rest {
                "" => path.to_owned(),
                rest if rest.starts_with('/') => rest.to_owned(),
                rest => format!("{}/{rest}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
            };
            format!("{scheme}://{}{}{query}", self.authority(), without_dots(&whole))
        };
        let next = Self { credentials: None, ..Self::parse(&text)? };
        if self.tls && !next.tls { Err(AddressError::Downgrade) } else { Ok(next) }
    }

    /// Whether both are of one scheme, host and port: what may see the same credentials.
    #[must_use]
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }

    /// Whether nobody can listen in: TLS, or it does not leave the device.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.tls || is_loopback(&self.host)
    }

    /// Value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// What a file from here is called: the last part of the path, percent-decoded where that makes a name.
    #[must_use]
    pub fn file_name(&self) -> String {
        let last = self.target.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let sound = |name: &str| {
            !name.is_empty()
                && !matches!(name, "." | "..")
                && name.len() <= MAX_NAME_BYTES
                && !name.chars().any(|c| c == '/' || c.is_control())
        };
        let decoded = String::from_utf8(decode(last)).unwrap_or_default();
        [decoded.as_str(), last].into_iter().find(|name| sound(name)).unwrap_or(NAMELESS).to_owned()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// RFC 3986 §5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let parts: Vec<_> = path.split('/').skip(1).collect();
    for (i, part) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        match *part {
            "." | ".." => {
                if *part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Percent-decoding; what is no escape stays as it is.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| bytes.get(at + 1..at + 3).and_then(|two| hex::decode(two).ok())).flatten();
        match escaped {
            Some(one) => {
                out.extend(one);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls() {
        for (url, host, port, target, shown) in [
            ("http://a", "a", 80, "/", "http://a/"),
            ("HTTPS://A.example:8443/x/y?z=1", "a.example", 8443, "/x/y?z=1", "https://a.example:8443/x/y"),
            ("http://me:se%40cret@a/x", "a", 80, "/x", "http://a/x"),
            ("http://[fd00::1]:81/x", "fd00::1", 81, "/x", "http://[fd00::1]:81/x"),
            ("https://a:443/", "a", 443, "/", "https://a/"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.host.as_str(), address.port, address.target.as_str()), (host, port, target));
            assert_eq!((address.to_string(), format!("{address:?}")), (shown.to_owned(), shown.to_owned()));
        }
        assert_eq!(Address::parse("http://me:se%40cret@a/x").unwrap().credentials.unwrap(), "me:se@cret");
        for url in ["", "a", "/a", "ftp://a/b", "http://", "http://a:x/", "http://a:0/", "https://-/", "http://a b/"] {
            assert_eq!(Address::parse(url), Err(AddressError::Malformed), "{url}");
        }
    }

    #[test]
    fn redirects() {
        let from = Address::parse("https://me:secret@a.example/x/y?q=1").unwrap();
        for (location, to) in [
            ("https://b.example/z", "https://b.example/z"),
            ("//b.example:8443/z", "https://b.example:8443/z"),
            ("/z?p=2", "https://a.example/z"),
            ("z", "https://a.example/x/z"),
            ("../z/./w", "https://a.example/z/w"),
            ("../../../..", "https://a.example/"),
            ("?p=2", "https://a.example/x/y"),
            ("https://you:too@b.example/", "https://b.example/"),
            ("z?back=http://c/", "https://a.example/x/z"),
        ] {
            let next = from.redirect(location).unwrap();
            assert_eq!(next.to_string(), to, "{location}");
            assert_eq!(next.credentials, None);
        }
        assert_eq!(from.redirect("?p=2").unwrap().target, "/x/y?p=2");
        assert_eq!(from.redirect("http://a.example/"), Err(AddressError::Downgrade));
        assert_eq!(from.redirect("ftp://a.example/"), Err(AddressError::Malformed));
        assert!(Address::parse("http://a/").unwrap().redirect("http://b/").is_ok());
    }

    #[test]
    fn names_of_files() {
        for (url, name) in [
            ("http://a/x/agent", "agent"),
            ("http://a/agent%20x?y=/z", "agent x"),
            ("http://a/", "artifact"),
            ("http://a/x/..", "artifact"),
            ("http://a/%2e%2e", "%2e%2e"),
            ("http://a/x%2Fy", "x%2Fy"),
            ("http://a/x%00", "x%00"),
            ("http://a/%ff", "%ff"),
        ] {
            assert_eq!(Address::parse(url).unwrap().file_name(), name, "{url}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(url in "(https?://)?[a-z@:/?%.\\[\\]0-9 ]{0,40}", location in ".{0,40}") {
            if let Ok(address) = Address::parse(&url) {
                let name = address.file_name();
                prop_assert!(!name.is_empty() && !name.contains('/') && name != ".." && name != ".");
                if let Ok(next) = address.redirect(&location) {
                    prop_assert!(next.tls || !address.tls);
                    prop_assert!(next.credentials.is_none());
                }
            }
        }
    }
}
