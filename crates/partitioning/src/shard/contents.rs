//! What a group has: the user's machine, the answers given, what is staged, and which keys were written of late.
//!
//! Invariant: what is staged for a handoff is apart from all else until it is published. The keys written of late are a hint that
//! this process keeps for itself: where it does not reach back far enough, a copy begins anew. While somebody copies from here it
//! reaches back as far as that copy needs, with each key once. The digest of what is copied is a sum over keys, brought up to date
//! with every piece and every write, so that it is at hand at the seal. A machine that was cleared is taken apart bit by bit: it is no
//! part of the state, and nobody waits for it.

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
use crate::partitioner::{Partitioner as _, Position};
use crate::split::SizeSample;

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
    /// Of all keys, where it is kept: of what is staged.
    digest: Cell<Option<u64>>,
}

/// What a key adds to a digest.
fn share(key: &[u8], state: &[u8]) -> u64 {
    xxh3_64_with_seed(state, xxh3_64_with_seed(key, 0))
}

/// What a key adds to a digest that may not be there.
fn share_of(key: &[u8], state: Option<&Bytes>) -> u64 {
    state.map_or(0, |state| share(key, state))
}

impl<M: Keyed> Portion<M> {
    pub(super) const fn of(machine: M, answers: Answers) -> Self {
        Self { machine, answers, digest: Cell::new(None) }
    }

    fn item(&self, key: &[u8]) -> Item {
        Item { key: Bytes::copy_from_slice(key), state: self.machine.state(key), answers: self.answers.of_key(key) }
    }

    /// Nothing, with a digest that is kept.
    fn empty() -> Self {
        Self { digest: Cell::new(Some(0)), ..Self::default() }
    }

    fn take(&mut self, items: Items) {
        self.answers.raise_floor(items.floor);
        for Item { key, state, answers } in items.items {
            if let Some(digest) = self.digest.get_mut() {
                let before = share_of(&key, self.machine.state(&key).as_ref());
                *digest = digest.wrapping_sub(before).wrapping_add(share_of(&key, state.as_ref()));
            }
            self.machine.set_state(&key, state.as_deref());
            self.answers.set_key(&key, answers);
        }
    }

    fn digest(&self, within: impl Fn(&[u8]) -> bool) -> u64 {
        let mut digest = 0_u64;
        self.machine.each_from(Bound::Unbounded, &mut |key, state| {
            if within(key) {
                digest = digest.wrapping_add(share(key, state));
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
    // What is not here any more, and still takes memory.
    leaving: RefCell<Vec<M>>,
}

/// Somebody copies what is here.
#[derive(Debug)]
struct Copying {
    /// What it copies.
    span: Span,
    /// It needs the keys written behind this.
    after: LogIndex,
    /// What was applied when it asked last.
    asked: LogIndex,
    /// Which keys it has read, from the first on.
    read: Read,
    /// The digest of these as they are now.
    digest: u64,
}

/// How far somebody has read, in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Read {
    Nothing,
    Through(Bytes),
    Everything,
}

impl Read {
    fn covers(&self, key: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Through(last) => key <= &last[..],
            Self::Everything => true,
        }
    }
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
            leaving: RefCell::new(Vec::new()),
        }
    }

    /// Whether there is something to [`tidy`](Self::tidy).
    pub(super) fn is_untidy(&self) -> bool {
        !self.leaving.borrow().is_empty()
    }

    /// Frees about so many keys of what was cleared.
    pub(super) fn tidy(&self, keys_max: usize) {
        let mut leaving = self.leaving.borrow_mut();
        let Some(machine) = leaving.last_mut() else { return };
        let mut keys: Vec<Bytes> = Vec::with_capacity(keys_max);
        machine.each_from(Bound::Unbounded, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            if keys.len() < keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if keys.len() < keys_max {
            leaving.pop();
        } else {
            keys.iter().for_each(|key| machine.set_state(key, None));
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
        self.copying_of(span, |it| (it.after, it.asked) = (after, self.applied));
    }

    /// What is known of who copies this, from now on if nobody has before.
    fn copying_of<T>(&self, span: &Span, run: impl FnOnce(&mut Copying) -> T) -> T {
        let mut copying = self.copying.borrow_mut();
        let new = || {
            let (span, at) = (span.clone(), self.applied);
            Copying { span, after: at, asked: at, read: Read::Nothing, digest: 0 }
        };
        let it = copying.entry(span.start.clone()).or_insert_with(new);
        if it.span != *span {
            *it = new();
        }
        run(it)
    }

    /// A piece was read: what is in it is in the digest from now on, if all before it is.
    fn has_read(&self, span: &Span, after: Option<&[u8]>, items: &[Item], through: Option<&Bytes>) {
        self.copying_of(span, |it| {
            match after {
                None => (it.read, it.digest) = (Read::Nothing, 0),
                Some(after) if matches!(&it.read, Read::Through(last) if *last == *after) => {}
                Some(_) => return,
            }
            for item in items {
                it.digest = it.digest.wrapping_add(share_of(&item.key, item.state.as_ref()));
            }
            it.read = through.map_or(Read::Everything, |key| Read::Through(key.clone()));
        });
    }

    /// Keys come or go other than by writes: digests are of what was.
    fn is_reread(&mut self) {
        self.copying.get_mut().values_mut().for_each(|it| it.read = Read::Nothing);
    }

    /// Takes what a key adds out of the digests, or puts it in.
    fn count(&mut self, key: &[u8], add: bool) {
        let copying = self.copying.get_mut();
        if copying.is_empty() {
            return;
        }
        let position = self.scheme.position(key);
        let mut share = None;
        for it in copying.values_mut().filter(|it| it.read.covers(key) && holds(&it.span, &position)) {
            let share = *share.get_or_insert_with(|| share_of(key, self.main.machine.state(key).as_ref()));
            it.digest = if add { it.digest.wrapping_add(share) } else { it.digest.wrapping_sub(share) };
        }
    }

    pub(super) fn look_up(&self, request: Request) -> Known {
        self.main.answers.look_up(request)
    }

    pub(super) fn write(&mut self, at: LogIndex, key: &[u8], request: Option<Request>, body: &[u8]) -> Bytes {
        self.count(key, false);
        let reply = self.main.machine.apply(at, body);
        self.count(key, true);
        let key = Bytes::copy_from_slice(key);
        if let Some(request) = request {
            self.main.answers.record(request, key.clone(), reply.clone());
        }
        self.remember(at, key);
        reply
    }

    fn covers(&self, span: &Span, key: &[u8]) -> bool {
        holds(span, &self.scheme.position(key))
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

    /// Keys of a span with their bytes and those of the keys since the last one, evenly taken, at most so many.
    pub(super) fn samples(&self, span: &Span, most: usize) -> Vec<SizeSample> {
        let (mut samples, mut stride, mut passed, mut bytes) = (Vec::new(), 1, 0, 0);
        self.each_from(span, Bound::Unbounded, &mut |key, state| {
            bytes += (key.len() + state.len()) as u64;
            passed += 1;
            if passed < stride {
                return ControlFlow::Continue(());
            }
            samples.push(SizeSample { position: self.scheme.position(key).to_bytes(), bytes });
            (passed, bytes) = (0, 0);
            if samples.len() == most {
                // Every other one goes, and what it stood for is the next one's.
                let kept = samples.chunks(2).map(|pair| {
                    let bytes = pair.iter().map(|sample| sample.bytes).sum();
                    SizeSample { position: pair[pair.len() - 1].position.clone(), bytes }
                });
                samples = kept.collect();
                stride *= 2;
            }
            ControlFlow::Continue(())
        });
        samples
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

fn holds(span: &Span, position: &Position<'_>) -> bool {
    position.cmp_bound(&span.start).is_ge() && span.end.as_deref().is_none_or(|end| position.cmp_bound(end).is_lt())
}

impl<M: Keyed> SourceStore for Contents<M> {
    fn piece(&self, span: &Span, after: Option<&[u8]>, bytes_max: usize) -> Piece {
        // The first one says from where on a tail will be asked for.
        let known = self.copying.borrow().get(&span.start).map(|it| it.after);
        self.copies(span, known.filter(|_| after.is_some()).unwrap_or(self.applied));
        let (items, through) = self.keys(span, after, bytes_max);
        self.has_read(span, after, &items, through.as_ref());
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
        let known = |it: &Copying| (it.read == Read::Everything).then_some(it.digest);
        if let Some(digest) = self.copying_of(span, |it| known(it)) {
            return digest;
        }
        // It was read at another leader.
        let digest = self.main.digest(|key| self.covers(span, key));
        self.copying_of(span, |it| (it.read, it.digest) = (Read::Everything, digest));
        digest
    }
}

impl<M: Keyed> TargetStore for Contents<M> {
    fn stage_anew(&mut self, handoff: HandoffId) {
        self.staged.insert(handoff, Portion::empty());
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
        self.is_reread();
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

    fn clear(&mut self) {
        let machine = core::mem::take(&mut self.main.machine);
        if machine.keys() > 0 {
            self.leaving.get_mut().push(machine);
        }
        self.main.answers.clear_keys();
        self.copying.get_mut().clear();
    }

    fn remove(&mut self, span: &Span) {
        self.is_reread();
        let mut keys: Vec<Bytes> = Vec::new();
        self.each_from(span, Bound::Unbounded, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        });
        keys.iter().for_each(|key| self.main.machine.set_state(key, None));
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
