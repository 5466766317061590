//! The kernel's ublk driver (drivers/block/ublk_drv.c, Documentation/block/ublk.rst): block devices that a process serves.
//!
//! Participants: the driver, which takes the requests of a device's users; and this process, which asks for them at
//! `/dev/ublkcN` and answers them. [`Control`] makes, starts, takes over and removes devices, [`Queue`] is the line of requests
//! of one. Invariants: a process that dies leaves its devices, and the driver keeps what was not answered for who takes them
//! over; data goes by reads and writes of the device's file (`UBLK_F_USER_COPY`), so the kernel knows no address of this
//! process but that of a control command's buffer. All unsafe code is in `ring`
//! (`docs/decisions/019-ublk.md`). It knows nothing of disks, exports or attachments.

mod control;
mod layout;
mod queue;
mod ring;

pub use control::{Control, UblkError, numbers};
pub use layout::{DeviceInfo, DeviceState, Features, NewDevice, Operation, Parameters, Request};
pub use queue::Queue;
