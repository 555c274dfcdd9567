//! Times as the tables hold them.

use crate::log::Lsn;

/// `YYYY-MM-DDTHH:MM:SS.mmmZ` of a time in microseconds since 1970. All are of one length, so that the order of the
/// texts is the order of the times; beyond what an LSN can be (the year 2255) all are the same.
#[must_use]
pub fn iso_time(micros: u64) -> String {
    Lsn::saturating(micros)
        .timestamp()
        .into_iter()
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_to_the_millisecond() {
        assert_eq!(iso_time(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
    }
}
