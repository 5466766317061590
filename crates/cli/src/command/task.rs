//! `brant task`: everything that takes time, watched and cancelled.

use std::time::Duration;

use clap::Subcommand;
use node::api::{Task, TaskState};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{ago, moment, percent, size};
use crate::wait::{self, Interrupt, describe, extent};

/// List, show, wait for and cancel tasks: everything that takes time
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the tasks, the newest first
    #[command(after_long_help = "Example:\n  brant task list")]
    List,
    /// Show a task
    #[command(after_long_help = "Example:\n  brant task show 12")]
    Show {
        /// Its number
        #[arg(value_name = "TASK")]
        id: u64,
    },
    /// Wait for a task, with its progress
    ///
    /// Ends as the command that started it would have: with the task's error and its exit code where it failed.
    /// Ctrl-C ends only the waiting.
    #[command(after_long_help = "Example:\n  brant task wait 12")]
    Wait {
        /// Its number
        #[arg(value_name = "TASK")]
        id: u64,
    },
    /// Stop a task at its next safe point
    #[command(after_long_help = "Example:\n  brant task cancel 12")]
    Cancel {
        /// Its number
        #[arg(value_name = "TASK")]
        id: u64,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::List => {
            let tasks = client.tasks().await?;
            output.list(&tasks, "no tasks", |view| list(&tasks, view))
        }
        Verb::Show { id } => {
            let task = client.task(id, Duration::ZERO).await?;
            output.show(&task, |view| show(&task, view))
        }
        Verb::Wait { id } => {
            let task = client.task(id, Duration::ZERO).await?;
            let task = wait::until_end(context, task, Interrupt::Leaves).await?;
            output.show(&task, |_| wait::sentence(&task))
        }
        Verb::Cancel { id } => {
            let task = client.cancel_task(id).await?;
            output.show(&task, |_| match task.state {
                TaskState::Running => format!("task {id} will stop at its next safe point"),
                state => format!("task {id} is {}", state_word(state)),
            })
        }
    }
}

const fn state_word(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "running",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
        TaskState::Interrupted => "interrupted",
    }
}

fn list(tasks: &[Task], view: View) -> String {
    let mut table =
        Table::new().numbers("TASK").texts("WHAT").words("STATE").numbers("DONE").numbers("MOVED").words("STARTED");
    for task in tasks {
        let done = match (task.state, task.total_bytes) {
            (TaskState::Done, _) => "100%".to_owned(),
            (_, 0) => size(task.done_bytes),
            (_, total) => format!("{}%", percent(task.done_bytes, total)),
        };
        table.row([
            task.id.to_string(),
            describe(task),
            state_word(task.state).to_owned(),
            done,
            size(task.moved_bytes),
            ago(task.started_ms, view.now_ms),
        ]);
    }
    table.render(view.width)
}

fn show(task: &Task, view: View) -> String {
    let mut facts = vec![
        ("task", task.id.to_string()),
        ("what", describe(task)),
        ("state", state_word(task.state).to_owned()),
        ("started", moment(task.started_ms, view.now_ms)),
    ];
    if let Some(ended_ms) = task.ended_ms {
        facts.push(("ended", moment(ended_ms, view.now_ms)));
    }
    facts.push(("extent", extent(task)));
    if let Some(result) = &task.result {
        facts.push(("result", result.clone()));
    }
    if let Some(error) = &task.error {
        facts.push(("error", error.message.clone()));
        facts.extend(error.hint.clone().map(|hint| ("hint", hint)));
    }
    pairs(&facts)
}

#[cfg(test)]
mod tests {
    use node::api::{ApiError, ErrorCode, TaskKind};
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn task(state: TaskState) -> Task {
        Task {
            id: 1234,
            kind: TaskKind::Materialize,
            subject: "virtual-machines/web-server@12 to /srv/exports/web-server.qcow2".to_owned(),
            state,
            started_ms: 1_000_000,
            ended_ms: Some(1_060_000),
            total_bytes: 10 << 30,
            done_bytes: 1 << 30,
            moved_bytes: 812 << 20,
            result: None,
            error: Some(ApiError::new(ErrorCode::Full, "no space left").hint("make room")),
        }
    }

    #[test]
    fn a_list_fits() {
        let text =
            list(&[task(TaskState::Running), task(TaskState::Done)], View { width: Some(80), now_ms: 1_120_000 });
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("running   10%  812 MiB  2 min ago"), "{text}");
        assert!(text.contains("done     100%"), "{text}");
    }

    #[test]
    fn a_failed_task_says_why_and_what_to_do() {
        let text = show(&task(TaskState::Failed), View { width: None, now_ms: 1_120_000 });
        assert!(text.contains("error    no space left\nhint     make room\n"), "{text}");
    }
}
