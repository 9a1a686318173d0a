//! How much larger one sample is than another, with an interval, from ranks alone: no distribution is taken for granted, and a
//! single outlier moves nothing far. Source: Hodges and Lehmann 1963; the intervals are those of the tests of Wilcoxon (pairs)
//! and of Mann and Whitney, exact for few values.

/// A shift between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// The estimate.
    pub by: f64,
    /// Where its interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// How often an interval made like this holds the truth, 0 to 1: at least what was asked for where the samples are large
    /// enough, and what they permit at most otherwise.
    pub confidence: f64,
}

/// How much larger the second value of a pair is than the first: for values that were measured right after each other.
/// `None` without pairs.
#[must_use]
pub fn paired(pairs: &[(f64, f64)], confidence: f64) -> Option<Shift> {
    let differences: Vec<f64> = pairs.iter().map(|(one, other)| other - one).collect();
    let mut means = Vec::new();
    for (at, one) in differences.iter().enumerate() {
        means.extend(differences[at..].iter().map(|other| f64::midpoint(*one, *other)));
    }
    // The sum of the ranks of the positive differences: each rank counts or not, with equal chances.
    let n = pairs.len();
    let mut ways = vec![0.0_f64; n * (n + 1) / 2 + 1];
    ways[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..ways.len()).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    shift(means, &ways, confidence)
}

/// How much larger the values of the second sample are than those of the first. `None` when one is empty.
#[must_use]
pub fn unpaired(one: &[f64], other: &[f64], confidence: f64) -> Option<Shift> {
    let differences: Vec<f64> = one.iter().flat_map(|x| other.iter().map(move |y| y - x)).collect();
    // In how many orders of all values so many pairs stand the wrong way round: ways[m][n], by recursion over the largest value.
    let (m, n) = (one.len(), other.len());
    let mut ways = vec![vec![Vec::new(); n + 1]; m + 1];
    for first in 0..=m {
        for second in 0..=n {
            let mut counts = vec![0.0_f64; first * second + 1];
            if first == 0 || second == 0 {
                counts[0] = 1.0;
            } else {
                for (sum, count) in ways[first - 1][second].iter().enumerate() {
                    counts[sum + second] += count;
                }
                for (sum, count) in ways[first][second - 1].iter().enumerate() {
                    counts[sum] += count;
                }
            }
            ways[first][second] = counts;
        }
    }
    shift(differences, &ways[m][n], confidence)
}

/// The median of the differences, and the interval that leaves out as many on either side as the test's distribution permits.
fn shift(mut differences: Vec<f64>, ways: &[f64], confidence: f64) -> Option<Shift> {
    if differences.is_empty() {
        return None;
    }
    differences.sort_by(f64::total_cmp);
    let total: f64 = ways.iter().sum();
    let tail_max = (1.0 - confidence) / 2.0;
    // At least the extreme differences are the ends of the interval.
    let (mut left_out, mut tail) = (0, ways[0] / total);
    let mut next = tail;
    while left_out + 1 < ways.len() {
        next += ways[left_out + 1] / total;
        if next > tail_max || 2 * (left_out + 1) >= differences.len() {
            break;
        }
        left_out += 1;
        tail = next;
    }
    let last = differences.len() - 1;
    let by = f64::midpoint(differences[last / 2], differences[differences.len() / 2]);
    Some(Shift { by, low: differences[left_out], high: differences[last - left_out], confidence: 1.0 - 2.0 * tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values with a mean of 0 and a deviation of 1, about: sums of uniform ones.
    fn normal(rng: &mut fastrand::Rng) -> f64 {
        (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
    }

    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(5);
        let runs = 4_000;
        for confidence in [0.9, 0.99] {
            let (mut pairs_hold, mut samples_hold) = (0, 0);
            for _ in 0..runs {
                let pairs: Vec<(f64, f64)> = (0..9)
                    .map(|_| {
                        let drift = 10.0 * normal(&mut rng);
                        (drift + normal(&mut rng), drift + normal(&mut rng) + 0.5)
                    })
                    .collect();
                let shift = paired(&pairs, confidence).expect("there are pairs");
                assert!(shift.confidence >= confidence);
                pairs_hold += u32::from(shift.low <= 0.5 && 0.5 <= shift.high);
                let one: Vec<f64> = (0..6).map(|_| normal(&mut rng)).collect();
                let other: Vec<f64> = (0..7).map(|_| normal(&mut rng) + 0.5).collect();
                let shift = unpaired(&one, &other, confidence).expect("there are values");
                samples_hold += u32::from(shift.low <= 0.5 && 0.5 <= shift.high);
            }
            for hold in [pairs_hold, samples_hold] {
                let share = f64::from(hold) / f64::from(runs);
                assert!(share >= confidence - 0.012, "{share} of the intervals that promise {confidence}");
            }
        }
    }

    #[test]
    fn few_values_permit_little_confidence_and_it_says_so() {
        let shift = paired(&[(1.0, 2.0), (1.0, 2.5), (1.0, 3.0)], 0.99).expect("there are pairs");
        assert_eq!((shift.low, shift.high), (1.0, 2.0), "the extreme ones");
        assert!((shift.confidence - 0.75).abs() < 1e-9, "1 - 2/8: {}", shift.confidence);
        let shift = unpaired(&[1.0], &[3.0], 0.99).expect("there are values");
        assert_eq!((shift.by, shift.confidence), (2.0, 0.0));
        assert!(paired(&[], 0.9).is_none() && unpaired(&[1.0], &[], 0.9).is_none());
    }

    /// What `compare` repeats at least by default follows from this.
    #[test]
    fn one_outlier_of_fifteen_pairs_does_not_decide_where_the_interval_ends() {
        let pairs = |count: u32, outlier: f64| {
            let mut pairs: Vec<(f64, f64)> = (0..count).map(|at| (0.0, f64::from(at) / 100.0)).collect();
            pairs[0].1 = outlier;
            paired(&pairs, 0.99).expect("there are pairs").high
        };
        assert!(pairs(14, 1e6) > 1e3 && pairs(15, 1e6) < 1.0, "{} {}", pairs(14, 1e6), pairs(15, 1e6));
    }

    #[test]
    fn the_estimate_is_the_median_of_the_differences_and_ignores_one_outlier() {
        let one = [10.0, 11.0, 12.0, 13.0, 14.0];
        let other = [11.0, 12.0, 13.0, 14.0, 1_000.0];
        assert!(unpaired(&one, &other, 0.9).expect("there are values").by < 3.0);
    }
}
