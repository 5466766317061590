//! What a store's objects are named by, and the trust domains they are present in.

use std::fmt;
use std::sync::Arc;

use types::{ChunkId, NodeId, SnapshotId};

/// The kinds of object that a store holds. Their hashes are domain-separated: no two kinds share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// 64 KiB of a disk.
    Chunk = 1,
    /// A node of a disk tree.
    Node = 2,
    /// A snapshot's manifest.
    Manifest = 3,
}

impl Kind {
    /// The kind of a number in a file or message.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Chunk, Self::Node, Self::Manifest].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The longest plain bytes of this kind.
    #[must_use]
    pub fn max_plain_bytes(self) -> usize {
        match self {
            Self::Chunk => types::CHUNK_BYTES,
            Self::Node => format::node::MAX_NODE_BYTES,
            Self::Manifest => format::manifest::MAX_MANIFEST_BYTES,
        }
    }
}

/// Names an object of a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// The hash of its plain bytes, as that kind is hashed.
    pub hash: [u8; 32],
}

impl Key {
    /// Whether plain bytes have this name.
    #[must_use]
    pub fn matches(&self, plain: &[u8]) -> bool {
        self.hash
            == match self.kind {
                Kind::Chunk => format::chunk_id(plain).0,
                Kind::Node => format::node_id(plain).0,
                Kind::Manifest => format::snapshot_id(plain).0,
            }
    }
}

impl From<ChunkId> for Key {
    fn from(id: ChunkId) -> Self {
        Self { kind: Kind::Chunk, hash: id.0 }
    }
}

impl From<NodeId> for Key {
    fn from(id: NodeId) -> Self {
        Self { kind: Kind::Node, hash: id.0 }
    }
}

impl From<SnapshotId> for Key {
    fn from(id: SnapshotId) -> Self {
        Self { kind: Kind::Manifest, hash: id.0 }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Chunk => "chunk",
            Kind::Node => "node",
            Kind::Manifest => "manifest",
        };
        write!(f, "{kind} {}", ChunkId(self.hash))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A trust domain: whose data may stand in for whose. The numbers are the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub u32);

impl Domain {
    /// Everything that this node's own buckets and volumes hold.
    pub const OWN: Self = Self(0);
    /// Everything that came from public buckets.
    pub const PUBLIC: Self = Self(1);
}

/// The domains in which something may be found. What is obtained for it is put in the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domains(Arc<[Domain]>);

impl Domains {
    /// Makes a set of domains, the one to put into first.
    ///
    /// # Panics
    /// Without any domain.
    #[must_use]
    pub fn new(domains: &[Domain]) -> Self {
        assert!(!domains.is_empty(), "data belongs to some domain");
        Self(domains.into())
    }

    /// The domain to put into.
    #[must_use]
    pub fn first(&self) -> Domain {
        self.0[0]
    }

    /// Whether a domain is among them.
    #[must_use]
    pub fn contains(&self, domain: Domain) -> bool {
        self.0.contains(&domain)
    }

    /// Whether what is present in some domains is present in one of these.
    #[must_use]
    pub fn meet(&self, present: &[Domain]) -> bool {
        present.iter().any(|domain| self.contains(*domain))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Domain> {
        self.0.iter().copied()
    }

    /// These and others, each once, these first.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let mut all = self.0.to_vec();
        all.extend(others.iter().filter(|domain| !self.contains(*domain)));
        Self(all.into())
    }
}

impl From<Domain> for Domains {
    fn from(domain: Domain) -> Self {
        Self::new(&[domain])
    }
}
