//! Threads for work that nobody waits for at the moment: they leave the processors to whoever serves guests.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::device::DeviceError;
use crate::locks::Mutex;

/// What nobody waits for: on a processor that is busy with others about a thirtieth of what those get.
pub(crate) const LATER: i32 = 15;

/// What writes may have to wait for soon: about a tenth.
pub(crate) const SOON: i32 = 10;

/// How much work may wait for a thread; who brings more waits.
const QUEUE: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads of low priority; started when they are first needed, ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: usize,
    name: &'static str,
    /// As in nice(2).
    niceness: i32,
    jobs: OnceLock<Sender<Job>>,
}

impl Workers {
    pub(crate) fn new(threads: usize, name: &'static str, niceness: i32) -> Self {
        Self { threads, name, niceness, jobs: OnceLock::new() }
    }

    fn jobs(&self) -> &Sender<Job> {
        self.jobs.get_or_init(|| start(self.threads, self.name, self.niceness))
    }

    /// Runs work that reads files and computes, in its turn.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DeviceError> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Whoever asked may have stopped waiting.
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        });
        self.jobs().send(job).await.map_err(|_| DeviceError::Closed)?;
        match outcome.await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(DeviceError::Closed),
        }
    }

    /// Has work done later, unless too much waits already; whether it will be.
    pub(crate) fn try_run(&self, work: impl FnOnce() + Send + 'static) -> bool {
        let job: Job = Box::new(move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("background work has panicked");
            }
        });
        self.jobs().try_send(job).is_ok()
    }
}

fn start(threads: usize, name: &str, niceness: i32) -> Sender<Job> {
    let (send, receive) = channel(QUEUE);
    let receive = Arc::new(Mutex::new(receive));
    for number in 0..threads {
        let receive = receive.clone();
        let builder = std::thread::Builder::new().name(format!("brant-{name}-{number}"));
        if let Err(error) = builder.spawn(move || work(&receive, niceness)) {
            // Those that run do the work of all; without any, every request is told.
            tracing::warn!(%error, "could not start a thread for background work");
        }
    }
    send
}

fn work(jobs: &Mutex<Receiver<Job>>, niceness: i32) {
    // On Linux these are of the thread.
    let own = rustix::process::getpriority_process(None).unwrap_or(0);
    if own < niceness
        && let Err(error) = rustix::process::setpriority_process(None, niceness)
    {
        tracing::debug!(%error, "background work runs at full priority");
    }
    loop {
        let next = jobs.lock().blocking_recv();
        let Some(job) = next else { return };
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn work_is_done_beside_who_asks_with_less_right_to_the_processor() {
        let workers = Workers::new(2, "test", SOON);
        let own = rustix::process::getpriority_process(None).unwrap();
        let theirs = run(workers.run(|| rustix::process::getpriority_process(None).unwrap())).unwrap();
        assert_eq!(theirs, own.max(SOON));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), own);
    }

    #[test]
    fn a_panic_reaches_who_asked_and_the_thread_goes_on() {
        let workers = Workers::new(1, "test", LATER);
        let panicked = catch_unwind(AssertUnwindSafe(|| run(workers.run(|| panic!("on purpose")))));
        assert!(panicked.is_err());
        assert_eq!(run(workers.run(|| 7)).unwrap(), 7);
    }
}
