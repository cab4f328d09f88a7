//! Pure: going on with a download where it broke off (RFC 9110 §13 and §14), and when to try again (§10.2.3).

use crate::wire::time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A server's word on when to come again counts up to here.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What is known of the bytes that a part of is here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// The `ETag`, if it is a strong one.
    pub etag: Option<String>,
    /// The `Last-Modified`.
    pub modified: Option<String>,
}

/// How to ask for the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// How many are here already.
    pub from: u64,
    /// Value of `If-Range`, if a part is asked for and the server has to see that it is of the same bytes.
    pub if_range: Option<String>,
}

/// What an answer means for the part that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The body continues it; so many bytes come, if that is known.
    Continue(Option<u64>),
    /// The body is everything, from the beginning; so many bytes, if that is known.
    Afresh(Option<u64>),
    /// The part is of no use, nor is this answer: ask again for everything.
    AskAgain,
    /// The answer contradicts itself.
    Nonsense,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    /// 200, 206 or 416.
    pub status: u16,
    /// `Content-Range`.
    pub range: Option<&'a str>,
    /// `Content-Length`.
    pub length: Option<u64>,
}

// === impl Validators ===

impl Validators {
    /// From an answer's headers; a weak ETag is no proof that bytes are the same.
    #[must_use]
    pub fn new(etag: Option<&str>, modified: Option<&str>) -> Self {
        let strong = |tag: &&str| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
        Self { etag: etag.filter(strong).map(str::to_owned), modified: modified.map(str::to_owned) }
    }

    /// How to ask when `have` bytes are here. `checked`: their SHA-256 will tell whether they belong together, whatever
    /// the server says.
    #[must_use]
    pub fn question(&self, have: u64, checked: bool) -> Question {
        let if_range = self.etag.clone().or_else(|| self.modified.clone());
        if have == 0 || (if_range.is_none() && !checked) {
            return Question { from: 0, if_range: None };
        }
        Question { from: have, if_range }
    }
}

// === impl Question ===

impl Question {
    /// Judges an answer. `whole`: how many bytes there are, if that is known.
    #[must_use]
    pub fn judge(&self, answer: Answer<'_>, whole: Option<u64>) -> Verdict {
        match answer.status {
            206 if self.from > 0 => match answer.range.and_then(content_range) {
                // The bytes are others than those that were asked for, or of something else.
                Some((start, _, total))
                    if start != self.from || (total.is_some() && whole.is_some() && total != whole) =>
                {
                    Verdict::AskAgain
                }
                Some((start, end, total)) => {
                    let length = end - start + 1;
                    let short = total.is_some_and(|total| end + 1 != total);
                    if answer.length.is_some_and(|said| said != length) || short {
                        Verdict::AskAgain
                    } else {
                        Verdict::Continue(Some(length))
                    }
                }
                None => Verdict::AskAgain,
            },
            // Nobody asked for a part.
            206 => Verdict::Nonsense,
            416 if self.from > 0 => Verdict::AskAgain,
            416 => Verdict::Nonsense,
            _ => Verdict::Afresh(answer.length),
        }
    }
}

/// `bytes 5-9/10`: first, last and, unless it is `*`, how many there are.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    (start <= end && end < u64::MAX && total.is_none_or(|total| end < total)).then_some((start, end, total))
}

/// How long to wait by the value of a `Retry-After` header, in seconds or a date, at most an hour. `now`: seconds since
/// 1970.
#[must_use]
pub fn retry_after(text: &str, now: u64) -> Option<Duration> {
    let seconds = text.trim().parse().ok().or_else(|| Some(date(text)?.saturating_sub(now)))?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// `Wed, 21 Oct 2015 07:28:00 GMT`, seconds since 1970 (RFC 9110 §5.6.7; not the forms that nobody sends any more).
fn date(text: &str) -> Option<u64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let parts: Vec<_> = rest.split(' ').collect();
    let [day, month, year, clock, "GMT"] = parts.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| name == month)? + 1;
    let unix = time::parse(&format!("{year}-{month:02}-{day}T{clock}Z"))?;
    u64::try_from(unix.seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_part_is_asked_for_only_if_it_can_be_trusted() {
        let none = Validators::new(Some("W/\"a\""), None);
        assert_eq!(none, Validators::default());
        assert_eq!(none.question(5, false), Question { from: 0, if_range: None });
        assert_eq!(none.question(5, true), Question { from: 5, if_range: None });
        let both = Validators::new(Some("\"a\""), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(both.question(5, false), Question { from: 5, if_range: Some("\"a\"".into()) });
        assert_eq!(both.question(0, true), Question { from: 0, if_range: None });
        let dated = Validators::new(None, Some("x"));
        assert_eq!(dated.question(1, false).if_range.as_deref(), Some("x"));
    }

    #[test]
    fn answers() {
        let part = Question { from: 5, if_range: None };
        let whole = Question { from: 0, if_range: None };
        let answer = |status, range, length| Answer { status, range, length };
        for (question, answer, known, verdict) in [
            (&part, answer(206, Some("bytes 5-9/10"), Some(5)), Some(10), Verdict::Continue(Some(5))),
            (&part, answer(206, Some("bytes 5-9/*"), None), None, Verdict::Continue(Some(5))),
            // Another part, another whole, a part of the part, another length, none at all.
            (&part, answer(206, Some("bytes 4-9/10"), None), None, Verdict::AskAgain),
            (&part, answer(206, Some("bytes 5-10/11"), None), Some(10), Verdict::AskAgain),
            (&part, answer(206, Some("bytes 5-7/10"), None), None, Verdict::AskAgain),
            (&part, answer(206, Some("bytes 5-9/10"), Some(6)), None, Verdict::AskAgain),
            (&part, answer(206, Some("bytes 9-5/10"), None), None, Verdict::AskAgain),
            (&part, answer(206, Some("lines 5-9/10"), None), None, Verdict::AskAgain),
            (&part, answer(206, None, Some(5)), None, Verdict::AskAgain),
            (&part, answer(416, Some("bytes */5"), None), None, Verdict::AskAgain),
            (&part, answer(200, None, Some(10)), None, Verdict::Afresh(Some(10))),
            (&whole, answer(200, None, None), None, Verdict::Afresh(None)),
            (&whole, answer(206, Some("bytes 0-9/10"), None), None, Verdict::Nonsense),
            (&whole, answer(416, None, None), None, Verdict::Nonsense),
        ] {
            assert_eq!(question.judge(answer, known), verdict, "{question:?} {answer:?}");
        }
    }

    #[test]
    fn when_to_try_again() {
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        for (text, now, seconds) in [
            ("7", 0, Some(7)),
            (" 7 ", 0, Some(7)),
            ("999999", 0, Some(3600)),
            (date, 1_445_412_480 - 30, Some(30)),
            // It is over; or this device's clock stands at 1970.
            (date, 1_445_412_480 + 30, Some(0)),
            (date, 75, Some(3600)),
            ("-1", 0, None),
            ("soon", 0, None),
            ("Wed, 21 Okt 2015 07:28:00 GMT", 0, None),
            ("Wed, 21 Oct 2015", 0, None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    proptest! {
        /// Whatever a server says: what is put behind the part that is here begins where it ends.
        #[test]
        fn nothing_is_put_in_the_wrong_place(from in 1_u64..50, range in "bytes [0-9]{1,3}-[0-9]{1,3}/([0-9]{1,3}|\\*)", length in proptest::option::of(0_u64..60)) {
            let question = Question { from, if_range: None };
            if let Verdict::Continue(_) = question.judge(Answer { status: 206, range: Some(&range), length }, None) {
                let prefix = format!("bytes {from}-");
                let padded = content_range(&range).is_some_and(|(start, ..)| start == from);
                prop_assert!(range.starts_with(&prefix) || padded);
            }
        }
    }
}
