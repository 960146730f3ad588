//! Dates in header fields (RFC 9110, section 5.6.7).

const DAYS: [&[u8]; 7] =
    [b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday", b"Sunday"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// The last second that an IMF-fixdate can express: the end of the year 9999.
const LAST: u64 = 253_402_300_799;

/// Parses an IMF-fixdate, or one of the obsolete forms of RFC 850 and asctime, which a recipient must accept, into
/// seconds since the Unix epoch. `now`, in the same unit, determines the century of the two-digit year of RFC 850.
///
/// Names of days and months, and GMT, are case-insensitive; a day of the week that does not match the date is accepted.
/// Anything else is not a date.
pub fn parse(value: &[u8], now: i64) -> Option<i64> {
    match value {
        [_, _, _, b',', ..] => imf_fixdate(value),
        [_, _, _, b' ', ..] => asctime(value),
        _ => rfc850(value, now),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(value: &[u8]) -> Option<i64> {
    let [w1, w2, w3, b',', b' ', d1, d2, b' ', m1, m2, m3, b' ', y1, y2, y3, y4, b' ', time @ ..] = value
    else {
        return None;
    };
    short_day(&[*w1, *w2, *w3])?;
    let year = digits(&[*y1, *y2, *y3, *y4])?;
    seconds(year, month(&[*m1, *m2, *m3])?, digits(&[*d1, *d2])?, gmt(time)?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`: a year that would be more than 50 years ahead is the latest past one with these
/// digits.
fn rfc850(value: &[u8], now: i64) -> Option<i64> {
    let comma = value.iter().position(|byte| *byte == b',')?;
    let (day, rest) = value.split_at(comma);
    DAYS.iter().find(|known| known.eq_ignore_ascii_case(day))?;
    let [b',', b' ', d1, d2, b'-', m1, m2, m3, b'-', y1, y2, b' ', time @ ..] = rest else {
        return None;
    };
    let (month, day) = (month(&[*m1, *m2, *m3])?, digits(&[*d1, *d2])?);
    let (two, time) = (digits(&[*y1, *y2])?, gmt(time)?);
    let this_year = civil(now.div_euclid(86_400)).0;
    let mut year = this_year - this_year.rem_euclid(100) + 100 + two;
    while year > this_year + 50 {
        year -= 100;
    }
    seconds(year, month, day, time)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(value: &[u8]) -> Option<i64> {
    let [
        w1,
        w2,
        w3,
        b' ',
        m1,
        m2,
        m3,
        b' ',
        d1,
        d2,
        b' ',
        h1,
        h2,
        b':',
        n1,
        n2,
        b':',
        s1,
        s2,
        b' ',
        y1,
        y2,
        y3,
        y4,
    ] = value
    else {
        return None;
    };
    short_day(&[*w1, *w2, *w3])?;
    let day = if *d1 == b' ' { digits(&[*d2])? } else { digits(&[*d1, *d2])? };
    let time = time_of_day(&[*h1, *h2], &[*n1, *n2], &[*s1, *s2])?;
    seconds(digits(&[*y1, *y2, *y3, *y4])?, month(&[*m1, *m2, *m3])?, day, time)
}

fn short_day(name: &[u8; 3]) -> Option<()> {
    DAYS.iter().any(|day| day[..3].eq_ignore_ascii_case(name)).then_some(())
}

fn month(name: &[u8; 3]) -> Option<i64> {
    (1..).zip(MONTHS).find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(number, _)| number)
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter()
        .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// `08:49:37 GMT`, in seconds.
fn gmt(text: &[u8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, b' ', zone @ ..] = text else {
        return None;
    };
    zone.eq_ignore_ascii_case(b"GMT").then_some(())?;
    time_of_day(&[*h1, *h2], &[*m1, *m2], &[*s1, *s2])
}

/// Parses a time of day. The grammar allows a 60th second, for leap seconds.
fn time_of_day(hour: &[u8], minute: &[u8], second: &[u8]) -> Option<i64> {
    let (hour, minute, second) = (digits(hour)?, digits(minute)?, digits(second)?);
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Returns seconds since the epoch, if the day exists.
fn seconds(year: i64, month: i64, day: i64, time: i64) -> Option<i64> {
    let days = days(year, month, day);
    (civil(days) == (year, month, day)).then_some(days * 86_400 + time)
}

/// Returns days since 1970-01-01 in the Gregorian calendar, by eras of 400 years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Returns the year, month and day of a number of days since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Formats a time in seconds since the epoch as an IMF-fixdate; later times are capped at the end of the year 9999.
pub fn format(seconds: u64) -> [u8; 29] {
    let seconds = i64::try_from(seconds.min(LAST)).unwrap_or(0);
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    // The epoch was a Thursday.
    text[..3].copy_from_slice(&DAYS[index((days + 3) % 7)][..3]);
    put(&mut text[5..7], day);
    text[8..11].copy_from_slice(MONTHS[index(month - 1)]);
    put(&mut text[12..16], year);
    put(&mut text[17..19], time / 3600);
    put(&mut text[20..22], time / 60 % 60);
    put(&mut text[23..25], time % 60);
    text
}

fn index(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn put(into: &mut [u8], mut number: i64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-21
    const NOW: i64 = 1_795_219_200;

    #[test]
    fn three_forms_give_one_date() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun Nov 06 08:49:37 1994",
            "sUN, 06 nOV 1994 08:49:37 gMT",
            "SUNDAY, 06-NOV-94 08:49:37 gmt",
            "Mon, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn near_dates_are_rejected() {
        for text in [
            "",
            "0",
            "-1",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37 EST",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 Nov 1994 08:49:37 GMT, x",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 2023 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Foo, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    #[test]
    fn two_digits_are_the_year_within_fifty() {
        for (text, year) in [("76", 2076), ("77", 1977), ("26", 2026), ("00", 2000), ("99", 1999)] {
            let text = format!("Friday, 01-Jan-{text} 00:00:00 GMT");
            assert_eq!(parse(text.as_bytes(), NOW), Some(days(year, 1, 1) * 86_400), "{text}");
        }
    }

    #[test]
    fn leap_second_and_leap_day_are_parsed() {
        assert_eq!(parse(b"Sat, 31 Dec 2016 23:59:60 GMT", NOW), Some(1_483_228_800));
        assert_eq!(parse(b"Thu, 29 Feb 2024 00:00:00 GMT", NOW), Some(1_709_164_800));
        assert_eq!(parse(b"Fri, 31 Dec 9999 23:59:59 GMT", NOW), i64::try_from(LAST).ok());
        assert_eq!(&format(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&format(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn formatted_date_round_trips(seconds in 0..=LAST, now: i64) {
            prop_assert_eq!(parse(&format(seconds), now), i64::try_from(seconds).ok());
        }

        #[test]
        fn parsing_any_bytes_never_panics(bytes: Vec<u8>, now: i64) {
            parse(&bytes, now);
        }

        #[test]
        fn parsing_date_like_text_never_panics(
            text in "[A-Za-z]{3,9},? ?[0-9]{1,2}[ -][A-Z][a-z]{2}[ -][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
            now: i64,
        ) {
            parse(text.as_bytes(), now);
        }
    }
}
