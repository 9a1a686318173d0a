//! What a group has: the user's machine, the answers given, what is staged, and which keys were written of late.
//!
//! Invariant: what is staged for a handoff is apart from all else until it is published. The keys written of late are a hint that
//! this process keeps for itself: where it does not reach back far enough, a copy begins anew. While somebody copies from here it
//! reaches back as far as that copy needs, with each key once.

use core::cell::{Cell, RefCell};
use core::ops::{Bound, ControlFlow};
use std::collections::{BTreeMap, HashSet, VecDeque};

use bytes::Bytes;
use replikit_core::LogIndex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::answers::{Answer, Answers, ClientId, Known, Request};
use super::{HandoffId, Keyed, Scheme, SourceStore, Span, TargetStore};
use crate::handoff::{Piece, TAIL_BYTES, TAIL_ENTRIES_MAX, Tail};
use crate::partitioner::Partitioner as _;

/// Writes that a replica remembers the keys of, for the tails of handoffs.
pub(super) const RECENT_MAX: usize = 8 << 10;
/// A copy that has asked for nothing while so many entries were applied is over.
const COPYING_ENTRIES_MAX: u64 = 1 << 20;
/// More writes than these are not remembered for anybody: the copy begins anew.
const RECENT_COPYING_MAX: usize = 4 << 20;

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
    /// Of all keys, once it was asked for; none after a change.
    digest: Cell<Option<u64>>,
}

impl<M: Keyed> Portion<M> {
    pub(super) const fn of(machine: M, answers: Answers) -> Self {
        Self { machine, answers, digest: Cell::new(None) }
    }

    fn item(&self, key: &[u8]) -> Item {
        Item { key: Bytes::copy_from_slice(key), state: self.machine.state(key), answers: self.answers.of_key(key) }
    }

    fn take(&mut self, items: Items) {
        self.digest.set(None);
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
    applied: LogIndex,
    // By where the span begins that is copied.
    copying: RefCell<BTreeMap<Bytes, Copying>>,
    // Of each key only the newest is kept, once there are so many.
    thinned_at: usize,
}

/// Somebody copies what is here.
#[derive(Clone, Copy, Debug)]
struct Copying {
    /// It needs the keys written behind this.
    after: LogIndex,
    /// What was applied when it asked last.
    asked: LogIndex,
}

impl<M: Keyed> Contents<M> {
    pub(super) fn new(scheme: Scheme) -> Self {
        Self::of(scheme, Portion::default(), BTreeMap::new())
    }

    pub(super) const fn of(scheme: Scheme, main: Portion<M>, staged: BTreeMap<HandoffId, Portion<M>>) -> Self {
        Self {
            scheme,
            main,
            staged,
            recent: VecDeque::new(),
            recent_after: None,
            applied: LogIndex(0),
            copying: RefCell::new(BTreeMap::new()),
            thinned_at: 2 * RECENT_MAX,
        }
    }

    pub(super) const fn machine(&self) -> &M {
        &self.main.machine
    }

    /// An entry is about to be applied.
    pub(super) fn follow(&mut self, at: LogIndex) {
        self.recent_after.get_or_insert(at.prev());
        self.applied = at;
    }

    /// Remembers that a key was written. Without a copy under way the oldest go; with one, those that it needs stay, but of each
    /// key the newest write only: an entry of a tail shows the key as it is.
    fn remember(&mut self, at: LogIndex, key: Bytes) {
        self.recent.push_back((at, key));
        if self.recent.len() <= RECENT_MAX {
            return;
        }
        let copying = self.copying.get_mut();
        copying.retain(|_, it| at.0 - it.asked.0 <= COPYING_ENTRIES_MAX);
        if self.recent.len() > RECENT_COPYING_MAX {
            copying.clear();
        }
        if copying.is_empty() {
            self.main.answers.forget_index();
        }
        let after = copying.values().map(|it| it.after).min().unwrap_or(at);
        while self.recent.len() > RECENT_MAX
            && let Some((index, _)) = self.recent.pop_front_if(|(index, _)| *index <= after)
        {
            self.recent_after = Some(index);
        }
        if self.recent.len() > self.thinned_at {
            let mut seen = HashSet::with_capacity(self.recent.len());
            let mut newest = VecDeque::with_capacity(self.recent.len());
            while let Some((index, key)) = self.recent.pop_back() {
                if seen.insert(key.clone()) {
                    newest.push_front((index, key));
                }
            }
            // So each write pays for looking at a few.
            self.thinned_at = 2 * newest.len().max(RECENT_MAX);
            self.recent = newest;
        }
    }

    /// Somebody copies from here, and has everything up to `after`.
    fn copies(&self, span: &Span, after: LogIndex) {
        self.copying.borrow_mut().insert(span.start.clone(), Copying { after, asked: self.applied });
    }

    pub(super) fn look_up(&self, request: Request) -> Known {
        self.main.answers.look_up(request)
    }

    pub(super) fn write(&mut self, at: LogIndex, key: &[u8], request: Option<Request>, body: &[u8]) -> Bytes {
        let reply = self.main.machine.apply(at, body);
        let key = Bytes::copy_from_slice(key);
        if let Some(request) = request {
            self.main.answers.record(request, key.clone(), reply.clone());
        }
        self.remember(at, key);
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
            while !is_full && let Some(other) = answered.next_if(|other| other[..] < *key) {
                is_full = push(&other, None);
            }
            if is_full {
                return ControlFlow::Break(());
            }
            answered.next_if(|other| other[..] == *key);
            is_full = push(key, Some(state));
            ControlFlow::Continue(())
        });
        while !is_full && let Some(other) = answered.next() {
            is_full = push(&other, None);
        }
        let through = if is_full { items.last().map(|item| item.key.clone()) } else { None };
        (items, through)
    }
}

impl<M: Keyed> SourceStore for Contents<M> {
    fn piece(&self, span: &Span, after: Option<&[u8]>, bytes_max: usize) -> Piece {
        // The first one says from where on a tail will be asked for.
        let known = self.copying.borrow().get(&span.start).map(|it| it.after);
        self.copies(span, known.filter(|_| after.is_some()).unwrap_or(self.applied));
        let (items, through) = self.keys(span, after, bytes_max);
        Piece { items: self.encode(items), through }
    }

    fn tail(&self, span: &Span, after: LogIndex, to: LogIndex) -> Option<Tail> {
        if self.recent_after.is_none_or(|known| after < known) {
            return None;
        }
        self.copies(span, after);
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
            if entries.len() == TAIL_ENTRIES_MAX || bytes >= TAIL_BYTES {
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
        let Some(portion) = self.staged.get(&handoff) else { return 0 };
        let digest = portion.digest.get().unwrap_or_else(|| portion.digest(|_| true));
        portion.digest.set(Some(digest));
        digest
    }

    fn publish(&mut self, handoff: HandoffId) {
        let Some(Portion { machine, answers, .. }) = self.staged.remove(&handoff) else { return };
        let main = &mut self.main.machine;
        if main.keys() == 0 {
            *main = machine;
        } else {
            machine.each_from(Bound::Unbounded, &mut |key, state| {
                main.set_state(key, Some(state));
                ControlFlow::Continue(())
            });
        }
        self.main.answers.join(&answers);
    }

    fn discard(&mut self, handoff: HandoffId) {
        self.staged.remove(&handoff);
    }

    fn remove(&mut self, span: &Span) {
        let mut keys: Vec<Bytes> = Vec::new();
        self.each_from(span, Bound::Unbounded, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        });
        if keys.len() == self.main.machine.keys() {
            // Nothing else is here: no key is looked for.
            self.main.machine = M::default();
        } else {
            keys.iter().for_each(|key| self.main.machine.set_state(key, None));
        }
        let answered = self.main.answers.keys_from(Bound::Unbounded).filter(|key| self.covers(span, key));
        for key in answered.collect::<Vec<_>>() {
            self.main.answers.set_key(&key, Vec::new());
        }
        self.copying.get_mut().remove(&span.start);
        if self.copying.get_mut().is_empty() {
            self.main.answers.forget_index();
        }
    }
}
