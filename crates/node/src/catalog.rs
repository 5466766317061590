//! The catalog: a SQLite database of what lists are answered from and of the history of tasks.
//!
//! It is derived: versions are written again from the buckets' logs and records whenever they change and at every
//! start, so a damaged catalog is moved aside and made anew. Only the history of tasks is lost with it. SQL stands in
//! this module only.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::Row;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use crate::api::{Snapshot, SnapshotState, Task, TaskState};

/// The version of the tables. A catalog of another version is made anew.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE task (id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, value TEXT NOT NULL) STRICT;
CREATE INDEX task_state ON task (state);
CREATE TABLE version (
    bucket TEXT NOT NULL, object TEXT NOT NULL, version INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (bucket, object, version)
) STRICT, WITHOUT ROWID;
";

/// How many ended tasks are remembered.
const TASKS_KEPT: i64 = 10_000;

/// The catalog failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The database failed.
    #[error("the catalog {path} failed")]
    Database {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A damaged catalog could not be moved aside.
    #[error("the damaged catalog {path} could not be moved aside")]
    Aside {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A row was not what this version writes.
    #[error("a row of the catalog is damaged")]
    Row(#[from] serde_json::Error),
}

impl CatalogError {
    /// Whether there was no room.
    pub(crate) fn is_full(&self) -> bool {
        /// What SQLite says then (`SQLITE_FULL`, <https://sqlite.org/rescode.html#full>).
        const FULL: &str = "13";
        let Self::Database { source: sqlx::Error::Database(error), .. } = self else { return false };
        error.code().is_some_and(|code| code == FULL)
    }
}

/// The node's catalog.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    pool: SqlitePool,
    path: PathBuf,
}

impl Catalog {
    /// Opens the catalog in a file, or makes one. A damaged one is moved aside, with a warning.
    ///
    /// # Errors
    /// When none can be opened or made.
    pub(crate) async fn open(path: &Path) -> Result<Self, CatalogError> {
        match Self::try_open(path).await {
            Ok(catalog) => Ok(catalog),
            Err(error) if path.exists() => {
                let aside = path.with_extension("damaged");
                tracing::warn!(%error, aside = %aside.display(), "the catalog is damaged: it is made anew");
                for suffix in ["", "-wal", "-shm"] {
                    let name = |base: &Path| PathBuf::from(format!("{}{suffix}", base.display()));
                    if name(path).exists() {
                        let failed = |source| CatalogError::Aside { path: path.to_owned(), source };
                        std::fs::rename(name(path), name(&aside)).map_err(failed)?;
                    }
                }
                Self::try_open(path).await
            }
            Err(error) => Err(error),
        }
    }

    async fn try_open(path: &Path) -> Result<Self, CatalogError> {
        let failed = |source| CatalogError::Database { path: path.to_owned(), source };
        let options = SqliteConnectOptions::from_str("sqlite:")
            .map_err(failed)?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await.map_err(failed)?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&pool).await.map_err(failed)?;
        match version {
            0 => {
                sqlx::raw_sql(TABLES).execute(&pool).await.map_err(failed)?;
                let set = format!("PRAGMA user_version = {VERSION}");
                sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&pool).await.map_err(failed)?;
            }
            VERSION => {
                let sound: String =
                    sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&pool).await.map_err(failed)?;
                if sound != "ok" {
                    return Err(failed(sqlx::Error::Protocol(sound)));
                }
            }
            other => return Err(failed(sqlx::Error::Protocol(format!("tables of version {other}")))),
        }
        Ok(Self { pool, path: path.to_owned() })
    }

    fn failed(&self, source: sqlx::Error) -> CatalogError {
        CatalogError::Database { path: self.path.clone(), source }
    }

    /// Adds a task and returns its number. The task's own `id` is not used.
    pub(crate) async fn add_task(&self, task: &Task) -> Result<u64, CatalogError> {
        let added = sqlx::query("INSERT INTO task (state, value) VALUES (?, ?)")
            .bind(state_name(task.state))
            .bind(serde_json::to_string(task)?)
            .execute(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(added.last_insert_rowid().cast_unsigned())
    }

    /// Writes what became of a task, and forgets the oldest ended ones.
    pub(crate) async fn update_task(&self, task: &Task) -> Result<(), CatalogError> {
        let id = task.id.cast_signed();
        sqlx::query("UPDATE task SET state = ?, value = ? WHERE id = ?")
            .bind(state_name(task.state))
            .bind(serde_json::to_string(task)?)
            .bind(id)
            .execute(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        sqlx::query("DELETE FROM task WHERE id < ? AND state <> 'running'")
            .bind(id - TASKS_KEPT)
            .execute(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(())
    }

    /// The latest tasks, newest first, at most `limit`.
    pub(crate) async fn tasks(&self, limit: u32) -> Result<Vec<Task>, CatalogError> {
        let rows = sqlx::query("SELECT id, value FROM task ORDER BY id DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        rows.iter().map(|row| self.task(row)).collect()
    }

    /// A task by number.
    pub(crate) async fn find_task(&self, id: u64) -> Result<Option<Task>, CatalogError> {
        let row = sqlx::query("SELECT id, value FROM task WHERE id = ?")
            .bind(id.cast_signed())
            .fetch_optional(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        row.map(|row| self.task(&row)).transpose()
    }

    /// The tasks that were running when the node last stopped.
    pub(crate) async fn unfinished_tasks(&self) -> Result<Vec<Task>, CatalogError> {
        let rows = sqlx::query("SELECT id, value FROM task WHERE state = 'running' ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(|source| self.failed(source))?;
        rows.iter().map(|row| self.task(row)).collect()
    }

    fn task(&self, row: &sqlx::sqlite::SqliteRow) -> Result<Task, CatalogError> {
        let id: i64 = row.try_get(0).map_err(|source| self.failed(source))?;
        let value: &str = row.try_get(1).map_err(|source| self.failed(source))?;
        Ok(Task { id: id.cast_unsigned(), ..serde_json::from_str(value)? })
    }

    /// Writes all versions of a bucket anew.
    pub(crate) async fn replace_versions(&self, bucket: &str, versions: &[Snapshot]) -> Result<(), CatalogError> {
        let failed = |source| self.failed(source);
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        sqlx::query("DELETE FROM version WHERE bucket = ?")
            .bind(bucket)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        for snapshot in versions {
            sqlx::query("INSERT INTO version (bucket, object, version, value) VALUES (?, ?, ?, ?)")
                .bind(bucket)
                .bind(snapshot.object.as_str())
                .bind(snapshot.version.cast_signed())
                .bind(serde_json::to_string(snapshot)?)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// The versions of a bucket, or of all, by bucket, object and version.
    pub(crate) async fn versions(&self, bucket: Option<&str>) -> Result<Vec<Snapshot>, CatalogError> {
        let rows =
            sqlx::query("SELECT value FROM version WHERE ?1 IS NULL OR bucket = ?1 ORDER BY bucket, object, version")
                .bind(bucket)
                .fetch_all(&self.pool)
                .await
                .map_err(|source| self.failed(source))?;
        let decode = |row: &sqlx::sqlite::SqliteRow| {
            let value: &str = row.try_get(0).map_err(|source| self.failed(source))?;
            Ok(serde_json::from_str(value)?)
        };
        rows.iter().map(decode).collect()
    }

    /// Closes the database.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "running",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
        TaskState::Interrupted => "interrupted",
    }
}

/// A version is listed as sealed once its id is known.
pub(crate) fn state_of(retired: bool, sealed: bool) -> SnapshotState {
    match (retired, sealed) {
        (true, _) => SnapshotState::Retired,
        (false, true) => SnapshotState::Sealed,
        (false, false) => SnapshotState::Sealing,
    }
}
