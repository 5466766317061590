//! `brant clone`: a volume that begins as a snapshot.

use node::api::{ApiError, CloneRequest, ErrorCode};
use types::{ByteSize, Name};

use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::moment::with_moment;
use crate::output::text::size;

/// Make a volume that begins as a snapshot or volume, at once
///
/// It takes the same time for any size. Nothing is copied: what is not here yet arrives when it is read, or with `brant hydrate`. The clone keeps its own
/// writes whatever becomes of the snapshot.
///
/// Of a volume that is protected (`brant volume protect`) any moment can be cloned. A time without a zone is this host's.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant clone vms/web web1
  brant clone vms/web@3 web1-old --disk root
  brant clone vms/web web2 --size 20GiB
  brant clone web1 web1-copy
  brant clone web1@'10 minutes ago' web1-before
  brant clone web1@2026-11-26T10:00:00 web1-at-ten")]
pub(crate) struct Arguments {
    /// BUCKET/OBJECT[@VERSION], a snapshot id, a volume, or VOLUME@MOMENT of one that is protected
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The new volume's name
    #[arg(value_name = "VOLUME")]
    volume: Name,
    /// The disk, of a snapshot that has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// Its size, such as 20GiB, where it shall be larger than what it begins as
    #[arg(long)]
    size: Option<ByteSize>,
    /// A text that is kept with it, by a key; may be repeated
    #[arg(long = "label", value_name = "KEY=TEXT", value_parser = super::volume::label)]
    labels: Vec<(Name, String)>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let snapshot = with_moment(&arguments.snapshot, &jiff::Zoned::now())
        .map_err(|message| Failure::Reported(ApiError::new(ErrorCode::Invalid, message)))?;
    let request = CloneRequest {
        snapshot,
        disk: arguments.disk,
        volume: arguments.volume,
        size_bytes: arguments.size,
        labels: arguments.labels.into_iter().collect(),
    };
    let volume = context.client.clone_snapshot(&request).await?;
    context.output.show(&volume, |_| {
        let origin = volume.origin.as_deref().unwrap_or(&request.snapshot);
        format!("cloned {origin} to the volume {}, {}", volume.name, size(volume.size_bytes))
    })?;
    context.output.note(&format!("use it with: brant attach {}", volume.name));
    Ok(())
}
