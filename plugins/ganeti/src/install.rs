//! Putting the provider where Ganeti looks for it, and taking it away again.
//!
//! Invariants: a file is whole or not there; nothing is touched that was not written here; doing it again changes nothing.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::call::Script;
use crate::parameters::LIST;

/// The provider's directory, one of those that Ganeti searches (`ES_SEARCH_PATH`).
pub const PROVIDER_DIRECTORY: &str = "/usr/share/ganeti/extstorage/brant";

/// Where Ganeti writes what the scripts print. Nobody makes it, and without it each of them fails, but for `attach`.
pub const LOG_DIRECTORY: &str = "/var/log/ganeti/extstorage";

/// The file that names the parameters.
const PARAMETERS: &str = "parameters.list";

/// What a script of ours says of itself.
const MARK: &str = "# Written by `brant ganeti install`.";

/// What is installed where.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The provider's directory.
    pub provider_directory: PathBuf,
    /// Ganeti's directory for what scripts print.
    pub log_directory: PathBuf,
    /// The program that the scripts run.
    pub brant: PathBuf,
    /// The node that they talk to; root's own where none is given.
    pub node: Option<String>,
}

/// The provider could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Ganeti is somewhere else, or nowhere.
    #[error("{0} is not there: is Ganeti installed on this host?")]
    NoGaneti(PathBuf),
    /// Something there is not ours.
    #[error("{0} was not written by brant, and is left alone")]
    Foreign(PathBuf),
    /// There is nothing to remove.
    #[error("there is no provider in {0}")]
    Absent(PathBuf),
    /// A path that no script can name.
    #[error("{0} is not text, and a script cannot name it")]
    NotText(PathBuf),
    /// A system call on a file failed.
    #[error("could not {doing} {path}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::File { doing, path: path.to_owned(), source }
}

impl Installation {
    /// All files of the provider: name, mode and content.
    fn files(&self) -> Result<Vec<(&'static str, u32, String)>, InstallError> {
        let text = |path: &Path| path.to_str().map(quoted).ok_or_else(|| InstallError::NotText(path.to_owned()));
        let brant = text(&self.brant)?;
        let node = self.node.as_deref().map(|node| format!(" --node {}", quoted(node))).unwrap_or_default();
        let script = |script: Script| {
            let name = script.name();
            (name, 0o755, format!("#!/bin/sh\n{MARK}\nexec {brant} ganeti provider {name}{node}\n"))
        };
        let mut files: Vec<_> = Script::ALL.into_iter().map(script).collect();
        files.push((PARAMETERS, 0o644, LIST.to_owned()));
        Ok(files)
    }
}

/// A word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Writes the provider's files, and makes Ganeti's directory for their logs.
///
/// # Errors
/// When Ganeti is not there, something else is in the way, or a file cannot be written.
pub fn install(installation: &Installation) -> Result<(), InstallError> {
    let directory = &installation.provider_directory;
    if let Some(above) = directory.parent().filter(|above| !above.is_dir()) {
        return Err(InstallError::NoGaneti(above.to_owned()));
    }
    let files = installation.files()?;
    for (name, _, _) in &files {
        refuse_foreign(&directory.join(name))?;
    }
    make_directory(directory, 0o755)?;
    for (name, mode, content) in &files {
        write(&directory.join(name), *mode, content)?;
    }
    make_directory(&installation.log_directory, 0o750)
}

/// Removes the provider's files and their directory; logs stay.
///
/// # Errors
/// When there is no provider, or something in its directory is not ours; then nothing is removed.
pub fn uninstall(directory: &Path) -> Result<(), InstallError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(InstallError::Absent(directory.to_owned()));
        }
        entries => entries.map_err(failed("list", directory))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        refuse_foreign(&path)?;
        paths.push(path);
    }
    for path in paths {
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    std::fs::remove_dir(directory).map_err(failed("remove", directory))
}

/// Refuses what is there and was not written here; a list of parameters has no mark, and is known by its name.
fn refuse_foreign(path: &Path) -> Result<(), InstallError> {
    let foreign = || InstallError::Foreign(path.to_owned());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.is_file() => return Err(foreign()),
        Ok(_) => {}
    }
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    if name == PARAMETERS {
        return Ok(());
    }
    let content = std::fs::read(path).map_err(failed("read", path))?;
    let ours = Script::of_name(name).is_some() && content.windows(MARK.len()).any(|part| part == MARK.as_bytes());
    if ours { Ok(()) } else { Err(foreign()) }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), InstallError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("make the directory", path))
}

/// Writes a file beside and moves it into place: a script may be run at any time.
fn write(path: &Path, mode: u32, content: &str) -> Result<(), InstallError> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let written = std::fs::write(&beside, content)
        .and_then(|()| std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&beside);
        failed("write", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(directory: &Path) -> Installation {
        Installation {
            provider_directory: directory.join("brant"),
            log_directory: directory.join("log/extstorage"),
            brant: "/opt/brant's/brant".into(),
            node: Some("/srv/brant".to_owned()),
        }
    }

    #[test]
    fn it_is_written_again_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let installation = installation(directory.path());
        install(&installation).unwrap();
        install(&installation).unwrap();
        let provider = &installation.provider_directory;
        let create = std::fs::read_to_string(provider.join("create")).unwrap();
        assert!(create.ends_with("\nexec '/opt/brant'\\''s/brant' ganeti provider create --node '/srv/brant'\n"));
        for script in Script::ALL {
            let mode = provider.join(script.name()).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755, "{}", script.name());
        }
        assert_eq!(std::fs::read_dir(provider).unwrap().count(), Script::ALL.len() + 1, "nothing else");
        assert!(installation.log_directory.is_dir());
        uninstall(provider).unwrap();
        assert!(!provider.exists() && installation.log_directory.is_dir());
        assert!(matches!(uninstall(provider).unwrap_err(), InstallError::Absent(_)));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let installation = installation(directory.path());
        let provider = &installation.provider_directory;
        std::fs::create_dir(provider).unwrap();
        std::fs::write(provider.join("attach"), "#!/bin/sh\nsomebody's\n").unwrap();
        assert!(matches!(install(&installation).unwrap_err(), InstallError::Foreign(path) if path.ends_with("attach")));
        assert_eq!(std::fs::read_dir(provider).unwrap().count(), 1, "nothing was written");
        std::fs::remove_file(provider.join("attach")).unwrap();
        install(&installation).unwrap();
        std::fs::write(provider.join("notes"), "mine").unwrap();
        assert!(matches!(uninstall(provider).unwrap_err(), InstallError::Foreign(path) if path.ends_with("notes")));
        assert!(provider.join("create").exists(), "nothing was removed");
    }

    #[test]
    fn without_ganeti_it_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let mut installation = installation(directory.path());
        installation.provider_directory = directory.path().join("ganeti/extstorage/brant");
        assert!(matches!(install(&installation).unwrap_err(), InstallError::NoGaneti(_)));
    }
}
