//! Accounts and the hashes of their tokens.

use sqlx::Row;
use types::Name;

use super::{Db, DbError, audit, number};
use crate::token;

/// An account that showed a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) id: i64,
    pub(crate) name: Name,
}

impl Db {
    /// Makes an account with a first token; `false` where the name is taken.
    pub(crate) async fn add_account(
        &self,
        name: &Name,
        token: &str,
        expires_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<bool, DbError> {
        let mut transaction = self.begin().await?;
        let insert = "INSERT INTO accounts (name, created_ms) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        let insert = sqlx::query(insert).bind(name.as_str()).bind(number(now_ms));
        if insert.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(false);
        }
        insert_token(&mut transaction, name, token, expires_ms, now_ms).await?;
        audit(&mut transaction, now_ms, name.as_str(), "account add", "").await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Gives an account another token in place of all it had; `false` where there is no such account.
    pub(crate) async fn rotate_token(
        &self,
        name: &Name,
        token: &str,
        expires_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<bool, DbError> {
        let mut transaction = self.begin().await?;
        let delete = "DELETE FROM tokens WHERE account_id = (SELECT id FROM accounts WHERE name = $1)";
        sqlx::query(delete).bind(name.as_str()).execute(&mut *transaction).await?;
        if !insert_token(&mut transaction, name, token, expires_ms, now_ms).await? {
            return Ok(false);
        }
        audit(&mut transaction, now_ms, name.as_str(), "token rotate", "").await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes an account with its references; `false` where there is none.
    pub(crate) async fn remove_account(&self, name: &Name, now_ms: u64) -> Result<bool, DbError> {
        let mut transaction = self.begin().await?;
        let delete = sqlx::query("DELETE FROM accounts WHERE name = $1").bind(name.as_str());
        if delete.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(false);
        }
        audit(&mut transaction, now_ms, name.as_str(), "account remove", "").await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// All accounts by name: name, when it was made, and the number of its references.
    pub(crate) async fn accounts(&self) -> Result<Vec<(Name, u64, u64)>, DbError> {
        let select = "SELECT a.name, a.created_ms, COUNT(r.id) FROM accounts a \
            LEFT JOIN bucket_references r ON r.account_id = a.id GROUP BY a.id, a.name, a.created_ms ORDER BY a.name";
        let rows = sqlx::query(select).fetch_all(&self.pool).await?;
        let account = |row: &sqlx::sqlite::SqliteRow| {
            let name: String = row.try_get(0)?;
            let name = name.parse().map_err(|_| DbError::Damaged("an account's name"))?;
            Ok((name, super::unsigned(row.try_get(1)?), super::unsigned(row.try_get(2)?)))
        };
        rows.iter().map(account).collect()
    }

    /// Whose token this is, if it is valid now.
    pub(crate) async fn authenticate(&self, token: &str, now_ms: u64) -> Result<Option<Account>, DbError> {
        let select = "SELECT a.id, a.name FROM tokens t JOIN accounts a ON a.id = t.account_id \
            WHERE t.hash = $1 AND (t.expires_ms IS NULL OR t.expires_ms > $2)";
        let select = sqlx::query(select).bind(token::hash(token).to_vec()).bind(number(now_ms));
        let Some(row) = select.fetch_optional(&self.pool).await? else { return Ok(None) };
        let name: String = row.try_get(1)?;
        let name = name.parse().map_err(|_| DbError::Damaged("an account's name"))?;
        Ok(Some(Account { id: row.try_get(0)?, name }))
    }

    /// The newest changes, newest first: time, account, action, target.
    pub(crate) async fn audit_trail(&self, limit: u32) -> Result<Vec<(u64, String, String, String)>, DbError> {
        let select = "SELECT time_ms, account, action, target FROM audit ORDER BY id DESC LIMIT $1";
        let rows = sqlx::query(select).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        let change = |row: &sqlx::sqlite::SqliteRow| {
            Ok((super::unsigned(row.try_get(0)?), row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        };
        rows.iter().map(change).collect()
    }
}

async fn insert_token(
    connection: &mut sqlx::SqliteConnection,
    account: &Name,
    token: &str,
    expires_ms: Option<u64>,
    now_ms: u64,
) -> Result<bool, DbError> {
    let insert = "INSERT INTO tokens (hash, account_id, created_ms, expires_ms) \
        SELECT $1, id, $2, $3 FROM accounts WHERE name = $4";
    let insert = sqlx::query(insert).bind(token::hash(token).to_vec()).bind(number(now_ms));
    let insert = insert.bind(expires_ms.map(number)).bind(account.as_str());
    Ok(insert.execute(connection).await?.rows_affected() == 1)
}
