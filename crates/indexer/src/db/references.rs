//! References: names for buckets, and who may read them.
//!
//! Whether a reference may be read is part of the one statement that finds it, so that one that may not be read and
//! one that does not exist cost the same and look the same.

use bucket::{Head, Log};
use format::entry::SignedEntry;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use types::{BucketId, EntryHash, Name, PublicKey};

use super::log::insert_entries;
use super::{Account, Db, DbError, audit, bytes32, number, unsigned};

/// A reference that the asker may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) id: i64,
    pub(crate) account: Name,
    pub(crate) name: Name,
    pub(crate) bucket: BucketId,
    pub(crate) public: bool,
    pub(crate) head: Head,
    pub(crate) log_bytes: u64,
    pub(crate) account_id: i64,
}

/// What is to be claimed.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) owner: &'a Account,
    pub(crate) name: &'a Name,
    pub(crate) public: bool,
    /// The verified beginning of the bucket's log.
    pub(crate) log: &'a Log,
    /// The Indexer's key, which grants to its accounts name.
    pub(crate) indexer: PublicKey,
    /// The most references that an account may have.
    pub(crate) limit: u64,
}

/// The outcome of a claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// The reference is new.
    New(Reference),
    /// It was there, for the same bucket.
    Again(Reference),
    /// The name is taken by another bucket of the account.
    Taken,
    /// The account has too many.
    TooMany,
}

/// The columns that [`reference`] reads, and the tables that they are of.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, a.name, r.name, r.bucket, r.is_public, r.length, r.head, r.log_bytes, r.account_id ",
            "FROM bucket_references r JOIN accounts a ON a.id = r.account_id ",
            $rest
        )
    };
}

impl Db {
    /// Finds a reference, if the caller (`None`: someone without a token) may read it.
    pub(crate) async fn readable(
        &self,
        caller: Option<&Account>,
        account: &Name,
        name: &Name,
    ) -> Result<Option<Reference>, DbError> {
        const SELECT: &str = select!(
            "WHERE a.name = $1 AND r.name = $2 AND (r.is_public = 1 OR r.account_id = $3 OR EXISTS \
            (SELECT 1 FROM grants g WHERE g.reference_id = r.id AND g.account = $4))"
        );
        let (id, caller) = caller.map_or((-1, ""), |caller| (caller.id, caller.name.as_str()));
        let select = sqlx::query(SELECT).bind(account.as_str()).bind(name.as_str()).bind(id).bind(caller);
        select.fetch_optional(&self.pool).await?.map(|row| reference(&row)).transpose()
    }

    /// An account's own references by name, after a name, at most `limit`.
    pub(crate) async fn references_of(
        &self,
        owner: &Account,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Reference>, DbError> {
        const SELECT: &str = select!("WHERE r.account_id = $1 AND r.name > $2 ORDER BY r.name LIMIT $3");
        let select = sqlx::query(SELECT).bind(owner.id).bind(after).bind(i64::from(limit));
        select.fetch_all(&self.pool).await?.iter().map(reference).collect()
    }

    /// Claims a reference.
    pub(crate) async fn claim(&self, claim: Claim<'_>, now_ms: u64) -> Result<Claimed, DbError> {
        let mut transaction = self.begin().await?;
        if let Some(known) = own(&mut transaction, claim.owner, claim.name).await? {
            let first: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT entry FROM entries WHERE reference_id = $1 AND sequence = 0")
                    .bind(known.id)
                    .fetch_optional(&mut *transaction)
                    .await?;
            let same = first.as_deref().is_some_and(|first| {
                SignedEntry::decode(first).is_ok_and(|first| Some(first.hash()) == claim.log.hash_at(0))
            });
            if known.bucket != claim.log.bucket() || !same {
                return Ok(Claimed::Taken);
            }
            set_public(&mut transaction, claim.owner, &known, claim.public, now_ms).await?;
            transaction.commit().await?;
            return Ok(Claimed::Again(Reference { public: claim.public, ..known }));
        }
        let count = "SELECT COUNT(*) FROM bucket_references WHERE account_id = $1";
        let count: i64 = sqlx::query_scalar(count).bind(claim.owner.id).fetch_one(&mut *transaction).await?;
        if unsigned(count) >= claim.limit {
            return Ok(Claimed::TooMany);
        }
        let head = claim.log.head();
        let log_bytes = claim.log.entries().iter().map(|entry| entry.encode().len() as u64).sum();
        let insert = "INSERT INTO bucket_references \
            (account_id, name, bucket, is_public, length, log_bytes, head, created_ms) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id";
        let insert = sqlx::query_scalar(insert).bind(claim.owner.id).bind(claim.name.as_str());
        let insert = insert.bind(claim.log.bucket().0.to_vec()).bind(i64::from(claim.public));
        let insert = insert.bind(number(claim.log.length())).bind(number(log_bytes));
        let insert = insert.bind(head.hash.0.to_vec()).bind(number(now_ms));
        let id: i64 = insert.fetch_one(&mut *transaction).await?;
        insert_entries(&mut transaction, id, 0, claim.log.entries(), claim.indexer).await?;
        let target = format!("{}/{}", claim.owner.name, claim.name);
        audit(&mut transaction, now_ms, claim.owner.name.as_str(), "claim", &target).await?;
        let claimed = own(&mut transaction, claim.owner, claim.name).await?;
        transaction.commit().await?;
        Ok(Claimed::New(claimed.ok_or(DbError::Damaged("a claim"))?))
    }

    /// Makes an own reference public or private.
    pub(crate) async fn set_public(
        &self,
        owner: &Account,
        known: &Reference,
        public: bool,
        now_ms: u64,
    ) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        set_public(&mut transaction, owner, known, public, now_ms).await?;
        Ok(transaction.commit().await?)
    }

    /// Removes an own reference with its log.
    pub(crate) async fn release(&self, owner: &Account, known: &Reference, now_ms: u64) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        let delete = sqlx::query("DELETE FROM bucket_references WHERE id = $1 AND account_id = $2");
        delete.bind(known.id).bind(owner.id).execute(&mut *transaction).await?;
        let target = format!("{}/{}", known.account, known.name);
        audit(&mut transaction, now_ms, owner.name.as_str(), "release", &target).await?;
        Ok(transaction.commit().await?)
    }
}

async fn own(connection: &mut SqliteConnection, owner: &Account, name: &Name) -> Result<Option<Reference>, DbError> {
    const SELECT: &str = select!("WHERE r.account_id = $1 AND r.name = $2");
    let select = sqlx::query(SELECT).bind(owner.id).bind(name.as_str());
    select.fetch_optional(connection).await?.map(|row| reference(&row)).transpose()
}

async fn set_public(
    connection: &mut SqliteConnection,
    owner: &Account,
    known: &Reference,
    public: bool,
    now_ms: u64,
) -> Result<(), DbError> {
    if known.public == public {
        return Ok(());
    }
    let update = sqlx::query("UPDATE bucket_references SET is_public = $1 WHERE id = $2 AND account_id = $3");
    update.bind(i64::from(public)).bind(known.id).bind(owner.id).execute(&mut *connection).await?;
    let action = if public { "make public" } else { "make private" };
    audit(connection, now_ms, owner.name.as_str(), action, &format!("{}/{}", known.account, known.name)).await
}

fn reference(row: &SqliteRow) -> Result<Reference, DbError> {
    let name = |column: usize| -> Result<Name, DbError> {
        let text: String = row.try_get(column)?;
        text.parse().map_err(|_| DbError::Damaged("a name"))
    };
    let length = unsigned(row.try_get(5)?);
    let hash = EntryHash(bytes32(row.try_get(6)?, "a hash")?);
    let sequence = length.checked_sub(1).ok_or(DbError::Damaged("an empty log"))?;
    Ok(Reference {
        id: row.try_get(0)?,
        account: name(1)?,
        name: name(2)?,
        bucket: BucketId(bytes32(row.try_get(3)?, "a bucket's id")?),
        public: row.try_get::<i64, _>(4)? != 0,
        head: Head { sequence, hash },
        log_bytes: unsigned(row.try_get(7)?),
        account_id: row.try_get(8)?,
    })
}
