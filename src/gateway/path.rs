//! Pure: which route and which device a request means.

use crate::wire::MAX_WAIT_SECONDS;
use crate::wire::name::is_device_name;
use std::borrow::Cow;

const PREFIX: &str = "/v1/devices/";

/// The three things that a device can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/devices/{device}/desired`
    Desired,
    /// `POST /v1/devices/{device}/report`
    Report,
    /// `POST /v1/devices/{device}/connect`
    Connect,
}

// === impl Route ===

impl Route {
    /// The route and the device's segment of a path, still percent-encoded; `None` for any other path.
    #[must_use]
    pub fn split(path: &str) -> Option<(Self, &str)> {
        let rest = path.strip_prefix(PREFIX)?;
        let slash = rest.bytes().position(|b| b == b'/')?;
        let (device, tail) = (rest.get(..slash)?, rest.get(slash..)?);
        let route = match tail {
            "/desired" => Self::Desired,
            "/report" => Self::Report,
            "/connect" => Self::Connect,
            _ => return None,
        };
        Some((route, device))
    }

    /// Value of the header `Allow`.
    #[must_use]
    pub fn allow(self) -> &'static str {
        match self {
            Self::Desired => "GET, HEAD",
            Self::Report | Self::Connect => "POST",
        }
    }

    /// The route's name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Report => "report",
            Self::Connect => "connect",
        }
    }
}

/// A `waitSeconds` that is no non-negative integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoInteger;

/// The device that a segment of a path names; `None` when it is no device name.
#[must_use]
pub fn device(segment: &str) -> Option<Cow<'_, str>> {
    let name = percent_decoded(segment)?;
    // ASCII from here on: a device name holds nothing else.
    is_device_name(&name).then_some(())?;
    Some(match name {
        Cow::Borrowed(_) => Cow::Borrowed(segment),
        Cow::Owned(name) => Cow::Owned(String::from_utf8(name).ok()?),
    })
}

/// Seconds that a query asks to wait: the first `waitSeconds` counts, other parameters are ignored.
///
/// # Errors
/// When it is not a non-negative integer.
pub fn wait_seconds(query: Option<&str>) -> Result<u64, NoInteger> {
    let Some(query) = query else { return Ok(0) };
    let value = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == "waitSeconds").then_some(value)
    });
    let digits = percent_decoded(value.unwrap_or_default()).ok_or(NoInteger)?;
    if digits.iter().all(u8::is_ascii_digit) {
        // Saturates: however many digits there are, the most is little.
        Ok(digits
            .iter()
            .fold(0_u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
            .min(MAX_WAIT_SECONDS))
    } else {
        Err(NoInteger)
    }
}

/// A revision as a client sends it; `None` when it is no number. One that is too large for any apiserver is
/// still a number.
#[must_use]
pub fn revision(field: &[u8]) -> Option<u64> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    digits.then(|| field.iter().fold(0_u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// Decodes once (RFC 3986 §2.1); `None` when a `%` is not followed by two hex digits.
fn percent_decoded(text: &str) -> Option<Cow<'_, [u8]>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(after.get(..2)?, &mut byte).ok()?;
            decoded.push(byte[0]);
            rest = &after[2..];
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    Some(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn routes() {
        assert_eq!(Route::split("/v1/devices/a/desired"), Some((Route::Desired, "a")));
        assert_eq!(Route::split("/v1/devices/a%2fb/report"), Some((Route::Report, "a%2fb")));
        assert_eq!(Route::split("/v1/devices//connect"), Some((Route::Connect, "")));
        for path in [
            "",
            "/",
            "*",
            "/v1/devices/a",
            "/v1/devices/a/",
            "/v1/devices/a/desired/",
            "//v1/devices/a/desired",
            "/v1/devices/a/b/desired",
            "/v2/devices/a/desired",
            "/v1/devices/a/Desired",
            "/v1/devices/desired",
            "/metrics",
            "/healthz",
        ] {
            assert_eq!(Route::split(path), None, "{path}");
        }
    }

    #[test]
    fn names_are_judged_decoded() {
        assert_eq!(device("tor1-01").unwrap(), "tor1-01");
        assert_eq!(device("tor1%2D01").unwrap(), "tor1-01");
        assert_eq!(device("%74or1%2d01").unwrap(), "tor1-01");
        let long = "a".repeat(254);
        for segment in [
            "",
            "A",
            "..",
            "..%2f",
            "a%2fb",
            "a%252fb",
            "a%00",
            "a%",
            "a%2",
            "a%zz",
            "a%+1",
            "%c3%a9",
            "é",
            "a b",
            long.as_str(),
        ] {
            assert_eq!(device(segment), None, "{segment}");
        }
    }

    #[test]
    fn waits() {
        for (query, wait) in [
            (None, Ok(0)),
            (Some(""), Ok(0)),
            (Some("waitSeconds"), Ok(0)),
            (Some("waitSeconds="), Ok(0)),
            (Some("waitSeconds=7"), Ok(7)),
            (Some("a=b&waitSeconds=007&c"), Ok(7)),
            (Some("waitSeconds=60"), Ok(60)),
            (Some("waitSeconds=61"), Ok(60)),
            (Some("waitSeconds=99999999999999999999999999"), Ok(60)),
            (Some("waitSeconds=%31%30"), Ok(10)),
            (Some("waitseconds=x"), Ok(0)),
            (Some("waitSeconds=1&waitSeconds=x"), Ok(1)),
            (Some("waitSeconds=-1"), Err(NoInteger)),
            (Some("waitSeconds=1.5"), Err(NoInteger)),
            (Some("waitSeconds=+1"), Err(NoInteger)),
            (Some("waitSeconds=%2B1"), Err(NoInteger)),
            (Some("waitSeconds=1s"), Err(NoInteger)),
            (Some("waitSeconds=%"), Err(NoInteger)),
        ] {
            assert_eq!(wait_seconds(query), wait, "{query:?}");
        }
    }

    #[test]
    fn revisions() {
        assert_eq!(revision(b"12"), Some(12));
        assert_eq!(revision(b"99999999999999999999999"), Some(u64::MAX));
        for field in ["", "-1", "1.0", "x", "0x1"] {
            assert_eq!(revision(field.as_bytes()), None, "{field}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_read_back(name in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", mask in any::<u32>()) {
            let encoded: String = name.bytes().enumerate()
                .map(|(i, b)| if mask >> (i % 32) & 1 == 1 { format!("%{b:02X}") } else { char::from(b).to_string() })
                .collect();
            let is_name = is_device_name(name.as_bytes());
            prop_assert_eq!(device(&encoded).map(Cow::into_owned), is_name.then_some(name));
        }

        #[test]
        fn nothing_panics(path in ".{0,60}", query in proptest::option::of(".{0,40}")) {
            if let Some((_, segment)) = Route::split(&path) { let _ = device(segment); }
            let _ = (device(&path), wait_seconds(query.as_deref()));
        }
    }
}
