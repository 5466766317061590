//! Where a foreign disk is: a path on this host, or an NBD export.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use node::api::{ApiError, ErrorCode};
use node::client::{Address, Client};

/// A foreign disk's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file or device on this host.
    Path(PathBuf),
    /// An NBD export's URI.
    Nbd(String),
}

impl Place {
    /// Parses what stands on a command line.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(Self::parse)
    }

    fn parse(text: OsString) -> Result<Self, String> {
        let Some(scheme) = text.to_str().and_then(|text| Some(text.split_once("://")?.0)) else {
            return Ok(Self::Path(text.into()));
        };
        match scheme {
            "nbd" | "nbd+unix" => Ok(Self::Nbd(text.to_string_lossy().into_owned())),
            _ => Err(format!("{scheme}:// is not supported: give a path, or an NBD URI such as nbd://host/export")),
        }
    }
}

/// Refuses a path on this host where the node may be on another one.
pub(crate) fn require_local(client: &Client, path: &Path, instead: &str) -> Result<(), ApiError> {
    match client.address() {
        Address::Socket(_) => Ok(()),
        Address::Remote(url) => Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{} is a path on this host, and the node at {url} may be on another one", path.display()),
        )
        .hint(instead)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_told_from_a_path() {
        let parse = |text: &str| Place::parse(text.into());
        assert_eq!(parse("/dev/vg/web"), Ok(Place::Path("/dev/vg/web".into())));
        assert_eq!(parse("nbd:strange"), Ok(Place::Path("nbd:strange".into())));
        assert_eq!(parse("nbd://host/web"), Ok(Place::Nbd("nbd://host/web".into())));
        assert!(parse("nbd+unix:///web?socket=/run/x").is_ok());
        assert!(parse("https://host/web.img").is_err_and(|error| error.contains("https://")));
    }

    #[test]
    fn a_path_is_refused_for_a_remote_node() {
        let remote = Client::new(Address::parse("http://host:7071"));
        let error = require_local(&remote, Path::new("/x.raw"), "use NBD").unwrap_err();
        assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::Invalid, Some("use NBD")));
        assert!(require_local(&Client::of_directory(Path::new("/d")), Path::new("/x.raw"), "").is_ok());
    }
}
