//! Who provides which snapshot, until when.

use sqlx::Row;
use types::{EndpointId, SnapshotId};

use super::{Account, Db, DbError, Reference, bytes32, number, unsigned};
use crate::announcement::Announced;
use crate::api::Provider;

/// What an endpoint announces.
#[derive(Debug)]
pub(crate) struct Announce<'a> {
    pub(crate) caller: &'a Account,
    pub(crate) reference: &'a Reference,
    pub(crate) endpoint: EndpointId,
    pub(crate) snapshots: &'a [Announced],
    /// Until when; in the past to take it back.
    pub(crate) expires_ms: u64,
    /// The most that one account may have announced.
    pub(crate) limit: u64,
}

/// The outcome of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announcing {
    /// It is known now.
    Done,
    /// The log has no such snapshot.
    Unknown(SnapshotId),
    /// The account has announced too much.
    TooMany,
}

impl Db {
    /// Notes what an endpoint provides; all or nothing.
    pub(crate) async fn announce(&self, announce: Announce<'_>, now_ms: u64) -> Result<Announcing, DbError> {
        let mut transaction = self.begin().await?;
        let (reference_id, endpoint) = (announce.reference.id, announce.endpoint.0.to_vec());
        if announce.expires_ms <= now_ms {
            let delete = "DELETE FROM providers WHERE reference_id = $1 AND snapshot = $2 AND endpoint = $3";
            for announced in announce.snapshots {
                let delete = sqlx::query(delete).bind(reference_id).bind(announced.snapshot.0.to_vec());
                delete.bind(&endpoint).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            return Ok(Announcing::Done);
        }
        let insert = "INSERT INTO providers (reference_id, snapshot, endpoint, account_id, complete, expires_ms) \
            SELECT $1, snapshot, $2, $3, $4, $5 FROM snapshots WHERE reference_id = $1 AND snapshot = $6 \
            ON CONFLICT (reference_id, snapshot, endpoint) DO UPDATE \
            SET account_id = excluded.account_id, complete = excluded.complete, expires_ms = excluded.expires_ms";
        for announced in announce.snapshots {
            let insert = sqlx::query(insert).bind(reference_id).bind(&endpoint).bind(announce.caller.id);
            let insert = insert.bind(i64::from(announced.complete)).bind(number(announce.expires_ms));
            let insert = insert.bind(announced.snapshot.0.to_vec());
            if insert.execute(&mut *transaction).await?.rows_affected() == 0 {
                return Ok(Announcing::Unknown(announced.snapshot));
            }
        }
        let count = "SELECT COUNT(*) FROM providers WHERE account_id = $1 AND expires_ms > $2";
        let count = sqlx::query_scalar(count).bind(announce.caller.id).bind(number(now_ms));
        let count: i64 = count.fetch_one(&mut *transaction).await?;
        if unsigned(count) > announce.limit {
            return Ok(Announcing::TooMany);
        }
        transaction.commit().await?;
        Ok(Announcing::Done)
    }

    /// Who provides a snapshot now; a random choice of at most `limit`.
    pub(crate) async fn providers(
        &self,
        reference: &Reference,
        snapshot: SnapshotId,
        limit: u32,
        now_ms: u64,
    ) -> Result<Vec<Provider>, DbError> {
        let select = "SELECT endpoint, complete FROM providers \
            WHERE reference_id = $1 AND snapshot = $2 AND expires_ms > $3 ORDER BY RANDOM() LIMIT $4";
        let select = sqlx::query(select).bind(reference.id).bind(snapshot.0.to_vec());
        let rows = select.bind(number(now_ms)).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        let provider = |row: &sqlx::sqlite::SqliteRow| {
            let endpoint = EndpointId(bytes32(row.try_get(0)?, "an endpoint's id")?);
            Ok(Provider { endpoint, complete: row.try_get::<i64, _>(1)? != 0 })
        };
        rows.iter().map(provider).collect()
    }
}
