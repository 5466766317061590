//! Clients that write and read one block after the other and check what they read: on connections that never reconnect, or
//! on a block device, past what the kernel remembers of it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use capture::{ForeignDisk as _, NbdDisk};
use rustix::fs::OFlags;
use testkit::disk::Noise;
use testkit::wait;

use crate::connect;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Several of them, each in a MiB of its own, from the disk's beginning on. What they find there at first must be zero.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<()>>>,
}

impl Load {
    /// Begins at an NBD export.
    #[must_use]
    pub fn start(uri: &str, clients: u64) -> Self {
        let uri = uri.to_owned();
        Self::begin(clients, move || connect(&uri))
    }

    /// Begins on a block device.
    #[must_use]
    pub fn start_on_device(device: &str, clients: u64) -> Self {
        let device = device.to_owned();
        Self::begin(clients, move || DirectFile::open(&device))
    }

    fn begin<D: Exercised>(clients: u64, open: impl Fn() -> Result<D> + Clone + Send + 'static) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients)
            .map(|client| {
                let (open, stop, done) = (open.clone(), Arc::clone(&stop), Arc::clone(&done));
                std::thread::spawn(move || exercise(&mut open()?, client, &stop, &done))
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Waits until further requests were answered.
    ///
    /// # Errors
    /// When one failed, or none is answered in time.
    pub fn goes_on(&self) -> Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + 100;
        wait::until("further requests are answered", || {
            if self.threads.iter().any(std::thread::JoinHandle::is_finished) {
                bail!("a request failed");
            }
            Ok((self.done.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
    }

    /// Ends.
    ///
    /// # Errors
    /// When a request failed, or something else was read than was written.
    ///
    /// # Panics
    /// When a client has panicked.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().try_for_each(|thread| thread.join().expect("a client panicked"))
    }
}

/// What can be exercised, a block at a time.
trait Exercised {
    fn read(&mut self, offset: u64, block: &mut [u8]) -> Result<()>;
    fn write(&mut self, offset: u64, block: &[u8]) -> Result<()>;
    fn flush(&mut self) -> Result<()>;
}

impl Exercised for NbdDisk {
    fn read(&mut self, offset: u64, block: &mut [u8]) -> Result<()> {
        Ok(self.read_at(offset, block)?)
    }

    fn write(&mut self, offset: u64, block: &[u8]) -> Result<()> {
        Ok(self.write_at(offset, block)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(NbdDisk::flush(self)?)
    }
}

/// A file that is read and written directly, through a buffer that is aligned as that wants it.
struct DirectFile {
    file: File,
    buffer: Vec<u8>,
    aligned: Range<usize>,
}

impl DirectFile {
    fn open(path: &str) -> Result<Self> {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file = File::options().read(true).write(true).custom_flags(direct).open(path)?;
        let buffer = vec![0; 2 * BLOCK];
        let begin = buffer.as_ptr().align_offset(BLOCK);
        Ok(Self { file, buffer, aligned: begin..begin + BLOCK })
    }
}

impl Exercised for DirectFile {
    fn read(&mut self, offset: u64, block: &mut [u8]) -> Result<()> {
        let aligned = &mut self.buffer[self.aligned.clone()];
        self.file.read_exact_at(aligned, offset)?;
        block.copy_from_slice(aligned);
        Ok(())
    }

    fn write(&mut self, offset: u64, block: &[u8]) -> Result<()> {
        let aligned = &mut self.buffer[self.aligned.clone()];
        aligned.copy_from_slice(block);
        Ok(self.file.write_all_at(aligned, offset)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }
}

fn exercise(disk: &mut impl Exercised, client: u64, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let mut noise = Noise::new(client);
    let mut expected = vec![0; MIB];
    let base = client * MIB as u64;
    let mut found = vec![0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        let at = usize::try_from(noise.below((MIB / BLOCK) as u64))? * BLOCK;
        disk.read(base + at as u64, &mut found)?;
        ensure!(found == expected[at..at + BLOCK], "a block is not what was written");
        noise.fill(&mut expected[at..at + BLOCK]);
        disk.write(base + at as u64, &expected[at..at + BLOCK])?;
        done.fetch_add(2, Ordering::Relaxed);
    }
    disk.flush()
}
