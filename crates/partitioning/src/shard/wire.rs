//! Commands, queries and answers of a partitioned group, as bytes.
//!
//! Invariant: the first byte is the version; bytes of another version, or of none, are malformed and never a panic. Layout: version,
//! then for commands and queries what postcard makes of them; for replies a tag, then the inner answer as it is, or postcard.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::answers::Request;
use crate::handoff::{Record, Refusal};
use crate::map::Route;

/// The version of the encoding.
pub const SHARD_VERSION: u8 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "decoded and taken apart at once")]
pub(super) enum Command<'a> {
    Write { route: Route, request: Option<Request>, body: &'a [u8] },
    Record(Record),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Query<'a> {
    pub(super) route: Route,
    pub(super) body: &'a [u8],
}

/// What a partitioned group answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was carried out; the answer of the user's machine.
    Done(Bytes),
    /// It was not carried out here under its route. Ask again by what is in it.
    Refused(Refusal),
    /// The client has been forgotten, or says that it does not wait for this request: whether it was carried out cannot be told.
    Expired,
    /// Not a request.
    Malformed,
    /// A record was applied, whether or not it fitted.
    Recorded,
}

/// Bytes that are no answer of a partitioned group. Blame: another version, or no such group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an answer of a partitioned group of version {SHARD_VERSION}")]
pub struct ShardError;

const DONE: u8 = 0;
const REFUSED: u8 = 1;
const EXPIRED: u8 = 2;
const MALFORMED: u8 = 3;
const RECORDED: u8 = 4;

fn versioned(content: &impl Serialize) -> Bytes {
    postcard::to_extend(content, vec![SHARD_VERSION]).expect("requests always encode").into()
}

/// A write of the user's machine under a route. With a number, it may be asked again until it is answered.
#[must_use]
pub fn encode_write(route: &Route, request: Option<Request>, body: &[u8]) -> Bytes {
    versioned(&Command::Write { route: *route, request, body })
}

/// A record of a handoff or of a map's splits and merges: for the drivers of the group's leader only.
#[must_use]
pub fn encode_record(record: &Record) -> Bytes {
    versioned(&Command::Record(record.clone()))
}

/// A query of the user's machine under a route.
#[must_use]
pub fn encode_read(route: &Route, body: &[u8]) -> Bytes {
    versioned(&Query { route: *route, body })
}

pub(super) fn decode_command(command: &[u8]) -> Option<Command<'_>> {
    let (&SHARD_VERSION, rest) = command.split_first()? else { return None };
    postcard::from_bytes(rest).ok()
}

pub(super) fn decode_query(query: &[u8]) -> Option<Query<'_>> {
    let (&SHARD_VERSION, rest) = query.split_first()? else { return None };
    postcard::from_bytes(rest).ok()
}

/// The answer of who is no replica of the group but knows where it is: for nodes and routers in front of groups.
#[must_use]
pub fn encode_map_refusal(refusal: Refusal) -> Bytes {
    Reply::Refused(refusal).encode()
}

/// Reads an answer; that of the user's machine shares its bytes.
///
/// # Errors
/// [`ShardError`] for bytes that are no answer.
pub fn decode_reply(reply: &Bytes) -> Result<Reply, ShardError> {
    match reply[..] {
        [SHARD_VERSION, DONE, ..] => Ok(Reply::Done(reply.slice(2..))),
        [SHARD_VERSION, REFUSED, ref rest @ ..] => {
            postcard::from_bytes(rest).map(Reply::Refused).map_err(|_| ShardError)
        }
        [SHARD_VERSION, EXPIRED] => Ok(Reply::Expired),
        [SHARD_VERSION, MALFORMED] => Ok(Reply::Malformed),
        [SHARD_VERSION, RECORDED] => Ok(Reply::Recorded),
        _ => Err(ShardError),
    }
}

impl Reply {
    pub(super) fn encode(self) -> Bytes {
        match self {
            // The common answer of a write is a constant: no allocation for it.
            Self::Done(answer) if answer[..] == [0] => Bytes::from_static(&[SHARD_VERSION, DONE, 0]),
            Self::Done(answer) => {
                let mut bytes = BytesMut::with_capacity(2 + answer.len());
                bytes.put_slice(&[SHARD_VERSION, DONE]);
                bytes.put_slice(&answer);
                bytes.freeze()
            }
            Self::Refused(refusal) => {
                postcard::to_extend(&refusal, vec![SHARD_VERSION, REFUSED]).expect("refusals always encode").into()
            }
            Self::Expired => Bytes::from_static(&[SHARD_VERSION, EXPIRED]),
            Self::Malformed => Bytes::from_static(&[SHARD_VERSION, MALFORMED]),
            Self::Recorded => Bytes::from_static(&[SHARD_VERSION, RECORDED]),
        }
    }
}
