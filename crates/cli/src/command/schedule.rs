//! `brant volume schedule`: snapshots that are taken by themselves.

use std::time::Duration;

use node::api::{ApiError, ErrorCode, Schedule, ScheduleRequest};
use types::{Keep, Name, ObjectPath};

use crate::arguments::{new_path, some_milliseconds};
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{ago, count, moment, until, whole_span};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The volumes; those whose snapshots go to one object are snapshotted together, at one moment
    #[arg(value_name = "VOLUME")]
    volumes: Vec<Name>,
    /// How often, such as 15min, 1h or 1d: at the beginning of each such span of time, in UTC
    #[arg(long, value_name = "TIME", value_parser = some_milliseconds, requires_all = ["into", "volumes"])]
    every: Option<u64>,
    /// Where the snapshots go
    #[arg(long, value_name = "BUCKET/OBJECT", value_parser = new_path, requires = "every")]
    into: Option<ObjectPath>,
    /// Which are kept: 3,24h,7d,4w,12m,1y are the last three, and one an hour, day, week, month, year [default: all]
    #[arg(long, value_name = "RULES", requires = "every")]
    keep: Option<Keep>,
    /// What the disks are called in the snapshots, as many names as volumes [default: the object's, or the volumes' names]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "every")]
    disk_names: Vec<Name>,
    /// Take no more of them by itself; those that there are stay
    #[arg(long, conflicts_with = "every", requires = "volumes")]
    off: bool,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    let Arguments { volumes, every, into, keep, disk_names, off } = arguments;
    if volumes.is_empty() {
        let schedules = client.schedules().await?;
        let empty = "no schedules; make one with: brant volume schedule VOLUME --every 1h --into BUCKET/OBJECT";
        return output.list(&schedules, empty, |view| table(&schedules, view));
    }
    if let Some((every_ms, into)) = every.zip(into) {
        let disks = disk_names.into_iter();
        return put(context, &volumes, ScheduleRequest { into: into.to_string(), every_ms, keep, disk: None }, disks)
            .await;
    }
    for volume in volumes {
        if off {
            let schedule = client.unschedule_volume(volume.as_str()).await?;
            output
                .show(&schedule, |_| format!("no snapshots of {volume} are taken into {} any more", schedule.into))?;
        } else {
            let schedule = client.schedule(volume.as_str()).await?;
            output.show(&schedule, |view| show(&schedule, view))?;
        }
    }
    Ok(())
}

/// Puts volumes on a schedule that they have in common.
async fn put(
    context: &Context,
    volumes: &[Name],
    mut request: ScheduleRequest,
    mut disks: impl ExactSizeIterator<Item = Name>,
) -> Outcome {
    if disks.len() != 0 && disks.len() != volumes.len() {
        let message = format!("the {} volumes need as many disk names", volumes.len());
        return Err(ApiError::new(ErrorCode::Invalid, message).into());
    }
    let mut schedule = None;
    for volume in volumes {
        request.disk = disks.next();
        schedule = Some(context.client.schedule_volume(volume.as_str(), &request).await?);
    }
    // The last answer names all volumes.
    let Some(schedule) = schedule else { return Ok(()) };
    context.output.show(&schedule, |view| {
        let (names, every, next) = (names(&schedule), every(&schedule), until(schedule.next_ms, view.now_ms));
        format!("snapshots of {names} are taken into {} every {every}, the next one {next}", schedule.into)
    })
}

fn every(schedule: &Schedule) -> String {
    whole_span(Duration::from_millis(schedule.every_ms))
}

fn names(schedule: &Schedule) -> String {
    let names: Vec<&str> = schedule.volumes.iter().map(Name::as_str).collect();
    names.join(" ")
}

fn keep_words(keep: Option<Keep>) -> String {
    let Some(keep) = keep else { return "all".to_owned() };
    let spans = ["the last", "hourly", "daily", "weekly", "monthly", "yearly"];
    let said = keep.numbers().into_iter().zip(spans).filter(|((number, _), _)| *number > 0);
    let words: Vec<String> = said
        .map(
            |((number, letter), span)| {
                if letter.is_empty() { format!("{span} {number}") } else { format!("{number} {span}") }
            },
        )
        .collect();
    words.join(", ")
}

fn show(schedule: &Schedule, view: View) -> String {
    let mut facts = vec![
        ("into", schedule.into.clone()),
        ("volumes", names(schedule)),
        ("every", every(schedule)),
        ("keep", keep_words(schedule.keep)),
        ("last", last(schedule, |ms| moment(ms, view.now_ms))),
    ];
    if let Some(unchanged_ms) = schedule.unchanged_ms {
        facts
            .push(("unchanged", format!("nothing was written since, as was found {}", ago(unchanged_ms, view.now_ms))));
    }
    if let Some(failure) = &schedule.failure {
        let times = count(failure.times.into(), "time");
        facts.push(("failed", format!("{times}, the last {}: {}", ago(failure.at_ms, view.now_ms), failure.error)));
        facts.extend(failure.error.hint.clone().map(|hint| ("hint", hint)));
    }
    facts.push(("next", until(schedule.next_ms, view.now_ms)));
    pairs(&facts)
}

fn last(schedule: &Schedule, when: impl Fn(u64) -> String) -> String {
    let last = schedule.last.as_ref();
    last.map_or_else(|| "none yet".to_owned(), |last| format!("{}, {}", last.snapshot, when(last.taken_ms)))
}

fn table(schedules: &[Schedule], view: View) -> String {
    let mut table = Table::new()
        .texts("INTO")
        .words("EVERY")
        .words("KEEP")
        .words("LAST")
        .words("NEXT")
        .texts("VOLUMES")
        .texts("FAILED");
    for schedule in schedules {
        table.row([
            schedule.into.clone(),
            every(schedule),
            schedule.keep.map_or_else(|| "all".to_owned(), |keep| keep.to_string()),
            schedule.last.as_ref().map_or_else(|| "-".to_owned(), |last| ago(last.taken_ms, view.now_ms)),
            until(schedule.next_ms, view.now_ms),
            names(schedule),
            schedule.failure.as_ref().map_or_else(|| "-".to_owned(), |failure| failure.error.to_string()),
        ]);
    }
    table.render(view.width)
}

/// The schedule of a volume in one line, for its details.
pub(super) fn line(schedule: Option<&Schedule>, view: View) -> String {
    let Some(schedule) = schedule else { return "none; see: brant volume schedule".to_owned() };
    let state = match &schedule.failure {
        Some(_) => "failing".to_owned(),
        None => format!("next {}", until(schedule.next_ms, view.now_ms)),
    };
    format!("every {} into {}; {state}", every(schedule), schedule.into)
}

#[cfg(test)]
mod tests {
    use node::api::{LastScheduled, ScheduleFailure};
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    const NOW: u64 = 1_763_877_012_000;

    fn schedule() -> Schedule {
        Schedule {
            into: "vms/db".to_owned(),
            volumes: vec!["db-data".parse().unwrap(), "db-log".parse().unwrap()],
            every_ms: 3_600_000,
            keep: "3,24h,7d".parse().ok(),
            last: Some(LastScheduled { snapshot: "vms/db@12".to_owned(), taken_ms: NOW - 600_000 }),
            unchanged_ms: None,
            next_ms: NOW + 3_000_000,
            failure: None,
        }
    }

    #[test]
    fn details_say_what_there_is_and_what_comes() {
        let view = View { width: Some(80), now_ms: NOW };
        let text = show(&schedule(), view);
        for line in [
            "volumes  db-data db-log\n",
            "every    1 h\n",
            "keep     the last 3, 24 hourly, 7 daily\n",
            "last     vms/db@12, 2025-11-23 05:40:12 UTC (10 min ago)\n",
            "next     in 50 min\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(line(Some(&schedule()), view), "every 1 h into vms/db; next in 50 min");
    }

    #[test]
    fn a_failure_is_shown_with_what_helps() {
        let error = ApiError::new(ErrorCode::Full, "the file system is full").hint("make room");
        let failing = Schedule {
            failure: Some(ScheduleFailure { at_ms: NOW - 5000, times: 2, error }),
            unchanged_ms: Some(NOW - 60_000),
            next_ms: NOW,
            last: None,
            keep: None,
            ..schedule()
        };
        let view = View { width: Some(80), now_ms: NOW };
        let text = show(&failing, view);
        for line in [
            "keep       all\n",
            "last       none yet\n",
            "unchanged  nothing was written since, as was found 1 min ago\n",
            "failed     2 times, the last 5 s ago: the file system is full\n",
            "hint       make room\n",
            "next       now\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(line(Some(&failing), view).ends_with("; failing"));
        let text = table(&[schedule(), failing], view);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
    }
}
