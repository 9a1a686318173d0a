//! How stale reads of few owners are to be expected to be, from measured delays.
//!
//! Invariant: with R + W > N every read sees every acknowledged write, whatever the delays. Source: probabilistically bounded
//! staleness (Bailis et al., VLDB 2012), its delays W, A, R and S: a write on its way to an owner, the owner's word on its way
//! back, a question, an answer. A coordinator sees only there and back; the way there and the way back count half each of the
//! shortest time that an owner ever took to answer, and what is above it is the owner's disk, which a reader does not wait for.

use core::time::Duration;

use fastrand::Rng;

/// Draws of one prediction.
const TRIALS: usize = 2_000;

/// Delays of one coordinator, as measured.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Delays {
    /// The coordinator, as an index into what follows.
    pub own: usize,
    /// For each sampled write: how long after it began the coordinator knew it to be on each owner's disk; the time of an owner
    /// that never said so is [`Duration::MAX`].
    pub writes: Vec<Vec<Duration>>,
    /// How long each owner took to answer sampled questions; of the coordinator none.
    pub answers: Vec<Vec<Duration>>,
}

impl Delays {
    /// What they say of reads of `read` owners after writes that `write` owners have acknowledged; `None` before every owner has
    /// been measured, and for numbers that are not from 1 to N.
    #[must_use]
    pub fn predict(&self, read: u8, write: u8) -> Option<Prediction> {
        let owners = self.answers.len();
        let measured = |(index, answers): (usize, &Vec<Duration>)| index == self.own || !answers.is_empty();
        let sizes = 1..=owners;
        if self.writes.is_empty()
            || !self.answers.iter().enumerate().all(measured)
            || !sizes.contains(&read.into())
            || !sizes.contains(&write.into())
        {
            return None;
        }
        let way: Vec<Duration> =
            self.answers.iter().map(|answers| answers.iter().min().map_or(Duration::ZERO, |best| *best / 2)).collect();
        // The same delays make the same prediction.
        let mut rng = Rng::with_seed(self.writes.len() as u64);
        let mut after: Vec<Duration> = (0..TRIALS).map(|_| self.draw(&mut rng, &way, read, write)).collect();
        after.sort_unstable();
        Some(Prediction { after })
    }

    /// How long after the acknowledgement of some write a read of some coordinator has to begin to see it.
    fn draw(&self, rng: &mut Rng, way: &[Duration], read: u8, write: u8) -> Duration {
        let owners = way.len();
        let told = &self.writes[rng.usize(0..self.writes.len())];
        let mut order = told.clone();
        order.sort_unstable();
        let acknowledged = order[usize::from(write) - 1];
        let disk = told[self.own];
        let visible = |index: usize| {
            if index == self.own {
                // It may be read as soon as it is made; the answer waits for the disk.
                return Duration::ZERO;
            }
            let way = way[index].min(told[index] / 2);
            told[index].saturating_sub(way).saturating_sub(disk).max(way)
        };
        // Any owner may coordinate the read, which looks at its own copy first.
        let reader = rng.usize(0..owners);
        let mut asked: Vec<usize> = (0..owners).filter(|index| *index != reader).collect();
        rng.shuffle(&mut asked);
        asked.truncate(usize::from(read) - 1);
        let late =
            |index: usize, question: Duration| visible(index).saturating_sub(acknowledged).saturating_sub(question);
        let others = asked.iter().map(|&index| {
            // Between this pair nothing was measured: as between this coordinator and one of the two.
            let of = if index == self.own { reader } else { index };
            late(index, self.answers[of][rng.usize(0..self.answers[of].len())] / 2)
        });
        others.fold(late(reader, Duration::ZERO), Duration::min)
    }
}

/// When reads see an acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Ascending: of each draw, how long after the acknowledgement a read had to begin.
    after: Vec<Duration>,
}

impl Prediction {
    /// The share of reads, from 0 to 1, that see a write when they begin this long after its acknowledgement: t-visibility.
    #[must_use]
    pub fn sees(&self, after: Duration) -> f64 {
        self.after.partition_point(|needed| *needed <= after) as f64 / self.after.len() as f64
    }

    /// How long after the acknowledgement this share of reads, from 0 to 1, see a write; [`Duration::MAX`] for never.
    #[must_use]
    pub fn visible_after(&self, share: f64) -> Duration {
        let rank = (share.clamp(0.0, 1.0) * self.after.len() as f64).ceil() as usize;
        self.after[rank.clamp(1, self.after.len()) - 1]
    }
}

/// The share of reads, from 0 to 1, that return one of the `versions` newest acknowledged versions when writes reach nobody
/// but those that have acknowledged them: k-staleness (Bailis et al. 2012, section 3.1), from below, for writes go on to all
/// owners.
#[must_use]
pub fn within_versions(owners: u8, read: u8, write: u8, versions: u32) -> f64 {
    let (owners, read, write) = (f64::from(owners), read.min(owners), f64::from(write));
    // The probability that none of `read` owners is one of the `write`.
    let misses: f64 = (0..read).map(f64::from).map(|i| ((owners - write - i) / (owners - i)).max(0.0)).product();
    1.0 - misses.powi(i32::try_from(versions).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The coordinator's disk takes 2 ms, the others say 9 ms later that they have it, and answer in 4 ms.
    fn steady() -> Delays {
        Delays {
            own: 0,
            writes: vec![vec![ms(2), ms(9), ms(9)]; 8],
            answers: vec![vec![], vec![ms(4); 8], vec![ms(4); 8]],
        }
    }

    #[test]
    fn a_read_elsewhere_sees_a_write_once_it_has_come_there() {
        // It is there after 9 - 2 (the way back) - 2 (the disk) = 5 ms, and acknowledged after 2.
        let one = steady().predict(1, 1).unwrap();
        let third = one.sees(Duration::ZERO);
        assert!((0.28..0.39).contains(&third), "a third of the reads are where it was written: {third}");
        assert!(one.sees(ms(3) - Duration::from_micros(1)) < 0.4);
        assert!((one.sees(ms(3)) - 1.0).abs() < 1e-9);
        assert_eq!(one.visible_after(0.999), ms(3));
        assert_eq!(one.visible_after(0.1), Duration::ZERO);
        let two = steady().predict(2, 1).unwrap();
        assert!(two.sees(Duration::ZERO) > third, "more owners are asked");
        assert!(two.visible_after(1.0) <= ms(1), "the question is on its way for 2 ms");
    }

    #[test]
    fn an_owner_that_never_had_it_never_shows_it() {
        let mut delays = steady();
        for write in &mut delays.writes {
            write[2] = Duration::MAX;
        }
        let prediction = delays.predict(1, 1).unwrap();
        assert!(prediction.sees(Duration::from_secs(3600)) < 0.75);
        assert!(prediction.visible_after(0.999) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn nothing_is_said_before_every_owner_has_been_measured() {
        let mut delays = steady();
        assert_eq!(delays.predict(0, 1), None);
        assert_eq!(delays.predict(1, 4), None);
        delays.answers[2].clear();
        assert_eq!(delays.predict(1, 1), None);
        assert_eq!(Delays::default().predict(1, 1), None);
    }

    #[test]
    fn versions_behind_are_those_of_the_paper() {
        // N = 3, R = W = 1: two thirds of the reads miss the newest; Bailis et al. 2012, section 3.1.
        assert!((within_versions(3, 1, 1, 1) - 1.0 / 3.0).abs() < 1e-9);
        assert!((within_versions(3, 1, 1, 3) - (1.0 - (2.0f64 / 3.0).powi(3))).abs() < 1e-9);
        assert!((within_versions(3, 1, 2, 2) - (1.0 - 1.0 / 9.0)).abs() < 1e-9);
        assert!((within_versions(3, 2, 2, 1) - 1.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn quorums_that_overlap_are_never_stale(
            (owners, own, writes, answers) in (1usize..6).prop_flat_map(|owners| {
                let times = |least, most| proptest::collection::vec(0u64..50_000, least..=most);
                (
                    Just(owners),
                    0..owners,
                    proptest::collection::vec(times(owners, owners), 1..5),
                    proptest::collection::vec(times(1, 4), owners),
                )
            }),
            read in 1u8..6,
            write in 1u8..6,
        ) {
            let micros = |times: Vec<u64>| times.into_iter().map(Duration::from_micros).collect::<Vec<_>>();
            let delays = Delays {
                own,
                writes: writes.into_iter().map(micros).collect(),
                answers: answers.into_iter().map(micros).collect(),
            };
            let prediction = delays.predict(read, write);
            prop_assert_eq!(prediction.is_some(), usize::from(read.max(write)) <= owners);
            if let Some(prediction) = prediction.filter(|_| usize::from(read + write) > owners) {
                prop_assert_eq!(prediction.visible_after(1.0), Duration::ZERO);
            }
        }
    }
}
