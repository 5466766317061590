//! The logs of buckets, and what is drawn out of them: grants to accounts of this Indexer, and snapshots.

use bucket::Head;
use format::entry::{Action, Entry, Reader, SignedEntry};
use futures_util::TryStreamExt;
use sqlx::{Row, SqliteConnection};
use types::PublicKey;

use super::{Db, DbError, Reference, audit, number};
use crate::api::MAX_ENTRIES_BYTES;

/// Verified entries that follow a reference's head.
#[derive(Debug)]
pub(crate) struct NewEntries<'a> {
    pub(crate) entries: &'a [SignedEntry],
    /// The head that they make.
    pub(crate) head: Head,
    /// Who appends, for the audit.
    pub(crate) author: &'a str,
    /// The Indexer's key, which grants to its accounts name.
    pub(crate) indexer: PublicKey,
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The entries are durable.
    Yes,
    /// The head was another one, or the reference is gone.
    Lost,
}

impl Db {
    /// Appends entries if the head is still `known`'s: compare and swap in one transaction.
    pub(crate) async fn append(
        &self,
        known: &Reference,
        new: NewEntries<'_>,
        now_ms: u64,
    ) -> Result<Appended, DbError> {
        let mut transaction = self.begin().await?;
        let bytes: usize = new.entries.iter().map(|entry| entry.encode().len()).sum();
        let update = "UPDATE bucket_references SET head = $1, length = $2, log_bytes = log_bytes + $3 \
            WHERE id = $4 AND head = $5";
        let update = sqlx::query(update).bind(new.head.hash.0.to_vec()).bind(number(new.head.sequence + 1));
        let update = update.bind(i64::try_from(bytes).unwrap_or(i64::MAX)).bind(known.id);
        let update = update.bind(known.head.hash.0.to_vec());
        if update.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(Appended::Lost);
        }
        insert_entries(&mut transaction, known.id, known.head.sequence + 1, new.entries, new.indexer).await?;
        let target = format!("{}/{}", known.account, known.name);
        audit(&mut transaction, now_ms, new.author, "append", &target).await?;
        transaction.commit().await?;
        Ok(Appended::Yes)
    }

    /// The entries from a number on: at most `limit`, and no more bytes than a page holds, but at least one.
    pub(crate) async fn entries(
        &self,
        known: &Reference,
        from: u64,
        limit: usize,
    ) -> Result<Vec<SignedEntry>, DbError> {
        let select = "SELECT entry FROM entries WHERE reference_id = $1 AND sequence >= $2 ORDER BY sequence LIMIT $3";
        let select = sqlx::query(select).bind(known.id).bind(number(from));
        let mut rows = select.bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch(&self.pool);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            let encoded: &[u8] = row.try_get(0)?;
            bytes += encoded.len();
            if bytes > MAX_ENTRIES_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(SignedEntry::decode(encoded).map_err(|_| DbError::Damaged("a log entry"))?);
        }
        Ok(entries)
    }
}

/// Inserts entries, which must be verified, and what they say of readers and snapshots.
pub(super) async fn insert_entries(
    connection: &mut SqliteConnection,
    reference_id: i64,
    from: u64,
    entries: &[SignedEntry],
    indexer: PublicKey,
) -> Result<(), DbError> {
    for (sequence, signed) in (from..).zip(entries) {
        let insert = "INSERT INTO entries (reference_id, sequence, entry) VALUES ($1, $2, $3)";
        let insert = sqlx::query(insert).bind(reference_id).bind(number(sequence)).bind(signed.encode());
        insert.execute(&mut *connection).await?;
        let entry = Entry::decode(&signed.entry).map_err(|_| DbError::Damaged("an entry that was verified"))?;
        match entry.action {
            Action::Grant { reader: Reader::Account { indexer: by, account } } if by == indexer => {
                let insert = "INSERT INTO grants (reference_id, account) VALUES ($1, $2) \
                    ON CONFLICT (reference_id, account) DO NOTHING";
                sqlx::query(insert).bind(reference_id).bind(account.as_str()).execute(&mut *connection).await?;
            }
            Action::Revoke { reader: Reader::Account { indexer: by, account } } if by == indexer => {
                let delete = "DELETE FROM grants WHERE reference_id = $1 AND account = $2";
                sqlx::query(delete).bind(reference_id).bind(account.as_str()).execute(&mut *connection).await?;
            }
            Action::Put { snapshot, .. } => {
                let insert = "INSERT INTO snapshots (reference_id, snapshot) VALUES ($1, $2) \
                    ON CONFLICT (reference_id, snapshot) DO NOTHING";
                sqlx::query(insert).bind(reference_id).bind(snapshot.0.to_vec()).execute(&mut *connection).await?;
            }
            _ => {}
        }
    }
    Ok(())
}
