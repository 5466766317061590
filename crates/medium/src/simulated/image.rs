//! The bytes of a file, sparse, in pages that copies share.
//!
//! Invariant: what lies beyond the length reads as zeroes, but for the moment between
//! [`Image::put_sectors`] and [`Image::trim`].

use std::collections::BTreeMap;
use std::sync::Arc;

/// What is shared and counted, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;

const PAGE: usize = 4096;

/// What a medium writes whole or not at all, in bytes.
pub(super) const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    length: u64,
}

/// Splits a range into what lies in each page: the page, where in it, and how long.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (page, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let piece = (PAGE_BYTES - within).min(end - at);
            at += piece;
            (page, as_index(within), as_index(piece))
        })
    })
}

/// What is shorter than a simulated file fits memory.
pub(super) fn as_index(number: u64) -> usize {
    usize::try_from(number).expect("a simulated file fits memory")
}

impl Image {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }

    /// Reads; holes and what lies beyond the end are zeroes.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        for (page, within, piece) in pieces(offset, rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(piece);
            match self.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + piece]),
                None => part.fill(0),
            }
            rest = behind;
        }
    }

    /// How much of a write of so many bytes fits into `room_bytes` of new pages.
    pub(super) fn fitting(&self, offset: u64, length: u64, room_bytes: u64) -> u64 {
        let mut room = room_bytes / PAGE_BYTES;
        let mut fitting = 0;
        for (page, _, piece) in pieces(offset, length) {
            if !self.pages.contains_key(&page) {
                if room == 0 {
                    break;
                }
                room -= 1;
            }
            fitting += piece as u64;
        }
        fitting
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.put_sectors(offset, bytes);
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    /// Puts bytes in place without making the file longer.
    pub(super) fn put_sectors(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, within, piece) in pieces(offset, rest.len() as u64) {
            let (part, behind) = rest.split_at(piece);
            let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + piece].copy_from_slice(part);
            rest = behind;
        }
    }

    pub(super) fn set_length(&mut self, bytes: u64) {
        self.length = bytes;
        self.trim();
    }

    /// Drops what lies beyond the end.
    pub(super) fn trim(&mut self) {
        let _ = self.pages.split_off(&self.length.div_ceil(PAGE_BYTES));
        let within = self.length % PAGE_BYTES;
        if within > 0
            && let Some(last) = self.pages.get_mut(&(self.length / PAGE_BYTES))
        {
            Arc::make_mut(last)[as_index(within)..].fill(0);
        }
    }

    /// Makes a range zero, and gives back whole pages.
    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        for (page, within, piece) in pieces(offset, length) {
            if piece == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[within..within + piece].fill(0);
            }
        }
    }
}
