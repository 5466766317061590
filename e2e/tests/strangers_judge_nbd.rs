//! What others wrote to test NBD servers finds nothing wrong with a node's exports: libnbd's own tests, QEMU's iotests,
//! and verification by fio and nbdcopy, byte by byte.

use std::path::Path;

use anyhow::{Result, ensure};
use e2e::Judges;
use xtask::judges::LIBNBD_TESTS;
use xtask::setup::{QEMU, QEMU_IMG};

fn full() -> bool {
    std::env::var_os("BRANT_TEST_FULL").is_some()
}

#[test]
fn libnbds_tests_of_a_client_pass() -> Result<()> {
    let Some(judges) = Judges::or_skip(&[])? else { return Ok(()) };
    let failures = judges.failures("bin", &[&LIBNBD_TESTS[..], &["interop", "socket-activation"]].concat())?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Each runs for ten seconds: eight threads or connections read and write, and compare with what they know.
#[test]
fn libnbds_parallel_clients_read_what_they_wrote() -> Result<()> {
    let Some(judges) = Judges::or_skip(&[])? else { return Ok(()) };
    parallel(&judges, "bin", "synch-parallel", &["--filter=cow", "pattern", "size=8M"])?;
    parallel(&judges, "bin", "aio-parallel", &["--filter=cow", "pattern", "size=64M"])?;
    parallel(&judges, "bin", "aio-parallel-load", &["memory", "size=64M"])
}

fn parallel(judges: &Judges, folder: &str, program: &str, served: &[&str]) -> Result<()> {
    let run = format!("./{program} $unixsocket");
    let arguments = [&["-U", "-"], served, &["--run", &run]].concat();
    let outcome = judges.run(Path::new("nbdkit"), &judges.path(folder), &arguments)?;
    ensure!(outcome.status.success(), "{program}: {}\n{}", outcome.status, outcome.output);
    Ok(())
}

#[test]
fn libnbds_tests_of_tls_pass() -> Result<()> {
    let Some(judges) = Judges::or_skip(&[])? else { return Ok(()) };
    let programs = [
        "connect-certificates",
        "interop-certificates-require",
        "interop-certificates-allow",
        "interop-certificates-fallback",
    ];
    let failures = judges.failures("bin-tls", &programs)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    let tls = ["--tls=require", "--tls-certificates=pki"];
    parallel(&judges, "bin-tls", "aio-parallel-certificates", &[&tls[..], &["pattern", "size=64M"]].concat())?;
    if full() {
        parallel(&judges, "bin-tls", "synch-parallel-certificates", &[&tls[..], &["pattern", "size=8M"]].concat())?;
        parallel(&judges, "bin-tls", "aio-parallel-load-certificates", &[&tls[..], &["memory", "size=64M"]].concat())?;
    }
    Ok(())
}

#[test]
fn qemus_iotests_pass() -> Result<()> {
    let Some(judges) = Judges::or_skip(&[QEMU, QEMU_IMG])? else { return Ok(()) };
    let mut tests = vec!["001", "002", "003", "004", "008", "009", "010", "011", "021", "032", "033", "077", "123"];
    if full() {
        // It tries QEMU's client against a server that breaks off, for a quarter of a minute.
        tests.push("083");
    }
    let folder = judges.path("iotests/tests/qemu-iotests");
    let mut command = judges.command(Path::new("python3"), &folder)?;
    for (variable, program) in [
        ("QEMU_PROG", "qemu-system-x86_64"),
        ("QEMU_IMG_PROG", "qemu-img"),
        ("QEMU_IO_PROG", "qemu-io"),
        ("QSD_PROG", "qemu-storage-daemon"),
    ] {
        command.env(variable, Path::new("/usr/bin").join(program));
    }
    command.env("QEMU_NBD_PROG", xtask::judges::stand_ins().join("qemu-nbd"));
    command.env("TEST_DIR", judges.world.path("iotests")).env("SOCK_DIR", judges.world.path("sockets"));
    command.args(["./check", "-raw", "-nbd"]).args(&tests);
    let limit = std::time::Duration::from_mins(4);
    let outcome = xtask::process::run(&mut command, limit, xtask::process::Echo::Quiet)?;
    ensure!(outcome.status.success(), "{}\n{}", outcome.status, outcome.output);
    ensure!(outcome.output.contains(&format!("Passed all {} iotests", tests.len())), "{}", outcome.output);
    Ok(())
}
