//! Hand-over: how a node's successor, perhaps of another version, goes on with the connections of running guests.
//!
//! Participants: the node that runs, the *predecessor*; a second process for the same directory, its *successor*; and
//! the *guard*, which the predecessor becomes. The predecessor stops every export between two requests
//! ([`export::NbdServer::suspend`]), puts state and sockets into a `Parcel`, and then replaces its own program
//! by the guard (`exec`, in the same process), by which it lets go of store, journals, catalog and network, whatever
//! still held on to them. The guard sends the parcel to the successor. When that says that it serves, the guard ends;
//! when it fails or dies first, the guard becomes the old node again, by the same means, with the same sockets.
//!
//! Invariants: at every moment one process has the parcel and no other receives from its sockets; the successor serves
//! only after it has said so, and the guard takes back only when the successor is dead. A guest sees a pause. What a
//! process sends is versioned, and both sides say which versions they know before anything is stopped.
//!
//! Tasks, and everything else that is under way, ends and goes on as at any other restart.

mod guard;
mod parcel;
mod passing;
mod predecessor;
mod successor;

pub use guard::{GuardError, guard};
pub use parcel::{ParcelError, decode_contents};
pub use predecessor::HandOver;

pub(crate) use parcel::Parcel;
pub(crate) use predecessor::{Successor, await_successor, same_program};
pub(crate) use successor::{Predecessor, Taken, ask, take_back};

/// The name of the socket, in the node's directory, at which a successor asks.
pub(crate) const HAND_OVER_SOCKET: &str = "hand-over.sock";

/// The oldest and the newest version of the parcel that this program reads; it writes the newest.
pub(crate) const VERSIONS: (u32, u32) = (1, 1);
