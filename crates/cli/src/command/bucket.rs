//! `brant bucket`: making buckets, looking into them, and letting others read them.

use clap::Subcommand;
use node::api::{Bucket, BucketDetail, CreateBucketRequest, GrantRequest, LogEntry};
use types::Name;

use super::subscribe::policy_word;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{ago, count, size};

/// Make buckets, look into them, and let others read them
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a bucket
    ///
    /// Its key stays on this node; it is private until it is published and granted.
    #[command(after_long_help = "Example:\n  brant bucket create vms")]
    Create {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
    },
    /// List the buckets
    #[command(after_long_help = "Example:\n  brant bucket list")]
    List,
    /// Show a bucket: its objects, and who may read it
    #[command(after_long_help = "Example:\n  brant bucket show vms")]
    Show {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
    },
    /// Show a bucket's signed log, the oldest entry first
    #[command(after_long_help = "Example:\n  brant bucket log vms")]
    Log {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
    },
    /// Let someone read a bucket
    ///
    /// A reader is `everyone`, an account (`account:INDEXER/NAME`), or a node (`endpoint:ID`, see `brant status` there).
    #[command(after_long_help = "Examples:
  brant bucket grant vms account:index.example.org/bob
  brant bucket grant images everyone")]
    Grant {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
        /// Who: everyone, account:INDEXER/NAME or endpoint:ID
        #[arg(value_name = "READER")]
        reader: String,
    },
    /// Take back that someone may read a bucket
    ///
    /// What was read already cannot be taken back.
    #[command(after_long_help = "Example:\n  brant bucket revoke vms account:index.example.org/bob")]
    Revoke {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
        /// Who, as it was granted
        #[arg(value_name = "READER")]
        reader: String,
    },
    /// Remove a bucket and its versions from this node
    #[command(after_long_help = "Example:\n  brant bucket remove vms")]
    Remove {
        /// Its name here
        #[arg(value_name = "BUCKET")]
        bucket: Name,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::Create { bucket } => {
            let bucket = client.create_bucket(&CreateBucketRequest { name: bucket }).await?;
            output.show(&bucket, |_| format!("made the bucket {}", bucket.name))?;
            output.note(&format!("fill it with: brant import SOURCE {}/OBJECT", bucket.name));
            Ok(())
        }
        Verb::List => {
            let buckets = client.buckets().await?;
            let empty = "no buckets; make one with: brant bucket create NAME";
            output.list(&buckets, empty, |view| list(&buckets, view))
        }
        Verb::Show { bucket } => {
            let detail = client.bucket(bucket.as_str()).await?;
            output.show(&detail, |view| show(&detail, view))
        }
        Verb::Log { bucket } => {
            let entries = client.bucket_log(bucket.as_str()).await?;
            output.list(&entries, "the log is empty", |view| log(&entries, view))
        }
        Verb::Grant { bucket, reader } => {
            let detail = client.grant(bucket.as_str(), &GrantRequest { reader: reader.clone() }).await?;
            output.show(&detail, |_| format!("{reader} may read {bucket}"))
        }
        Verb::Revoke { bucket, reader } => {
            let detail = client.revoke(bucket.as_str(), &GrantRequest { reader: reader.clone() }).await?;
            output.show(&detail, |_| format!("{reader} may not read {bucket} any more"))
        }
        Verb::Remove { bucket } => {
            let removed = client.remove_bucket(bucket.as_str()).await?;
            output.done(&removed, &format!("removed the bucket {bucket}"))
        }
    }
}

/// Where a bucket's log goes to, or comes from.
fn place(bucket: &Bucket) -> String {
    match (&bucket.subscribed, &bucket.published) {
        (Some(reference), _) => format!("from {reference}"),
        (None, Some(reference)) => format!("at {reference}"),
        (None, None) => "here only".to_owned(),
    }
}

fn list(buckets: &[Bucket], view: View) -> String {
    let mut table =
        Table::new().words("BUCKET").numbers("OBJECTS").numbers("VERSIONS").words("POLICY").texts("PUBLISHED");
    for bucket in buckets {
        table.row([
            bucket.name.to_string(),
            bucket.objects.to_string(),
            bucket.versions.to_string(),
            bucket.policy.map_or("-", policy_word).to_owned(),
            place(bucket),
        ]);
    }
    let mut text = table.render(view.width);
    for bucket in buckets {
        if let Some(problem) = &bucket.problem {
            text.push_str(&format!("problem: {}: {problem}\n", bucket.name));
        }
    }
    text
}

fn show(detail: &BucketDetail, view: View) -> String {
    let bucket = &detail.bucket;
    let mut facts = vec![
        ("bucket", bucket.name.to_string()),
        ("id", bucket.id.to_string()),
        ("access", if bucket.writable { "read and write" } else { "read" }.to_owned()),
        ("published", place(bucket)),
    ];
    if let Some(policy) = bucket.policy {
        facts.push(("policy", policy_word(policy).to_owned()));
    }
    let readers = if detail.readers.is_empty() { "nobody else".to_owned() } else { detail.readers.join(", ") };
    facts.push(("readers", readers));
    if !detail.writers.is_empty() {
        facts.push(("writers", detail.writers.join(", ")));
    }
    facts.push(("versions", format!("{} of {}", bucket.versions, count(bucket.objects, "object"))));
    if let Some(problem) = &bucket.problem {
        facts.push(("problem", problem.clone()));
    }
    let mut text = pairs(&facts);
    if !detail.contents.is_empty() {
        let mut table = Table::new().texts("OBJECT").numbers("LATEST").numbers("SIZE").words("SNAPSHOT");
        for object in &detail.contents {
            table.row([
                object.name.to_string(),
                format!("@{}", object.latest),
                size(object.size_bytes),
                object.snapshot.map_or_else(|| "sealing".to_owned(), |id| id.short()),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(view.width));
    }
    text
}

fn log(entries: &[LogEntry], view: View) -> String {
    let mut table = Table::new().numbers("ENTRY").words("WRITTEN").words("AUTHOR").texts("ACTION");
    for entry in entries {
        table.row([
            entry.sequence.to_string(),
            ago(entry.time_ms, view.now_ms),
            entry.author.chars().take(10).collect(),
            entry.action.clone(),
        ]);
    }
    table.render(view.width)
}

#[cfg(test)]
mod tests {
    use node::api::{BucketObject, Policy};
    use types::{BucketId, SnapshotId};
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn bucket() -> Bucket {
        Bucket {
            name: "vms".parse().unwrap(),
            id: BucketId([0xab; 32]),
            writable: false,
            objects: 1,
            versions: 12,
            published: None,
            subscribed: Some("a-rather-long-host-name.example.org:7070/alice/virtual-machines".parse().unwrap()),
            policy: Some(Policy::Lazy),
            problem: Some("the log forked at entry 7".to_owned()),
        }
    }

    #[test]
    fn a_list_fits_and_tells_problems_in_full() {
        let text = list(&[bucket()], View { width: Some(80), now_ms: 0 });
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.ends_with("problem: vms: the log forked at entry 7\n"), "{text}");
    }

    #[test]
    fn details_say_who_may_read_and_what_there_is() {
        let contents = vec![BucketObject {
            name: "web".parse().unwrap(),
            latest: 12,
            snapshot: Some(SnapshotId([1; 32])),
            size_bytes: 10 << 30,
        }];
        let detail = BucketDetail { bucket: bucket(), contents, readers: Vec::new(), writers: Vec::new() };
        let text = show(&detail, View { width: Some(80), now_ms: 0 });
        assert!(text.contains("readers    nobody else\n"), "{text}");
        assert!(text.contains("versions   12 of 1 object\n"), "{text}");
        assert!(text.contains("web        @12  10 GiB  0101010101\n"), "{text}");
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
    }
}
