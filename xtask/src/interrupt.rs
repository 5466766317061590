//! Ctrl-C and SIGTERM become a flag that every wait looks at, so that what was started is ended in order.
//!
//! A second signal ends the process at once.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Takes SIGINT and SIGTERM over for this process.
///
/// # Errors
/// When the kernel refuses a handler.
pub fn install() -> Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal finds the flag unset and sets it, the second one exits.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag)).context("handle signals")?;
        signal_hook::flag::register(signal, Arc::clone(flag)).context("handle signals")?;
    }
    Ok(())
}

/// Tells whether a signal has asked this process to stop.
#[must_use]
pub fn requested() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::SeqCst))
}

/// Fails once a signal has asked this process to stop; for loops that wait.
///
/// # Errors
/// When a signal has come.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
