//! Volumes of version 1 of the journal, of which each layer has a file of its own, go on with the present one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use format::journal::{Home, JournalKeys, Record, RecordKind, encode_file_header};
use store::{ChunkStore, Domain, MemoryStore, NoSource};
use types::{LayerId, Name, SECTOR_BYTES, VolumeId};

use crate::base::TreeBase;
use crate::clock::Clock;
use crate::records::{
    self, BaseRecord, FileLayerRecord, HistoryRecord, JournalEnd, ProtectionRecord, StackRecord, VolumeRecord,
};
use crate::{BlockDevice, Durability, Volume, VolumeOptions, Volumes};

const SECTORS: u64 = 64;
const VOLUME: VolumeId = VolumeId([1; 16]);

/// What is written, and when: one sector full of a byte, or a zero.
type Write = (u64, Option<u8>, u64);

/// A layer's file with a few writes, and the record of it.
fn old_layer(directory: &Path, id: LayerId, first_sequence: u64, open: bool, writes: &[Write]) -> FileLayerRecord {
    let secret = [id.0[0]; 32];
    let (keys, home) = (JournalKeys::new(&secret), Home::Layer(id));
    let mut bytes = encode_file_header(id).to_vec();
    let mut last = first_sequence - 1;
    for (sector, byte, time_ms) in writes {
        last += 1;
        let data = byte.map(|byte| vec![byte; 512]).unwrap_or_default();
        let mut hasher = keys.data_hasher(&home);
        hasher.update(&data);
        let (kind, data_checksum) =
            if byte.is_some() { (RecordKind::Write, hasher.finalize()) } else { (RecordKind::Zero, [0; 16]) };
        let record = Record { kind, sequence: last, time_ms: *time_ms, sector: *sector, sectors: 1, data_checksum };
        let position = bytes.len() as u64;
        bytes.extend(keys.encode(&home, position, &record));
        bytes.extend(data);
    }
    std::fs::create_dir_all(directory.join("layers")).unwrap();
    std::fs::write(directory.join(format!("layers/{id}.journal")), &bytes).unwrap();
    let end = JournalEnd { bytes: bytes.len() as u64, sequence: last, torn_bytes: 0 };
    FileLayerRecord { version: 1, secret, first_sequence, end: (!open).then_some(end) }
}

fn disk(writes: &[Write]) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(SECTORS * SECTOR_BYTES).unwrap()];
    for (sector, byte, _) in writes {
        let start = usize::try_from(sector * SECTOR_BYTES).unwrap();
        disk[start..start + 512].fill(byte.unwrap_or(0));
    }
    disk
}

fn content(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(volume.size_bytes()).unwrap()];
    assert_eq!(volume.try_read(0, &mut bytes).unwrap(), crate::Readiness::Ready);
    bytes
}

#[test]
fn a_protected_volume_of_version_1_goes_on_with_its_past() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::new());
    let base = TreeBase::empty(SECTORS * SECTOR_BYTES, Domain(0));
    let stack = |layers: &[LayerId]| StackRecord {
        size_bytes: SECTORS * SECTOR_BYTES,
        base: BaseRecord::from(&base),
        layers: layers.to_vec(),
    };
    let (old, open) = (LayerId([7; 16]), LayerId([9; 16]));
    let first: [Write; 3] = [(0, Some(1), 1000), (5, Some(2), 1100), (6, Some(3), 1200)];
    let second: [Write; 3] = [(5, None, 2000), (6, Some(4), 2100), (40, Some(5), 3000)];
    let name: Name = "old".parse().unwrap();
    let volume =
        VolumeRecord { version: 2, name: name.clone(), stack: stack(&[open, old]), deleted: None, born_ms: None };
    let protection = ProtectionRecord { version: 2, for_ms: 1 << 40, since_ms: 500, space_bytes: None };
    let history =
        HistoryRecord { version: 2, before: stack(&[]), from_ms: 500, to_ms: 1500, bytes: 3 * 576, layer: Some(old) };
    let roots = vec![
        records::put(records::layer_name(old), &old_layer(directory.path(), old, 1, false, &first)),
        records::put(records::layer_name(open), &old_layer(directory.path(), open, 4, true, &second)),
        records::put(records::volume_name(VOLUME), &volume),
        records::put(records::protection_name(VOLUME), &protection),
        records::put(records::history_name(VOLUME, 1), &history),
    ];
    store.roots().apply(roots).unwrap();

    let now = Arc::new(AtomicU64::new(4000));
    let reopen = || {
        let now = now.clone();
        let clock = Clock::new(move || now.load(Ordering::SeqCst));
        let options = VolumeOptions { clock, ..VolumeOptions::default() };
        Volumes::open(directory.path(), store.clone(), Arc::new(NoSource), options).unwrap()
    };
    let all: Vec<_> = first.iter().chain(&second).copied().collect();
    for round in 0..3_u64 {
        let volumes = reopen();
        let volume = volumes.get(&name).unwrap();
        for (number, at_ms) in [999, 1000, 1150, 1999, 2000, 2500, 3000, 3500].into_iter().enumerate() {
            let clone: Name = format!("clone-{round}-{number}").parse().unwrap();
            let until: Vec<_> = all.iter().filter(|(.., time_ms)| *time_ms <= at_ms).copied().collect();
            let clone = volumes.clone_at(&volume, at_ms, &clone).unwrap();
            assert!(content(&clone) == disk(&until), "round {round}, as of {at_ms}");
        }
        let later: Vec<_> = all.iter().copied().chain((0..round).map(|round| (50 + round, Some(6), 5000))).collect();
        assert!(content(&volume) == disk(&later), "round {round}");
        now.store(5000 + round, Ordering::SeqCst);
        volume.write((50 + round) * SECTOR_BYTES, &[6; 512], Durability::Power).unwrap();
    }
}
