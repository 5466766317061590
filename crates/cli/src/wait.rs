//! Long jobs: waiting for a task with its progress on standard error, and cancelling it by Ctrl-C.
//!
//! Where a command started the task, the first Ctrl-C asks the node to cancel it and waits for that, and a second one
//! leaves the task to itself; a command that only watches leaves it at once. A terminal shows a bar, anything else a line
//! every few seconds.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use node::api::{ApiError, ErrorCode, Task, TaskKind};
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::text::{percent, size, span};
use crate::output::{self, now_ms};

/// How often a bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Whether to wait for a job.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Detach {
    /// Print the task and return at once, without waiting for its end
    #[arg(long, visible_alias = "no-wait")]
    pub(crate) detach: bool,
}

/// What Ctrl-C does to a task that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// It cancels the task; a second one leaves it.
    Cancels,
    /// It leaves the task, which goes on.
    Leaves,
}

/// Waits for a task that was just started and shows what came of it; or only shows the task.
pub(crate) async fn finish(context: &Context, task: Task, detach: Detach) -> Outcome {
    if detach.detach {
        return context.output.show(&task, |_| {
            format!("task {} runs: {}\nwait for it with: brant task wait {}", task.id, describe(&task), task.id)
        });
    }
    let task = until_end(context, task, Interrupt::Cancels).await?;
    context.output.show(&task, |_| sentence(&task))
}

/// Waits for a task to end well.
pub(crate) async fn until_end(context: &Context, task: Task, interrupt: Interrupt) -> Outcome<Task> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| Failure::of_service(&anyhow::Error::from(error)))?;
    let reporter = Reporter::start(&task);
    let waiting = context.client.wait_for_task(task.id, reporter.interval(), |task| reporter.show(task));
    tokio::pin!(waiting);
    let mut cancelling = false;
    let ended = loop {
        tokio::select! {
            ended = &mut waiting => break ended,
            _ = interrupts.recv() => {
                if cancelling || interrupt == Interrupt::Leaves {
                    reporter.clear();
                    output::progress(&format!("task {} goes on; wait for it with: brant task wait {}", task.id, task.id));
                    return Err(Failure::Interrupted);
                }
                cancelling = true;
                reporter.say(&format!("cancelling task {}; press Ctrl-C again to leave it to itself", task.id));
                let client = context.client.clone();
                // That it fails is seen by the waiting, which fails too.
                tokio::spawn(async move { client.cancel_task(task.id).await });
            }
        }
    };
    reporter.clear();
    let ended = ended.map_err(|error| lost(error, task.id))?;
    Ok(ended.into_result()?)
}

/// What it means that a task is out of sight.
fn lost(error: ApiError, id: u64) -> ApiError {
    if error.code != ErrorCode::Unreachable {
        return error;
    }
    ApiError::new(ErrorCode::Unreachable, format!("the node went away while task {id} ran: {}", error.message))
        .hint(format!("when it is back: brant task show {id}; an import is just run again"))
}

/// What a task does, for people.
pub(crate) fn describe(task: &Task) -> String {
    let verb = match task.kind {
        TaskKind::Import => "import into",
        TaskKind::Materialize => "write",
        TaskKind::Seal => "seal",
        TaskKind::Hydrate => "hydrate",
        TaskKind::Collect => "collect",
        TaskKind::Scrub => "scrub",
        TaskKind::Take => "take",
    };
    format!("{verb} {}", task.subject)
}

/// What came of a task that ended well, for people: one sentence with the bytes that moved and the time it took.
pub(crate) fn sentence(task: &Task) -> String {
    let took = span(Duration::from_millis(task.ended_ms.unwrap_or(task.started_ms).saturating_sub(task.started_ms)));
    let result = task.result.as_deref().unwrap_or(&task.subject);
    let moved = size(task.moved_bytes);
    match task.kind {
        TaskKind::Import => format!("imported {result} ({took})"),
        TaskKind::Materialize => format!("wrote {result} ({took})"),
        TaskKind::Seal => format!("sealed {}: {moved} stored ({took})", task.subject),
        TaskKind::Collect | TaskKind::Scrub => format!("{result} ({took})"),
        TaskKind::Hydrate => format!("hydrated {}: {moved} received ({took})", task.subject),
        TaskKind::Take => format!("{result}: {moved} received ({took})"),
    }
}

/// How far a task is, for people.
pub(crate) fn extent(task: &Task) -> String {
    let moved = match task.kind {
        TaskKind::Import | TaskKind::Seal => format!("{} stored", size(task.moved_bytes)),
        TaskKind::Collect => format!("{} written anew", size(task.moved_bytes)),
        TaskKind::Scrub => format!("{} read", size(task.done_bytes)),
        TaskKind::Materialize => format!("{} written", size(task.moved_bytes)),
        TaskKind::Hydrate | TaskKind::Take => format!("{} received", size(task.moved_bytes)),
    };
    if task.total_bytes == 0 {
        return format!("{}, {moved}", size(task.done_bytes));
    }
    let part = percent(task.done_bytes, task.total_bytes);
    format!("{part}% of {}, {moved}", size(task.total_bytes))
}

/// Shows progress on standard error.
struct Reporter {
    bar: Option<ProgressBar>,
    next_line: Cell<Instant>,
}

impl Reporter {
    fn start(task: &Task) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(task));
        // What ends soon prints no line at all.
        Self { bar, next_line: Cell::new(Instant::now() + LINE_INTERVAL) }
    }

    fn interval(&self) -> Duration {
        if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL }
    }

    fn show(&self, task: &Task) {
        if let Some(bar) = &self.bar {
            if task.total_bytes > 0 {
                bar.set_length(task.total_bytes);
            }
            bar.set_position(task.done_bytes);
            bar.set_message(format!("{}{}", extent(task), left(task, now_ms())));
        } else if Instant::now() >= self.next_line.get() {
            self.next_line.set(Instant::now() + LINE_INTERVAL);
            output::progress(&format!("{}: {}", describe(task), extent(task)));
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::progress(text)),
            None => output::progress(text),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(task: &Task) -> ProgressBar {
    let bar = if task.total_bytes == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(task.total_bytes) };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:12}] {wide_msg}") {
        bar.set_style(style.progress_chars("##-"));
    }
    bar.set_prefix(describe(task));
    bar
}

/// How long it may still take, once there is something to judge by.
fn left(task: &Task, now_ms: u64) -> String {
    let elapsed_ms = now_ms.saturating_sub(task.started_ms);
    if task.done_bytes == 0 || task.done_bytes >= task.total_bytes || elapsed_ms < 2000 {
        return String::new();
    }
    let rest = u128::from(task.total_bytes - task.done_bytes);
    let left_ms = u128::from(elapsed_ms) * rest / u128::from(task.done_bytes);
    format!(", {} left", span(Duration::from_millis(u64::try_from(left_ms).unwrap_or(u64::MAX))))
}

#[cfg(test)]
mod tests {
    use node::api::TaskState;

    use super::*;

    fn task(kind: TaskKind) -> Task {
        Task {
            id: 12,
            kind,
            subject: "vms/web".to_owned(),
            state: TaskState::Done,
            started_ms: 1_000_000,
            ended_ms: Some(1_041_000),
            total_bytes: 10 << 30,
            done_bytes: 5 << 30,
            moved_bytes: 812 << 20,
            result: Some("vms/web@1: 10 GiB disk, 3 new chunks, 812 MiB stored".to_owned()),
            error: None,
        }
    }

    #[test]
    fn the_result_says_what_moved_and_how_long_it_took() {
        let text = sentence(&task(TaskKind::Import));
        assert_eq!(text, "imported vms/web@1: 10 GiB disk, 3 new chunks, 812 MiB stored (41 s)");
        assert_eq!(sentence(&task(TaskKind::Hydrate)), "hydrated vms/web: 812 MiB received (41 s)");
    }

    #[test]
    fn progress_says_how_far_and_how_long() {
        let mut task = task(TaskKind::Import);
        assert_eq!(extent(&task), "50% of 10 GiB, 812 MiB stored");
        assert_eq!(left(&task, 1_060_000), ", 1 min 0 s left");
        task.total_bytes = 0;
        assert_eq!(extent(&task), "5 GiB, 812 MiB stored");
        assert_eq!(left(&task, 1_060_000), "", "nobody knows");
    }

    #[test]
    fn a_lost_node_says_how_to_go_on() {
        let error = lost(ApiError::new(ErrorCode::Unreachable, "no node answers"), 12);
        assert!(error.hint.is_some_and(|hint| hint.contains("brant task show 12")));
        assert_eq!(lost(ApiError::new(ErrorCode::Full, "full"), 12).code, ErrorCode::Full);
    }
}
