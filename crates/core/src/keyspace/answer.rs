//! Answers of the keyspace, as bytes.
//!
//! Invariant: an answer begins with a tag; values are cut out of it without being copied. Bytes that are no answer are
//! refused, never a panic.

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use super::KeyspaceError;
use crate::policy::Overwritten;
use crate::{CausalContext, Page, WriteEffect};

pub(super) const ANSWER_NONE: u8 = 0;
pub(super) const ANSWER_VALUE: u8 = 1;
pub(super) const ANSWER_PAGE: u8 = 2;
pub(super) const ANSWER_TOO_LARGE: u8 = 3;
pub(super) const ANSWER_MALFORMED: u8 = 4;
const ANSWER_VERSIONS: u8 = 5;
const ANSWER_CONFLICTS: u8 = 6;

/// What a key holds, in strategies that may have several values for it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Versions {
    /// One value, several siblings, or none.
    pub values: Vec<Bytes>,
    /// What the answer has seen of the key; `None` in strategies without concurrent versions.
    pub context: Option<CausalContext>,
}

/// An acknowledged value that is not shown, as it stands in a replica's audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Its number in the log of this replica, from 1, ascending.
    pub number: u64,
    /// Which key.
    pub key: Bytes,
    /// What was overwritten, by which write, and why.
    pub overwritten: Overwritten,
}

/// One page of a replica's audit log of overwritten values.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConflictPage {
    /// Ascending by number.
    pub conflicts: Vec<Conflict>,
    /// What to ask for next, as `after`; `None` after the last page.
    pub next: Option<u64>,
    /// How many conflicts this replica has dropped because the log had reached its limit.
    pub dropped: u64,
}

/// The answer that a key has no value.
pub(super) const fn none() -> Bytes {
    Bytes::from_static(&[ANSWER_NONE])
}

/// The answer that a key has one value.
pub(super) fn one(value: &[u8]) -> Bytes {
    let mut answer = Vec::with_capacity(value.len() + 1);
    answer.push(ANSWER_VALUE);
    answer.extend_from_slice(value);
    answer.into()
}

/// Encodes the values of a key, several or none, with what the reader has seen by them. A context whose token is larger than
/// [`CausalContext::TOKEN_BYTES_MAX`] is left out, for no write could carry it back.
#[must_use]
pub fn encode_versions(values: &[Bytes], context: &CausalContext) -> Bytes {
    let mut token = context.to_token();
    if token.len() > CausalContext::TOKEN_BYTES_MAX {
        token.clear();
    }
    tagged(ANSWER_VERSIONS, &EncodedVersions { token: &token, values: values.iter().map(|value| &value[..]).collect() })
}

/// Encodes a page of keys and values.
#[must_use]
pub fn encode_page(page: &Page) -> Bytes {
    tagged(ANSWER_PAGE, page)
}

/// Encodes a page of the audit log.
#[must_use]
pub fn encode_conflict_page(page: &ConflictPage) -> Bytes {
    tagged(ANSWER_CONFLICTS, page)
}

/// The answer in place of one that would be larger than was asked for.
#[must_use]
pub fn encode_too_large(bytes_max: usize) -> Bytes {
    let mut answer = vec![ANSWER_TOO_LARGE];
    answer.put_u64_le(bytes_max as u64);
    answer.into()
}

/// The answer to what is no question of the keyspace.
#[must_use]
pub const fn encode_malformed() -> Bytes {
    Bytes::from_static(&[ANSWER_MALFORMED])
}

#[derive(Serialize, Deserialize)]
struct EncodedVersions<'a> {
    /// Empty for no context.
    #[serde(borrow)]
    token: &'a [u8],
    #[serde(borrow)]
    values: Vec<&'a [u8]>,
}

fn tagged(tag: u8, content: &impl Serialize) -> Bytes {
    postcard::to_extend(content, vec![tag]).expect("answers of the keyspace always encode").into()
}

/// Reads the reply to a write.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such reply.
pub fn decode_effect(reply: &[u8]) -> Result<WriteEffect, KeyspaceError> {
    postcard::from_bytes(reply).map_err(|_| KeyspaceError::Malformed)
}

/// Reads the answer to [`encode_get`](super::encode_get) without copying the value.
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_value(answer: &Bytes) -> Result<Option<Bytes>, KeyspaceError> {
    match answer.split_first() {
        Some((&ANSWER_NONE, [])) => Ok(None),
        Some((&ANSWER_VALUE, _)) => Ok(Some(answer.slice(1..))),
        Some((&ANSWER_TOO_LARGE, rest)) => Err(too_large(rest)),
        _ => Err(KeyspaceError::Malformed),
    }
}

/// Reads the answer to [`encode_scan`](super::encode_scan).
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_page(answer: &[u8]) -> Result<Page, KeyspaceError> {
    match answer.split_first() {
        Some((&ANSWER_PAGE, page)) => postcard::from_bytes(page).map_err(|_| KeyspaceError::Malformed),
        Some((&ANSWER_TOO_LARGE, rest)) => Err(too_large(rest)),
        _ => Err(KeyspaceError::Malformed),
    }
}

/// Reads the answer to [`encode_get`](super::encode_get) of any strategy. The values share the answer's bytes.
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_versions(answer: &Bytes) -> Result<Versions, KeyspaceError> {
    let Some((&ANSWER_VERSIONS, content)) = answer.split_first() else {
        return Ok(Versions { values: decode_value(answer)?.into_iter().collect(), context: None });
    };
    let EncodedVersions { token, values } = postcard::from_bytes(content).map_err(|_| KeyspaceError::Malformed)?;
    let context = match token {
        [] => None,
        token => Some(CausalContext::from_token(token).map_err(|_| KeyspaceError::Malformed)?),
    };
    Ok(Versions { values: values.into_iter().map(|value| answer.slice_ref(value)).collect(), context })
}

/// Reads the answer to [`encode_conflicts`](super::encode_conflicts).
///
/// # Errors
/// [`KeyspaceError::AnswerTooLarge`], or [`KeyspaceError::Malformed`] for bytes that are no such answer.
pub fn decode_conflict_page(answer: &[u8]) -> Result<ConflictPage, KeyspaceError> {
    match answer.split_first() {
        Some((&ANSWER_CONFLICTS, page)) => postcard::from_bytes(page).map_err(|_| KeyspaceError::Malformed),
        Some((&ANSWER_TOO_LARGE, rest)) => Err(too_large(rest)),
        _ => Err(KeyspaceError::Malformed),
    }
}

fn too_large(limit: &[u8]) -> KeyspaceError {
    limit.try_into().map_or(KeyspaceError::Malformed, |bytes| KeyspaceError::AnswerTooLarge {
        bytes_max: u64::from_le_bytes(bytes) as usize,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Cause, Version};
    use crate::{Dot, HybridTimestamp, OriginId, Stamp};

    fn stamp(time: u64) -> Stamp {
        Stamp { time: HybridTimestamp(time), dot: Dot { origin: OriginId(1), sequence: time + 1 } }
    }

    proptest! {
        #[test]
        fn answers_survive_their_encoding(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from), 0..5),
            dots in proptest::collection::vec((1..4_u32, 1..20_u64), 0..9),
            numbers in proptest::collection::vec(any::<u64>(), 0..4),
            next: Option<u64>,
            dropped: u64,
        ) {
            let dot = |(origin, sequence)| Dot { origin: OriginId(origin), sequence };
            let context: CausalContext = dots.into_iter().map(dot).collect();
            let answer = encode_versions(&values, &context);
            let versions = decode_versions(&answer).unwrap();
            prop_assert_eq!(&versions, &Versions { values: values.clone(), context: Some(context) });
            for value in versions.values.iter().filter(|value| !value.is_empty()) {
                prop_assert!(answer.as_ptr_range().contains(&value.as_ptr()), "not a copy");
            }
            let items: Vec<_> = values.iter().map(|value| (value.clone(), value.clone())).collect();
            let page = Page { items, next: values.first().cloned() };
            prop_assert_eq!(decode_page(&encode_page(&page)), Ok(page));
            let conflict = |number| {
                let version = Version { stamp: stamp(3), value: values.first().cloned() };
                let overwritten = Overwritten { version, by: stamp(9), cause: Cause::Newer };
                Conflict { number, key: "k".into(), overwritten }
            };
            let page = ConflictPage { conflicts: numbers.into_iter().map(conflict).collect(), next, dropped };
            prop_assert_eq!(decode_conflict_page(&encode_conflict_page(&page)), Ok(page));
        }

        #[test]
        fn reading_anything_never_panics(
            tag in 0..8_u8,
            rest in proptest::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 0..60),
        ) {
            let answer = Bytes::from([&[tag][..], &rest].concat());
            let _ = (decode_value(&answer), decode_versions(&answer), decode_effect(&answer));
            let _ = (decode_page(&answer), decode_conflict_page(&answer));
        }
    }

    #[test]
    fn answers_of_one_value_are_versions_without_a_context() {
        let values = |values: &[&'static str]| values.iter().map(|value| Bytes::from(*value)).collect();
        assert_eq!(decode_versions(&none()), Ok(Versions::default()));
        assert_eq!(decode_versions(&one(b"v")), Ok(Versions { values: values(&["v"]), context: None }));
        assert_eq!(decode_versions(&encode_malformed()), Err(KeyspaceError::Malformed));
        let too_large = encode_too_large(9);
        let error = KeyspaceError::AnswerTooLarge { bytes_max: 9 };
        assert_eq!(decode_versions(&too_large), Err(error));
        assert_eq!(decode_page(&too_large), Err(error));
        assert_eq!(decode_conflict_page(&too_large), Err(error));
    }

    #[test]
    fn a_context_that_no_write_could_carry_is_left_out() {
        let context: CausalContext = (0..40_000).map(|n| Dot { origin: OriginId(1), sequence: 2 * n + 2 }).collect();
        assert!(context.to_token().len() > CausalContext::TOKEN_BYTES_MAX);
        let read = decode_versions(&encode_versions(&["v".into()], &context)).unwrap();
        assert_eq!(read, Versions { values: vec!["v".into()], context: None });
    }
}
