//! Segments as the running log knows them, and the policies over them.

use core::fmt::Write as _;
use std::collections::VecDeque;

use crate::format::{BLOCK_BYTES, DATA_START, FooterEntry, SegmentHeader, blocks, seed};
use crate::state::State;
use crate::{FileId, FileName, LogConfig};

/// A segment that holds groups.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: FileId,
    /// Number of its first group since this process opened the log.
    pub(crate) first_place: u64,
    /// Of each of its groups, in blocks.
    pub(crate) offsets: Vec<u32>,
    /// Where its content ends.
    pub(crate) end: u64,
    /// Number of its last frame.
    pub(crate) last_seq: u64,
    /// Bytes of batches that are still needed.
    pub(crate) live_bytes: u64,
    /// Where its batches stand; kept until the footer is written.
    pub(crate) footer: Vec<FooterEntry>,
    /// A batch in it cannot be read, so it cannot be emptied.
    pub(crate) stuck: bool,
}

impl Segment {
    pub(crate) fn name(&self) -> FileName {
        segment_name(self.header.number)
    }
}

pub(crate) fn segment_name(number: u64) -> FileName {
    let mut name = String::with_capacity(24);
    write!(name, "seg-{number:016x}.log").expect("writing to a string does not fail");
    FileName::new(&name)
}

pub(crate) fn spare_name(number: u64) -> FileName {
    FileName::new(&format!("spare-{number:016x}"))
}

/// The number in a segment's name.
pub(crate) fn segment_number(name: &FileName) -> Option<u64> {
    let digits = name.as_str().strip_prefix("seg-")?.strip_suffix(".log")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == *name).then_some(number)
}

/// Never the same twice in one directory: `starts` grows with every opening, `number` with every segment.
pub(crate) fn segment_uuid(config: &LogConfig, starts: u64, number: u64) -> u64 {
    seed([config.cluster.to_u64() ^ u64::from(config.node.0).rotate_left(32), starts, number])
}

/// All segments that hold groups, oldest first; the last is written to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    pub(crate) all: VecDeque<Segment>,
}

impl Segments {
    /// The segment that holds a group.
    pub(crate) fn of_place(&self, place: u64) -> Option<&Segment> {
        let at = self.all.partition_point(|segment| segment.first_place <= place);
        self.all.get(at.checked_sub(1)?)
    }

    pub(crate) fn of_place_mut(&mut self, place: u64) -> Option<&mut Segment> {
        let at = self.all.partition_point(|segment| segment.first_place <= place);
        self.all.get_mut(at.checked_sub(1)?)
    }

    /// Counts the live batches of each segment.
    pub(crate) fn count_live(&mut self, state: &State) {
        let mut at = 0;
        for entry in state.streams.values().flat_map(|stream| &stream.entries) {
            let holds = |at: usize| {
                self.all[at].first_place <= entry.place
                    && self.all.get(at + 1).is_none_or(|next| entry.place < next.first_place)
            };
            if !holds(at) {
                at = self.all.partition_point(|segment| segment.first_place <= entry.place) - 1;
            }
            self.all[at].live_bytes += u64::from(entry.bytes);
        }
    }

    /// File and offset of a group; `None` while it is not placed.
    pub(crate) fn locate(&self, place: u64) -> Option<(FileId, u64)> {
        let segment = self.of_place(place)?;
        let block = *segment.offsets.get((place - segment.first_place) as usize)?;
        Some((segment.file, u64::from(block) * BLOCK_BYTES))
    }
}

/// How large the next segment is: twice the largest so far within the limits, and large enough for what must go in.
pub(crate) fn next_capacity(config: &LogConfig, largest: u64, need: u64) -> u64 {
    let doubled = (largest * 2).clamp(config.segment_bytes_min, config.segment_bytes_max);
    blocks(doubled.max(DATA_START + need))
}

/// What a segment costs and is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) capacity_bytes: u64,
    pub(crate) live_bytes: u64,
}

/// Whether the oldest of the segments that are not written to (oldest first) should be emptied by moving its live batches
/// forward: when they take more than twice the bytes that are live in all segments, and, up to some segment, at most half of the
/// bytes are live. So the log takes at most twice its live bytes and two segments, however its streams are released, and
/// moving costs at most one byte per byte gained. A log that keeps some segments' worth and is released from its front on, as
/// most are, is never moved: a segment that is half released will be empty soon.
pub(crate) fn should_empty_oldest(segments: impl Iterator<Item = Use> + Clone, live_bytes: u64) -> bool {
    let taken: u64 = segments.clone().map(|segment| segment.capacity_bytes).sum();
    let mut up_to = segments.scan((0, 0), |(capacity, live), segment| {
        *capacity += segment.capacity_bytes;
        *live += segment.live_bytes;
        Some((*capacity, *live))
    });
    taken > live_bytes * 2 && up_to.any(|(capacity, live)| live * 2 <= capacity)
}

#[cfg(test)]
mod tests {
    use replikit_core::{ClusterId, NodeId};

    use super::*;

    #[test]
    fn segments_double_up_to_the_limit_and_make_room_for_what_must_go_in() {
        let config = LogConfig::new(ClusterId::from_u64(1), NodeId(1));
        assert_eq!(next_capacity(&config, 0, 0), 1 << 20);
        assert_eq!(next_capacity(&config, 1 << 20, 0), 2 << 20);
        assert_eq!(next_capacity(&config, 64 << 20, 0), 64 << 20);
        assert_eq!(next_capacity(&config, 1 << 20, (16 << 20) + 1), (16 << 20) + 3 * BLOCK_BYTES);
    }

    #[test]
    fn one_idle_batch_in_front_of_dead_segments_is_worth_moving_and_a_live_log_is_not() {
        let used = |live_bytes| Use { capacity_bytes: 100, live_bytes };
        assert!(should_empty_oldest([used(1), used(0)].into_iter(), 1));
        assert!(should_empty_oldest([used(90), used(90), used(0), used(0)].into_iter(), 180));
        assert!(!should_empty_oldest([used(90), used(80)].into_iter(), 170));
        assert!(!should_empty_oldest(core::iter::empty(), 0));
    }

    #[test]
    fn what_is_released_from_the_front_on_is_not_moved() {
        let used = |live_bytes| Use { capacity_bytes: 100, live_bytes };
        // Two segments' worth is kept; the rest of it stands in the segment that is written to.
        for (oldest, written) in [(90, 10), (50, 50), (10, 90)] {
            let live = oldest + 100 + written;
            assert!(!should_empty_oldest([used(oldest), used(100)].into_iter(), live), "{oldest}");
        }
    }

    #[test]
    fn names_of_segments_are_read_back_and_others_are_not_taken_for_them() {
        assert_eq!(segment_number(&segment_name(0x1f)), Some(0x1f));
        for other in ["seg-1f.log", "seg-.log", "spare-000000000000001f", "seg-000000000000001F.log"] {
            assert_eq!(segment_number(&FileName::new(other)), None, "{other}");
        }
    }
}
