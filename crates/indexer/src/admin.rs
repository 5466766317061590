//! The operator's side: accounts and tokens, directly on the database, also while the server runs.

use types::Name;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::db::{Db, DbError};
use crate::token;

/// Why an account was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The name is taken.
    #[error("there is an account {0} already")]
    Exists(Name),
    /// There is none of that name.
    #[error("there is no account {0}")]
    NoAccount(Name),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// An account, as its operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountInfo {
    /// Its name.
    pub name: Name,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How many references it has.
    pub references: u64,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// By which account.
    pub account: String,
    /// What, for example `append`.
    pub action: String,
    /// To what, for example `alice/vms`.
    pub target: String,
}

/// Makes an account and returns its token, which is shown this once: only a hash is kept.
///
/// # Errors
/// The name is taken, or the database failed.
pub async fn account_add(database: &str, name: &Name) -> Result<Zeroizing<String>, AdminError> {
    let (db, clock) = (Db::open(database).await?, Clock::system());
    let token = token::generate().map_err(DbError::Random)?;
    let added = db.add_account(name, &token, None, clock.now_ms()).await;
    db.close().await;
    if added? { Ok(token) } else { Err(AdminError::Exists(name.clone())) }
}

/// Gives an account a new token in place of all it had, valid for `valid_ms` milliseconds or for ever.
///
/// # Errors
/// There is no such account, or the database failed.
pub async fn token_rotate(database: &str, name: &Name, valid_ms: Option<u64>) -> Result<Zeroizing<String>, AdminError> {
    let (db, now_ms) = (Db::open_existing(database).await?, Clock::system().now_ms());
    let token = token::generate().map_err(DbError::Random)?;
    let expires_ms = valid_ms.map(|valid_ms| now_ms.saturating_add(valid_ms));
    let rotated = db.rotate_token(name, &token, expires_ms, now_ms).await;
    db.close().await;
    if rotated? { Ok(token) } else { Err(AdminError::NoAccount(name.clone())) }
}

/// Removes an account with its tokens, references and their logs.
///
/// # Errors
/// There is no such account, or the database failed.
pub async fn account_remove(database: &str, name: &Name) -> Result<(), AdminError> {
    let db = Db::open_existing(database).await?;
    let removed = db.remove_account(name, Clock::system().now_ms()).await;
    db.close().await;
    if removed? { Ok(()) } else { Err(AdminError::NoAccount(name.clone())) }
}

/// All accounts, by name.
///
/// # Errors
/// The database failed.
pub async fn account_list(database: &str) -> Result<Vec<AccountInfo>, AdminError> {
    let db = Db::open_existing(database).await?;
    let accounts = db.accounts().await;
    db.close().await;
    let info = |(name, created_ms, references)| AccountInfo { name, created_ms, references };
    Ok(accounts?.into_iter().map(info).collect())
}

/// The newest changes, newest first, at most `limit`.
///
/// # Errors
/// The database failed.
pub async fn audit(database: &str, limit: u32) -> Result<Vec<Change>, AdminError> {
    let db = Db::open_existing(database).await?;
    let changes = db.audit_trail(limit).await;
    db.close().await;
    let change = |(time_ms, account, action, target)| Change { time_ms, account, action, target };
    Ok(changes?.into_iter().map(change).collect())
}
