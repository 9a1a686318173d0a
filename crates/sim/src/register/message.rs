//! What registers say to each other. Records ride beside the head, each as a batch of its own.

use bytes::Bytes;
use replikit_core::NodeId;
use serde::{Deserialize, Serialize};

/// One operation of one coordinator, for ever unique: the start number is in it, so that an answer to a former incarnation
/// of the coordinator never counts for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OperationId {
    /// The coordinator.
    pub node: NodeId,
    /// How often its process had started.
    pub start: u32,
    /// Its n-th operation since then.
    pub sequence: u64,
}

/// A message between registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterMessage {
    /// "What is the newest that you hold of this key?"
    Ask {
        /// The operation that wants to know.
        operation: OperationId,
        /// Which key.
        key: Bytes,
    },
    /// Answer to `Ask`; the record rides along, if there is one.
    Told {
        /// The operation that asked.
        operation: OperationId,
    },
    /// "Make the record that rides along durable, unless you hold a newer one of its key."
    Store {
        /// The operation that wants it.
        operation: OperationId,
    },
    /// Answer to `Store`: the record or a newer one of its key is durable here.
    Stored {
        /// The operation that asked.
        operation: OperationId,
    },
}
