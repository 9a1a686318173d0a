//! From a position to the partition that covers it, in a few cache lines.
//!
//! Invariant: gives the same answer as a search through the sorted partitions. Slots: one table of 32 KiB. Ordered bounds: the
//! first eight bytes of each bound behind what all bounds have in common, as numbers in Eytzinger order (Khuong and Morin, arXiv
//! 1509.05053), so that a search reads one number a level and the upper levels stay in the cache; bounds whose numbers are equal
//! are told apart by their bytes.

use std::sync::Arc;

use super::Partition;
use crate::partitioner::{Position, SLOTS, Scheme, Slot, head};

#[derive(Clone)]
pub(super) enum Directory {
    Slots(Slots),
    Ordered(Ordered),
}

impl Directory {
    /// Of partitions that cover everything once, in order.
    pub(super) fn new(scheme: &Scheme, partitions: &[Arc<Partition>]) -> Self {
        match scheme {
            Scheme::HashSlots(_) => Self::Slots(Slots::new(partitions)),
            // Between slots nothing is in common; and a position with a slot is not stripped.
            Scheme::HashThenRange(_) => Self::Ordered(Ordered::new(partitions, 0)),
            Scheme::KeyOrder(_) => Self::Ordered(Ordered::new(partitions, usize::MAX)),
        }
    }

    #[inline]
    pub(super) fn index(&self, position: &Position<'_>) -> usize {
        match self {
            Self::Slots(slots) => slots.index(position.slot().unwrap_or_default()),
            Self::Ordered(ordered) => ordered.index(position),
        }
    }
}

/// The partition of every slot.
#[derive(Clone)]
pub(super) struct Slots {
    table: Box<[u16; SLOTS as usize]>,
}

impl Slots {
    fn new(partitions: &[Arc<Partition>]) -> Self {
        let mut table = Box::new([0; SLOTS as usize]);
        let slot_of = |bound: &[u8]| bound.first_chunk().map_or(0, |slot| usize::from(u16::from_be_bytes(*slot)));
        // Each partition covers at least one of the slots, so their numbers fit.
        for (partition, index) in partitions.iter().zip(0..) {
            let end = partition.span.end.as_deref().map_or(table.len(), slot_of);
            table[slot_of(&partition.span.start)..end].fill(index);
        }
        Self { table }
    }

    #[inline]
    pub(super) fn index(&self, slot: Slot) -> usize {
        usize::from(self.table[usize::from(slot.get())])
    }
}

/// The bounds in order.
#[derive(Clone)]
pub(super) struct Ordered {
    // What all bounds but the empty one begin with.
    common: Box<[u8]>,
    // Different heads in Eytzinger order from 1 on, and which bounds have them.
    heads: Vec<u64>,
    runs: Vec<Run>,
    // All bounds behind what they have in common, one after the other, and where each ends. The empty one is left out.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    last: usize,
}

/// The bounds from `first` to before `end` have the same head. Counted from 1: the bound in front of partition n is n.
#[derive(Clone, Copy, Default)]
struct Run {
    first: u32,
    end: u32,
}

impl Ordered {
    fn new(partitions: &[Arc<Partition>], common_max: usize) -> Self {
        let bounds = || partitions.iter().skip(1).map(|partition| &partition.span.start[..]);
        let common = common_prefix(bounds(), common_max);
        let mut sorted: Vec<(u64, Run)> = Vec::new();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(partitions.len() - 1));
        for (bound, nth) in bounds().zip(1..) {
            let rest = &bound[common.len()..];
            bytes.extend_from_slice(rest);
            ends.push(bytes.len() as u32);
            match sorted.last_mut() {
                Some((last, run)) if *last == head(rest) => run.end = nth + 1,
                _ => sorted.push((head(rest), Run { first: nth, end: nth + 1 })),
            }
        }
        let mut heads = vec![0; sorted.len() + 1];
        let mut runs = vec![Run::default(); sorted.len() + 1];
        let mut rest = sorted.into_iter();
        fill(1, heads.len(), &mut |node| {
            let (head, run) = rest.next().expect("there are as many nodes as heads");
            (heads[node], runs[node]) = (head, run);
        });
        Self { common, heads, runs, bytes, ends, last: partitions.len() - 1 }
    }

    #[inline]
    fn index(&self, position: &Position<'_>) -> usize {
        let rest = match position.strip(&self.common) {
            Ok(rest) => rest,
            Err(core::cmp::Ordering::Less) => return 0,
            Err(_) => return self.last,
        };
        let wanted = rest.head();
        let mut node = 1;
        while let Some(&head) = self.heads.get(node) {
            node = 2 * node + usize::from(head <= wanted);
        }
        // The last turn to the right was at the greatest head that is not above the wanted one; node 0 when there was none.
        node >>= node.trailing_zeros() + 1;
        if node == 0 {
            return 0;
        }
        let run = self.runs[node];
        if self.heads[node] < wanted {
            return run.end as usize - 1;
        }
        self.within(run, &rest)
    }

    /// The last bound of the run that is not above the position, or the one in front of the run.
    #[inline]
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

/// Visits the nodes of an implicit tree of `end - 1` nodes in the order of their values.
fn fill(node: usize, end: usize, visit: &mut impl FnMut(usize)) {
    if node < end {
        fill(2 * node, end, visit);
        visit(node);
        fill(2 * node + 1, end, visit);
    }
}

fn common_prefix<'b>(mut bounds: impl Iterator<Item = &'b [u8]>, length_max: usize) -> Box<[u8]> {
    let Some(first) = bounds.next() else { return Box::default() };
    let alike = |length: usize, bound: &[u8]| first[..length].iter().zip(bound).take_while(|(a, b)| a == b).count();
    first[..bounds.fold(first.len().min(length_max), alike)].into()
}
