//! Whatever is done to a store in whatever order, with commits, crashes and lost indexes between, it says the same as a
//! map: what was committed is there, and nothing is there that was never put.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use store::conformance::{chunk_key, sample};
use store::{ChunkStore, Domain, LocalOptions, LocalStore};

const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 3000, cache_bytes: 20_000, hot_bytes: 0, reserve_bytes: 0 };
const OBJECTS: u32 = 12;
const DOMAINS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Put(u32, Domain),
    Commit,
    Root(u8, Option<u8>),
    Reopen,
    /// Reopens it without its index.
    LoseIndex,
    /// Reopens it after cutting the last pack, by so many bytes or to what was committed.
    CutTail(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..OBJECTS, 0..DOMAINS).prop_map(|(number, domain)| Step::Put(number, Domain(domain))),
        3 => Just(Step::Commit),
        2 => (0..4_u8, any::<Option<u8>>()).prop_map(|(name, value)| Step::Root(name, value)),
        1 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
        2 => (0..2000_u64).prop_map(Step::CutTail),
    ];
    prop::collection::vec(step, 1..60)
}

fn plain(number: u32) -> Vec<u8> {
    sample(number, 10 + usize::try_from(number).unwrap() * 97)
}

type Presence = BTreeMap<u32, BTreeSet<Domain>>;

#[derive(Default)]
struct Model {
    put: Presence,
    committed: Presence,
    roots: BTreeMap<String, Vec<u8>>,
    /// The last pack, and its length, at the last commit.
    committed_end: (u32, u64),
}

fn last_pack(directory: &Path) -> (u32, u64) {
    let packs = fs::read_dir(directory.join("packs")).unwrap().map(Result::unwrap);
    let numbered = packs.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        (name.trim_end_matches(".pack").parse().unwrap(), entry.metadata().unwrap().len())
    });
    numbered.max().unwrap_or_default()
}

impl Model {
    fn commit(&mut self, directory: &Path) {
        self.committed = self.put.clone();
        self.committed_end = last_pack(directory);
    }

    /// Cuts what a loss of power could take: bytes that were not committed, from the last pack only.
    fn cut(&self, directory: &Path, bytes: u64) {
        let (number, length) = last_pack(directory);
        let floor = if self.committed_end.0 == number { self.committed_end.1 } else { 0 };
        if number > 0 {
            let path = directory.join(format!("packs/{number:08}.pack"));
            let length = length.saturating_sub(bytes).max(floor).min(length);
            fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        }
    }

    /// Compares; after a crash, what was not committed may or may not be there, and the model learns which.
    fn check(&mut self, store: &LocalStore, crashed: bool) {
        for number in 0..OBJECTS {
            for domain in (0..DOMAINS).map(Domain) {
                let found = store.get(&chunk_key(&plain(number)), &domain.into()).unwrap();
                assert!(found.as_ref().is_none_or(|found| *found == plain(number)));
                let may = self.put.get(&number).is_some_and(|domains| domains.contains(&domain));
                let must = self.committed.get(&number).is_some_and(|domains| domains.contains(&domain));
                assert!(may || found.is_none(), "object {number} was never put in {domain:?}");
                assert!(found.is_some() || !(must || (may && !crashed)), "object {number} is lost from {domain:?}");
                if found.is_none() && may {
                    self.put.get_mut(&number).unwrap().remove(&domain);
                }
            }
        }
        self.put.retain(|_, domains| !domains.is_empty());
        assert_eq!(store.statistics().unwrap().objects, u64::try_from(self.put.len()).unwrap());
        assert_eq!(store.roots().list(""), self.roots.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(store.recovery().damages, 0);
    }
}

fn step(store: &mut Option<Arc<LocalStore>>, model: &mut Model, directory: &Path, step: Step) {
    let open = store.as_ref().unwrap();
    match step {
        Step::Put(number, domain) => {
            let put = open.put(&chunk_key(&plain(number)), domain, &plain(number)).unwrap();
            assert_eq!(put.new, !model.put.contains_key(&number));
            model.put.entry(number).or_default().insert(domain);
        }
        Step::Commit => {
            open.commit().unwrap();
            model.commit(directory);
        }
        Step::Root(name, value) => {
            let (name, value) = (format!("root/{name}"), value.map(|value| vec![value]));
            open.roots().apply(vec![(name.clone(), value.clone())]).unwrap();
            match value {
                Some(value) => drop(model.roots.insert(name, value)),
                None => drop(model.roots.remove(&name)),
            }
            model.commit(directory);
        }
        Step::Reopen | Step::LoseIndex | Step::CutTail(_) => {
            *store = None;
            match step {
                Step::LoseIndex => fs::remove_dir_all(directory.join("index")).unwrap(),
                Step::CutTail(bytes) => model.cut(directory, bytes),
                _ => {}
            }
            let opened = LocalStore::open(directory, OPTIONS).unwrap();
            model.check(&opened, matches!(step, Step::CutTail(_)));
            // What a reopened store has, it has read from its packs, whole.
            model.commit(directory);
            *store = Some(opened);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map(steps in steps()) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut store = Some(LocalStore::open(directory.path(), OPTIONS).unwrap());
        let mut model = Model::default();
        for one in steps {
            step(&mut store, &mut model, directory.path(), one);
        }
        model.check(&store.unwrap(), false);
    }
}
