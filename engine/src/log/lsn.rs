//! Positions in the log, and names made of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Entropy;

/// An entry's place in the one order of the log: microseconds since 1970-01-01T00:00:00Z when it was appended, forced
/// to increase. Never reused, not dense, below 2^53 (so that it is exact in any JSON reader). Clients see it as `seq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Lsn(u64);

/// The number is not an LSN: it is 2^53 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no position in a log: it must be below 2^53")]
pub struct LsnOutOfRange(pub u64);

impl Lsn {
    /// Before everything.
    pub const ZERO: Lsn = Lsn(0);
    /// The greatest there can be; as a limit: no limit.
    pub const MAX: Lsn = Lsn((1 << 53) - 1);

    /// The LSN with this number, or `None` from 2^53 on.
    #[must_use]
    pub const fn new(micros: u64) -> Option<Lsn> {
        if micros <= Lsn::MAX.0 {
            Some(Lsn(micros))
        } else {
            None
        }
    }

    /// The LSN with this number, or [`Lsn::MAX`] if that is greater.
    #[must_use]
    pub const fn saturating(micros: u64) -> Lsn {
        if micros <= Lsn::MAX.0 {
            Lsn(micros)
        } else {
            Lsn::MAX
        }
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this, or `None` at [`Lsn::MAX`].
    #[must_use]
    pub const fn next(self) -> Option<Lsn> {
        Lsn::new(self.0 + 1)
    }

    /// The time this stands for as `YYYY-MM-DDTHH:MM:SS.mmmZ`, the form of the protocol's `time` field.
    #[must_use]
    pub fn timestamp(self) -> [u8; 24] {
        let millis = self.0 / 1_000;
        let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text, 0, 4, year);
        digits(&mut text, 5, 2, month);
        digits(&mut text, 8, 2, day);
        digits(&mut text, 11, 2, of_day / 3_600_000);
        digits(&mut text, 14, 2, of_day / 60_000 % 60);
        digits(&mut text, 17, 2, of_day / 1_000 % 60);
        digits(&mut text, 20, 3, of_day % 1_000);
        text
    }

    /// Sixteen lower-case hex digits: the form in names of files and objects, which sort as the LSNs do.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }

    /// Reads what [`Lsn::hex`] wrote, and nothing else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Lsn> {
        if text.len() != 16
            || !text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return None;
        }
        Lsn::new(u64::from_str_radix(text, 16).ok()?)
    }
}

fn digits(text: &mut [u8; 24], at: usize, count: usize, mut value: u64) {
    for place in text.iter_mut().skip(at).take(count).rev() {
        *place = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar. Counts in years that begin in
/// March, so that the leap day is the last of its year; 719,468 days lie between 0000-03-01 and 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u64> for Lsn {
    type Error = LsnOutOfRange;

    fn try_from(micros: u64) -> Result<Lsn, LsnOutOfRange> {
        Lsn::new(micros).ok_or(LsnOutOfRange(micros))
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> u64 {
        lsn.0
    }
}

/// One writer's reign. Rises at every start; all frames of a segment have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first writer.
    pub const ZERO: Epoch = Epoch(0);

    /// The epoch after this.
    #[must_use]
    pub const fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where bytes lie: in which segment (by its base LSN), from which offset of its file, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Base LSN of the segment.
    pub segment: Lsn,
    /// Bytes from the start of the segment file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Location {
    /// A part of these bytes: `len` bytes from `at` on. `None` if it does not lie within.
    #[must_use]
    pub fn part(self, at: u32, len: u32) -> Option<Location> {
        let end = at.checked_add(len)?;
        (end <= self.len).then_some(Location {
            offset: self.offset + u64::from(at),
            len,
            ..self
        })
    }
}

/// Which log: sixteen random bytes, chosen when it was created, in every file and object of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// A new one.
    ///
    /// # Errors
    /// There is no randomness to be had.
    pub fn random(entropy: &dyn Entropy) -> std::io::Result<LogId> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        Ok(LogId(bytes))
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

/// The text is not 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log id is 32 lower-case hex digits")]
pub struct LogIdError;

impl FromStr for LogId {
    type Err = LogIdError;

    fn from_str(text: &str) -> Result<LogId, LogIdError> {
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| LogIdError)?;
        Ok(LogId(bytes.try_into().map_err(|_| LogIdError)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_the_calendars() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_123_456, "2024-02-29T23:59:59.123Z"),
            (1_767_225_600_000_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000Z"),
            (Lsn::MAX.get(), "2255-06-05T23:47:34.740Z"),
        ] {
            let lsn = Lsn::new(micros).unwrap();
            assert_eq!(std::str::from_utf8(&lsn.timestamp()).unwrap(), text);
        }
    }

    #[test]
    fn an_lsn_is_below_two_to_the_fifty_third() {
        assert_eq!(Lsn::new(1 << 53), None);
        assert_eq!(Lsn::MAX.next(), None);
        assert_eq!(Lsn::saturating(u64::MAX), Lsn::MAX);
    }

    #[test]
    fn hex_names_round_trip_and_only_the_exact_form_is_read() {
        let lsn = Lsn::new(1_767_225_600_000_000).unwrap();
        assert_eq!(lsn.hex(), "0006474846204000");
        assert_eq!(Lsn::from_hex(&lsn.hex()), Some(lsn));
        for bad in [
            "",
            "000647484620400A",
            "6474ad8094000",
            "+006474ad8094000",
            "ffffffffffffffff",
        ] {
            assert_eq!(Lsn::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_location_lies_within_it() {
        let whole = Location {
            segment: Lsn::ZERO,
            offset: 96,
            len: 10,
        };
        assert_eq!(
            whole.part(4, 6),
            Some(Location {
                segment: Lsn::ZERO,
                offset: 100,
                len: 6
            })
        );
        assert_eq!(whole.part(4, 7), None);
        assert_eq!(whole.part(u32::MAX, 1), None);
    }
}
