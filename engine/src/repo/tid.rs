//! TIDs: timestamps that name records and revisions and sort as text.

use super::rkey::RecordKey;
use super::text::serde_as_text;
use std::fmt;
use std::str::FromStr;

/// Length of a TID as text.
pub const TID_TEXT_BYTES: usize = 13;

const DIGITS: &[u8; 32] = b"234567abcdefghijklmnopqrstuvwxyz";
const CLOCK_ID_BITS: u32 = 10;
const CLOCK_ID_MASK: u64 = (1 << CLOCK_ID_BITS) - 1;
/// Latest time that leaves the top bit zero: the year 2255.
const MAX_MICROS: u64 = (1 << 53) - 1;

/// Microseconds since 1970 (53 bits) and a clock id (10 bits). Orders as its text does.
/// Spec: <https://atproto.com/specs/tid>.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(u64);

/// Why text is not a TID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TID has to be 13 digits of 2-7 and a-z, the first of them below k")]
pub struct TidError;

impl Tid {
    /// The TID of this microsecond since 1970 and the lower ten bits of `clock_id`. Times past the year 2255 count as the
    /// last microsecond that has a TID.
    #[must_use]
    pub const fn from_micros(micros: u64, clock_id: u16) -> Tid {
        let micros = if micros > MAX_MICROS { MAX_MICROS } else { micros };
        Tid(micros << CLOCK_ID_BITS | (clock_id as u64 & CLOCK_ID_MASK))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0 >> CLOCK_ID_BITS
    }

    /// The ten bits that tell writers with the same clock apart.
    #[must_use]
    pub const fn clock_id(self) -> u16 {
        (self.0 & CLOCK_ID_MASK) as u16
    }

    /// The number behind the text.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The TID with this number; every number is one's.
    #[must_use]
    pub const fn from_u64(number: u64) -> Tid {
        Tid(number)
    }

    /// The TID for now, or one microsecond after `prev` if the clock is not past it. Greater than `prev`, unless `prev`
    /// is the greatest of all TIDs (which no clock gives), when it is `prev` again.
    #[must_use]
    pub fn next_after(prev: Option<Tid>, now_micros: u64, clock_id: u16) -> Tid {
        let Some(prev) = prev else {
            return Tid::from_micros(now_micros, clock_id);
        };
        let next = Tid::from_micros(now_micros.max(prev.micros() + 1), clock_id);
        if next > prev {
            next
        } else {
            Tid(prev.0.saturating_add(1))
        }
    }

    /// The text form as ASCII bytes, without allocating.
    #[must_use]
    pub fn to_text(self) -> [u8; TID_TEXT_BYTES] {
        let mut text = [0; TID_TEXT_BYTES];
        let mut left = self.0;
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(left & 31) as usize];
            left >>= 5;
        }
        text
    }

    /// The TID as a record key.
    #[must_use]
    pub fn to_record_key(self) -> RecordKey {
        match self.to_string().parse() {
            Ok(rkey) => rkey,
            Err(_) => unreachable!("13 letters and digits are a record key"),
        }
    }
}

impl FromStr for Tid {
    type Err = TidError;

    fn from_str(text: &str) -> Result<Tid, TidError> {
        let text: &[u8; TID_TEXT_BYTES] = text.as_bytes().try_into().map_err(|_| TidError)?;
        // 13 digits hold 65 bits; the first has to leave the topmost at zero.
        if text[0] >= b'k' {
            return Err(TidError);
        }
        let mut value = 0u64;
        for digit in text {
            let bits = match digit {
                b'2'..=b'7' => digit - b'2',
                b'a'..=b'z' => digit - b'a' + 6,
                _ => return Err(TidError),
            };
            value = value << 5 | u64::from(bits);
        }
        Ok(Tid(value))
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.to_text()).unwrap_or_default())
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tid({self})")
    }
}

serde_as_text!(Tid, "a TID");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_and_greatest_have_their_text() {
        assert_eq!(Tid::from_micros(0, 0).to_string(), "2222222222222");
        assert_eq!("jzzzzzzzzzzzz".parse::<Tid>().unwrap().to_u64(), u64::MAX);
        assert_eq!(Tid::from_micros(u64::MAX, u16::MAX).to_string(), "bzzzzzzzzzzzz");
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_still_gives_greater_tids() {
        let first = Tid::next_after(None, 1_000, 3);
        assert_eq!(first, Tid::from_micros(1_000, 3));
        let second = Tid::next_after(Some(first), 1_000, 3);
        assert_eq!(second.micros(), 1_001);
        assert_eq!(Tid::next_after(Some(second), 5, 0).micros(), 1_002);
        assert_eq!(Tid::next_after(Some(second), 9_999, 0).micros(), 9_999);
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let last = Tid::from_micros(u64::MAX, u16::MAX);
        assert!(Tid::next_after(Some(last), 0, 0) > last);
        let greatest = "jzzzzzzzzzzzz".parse::<Tid>().unwrap();
        assert_eq!(Tid::next_after(Some(greatest), u64::MAX, 0), greatest);
    }

    proptest! {
        #[test]
        fn text_round_trips_and_sorts_as_the_number(a in any::<u64>(), b in any::<u64>()) {
            let (a, b) = (Tid(a), Tid(b));
            prop_assert_eq!(a.to_string().parse::<Tid>(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            let rkey = a.to_record_key();
            prop_assert_eq!(rkey.as_str(), a.to_string());
        }

        #[test]
        fn the_next_is_always_greater(prev in 0..u64::MAX, now in any::<u64>(), clock_id in any::<u16>()) {
            prop_assert!(Tid::next_after(Some(Tid(prev)), now, clock_id) > Tid(prev));
        }
    }
}
