//! A node that starts its own successor: from the file that it was started from, which an upgrade has replaced.
//!
//! The successor asks for the hand-over like any other ([`crate::handover`]). As a child of this process it is in the
//! same control group, where systemd looks for it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::api::{ApiError, ErrorCode, Restart};
use crate::node::Node;

/// What Linux says of the file of a program that is not there any more.
const DELETED: &[u8] = b" (deleted)";

/// A successor, and what became of the one before.
#[derive(Debug, Default)]
pub(crate) struct SuccessorState {
    starting: bool,
    failure: Option<String>,
}

impl Node {
    fn successor(&self) -> MutexGuard<'_, SuccessorState> {
        self.successor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the last attempt to restart came to nothing.
    pub(crate) fn restart_failure(&self) -> Option<String> {
        self.successor().failure.clone()
    }

    /// Remembers that an attempt to restart came to nothing.
    pub(crate) fn restart_failed(&self, why: &str) {
        tracing::error!(why, "the restart came to nothing: this process goes on");
        // The first reason is the best one: what ends afterwards ends because of it.
        self.successor().failure.get_or_insert_with(|| why.to_owned());
    }

    /// Starts the successor. When it asks for the hand-over, this process serves for a moment longer.
    pub(crate) fn restart(self: &Arc<Self>) -> Result<Restart, ApiError> {
        let mut state = self.successor();
        if state.starting {
            return Err(ApiError::new(ErrorCode::Conflict, "a restart is under way").hint("see: brant status"));
        }
        let program = program().map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?;
        let child = Command::new(&program).args(serving_arguments()).arg(TAKE_OVER).stdin(Stdio::null()).spawn();
        let child = child.map_err(|error| {
            let error = ApiError::from_error(ErrorCode::Internal, &error);
            ApiError { message: format!("could not start {}: {}", program.display(), error.message), ..error }
        })?;
        tracing::info!(program = %program.display(), pid = child.id(), "the successor starts");
        let restart = Restart { pid: std::process::id(), successor: child.id() };
        *state = SuccessorState { starting: true, failure: None };
        drop(state);
        self.watch(child);
        Ok(restart)
    }

    /// Notices a successor that ends before it has taken over: after that, nobody is here to notice.
    fn watch(self: &Arc<Self>, mut child: Child) {
        let node = Arc::downgrade(self);
        std::thread::spawn(move || {
            let ended = child.wait();
            let Some(node) = node.upgrade() else { return };
            node.successor().starting = false;
            match ended {
                Ok(status) => node.restart_failed(&format!("the new process ended with {status}: see the log")),
                Err(error) => node.restart_failed(&format!("the new process is lost: {error}")),
            }
        });
    }
}

/// What tells a node to take over from the one that runs.
const TAKE_OVER: &str = "--take-over";
/// What tells a node that it was taken back, and why.
const TAKEN_BACK: &[u8] = b"--taken-back=";

/// The arguments that this node was started with, without those that say how.
#[must_use]
pub fn serving_arguments() -> Vec<OsString> {
    let how = |argument: &OsString| argument == TAKE_OVER || argument.as_bytes().starts_with(TAKEN_BACK);
    std::env::args_os().skip(1).filter(|argument| !how(argument)).collect()
}

/// The file that this program was started from, or what has taken its place; also where the old one was moved aside,
/// if this program was called by its path.
fn program() -> std::io::Result<PathBuf> {
    if let Some(name) = std::env::args_os().next().filter(|name| name.as_bytes().contains(&b'/')) {
        return std::path::absolute(name);
    }
    let mut path = std::env::current_exe()?.into_os_string().into_vec();
    if path.ends_with(DELETED) {
        path.truncate(path.len() - DELETED.len());
    }
    Ok(OsString::from_vec(path).into())
}
