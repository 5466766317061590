//! A front-end that is connected: what it says, and the queues that it has set up.
//!
//! Invariant: when a session has ended, none of its queues changes the disk any more. What was under way is in the log, which
//! the front-end keeps.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::event::PollFlags;

use crate::call::{make, wait};
use crate::channel::{Channel, Received};
use crate::configuration::{
    Configuration, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_BLK_F_FLUSH, VIRTIO_F_EVENT_IDX, WRITEBACK_OFFSET, features,
};
use crate::inflight::Inflight;
use crate::memory::Memory;
use crate::message::{F_REPLY_ACK, InflightArea, Message, PROTOCOL_FEATURES, reply};
use crate::ring::{Addresses, MAX_QUEUE_SIZE, Ring, SharedMemory};
use crate::server::Shared;
use crate::worker::{Interrupt, Orders, Running, Worker, interrupt};

/// What came of a message, in words where it is wrong.
type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// A queue as the front-end sets it up.
#[derive(Debug, Default)]
struct Queue {
    size: u16,
    places: Option<Addresses>,
    base: u16,
    kick: Option<Arc<OwnedFd>>,
    interrupt: Interrupt,
    enabled: bool,
    running: Option<Running>,
}

/// A front-end that is connected.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    channel: Channel,
    features: u64,
    protocol_features: u64,
    memory: Option<SharedMemory>,
    inflight: Option<Arc<Inflight>>,
    queues: BTreeMap<u32, Queue>,
    /// The size of the disk that it was told.
    told_size_bytes: Option<u64>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, channel: Channel) -> Session {
        let (features, protocol_features, queues) = (0, 0, BTreeMap::new());
        let (memory, inflight, told_size_bytes) = (None, None, None);
        Session { shared, channel, features, protocol_features, memory, inflight, queues, told_size_bytes }
    }

    /// Serves until the front-end goes, or the server is stopped.
    pub(crate) fn run(mut self, listener: BorrowedFd<'_>) {
        loop {
            let channel = self.channel.clone();
            let events = [
                (channel.as_fd(), PollFlags::IN),
                (self.shared.stop.as_fd(), PollFlags::IN),
                (listener, PollFlags::IN),
            ];
            let [said, stopped, other] = match wait(events) {
                Ok(ready) => ready,
                Err(error) => break tracing::error!(%error, "a front-end cannot be waited for"),
            };
            if stopped {
                break;
            }
            if !said {
                if other {
                    self.shared.turn_away();
                }
                continue;
            }
            match channel.receive().map_err(Into::into).and_then(|received| self.handle(received)) {
                Ok(true) => {}
                Ok(false) => break tracing::debug!("a front-end has disconnected"),
                Err(error) => {
                    let reason = error.source().map(ToString::to_string);
                    break tracing::warn!(%error, reason, "the connection with a front-end is ended");
                }
            }
        }
        self.end();
    }

    fn end(&mut self) {
        self.channel.hang_up();
        self.shared.set_backend_channel(None);
        let running: Vec<Running> = self.queues.values_mut().filter_map(|queue| queue.running.take()).collect();
        running.iter().for_each(|running| running.orders.stop());
        for running in running {
            if running.thread.join().is_err() {
                tracing::error!("the thread of a queue has panicked");
            }
        }
    }

    /// Handles what was received; whether there is more to come.
    fn handle(&mut self, received: Option<Received>) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let Some(Received { code, need_reply, message, descriptors }) = received else { return Ok(false) };
        tracing::trace!(?message, "a front-end says");
        if let Some((payload, descriptor)) = self.answer(&message)? {
            let descriptor = descriptor.as_ref().map(OwnedFd::as_fd);
            self.channel.send(&reply(code, &payload), descriptor)?;
            return Ok(true);
        }
        let outcome = self.obey(message, descriptors);
        if need_reply && self.protocol_features & F_REPLY_ACK != 0 {
            let word = u64::from(outcome.is_err()).to_le_bytes();
            self.channel.send(&reply(code, &word), None)?;
            if let Err(error) = outcome {
                tracing::warn!(%error, code, "a front-end asked for what cannot be");
            }
            return Ok(true);
        }
        outcome.map(|()| true)
    }

    /// The reply of a message that has one of its own.
    #[expect(clippy::type_complexity, reason = "a payload, and a descriptor beside it")]
    fn answer(
        &mut self,
        message: &Message,
    ) -> Result<Option<(Vec<u8>, Option<OwnedFd>)>, Box<dyn Error + Send + Sync>> {
        let number = |number: u64| (number.to_le_bytes().to_vec(), None);
        Ok(Some(match message {
            Message::GetFeatures => number(self.offered()),
            Message::GetProtocolFeatures => number(PROTOCOL_FEATURES),
            Message::GetQueueNum => number(u64::from(self.shared.queues)),
            Message::GetVringBase { index } => {
                let base = self.stop_queue(*index)?;
                ([*index, u32::from(base)].iter().flat_map(|word| word.to_le_bytes()).collect(), None)
            }
            Message::GetConfig { offset, size_bytes, flags } => {
                (self.configuration(*offset, *size_bytes, *flags), None)
            }
            Message::GetInflightFd(area) => {
                let (area, file) = self.make_log(*area)?;
                (area.encode(), Some(file))
            }
            _ => return Ok(None),
        }))
    }

    /// Does what a message says.
    fn obey(&mut self, message: Message, mut descriptors: Vec<OwnedFd>) -> Outcome {
        match message {
            Message::SetFeatures(features) if features & !self.offered() != 0 => {
                return Err(format!("features {features:#x} were not offered").into());
            }
            Message::SetFeatures(features) => self.features = features,
            Message::SetProtocolFeatures(features) => self.protocol_features = features & PROTOCOL_FEATURES,
            Message::ResetOwner => self
                .queues
                .keys()
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|index| self.stop_queue(index).map(drop))?,
            Message::SetMemTable(regions) => self.set_memory(Memory::new(&regions, descriptors)?),
            Message::SetVringNum { index, size } => {
                let fits = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE);
                self.stopped(index)?.size = fits.ok_or_else(|| format!("a queue cannot have {size} requests"))?;
            }
            Message::SetVringAddr { index, descriptors, used, available } => {
                let memory = self
                    .memory
                    .as_ref()
                    .map(|memory| Arc::clone(&memory.read().unwrap_or_else(PoisonError::into_inner)));
                let place = |address| memory.as_ref().and_then(|memory| memory.guest_address(address));
                let places = (place(descriptors), place(available), place(used));
                let (Some(descriptors), Some(available), Some(used)) = places else {
                    return Err(format!("queue {index} is no memory of the guest").into());
                };
                if !available.is_multiple_of(2) || !used.is_multiple_of(4) {
                    return Err(format!("queue {index} is not aligned").into());
                }
                self.stopped(index)?.places = Some(Addresses { descriptors, available, used });
            }
            Message::SetVringBase { index, base } => {
                self.stopped(index)?.base = u16::try_from(base).map_err(|_| "the base of a queue is 16 bits")?;
            }
            Message::SetVringKick { index, none } => {
                let kick = if none { None } else { descriptors.pop().map(Arc::new) };
                self.queue(index)?.kick = Some(kick.ok_or("a queue without notifications is not served")?);
                self.start_if_ready(index)?;
            }
            Message::SetVringCall { index, none } => {
                let event = if none { None } else { descriptors.pop() };
                let slot = Arc::clone(&self.queue(index)?.interrupt);
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = event;
                // Who died may have answered and not said so.
                interrupt(&slot);
            }
            Message::SetVringEnable { index, enable } => self.enable(index, enable)?,
            Message::SetBackendReqFd => self.shared.set_backend_channel(descriptors.pop()),
            Message::SetConfig { offset: WRITEBACK_OFFSET, bytes } if matches!(bytes[..], [0 | 1]) => {
                self.shared.set_write_through(bytes[0] == 0)?;
            }
            Message::SetConfig { offset, .. } => return Err(format!("the configuration at {offset} is fixed").into()),
            Message::SetInflightFd(area) => {
                let file = descriptors.pop().ok_or("a log came without its file")?;
                self.inflight = Some(Arc::new(Inflight::open(area, file)?));
            }
            // Errors of a queue are said in this process's log.
            _ => {}
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        features(self.shared.target.device.read_only())
    }

    fn configuration(&mut self, offset: u32, size_bytes: u32, flags: u32) -> Vec<u8> {
        let disk_bytes = self.shared.target.device.size_bytes();
        self.told_size_bytes = Some(disk_bytes);
        let writeback = !self.shared.target.write_through.load(Ordering::Acquire);
        let configuration = Configuration { size_bytes: disk_bytes, queues: self.shared.queues, writeback };
        // A part that there is not is answered by none.
        let part = configuration.part(offset, size_bytes).unwrap_or_default();
        let length = u32::try_from(part.len()).unwrap_or(0);
        let mut payload: Vec<u8> = [offset, length, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
        payload.extend(part);
        payload
    }

    fn make_log(&mut self, area: InflightArea) -> Result<(InflightArea, OwnedFd), Box<dyn Error + Send + Sync>> {
        let InflightArea { queues, queue_size, .. } = area;
        if queues == 0 || queues > self.shared.queues || queue_size == 0 || queue_size > MAX_QUEUE_SIZE {
            return Err(format!("a log for {queues} queues of {queue_size} requests was asked for").into());
        }
        let (log, file) = Inflight::new(queues, queue_size)?;
        let area = log.area();
        self.inflight = Some(Arc::new(log));
        Ok((area, file))
    }

    fn set_memory(&mut self, memory: Memory) {
        let memory = Arc::new(memory);
        match &self.memory {
            Some(shared) => *shared.write().unwrap_or_else(PoisonError::into_inner) = memory,
            None => self.memory = Some(Arc::new(RwLock::new(memory))),
        }
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue, Box<dyn Error + Send + Sync>> {
        if index >= u32::from(self.shared.queues) {
            return Err(format!("there is no queue {index}").into());
        }
        Ok(self.queues.entry(index).or_default())
    }

    /// A queue that is not being served.
    fn stopped(&mut self, index: u32) -> Result<&mut Queue, Box<dyn Error + Send + Sync>> {
        let queue = self.queue(index)?;
        if queue.running.is_some() {
            return Err(format!("queue {index} is in use").into());
        }
        Ok(queue)
    }

    fn enable(&mut self, index: u32, enable: bool) -> Outcome {
        self.queue(index)?.enabled = enable;
        if enable { self.start_if_ready(index) } else { self.drain(index) }
    }

    /// Begins to serve a queue, if all is known of it.
    fn start_if_ready(&mut self, index: u32) -> Outcome {
        // Without the protocol's features, queues are enabled from the beginning.
        let always = self.features & VHOST_USER_F_PROTOCOL_FEATURES == 0;
        let event_index = self.features & VIRTIO_F_EVENT_IDX != 0;
        let always_durable = self.features & VIRTIO_BLK_F_FLUSH == 0;
        let (shared, memory, inflight) = (Arc::clone(&self.shared), self.memory.clone(), self.inflight.clone());
        let channel = self.channel.clone();
        let queue = self.queue(index)?;
        let (Some(kick), Some(places), None) = (&queue.kick, queue.places, &queue.running) else { return Ok(()) };
        if !queue.enabled && !always {
            return Ok(());
        }
        let memory = memory.ok_or("the guest's memory is not known")?;
        let inflight = inflight.ok_or("the front-end keeps no log of requests under way (INFLIGHT_SHMFD)")?;
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let log = inflight.queue(number, queue.size).ok_or_else(|| format!("queue {index} is not in the log"))?;
        let (ring, again) = Ring::new(memory, places, event_index, log)?;
        if ring.next_available() != queue.base {
            tracing::debug!(index, base = queue.base, again = again.len(), "a queue goes on where it was broken off");
        }
        let orders = Arc::new(Orders::new()?);
        let (kick, interrupt) = (Arc::clone(kick), Arc::clone(&queue.interrupt));
        // What the driver said before may have been heard by who died.
        make(&kick);
        let worker = Worker { target: Arc::clone(&shared.target), orders, ring, kick, interrupt, always_durable };
        queue.running = Some(worker.start(index, again, move || channel.hang_up())?);
        self.tell_size();
        Ok(())
    }

    /// Says that the configuration has changed, where the disk has another size than the front-end was told.
    fn tell_size(&mut self) {
        let now = self.shared.target.device.size_bytes();
        if self.told_size_bytes != Some(now) {
            self.shared.tell_configuration();
            self.told_size_bytes = Some(now);
        }
    }

    /// Stops serving a queue, when all that was taken is answered.
    fn drain(&mut self, index: u32) -> Outcome {
        let (channel, shared) = (self.channel.clone(), Arc::clone(&self.shared));
        let queue = self.queue(index)?;
        let Some(Running { orders, thread }) = queue.running.take() else { return Ok(()) };
        orders.drain();
        // A read may wait for long; a front-end that goes, and a server that is stopped, do not wait for it.
        let gone = PollFlags::RDHUP | PollFlags::HUP;
        let events =
            [(orders.ended.as_fd(), PollFlags::IN), (channel.as_fd(), gone), (shared.stop.as_fd(), PollFlags::IN)];
        let [ended, ..] = wait(events)?;
        if !ended {
            orders.stop();
        }
        queue.base = thread.join().map_err(|_| "the thread of a queue has panicked")?;
        if ended { Ok(()) } else { Err("a queue was given up while it was emptied".into()) }
    }

    /// Ends a queue, and says how far it was served.
    fn stop_queue(&mut self, index: u32) -> Result<u16, Box<dyn Error + Send + Sync>> {
        self.drain(index)?;
        let queue = self.queue(index)?;
        queue.kick = None;
        *queue.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(queue.base)
    }
}
