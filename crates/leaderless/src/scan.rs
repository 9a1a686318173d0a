//! Pages at several owners: each lists what it has from a key on, and the lists are joined key by key.
//!
//! Invariants: a page ends where the first of the lists does that were cut off, so nothing behind any of them is left out, and the
//! next page begins there. An owner that does not list a key says that it has nothing of it, by all that it has seen: so every key
//! of the page is what a read of that key alone would have joined from these owners, and what they have to be told is the same.
//! A key that no policy shows takes part in the join, and is not in the page.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use replikit_core::keyspace::encode_page;
use replikit_core::{Epoch, KEY_BYTES_MAX, NodeId, Now, Page, VersionVector, WriteId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::config::Keyspaces;
use crate::content::{Content, Found, KeyCopy, Known, Stored};
use crate::message::Head;
use crate::reads::Reply;
use crate::replica::{Leaderless, Standing};

/// Keys that show nothing, of one list.
const HIDDEN_MAX: usize = 1024;

/// Which keys are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageWanted {
    /// From this one on.
    pub(crate) from: Bytes,
    /// Up to before this one.
    pub(crate) to: Option<Bytes>,
    /// So many that show something.
    pub(crate) limit: u32,
    /// About so many bytes.
    pub(crate) bytes_max: u64,
}

/// A question of a coordinator for a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchPage {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Which read of the coordinator's present life.
    pub(crate) read: u64,
    wanted: PageWanted,
    /// What the coordinator has, in short: an owner that has the same need not send it.
    digest: u64,
}

/// An owner's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedPage {
    read: u64,
    answer: PageAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PageAnswer {
    /// The same as the coordinator, by what the owner has applied.
    Same(VersionVector),
    /// Something else: these keys, ascending, and where the rest begins.
    Other { base: VersionVector, keys: Vec<(Bytes, Stored)>, next: Option<Bytes> },
    /// It may have forgotten something, and cannot be counted.
    CatchingUp,
}

/// What some keys are, by all that a coordinator has heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPage {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    read: u64,
    base: VersionVector,
    keys: Vec<(Bytes, Stored)>,
}

/// What one owner has from a key on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    pub(crate) base: VersionVector,
    pub(crate) keys: BTreeMap<Bytes, Content>,
    /// The first key that is not in it; `None` when there is none.
    pub(crate) next: Option<Bytes>,
}

impl Copies {
    /// What a key is, or else `nothing`.
    fn of<'a>(&'a self, key: &Bytes, nothing: &'a Content) -> &'a Content {
        self.keys.get(key).unwrap_or(nothing)
    }

    /// Equal for owners that have the same versions of the same keys, and have seen the same of each above their vectors.
    fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.write_usize(bytes.len());
            hash.write(bytes);
        };
        for (key, content) in &self.keys {
            part(key);
            part(&content.digest().to_le_bytes());
            part(&content.above().map(|above| above.to_token()).unwrap_or_default());
        }
        part(self.next.as_deref().unwrap_or_default());
        hash.finish()
    }
}

/// All lists together.
#[derive(Debug)]
struct Joined {
    base: VersionVector,
    keys: BTreeMap<Bytes, Content>,
    next: Option<Bytes>,
    /// The keys of which an owner has something else, by owner.
    stale: BTreeMap<u32, Vec<Bytes>>,
}

impl Joined {
    /// The keys that an owner has to be told of, and what they are.
    fn missing(&self, index: u32) -> impl Iterator<Item = (Bytes, Stored)> + '_ {
        let stale = self.stale.get(&index).into_iter().flatten();
        stale.map(|key| (key.clone(), Stored::for_others(&self.keys[key])))
    }
}

/// A page that is read at several owners.
#[derive(Debug)]
pub(crate) struct PageRead {
    wanted: PageWanted,
    mine: Copies,
    digest: u64,
    /// What each owner that has answered has; `None` for the same as here, with its vector.
    answers: Vec<(u32, VersionVector, Option<Copies>)>,
    joined: Option<Joined>,
}

impl PageRead {
    pub(crate) fn new(wanted: PageWanted, mine: Copies) -> Self {
        let digest = mine.digest();
        Self { wanted, mine, digest, answers: Vec::new(), joined: None }
    }

    pub(crate) const fn wanted(&self) -> &PageWanted {
        &self.wanted
    }

    pub(crate) fn answers(&self) -> impl Iterator<Item = u32> + '_ {
        self.answers.iter().map(|(index, ..)| *index)
    }

    pub(crate) fn fetch(&self, epoch: Epoch, read: u64) -> Head {
        Head::FetchPage(FetchPage { epoch, read, wanted: self.wanted.clone(), digest: self.digest })
    }

    /// What an owner misses.
    pub(crate) fn repair(&self, epoch: Epoch, read: u64, index: u32) -> Head {
        let joined = self.joined.as_ref().expect("joined before anybody is told");
        let keys = joined.missing(index).collect();
        Head::RepairPage(Box::new(RepairPage { epoch, read, base: joined.base.clone(), keys }))
    }

    /// Joins what has been heard; returns the owners that have something else. `me` is this one.
    pub(crate) fn join(&mut self, me: u32, keyspaces: &Keyspaces) -> Vec<u32> {
        let lists = self.answers.iter().map(|(_, base, other)| (base, other.as_ref().unwrap_or(&self.mine)));
        let lists: Vec<(&VersionVector, &Copies)> =
            core::iter::once((&self.mine.base, &self.mine)).chain(lists).collect();
        // Behind the first end somebody may have what others do not list.
        let next = lists.iter().filter_map(|(_, list)| list.next.as_ref()).min().cloned();
        let is_in = |key: &&Bytes| next.as_ref().is_none_or(|next| *key < next);
        let listed: BTreeSet<&Bytes> = lists.iter().flat_map(|(_, list)| list.keys.keys()).filter(is_in).collect();
        let mut base = VersionVector::new();
        lists.iter().for_each(|(seen, _)| base.join(seen));
        let (mut keys, mut stale) = (BTreeMap::new(), BTreeMap::<u32, Vec<Bytes>>::new());
        for key in listed {
            let mut nothing = Content::default();
            nothing.shape(keyspaces.of(key));
            let mut known = Known { base: self.mine.base.clone(), content: self.mine.of(key, &nothing).clone() };
            for (seen, list) in &lists[1..] {
                known.agree(list.of(key, &nothing), seen);
            }
            let digest = known.content.digest();
            let owners = core::iter::once(me).chain(self.answers.iter().map(|(index, ..)| *index));
            for (index, (_, list)) in owners.zip(&lists) {
                if list.of(key, &nothing).digest() != digest {
                    stale.entry(index).or_default().push(key.clone());
                }
            }
            keys.insert(key.clone(), known.content);
        }
        let differ = stale.keys().copied().collect();
        self.joined = Some(Joined { base, keys, next, stale });
        differ
    }

    /// The keys that an owner has to be told of, with what they are.
    pub(crate) fn copies_for(&self, index: u32) -> Vec<(Bytes, KeyCopy)> {
        let Some(joined) = &self.joined else { return Vec::new() };
        let missing = joined.missing(index);
        missing.map(|(key, stored)| (key, KeyCopy { base: joined.base.clone(), stored })).collect()
    }

    /// How many keys an owner has to be told of.
    pub(crate) fn stale_at(&self, index: u32) -> usize {
        self.joined.as_ref().and_then(|joined| joined.stale.get(&index)).map_or(0, Vec::len)
    }

    /// What the client is told.
    pub(crate) fn encode(&self, keyspaces: &Keyspaces, bytes_max: usize) -> Bytes {
        let joined = self.joined.as_ref().expect("joined before it ends");
        let mut filling = Filling::new(self.wanted.limit, bytes_max);
        for (key, content) in &joined.keys {
            if !filling.push(key, &content.found(keyspaces.of(key))) {
                return encode_page(&filling.end());
            }
        }
        encode_page(&Page { next: joined.next.clone(), ..filling.end() })
    }
}

/// A page that is made key by key.
#[derive(Debug)]
pub(crate) struct Filling {
    page: Page,
    limit: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Filling {
    pub(crate) fn new(limit: u32, bytes_max: usize) -> Self {
        // What the encoding adds: lengths, counts and the cursor.
        Self { page: Page::default(), limit: limit.max(1) as usize, bytes: 64 + KEY_BYTES_MAX, bytes_max }
    }

    /// Adds a key, if it shows something: of several values the newest one. `false` when it does not fit any more: the rest begins
    /// with it.
    pub(crate) fn push(&mut self, key: &[u8], found: &Found) -> bool {
        let newest = found.stamps.iter().enumerate().max_by_key(|(_, stamp)| **stamp).map_or(0, |(at, _)| at);
        let Some(value) = found.values.get(newest).or_else(|| found.values.first()) else { return true };
        self.bytes += key.len() + value.len() + 16;
        let items = &mut self.page.items;
        if items.len() == self.limit || self.bytes > self.bytes_max && !items.is_empty() {
            self.page.next = Some(Bytes::copy_from_slice(key));
            return false;
        }
        items.push((Bytes::copy_from_slice(key), value.clone()));
        true
    }

    /// The page.
    pub(crate) fn end(self) -> Page {
        self.page
    }
}

/// Checks a list that came from an owner; `None` when it is not what was asked for.
fn checked(
    wanted: &PageWanted,
    keyspaces: &Keyspaces,
    base: &VersionVector,
    keys: Vec<(Bytes, Stored)>,
    next: Option<Bytes>,
) -> Option<Copies> {
    let last = keys.last().map(|(key, _)| key.clone());
    let ascends = keys.is_sorted_by(|(one, _), (other, _)| one < other);
    let begins = keys.first().is_none_or(|(key, _)| *key >= wanted.from);
    let ends = wanted.to.as_ref().is_none_or(|to| last.as_ref().is_none_or(|last| last < to));
    let goes_on = next.as_ref().is_none_or(|next| *next > wanted.from && last.as_ref().is_none_or(|last| last < next));
    if !(ascends && begins && ends && goes_on) {
        return None;
    }
    let content = |(key, stored): (Bytes, Stored)| {
        let copy = KeyCopy { base: base.clone(), stored };
        let content = copy.check(keyspaces.of(&key)).map(|(content, _)| content);
        Some((key, content?))
    };
    let keys = keys.into_iter().map(content).collect::<Option<_>>()?;
    Some(Copies { base: base.clone(), keys, next })
}

impl Leaderless {
    /// What is here from a key on, and the storage action that makes it durable.
    pub(crate) fn copies(&self, wanted: &PageWanted) -> (Copies, WriteId) {
        let bytes_max = wanted.bytes_max.min(self.config.limits.message_bytes_max as u64) as usize;
        let (copies, pending) = self.state.copies(wanted, bytes_max, HIDDEN_MAX);
        (copies, pending.max(self.installed))
    }

    /// A coordinator wants a page.
    pub(crate) fn handle_fetch_page(&mut self, from: NodeId, fetch: FetchPage) {
        let FetchPage { read, wanted, digest, .. } = fetch;
        let (answer, pending) = if matches!(self.standing, Standing::Writer(_)) {
            let (copies, pending) = self.copies(&wanted);
            let answer = if copies.digest() == digest {
                PageAnswer::Same(copies.base)
            } else {
                let keys = copies.keys.iter().map(|(key, content)| (key.clone(), Stored::for_others(content)));
                PageAnswer::Other { keys: keys.collect(), base: copies.base, next: copies.next }
            };
            (answer, pending)
        } else {
            (PageAnswer::CatchingUp, WriteId(0))
        };
        let answer = Head::FetchedPage(Box::new(FetchedPage { read, answer }));
        self.reply_after(pending, Reply::Head(from, answer));
    }

    /// An owner has answered.
    pub(crate) fn handle_fetched_page(&mut self, now: Now, from: NodeId, fetched: FetchedPage) {
        let FetchedPage { read, answer } = fetched;
        let Some(index) = self.owners.index(from) else { return };
        let Some(page) = self.reads.awaited_page(now, index, read) else { return };
        match answer {
            PageAnswer::Same(base) => page.answers.push((index, base, None)),
            PageAnswer::Other { base, keys, next } => {
                match checked(&page.wanted, &self.config.keyspaces, &base, keys, next) {
                    Some(copies) => page.answers.push((index, base, Some(copies))),
                    None => return self.misbehaved(from, "a page that is not what was asked for"),
                }
            }
            // Another one has to be asked in its place.
            PageAnswer::CatchingUp => {
                self.ask_one_more(now, read);
                return;
            }
        }
        self.answered(read, index);
    }

    /// A coordinator knows more of some keys.
    pub(crate) fn handle_repair_page(&mut self, from: NodeId, repair: RepairPage) {
        let RepairPage { read, base, keys, .. } = repair;
        let keyspaces = &self.config.keyspaces;
        if keys.iter().any(|(key, _)| key.is_empty() || key.len() > KEY_BYTES_MAX || keyspaces.of(key).is_cas()) {
            return self.misbehaved(from, "a key that no keyspace has");
        }
        let copies = keys.into_iter().map(|(key, stored)| (key, KeyCopy { base: base.clone(), stored })).collect();
        let (after, _) = self.take_copies(copies);
        self.reply_after(after, Reply::Head(from, Head::Repaired { read }));
        self.maybe_snapshot();
    }
}
