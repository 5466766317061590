//! The UDP port of a node that was not told where to listen: the one that it had last, so that peers find it again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use store::ChunkStore;
use swarm::{Library, Swarm, SwarmOptions};

/// The file that has the port, in decimal digits. Without it, or where it is damaged, another port is taken.
const FILE: &str = "port";

/// Starts a node's swarm: where it was told to listen; else at the port that it had last, or at another one where somebody else has that.
///
/// # Errors
/// When it cannot listen where it was told to.
pub(crate) async fn start(
    options: SwarmOptions,
    directory: &Path,
    store: &Arc<dyn ChunkStore>,
    library: Arc<dyn Library>,
) -> anyhow::Result<Arc<Swarm>> {
    let told = options.bind.clone();
    let begin = |bind: Vec<SocketAddr>| {
        let mut options = options.clone();
        options.bind = bind;
        Swarm::start(options, Arc::clone(store), Arc::clone(&library))
    };
    let last = remembered(directory).filter(|_| told.is_empty());
    if let Some(port) = last {
        match begin(vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))]).await {
            Ok(swarm) => return Ok(swarm),
            Err(error) => {
                tracing::warn!(%error, port, "the port of the last time is taken: members have to be told of another")
            }
        }
    }
    let swarm = begin(told.clone()).await.with_context(|| match &told[..] {
        [] => "could not reach the network".to_owned(),
        told => {
            let told: Vec<_> = told.iter().map(ToString::to_string).collect();
            format!("could not listen at {}: is it an address of this machine, and free?", told.join(" and "))
        }
    })?;
    if told.is_empty()
        && let Err(error) = remember(directory, &swarm)
    {
        tracing::warn!(%error, "the port could not be written down: another one is taken at the next start");
    }
    Ok(swarm)
}

fn remembered(directory: &Path) -> Option<u16> {
    std::fs::read_to_string(directory.join(FILE)).ok()?.trim().parse().ok().filter(|port| *port > 0)
}

fn remember(directory: &Path, swarm: &Swarm) -> io::Result<()> {
    let Some(address) = swarm.addresses().first().copied() else { return Ok(()) };
    std::fs::write(directory.join(FILE), format!("{}\n", address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use crate::node::{Node, NodeOptions};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_keeps_its_port_as_long_as_nobody_else_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let port = async || {
            let node = Node::start(NodeOptions::new(directory.path()), None).await.unwrap();
            let port = node.swarm.addresses()[0].port();
            node.stop().await;
            while std::sync::Arc::strong_count(&node) > 1 {
                tokio::task::yield_now().await;
            }
            port
        };
        let first = port().await;
        assert_eq!(port().await, first);
        let taken = UdpSocket::bind(("0.0.0.0", first)).unwrap();
        let second = port().await;
        assert_ne!(second, first);
        drop(taken);
        assert_eq!(port().await, second, "the last one counts");
    }
}
