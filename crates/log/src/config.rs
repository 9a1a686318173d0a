//! Settings of a log.

use replikit_core::{ClusterId, NodeId};

/// Settings of a [`Log`](crate::Log). Sizes that are not multiples of 4 KiB are rounded up.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The cluster that the log belongs to: seeds every checksum.
    pub cluster: ClusterId,
    /// The node that the log belongs to.
    pub node: NodeId,
    /// Size of the first segment in bytes; later ones double. At least 64 KiB. Default 1 MiB: a small log costs little.
    pub segment_bytes_min: u64,
    /// Size at which segments stop doubling, in bytes. Default 64 MiB: larger ones make compaction coarser, smaller ones cost
    /// more file operations.
    pub segment_bytes_max: u64,
    /// Most bytes that one write and fsync covers, unless a single batch is larger. Default 4 MiB; never more than a quarter
    /// of a segment. More waits in memory until the write under way is done.
    pub group_bytes_max: usize,
    /// Bytes of recent batches kept in memory for reads, beside those not yet durable. Default 16 MiB.
    pub cache_bytes_max: usize,
    /// Bytes per stream that change data capture cursors may hold back from compaction. Default 256 MiB. A cursor that is
    /// further behind lags.
    pub retained_bytes_max: u64,
    /// Bytes of snapshot chunks that wait in memory for the disk before durability of everything behind them waits as
    /// well. Default 8 MiB.
    pub snapshot_queue_bytes_max: usize,
}

impl LogConfig {
    /// The defaults for a node.
    #[must_use]
    pub const fn new(cluster: ClusterId, node: NodeId) -> Self {
        Self {
            cluster,
            node,
            segment_bytes_min: 1 << 20,
            segment_bytes_max: 64 << 20,
            group_bytes_max: 4 << 20,
            cache_bytes_max: 16 << 20,
            retained_bytes_max: 256 << 20,
            snapshot_queue_bytes_max: 8 << 20,
        }
    }
}
