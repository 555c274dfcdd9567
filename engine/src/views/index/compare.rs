//! Two indexes side by side: what a check of one that was there against one that was folded anew needs.

use redb::{Key, ReadOnlyTable, ReadableTable, TableDefinition, Value};

use super::reader::IndexReader;
use super::rows::{HeadRow, NODE_REV_BYTES, NUMBER_BYTES, PREFIX_BYTES};
use super::{
    BLOB_REFS, BLOBS, COLLECTIONS, DEAD, GENERATIONS, HEADS, IndexError, META, META_ERASED, NODES,
    RECORD_BLOBS, RECORD_SUBJECTS, RECORDS, REMOVED, REPOS, SEGMENTS, SUBJECTS,
};
use crate::log::Lsn;

/// A row in which two indexes are not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table's name.
    pub table: &'static str,
    /// The row's key, for humans: the repo's DID where the key has its number, text as text, all else in hex.
    pub key: String,
    /// How they differ.
    pub kind: DifferenceKind,
}

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// It is missing, and should be there.
    Missing,
    /// It is there, and should not be.
    Surplus,
    /// It is there with another value.
    Value,
}

impl IndexReader {
    /// Rows in which this index is not what `expected` says, table after table in key order, at most `limit`. Reads
    /// both files through; memory is that of one row and the answer. What is in no answer is not compared: rows that wait
    /// to be swept, and nodes of staged generations, which a restart leaves to the flip.
    ///
    /// # Errors
    /// A database failed or is damaged.
    pub fn differences(&self, expected: &IndexReader, limit: usize) -> Result<Vec<Difference>, IndexError> {
        let mut found = Vec::new();
        let sides = Sides {
            here: self,
            expected,
            limit,
            here_hidden: Hidden::of(self)?,
            expected_hidden: Hidden::of(expected)?,
        };
        sides.compare("meta", META, Shape::Meta, &mut found)?;
        sides.compare("repos", REPOS, Shape::Text, &mut found)?;
        sides.compare("heads", HEADS, Shape::Number, &mut found)?;
        sides.compare("records", RECORDS, Shape::Owned, &mut found)?;
        sides.compare("nodes", NODES, Shape::Node, &mut found)?;
        sides.compare("blobs", BLOBS, Shape::Blob, &mut found)?;
        sides.compare("blob_refs", BLOB_REFS, Shape::Owned, &mut found)?;
        sides.compare("record_blobs", RECORD_BLOBS, Shape::Owned, &mut found)?;
        sides.compare("subjects", SUBJECTS, Shape::Owned, &mut found)?;
        sides.compare("record_subjects", RECORD_SUBJECTS, Shape::Owned, &mut found)?;
        sides.compare("generations", GENERATIONS, Shape::Owned, &mut found)?;
        sides.compare("collections", COLLECTIONS, Shape::Collection, &mut found)?;
        sides.compare("removed", REMOVED, Shape::Removal, &mut found)?;
        // Rows that wait to be swept count as in use until then.
        if sides.here_hidden.dead.is_empty() && sides.expected_hidden.dead.is_empty() {
            sides.compare("segments", SEGMENTS, Shape::Segment, &mut found)?;
        }
        Ok(found)
    }

    /// Whose repo has this number, by this index.
    fn did_of(&self, number: u32) -> Option<String> {
        let heads = self.transaction().open_table(HEADS).ok()?;
        let row = heads.get(number).ok()??;
        HeadRow::decode(row.value()).ok().map(|head| head.did.to_string())
    }
}

/// What the keys of a table are.
#[derive(Clone, Copy)]
enum Shape {
    /// What the file says of itself.
    Meta,
    Text,
    /// A removal's LSN, and the repo's DID.
    Removal,
    Number,
    /// A segment's base LSN.
    Segment,
    /// A repo's prefix, and then something.
    Owned,
    /// As `Owned`, in the table of nodes.
    Node,
    /// A repo's number, and then something.
    Blob,
    /// A collection and then a repo's prefix.
    Collection,
}

/// What of an index is not compared.
struct Hidden {
    /// Prefixes and numbers that wait to be swept.
    dead: Vec<Vec<u8>>,
    /// Prefixes that are staged.
    staged: Vec<Vec<u8>>,
}

impl Hidden {
    fn of(reader: &IndexReader) -> Result<Hidden, IndexError> {
        let (mut dead, mut staged) = (Vec::new(), Vec::new());
        for row in reader.transaction().open_table(DEAD)?.iter()? {
            dead.push(row?.0.value().to_vec());
        }
        for row in reader.transaction().open_table(GENERATIONS)?.iter()? {
            staged.push(row?.0.value().to_vec());
        }
        Ok(Hidden { dead, staged })
    }

    fn hides(&self, shape: Shape, key: &[u8]) -> bool {
        let owner = match shape {
            Shape::Owned | Shape::Node | Shape::Blob => key,
            Shape::Collection => key.last_chunk::<PREFIX_BYTES>().map_or(key, |prefix| prefix),
            // What was in a file and is not any more does not follow from the log.
            Shape::Meta => return key == META_ERASED.as_bytes(),
            Shape::Text | Shape::Removal | Shape::Number | Shape::Segment => return false,
        };
        // Every key under a prefix comes after it and before any greater one: its neighbour to the left decides.
        let under = |prefixes: &[Vec<u8>]| {
            let after = prefixes.partition_point(|prefix| prefix.as_slice() <= owner);
            after
                .checked_sub(1)
                .and_then(|at| prefixes.get(at))
                .is_some_and(|prefix| owner.starts_with(prefix))
        };
        under(&self.dead) || (matches!(shape, Shape::Node) && under(&self.staged))
    }
}

struct Sides<'a> {
    here: &'a IndexReader,
    expected: &'a IndexReader,
    limit: usize,
    here_hidden: Hidden,
    expected_hidden: Hidden,
}

/// A row as bytes, key first.
type RawRow = (Vec<u8>, Vec<u8>);

impl Sides<'_> {
    fn compare<K: Key + 'static, V: Value + 'static>(
        &self,
        table: &'static str,
        definition: TableDefinition<K, V>,
        shape: Shape,
        found: &mut Vec<Difference>,
    ) -> Result<(), IndexError> {
        let here: ReadOnlyTable<K, V> = self.here.transaction().open_table(definition)?;
        let expected: ReadOnlyTable<K, V> = self.expected.transaction().open_table(definition)?;
        let raw = |row: Result<_, redb::StorageError>| -> Result<RawRow, IndexError> {
            let (key, value): (redb::AccessGuard<'_, K>, redb::AccessGuard<'_, V>) = row?;
            let (key, value) = (key.value(), value.value());
            Ok((
                K::as_bytes(&key).as_ref().to_vec(),
                comparable(shape, V::as_bytes(&value).as_ref()),
            ))
        };
        let shown = |hidden: &Hidden, row: &Result<RawRow, IndexError>| {
            row.as_ref().map_or(true, |(key, _)| !hidden.hides(shape, key))
        };
        let mut here = here.iter()?.map(raw).filter(|row| shown(&self.here_hidden, row));
        let mut expected = expected
            .iter()?
            .map(raw)
            .filter(|row| shown(&self.expected_hidden, row));
        let (mut left, mut right) = (here.next().transpose()?, expected.next().transpose()?);
        while found.len() < self.limit {
            let (key, kind) = match (&left, &right) {
                (None, None) => return Ok(()),
                (Some((key, _)), None) => (key.clone(), DifferenceKind::Surplus),
                (None, Some((key, _))) => (key.clone(), DifferenceKind::Missing),
                (Some((a, x)), Some((b, y))) => match K::compare(a, b) {
                    std::cmp::Ordering::Less => (a.clone(), DifferenceKind::Surplus),
                    std::cmp::Ordering::Greater => (b.clone(), DifferenceKind::Missing),
                    std::cmp::Ordering::Equal if x == y => {
                        left = here.next().transpose()?;
                        right = expected.next().transpose()?;
                        continue;
                    }
                    std::cmp::Ordering::Equal => (a.clone(), DifferenceKind::Value),
                },
            };
            found.push(Difference {
                table,
                key: self.describe(shape, &key),
                kind,
            });
            if kind != DifferenceKind::Missing {
                left = here.next().transpose()?;
            }
            if kind != DifferenceKind::Surplus {
                right = expected.next().transpose()?;
            }
        }
        Ok(())
    }

    fn describe(&self, shape: Shape, key: &[u8]) -> String {
        let repo = |number: u32| {
            let did = self.expected.did_of(number).or_else(|| self.here.did_of(number));
            did.unwrap_or_else(|| format!("repo {number}"))
        };
        match (shape, key.split_first_chunk::<4>()) {
            (Shape::Number, Some((number, []))) => repo(u32::from_le_bytes(*number)),
            (Shape::Owned | Shape::Node | Shape::Blob, Some((number, rest))) => {
                let skipped = if matches!(shape, Shape::Blob) {
                    0
                } else {
                    PREFIX_BYTES - NUMBER_BYTES
                };
                let rest = rest.get(skipped..).unwrap_or_default();
                format!("{} {}", repo(u32::from_be_bytes(*number)), readable(rest))
            }
            (Shape::Segment, _) => key.try_into().map_or_else(
                |_| readable(key),
                |base| format!("segment {}", Lsn::saturating(u64::from_le_bytes(base)).hex()),
            ),
            (_, _) => readable(key),
        }
    }
}

/// What of a row has to be the same. Since when nodes are what they are is not: a compacted log does not tell it, and an index
/// that is folded from one says "since the last commit".
fn comparable(shape: Shape, value: &[u8]) -> Vec<u8> {
    let head = match shape {
        Shape::Node => return value.get(NODE_REV_BYTES..).unwrap_or_default().to_vec(),
        Shape::Number => HeadRow::decode(value).ok(),
        _ => None,
    };
    let without = head.and_then(|head| HeadRow { base: 0, ..head }.encode().ok());
    without.unwrap_or_else(|| value.to_vec())
}

/// Text as it is, and everything else in hex.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) => text.to_owned(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;
    use crate::views::View;
    use crate::views::index::IndexView;
    use crate::views::testkit::{LOG_ID, Placer, TestRepo, record};

    #[test]
    fn one_other_row_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| IndexView::open(&dir.path().join(name), LOG_ID, 1 << 20).unwrap();
        let (mut a, mut b) = (open("a"), open("b"));
        let (mut repo, mut placer) = (TestRepo::new("alice"), Placer::new());
        let put = |path: &str| {
            let write = Some((record("words", &[]), Default::default()));
            BTreeMap::from([(path.to_owned(), write)])
        };
        let nothing = HashMap::<_, _>::new();
        let first = placer.place(repo.commit(&put("a.b.c/one"), &nothing));
        let blob = crate::entry::EntryDraft::private(vec![repo.store(b"a blob")]);
        let second = placer.place(blob);
        a.apply(&[first.clone(), second.clone()]).unwrap();
        b.apply(&[first.clone(), second.clone()]).unwrap();
        let (here, expected) = (a.reader().unwrap(), b.reader().unwrap());
        assert_eq!(here.differences(&expected, 10).unwrap(), []);

        let transaction = a.slot.database().begin_write().unwrap();
        {
            let mut blobs = transaction.open_table(BLOBS).unwrap();
            blobs.retain(|_, _| false).unwrap();
            transaction
                .open_table(REPOS)
                .unwrap()
                .insert("did:plc:mallory", 9)
                .unwrap();
            let mut records = transaction.open_table(RECORDS).unwrap();
            let key = records
                .iter()
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .0
                .value()
                .to_vec();
            records.insert(key.as_slice(), &[0; 56]).unwrap();
        }
        a.slot.commit(transaction).unwrap();
        let found = a.reader().unwrap().differences(&expected, 10).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|row| (row.table, row.key.as_str(), row.kind))
            .collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], ("repos", "did:plc:mallory", DifferenceKind::Surplus));
        assert_eq!(
            found[1],
            ("records", "did:plc:alice a.b.c/one", DifferenceKind::Value)
        );
        assert_eq!((found[2].0, found[2].2), ("blobs", DifferenceKind::Missing));
        assert_eq!(a.reader().unwrap().differences(&expected, 1).unwrap().len(), 1);
    }
}
