//! One pack: an append-only file of records.
//!
//! Nothing read from it is believed before the record's checksum and the object's hash were checked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use format::Stored;
use format::pack::{
    FooterEntry, PACK_HEADER_BYTES, PACK_VERSION, PackError, PackHeader, PackSecret, RECORD_HEADER_BYTES, RecordHeader,
    RecordType, TRAILER_BYTES, decode_footer, decode_trailer,
};
use medium::{File, Medium, Open};
use quick_cache::sync::Cache;

use super::disk::failed;
use super::index::Entry;
use crate::{Key, StoreError, checked_plain};

/// How many packs are kept open for reading.
const OPEN_PACKS: usize = 128;

/// A footer's entries, and its place.
pub(crate) type Footer = (Vec<FooterEntry>, u64);

/// A pack, open for reading; the writer also appends to it.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    pub(crate) secret: PackSecret,
    /// What may be in it.
    pub(crate) version: u32,
    /// The header could not be read, and the secret is the store's: read what can be read, append nothing.
    pub(crate) header_damaged: bool,
}

fn pack_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.pack"))
}

/// The numbers of all packs in a directory, ascending.
pub(crate) fn list_packs(medium: &dyn Medium, directory: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for name in medium.list(directory).map_err(failed("list", directory))? {
        let number = name.to_str().and_then(|name| name.strip_suffix(".pack")).and_then(|number| number.parse().ok());
        numbers.extend(number.filter(|number| pack_path(directory, *number).file_name() == Some(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Pack {
    /// Creates a pack with its header. The directory must be synchronised before its content counts.
    pub(crate) fn create(packs: &Packs, number: u32) -> Result<Arc<Self>, StoreError> {
        let (path, secret, version) = (packs.path(number), packs.secret, PACK_VERSION);
        let file = packs.medium.open(&path, Open::New).map_err(failed("create", &path))?;
        if let Err(error) = file.write_all_at(&[&PackHeader { version, number, secret }.encode()], 0) {
            drop(packs.medium.remove(&path));
            return Err(failed("write", &path)(error));
        }
        Ok(Arc::new(Self { number, path, file, secret, version, header_damaged: false }))
    }

    /// Opens a pack. Where its header is damaged, the store's secret stands in.
    pub(crate) fn open(packs: &Packs, number: u32) -> Result<Arc<Self>, StoreError> {
        let path = packs.path(number);
        let file = packs.medium.open(&path, Open::Existing).map_err(failed("open", &path))?;
        let mut header = [0; PACK_HEADER_BYTES];
        let read = file.read_exact_at(&mut header, 0);
        if let Some(error) = read.err().filter(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
            return Err(failed("read", &path)(error));
        }
        let (secret, version, header_damaged) = match PackHeader::decode(&header) {
            Ok(header) if header.number == number => (header.secret, header.version, false),
            Err(error @ PackError::Newer(_)) => return Err(StoreError::Newer { path, what: error.to_string() }),
            Ok(_) | Err(_) => (packs.secret, PACK_VERSION, true),
        };
        Ok(Arc::new(Self { number, path, file, secret, version, header_damaged }))
    }

    /// Whether it was created when the power went, before even its header had reached the medium: nothing in it was
    /// ever committed.
    pub(crate) fn never_written(&self) -> Result<bool, StoreError> {
        Ok(self.read(0, PACK_HEADER_BYTES)?.is_none_or(|header| format::is_zero(&header)))
    }

    /// The file's length, in bytes.
    pub(crate) fn length(&self) -> Result<u64, StoreError> {
        self.file.length().map_err(failed("examine", &self.path))
    }

    /// Reads bytes; `None` where the file ends before them.
    pub(crate) fn read(&self, place: u64, length: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = vec![0; length];
        Ok(self.fill(place, &mut bytes)?.then_some(bytes))
    }

    /// Fills a buffer, and says whether it could: not where the file ends before.
    fn fill(&self, place: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
        match self.file.read_exact_at(buffer, place) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed("read", &self.path)(error)),
        }
    }

    /// Reads the header of the record at a place; `None` where there is none.
    pub(crate) fn header_at(&self, place: u64) -> Result<Option<RecordHeader>, StoreError> {
        let bytes = self.read(place, RECORD_HEADER_BYTES)?;
        Ok(bytes.and_then(|bytes| RecordHeader::decode(&bytes, &self.secret, place).ok()))
    }

    /// Reads an object, as stored and plain, and checks both the record and the hash.
    pub(crate) fn read_object(&self, key: &Key, entry: &Entry) -> Result<(Stored, Bytes), StoreError> {
        let damaged = || StoreError::Damaged { what: key.to_string(), path: self.path.clone() };
        if entry.stored_bytes as usize > key.kind.max_plain_bytes() {
            return Err(damaged());
        }
        let place = u64::from(entry.place);
        let bytes = self.record(place, entry.content, entry.stored_bytes as usize)?.ok_or_else(damaged)?;
        let header = RecordHeader::decode(&bytes, &self.secret, place).map_err(|_| damaged())?;
        let content = bytes.slice(RECORD_HEADER_BYTES..);
        if entry.content.is_some_and(|content| header.content_place(place) != content.into()) {
            return Err(damaged());
        }
        let (stored, plain) = checked_content(key, &header, content).ok_or_else(damaged)?;
        Ok((stored, plain))
    }

    /// Reads a record's header with its content behind it, wherever that lies; `None` where the file ends before.
    pub(crate) fn record(&self, place: u64, content: Option<u32>, length: usize) -> Result<Option<Bytes>, StoreError> {
        let Some(content) = content else {
            return Ok(self.read(place, RECORD_HEADER_BYTES + length)?.map(Bytes::from));
        };
        let mut bytes = vec![0; RECORD_HEADER_BYTES + length];
        let (header, rest) = bytes.split_at_mut(RECORD_HEADER_BYTES);
        let whole = self.fill(place, header)? && self.fill(content.into(), rest)?;
        Ok(whole.then(|| bytes.into()))
    }

    /// Says that an object will be read soon.
    pub(crate) fn will_read(&self, entry: &Entry) {
        let after = u64::from(entry.place) + RECORD_HEADER_BYTES as u64;
        let content = entry.content.map_or(after, u64::from);
        self.file.will_read(content, u64::from(entry.stored_bytes));
    }

    /// Reads the footer, and returns its entries and place; `None` where the pack is not full, or its footer is damaged.
    pub(crate) fn footer(&self) -> Result<Option<Footer>, StoreError> {
        let length = self.length()?;
        let Some(trailer_place) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
        let Some(trailer) = self.read(trailer_place, TRAILER_BYTES)? else { return Ok(None) };
        let Ok(place) = decode_trailer(&trailer, &self.secret) else { return Ok(None) };
        let Some(header) = self.header_at(place)? else { return Ok(None) };
        let payload_place = place + RECORD_HEADER_BYTES as u64;
        if payload_place + u64::from(header.stored_bytes) != trailer_place {
            return Ok(None);
        }
        let Some(payload) = self.read(payload_place, header.stored_bytes as usize)? else { return Ok(None) };
        Ok(decode_footer(&header, &payload).ok().map(|entries| (entries, place)))
    }
}

/// Where a record's content lies, if it does not follow it.
pub(crate) fn apart(header: &RecordHeader) -> Option<u32> {
    (header.record == RecordType::Apart).then_some(header.content)
}

/// The stored and plain bytes of an object's record, if they are what its header and key say.
pub(crate) fn checked_content(key: &Key, header: &RecordHeader, content: Bytes) -> Option<(Stored, Bytes)> {
    if !header.is_object() || header.kind != key.kind as u8 || header.hash != key.hash {
        return None;
    }
    if content.len() != header.stored_bytes as usize {
        return None;
    }
    let stored = Stored { codec: header.codec, plain_bytes: header.plain_bytes, bytes: content };
    let plain = checked_plain(key, &stored)?;
    Some((stored, plain))
}

/// The packs of a store, opened when they are read.
#[derive(Debug)]
pub(crate) struct Packs {
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) directory: PathBuf,
    pub(crate) secret: PackSecret,
    open: Cache<u32, Arc<Pack>>,
}

impl Packs {
    pub(crate) fn new(medium: Arc<dyn Medium>, directory: PathBuf, secret: PackSecret) -> Self {
        Self { medium, directory, secret, open: Cache::new(OPEN_PACKS) }
    }

    /// Removes a pack that nothing refers to any more. Who reads it now reads on.
    pub(crate) fn remove(&self, number: u32) -> Result<(), StoreError> {
        self.open.remove(&number);
        let path = self.path(number);
        match self.medium.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The file of a pack.
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        pack_path(&self.directory, number)
    }

    /// Opens a pack, or returns it where it is open.
    pub(crate) fn pack(&self, number: u32) -> Result<Arc<Pack>, StoreError> {
        self.open.get_or_insert_with(&number, || Pack::open(self, number))
    }
}
