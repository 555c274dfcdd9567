//! What a changeset touches: rows, unique values, rows it refers to. The net under the lock keys.

use std::io::Read;

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::hooks::Action;
use rusqlite::session::{ChangesetItem, ChangesetIter};
use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};

use super::error::AccountsError;
use super::locks::Claim;
use super::schema::Layout;

/// Calls `visit` for every row of a changeset.
pub(super) fn for_each_row<E: From<rusqlite::Error>>(
    mut changeset: &[u8],
    mut visit: impl FnMut(&ChangesetItem) -> Result<(), E>,
) -> Result<(), E> {
    let input: &mut dyn Read = &mut changeset;
    let mut rows = ChangesetIter::start_strm(&input)?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}

/// The claims of a changeset, sorted, each once.
///
/// Two changesets whose claims do not meet can be applied in either order, and each fits whatever state the other
/// leaves: they name different rows, take different unique values, and neither removes a row that the other refers to.
pub(super) fn claims_of(changeset: &[u8], layout: &Layout) -> Result<Vec<Claim>, AccountsError> {
    let mut claims: Vec<Claim> = Vec::new();
    for_each_row::<AccountsError>(changeset, |row| {
        let op = row.op()?;
        let (table_name, action) = (op.table_name().to_owned(), op.code());
        let Some(table) = layout.table(&table_name) else {
            return Err(AccountsError::Unreplayable {
                reason: format!("{table_name} is not a table of the log"),
            });
        };
        let before = |column: usize| row.old_value(column).ok();
        let after = |column: usize| row.new_value(column).ok();
        let key = |column: usize| {
            if action == Action::SQLITE_INSERT {
                after(column)
            } else {
                before(column)
            }
        };

        let mut digest = Hasher::new("row", &table_name);
        for (column, part) in row.pk()?.iter().enumerate() {
            if *part != 0 {
                digest.value(key(column), false);
            }
        }
        claims.push(digest.claim(&table_name, true));
        if action == Action::SQLITE_DELETE {
            return Ok(());
        }
        for (index, columns, fold) in &table.unique {
            if !columns.iter().any(|column| after(*column).is_some()) {
                continue;
            }
            let mut digest = Hasher::new("unique", index);
            let mut null = false;
            for column in columns {
                // In an update a column that did not change is known only if it is part of the key.
                let value = after(*column).or_else(|| before(*column));
                null |= matches!(value, Some(ValueRef::Null));
                digest.value(value, *fold);
            }
            if !null {
                claims.push(digest.claim(&table_name, true));
            }
        }
        for (parent, column) in &table.parents {
            if let Some(value) = after(*column).filter(|value| !matches!(value, ValueRef::Null)) {
                let mut digest = Hasher::new("row", parent);
                digest.value(Some(value), false);
                claims.push(digest.claim(parent, false));
            }
        }
        Ok(())
    })?;
    // An exclusive claim on something makes a shared one on the same superfluous.
    claims.sort_unstable_by_key(|claim| (claim.digest, !claim.exclusive));
    claims.dedup_by_key(|claim| claim.digest);
    Ok(claims)
}

/// A digest over a kind, a name and typed values.
struct Hasher(Sha256);

impl Hasher {
    fn new(kind: &str, name: &str) -> Hasher {
        let mut hasher = Hasher(Sha256::new());
        hasher.part(b'k', kind.as_bytes());
        hasher.part(b'n', name.as_bytes());
        hasher
    }

    fn part(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn value(&mut self, value: Option<ValueRef<'_>>, fold: bool) {
        match value {
            None => self.part(b'?', &[]),
            Some(ValueRef::Null) => self.part(b'0', &[]),
            Some(ValueRef::Integer(number)) => self.part(b'i', &number.to_le_bytes()),
            Some(ValueRef::Real(number)) => self.part(b'r', &number.to_bits().to_le_bytes()),
            Some(ValueRef::Text(text)) if fold => self.part(b't', &text.to_ascii_lowercase()),
            Some(ValueRef::Text(text)) => self.part(b't', text),
            Some(ValueRef::Blob(bytes)) => self.part(b'b', bytes),
        }
    }

    fn claim(self, table: &str, exclusive: bool) -> Claim {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.0.finalize()[..16]);
        Claim {
            digest,
            table: table.to_owned(),
            exclusive,
        }
    }
}
