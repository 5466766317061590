//! Checks the licence and the source of every package that is built from, against the lists in `deny.toml`.
//!
//! A small stand-in for `cargo deny check licenses sources`, which takes minutes to install: one list serves both.
//! Reads SPDX licence expressions (SPDX specification 2.3, annex D), with the old `/` for OR that some packages still write.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::workspace;

/// Checks every package of the workspace rooted at `root`; returns how many there are and what is wrong with them.
///
/// # Errors
/// When `deny.toml` or the answer of cargo cannot be read.
pub fn check(root: &Path) -> Result<(usize, Vec<String>)> {
    let configuration = std::fs::read_to_string(root.join("deny.toml")).context("read deny.toml")?;
    let allowed = allow_list(&configuration)?;
    let metadata = workspace::metadata(root, true)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let findings = packages.iter().filter_map(|package| check_package(package, &allowed).err());
    Ok((packages.len(), findings.map(|finding| finding.to_string()).collect()))
}

fn check_package(package: &Value, allowed: &BTreeSet<String>) -> Result<()> {
    let name = format!("{} {}", package["name"].as_str().unwrap_or("?"), package["version"].as_str().unwrap_or("?"));
    match package["source"].as_str() {
        // Packages of the workspace have no source; anything from outside comes from the public registry.
        None => {}
        Some(source) if source.starts_with("registry+") && source.ends_with("/crates.io-index") => {}
        Some(source) => bail!("{name}: comes from {source}, not from the crate registry"),
    }
    let licence = package["license"].as_str().with_context(|| format!("{name}: names no licence"))?;
    let accepted = accepts(licence, allowed).with_context(|| format!("{name}: cannot read the licence `{licence}`"))?;
    ensure!(accepted, "{name}: licence `{licence}` is not allowed by deny.toml");
    Ok(())
}

/// Reads the `allow` array of `deny.toml`.
fn allow_list(configuration: &str) -> Result<BTreeSet<String>> {
    let (_, after) = configuration.split_once("\nallow = [").context("deny.toml has no `allow = [`")?;
    let (array, _) = after.split_once(']').context("the `allow` array of deny.toml does not end")?;
    let allowed: BTreeSet<String> = array.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    ensure!(!allowed.is_empty(), "the `allow` array of deny.toml is empty");
    Ok(allowed)
}

/// Tells whether a licence expression can be met with the allowed licences alone.
fn accepts(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let accepted = parser.any_of()?;
    ensure!(parser.words.is_empty(), "unexpected `{}`", parser.words.join(" "));
    Ok(accepted)
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn next(&mut self) -> Result<&'a str> {
        let (first, rest) = self.words.split_first().context("the expression ends too early")?;
        self.words = rest;
        Ok(first)
    }

    fn any_of(&mut self) -> Result<bool> {
        let mut accepted = self.all_of()?;
        while self.take("OR") {
            accepted |= self.all_of()?;
        }
        Ok(accepted)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut accepted = self.one()?;
        while self.take("AND") {
            accepted &= self.one()?;
        }
        Ok(accepted)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let accepted = self.any_of()?;
            ensure!(self.take(")"), "a parenthesis is not closed");
            return Ok(accepted);
        }
        let licence = self.next()?;
        ensure!(!["AND", "OR", "WITH", ")"].contains(&licence), "`{licence}` where a licence should be");
        let full = if self.take("WITH") { format!("{licence} WITH {}", self.next()?) } else { licence.to_owned() };
        Ok(self.allowed.contains(&full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into()
    }

    #[test]
    fn judges_expressions() {
        for accepted in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR GPL-3.0) AND Zlib",
            "GPL-3.0 OR (MIT AND Zlib)",
        ] {
            assert!(accepts(accepted, &allowed()).unwrap(), "{accepted}");
        }
        for refused in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH Other-exception", "(GPL-3.0 OR MIT) AND GPL-2.0"] {
            assert!(!accepts(refused, &allowed()).unwrap(), "{refused}");
        }
        for malformed in ["", "MIT OR", "(MIT", "MIT)", "AND MIT", "MIT Zlib"] {
            assert!(accepts(malformed, &allowed()).is_err(), "{malformed}");
        }
    }

    #[test]
    fn reads_the_list_that_cargo_deny_reads() {
        let configuration = std::fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
        let allowed = allow_list(&configuration).unwrap();
        assert!(allowed.contains("MIT") && allowed.contains("Apache-2.0 WITH LLVM-exception"), "{allowed:?}");
    }

    #[test]
    fn refuses_other_sources() {
        let package = serde_json::json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": "git+https://example.org/a"});
        assert!(check_package(&package, &allowed()).unwrap_err().to_string().contains("git+https"));
    }
}
