//! Pure: where a gateway is, read from a URL.

use http::HeaderValue;
use http::uri::{Authority, Uri};
use rustls::pki_types::ServerName;

/// A gateway's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or IP address, an IPv6 one without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whom the gateway's certificate has to name; `None` for plain HTTP.
    pub tls: Option<ServerName<'static>>,
    /// Value of the `Host` header (RFC 9110 §7.2).
    pub authority: HeaderValue,
    /// What stands before `/v1/…`: empty, or a path that starts with a slash and does not end with one.
    base: String,
}

/// Why a URL is no gateway's address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Not a URL at all, or one with parts that mean nothing here.
    #[error("expected http://HOST[:PORT][/PATH], or https:// and the same")]
    Malformed,
    /// Credentials in a URL end up in logs.
    #[error("a URL with a user name or password is not accepted; use --device-token-file")]
    Credentials,
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads `http://HOST[:PORT][/PATH]` or the same with `https`; the port is 80 or 443 unless named.
    ///
    /// # Errors
    /// Says what was expected, without quoting the URL.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let uri: Uri = url.parse().map_err(|_| EndpointError::Malformed)?;
        let scheme = uri.scheme_str().ok_or(EndpointError::Malformed)?;
        let https = scheme.eq_ignore_ascii_case("https");
        let authority = uri.authority().ok_or(EndpointError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::Credentials);
        }
        if !(https || scheme.eq_ignore_ascii_case("http")) || uri.query().is_some() || url.contains('#') {
            return Err(EndpointError::Malformed);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port(authority, if https { 443 } else { 80 }).ok_or(EndpointError::Malformed)?;
        if host.is_empty() {
            return Err(EndpointError::Malformed);
        }
        let name = || ServerName::try_from(host.clone()).map_err(|_| EndpointError::Malformed);
        Ok(Self {
            tls: https.then(name).transpose()?,
            host,
            port,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| EndpointError::Malformed)?,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The path of a route such as `v1/devices/tor1-01/report` at this gateway.
    #[must_use]
    pub fn path(&self, route: &str) -> String {
        format!("{}/{route}", self.base)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority.to_str().unwrap_or("?"), self.base)
    }
}

fn port(authority: &Authority, default: u16) -> Option<u16> {
    // `http` reads a port that is no number as none.
    let after = authority.as_str().strip_prefix(authority.host())?;
    match after.strip_prefix(':') {
        None | Some("") => Some(default),
        Some(digits) => digits.parse().ok().filter(|port| *port != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, host, port, authority, path) in [
            ("http://gw", "gw", 80, "gw", "/v1/devices/d/report"),
            ("http://gw:8080/", "gw", 8080, "gw:8080", "/v1/devices/d/report"),
            ("HTTP://gw.example:1/a/b/", "gw.example", 1, "gw.example:1", "/a/b/v1/devices/d/report"),
            ("http://[fd00::1]:8080/x", "fd00::1", 8080, "[fd00::1]:8080", "/x/v1/devices/d/report"),
            ("http://[::1]", "::1", 80, "[::1]", "/v1/devices/d/report"),
            ("https://gw", "gw", 443, "gw", "/v1/devices/d/report"),
            ("HTTPS://[::1]:8443/x", "::1", 8443, "[::1]:8443", "/x/v1/devices/d/report"),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port), "{url}");
            assert_eq!(endpoint.authority, authority);
            assert_eq!(endpoint.tls.is_some(), url.to_lowercase().starts_with("https"));
            assert_eq!(endpoint.path("v1/devices/d/report"), path);
        }
        assert_eq!(Endpoint::parse("http://gw:8080/a/").unwrap().to_string(), "http://gw:8080/a");
        assert_eq!(Endpoint::parse("https://gw:8443/a/").unwrap().to_string(), "https://gw:8443/a");
        let named = |url: &str| Endpoint::parse(url).unwrap().tls.unwrap().to_str().into_owned();
        assert_eq!(
            (named("https://gw.example:1"), named("https://[fd00::1]")),
            ("gw.example".into(), "fd00::1".into())
        );
        assert_eq!(Endpoint::parse("http://me:secret@gw"), Err(EndpointError::Credentials));
        assert_eq!(Endpoint::parse("https://me:secret@gw"), Err(EndpointError::Credentials));
        for url in [
            "",
            "gw",
            "gw:8080",
            "/x",
            "ftp://gw",
            "http://",
            "http://gw:99999",
            "http://gw:x",
            "http://gw:0",
            "http://gw/?a",
            "http://gw/#a",
            "http://g w",
            "https://",
            "https://-",
            "httpss://gw",
        ] {
            assert_eq!(Endpoint::parse(url), Err(EndpointError::Malformed), "{url}");
        }
    }
}
