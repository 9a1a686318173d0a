//! The end of a run that was asked for: Ctrl-C and SIGTERM, waited for beside the run, so that dropping the run cleans up.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::BenchError;

/// Exit code of a run that Ctrl-C or SIGTERM ended, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Waits for Ctrl-C or SIGTERM. From its first poll on, neither ends the process by itself.
///
/// # Errors
/// When the system does not deliver signals to this process.
pub async fn interrupted() -> Result<(), BenchError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(BenchError::io("listening for signals"))?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.map_err(BenchError::io("listening for signals")),
        _ = terminate.recv() => Ok(()),
    }
}
