//! Pure: until when a certificate counts, read from its DER.
//!
//! TLS libraries check the times and do not tell them. RFC 5280 §4.1 puts them behind four fields that are only
//! stepped over here, so a whole X.509 parser would be a lot of code for two dates.

use crate::wire::time;

/// When a certificate counts, seconds since 1970, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: i64,
    /// Until then.
    pub not_after: i64,
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

// === impl Validity ===

impl Validity {
    /// Whether it counts at this time, seconds since 1970.
    #[must_use]
    pub fn counts(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// The dates of a certificate; `None` when it is none.
#[must_use]
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if fields.first() == Some(&VERSION) {
        (_, _, fields) = element(fields)?;
    }
    // Serial number, algorithm of the signature, issuer.
    for _ in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (dates, _) = expect(SEQUENCE, fields)?;
    let (tag, not_before, dates) = element(dates)?;
    let not_before = date(tag, not_before)?;
    let (tag, not_after, _) = element(dates)?;
    Some(Validity { not_before, not_after: date(tag, not_after)? })
}

/// The content of an element with this tag, and what follows it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// The first element's tag and content, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, bytes) = bytes.split_first()?;
    let (first, mut bytes) = bytes.split_first()?;
    let mut length = usize::from(*first);
    if *first >= 0x80 {
        let (digits, rest) =
            bytes.split_at_checked(usize::from(first & 0x7f)).filter(|(d, _)| matches!(d.len(), 1..=4))?;
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        bytes = rest;
    }
    let (content, rest) = bytes.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5).
fn date(tag: u8, digits: &[u8]) -> Option<i64> {
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.is_ascii())?;
    let full = match tag {
        UTC_TIME => format!("{}{digits}", if *digits.as_bytes().first()? < b'5' { "20" } else { "19" }),
        GENERALIZED_TIME => digits.to_owned(),
        _ => return None,
    };
    let part = |at: usize| full.get(at..at + 2);
    let text = format!(
        "{}-{}-{}T{}:{}:{}{}",
        full.get(..4)?,
        part(4)?,
        part(6)?,
        part(8)?,
        part(10)?,
        part(12)?,
        full.get(14..)?
    );
    time::parse(&text).map(|time| time.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::sync::LazyLock;

    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| made((2024, 1, 1), (2025, 1, 1)));

    fn made(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn unix(text: &str) -> i64 {
        time::parse(text).unwrap().seconds
    }

    #[test]
    fn dates_in_both_forms() {
        for (from, to, not_before, not_after) in [
            ((2024, 2, 29), (2025, 1, 1), "2024-02-29T00:00:00Z", "2025-01-01T00:00:00Z"),
            // Two digits of a year until 2049, four from then on.
            ((1975, 1, 1), (2049, 12, 31), "1975-01-01T00:00:00Z", "2049-12-31T00:00:00Z"),
            ((2050, 1, 1), (9999, 12, 31), "2050-01-01T00:00:00Z", "9999-12-31T00:00:00Z"),
        ] {
            let expected = Validity { not_before: unix(not_before), not_after: unix(not_after) };
            assert_eq!(validity(&made(from, to)), Some(expected), "{not_before}");
        }
    }

    #[test]
    fn both_ends_count() {
        let validity = Validity { not_before: 10, not_after: 20 };
        assert_eq!([9, 10, 20, 21].map(|now| validity.counts(now)), [false, true, true, false]);
    }

    #[test]
    fn what_is_cut_off_or_no_date_is_nothing() {
        let whole = GOOD.clone();
        let dates = (0..whole.len()).find(|at| whole[*at..].starts_with(b"\x17\x0d240101")).unwrap();
        for length in 0..whole.len() {
            assert_eq!(validity(&whole[..length]), None, "{length}");
        }
        for (at, byte) in [(dates, 0x02), (dates + 1, 0x0c), (dates + 4, b'x'), (dates + 4, b'9'), (dates + 14, b'+')] {
            let mut broken = whole.clone();
            broken[at] = byte;
            assert_eq!(validity(&broken), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..400, byte: u8) {
            let _ = validity(&bytes);
            let mut almost = GOOD.clone();
            let at = at % almost.len();
            almost[at] = byte;
            let _ = validity(&almost);
        }
    }
}
