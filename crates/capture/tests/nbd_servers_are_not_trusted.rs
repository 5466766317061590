//! A server that lies, stalls, babbles or hangs up gives an error in bounded time and memory, and never wrong data.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use capture::nbd::number;
use capture::nbd::uri::NbdAddress;
use capture::{CaptureError, ForeignDisk, NbdDisk, NbdError, NbdOptions, NbdUri};

/// A server that does the given thing to every connection, for so many connections.
struct Peer {
    uri: NbdUri,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
}

impl Peer {
    fn new(connections: usize, serve: impl Fn(usize, &mut UnixStream) -> std::io::Result<()> + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            for index in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                // The client hanging up in the middle is what many of these tests are about.
                drop(serve(index, &mut stream));
            }
        });
        let uri = NbdUri { address: NbdAddress::Unix { path }, export: "disk".into() };
        Self { uri, thread: Some(thread), directory }
    }

    fn connect(&self) -> Result<NbdDisk, NbdError> {
        NbdDisk::connect(&self.uri, &options())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Whatever was not connected to: let the thread come to its end.
        while !self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            drop(UnixStream::connect(self.directory.path().join("nbd")));
            std::thread::yield_now();
        }
        self.thread.take().unwrap().join().unwrap();
    }
}

fn options() -> NbdOptions {
    NbdOptions {
        connections: 1,
        connect_timeout: Duration::from_millis(400),
        reply_timeout: Duration::from_millis(400),
    }
}

const SIZE: u64 = 1 << 20;

fn read<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut hello = number::MAGIC.to_be_bytes().to_vec();
    hello.extend(number::OPTION_MAGIC.to_be_bytes());
    hello.extend((number::FLAG_FIXED_NEWSTYLE | number::FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    read::<4>(stream).map(drop)
}

/// Reads an option, and gives its number.
fn option(stream: &mut UnixStream) -> std::io::Result<u32> {
    read::<8>(stream)?;
    let option = u32::from_be_bytes(read(stream)?);
    let length = u32::from_be_bytes(read(stream)?);
    std::io::copy(&mut stream.take(length.into()), &mut std::io::sink())?;
    Ok(option)
}

fn answer(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(data.len()).unwrap();
    let head = [&number::OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
    stream.write_all(&[&head[..], &length.to_be_bytes(), data].concat())
}

fn export_info(size: u64) -> Vec<u8> {
    [&number::INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &1_u16.to_be_bytes()].concat()
}

/// Negotiates as a good server with structured replies and block status would.
fn negotiate(stream: &mut UnixStream, size: u64) -> std::io::Result<()> {
    greet(stream)?;
    loop {
        let option = option(stream)?;
        match option {
            number::OPTION_SET_META_CONTEXT => {
                let context = [&7_u32.to_be_bytes()[..], b"base:allocation"].concat();
                answer(stream, option, number::REPLY_META_CONTEXT, &context)?;
            }
            number::OPTION_GO => {
                answer(stream, option, number::REPLY_INFO, &export_info(size))?;
            }
            _ => {}
        }
        answer(stream, option, number::REPLY_ACK, &[])?;
        if option == number::OPTION_GO {
            return Ok(());
        }
    }
}

struct Asked {
    cookie: [u8; 8],
    offset: u64,
    length: u32,
}

fn request(stream: &mut UnixStream) -> std::io::Result<Asked> {
    read::<8>(stream)?;
    let cookie = read(stream)?;
    Ok(Asked { cookie, offset: u64::from_be_bytes(read(stream)?), length: u32::from_be_bytes(read(stream)?) })
}

fn chunk(stream: &mut UnixStream, flags: u16, kind: u16, cookie: [u8; 8], data: &[u8]) -> std::io::Result<()> {
    let mut bytes = number::STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie);
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

/// Reads until the client hangs up.
fn drain(stream: &mut UnixStream) -> std::io::Result<()> {
    std::io::copy(stream, &mut std::io::sink()).map(drop)
}

#[test]
fn what_does_not_greet_as_a_server_is_none() {
    let cases: [&'static [u8]; 4] =
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"NBDMAGICIHAVEOPT\0\0", b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53", b""];
    for greeting in cases {
        let peer = Peer::new(1, move |_, stream| {
            stream.write_all(greeting)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            drain(stream)
        });
        let error = peer.connect().unwrap_err();
        assert!(matches!(error, NbdError::Unusable(_) | NbdError::Lost(_)), "{error:?}");
    }
}

#[test]
fn nobody_there_is_told_with_the_address() {
    let uri: NbdUri = "nbd+unix:///x?socket=/nonexistent/socket".parse().unwrap();
    let error = NbdDisk::connect(&uri, &options()).unwrap_err();
    assert!(matches!(&error, NbdError::Connect { address, .. } if address == "/nonexistent/socket"), "{error:?}");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let peer = Peer::new(1, |_, stream| drain(stream));
    assert!(matches!(peer.connect(), Err(NbdError::Stalled { .. })));
}

#[test]
fn a_server_that_drips_is_given_up_at_the_same_time() {
    let peer = Peer::new(1, |_, stream| {
        greet(stream)?;
        loop {
            // Every byte comes well before the time is over, but they never end.
            answer(stream, number::OPTION_STRUCTURED_REPLY, number::REPLY_ACK, &[])?;
            let option = option(stream)?;
            for _ in 0..10_000 {
                answer(stream, option, number::REPLY_INFO, &[0, 9])?;
            }
        }
    });
    let error = peer.connect().unwrap_err();
    assert!(matches!(error, NbdError::Lost(_) | NbdError::Stalled { .. }), "{error:?}");
}

#[test]
fn impossible_answers_to_options_are_refused() {
    type Say = fn(&mut UnixStream, u32) -> std::io::Result<()>;
    let cases: [(Say, &str); 6] = [
        (
            |stream, option| {
                answer(stream, option, number::REPLY_INFO, &export_info(0))
                    .and_then(|()| answer(stream, option, number::REPLY_ACK, &[]))
            },
            "empty",
        ),
        (
            |stream, option| {
                answer(stream, option, number::REPLY_INFO, &export_info(u64::MAX))
                    .and_then(|()| answer(stream, option, number::REPLY_ACK, &[]))
            },
            "larger than a disk",
        ),
        (|stream, option| answer(stream, option, number::REPLY_ACK, &[]), "no word of the export's size"),
        (|stream, option| answer(stream, option + 1, number::REPLY_ACK, &[]), "another option"),
        (
            |stream, option| answer(stream, option, number::REPLY_INFO, &[0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3]),
            "block sizes",
        ),
        (
            |stream, option| answer(stream, option, number::REPLY_ERROR_UNKNOWN, b"no \x1b[31msuch thing"),
            "no export named \"disk\" (it says \"no [31msuch thing\")",
        ),
    ];
    for (say, words) in cases {
        let peer = Peer::new(1, move |_, stream| {
            greet(stream)?;
            loop {
                let option = option(stream)?;
                if option == number::OPTION_GO {
                    say(stream, option)?;
                    return drain(stream);
                }
                answer(stream, option, number::REPLY_ERROR_UNSUPPORTED, &[])?;
            }
        });
        let error = peer.connect().unwrap_err().to_string();
        assert!(error.contains(words), "{error} instead of {words}");
    }
    let long = Peer::new(1, |_, stream| {
        greet(stream)?;
        let option = option(stream)?;
        let head = [&number::OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &[0, 0, 0, 1], &[0xff; 4]];
        stream.write_all(&head.concat())?;
        drain(stream)
    });
    assert!(long.connect().unwrap_err().to_string().contains("too long"));
}

/// What a server does with a read.
type Serve = fn(&mut UnixStream, &Asked) -> std::io::Result<()>;

fn data(at: u64, bytes: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], bytes].concat()
}

#[test]
fn wrong_replies_to_reads_are_refused_and_the_connection_given_up() {
    let cases: [(Serve, &str); 8] = [
        (|stream, _| stream.write_all(&[0x55; 4096]), "not a reply"),
        (
            |stream, asked| chunk(stream, 1, number::CHUNK_OFFSET_DATA, [9; 8], &data(asked.offset, &[1; 512])),
            "a reply to nothing",
        ),
        (
            |stream, asked| chunk(stream, 1, number::CHUNK_OFFSET_DATA, asked.cookie, &data(asked.offset, &[1; 511])),
            "all its bytes",
        ),
        (
            |stream, asked| {
                chunk(stream, 1, number::CHUNK_OFFSET_DATA, asked.cookie, &data(asked.offset + 512, &[1; 512]))
            },
            "outside the range",
        ),
        (
            |stream, asked| chunk(stream, 1, number::CHUNK_OFFSET_DATA, asked.cookie, &data(asked.offset, &[1; 4096])),
            "outside the range",
        ),
        (|stream, asked| chunk(stream, 1, number::CHUNK_NONE, asked.cookie, &[]), "all its bytes"),
        (
            |stream, asked| chunk(stream, 1, number::CHUNK_BLOCK_STATUS, asked.cookie, &[0; 12]),
            "does not fit the request",
        ),
        (
            |stream, asked| {
                stream.write_all(&number::SIMPLE_REPLY_MAGIC.to_be_bytes())?;
                stream.write_all(&[0; 4])?;
                stream.write_all(&asked.cookie)?;
                stream.write_all(&[1; 512])
            },
            "a simple reply to a read",
        ),
    ];
    for (serve, words) in cases {
        let peer = Peer::new(1, move |_, stream| {
            negotiate(stream, SIZE)?;
            let asked = request(stream)?;
            serve(stream, &asked)?;
            drain(stream)
        });
        let disk = peer.connect().unwrap();
        let mut buffer = [7; 512];
        let error = disk.read_at(4096, &mut buffer).unwrap_err().to_string();
        assert!(error.contains(words), "{error} instead of {words}");
        assert_eq!(buffer, [7; 512], "nothing of it is believed");
    }
}

#[test]
fn a_read_that_is_never_answered_is_given_up() {
    let peer = Peer::new(1, |_, stream| {
        negotiate(stream, SIZE)?;
        drain(stream)
    });
    let disk = peer.connect().unwrap();
    let error = disk.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, CaptureError::Nbd(NbdError::Stalled { .. })), "{error:?}");
}

#[test]
fn an_error_is_told_with_its_place_and_the_connection_goes_on() {
    let peer = Peer::new(1, |_, stream| {
        negotiate(stream, SIZE)?;
        let asked = request(stream)?;
        let error = [&5_u32.to_be_bytes()[..], &8_u16.to_be_bytes(), b"bad disk"].concat();
        chunk(stream, 1, number::CHUNK_ERROR + 1, asked.cookie, &error)?;
        let asked = request(stream)?;
        chunk(
            stream,
            1,
            number::CHUNK_OFFSET_DATA,
            asked.cookie,
            &data(asked.offset, &vec![3; asked.length as usize]),
        )?;
        drain(stream)
    });
    let disk = peer.connect().unwrap();
    let error = disk.read_at(4096, &mut [0; 512]).unwrap_err().to_string();
    assert_eq!(error, "the NBD server could not read 512 bytes at 4096 (it says \"bad disk\")");
    let mut buffer = [0; 512];
    disk.read_at(0, &mut buffer).unwrap();
    assert_eq!(buffer, [3; 512]);
}

#[test]
fn a_read_is_tried_again_on_a_new_connection() {
    let peer = Peer::new(2, |index, stream| {
        negotiate(stream, SIZE)?;
        let asked = request(stream)?;
        if index == 0 {
            return Ok(());
        }
        chunk(stream, 1, number::CHUNK_OFFSET_DATA, asked.cookie, &data(asked.offset, &[4; 512]))?;
        drain(stream)
    });
    let disk = peer.connect().unwrap();
    let mut buffer = [0; 512];
    disk.read_at(0, &mut buffer).unwrap();
    assert_eq!(buffer, [4; 512]);
}

#[test]
fn a_disk_that_has_another_size_after_connecting_again_is_refused() {
    let peer = Peer::new(2, |index, stream| {
        negotiate(stream, SIZE + 512 * index as u64)?;
        request(stream).map(drop)
    });
    let error = peer.connect().unwrap().read_at(0, &mut [0; 512]).unwrap_err().to_string();
    assert!(error.contains("another size"), "{error}");
}

#[test]
fn block_status_beyond_what_was_asked_is_cut_and_nonsense_refused() {
    fn status(stream: &mut UnixStream, asked: &Asked, words: &[u32]) -> std::io::Result<()> {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        chunk(stream, 1, number::CHUNK_BLOCK_STATUS, asked.cookie, &body)
    }
    let peer = Peer::new(1, |_, stream| {
        negotiate(stream, SIZE)?;
        let asked = request(stream)?;
        status(stream, &asked, &[7, 512, 3, u32::MAX, 0])?;
        let asked = request(stream)?;
        status(stream, &asked, &[7, 0, 3])?;
        drain(stream)
    });
    let disk = peer.connect().unwrap();
    let extents = disk.extents(512, SIZE - 512).unwrap();
    assert_eq!(
        extents.iter().map(|extent| (extent.length, extent.zero)).collect::<Vec<_>>(),
        [(512, true), (SIZE - 1024, false)]
    );
    assert!(disk.extents(0, SIZE).unwrap_err().to_string().contains("an extent of no length"));
}
