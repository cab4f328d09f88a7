//! Pure: what goes around a body between replicas: route, headers, refusals.

use super::batch;
use super::signature::{BodyHash, Claims, PeerKey, Reply, Signature};
use crate::wire::MAX_BODY_BYTES;
use crate::wire::name::is_device_name;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::{Display, Write};
use std::str::FromStr;

/// The version that is spoken here; a newer one is refused.
pub const PROTOCOL: u32 = 1;
/// A request whose time is older than this is refused, milliseconds.
pub const MAX_AGE_MS: u64 = 30_000;

const SENDER: HeaderName = HeaderName::from_static("x-praetor-peer");
const INCARNATION: HeaderName = HeaderName::from_static("x-praetor-incarnation");
const TO: HeaderName = HeaderName::from_static("x-praetor-to");
const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-praetor-protocol");
const HOP: HeaderName = HeaderName::from_static("x-praetor-hop");
const TIME: HeaderName = HeaderName::from_static("x-praetor-time");
const SEQUENCE: HeaderName = HeaderName::from_static("x-praetor-sequence");
const DIGEST: HeaderName = HeaderName::from_static("x-praetor-digest");
const SIGNATURE: HeaderName = HeaderName::from_static("x-praetor-signature");

const CLOCK_PATH: &str = "/v1/peer/clock";
const PRESENCE_PATH: &str = "/v1/peer/presence";
const DEVICES_PATH: &str = "/v1/peer/devices/";

/// What is asked of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /v1/peer/clock`: which process it is, and its clock, which every answer holds. For those who know neither.
    Clock,
    /// `POST /v1/peer/presence`: a batch.
    Presence,
    /// `POST /v1/peer/devices/{device}/report` or `connect`: the device's own body.
    Device {
        /// The device.
        device: &'a str,
        /// A connect, and not a report.
        connect: bool,
    },
}

/// Why a request is refused. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No such route.
    Route,
    /// A header is missing or makes no sense, or the body makes none.
    Malformed,
    /// A newer protocol.
    Protocol,
    /// No signature.
    Unsigned,
    /// Signed with another key, or changed on the way.
    Forged,
    /// More than the route takes.
    TooLarge,
    /// The request took too long.
    Slow,
    /// It has come through another replica already.
    Hop,
    /// Meant for another process.
    Receiver,
    /// Its time is too old, or no time that this process ever told.
    Time,
    /// It was here before.
    Replayed,
    /// A batch of one that has not sent its whole table yet.
    Whole,
    /// About a device for which another replica works.
    NotOwner,
}

// === impl Route ===

impl<'a> Route<'a> {
    /// The route of a request.
    #[must_use]
    pub fn parse(method: &str, path: &'a str) -> Option<Self> {
        match (method, path) {
            ("GET", CLOCK_PATH) => Some(Self::Clock),
            ("POST", PRESENCE_PATH) => Some(Self::Presence),
            ("POST", path) => {
                let (device, what) = path.strip_prefix(DEVICES_PATH)?.split_once('/')?;
                let connect = match what {
                    "report" => false,
                    "connect" => true,
                    _ => return None,
                };
                is_device_name(device.as_bytes()).then_some(Self::Device { device, connect })
            }
            _ => None,
        }
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> &'static str {
        if *self == Route::Clock { "GET" } else { "POST" }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Clock => CLOCK_PATH.into(),
            Self::Presence => PRESENCE_PATH.into(),
            Self::Device { device, .. } => format!("{DEVICES_PATH}{device}/{}", self.label()),
        }
    }

    /// Its name in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Presence => "presence",
            Self::Device { connect: false, .. } => "report",
            Self::Device { connect: true, .. } => "connect",
        }
    }

    /// Longest body, bytes. A little more than devices may send, so that what they may is never in question here.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        match self {
            Self::Clock => 0,
            Self::Presence => batch::MAX_BYTES,
            Self::Device { .. } => MAX_BODY_BYTES + 64 * 1024,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// All.
    pub const ALL: [Self; 13] = [
        Self::Route,
        Self::Malformed,
        Self::Protocol,
        Self::Unsigned,
        Self::Forged,
        Self::TooLarge,
        Self::Slow,
        Self::Hop,
        Self::Receiver,
        Self::Time,
        Self::Replayed,
        Self::Whole,
        Self::NotOwner,
    ];

    /// The HTTP status that says so. After a 409 the sender learns from the answer and tries once more.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Route => 404,
            Self::Malformed | Self::Protocol => 400,
            Self::Unsigned | Self::Forged => 401,
            Self::TooLarge => 413,
            Self::Slow => 408,
            Self::Hop => 508,
            Self::Receiver | Self::Time | Self::Replayed | Self::Whole => 409,
            Self::NotOwner => 421,
        }
    }

    /// Its name: the body of the answer, and in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Malformed => "malformed",
            Self::Protocol => "protocol",
            Self::Unsigned => "unsigned",
            Self::Forged => "forged",
            Self::TooLarge => "too_large",
            Self::Slow => "slow",
            Self::Hop => "hop",
            Self::Receiver => "receiver",
            Self::Time => "time",
            Self::Replayed => "replayed",
            Self::Whole => "whole",
            Self::NotOwner => "not_owner",
        }
    }
}

/// An identity as a header can carry it: printable ASCII, anything else and `%` as `%XX`.
#[must_use]
pub fn header_safe(identity: &str) -> String {
    let mut safe = String::with_capacity(identity.len());
    for byte in identity.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            safe.push(byte.into());
        } else {
            // A string takes everything.
            let _ = write!(safe, "%{byte:02X}");
        }
    }
    safe
}

/// The headers of a request.
#[must_use]
pub fn request_headers(claims: &Claims, signature: &Signature) -> HeaderMap {
    headers([
        (SENDER, claims.sender.clone()),
        (INCARNATION, format!("{:016x}", claims.incarnation)),
        (TO, format!("{:016x}", claims.to)),
        (PROTOCOL_HEADER, claims.protocol.to_string()),
        (HOP, claims.hop.to_string()),
        (TIME, claims.time_ms.to_string()),
        (SEQUENCE, claims.sequence.to_string()),
        (DIGEST, claims.digest.to_string()),
        (SIGNATURE, signature.to_string()),
    ])
}

/// Reads and verifies the headers of a request. What they say of the body is to be compared with it.
///
/// # Errors
/// When they are not those of a replica with the same key and a protocol that is known.
pub fn read_request(
    key: &PeerKey,
    method: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<(Claims, Signature), Refusal> {
    let text =
        |name: &HeaderName| headers.get(name).ok_or(Refusal::Malformed)?.to_str().map_err(|_| Refusal::Malformed);
    // Before anything else: what a newer protocol says, and signs, is not known here.
    let protocol = headers.get(&PROTOCOL_HEADER).and_then(|value| decimal::<u32>(value.to_str().ok()?));
    if protocol.is_some_and(|protocol| protocol > PROTOCOL) {
        return Err(Refusal::Protocol);
    }
    let signature = headers.get(&SIGNATURE).ok_or(Refusal::Unsigned)?;
    let signature = Signature::parse(signature.as_bytes()).ok_or(Refusal::Malformed)?;
    let claims = Claims {
        protocol: protocol.filter(|protocol| *protocol != 0).ok_or(Refusal::Malformed)?,
        hop: decimal(text(&HOP)?).ok_or(Refusal::Malformed)?,
        sender: text(&SENDER)?.to_owned(),
        incarnation: hexadecimal(text(&INCARNATION)?).ok_or(Refusal::Malformed)?,
        to: hexadecimal(text(&TO)?).ok_or(Refusal::Malformed)?,
        time_ms: decimal(text(&TIME)?).ok_or(Refusal::Malformed)?,
        sequence: decimal(text(&SEQUENCE)?).ok_or(Refusal::Malformed)?,
        digest: BodyHash::parse(text(&DIGEST)?.as_bytes()).ok_or(Refusal::Malformed)?,
    };
    if !key.verifies(method, path, &claims, &signature) {
        return Err(Refusal::Forged);
    }
    match claims.hop {
        1 => Ok((claims, signature)),
        0 => Err(Refusal::Malformed),
        _ => Err(Refusal::Hop),
    }
}

/// The headers of an answer to a request with this signature.
#[must_use]
pub fn reply_headers(key: &PeerKey, request: &Signature, reply: &Reply) -> HeaderMap {
    headers([
        (INCARNATION, format!("{:016x}", reply.incarnation)),
        (TIME, reply.time_ms.to_string()),
        (SIGNATURE, key.sign_reply(request, reply).to_string()),
    ])
}

/// Reads an answer; none when it was not signed by a replica with the same key for this very request.
#[must_use]
pub fn read_reply(key: &PeerKey, request: &Signature, status: u16, headers: &HeaderMap, body: &[u8]) -> Option<Reply> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let signature = Signature::parse(text(&SIGNATURE)?.as_bytes())?;
    let (incarnation, time_ms) = (hexadecimal(text(&INCARNATION)?)?, decimal(text(&TIME)?)?);
    let reply = Reply { status, incarnation, time_ms, digest: BodyHash::of(body) };
    key.verifies_reply(request, &reply, &signature).then_some(reply)
}

fn headers<const N: usize>(pairs: [(HeaderName, String); N]) -> HeaderMap {
    let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
    pairs.into_iter().map(|(name, text)| (name, value(text))).collect()
}

fn decimal<T: FromStr + Display>(text: &str) -> Option<T> {
    // One form for each number: no sign, no leading zeros.
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> PeerKey {
        PeerKey::new(&[7; 16]).unwrap()
    }

    fn claims() -> Claims {
        let digest = BodyHash::of(b"");
        Claims { protocol: 1, hop: 1, sender: "a".into(), incarnation: 1, to: 2, time_ms: 3, sequence: 4, digest }
    }

    fn read(claims: &Claims, change: impl FnOnce(&mut HeaderMap)) -> Result<Claims, Refusal> {
        let mut headers = request_headers(claims, &key().sign("GET", "/", claims));
        change(&mut headers);
        read_request(&key(), "GET", "/", &headers).map(|(claims, _)| claims)
    }

    #[test]
    fn routes() {
        assert_eq!(Route::parse("GET", "/v1/peer/clock"), Some(Route::Clock));
        assert_eq!(Route::parse("POST", "/v1/peer/presence"), Some(Route::Presence));
        for (path, connect) in [("/v1/peer/devices/a.b/report", false), ("/v1/peer/devices/a.b/connect", true)] {
            let route = Route::parse("POST", path).unwrap();
            assert_eq!((route, route.path().as_str()), (Route::Device { device: "a.b", connect }, path));
        }
        for (method, path) in [
            ("POST", "/v1/peer/clock"),
            ("GET", "/v1/peer/presence"),
            ("GET", "/v1/peer/devices/a/report"),
            ("POST", "/v1/peer/devices/a/desired"),
            ("POST", "/v1/peer/devices/a/report/"),
            ("POST", "/v1/peer/devices/A/report"),
            ("POST", "/v1/peer/devices/%2e%2e/report"),
            ("POST", "/v1/peer/devices//report"),
            ("POST", "/v1/peer"),
        ] {
            assert_eq!(Route::parse(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn clear_refusals() {
        assert_eq!(read(&claims(), |_| ()), Ok(claims()));
        assert_eq!(read(&claims(), |headers| headers.clear()), Err(Refusal::Unsigned));
        assert_eq!(
            read(&claims(), |headers| {
                headers.remove(SIGNATURE);
            }),
            Err(Refusal::Unsigned)
        );
        assert_eq!(read(&Claims { protocol: 2, ..claims() }, |_| ()), Err(Refusal::Protocol));
        assert_eq!(read(&Claims { protocol: 0, ..claims() }, |_| ()), Err(Refusal::Malformed));
        assert_eq!(read(&Claims { hop: 0, ..claims() }, |_| ()), Err(Refusal::Malformed));
        assert_eq!(read(&Claims { hop: 2, ..claims() }, |_| ()), Err(Refusal::Hop));
        // A newer protocol may sign otherwise, so it is not called forged.
        assert_eq!(
            read(&claims(), |headers| {
                headers.insert(PROTOCOL_HEADER, 2.into());
            }),
            Err(Refusal::Protocol)
        );
        assert_eq!(
            read(&claims(), |headers| {
                headers.insert(TIME, 4.into());
            }),
            Err(Refusal::Forged)
        );
        for (name, value) in
            [(TIME, "03"), (TIME, "+3"), (TIME, ""), (TO, "2"), (TO, "000000000000000g"), (DIGEST, "00")]
        {
            let value = HeaderValue::from_static(value);
            assert_eq!(
                read(&claims(), |headers| {
                    headers.insert(name, value);
                }),
                Err(Refusal::Malformed)
            );
        }
        for refusal in Refusal::ALL {
            assert!(refusal.status() >= 400 && !refusal.label().is_empty());
        }
    }

    #[test]
    fn answers_are_bound_to_their_request() {
        let reply = Reply { status: 200, incarnation: 2, time_ms: 9, digest: BodyHash::of(b"x") };
        let signature = key().sign("GET", "/", &claims());
        let headers = reply_headers(&key(), &signature, &reply);
        assert_eq!(read_reply(&key(), &signature, 200, &headers, b"x"), Some(reply));
        assert_eq!(read_reply(&key(), &signature, 409, &headers, b"x"), None);
        assert_eq!(read_reply(&key(), &signature, 200, &headers, b"y"), None);
        let another = key().sign("GET", "/", &Claims { sequence: 5, ..claims() });
        assert_eq!(read_reply(&key(), &another, 200, &headers, b"x"), None);
        assert_eq!(read_reply(&key(), &signature, 200, &HeaderMap::new(), b"x"), None);
    }

    proptest! {
        #[test]
        fn any_identity_can_be_sent(a in ".{0,20}", b in ".{0,20}") {
            let (x, y) = (header_safe(&a), header_safe(&b));
            prop_assert!(HeaderValue::try_from(x.as_str()).is_ok());
            prop_assert_eq!(x == y, a == b);
        }
    }
}
