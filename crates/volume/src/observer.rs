//! Who is told of every change of a volume: whoever keeps a copy of it elsewhere.
//!
//! Invariant: an observer hears of all changes from the moment in which it begins, in the order in which they were made, and a change is
//! not answered before the observer lets it.

use std::fmt::Debug;
use std::sync::Arc;

use crate::device::{DeviceError, Durability};
use crate::volume::{Volume, Writer};

/// What becomes of a volume.
#[derive(Clone, Copy, Debug)]
pub enum Change<'c> {
    /// Data are written.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: &'c [u8],
    },
    /// A range reads as zeroes from now on.
    Zero {
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u64,
    },
    /// A range is not needed any more, and reads as zeroes.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u64,
    },
    /// The disk is larger from now on.
    Grow {
        /// Its size, in bytes.
        size_bytes: u64,
    },
    /// Everything before is made durable.
    Flush,
}

/// Who is told of a volume's changes.
pub trait Observer: Send + Sync + Debug {
    /// Waits until there is room for a change of so many bytes. Nothing is locked meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::Closed`] where nobody waits for answers any more.
    fn admit(&self, bytes: u64) -> Result<(), DeviceError>;

    /// Takes a change and gives it a number. Must not wait: nobody else can write meanwhile.
    fn changed(&self, change: Change<'_>, durability: Durability) -> u64;

    /// Waits until the change of a number may be answered.
    ///
    /// # Errors
    /// [`DeviceError::Closed`] where nobody waits for answers any more, or the volume is at another node by now.
    fn settled(&self, number: u64) -> Result<(), DeviceError>;

    /// Fails everything that waits; `for_good` also what comes later.
    fn abandon(&self, for_good: bool);
}

/// A change that was made, and that an observer may still keep from being answered.
#[derive(Debug)]
#[must_use]
pub(crate) struct Told(Option<(Arc<dyn Observer>, u64)>);

impl Told {
    pub(crate) const NOBODY: Self = Self(None);

    pub(crate) fn settle(self) -> Result<(), DeviceError> {
        self.0.map_or(Ok(()), |(observer, number)| observer.settled(number))
    }
}

impl Volume {
    /// Has somebody told of all changes from now on, in place of who was; nobody where none is given.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        let _writer = self.writer.lock();
        *self.observer.write() = observer;
    }

    /// Waits until the observer has room.
    pub(crate) fn admit_at_observer(&self, bytes: u64) -> Result<(), DeviceError> {
        let observer = self.observer.read().clone();
        observer.map_or(Ok(()), |observer| observer.admit(bytes))
    }

    /// Tells the observer of changes. The writer is held, so that they come in order.
    pub(crate) fn tell<'c>(
        &self,
        _: &Writer,
        changes: impl IntoIterator<Item = Change<'c>>,
        durability: Durability,
    ) -> Told {
        let Some(observer) = self.observer.read().clone() else { return Told::NOBODY };
        let number = changes.into_iter().map(|change| observer.changed(change, durability)).last();
        Told(number.map(|number| (observer, number)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use store::{MemoryStore, NoSource};

    use super::*;
    use crate::{BlockDevice as _, VolumeOptions, Volumes};

    /// One that lets everything be answered.
    #[derive(Debug)]
    struct Anybody;

    impl Observer for Anybody {
        fn admit(&self, _: u64) -> Result<(), DeviceError> {
            Ok(())
        }

        fn changed(&self, _: Change<'_>, _: Durability) -> u64 {
            0
        }

        fn settled(&self, _: u64) -> Result<(), DeviceError> {
            Ok(())
        }

        fn abandon(&self, _: bool) {}
    }

    #[test]
    fn observers_come_and_go_while_a_volume_is_written_and_flushed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let volumes = Volumes::open(directory.path(), store, Arc::new(NoSource), VolumeOptions::default()).unwrap();
        let volume = volumes.create(&"a".parse().unwrap(), 1 << 20).unwrap();
        let (ended, all) = mpsc::sync_channel(7);
        let over = Arc::new(AtomicBool::new(false));
        let run = |work: Box<dyn Fn(&Volume) + Send>| {
            let (volume, over, ended) = (volume.clone(), over.clone(), ended.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    work(&volume);
                }
                ended.send(()).unwrap();
            });
        };
        for _ in 0..3 {
            run(Box::new(|volume| volume.write(0, &[7; 512], Durability::Process).unwrap()));
            run(Box::new(|volume| volume.flush().unwrap()));
        }
        run(Box::new(|volume| {
            volume.observe(Some(Arc::new(Anybody)));
            volume.observe(None);
        }));
        std::thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        for _ in 0..7 {
            all.recv_timeout(Duration::from_secs(30)).expect("nobody waits for ever");
        }
    }
}
