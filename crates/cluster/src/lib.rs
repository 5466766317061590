//! Volumes among the nodes of one cluster: used where they are not, and given from one node to another.
//!
//! **Participants.** *Members* are nodes of one operator that know each other by endpoint and trust each other with everything. A
//! volume has one *home*, the member where its journal and its tree are.
//!
//! **Promises.** All writes to a volume go to its home, so that there is one order of them, whoever makes them and wherever. A
//! home that cannot be reached is waited for: what was not answered is asked again, and what was answered and not yet made durable is
//! written again if the home's machine has lost it ([`RemoteVolume`]). Who uses a volume does not notice when its home
//! changes ([`Placed`]).
//!
//! **Not here.** Which volumes there are, who is a member, and how a home is given: the node answers these through [`Home`] and
//! [`Members`]. The protocol is described in `docs/protocol.md`.

mod copying;
mod epoch;
mod frame;
mod line;
pub mod message;
mod mirror;
mod peers;
mod placed;
mod remote;
mod service;
mod table;

pub use copying::{Position, Replica};
pub use epoch::{first_epoch, of_one_volume, supersedes};
pub use frame::{
    FrameError, MAX_PAYLOAD_BYTES, Operation, Outcome, REPLY_BYTES, REQUEST_BYTES, ReplyFrame, RequestFrame,
};
pub use mirror::{Mirror, MirrorHost, MirrorState, MirrorStatus, Standing};
pub use peers::{AskError, Connector, Peers};
pub use placed::{Placed, Switching};
pub use remote::{Members, RemoteVolume};
pub use service::{Asked, Home, Opened, Service};
