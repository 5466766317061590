//! `brant materialize`: a snapshot or volume is written out to foreign storage.
//!
//! A file is written under another name beside its own, and gets its own when it is complete and durable.

mod target;

use node::api::{ImageFormat, MaterializeRequest, Reflink, TargetSpec};

use self::target::Target;
use super::import::{FORMATS, REFLINK};
use super::place::{Place, require_local};
use crate::arguments::choice;
use crate::context::Context;
use crate::failure::Outcome;
use crate::wait::{self, Detach, Interrupt};

/// Write a snapshot or volume out to a file, device or NBD export
///
/// A file is written as TARGET.part and renamed when it is complete; with --detach the renaming is left to you. Holes
/// stay holes. The format follows from the file's extension unless it is given.
///
/// A raw file on the XFS or btrfs file system of the node's directory shares the room of what the store has uncompressed,
/// which is what was imported by sharing. What is compressed, or was written since, is written out.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant materialize vms/web@3 web.qcow2
  brant materialize vms/web /dev/vg0/web --force
  brant materialize web1 nbd://10.0.0.7/web")]
pub(crate) struct Arguments {
    /// BUCKET/OBJECT[@VERSION], a snapshot id, or a volume
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// A file to make, a block device, or an NBD URI
    #[arg(value_name = "TARGET", value_parser = Place::parser())]
    target: Place,
    /// The disk, of a snapshot that has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// The format to write; else by the file's extension, else raw
    #[arg(long, value_parser = choice::<ImageFormat>(FORMATS))]
    format: Option<ImageFormat>,
    /// Whether a raw file shares the room of the store: where it can, always or else fail, or never
    #[arg(long, value_parser = choice::<Reflink>(REFLINK), default_value = "auto", value_name = "WHEN")]
    reflink: Reflink,
    /// Replace a file that exists, or overwrite a device
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    detach: Detach,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (snapshot, disk) = (arguments.snapshot, arguments.disk);
    let reflink = arguments.reflink;
    let request =
        |target, format| MaterializeRequest { snapshot: snapshot.clone(), disk: disk.clone(), target, format, reflink };
    let path = match arguments.target {
        Place::Nbd(uri) => {
            let task = context.client.materialize(&request(TargetSpec::Nbd { uri }, arguments.format)).await?;
            return wait::finish(context, task, arguments.detach).await;
        }
        Place::Path(path) => path,
    };
    require_local(&context.client, &path, "run this on the node's host, or give an NBD URI that it can write to")?;
    let format = arguments.format.or_else(|| target::format_of(&path));
    let target = Target::prepare(&path, arguments.force)?;
    let ticket = context.client.pass_descriptor(target.descriptor()?).await?;
    let spec = TargetSpec::Descriptor { ticket, name: path.display().to_string() };
    let task = context.client.materialize(&request(spec, format)).await?;
    if arguments.detach.detach {
        let left = target.leave();
        wait::finish(context, task, arguments.detach).await?;
        if let Some(part) = left {
            let (part, path) = (part.display(), path.display());
            context.output.note(&format!("note: it is written as {part}; rename it to {path} when the task is done"));
        }
        return Ok(());
    }
    let task = wait::until_end(context, task, Interrupt::Cancels).await?;
    target.complete(arguments.force)?;
    context.output.show(&task, |_| wait::sentence(&task))
}
