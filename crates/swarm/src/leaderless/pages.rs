//! Pages at several owners: what each shows of every key in its range, as far as it can be told from values.

use std::collections::BTreeSet;

use bytes::Bytes;
use replikit_core::keyspace::decode_page;
use replikit_core::{Dot, Page, ScanRequest, Stamp, Time};

use super::subject::{LeaderlessSubject, Shown};
use crate::probe::Probe;

/// Keys of these show a value that one write has made, as it was written.
const PLAIN: [&[u8]; 2] = [b"lww/", b"sib/"];

impl LeaderlessSubject {
    fn stamp(&self, dot: Dot) -> Option<Stamp> {
        self.model.write(dot).map(|write| Stamp { time: write.time, dot })
    }

    /// A page was answered. Returns the rest of the scan.
    pub(super) fn on_page(
        &mut self,
        scan: &ScanRequest,
        asked_at: Time,
        values: &[Bytes],
        strict: bool,
        now: Time,
    ) -> Result<Option<ScanRequest>, String> {
        let answer = values.first().ok_or("pages_are_whole: an answer without content")?;
        let Page { items, next } = decode_page(answer).map_err(|error| format!("pages_are_whole: {error}"))?;
        let broken = |what: &str| Err(format!("pages_are_whole: {what}: {items:?}, then {next:?}, for {scan:?}"));
        let is_before = |end: &Option<Bytes>, key: &Bytes| end.as_ref().is_none_or(|end| key < end);
        if !items.is_sorted_by(|(one, _), (other, _)| one < other) {
            return broken("keys do not ascend");
        }
        if items.len() > scan.limit as usize {
            return broken("there are more than were asked for");
        }
        if !items.iter().all(|(key, _)| *key >= scan.from && is_before(&scan.to, key) && is_before(&next, key)) {
            return broken("a key is out of the range");
        }
        if next.as_ref().is_some_and(|next| *next <= scan.from || !is_before(&scan.to, next)) {
            return broken("the next page does not begin behind this one");
        }
        if strict && next.is_some() {
            self.probes.hit(Probe::PageJoined);
        }
        let end = next.clone().or_else(|| scan.to.clone());
        let keys: Vec<Bytes> =
            self.model.keys().filter(|key| **key >= scan.from && is_before(&end, key)).cloned().collect();
        for key in keys.into_iter().filter(|key| PLAIN.iter().any(|prefix| key.starts_with(prefix))) {
            let shown = items.iter().find(|(item, _)| *item == key).map(|(_, value)| value);
            self.check_shown(&key, shown, scan, (asked_at, now), strict)?;
        }
        self.crowd.reads += 1;
        Ok(next.map(|from| ScanRequest { from, ..scan.clone() }))
    }

    /// What a page shows of a key is what somebody may see who has seen all that a read had to.
    fn check_shown(
        &mut self,
        key: &Bytes,
        value: Option<&Bytes>,
        scan: &ScanRequest,
        (asked_at, now): (Time, Time),
        strict: bool,
    ) -> Result<(), String> {
        // A write that was stamped anew, or made again, has the same value under another dot.
        let writes = self.model.by_key.get(key).into_iter().flatten().filter_map(|dot| self.model.write(*dot));
        let shown: Option<Vec<Dot>> = value
            .map(|value| writes.filter(|write| write.value.as_ref() == Some(value)).map(|write| write.dot).collect());
        if shown.as_ref().is_some_and(Vec::is_empty) {
            let story = self.model.story(key);
            return Err(format!("reads_show_the_past: a page shows {value:?} of {key:?}: {story}"));
        }
        let shown = shown.as_deref();
        let acked = self.acked.iter().filter(|acked| {
            strict && self.promises.lasts() && acked.strict && acked.at < asked_at && !self.is_cut_off(acked.dot)
        });
        let of_key = |dot: &Dot| self.model.write(*dot).is_some_and(|write| write.key == *key);
        let monotonic = self.never_goes_back(&scan.level);
        let before = self.shown.iter().filter(|before| monotonic && before.key == *key && before.at < asked_at);
        let missing = (acked.map(|acked| acked.dot).filter(of_key))
            .find(|dot| !self.may_be(key, shown, *dot))
            .map(|dot| ("quorums_overlap", dot));
        let before: BTreeSet<Dot> = before.flat_map(|before| before.dots.iter().copied()).collect();
        let gone = before.into_iter().find(|dot| !self.may_be(key, shown, *dot));
        if let Some((what, dot)) = missing.or(gone.map(|dot| ("reads_do_not_go_back", dot))) {
            let story = self.model.story(key);
            return Err(format!("{what}: a page for {scan:?} shows {shown:?} of {key:?} and not {dot:?}: {story}"));
        }
        if let Some(&[dot]) = shown.filter(|_| monotonic) {
            self.shown.push(Shown { key: key.clone(), dots: vec![dot], at: now });
        }
        Ok(())
    }

    /// A write, and all that have taken its place, or the place of one that had: one after the other, for of a busy key there are
    /// thousands, and the first is mostly enough.
    fn successors(&self, seen: Dot) -> impl Iterator<Item = Dot> {
        let replaced_by = |dot: Dot| self.model.replaced_by.get(&dot).into_iter().flatten();
        let (mut known, mut next) = (BTreeSet::from([seen]), vec![replaced_by(seen)]);
        let rest = core::iter::from_fn(move || {
            loop {
                let Some(&dot) = next.last_mut()?.next() else {
                    next.pop();
                    continue;
                };
                if known.insert(dot) {
                    next.push(replaced_by(dot));
                    return Some(dot);
                }
            }
        });
        core::iter::once(seen).chain(rest)
    }

    /// Whether a key may show this to somebody who has seen a write of it: that write, or something that stands beside it, or beside
    /// one that has taken its place, and wins there. (A write may be older by its time than one that it had seen and replaced: once
    /// a delete is forgotten, so is its time.)
    fn may_be(&self, key: &Bytes, shown: Option<&[Dot]>, seen: Dot) -> bool {
        let lww = key.starts_with(PLAIN[0]);
        let had_seen = |of: Dot, other| self.model.write(of).is_some_and(|write| write.had_seen(other));
        let is_delete = |dot: Dot| self.model.write(dot).is_some_and(|write| write.value.is_none());
        self.successors(seen).any(|stands| match shown {
            Some(shown) => shown.iter().filter(|shown| !had_seen(seen, **shown)).any(|shown| {
                let wins = || !lww || self.stamp(*shown) > self.stamp(stands);
                *shown == stands || !had_seen(stands, *shown) && wins()
            }),
            None => {
                let later = |dot: &Dot| is_delete(*dot) && self.stamp(*dot) > self.stamp(stands);
                is_delete(stands) || lww && self.model.by_key[key].iter().any(later)
            }
        })
    }
}
