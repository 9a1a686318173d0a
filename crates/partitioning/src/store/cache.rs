//! The map as a client or node knows it: what it last read of the log of maps, and what answers have said since.
//!
//! Invariants: what is known never goes back. However many find out at once that they are behind, one asks (single-flight): the others
//! wait for that answer, so that cold caches make no storm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use replikit_core::{Epoch, ReadError, Rejection};
use replikit_runtime::Client;
use replikit_sync::Swap;

use crate::map::{DELTAS_MAX, DeltaLog, Partition, PartitionMap, StaleRoute};
use crate::meta::{META_DELTAS_MAX, MetaAnswer, MetaQuery};
use crate::partitioner::{Partitioner as _, Position};
use crate::span::Span;

/// Entries from answers that are kept until the map is read anew; the oldest go first.
const PATCHES_MAX: usize = 256;

/// What is known at a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    map: Option<Arc<PartitionMap>>,
    /// Entries of newer maps, the newest last.
    patches: Vec<(Epoch, Partition)>,
}

fn stands_in(position: &Position<'_>, span: &Span) -> bool {
    position.cmp_bound(&span.start).is_ge() && span.end.as_deref().is_none_or(|end| position.cmp_bound(end).is_lt())
}

impl Known {
    pub(super) fn map(&self) -> Option<&Arc<PartitionMap>> {
        self.map.as_ref()
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.map.as_ref().map_or(Epoch(0), |map| map.epoch())
    }

    /// The partition that a key belongs to; `None` before anything is known.
    pub(super) fn partition_of(&self, key: &[u8]) -> Option<&Partition> {
        let map = self.map.as_ref()?;
        if !self.patches.is_empty() {
            let position = map.scheme().position(key);
            let patch = self.patches.iter().rev().find(|(_, entry)| stands_in(&position, &entry.span));
            if let Some((_, entry)) = patch {
                return Some(entry);
            }
        }
        Some(map.partition_of(key))
    }

    /// The partition that covers a position, as bytes.
    pub(super) fn partition_at(&self, position: &[u8]) -> Option<&Partition> {
        let patch = self.patches.iter().rev().find(|(_, entry)| entry.span.contains(position));
        match patch {
            Some((_, entry)) => Some(entry),
            None => self.map.as_ref()?.partitions().find(|partition| partition.span.contains(position)),
        }
    }

    /// The same with what a refusal says; `None` when that is nothing new.
    fn patched(&self, stale: &StaleRoute) -> Option<Self> {
        let is_news = |entry: &&Partition| {
            let known = self.patches.iter().rev().find(|(_, known)| known.id == entry.id).map(|(_, known)| known);
            let known = known.or_else(|| self.map.as_ref()?.partition(entry.id));
            known.is_none_or(|known| (known.birth, known.bounds) < (entry.birth, entry.bounds))
        };
        if stale.epoch <= self.epoch() {
            return None;
        }
        let news: Vec<_> = stale.current.iter().filter(is_news).map(|entry| (stale.epoch, entry.clone())).collect();
        if news.is_empty() {
            return None;
        }
        let mut patches = self.patches.clone();
        patches.extend(news);
        patches.sort_by_key(|(epoch, _)| *epoch);
        let over = patches.len().saturating_sub(PATCHES_MAX);
        patches.drain(..over);
        Some(Self { map: self.map.clone(), patches })
    }
}

/// What a client or node knows of the map, and how it learns more.
#[derive(Debug)]
pub(super) struct MapCache {
    known: Swap<Known>,
    /// The newest deltas, for those who are behind this.
    deltas: Mutex<Option<DeltaLog>>,
    /// Held by who asks.
    asking: tokio::sync::Mutex<()>,
    /// The number of the last question that was put.
    put: AtomicU64,
    /// That of the last one that was answered.
    answered: AtomicU64,
}

impl MapCache {
    pub(super) fn new() -> Self {
        Self {
            known: Swap::new(Arc::default()),
            deltas: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            put: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    pub(super) fn load(&self) -> Arc<Known> {
        self.known.load()
    }

    /// The last question for the map that was answered, counted from 1; 0 before the first.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Takes what a refusal says; whether that was anything new.
    pub(super) fn patch(&self, stale: &StaleRoute) -> bool {
        // Taken together with the deltas, so that no two writers take each other's news away.
        let _writing = self.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        let patched = self.known.load().patched(stale);
        let news = patched.is_some();
        if let Some(patched) = patched {
            self.known.store(Arc::new(patched));
        }
        news
    }

    /// Reads what is new, unless somebody else has put the question since this was called and was answered: what was asked before
    /// may not include what the caller has just changed.
    pub(super) async fn refresh(&self, source: &Client) -> Result<(), ReadError> {
        let before = self.put.load(Ordering::Acquire);
        let _asking = self.asking.lock().await;
        if self.answered() > before {
            return Ok(());
        }
        let number = self.put.fetch_add(1, Ordering::AcqRel) + 1;
        loop {
            let have = self.load().epoch();
            let answer = source.query(MetaQuery::Since(have).encode()).await?;
            let answer = MetaAnswer::decode(&answer.value).map_err(|_| Rejection::Malformed)?;
            if !self.take(answer)? {
                break;
            }
        }
        self.answered.store(number, Ordering::Release);
        Ok(())
    }

    /// Takes an answer of the log of maps; whether there is more.
    fn take(&self, answer: MetaAnswer) -> Result<bool, Rejection> {
        let mut log = self.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load();
        let (map, more) = match answer {
            MetaAnswer::Deltas(deltas) if deltas.is_empty() => return Ok(false),
            MetaAnswer::Deltas(deltas) => {
                let map = known.map().ok_or(Rejection::Malformed)?.caught_up(&deltas);
                let map = map.map_err(|_| Rejection::Malformed)?;
                let end = log.as_mut().map(|log| {
                    deltas.iter().filter(|delta| delta.from >= known.epoch()).try_for_each(|d| log.push(d.clone()))
                });
                if !matches!(end, Some(Ok(()))) {
                    *log = Some(DeltaLog::new(&map, DELTAS_MAX));
                }
                (map, deltas.len() >= META_DELTAS_MAX)
            }
            MetaAnswer::Map(map) if map.epoch() <= known.epoch() => return Ok(false),
            MetaAnswer::Map(map) => {
                *log = Some(DeltaLog::new(&map, DELTAS_MAX));
                (*map, false)
            }
            MetaAnswer::Malformed => return Err(Rejection::Unsupported),
        };
        let epoch = map.epoch();
        let patches = known.patches.iter().filter(|(at, _)| *at > epoch).cloned().collect();
        self.known.store(Arc::new(Known { map: Some(Arc::new(map)), patches }));
        Ok(more)
    }

    /// What brings somebody with the map of this epoch to what is known here.
    pub(super) fn since(&self, have: Epoch) -> Option<MetaAnswer> {
        let log = self.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load();
        let map = known.map()?;
        Some(match log.as_ref().map(|log| log.since(have, META_DELTAS_MAX)) {
            Some(crate::map::Catchup::Deltas(deltas)) => MetaAnswer::Deltas(deltas),
            _ => MetaAnswer::Map(Box::new((**map).clone())),
        })
    }
}

#[cfg(test)]
mod tests {
    use replikit_core::{GroupId, NodeId};

    use super::*;
    use crate::map::Change;
    use crate::partitioner::Scheme;

    fn first() -> PartitionMap {
        PartitionMap::first(Scheme::KEY_ORDER, [], [(GroupId(2), vec![NodeId(1)])]).unwrap()
    }

    fn split(map: &PartitionMap, key: &[u8], at: &'static str) -> (PartitionMap, crate::map::Delta) {
        map.changed(&Change::Split { partition: map.route(key).partition, at: at.into() }).unwrap()
    }

    #[test]
    fn a_refusal_mends_its_keys_at_once_and_the_next_map_takes_its_place() {
        let cache = MapCache::new();
        cache.take(MetaAnswer::Map(Box::new(first()))).unwrap();
        let (next, delta) = split(&first(), b"", "m");
        let refusal = StaleRoute { epoch: next.epoch(), current: vec![next.partition_of(b"z").clone()] };
        assert!(cache.patch(&refusal));
        assert!(!cache.patch(&refusal), "nothing new");
        let known = cache.load();
        assert_eq!(known.partition_of(b"z").unwrap().route(), next.route(b"z"));
        assert_eq!(known.partition_of(b"a").unwrap().route(), first().route(b"a"), "nothing was said of it");
        assert!(!cache.take(MetaAnswer::Deltas(vec![delta])).unwrap());
        assert_eq!(cache.load().partition_of(b"a").unwrap().route(), next.route(b"a"));
        assert!(cache.load().patches.is_empty());
        assert!(!cache.patch(&StaleRoute { epoch: Epoch(1), current: vec![first().partition_of(b"").clone()] }));
    }

    #[test]
    fn whoever_is_behind_a_cache_gets_deltas_from_it() {
        let cache = MapCache::new();
        assert_eq!(cache.since(Epoch(0)), None);
        cache.take(MetaAnswer::Map(Box::new(first()))).unwrap();
        let (next, delta) = split(&first(), b"", "m");
        cache.take(MetaAnswer::Deltas(vec![delta.clone()])).unwrap();
        assert_eq!(cache.since(Epoch(1)), Some(MetaAnswer::Deltas(vec![delta])));
        assert_eq!(cache.since(Epoch(2)), Some(MetaAnswer::Deltas(Vec::new())));
        assert_eq!(cache.since(Epoch(0)), Some(MetaAnswer::Map(Box::new(next))));
    }

    #[test]
    fn an_old_map_is_never_taken_back() {
        let cache = MapCache::new();
        let (next, _) = split(&first(), b"", "m");
        cache.take(MetaAnswer::Map(Box::new(next))).unwrap();
        cache.take(MetaAnswer::Map(Box::new(first()))).unwrap();
        assert_eq!(cache.load().epoch(), Epoch(2));
    }
}
