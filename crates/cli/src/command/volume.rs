//! `brant volume`: writable disks on this node.

use clap::Subcommand;
use node::api::{CreateVolumeRequest, Missing, Volume, VolumeDetail};
use types::{ByteSize, Name};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{count, size};

/// Make, list, show and remove volumes: writable thin disks on this node
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an empty volume
    ///
    /// It takes room only for what is written to it. To begin with a snapshot's content, see `brant clone`.
    #[command(after_long_help = "Example:\n  brant volume create scratch --size 10GiB")]
    Create {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// Its size, such as 10GiB; a multiple of 512 bytes, at most 64TiB
        #[arg(long)]
        size: ByteSize,
    },
    /// List the volumes
    #[command(after_long_help = "Example:\n  brant volume list")]
    List,
    /// Show a volume, and what of it is not here yet
    #[command(after_long_help = "Example:\n  brant volume show web1")]
    Show {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
    },
    /// Remove a volume and what was written to it
    ///
    /// Snapshots that were taken of it stay. One that is attached is not removed.
    #[command(after_long_help = "Example:\n  brant volume remove scratch")]
    Remove {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::Create { volume, size: size_bytes } => {
            let volume = client.create_volume(&CreateVolumeRequest { name: volume, size_bytes }).await?;
            output.show(&volume, |_| format!("made the volume {}, {}", volume.name, size(volume.size_bytes)))?;
            output.note(&format!("use it with: brant attach {}", volume.name));
            Ok(())
        }
        Verb::List => {
            let volumes = client.volumes().await?;
            let empty = "no volumes; make one with: brant clone SNAPSHOT VOLUME, or brant volume create";
            output.list(&volumes, empty, |view| list(&volumes, view))
        }
        Verb::Show { volume } => {
            let detail = client.volume(volume.as_str()).await?;
            output.show(&detail, |_| show(&detail))
        }
        Verb::Remove { volume } => {
            let removed = client.remove_volume(volume.as_str()).await?;
            output.done(&removed, &format!("removed the volume {volume}"))
        }
    }
}

fn list(volumes: &[Volume], view: View) -> String {
    let mut table = Table::new().words("VOLUME").numbers("SIZE").numbers("UNSEALED").texts("ORIGIN").texts("ATTACHED");
    for volume in volumes {
        table.row([
            volume.name.to_string(),
            size(volume.size_bytes),
            size(volume.dirty_bytes),
            volume.origin.clone().unwrap_or_else(|| "-".to_owned()),
            attached(volume),
        ]);
    }
    table.render(view.width)
}

fn attached(volume: &Volume) -> String {
    if volume.attached.is_empty() { "-".to_owned() } else { volume.attached.join(" ") }
}

fn show(detail: &VolumeDetail) -> String {
    let volume = &detail.volume;
    pairs(&[
        ("volume", volume.name.to_string()),
        ("id", volume.id.to_string()),
        ("size", size(volume.size_bytes)),
        ("origin", volume.origin.clone().unwrap_or_else(|| "none".to_owned())),
        ("unsealed", format!("{} written that no sealed snapshot holds", size(volume.dirty_bytes))),
        ("missing", missing(&detail.missing)),
        ("journals", format!("{} in {}", size(detail.journal_bytes), count(detail.layers, "layer"))),
        ("root", detail.root.clone().unwrap_or_else(|| "none: nothing but holes".to_owned())),
        ("attached", attached(volume)),
    ])
}

/// What is not here, for people.
pub(super) fn missing(missing: &Missing) -> String {
    if missing.chunks == 0 && missing.nodes == 0 {
        return "nothing: all of it is here".to_owned();
    }
    let mut text = format!("{} in {}", size(missing.bytes), count(missing.chunks, "chunk"));
    if missing.nodes > 0 {
        text.push_str(&format!(", and all that lies below {}", count(missing.nodes, "absent tree node")));
    }
    text
}

#[cfg(test)]
mod tests {
    use types::VolumeId;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn volume() -> Volume {
        Volume {
            name: "web1".parse().unwrap(),
            id: VolumeId([7; 16]),
            size_bytes: 10 << 30,
            origin: Some("virtual-machines/web@12".to_owned()),
            dirty_bytes: 3 << 19,
            attached: vec!["nbd+unix:///web1?socket=/var/lib/brant/nbd/web1.sock".to_owned()],
        }
    }

    #[test]
    fn a_list_fits() {
        let text = list(&[volume()], View { width: Some(80), now_ms: 0 });
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("web1    10 GiB   1.5 MiB  virtual-machines/web@12"), "{text}");
    }

    #[test]
    fn what_is_missing_is_never_called_nothing_while_nodes_are_absent() {
        assert_eq!(missing(&Missing::default()), "nothing: all of it is here");
        let one = Missing { chunks: 1, bytes: 65536, nodes: 0 };
        assert_eq!(missing(&one), "64 KiB in 1 chunk");
        let unknown = Missing { chunks: 0, bytes: 0, nodes: 2 };
        assert_eq!(missing(&unknown), "0 B in 0 chunks, and all that lies below 2 absent tree nodes");
    }

    #[test]
    fn details_fit_too() {
        let detail = VolumeDetail {
            volume: volume(),
            missing: Missing { chunks: 163_840, bytes: 10 << 30, nodes: 641 },
            journal_bytes: 2 << 20,
            layers: 2,
            root: Some("ab".repeat(32)),
        };
        let text = show(&detail);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("journals  2 MiB in 2 layers\n"), "{text}");
    }
}
