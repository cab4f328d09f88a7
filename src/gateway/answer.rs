//! Pure: answers and error bodies.

use super::path::Route;
use crate::wire::REVISION_HEADER;
use crate::wire::etag::ETag;
use crate::wire::problem::{PROBLEM_JSON, Problem};
use crate::wire::time;
use crate::wire::{MAX_BODY_BYTES, MAX_OBSERVATIONS, MAX_WAIT_SECONDS};
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use std::borrow::Cow;

/// What every request ends in.
pub type Answer = Response<Full<Bytes>>;

/// Body of the answer to a report of which nothing was rejected.
pub const ACK: &str = r#"{"ack":true}"#;
/// `Cache-Control` of every answer.
pub const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Content type of what is no problem.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// RFC 9110 §11.6.1 wants a challenge with every 401; the scheme is our own.
const CHALLENGE: HeaderValue = HeaderValue::from_static("DeviceToken realm=\"praetor\", header=\"X-Device-Token\"");

/// Why a request gets no 200 and no 304.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The path is none.
    NoRoute,
    /// The device's name is none.
    BadName,
    /// The method is none of this route's.
    BadMethod(Route),
    /// No token that is good for this device.
    BadToken,
    /// Nothing names the device.
    UnknownDevice,
    /// The first complete lists are not in; when to come again, seconds.
    NotSynced(u64),
    /// The watch is behind what the client has seen.
    Behind,
    /// `waitSeconds` is none.
    BadWait,
    /// The body is longer than [`MAX_BODY_BYTES`].
    TooLarge,
    /// The body did not come in time.
    TooSlow,
    /// The body broke off.
    BrokenOff,
    /// The body is no report; what was expected.
    BadReport(String),
    /// There are more than [`MAX_OBSERVATIONS`] observations.
    TooMany(usize),
    /// Every observation is of another device's process.
    NotYours,
    /// Not (yet) written; when to repeat, seconds.
    Later(u64),
    /// Too many long bodies at once; when to repeat, seconds.
    Crowded(u64),
    /// A handler panicked.
    Broken,
}

// === impl Refusal ===

impl Refusal {
    /// The status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute | Self::UnknownDevice => StatusCode::NOT_FOUND,
            Self::BadName | Self::BadWait | Self::BrokenOff | Self::BadReport(_) | Self::TooMany(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::BadMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadToken => StatusCode::UNAUTHORIZED,
            Self::NotSynced(_) | Self::Behind | Self::Later(_) | Self::Crowded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NotYours => StatusCode::FORBIDDEN,
            Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::NoRoute => "There is GET /v1/devices/{device}/desired, POST /v1/devices/{device}/report and POST /v1/devices/{device}/connect.".into(),
            Self::BadName => "The device's name must be a lower-case RFC 1123 subdomain of at most 253 bytes.".into(),
            Self::BadMethod(route) => format!("This path takes {}.", route.allow()).into(),
            Self::BadToken => "The header X-Device-Token must carry this device's token.".into(),
            Self::UnknownDevice => "No NetworkSwitch has this name and no DeviceProcess refers to it.".into(),
            Self::NotSynced(_) => "The manager has just started and does not know all devices yet.".into(),
            Self::Behind => "This replica has not yet seen the revision in X-Praetor-Min-Revision.".into(),
            Self::BadWait => format!("waitSeconds must be a non-negative integer (more than {MAX_WAIT_SECONDS} means {MAX_WAIT_SECONDS}).").into(),
            Self::TooLarge => format!("The body may be at most {MAX_BODY_BYTES} bytes long; a report can be split.").into(),
            Self::TooSlow => "The body did not arrive in time.".into(),
            Self::BrokenOff => "The body broke off or is not framed as HTTP says.".into(),
            Self::BadReport(what) => format!("The body is no report: {what}").into(),
            Self::TooMany(count) => format!("There are {count} observations; at most {MAX_OBSERVATIONS} are allowed, a report can be split.").into(),
            Self::NotYours => "None of the observed DeviceProcesses is for this device.".into(),
            Self::Later(_) => "The report is not (yet) written to Kubernetes; repeat it later. The sign of life counts.".into(),
            Self::Crowded(_) => "Too many long bodies are arriving at once; repeat later.".into(),
            Self::Broken => "The manager made a mistake with this request; its log says more.".into(),
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let status = self.status();
        let problem = Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or_default().into(),
            status: status.as_u16(),
            detail: self.detail().into_owned(),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut answer = json(HeaderMap::new(), body.into());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self {
            Self::BadMethod(route) => drop(headers.insert(ALLOW, HeaderValue::from_static(route.allow()))),
            Self::BadToken => drop(headers.insert(WWW_AUTHENTICATE, CHALLENGE)),
            Self::NotSynced(seconds) | Self::Later(seconds) | Self::Crowded(seconds) => {
                drop(headers.insert(RETRY_AFTER, (*seconds).clamp(1, 60).into()))
            }
            Self::Behind => drop(headers.insert(RETRY_AFTER, 1.into())),
            // What is left of the body is not read, so the connection is of no more use.
            Self::TooLarge | Self::TooSlow | Self::BrokenOff => {
                drop(headers.insert(CONNECTION, HeaderValue::from_static("close")))
            }
            _ => {}
        }
        answer
    }
}

/// A `200` with a JSON body. `headers` is a map to reuse; what it holds is dropped.
#[must_use]
pub fn json(mut headers: HeaderMap, body: Bytes) -> Answer {
    headers.clear();
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(CONTENT_TYPE, JSON);
    let mut answer = Response::new(Full::new(body));
    *answer.headers_mut() = headers;
    answer
}

/// hyper answers a request that is no HTTP by itself, with no more than a status. If this is the beginning of
/// such an answer, the one to send instead: as all others are, and with hyper's `Date`.
#[must_use]
pub fn malformed(answer: &[u8]) -> Option<Vec<u8>> {
    // Ours begin with Cache-Control. Nothing else begins with a 4xx.
    let rest = answer.strip_prefix(b"HTTP/1.1 4")?;
    let text = std::str::from_utf8(rest).ok()?;
    let (status, headers) = text.split_once("\r\n")?;
    if headers.starts_with(CACHE_CONTROL.as_str()) || !headers.ends_with("\r\n\r\n") {
        return None;
    }
    let (digits, title) = status.split_once(' ')?;
    let status = 400 + digits.parse::<u16>().ok()?;
    let problem = Problem {
        kind: "about:blank".into(),
        title: title.into(),
        status,
        detail: match status {
            414 => "The request's target is too long.",
            431 => "The request's head is too long.",
            _ => "The request is not HTTP/1.1.",
        }
        .into(),
    };
    let date =
        headers.lines().find(|line| line.starts_with("date:")).map(|line| format!("{line}\r\n")).unwrap_or_default();
    Some(last_words(&problem, &date))
}

/// What a client hears that speaks plain HTTP on a port for HTTPS.
#[must_use]
pub fn plain_http() -> Vec<u8> {
    let problem = Problem {
        kind: "about:blank".into(),
        title: "Bad Request".into(),
        status: 400,
        detail: "This port speaks HTTPS: use https:// in its URL.".into(),
    };
    last_words(&problem, "")
}

/// A whole answer that ends its connection, byte for byte. `date` is empty or a line with its end.
fn last_words(problem: &Problem, date: &str) -> Vec<u8> {
    let body = serde_json::to_string(problem).unwrap_or_default();
    let (Problem { status, title, .. }, length) = (problem, body.len());
    format!(
        "HTTP/1.1 {status} {title}\r\ncache-control: no-store\r\ncontent-type: {PROBLEM_JSON}\r\nconnection: close\r\ncontent-length: {length}\r\n{date}\r\n{body}"
    )
    .into_bytes()
}

/// Length of a date in HTTP (RFC 9110 §5.6.7).
pub const DATE_BYTES: usize = 29;

/// A time in seconds since 1970 as HTTP writes it.
#[must_use]
pub fn date(seconds: i64) -> [u8; DATE_BYTES] {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // 1970-01-01T00:00:00Z, and only the years in which it has this length.
    let seconds = seconds.clamp(0, 253_402_300_799);
    let text = time::format(seconds);
    let day = usize::try_from(seconds / 86_400 % 7).map_or("Thu", |day| DAYS[day]);
    let month = text[5..7].parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"Jan");
    let text = format!("{day}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19]);
    text.as_bytes().try_into().unwrap_or([b' '; DATE_BYTES])
}

/// A whole answer as bytes, to be sent again and again.
#[derive(Debug)]
pub struct Recalled {
    bytes: Vec<u8>,
    date_at: usize,
    status: u16,
}

// === impl Recalled ===

impl Recalled {
    /// The `304` with these validators, or the ack of a report, as hyper would write them.
    #[must_use]
    pub fn new(validators: Option<(ETag, u64)>) -> Self {
        let (status, head, body) = match validators {
            Some((etag, revision)) => {
                let etag = String::from_utf8_lossy(etag.as_bytes()).into_owned();
                (
                    304,
                    format!(
                        "HTTP/1.1 304 Not Modified\r\ncache-control: no-store\r\netag: {etag}\r\n{REVISION_HEADER}: {revision}\r\n"
                    ),
                    "",
                )
            }
            None => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
                    ACK.len()
                );
                (200, head, ACK)
            }
        };
        let head = format!("{head}date: ");
        Self { date_at: head.len(), bytes: format!("{head}{:DATE_BYTES$}\r\n\r\n{body}", "").into_bytes(), status }
    }

    /// The bytes, with a date.
    pub fn at(&mut self, date: &[u8; DATE_BYTES]) -> &[u8] {
        self.bytes[self.date_at..self.date_at + DATE_BYTES].copy_from_slice(date);
        &self.bytes
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (-5, "Thu, 01 Jan 1970 00:00:00 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&date(seconds)).unwrap(), text);
        }
    }
}
