//! Reads DAG-CBOR item by item, borrowing from the input and allocating nothing.

use super::{
    CborError, CborErrorKind, FALSE, LINK_HEAD, MAJOR_ARRAY, MAJOR_BYTES, MAJOR_MAP, MAJOR_NEGATIVE,
    MAJOR_SIMPLE, MAJOR_TAG, MAJOR_TEXT, MAJOR_UINT, MAX_DEPTH, NULL, TRUE, key_order,
};
use crate::repo::cid::{CID_BYTES, Cid};

/// What the next item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An integer, of either sign.
    Int,
    /// A byte string.
    Bytes,
    /// Text.
    Text,
    /// An array.
    Array,
    /// A map.
    Map,
    /// A tag; only links are allowed.
    Link,
    /// True or false.
    Bool,
    /// Null.
    Null,
}

/// A cursor over DAG-CBOR bytes. Each method takes one item, checked strictly, and leaves the cursor behind it; after
/// an error the position is not defined. Items borrow from the input.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Walks the keys of a map and checks that they are text and in order. Between two calls the caller takes the value.
#[derive(Clone, Debug)]
pub struct MapKeys<'a> {
    left: u64,
    previous: Option<&'a str>,
}

/// Checks that `bytes` are exactly one DAG-CBOR value, without allocating.
///
/// # Errors
/// The first fault and where it is.
pub fn validate(bytes: &[u8]) -> Result<(), CborError> {
    let mut reader = Reader::new(bytes);
    reader.skip()?;
    reader.end()
}

#[cold]
fn fail<T>(at: usize, kind: CborErrorKind) -> Result<T, CborError> {
    Err(CborError { at, kind })
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Offset of the next item.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether all bytes were taken.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The bytes not yet taken.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Checks that all bytes were taken.
    ///
    /// # Errors
    /// [`CborErrorKind::Trailing`] if some were not.
    pub fn end(&self) -> Result<(), CborError> {
        if self.is_at_end() {
            Ok(())
        } else {
            fail(self.at, CborErrorKind::Trailing)
        }
    }

    /// The type of the next item. Says nothing about whether the item is sound.
    ///
    /// # Errors
    /// No byte is left, or the byte starts a float or a simple value that is not allowed.
    pub fn peek(&self) -> Result<Kind, CborError> {
        let Some(&first) = self.bytes.get(self.at) else {
            return fail(self.at, CborErrorKind::Truncated);
        };
        Ok(match first >> 5 {
            MAJOR_UINT | MAJOR_NEGATIVE => Kind::Int,
            MAJOR_BYTES => Kind::Bytes,
            MAJOR_TEXT => Kind::Text,
            MAJOR_ARRAY => Kind::Array,
            MAJOR_MAP => Kind::Map,
            MAJOR_TAG => Kind::Link,
            _ => match first {
                FALSE | TRUE => Kind::Bool,
                NULL => Kind::Null,
                _ => return fail(self.at, simple_fault(first)),
            },
        })
    }

    /// Major type and argument of the next head, which has to be in its shortest form.
    #[inline]
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let start = self.at;
        let Some(&first) = self.bytes.get(start) else {
            return fail(start, CborErrorKind::Truncated);
        };
        let (major, info) = (first >> 5, first & 31);
        if info < 24 {
            self.at = start + 1;
            return Ok((major, u64::from(info)));
        }
        if major == MAJOR_SIMPLE {
            return fail(start, simple_fault(first));
        }
        let rest = self.bytes.get(start + 1..).unwrap_or_default();
        let (argument, least, width) = match info {
            24 => (rest.first().map(|byte| u64::from(*byte)), 24, 1),
            25 => (
                rest.first_chunk()
                    .map(|bytes| u64::from(u16::from_be_bytes(*bytes))),
                0x100,
                2,
            ),
            26 => (
                rest.first_chunk()
                    .map(|bytes| u64::from(u32::from_be_bytes(*bytes))),
                0x1_0000,
                4,
            ),
            27 => (
                rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)),
                0x1_0000_0000,
                8,
            ),
            _ => return fail(start, CborErrorKind::Indefinite),
        };
        let Some(argument) = argument else {
            return fail(start, CborErrorKind::Truncated);
        };
        if argument < least {
            return fail(start, CborErrorKind::NotMinimal);
        }
        self.at = start + 1 + width;
        Ok((major, argument))
    }

    #[inline]
    fn head_of(&mut self, major: u8, expected: &'static str) -> Result<u64, CborError> {
        let start = self.at;
        match self.head()? {
            (found, argument) if found == major => Ok(argument),
            _ => fail(start, CborErrorKind::WrongType { expected }),
        }
    }

    #[inline]
    fn take(&mut self, start: usize, len: u64) -> Result<&'a [u8], CborError> {
        let taken = usize::try_from(len)
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .and_then(|end| self.bytes.get(self.at..end).map(|taken| (taken, end)));
        let Some((taken, end)) = taken else {
            return fail(start, CborErrorKind::Truncated);
        };
        self.at = end;
        Ok(taken)
    }

    /// An integer from 0 to `i64::MAX`.
    ///
    /// # Errors
    /// Not such an integer.
    pub fn u64(&mut self) -> Result<u64, CborError> {
        let start = self.at;
        let value = self.head_of(MAJOR_UINT, "an integer that is not negative")?;
        if i64::try_from(value).is_ok() {
            Ok(value)
        } else {
            fail(start, CborErrorKind::IntegerRange)
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// Not an integer, or outside of i64.
    pub fn i64(&mut self) -> Result<i64, CborError> {
        let start = self.at;
        let (major, argument) = self.head()?;
        let Ok(value) = i64::try_from(argument) else {
            return match major {
                MAJOR_UINT | MAJOR_NEGATIVE => fail(start, CborErrorKind::IntegerRange),
                _ => fail(
                    start,
                    CborErrorKind::WrongType {
                        expected: "an integer",
                    },
                ),
            };
        };
        match major {
            MAJOR_UINT => Ok(value),
            MAJOR_NEGATIVE => Ok(-1 - value),
            _ => fail(
                start,
                CborErrorKind::WrongType {
                    expected: "an integer",
                },
            ),
        }
    }

    /// A byte string.
    ///
    /// # Errors
    /// Not a byte string, or cut short.
    pub fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        let start = self.at;
        let len = self.head_of(MAJOR_BYTES, "a byte string")?;
        self.take(start, len)
    }

    /// Text.
    ///
    /// # Errors
    /// Not text, cut short, or not UTF-8.
    pub fn text(&mut self) -> Result<&'a str, CborError> {
        let start = self.at;
        let len = self.head_of(MAJOR_TEXT, "text")?;
        self.text_of(start, len)
    }

    #[inline]
    fn text_of(&mut self, start: usize, len: u64) -> Result<&'a str, CborError> {
        let Ok(text) = std::str::from_utf8(self.take(start, len)?) else {
            return fail(start, CborErrorKind::Utf8);
        };
        Ok(text)
    }

    /// The head of an array: how many items follow. Never more than there are bytes left.
    ///
    /// # Errors
    /// Not an array, or more items declared than bytes are left.
    pub fn array(&mut self) -> Result<usize, CborError> {
        let start = self.at;
        let len = self.head_of(MAJOR_ARRAY, "an array")?;
        self.count(start, len, 1)
    }

    /// The head of a map; the keys are then taken through the returned walker.
    ///
    /// # Errors
    /// Not a map, or more entries declared than the bytes left can hold.
    pub fn map(&mut self) -> Result<MapKeys<'a>, CborError> {
        let start = self.at;
        let len = self.head_of(MAJOR_MAP, "a map")?;
        self.count(start, len, 2)?;
        Ok(MapKeys {
            left: len,
            previous: None,
        })
    }

    #[inline]
    fn count(&self, start: usize, len: u64, least_bytes: usize) -> Result<usize, CborError> {
        match usize::try_from(len) {
            Ok(len) if len <= self.rest().len() / least_bytes => Ok(len),
            _ => fail(start, CborErrorKind::Truncated),
        }
    }

    /// A link.
    ///
    /// # Errors
    /// Not tag 42 over a byte string with a leading zero, or a CID that is not allowed.
    pub fn link(&mut self) -> Result<Cid, CborError> {
        let start = self.at;
        if let Some((head, rest)) = self.rest().split_first_chunk::<5>()
            && *head == LINK_HEAD
        {
            let Some(cid) = rest.get(..CID_BYTES) else {
                return fail(start, CborErrorKind::Truncated);
            };
            self.at += LINK_HEAD.len() + CID_BYTES;
            return match Cid::from_bytes(cid) {
                Ok(cid) => Ok(cid),
                Err(error) => fail(start, CborErrorKind::Link(error)),
            };
        }
        // Not the one good form: take it apart to name the fault.
        if self.head_of(MAJOR_TAG, "a link")? != 42 {
            return fail(start, CborErrorKind::Tag);
        }
        match self.peek()? {
            Kind::Bytes => {}
            _ => return fail(start, CborErrorKind::Tag),
        }
        match self.bytes()?.split_first() {
            Some((0, cid)) => match Cid::from_bytes(cid) {
                Ok(cid) => Ok(cid),
                Err(error) => fail(start, CborErrorKind::Link(error)),
            },
            _ => fail(start, CborErrorKind::Tag),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// Neither.
    pub fn bool(&mut self) -> Result<bool, CborError> {
        match self.peek()? {
            Kind::Bool => {
                let value = self.bytes.get(self.at) == Some(&TRUE);
                self.at += 1;
                Ok(value)
            }
            _ => fail(
                self.at,
                CborErrorKind::WrongType {
                    expected: "a boolean",
                },
            ),
        }
    }

    /// Null.
    ///
    /// # Errors
    /// Something else.
    pub fn null(&mut self) -> Result<(), CborError> {
        match self.peek()? {
            Kind::Null => {
                self.at += 1;
                Ok(())
            }
            _ => fail(self.at, CborErrorKind::WrongType { expected: "null" }),
        }
    }

    /// Takes a null if that is what comes next, and says whether it did.
    ///
    /// # Errors
    /// No sound item comes next.
    pub fn null_if_present(&mut self) -> Result<bool, CborError> {
        let is_null = self.peek()? == Kind::Null;
        self.at += usize::from(is_null);
        Ok(is_null)
    }

    /// Takes a whole item, checks all that is inside, and gives its encoded bytes.
    ///
    /// # Errors
    /// The first fault inside.
    pub fn skip(&mut self) -> Result<&'a [u8], CborError> {
        let start = self.at;
        self.skip_nested(0)?;
        Ok(self.bytes.get(start..self.at).unwrap_or_default())
    }

    fn skip_nested(&mut self, depth: usize) -> Result<(), CborError> {
        let start = self.at;
        let (major, argument) = self.head()?;
        match major {
            MAJOR_UINT | MAJOR_NEGATIVE => {
                if i64::try_from(argument).is_err() {
                    return fail(start, CborErrorKind::IntegerRange);
                }
            }
            MAJOR_BYTES => {
                self.take(start, argument)?;
            }
            MAJOR_TEXT => {
                self.text_of(start, argument)?;
            }
            MAJOR_ARRAY => {
                if depth >= MAX_DEPTH {
                    return fail(start, CborErrorKind::Depth);
                }
                for _ in 0..self.count(start, argument, 1)? {
                    self.skip_nested(depth + 1)?;
                }
            }
            MAJOR_MAP => {
                if depth >= MAX_DEPTH {
                    return fail(start, CborErrorKind::Depth);
                }
                self.count(start, argument, 2)?;
                let mut keys = MapKeys {
                    left: argument,
                    previous: None,
                };
                while keys.next(self)?.is_some() {
                    self.skip_nested(depth + 1)?;
                }
            }
            MAJOR_TAG => {
                self.at = start;
                self.link()?;
            }
            _ => {
                // The head has refused the long forms, so the argument is the simple value itself.
                if !matches!(argument, 20..=22) {
                    return fail(start, CborErrorKind::Simple);
                }
            }
        }
        Ok(())
    }
}

impl<'a> MapKeys<'a> {
    /// How many entries are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes the next key, or gives `None` after the last entry. The caller has to take the value before the next call.
    ///
    /// # Errors
    /// A key that is not text, is out of order, or comes twice.
    #[inline]
    pub fn next(&mut self, reader: &mut Reader<'a>) -> Result<Option<&'a str>, CborError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let start = reader.at;
        let (major, len) = reader.head()?;
        if major != MAJOR_TEXT {
            return fail(start, CborErrorKind::KeyType);
        }
        let key = reader.text_of(start, len)?;
        if self
            .previous
            .is_some_and(|previous| key_order(previous, key).is_ge())
        {
            return fail(start, CborErrorKind::KeyOrder);
        }
        self.previous = Some(key);
        Ok(Some(key))
    }

    /// Takes the next key, which has to be `key`: for types whose maps have fixed keys.
    ///
    /// # Errors
    /// There is no further key, it is another one, or it is unsound.
    pub fn expect(&mut self, reader: &mut Reader<'a>, key: &'static str) -> Result<(), CborError> {
        let start = reader.at;
        match self.next(reader)? {
            Some(found) if found == key => Ok(()),
            _ => fail(start, CborErrorKind::MissingKey(key)),
        }
    }

    /// Checks that no entry is left.
    ///
    /// # Errors
    /// [`CborErrorKind::UnexpectedKey`] if there is one.
    pub fn end(&self, reader: &Reader<'a>) -> Result<(), CborError> {
        if self.left == 0 {
            Ok(())
        } else {
            fail(reader.at, CborErrorKind::UnexpectedKey)
        }
    }
}

fn simple_fault(first: u8) -> CborErrorKind {
    match first & 31 {
        25..=27 => CborErrorKind::Float,
        28..=31 => CborErrorKind::Indefinite,
        _ => CborErrorKind::Simple,
    }
}
