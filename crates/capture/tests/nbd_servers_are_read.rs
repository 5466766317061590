//! Real NBD servers are read and written: qemu-nbd and nbdkit, over unix sockets and TCP, with and without their frills.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/disk.rs"]
mod disk;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use capture::{CaptureError, ForeignDisk, NbdDisk, NbdError, NbdOptions, NbdUri, import};
use disk::{Counting, noise, read_by_extents, read_tree, sparse, tools};
use store::{ChunkStore, Domain, MemoryStore};
use types::Progress;

const MIB: usize = 1 << 20;

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        Self(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Waits until the server listens.
    fn connect(&mut self, uri: &str) -> NbdDisk {
        let uri: NbdUri = uri.parse().unwrap();
        let begin = Instant::now();
        loop {
            match NbdDisk::connect(&uri, &NbdOptions::default()) {
                Ok(disk) => return disk,
                Err(NbdError::Connect { .. }) if begin.elapsed() < Duration::from_secs(20) => {
                    assert_eq!(self.0.try_wait().unwrap(), None, "the server has ended");
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

#[test]
fn qemu_nbd_is_read_with_its_holes_by_several_connections() {
    if !tools("qemu_nbd_is_read", &["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("disk"), directory.path().join("socket"));
    let content = sparse(&path, 64 * MIB, &[(MIB - 512, 5 * MIB), (40 * MIB, 4096), (64 * MIB - 512, 512)]);
    let arguments = ["--read-only", "--persistent", "--shared=8", "-f", "raw", "-x", "a disk", "-k"];
    let arguments = [&arguments[..], &[socket.to_str().unwrap(), path.to_str().unwrap()]].concat();
    let mut server = Server::start("qemu-nbd", &arguments);
    let disk = Counting::new(server.connect(&uri(&socket, "a%20disk")));
    assert!(read_by_extents(&disk) == content);
    assert!(disk.disk.read_only());
    let counted = Counting::new(disk.disk);
    let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
    let imported = import(&counted, &store, Domain::OWN, &Progress::default()).unwrap();
    assert!(counted.count() < 6 * MIB as u64, "{} bytes were read", counted.count());
    assert!(read_tree(&store, imported.size_bytes, imported.root) == content);
    let error = counted.disk.write_at(0, &[1; 512]).unwrap_err();
    assert!(matches!(error, CaptureError::Nbd(NbdError::ReadOnly)), "{error:?}");
    let unknown: NbdUri = uri(&socket, "other").parse().unwrap();
    let error = NbdDisk::connect(&unknown, &NbdOptions::default()).unwrap_err();
    assert!(matches!(&error, NbdError::NoSuchExport { name, .. } if name == "other"), "{error:?}");
}

#[test]
fn writes_arrive_over_tcp() {
    if !tools("writes_arrive_over_tcp", &["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut content = sparse(&path, 8 * MIB, &[(0, 8 * MIB)]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let arguments = ["--persistent", "--shared=4", "-f", "raw", "-b", "127.0.0.1", "-p", &port, path.to_str().unwrap()];
    let mut server = Server::start("qemu-nbd", &arguments);
    let disk = server.connect(&format!("nbd://127.0.0.1:{port}"));
    let bytes = noise(99, 3 * MIB);
    disk.write_at(512, &bytes).unwrap();
    disk.write_zeroes(5 * MIB as u64, MIB as u64 + 512).unwrap();
    disk.flush().unwrap();
    content[512..512 + 3 * MIB].copy_from_slice(&bytes);
    content[5 * MIB..6 * MIB + 512].fill(0);
    assert!(read_by_extents(&disk) == content);
    assert!(matches!(disk.write_at(8 * MIB as u64, &[0; 512]), Err(CaptureError::OutOfRange { .. })));
    drop(disk);
    drop(server);
    assert!(std::fs::read(&path).unwrap() == content);
}

#[test]
fn nbdkit_is_read_with_and_without_its_frills() {
    if !tools("nbdkit_is_read", &["nbdkit"]) {
        return;
    }
    // Neither structured replies nor block status; no zeroing by the server; 4 KiB blocks only; an odd size; errors.
    let cases: [(&[&str], usize); 4] = [
        (&["--no-sr"], 4 * MIB),
        (&["--filter=nozero"], 4 * MIB),
        (&["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"], 4 * MIB),
        (&["--filter=noparallel"], 4 * MIB + 100),
    ];
    for (frills, size) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (path, socket) = (directory.path().join("disk"), directory.path().join("socket"));
        let mut content = sparse(&path, size, &[(MIB - 512, MIB), (size - 512, 512)]);
        content.resize(size.next_multiple_of(512), 0);
        let (filters, parameters): (Vec<&str>, Vec<&str>) = frills.iter().partition(|frill| frill.starts_with("--"));
        let base = ["--foreground", "--exit-with-parent", "-U", socket.to_str().unwrap()];
        let arguments = [&base[..], &filters, &["file", path.to_str().unwrap()], &parameters].concat();
        let mut server = Server::start("nbdkit", &arguments);
        let disk = server.connect(&uri(&socket, ""));
        assert!(read_by_extents(&disk) == content, "{frills:?}");
        let mut middle = vec![0; 1000];
        disk.read_at(MIB as u64 + 700, &mut middle).unwrap();
        assert!(middle == content[MIB + 700..MIB + 1700], "{frills:?}");
        disk.write_zeroes(MIB as u64, 64 << 10).unwrap();
        disk.flush().unwrap();
        content[MIB..MIB + (64 << 10)].fill(0);
        assert!(read_by_extents(&disk) == content, "{frills:?}");
    }
}

#[test]
fn an_error_of_the_server_is_told_and_is_no_data() {
    if !tools("an_error_of_the_server", &["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let arguments = ["--foreground", "--exit-with-parent", "-U", socket.to_str().unwrap(), "--filter=error"];
    let arguments = [&arguments[..], &["pattern", "8M", "error-pread=EIO", "error-rate=100%"]].concat();
    let mut server = Server::start("nbdkit", &arguments);
    let disk = server.connect(&uri(&socket, ""));
    let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
    let error = import(&disk, &store, Domain::OWN, &Progress::default()).unwrap_err();
    let told = disk::told(&error);
    assert!(told.contains("could not read 1048576 bytes at") && told.contains("Input/output error"), "{told}");
}
