//! Placements that are functions of the partition and the nodes alone: jump, rendezvous, ring.

use replikit_core::NodeId;

use super::{Choice, domains, mixed};
use crate::topology::{CAPACITY_USUAL, Node};

/// Jump consistent hash: the last bucket that the key jumps to below the number of buckets. Source: Lamping and Veach,
/// arXiv 1406.2294, figure 1, in integers instead of doubles, so that it is the same on all machines.
fn jump_bucket(mut key: u64, buckets: usize) -> usize {
    let mut bucket: u64 = 0;
    let mut next: u64 = 0;
    while next < buckets as u64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = (u128::from(bucket + 1) * (1 << 31) / u128::from((key >> 33) + 1)) as u64;
    }
    bucket as usize
}

/// Rolls for one copy before the nodes behind the last one rolled are taken in turn.
const ROLLS_MAX: u64 = 64;

pub(super) fn jump(nodes: &[Node], partitions: usize, copies: usize, seed: u64) -> Vec<Vec<NodeId>> {
    let domains = domains(nodes);
    let one = |partition: usize| {
        let mut choice = Choice::new(nodes, domains, copies);
        let key = mixed(seed, partition as u64);
        for roll in 0..ROLLS_MAX * copies as u64 {
            choice.offer(jump_bucket(mixed(key, roll), nodes.len()));
            if choice.is_complete() {
                break;
            }
        }
        // So few nodes may take a copy that no roll met one.
        let mut index = jump_bucket(key, nodes.len());
        while !choice.is_complete() {
            index = (index + 1) % nodes.len();
            choice.offer(index);
        }
        choice.into_ids()
    };
    (0..partitions).map(one).collect()
}

/// Natural logarithm of `(hash + 1) / 2^64`, negated: positive, from additions, multiplications and divisions alone, which IEEE 754
/// defines to the last bit on every machine; the logarithm of mathematical libraries differs.
fn minus_ln(hash: u64) -> f64 {
    const LN_2: f64 = core::f64::consts::LN_2;
    // hash + 1 = mantissa * 2^exponent with the mantissa in [1, 2).
    let whole = u128::from(hash) + 1;
    let exponent = whole.ilog2();
    let mantissa = (whole << (127 - exponent) >> 75) as f64 / (1_u64 << 52) as f64;
    // ln m = 2 artanh((m - 1) / (m + 1)), after a halving where that brings m nearer to 1.
    let (mantissa, halvings) =
        if mantissa > core::f64::consts::SQRT_2 { (mantissa / 2.0, 1.0) } else { (mantissa, 0.0) };
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let series = (0..9).rev().fold(0.0, |sum, nth| sum * square + 1.0 / f64::from(2 * nth + 1));
    (64.0 - f64::from(exponent) - halvings) * LN_2 - 2.0 * z * series
}

/// Every node draws a time from an exponential distribution whose rate is its capacity; the earliest take the copies. A node
/// that joins or leaves changes no other node's time, so only its own copies move.
pub(super) fn rendezvous(nodes: &[Node], partitions: usize, copies: usize, seed: u64) -> Vec<Vec<NodeId>> {
    let domains = domains(nodes);
    let seeds: Vec<u64> = nodes.iter().map(|node| mixed(seed, u64::from(node.id.0))).collect();
    let mut times: Vec<(f64, usize)> = Vec::with_capacity(nodes.len());
    let mut one = |partition: usize| {
        times.clear();
        let time = |(index, node): (usize, &Node)| {
            (minus_ln(mixed(seeds[index], partition as u64)) / f64::from(node.capacity), index)
        };
        times.extend(nodes.iter().enumerate().map(time));
        let mut choice = Choice::new(nodes, domains, copies);
        let mut from = 0;
        // The first few usually do; the rest is sorted only if domains are in the way.
        let mut sorted_to = (2 * copies).min(times.len());
        loop {
            let rest = &mut times[from..];
            let by_time = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if sorted_to - from < rest.len() {
                rest.select_nth_unstable_by(sorted_to - from - 1, by_time);
            }
            rest[..sorted_to - from].sort_unstable_by(by_time);
            for &(_, index) in &rest[..sorted_to - from] {
                choice.offer(index);
            }
            // With fewer domains than copies, nodes passed by earlier may take a copy once every domain has one.
            if choice.is_complete() {
                return choice.into_ids();
            }
            if sorted_to == times.len() {
                for &(_, index) in &times {
                    choice.offer(index);
                }
                assert!(choice.is_complete(), "there are as many nodes as copies");
                return choice.into_ids();
            }
            from = sorted_to;
            sorted_to = (4 * sorted_to).min(times.len());
        }
    };
    (0..partitions).map(&mut one).collect()
}

pub(super) fn ring(nodes: &[Node], partitions: usize, copies: usize, seed: u64, points: u16) -> Vec<Vec<NodeId>> {
    let domains = domains(nodes);
    let mut ring = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let own = (u64::from(points) * u64::from(node.capacity) / u64::from(CAPACITY_USUAL)).max(1);
        let seed = mixed(seed, u64::from(node.id.0));
        ring.extend((0..own).map(|point| (mixed(seed, point), index)));
    }
    ring.sort_unstable();
    let one = |partition: usize| {
        let at = mixed(seed ^ 0x5bd1_e995, partition as u64);
        let first = ring.partition_point(|(point, _)| *point < at);
        let mut choice = Choice::new(nodes, domains, copies);
        // Twice round: the second time every domain has a copy, and nodes passed by may take one.
        for nth in 0..2 * ring.len() {
            choice.offer(ring[(first + nth) % ring.len()].1);
            if choice.is_complete() {
                break;
            }
        }
        choice.into_ids()
    };
    (0..partitions).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jump_buckets_are_those_of_the_paper() {
        // The reference implementation, in doubles.
        let reference = |mut key: u64, buckets: i64| {
            let (mut bucket, mut next) = (-1_i64, 0_i64);
            while next < buckets {
                bucket = next;
                key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
                next = ((bucket + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
            }
            bucket as usize
        };
        for key in 0..20_000 {
            assert_eq!(jump_bucket(mixed(9, key), 1_000), reference(mixed(9, key), 1_000));
        }
    }

    #[test]
    fn the_logarithm_is_that_of_the_library_to_twelve_digits() {
        for nth in 0..100_000 {
            let hash = mixed(1, nth) >> (nth % 60);
            let exact = -((hash as f64 + 1.0) / 2_f64.powi(64)).ln();
            assert!((minus_ln(hash) - exact).abs() <= 1e-12 * exact.max(1.0), "{hash}: {} {exact}", minus_ln(hash));
        }
        assert_eq!(minus_ln(u64::MAX), 0.0);
    }
}
