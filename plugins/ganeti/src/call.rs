//! What Ganeti asks for: a script and its environment, read once and checked.

use types::{ByteSize, Name, NameError};

use crate::parameters::Parameters;

/// Bytes in Ganeti's unit of size.
const MEBIBYTE: u64 = 1 << 20;

/// A script of an ExtStorage provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Makes a disk.
    Create,
    /// Makes it visible at this node, and says where.
    Attach,
    /// Ends that.
    Detach,
    /// Says that this node will read and write it.
    Open,
    /// Says that it will do so no more.
    Close,
    /// Deletes it.
    Remove,
    /// Makes it larger.
    Grow,
    /// Says whose it is.
    Setinfo,
    /// Checks the parameters.
    Verify,
    /// Takes a passing snapshot, for an export.
    Snapshot,
}

impl Script {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::Attach,
        Self::Detach,
        Self::Open,
        Self::Close,
        Self::Remove,
        Self::Grow,
        Self::Setinfo,
        Self::Verify,
        Self::Snapshot,
    ];

    /// The script's file name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Open => "open",
            Self::Close => "close",
            Self::Remove => "remove",
            Self::Grow => "grow",
            Self::Setinfo => "setinfo",
            Self::Verify => "verify",
            Self::Snapshot => "snapshot",
        }
    }

    /// The script of a file name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|script| script.name() == name)
    }
}

/// An environment that Ganeti does not make.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// What each call of the script needs is missing.
    #[error("{0} is not set; Ganeti calls this script with it in the environment")]
    Missing(&'static str),
    /// A name that no volume can have.
    #[error("{variable} is not the name of a volume")]
    Name {
        /// Which.
        variable: &'static str,
        /// Why not.
        #[source]
        source: NameError,
    },
    /// A size that is none.
    #[error("{variable} is {text:?}, which is no number of MiB")]
    Size {
        /// Which.
        variable: &'static str,
        /// What it says.
        text: String,
    },
    /// Neither of two words.
    #[error("VOL_OPEN_EXCLUSIVE is {0:?} and not True or False")]
    Exclusive(String),
}

/// One call of Ganeti's.
#[derive(Clone, Debug)]
pub struct Call {
    /// The disk, as Ganeti and the node call it.
    pub volume: Name,
    /// What to do with it.
    pub action: Action,
    /// The disk's parameters.
    pub parameters: Parameters,
}

/// What to do, with what only that needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes a disk.
    Create {
        /// Its size.
        size: ByteSize,
    },
    /// Makes it visible.
    Attach,
    /// Ends that.
    Detach,
    /// Says that it will be used here.
    Open {
        /// By this node alone.
        exclusive: bool,
    },
    /// Says that it will be used here no more.
    Close,
    /// Deletes it.
    Remove,
    /// Makes it larger.
    Grow {
        /// Its new size.
        size: ByteSize,
    },
    /// Says whose it is.
    SetInfo {
        /// In Ganeti's words.
        metadata: String,
    },
    /// Checks the parameters.
    Verify,
    /// Takes a passing snapshot.
    Snapshot {
        /// What it is called.
        name: Name,
    },
}

impl Call {
    /// Reads a call from the environment, given as a list of variables.
    ///
    /// # Errors
    /// What the script needs and is not there, or is not what it should be.
    pub fn read(script: Script, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, CallError> {
        let (mut variables, mut parameters) = (std::collections::BTreeMap::new(), Vec::new());
        for (name, value) in environment {
            match name.strip_prefix("EXTP_") {
                Some(parameter) => parameters.push((parameter.to_ascii_lowercase(), value)),
                None => drop(variables.insert(name, value)),
            }
        }
        let variable = |name: &'static str| variables.get(name).cloned().ok_or(CallError::Missing(name));
        let name = |variable_name: &'static str| {
            let text = variable(variable_name)?;
            text.parse::<Name>().map_err(|source| CallError::Name { variable: variable_name, source })
        };
        let size = |name: &'static str| {
            let text = variable(name)?;
            let bytes = text.parse::<u64>().ok().and_then(|mebibytes| mebibytes.checked_mul(MEBIBYTE));
            bytes.map(ByteSize).ok_or(CallError::Size { variable: name, text })
        };
        let action = match script {
            Script::Create => Action::Create { size: size("VOL_SIZE")? },
            Script::Attach => Action::Attach,
            Script::Detach => Action::Detach,
            Script::Open => Action::Open { exclusive: exclusive(&variable("VOL_OPEN_EXCLUSIVE")?)? },
            Script::Close => Action::Close,
            Script::Remove => Action::Remove,
            Script::Grow => Action::Grow { size: size("VOL_NEW_SIZE")? },
            Script::Setinfo => Action::SetInfo { metadata: variable("VOL_METADATA")? },
            Script::Verify => Action::Verify,
            Script::Snapshot => Action::Snapshot { name: name("VOL_SNAPSHOT_NAME")? },
        };
        Ok(Self { volume: name("VOL_NAME")?, action, parameters: Parameters::new(parameters) })
    }
}

fn exclusive(text: &str) -> Result<bool, CallError> {
    match text {
        "True" => Ok(true),
        "False" => Ok(false),
        _ => Err(CallError::Exclusive(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str = "0fb2a5d4-1fb0-4b8e-8f3a-2a5d41fb04b8.ext.disk0";

    fn read(script: Script, further: &[(&str, &str)]) -> Result<Call, CallError> {
        let variables = [("VOL_NAME", DISK), ("PATH", "/bin"), ("EXTP_ORIGIN", "vms/web")];
        Call::read(script, variables.iter().chain(further).map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn every_script_gets_what_it_needs() {
        let call = read(Script::Create, &[("VOL_SIZE", "1024")]).unwrap();
        assert_eq!((call.volume.as_str(), call.action), (DISK, Action::Create { size: ByteSize(1 << 30) }));
        let call = read(Script::Grow, &[("VOL_SIZE", "1"), ("VOL_NEW_SIZE", "3")]).unwrap();
        assert_eq!(call.action, Action::Grow { size: ByteSize(3 << 20) });
        let call = read(Script::Open, &[("VOL_OPEN_EXCLUSIVE", "False")]).unwrap();
        assert_eq!(call.action, Action::Open { exclusive: false });
        let snapshot = format!("{DISK}.snap");
        let call = read(Script::Snapshot, &[("VOL_SNAPSHOT_NAME", &snapshot)]).unwrap();
        assert_eq!(call.action, Action::Snapshot { name: snapshot.parse().unwrap() });
        for script in [Script::Attach, Script::Detach, Script::Close, Script::Remove, Script::Verify] {
            assert!(read(script, &[]).is_ok(), "{}", script.name());
        }
    }

    #[test]
    fn what_ganeti_would_not_say_is_refused_by_name() {
        let refused = |script, further: &[(&str, &str)]| read(script, further).unwrap_err().to_string();
        assert!(refused(Script::Create, &[]).starts_with("VOL_SIZE is not set"));
        assert!(refused(Script::Create, &[("VOL_SIZE", "-1")]).contains("no number of MiB"));
        assert!(refused(Script::Create, &[("VOL_SIZE", "99999999999999999")]).contains("no number of MiB"));
        assert!(refused(Script::Attach, &[("VOL_NAME", "../etc")]).starts_with("VOL_NAME is not the name"));
        assert!(refused(Script::Open, &[("VOL_OPEN_EXCLUSIVE", "1")]).contains("not True or False"));
        assert!(refused(Script::Setinfo, &[]).starts_with("VOL_METADATA is not set"));
    }

    #[test]
    fn scripts_have_their_files_names() {
        for script in Script::ALL {
            assert_eq!(Script::of_name(script.name()), Some(script));
        }
        assert_eq!(Script::of_name("parameters.list"), None);
    }
}
