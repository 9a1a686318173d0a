//! A stretch of byte strings, of keys or of positions, half open: `[start, end)`.
//!
//! Invariant: the order is that of the bytes; an absent end stands behind every byte string.

use core::cmp::Ordering;
use core::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// `[start, end)`; without an end, everything from `start` on.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The first byte string in it.
    pub start: Bytes,
    /// The first byte string behind it; none when it reaches to the end of the space.
    pub end: Option<Bytes>,
}

impl Span {
    /// The whole space.
    pub const ALL: Self = Self { start: Bytes::new(), end: None };

    /// `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { start: start.into(), end }
    }

    /// Exactly one byte string.
    pub fn one(key: &[u8]) -> Self {
        let end = [key, &[0]].concat();
        Self { start: Bytes::copy_from_slice(key), end: Some(Bytes::from(end)) }
    }

    /// All byte strings that begin with `prefix`.
    pub fn prefixed(prefix: &[u8]) -> Self {
        Self { start: Bytes::copy_from_slice(prefix), end: behind_prefix(prefix) }
    }

    /// Whether no byte string is in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether it holds exactly one byte string.
    pub fn is_one(&self) -> bool {
        self.end.as_deref().is_some_and(|end| end.split_last() == Some((&0, &self.start[..])))
    }

    /// Whether `point` is in it.
    pub fn contains(&self, point: &[u8]) -> bool {
        *self.start <= *point && self.end.as_deref().is_none_or(|end| point < end)
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && cmp_end(other.end.as_deref(), self.end.as_deref()) != Ordering::Greater
    }

    /// Whether a byte string is in both.
    pub fn meets(&self, other: &Self) -> bool {
        let before = |a: &Self, b: &Self| b.end.as_ref().is_none_or(|end| a.start < *end);
        !self.is_empty() && !other.is_empty() && before(self, other) && before(other, self)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            Some(end) => write!(f, "[\"{}\", \"{}\")", self.start.escape_ascii(), end.escape_ascii()),
            None => write!(f, "[\"{}\", end)", self.start.escape_ascii()),
        }
    }
}

/// Orders two ends; an absent one is the last.
pub(crate) fn cmp_end(a: Option<&[u8]>, b: Option<&[u8]>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

/// The first byte string behind all that begin with `prefix`; none when nothing is.
pub(crate) fn behind_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &str, end: Option<&str>) -> Span {
        Span::new(Bytes::copy_from_slice(start.as_bytes()), end.map(|end| Bytes::copy_from_slice(end.as_bytes())))
    }

    #[test]
    fn a_span_holds_its_start_and_not_its_end() {
        let it = span("b", Some("d"));
        assert!(it.contains(b"b") && it.contains(b"czz") && !it.contains(b"d") && !it.contains(b"a"));
        assert!(span("b", None).contains(b"\xff\xff") && !span("b", Some("b")).contains(b"b"));
    }

    #[test]
    fn one_key_makes_a_span_that_knows_it() {
        assert!(Span::one(b"k").is_one() && !span("k", Some("l")).is_one() && !Span::ALL.is_one());
        assert!(Span::one(b"k").contains(b"k") && !Span::one(b"k").contains(b"k\0"));
    }

    #[test]
    fn spans_that_only_touch_do_not_meet() {
        assert!(!span("a", Some("b")).meets(&span("b", None)));
        assert!(span("a", Some("c")).meets(&span("b", Some("b\0"))) && Span::ALL.meets(&Span::one(b"")));
        assert!(!Span::ALL.meets(&span("b", Some("b"))));
    }

    #[test]
    fn what_is_behind_a_prefix_skips_bytes_that_cannot_grow() {
        assert_eq!(behind_prefix(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(behind_prefix(b"a\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(behind_prefix(b"\xff\xff"), None);
        assert!(Span::prefixed(b"\xff").contains(b"\xff\xff\xff"));
    }
}
