//! The database: all SQL of the Indexer is in this module. SQLite now; the statements are plain enough for PostgreSQL.
//!
//! What a method has returned `Ok` for is durable (WAL, `synchronous=FULL`). Changes of several rows are one
//! transaction. The file holds the Indexer's secret key, and is of mode 0600.

mod accounts;
mod endpoints;
mod log;
mod providers;
mod references;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bucket::Signer;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, Sqlite, SqliteConnection, Transaction};
use zeroize::Zeroizing;

pub(crate) use self::accounts::Account;
pub(crate) use self::endpoints::PutEndpoint;
pub(crate) use self::log::{Appended, NewEntries};
pub(crate) use self::providers::{Announce, Announcing};
pub(crate) use self::references::{Claim, Claimed, Reference};

/// How long a connection waits for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// Not a database that is supported.
    #[error("{0:?} is not a database of an Indexer: write sqlite:FILE")]
    Scheme(String),
    /// The file cannot be used.
    #[error("could not {operation} the database {}", path.display())]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read the file, which holds a secret key.
    #[error("the database {} has mode {mode:04o}, so that others may read the Indexer's key: chmod 600 it", path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The database cannot be opened or is not one of an Indexer.
    #[error("could not open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The database is of another version, or its tables cannot be made.
    #[error("could not bring the tables up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("a statement failed")]
    Statement(#[from] sqlx::Error),
    /// A row holds what cannot be.
    #[error("the database holds {0} that cannot be")]
    Damaged(&'static str),
    /// There is no randomness for a key or a token.
    #[error("no random numbers from the system")]
    Random(#[source] io::Error),
}

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    pool: SqlitePool,
}

impl Db {
    /// Opens a database, and makes it where there is none, with its directory.
    pub(crate) async fn open(database: &str) -> Result<Self, DbError> {
        let path = path_of(database)?;
        make_private(&path)?;
        Self::connect(path).await
    }

    /// Opens a database that there is.
    pub(crate) async fn open_existing(database: &str) -> Result<Self, DbError> {
        let path = path_of(database)?;
        fs::metadata(&path).map_err(|source| DbError::File { operation: "find", path: path.clone(), source })?;
        make_private(&path)?;
        Self::connect(path).await
    }

    async fn connect(path: PathBuf) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(8).acquire_timeout(BUSY_TIMEOUT);
        let pool = pool.connect_with(options).await.map_err(|source| DbError::Open { path, source })?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Waits for running statements and closes the files.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Begins a transaction that will write: SQLite must know it from the start.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, DbError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// The key that the Indexer certifies with; made at the first time.
    pub(crate) async fn signer(&self) -> Result<Signer, DbError> {
        let mut transaction = self.begin().await?;
        let select = "SELECT value FROM settings WHERE name = 'signing_key'";
        let kept = sqlx::query(select).fetch_optional(&mut *transaction).await?;
        if let Some(row) = kept {
            let seed = Zeroizing::new(row.try_get::<Vec<u8>, _>(0)?);
            let seed = Zeroizing::new(<[u8; 32]>::try_from(&seed[..]).map_err(|_| DbError::Damaged("a signing key"))?);
            return Ok(Signer::from_seed(&seed));
        }
        let signer = Signer::generate().map_err(|error| DbError::Random(io::Error::other(error.to_string())))?;
        let insert = "INSERT INTO settings (name, value) VALUES ('signing_key', $1)";
        sqlx::query(insert).bind(signer.seed().to_vec()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(signer)
    }
}

/// Notes a change in the audit table.
async fn audit(
    connection: &mut SqliteConnection,
    now_ms: u64,
    account: &str,
    action: &'static str,
    target: &str,
) -> Result<(), DbError> {
    tracing::info!(account, action, target, "changed");
    let insert = "INSERT INTO audit (time_ms, account, action, target) VALUES ($1, $2, $3, $4)";
    let insert = sqlx::query(insert).bind(number(now_ms)).bind(account).bind(action).bind(target);
    insert.execute(connection).await?;
    Ok(())
}

/// Makes the file with mode 0600, so that SQLite's own files beside it get that too; refuses a looser one.
fn make_private(path: &Path) -> Result<(), DbError> {
    let error = |operation| move |source| DbError::File { operation, path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(error("make the directory of"))?;
    }
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Ok(_) => Ok(()),
        Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => {
            let mode = fs::metadata(path).map_err(error("open"))?.mode() & 0o7777;
            if mode & 0o077 == 0 { Ok(()) } else { Err(DbError::Loose { path: path.to_owned(), mode }) }
        }
        Err(source) => Err(error("create")(source)),
    }
}

/// The file of a database.
fn path_of(database: &str) -> Result<PathBuf, DbError> {
    let path = database.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
    let path = path.filter(|path| !path.is_empty() && !path.starts_with(":memory:"));
    path.map(PathBuf::from).ok_or_else(|| DbError::Scheme(without_secrets(database)))
}

/// A database URL without its user and password.
fn without_secrets(database: &str) -> String {
    match (database.split_once("://"), database.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => database.to_owned(),
    }
}

/// A number as databases keep it.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number out of the database.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// 32 bytes out of the database.
fn bytes32(value: &[u8], what: &'static str) -> Result<[u8; 32], DbError> {
    value.try_into().map_err(|_| DbError::Damaged(what))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_key_stays_and_the_file_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.db");
        let database = format!("sqlite:{}", path.display());
        let db = Db::open(&database).await.unwrap();
        let key = db.signer().await.unwrap().public_key();
        for file in fs::read_dir(directory.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        db.close().await;
        assert_eq!(Db::open(&database).await.unwrap().signer().await.unwrap().public_key(), key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Db::open(&database).await, Err(DbError::Loose { mode: 0o644, .. })));
    }

    #[tokio::test]
    async fn what_is_not_a_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not.db");
        fs::write(&path, "this is some text, and long enough to be looked at as a header, which it is not").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Db::open(&format!("sqlite:{}", path.display())).await.unwrap_err();
        assert!(matches!(error, DbError::Open { .. } | DbError::Migrate(_)), "{error:?}");
        for bad in ["", "sqlite:", "index.db", "sqlite::memory:", "postgres://me:secret@host/x"] {
            let error = Db::open(bad).await.unwrap_err();
            assert!(matches!(error, DbError::Scheme(_)) && !error.to_string().contains("secret"), "{error}");
        }
        let in_file = Db::open(&format!("sqlite:{}/index.db", path.display())).await.unwrap_err();
        assert!(matches!(in_file, DbError::File { operation: "make the directory of", .. }), "{in_file:?}");
    }

    #[tokio::test]
    async fn only_who_begins_with_it_makes_a_database() {
        let directory = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}/new/index.db", directory.path().display());
        let missing = Db::open_existing(&database).await.unwrap_err();
        assert!(matches!(missing, DbError::File { operation: "find", .. }), "{missing:?}");
        assert!(!directory.path().join("new").exists());
        Db::open(&database).await.unwrap().close().await;
        Db::open_existing(&database).await.unwrap();
    }
}
