//! `brant snapshot diff`: where two disks differ, page by page, so that no memory depends on how much that is.

use node::api::{DifferenceExtent, DifferenceKind, Differences};
use node::client::Client;
use serde_json::json;

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::table::Table;
use crate::output::text::{count, size};
use crate::output::{Output, View};

/// How many extents are shown to a person.
const SHOWN: usize = 20;

/// Where two disks differ, in ascending order.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// BUCKET/OBJECT[@VERSION], a snapshot id, or a volume
    #[arg(value_name = "FROM")]
    from: String,
    /// What it is compared with
    #[arg(value_name = "TO")]
    to: String,
    /// The disk, of snapshots that have several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let Arguments { from, to, disk } = arguments;
    let mut pages = Pages { client: &context.client, disk, from, to, next: Some(0) };
    let first = pages.next().await?;
    if context.output.is_json() {
        return print_json(&mut pages, first).await;
    }
    let mut summary = Summary::default();
    let mut page = first;
    loop {
        page.extents.iter().for_each(|extent| summary.add(*extent));
        if pages.next.is_none() {
            break;
        }
        page = pages.next().await?;
    }
    context.output.show(&(), |view| show(&page, &summary, view))
}

/// The pages of an answer. All are of the versions that the first one was of.
struct Pages<'c> {
    client: &'c Client,
    disk: Option<String>,
    from: String,
    to: String,
    next: Option<u64>,
}

impl Pages<'_> {
    async fn next(&mut self) -> Outcome<Differences> {
        let offset = self.next.unwrap_or(0);
        let page = self.client.differences(&self.from, &self.to, self.disk.as_deref(), offset).await?;
        self.from.clone_from(&page.from);
        self.to.clone_from(&page.to);
        self.next = page.next;
        Ok(page)
    }
}

/// Prints one JSON object, its extents as they come.
async fn print_json(pages: &mut Pages<'_>, first: Differences) -> Outcome {
    let head = json!({
        "from": first.from, "to": first.to,
        "from_size_bytes": first.from_size_bytes, "to_size_bytes": first.to_size_bytes,
    });
    let head = head.to_string();
    let open = head.trim_end_matches('}');
    Output::raw(format!("{open},\"extents\":[").as_bytes())?;
    let mut summary = Summary::default();
    let mut page = first;
    let mut separator = "\n";
    loop {
        let mut text = String::new();
        for extent in &page.extents {
            summary.add(*extent);
            text.push_str(separator);
            text.push_str(&json!(extent).to_string());
            separator = ",\n";
        }
        Output::raw(text.as_bytes())?;
        if pages.next.is_none() {
            break;
        }
        page = pages.next().await?;
    }
    let tail = json!({
        "data_bytes": summary.data_bytes, "zero_bytes": summary.zero_bytes, "unknown_bytes": summary.unknown_bytes,
    });
    let tail = tail.to_string();
    Output::raw(format!("\n],{}\n", tail.trim_start_matches('{')).as_bytes())
}

/// What was found so far.
#[derive(Debug, Default)]
struct Summary {
    shown: Vec<DifferenceExtent>,
    extents: u64,
    data_bytes: u64,
    zero_bytes: u64,
    unknown_bytes: u64,
    last: Option<DifferenceExtent>,
}

impl Summary {
    fn add(&mut self, extent: DifferenceExtent) {
        match extent.kind {
            DifferenceKind::Data => self.data_bytes += extent.length,
            DifferenceKind::Zero => self.zero_bytes += extent.length,
            DifferenceKind::Unknown => self.unknown_bytes += extent.length,
        }
        // An extent may have been cut where a page ended.
        let goes_on =
            self.last.is_some_and(|last| last.kind == extent.kind && last.offset + last.length == extent.offset);
        self.last = Some(extent);
        if !goes_on {
            self.extents += 1;
            if self.shown.len() < SHOWN {
                self.shown.push(extent);
            }
        } else if let Some(shown) = self.shown.last_mut()
            && shown.offset + shown.length == extent.offset
        {
            shown.length += extent.length;
        }
    }
}

fn show(page: &Differences, summary: &Summary, view: View) -> String {
    let mut text = format!("from {} to {}\n", page.from, page.to);
    if page.from_size_bytes != page.to_size_bytes {
        text.push_str(&format!("size: {} to {}\n", size(page.from_size_bytes), size(page.to_size_bytes)));
    }
    if summary.extents == 0 {
        text.push_str("no difference in what they hold\n");
        return text;
    }
    let changed = [(summary.data_bytes, "other data"), (summary.zero_bytes, "zero now")];
    let changed: Vec<_> = changed
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", size(*bytes)))
        .collect();
    if !changed.is_empty() {
        text.push_str(&format!("differ: {}\n", changed.join(", ")));
    }
    if summary.unknown_bytes > 0 {
        let unknown = size(summary.unknown_bytes);
        text.push_str(&format!("unknown: {unknown} that is not here and may differ; see: brant hydrate\n"));
    }
    let mut table = Table::new().numbers("OFFSET").numbers("LENGTH").words("WHAT");
    for extent in &summary.shown {
        let what = match extent.kind {
            DifferenceKind::Data => "other data",
            DifferenceKind::Zero => "zero now",
            DifferenceKind::Unknown => "unknown",
        };
        table.row([extent.offset.to_string(), size(extent.length), what.to_owned()]);
    }
    text.push_str(&table.render(view.width));
    let rest = summary.extents - summary.shown.len() as u64;
    if rest > 0 {
        text.push_str(&format!("and {} more; all of them: --json\n", count(rest, "extent")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, kind: DifferenceKind) -> DifferenceExtent {
        DifferenceExtent { offset, length, kind }
    }

    fn page() -> Differences {
        Differences {
            from: "vms/web@1".to_owned(),
            to: "web1".to_owned(),
            from_size_bytes: 1 << 30,
            to_size_bytes: 2 << 30,
            extents: Vec::new(),
            next: None,
        }
    }

    #[test]
    fn what_pages_cut_is_one_and_only_the_first_are_shown() {
        let mut summary = Summary::default();
        summary.add(extent(0, 65_536, DifferenceKind::Data));
        summary.add(extent(65_536, 65_536, DifferenceKind::Data));
        summary.add(extent(131_072, 65_536, DifferenceKind::Zero));
        for number in 0..30 {
            summary.add(extent((10 + 2 * number) << 16, 65_536, DifferenceKind::Unknown));
        }
        let text = show(&page(), &summary, View { width: Some(80), now_ms: 0 });
        assert!(text.starts_with("from vms/web@1 to web1\nsize: 1 GiB to 2 GiB\n"), "{text}");
        assert!(text.contains("differ: 128 KiB other data, 64 KiB zero now\n"), "{text}");
        assert!(text.contains("unknown: 1.9 MiB that is not here"), "{text}");
        assert!(text.contains(" OFFSET   LENGTH  WHAT\n      0  128 KiB  other data\n"), "{text}");
        assert!(text.ends_with("and 12 extents more; all of them: --json\n"), "{text}");
        assert_eq!(text.lines().count(), 4 + 1 + 20 + 1);
    }

    #[test]
    fn no_difference_is_said_in_words() {
        let text = show(&page(), &Summary::default(), View { width: Some(80), now_ms: 0 });
        assert!(text.ends_with("no difference in what they hold\n"), "{text}");
    }
}
