//! Commands and queries of the keyspace, as bytes: what every strategy's replica of key-value data is given.
//!
//! Invariant: what one of the encoders made decodes to the same; bytes that none of them made are refused, never a panic. New
//! commands and queries are added at the end, so that what stands in a log stays readable.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::crdt::CrdtOp;
use crate::{CausalContext, KEY_BYTES_MAX, ScanRequest, VALUE_BYTES_MAX, WriteOp, WriteRequest};

/// A command to the keyspace, as it is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command<'a> {
    Put {
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        key: &'a [u8],
    },
    CompareAndSet {
        key: &'a [u8],
        expected: Option<&'a [u8]>,
        new: Option<&'a [u8]>,
    },
    Add {
        key: &'a [u8],
        delta: i64,
    },
    /// By a client that had read the key: `context` is the token of what it had seen.
    Seen {
        key: &'a [u8],
        context: &'a [u8],
        op: SeenOp<'a>,
    },
    /// `op` is an encoded [`CrdtOp`], so that who has no such values need not read it.
    Crdt {
        key: &'a [u8],
        op: &'a [u8],
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SeenOp<'a> {
    Put { value: &'a [u8] },
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Query<'a> {
    Get { key: &'a [u8] },
    Scan { from: &'a [u8], to: Option<&'a [u8]>, limit: u32 },
    Conflicts { after: u64, limit: u32 },
}

/// A write as a replica gets it: what [`encode_write`] keeps of a [`WriteRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteCommand {
    /// Which key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// What to do.
    pub op: WriteOp,
    /// What the client had read of this key; only at puts and deletes.
    pub context: Option<CausalContext>,
}

/// A question as a replica gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyspaceQuery {
    /// What a key holds: [`encode_get`].
    Get {
        /// Which key.
        key: Bytes,
    },
    /// A page of keys, ascending: [`encode_scan`].
    Scan {
        /// The first key wanted.
        from: Bytes,
        /// The first key no longer wanted; `None` means to the end.
        to: Option<Bytes>,
        /// Most keys in the page, at least 1.
        limit: u32,
    },
    /// A page of the audit log of overwritten values: [`encode_conflicts`].
    Conflicts {
        /// Only those with a larger number; 0 for all.
        after: u64,
        /// Most conflicts in the page, at least 1.
        limit: u32,
    },
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
    /// The causal context is larger than [`CausalContext::TOKEN_BYTES_MAX`].
    #[error("a causal context has at most {} bytes, this one has {bytes}", CausalContext::TOKEN_BYTES_MAX)]
    Context {
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

/// Encodes a write as the command that is replicated. The context goes with puts and deletes; with other operations it says
/// nothing and is left out.
///
/// # Errors
/// [`KeyspaceError::Key`], [`KeyspaceError::Value`] (also for an operation on a mergeable value) and
/// [`KeyspaceError::Context`] for sizes out of range; [`KeyspaceError::Malformed`] for an operation that
/// [`CrdtOp::check`] refuses.
pub fn encode_write(write: &WriteRequest) -> Result<Bytes, KeyspaceError> {
    check_key(&write.key)?;
    let key = &write.key[..];
    let token = match (&write.context, &write.op) {
        (Some(context), WriteOp::Put { .. } | WriteOp::Delete) => Some(context.to_token()),
        _ => None,
    };
    let context = match &token {
        Some(token) if token.len() > CausalContext::TOKEN_BYTES_MAX => {
            return Err(KeyspaceError::Context { bytes: token.len() });
        }
        other => other.as_deref(),
    };
    Ok(match (&write.op, context) {
        (WriteOp::Put { value }, None) => encode(&Command::Put { key, value: check_value(value)? }),
        (WriteOp::Put { value }, Some(context)) => {
            encode(&Command::Seen { key, context, op: SeenOp::Put { value: check_value(value)? } })
        }
        (WriteOp::Delete, None) => encode(&Command::Delete { key }),
        (WriteOp::Delete, Some(context)) => encode(&Command::Seen { key, context, op: SeenOp::Delete }),
        (WriteOp::CompareAndSet { expected, new }, _) => encode(&Command::CompareAndSet {
            key,
            expected: expected.as_deref(),
            new: new.as_deref().map(check_value).transpose()?,
        }),
        (WriteOp::Add { delta }, _) => encode(&Command::Add { key, delta: *delta }),
        (WriteOp::Crdt { op }, _) => {
            op.check().map_err(|_| KeyspaceError::Malformed)?;
            encode(&Command::Crdt { key, op: check_value(&encode(op))? })
        }
    })
}

/// Reads a command that [`encode_write`] made: the key, and what to do to it.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such command.
pub fn decode_write(command: &[u8]) -> Result<(Bytes, WriteOp), KeyspaceError> {
    read_command(command).map(|WriteCommand { key, op, .. }| (key, op))
}

/// Reads a command that [`encode_write`] made, as a replica does that gets it from a client.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such command, [`KeyspaceError::Key`] and [`KeyspaceError::Value`] for
/// sizes out of range.
pub fn decode_request(command: &[u8]) -> Result<WriteCommand, KeyspaceError> {
    let request = read_command(command)?;
    check_key(&request.key)?;
    if let WriteOp::Put { value } | WriteOp::CompareAndSet { new: Some(value), .. } = &request.op {
        check_value(value)?;
    }
    Ok(request)
}

fn read_command(command: &[u8]) -> Result<WriteCommand, KeyspaceError> {
    let malformed = |_| KeyspaceError::Malformed;
    let owned = Bytes::copy_from_slice;
    let plain = |key, op| WriteCommand { key: owned(key), op, context: None };
    Ok(match postcard::from_bytes(command).map_err(malformed)? {
        Command::Put { key, value } => plain(key, WriteOp::Put { value: owned(value) }),
        Command::Delete { key } => plain(key, WriteOp::Delete),
        Command::CompareAndSet { key, expected, new } => {
            plain(key, WriteOp::CompareAndSet { expected: expected.map(owned), new: new.map(owned) })
        }
        Command::Add { key, delta } => plain(key, WriteOp::Add { delta }),
        Command::Seen { key, context, op } => {
            let context = CausalContext::from_token(context).map_err(|_| KeyspaceError::Malformed)?;
            let op = match op {
                SeenOp::Put { value } => WriteOp::Put { value: owned(value) },
                SeenOp::Delete => WriteOp::Delete,
            };
            WriteCommand { key: owned(key), op, context: Some(context) }
        }
        Command::Crdt { op, .. } if op.len() > VALUE_BYTES_MAX => {
            return Err(KeyspaceError::Value { bytes: op.len() });
        }
        Command::Crdt { key, op } => {
            let op: CrdtOp = postcard::from_bytes(op).map_err(malformed)?;
            plain(key, WriteOp::Crdt { op })
        }
    })
}

/// The key of a command that [`encode_write`] made, where it lies, without reading the rest.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such command, [`KeyspaceError::Key`] for a key out of range.
pub fn written_key(command: &[u8]) -> Result<&[u8], KeyspaceError> {
    let (Command::Put { key, .. }
    | Command::Delete { key }
    | Command::CompareAndSet { key, .. }
    | Command::Add { key, .. }
    | Command::Seen { key, .. }
    | Command::Crdt { key, .. }) = postcard::from_bytes(command).map_err(|_| KeyspaceError::Malformed)?;
    check_key(key).map(|()| key)
}

/// The key that [`encode_get`] asks for, where it lies.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such question.
pub fn wanted_key(query: &[u8]) -> Result<&[u8], KeyspaceError> {
    match postcard::from_bytes(query) {
        Ok(Query::Get { key }) => Ok(key),
        _ => Err(KeyspaceError::Malformed),
    }
}

/// What [`encode_scan`] asks for, where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedPage<'q> {
    /// The first key wanted.
    pub from: &'q [u8],
    /// The first key no longer wanted; `None` means to the end.
    pub to: Option<&'q [u8]>,
    /// Most keys in the page, at least 1.
    pub limit: u32,
}

/// Reads a question that [`encode_scan`] made, without copying the keys.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such question.
pub fn wanted_page(query: &[u8]) -> Result<WantedPage<'_>, KeyspaceError> {
    match postcard::from_bytes(query) {
        Ok(Query::Scan { from, to, limit }) => Ok(WantedPage { from, to, limit: limit.max(1) }),
        _ => Err(KeyspaceError::Malformed),
    }
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

/// Encodes the question for a page of the audit log of overwritten values: up to `limit`, in the order in which they were
/// recorded, with a number larger than `after`.
#[must_use]
pub fn encode_conflicts(after: u64, limit: u32) -> Bytes {
    encode(&Query::Conflicts { after, limit: limit.max(1) })
}

/// Reads a question that one of the encoders made.
///
/// # Errors
/// [`KeyspaceError::Malformed`] for bytes that are no such question.
pub fn decode_query(query: &[u8]) -> Result<KeyspaceQuery, KeyspaceError> {
    let owned = Bytes::copy_from_slice;
    Ok(match postcard::from_bytes(query).map_err(|_| KeyspaceError::Malformed)? {
        Query::Get { key } => KeyspaceQuery::Get { key: owned(key) },
        Query::Scan { from, to, limit } => {
            KeyspaceQuery::Scan { from: owned(from), to: to.map(owned), limit: limit.max(1) }
        }
        Query::Conflicts { after, limit } => KeyspaceQuery::Conflicts { after, limit: limit.max(1) },
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Dot, OriginId, ReadLevel};

    #[test]
    fn the_commands_and_queries_of_old_logs_stay_as_they_are() {
        let old = |write: WriteRequest| encode_write(&write).unwrap().to_vec();
        assert_eq!(old(WriteRequest::put("ab", "xyz")), [0, 2, b'a', b'b', 3, b'x', b'y', b'z']);
        assert_eq!(old(WriteRequest::delete("ab")), [1, 2, b'a', b'b']);
        let swap = WriteRequest::compare_and_set("a", Some("x".into()), None);
        assert_eq!(old(swap), [2, 1, b'a', 1, 1, b'x', 0]);
        assert_eq!(old(WriteRequest::add("a", -2)), [3, 1, b'a', 3]);
        assert_eq!(encode_get(b"a").unwrap()[..], [0, 1, b'a']);
        let scan = ScanRequest { from: "a".into(), to: Some("b".into()), limit: 7, level: ReadLevel::Local };
        assert_eq!(encode_scan(&scan)[..], [1, 1, b'a', 1, 1, b'b', 7]);
    }

    fn context() -> impl Strategy<Value = CausalContext> {
        let dot = (1..4_u32, 1..20_u64).prop_map(|(origin, sequence)| Dot { origin: OriginId(origin), sequence });
        proptest::collection::vec(dot, 0..9).prop_map(CausalContext::from_iter)
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 1..9).prop_map(Bytes::from)
    }

    fn op() -> impl Strategy<Value = WriteOp> {
        let flat = || {
            prop_oneof![
                any::<i64>().prop_map(|amount| CrdtOp::Add { amount }),
                Just(CrdtOp::Reset),
                bytes().prop_map(|element| CrdtOp::Insert { element }),
                Just(CrdtOp::Disable),
                bytes().prop_map(|value| CrdtOp::Set { value }),
            ]
        };
        let path = || proptest::collection::vec(bytes(), 1..3);
        prop_oneof![
            bytes().prop_map(|value| WriteOp::Put { value }),
            Just(WriteOp::Delete),
            any::<(Option<u8>, Option<u8>)>().prop_map(|(expected, new)| WriteOp::CompareAndSet {
                expected: expected.map(|byte| vec![byte].into()),
                new: new.map(|byte| vec![byte].into()),
            }),
            any::<i64>().prop_map(|delta| WriteOp::Add { delta }),
            flat().prop_map(|op| WriteOp::Crdt { op }),
            (flat(), path()).prop_map(|(op, path)| WriteOp::Crdt { op: op.at(path) }),
            path().prop_map(|path| WriteOp::Crdt { op: CrdtOp::RemoveAt { path } }),
        ]
    }

    proptest! {
        #[test]
        fn writes_survive_their_encoding(key in bytes(), op in op(), context in proptest::option::of(context())) {
            let mut write = WriteRequest::delete(key.clone());
            (write.op, write.context) = (op.clone(), context.clone());
            let command = encode_write(&write).unwrap();
            let context = context.filter(|_| matches!(op, WriteOp::Put { .. } | WriteOp::Delete));
            prop_assert_eq!(decode_write(&command), Ok((key.clone(), op.clone())));
            prop_assert_eq!(written_key(&command), Ok(&key[..]));
            prop_assert_eq!(decode_request(&command), Ok(WriteCommand { key, op, context }));
        }

        #[test]
        fn queries_survive_their_encoding(from in bytes(), to in proptest::option::of(bytes()), limit in 1_u32.., after: u64) {
            prop_assert_eq!(decode_query(&encode_get(&from).unwrap()), Ok(KeyspaceQuery::Get { key: from.clone() }));
            let get = encode_get(&from).unwrap();
            prop_assert_eq!(wanted_key(&get), Ok(&from[..]));
            let scan = ScanRequest { from: from.clone(), to: to.clone(), limit, level: ReadLevel::Local };
            let page = WantedPage { from: &from, to: to.as_deref(), limit };
            let encoded = encode_scan(&scan);
            prop_assert_eq!(wanted_page(&encoded), Ok(page));
            prop_assert!(wanted_key(&encode_scan(&scan)).is_err() && wanted_page(&encode_get(&from).unwrap()).is_err());
            prop_assert_eq!(decode_query(&encode_scan(&scan)), Ok(KeyspaceQuery::Scan { from, to, limit }));
            prop_assert_eq!(
                decode_query(&encode_conflicts(after, limit)),
                Ok(KeyspaceQuery::Conflicts { after, limit })
            );
        }

        #[test]
        fn reading_anything_never_panics(
            mut bytes in proptest::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 1..60),
            command in 0..6_u8,
        ) {
            bytes[0] = command;
            let _ = (decode_write(&bytes), decode_request(&bytes), decode_query(&bytes));
            let _ = (written_key(&bytes), wanted_key(&bytes), wanted_page(&bytes));
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_when_a_command_is_read() {
        let long = vec![0; VALUE_BYTES_MAX + 1];
        let put = Command::Put { key: b"k", value: &long };
        assert_eq!(decode_request(&encode(&put)), Err(KeyspaceError::Value { bytes: long.len() }));
        let seen = Command::Seen { key: b"k", context: &[0], op: SeenOp::Put { value: &long } };
        assert_eq!(decode_request(&encode(&seen)), Err(KeyspaceError::Value { bytes: long.len() }));
        let swap = Command::CompareAndSet { key: b"k", expected: None, new: Some(&long) };
        assert_eq!(decode_request(&encode(&swap)), Err(KeyspaceError::Value { bytes: long.len() }));
        let crdt = Command::Crdt { key: b"k", op: &long };
        assert_eq!(decode_request(&encode(&crdt)), Err(KeyspaceError::Value { bytes: long.len() }));
        assert_eq!(decode_request(&encode(&Command::Delete { key: b"" })), Err(KeyspaceError::Key { bytes: 0 }));
        let context = vec![0; CausalContext::TOKEN_BYTES_MAX + 1];
        let large = Command::Seen { key: b"k", context: &context, op: SeenOp::Delete };
        assert_eq!(decode_request(&encode(&large)), Err(KeyspaceError::Malformed));
        let nested = CrdtOp::Enable.at(vec!["a".into()]).at(vec!["b".into()]);
        assert_eq!(encode_write(&WriteRequest::crdt("k", nested)), Err(KeyspaceError::Malformed));
    }
}
