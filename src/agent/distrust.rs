//! Pure: why there is no TLS with a gateway or a server, in words for whoever looks after the device.

use crate::wire::time;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Most names of a certificate that are told, and how much of each: somebody else has chosen them.
const MAX_NAMES: usize = 4;
const MAX_NAME_CHARS: usize = 64;

/// What is wrong and what to look at. `trusted` says which CAs were asked. The same fault has the same words as long
/// as it lasts (but for the day), so that it is logged once.
#[must_use]
pub fn explain(error: &Error, trusted: &str) -> String {
    explain_about("gateway", error, trusted)
}

/// The same about somebody who is no gateway: `peer` is the word for it.
#[must_use]
pub fn explain_about(peer: &str, error: &Error, trusted: &str) -> String {
    match error {
        Error::InvalidCertificate(why) => certificate(peer, why, trusted),
        other if speaks_no_tls(other) => {
            format!("the {peer} does not speak TLS on this port: http:// instead of https://, or another port")
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure)
        | Error::PeerIncompatible(_) => format!("no version or cipher of TLS in common with the {peer}: {error}"),
        other => format!("TLS failed: {other}"),
    }
}

/// Whether the other side has answered, but not with TLS.
#[must_use]
pub fn speaks_no_tls(error: &Error) -> bool {
    matches!(error, Error::InvalidMessage(InvalidMessage::InvalidContentType))
}

/// Whether other CAs, or a look at the clock, could make a difference.
#[must_use]
pub fn is_about_trust(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(_))
}

fn certificate(peer: &str, why: &CertificateError, trusted: &str) -> String {
    match why {
        // The second: a CA has the right name and another key, as after it was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("the {peer}'s certificate is not signed by a CA that this device trusts ({trusted})")
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the {peer}'s certificate expired at {}; this device's clock says {}",
            second(not_after.as_secs()),
            day(time.as_secs())
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the {peer}'s certificate counts from {} on, and this device's clock says {}: the clock may be wrong",
            second(not_before.as_secs()),
            day(time.as_secs())
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("the {peer}'s certificate is not for {}; it is for {}", expected.to_str(), names(presented))
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            format!("the {peer}'s certificate is a CA's own: it needs one that the CA has signed")
        }
        other => format!("the {peer}'s certificate cannot be trusted: {other}"),
    }
}

/// The first names of a certificate, without the wrapping in which the library lists them.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.strip_prefix("DnsName(").or(name.strip_prefix("IpAddress(")).unwrap_or(name);
        inner.strip_suffix(')').unwrap_or(inner).trim_matches('"').chars().take(MAX_NAME_CHARS).collect::<String>()
    };
    let mut names: Vec<_> = presented.iter().take(MAX_NAMES).map(plain).collect();
    if presented.len() > MAX_NAMES {
        names.push(format!("{} more", presented.len() - MAX_NAMES));
    }
    if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") }
}

fn second(unix: u64) -> String {
    time::format(i64::try_from(unix).unwrap_or(i64::MAX))
}

fn day(unix: u64) -> String {
    let mut text = second(unix);
    text.truncate(text.find('T').unwrap_or(text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{ServerName, UnixTime};
    use std::time::Duration;

    fn at(unix: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(unix))
    }

    #[test]
    fn each_cause_is_named() {
        let name = || ServerName::try_from("10.0.0.1").unwrap();
        let presented: Vec<_> =
            ["DnsName(\"a.example\")", "IpAddress(10.0.0.2)", "b", "c", "d", "e"].map(str::to_owned).into();
        for (why, says) in [
            (CertificateError::UnknownIssuer, "not signed by a CA that this device trusts (/etc/ca.pem)"),
            (CertificateError::BadSignature, "not signed by a CA that this device trusts (/etc/ca.pem)"),
            (
                CertificateError::ExpiredContext { time: at(1_800_000_000), not_after: at(1_700_000_000) },
                "expired at 2023-11-14T22:13:20Z; this device's clock says 2027-01-15",
            ),
            // A device that has booted without a clock of its own.
            (
                CertificateError::NotValidYetContext { time: at(75), not_before: at(1_700_000_000) },
                "counts from 2023-11-14T22:13:20Z on, and this device's clock says 1970-01-01: the clock may be wrong",
            ),
            (
                CertificateError::NotValidForNameContext { expected: name(), presented },
                "not for 10.0.0.1; it is for a.example, 10.0.0.2, b, c, 2 more",
            ),
            (
                CertificateError::NotValidForNameContext { expected: name(), presented: Vec::new() },
                "it is for no name at all",
            ),
            (CertificateError::Revoked, "cannot be trusted: Revoked"),
        ] {
            let text = explain(&Error::InvalidCertificate(why), "/etc/ca.pem");
            assert!(text.contains(says), "{text}");
        }
        for (error, says) in [
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "no version or cipher"),
            (Error::AlertReceived(AlertDescription::InternalError), "TLS failed: "),
        ] {
            let text = explain(&error, "");
            assert!(text.contains(says) && !is_about_trust(&error), "{text}");
        }
    }

    #[test]
    fn the_same_fault_has_the_same_words_all_day() {
        let expired = |now| Error::from(CertificateError::ExpiredContext { time: at(now), not_after: at(5) });
        assert_eq!(explain(&expired(86_400), ""), explain(&expired(86_400 + 3_600), ""));
    }
}
