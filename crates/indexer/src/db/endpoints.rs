//! Where endpoints are, in their own signed words; and what has grown old.

use bucket::Signed;
use types::EndpointId;

use super::{Account, Db, DbError, number, unsigned};
use crate::address::SignedAddressRecord;

/// How long an address record is kept after its last change, in milliseconds.
const RECORD_AGE_MS: u64 = 30 * 24 * 3600 * 1000;

/// How long the audit trail is kept, in milliseconds.
const AUDIT_AGE_MS: u64 = 365 * 24 * 3600 * 1000;

/// The outcome of putting an address record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutEndpoint {
    /// It is the newest now.
    Done,
    /// A newer one, or another with the same sequence, is known.
    Older,
    /// The account has put too many.
    TooMany,
}

impl Db {
    /// Keeps a verified address record, if it is newer than what is known.
    pub(crate) async fn put_endpoint(
        &self,
        caller: &Account,
        endpoint: EndpointId,
        sequence: u64,
        record: &SignedAddressRecord,
        limit: u64,
        now_ms: u64,
    ) -> Result<PutEndpoint, DbError> {
        let mut transaction = self.begin().await?;
        // The same record again is no change, and no error.
        let upsert = "INSERT INTO endpoints (endpoint, account_id, sequence, record, updated_ms) \
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (endpoint) DO UPDATE SET account_id = excluded.account_id, \
            sequence = excluded.sequence, record = excluded.record, updated_ms = excluded.updated_ms \
            WHERE excluded.sequence > endpoints.sequence OR excluded.record = endpoints.record";
        let upsert = sqlx::query(upsert).bind(endpoint.0.to_vec()).bind(caller.id).bind(number(sequence));
        let upsert = upsert.bind(record.encode()).bind(number(now_ms));
        if upsert.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(PutEndpoint::Older);
        }
        let count = "SELECT COUNT(*) FROM endpoints WHERE account_id = $1";
        let count: i64 = sqlx::query_scalar(count).bind(caller.id).fetch_one(&mut *transaction).await?;
        if unsigned(count) > limit {
            return Ok(PutEndpoint::TooMany);
        }
        transaction.commit().await?;
        Ok(PutEndpoint::Done)
    }

    /// An endpoint's newest address record.
    pub(crate) async fn endpoint(&self, endpoint: EndpointId) -> Result<Option<SignedAddressRecord>, DbError> {
        let select = sqlx::query_scalar("SELECT record FROM endpoints WHERE endpoint = $1").bind(endpoint.0.to_vec());
        let record: Option<Vec<u8>> = select.fetch_optional(&self.pool).await?;
        record.map(|record| Signed::decode(&record).map_err(|_| DbError::Damaged("an address record"))).transpose()
    }

    /// Removes what has expired or grown old.
    pub(crate) async fn sweep(&self, now_ms: u64) -> Result<(), DbError> {
        let mut transaction = self.begin().await?;
        for (delete, before_ms) in [
            ("DELETE FROM providers WHERE expires_ms <= $1", now_ms),
            ("DELETE FROM endpoints WHERE updated_ms <= $1", now_ms.saturating_sub(RECORD_AGE_MS)),
            ("DELETE FROM audit WHERE time_ms <= $1", now_ms.saturating_sub(AUDIT_AGE_MS)),
        ] {
            sqlx::query(delete).bind(number(before_ms)).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }
}
