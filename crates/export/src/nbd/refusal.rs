//! Which requests are refused, and as what: the checks that need no device, and the names of a device's errors.

use std::error::Error;
use std::io;

use store::{FetchError, StoreError};
use volume::DeviceError;

use super::protocol::{
    MAXIMUM_PAYLOAD_BYTES, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM,
    NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_EPERM, NBD_ESHUTDOWN, Request,
};

/// The longest message that is sent to a client.
const MESSAGE_BYTES: usize = 1024;

/// An error as a client hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `NBD_E*`.
    pub error: u32,
    /// Why, for a person; only clients with structured replies get it.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(error: u32, message: impl Into<String>) -> Refusal {
        Refusal { error, message: message.into() }
    }

    /// What a device's error is called, with all its reasons as the message.
    pub(crate) fn of(error: &DeviceError, writing: bool) -> Refusal {
        let number = match error {
            DeviceError::OutOfRange { .. } if !writing => NBD_EINVAL,
            DeviceError::OutOfRange { .. } | DeviceError::Full | DeviceError::Store(StoreError::Full { .. }) => {
                NBD_ENOSPC
            }
            DeviceError::Journal { source, .. } if no_room(source) => NBD_ENOSPC,
            DeviceError::ReadOnly => NBD_EPERM,
            DeviceError::Closed | DeviceError::Fetch(FetchError::Closed) => NBD_ESHUTDOWN,
            _ => NBD_EIO,
        };
        Refusal::new(number, with_reasons(error))
    }
}

/// What the checks need to know of an export.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The disk's size at this moment.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether structured replies were negotiated.
    pub structured: bool,
    /// Whether a metadata context was chosen.
    pub contexts: bool,
}

/// Checks a request's command, flags and range. `NBD_CMD_DISC` is always right.
///
/// # Errors
/// What to answer instead of doing it.
pub fn check(request: &Request, limits: &Limits) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(NBD_EINVAL, message));
    let flags = match request.command {
        NBD_CMD_DISC => return Ok(()),
        NBD_CMD_READ if limits.structured => NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
        NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM | NBD_CMD_CACHE => NBD_CMD_FLAG_FUA,
        NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
        NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
        unknown => return Err(Refusal::new(NBD_EINVAL, format!("unknown command {unknown}"))),
    };
    let unknown = request.flags & !flags;
    if unknown != 0 {
        return Err(Refusal::new(NBD_EINVAL, format!("flags {unknown:#x} do not apply to this command")));
    }
    if request.command == NBD_CMD_FLUSH {
        let whole = request.offset == 0 && request.length == 0;
        return if whole { Ok(()) } else { invalid("a flush has neither offset nor length") };
    }
    let changes = matches!(request.command, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES);
    if changes && limits.read_only {
        return Err(Refusal::new(NBD_EPERM, "the export is read-only"));
    }
    if request.length == 0 {
        return invalid("a request of no bytes");
    }
    let payload = matches!(request.command, NBD_CMD_READ | NBD_CMD_WRITE);
    if payload && request.length > MAXIMUM_PAYLOAD_BYTES {
        return invalid("the request is larger than 32 MiB");
    }
    if request.end().is_none_or(|end| end > limits.size_bytes) {
        let extending = matches!(request.command, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES);
        let error = if extending { NBD_ENOSPC } else { NBD_EINVAL };
        return Err(Refusal::new(error, "the request goes beyond the end of the disk"));
    }
    if request.command == NBD_CMD_BLOCK_STATUS && !limits.contexts {
        return invalid("no metadata context was chosen");
    }
    Ok(())
}

/// An error and its sources in one line, of a bounded length.
pub(crate) fn with_reasons(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        message.push_str(": ");
        message.push_str(&reason.to_string());
        source = reason.source();
    }
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    message
}

fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { size_bytes: 1 << 20, read_only: false, structured: true, contexts: true };

    fn refused(command: u16, flags: u16, offset: u64, length: u32, limits: &Limits) -> Option<u32> {
        let request = Request { flags, command, cookie: 1, offset, length };
        check(&request, limits).err().map(|refusal| refusal.error)
    }

    #[test]
    fn a_request_beyond_the_end_is_einval_when_reading_and_enospc_when_writing() {
        let beyond = |command| refused(command, 0, (1 << 20) - 512, 1024, &LIMITS);
        assert_eq!(beyond(NBD_CMD_READ), Some(NBD_EINVAL));
        assert_eq!(beyond(NBD_CMD_TRIM), Some(NBD_EINVAL));
        assert_eq!(beyond(NBD_CMD_CACHE), Some(NBD_EINVAL));
        assert_eq!(beyond(NBD_CMD_BLOCK_STATUS), Some(NBD_EINVAL));
        assert_eq!(beyond(NBD_CMD_WRITE), Some(NBD_ENOSPC));
        assert_eq!(beyond(NBD_CMD_WRITE_ZEROES), Some(NBD_ENOSPC));
        assert_eq!(refused(NBD_CMD_READ, 0, u64::MAX, 2, &LIMITS), Some(NBD_EINVAL));
        assert_eq!(refused(NBD_CMD_READ, 0, (1 << 20) - 512, 512, &LIMITS), None);
    }

    #[test]
    fn flags_count_only_where_they_apply() {
        assert_eq!(refused(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1, &LIMITS), None);
        let simple = Limits { structured: false, ..LIMITS };
        assert_eq!(refused(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1, &simple), Some(NBD_EINVAL));
        assert_eq!(refused(NBD_CMD_WRITE, NBD_CMD_FLAG_NO_HOLE, 0, 1, &LIMITS), Some(NBD_EINVAL));
        assert_eq!(refused(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 1, &LIMITS), None);
        assert_eq!(refused(NBD_CMD_READ, 1 << 15, 0, 1, &LIMITS), Some(NBD_EINVAL));
        assert_eq!(refused(99, 0, 0, 1, &LIMITS), Some(NBD_EINVAL));
    }

    #[test]
    fn a_read_only_export_refuses_all_changes() {
        let limits = Limits { read_only: true, ..LIMITS };
        for command in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            assert_eq!(refused(command, 0, 0, 512, &limits), Some(NBD_EPERM));
        }
        assert_eq!(refused(NBD_CMD_READ, 0, 0, 512, &limits), None);
        assert_eq!(refused(NBD_CMD_FLUSH, 0, 0, 0, &limits), None);
    }

    #[test]
    fn a_device_error_keeps_its_meaning() {
        let of = |error: DeviceError| Refusal::of(&error, true).error;
        assert_eq!(of(DeviceError::Full), NBD_ENOSPC);
        assert_eq!(of(DeviceError::ReadOnly), NBD_EPERM);
        assert_eq!(of(DeviceError::Closed), NBD_ESHUTDOWN);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(of(DeviceError::Journal { operation: "append to", source: full }), NBD_ENOSPC);
        let damaged = StoreError::Damaged { what: "a chunk".to_owned(), path: "pack-1".into() };
        let refusal = Refusal::of(&DeviceError::Store(damaged), false);
        assert_eq!(refusal.error, NBD_EIO);
        assert!(refusal.message.ends_with("a chunk is damaged in pack-1"), "{}", refusal.message);
    }
}
