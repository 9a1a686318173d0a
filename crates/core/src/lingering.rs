//! Storage actions that nobody waits for yet.
//!
//! A sync of a disk costs the same for one write as for many, and disks are shared. What a replica stores for its peers'
//! sake lingers until somebody waits for it: it goes out with the next action that is urgent, or when its time has come.
//! Invariant: actions leave in the order in which they came; the replica lets them go before any other action that the
//! storage must see behind them.

use core::time::Duration;

use crate::{Persist, Time, WriteId};

/// Storage actions that were given their [`WriteId`]s and have not been handed out.
#[derive(Debug, Default)]
pub struct Lingering {
    actions: Vec<(WriteId, Persist)>,
    bytes: usize,
    until: Option<Time>,
}

impl Lingering {
    /// Adds an action behind the others. The first of them decides when all have to go: `most` after `now`. `bytes` is what
    /// it holds in memory meanwhile.
    pub fn add(&mut self, id: WriteId, op: Persist, bytes: usize, now: Time, most: Duration) {
        self.actions.push((id, op));
        self.bytes += bytes;
        self.until.get_or_insert(now + most);
    }

    /// What waits, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the actions have to go; `None` when there are none.
    #[must_use]
    pub const fn until(&self) -> Option<Time> {
        self.until
    }

    /// Whether their time has come.
    #[must_use]
    pub fn is_due(&self, now: Time) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Lets all of them go, oldest first.
    pub fn release(&mut self) -> impl Iterator<Item = (WriteId, Persist)> + '_ {
        self.bytes = 0;
        self.until = None;
        self.actions.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogIndex, OriginId, StreamId};

    #[test]
    fn the_first_action_decides_when_all_go() {
        let stream = StreamId { group: crate::GroupId(1), origin: OriginId::LOCAL };
        let op = || Persist::Release { stream, before: LogIndex(1) };
        let (mut lingering, most) = (Lingering::default(), Duration::from_millis(5));
        assert_eq!(lingering.until(), None);
        let at = |ms: u64| Time::ZERO + Duration::from_millis(ms);
        lingering.add(WriteId(4), op(), 10, at(1), most);
        lingering.add(WriteId(5), op(), 7, at(3), most);
        assert_eq!((lingering.bytes(), lingering.until()), (17, Some(at(6))));
        assert!(!lingering.is_due(at(5)) && lingering.is_due(at(6)));
        assert_eq!(lingering.release().map(|(id, _)| id.0).collect::<Vec<_>>(), [4, 5]);
        assert_eq!((lingering.bytes(), lingering.until()), (0, None));
        lingering.add(WriteId(6), op(), 1, at(9), most);
        assert_eq!(lingering.until(), Some(at(14)), "what went out before counts no more");
    }
}
