//! Pure: what was found on a device, judged, and what to do about it.

use super::live::Wanted;
use crate::agent::process::spec::BackendKind;
use crate::agent::refusal::bad_request;
use crate::wire::desired::DesiredState;
use crate::wire::time;
use http::StatusCode;
use std::fmt::Write;

/// Before this a clock was never set, seconds since 1970: 2024-01-01.
const NEVER_SET: i64 = 1_704_067_200;
/// How far a clock may be off before somebody should look at it, and before certificates suffer, seconds.
const OFF_SECONDS: i64 = 60;
const FAR_OFF_SECONDS: i64 = 3600;
/// Free space below which the state cannot be kept, and below which artifacts soon cannot, bytes.
const FULL_BYTES: u64 = 4 << 20;
const SCARCE_BYTES: u64 = 128 << 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// The agent works; somebody should look at it.
    Warn,
    /// It keeps the agent, or some of its work, from working.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one word.
    pub what: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What to do about it.
    pub advice: Option<String>,
}

// === impl Finding ===

impl Finding {
    /// All is well.
    #[must_use]
    pub fn fine(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Fine, says: says.into(), advice: None }
    }

    /// Somebody should look at it.
    #[must_use]
    pub fn warn(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warn, says: says.into(), advice: Some(advice.into()) }
    }

    /// It keeps the agent from its work.
    #[must_use]
    pub fn fail(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Fail, says: says.into(), advice: Some(advice.into()) }
    }
}

/// All of them, and how many are bad.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let one_line = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let mut text = String::new();
    for Finding { what, verdict, says, advice } in findings {
        let word = match verdict {
            Verdict::Fine => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let _ = writeln!(text, "{word:<5} {what:<9} {}", one_line(says));
        if let Some(advice) = advice.as_deref().filter(|advice| !advice.is_empty()) {
            let _ = writeln!(text, "{:<16}-> {}", "", one_line(advice));
        }
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let summary = match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "All is well.".to_owned(),
        (0, warnings) => format!("Nothing fails; look at {warnings} of these."),
        (1, _) => "1 of these keeps the agent from its work.".to_owned(),
        (failures, _) => format!("{failures} of these keep the agent from its work."),
    };
    let _ = writeln!(text, "\n{summary}");
    text
}

/// What a request has said about who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The device's token.
    Token,
    /// Nothing, since the device has no token.
    None,
    /// Nothing, since the device's token cannot be used; that is said elsewhere.
    Unusable,
}

/// What an answer to a GET of the desired state says. `gateway` is its URL.
#[must_use]
pub fn answered(gateway: &str, device: &str, sent: Sent, status: StatusCode, body: &[u8]) -> Finding {
    let what = "gateway";
    match status {
        StatusCode::OK => match serde_json::from_slice::<DesiredState>(body) {
            Ok(state) if state.device_name == device => {
                let count = match state.items.len() {
                    0 => "no process yet".to_owned(),
                    1 => "1 process".to_owned(),
                    more => format!("{more} processes"),
                };
                Finding::fine(what, format!("{gateway} answers: {count} for this device"))
            }
            Ok(state) => Finding::fail(
                what,
                format!("{gateway} answers about the device {}", state.device_name),
                "something between this device and the gateway changes or mixes up answers: look at the proxy",
            ),
            Err(error) => Finding::fail(
                what,
                format!("{gateway} answers 200 with something else than desired state: {error}"),
                "this is no gateway of Praetor: check the URL and its port",
            ),
        },
        StatusCode::NOT_MODIFIED => Finding::fine(what, format!("{gateway} answers: nothing has changed")),
        StatusCode::UNAUTHORIZED if sent == Sent::Unusable => Finding::warn(
            what,
            format!("{gateway} can be reached and wants a token (401)"),
            "put the token right, see above",
        ),
        StatusCode::UNAUTHORIZED if sent == Sent::None => Finding::fail(
            what,
            format!("{gateway} wants a token, and this device has none (401)"),
            format!(
                "put the output of `praetor-manager token {device}` into a file (0600), and name it with --device-token-file"
            ),
        ),
        StatusCode::UNAUTHORIZED => Finding::fail(
            what,
            format!("{gateway} refuses this device's token (401)"),
            format!(
                "the token must be what `praetor-manager token {device}` prints with the manager's present secret; a token is good for one device name alone"
            ),
        ),
        StatusCode::NOT_FOUND if body.is_empty() || serde_json::from_slice::<serde_json::Value>(body).is_err() => {
            Finding::fail(
                what,
                format!("{gateway} does not know this path (404)"),
                "this is no gateway of Praetor, or the URL lacks a path or has one too much",
            )
        }
        StatusCode::NOT_FOUND => Finding::fail(
            what,
            format!("{gateway} does not know the device {device} (404)"),
            "create a NetworkSwitch of that name, or a DeviceProcess whose deviceRef names it; or put --device-name right",
        ),
        StatusCode::BAD_REQUEST => Finding::fail(
            what,
            format!("{gateway}: {}", bad_request(gateway.starts_with("https:"), body)),
            "check the URL: http:// or https://, host and port",
        ),
        StatusCode::SERVICE_UNAVAILABLE => Finding::warn(
            what,
            format!("{gateway} is there and not ready (503)"),
            "it is starting, or its apiserver is away: try again in a minute, then look at the manager's log",
        ),
        other => Finding::fail(
            what,
            format!("{gateway} answers {other}"),
            "look at the manager's log, or at the proxy before it",
        ),
    }
}

/// When one gateway will do, the faults of the others are warnings.
pub fn one_is_enough(gateways: &mut [Finding]) {
    if gateways.iter().any(|g| g.verdict == Verdict::Fine) {
        gateways.iter_mut().filter(|g| g.verdict == Verdict::Fail).for_each(|g| g.verdict = Verdict::Warn);
    }
}

/// The device's clock, seconds since 1970, beside a gateway's.
#[must_use]
pub fn clock(now: i64, gateway: Option<i64>) -> Finding {
    let what = "clock";
    let says = |seconds| time::format(seconds).replace('T', " ").replace('Z', " UTC");
    let advice = "set it, and keep it set: chronyd, systemd-timesyncd or ntpd; certificates and the times in the status depend on it";
    match gateway {
        Some(theirs) if (now - theirs).abs() > OFF_SECONDS => {
            let apart = super::screen::age((now - theirs).unsigned_abs());
            let way = if now < theirs { "behind" } else { "ahead of" };
            let text = format!("{}: {apart} {way} the gateway's", says(now));
            let far = (now - theirs).abs() > FAR_OFF_SECONDS;
            if far { Finding::fail(what, text, advice) } else { Finding::warn(what, text, advice) }
        }
        Some(_) => Finding::fine(what, format!("{}, as the gateway's", says(now))),
        None if now < NEVER_SET => Finding::fail(what, format!("{}: it was never set", says(now)), advice),
        None => Finding::fine(what, format!("{}; no gateway told its own", says(now))),
    }
}

/// A date as HTTP writes it (RFC 9110 §5.6.7, the one form that is still made), seconds since 1970.
#[must_use]
pub fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, clock, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    time::parse(&format!("{year}-{month:02}-{day}T{clock}Z")).map(|time| time.seconds)
}

/// The file system of the state folder.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Bytes that the agent may still write.
    pub bytes: u64,
    /// Files that can still be made; none: the file system does not count them.
    pub files: Option<u64>,
}

/// Whether there is room for what the agent keeps.
#[must_use]
pub fn space(folder: &str, space: Space) -> Finding {
    let what = "disk";
    let mebibytes = space.bytes >> 20;
    let advice = "make room: artifacts of processes are kept there, the present and the last good one of each";
    if space.bytes < FULL_BYTES {
        Finding::fail(what, format!("{folder}: {mebibytes} MiB free: no state can be kept"), advice)
    } else if space.files.is_some_and(|files| files < 64) {
        Finding::fail(what, format!("{folder}: no files (inodes) are left"), advice)
    } else if space.bytes < SCARCE_BYTES {
        Finding::warn(what, format!("{folder}: {mebibytes} MiB free"), advice)
    } else {
        Finding::fine(what, format!("{folder}: {mebibytes} MiB free"))
    }
}

/// The backends, each there or why it is not. One that the device lacks matters when a process wants it, or when there
/// is no other.
#[must_use]
pub fn backends(found: &[(BackendKind, Result<(), String>)], wanted: &[Wanted]) -> Vec<Finding> {
    let what = "backend";
    let any = found.iter().any(|(_, there)| there.is_ok());
    let judge = |(kind, there): &(BackendKind, Result<(), String>)| {
        let name = kind.as_str();
        let users = wanted.iter().filter(|process| process.backend == Some(*kind)).count();
        match there {
            Ok(()) => Finding::fine(what, format!("{name} is there")),
            Err(why) if users > 0 => Finding::fail(
                what,
                format!("{name} is not there, and {users} of the processes for this device want it: {why}"),
                "bring it up, or let them use a backend that this device has",
            ),
            Err(why) if !any => Finding::fail(what, format!("{name} is not there: {why}"), ""),
            Err(why) => Finding::fine(what, format!("{name} is not there: {why}")),
        }
    };
    found.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GATEWAY: &str = "https://gw";

    fn answer(status: u16, body: &str) -> Finding {
        answered(GATEWAY, "tor1-01", Sent::Token, StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn answers() {
        let good = r#"{"deviceName":"tor1-01","heartbeatIntervalSeconds":15,"items":[]}"#;
        let problem = r#"{"title":"Not Found","status":404}"#;
        for (status, body, verdict, part) in [
            (200, good, Verdict::Fine, "no process yet"),
            (200, &good.replace("tor1-01", "x"), Verdict::Fail, "about the device x"),
            (200, "<html>", Verdict::Fail, "something else"),
            (304, "", Verdict::Fine, "nothing has changed"),
            (401, "{}", Verdict::Fail, "refuses this device's token"),
            (404, problem, Verdict::Fail, "does not know the device tor1-01"),
            (404, "nginx", Verdict::Fail, "does not know this path"),
            (503, "", Verdict::Warn, "not ready"),
            (502, "", Verdict::Fail, "502"),
        ] {
            let finding = answer(status, body);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.says.contains(part) && finding.says.contains(GATEWAY), "{finding:?}");
            assert_eq!(finding.advice.is_none(), verdict == Verdict::Fine, "{finding:?}");
        }
        let refused = |sent| answered(GATEWAY, "d", sent, StatusCode::UNAUTHORIZED, b"");
        assert!(refused(Sent::None).says.contains("has none") && refused(Sent::None).verdict == Verdict::Fail);
        assert!(
            refused(Sent::Unusable).says.contains("can be reached") && refused(Sent::Unusable).verdict == Verdict::Warn
        );
    }

    #[test]
    fn one_gateway_will_do() {
        let mut all = [answer(401, ""), answer(304, "")];
        one_is_enough(&mut all);
        assert_eq!(all.map(|f| f.verdict), [Verdict::Warn, Verdict::Fine]);
        let mut all = [answer(401, ""), answer(503, "")];
        one_is_enough(&mut all);
        assert_eq!(all.map(|f| f.verdict), [Verdict::Fail, Verdict::Warn]);
    }

    #[test]
    fn clocks() {
        let now = 1_765_583_700;
        for (now, gateway, verdict, part) in [
            (now, Some(now + 60), Verdict::Fine, "2025-12-12 23:55:00 UTC, as the gateway's"),
            (now, Some(now + 61), Verdict::Warn, "1 min 1 s behind"),
            (now, Some(now - 3601), Verdict::Fail, "1 h 0 min ahead of"),
            (86400, Some(now), Verdict::Fail, "1970-01-02 00:00:00 UTC: "),
            (86400, None, Verdict::Fail, "never set"),
            (now, None, Verdict::Fine, "no gateway told"),
        ] {
            let finding = clock(now, gateway);
            assert!(finding.verdict == verdict && finding.says.contains(part), "{finding:?}");
        }
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for text in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 6 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn room() {
        let of = |bytes, files| space("/s", Space { bytes, files }).verdict;
        assert_eq!(of(1 << 30, None), Verdict::Fine);
        assert_eq!(of(1 << 30, Some(3)), Verdict::Fail);
        assert_eq!(of(100 << 20, Some(1000)), Verdict::Warn);
        assert_eq!(of(1 << 20, Some(1000)), Verdict::Fail);
    }

    #[test]
    fn a_backend_that_is_missing_matters_when_it_is_wanted() {
        let found = [(BackendKind::Systemd, Ok(())), (BackendKind::Container, Err("no socket".to_owned()))];
        let verdicts =
            |found: &_, wanted: &_| -> Vec<Verdict> { backends(found, wanted).iter().map(|f| f.verdict).collect() };
        assert_eq!(verdicts(&found, &[]), [Verdict::Fine, Verdict::Fine]);
        let wanted = Wanted { backend: Some(BackendKind::Container), ..Wanted::default() };
        assert_eq!(verdicts(&found, &[wanted]), [Verdict::Fine, Verdict::Fail]);
        assert_eq!(verdicts(&[(BackendKind::Initd, Err("no /etc/init.d".to_owned()))], &[]), [Verdict::Fail]);
    }

    #[test]
    fn what_is_shown() {
        let all = [
            Finding::fine("name", "tor1-01"),
            Finding::warn("clock", "off\nby much", "set it"),
            Finding::fail("gateway", "away", "wait"),
        ];
        assert_eq!(
            render(&all),
            "ok    name      tor1-01\nwarn  clock     off by much\n                -> set it\nFAIL  gateway   away\n                -> wait\n\n1 of these keeps the agent from its work.\n"
        );
        assert!(render(&all[..2]).ends_with("\nNothing fails; look at 1 of these.\n"));
        assert!(render(&all[..1]).ends_with("\nAll is well.\n"));
    }

    proptest! {
        #[test]
        fn no_date_makes_it_fall(text in "\\PC{0,40}") {
            let _ = http_date(&text);
        }
    }
}
