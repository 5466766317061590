//! A file's content: what reads see, what the medium holds, and what lies between.

use std::sync::Arc;

use super::chance::Survival;
use super::image::{Image, SECTOR_BYTES, as_index};

/// A change that was not synchronised yet.
#[derive(Clone, Debug)]
struct Change {
    /// Its place among all changes of the medium.
    number: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// Whole sectors as they were after the change, from a multiple of a sector on.
    Sectors(u64, Arc<[u8]>),
    /// The length after the change.
    Length(u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// What reads see.
    cache: Image,
    /// What a loss of power leaves for sure.
    disk: Image,
    unsynced: Vec<Change>,
}

impl Content {
    pub(super) fn cache(&self) -> &Image {
        &self.cache
    }

    /// The room that it takes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.cache.allocated_bytes()
    }

    pub(super) fn write(&mut self, number: u64, offset: u64, bytes: &[u8]) {
        let before = self.cache.length();
        self.cache.write(offset, bytes);
        self.note_sectors(number, offset, bytes.len() as u64);
        if self.cache.length() != before {
            self.note(number, What::Length(self.cache.length()));
        }
    }

    pub(super) fn set_length(&mut self, number: u64, bytes: u64) {
        if bytes != self.cache.length() {
            self.cache.set_length(bytes);
            self.note(number, What::Length(bytes));
        }
    }

    pub(super) fn punch(&mut self, number: u64, offset: u64, length: u64) {
        let length = length.min(self.cache.length().saturating_sub(offset));
        self.cache.punch(offset, length);
        self.note_sectors(number, offset, length);
    }

    fn note_sectors(&mut self, number: u64, offset: u64, length: u64) {
        let first = offset / SECTOR_BYTES * SECTOR_BYTES;
        let end = (offset + length).next_multiple_of(SECTOR_BYTES);
        let mut sectors = vec![0; as_index(end - first)];
        self.cache.read(first, &mut sectors);
        self.note(number, What::Sectors(first, sectors.into()));
    }

    fn note(&mut self, number: u64, what: What) {
        self.unsynced.push(Change { number, what });
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match change.what {
                What::Sectors(first, sectors) => self.disk.put_sectors(first, &sectors),
                What::Length(bytes) => self.disk.set_length(bytes),
            }
        }
        self.disk.trim();
    }

    /// Fails to make everything durable: some of it is, and nobody will try the rest again. Reads see it still, or see
    /// what is durable (Rebello et al., ATC 2020).
    pub(super) fn fail_to_sync(&mut self, survival: &mut Survival, forget: bool) {
        self.disk = self.survivor(survival);
        self.unsynced.clear();
        if forget {
            self.cache = self.disk.clone();
        }
    }

    /// What a loss of power leaves.
    pub(super) fn survivor(&self, survival: &mut Survival) -> Image {
        let mut disk = self.disk.clone();
        for Change { number, what } in &self.unsynced {
            match what {
                What::Sectors(first, sectors) => {
                    let sectors = sectors.chunks(as_index(SECTOR_BYTES));
                    for (place, sector) in (*first..).step_by(as_index(SECTOR_BYTES)).zip(sectors) {
                        if survival.keeps(*number) {
                            disk.put_sectors(place, sector);
                        }
                    }
                }
                What::Length(bytes) if survival.keeps(*number) => disk.set_length(*bytes),
                What::Length(_) => {}
            }
        }
        disk.trim();
        disk
    }

    /// The content of a file that was on the medium all the time.
    pub(super) fn of(disk: Image) -> Self {
        Self { cache: disk.clone(), disk, unsynced: Vec::new() }
    }
}
