//! What is asked of a group's partitions, for splits by load.
//!
//! Invariants: no part of the replicated state, each process counts what it carries out itself, from nothing; memory is bounded for
//! each partition, and freed of those that are asked nothing. One request in [`SAMPLE_EVERY`] is looked at, by lot.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::id::PartitionId;
use crate::map::{Partition, Refused};
use crate::mix::{STEP, mixed};
use crate::partitioner::Scheme;
use crate::span::Span;
use crate::split::{LoadSampler, Request};

/// One request in so many is looked at.
const SAMPLE_EVERY: u64 = 8;
/// A sampler starts anew when it has seen so many: it tells of the newest requests, not of those of yesterday.
const SAMPLES_MAX: u64 = 8_192;

/// What a request touched, by position.
pub(super) enum Touched {
    Read(Bytes),
    Write(Bytes),
    Scan(Span),
}

#[derive(Debug, Default)]
struct Asked {
    operations: u64,
    /// Operations when it was last looked at.
    looked_at: u64,
    sampler: Option<Box<LoadSampler>>,
    /// The one before: it is asked until the new one knows enough.
    before: Option<Box<LoadSampler>>,
}

/// Of all partitions of a group.
#[derive(Debug, Default)]
pub(super) struct Loads(RefCell<BTreeMap<PartitionId, Asked>>);

impl Loads {
    /// A request was carried out; `touched` says what it touched, if it is looked at.
    pub(super) fn count(&self, partition: PartitionId, touched: impl FnOnce() -> Touched) {
        let mut all = self.0.borrow_mut();
        let asked = all.entry(partition).or_default();
        asked.operations += 1;
        // Not every eighth one: what comes in turns would show one side only.
        if !drawn(asked.operations).is_multiple_of(SAMPLE_EVERY) {
            return;
        }
        let sampler = asked.sampler.get_or_insert_with(|| Box::new(LoadSampler::new(asked.operations)));
        match touched() {
            Touched::Read(position) => sampler.record(Request::Read(&position), 1),
            Touched::Write(position) => sampler.record(Request::Write(&position), 1),
            Touched::Scan(span) => sampler.record(Request::Scan(&span), 1),
        }
        if sampler.seen() >= SAMPLES_MAX {
            asked.before = asked.sampler.take();
        }
    }

    /// Operations of each partition since this process began to count them. What was asked nothing since the last look is forgotten.
    pub(super) fn operations(&self) -> Vec<(PartitionId, u64)> {
        let mut all = self.0.borrow_mut();
        for asked in all.values_mut() {
            if asked.looked_at == asked.operations {
                (asked.sampler, asked.before) = (None, None);
            }
            asked.looked_at = asked.operations;
        }
        all.iter().map(|(partition, asked)| (*partition, asked.operations)).collect()
    }

    /// Where a partition is best cut by load.
    pub(super) fn cut(&self, scheme: &Scheme, partition: &Partition) -> Result<Bytes, Refused> {
        let all = self.0.borrow();
        let samplers = all.get(&partition.id).map(|asked| [&asked.sampler, &asked.before]);
        let mut cuts = samplers.into_iter().flatten().flatten().map(|sampler| sampler.cut(scheme, partition));
        let first = cuts.next().unwrap_or_else(|| LoadSampler::new(0).cut(scheme, partition));
        match first {
            Err(Refused::TooFewSamples { .. }) => cuts.next().unwrap_or(first),
            enough => enough,
        }
    }

    /// A partition has other bounds now: what was seen of it is of what it was.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().values_mut().for_each(|asked| (asked.sampler, asked.before) = (None, None));
    }
}

fn drawn(number: u64) -> u64 {
    mixed(number.wrapping_mul(STEP))
}

#[cfg(test)]
mod tests {
    use replikit_core::{GroupId, NodeId};

    use super::*;
    use crate::id::{Birth, BoundsVersion, PlacementVersion};

    const ID: PartitionId = PartitionId(3);

    fn partition() -> Partition {
        Partition {
            id: ID,
            birth: Birth(1),
            span: Span::ALL,
            bounds: BoundsVersion(1),
            group: GroupId(2),
            replication: crate::map::Replication::SingleLeader,
            placement: PlacementVersion(1),
            joined: BTreeMap::new(),
            turnover: replikit_core::Turnover::default(),
            replicas: vec![NodeId(1)],
        }
    }

    fn write(loads: &Loads, number: u64) {
        loads.count(ID, || Touched::Write(Bytes::copy_from_slice(&number.to_be_bytes())));
    }

    fn cut(loads: &Loads) -> Result<u64, Refused> {
        let at = loads.cut(&Scheme::KEY_ORDER, &partition())?;
        let mut number = [0; 8];
        number.copy_from_slice(&at[..8]);
        Ok(u64::from_be_bytes(number))
    }

    #[test]
    fn every_request_is_counted_and_some_tell_where_the_load_is() {
        let loads = Loads::default();
        assert!(matches!(cut(&loads), Err(Refused::TooFewSamples { samples: 0, .. })));
        for number in 0..4_000_u64 {
            write(&loads, drawn(number) % 1_000);
        }
        assert_eq!(loads.operations(), [(ID, 4_000)]);
        let at = cut(&loads).unwrap();
        assert!((250..750).contains(&at), "{at}");
    }

    #[test]
    fn the_newest_requests_decide_and_what_rests_is_forgotten() {
        let loads = Loads::default();
        for number in 0..SAMPLE_EVERY * SAMPLES_MAX * 3 / 2 {
            write(&loads, drawn(number) % 1_000);
        }
        // The load moves away for good.
        for number in 0..SAMPLE_EVERY * SAMPLES_MAX * 2 {
            write(&loads, 100_000 + drawn(number) % 1_000);
        }
        assert!((100_250..100_750).contains(&cut(&loads).unwrap()));
        loads.operations();
        assert!(cut(&loads).is_ok());
        loads.operations();
        assert!(matches!(cut(&loads), Err(Refused::TooFewSamples { .. })), "nothing was asked in between");
    }

    #[test]
    fn a_sequence_and_a_single_key_are_told_apart() {
        let (ascending, single) = (Loads::default(), Loads::default());
        for number in 0..10_000 {
            write(&ascending, number);
            write(&single, 7);
        }
        assert!(matches!(cut(&ascending), Err(Refused::Sequential { .. })), "{:?}", cut(&ascending));
        assert!(matches!(cut(&single), Err(Refused::SingleKey { percent: 100 })), "{:?}", cut(&single));
    }
}
