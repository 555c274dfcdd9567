//! Datetimes as the protocol writes them: the common part of RFC 3339, ISO 8601 and the web's profile.
//! Spec: <https://atproto.com/specs/lexicon#datetime>.

/// Longest datetime, in bytes.
pub const MAX_DATETIME_BYTES: usize = 64;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Why text is not a datetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatetimeError {
    /// Not of the form `YYYY-MM-DDTHH:MM:SS[.fraction](Z|±HH:MM)`.
    #[error("a datetime has to look like 1985-04-12T23:20:50.123Z")]
    Syntax,
    /// A month, day, hour, minute, second or offset that does not exist.
    #[error("no such date or time")]
    Range,
    /// Before the year 0, once the offset is taken away.
    #[error("a datetime before the year 0")]
    TooEarly,
}

struct Fields {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
    offset_minutes: i64,
}

/// Takes characters off the front of text.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.iter().try_fold(0, |value, digit| {
            digit
                .is_ascii_digit()
                .then(|| value * 10 + i64::from(digit - b'0'))
        })
    }

    fn literal(&mut self, expected: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == expected).then(|| self.0 = rest)
    }
}

fn split_fields(text: &str) -> Option<Fields> {
    if text.len() > MAX_DATETIME_BYTES {
        return None;
    }
    let mut cursor = Cursor(text.as_bytes());
    let year = cursor.digits(4)?;
    cursor.literal(b'-')?;
    let month = cursor.digits(2)?;
    cursor.literal(b'-')?;
    let day = cursor.digits(2)?;
    cursor.literal(b'T')?;
    let hour = cursor.digits(2)?;
    cursor.literal(b':')?;
    let minute = cursor.digits(2)?;
    cursor.literal(b':')?;
    let second = cursor.digits(2)?;
    let mut micros = 0;
    if cursor.literal(b'.').is_some() {
        let count = cursor.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=20).contains(&count) {
            return None;
        }
        for place in 0..count {
            let digit = cursor.digits(1)?;
            if place < 6 {
                micros = micros * 10 + digit;
            }
        }
        for _ in count..6 {
            micros *= 10;
        }
    }
    let (&sign, rest) = cursor.0.split_first()?;
    cursor.0 = rest;
    let offset_minutes = match sign {
        b'Z' => 0,
        b'+' | b'-' => {
            let hours = cursor.digits(2)?;
            cursor.literal(b':')?;
            let minutes = cursor.digits(2)?;
            if hours > 23 || minutes > 59 || (sign == b'-' && hours == 0 && minutes == 0) {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    cursor.0.is_empty().then_some(Fields {
        year,
        month,
        day,
        hour,
        minute,
        second,
        micros,
        offset_minutes,
    })
}

/// Whether `text` has the syntax of a datetime; whether there is such a day or hour is not said.
#[must_use]
pub fn check_datetime_syntax(text: &str) -> bool {
    split_fields(text).is_some_and(|fields| {
        fields.month < 20 && fields.day < 40 && fields.hour < 30 && fields.minute < 70 && fields.second < 70
    })
}

impl Fields {
    /// Seconds since 1970, if there is such an hour in a month of so many days.
    fn seconds(&self, days_in_month: i64) -> Result<i64, DatetimeError> {
        let is_there = (1..=12).contains(&self.month)
            && (1..=days_in_month).contains(&self.day)
            && self.hour <= 23
            && self.minute <= 59
            && self.second <= 59;
        if !is_there {
            return Err(DatetimeError::Range);
        }
        let seconds = days_since_1970(self.year, self.month, self.day) * SECONDS_PER_DAY
            + self.hour * 3_600
            + (self.minute - self.offset_minutes) * 60
            + self.second;
        if seconds < days_since_1970(0, 1, 1) * SECONDS_PER_DAY {
            return Err(DatetimeError::TooEarly);
        }
        Ok(seconds)
    }
}

/// Whether `text` is a datetime by the rule of Lexicon's `datetime` format, as implementations agree on it: of any month
/// 31 days are taken, because many clients' libraries count on into the next month. For the time itself, use
/// [`parse_datetime`].
#[must_use]
pub fn check_datetime(text: &str) -> bool {
    split_fields(text).is_some_and(|fields| fields.seconds(31).is_ok())
}

/// Microseconds since 1970 (negative before); digits beyond the sixth are cut off.
///
/// # Errors
/// Not a datetime, or none that exists.
pub fn parse_datetime(text: &str) -> Result<i64, DatetimeError> {
    let fields = split_fields(text).ok_or(DatetimeError::Syntax)?;
    let year = fields.year;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match fields.month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => 31,
    };
    Ok(fields.seconds(days)? * MICROS_PER_SECOND + fields.micros)
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ` of a time in microseconds since 1970; what is below a millisecond is cut off. Times past
/// the year 9999 print as its last millisecond.
#[must_use]
pub fn format_datetime(micros: u64) -> String {
    const LAST_MILLI: u64 = 253_402_300_799_999;
    let millis = (micros / 1_000).min(LAST_MILLI);
    let (seconds, milli) = (i64::try_from(millis / 1_000).unwrap_or(0), millis % 1_000);
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let second = seconds % SECONDS_PER_DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milli:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years start in March here, so that a leap day is the last
/// day of a year, and count in eras of 400 years, which all have 146,097 days.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_since_1970`]: year, month, day.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants_parse_and_print() {
        for (text, micros) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2000-02-29T12:00:00.000Z", 951_825_600_000_000),
            ("2026-11-20T08:30:15.250Z", 1_795_163_415_250_000),
        ] {
            assert_eq!(parse_datetime(text), Ok(micros), "{text}");
            assert_eq!(format_datetime(u64::try_from(micros).unwrap()), text);
        }
        assert_eq!(parse_datetime("1970-01-01T01:00:00.0000019+01:00"), Ok(1));
        assert_eq!(parse_datetime("1969-12-31T23:59:59.9Z"), Ok(-100_000));
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for text in [
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-01-01T24:00:00Z",
        ] {
            assert_eq!(parse_datetime(text), Err(DatetimeError::Range), "{text}");
        }
        assert!(check_datetime("2023-02-30T00:00:00Z"), "as lexicons see it");
        assert!(!check_datetime("2023-02-32T00:00:00Z"));
        assert!(!check_datetime("2024-01-01T24:00:00Z"));
        assert!(parse_datetime("2024-02-29T00:00:00Z").is_ok());
    }

    #[test]
    fn the_end_of_the_year_9999_is_the_last_that_prints() {
        assert_eq!(format_datetime(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same_millisecond(millis in 0u64..=253_402_300_799_999) {
            let text = format_datetime(millis * 1_000);
            prop_assert!(check_datetime_syntax(&text));
            prop_assert_eq!(parse_datetime(&text), Ok(i64::try_from(millis * 1_000).unwrap()));
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in "\\PC{0,70}") {
            let _ = (check_datetime_syntax(&text), parse_datetime(&text));
        }
    }
}
