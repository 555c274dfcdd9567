//! The one kind of object that may change: small, and replaced only by who has seen what it replaces. For politeness (who
//! lives, who waits), never for what decides truth: that stands on objects that cannot change.

use super::{ObjectName, StoreError};

/// The largest object that [`ReplicaStore::swap`](super::ReplicaStore::swap) writes, in bytes.
pub const MAX_SWAP_BYTES: usize = 64 << 10;

/// The longest tag that a store may give, in bytes.
const MAX_TAG_BYTES: usize = 256;

/// Tells one state of an object from every other state of it, before and after, also where the bytes are the same. Means
/// nothing to anybody but the store that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    /// A tag as the store words it.
    pub(super) fn new(object: &ObjectName, tag: impl Into<String>) -> Result<Tag, StoreError> {
        let tag = tag.into();
        // An asterisk means "whatever is there" where tags are the headers of a request.
        if tag.is_empty()
            || tag == "*"
            || tag.len() > MAX_TAG_BYTES
            || !tag.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(no_tag(object));
        }
        Ok(Tag(tag.into_boxed_str()))
    }

    /// The store's own words.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// An answer that should tell the object's state and does not.
pub(super) fn no_tag(object: &ObjectName) -> StoreError {
    StoreError::Other {
        detail: format!("{object}: the answer has no tag that could be used"),
        sent: true,
    }
}

/// What became of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The object has our bytes, in the state that this tag tells.
    Swapped(Tag),
    /// The object was left alone: it is not, or may not be, as it was expected. Read it again; what is there now can be
    /// our own, from an earlier try whose answer was lost.
    Conflict,
}

/// Checks what every store requires of a swap.
pub(super) fn check_swap(name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
    if bytes.is_empty() || bytes.len() > MAX_SWAP_BYTES {
        return Err(StoreError::Invalid {
            detail: format!(
                "{name} would have {} bytes where 1 to {MAX_SWAP_BYTES} can be swapped",
                bytes.len()
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bounded_word_is_a_tag() {
        let object: ObjectName = "lease".parse().unwrap();
        for good in ["1", "\"0x8DC\"", &"x".repeat(MAX_TAG_BYTES)] {
            assert_eq!(Tag::new(&object, good).unwrap().as_str(), good);
        }
        for bad in ["", "*", "a b", "a\r\nb", "é", &"x".repeat(MAX_TAG_BYTES + 1)] {
            assert!(Tag::new(&object, bad).is_err(), "{bad:?}");
        }
    }
}
