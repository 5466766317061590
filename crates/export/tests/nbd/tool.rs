//! Runs other people's tools, within a time limit; says loudly when one is missing.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// No tool may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What a tool has said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Said {
    /// The output of a tool that was content.
    #[track_caller]
    pub(crate) fn content(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.output, self.errors);
        self.output
    }
}

/// Whether all tools are installed; names those that are not.
pub(crate) fn installed(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !std::env::split_paths(&path).any(|directory| directory.join(name).is_file()))
        .collect();
    for name in &missing {
        eprintln!("SKIPPED: {name} is not installed");
    }
    missing.is_empty()
}

/// Runs a tool in a directory.
pub(crate) fn run(directory: &Path, name: &str, arguments: &[&str]) -> Said {
    let (output, errors) = (directory.join("tool.out"), directory.join("tool.err"));
    let mut child = Command::new(name)
        .args(arguments)
        .current_dir(directory)
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} {arguments:?} did not end: {}", std::fs::read_to_string(&errors).unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let said = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    Said { status, output: said(&output), errors: said(&errors) }
}
