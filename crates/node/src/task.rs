//! Tasks: work that takes time, with progress, cancelling, and a history that outlives the node.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use types::Progress;

use crate::api::{ApiError, ErrorCode, Task, TaskKind, TaskState};
use crate::catalog::Catalog;
use crate::error::catalog_error;

/// The time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What came of a task, in words, or why it failed.
pub(crate) type Outcome = Result<String, ApiError>;

#[derive(Debug)]
struct Running {
    task: Task,
    progress: Arc<Progress>,
    ended: watch::Receiver<bool>,
}

impl Running {
    fn snapshot(&self) -> Task {
        Task {
            total_bytes: self.progress.total_bytes(),
            done_bytes: self.progress.done_bytes(),
            moved_bytes: self.progress.moved_bytes(),
            ..self.task.clone()
        }
    }
}

/// The node's tasks.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    catalog: Catalog,
    running: Arc<Mutex<BTreeMap<u64, Running>>>,
    stopping: tokio_util::sync::CancellationToken,
    tracker: tokio_util::task::TaskTracker,
}

impl Tasks {
    pub(crate) fn new(catalog: Catalog, stopping: tokio_util::sync::CancellationToken) -> Self {
        Self { catalog, running: Arc::default(), stopping, tracker: tokio_util::task::TaskTracker::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task. `work` gets the progress to report to, and ends soon after it was cancelled.
    pub(crate) async fn start<W, F>(&self, kind: TaskKind, subject: String, work: W) -> Result<Task, ApiError>
    where
        W: FnOnce(Arc<Progress>) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut task = Task {
            id: 0,
            kind,
            subject,
            state: TaskState::Running,
            started_ms: now_ms(),
            ended_ms: None,
            total_bytes: 0,
            done_bytes: 0,
            moved_bytes: 0,
            result: None,
            error: None,
        };
        task.id = self.catalog.add_task(&task).await.map_err(catalog_error)?;
        self.run(task.clone(), work);
        Ok(task)
    }

    /// Goes on with a task that was running when the node stopped.
    pub(crate) fn resume<W, F>(&self, task: Task, work: W)
    where
        W: FnOnce(Arc<Progress>) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        self.run(task, work);
    }

    fn run<W, F>(&self, task: Task, work: W)
    where
        W: FnOnce(Arc<Progress>) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let progress = Arc::new(Progress::default());
        let (end, ended) = watch::channel(false);
        let work = work(Arc::clone(&progress));
        let id = task.id;
        self.lock().insert(id, Running { task, progress: Arc::clone(&progress), ended });
        let tasks = self.clone();
        self.tracker.spawn(async move {
            let outcome = tokio::select! {
                outcome = work => outcome,
                // Work that holds a thread sees the progress; work that waits is dropped a little later.
                () = cancelled(&progress) => Err(ApiError::new(ErrorCode::Cancelled, "cancelled")),
                () = tasks.stopping.cancelled() => {
                    progress.cancel();
                    tasks.lock().remove(&id);
                    return;
                }
            };
            tasks.finish(id, outcome).await;
            end.send_replace(true);
        });
    }

    async fn finish(&self, id: u64, outcome: Outcome) {
        let Some(mut task) = self.lock().get(&id).map(Running::snapshot) else { return };
        task.ended_ms = Some(now_ms());
        match outcome {
            Ok(result) => {
                task.state = TaskState::Done;
                task.result = Some(result);
            }
            Err(error) => {
                let cancelled = error.code == ErrorCode::Cancelled;
                task.state = if cancelled { TaskState::Cancelled } else { TaskState::Failed };
                task.error = Some(error);
            }
        }
        tracing::info!(task = id, kind = ?task.kind, subject = task.subject, state = ?task.state, "task ended");
        if let Err(error) = self.catalog.update_task(&task).await {
            tracing::warn!(%error, task = id, "the end of a task was not recorded");
        }
        self.lock().remove(&id);
    }

    /// Records that a task ended with the node that ran it.
    pub(crate) async fn interrupted(&self, mut task: Task) -> Result<(), ApiError> {
        task.state = TaskState::Interrupted;
        task.ended_ms = Some(now_ms());
        let error = ApiError::new(ErrorCode::Internal, "the node stopped while this ran");
        task.error = Some(error.hint("run the command again: what was stored is not stored twice"));
        self.catalog.update_task(&task).await.map_err(catalog_error)
    }

    /// A task, after waiting up to `wait` for its end.
    pub(crate) async fn find(&self, id: u64, wait: Duration) -> Result<Task, ApiError> {
        let ended = self.lock().get(&id).map(|running| running.ended.clone());
        if let Some(mut ended) = ended {
            // Ending, timing out, and the node's stopping all lead to a look at how far it is.
            drop(tokio::time::timeout(wait, ended.wait_for(|ended| *ended)).await);
        }
        if let Some(task) = self.lock().get(&id).map(Running::snapshot) {
            return Ok(task);
        }
        let found = self.catalog.find_task(id).await.map_err(catalog_error)?;
        found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no task {id}")))
    }

    /// The latest tasks, newest first.
    pub(crate) async fn list(&self) -> Result<Vec<Task>, ApiError> {
        let mut tasks = self.catalog.tasks(200).await.map_err(catalog_error)?;
        let running = self.lock();
        for task in &mut tasks {
            if let Some(running) = running.get(&task.id) {
                *task = running.snapshot();
            }
        }
        Ok(tasks)
    }

    /// The task of a kind that runs for a subject.
    pub(crate) fn find_running(&self, kind: TaskKind, subject: &str) -> Option<Task> {
        let running = self.lock();
        let fits = |running: &&Running| running.task.kind == kind && running.task.subject == subject;
        running.values().find(fits).map(Running::snapshot)
    }

    /// Whether one of a kind runs.
    pub(crate) fn is_running(&self, kind: TaskKind) -> bool {
        self.lock().values().any(|running| running.task.kind == kind)
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.lock().len()
    }

    /// Asks a task to stop.
    pub(crate) async fn cancel(&self, id: u64) -> Result<Task, ApiError> {
        if let Some(running) = self.lock().get(&id) {
            running.progress.cancel();
        }
        self.find(id, Duration::from_secs(5)).await
    }

    /// Waits until all work has noticed that the node stops.
    pub(crate) async fn close(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Resolves a moment after the work was asked to stop, so that work that checks by itself can end in order.
async fn cancelled(progress: &Progress) {
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    while !progress.is_cancelled() {
        interval.tick().await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
}
