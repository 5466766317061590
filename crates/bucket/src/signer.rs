//! Ed25519 keys (RFC 8032): of buckets, of writers, of endpoints and of Indexers, and the files that hold them.
//!
//! A key file is one line of text, `brant-key-1` and 64 hexadecimal digits of the secret seed, and must be readable by
//! its owner alone. A file appears complete or not at all, and is never overwritten. Secrets are wiped from memory.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use types::{BucketId, EndpointId, PublicKey};
use zeroize::Zeroizing;

/// What a key file begins with.
const PREFIX: &str = "brant-key-1 ";

/// The length of a key file, in bytes: the prefix, the seed's digits and a line feed.
const FILE_BYTES: usize = PREFIX.len() + 64 + 1;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The system gives no random numbers.
    #[error("no random numbers from the system")]
    Random(#[source] io::Error),
    /// A key file is never overwritten.
    #[error("the key file {} already exists", .0.display())]
    Exists(PathBuf),
    /// The file cannot be opened or read.
    #[error("could not read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("could not write the key file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read the file.
    #[error("the key file {} has mode {mode:04o}, so that others may read it: chmod 600 it, if you trust it still", path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} is not a brant key file", .0.display())]
    NotAKey(PathBuf),
}

/// A key pair that signs. Its secret half is never shown by `Debug` and is wiped when dropped.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
}

impl Signer {
    /// Makes a new key from the system's random numbers.
    ///
    /// # Errors
    /// The system has none.
    pub fn generate() -> Result<Self, SignerError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut seed[..]).map_err(|error| SignerError::Random(io::Error::other(error.to_string())))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key with a given secret seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(seed) }
    }

    /// The secret seed, for a transport that needs the same key.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// The bucket that this key creates.
    #[must_use]
    pub fn bucket_id(&self) -> BucketId {
        BucketId(self.public_key().0)
    }

    /// The endpoint that this key is the transport key of.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        EndpointId(self.public_key().0)
    }

    /// Signs `message` for the purpose that `context` names; contexts end in a zero byte.
    #[must_use]
    pub fn sign(&self, context: &[u8], message: &[u8]) -> [u8; 64] {
        self.key.sign(&in_context(context, message)).to_bytes()
    }

    /// Makes a new key and keeps it in a new file of mode 0600.
    ///
    /// # Errors
    /// The file exists or cannot be written; then nothing is left at `path` that was not there before.
    pub fn create(path: &Path) -> Result<Self, SignerError> {
        let signer = Self::generate()?;
        signer.save(path)?;
        Ok(signer)
    }

    /// Keeps the key in a new file of mode 0600, durably.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), SignerError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => SignerError::Exists(path.to_owned()),
            _ => SignerError::Write { path: path.to_owned(), source },
        };
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| SignerError::Random(io::Error::other(error.to_string())))?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.new", HEXLOWER.encode(&random)));
        let temporary = PathBuf::from(temporary);
        let written = self.write_new(&temporary).and_then(|()| fs::hard_link(&temporary, path)).map_err(error);
        let removed = fs::remove_file(&temporary).map_err(error);
        written?;
        removed?;
        sync_directory_of(path).map_err(error)
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut line = Zeroizing::new(String::with_capacity(FILE_BYTES));
        line.push_str(PREFIX);
        HEXLOWER.encode_append(&self.seed()[..], &mut line);
        line.push('\n');
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// The file is not there, may be read by others, or holds something else.
    pub fn load(path: &Path) -> Result<Self, SignerError> {
        let read = |source| SignerError::Read { path: path.to_owned(), source };
        let not_a_key = || SignerError::NotAKey(path.to_owned());
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(not_a_key());
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SignerError::Loose { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES + 2));
        file.take(FILE_BYTES as u64 + 1).read_to_end(&mut text).map_err(read)?;
        let digits = text.strip_prefix(PREFIX.as_bytes()).and_then(|rest| rest.strip_suffix(b"\n"));
        let digits = digits.filter(|digits| digits.len() == 64).ok_or_else(not_a_key)?;
        let mut seed = Zeroizing::new([0; 32]);
        HEXLOWER.decode_mut(digits, &mut seed[..]).map_err(|_| not_a_key())?;
        Ok(Self::from_seed(&seed))
    }

    /// Reads a key file, or makes it where there is none.
    ///
    /// # Errors
    /// As [`Signer::load`] and [`Signer::create`].
    pub fn load_or_create(path: &Path) -> Result<Self, SignerError> {
        match Self::load(path) {
            Err(SignerError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                match Self::create(path) {
                    Err(SignerError::Exists(_)) => Self::load(path),
                    made => made,
                }
            }
            loaded => loaded,
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public_key().short())
    }
}

/// Whether `signature` is `key`'s over `message` in `context`. Any bytes may be given; weak keys sign nothing.
#[must_use]
pub fn is_signed_by(key: PublicKey, context: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(&key.0)
        .is_ok_and(|key| key.verify_strict(&in_context(context, message), &Signature::from_bytes(signature)).is_ok())
}

fn in_context(context: &[u8], message: &[u8]) -> Vec<u8> {
    [context, message].concat()
}

/// Makes the names in a file's directory durable.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_there_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let signer = Signer::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(Signer::load_or_create(&path).unwrap().public_key(), signer.public_key());
        assert!(matches!(Signer::create(&path), Err(SignerError::Exists(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing temporary is left");
        assert_eq!(fs::metadata(&path).unwrap().len(), FILE_BYTES as u64);
    }

    #[test]
    fn what_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        Signer::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(Signer::load(&path), Err(SignerError::Loose { mode: found, .. }) if found == mode));
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(matches!(Signer::load(&path), Err(SignerError::Read { .. })));
        for bad in
            ["", "brant-key-1 \n", &format!("{PREFIX}{}\n", "x".repeat(64)), &format!("{PREFIX}{}", "0".repeat(66))]
        {
            fs::write(&path, bad).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Signer::load(&path), Err(SignerError::NotAKey(_))), "{bad:?}");
        }
        assert!(matches!(Signer::load(directory.path()), Err(SignerError::NotAKey(_))));
    }

    #[test]
    fn a_signature_holds_for_one_key_context_and_message() {
        let signer = Signer::from_seed(&[1; 32]);
        let signature = signer.sign(b"a\0", b"message");
        assert!(is_signed_by(signer.public_key(), b"a\0", b"message", &signature));
        assert!(!is_signed_by(signer.public_key(), b"b\0", b"message", &signature));
        assert!(!is_signed_by(signer.public_key(), b"a\0", b"massage", &signature));
        assert!(!is_signed_by(Signer::from_seed(&[2; 32]).public_key(), b"a\0", b"message", &signature));
        assert!(!is_signed_by(PublicKey([0; 32]), b"a\0", b"message", &[0; 64]), "a weak key");
        assert!(!format!("{signer:?}").contains("0101"));
    }
}
