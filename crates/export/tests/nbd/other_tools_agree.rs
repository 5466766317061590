//! What other people's clients make of the server: libnbd's tools, QEMU's, and fio's verification.

use std::sync::Arc;

use serde_json::{Value, json};
use volume::ExtentKind;

use crate::client::Server;
use crate::memory_disk::{MemoryDisk, pattern};
use crate::tool::{installed, run};

const MIB: usize = 1 << 20;

/// A disk of 8 MiB with one MiB of each kind that is here, and holes.
fn varied() -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::new(8 * MIB));
    let client = Server::of(&disk);
    let mut client = client.simple();
    for at in [0, MIB, 5 * MIB] {
        assert_eq!(client.write(0, at as u64, &pattern(at, MIB)).error, 0);
    }
    assert_eq!(client.ask(6, 0, 2 << 20, 1 << 20, &[]).error, 0);
    disk.mark(MIB, MIB, ExtentKind::Local);
    disk
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of(&varied());
    let said = run(directory.path(), "nbdinfo", &["--json", &server.uri()]).content();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["protocol"], "newstyle-fixed");
    assert_eq!(said["structured"], true);
    let export = &said["exports"][0];
    assert_eq!(export["export-size"], 8 * MIB);
    assert_eq!(export["is_read_only"], false);
    for can in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(export["contexts"], json!(["base:allocation", "brant:state", "qemu:allocation-depth"]));
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    for can in ["cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero", "structured-reply"] {
        run(directory.path(), "nbdinfo", &["--can", can, &server.uri()]).content();
    }
    let said = run(directory.path(), "nbdinfo", &["--is", "read-only", &server.uri()]);
    assert_eq!(said.status.code(), Some(2));
    let said = run(directory.path(), "nbdinfo", &["--list", "--json", &server.nbd().uri("")]).content();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["exports"][0]["export-name"], "disk");
    let said = run(directory.path(), "nbdinfo", &[&server.nbd().uri("nobody")]);
    assert!(!said.status.success());
    assert!(said.errors.contains("No such file or directory for export: nobody"), "{}", said.errors);
}

#[test]
fn nbdinfo_maps_every_context() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of(&varied());
    let map = |context: &str| -> Vec<(u64, u64)> {
        let map = format!("--map={context}");
        let said = run(directory.path(), "nbdinfo", &[&map, "--json", &server.uri()]).content();
        let said: Vec<Value> = serde_json::from_str(&said).unwrap();
        said.iter().map(|extent| (extent["length"].as_u64().unwrap() >> 20, extent["type"].as_u64().unwrap())).collect()
    };
    assert_eq!(map("base:allocation"), [(2, 0), (1, 2), (2, 3), (1, 0), (2, 3)]);
    assert_eq!(map("brant:state"), [(1, 1), (1, 2), (1, 4), (2, 5), (1, 1), (2, 5)]);
    assert_eq!(map("qemu:allocation-depth"), [(1, 1), (1, 2), (1, 1), (2, 0), (1, 1), (2, 0)]);
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = varied();
    let target = Arc::new(MemoryDisk::patterned(8 * MIB));
    let (from, to) = (Server::of(&source), Server::of(&target));
    run(directory.path(), "nbdcopy", &[&from.uri(), "copy.raw"]).content();
    assert!(std::fs::read(directory.path().join("copy.raw")).unwrap() == source.bytes(0, 8 * MIB));
    run(directory.path(), "nbdcopy", &["--flush", "copy.raw", &to.uri()]).content();
    assert!(target.bytes(0, 8 * MIB) == source.bytes(0, 8 * MIB));
    let second = Arc::new(MemoryDisk::patterned(8 * MIB));
    let to = Server::of(&second);
    run(directory.path(), "nbdcopy", &["--connections=4", "--requests=16", &from.uri(), &to.uri()]).content();
    assert!(second.bytes(0, 8 * MIB) == source.bytes(0, 8 * MIB));
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = varied();
    let target = Arc::new(MemoryDisk::patterned(8 * MIB));
    let (from, to) = (Server::of(&source), Server::of(&target));
    let image = |arguments: &[&str]| run(directory.path(), "qemu-img", arguments).content();
    image(&["convert", "-f", "raw", "-O", "qcow2", &from.uri(), "copy.qcow2"]);
    image(&["compare", "-f", "raw", "-F", "qcow2", &from.uri(), "copy.qcow2"]);
    image(&["convert", "-n", "-f", "qcow2", "-O", "raw", "copy.qcow2", &to.uri()]);
    assert!(target.bytes(0, 8 * MIB) == source.bytes(0, 8 * MIB));
    image(&["compare", "-f", "raw", "-F", "raw", &from.uri(), &to.uri()]);
    let map: Vec<Value> = serde_json::from_str(&image(&["map", "--output=json", "-f", "raw", &from.uri()])).unwrap();
    let zero: u64 =
        map.iter().filter(|extent| extent["zero"] == true).map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert_eq!(zero, 5 << 20);
}

#[test]
fn qemu_io_reads_back_what_it_wrote() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of(&Arc::new(MemoryDisk::new(8 * MIB)));
    let commands = [
        "write -P 1 0 4M",
        "write -f -P 2 1M 64k",
        "write -P 3 1234567 89",
        "read -P 2 1M 64k",
        "read -P 3 1234567 89",
        "write -z -n 2M 1M",
        "read -P 0 2M 1M",
        "write -z 100 1000",
        "read -P 0 100 1000",
        "discard 3M 1M",
        "flush",
        "aio_write -P 4 5M 1M",
        "aio_write -P 5 6M 1M",
        "aio_flush",
        "read -P 4 5M 1M",
        "read -P 5 6M 1M",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", *command]));
    let uri = server.uri();
    arguments.push(&uri);
    let said = run(directory.path(), "qemu-io", &arguments).content();
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    let said = run(directory.path(), "qemu-io", &["-f", "raw", "-c", "read 8M 512", &uri]);
    assert!(!said.status.success(), "{}", said.output);
}

#[test]
fn libnbd_gets_the_errors_it_provokes() {
    if !installed(&["nbdsh"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (server, fixed) = (Server::of(&varied()), Server::of(&Arc::new(MemoryDisk::patterned(MIB).read_only())));
    std::fs::write(directory.path().join("script.py"), LIBNBD).unwrap();
    let arguments = ["-c", "exec(open('script.py').read())"];
    let said =
        run(directory.path(), PYTHON, &[&["-m", "nbd", "-u", &server.uri()], arguments.as_slice()].concat()).content();
    assert!(said.contains("all well"), "{said}");
    let refused = "try:\n  h.set_strict_mode(0)\n  h.pwrite(b'1' * 512, 0)\nexcept nbd.Error as e:\n  print(e.errno)";
    let said = run(directory.path(), PYTHON, &["-m", "nbd", "-u", &fixed.uri(), "-c", refused]).content();
    assert_eq!(said.trim(), "EPERM");
}

#[test]
fn clients_that_know_less_are_served() {
    if !installed(&["nbdsh"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of(&varied());
    let script = OLD_CLIENTS.replace("URI", &server.uri());
    let said = run(directory.path(), PYTHON, &["-m", "nbd", "-c", &script]).content();
    assert!(said.contains("all well"), "{said}");
}

/// Run by nbdsh: clients without the fixed handshake, without the option to leave zeroes out, without structured replies.
const OLD_CLIENTS: &str = r#"
for flags, protocol in (0, "newstyle"), (nbd.HANDSHAKE_FLAG_NO_ZEROES, "newstyle"), (nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, "newstyle-fixed"):
    old = nbd.NBD()
    old.set_handshake_flags(flags)
    old.set_request_structured_replies(False)
    old.connect_uri("URI")
    assert old.get_protocol() == protocol, old.get_protocol()
    assert not old.get_structured_replies_negotiated()
    assert old.get_size() == 8 << 20
    old.pwrite(b"old" * 512, 6 << 20, nbd.CMD_FLAG_FUA)
    assert old.pread(1536, 6 << 20) == b"old" * 512
    assert old.pread(4096, 7 << 20) == bytes(4096)
    old.flush()
    old.shutdown()
print("all well")
"#;

/// What nbdsh runs on; another Python, first on the path, would not find libnbd.
const PYTHON: &str = "/usr/bin/python3";

/// Run by nbdsh with the varied disk as `h`.
const LIBNBD: &str = r#"
def fails(expected, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == expected, (error, expected)
    else:
        assert False, 'no error'

size = h.get_size()
h.set_strict_mode(0)
fails("EINVAL", lambda: h.pread(512, size))
fails("ENOSPC", lambda: h.pwrite(b'1' * 512, size))
fails("ENOSPC", lambda: h.zero(512, size))
fails("EINVAL", lambda: h.trim(512, size))
fails("EINVAL", lambda: h.pread(0, 0))
fails("EINVAL", lambda: h.pread(512, 0, 1 << 14))
fails("EINVAL", lambda: h.pread(33 << 20, 0))
fails("EINVAL", lambda: h.block_status(512, 0, lambda *a: 0))
h.pwrite(b'abc', 3 * 1048576 + 77, nbd.CMD_FLAG_FUA)
assert h.pread(3, 3 * 1048576 + 77) == b'abc'
h.cache(1 << 20, 0)
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
chunks = []
h.pread_structured(1 << 20, 0, lambda data, offset, kind, error: chunks.append(kind))
assert set(chunks) == {nbd.READ_HOLE}, chunks
h.flush()
h.shutdown()
print('all well')
"#;

/// Random writes at a depth of 32, all read back and checked.
fn fio_verifies(jobs: usize) {
    if !installed(&["fio"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(MemoryDisk::new(32 * MIB));
    let server = Server::of(&disk);
    let size = format!("--size={}m", 32 / jobs);
    let (uri, numjobs) = (format!("--uri={}", server.uri()), format!("--numjobs={jobs}"));
    let increment = format!("--offset_increment={}m", 32 / jobs);
    let said = run(
        directory.path(),
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=64",
            "--fsync=100",
            "--randseed=7",
            &size,
            &increment,
            &uri,
            &numjobs,
        ],
    );
    let all = format!("{}{}", said.output, said.errors);
    said.content();
    assert!(!all.contains("verify: bad"), "{all}");
    assert!(!all.contains("unknown engine"), "{all}");
    assert!(disk.changes().1 > 100, "fio has written nothing: {all}");
}

#[test]
fn fio_verifies_one_job() {
    fio_verifies(1);
}

#[test]
fn fio_verifies_four_jobs() {
    fio_verifies(4);
}
