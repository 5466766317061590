//! `brant revert`: a volume back to what a snapshot is.

use node::api::RevertRequest;
use types::Name;

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::text::size;

/// Put a volume back to a snapshot, at once
///
/// It takes the same time for any size, and the volume gets the snapshot's size. Refused while a client is connected; an attachment that nobody
/// uses stays. What the volume was is kept like a deleted volume, so that this can be taken back: `brant revert VOLUME ID` puts it back in its
/// place, and `brant volume restore ID --as NAME` beside it.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant revert web1 vms/web@3
  brant revert db-log vms/db@7 --disk db-log")]
pub(crate) struct Arguments {
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: Name,
    /// BUCKET/OBJECT[@VERSION], a snapshot id, or the id of a deleted volume
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The disk, of a snapshot that has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let Arguments { volume, snapshot, disk } = arguments;
    let request = RevertRequest { to: snapshot, disk };
    let reverted = context.client.revert_volume(volume.as_str(), &request).await?;
    let kept = reverted.kept.id;
    context
        .output
        .show(&reverted, |_| format!("reverted {volume} to {}, {}", request.to, size(reverted.volume.size_bytes)))?;
    context.output.note(&format!("what it was is kept; take this back with: brant revert {volume} {kept}"));
    context.output.note(&format!("or have both: brant volume restore {} --as NAME", kept.short()));
    Ok(())
}
