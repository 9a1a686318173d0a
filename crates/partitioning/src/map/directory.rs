//! From a position to the partition that covers it, in a few cache lines.
//!
//! Invariant: gives the same answer as a search through the sorted partitions. Slots: one table of 32 KiB. Ordered bounds: the
//! first eight bytes of each bound behind what all bounds have in common, as sorted numbers that the standard library searches
//! without a branch that could be guessed wrong (measured against Eytzinger order and a static tree of cache lines, which were
//! slower at ten thousand bounds); bounds whose numbers are equal are told apart by their bytes.

use std::sync::Arc;

use super::Partition;
use crate::partitioner::{HashSlots, Partitioner as _, Position, SLOTS, Scheme, SlotHash, head};

#[derive(Clone)]
pub(super) enum Directory {
    Slots(Slots),
    Ordered(Ordered),
}

impl Directory {
    /// Of partitions that cover everything once, in order.
    pub(super) fn new(scheme: &Scheme, partitions: &[Arc<Partition>]) -> Self {
        match scheme {
            Scheme::HashSlots(HashSlots { hash }) => Self::Slots(Slots::new(*hash, partitions)),
            // Between slots nothing is in common; and a position with a slot is not stripped.
            Scheme::HashThenRange(_) => Self::Ordered(Ordered::new(partitions, 0)),
            Scheme::KeyOrder(_) => Self::Ordered(Ordered::new(partitions, usize::MAX)),
        }
    }
}

/// The partition of every slot.
#[derive(Clone)]
pub(super) struct Slots {
    hash: SlotHash,
    table: Box<[u16; SLOTS as usize]>,
}

impl Slots {
    fn new(hash: SlotHash, partitions: &[Arc<Partition>]) -> Self {
        let mut table = Box::new([0; SLOTS as usize]);
        let slot_of = |bound: &[u8]| bound.first_chunk().map_or(0, |slot| usize::from(u16::from_be_bytes(*slot)));
        // Each partition covers at least one of the slots, so their numbers fit.
        for (partition, index) in partitions.iter().zip(0..) {
            let end = partition.span.end.as_deref().map_or(table.len(), slot_of);
            table[slot_of(&partition.span.start)..end].fill(index);
        }
        Self { hash, table }
    }

    #[inline]
    pub(super) fn index(&self, key: &[u8]) -> usize {
        usize::from(self.table[usize::from(self.hash.slot(key).get())])
    }
}

/// The bounds in order.
#[derive(Clone)]
pub(super) struct Ordered {
    // What all bounds but the empty one begin with.
    common: Box<[u8]>,
    // Different heads, and which bounds have each of them, in order.
    heads: Vec<u64>,
    runs: Vec<Run>,
    // All bounds behind what they have in common, one after the other, and where each ends. The empty one is left out.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    last: usize,
}

/// The bounds from `first` to before `end` have the same head. Counted from 1: the bound in front of partition n is n.
#[derive(Clone, Copy)]
struct Run {
    head: u64,
    first: u32,
    end: u32,
}

impl Ordered {
    fn new(partitions: &[Arc<Partition>], common_max: usize) -> Self {
        let bounds = || partitions.iter().skip(1).map(|partition| &partition.span.start[..]);
        let common = common_prefix(bounds(), common_max);
        let mut runs: Vec<Run> = Vec::new();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(partitions.len() - 1));
        for (bound, nth) in bounds().zip(1..) {
            let rest = &bound[common.len()..];
            bytes.extend_from_slice(rest);
            ends.push(bytes.len() as u32);
            match runs.last_mut() {
                Some(run) if run.head == head(rest) => run.end = nth + 1,
                _ => runs.push(Run { head: head(rest), first: nth, end: nth + 1 }),
            }
        }
        let heads = runs.iter().map(|run| run.head).collect();
        Self { common, heads, runs, bytes, ends, last: partitions.len() - 1 }
    }

    #[inline(never)]
    pub(super) fn index(&self, scheme: &Scheme, key: &[u8]) -> usize {
        // Once for each kind of position, so that none pays for the others.
        match scheme {
            Scheme::KeyOrder(order) => self.index_of(&order.position(key)),
            Scheme::HashSlots(_) | Scheme::HashThenRange(_) => self.index_of(&scheme.position(key)),
        }
    }

    #[inline(always)]
    fn index_of(&self, position: &Position<'_>) -> usize {
        let rest = match position.strip(&self.common) {
            Ok(rest) => rest,
            Err(core::cmp::Ordering::Less) => return 0,
            Err(_) => return self.last,
        };
        let wanted = rest.head();
        let Some(run) = self.heads.partition_point(|head| *head <= wanted).checked_sub(1).map(|last| self.runs[last])
        else {
            return 0;
        };
        if run.head < wanted { run.end as usize - 1 } else { self.within(run, &rest) }
    }

    /// The last bound of the run that is not above the position, or the one in front of the run.
    #[inline(never)]
    fn within(&self, run: Run, rest: &Position<'_>) -> usize {
        let (mut low, mut high) = (run.first as usize, run.end as usize);
        while low < high {
            let middle = low.midpoint(high);
            match rest.cmp_bound(self.bound(middle)) {
                core::cmp::Ordering::Less => high = middle,
                _ => low = middle + 1,
            }
        }
        low - 1
    }

    #[inline]
    fn bound(&self, nth: usize) -> &[u8] {
        let start = if nth == 1 { 0 } else { self.ends[nth - 2] as usize };
        &self.bytes[start..self.ends[nth - 1] as usize]
    }
}

fn common_prefix<'b>(mut bounds: impl Iterator<Item = &'b [u8]>, length_max: usize) -> Box<[u8]> {
    let Some(first) = bounds.next() else { return Box::default() };
    let alike = |length: usize, bound: &[u8]| first[..length].iter().zip(bound).take_while(|(a, b)| a == b).count();
    first[..bounds.fold(first.len().min(length_max), alike)].into()
}
