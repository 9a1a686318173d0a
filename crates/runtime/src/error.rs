//! Why a node cannot be opened or a client cannot connect.

use std::io;

/// Why a node cannot be opened. Nothing was changed, on disk or elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An address is not `host:port`, or its host is unknown. Blame: the configuration.
    #[error("`{address}` is not an address to listen on: {source}; give host:port")]
    Address {
        /// The address.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Somebody listens there already. Blame: another process, or a second start.
    #[error("{address} is in use by another process: stop it or choose another port")]
    AddressInUse {
        /// The address.
        address: String,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The configuration contradicts itself.
    #[error("the configuration is wrong: {what}")]
    Configuration {
        /// What is wrong.
        what: String,
    },
    /// The log cannot be opened. Blame and remedy: see the log's own error.
    #[error("cannot open the data directory {dir}: {source}")]
    Log {
        /// The data directory.
        dir: String,
        /// What the log says.
        source: replikit_log::OpenError,
    },
    /// The operating system refuses a thread, or the poller that sockets need.
    #[error("cannot start the node's threads: {source}")]
    Threads {
        /// What the operating system says.
        source: io::Error,
    },
    /// The node's thread ended before it was ready. Blame: a bug, most likely in the state machine's `restore` or `apply`.
    #[error("the node stopped while it was starting")]
    Stopped,
}

/// Why a client cannot connect to its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No address was given. Blame: the configuration.
    #[error("no address of the cluster was given")]
    NoAddress,
    /// A node refused the connection: another cluster, or no common version. Blame: the configuration.
    #[error("{address} refused the connection: {reason}")]
    Refused {
        /// The node's address.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// No node answered. Blame: the network, or the nodes are down.
    #[error("no node of the cluster can be reached; the last, {address}: {reason}")]
    Unreachable {
        /// The address tried last.
        address: String,
        /// What went wrong there.
        reason: String,
    },
}
