//! Clients that write and read one block after the other and check what they read, on connections that never reconnect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use capture::ForeignDisk as _;
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
    /// Begins.
    #[must_use]
    pub fn start(uri: &str, clients: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients)
            .map(|client| {
                let (uri, stop, done) = (uri.to_owned(), Arc::clone(&stop), Arc::clone(&done));
                std::thread::spawn(move || exercise(&uri, client, &stop, &done))
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

fn exercise(uri: &str, client: u64, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let disk = connect(uri)?;
    let mut noise = Noise::new(client);
    let mut expected = vec![0; MIB];
    let base = client * MIB as u64;
    let mut found = vec![0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        let at = usize::try_from(noise.below((MIB / BLOCK) as u64))? * BLOCK;
        disk.read_at(base + at as u64, &mut found)?;
        ensure!(found == expected[at..at + BLOCK], "a block is not what was written");
        noise.fill(&mut expected[at..at + BLOCK]);
        disk.write_at(base + at as u64, &expected[at..at + BLOCK])?;
        done.fetch_add(2, Ordering::Relaxed);
    }
    disk.flush()?;
    Ok(())
}
