//! `brant attach` and `brant detach`: volumes and snapshots as block devices.

use std::path::{Path, PathBuf};

use node::api::{AttachRequest, Attachment, TlsPolicy, Transport, Via};

use crate::arguments::{choice, some_milliseconds};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::table::Table;

/// Make a volume or snapshot a block device, or list what is one
///
/// Prints the URI, and what QEMU takes, with a reconnect-delay: its guest then waits for a node that was killed and is
/// started again. With --via vhost-user QEMU's guest speaks with the node directly, through its memory, and waits too. With
/// --via kernel it prints a block device, whose users wait too. A snapshot is read-only. An
/// attachment lasts until it is detached, across restarts of the node, at the same socket and device. Without a target,
/// lists the attachments.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant attach web1
  brant attach vms/web@3 --listen 127.0.0.1:10809
  brant attach web1 --listen 0.0.0.0:10809 --tls-certificates /etc/pki/brant
  brant attach web1 --listen fd:web1
  brant attach web1 --via vhost-user
  brant attach web1 --via kernel
  brant attach
  qemu-system-x86_64 -m 1G \\
    -drive \"$(brant attach web1 --json | jq -r .qemu_drive)\"")]
pub(crate) struct AttachArguments {
    /// A volume, BUCKET/OBJECT[@VERSION], or a snapshot id
    #[arg(value_name = "VOLUME|SNAPSHOT")]
    target: Option<String>,
    /// The disk, of a snapshot that has several
    #[arg(long, value_name = "NAME", requires = "target")]
    disk: Option<String>,
    /// How it becomes visible: by NBD alone, by vhost-user-blk for QEMU, or also as a device of the kernel, in the best way
    /// that the machine has, by the kernel's ublk driver, by its NBD driver, or as a loop device over FUSE
    #[arg(long, default_value = "nbd", value_parser = choice::<Via>(&["nbd", "vhost-user", "kernel", "ublk", "nbd-kernel", "fuse"]))]
    via: Via,
    /// Where to listen, instead of at a unix socket in the node's directory: IP:PORT, unix:PATH, or fd:NAME, a socket
    /// that the node was started with (systemd's FileDescriptorName)
    #[arg(long, value_name = "WHERE", requires = "target")]
    listen: Option<String>,
    /// Encrypt with the certificates of a directory: server-cert.pem, server-key.pem, and ca-cert.pem where clients need
    /// a certificate that it has signed
    #[arg(long, value_name = "DIR", requires = "target")]
    tls_certificates: Option<PathBuf>,
    /// Whether clients have to use TLS [default: require]
    #[arg(long, value_name = "WHO", value_parser = choice::<TlsPolicy>(&["require", "allow"]), requires = "tls_certificates")]
    tls: Option<TlsPolicy>,
    /// Allow plain NBD beyond the loopback addresses, where anyone on the way can read and change it
    #[arg(long, requires = "listen")]
    insecure_listen: bool,
    /// Fail reads of what nobody has after this time, such as 30s or 5min [default: never]
    #[arg(long, value_name = "TIME", value_parser = some_milliseconds, requires = "target")]
    read_timeout: Option<u64>,
}

/// End an attachment
///
/// Every acknowledged write has reached the node. One that is in use, by clients that are connected or by whoever has the
/// device of the kernel mounted or open, is ended only by force.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Example:
  brant detach web1")]
pub(crate) struct DetachArguments {
    /// What was attached
    #[arg(value_name = "VOLUME|SNAPSHOT")]
    target: String,
    /// End it though it is in use: clients lose their connections, the kernel's device gives I/O errors
    #[arg(long)]
    force: bool,
}

pub(crate) async fn attach(context: &Context, arguments: AttachArguments) -> Outcome {
    let Some(target) = arguments.target else { return list(context).await };
    let tls_certificates = arguments.tls_certificates.map(|given| absolute(&given)).transpose()?;
    let request = AttachRequest {
        target,
        disk: arguments.disk,
        via: arguments.via,
        listen: arguments.listen,
        insecure_listen: arguments.insecure_listen,
        read_timeout_ms: arguments.read_timeout,
        tls_certificates,
        tls: arguments.tls,
    };
    let attachment = context.client.attach(&request).await?;
    context.output.show(&attachment, |_| shown(&attachment).to_owned())?;
    if let Some(home) = &attachment.home {
        context
            .output
            .note(&format!("the volume is at {home}; to have it here: brant volume take {}", attachment.target));
    }
    if attachment.device.is_none() {
        context.output.note(&format!("for QEMU: {}", qemu(&attachment)));
    }
    Ok(())
}

/// The path as the node needs it, which has another working directory.
fn absolute(given: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(given).map_err(|error| Failure::of_file("find", given, &error))?;
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::of_file("name", given, &std::io::Error::from(std::io::ErrorKind::InvalidFilename)))
}

async fn list(context: &Context) -> Outcome {
    let attachments = context.client.attachments().await?;
    context.output.list(&attachments, "nothing is attached", |view| {
        let mut table =
            Table::new().words("TARGET").words("ACCESS").words("HOME").numbers("CLIENTS").words("DEVICE").texts("URI");
        for attachment in &attachments {
            let access = if attachment.read_only { "read-only" } else { "read-write" };
            table.row([
                attachment.target.clone(),
                access.to_owned(),
                attachment.home.clone().unwrap_or_else(|| "here".to_owned()),
                attachment.connections.to_string(),
                attachment.device.clone().unwrap_or_else(|| "-".to_owned()),
                attachment.uri.clone(),
            ]);
        }
        table.render(view.width)
    })
}

pub(crate) async fn detach(context: &Context, arguments: DetachArguments) -> Outcome {
    let detached = context.client.detach(&arguments.target, arguments.force).await?;
    context.output.done(&detached, &format!("detached {}", arguments.target))
}

/// What users of an attachment want to know first.
fn shown(attachment: &Attachment) -> &str {
    match (&attachment.device, &attachment.socket, attachment.via) {
        (Some(device), _, _) => device,
        (None, Some(socket), Transport::VhostUser) => socket,
        _ => &attachment.uri,
    }
}

/// QEMU's arguments for an attachment.
fn qemu(attachment: &Attachment) -> String {
    if attachment.via == Transport::VhostUser {
        let memory = "-object memory-backend-memfd,id=ram,size=MEMORY,share=on -machine memory-backend=ram";
        let words = attachment.qemu_arguments.iter().map(|word| match word.starts_with('-') {
            true => format!(" {word}"),
            false => format!(" '{word}'"),
        });
        return words.fold(format!("-m MEMORY {memory}"), |line, word| line + &word);
    }
    let credentials = "-object tls-creds-x509,id=tls0,endpoint=client,dir=CERTIFICATES ";
    let credentials = if attachment.uri.starts_with("nbds") { credentials } else { "" };
    format!("{credentials}-drive '{}'", attachment.qemu_drive)
}
