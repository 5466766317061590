//! Rules about what is written: no unfinished work, and nothing that is true on one machine only.

use super::File;
use crate::tally::SKIP_MARK;

/// Files that are made by tools or are law.
const NOT_OURS: [&str; 3] = ["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

/// Marks of unfinished work; put together here, so that this file does not find itself.
const UNFINISHED: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];
const UNFINISHED_MACROS: [&str; 2] = [concat!("todo", "!("), concat!("unimplemented", "!(")];

/// Places of one machine.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("/ho", "me/")];

/// Servers of packages: which one is used is a setting of the machine.
const HOSTS: [&str; 7] = [
    concat!("deb.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("registry.", "npmjs.org"),
    concat!("pypi", ".org"),
    concat!("files.", "pythonhosted.org"),
];

/// How a test says that it cannot run here, as far as it can be told apart; `tally::SKIP_MARK` is the whole of it.
const SKIPPED: &str = concat!("\"SKIP", "PED");

/// Checks one file.
pub(super) fn check(file: &File) -> Vec<String> {
    let Some(text) = file.text.as_deref().filter(|_| !NOT_OURS.contains(&file.name())) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut found = |what: String| findings.push(format!("{}:{number}: {what}", file.path.display()));
        if let Some(mark) = UNFINISHED.iter().find(|mark| has_word(line, mark)) {
            found(format!("`{mark}`: finish it, or file an issue"));
        }
        if let Some(name) = UNFINISHED_MACROS.iter().find(|name| line.contains(*name)) {
            found(format!("`{name}…)`: finish it"));
        }
        if line.match_indices(SKIPPED).any(|(at, _)| !line[at + 1..].starts_with(SKIP_MARK)) {
            found(format!("a skipped test says \"{SKIP_MARK}why\"; otherwise it counts as passed"));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| begins_path(line, path)) {
            found(format!("`{path}…` is a path of one machine"));
        }
        if let Some(host) = HOSTS.iter().find(|host| line.contains(*host)) {
            found(format!("`{host}`: which package server is used is a setting of the machine"));
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    let inside = |neighbour: Option<char>| neighbour.is_some_and(|one| one.is_alphanumeric() || one == '_');
    line.match_indices(word)
        .any(|(at, _)| !inside(line[..at].chars().next_back()) && !inside(line[at + word.len()..].chars().next()))
}

/// Tells whether an absolute path on the line begins with `path`: what comes before is not part of a longer one.
fn begins_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|one| {
            !one.is_alphanumeric() && !matches!(one, '_' | '-' | '.' | '}' | ')' | '/' | '~' | '*' | '>')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn findings(line: &str) -> usize {
        check(&file("docs/place.md", line)).len()
    }

    #[test]
    fn finds_unfinished_work() {
        assert_eq!(findings(&format!("// {}: later", UNFINISHED[0])), 1);
        assert_eq!(findings(&format!("    {})", UNFINISHED_MACROS[0])), 1);
        assert_eq!(findings(&format!("MAS{}S and {}_LIST are words", UNFINISHED[0], UNFINISHED[0])), 0);
    }

    #[test]
    fn finds_paths_of_one_machine() {
        assert_eq!(findings(&format!("see {}main", MACHINE_PATHS[0])), 1);
        assert_eq!(findings(&format!("\"{}x\"", MACHINE_PATHS[1])), 1);
        assert_eq!(
            findings(&format!("target{}images ~{}x $dir}}{}y", MACHINE_PATHS[0], MACHINE_PATHS[0], MACHINE_PATHS[0])),
            0
        );
    }

    #[test]
    fn finds_skips_that_would_not_be_counted() {
        assert_eq!(findings(&format!("eprintln!({SKIPPED} disk: no room\")")), 1);
        assert_eq!(findings(&format!("eprintln!({SKIPPED}: no room\")")), 0);
    }

    #[test]
    fn finds_package_servers() {
        assert_eq!(findings(&format!("deb https://{}/debian", HOSTS[0])), 1);
        assert!(check(&file("Cargo.lock", &format!("source = \"{}\"", HOSTS[2]))).is_empty());
    }
}
