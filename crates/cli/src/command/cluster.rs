//! `brant cluster`: the nodes of one operator, which use and take each other's volumes.

use std::net::SocketAddr;

use clap::Subcommand;
use node::api::{AddMemberRequest, Cluster};
use types::{EndpointId, Name};

use crate::arguments::address;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::Table;

/// Nodes of one operator, which use and take each other's volumes
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the members, and the line that the other nodes need
    #[command(after_long_help = "Example:\n  brant cluster show")]
    Show,
    /// Add another node, which may use and take all volumes here
    ///
    /// Each node has to be told of each other one: on both sides. `brant cluster show` prints the line that the others need. Members
    /// trust each other with everything; for anybody else, publish a bucket.
    #[command(after_long_help = "Example:
  brant cluster add b \\
    77e7d2c62f0f5c1b6a0d9b1f2d40c2a7e5d86a0bb5a7e61d3c09b8f4e2a1d09a \\
    192.0.2.12:4701")]
    Add {
        /// What it is called here
        #[arg(value_name = "NAME")]
        name: Name,
        /// Its endpoint, as `brant cluster show` prints it there
        #[arg(value_name = "ENDPOINT")]
        endpoint: EndpointId,
        /// Where it is reached by UDP: the address that its node was started with, --bind
        #[arg(value_name = "IP:PORT", required = true, value_parser = address)]
        addresses: Vec<SocketAddr>,
    },
    /// Remove another node, which may not use volumes here any more
    ///
    /// Volumes of that node that are attached here wait until it is a member again. Nothing is deleted.
    #[command(after_long_help = "Example:\n  brant cluster remove node2")]
    Remove {
        /// What it is called here
        #[arg(value_name = "NAME")]
        name: Name,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::Show => {
            let cluster = client.cluster().await?;
            output.show(&cluster, |view| show(&cluster, view))
        }
        Verb::Add { name, endpoint, addresses } => {
            let member = client.add_member(&AddMemberRequest { name, endpoint, addresses }).await?;
            output.show(&member, |_| format!("{} is a member now, and may use and take every volume", member.name))?;
            if !member.reachable {
                output.note("it does not answer yet: run the line of `brant cluster show` there, too");
            }
            Ok(())
        }
        Verb::Remove { name } => {
            let member = client.remove_member(name.as_str()).await?;
            output.show(&member, |_| format!("{} is no member any more", member.name))
        }
    }
}

fn show(cluster: &Cluster, view: View) -> String {
    let mut text = String::new();
    if cluster.members.is_empty() {
        text.push_str("no members yet\n");
    } else {
        let mut table = Table::new().words("MEMBER").words("ANSWERS").texts("ADDRESSES").texts("ENDPOINT");
        for member in &cluster.members {
            table.row([
                member.name.to_string(),
                if member.reachable { "yes" } else { "no" }.to_owned(),
                words(&member.addresses),
                member.endpoint.short(),
            ]);
        }
        text.push_str(&table.render(view.width));
    }
    text.push_str("\nTo make this node a member for another, run there, with a name for it:\n");
    text + &format!("  brant cluster add NAME \\\n    {} \\\n    {}", cluster.endpoint, words(&cluster.addresses))
}

fn words(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use node::api::Member;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn members_fit_and_the_line_for_the_others_is_whole() {
        let member = Member {
            name: "node2".parse().unwrap(),
            endpoint: EndpointId([7; 32]),
            addresses: vec!["192.0.2.12:4701".parse().unwrap()],
            reachable: false,
        };
        let cluster = Cluster {
            endpoint: EndpointId([9; 32]),
            addresses: vec!["192.0.2.11:4701".parse().unwrap()],
            members: vec![member],
        };
        let view = View { width: Some(80), now_ms: 0 };
        let text = show(&cluster, view);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("node2   no       192.0.2.12:4701"), "{text}");
        assert!(text.contains(&format!("    {} \\\n    192.0.2.11:4701", "09".repeat(32))), "{text}");
        let alone = show(&Cluster { members: Vec::new(), ..cluster }, view);
        assert!(alone.starts_with("no members yet\n"), "{alone}");
    }
}
