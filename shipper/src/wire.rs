//! Small helpers for fixed little-endian headers.

use engine::log::Lsn;

/// An LSN read from a remote object, or `None` if it is out of range.
pub(crate) fn lsn(raw: u64) -> Option<Lsn> {
    Lsn::new(raw)
}

/// True if the little-endian u32 at `at` is the crc32 of everything before it.
pub(crate) fn crc_matches(bytes: &[u8], at: usize) -> bool {
    match (bytes.get(..at), bytes.get(at..at + 4)) {
        (Some(covered), Some(stored)) => crc32fast::hash(covered).to_le_bytes() == stored,
        _ => false,
    }
}

/// Writes fields one after the other.
pub(crate) struct FieldWriter(Vec<u8>);

impl FieldWriter {
    pub(crate) fn with_capacity(bytes: usize) -> FieldWriter {
        FieldWriter(Vec::with_capacity(bytes))
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends the crc32 of everything written so far.
    pub(crate) fn crc_of_all(&mut self) {
        self.u32(crc32fast::hash(&self.0));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads fields one after the other. Bytes past the end read as zero: callers check the whole length first.
pub(crate) struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> FieldReader<'a> {
        FieldReader(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.0 = tail;
                *head
            }
            None => {
                self.0 = &[];
                [0; N]
            }
        }
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use engine::log::Lsn;

    pub(crate) fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    /// Compares with the checked-in file; `PDS_BLESS=1` writes it instead, which is a change of format.
    pub(crate) fn golden(name: &str, bytes: &[u8]) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata")
            .join(name);
        if std::env::var_os("PDS_BLESS").is_some() {
            std::fs::write(&path, bytes).unwrap();
        }
        let expected = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(bytes, expected, "{name}: the format changed");
    }
}
