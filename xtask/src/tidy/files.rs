//! Rules about files as such: size, name, and what may not lie in the repository at all.

use super::File;

/// The longest source file; most are a third of it.
const MAX_LINES: usize = 1000;
/// The largest file that is not text.
const MAX_BINARY_BYTES: u64 = 100 * 1024;
/// What counts as source.
const SOURCE: [&str; 8] = ["rs", "sh", "py", "sql", "html", "js", "css", "toml"];
/// Pictures and disks are made, not kept.
const UNWANTED: [&str; 13] =
    ["png", "jpg", "jpeg", "gif", "webp", "ico", "svg", "raw", "img", "iso", "qcow2", "vmdk", "vdi"];
/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 5] = ["utils", "util", "common", "helpers", "misc"];

/// Checks one file.
pub(super) fn check(file: &File) -> Vec<String> {
    let mut findings = Vec::new();
    let mut found = |what: &str| findings.push(file.finding(what));
    if UNWANTED.contains(&file.extension()) {
        found("pictures and disks are not kept in the repository");
    }
    let Some(text) = &file.text else {
        if file.size_bytes > MAX_BINARY_BYTES {
            found(&format!("{} bytes of binary; at most {MAX_BINARY_BYTES}", file.size_bytes));
        }
        return findings;
    };
    let lines = text.lines().count();
    if SOURCE.contains(&file.extension()) && lines > MAX_LINES {
        found(&format!("{lines} lines; at most {MAX_LINES}, and most files are far shorter"));
    }
    if file.extension() == "rs" {
        if !text.starts_with("//!") {
            found("does not open with `//!`: what it is for, its main invariant, what it does not do");
        }
        if file.name() == "mod.rs" {
            found("`foo.rs` beside `foo/`, not `mod.rs`");
        }
        let stem = |part: &std::ffi::OsStr| part.to_str().map(|name| name.trim_end_matches(".rs").to_owned());
        if let Some(name) = file.path.iter().filter_map(stem).find(|name| EMPTY_NAMES.contains(&name.as_str())) {
            found(&format!("`{name}` says nothing of what is inside"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    #[test]
    fn a_good_file_passes() {
        assert_eq!(check(&file("crates/a/src/place.rs", "//! What it is for.\n")), [""; 0]);
    }

    #[test]
    fn each_rule_finds() {
        let long = format!("//! Long.\n{}", "\n".repeat(MAX_LINES));
        for (path, text, expected) in [
            ("crates/a/src/lib.rs", "fn main() {}\n", "does not open with"),
            ("crates/a/src/place/mod.rs", "//! Place.\n", "not `mod.rs`"),
            ("crates/a/src/utils.rs", "//! Things.\n", "`utils` says nothing"),
            ("crates/a/src/common/place.rs", "//! Things.\n", "`common` says nothing"),
            ("crates/a/src/long.rs", long.as_str(), "1001 lines"),
            ("docs/picture.svg", "<svg/>", "pictures and disks"),
        ] {
            let findings = check(&file(path, text));
            assert!(findings.len() == 1 && findings[0].contains(expected), "{path}: {findings:?}");
        }
        let binary = File { path: "golden/a.bin".into(), size_bytes: MAX_BINARY_BYTES + 1, text: None };
        assert!(check(&binary)[0].contains("of binary"));
    }
}
