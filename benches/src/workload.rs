//! Workloads: what the clients do, to which keys, how often. Everything random comes from the run's seed.

pub mod keys;
pub mod mix;
pub mod trace;

use std::fmt;

use bytes::Bytes;
use fastrand::Rng;

use crate::zipf::{THETA, Zipf};

/// Bytes that every value begins with: which write it is, and which key it belongs to.
pub const VALUE_BYTES_MIN: usize = 16;

/// How the keys of requests are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All keys alike.
    Uniform,
    /// A few keys get most requests: Zipf with a skew of 0.99.
    Zipf,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Reads in a hundred requests; the others are writes.
    pub reads_percent: u8,
    /// Which keys.
    pub spread: Spread,
    /// How many keys there are, at least 1.
    pub keys: u32,
    /// Size of a value, at least [`VALUE_BYTES_MIN`].
    pub value_bytes: usize,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reads_percent {
            0 => f.write_str("write-only")?,
            reads => write!(f, "{reads}% reads")?,
        }
        let spread = match self.spread {
            Spread::Uniform => "uniform",
            Spread::Zipf => "zipf",
        };
        match self.keys {
            1 => write!(f, " one key {} B", self.value_bytes),
            _ => write!(f, " {spread} {} B", self.value_bytes),
        }
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read this key.
    Read(u32),
    /// Write this key.
    Write(u32),
}

/// Draws the requests of one client.
#[derive(Debug)]
pub struct Requests {
    workload: Workload,
    zipf: Option<Zipf>,
    rng: Rng,
}

impl Requests {
    /// The requests of client number `client` in a run with this seed.
    #[must_use]
    pub fn new(workload: Workload, zipf: Option<Zipf>, seed: u64, client: u64) -> Self {
        // Each client its own sequence: neighbouring seeds of the generator are not related.
        let rng = Rng::with_seed(seed ^ client.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { workload, zipf, rng }
    }

    /// The distribution that all clients of a workload share; `None` for uniform keys.
    #[must_use]
    pub fn distribution(workload: Workload) -> Option<Zipf> {
        match workload.spread {
            Spread::Uniform => None,
            Spread::Zipf => Some(Zipf::new(workload.keys, THETA)),
        }
    }

    /// The next request.
    pub fn draw(&mut self) -> Request {
        let key = match &self.zipf {
            None => self.rng.u32(..self.workload.keys),
            Some(zipf) => scatter(zipf.draw(&mut self.rng), self.workload.keys),
        };
        if self.rng.u8(..100) < self.workload.reads_percent { Request::Read(key) } else { Request::Write(key) }
    }
}

/// Spreads neighbouring ranks over the key space, so that the frequent keys do not lie side by side in an ordered map. As in
/// YCSB, two ranks may meet in one key.
fn scatter(rank: u32, keys: u32) -> u32 {
    let mut hash = u64::from(rank).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) % u64::from(keys)) as u32
}

/// The bytes of a key: ascending as numbers, so that a scan reads them back in order.
#[must_use]
pub fn key_bytes(key: u32) -> Bytes {
    format!("key{key:010}").into()
}

/// The inverse of [`key_bytes`].
#[must_use]
pub fn key_number(key: &[u8]) -> Option<u32> {
    std::str::from_utf8(key.strip_prefix(b"key")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(reads_percent: u8, spread: Spread) -> Workload {
        Workload { reads_percent, spread, keys: 1_000, value_bytes: 256 }
    }

    #[test]
    fn the_same_seed_draws_the_same_requests() {
        let workload = workload(50, Spread::Zipf);
        let draw = |seed, client| {
            let mut requests = Requests::new(workload, Requests::distribution(workload), seed, client);
            (0..100).map(|_| requests.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }

    #[test]
    fn the_share_of_reads_is_kept() {
        let workload = workload(95, Spread::Uniform);
        let mut requests = Requests::new(workload, None, 3, 0);
        let reads = (0..20_000).filter(|_| matches!(requests.draw(), Request::Read(_))).count();
        assert!((18_800..=19_200).contains(&reads), "{reads} of 20000");
    }

    #[test]
    fn the_hottest_key_of_zipf_stands_out_and_is_not_the_first() {
        let workload = workload(0, Spread::Zipf);
        let mut requests = Requests::new(workload, Requests::distribution(workload), 3, 0);
        let mut counts = vec![0; 1_000];
        for _ in 0..20_000 {
            let (Request::Read(key) | Request::Write(key)) = requests.draw();
            counts[key as usize] += 1;
        }
        let hottest = (0..1_000).max_by_key(|key| counts[*key]).expect("there are keys");
        assert!(counts[hottest] > 2_000, "{} of 20000", counts[hottest]);
        assert_eq!(hottest as u32, scatter(0, 1_000));
    }

    #[test]
    fn keys_survive_their_encoding() {
        assert_eq!(key_number(&key_bytes(123_456)), Some(123_456));
        assert_eq!(key_number(b"other"), None);
        assert!(key_bytes(9) < key_bytes(10));
    }
}
