//! Why a run cannot go on. A wrong result is no error of the run: it is counted, told, and makes the exit code.

use std::io;

use replikit_core::{ReadError, WriteError};

/// Why a measurement cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The file system, a socket or a process refused. Blame: the machine, or the settings of the run.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// An engine does not start, does not answer, or has ended. Blame: the engine.
    #[error("{engine}: {what}")]
    Engine {
        /// Which.
        engine: String,
        /// What is wrong, with the engine's last words where it has any.
        what: String,
    },
    /// The data could not be loaded. Blame: the engine.
    #[error("loading the data failed: {0}")]
    Preload(#[from] WriteError),
    /// The data could not be read back. Blame: the engine.
    #[error("reading back failed: {0}")]
    ReadBack(#[from] ReadError),
    /// A results file cannot be used. Blame: the caller.
    #[error(transparent)]
    Results(#[from] crate::record::ReadError),
    /// The command line asks for something that does not exist. Blame: the caller.
    #[error("{0}")]
    Usage(String),
}

impl BenchError {
    /// An error of the system, with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
