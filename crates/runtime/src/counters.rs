//! What a node counts. Invariant: every counter only grows, from the start of the process.

use std::sync::atomic::{AtomicU64, Ordering};

use replikit_core::{NodeId, Outcome, Status};
use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters while they are counted: written by the loop and the log thread, read by anybody.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// A node's counters at one moment, since its process started.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub struct NodeCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> NodeCounters {
                NodeCounters { $($name: self.$name.load(),)* }
            }
        }

        impl NodeCounters {
            /// Names and values, for metrics and tables.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Rounds of the loop that had something to do.
    rounds,
    /// Inputs handed to the replica.
    inputs,
    /// Requests taken in, from connections and handles.
    requests,
    /// Requests that ended acknowledged.
    requests_acked,
    /// Requests that ended with a value.
    requests_answered,
    /// Requests that ended rejected.
    requests_rejected,
    /// Requests that ended indeterminate.
    requests_indeterminate,
    /// Requests rejected because a queue of the node was at its limit.
    requests_busy,
    /// Messages sent to peers.
    messages_sent,
    /// Messages received from peers.
    messages_received,
    /// Messages dropped: no connection, or the peer's queue was at its limit.
    messages_dropped,
    /// Bytes received over all connections.
    bytes_received,
    /// Bytes sent over all connections.
    bytes_sent,
    /// `write` calls on connections.
    socket_writes,
    /// `read` calls on connections that returned bytes.
    socket_reads,
    /// Frames that broke the format or a limit; each closed its connection.
    frames_bad,
    /// Connections refused in the handshake: another cluster, version, or not a peer.
    handshakes_refused,
    /// Connections accepted.
    connections_accepted,
    /// Connections to peers made.
    peer_connects,
    /// Connections to peers lost.
    peer_disconnects,
    /// Storage operations handed to the log.
    storage_operations,
    /// Groups of storage operations: each is one write and one fsync under load.
    storage_groups,
    /// `fsync` and `fdatasync` calls on files and directories.
    fsyncs,
    /// Bytes written to disk.
    disk_bytes_written,
    /// Times an fsync was slower than the limit.
    storage_stalls,
}

impl Counters {
    /// Counts the end of a request.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Acked { .. } => &self.requests_acked,
            Outcome::Value { .. } => &self.requests_answered,
            Outcome::Indeterminate { .. } => &self.requests_indeterminate,
            Outcome::Rejected(_) => &self.requests_rejected,
        }
        .one();
    }
}

/// One counter: written by one thread at a time, read by any. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: u64) {
        // One writer, so two plain moves do.
        self.set(self.load() + by);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    pub(crate) fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a node describes itself to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub node: NodeId,
    /// Which strategy it runs, as its crate is named; empty where the node was not told what it promises.
    pub strategy: String,
    /// Its group, as the replica sees it.
    pub replica: Status,
    /// What it counted.
    pub counters: NodeCounters,
}
