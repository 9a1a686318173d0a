//! Commands, queries and answers of the keyspace, as bytes.
//!
//! Invariant: what one of the encoders made decodes to the same; bytes that none of them made are refused, never a panic.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{KEY_BYTES_MAX, Page, ScanRequest, VALUE_BYTES_MAX, WriteEffect, WriteOp, WriteRequest};

/// A command to the keyspace, as it is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command<'a> {
    Put { key: &'a [u8], value: &'a [u8] },
    Delete { key: &'a [u8] },
    CompareAndSet { key: &'a [u8], expected: Option<&'a [u8]>, new: Option<&'a [u8]> },
    Add { key: &'a [u8], delta: i64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Query<'a> {
    Get { key: &'a [u8] },
    Scan { from: &'a [u8], to: Option<&'a [u8]>, limit: u32 },
}

/// Why the keyspace cannot carry out a request. Blame: the caller; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// The key is empty or longer than [`KEY_BYTES_MAX`].
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {bytes}")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The value is longer than [`VALUE_BYTES_MAX`].
    #[error("a value has at most {VALUE_BYTES_MAX} bytes, this one has {bytes}")]
    Value {
        /// Its length.
        bytes: usize,
    },
    /// The answer would be larger than the caller takes.
    #[error("the answer is larger than the {bytes_max} bytes asked for")]
    AnswerTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes are no command, query or answer of the keyspace.
    #[error("not a request or answer of the keyspace")]
    Malformed,
}

/// Encodes a write as the command that is replicated.
///
/// # Errors
/// [`KeyspaceError::Key`] and [`KeyspaceError::Value`] for sizes out of range.
pub fn encode_write(write: &WriteRequest) -> Result<Bytes, KeyspaceError> {
    check_key(&write.key)?;
    let key = &write.key[..];
    let command = match &write.op {
        WriteOp::Put { value } => Command::Put { key, value: check_value(value)? },
        WriteOp::Delete => Command::Delete { key },
        WriteOp::CompareAndSet { expected, new } => Command::CompareAndSet {
            key,
            expected: expected.as_deref(),
            new: new.as_deref().map(check_value).transpose()?,
        },
        WriteOp::Add { delta } => Command::Add { key, delta: *delta },
    };
    Ok(encode(&command))
}

/// Reads a command that [`encode_write`] made: the key, and what to do to it.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such command.
pub fn decode_write(command: &[u8]) -> Result<(Bytes, WriteOp), KeyspaceError> {
    let owned = Bytes::copy_from_slice;
    Ok(match postcard::from_bytes(command).map_err(|_| KeyspaceError::Malformed)? {
        Command::Put { key, value } => (owned(key), WriteOp::Put { value: owned(value) }),
        Command::Delete { key } => (owned(key), WriteOp::Delete),
        Command::CompareAndSet { key, expected, new } => {
            (owned(key), WriteOp::CompareAndSet { expected: expected.map(owned), new: new.map(owned) })
        }
        Command::Add { key, delta } => (owned(key), WriteOp::Add { delta }),
    })
}

/// Encodes the question for one key's value.
///
/// # Errors
/// [`KeyspaceError::Key`] for a size out of range.
pub fn encode_get(key: &[u8]) -> Result<Bytes, KeyspaceError> {
    check_key(key)?;
    Ok(encode(&Query::Get { key }))
}

/// Encodes the question for a page of keys.
#[must_use]
pub fn encode_scan(scan: &ScanRequest) -> Bytes {
    encode(&Query::Scan { from: &scan.from, to: scan.to.as_deref(), limit: scan.limit.max(1) })
}

/// Reads the reply to a write.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such reply.
pub fn decode_effect(reply: &[u8]) -> Result<WriteEffect, KeyspaceError> {
    postcard::from_bytes(reply).map_err(|_| KeyspaceError::Malformed)
}

/// Reads the answer to [`encode_get`] without copying the value.
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

/// Reads the answer to [`encode_scan`].
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

pub(super) const ANSWER_NONE: u8 = 0;
pub(super) const ANSWER_VALUE: u8 = 1;
pub(super) const ANSWER_PAGE: u8 = 2;
pub(super) const ANSWER_TOO_LARGE: u8 = 3;
pub(super) const ANSWER_MALFORMED: u8 = 4;

fn too_large(limit: &[u8]) -> KeyspaceError {
    limit.try_into().map_or(KeyspaceError::Malformed, |bytes| KeyspaceError::AnswerTooLarge {
        bytes_max: u64::from_le_bytes(bytes) as usize,
    })
}

pub(super) fn encode(value: &impl Serialize) -> Bytes {
    postcard::to_stdvec(value).expect("requests of the keyspace always encode").into()
}

fn check_key(key: &[u8]) -> Result<(), KeyspaceError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX { Err(KeyspaceError::Key { bytes: key.len() }) } else { Ok(()) }
}

fn check_value(value: &[u8]) -> Result<&[u8], KeyspaceError> {
    if value.len() > VALUE_BYTES_MAX { Err(KeyspaceError::Value { bytes: value.len() }) } else { Ok(value) }
}
