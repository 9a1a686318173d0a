//! What a group has: the user's machine, the answers given, what is staged, and which keys were written of late.
//!
//! Invariant: what is staged for a handoff is apart from all else until it is published. The keys written of late are a hint that
//! this process keeps for itself: where it does not reach back far enough, a copy begins anew.

use core::ops::{Bound, ControlFlow};
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::LogIndex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::answers::{Answer, Answers, ClientId, Known, Request};
use super::{HandoffId, Keyed, Scheme, SourceStore, Span, TargetStore};
use crate::handoff::{PIECE_BYTES, Piece, TAIL_ENTRIES_MAX, Tail};
use crate::partitioner::Partitioner as _;

/// Writes that a replica remembers the keys of, for the tails of handoffs.
pub(super) const RECENT_MAX: usize = 8 << 10;

/// All about one key, as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct Item {
    key: Bytes,
    state: Option<Bytes>,
    answers: Vec<Answer>,
}

/// Items of a piece or of a tail.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Items {
    floor: ClientId,
    items: Vec<Item>,
}

/// A machine with the answers about its keys.
#[derive(Debug, Default)]
pub(super) struct Portion<M> {
    pub(super) machine: M,
    pub(super) answers: Answers,
}

impl<M: Keyed> Portion<M> {
    fn item(&self, key: &[u8]) -> Item {
        Item { key: Bytes::copy_from_slice(key), state: self.machine.state(key), answers: self.answers.of_key(key) }
    }

    fn take(&mut self, items: Items) {
        self.answers.raise_floor(items.floor);
        for Item { key, state, answers } in items.items {
            self.machine.set_state(&key, state.as_deref());
            self.answers.set_key(&key, answers);
        }
    }

    fn digest(&self, within: impl Fn(&[u8]) -> bool) -> u64 {
        let mut digest = 0_u64;
        self.machine.each_from(Bound::Unbounded, &mut |key, state| {
            if within(key) {
                digest = digest.wrapping_add(xxh3_64_with_seed(state, xxh3_64_with_seed(key, 0)));
            }
            ControlFlow::Continue(())
        });
        digest
    }
}

/// What a group has: the keys of its partitions, and the answers that were given to their clients.
#[derive(Debug)]
pub struct Contents<M> {
    pub(super) scheme: Scheme,
    pub(super) main: Portion<M>,
    pub(super) staged: BTreeMap<HandoffId, Portion<M>>,
    recent: VecDeque<(LogIndex, Bytes)>,
    // Keys written behind it are in `recent`; none before the first entry that this process has applied.
    recent_after: Option<LogIndex>,
}

impl<M: Keyed> Contents<M> {
    pub(super) fn new(scheme: Scheme) -> Self {
        Self::of(scheme, Portion::default(), BTreeMap::new())
    }

    pub(super) const fn of(scheme: Scheme, main: Portion<M>, staged: BTreeMap<HandoffId, Portion<M>>) -> Self {
        Self { scheme, main, staged, recent: VecDeque::new(), recent_after: None }
    }

    pub(super) const fn machine(&self) -> &M {
        &self.main.machine
    }

    /// An entry is about to be applied.
    pub(super) fn follow(&mut self, at: LogIndex) {
        self.recent_after.get_or_insert(at.prev());
    }

    pub(super) fn look_up(&self, request: Request) -> Known {
        self.main.answers.look_up(request)
    }

    pub(super) fn write(&mut self, at: LogIndex, key: &[u8], request: Option<Request>, body: &[u8]) -> Bytes {
        let reply = self.main.machine.apply(at, body);
        if let Some(request) = request {
            self.main.answers.record(request, key, reply.clone());
        }
        if self.recent.len() == RECENT_MAX
            && let Some((index, _)) = self.recent.pop_front()
        {
            self.recent_after = Some(index);
        }
        self.recent.push_back((at, Bytes::copy_from_slice(key)));
        reply
    }

    fn covers(&self, span: &Span, key: &[u8]) -> bool {
        let position = self.scheme.position(key);
        position.cmp_bound(&span.start).is_ge() && span.end.as_deref().is_none_or(|end| position.cmp_bound(end).is_lt())
    }

    /// Calls `visit` for the keys in a span of positions, ascending, from a key on.
    pub(super) fn each_from(
        &self,
        span: &Span,
        from: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) {
        // Where the order of keys is that of positions, keys outside are not walked over.
        let in_order = matches!(self.scheme, Scheme::KeyOrder(_));
        let from = match from {
            Bound::Unbounded if in_order => Bound::Included(&span.start[..]),
            Bound::Included(key) | Bound::Excluded(key) if in_order && *key < *span.start => {
                Bound::Included(&span.start[..])
            }
            other => other,
        };
        self.main.machine.each_from(from, &mut |key, state| {
            if self.covers(span, key) {
                visit(key, state)
            } else if in_order {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
    }

    /// Keys and bytes in a span.
    pub(super) fn size(&self, span: &Span) -> (u64, u64) {
        let (mut keys, mut bytes) = (0, 0);
        self.each_from(span, Bound::Unbounded, &mut |key, state| {
            keys += 1;
            bytes += (key.len() + state.len()) as u64;
            ControlFlow::Continue(())
        });
        (keys, bytes)
    }

    fn encode(&self, items: Vec<Item>) -> Bytes {
        let items = Items { floor: self.main.answers.floor(), items };
        postcard::to_stdvec(&items).expect("items always encode").into()
    }

    /// The keys of a span that anything is known of, behind one.
    fn keys(&self, span: &Span, after: Option<&[u8]>, bytes_max: usize) -> (Vec<Item>, Option<Bytes>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut answered = self.main.answers.keys_from(from).filter(|key| self.covers(span, key)).peekable();
        let (mut items, mut bytes, mut is_full) = (Vec::new(), 0, false);
        // The machine must not be asked while it is walked over: what is known of a key comes with it.
        let mut push = |key: &[u8], state: Option<&Bytes>| {
            let answers = self.main.answers.of_key(key);
            bytes += key.len() + state.map_or(0, Bytes::len) + 16;
            bytes += answers.iter().map(|it| it.reply.len() + 16).sum::<usize>();
            items.push(Item { key: Bytes::copy_from_slice(key), state: state.cloned(), answers });
            bytes >= bytes_max
        };
        self.each_from(span, from, &mut |key, state| {
            while !is_full && let Some(other) = answered.next_if(|other| **other < *key) {
                is_full = push(other, None);
            }
            if is_full {
                return ControlFlow::Break(());
            }
            answered.next_if(|other| **other == *key);
            is_full = push(key, Some(state));
            ControlFlow::Continue(())
        });
        while !is_full && let Some(other) = answered.next() {
            is_full = push(other, None);
        }
        let through = if is_full { items.last().map(|item| item.key.clone()) } else { None };
        (items, through)
    }
}

impl<M: Keyed> SourceStore for Contents<M> {
    fn piece(&self, span: &Span, after: Option<&[u8]>, bytes_max: usize) -> Piece {
        let (items, through) = self.keys(span, after, bytes_max);
        Piece { items: self.encode(items), through }
    }

    fn tail(&self, span: &Span, after: LogIndex, to: LogIndex) -> Option<Tail> {
        if self.recent_after.is_none_or(|known| after < known) {
            return None;
        }
        let first = self.recent.partition_point(|(index, _)| *index <= after);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (index, key) in self.recent.range(first..).take_while(|(index, _)| *index <= to) {
            if !self.covers(span, key) {
                continue;
            }
            // Each as it is now, which may be newer: then it comes again, or the seal has been reached.
            let entry = self.encode(vec![self.main.item(key)]);
            bytes += entry.len();
            entries.push(entry);
            if entries.len() == TAIL_ENTRIES_MAX || bytes >= PIECE_BYTES {
                return Some(Tail { entries, to: *index });
            }
        }
        Some(Tail { entries, to })
    }

    fn digest(&self, span: &Span) -> u64 {
        self.main.digest(|key| self.covers(span, key))
    }
}

impl<M: Keyed> TargetStore for Contents<M> {
    fn stage_anew(&mut self, handoff: HandoffId) {
        self.staged.insert(handoff, Portion::default());
    }

    fn stage_entry(&mut self, handoff: HandoffId, entry: &[u8]) {
        // Bytes of our own making; what cannot be read is found by the digest.
        if let (Some(portion), Ok(items)) = (self.staged.get_mut(&handoff), postcard::from_bytes(entry)) {
            portion.take(items);
        }
    }

    fn staged_digest(&self, handoff: HandoffId) -> u64 {
        self.staged.get(&handoff).map_or(0, |portion| portion.digest(|_| true))
    }

    fn publish(&mut self, handoff: HandoffId) {
        let Some(portion) = self.staged.remove(&handoff) else { return };
        let mut keys: Vec<Bytes> = portion.answers.keys_from(Bound::Unbounded).cloned().collect();
        portion.machine.each_from(Bound::Unbounded, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        });
        let items = keys.iter().map(|key| portion.item(key)).collect();
        self.main.take(Items { floor: portion.answers.floor(), items });
    }

    fn discard(&mut self, handoff: HandoffId) {
        self.staged.remove(&handoff);
    }

    fn remove(&mut self, span: &Span) {
        let (items, _) = self.keys(span, None, usize::MAX);
        for item in items {
            self.main.machine.set_state(&item.key, None);
            self.main.answers.set_key(&item.key, Vec::new());
        }
    }
}
