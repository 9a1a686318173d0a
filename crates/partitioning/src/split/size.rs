//! Where to cut by size: the cut nearest to half of the bytes.

use bytes::Bytes;

use super::{Cut, SAMPLES_MIN, SIDE_PERCENT_MAX, percent};
use crate::map::{Partition, Refused};
use crate::partitioner::Scheme;

/// A key of the partition with the bytes that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeSample {
    /// The key's position.
    pub position: Bytes,
    /// Bytes of the key and its value, and of the keys that were passed over since the last sample.
    pub bytes: u64,
}

/// The cut that parts the bytes best. Samples may come in any order, and those outside the partition do not count.
///
/// # Errors
/// Too few samples, one key that has nearly everything, or no cut that leaves a fair part on both sides.
pub fn cut_by_size(scheme: &Scheme, partition: &Partition, samples: &[SizeSample]) -> Result<Bytes, Refused> {
    let mut within: Vec<_> = samples.iter().filter(|sample| partition.span.contains(&sample.position)).collect();
    if within.len() < SAMPLES_MIN {
        return Err(Refused::TooFewSamples { samples: within.len(), needed: SAMPLES_MIN });
    }
    within.sort_by(|a, b| a.position.cmp(&b.position));
    let whole = within.iter().fold(0_u64, |sum, sample| sum.saturating_add(sample.bytes));
    let (mut left, mut heaviest) = (0, 0);
    let mut best: Option<Cut> = None;
    for key in within.chunk_by(|a, b| a.position == b.position) {
        let own = key.iter().fold(0_u64, |sum, sample| sum.saturating_add(sample.bytes));
        heaviest = heaviest.max(own);
        let cut = Cut { at: key[0].position.clone(), left, right: whole - left, spanning: 0 };
        if cut.is_within(scheme, partition) && best.as_ref().is_none_or(|best| cut.cost() < best.cost()) {
            best = Some(cut);
        }
        left = left.saturating_add(own).min(whole);
    }
    let larger = best.as_ref().map_or(100, Cut::larger_side);
    match best {
        Some(cut) if larger <= SIDE_PERCENT_MAX => Ok(cut.at),
        _ if percent(heaviest, whole) > SIDE_PERCENT_MAX => {
            Err(Refused::SingleKey { percent: percent(heaviest, whole) })
        }
        _ => Err(Refused::Uneven { percent: larger }),
    }
}
