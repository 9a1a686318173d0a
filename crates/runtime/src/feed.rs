//! Change data capture at a node: who follows the changes of a group, and how far each has got.
//!
//! Invariants: only what the replica has committed and applied, and what is durable here, is handed out; whole batches, in log
//! order, each once. What waits for a subscriber is limited: one that is slower stays where it is in the log, which holds back
//! compaction for it as far as its retention goes, and then it is told that it lags.

use std::collections::BTreeMap;
use std::time::Duration;

use replikit_core::{Batches, Cursor, GroupId, LogIndex, Queue, Rejection, Replica, StreamId, SubscribeError, Time};
use replikit_log::{MemoryLog, Tail};

/// One subscription at a node; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FeedId(pub(crate) u64);

/// Where changes go.
pub(crate) trait Subscriber {
    /// Nobody is there any more.
    fn is_gone(&self) -> bool;
    /// Whether it takes more.
    fn has_room(&self) -> bool;
    /// It follows from this index on.
    fn begin(&self, next: LogIndex);
    /// Takes what was committed.
    fn give(&self, batches: Batches);
    /// It follows no more.
    fn end(&self, why: SubscribeError);
}

/// Where changes come from.
pub(crate) trait Tailed {
    /// A cursor begins: compaction is held back for it.
    fn follow(&mut self, feed: FeedId, stream: StreamId, from: LogIndex);
    /// A cursor ends.
    fn unfollow(&mut self, feed: FeedId);
    /// What lies at an index, up to and including `committed`. `None`: the answer comes later, to [`Feeds::tailed`].
    fn tail(
        &mut self,
        feed: FeedId,
        stream: StreamId,
        from: LogIndex,
        committed: LogIndex,
        bytes_max: u32,
    ) -> Option<Tail>;
}

impl Tailed for MemoryLog {
    fn follow(&mut self, _feed: FeedId, _stream: StreamId, _from: LogIndex) {}

    fn unfollow(&mut self, _feed: FeedId) {}

    fn tail(
        &mut self,
        _feed: FeedId,
        stream: StreamId,
        from: LogIndex,
        committed: LogIndex,
        bytes_max: u32,
    ) -> Option<Tail> {
        Some(Self::tail(self, stream, from, committed, bytes_max))
    }
}

/// Reads for one subscriber in one go; then the others and the replica get their turn.
const READS_PER_ROUND_MAX: u32 = 8;
/// Committed entries that are not durable here yet are asked for again with the next watermark, or after this time.
const RETRY_AFTER: Duration = Duration::from_millis(10);

struct Feed<S> {
    group: GroupId,
    stream: StreamId,
    next: LogIndex,
    /// It began at the oldest change that is kept, whichever that is.
    from_oldest: bool,
    /// A read of the log is under way.
    reading: bool,
    /// The last read found nothing: not before this time again, or before the log's next watermark.
    retry_at: Option<Time>,
    subscriber: S,
}

impl<S: Subscriber> Feed<S> {
    /// Takes what a read found; whether the feed goes on.
    fn take(&mut self, tail: Tail, now: Time) -> bool {
        self.reading = false;
        match tail {
            Tail::Batches(batches) => match batches.as_slice().last() {
                Some(last) => {
                    self.from_oldest = false;
                    self.next = last.last().index.next();
                    self.subscriber.give(batches);
                }
                None => self.retry_at = Some(now + RETRY_AFTER),
            },
            Tail::Lagged { first } if self.from_oldest && first > self.next => self.next = first,
            Tail::Lagged { first } => {
                self.subscriber.end(SubscribeError::Lagged { first });
                return false;
            }
            Tail::Faulty(range) => {
                self.subscriber.end(SubscribeError::Faulty { first: *range.start(), last: *range.end() });
                return false;
            }
        }
        true
    }
}

/// All subscriptions of one replica.
pub(crate) struct Feeds<S> {
    feeds: BTreeMap<FeedId, Feed<S>>,
    last: FeedId,
    subscriptions_max: usize,
    read_bytes_max: u32,
}

impl<S: Subscriber> Feeds<S> {
    pub(crate) fn new(subscriptions_max: usize, subscription_bytes_max: usize) -> Self {
        // A subscriber has room while half of its limit is free: a read fills at most the other half.
        let read_bytes_max = u32::try_from(subscription_bytes_max / 2).unwrap_or(u32::MAX);
        Self { feeds: BTreeMap::new(), last: FeedId(0), subscriptions_max, read_bytes_max }
    }

    pub(crate) fn add(
        &mut self,
        replica: &impl Replica,
        group: GroupId,
        from: Cursor,
        subscriber: S,
        log: &mut impl Tailed,
    ) {
        let Some(committed) = replica.committed(group) else {
            return subscriber.end(Rejection::Unsupported.into());
        };
        if self.feeds.len() >= self.subscriptions_max {
            let limit = self.subscriptions_max as u64;
            return subscriber.end(Rejection::Busy { queue: Queue::Subscriptions, limit }.into());
        }
        let next = match from {
            Cursor::Oldest => LogIndex(1),
            // From outside: any number may stand there.
            Cursor::After(index) => LogIndex(index.0.saturating_add(1)),
            Cursor::Newest => committed.next(),
        };
        self.last.0 += 1;
        let (stream, from_oldest) = (StreamId::consensus(group), from == Cursor::Oldest);
        log.follow(self.last, stream, next);
        subscriber.begin(next);
        let feed = Feed { group, stream, next, from_oldest, reading: false, retry_at: None, subscriber };
        self.feeds.insert(self.last, feed);
    }

    /// More may be durable than before.
    pub(crate) fn durable(&mut self) {
        for feed in self.feeds.values_mut() {
            feed.retry_at = None;
        }
    }

    /// The answer to [`Tailed::tail`].
    pub(crate) fn tailed(&mut self, id: FeedId, tail: Tail, now: Time, log: &mut impl Tailed) {
        if let Some(feed) = self.feeds.get_mut(&id)
            && !feed.take(tail, now)
        {
            self.feeds.remove(&id);
            log.unfollow(id);
        }
    }

    /// Hands out what is committed, to those that have room; whether somebody with room could take more at once.
    pub(crate) fn pump(&mut self, replica: &impl Replica, now: Time, log: &mut impl Tailed) -> bool {
        let read_bytes_max = self.read_bytes_max;
        let mut more = false;
        self.feeds.retain(|&id, feed| {
            let mut goes_on = !feed.subscriber.is_gone();
            let mut reads = 0;
            while goes_on && feed.retry_at.is_none_or(|at| at <= now) && !feed.reading {
                let committed = replica.committed(feed.group).unwrap_or_default();
                if feed.next > committed || !feed.subscriber.has_room() {
                    break;
                }
                if reads == READS_PER_ROUND_MAX {
                    more = true;
                    break;
                }
                reads += 1;
                feed.reading = true;
                if let Some(tail) = log.tail(id, feed.stream, feed.next, committed, read_bytes_max) {
                    goes_on = feed.take(tail, now);
                }
            }
            if !goes_on {
                log.unfollow(id);
            }
            goes_on
        });
        more
    }

    /// The replica is gone.
    pub(crate) fn close(&mut self) {
        for feed in std::mem::take(&mut self.feeds).into_values() {
            feed.subscriber.end(SubscribeError::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use replikit_core::{
        Action, Batch, BatchKind, BatchMeta, ClusterId, HybridTimestamp, Input, Now, Persist, Term, WriteId,
    };
    use replikit_log::Storage;

    use super::*;

    const GROUP: GroupId = GroupId(1);
    const STREAM: StreamId = StreamId::consensus(GROUP);

    /// A replica that has committed so far.
    struct Committed(LogIndex);

    impl Replica for Committed {
        type Head = ();

        fn handle(&mut self, _now: Now, _input: Input<()>) {}

        fn poll(&mut self) -> Option<Action<()>> {
            None
        }

        fn deadline(&self) -> Option<Time> {
            None
        }

        fn committed(&self, group: GroupId) -> Option<LogIndex> {
            (group == GROUP).then_some(self.0)
        }
    }

    #[derive(Clone, Default)]
    struct Collected {
        taken: Rc<RefCell<Vec<u64>>>,
        full: Rc<Cell<bool>>,
        ended: Rc<RefCell<Option<SubscribeError>>>,
    }

    impl Subscriber for Collected {
        fn is_gone(&self) -> bool {
            false
        }

        fn has_room(&self) -> bool {
            !self.full.get()
        }

        fn begin(&self, _next: LogIndex) {}

        fn give(&self, batches: Batches) {
            self.taken.borrow_mut().extend(batches.into_iter().map(|batch| batch.base().0));
        }

        fn end(&self, why: SubscribeError) {
            *self.ended.borrow_mut() = Some(why);
        }
    }

    fn log(batches: u64) -> MemoryLog {
        let mut log = MemoryLog::new();
        for base in 1..=batches {
            let meta = BatchMeta {
                cluster: ClusterId::from_name("test"),
                stream: STREAM,
                base: LogIndex(base),
                term: Term(1),
                prev_digest: 0,
                time: HybridTimestamp(0),
                kind: BatchKind::Commands,
            };
            let batch = Batch::build(&meta, std::iter::once((&b"x"[..], None)));
            log.persist(WriteId(base), Persist::Append { batch, replace: false });
        }
        log
    }

    fn feeds(from: Cursor, replica: &Committed, log: &mut MemoryLog) -> (Feeds<Collected>, Collected) {
        let (mut feeds, subscriber) = (Feeds::new(8, 4096), Collected::default());
        feeds.add(replica, GROUP, from, subscriber.clone(), log);
        (feeds, subscriber)
    }

    #[test]
    fn nothing_beyond_the_commit_index_is_handed_out() {
        let (mut replica, mut log) = (Committed(LogIndex(2)), log(5));
        let (mut feeds, subscriber) = feeds(Cursor::Oldest, &replica, &mut log);
        assert!(!feeds.pump(&replica, Time::ZERO, &mut log));
        assert_eq!(*subscriber.taken.borrow(), [1, 2]);
        replica.0 = LogIndex(4);
        assert!(!feeds.pump(&replica, Time::ZERO, &mut log));
        assert_eq!(*subscriber.taken.borrow(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_subscriber_without_room_is_read_for_no_further_until_the_log_has_left_it_behind() {
        let (mut replica, mut log) = (Committed(LogIndex(1)), log(5));
        let (mut feeds, subscriber) = feeds(Cursor::Newest, &replica, &mut log);
        replica.0 = LogIndex(5);
        subscriber.full.set(true);
        feeds.pump(&replica, Time::ZERO, &mut log);
        assert!(subscriber.taken.borrow().is_empty());
        log.persist(WriteId(6), Persist::Release { stream: STREAM, before: LogIndex(4) });
        subscriber.full.set(false);
        feeds.pump(&replica, Time::ZERO, &mut log);
        assert_eq!(*subscriber.ended.borrow(), Some(SubscribeError::Lagged { first: LogIndex(4) }));
        assert!(subscriber.taken.borrow().is_empty());
    }

    #[test]
    fn the_oldest_change_is_the_first_that_the_log_still_has() {
        let (replica, mut log) = (Committed(LogIndex(5)), log(5));
        log.persist(WriteId(6), Persist::Release { stream: STREAM, before: LogIndex(4) });
        let (mut feeds, subscriber) = feeds(Cursor::Oldest, &replica, &mut log);
        feeds.pump(&replica, Time::ZERO, &mut log);
        assert_eq!(*subscriber.taken.borrow(), [4, 5]);
    }

    #[test]
    fn one_reader_of_a_long_log_does_not_keep_the_loop_for_itself() {
        let (replica, mut log) = (Committed(LogIndex(1000)), log(1000));
        let (mut feeds, subscriber) = feeds(Cursor::Oldest, &replica, &mut log);
        assert!(feeds.pump(&replica, Time::ZERO, &mut log), "there is more");
        assert!(subscriber.taken.borrow().len() < 1000);
        while feeds.pump(&replica, Time::ZERO, &mut log) {}
        assert_eq!(*subscriber.taken.borrow(), (1..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_committed_and_not_durable_here_is_asked_for_again() {
        let (replica, mut log) = (Committed(LogIndex(5)), log(3));
        let (mut feeds, subscriber) = feeds(Cursor::After(LogIndex(3)), &replica, &mut log);
        feeds.pump(&replica, Time::ZERO, &mut log);
        let mut log = self::log(5);
        feeds.pump(&replica, Time::ZERO, &mut log);
        assert!(subscriber.taken.borrow().is_empty(), "not in every round");
        feeds.pump(&replica, Time::ZERO + RETRY_AFTER, &mut log);
        assert_eq!(*subscriber.taken.borrow(), [4, 5]);
    }
}
