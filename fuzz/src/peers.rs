//! What peers send each other for chunks.

use format::{Codec, Position};
use store::Kind;
use swarm::message::{Content, ITEM_BYTES, Item, MAX_ITEMS, MAX_REQUEST_BYTES, Place, REPLY_BYTES, Request, Status};
use types::SnapshotId;

pub(crate) fn request(data: &[u8]) -> bool {
    let Ok(request) = Request::decode(data) else { return false };
    assert!(data.len() <= MAX_REQUEST_BYTES);
    assert_eq!(request.encode(), data, "one form");
    let places = request.places();
    assert!(places.len() <= MAX_ITEMS as usize);
    assert!(places.is_sorted_by(|left, right| left < right), "each place once, in order");
    true
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let snapshot = SnapshotId([1; 32]);
    let chunks = [1, 2, 3, 700].map(Place::Chunk).to_vec();
    let nodes = [0, 9].map(|index| Place::Node(Position { level: 1, index })).to_vec();
    let places = [chunks, nodes, vec![Place::Manifest]];
    let mut seeds: Vec<_> = places.map(|places| Request::for_places(snapshot, 0, places, 2).encode()).to_vec();
    seeds.push(Request::Hello { lazy: true, certificates: vec![vec![1, 2, 3].into()] }.encode());
    seeds
}

/// The head of a reply and of an item.
pub(crate) fn reply(data: &[u8]) -> bool {
    let Some((head, rest)) = data.split_first_chunk::<REPLY_BYTES>() else { return false };
    let Ok(status) = Status::decode(*head) else { return false };
    assert_eq!(status.encode(), *head, "one form");
    let Some(bytes) = rest.first_chunk::<ITEM_BYTES>() else { return false };
    [Kind::Chunk, Kind::Node, Kind::Manifest].into_iter().any(|kind| {
        let Ok(item) = Item::decode(*bytes, 4, kind) else { return false };
        assert_eq!(item.encode(), *bytes, "one form");
        if let Content::Stored { plain_bytes, stored_bytes, .. } = item.content {
            assert!(plain_bytes as usize <= kind.max_plain_bytes() && stored_bytes <= plain_bytes);
        }
        item.number < 4
    })
}

pub(crate) fn reply_seeds() -> Vec<Vec<u8>> {
    let stored = Content::Stored { codec: Codec::Zstd, plain_bytes: 65536, stored_bytes: 1000 };
    let item = |content| [&Status::Ok.encode()[..], &Item { number: 3, content }.encode()].concat();
    [stored, Content::Hole, Content::Absent].map(item).to_vec()
}
