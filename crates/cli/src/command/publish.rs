//! `brant publish` and `brant unpublish`: a bucket at an Indexer.

use node::api::PublishRequest;
use types::{Name, Reference};

use crate::context::Context;
use crate::failure::Outcome;

/// Publish a bucket at an Indexer
///
/// The reference belongs to an account that this node is logged in to. New versions follow by themselves. Only the log is given to the Indexer, never data: peers fetch that from this node
/// and from each other. Without --public, only those may read it that `brant bucket grant` names.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant publish vms index.example.org/alice/vms
  brant publish images index.example.org/alice/images --public")]
pub(crate) struct PublishArguments {
    /// The bucket's name here
    #[arg(value_name = "BUCKET")]
    bucket: Name,
    /// Where: INDEXER/ACCOUNT/NAME
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// Let everyone read it
    #[arg(long)]
    public: bool,
}

/// Take a bucket's reference back from its Indexer
///
/// The bucket stays here, and so do the copies of those who subscribed.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Example:
  brant unpublish vms")]
pub(crate) struct UnpublishArguments {
    /// The bucket's name here
    #[arg(value_name = "BUCKET")]
    bucket: Name,
}

pub(crate) async fn publish(context: &Context, arguments: PublishArguments) -> Outcome {
    let request = PublishRequest { reference: arguments.reference, public: arguments.public };
    let publication = context.client.publish(arguments.bucket.as_str(), &request).await?;
    context.output.show(&publication, |_| {
        let readers = if publication.public { "for everyone" } else { "for those it is granted to" };
        format!("published {} as {}, {readers}", publication.bucket, publication.reference)
    })?;
    context.output.note(&format!("follow it elsewhere with: brant subscribe {}", publication.reference));
    Ok(())
}

pub(crate) async fn unpublish(context: &Context, arguments: UnpublishArguments) -> Outcome {
    let unpublished = context.client.unpublish(arguments.bucket.as_str()).await?;
    context.output.done(&unpublished, &format!("{} is not published any more", arguments.bucket))
}
