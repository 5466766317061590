//! Where an attachment listens, and who may come: from the words of a request to a server.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use export::{ExportError, Exports, Listen, NbdOptions, NbdServer, Tls};
use tokio::runtime::Handle;

use crate::api::{ApiError, AttachRequest, ErrorCode, TlsPolicy};
use crate::passed::PassedSockets;
use crate::record::AttachmentRecord;

/// Where an attachment listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a unix socket or an address.
    Own(Listen),
    /// At a socket that the node was started with.
    Passed(String),
}

impl Place {
    /// Reads `IP:PORT`, `unix:PATH` or `fd:NAME`.
    pub(super) fn parse(text: &str) -> Result<Place, ApiError> {
        let invalid = || {
            ApiError::new(ErrorCode::Invalid, format!("{text:?} is no place to listen at"))
                .hint("write IP:PORT, unix:/PATH, or fd:NAME for a socket that the node was started with")
        };
        if let Some(name) = text.strip_prefix("fd:").filter(|name| !name.is_empty()) {
            return Ok(Place::Passed(name.to_owned()));
        }
        if let Some(path) = text.strip_prefix("unix:").map(PathBuf::from) {
            return if path.is_absolute() { Ok(Place::Own(Listen::Unix(path))) } else { Err(invalid()) };
        }
        text.parse::<SocketAddr>().map(|address| Place::Own(Listen::Tcp(address))).map_err(|_| invalid())
    }

    /// Begins to serve there.
    pub(super) fn serve(
        &self,
        passed: &PassedSockets,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ApiError> {
        let failed = |error: ExportError| ApiError::from_error(ErrorCode::Conflict, &error);
        match self {
            Place::Own(listen) => {
                if let Listen::Unix(path) = listen {
                    make_folder(path)?;
                }
                NbdServer::start(listen.clone(), exports, runtime, options).map_err(failed)
            }
            Place::Passed(name) => {
                let socket = passed.duplicate(name).ok_or_else(|| unknown(name, passed))?;
                let socket = socket.map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?;
                NbdServer::start_on(socket, exports, runtime, options).map_err(failed)
            }
        }
    }
}

/// Makes the folder of a socket, for the node's user alone: what is below `/run` is gone after the host has started again.
pub(super) fn make_folder(socket: &Path) -> Result<(), ApiError> {
    let Some(folder) = socket.parent().filter(|folder| !folder.exists()) else { return Ok(()) };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorCode::Forbidden,
            _ => ErrorCode::Conflict,
        };
        ApiError::new(code, format!("could not make the folder {}: {error}", folder.display()))
            .hint("make it as root for the node's user, or by systemd: RuntimeDirectory=")
    })
}

fn unknown(name: &str, passed: &PassedSockets) -> ApiError {
    let error = ApiError::new(ErrorCode::NotFound, format!("the node was not started with a socket named {name:?}"));
    match passed.names().join(", ") {
        none if none.is_empty() => error.hint("it was started with none: see sd_listen_fds(3), or systemd.socket(5)"),
        names => error.hint(format!("it was started with: {names}")),
    }
}

/// Refuses what would let anybody on the network read and write.
pub(super) fn check_open(place: &Place, passed: &PassedSockets) -> Result<(), ApiError> {
    let address = match place {
        Place::Own(Listen::Tcp(address)) => Some(*address),
        Place::Own(Listen::Unix(_)) => None,
        Place::Passed(name) => passed.address(name),
    };
    match address.filter(|address| !address.ip().is_loopback()) {
        None => Ok(()),
        Some(address) => {
            Err(ApiError::new(ErrorCode::Forbidden, format!("NBD on {address} would be open to the network")).hint(
                "give --tls-certificates, listen on loopback, or say --insecure-listen where the network is trusted",
            ))
        }
    }
}

/// How the clients of an attachment use TLS, of what its record says.
pub(super) fn tls(record: &AttachmentRecord) -> Result<Option<Tls>, ApiError> {
    let Some(directory) = &record.tls_certificates else { return Ok(None) };
    let required = !record.plain_allowed.unwrap_or(false);
    let tls = Tls::new(directory, required).map_err(|error| {
        ApiError::from_error(ErrorCode::Invalid, &error).hint(
            "the node reads server-cert.pem, server-key.pem and, to check clients, ca-cert.pem from the directory",
        )
    })?;
    Ok(Some(tls))
}

/// What is kept of how a request uses TLS: the directory, and whether clients without it are served too.
pub(super) fn tls_record(request: &AttachRequest) -> Result<(Option<String>, Option<bool>), ApiError> {
    match (&request.tls_certificates, request.tls) {
        (None, None) => Ok((None, None)),
        (None, Some(_)) => {
            Err(ApiError::new(ErrorCode::Invalid, "TLS needs certificates").hint("give --tls-certificates"))
        }
        (Some(directory), _) if !Path::new(directory).is_absolute() => {
            Err(ApiError::new(ErrorCode::Invalid, format!("{directory:?} is not an absolute path")))
        }
        (Some(directory), policy) => Ok((Some(directory.clone()), (policy == Some(TlsPolicy::Allow)).then_some(true))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_socket_is_made_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("brant/ganeti/disk.sock");
        make_folder(&socket).unwrap();
        make_folder(&socket).unwrap();
        let mode = socket.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = make_folder(&directory.path().join("file/below/disk.sock")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Conflict);
    }

    #[test]
    fn places_are_read_from_words() {
        assert_eq!(Place::parse("fd:web1").unwrap(), Place::Passed("web1".to_owned()));
        assert_eq!(Place::parse("unix:/run/a").unwrap(), Place::Own(Listen::Unix("/run/a".into())));
        assert_eq!(Place::parse("[::1]:10809").unwrap(), Place::Own(Listen::Tcp("[::1]:10809".parse().unwrap())));
        for bad in ["", "fd:", "unix:", "unix:a/b", "localhost:1", "10809"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
