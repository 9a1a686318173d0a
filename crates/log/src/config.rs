//! Settings of a log.

use replikit_core::{ClusterId, NodeId};

/// A setting of a log that cannot work. Blame: the caller. Nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting lies outside of its range.
    #[error("{setting} is {found}, but must be from {least} to {most}")]
    OutOfRange {
        /// Name of the field.
        setting: &'static str,
        /// Its value.
        found: u64,
        /// Smallest value that works.
        least: u64,
        /// Largest value that works.
        most: u64,
    },
    /// The first segment would be larger than the largest.
    #[error("segment_bytes_min is {least}, more than segment_bytes_max, which is {most}")]
    SegmentOrder {
        /// `segment_bytes_min`.
        least: u64,
        /// `segment_bytes_max`.
        most: u64,
    },
}

/// Room for a header in two copies, a start frame and a few groups.
const SEGMENT_BYTES_LEAST: u64 = 64 << 10;
/// A segment is zero-written whole.
const SEGMENT_BYTES_MOST: u64 = 1 << 40;
/// A group takes whole blocks on disk. With less in it than one, moving live batches forward would gain nothing.
const GROUP_BYTES_LEAST: u64 = 4 << 10;
/// A frame counts its bytes in 32 bits.
const GROUP_BYTES_MOST: u64 = 1 << 30;

/// Settings of a [`Log`](crate::Log). Sizes that are not multiples of 4 KiB are rounded up.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The cluster that the log belongs to: seeds every checksum.
    pub cluster: ClusterId,
    /// The node that the log belongs to.
    pub node: NodeId,
    /// Size of the first segment in bytes; later ones double. From 64 KiB to
    /// `segment_bytes_max`. Default 1 MiB: a small log costs little.
    pub segment_bytes_min: u64,
    /// Size at which segments stop doubling, in bytes. At most 1 TiB. Default 64 MiB: larger ones make compaction coarser, smaller ones cost
    /// more file operations.
    pub segment_bytes_max: u64,
    /// Most bytes that one write and fsync covers, unless a single batch is larger. From 4 KiB to 1 GiB, default 4 MiB; never
    /// more than a quarter of a segment. More waits in memory until the write under way is done.
    pub group_bytes_max: usize,
    /// Bytes of recent batches kept in memory for reads, beside those not yet durable. Any value. Default 16 MiB.
    pub cache_bytes_max: usize,
    /// Bytes per stream that change data capture cursors may hold back from compaction. Any value. Default 256 MiB. A cursor that is
    /// further behind lags.
    pub retained_bytes_max: u64,
    /// Bytes of snapshot chunks that wait in memory for the disk before durability of everything behind them waits as
    /// well. Any value. Default 8 MiB.
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
    /// Whether a log can work with these settings; [`Log::open`](crate::Log::open) asks before it touches anything.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that cannot work, and its range.
    pub const fn check(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("segment_bytes_min", self.segment_bytes_min, SEGMENT_BYTES_LEAST, SEGMENT_BYTES_MOST),
            ("segment_bytes_max", self.segment_bytes_max, SEGMENT_BYTES_LEAST, SEGMENT_BYTES_MOST),
            ("group_bytes_max", self.group_bytes_max as u64, GROUP_BYTES_LEAST, GROUP_BYTES_MOST),
        ];
        let mut at = 0;
        while at < ranges.len() {
            let (setting, found, least, most) = ranges[at];
            if found < least || found > most {
                return Err(ConfigError::OutOfRange { setting, found, least, most });
            }
            at += 1;
        }
        if self.segment_bytes_min > self.segment_bytes_max {
            return Err(ConfigError::SegmentOrder { least: self.segment_bytes_min, most: self.segment_bytes_max });
        }
        Ok(())
    }
}
