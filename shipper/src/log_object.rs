//! `log.json`: which log a replica holds. Created once, by whoever starts first on an empty replica; never changed.

use engine::log::LogId;
use serde::{Deserialize, Serialize};

/// Version of the replica's layout as a whole.
pub const FORMAT: u32 = 1;

/// The content of `log.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogObject {
    /// The log that lives here.
    pub log_id: LogId,
    /// Microseconds since 1970.
    pub created_at_micros: u64,
}

/// A `log.json` that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogObjectError {
    /// Not the JSON that a writer writes.
    #[error("not a valid log.json")]
    Json(#[source] serde_json::Error),
    /// A layout that this program does not know.
    #[error("replica format {0} is not known to this program (it knows {FORMAT}); use a newer one")]
    UnknownFormat(u32),
    /// The log id is not 32 hex digits.
    #[error("logId is not 32 hex digits")]
    LogId,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    format: u32,
    log_id: String,
    created_at_micros: u64,
}

impl LogObject {
    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        format!(
            "{{\"format\":{FORMAT},\"logId\":\"{}\",\"createdAtMicros\":{}}}\n",
            self.log_id, self.created_at_micros
        )
        .into_bytes()
    }

    /// Reads the object.
    ///
    /// # Errors
    /// [`LogObjectError`]: see there.
    pub fn decode(bytes: &[u8]) -> Result<LogObject, LogObjectError> {
        let json: Json = serde_json::from_slice(bytes).map_err(LogObjectError::Json)?;
        if json.format != FORMAT {
            return Err(LogObjectError::UnknownFormat(json.format));
        }
        let log_id: LogId = json.log_id.parse().map_err(|_| LogObjectError::LogId)?;
        Ok(LogObject {
            log_id,
            created_at_micros: json.created_at_micros,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::golden;

    #[test]
    fn it_has_the_bytes_of_the_golden_file_and_comes_back() {
        let object = LogObject {
            log_id: LogId([0xab; 16]),
            created_at_micros: 1_700_000_000_000_000,
        };
        golden("log.json", &object.encode());
        assert_eq!(LogObject::decode(&object.encode()).unwrap(), object);
    }

    #[test]
    fn damage_and_newer_formats_are_told_apart() {
        assert!(matches!(LogObject::decode(b"{"), Err(LogObjectError::Json(_))));
        let newer = br#"{"format":2,"logId":"00","createdAtMicros":1}"#;
        assert!(matches!(
            LogObject::decode(newer),
            Err(LogObjectError::UnknownFormat(2))
        ));
        let bad = br#"{"format":1,"logId":"00","createdAtMicros":1}"#;
        assert!(matches!(LogObject::decode(bad), Err(LogObjectError::LogId)));
    }
}
