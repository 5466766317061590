//! A virtual machine in which a node runs, for what this machine's kernel does not have.
//!
//! The test runs itself there: its own program, and `brant`, are put into a second archive of the machine's initial file system.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use xtask::images::{self, Kernel};
use xtask::qemu::{self, Boot, Machine};

use crate::devices::run;
use crate::{brant, can_run, image_directory};

/// How long a machine may take for all that it does.
const LIMIT: Duration = Duration::from_mins(9);
/// Set in the machine.
const INSIDE: &str = "BRANT_TEST_INSIDE";

/// Returns the kernel of the machine for a node, or says what is missing to run it and returns nothing.
#[must_use]
pub fn host_or_skip() -> Option<Kernel> {
    let host = images::host_kernel(&image_directory());
    can_run(host.kernel.exists(), "the machine for a node").then_some(host)
}

/// Whether this process runs in such a machine.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Such a machine.
#[derive(Debug)]
pub struct Host {
    kernel: Kernel,
    /// The initial file system goes with it.
    _directory: TempDir,
}

impl Host {
    /// Prepares a machine that runs a test of the calling program.
    ///
    /// # Errors
    /// When a program or a library is not there.
    pub fn of_this_program(kernel: &Kernel, test: &str) -> Result<Host> {
        let directory = tempfile::tempdir()?;
        let initrd = directory.path().join("initrd.img");
        std::fs::copy(&kernel.initrd, &initrd)?;
        let file = File::options().append(true).open(&initrd)?;
        // Archives begin at a multiple of four bytes.
        let begin = file.metadata()?.len();
        let mut archive = Archive { to: BufWriter::new(file), number: 0 };
        archive.pad(begin)?;
        let programs = [("/usr/sbin/test-program", std::env::current_exe()?), ("/usr/sbin/brant", brant())];
        let script = format!(
            "#!/bin/sh\nexport {INSIDE}=1 BRANT_BIN=/usr/sbin/brant RUST_BACKTRACE=0\n\
             test-program --exact {test} --nocapture 2>&1 && echo 'BRANT passed'\n"
        );
        archive.add(Path::new("/test"), 0o755, script.as_bytes())?;
        let mut libraries = BTreeSet::new();
        for (place, program) in &programs {
            archive.add(Path::new(place), 0o755, &std::fs::read(program)?)?;
            libraries.extend(libraries_of(program)?);
        }
        for library in libraries {
            archive.add(&library, 0o755, &std::fs::read(&library)?)?;
        }
        archive.finish()?;
        let kernel = Kernel { kernel: kernel.kernel.clone(), initrd };
        Ok(Host { kernel, _directory: directory })
    }

    /// Boots it, and waits until the test has passed and the machine is off; returns what the console showed.
    ///
    /// # Errors
    /// When the test fails; the error has what the console showed.
    pub fn pass(&self) -> Result<String> {
        let mut machine = Machine::start(&Boot {
            kernel: Some(self.kernel.clone()),
            append: "quiet".to_owned(),
            disk: None,
            memory_mib: 2048,
            accelerator: qemu::accelerator(Some(&self.kernel)),
        })?;
        machine.wait_off(LIMIT)?;
        let console = machine.console().join("\n");
        ensure!(console.contains("BRANT passed"), "{console}");
        Ok(console)
    }
}

/// The shared libraries of a program, and what loads them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = run("ldd", &[program.to_str().context("a path")?])?;
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// An archive in the format of initial file systems (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<W: Write> {
    to: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    /// Adds a file, with the directories that lead to it.
    fn add(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
        above.reverse();
        for directory in above {
            self.entry(directory, 0o040_755, &[])?;
        }
        self.entry(path, 0o100_000 | mode, content)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_str().context("a path")?.trim_start_matches('/');
        self.number += 1;
        let fields = [
            self.number,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len())?,
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1)?,
            0,
        ];
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        let head = format!("070701{fields}{name}\0");
        self.to.write_all(head.as_bytes())?;
        self.pad(head.len() as u64)?;
        self.to.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn pad(&mut self, written: u64) -> Result<()> {
        let missing = usize::try_from(written.next_multiple_of(4) - written)?;
        Ok(self.to.write_all(&[0; 4][..missing])?)
    }

    fn finish(mut self) -> Result<()> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[])?;
        Ok(self.to.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let Some(cpio) = xtask::setup::find("cpio") else { return crate::say("SKIPPED: missing: cpio") };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("archive");
        let mut archive = Archive { to: File::create(&file).unwrap(), number: 0 };
        archive.add(Path::new("/a/b/file"), 0o755, b"content").unwrap();
        archive.add(Path::new("/empty"), 0o644, b"").unwrap();
        archive.finish().unwrap();
        let status = std::process::Command::new(cpio)
            .args(["--quiet", "-i"])
            .stdin(File::open(&file).unwrap())
            .current_dir(directory.path())
            .status();
        assert!(status.unwrap().success());
        let made = directory.path().join("a/b/file");
        assert_eq!(std::fs::read(&made).unwrap(), b"content");
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read(directory.path().join("empty")).unwrap(), b"");
    }
}
