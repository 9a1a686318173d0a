//! Which keys requests are for.
//!
//! Source: the request distributions of YCSB (Cooper et al., SoCC 2010); the hot set is the one of conflict curves, where a
//! share of all requests meets in few keys.

use fastrand::Rng;

use super::scatter;
use crate::zipf::{THETA, Zipf};

/// How the keys of requests are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpread {
    /// All keys alike.
    Uniform,
    /// A few keys get most requests: Zipf with a skew of 0.99.
    Zipf,
    /// The newest keys get most requests: Zipf over their age.
    Latest,
    /// Some keys get a share of all requests, the others the rest; each alike among themselves.
    HotSet {
        /// How many, at least 1 and at most as many as there are keys.
        keys: u32,
        /// Their share of the requests, in percent.
        percent: u8,
    },
}

/// Draws keys. Keys are numbered from 0; those that are inserted come behind the others.
#[derive(Clone, Debug)]
pub struct KeyDraw {
    spread: KeySpread,
    zipf: Option<Zipf>,
    /// Keys at the beginning.
    loaded: u32,
    /// Keys by now.
    present: u32,
}

impl KeyDraw {
    /// A draw over so many keys, at least 1.
    #[must_use]
    pub fn new(spread: KeySpread, keys: u32) -> Self {
        let zipf = matches!(spread, KeySpread::Zipf | KeySpread::Latest).then(|| Zipf::new(keys, THETA));
        Self { spread, zipf, loaded: keys, present: keys }
    }

    /// A key that is there.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let zipf = |rng: &mut Rng| self.zipf.as_ref().map_or(0, |zipf| zipf.draw(rng));
        match self.spread {
            KeySpread::Uniform => rng.u32(..self.present),
            KeySpread::Zipf => scatter(zipf(rng), self.loaded),
            KeySpread::Latest => self.present - 1 - zipf(rng),
            KeySpread::HotSet { keys, percent } => {
                if keys == self.present || rng.u8(..100) < percent {
                    rng.u32(..keys)
                } else {
                    rng.u32(keys..self.present)
                }
            }
        }
    }

    /// A key that was not there before.
    pub const fn insert(&mut self) -> u32 {
        let key = self.present;
        self.present += 1;
        key
    }

    /// How many keys there are by now.
    #[must_use]
    pub const fn present(&self) -> u32 {
        self.present
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 1_000;
    const DRAWS: u32 = 20_000;

    fn counts(draw: &KeyDraw) -> Vec<u32> {
        let mut rng = Rng::with_seed(5);
        let mut counts = vec![0; draw.present() as usize];
        (0..DRAWS).for_each(|_| counts[draw.draw(&mut rng) as usize] += 1);
        counts
    }

    #[test]
    fn a_hot_set_gets_its_share() {
        let draw = KeyDraw::new(KeySpread::HotSet { keys: 10, percent: 90 }, KEYS);
        let hot: u32 = counts(&draw)[..10].iter().sum();
        assert!((17_700..18_300).contains(&hot), "{hot} of {DRAWS}");
        let all = KeyDraw::new(KeySpread::HotSet { keys: KEYS, percent: 50 }, KEYS);
        assert!(counts(&all).iter().all(|count| *count > 0), "a hot set of all keys is uniform");
    }

    #[test]
    fn the_latest_keys_are_those_inserted_last() {
        let mut draw = KeyDraw::new(KeySpread::Latest, KEYS);
        let newest = draw.insert();
        assert_eq!((newest, draw.present()), (KEYS, KEYS + 1));
        let counts = counts(&draw);
        let hottest = (0..=KEYS).max_by_key(|key| counts[*key as usize]);
        assert_eq!(hottest, Some(newest));
        assert!(counts[newest as usize] > 10 * counts[newest as usize - 20], "{counts:?}");
    }

    #[test]
    fn uniform_and_zipf_stay_among_the_keys() {
        for spread in [KeySpread::Uniform, KeySpread::Zipf] {
            let counts = counts(&KeyDraw::new(spread, KEYS));
            let most = counts.iter().max().copied().unwrap_or(0);
            assert_eq!(most > DRAWS / 20, spread == KeySpread::Zipf, "{spread:?}: {most}");
        }
    }
}
