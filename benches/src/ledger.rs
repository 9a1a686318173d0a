//! What was acknowledged, and hence what a read must show.
//!
//! Invariants: a verdict of [`Verdict::Stale`] or [`Verdict::Missing`] is a proof, never a guess. Each write has a serial
//! number that its value carries. A write that ended before another acknowledged write of the same key began is *superseded*;
//! a linearizable read that begins after the acknowledgement must not show it. Begins are noted before the request is sent
//! and ends after its answer came, so measuring errs towards silence. Writes of unknown outcome never count as ended.
//!
//! Source: Herlihy and Wing 1990; per key, registers with unique values are checked in linear time.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use crate::workload::VALUE_BYTES_MIN;

/// Most writes that one ledger keeps, to bound its memory (8 B each).
pub const LEDGER_WRITES_MAX: usize = 1 << 27;

/// Nanoseconds since the ledger was opened; 0 means never.
pub type Nanos = u64;

/// A write that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    serial: u64,
    key: u32,
    start: Nanos,
}

/// What a read is judged by: taken before the read begins.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    key: u32,
    /// Begin of the latest acknowledged write, and when it was acknowledged; 0 when there was none.
    floor: Floor,
}

impl Expectation {
    /// Which key.
    #[must_use]
    pub const fn key(&self) -> u32 {
        self.key
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    start: Nanos,
    acked: Nanos,
}

/// What a value says about the read that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Fresh,
    /// A newer write had been acknowledged this long before the read began, at least.
    Stale {
        /// A lower bound.
        age: Nanos,
    },
    /// No value, though a write had been acknowledged.
    Missing,
    /// Not a value that was ever written to this key.
    Foreign,
}

/// Where the time comes from.
#[derive(Debug)]
enum Clock {
    Real(Instant),
    Virtual(Cell<Nanos>),
}

/// All writes of one engine's life.
#[derive(Debug)]
pub struct Ledger {
    clock: Clock,
    /// When each write was acknowledged, by serial number; 0 while it was not.
    ends: RefCell<Vec<Nanos>>,
    floors: Vec<Cell<Floor>>,
    filler: Bytes,
}

impl Ledger {
    /// A ledger over so many keys, for values of at most `value_bytes_max`.
    #[must_use]
    pub fn new(keys: u32, value_bytes_max: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        Self {
            clock: Clock::Real(Instant::now()),
            ends: RefCell::new(Vec::new()),
            floors: (0..keys).map(|_| Cell::default()).collect(),
            filler: (VALUE_BYTES_MIN..value_bytes_max).map(|_| rng.u8(..)).collect(),
        }
    }

    /// The time on the ledger's clock; never 0.
    #[must_use]
    pub fn now(&self) -> Nanos {
        match &self.clock {
            Clock::Real(opened) => u64::try_from(opened.elapsed().as_nanos()).unwrap_or(u64::MAX) + 1,
            Clock::Virtual(now) => now.get() + 1,
        }
    }

    /// A ledger whose time is told by [`Ledger::set_now`].
    #[must_use]
    pub fn in_virtual_time(keys: u32, value_bytes_max: usize) -> Self {
        Self { clock: Clock::Virtual(Cell::new(0)), ..Self::new(keys, value_bytes_max) }
    }

    /// Virtual time has come so far; it does not go back. Nothing happens where time is real.
    pub fn set_now(&self, now: Nanos) {
        if let Clock::Virtual(known) = &self.clock {
            known.set(known.get().max(now));
        }
    }

    /// Begins a write: its identity, and the value to send, which has the size asked for within the ledger's bounds. `None`
    /// when the ledger is full.
    pub fn begin(&self, key: u32, value_bytes: usize) -> Option<(Begun, Bytes)> {
        let mut ends = self.ends.borrow_mut();
        if ends.len() == LEDGER_WRITES_MAX {
            return None;
        }
        let serial = ends.len() as u64;
        ends.push(0);
        let filler = &self.filler[..value_bytes.saturating_sub(VALUE_BYTES_MIN).min(self.filler.len())];
        let mut value = BytesMut::with_capacity(VALUE_BYTES_MIN + filler.len());
        value.put_u64_le(serial);
        value.put_u64_le(u64::from(key));
        value.put_slice(filler);
        Some((Begun { serial, key, start: self.now() }, value.freeze()))
    }

    /// The write was acknowledged.
    pub fn acked(&self, begun: Begun) {
        let now = self.now();
        self.ends.borrow_mut()[begun.serial as usize] = now;
        let floor = &self.floors[begun.key as usize];
        if floor.get().start < begun.start {
            floor.set(Floor { start: begun.start, acked: now });
        }
    }

    /// What a read of this key that begins now must show.
    #[must_use]
    pub fn expect(&self, key: u32) -> Expectation {
        Expectation { key, floor: self.floors[key as usize].get() }
    }

    /// What a read that begins after the acknowledgement of this very write must show.
    #[must_use]
    pub fn expect_at_least(&self, begun: Begun) -> Expectation {
        let acked = self.ends.borrow()[begun.serial as usize];
        Expectation { key: begun.key, floor: Floor { start: begun.start, acked } }
    }

    /// Judges what a read returned.
    #[must_use]
    pub fn judge(&self, expectation: Expectation, began: Nanos, value: Option<&[u8]>) -> Verdict {
        let Expectation { key, floor } = expectation;
        let Some(value) = value else {
            return if floor.start == 0 { Verdict::Fresh } else { Verdict::Missing };
        };
        let Some(serial) = identity(value, key) else { return Verdict::Foreign };
        match self.ends.borrow().get(serial as usize) {
            None => Verdict::Foreign,
            Some(&end) if end != 0 && end < floor.start => Verdict::Stale { age: began.saturating_sub(floor.acked) },
            Some(_) => Verdict::Fresh,
        }
    }

    /// The keys that have an acknowledged write, ascending.
    pub fn acked_keys(&self) -> impl Iterator<Item = u32> + '_ {
        self.floors.iter().enumerate().filter(|(_, floor)| floor.get().start != 0).map(|(key, _)| key as u32)
    }

    /// Number of acknowledged writes.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.ends.borrow().iter().filter(|end| **end != 0).count()
    }

    /// Forgets what was acknowledged: its loss was found and counted, or is permitted and was noted.
    pub fn forgive(&self, key: u32) {
        self.floors[key as usize].set(Floor::default());
    }
}

/// The serial number in a value, if it is one of this key.
fn identity(value: &[u8], key: u32) -> Option<u64> {
    let (serial, rest) = value.split_first_chunk::<8>()?;
    let (written_to, _) = rest.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*written_to) == u64::from(key)).then(|| u64::from_le_bytes(*serial))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ledger: &Ledger, key: u32) -> (Begun, Bytes) {
        ledger.begin(key, 64).expect("the ledger has room")
    }

    #[test]
    fn a_superseded_value_is_stale_and_a_concurrent_one_is_not() {
        let ledger = Ledger::new(4, 64);
        let (first, first_value) = write(&ledger, 2);
        ledger.acked(first);
        let (second, second_value) = write(&ledger, 2);
        let (third, third_value) = write(&ledger, 2);
        ledger.acked(third);
        ledger.acked(second);
        let expectation = ledger.expect(2);
        let judge = |value: &Bytes| ledger.judge(expectation, ledger.now(), Some(value));
        assert!(matches!(judge(&first_value), Verdict::Stale { age } if age > 0));
        assert_eq!(judge(&second_value), Verdict::Fresh, "it overlapped the third");
        assert_eq!(judge(&third_value), Verdict::Fresh);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_show_or_not() {
        let ledger = Ledger::new(1, 16);
        let (unknown, unknown_value) = write(&ledger, 0);
        let (known, known_value) = write(&ledger, 0);
        ledger.acked(known);
        let expectation = ledger.expect(0);
        for value in [&unknown_value, &known_value] {
            assert_eq!(ledger.judge(expectation, ledger.now(), Some(value)), Verdict::Fresh);
        }
        assert_eq!(unknown.serial, 0);
    }

    #[test]
    fn a_lost_key_is_missing_only_if_it_was_acknowledged() {
        let ledger = Ledger::new(2, 16);
        let (begun, _) = write(&ledger, 0);
        assert_eq!(ledger.judge(ledger.expect(0), ledger.now(), None), Verdict::Fresh);
        ledger.acked(begun);
        assert_eq!(ledger.judge(ledger.expect(0), ledger.now(), None), Verdict::Missing);
        assert_eq!(ledger.acked_keys().collect::<Vec<_>>(), [0]);
        ledger.forgive(0);
        assert_eq!(ledger.judge(ledger.expect(0), ledger.now(), None), Verdict::Fresh);
    }

    #[test]
    fn a_value_of_another_key_is_foreign() {
        let ledger = Ledger::new(2, 16);
        let (begun, value) = write(&ledger, 0);
        ledger.acked(begun);
        assert_eq!(ledger.judge(ledger.expect(1), ledger.now(), Some(&value)), Verdict::Foreign);
        assert_eq!(ledger.judge(ledger.expect(0), ledger.now(), Some(b"short")), Verdict::Foreign);
        let never_written = [[9; 8], [0; 8]].concat();
        assert_eq!(ledger.judge(ledger.expect(0), ledger.now(), Some(&never_written)), Verdict::Foreign);
    }
}
