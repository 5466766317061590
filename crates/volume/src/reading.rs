//! Reads that wait: what is absent is fetched, all of a request at once, and the read is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use store::{StoreError, Urgency};

use crate::base::{Absent, Missing, TreeBase};
use crate::device::{DeviceError, Extent, Readiness};
use crate::locks::RwLock;
use crate::read_ahead::ReadAhead;
use crate::stack::{Lack, Stack};

/// How often the same part may be fetched, and yet not be here, before the read gives up.
const MOST_REPEATS: u32 = 8;

/// The stack that a disk is read from now; exchanged when the disk is frozen or sealed.
#[derive(Debug)]
pub(crate) struct StackCell {
    stack: RwLock<Arc<Stack>>,
    closed: AtomicBool,
    ahead: ReadAhead,
}

impl StackCell {
    pub(crate) fn new(stack: Stack) -> Arc<Self> {
        let stack = RwLock::new(Arc::new(stack));
        Arc::new(Self { stack, closed: AtomicBool::new(false), ahead: ReadAhead::default() })
    }

    /// The stack, also of a closed disk.
    pub(crate) fn stack(&self) -> Arc<Stack> {
        self.stack.read().clone()
    }

    pub(crate) fn replace(&self, stack: Stack) {
        *self.stack.write() = Arc::new(stack);
    }

    /// Makes every request fail from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn open(&self) -> Result<Arc<Stack>, DeviceError> {
        if self.closed.load(Ordering::Acquire) { Err(DeviceError::Closed) } else { Ok(self.stack()) }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.stack.read().size_bytes
    }

    pub(crate) fn base(&self) -> TreeBase {
        self.stack.read().base.clone()
    }

    pub(crate) fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        self.open()?.extents(offset, length, limit)
    }

    pub(crate) fn missing(&self) -> Result<Missing, DeviceError> {
        self.open()?.missing()
    }

    pub(crate) fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        let stack = self.open()?;
        stack.check_range(offset, buffer.len() as u64)?;
        let complete = stack.read(offset, buffer, &mut Lack::Stop)?;
        Ok(if complete { Readiness::Ready } else { Readiness::Wait })
    }

    /// Has what is here of a range fetched from the medium. What is wrong with it, the read itself will say.
    pub(crate) fn will_read(&self, offset: u64, length: u64) {
        if let Ok(stack) = self.open()
            && stack.check_range(offset, length).is_ok()
        {
            stack.will_read(offset, length);
        }
    }

    /// Reads, waiting for what is not here.
    pub(crate) fn read(self: &Arc<Self>, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        let cell = self.clone();
        async move {
            let mut patience = Patience::default();
            let mut first = true;
            loop {
                // Each time anew: what was written meanwhile need not be waited for.
                let stack = cell.open()?;
                let attempt = off_the_runtime(move || stack.attempt(offset, length));
                let (stack, absent) = match attempt.await?? {
                    Attempt::Done(bytes) => return Ok(bytes),
                    Attempt::Lacks(stack, absent) => (stack, absent),
                };
                patience.check(&stack, &absent)?;
                if std::mem::take(&mut first) {
                    cell.ahead.begin(&stack, offset, length);
                }
                stack.fetch(&absent, Urgency::Lazy).await?;
            }
        }
        .boxed()
    }
}

/// Notices a source that says it has brought something which is still not here.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    last: Option<Absent>,
    repeats: u32,
}

impl Patience {
    pub(crate) fn check(&mut self, stack: &Stack, absent: &[Absent]) -> Result<(), DeviceError> {
        let first = absent.first().copied();
        self.repeats = if self.last == first { self.repeats + 1 } else { 0 };
        self.last = first;
        match first {
            Some(absent) if self.repeats > MOST_REPEATS => {
                Err(stack.lost(format!("{}, which was fetched again and again,", absent.key())))
            }
            _ => Ok(()),
        }
    }
}

enum Attempt {
    Done(Bytes),
    Lacks(Arc<Stack>, Vec<Absent>),
}

impl Stack {
    fn attempt(self: Arc<Self>, offset: u64, length: usize) -> Result<Attempt, DeviceError> {
        self.check_range(offset, length as u64)?;
        let mut buffer = vec![0; length];
        let mut absent = Vec::new();
        let complete = self.read(offset, &mut buffer, &mut Lack::Collect(&mut absent))?;
        Ok(if complete { Attempt::Done(buffer.into()) } else { Attempt::Lacks(self, absent) })
    }

    /// Brings parts of the tree that are not here.
    pub(crate) async fn fetch(&self, absent: &[Absent], urgency: Urgency) -> Result<(), DeviceError> {
        let mut fetches = Vec::with_capacity(absent.len());
        for absent in absent {
            let wanted = absent.wanted(&self.base, urgency);
            let wanted = wanted.ok_or_else(|| self.lost(format!("{}, which has no origin,", absent.key())))?;
            fetches.push(self.context.source.fetch(wanted));
        }
        try_join_all(fetches).await?;
        Ok(())
    }

    fn lost(&self, what: String) -> DeviceError {
        StoreError::Damaged { what, path: self.context.files.directory.clone() }.into()
    }
}

/// Runs work that reads files on a thread where it may block.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DeviceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(DeviceError::Closed),
        },
    }
}
