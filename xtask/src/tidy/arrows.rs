//! Which crate may use which: arrows point only downwards, and some neighbours do not know each other.
//!
//! The order is that of ARCHITECTURE.md. A crate that is not in it is a finding, so that the order stays complete.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

/// The house from the top down: a crate may use those after it.
const HOUSE: [&str; 16] = [
    "cli",
    "ganeti",
    "node",
    "cluster",
    "indexer",
    "vhost-user",
    "export",
    "ublk",
    "swarm",
    "capture",
    "volume",
    "store",
    "bucket",
    "format",
    "medium",
    "types",
];

/// Beside the house: they may use it, and nothing in the house may use them.
const BESIDE: [&str; 5] = ["bench", "e2e", "fuzz", "testkit", "xtask"];
/// What stands beside the house and may yet be used: by whom is checked with the arrows.
const SHARED: [&str; 2] = ["testkit", "xtask"];

/// Crates that do not know each other although the order would allow it: the user, the used, and why.
const STRANGERS: [(&str, &[&str], &str); 6] = [
    ("vhost-user", &["swarm", "capture"], "a block device does not know where its bytes come from"),
    ("swarm", &["volume", "capture"], "both see only `store::ChunkSource`"),
    ("export", &["swarm"], "a block device does not know where its bytes come from"),
    ("indexer", &["export", "swarm", "capture", "volume", "store"], "an Indexer never holds or sees disk data"),
    ("volume", &["bucket"], "a disk does not know who may read it"),
    ("store", &["bucket"], "a store does not know who may read it"),
];

/// Dependencies from outside that only some crates may have, by the beginning of their names.
const RESERVED: [(&str, &[&str]); 7] = [
    ("iroh", &["swarm", "node", "cli"]),
    ("sqlx", &["indexer", "node"]),
    ("axum", &["indexer", "node", "cli", "testkit"]),
    ("clap", &["cli"]),
    ("fjall", &["store"]),
    ("anyhow", &["cli", "node", "xtask", "e2e", "fuzz", "bench", "testkit"]),
    (
        "tokio",
        &[
            "cli",
            "ganeti",
            "node",
            "cluster",
            "indexer",
            "vhost-user",
            "export",
            "swarm",
            "capture",
            "volume",
            "testkit",
            "e2e",
            "bench",
        ],
    ),
];

/// A crate of the workspace with what it depends on.
#[derive(Clone, Debug, Default)]
pub(super) struct Crate {
    name: String,
    folder: String,
    uses: BTreeSet<String>,
    /// For its tests and its build script only.
    tests_use: BTreeSet<String>,
}

/// Reads the crates of the workspace from the answer of cargo metadata.
pub(super) fn crates(metadata: &Value) -> Result<Vec<Crate>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(read).collect()
}

fn read(package: &Value) -> Result<Crate> {
    let name = package["name"].as_str().context("a package without a name")?.to_owned();
    let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
    let folder = manifest.rsplit('/').nth(1).context("a manifest without a folder")?.to_owned();
    let mut found = Crate { name, folder, ..Crate::default() };
    for dependency in package["dependencies"].as_array().context("a package without a list of dependencies")? {
        let used = dependency["name"].as_str().context("a dependency without a name")?.to_owned();
        let set = if dependency["kind"].is_null() { &mut found.uses } else { &mut found.tests_use };
        set.insert(used);
    }
    Ok(found)
}

/// Checks all crates of the workspace.
pub(super) fn check(crates: &[Crate]) -> Vec<String> {
    let names: BTreeSet<&str> = crates.iter().map(|one| one.name.as_str()).collect();
    let mut findings = Vec::new();
    for one in crates {
        let finding = |what: String| format!("{}/Cargo.toml: {what}", one.name);
        if one.folder != one.name {
            findings.push(finding(format!("folder and crate have one name; the folder is `{}`", one.folder)));
        }
        let (Some(place), beside) = (place(one), BESIDE.contains(&one.name.as_str())) else {
            findings.push(finding(
                "the crate has no place in the house (xtask/src/tidy/arrows.rs, ARCHITECTURE.md)".to_owned(),
            ));
            continue;
        };
        for used in &one.uses {
            if names.contains(used.as_str()) {
                findings.extend(forbidden(one, place, beside, used).map(finding));
            }
        }
        findings.extend(
            one.tests_use
                .iter()
                .filter(|used| !beside && BESIDE.contains(&used.as_str()))
                .map(|used| finding(format!("its tests use `{used}`, which stands beside the house"))),
        );
        for (prefix, allowed) in RESERVED {
            let uses = one.uses.iter().find(|used| used.starts_with(prefix));
            if let Some(used) = uses.filter(|_| !allowed.contains(&one.name.as_str())) {
                findings.push(finding(format!("uses `{used}`; only these may: {}", allowed.join(", "))));
            }
        }
    }
    findings
}

/// The crate's floor, counted from the top; what stands beside the house looks down on all of it.
fn place(one: &Crate) -> Option<usize> {
    let floor = |name: &str| HOUSE.iter().position(|crate_name| *crate_name == name);
    if BESIDE.contains(&one.name.as_str()) { Some(0) } else { floor(&one.name) }
}

fn forbidden(one: &Crate, place: usize, beside: bool, used: &str) -> Option<String> {
    if one.name == "xtask" {
        return Some(format!("uses `{used}`; xtask works without the house"));
    }
    if beside {
        let tool = BESIDE.contains(&used) && !SHARED.contains(&used);
        return tool.then(|| format!("uses `{used}`, which stands beside the house too"));
    }
    if used == "testkit" {
        return Some("uses `testkit` outside its tests".to_owned());
    }
    match HOUSE.iter().position(|name| *name == used) {
        Some(floor) if floor > place => {}
        _ => return Some(format!("uses `{used}`, which is not below it")),
    }
    let reason = STRANGERS.iter().find(|(user, strangers, _)| *user == one.name && strangers.contains(&used));
    reason.map(|(_, _, why)| format!("uses `{used}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, uses: &[&str]) -> Crate {
        let uses = uses.iter().map(ToString::to_string).collect();
        Crate { name: name.to_owned(), folder: name.to_owned(), uses, tests_use: BTreeSet::new() }
    }

    fn findings(crates: &[Crate]) -> String {
        check(crates).join("\n")
    }

    #[test]
    fn an_arrow_down_is_allowed_and_one_up_is_not() {
        let house = [one("types", &[]), one("format", &["types"]), one("store", &["format", "types"])];
        assert_eq!(findings(&house), "");
        let upward = [one("types", &["format"]), one("format", &[])];
        assert!(findings(&upward).contains("uses `format`, which is not below it"));
    }

    #[test]
    fn strangers_stay_strangers() {
        let crates = [one("volume", &[]), one("swarm", &["volume"]), one("indexer", &["volume"])];
        let found = findings(&crates);
        assert!(found.contains("swarm/Cargo.toml: uses `volume`: both see only"), "{found}");
        assert!(found.contains("indexer/Cargo.toml: uses `volume`: an Indexer never holds"), "{found}");
    }

    #[test]
    fn heavy_dependencies_stay_where_they_belong() {
        assert!(findings(&[one("format", &["sqlx"])]).contains("uses `sqlx`; only these may"));
        assert!(findings(&[one("types", &["tokio-util"])]).contains("uses `tokio-util`"));
        assert_eq!(findings(&[one("swarm", &["iroh-base"])]), "");
    }

    #[test]
    fn the_tools_stand_beside() {
        let crates = [one("types", &["xtask"]), one("xtask", &["types"]), one("e2e", &["xtask"]), one("testkit", &[])];
        let found = findings(&crates);
        assert!(found.contains("types/Cargo.toml: uses `xtask`"), "{found}");
        assert!(found.contains("xtask/Cargo.toml: uses `types`; xtask works without the house"), "{found}");
        assert!(!found.contains("e2e"), "{found}");
    }

    #[test]
    fn a_crate_nobody_placed_is_found() {
        assert!(findings(&[one("misc", &[])]).contains("has no place in the house"));
    }
}
