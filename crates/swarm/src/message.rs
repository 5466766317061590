//! The messages of `brant/chunks/1`: bytes to values and back, without I/O. The protocol is described in
//! `docs/protocol.md`.
//!
//! Invariant: every decoder takes any bytes, allocates no more than they are long, and accepts only what an encoder
//! here would have written. Nothing names a chunk or node by hash: a request says where it stands in a snapshot, so
//! that the provider can check it against the grants, and no hash can be probed.

use format::{CanonicalError, Codec, Position, from_canonical, to_canonical};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use store::{Kind, Urgency};
use types::SnapshotId;

/// The protocol's name in the handshake.
pub const ALPN: &[u8] = b"brant/chunks/1";

/// The longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The most parts that one request may name.
pub const MAX_ITEMS: u32 = 256;

/// The most certificates that a peer may show.
pub const MAX_CERTIFICATES: usize = 16;

/// The most peers that a request may be passed on through.
pub const MAX_HOPS: u8 = 4;

/// The length of what a reply begins with, in bytes.
pub const REPLY_BYTES: usize = 4;

/// The length of what precedes each item's bytes in a reply.
pub const ITEM_BYTES: usize = 16;

const VERSION: u8 = 1;

/// Bytes were not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A request that is not one.
    #[error("a malformed request")]
    Request(#[from] CanonicalError),
    /// A request for nothing, for too much, or for what no disk has.
    #[error("a request for {0} that cannot be")]
    Bounds(&'static str),
    /// A reply that does not begin as one.
    #[error("a reply that begins with {0:02x?}")]
    Reply([u8; REPLY_BYTES]),
    /// An item that nobody asked for, or that cannot be.
    #[error("a reply with an item that cannot be: {0:02x?}")]
    Item([u8; ITEM_BYTES]),
}

/// Parts that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// The first one's index.
    #[n(0)]
    pub first: u64,
    /// How many, at least one.
    #[n(1)]
    pub count: u32,
}

/// What an asker sends: one per stream. The first on a connection is a hello.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Says what the connection is for, and shows certificates; a later one replaces them. The reply has no items.
    #[n(0)]
    Hello {
        /// Whether lazy requests will follow, for which someone waits, or bulk ones.
        #[n(0)]
        lazy: bool,
        /// Signed certificates, encoded.
        #[n(1)]
        certificates: Vec<ByteVec>,
    },
    /// Asks for a snapshot's manifest: one item.
    #[n(1)]
    Manifest {
        /// The snapshot.
        #[n(0)]
        snapshot: SnapshotId,
    },
    /// Asks for nodes of a disk's tree, by place.
    #[n(2)]
    Nodes {
        /// The snapshot.
        #[n(0)]
        snapshot: SnapshotId,
        /// The disk's number in its manifest.
        #[n(1)]
        disk: u32,
        /// The nodes' level.
        #[n(2)]
        level: u8,
        /// Their indexes, ascending.
        #[n(3)]
        nodes: Vec<Run>,
        /// How many peers the provider may pass this on through, for what it has not itself.
        #[n(4)]
        hops: u8,
    },
    /// Asks for chunks of a disk, by index.
    #[n(3)]
    Chunks {
        /// The snapshot.
        #[n(0)]
        snapshot: SnapshotId,
        /// The disk's number in its manifest.
        #[n(1)]
        disk: u32,
        /// The chunks' indexes, ascending.
        #[n(2)]
        chunks: Vec<Run>,
        /// Reserved: a snapshot that the asker has, to which the provider may answer the difference.
        #[n(3)]
        base: Option<SnapshotId>,
        /// How many peers the provider may pass this on through, for what it has not itself.
        #[n(4)]
        hops: u8,
    },
}

/// The part of a snapshot that a request or reply is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The manifest.
    Manifest,
    /// A node of a disk's tree.
    Node(Position),
    /// A chunk of a disk, by index.
    Chunk(u64),
}

impl Place {
    /// The kind of object that stands there.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Manifest => Kind::Manifest,
            Self::Node(_) => Kind::Node,
            Self::Chunk(_) => Kind::Chunk,
        }
    }
}

impl Request {
    /// Encodes the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// Decodes a request; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`Request::encode`] would not have written for a request within the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let request: Self = from_canonical(bytes, MAX_REQUEST_BYTES)?;
        match &request {
            Self::Hello { certificates, .. } if certificates.len() > MAX_CERTIFICATES => {
                return Err(MessageError::Bounds("certificates"));
            }
            Self::Hello { .. } | Self::Manifest { .. } => {}
            Self::Nodes { level, nodes, hops, .. } => {
                if *level >= format::node::MAX_LEVELS {
                    return Err(MessageError::Bounds("a level"));
                }
                check_runs(nodes, *hops)?;
            }
            Self::Chunks { chunks, hops, .. } => check_runs(chunks, *hops)?,
        }
        Ok(request)
    }

    /// Asks for parts of a snapshot. They must be of one kind and, where nodes, of one level; they need not be in
    /// order, and are numbered in the reply as [`places`](Request::places) gives them.
    ///
    /// # Panics
    /// Without any place: an error of the caller.
    #[must_use]
    pub fn for_places(snapshot: SnapshotId, disk: u32, mut places: Vec<Place>, hops: u8) -> Self {
        places.sort_unstable();
        places.dedup();
        let runs = |index: fn(&Place) -> u64| {
            let mut runs: Vec<Run> = Vec::new();
            for first in places.iter().map(index) {
                match runs.last_mut() {
                    Some(run) if run.first + u64::from(run.count) == first => run.count += 1,
                    _ => runs.push(Run { first, count: 1 }),
                }
            }
            runs
        };
        match places.first().expect("a request is for something") {
            Place::Manifest => Self::Manifest { snapshot },
            Place::Node(position) => {
                let nodes = runs(|place| if let Place::Node(position) = place { position.index } else { 0 });
                Self::Nodes { snapshot, disk, level: position.level, nodes, hops }
            }
            Place::Chunk(_) => {
                let chunks = runs(|place| if let Place::Chunk(index) = place { *index } else { 0 });
                Self::Chunks { snapshot, disk, chunks, base: None, hops }
            }
        }
    }

    /// The places that the request names, in the order in which the reply numbers them; none for a hello.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let each = |runs: &[Run], place: &dyn Fn(u64) -> Place| {
            runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count)).map(place).collect()
        };
        match self {
            Self::Hello { .. } => Vec::new(),
            Self::Manifest { .. } => vec![Place::Manifest],
            Self::Nodes { level, nodes, .. } => each(nodes, &|index| Place::Node(Position { level: *level, index })),
            Self::Chunks { chunks, .. } => each(chunks, &Place::Chunk),
        }
    }
}

fn check_runs(runs: &[Run], hops: u8) -> Result<(), MessageError> {
    // No disk has so many chunks; it keeps all sums of indexes far from overflow.
    const END: u64 = 1 << 40;
    let (mut total, mut next) = (0_u32, 0);
    for run in runs {
        let end = run.first.saturating_add(u64::from(run.count));
        if run.count == 0 || run.first < next || end > END {
            return Err(MessageError::Bounds("a range"));
        }
        // Runs that touch would be one.
        next = end + 1;
        total = total.saturating_add(run.count);
    }
    if total == 0 || total > MAX_ITEMS {
        return Err(MessageError::Bounds("so many parts"));
    }
    if hops > MAX_HOPS { Err(MessageError::Bounds("so many hops")) } else { Ok(()) }
}

/// What a reply begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Items follow.
    Ok = 0,
    /// There is no such snapshot here, or the asker may not know of it, or it has no such disk.
    Unknown = 1,
    /// The provider has too much to do; ask again.
    Busy = 2,
    /// The request was not understood.
    Malformed = 3,
}

impl Status {
    /// Encodes the beginning of a reply.
    #[must_use]
    pub fn encode(self) -> [u8; REPLY_BYTES] {
        [VERSION, self as u8, 0, 0]
    }

    /// Decodes the beginning of a reply; any bytes may be given.
    ///
    /// # Errors
    /// [`MessageError::Reply`] for everything else.
    pub fn decode(bytes: [u8; REPLY_BYTES]) -> Result<Self, MessageError> {
        [Self::Ok, Self::Unknown, Self::Busy, Self::Malformed]
            .into_iter()
            .find(|status| status.encode() == bytes)
            .ok_or(MessageError::Reply(bytes))
    }
}

/// What a reply says of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which one: its number among [`Request::places`].
    pub number: u32,
    /// What stands there.
    pub content: Content,
}

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Something that the provider does not have, now.
    Absent,
    /// Nothing: a hole.
    Hole,
    /// An object, whose stored bytes follow.
    Stored {
        /// How they become plain.
        codec: Codec,
        /// How long they are when plain.
        plain_bytes: u32,
        /// How long they are.
        stored_bytes: u32,
    },
}

impl Item {
    /// Encodes what precedes the item's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ITEM_BYTES] {
        let (content, codec, plain, stored) = match self.content {
            Content::Absent => (0, 0, 0, 0),
            Content::Hole => (1, 0, 0, 0),
            Content::Stored { codec, plain_bytes, stored_bytes } => (2, codec as u8, plain_bytes, stored_bytes),
        };
        let mut bytes = [0; ITEM_BYTES];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4] = content;
        bytes[5] = codec;
        bytes[8..12].copy_from_slice(&plain.to_le_bytes());
        bytes[12..].copy_from_slice(&stored.to_le_bytes());
        bytes
    }

    /// Decodes what precedes the bytes of one of `items` items of a kind; any bytes may be given.
    ///
    /// # Errors
    /// [`MessageError::Item`] for an item that was not asked for, that is longer than its kind may be, or longer
    /// stored than plain.
    pub fn decode(bytes: [u8; ITEM_BYTES], items: usize, kind: Kind) -> Result<Self, MessageError> {
        let error = MessageError::Item(bytes);
        let ([number, head, plain, stored], _) = bytes.as_chunks::<4>() else { return Err(error) };
        let [number, plain_bytes, stored_bytes] = [number, plain, stored].map(|word| u32::from_le_bytes(*word));
        let content = match head[0] {
            0 => Content::Absent,
            1 => Content::Hole,
            2 => {
                let Ok(codec) = Codec::try_from(head[1]) else { return Err(error) };
                Content::Stored { codec, plain_bytes, stored_bytes }
            }
            _ => return Err(error),
        };
        let item = Self { number, content };
        let fits = plain_bytes as usize <= kind.max_plain_bytes() && stored_bytes <= plain_bytes;
        if item.encode() == bytes && fits && (number as usize) < items { Ok(item) } else { Err(error) }
    }
}

/// The bytes of a status or item head that a stream gave, as an array.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a stream gives exactly what it was asked for")
}

/// The stream priority of an urgency.
pub(crate) fn priority(urgency: Urgency) -> i32 {
    match urgency {
        Urgency::Lazy => 10,
        Urgency::Bulk => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> SnapshotId {
        SnapshotId([5; 32])
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes);
            }
        }

        #[test]
        fn any_item_head_is_canonical(bytes in any::<[u8; ITEM_BYTES]>(), small in 0_u32..70_000) {
            for kind in [Kind::Chunk, Kind::Node, Kind::Manifest] {
                let mut bytes = bytes;
                for _ in 0..2 {
                    if let Ok(item) = Item::decode(bytes, 9, kind) {
                        prop_assert_eq!(item.encode(), bytes);
                        prop_assert!(item.number < 9);
                    }
                    // Again with a head that has a chance.
                    let head = [bytes[0] % 12, 0, 0, 0, bytes[4] % 4, bytes[5] % 3, 0, 0];
                    bytes[..8].copy_from_slice(&head);
                    bytes[8..12].copy_from_slice(&small.to_le_bytes());
                    bytes[12..].copy_from_slice(&(small / 2).to_le_bytes());
                }
            }
        }

        #[test]
        fn places_there_and_back(
            indexes in proptest::collection::btree_set(0_u64..400, 1..200), level in 0_u8..4, hops in 0..=MAX_HOPS,
        ) {
            let nodes: Vec<_> = indexes.iter().map(|index| Place::Node(Position { level, index: *index })).collect();
            let chunks: Vec<_> = indexes.iter().map(|index| Place::Chunk(*index)).collect();
            for places in [nodes, chunks] {
                let shuffled = places.iter().rev().copied().collect();
                let request = Request::for_places(snapshot(), 3, shuffled, hops);
                prop_assert_eq!(&request.places(), &places);
                prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_rejected() {
        let chunks = |runs: &[(u64, u32)]| Request::Chunks {
            snapshot: snapshot(),
            disk: 0,
            chunks: runs.iter().map(|(first, count)| Run { first: *first, count: *count }).collect(),
            base: None,
            hops: 0,
        };
        assert!(Request::decode(&chunks(&[(0, 128), (200, 128)]).encode()).is_ok());
        for bad in
            [&[][..], &[(0, 0)], &[(0, 257)], &[(5, 1), (4, 1)], &[(0, 2), (1, 1)], &[(0, 1), (1, 1)], &[(u64::MAX, 2)]]
        {
            assert!(Request::decode(&chunks(bad).encode()).is_err(), "{bad:?}");
        }
        let hello = |number| Request::Hello { lazy: true, certificates: vec![vec![1].into(); number] };
        assert!(Request::decode(&hello(MAX_CERTIFICATES).encode()).is_ok());
        assert!(Request::decode(&hello(MAX_CERTIFICATES + 1).encode()).is_err());
        let level = Request::for_places(snapshot(), 0, vec![Place::Node(Position { level: 4, index: 0 })], 0);
        assert!(Request::decode(&level.encode()).is_err());
        let hops = Request::for_places(snapshot(), 0, vec![Place::Chunk(0)], MAX_HOPS + 1);
        assert!(Request::decode(&hops.encode()).is_err());
    }

    #[test]
    fn a_status_has_one_form() {
        for status in [Status::Ok, Status::Unknown, Status::Busy, Status::Malformed] {
            assert_eq!(Status::decode(status.encode()).unwrap(), status);
        }
        assert!(Status::decode([2, 0, 0, 0]).is_err());
        assert!(Status::decode([1, 9, 0, 0]).is_err());
        assert!(Status::decode([1, 0, 0, 1]).is_err());
    }

    #[test]
    fn an_item_longer_than_its_kind_is_rejected() {
        let stored = |plain_bytes, stored_bytes| Item {
            number: 0,
            content: Content::Stored { codec: Codec::Zstd, plain_bytes, stored_bytes },
        };
        assert!(Item::decode(stored(65536, 65536).encode(), 1, Kind::Chunk).is_ok());
        assert!(Item::decode(stored(65537, 10).encode(), 1, Kind::Chunk).is_err());
        assert!(Item::decode(stored(100, 101).encode(), 1, Kind::Chunk).is_err());
        assert!(Item::decode(stored(65536, 10).encode(), 1, Kind::Node).is_err());
        assert!(Item::decode(stored(65536, 10).encode(), 0, Kind::Chunk).is_err());
    }
}
