//! Every option is answered as `doc/proto.md` says, and unknown ones are passed over.

use std::io::Write;
use std::sync::Arc;

use export::nbd::option::{
    NBD_INFO_BLOCK_SIZE, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO,
    NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY,
    NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN, NBD_REP_ERR_UNSUP,
    NBD_REP_META_CONTEXT, NBD_REP_SERVER,
};
use export::nbd::protocol::{NBD_CMD_BLOCK_STATUS, NBD_EINVAL};

use crate::client::{Client, Server, contexts_data, info_data};
use crate::memory_disk::{MemoryDisk, pattern};

const MIB: usize = 1 << 20;

fn greeted(server: &Server) -> Client {
    let mut client = server.connect();
    client.greet();
    client
}

fn code(client: &mut Client, option: u32, data: &[u8]) -> u32 {
    client.option(option, data).last().unwrap().reply
}

#[test]
fn the_old_way_of_choosing_an_export_works_with_and_without_padding() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    for (flags, padding) in [(3_u32, 0), (1, 124)] {
        let mut client = server.connect();
        client.receive::<18>();
        client.stream.write_all(&flags.to_be_bytes()).unwrap();
        client.send_option(NBD_OPT_EXPORT_NAME, b"disk");
        assert_eq!(u64::from_be_bytes(client.receive()), MIB as u64);
        client.receive::<2>();
        if padding > 0 {
            assert_eq!(client.receive::<124>(), [0; 124]);
        }
        assert_eq!(client.read(512, 512), pattern(512, 512));
    }
}

#[test]
fn an_unknown_export_is_refused_and_another_can_be_tried() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    let mut client = greeted(&server);
    assert_eq!(code(&mut client, NBD_OPT_INFO, &info_data("nobody", &[])), NBD_REP_ERR_UNKNOWN);
    assert_eq!(code(&mut client, NBD_OPT_GO, &info_data("nobody", &[])), NBD_REP_ERR_UNKNOWN);
    client.go();
    assert_eq!(client.read(0, 512), pattern(0, 512));
    assert_eq!(server.nbd().connections("disk"), 1);
    let mut other = greeted(&server);
    other.send_option(NBD_OPT_EXPORT_NAME, b"nobody");
    assert!(other.ended());
}

#[test]
fn info_tells_size_flags_and_block_sizes() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB).read_only()));
    let mut client = greeted(&server);
    let replies = client.option(NBD_OPT_INFO, &info_data("", &[NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE]));
    let of = |kind: u16| replies.iter().find(|reply| reply.data.starts_with(&kind.to_be_bytes())).unwrap();
    let export = &of(NBD_INFO_EXPORT).data;
    assert_eq!(export[2..10], (MIB as u64).to_be_bytes());
    // Flags, read-only, flush, FUA, multi-conn, cache; nothing that writes, and no DF without structured replies.
    assert_eq!(export[10..12], 0x050f_u16.to_be_bytes());
    assert_eq!(of(NBD_INFO_NAME).data[2..], *b"disk");
    let sizes = &of(NBD_INFO_BLOCK_SIZE).data;
    assert_eq!(sizes[2..], [1_u32.to_be_bytes(), 4096_u32.to_be_bytes(), (32_u32 << 20).to_be_bytes()].concat());
}

#[test]
fn exports_are_listed() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB)));
    let mut client = greeted(&server);
    let replies = client.option(NBD_OPT_LIST, &[]);
    assert_eq!(replies[0].reply, NBD_REP_SERVER);
    assert_eq!(replies[0].data, [0, 0, 0, 4, b'd', b'i', b's', b'k']);
    assert_eq!(replies[1].reply, NBD_REP_ACK);
    assert_eq!(code(&mut client, NBD_OPT_LIST, &[1]), NBD_REP_ERR_INVALID);
}

#[test]
fn what_is_not_supported_is_said_and_passed_over() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    let mut client = greeted(&server);
    assert_eq!(code(&mut client, NBD_OPT_STARTTLS, &[]), NBD_REP_ERR_UNSUP);
    assert_eq!(code(&mut client, 11, &[]), NBD_REP_ERR_UNSUP);
    assert_eq!(code(&mut client, 4711, b"any data"), NBD_REP_ERR_UNSUP);
    assert_eq!(code(&mut client, NBD_OPT_GO, &vec![0; 100_000]), NBD_REP_ERR_TOO_BIG);
    assert_eq!(code(&mut client, NBD_OPT_GO, &[0, 0, 0, 200, 1]), NBD_REP_ERR_INVALID);
    assert_eq!(code(&mut client, NBD_OPT_STRUCTURED_REPLY, &[0]), NBD_REP_ERR_INVALID);
    client.go();
    assert_eq!(client.read(0, 512), pattern(0, 512));
}

#[test]
fn abort_is_acknowledged() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB)));
    let mut client = greeted(&server);
    assert_eq!(code(&mut client, NBD_OPT_ABORT, &[]), NBD_REP_ACK);
    assert!(client.ended());
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB)));
    let mut client = server.connect();
    client.receive::<18>();
    client.stream.write_all(&0x8003_u32.to_be_bytes()).unwrap();
    assert!(client.ended());
}

#[test]
fn contexts_need_structured_replies_and_the_same_export() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB)));
    let mut client = greeted(&server);
    let data = contexts_data("disk", &["base:allocation"]);
    assert_eq!(code(&mut client, NBD_OPT_SET_META_CONTEXT, &data), NBD_REP_ERR_INVALID);
    client.structured_replies();
    let unknown = contexts_data("nobody", &["base:allocation"]);
    assert_eq!(code(&mut client, NBD_OPT_SET_META_CONTEXT, &unknown), NBD_REP_ERR_UNKNOWN);
    // For another name of the same disk; the protocol compares names.
    let other = contexts_data("", &["base:allocation"]);
    assert_eq!(code(&mut client, NBD_OPT_SET_META_CONTEXT, &other), NBD_REP_ACK);
    client.go();
    assert_eq!(client.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 512, &[]).error, NBD_EINVAL);
}

#[test]
fn contexts_are_listed_by_namespace_and_chosen_by_name() {
    let server = Server::of(&Arc::new(MemoryDisk::new(MIB)));
    let mut client = greeted(&server);
    client.structured_replies();
    let mut names = |option, queries: &[&str]| -> Vec<String> {
        let replies = client.option(option, &contexts_data("disk", queries));
        let contexts = replies.iter().filter(|reply| reply.reply == NBD_REP_META_CONTEXT);
        contexts.map(|reply| String::from_utf8(reply.data[4..].to_vec()).unwrap()).collect()
    };
    let all = ["base:allocation", "brant:state", "qemu:allocation-depth"];
    assert_eq!(names(NBD_OPT_LIST_META_CONTEXT, &[]), all);
    assert_eq!(names(NBD_OPT_LIST_META_CONTEXT, &["brant:", "nobody:"]), ["brant:state"]);
    assert_eq!(names(NBD_OPT_SET_META_CONTEXT, &["base:", "nobody:x"]), Vec::<String>::new());
    assert_eq!(names(NBD_OPT_SET_META_CONTEXT, &["base:allocation", "base:allocation"]), ["base:allocation"]);
}
