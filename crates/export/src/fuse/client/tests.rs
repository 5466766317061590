//! A node that a test plays: it greets, and then answers or goes away as the test says.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::*;
use crate::nbd::option::{
    NBD_INFO_EXPORT, NBD_OPT_GO, NBD_REP_ACK, NBD_REP_ERR_UNSUP, NBD_REP_INFO, OPTION_HEADER_BYTES,
    decode_option_header,
};
use crate::nbd::protocol::{
    IHAVEOPT, NBD_CMD_FLUSH, NBD_CMD_WRITE, NBD_EIO, NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_HAS_FLAGS, NBD_REP_MAGIC,
    NBDMAGIC, Request, decode_request, encode_simple_reply,
};

const SIZE: u64 = 1 << 20;

/// A connection to the client, from the node's side.
struct Played(UnixStream);

impl Played {
    fn accept(listener: &UnixListener) -> Played {
        let mut played = Played(listener.accept().unwrap().0);
        played.put(&[&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes()].concat());
        played.put(&NBD_FLAG_FIXED_NEWSTYLE.to_be_bytes());
        let _: [u8; 4] = played.get();
        loop {
            let head = decode_option_header(&played.get::<OPTION_HEADER_BYTES>()).unwrap();
            let mut data = vec![0; head.length as usize];
            played.0.read_exact(&mut data).unwrap();
            if head.option != NBD_OPT_GO {
                played.reply(head.option, NBD_REP_ERR_UNSUP, &[]);
                continue;
            }
            let info = [&NBD_INFO_EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &NBD_FLAG_HAS_FLAGS.to_be_bytes()];
            played.reply(head.option, NBD_REP_INFO, &info.concat());
            played.reply(head.option, NBD_REP_ACK, &[]);
            return played;
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn get<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        let words = [option, kind, length].map(u32::to_be_bytes).concat();
        self.put(&[&NBD_REP_MAGIC.to_be_bytes(), words.as_slice(), data].concat());
    }

    fn request(&mut self) -> (Request, Vec<u8>) {
        let request = decode_request(&self.get()).unwrap();
        let mut data = vec![0; request.payload_bytes() as usize];
        self.0.read_exact(&mut data).unwrap();
        (request, data)
    }

    fn answer(&mut self, request: &Request, error: u32, data: &[u8]) {
        self.put(&[&encode_simple_reply(request.cookie, error)[..], data].concat());
    }
}

/// A client, and the node that it is connected to.
fn played<T: Send + 'static>(play: impl FnOnce(UnixListener) -> T + Send + 'static) -> (Client, JoinHandle<T>) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let node = std::thread::spawn(move || {
        let _kept = directory;
        play(listener)
    });
    (Client::connect(&socket, "vm").unwrap(), node)
}

fn ask(client: &Client, command: u16, length: u32, data: Vec<u8>) -> Receiver<Result<Answer, i32>> {
    let (send, receive) = sync_channel(2);
    let command = Command { command, flags: 0, offset: 512, length, data };
    client.submit(command, Box::new(move |answer| send.send(answer).unwrap()));
    receive
}

#[test]
fn what_was_not_answered_is_asked_again_in_order() {
    let (client, node) = played(|listener| {
        let mut first = Played::accept(&listener);
        let [write, read, flush] = [(); 3].map(|()| first.request());
        first.answer(&read.0, 0, &[7; 512]);
        // A part of a reply is none.
        first.put(&encode_simple_reply(write.0.cookie, 0)[..9]);
        drop(first);
        let mut second = Played::accept(&listener);
        let again = [(); 2].map(|()| second.request());
        assert_eq!(again, [write, flush]);
        // Answers come in any order.
        second.answer(&again[1].0, 0, &[]);
        second.answer(&again[0].0, 0, &[]);
    });
    let write = ask(&client, NBD_CMD_WRITE, 512, vec![3; 512]);
    let read = ask(&client, NBD_CMD_READ, 512, Vec::new());
    let flush = ask(&client, NBD_CMD_FLUSH, 0, Vec::new());
    assert_eq!(read.recv().unwrap(), Ok(Answer::Data(vec![7; 512])));
    assert_eq!(write.recv().unwrap(), Ok(Answer::Done));
    assert_eq!(flush.recv().unwrap(), Ok(Answer::Done));
    node.join().unwrap();
    for answered in [write, read, flush] {
        assert!(answered.recv().is_err(), "nothing is answered twice");
    }
}

#[test]
fn a_node_that_ends_has_not_answered_and_an_error_is_an_answer() {
    let (client, node) = played(|listener| {
        let mut first = Played::accept(&listener);
        let (request, _) = first.request();
        first.answer(&request, NBD_ESHUTDOWN, &[]);
        let mut second = Played::accept(&listener);
        assert_eq!(second.request().0, request);
        second.answer(&request, NBD_EIO, &[]);
    });
    let read = ask(&client, NBD_CMD_READ, 512, Vec::new());
    assert_eq!(read.recv().unwrap(), Err(5));
    node.join().unwrap();
}

#[test]
fn a_node_that_breaks_the_protocol_is_left_and_what_was_asked_is_kept() {
    let (client, node) = played(|listener| {
        let mut first = Played::accept(&listener);
        let (request, _) = first.request();
        first.answer(&Request { cookie: request.cookie + 1, ..request }, 0, &[]);
        let mut second = Played::accept(&listener);
        assert_eq!(second.request().0, request);
        second.answer(&request, 0, &[1; 512]);
    });
    assert_eq!(ask(&client, NBD_CMD_READ, 512, Vec::new()).recv().unwrap(), Ok(Answer::Data(vec![1; 512])));
    assert_eq!((client.size_bytes(), client.read_only()), (SIZE, false));
    node.join().unwrap();
}
