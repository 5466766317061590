//! The labels by which a volume is known as a disk of Ganeti.

use types::Name;

/// The instance that the disk belongs to.
pub const INSTANCE: &str = "ganeti.instance";

/// What Ganeti says of the disk where that is not an instance.
pub const METADATA: &str = "ganeti.metadata";

/// The bucket that snapshots of the instance go to where none is named.
pub const BUCKET: &str = "ganeti.bucket";

/// What the node was asked for last by the parameters `schedule` and `keep`.
pub const SCHEDULE: &str = "ganeti.schedule";

/// What the node was asked for last by the parameters `replica`, `replica_mode` and `witness`.
pub const REPLICA: &str = "ganeti.replica";

/// The volume that this one is a passing snapshot of, made for an export.
pub const SNAPSHOT_OF: &str = "ganeti.snapshot-of";

/// What Ganeti writes before the instance's name.
const ORIGIN: &str = "originstname+";

/// How long the text may be that Ganeti gives, in bytes (`ExtStorageDevice.SetInfo`).
const MAX_METADATA_BYTES: usize = 128;

/// A label's key.
///
/// # Panics
/// Never, for those above.
pub(crate) fn key(label: &str) -> Name {
    label.parse().expect("the keys above are names")
}

/// The label that stands for what Ganeti says of a disk.
pub(crate) fn of_metadata(text: &str) -> (Name, String) {
    match text.strip_prefix(ORIGIN) {
        Some(instance) => (key(INSTANCE), instance.to_owned()),
        None => (key(METADATA), text.to_owned()),
    }
}

/// What Ganeti makes of an instance's name before a provider gets to see it.
pub(crate) fn of_instance(instance: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "-_+.".contains(c) { c } else { '_' };
    instance.chars().map(kept).take(MAX_METADATA_BYTES - ORIGIN.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_found_by_what_ganeti_wrote() {
        assert_eq!(of_metadata("originstname+web1.example.org"), (key(INSTANCE), "web1.example.org".to_owned()));
        assert_eq!(of_metadata("something"), (key(METADATA), "something".to_owned()));
        assert_eq!(of_instance("web1.example.org"), "web1.example.org");
        let long = "x".repeat(200);
        let given = format!("{ORIGIN}{long}").chars().take(MAX_METADATA_BYTES).collect::<String>();
        assert_eq!(of_metadata(&given).1, of_instance(&long));
    }
}
