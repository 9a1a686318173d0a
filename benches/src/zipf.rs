//! Zipf-distributed ranks: rank `i` (from 0) is drawn with probability proportional to `1 / (i + 1)^theta`.
//!
//! Source: Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD'94, as used by YCSB, whose default
//! `theta` of 0.99 is [`THETA`].

use fastrand::Rng;

/// YCSB's skew.
pub const THETA: f64 = 0.99;

/// A distribution over a fixed number of ranks; a draw takes constant time.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    ranks: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
    half_pow_theta: f64,
}

impl Zipf {
    /// A distribution over `ranks` ranks (at least 1) with a skew strictly between 0 and 1. Takes time linear in `ranks`.
    ///
    /// # Panics
    /// When either is out of range: both are constants of a workload.
    #[must_use]
    pub fn new(ranks: u32, theta: f64) -> Self {
        assert!(ranks >= 1, "a distribution has at least one rank");
        assert!(theta > 0.0 && theta < 1.0, "the skew lies strictly between 0 and 1");
        let zeta: f64 = (1..=ranks).map(|rank| f64::from(rank).powf(-theta)).sum();
        let zeta_two = 1.0 + 0.5_f64.powf(theta);
        let count = f64::from(ranks);
        Self {
            ranks: count,
            alpha: 1.0 / (1.0 - theta),
            zeta,
            eta: (1.0 - (2.0 / count).powf(1.0 - theta)) / (1.0 - zeta_two / zeta),
            half_pow_theta: 0.5_f64.powf(theta),
        }
    }

    /// A rank, below the number of ranks; 0 is the most frequent one.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let uniform = rng.f64();
        let scaled = uniform * self.zeta;
        if scaled < 1.0 || self.ranks < 2.0 {
            return 0;
        }
        if scaled < 1.0 + self.half_pow_theta {
            return 1;
        }
        let rank = self.ranks * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        (rank as u32).min(self.ranks as u32 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_power_law() {
        const RANKS: u32 = 1_000;
        const DRAWS: u32 = 400_000;
        let zipf = Zipf::new(RANKS, THETA);
        let mut rng = Rng::with_seed(7);
        let mut counts = vec![0_u32; RANKS as usize];
        for _ in 0..DRAWS {
            counts[zipf.draw(&mut rng) as usize] += 1;
        }
        let zeta: f64 = (1..=RANKS).map(|rank| f64::from(rank).powf(-THETA)).sum();
        // The method is exact for the first two ranks and an approximation behind them: compare sums there.
        for rank in [0, 1] {
            let expected = f64::from(rank + 1).powf(-THETA) / zeta;
            let seen = f64::from(counts[rank as usize]) / f64::from(DRAWS);
            assert!((seen / expected - 1.0).abs() < 0.05, "rank {rank}: {seen} instead of {expected}");
        }
        for range in [2..10_u32, 10..100, 100..1_000] {
            let expected: f64 = range.clone().map(|rank| f64::from(rank + 1).powf(-THETA)).sum::<f64>() / zeta;
            let seen = range.clone().map(|rank| f64::from(counts[rank as usize])).sum::<f64>() / f64::from(DRAWS);
            assert!((seen / expected - 1.0).abs() < 0.10, "ranks {range:?}: {seen} instead of {expected}");
        }
    }

    #[test]
    fn one_rank_is_always_drawn() {
        let zipf = Zipf::new(1, THETA);
        let mut rng = Rng::with_seed(1);
        assert!((0..100).all(|_| zipf.draw(&mut rng) == 0));
    }
}
