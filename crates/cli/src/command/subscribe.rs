//! `brant subscribe` and `brant unsubscribe`: following a bucket that is published somewhere.

use node::api::{Policy, SubscribeRequest};
use types::{Name, Reference};

use crate::arguments::choice;
use crate::context::Context;
use crate::failure::Outcome;

/// Follow a published bucket
///
/// Its versions appear here, and its data when it is wanted. Policies: `tree` brings the disks' trees, so that every later read costs one round trip; `lazy` brings nothing before
/// it is read; `full` brings everything.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant subscribe index.example.org/alice/vms
  brant subscribe index.example.org/alice/vms alice-vms --policy full")]
pub(crate) struct SubscribeArguments {
    /// What to follow: INDEXER/ACCOUNT/NAME
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// What to call it here [default: the reference's name]
    #[arg(value_name = "BUCKET")]
    bucket: Option<Name>,
    /// How much of it to bring before it is asked for
    #[arg(long, default_value = "lazy", value_parser = choice::<Policy>(&["tree", "lazy", "full"]))]
    policy: Policy,
}

/// Stop following a bucket; what is here stays
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Example:
  brant unsubscribe vms")]
pub(crate) struct UnsubscribeArguments {
    /// The bucket's name here
    #[arg(value_name = "BUCKET")]
    bucket: Name,
}

pub(crate) async fn subscribe(context: &Context, arguments: SubscribeArguments) -> Outcome {
    let (reference, bucket) = (arguments.reference, arguments.bucket);
    let request = SubscribeRequest { reference, bucket, policy: arguments.policy };
    let subscription = context.client.subscribe(&request).await?;
    context.output.show(&subscription, |_| {
        format!("{} follows {} ({})", subscription.bucket, subscription.reference, policy_word(subscription.policy))
    })?;
    context.output.note(&format!("see what it has: brant snapshot list {}", subscription.bucket));
    Ok(())
}

pub(crate) async fn unsubscribe(context: &Context, arguments: UnsubscribeArguments) -> Outcome {
    let ended = context.client.unsubscribe(arguments.bucket.as_str()).await?;
    context.output.done(&ended, &format!("{} is not followed any more", arguments.bucket))
}

/// A policy's word, as on the command line.
pub(crate) const fn policy_word(policy: Policy) -> &'static str {
    match policy {
        Policy::Tree => "tree",
        Policy::Lazy => "lazy",
        Policy::Full => "full",
    }
}
