//! Generic netlink: what a family of the kernel is asked, and what it tells everybody (netlink(7),
//! Documentation/userspace-api/netlink in Linux).
//!
//! A message is a header, the family's command, and attributes, each a length, a kind and a value, padded to four bytes.
//! Invariant: an answer belongs to the request that is under way, or is passed over; what does not fit into its own lengths
//! is read as far as it fits.
#![expect(clippy::host_endian_bytes, reason = "netlink is spoken within one machine, in its own order of bytes")]

use std::io;

use netlink_sys::constants::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The length of a message's header, in bytes, and of the family's own behind it.
const HEADER_BYTES: usize = 16;
const FAMILY_HEADER_BYTES: usize = 4;
/// The length of an attribute's head, in bytes.
const ATTRIBUTE_BYTES: usize = 4;
/// In an attribute's kind: that it holds attributes, and that its numbers are big-endian.
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_KIND: u16 = !(3 << 14);

/// The family that knows the others.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// Attributes that are put together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    fn with(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("attributes are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn with_u32(self, kind: u16, value: u32) -> Attributes {
        self.with(kind, &value.to_ne_bytes())
    }

    pub(crate) fn with_u64(self, kind: u16, value: u64) -> Attributes {
        self.with(kind, &value.to_ne_bytes())
    }

    /// A text, which is not longer than 64 KiB.
    pub(crate) fn with_text(self, kind: u16, text: &str) -> Attributes {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub(crate) fn with_nested(self, kind: u16, inner: &Attributes) -> Attributes {
        self.with(kind | NLA_F_NESTED, &inner.0)
    }
}

/// Attributes that came.
#[derive(Clone, Copy, Debug)]
struct Parsed<'b>(&'b [u8]);

impl<'b> Iterator for Parsed<'b> {
    type Item = (u16, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let value = self.0.get(ATTRIBUTE_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_KIND, value))
    }
}

impl<'b> Parsed<'b> {
    fn value(mut self, wanted: u16) -> Option<&'b [u8]> {
        self.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    fn number(self, wanted: u16) -> Option<u32> {
        self.value(wanted)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }
}

/// A message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    kind: u16,
    sequence: u32,
    /// What follows the header.
    body: Vec<u8>,
}

impl Message {
    /// The family's command.
    pub(crate) fn command(&self) -> Option<u8> {
        self.body.first().copied()
    }

    fn attributes(&self) -> Parsed<'_> {
        Parsed(self.body.get(FAMILY_HEADER_BYTES..).unwrap_or_default())
    }

    /// A number among its attributes.
    pub(crate) fn number(&self, wanted: u16) -> Option<u32> {
        self.attributes().number(wanted)
    }
}

/// The messages of a datagram.
fn messages(mut datagram: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER_BYTES>() {
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = usize::try_from(number(0)).unwrap_or(usize::MAX);
        let Some(body) = datagram.get(HEADER_BYTES..length) else { break };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        messages.push(Message { kind, sequence: number(8), body: body.to_vec() });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn encode(kind: u16, sequence: u32, command: u8, attributes: &Attributes) -> Vec<u8> {
    let length = HEADER_BYTES + FAMILY_HEADER_BYTES + attributes.0.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).expect("requests are short").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    // The sender is who the socket says, the family's version is the first.
    message.extend([0, 0, 0, 0, command, 1, 0, 0]);
    message.extend(&attributes.0);
    message
}

/// Asks, and returns what was answered before the request was acknowledged.
fn ask(socket: &Socket, kind: u16, command: u8, attributes: &Attributes) -> io::Result<Vec<Message>> {
    let sequence = 1;
    let request = encode(kind, sequence, command, attributes);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, from) = socket.recv_from_full()?;
        // Only the kernel is believed.
        let ours = messages(&datagram).into_iter().filter(|message| message.sequence == sequence);
        for message in ours.filter(|_| from.port_number() == 0) {
            if message.kind != NLMSG_ERROR {
                answers.push(message);
                continue;
            }
            let code = message.body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
            return match code {
                Some(0) => Ok(answers),
                Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    Ok(socket)
}

/// A family of the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    id: u16,
    groups: Vec<(String, u32)>,
}

impl Family {
    /// Finds a family by its name; nothing where the kernel does not have it.
    pub(crate) fn find(name: &str) -> io::Result<Option<Family>> {
        let wanted = Attributes::default().with_text(CTRL_ATTR_FAMILY_NAME, name);
        match ask(&open()?, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &wanted) {
            Ok(answers) => Ok(answers.iter().find_map(Family::read)),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(answer: &Message) -> Option<Family> {
        let id = answer.attributes().value(CTRL_ATTR_FAMILY_ID)?.first_chunk().map(|id| u16::from_ne_bytes(*id))?;
        let groups = answer.attributes().value(CTRL_ATTR_MCAST_GROUPS).map(Parsed).into_iter().flatten();
        let group = |(_, group): (u16, _)| {
            let name = Parsed(group).value(CTRL_ATTR_MCAST_GRP_NAME)?;
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            Some((name, Parsed(group).number(CTRL_ATTR_MCAST_GRP_ID)?))
        };
        Some(Family { id, groups: groups.filter_map(group).collect() })
    }

    /// Asks it, and returns what was answered before the request was acknowledged.
    pub(crate) fn ask(&self, command: u8, attributes: &Attributes) -> io::Result<Vec<Message>> {
        ask(&open()?, self.id, command, attributes)
    }

    /// A socket, which does not block, at which is received what it tells a group.
    pub(crate) fn join(&self, group: &str) -> io::Result<Socket> {
        let number = self.groups.iter().find(|(name, _)| name == group).map(|(_, number)| *number);
        let socket = open()?;
        socket.add_membership(number.ok_or(io::ErrorKind::NotFound)?)?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    }

    /// What of a datagram this family's kernel side has sent.
    pub(crate) fn told(&self, datagram: &[u8], from: &SocketAddr) -> Vec<Message> {
        let ours = messages(datagram).into_iter().filter(|message| message.kind == self.id && from.port_number() == 0);
        ours.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_family_of_families() {
        let found = Family::find("nlctrl").unwrap().unwrap();
        assert_eq!(found.id, GENL_ID_CTRL);
        assert!(found.groups.iter().any(|(name, _)| name == "notify"), "{found:?}");
        found.join("notify").unwrap();
        assert_eq!(found.join("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Family::find("no such family").unwrap().is_none());
        // A command that there is not.
        assert!(found.ask(99, &Attributes::default()).is_err());
    }

    #[test]
    fn what_is_put_together_is_read_again() {
        let inner = Attributes::default().with_u32(1, 7);
        let attributes = Attributes::default().with_text(2, "ab").with_u64(3, 1 << 40).with_nested(4, &inner);
        let encoded = encode(20, 5, 9, &attributes);
        let read = messages(&encoded);
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].sequence, read[0].command()), (20, 5, Some(9)));
        let kinds: Vec<_> = read[0].attributes().map(|(kind, value)| (kind, value.len())).collect();
        assert_eq!(kinds, [(2, 3), (3, 8), (4, 8)]);
        assert_eq!(Parsed(read[0].attributes().value(4).unwrap()).number(1), Some(7));
    }

    #[test]
    fn what_is_cut_or_lies_about_its_length_is_read_as_far_as_it_fits() {
        let attributes = Attributes::default().with_u32(1, 7).with_text(2, "text");
        let encoded = encode(20, 5, 9, &attributes);
        for length in 0..encoded.len() {
            assert!(messages(&encoded[..length]).is_empty());
        }
        for length in 0..attributes.0.len() {
            let _bounded = Parsed(&attributes.0[..length]).count();
        }
        for length in [0_u16, 1, 3, u16::MAX] {
            let lying = [&length.to_ne_bytes()[..], &[1, 0, 0, 0]].concat();
            assert_eq!(Parsed(&lying).count(), 0, "{length}");
        }
        let short = [&8_u32.to_ne_bytes()[..], &[0; 12]].concat();
        assert!(messages(&short).is_empty());
    }
}
