//! The house rules that no compiler knows, checked over the files of the checkout.
//!
//! A finding is one line, `FILE: what is wrong`; no finding means that the rule holds. The rules are those of
//! CONTRIBUTING.md and ARCHITECTURE.md; each module here holds the rules of one kind.

mod arrows;
mod documents;
mod files;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// Checks the checkout rooted at `root`; returns the findings, in the order of the files.
///
/// # Errors
/// When the files or the workspace cannot be listed or read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let files = read(root)?;
    let metadata = workspace::metadata(root, false)?;
    let mut findings = arrows::check(&arrows::crates(&metadata)?);
    for file in &files {
        findings.extend(files::check(file));
        findings.extend(text::check(file));
    }
    findings.extend(documents::check(&files));
    findings.sort();
    Ok(findings)
}

/// A file of the checkout.
#[derive(Clone, Debug)]
struct File {
    /// Relative to the root.
    path: PathBuf,
    size_bytes: u64,
    /// Nothing when the file is not text.
    text: Option<String>,
}

impl File {
    fn extension(&self) -> &str {
        self.path.extension().and_then(|extension| extension.to_str()).unwrap_or("")
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or("")
    }

    fn finding(&self, what: &str) -> String {
        format!("{}: {what}", self.path.display())
    }
}

fn read(root: &Path) -> Result<Vec<File>> {
    let read_file = |path: PathBuf| {
        let bytes = std::fs::read(root.join(&path)).with_context(|| format!("read {}", path.display()))?;
        let size_bytes = bytes.len() as u64;
        let text = if bytes.contains(&0) { None } else { String::from_utf8(bytes).ok() };
        Ok(File { path, size_bytes, text })
    };
    workspace::files(root)?.into_iter().map(read_file).collect()
}

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File { path: path.into(), size_bytes: text.len() as u64, text: Some(text.to_owned()) }
}
