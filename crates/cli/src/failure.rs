//! How a command fails: what is printed, and with which code the process exits.

use std::io;
use std::process::ExitCode;

use node::api::{ApiError, ErrorCode};

use crate::output;

/// The exit code after Ctrl-C, as shells count it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong, here or in the node.
    Reported(ApiError),
    /// Whoever read the output has seen enough.
    BrokenPipe,
    /// The person at the keyboard left.
    Interrupted,
}

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Makes a failure of an error of a system call on a file.
    pub(crate) fn of_file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let (code, hint) = match error.kind() {
            io::ErrorKind::NotFound => (ErrorCode::NotFound, None),
            io::ErrorKind::PermissionDenied => {
                (ErrorCode::Forbidden, Some("the file is opened by you, not by the node: check its owner and mode"))
            }
            io::ErrorKind::AlreadyExists => (ErrorCode::Conflict, None),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorCode::Full, None),
            _ => (ErrorCode::Internal, None),
        };
        let mut reported = ApiError::new(code, format!("could not {doing} {}: {}", path.display(), words(error)));
        reported.hint = hint.map(str::to_owned);
        Self::Reported(reported)
    }

    /// Makes a failure of whatever a service in this process reports.
    pub(crate) fn of_service(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<ApiError>() {
            Some(reported) => Self::Reported(reported.clone()),
            None => Self::Reported(ApiError::new(ErrorCode::Internal, format!("{error:#}"))),
        }
    }

    /// Prints what there is to say, and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Reported(error) => {
                output::error(error);
                ExitCode::from(exit_code(error.code))
            }
            Self::BrokenPipe => ExitCode::SUCCESS,
            Self::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Reported(error)
    }
}

/// What the system says about an error, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

/// The exit code of a kind of error, as [`ErrorCode`] documents it.
const fn exit_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::Internal => 1,
        ErrorCode::Invalid => 2,
        ErrorCode::NotFound => 3,
        ErrorCode::Conflict => 4,
        ErrorCode::Forbidden => 5,
        ErrorCode::Full => 6,
        ErrorCode::Unreachable => 7,
        ErrorCode::Damaged => 8,
        ErrorCode::Cancelled => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_file_has_a_kind_and_no_number() {
        let error = io::Error::from_raw_os_error(2);
        let Failure::Reported(reported) = Failure::of_file("open", "a.raw".as_ref(), &error) else { panic!() };
        assert_eq!(reported.code, ErrorCode::NotFound);
        assert_eq!(reported.message, "could not open a.raw: No such file or directory");
    }

    #[test]
    fn a_service_keeps_the_kind_of_its_error() {
        let error = anyhow::Error::from(ApiError::new(ErrorCode::Damaged, "the index is damaged"));
        let Failure::Reported(reported) = Failure::of_service(&error) else { panic!() };
        assert_eq!(reported.code, ErrorCode::Damaged);
        let error = anyhow::anyhow!("inner").context("outer");
        let Failure::Reported(reported) = Failure::of_service(&error) else { panic!() };
        assert_eq!(reported.message, "outer: inner");
    }
}
