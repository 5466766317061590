//! The parameters of a disk, as Ganeti passes them with every call, and which of them can be meant.
//!
//! Ganeti changes a parameter without asking the provider. So they are checked where a disk is made and where it is
//! opened, and nowhere else: a disk whose parameters are wrong can still be stopped, detached and removed.

use std::collections::BTreeMap;

use types::{Name, NameError};

use crate::origin::{Origin, OriginError};

/// The file `parameters.list`: a name and a description a line. None of the names is one of Ganeti's own.
pub(crate) const LIST: &str = "\
origin what the disk begins as: BUCKET/OBJECT[@VERSION], a snapshot id, or INDEXER/ACCOUNT/NAME[/OBJECT[@VERSION]]; #DISK chooses one of several
bucket the bucket of this node that `brant ganeti snapshot INSTANCE` puts snapshots into
schedule when snapshots are taken by themselves (not supported yet)
keep which of those are kept (not supported yet)
export kernel (the default): a block device of the kernel, and for access=userspace a URI for QEMU beside it; userspace: only the URI
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
    /// A bucket that is none.
    #[error("bucket={text}")]
    Bucket {
        /// What it says.
        text: String,
        /// Why not.
        #[source]
        source: NameError,
    },
    /// There is no such mechanism yet.
    #[error("{name}={text} is not supported by this version of brant: {instead}")]
    Unsupported {
        /// The parameter.
        name: &'static str,
        /// What it says.
        text: String,
        /// What to do.
        instead: &'static str,
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
    #[error("{0} is not a parameter of this provider: see gnt-storage diagnose")]
    Unknown(String),
}

/// The parameters of a disk, as they were passed.
#[derive(Clone, Debug, Default)]
pub struct Parameters(BTreeMap<String, String>);

/// How a disk is made visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    /// As a block device, with a URI beside it.
    Kernel,
    /// By a URI alone.
    Userspace,
}

/// Parameters that were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// What the disk begins as.
    pub(crate) origin: Option<Origin>,
    /// Where snapshots of the instance go.
    pub(crate) bucket: Option<Name>,
    /// Whether all of the origin is brought at once.
    pub(crate) prefetch: bool,
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

    fn refuse(&self, name: &'static str, instead: &'static str) -> Result<(), ParameterError> {
        match self.0.get(name) {
            None => Ok(()),
            Some(text) => Err(ParameterError::Unsupported { name, text: text.clone(), instead }),
        }
    }

    /// How the disk is made visible, whatever else they say.
    pub(crate) fn export(&self) -> Export {
        if self.0.get("export").is_some_and(|text| text == "userspace") { Export::Userspace } else { Export::Kernel }
    }

    /// Says what they mean.
    pub(crate) fn check(&self) -> Result<Meaning, ParameterError> {
        let names = || LIST.lines().filter_map(|line| line.split(' ').next());
        let known = |name: &str| GANETIS_OWN.contains(&name) || names().any(|known| known == name);
        if let Some(unknown) = self.0.keys().find(|name| !known(name)) {
            return Err(ParameterError::Unknown(unknown.clone()));
        }
        let by_hand = "take snapshots with `brant ganeti snapshot INSTANCE`, from cron for example, and leave it out";
        self.refuse("schedule", by_hand)?;
        self.refuse("keep", by_hand)?;
        self.word("export", "kernel", "kernel, userspace")?;
        let access = self.0.get("access").map_or("kernelspace", String::as_str);
        if self.export() == Export::Userspace && access != "userspace" {
            return Err(ParameterError::Access(access.to_owned()));
        }
        let origin = self
            .0
            .get("origin")
            .map(|text| text.parse().map_err(|source| ParameterError::Origin { text: text.clone(), source }));
        let bucket = self
            .0
            .get("bucket")
            .map(|text| text.parse().map_err(|source| ParameterError::Bucket { text: text.clone(), source }));
        Ok(Meaning {
            origin: origin.transpose()?,
            bucket: bucket.transpose()?,
            prefetch: self.word("prefetch", "none", "none, full")? == "full",
        })
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
        let nothing = Meaning { origin: None, bucket: None, prefetch: false };
        assert_eq!(check(&[]).unwrap(), nothing);
        assert_eq!(check(&[("bucket", ""), ("export", "userspace")]).unwrap(), nothing);
        let meaning = check(&[("origin", "vms/web@3"), ("bucket", "vms"), ("prefetch", "full")]).unwrap();
        assert_eq!(meaning.bucket, Some("vms".parse().unwrap()));
        assert!(meaning.prefetch && meaning.origin.is_some());
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_said() {
        for (name, value, says) in [
            ("schedule", "daily", "not supported by this version"),
            ("keep", "7", "brant ganeti snapshot INSTANCE"),
            ("export", "nbd", "is none of: kernel, userspace"),
            ("prefetch", "profile", "is none of: none, full"),
            ("origin", "web", "origin=web"),
            ("bucket", "a/b", "bucket=a/b"),
            ("pool", "x", "pool is not a parameter"),
        ] {
            let error = check(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(says), "{name}={value}: {error}");
        }
        let both = [("export", "userspace"), ("access", "kernelspace")];
        assert!(matches!(check(&both).unwrap_err(), ParameterError::Access(_)), "nothing would be there");
        assert!(Parameters::default().check().is_ok(), "Ganeti's default is the kernel, and so is ours");
    }
}
