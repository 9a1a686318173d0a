//! Scans over partitions: scatter, gather, and say what is missing.
//!
//! Invariants: only partitions that may have keys of the range are asked, each with a time limit of its own. Where the next page begins
//! is a key, never a partition: it means the same at any map, so that splits, merges and handoffs between pages make no key come
//! twice or not at all. A partition that changes while it is asked refuses, and its stretch is asked again by a newer map.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use replikit_core::keyspace::{decode_page, encode_scan};
use replikit_core::{NodeId, Page, ReadError, Rejection, ScanRequest};
use replikit_runtime::ReadOptions;
use tokio::task::JoinSet;

use super::cache::Known;
use super::client::{Inner, rejection};
use super::legs;
use crate::partitioner::{Partitioner as _, Scheme};
use crate::span::{Span, cmp_end};

/// What becomes of a scan when a partition does not answer in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Completeness {
    /// It fails.
    #[default]
    Whole,
    /// It goes without that partition's keys, and says so.
    Partial,
}

/// A page of a scan, and what it may lack.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Gathered {
    /// Keys and values, ascending by key, and where the next page begins.
    pub page: Page,
    /// Positions whose keys are not in the page although they may belong there, because their partitions did not answer; none when
    /// the page is complete.
    pub missing: Vec<Span>,
}

impl Gathered {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// The part of a stretch of positions that is in another one.
fn within(a: &Span, b: &Span) -> Span {
    let start = a.start.clone().max(b.start.clone());
    let end = if cmp_end(a.end.as_deref(), b.end.as_deref()).is_le() { a.end.clone() } else { b.end.clone() };
    Span { start, end }
}

/// The stretches of positions to ask, in order: one for each partition that may have keys of the range.
fn stretches(known: &Known, keys: &Span) -> VecDeque<Span> {
    known.map().map(|map| map.meeting(keys).map(|it| it.span.clone()).collect()).unwrap_or_default()
}

pub(super) async fn gather(
    inner: &Arc<Inner>,
    scan: &ScanRequest,
    completeness: Completeness,
    bytes_max: usize,
) -> Result<Gathered, ReadError> {
    let keys = Span::new(scan.from.clone(), scan.to.clone());
    if keys.is_empty() {
        return Ok(Gathered::default());
    }
    if inner.cache.load().map().is_none() {
        inner.refresh_by(Instant::now() + inner.config.leg_time_max).await?;
    }
    let known = inner.cache.load();
    let scheme = *known.map().ok_or(ReadError::TimedOut)?.scheme();
    let mut open = stretches(&known, &keys);
    // In key order one after the other has all keys before the next; otherwise all are asked.
    let in_order = matches!(scheme, Scheme::KeyOrder(_));
    let limit = scan.limit.max(1) as usize;
    let mut gathered = Gathered::default();
    let mut pages: Vec<Page> = Vec::new();
    let mut running = JoinSet::new();
    loop {
        let at_a_time = if in_order { 1 } else { inner.config.legs_max.max(1) };
        while running.len() < at_a_time
            && let Some(span) = open.pop_front()
        {
            let (inner, scan) = (Arc::clone(inner), scan.clone());
            running.spawn(async move {
                let asked = ask(&inner, &scan, &span, bytes_max).await;
                (span, asked)
            });
        }
        let Some(ended) = running.join_next().await else { break };
        // A task that panicked would be a bug of ours; nothing else ends one early.
        let (span, asked) = ended.map_err(|_| ReadError::TimedOut)?;
        match asked {
            Ok((answered, page)) => {
                // The partition may be smaller than the stretch by now: what is left over is asked for by itself.
                if let Some(end) =
                    answered.end.clone().filter(|end| cmp_end(Some(&end[..]), span.end.as_deref()).is_lt())
                {
                    open.push_front(Span { start: end, end: span.end.clone() });
                }
                let full = page.next.is_some();
                pages.push(page);
                let items: usize = pages.iter().map(|page| page.items.len()).sum();
                if in_order && (full || items >= limit) {
                    break;
                }
            }
            Err(error) if completeness == Completeness::Whole => return Err(error),
            Err(_) => gathered.missing.push(span),
        }
    }
    // What was not asked in key order because the page is full begins the next page.
    let unasked = open.front().filter(|_| in_order).map(|span| span.start.clone().max(scan.from.clone()));
    gathered.page = merged(pages, unasked, limit);
    Ok(gathered)
}

/// Pages of several partitions as one, up to where all of them have answered.
fn merged(pages: Vec<Page>, unasked: Option<Bytes>, limit: usize) -> Page {
    // Keys from here on may lack some: those that a full page of a partition has left out, and those of partitions not asked.
    let stop = pages.iter().filter_map(|page| page.next.clone()).chain(unasked).min();
    let mut items: Vec<(Bytes, Bytes)> = pages.into_iter().flat_map(|page| page.items).collect();
    items.sort_by(|a, b| a.0.cmp(&b.0));
    items.dedup_by(|a, b| a.0 == b.0);
    let whole = stop.as_ref().map_or(items.len(), |stop| items.partition_point(|(key, _)| key < stop));
    let next = if whole > limit { Some(items[limit].0.clone()) } else { stop };
    items.truncate(whole.min(limit));
    Page { items, next }
}

/// The keys of the range that are in the partition that has the beginning of a stretch; and what that partition covers.
async fn ask(inner: &Inner, scan: &ScanRequest, span: &Span, bytes_max: usize) -> Result<(Span, Page), ReadError> {
    let mut scan = scan.clone();
    if inner.cache.load().map().is_some_and(|map| matches!(map.scheme(), Scheme::KeyOrder(_))) {
        scan.from = scan.from.max(span.start.clone());
    }
    let question = encode_scan(&scan);
    let options = ReadOptions { level: scan.level, answer_bytes_max: bytes_max };
    let began = Instant::now();
    let patience = inner.legs.begins();
    let mut first = std::pin::pin!(leg(inner, span, &question, &options, None));
    let (covered, page) = tokio::select! {
        biased;
        answered = &mut first => answered,
        () = tokio::time::sleep(patience) => match stand_in(inner, span, &options).filter(|_| inner.legs.hedges()) {
            None => first.await,
            Some(node) => {
                // The first of the two that has an answer.
                let mut other = std::pin::pin!(leg(inner, span, &question, &options, Some(node)));
                tokio::select! {
                    answered = &mut first => if answered.is_ok() { answered } else { other.await },
                    answered = &mut other => if answered.is_ok() { answered } else { first.await },
                }
            }
        },
    }?;
    inner.legs.answered(began.elapsed());
    let known = inner.cache.load();
    let scheme = known.map().ok_or(Rejection::Unsupported)?.scheme();
    // A partition that has grown by a merge also has what others were asked for.
    let mine = within(&covered, span);
    let items = page.items.into_iter().filter(|(key, _)| mine.contains(&scheme.position(key).to_bytes())).collect();
    Ok((covered, Page { items, next: page.next }))
}

/// Another replica of the partition that has the beginning of a stretch.
fn stand_in(inner: &Inner, span: &Span, options: &ReadOptions) -> Option<NodeId> {
    if !inner.config.hedges {
        return None;
    }
    let known = inner.cache.load();
    let partition = known.partition_at(&span.start)?;
    legs::stand_in(partition, &inner.client_of(partition), &options.level)
}

/// Asks the partition that has the beginning of a stretch, at this node if one is named; with what that partition covers.
async fn leg(
    inner: &Inner,
    span: &Span,
    question: &[u8],
    options: &ReadOptions,
    node: Option<NodeId>,
) -> Result<(Span, Page), ReadError> {
    let deadline = Instant::now() + inner.config.leg_time_max;
    let covered = std::sync::Mutex::new(Span::ALL);
    let aim = |known: &Known| {
        let partition = known.partition_at(&span.start)?;
        let aimed = inner.aimed(partition);
        // No code that can panic runs under this lock.
        *covered.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = partition.span.clone();
        Some(match node {
            Some(node) => aimed.at_node(node),
            None => aimed,
        })
    };
    let answer = inner.read(aim, question, options.clone(), deadline).await?;
    let page = decode_page(&answer.value).map_err(rejection)?;
    Ok((covered.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), page))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&'static str], next: Option<&'static str>) -> Page {
        let items = keys.iter().map(|&key| (Bytes::from(key), Bytes::new())).collect();
        Page { items, next: next.map(Bytes::from) }
    }

    fn keys(page: &Page) -> Vec<&[u8]> {
        page.items.iter().map(|(key, _)| &key[..]).collect()
    }

    #[test]
    fn a_page_ends_where_the_first_partition_has_left_something_out() {
        let it = merged(vec![page(&["a", "c"], Some("e")), page(&["b", "d", "f"], None)], None, 10);
        assert_eq!(keys(&it), [b"a", b"b", b"c", b"d"]);
        assert_eq!(it.next.as_deref(), Some(&b"e"[..]), "f is behind what the first one has left out");
    }

    #[test]
    fn a_page_that_is_cut_at_its_limit_goes_on_at_the_next_key() {
        let it = merged(vec![page(&["a", "c"], None), page(&["b", "d"], None)], None, 3);
        assert_eq!((keys(&it), it.next.as_deref()), (vec![&b"a"[..], b"b", b"c"], Some(&b"d"[..])));
        let it = merged(vec![page(&["a", "b"], None)], Some("m".into()), 2);
        assert_eq!(it.next.as_deref(), Some(&b"m"[..]), "the next partition was not asked");
        assert_eq!(merged(vec![page(&["a"], None)], None, 3).next, None);
    }

    #[test]
    fn stretches_within_others_are_cut_at_both_ends() {
        let span = |start: &'static str, end: Option<&'static str>| Span::new(start, end.map(Bytes::from));
        assert_eq!(within(&span("b", None), &span("a", Some("c"))), span("b", Some("c")));
        assert_eq!(within(&span("a", Some("d")), &span("b", Some("c"))), span("b", Some("c")));
    }
}
