//! Whatever is done to a disk tree, it says the same as a map from index to chunk: at every size up to 64 TiB, while
//! it grows, and while parts of it are absent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use format::tree::{self, AbsentNode, Change, Difference, Differing, Edit, Found, ReadNode, TreeError};
use format::{Node, Shape, chunk_id};
use proptest::prelude::*;
use types::{CHUNK_BYTES, ChunkId, MAX_DISK_BYTES, NodeId};

type Model = BTreeMap<u64, ChunkId>;

/// Nodes in memory, some of which can be made absent and brought back.
#[derive(Default)]
struct Nodes {
    here: RefCell<BTreeMap<NodeId, Vec<u8>>>,
    absent: RefCell<BTreeMap<NodeId, Vec<u8>>>,
    reads: Cell<usize>,
}

impl Nodes {
    fn emit(&self, id: NodeId, bytes: Vec<u8>) -> Result<(), Infallible> {
        assert_eq!(format::node_id(&bytes), id);
        assert!(bytes.len() <= format::node::MAX_NODE_BYTES);
        self.here.borrow_mut().insert(id, bytes);
        Ok(())
    }

    fn build(&self, chunks: u64, model: &Model) -> Option<NodeId> {
        self.rewrite(shape(0), None, shape(chunks), &model.iter().map(|(i, c)| Edit::Set(*i, *c)).collect::<Vec<_>>())
    }

    /// Rewrites, bringing back what turns out to be absent.
    fn rewrite(&self, old: Shape, root: Option<NodeId>, new: Shape, edits: &[Edit]) -> Option<NodeId> {
        self.retry(|| tree::rewrite(self, (old, root), new, edits.iter().cloned(), &mut |id, b| self.emit(id, b)))
    }

    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, TreeError<Infallible>>) -> T {
        for _ in 0..10_000 {
            match attempt() {
                Ok(done) => return done,
                Err(TreeError::Absent(absent)) => self.bring(absent),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("absent nodes without end");
    }

    fn bring(&self, absent: AbsentNode) {
        let bytes = self.absent.borrow_mut().remove(&absent.id).expect("only what is absent is asked for");
        assert_eq!(Node::decode(&bytes).unwrap().level(), absent.position.level);
        self.here.borrow_mut().insert(absent.id, bytes);
    }

    fn bring_all(&self) {
        self.here.borrow_mut().append(&mut self.absent.borrow_mut());
    }

    /// Makes every node absent whose id has a bit that the mask selects.
    fn lose(&self, mask: u8) {
        let lost: Vec<_> = self.here.borrow().keys().filter(|id| id.0[0] & mask != 0).copied().collect();
        for id in lost {
            let bytes = self.here.borrow_mut().remove(&id).unwrap();
            self.absent.borrow_mut().insert(id, bytes);
        }
    }
}

impl ReadNode for Nodes {
    type Error = Infallible;

    fn read_node(&self, id: &NodeId) -> Result<Option<Arc<Node>>, Infallible> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.here.borrow().get(id).map(|bytes| Arc::new(Node::decode(bytes).unwrap())))
    }
}

fn shape(chunks: u64) -> Shape {
    Shape::of(chunks * CHUNK_BYTES as u64)
}

fn chunk(number: u64) -> ChunkId {
    chunk_id(&number.to_le_bytes())
}

const MOST: u64 = MAX_DISK_BYTES / CHUNK_BYTES as u64;

/// Disks around the sizes at which a tree gets another level.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(1),
        2_u64..300_u64,
        Just(256),
        Just(257),
        65_000_u64..66_000_u64,
        Just(1 << 24),
        (1_u64 << 24)..(1_u64 << 25),
        Just(MOST)
    ]
}

/// Chunks of a disk, some of them neighbours.
fn models(chunks: u64) -> impl Strategy<Value = Model> {
    let place = prop_oneof![0..chunks, 0..chunks.min(600), chunks.saturating_sub(300)..chunks];
    prop::collection::btree_map(place, (0..5_u64).prop_map(chunk), 0..60)
}

/// Edits in ascending order from any two models' worth of places.
fn edits(chunks: u64) -> impl Strategy<Value = Vec<Edit>> {
    let bound = prop_oneof![0..=chunks, 0..=chunks.min(600), Just(chunks)];
    let span = (bound.clone(), bound, 0..8_u64);
    prop::collection::vec(span, 0..30).prop_map(move |mut spans| {
        spans.sort_unstable();
        let mut end = 0;
        let mut edits = Vec::new();
        for (left, right, what) in spans {
            let left = left.max(end);
            if left >= chunks {
                break;
            }
            if what < 5 {
                edits.push(Edit::Set(left, chunk(what)));
                end = left + 1;
            } else if left < right {
                edits.push(Edit::Clear(left..right));
                end = right;
            }
        }
        edits
    })
}

fn apply(model: &mut Model, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Set(index, id) => drop(model.insert(*index, *id)),
            Edit::Clear(range) => model.retain(|index, _| !range.contains(index)),
        }
    }
}

fn chunks_of(found: &[Found]) -> Model {
    let chunk = |found: &Found| match found {
        Found::Chunk { index, id } => Some((*index, *id)),
        _ => None,
    };
    found.iter().filter_map(chunk).collect()
}

fn walk(nodes: &Nodes, chunks: u64, root: Option<NodeId>, range: Range<u64>) -> Vec<Found> {
    tree::walk(nodes, shape(chunks), root, range).map(|found| found.unwrap()).collect()
}

/// A disk, and what it may grow and change to.
fn disks() -> impl Strategy<Value = (u64, Model, u64, Vec<Edit>)> {
    (sizes(), sizes()).prop_flat_map(|(one, other)| {
        let (small, large) = (one.min(other), one.max(other));
        (Just(small), models(small), Just(large), edits(large))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn lookup_and_walk((chunks, model, other, _) in disks(), cut in any::<(u64, u64)>()) {
        let nodes = Nodes::default();
        let root = nodes.build(chunks, &model);
        prop_assert_eq!(root.is_none(), model.is_empty());
        for index in model.keys().flat_map(|index| [index.saturating_sub(1), *index, index + 1]).chain([0, other]) {
            let found = tree::lookup(&nodes, shape(chunks), root, index).unwrap();
            prop_assert_eq!(found, model.get(&index).copied());
        }
        prop_assert_eq!(&chunks_of(&walk(&nodes, chunks, root, 0..chunks)), &model);
        for found in walk(&nodes, chunks, root, 0..chunks) {
            if let Found::Node { position, id } = found {
                prop_assert_eq!(tree::lookup_node(&nodes, shape(chunks), root, position).unwrap(), Some(id));
            }
        }
        let (left, right) = (cut.0 % chunks, cut.1 % chunks);
        let range = left.min(right)..left.max(right);
        let part: Model = model.range(range.clone()).map(|(index, id)| (*index, *id)).collect();
        prop_assert_eq!(chunks_of(&walk(&nodes, chunks, root, range)), part);
    }

    #[test]
    fn a_tree_depends_only_on_its_content((small, mut model, large, edits) in disks(), mask: u8) {
        let nodes = Nodes::default();
        let old = nodes.build(small, &model);
        nodes.lose(mask);
        let new = nodes.rewrite(shape(small), old, shape(large), &edits);
        apply(&mut model, &edits);
        let fresh = Nodes::default();
        prop_assert_eq!(new, fresh.build(large, &model));
        nodes.bring_all();
        prop_assert_eq!(chunks_of(&walk(&nodes, large, new, 0..large)), model);
    }

    #[test]
    fn what_a_rewrite_lacks_is_known_before((small, model, large, edits) in disks(), mask: u8) {
        let nodes = Nodes::default();
        let old = (shape(small), nodes.build(small, &model));
        nodes.lose(mask);
        let mut rounds = 0;
        loop {
            let absent = tree::lacking(&nodes, old, shape(large), edits.iter().cloned()).unwrap();
            if absent.is_empty() {
                break;
            }
            absent.into_iter().for_each(|node| nodes.bring(node));
            rounds += 1;
        }
        prop_assert!(rounds <= old.0.levels());
        let needed = nodes.absent.borrow().len();
        tree::rewrite(&nodes, old, shape(large), edits, &mut |id, bytes| nodes.emit(id, bytes)).unwrap();
        prop_assert_eq!(nodes.absent.borrow().len(), needed);
    }

    #[test]
    fn single_changes_are_edits((small, model, large, edits) in disks()) {
        let changes: Vec<Change> = edits.iter().map(|edit| match edit {
            Edit::Set(index, id) => (*index, Some(*id)),
            Edit::Clear(range) => (range.start, None),
        }).collect();
        let single: Vec<_> = changes.iter().map(|(index, id)| match id {
            Some(id) => Edit::Set(*index, *id),
            None => Edit::Clear(*index..index + 1),
        }).collect();
        let nodes = Nodes::default();
        let old = (shape(small), nodes.build(small, &model));
        let one = tree::update(&nodes, old, shape(large), changes, &mut |id, bytes| nodes.emit(id, bytes)).unwrap();
        prop_assert_eq!(one, nodes.rewrite(old.0, old.1, shape(large), &single));
    }

    #[test]
    fn two_trees_differ_where_their_maps_do((small, left, large, edits) in disks(), mask: u8) {
        let nodes = Nodes::default();
        let mut right = left.clone();
        apply(&mut right, &edits);
        let roots = [nodes.build(small, &left), nodes.build(large, &right)];
        nodes.lose(mask);
        let places: BTreeSet<_> = left.keys().chain(right.keys()).copied().collect();
        let expected: Vec<_> = places
            .into_iter()
            .map(|index| Difference { index, left: left.get(&index).copied(), right: right.get(&index).copied() })
            .filter(|difference| difference.left != difference.right)
            .collect();
        let found = nodes.retry(|| {
            let mut found = Vec::new();
            let sides = [(shape(small), roots[0]), (shape(large), roots[1])];
            tree::diff(&nodes, sides[0], sides[1], &mut |difference| found.push(difference)).map(|()| found)
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn what_differs_in_a_range_is_found_or_lies_below_what_is_absent(
        (small, left, large, edits) in disks(),
        mask: u8,
        from in 0..MOST,
    ) {
        let nodes = Nodes::default();
        let mut right = left.clone();
        apply(&mut right, &edits);
        let roots = [nodes.build(small, &left), nodes.build(large, &right)];
        nodes.lose(mask);
        let range = from % large..large;
        let sides = [(shape(small), roots[0]), (shape(large), roots[1])];
        let found: Vec<_> =
            tree::differences([&nodes, &nodes], sides, range.clone()).map(|item| item.unwrap()).collect();
        let mut absent = Vec::new();
        let mut chunks = Vec::new();
        for item in found {
            match item {
                Differing::Absent(node) => absent.push(node.position.chunks()),
                Differing::Chunk(difference) => chunks.push(difference),
            }
        }
        let places: BTreeSet<_> = left.keys().chain(right.keys()).copied().collect();
        let expected: Vec<_> = places
            .into_iter()
            .filter(|index| range.contains(index) && !absent.iter().any(|hidden| hidden.contains(index)))
            .map(|index| Difference { index, left: left.get(&index).copied(), right: right.get(&index).copied() })
            .filter(|difference| difference.left != difference.right)
            .collect();
        prop_assert_eq!(chunks, expected);
        prop_assert!(mask != 0 || absent.is_empty());
        prop_assert!(absent.is_sorted_by(|left, right| left.end <= right.start), "left to right");
    }

    #[test]
    fn what_others_hold_is_told_from_what_is_held_alone((small, left, large, edits) in disks(), mask: u8) {
        let nodes = Nodes::default();
        let mut right = left.clone();
        apply(&mut right, &edits);
        let tree = |chunks, model: &Model| tree::Tree {
            reader: &nodes,
            shape: shape(chunks),
            root: nodes.build(chunks, model),
        };
        let (left_tree, right_tree) = (tree(small, &left), tree(large, &right));
        let alone = right.iter().filter(|(index, id)| left.get(index) != Some(id)).count() as u64;
        let expected = tree::Held { alone, shared: right.len() as u64 - alone, absent_nodes: 0 };
        let others = [left_tree, tree(large, &Model::new()), left_tree];
        prop_assert_eq!(tree::held(right_tree, &others, usize::MAX).unwrap(), Some(expected));
        let none = tree::held(right_tree, &[], usize::MAX).unwrap().unwrap();
        prop_assert_eq!((none.alone, none.shared), (right.len() as u64, 0));
        prop_assert!(right.is_empty() || tree::held(right_tree, &others, 1).unwrap().is_none());
        nodes.lose(mask);
        let some = tree::held(right_tree, &others, usize::MAX).unwrap().unwrap();
        prop_assert!(some.alone + some.shared <= right.len() as u64);
        prop_assert!(some.absent_nodes > 0 || some.alone + some.shared == right.len() as u64);
    }

    #[test]
    fn what_is_absent_is_named_and_the_rest_is_found((chunks, model, _, _) in disks(), mask: u8) {
        let nodes = Nodes::default();
        let root = nodes.build(chunks, &model);
        nodes.lose(mask);
        let found = walk(&nodes, chunks, root, 0..chunks);
        let absent: Vec<_> = found
            .iter()
            .filter_map(|found| match found {
                Found::Absent(absent) => Some(*absent),
                _ => None,
            })
            .collect();
        let hidden = |index: &u64| absent.iter().any(|absent| absent.position.chunks().contains(index));
        let visible: Model = model.iter().filter(|(index, _)| !hidden(index)).map(|(index, id)| (*index, *id)).collect();
        prop_assert_eq!(chunks_of(&found), visible);
        for index in model.keys() {
            match tree::lookup(&nodes, shape(chunks), root, *index) {
                Ok(id) => prop_assert!(!hidden(index) && id == model.get(index).copied()),
                Err(TreeError::Absent(node)) => prop_assert!(absent.contains(&node)),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        for index in model.keys() {
            let id = nodes.retry(|| tree::lookup(&nodes, shape(chunks), root, *index));
            prop_assert_eq!(id, model.get(index).copied());
        }
    }
}

#[test]
fn clearing_a_disk_that_is_elsewhere_reads_nothing_of_it() {
    let nodes = Nodes::default();
    let model: Model = (0..MOST).step_by(1 << 22).map(|index| (index, chunk(index))).collect();
    let root = nodes.build(MOST, &model);
    nodes.lose(0xff);
    nodes.reads.set(0);
    assert_eq!(nodes.rewrite(shape(MOST), root, shape(MOST), &[Edit::Clear(0..MOST)]), None);
    assert_eq!(nodes.reads.get(), 0);
    // All but the first chunk: only the nodes on the way to that chunk are read.
    let left = nodes.rewrite(shape(MOST), root, shape(MOST), &[Edit::Clear(1..MOST)]);
    assert_eq!(left, Nodes::default().build(MOST, &model.into_iter().take(1).collect()));
}

#[test]
fn comparing_costs_the_difference() {
    let nodes = Nodes::default();
    let model: Model = (0..200_000).map(|index| (index, chunk(index % 7))).collect();
    let left = nodes.build(MOST, &model);
    let right = nodes.rewrite(shape(MOST), left, shape(MOST), &[Edit::Set(77_777, chunk(99))]);
    nodes.reads.set(0);
    let mut found = 0;
    tree::diff(&nodes, (shape(MOST), left), (shape(MOST), right), &mut |_| found += 1).unwrap();
    assert_eq!(found, 1);
    assert_eq!(nodes.reads.get(), 2 * usize::from(shape(MOST).levels()));
}

#[test]
fn a_node_out_of_place_is_rejected() {
    let nodes = Nodes::default();
    let leaf = Node::new(0, &[(200, [1; 32])]).unwrap();
    let (id, bytes) = leaf.identify();
    nodes.emit(id, bytes).unwrap();
    // Beyond the end of a disk of 100 chunks, and at the wrong level of a larger one.
    for chunks in [100, 300] {
        let result = tree::lookup(&nodes, shape(chunks), Some(id), 0);
        assert!(matches!(result, Err(TreeError::Invalid(format::NodeError::OutOfPlace(0)))), "{chunks}");
    }
    assert_eq!(tree::lookup(&nodes, shape(201), Some(id), 200).unwrap(), Some(ChunkId([1; 32])));
}

#[test]
fn shapes_have_the_least_height() {
    for (chunks, levels) in [(0, 1), (1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 3), (1 << 24, 3), (MOST, 4)] {
        assert_eq!(shape(chunks).levels(), levels, "{chunks} chunks");
    }
}

#[test]
#[should_panic(expected = "edits ascend")]
fn edits_that_descend_are_an_error_of_the_caller() {
    let edits = [Edit::Set(5, chunk(1)), Edit::Set(4, chunk(1))];
    Nodes::default().rewrite(shape(10), None, shape(10), &edits);
}

#[test]
#[should_panic(expected = "within the disk")]
fn edits_beyond_the_end_are_an_error_of_the_caller() {
    Nodes::default().rewrite(shape(10), None, shape(10), &[Edit::Clear(9..11)]);
}
