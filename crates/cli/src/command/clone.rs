//! `brant clone`: a volume that begins as a snapshot.

use node::api::CloneRequest;
use types::Name;

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::text::size;

/// Make a volume that begins as a snapshot, at once
///
/// It takes the same time for any size. Nothing is copied: what is not here yet arrives when it is read, or with `brant hydrate`. The clone keeps its own
/// writes whatever becomes of the snapshot.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant clone vms/web web1
  brant clone vms/web@3 web1-old --disk root")]
pub(crate) struct Arguments {
    /// BUCKET/OBJECT[@VERSION] or a snapshot id
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The new volume's name
    #[arg(value_name = "VOLUME")]
    volume: Name,
    /// The disk, of a snapshot that has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let request = CloneRequest { snapshot: arguments.snapshot, disk: arguments.disk, volume: arguments.volume };
    let volume = context.client.clone_snapshot(&request).await?;
    context.output.show(&volume, |_| {
        let origin = volume.origin.as_deref().unwrap_or(&request.snapshot);
        format!("cloned {origin} to the volume {}, {}", volume.name, size(volume.size_bytes))
    })?;
    context.output.note(&format!("use it with: brant attach {}", volume.name));
    Ok(())
}
