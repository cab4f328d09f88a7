//! Pure: RFC 3339 timestamps, enough for the wire and small enough for a device.

/// Seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// Reads a timestamp as RFC 3339 §5.6 writes it; `None` for anything else. A leap second is read as the last
/// second of its minute.
#[must_use]
pub fn parse(text: &str) -> Option<UnixTime> {
    let bytes = text.as_bytes();
    let digits = |from: usize, to: usize| -> Option<i64> {
        bytes.get(from..to)?.iter().try_fold(0_i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0_u32;
    if is(at, b".") {
        at += 1;
        let start = at;
        while let Some(digit) = bytes.get(at).filter(|b| b.is_ascii_digit()) {
            if at - start < 9 {
                nanos = nanos * 10 + u32::from(digit - b'0');
            }
            at += 1;
        }
        let count = at - start;
        if count == 0 {
            return None;
        }
        nanos *= 10_u32.pow(9_u32.saturating_sub(u32::try_from(count).unwrap_or(9)));
    }
    let offset = if is(at, b"Zz") && at + 1 == bytes.len() {
        0
    } else if is(at, b"+-") && is(at + 3, b":") && at + 6 == bytes.len() {
        let (hours, minutes) = (digits(at + 1, at + 3)?, digits(at + 4, at + 6)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let seconds = hours * 3600 + minutes * 60;
        if bytes[at] == b'-' { -seconds } else { seconds }
    } else {
        return None;
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59) - offset;
    Some(UnixTime { seconds, nanos })
}

/// Writes a timestamp in UTC with whole seconds, as Kubernetes does.
#[must_use]
pub fn format(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that the leap
/// day is the last one.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // A year that is surely not after the day's, then forward.
    let mut year = 1970 + if days < 0 { days.div_euclid(365) } else { days / 366 };
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut rest = days - days_from_civil(year, 1, 1);
    let mut month = 1;
    while rest >= days_in_month(year, month) {
        rest -= days_in_month(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        let at = |text: &str| parse(text).map(|t| t.seconds);
        assert_eq!(at("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(at("2025-12-12T23:55:00Z"), Some(1_765_583_700));
        assert_eq!(at("2025-12-13T01:55:00.123456789+02:00"), Some(1_765_583_700));
        assert_eq!(at("1937-01-01T12:00:27.87+00:20"), Some(-1_041_337_173));
        assert_eq!(at("1990-12-31T23:59:60Z"), Some(662_687_999));
        assert_eq!(at("2000-02-29t00:00:00z"), Some(951_782_400));
        assert_eq!(parse("1970-01-01T00:00:00.5Z"), Some(UnixTime { seconds: 0, nanos: 500_000_000 }));
        for text in [
            "",
            "yesterday",
            "2025-12-12",
            "2025-12-12T23:55:00",
            "2025-13-12T23:55:00Z",
            "2025-02-29T00:00:00Z",
            "2025-12-12T24:00:00Z",
            "2025-12-12T23:55:00.Z",
            "2025-12-12T23:55:00Zjunk",
            "2025-12-12T23:55:00+2:00",
            "+025-12-12T23:55:00Z",
        ] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in -62_135_596_800_i64..253_402_300_800) {
            prop_assert_eq!(parse(&format(seconds)), Some(UnixTime { seconds, nanos: 0 }));
        }

        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
