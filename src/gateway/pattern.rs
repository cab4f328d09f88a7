//! Pure: a report in which only the sequence and the timestamp move, recognised without reading it as JSON.

use crate::wire::time;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::Range;

/// Longest body that is remembered, bytes.
const MAX_BYTES: usize = 4096;

/// A report that was read, and where in it the values are that move.
#[derive(Debug)]
pub struct Pattern {
    body: Box<[u8]>,
    sequence: Range<usize>,
    timestamp: Option<Range<usize>>,
}

#[derive(Deserialize)]
struct Moving<'a> {
    #[serde(borrow)]
    sequence: &'a RawValue,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
}

// === impl Pattern ===

impl Pattern {
    /// The pattern of a body that could be read as a report; `None` when it has no sequence or is too long.
    #[must_use]
    pub fn of(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_BYTES {
            return None;
        }
        let moving: Moving = serde_json::from_slice(body).ok()?;
        let place = |raw: &RawValue| {
            let start = (raw.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
            let place = start..start + raw.get().len();
            (body.get(place.clone())? == raw.get().as_bytes()).then_some(place)
        };
        let sequence = place(moving.sequence)?;
        digits(&body[sequence.clone()])?;
        let timestamp = match moving.timestamp {
            Some(raw) => {
                let quoted = place(raw)?;
                let bare = quoted.start + 1..quoted.end.checked_sub(1)?;
                moment(body.get(bare.clone())?)?;
                Some(bare)
            }
            None => None,
        };
        Some(Self { body: body.into(), sequence, timestamp })
    }

    /// The sequence of a body that says the same as the pattern but for sequence and timestamp; `None` when it
    /// may say anything else.
    #[must_use]
    pub fn sequence(&self, body: &[u8]) -> Option<u64> {
        if body.len() != self.body.len() {
            return None;
        }
        let sequence = digits(&body[self.sequence.clone()])?;
        let (first, second) = match self.timestamp.clone() {
            Some(timestamp) => {
                moment(&body[timestamp.clone()])?;
                if timestamp.start < self.sequence.start {
                    (timestamp, self.sequence.clone())
                } else {
                    (self.sequence.clone(), timestamp)
                }
            }
            None => (self.sequence.clone(), body.len()..body.len()),
        };
        let same = |place: Range<usize>| body[place.clone()] == self.body[place];
        (same(0..first.start) && same(first.end..second.start) && same(second.end..body.len())).then_some(sequence)
    }
}

/// A number as JSON writes a non-negative integer.
fn digits(bytes: &[u8]) -> Option<u64> {
    let written =
        bytes.iter().all(u8::is_ascii_digit) && (bytes.len() == 1 || bytes.first().is_some_and(|digit| *digit != b'0'));
    written.then(|| std::str::from_utf8(bytes).ok()?.parse().ok()).flatten()
}

/// A time as RFC 3339 writes it; so it holds nothing that would mean anything to JSON.
fn moment(bytes: &[u8]) -> Option<()> {
    time::parse(std::str::from_utf8(bytes).ok()?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::report::Report;
    use proptest::prelude::*;

    const BODY: &str =
        r#"{"timestamp":"2025-12-12T23:55:00Z","sequence":42,"bootId":"b","observations":[{"sequence":1}]}"#;

    #[test]
    fn what_may_move() {
        let pattern = Pattern::of(BODY.as_bytes()).unwrap();
        let with = |from: &str, to: &str| pattern.sequence(BODY.replacen(from, to, 1).as_bytes());
        assert_eq!(with("42", "42"), Some(42));
        assert_eq!(with("42", "99"), Some(99));
        assert_eq!(with("23:55:00", "23:55:15"), Some(42));
        for (from, to) in [
            ("42", "-1"),
            ("42", "07"),
            ("42", "7"),
            ("42", "4 "),
            ("42", "1e"),
            ("23:55", "25:55"),
            ("2025", "\"025"),
            ("\"b\"", "\"c\""),
            ("}]}", "}] "),
            ("{\"t", "[\"t"),
        ] {
            assert_eq!(with(from, to), None, "{from} {to}");
        }
        assert_eq!(Pattern::of(br#"{"sequence":5}"#).unwrap().sequence(br#"{"sequence":6}"#), Some(6));
        let turned = r#"{"sequence":5,"timestamp":"2025-12-12T23:55:00Z"}"#;
        assert_eq!(Pattern::of(turned.as_bytes()).unwrap().sequence(turned.replace(":5,", ":7,").as_bytes()), Some(7));
        for body in [
            "",
            "{}",
            r#"{"sequence":null}"#,
            r#"{"sequence":"1"}"#,
            r#"{"sequence":01}"#,
            r#"{"sequence":1,"timestamp":5}"#,
            r#"{"sequence":1,"timestamp":"2025-12-12T23:55:00\u005a"}"#,
        ] {
            assert!(Pattern::of(body.as_bytes()).is_none(), "{body}");
        }
        assert!(Pattern::of(format!("{BODY}{}", " ".repeat(MAX_BYTES)).as_bytes()).is_none());
    }

    proptest! {
        /// Whatever is recognised reads as the pattern's report with another sequence.
        #[test]
        fn recognised_is_the_same(edits in prop::collection::vec((0_usize..96, any::<u8>()), 0..4), digits in "[0-9]{2}") {
            let mut body = BODY.replacen("42", &digits, 1).into_bytes();
            for (at, byte) in edits {
                if let Some(place) = body.get_mut(at) { *place = byte; }
            }
            let pattern = Pattern::of(BODY.as_bytes()).unwrap();
            if let Some(sequence) = pattern.sequence(&body) {
                let (one, other) = (Report::parse(BODY.as_bytes()).unwrap(), Report::parse(&body).unwrap());
                prop_assert_eq!(other.sequence, Some(sequence));
                prop_assert_eq!(&one.boot_id, &other.boot_id);
                prop_assert_eq!(one.observations.unwrap()[0].get(), other.observations.unwrap()[0].get());
                prop_assert!(time::parse(&other.timestamp.unwrap()).is_some());
            }
        }
    }
}
