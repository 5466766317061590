//! Disks to try things on: repeatable from a seed, part noise, part text, part holes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Result;

/// A disk's content, whole, for comparing.
#[derive(Clone, PartialEq, Eq)]
pub struct Disk(pub Vec<u8>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Disk({} bytes)", self.0.len())
    }
}

const PIECE: usize = 64 * 1024;

/// A small generator of repeatable noise (xorshift64*, Vigna 2016); not for secrets.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// Begins from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.number().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

impl Disk {
    /// Makes a disk: a third of its pieces are holes, a third noise, a third compresses well.
    #[must_use]
    pub fn random(seed: u64, size_bytes: usize) -> Self {
        let mut noise = Noise::new(seed);
        let mut bytes = vec![0; size_bytes];
        for piece in bytes.chunks_mut(PIECE) {
            match noise.below(3) {
                0 => {}
                1 => noise.fill(piece),
                _ => {
                    let word = noise.number().to_le_bytes();
                    piece.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word[..chunk.len()]));
                }
            }
        }
        Self(bytes)
    }

    /// Writes it to a new sparse file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let file = File::create(path)?;
        file.set_len(self.0.len() as u64)?;
        for (number, piece) in self.0.chunks(PIECE).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, (number * PIECE) as u64)?;
            }
        }
        file.sync_all()?;
        Ok(())
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_from(path: &Path) -> Result<Self> {
        Ok(Self(std::fs::read(path)?))
    }

    /// The first byte at which two disks differ.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        if self.0.len() != other.0.len() {
            return Some(self.0.len().min(other.0.len()));
        }
        self.0.iter().zip(&other.0).position(|(left, right)| left != right)
    }
}
