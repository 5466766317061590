//! The parameters of a disk, as Ganeti passes them with every call, and which of them can be meant.
//!
//! Ganeti changes a parameter without asking the provider. So they are checked where a disk is made and where it is
//! opened, and nowhere else: a disk whose parameters are wrong can still be stopped, detached and removed.

use std::collections::BTreeMap;

use node::api::{ReplicationMode, Via};
use types::{Keep, KeepError, Name, NameError};

use crate::origin::{Origin, OriginError};

/// The file `parameters.list`: a name and a description a line. None of the names is one of Ganeti's own.
pub(crate) const LIST: &str = "\
origin what the disk begins as: BUCKET/OBJECT[@VERSION], a snapshot id, or INDEXER/ACCOUNT/NAME[/OBJECT[@VERSION]]; #DISK chooses one of several
bucket the bucket of this node that snapshots of the instance go to, by `brant ganeti snapshot INSTANCE` and by schedule
schedule how often snapshots are taken by themselves: 15min, 1h, 1d; those disks of an instance that have it at one moment; needs bucket
keep which of those are kept: 3+24h+7d+4w+12m+1y are the last three, and one an hour, day, week, month, year; all where it is left out
export kernel (the default): a block device of the kernel in the best way that there is, and for access=userspace a URI for QEMU beside it; ublk, nbd-kernel, fuse: in this way; userspace: only the URI
replica another node of brant's cluster, by its name there, that keeps a second copy of the disk and takes over when the disk's node is dead
replica_mode sync (the default): a write is answered when the replica has it, so that nothing is lost; async: at once, and up to 64 MiB may be lost; needs replica
witness a third node, which says who goes on alone when the disk's and the replica's do not hear of each other; needs replica
prefetch none (the default): data of the origin comes when it is read; full: all of it is brought in the background
";

/// What Ganeti passes beside the parameters of the list.
const GANETIS_OWN: [&str; 2] = ["provider", "access"];

/// Parameters that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// An origin that is none.
    #[error("origin={text}")]
    Origin {
        /// What it says.
        text: String,
        /// Why not.
        #[source]
        source: OriginError,
    },
    /// A name that is none.
    #[error("{name}={text}")]
    Name {
        /// The parameter.
        name: &'static str,
        /// What it says.
        text: String,
        /// Why not.
        #[source]
        source: NameError,
    },
    /// A schedule that is none.
    #[error("schedule={0} is no length of time: write a number with s, min, h, d or w, for example 1h")]
    Schedule(String),
    /// Rules that are none.
    #[error("keep={text}")]
    Keep {
        /// What they say.
        text: String,
        /// Why not.
        #[source]
        source: KeepError,
    },
    /// One parameter without another that it needs.
    #[error("{name}={text} needs {needed} too")]
    Alone {
        /// The parameter.
        name: &'static str,
        /// What it says.
        text: String,
        /// The one that is missing.
        needed: &'static str,
    },
    /// None of the words that it may be.
    #[error("{name}={text} is none of: {words}")]
    Word {
        /// The parameter.
        name: &'static str,
        /// What it says.
        text: String,
        /// What it may be.
        words: &'static str,
    },
    /// A disk that QEMU would look for in the kernel.
    #[error(
        "access={0} needs a block device, and export=userspace makes none: say access=userspace too, or export=kernel"
    )]
    Access(String),
    /// Nothing that this provider knows.
    #[error("{0} is not a parameter of this provider: see gnt-storage info brant")]
    Unknown(String),
}

/// The parameters of a disk, as they were passed.
#[derive(Clone, Debug, Default)]
pub struct Parameters(BTreeMap<String, String>);

/// Parameters that were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// What the disk begins as.
    pub(crate) origin: Option<Origin>,
    /// Where snapshots of the instance go.
    pub(crate) bucket: Option<Name>,
    /// How often snapshots are taken by themselves, in milliseconds.
    pub(crate) every_ms: Option<u64>,
    /// Which of those are kept; all of them where it is not said.
    pub(crate) keep: Option<Keep>,
    /// Whether all of the origin is brought at once.
    pub(crate) prefetch: bool,
    /// What replica of it is kept.
    pub(crate) replica: Option<Replica>,
}

/// A replica of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    /// The member that keeps it.
    pub(crate) to: Name,
    /// Whether it is waited for.
    pub(crate) mode: ReplicationMode,
    /// The member that says who goes on alone.
    pub(crate) witness: Option<Name>,
}

/// Reads a length of time, in milliseconds.
fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit_ms).filter(|ms| *ms > 0)
}

impl Parameters {
    /// Takes parameters, by name.
    pub fn new(parameters: impl IntoIterator<Item = (String, String)>) -> Self {
        // An empty value is how a parameter of Ganeti is left out.
        Self(parameters.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    fn word(&self, name: &'static str, default: &'static str, words: &'static str) -> Result<&str, ParameterError> {
        let text = self.0.get(name).map_or(default, String::as_str);
        match words.split(", ").any(|word| word == text) {
            true => Ok(text),
            false => Err(ParameterError::Word { name, text: text.to_owned(), words }),
        }
    }

    /// Refuses a parameter without another one.
    fn together(&self, name: &'static str, needed: &'static str) -> Result<(), ParameterError> {
        match self.0.get(name) {
            Some(text) if !self.0.contains_key(needed) => {
                Err(ParameterError::Alone { name, text: text.clone(), needed })
            }
            _ => Ok(()),
        }
    }

    /// How the disk is made visible, whatever else they say.
    pub(crate) fn export(&self) -> Via {
        match self.0.get("export").map(String::as_str) {
            Some("userspace") => Via::Nbd,
            Some("ublk") => Via::Ublk,
            Some("nbd-kernel") => Via::NbdKernel,
            Some("fuse") => Via::Fuse,
            _ => Via::Kernel,
        }
    }

    /// Says what they mean.
    pub(crate) fn check(&self) -> Result<Meaning, ParameterError> {
        let names = || LIST.lines().filter_map(|line| line.split(' ').next());
        let known = |name: &str| GANETIS_OWN.contains(&name) || names().any(|known| known == name);
        if let Some(unknown) = self.0.keys().find(|name| !known(name)) {
            return Err(ParameterError::Unknown(unknown.clone()));
        }
        self.together("schedule", "bucket")?;
        self.together("keep", "schedule")?;
        self.together("replica_mode", "replica")?;
        self.together("witness", "replica")?;
        self.word("export", "kernel", "kernel, ublk, nbd-kernel, fuse, userspace")?;
        let access = self.0.get("access").map_or("kernelspace", String::as_str);
        if self.export() == Via::Nbd && access != "userspace" {
            return Err(ParameterError::Access(access.to_owned()));
        }
        let origin = self
            .0
            .get("origin")
            .map(|text| text.parse().map_err(|source| ParameterError::Origin { text: text.clone(), source }));
        let every_ms =
            self.0.get("schedule").map(|text| milliseconds(text).ok_or_else(|| ParameterError::Schedule(text.clone())));
        let keep = self
            .0
            .get("keep")
            .map(|text| text.parse().map_err(|source| ParameterError::Keep { text: text.clone(), source }));
        Ok(Meaning {
            origin: origin.transpose()?,
            bucket: self.name("bucket")?,
            every_ms: every_ms.transpose()?,
            keep: keep.transpose()?,
            prefetch: self.word("prefetch", "none", "none, full")? == "full",
            replica: self.replica()?,
        })
    }

    /// The name that a parameter is.
    fn name(&self, name: &'static str) -> Result<Option<Name>, ParameterError> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|source| ParameterError::Name { name, text: text.clone(), source })
    }

    fn replica(&self) -> Result<Option<Replica>, ParameterError> {
        let mode = match self.word("replica_mode", "sync", "sync, async")? {
            "async" => ReplicationMode::Async,
            _ => ReplicationMode::Sync,
        };
        let (to, witness) = (self.name("replica")?, self.name("witness")?);
        Ok(to.map(|to| Replica { to, mode, witness }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ganeti's own names of what a disk has: `IDISK_PARAMS` of Ganeti 3.0.
    const BUILT_IN: [&str; 10] =
        ["access", "adopt", "dev_type", "metavg", "mode", "name", "provider", "size", "spindles", "vg"];

    fn check(parameters: &[(&str, &str)]) -> Result<Meaning, ParameterError> {
        let usual = [("provider", "brant"), ("access", "userspace")];
        let all = usual.iter().chain(parameters).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Parameters::new(all).check()
    }

    #[test]
    fn the_list_has_names_of_its_own() {
        for line in LIST.lines() {
            let (name, description) = line.split_once(' ').unwrap();
            assert!(!BUILT_IN.contains(&name) && !description.is_empty(), "{line}");
        }
    }

    #[test]
    fn what_is_meant_is_understood() {
        let (origin, bucket, every_ms, keep, replica) = (None, None, None, None, None);
        let nothing = Meaning { origin, bucket, every_ms, keep, prefetch: false, replica };
        assert_eq!(check(&[]).unwrap(), nothing);
        assert_eq!(check(&[("bucket", ""), ("export", "userspace")]).unwrap(), nothing);
        let meaning = check(&[("origin", "vms/web@3"), ("bucket", "vms"), ("prefetch", "full")]).unwrap();
        assert_eq!(meaning.bucket, Some("vms".parse().unwrap()));
        assert!(meaning.prefetch && meaning.origin.is_some());
        for (text, ms) in
            [("30s", 30_000), ("15min", 900_000), ("1h", 3_600_000), ("2d", 172_800_000), ("1w", 604_800_000)]
        {
            let meaning = check(&[("schedule", text), ("bucket", "vms"), ("keep", "24h+7d")]).unwrap();
            assert_eq!((meaning.every_ms, meaning.keep), (Some(ms), "24h,7d".parse().ok()), "{text}");
        }
    }

    #[test]
    fn a_replica_is_waited_for_unless_it_is_said_not_to_be() {
        let replica = |parameters: &[(&str, &str)]| check(parameters).unwrap().replica.unwrap();
        let to = "node2".parse::<Name>().unwrap();
        let sync = Replica { to, mode: ReplicationMode::Sync, witness: None };
        assert_eq!(replica(&[("replica", "node2")]), sync);
        assert_eq!(replica(&[("replica", "node2"), ("replica_mode", "sync")]), sync);
        let both = [("replica", "node2"), ("replica_mode", "async"), ("witness", "node3")];
        let expected = Replica { mode: ReplicationMode::Async, witness: "node3".parse().ok(), ..sync };
        assert_eq!(replica(&both), expected);
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_said() {
        for (name, value, says) in [
            ("schedule", "1h", "schedule=1h needs bucket too"),
            ("keep", "7d", "keep=7d needs schedule too"),
            ("export", "nbd", "is none of: kernel, ublk, nbd-kernel, fuse, userspace"),
            ("prefetch", "profile", "is none of: none, full"),
            ("origin", "web", "origin=web"),
            ("bucket", "a/b", "bucket=a/b"),
            ("replica", "a/b", "replica=a/b"),
            ("replica_mode", "async", "replica_mode=async needs replica too"),
            ("witness", "node3", "witness=node3 needs replica too"),
            ("pool", "x", "pool is not a parameter"),
        ] {
            let error = check(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(says), "{name}={value}: {error}");
        }
        for schedule in ["daily", "1", "h", "0h", "-1h", "1m", "1.5h", "99999999999999999999d", "é"] {
            let error = check(&[("schedule", schedule), ("bucket", "vms")]).unwrap_err();
            assert!(error.to_string().contains("is no length of time"), "{schedule}: {error}");
        }
        let keep = [("schedule", "1h"), ("bucket", "vms"), ("keep", "daily")];
        assert!(matches!(check(&keep).unwrap_err(), ParameterError::Keep { .. }));
        let mode = check(&[("replica", "node2"), ("replica_mode", "semi")]).unwrap_err().to_string();
        assert!(mode.contains("replica_mode=semi is none of: sync, async"), "{mode}");
        let both = [("export", "userspace"), ("access", "kernelspace")];
        assert!(matches!(check(&both).unwrap_err(), ParameterError::Access(_)), "nothing would be there");
        assert!(Parameters::default().check().is_ok(), "Ganeti's default is the kernel, and so is ours");
        for (word, via) in
            [("kernel", Via::Kernel), ("ublk", Via::Ublk), ("nbd-kernel", Via::NbdKernel), ("fuse", Via::Fuse)]
        {
            let parameters = Parameters::new([("export".to_owned(), word.to_owned())]);
            assert!(parameters.check().is_ok() && parameters.export() == via, "{word}");
        }
    }
}
