//! The log of a bucket, verified entry by entry: a state machine without I/O.
//!
//! A [`Log`] is never empty and holds nothing that was not checked: each entry's encoding, bucket, number, predecessor,
//! author, signature and action, in that order. What cannot be checked changes nothing.

use format::entry::{Action, Entry, EntryError, MAX_ENTRY_BYTES, Reader, SIGNATURE_CONTEXT, SignedEntry, VERSION};
use types::{BucketId, EndpointId, EntryHash, Name, PublicKey, SnapshotId};

use crate::fork::ForkEvidence;
use crate::head::{Head, HeadOrder};
use crate::signer::{Signer, is_signed_by};
use crate::state::{State, Version};

/// Why an entry is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not an entry.
    #[error("log entry {sequence} is malformed")]
    Malformed {
        /// The number that it should have.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: EntryError,
    },
    /// No entries at all: a log begins with its creation.
    #[error("an empty log")]
    Empty,
    /// Belongs to another bucket.
    #[error("log entry {sequence} belongs to bucket {found}")]
    Bucket {
        /// The entry's number.
        sequence: u64,
        /// The bucket that it names.
        found: BucketId,
    },
    /// Not the next number.
    #[error("log entry {found} where entry {expected} was expected")]
    Sequence {
        /// The number that it has.
        found: u64,
        /// The number that comes next.
        expected: u64,
    },
    /// Does not follow the entry before it: the logs differ at an earlier place.
    #[error("log entry {sequence} does not follow the entry before it")]
    Previous {
        /// The entry's number.
        sequence: u64,
    },
    /// Its author had no right to write it.
    #[error("log entry {sequence} is by {author}, who may not write this bucket")]
    Writer {
        /// The entry's number.
        sequence: u64,
        /// Who it names.
        author: PublicKey,
    },
    /// Not signed by the author that it names.
    #[error("log entry {sequence} has a false signature")]
    Signature {
        /// The entry's number.
        sequence: u64,
    },
    /// A version that is not one more than the object's last.
    #[error("version {version} of {object} where version {expected} comes next")]
    VersionOrder {
        /// The object.
        object: Name,
        /// The version that the entry names.
        version: u64,
        /// The version that comes next.
        expected: u64,
    },
    /// A version that is not there.
    #[error("there is no version {version} of {object}")]
    NoSuchVersion {
        /// The object.
        object: Name,
        /// The version.
        version: u64,
    },
    /// The bucket's own key always writes: it is neither added nor removed.
    #[error("the bucket's own key cannot be added or removed as a writer")]
    BucketKey,
    /// Too long for an entry.
    #[error("a log entry of {length} bytes, where {MAX_ENTRY_BYTES} are allowed")]
    TooLong {
        /// Its length, in bytes.
        length: usize,
    },
    /// Entries that are all known and end before the log's head: someone is behind, or replays an old state.
    #[error("a log that ends at entry {offered}, where entry {known} is known")]
    Stale {
        /// The last entry that was offered.
        offered: u64,
        /// The last entry that is known.
        known: u64,
    },
    /// Two entries, both signed by writers, at one place.
    #[error("the log is forked: two signed entries with number {}", .0.sequence)]
    Fork(Box<ForkEvidence>),
}

/// A verified log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    bucket: BucketId,
    entries: Vec<SignedEntry>,
    hashes: Vec<EntryHash>,
    pub(crate) state: State,
}

impl Log {
    /// Creates a bucket: the log of one entry that its key signs.
    #[must_use]
    pub fn create(bucket_key: &Signer, time_ms: u64) -> Self {
        let bucket = bucket_key.bucket_id();
        let (author, action) = (bucket_key.public_key(), Action::Create);
        let first = Entry { version: VERSION, bucket, sequence: 0, previous: None, time_ms, author, action };
        let first = sign(bucket_key, &first);
        let hashes = vec![first.hash()];
        Self { bucket, entries: vec![first], hashes, state: State::default() }
    }

    /// Verifies a whole log.
    ///
    /// # Errors
    /// The first entry that is not acceptable, or there is none.
    pub fn replay(bucket: BucketId, entries: Vec<SignedEntry>) -> Result<Self, LogError> {
        if entries.is_empty() {
            return Err(LogError::Empty);
        }
        let mut log = Self { bucket, entries: Vec::new(), hashes: Vec::new(), state: State::default() };
        for entry in entries {
            log.apply(entry)?;
        }
        Ok(log)
    }

    /// Verifies the next entry and adds it.
    ///
    /// # Errors
    /// The entry is not acceptable; then the log is unchanged.
    pub fn apply(&mut self, signed: SignedEntry) -> Result<(), LogError> {
        let entry = self.verify_next(&signed)?;
        self.hashes.push(signed.hash());
        self.entries.push(signed);
        self.state.apply(entry.action, entry.sequence, entry.time_ms);
        Ok(())
    }

    /// Verifies what would be the next entry, without adding it.
    fn verify_next(&self, signed: &SignedEntry) -> Result<Entry, LogError> {
        let expected = self.length();
        let entry = decode(self.bucket, expected, signed)?;
        let sequence = entry.sequence;
        if sequence != expected {
            return Err(LogError::Sequence { found: sequence, expected });
        }
        if entry.previous != self.hashes.last().copied() {
            return Err(LogError::Previous { sequence });
        }
        if entry.action == Action::Create && entry.author.0 != self.bucket.0 {
            return Err(LogError::Writer { sequence, author: entry.author });
        }
        verify_author(self.bucket, &self.state, &entry, signed)?;
        self.state.check(self.bucket, &entry.action)?;
        Ok(entry)
    }

    /// Makes and signs the next entry; [`Log::apply`] adds it.
    ///
    /// # Errors
    /// The signer may not write, or the action may not follow.
    pub fn propose(&self, signer: &Signer, action: Action, time_ms: u64) -> Result<SignedEntry, LogError> {
        let (sequence, author) = (self.length(), signer.public_key());
        if action == Action::Create {
            return Err(LogError::Sequence { found: 0, expected: sequence });
        }
        if !self.state.may_write(self.bucket, author) {
            return Err(LogError::Writer { sequence, author });
        }
        self.state.check(self.bucket, &action)?;
        let previous = self.hashes.last().copied();
        let signed =
            sign(signer, &Entry { version: VERSION, bucket: self.bucket, sequence, previous, time_ms, author, action });
        check_length(&signed)?;
        Ok(signed)
    }

    /// Proposes and applies in one step: returns the entry that was added.
    ///
    /// # Errors
    /// As [`Log::propose`].
    pub fn write(&mut self, signer: &Signer, action: Action, time_ms: u64) -> Result<SignedEntry, LogError> {
        let signed = self.propose(signer, action, time_ms)?;
        self.apply(signed.clone())?;
        Ok(signed)
    }

    /// The log as it was when it had `length` entries.
    ///
    /// # Errors
    /// `length` is 0.
    pub fn prefix(&self, length: u64) -> Result<Self, LogError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(self.entries.len());
        if length == 0 {
            return Err(LogError::Empty);
        }
        let mut state = State::default();
        for (sequence, signed) in (0..).zip(&self.entries[..length]) {
            let entry = decode(self.bucket, sequence, signed)?;
            state.apply(entry.action, entry.sequence, entry.time_ms);
        }
        let (entries, hashes) = (self.entries[..length].to_vec(), self.hashes[..length].to_vec());
        Ok(Self { bucket: self.bucket, entries, hashes, state })
    }

    /// Drops the entries from `length` on and puts back the state of then.
    pub(crate) fn roll_back(&mut self, length: usize, state: State) {
        self.entries.truncate(length);
        self.hashes.truncate(length);
        self.state = state;
    }

    /// The bucket.
    #[must_use]
    pub const fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// The number of entries; at least one.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.entries.len() as u64
    }

    /// All entries, the first first.
    #[must_use]
    pub fn entries(&self) -> &[SignedEntry] {
        &self.entries
    }

    /// The entries from a number on; none beyond the end.
    #[must_use]
    pub fn entries_from(&self, sequence: u64) -> &[SignedEntry] {
        let start = usize::try_from(sequence).unwrap_or(usize::MAX).min(self.entries.len());
        &self.entries[start..]
    }

    /// The hash of an entry.
    #[must_use]
    pub fn hash_at(&self, sequence: u64) -> Option<EntryHash> {
        self.hashes.get(usize::try_from(sequence).ok()?).copied()
    }

    /// The newest entry.
    ///
    /// # Panics
    /// Never: a log is not empty.
    #[must_use]
    pub fn head(&self) -> Head {
        let Some(hash) = self.hashes.last().copied() else { unreachable!("a log is never empty") };
        Head { sequence: self.length() - 1, hash }
    }

    /// How a head that someone offers relates to this log.
    #[must_use]
    pub fn compare(&self, offered: Head) -> HeadOrder {
        match self.hash_at(offered.sequence) {
            None => HeadOrder::Newer,
            Some(known) if known != offered.hash => HeadOrder::Diverged,
            Some(_) if offered.sequence + 1 == self.length() => HeadOrder::Same,
            Some(_) => HeadOrder::Older,
        }
    }

    /// All objects with their versions (version 1 first), by name.
    pub fn objects(&self) -> impl Iterator<Item = (&Name, &[Version])> {
        self.state.objects.iter().map(|(name, versions)| (name, versions.as_slice()))
    }

    /// A version of an object, retired or not.
    #[must_use]
    pub fn version(&self, object: &Name, version: u64) -> Option<&Version> {
        self.state.version(object, version)
    }

    /// The newest version of an object that is not retired, with its number.
    #[must_use]
    pub fn latest(&self, object: &Name) -> Option<(u64, &Version)> {
        let versions = self.state.objects.get(object)?;
        (1..).zip(versions).filter(|(_, version)| !version.retired).last()
    }

    /// The number that an object's next version will have.
    #[must_use]
    pub fn next_version(&self, object: &Name) -> u64 {
        self.state.next_version(object)
    }

    /// Where a snapshot is a version: object and number, oldest first; retired ones too.
    #[must_use]
    pub fn snapshot_versions(&self, snapshot: SnapshotId) -> &[(Name, u64)] {
        self.state.snapshots.get(&snapshot).map_or(&[], Vec::as_slice)
    }

    /// Every snapshot that is a version, retired or not.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        self.state.snapshots.keys().copied()
    }

    /// Whether a snapshot is a version that is not retired.
    #[must_use]
    pub fn offers(&self, snapshot: SnapshotId) -> bool {
        let versions = self.snapshot_versions(snapshot);
        versions.iter().any(|(object, version)| self.version(object, *version).is_some_and(|found| !found.retired))
    }

    /// Who may read, in order.
    pub fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.state.readers.iter()
    }

    /// Who may write beside the bucket's own key, in order.
    pub fn writers(&self) -> impl Iterator<Item = PublicKey> {
        self.state.writers.iter().copied()
    }

    /// Whether a key may write the next entry.
    #[must_use]
    pub fn may_write(&self, author: PublicKey) -> bool {
        self.state.may_write(self.bucket, author)
    }

    /// Whether an endpoint may read, given the accounts that Indexers certify it to belong to.
    ///
    /// `certified` must come from certificates that were verified, for this endpoint, just now.
    #[must_use]
    pub fn readable_by(&self, endpoint: EndpointId, certified: &[(PublicKey, Name)]) -> bool {
        let readers = &self.state.readers;
        readers.contains(&Reader::Everyone)
            || readers.contains(&Reader::Endpoint { endpoint })
            || certified.iter().any(|(indexer, account)| {
                readers.contains(&Reader::Account { indexer: *indexer, account: account.clone() })
            })
    }
}

/// Decodes an entry and checks that it is of this bucket.
pub(crate) fn decode(bucket: BucketId, expected: u64, signed: &SignedEntry) -> Result<Entry, LogError> {
    check_length(signed)?;
    let malformed = |source| LogError::Malformed { sequence: expected, source };
    let entry = Entry::decode(&signed.entry).map_err(malformed)?;
    if entry.bucket != bucket {
        return Err(LogError::Bucket { sequence: entry.sequence, found: entry.bucket });
    }
    Ok(entry)
}

/// Checks that an entry's author may write and has signed it.
pub(crate) fn verify_author(
    bucket: BucketId,
    state: &State,
    entry: &Entry,
    signed: &SignedEntry,
) -> Result<(), LogError> {
    let (sequence, author) = (entry.sequence, entry.author);
    if !state.may_write(bucket, author) {
        return Err(LogError::Writer { sequence, author });
    }
    if !is_signed_by(author, SIGNATURE_CONTEXT, &signed.entry, &signed.signature) {
        return Err(LogError::Signature { sequence });
    }
    Ok(())
}

pub(crate) fn sign(signer: &Signer, entry: &Entry) -> SignedEntry {
    let bytes = entry.encode();
    let signature = signer.sign(SIGNATURE_CONTEXT, &bytes);
    SignedEntry { entry: bytes, signature }
}

/// An entry must fit the limit with its signature and the framing of both.
fn check_length(signed: &SignedEntry) -> Result<(), LogError> {
    let length = signed.entry.len() + signed.signature.len() + 8;
    if length > MAX_ENTRY_BYTES { Err(LogError::TooLong { length }) } else { Ok(()) }
}
