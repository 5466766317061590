//! What members ask of each other: one request on a stream of its own, and one reply to it.
//!
//! Both are deterministic CBOR behind their length (32 bits, little-endian). After the reply to [`Request::Device`] the stream
//! goes on with the frames of [`crate::RequestFrame`]; all other streams end there.

use std::collections::BTreeMap;

use bytes::BytesMut;
use format::{CanonicalError, from_canonical, to_canonical};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use swarm::transport::{ReceiveStream, SendStream, TransportError};
use types::{EndpointId, Keep, Name, NodeId, SnapshotId};

/// The longest request or reply, in bytes: a request to the API with its path.
pub const MAX_MESSAGE_BYTES: usize = (1 << 20) + (64 << 10);

/// The bytes before a message that say its length.
const LENGTH_BYTES: usize = 4;

/// What a member asks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Whether a volume is here. Answered by [`Reply::Here`], [`Reply::Elsewhere`] or [`Reply::Absent`].
    #[n(0)]
    Find {
        /// Its name.
        #[n(0)]
        volume: Name,
    },
    /// To use a volume on the rest of the stream. Answered by [`Reply::Opened`].
    #[n(1)]
    Device {
        /// Its name.
        #[n(0)]
        volume: Name,
    },
    /// To make a snapshot of what a volume is now, which the asker may fetch. Answered by [`Reply::Offered`].
    #[n(2)]
    Offer {
        /// Its name.
        #[n(0)]
        volume: Name,
    },
    /// To make the asker the home of a volume. Answered by [`Reply::Given`]: by the same one, as often as it is asked.
    #[n(3)]
    Give {
        /// Its name.
        #[n(0)]
        volume: Name,
    },
    /// Says that everything of a volume that was given has come. Answered by [`Reply::Settled`].
    #[n(4)]
    Settle {
        /// Its name.
        #[n(0)]
        volume: Name,
        /// The epoch in which it was given.
        #[n(1)]
        epoch: u64,
    },
    /// A request to the node's API, for a volume that is here. Answered by [`Reply::Answered`].
    #[n(5)]
    Forward {
        /// The method of HTTP.
        #[n(0)]
        method: String,
        /// The path, with its query.
        #[n(1)]
        path: String,
        /// The body.
        #[n(2)]
        body: ByteVec,
    },
    /// To keep a replica of a volume, whose changes follow on the rest of the stream. Answered by [`Reply::Replica`], or by
    /// [`Reply::Elsewhere`] where the asker is not the home any more.
    #[n(6)]
    Replicate {
        /// Its name.
        #[n(0)]
        volume: Name,
        /// How often it was given since it was made.
        #[n(1)]
        epoch: u64,
        /// What was agreed.
        #[n(2)]
        terms: Terms,
        /// The line of changes that the home still has, if any.
        #[n(3)]
        line: Option<u64>,
    },
    /// On such a stream: the line of changes begins, and what the volume is now is to be fetched. Answered by [`Reply::Ready`].
    #[n(7)]
    Begin {
        /// Its number.
        #[n(0)]
        line: u64,
    },
    /// On such a stream: changes follow as frames.
    #[n(8)]
    Continue {
        /// The number of the first one.
        #[n(0)]
        from: u64,
        /// The replica is what the volume was at some moment once it has the change of this number.
        #[n(1)]
        consistent: u64,
    },
    /// The replica is not current any more: what follows is answered without it. Answered by [`Reply::Settled`].
    #[n(9)]
    Outdate {
        /// Its name.
        #[n(0)]
        volume: Name,
        /// How often it was given since it was made.
        #[n(1)]
        epoch: u64,
    },
    /// The replica is not needed any more. Answered by [`Reply::Settled`].
    #[n(10)]
    Dismiss {
        /// Its name.
        #[n(0)]
        volume: Name,
        /// How often it was given since it was made.
        #[n(1)]
        epoch: u64,
    },
    /// Asks a witness. Answered by [`Reply::Settled`], or by [`Reply::Elsewhere`] where another member has taken over.
    #[n(11)]
    Witness {
        /// The volume.
        #[n(0)]
        volume: Name,
        /// How often it was given since it was made; a claim names the epoch that it begins.
        #[n(1)]
        epoch: u64,
        /// The member that keeps the replica.
        #[n(2)]
        replica: EndpointId,
        /// What is to be witnessed.
        #[n(3)]
        testimony: Testimony,
    },
}

/// How a replica is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Terms {
    /// Whether changes are answered only when the replica has them.
    #[n(0)]
    pub sync: bool,
    /// Who says which of the two goes on alone.
    #[n(1)]
    pub witness: Option<EndpointId>,
    /// How far the replica may be behind, in bytes of changes.
    #[n(2)]
    pub lag_bytes: u64,
}

/// What a witness records of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Testimony {
    /// The home says: it has everything that is answered, within its terms.
    #[n(0)]
    Current,
    /// The home says: it is left behind.
    #[n(1)]
    Outdated,
    /// Who keeps the replica says: it takes over. Refused where it was left behind.
    #[n(2)]
    Claim,
    /// The same, with whatever it lacks.
    #[n(3)]
    ClaimWithLoss,
}

/// What a member answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// It cannot be done.
    #[n(0)]
    Refused(#[n(0)] Refusal),
    /// The volume is here.
    #[n(1)]
    Here {
        /// Its size, in bytes.
        #[n(0)]
        size_bytes: u64,
        /// How often it was given since it was made.
        #[n(1)]
        epoch: u64,
    },
    /// The volume was here, and was given.
    #[n(2)]
    Elsewhere {
        /// To whom.
        #[n(0)]
        home: EndpointId,
        /// In which epoch.
        #[n(1)]
        epoch: u64,
    },
    /// Nothing is known of the volume.
    #[n(3)]
    Absent,
    /// The volume can be used on this stream.
    #[n(4)]
    Opened {
        /// Its size, in bytes.
        #[n(0)]
        size_bytes: u64,
        /// How often it was given since it was made. Whoever gives it makes everything durable that was acknowledged.
        #[n(1)]
        epoch: u64,
        /// What the machine is called for as long as it has power: what it acknowledged under another name and was not made
        /// durable is lost.
        #[n(2)]
        boot: String,
        /// Who used it in this epoch or later has seen nothing that it has lost.
        #[n(3)]
        since: u64,
    },
    /// The snapshot was made.
    #[n(5)]
    Offered(#[n(0)] Offered),
    /// The asker is the volume's home.
    #[n(6)]
    Given(#[n(0)] Box<Given>),
    /// It is noted.
    #[n(7)]
    Settled,
    /// What the API answered.
    #[n(8)]
    Answered {
        /// The status of HTTP.
        #[n(0)]
        status: u16,
        /// The body.
        #[n(1)]
        body: ByteVec,
    },
    /// The replica is ready to hear what it is to do.
    #[n(9)]
    Replica {
        /// Whether it stands on the line that the home named; else it is not current from now on, and fetches what the volume is.
        #[n(0)]
        resumed: bool,
        /// Up to which change it has come, where it knows.
        #[n(1)]
        applied: Option<u64>,
    },
    /// Nearly everything has been fetched.
    #[n(10)]
    Prefetched,
    /// The replica has been made.
    #[n(11)]
    Ready,
}

/// A snapshot for one member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Offered {
    /// Its id.
    #[n(0)]
    pub snapshot: SnapshotId,
    /// The disk's size, in bytes.
    #[n(1)]
    pub size_bytes: u64,
    /// The root of the disk's tree; none where it is a hole.
    #[n(2)]
    pub root: Option<NodeId>,
    /// Whether some of it came from other owners, so that it stays apart from the member's own data.
    #[n(3)]
    pub foreign: bool,
}

/// A volume that changes its home.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Given {
    /// What it is.
    #[n(0)]
    pub content: Offered,
    /// The epoch that begins.
    #[n(1)]
    pub epoch: u64,
    /// The published disk that it was cloned from.
    #[n(2)]
    pub origin: Option<Place>,
    /// What was set for it.
    #[n(3)]
    pub settings: Settings,
    /// How a replica of it is kept, and by whom.
    #[n(4)]
    pub replicate: Option<Replicate>,
    /// Who used it in this epoch or later has seen nothing that it has lost.
    #[n(5)]
    pub since: u64,
}

/// What an operator, or whoever drives the node, has set for a volume: it goes with the volume, and is known to its replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Settings {
    /// Its labels.
    #[n(0)]
    pub labels: BTreeMap<Name, String>,
    /// When snapshots of it are taken by themselves, where they are.
    #[n(1)]
    pub schedule: Option<Schedule>,
    /// For how long its past is kept, where it is.
    #[n(2)]
    pub protection: Option<Protection>,
}

/// For how long a volume's past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Protection {
    /// In milliseconds.
    #[n(0)]
    pub for_ms: u64,
    /// In how much space at most, in bytes.
    #[n(1)]
    pub space_bytes: Option<u64>,
}

/// When snapshots of a volume are taken by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Schedule {
    /// The bucket that they go to, by its name at whoever is home.
    #[n(0)]
    pub bucket: Name,
    /// The object.
    #[n(1)]
    pub object: Name,
    /// What the disk is called in them, where that was said.
    #[n(2)]
    pub disk: Option<Name>,
    /// How often, in milliseconds.
    #[n(3)]
    pub every_ms: u64,
    /// Which are kept; all of them where nothing was said.
    #[n(4)]
    pub keep: Option<Keep>,
    /// When the last one was taken, in milliseconds since 1970.
    #[n(5)]
    pub latest_ms: u64,
}

/// Who keeps a replica of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Replicate {
    /// The member.
    #[n(0)]
    pub to: EndpointId,
    /// What was agreed.
    #[n(1)]
    pub terms: Terms,
}

/// A disk of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Place {
    /// The snapshot.
    #[n(0)]
    pub snapshot: SnapshotId,
    /// The disk's number.
    #[n(1)]
    pub disk: u32,
}

/// Why something cannot be done, as the API says it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind of error, in the API's word.
    #[n(0)]
    pub code: String,
    /// What went wrong.
    #[n(1)]
    pub message: String,
    /// What to do about it.
    #[n(2)]
    pub hint: Option<String>,
}

/// A message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The other end is not there any more.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It sent what is no message.
    #[error("the member sent what is no message")]
    Malformed(#[from] CanonicalError),
}

/// Sends a message behind its length.
pub(crate) async fn send<M: Encode<()>>(stream: &mut dyn SendStream, message: &M) -> Result<(), TransportError> {
    let body = to_canonical(message);
    let length = u32::try_from(body.len()).expect("a message is short");
    let mut bytes = BytesMut::with_capacity(LENGTH_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.send(bytes.freeze()).await
}

/// Receives a message; the stream's end before the first of its bytes is an error, too.
pub(crate) async fn receive<M>(stream: &mut dyn ReceiveStream) -> Result<M, MessageError>
where
    M: Encode<()> + for<'b> Decode<'b, ()>,
{
    let bytes = stream.receive(LENGTH_BYTES).await?.ok_or(TransportError::Framing)?;
    let length = bytes.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    if length > MAX_MESSAGE_BYTES {
        return Err(CanonicalError::TooLong { length, limit: MAX_MESSAGE_BYTES }.into());
    }
    let body = stream.receive(length).await?.ok_or(TransportError::Framing)?;
    Ok(decode(&body)?)
}

/// Decodes a request, a reply, or what was set for a volume, without its length.
///
/// # Errors
/// Bytes that are not the one encoding of a message.
pub fn decode<M>(body: &[u8]) -> Result<M, CanonicalError>
where
    M: Encode<()> + for<'b> Decode<'b, ()>,
{
    from_canonical(body, MAX_MESSAGE_BYTES)
}
