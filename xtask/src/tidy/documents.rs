//! Rules that keep the documents true: they exist, name what there is, and their links lead somewhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::File;

/// The documents that the project keeps.
const KEPT: [&str; 11] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs/format.md",
    "docs/protocol.md",
    "docs/operations.md",
    "docs/decisions/README.md",
    "deny.toml",
];

/// Checks the documents among the files of the checkout.
pub(super) fn check(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    let text_of =
        |path: &str| files.iter().find(|file| file.path == Path::new(path)).and_then(|file| file.text.as_deref());
    findings.extend(KEPT.iter().filter(|path| text_of(path).is_none()).map(|path| format!("{path}: is missing")));
    if text_of("CHANGELOG.md")
        .is_some_and(|text| !text.lines().any(|line| line.starts_with("## ") && line.contains("Unreleased")))
    {
        findings.push("CHANGELOG.md: has no section `Unreleased`".to_owned());
    }
    if let Some(map) = text_of("ARCHITECTURE.md") {
        let unnamed = crates(files).into_iter().filter(|name| {
            !["", "crates/", "plugins/"].iter().any(|folder| map.contains(&format!("`{folder}{name}`")))
        });
        findings.extend(unnamed.map(|name| format!("ARCHITECTURE.md: the code map does not name `{name}`")));
    }
    if let Some(format) = text_of("docs/format.md") {
        let golden = files.iter().filter(|file| file.path.iter().any(|part| part == "golden"));
        let unnamed = golden.filter(|file| !format.contains(file.name()));
        findings.extend(
            unnamed.map(|file| format!("docs/format.md: does not name the golden file {}", file.path.display())),
        );
    }
    findings.extend(decisions(files));
    for file in files.iter().filter(|file| file.extension() == "md") {
        findings.extend(links(file, files));
    }
    findings
}

/// The folders that hold a crate.
fn crates(files: &[File]) -> BTreeSet<String> {
    let manifests = files.iter().filter(|file| file.name() == "Cargo.toml");
    let folder = |file: &File| file.path.parent()?.file_name()?.to_str().map(str::to_owned);
    manifests.filter_map(folder).collect()
}

/// Decisions are numbered from 001 without a gap, and listed.
fn decisions(files: &[File]) -> Vec<String> {
    let folder = Path::new("docs/decisions");
    let listed = files.iter().find(|file| file.path == folder.join("README.md")).and_then(|file| file.text.as_deref());
    let here = files.iter().filter(|file| file.path.parent() == Some(folder) && file.name() != "README.md");
    let mut findings = Vec::new();
    for (number, file) in (1..).zip(here) {
        if !file.name().starts_with(&format!("{number:03}-")) || file.extension() != "md" {
            findings
                .push(file.finding(&format!("decision {number} is called `{number:03}-name.md`: no gaps, no doubles")));
        }
        if listed.is_some_and(|text| !text.contains(file.name())) {
            findings.push(file.finding("is not listed in docs/decisions/README.md"));
        }
    }
    findings
}

/// Relative links lead to a file or a folder of the checkout.
fn links(file: &File, files: &[File]) -> Vec<String> {
    let text = file.text.as_deref().unwrap_or_default();
    let folder = file.path.parent().unwrap_or(Path::new(""));
    let targets =
        text.match_indices("](").filter_map(|(at, open)| text[at + open.len()..].split([')', '\n', ' ']).next());
    let relative = targets
        .filter(|target| !target.contains("://") && !target.starts_with(['#', '<']) && !target.starts_with("mailto:"));
    let mut findings = Vec::new();
    for target in relative {
        let path = target.split('#').next().unwrap_or(target);
        let resolved = resolve(folder, path);
        if !resolved.is_some_and(|place| files.iter().any(|file| file.path.starts_with(&place))) {
            findings.push(file.finding(&format!("the link to `{target}` leads nowhere")));
        }
    }
    findings
}

/// Resolves a relative link; nothing when it leads out of the checkout.
fn resolve(folder: &Path, link: &str) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::Normal(name) => resolved.push(name),
            Component::CurDir => {}
            Component::ParentDir if resolved.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(resolved)
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn complete() -> Vec<File> {
        let mut files: Vec<File> = KEPT.iter().map(|path| file(path, "# A document\n")).collect();
        files.iter_mut().find(|file| file.name() == "CHANGELOG.md").unwrap().text = Some("## Unreleased\n".to_owned());
        files
    }

    fn with(path: &str, text: &str) -> String {
        let mut files = complete();
        files.retain(|file| file.path != Path::new(path));
        files.push(file(path, text));
        files.sort_by(|one, other| one.path.cmp(&other.path));
        check(&files).join("\n")
    }

    #[test]
    fn complete_documents_pass() {
        assert_eq!(check(&complete()), [""; 0]);
        let mut files = complete();
        files.remove(0);
        assert_eq!(check(&files), ["README.md: is missing"]);
    }

    #[test]
    fn links_lead_somewhere() {
        assert_eq!(
            with(
                "docs/place.md",
                "[a](../README.md) [b](format.md#part) [c](https://example.org) [d](#here) [e](decisions/)"
            ),
            ""
        );
        assert!(with("docs/place.md", "[a](nothing.md)").contains("`nothing.md` leads nowhere"));
        assert!(with("docs/place.md", "[a](../../README.md)").contains("leads nowhere"));
    }

    #[test]
    fn decisions_are_numbered_and_listed() {
        let found = with("docs/decisions/002-later.md", "# Later\n");
        assert!(found.contains("decision 1 is called `001-name.md`") && found.contains("not listed"), "{found}");
    }

    #[test]
    fn maps_name_everything() {
        assert!(with("crates/place/Cargo.toml", "").contains("the code map does not name `place`"));
        assert!(with("crates/format/golden/node-1.bin", "x").contains("does not name the golden file"));
        assert!(with("CHANGELOG.md", "# Changes\n").contains("no section `Unreleased`"));
    }
}
