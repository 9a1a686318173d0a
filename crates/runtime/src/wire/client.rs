//! Requests and answers of clients: a token, a small postcard head, and the payload as it is.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use replikit_core::{
    Admin, Batch, BatchHeader, Batches, ClusterId, Cursor, GroupId, LogIndex, Outcome, Position, Reached, ReadLevel,
    Rejection, SessionSeq, SubscribeError, WriteLevel,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, Kind, frame_header};
use super::outbox::Outbox;
use crate::call::Call;
use crate::counters::NodeStatus;

/// Largest answer that a client may ask for, in bytes.
const ANSWER_BYTES_MAX: u32 = 16 << 20;
const TOKEN_BYTES: usize = 8;

/// A request without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RequestHead {
    Command { group: GroupId, level: WriteLevel, session: Option<SessionSeq> },
    OpenSession { group: GroupId },
    Query { group: GroupId, level: ReadLevel, bytes_max: u32 },
    Status { group: GroupId },
    Snapshot { group: GroupId },
    Follow { group: GroupId, from: Cursor },
}

/// An answer without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum AnswerHead {
    Acked {
        at: Position,
        reached: Reached,
        strict: bool,
    },
    Value {
        values: u32,
        seen: Option<Position>,
        strict: bool,
        staleness: Option<Duration>,
    },
    Indeterminate {
        reached: Reached,
    },
    Rejected(Rejection),
    Status,
    /// A subscription begins at this index.
    Subscribed {
        next: LogIndex,
    },
    /// Whole batches, one behind the other.
    Changes,
    Unsubscribed(SubscribeError),
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum ClientRequest {
    /// Answered once.
    Call(Call),
    /// Answered until the subscription ends.
    Follow { group: GroupId, from: Cursor },
}

impl ClientRequest {
    /// The group that it names.
    pub(crate) const fn group(&self) -> GroupId {
        match self {
            Self::Call(call) => call.group(),
            Self::Follow { group, .. } => *group,
        }
    }
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FeedReply {
    Begun(LogIndex),
    Batches(Batches),
    Ended(SubscribeError),
}

/// What a client gets back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Outcome(Outcome),
    Status(Box<NodeStatus>),
}

/// Adds a request to what waits for a connection.
pub(crate) fn encode_request(token: u64, head: &RequestHead, body: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEADER_BYTES);
    out.put_u64_le(token);
    put_head(head, out);
    out.extend_from_slice(body);
    let header = frame_header(Kind::Request, out.len() - start - FRAME_HEADER_BYTES);
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header);
}

const HEAD_BYTES_USUAL: usize = 256;

fn put_head(head: &impl Serialize, out: &mut BytesMut) {
    let mut usual = [0; HEAD_BYTES_USUAL];
    match postcard::to_slice(head, &mut usual) {
        Ok(head) => out.extend_from_slice(head),
        // A session token may hold any number of positions.
        Err(_) => out.extend_from_slice(&postcard::to_stdvec(head).expect("heads of requests and answers encode")),
    }
}

/// Reads a request; the payload is a slice of the frame.
pub(crate) fn decode_request(frame: Frame) -> Result<(u64, ClientRequest), FrameError> {
    if frame.kind != Kind::Request {
        return Err(FrameError::Kind { kind: frame.kind as u8 });
    }
    let mut body = frame.body;
    let token = take_token(&mut body)?;
    let head = take_head(&mut body)?;
    let call = match head {
        RequestHead::Command { group, level, session } => Call::Command { group, level, session, body },
        RequestHead::OpenSession { group } => Call::OpenSession { group },
        RequestHead::Query { group, level, bytes_max } => {
            Call::Query { group, level, body, bytes_max: bytes_max.min(ANSWER_BYTES_MAX) as usize }
        }
        RequestHead::Status { group } => Call::Admin { group, command: Admin::Status },
        RequestHead::Snapshot { group } => Call::Admin { group, command: Admin::Snapshot },
        RequestHead::Follow { group, from } => return Ok((token, ClientRequest::Follow { group, from })),
    };
    Ok((token, ClientRequest::Call(call)))
}

fn take_token(body: &mut Bytes) -> Result<u64, FrameError> {
    if body.len() < TOKEN_BYTES { Err(FrameError::Malformed { what: "no token" }) } else { Ok(body.get_u64_le()) }
}

fn take_head<T: serde::de::DeserializeOwned>(body: &mut Bytes) -> Result<T, FrameError> {
    let (head, rest) =
        postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed { what: "head of a request or answer" })?;
    let head_bytes = body.len() - rest.len();
    body.advance(head_bytes);
    Ok(head)
}

/// Adds an answer to an outbox.
pub(crate) fn encode_answer(token: u64, outcome: &Outcome, outbox: &mut Outbox) {
    let (head, values): (_, &[Bytes]) = match outcome {
        Outcome::Acked { at, reached, strict, reply } => {
            (AnswerHead::Acked { at: *at, reached: *reached, strict: *strict }, std::slice::from_ref(reply))
        }
        Outcome::Value { values, seen, strict, staleness } => {
            let count = u32::try_from(values.len()).expect("values of one key are few");
            (AnswerHead::Value { values: count, seen: *seen, strict: *strict, staleness: *staleness }, values)
        }
        Outcome::Indeterminate { reached } => (AnswerHead::Indeterminate { reached: *reached }, &[]),
        Outcome::Rejected(rejection) => (AnswerHead::Rejected(rejection.clone()), &[]),
    };
    put_answer(token, &head, values, outbox);
}

/// Adds a status to an outbox.
pub(crate) fn encode_status(token: u64, status: &NodeStatus, outbox: &mut Outbox) {
    let status = postcard::to_stdvec(status).expect("a status always encodes");
    put_answer(token, &AnswerHead::Status, &[status.into()], outbox);
}

/// Adds the beginning of a subscription to an outbox.
pub(crate) fn encode_subscribed(token: u64, next: LogIndex, outbox: &mut Outbox) {
    put_answer(token, &AnswerHead::Subscribed { next }, &[], outbox);
}

/// Adds the end of a subscription to an outbox.
pub(crate) fn encode_unsubscribed(token: u64, why: &SubscribeError, outbox: &mut Outbox) {
    put_answer(token, &AnswerHead::Unsubscribed(why.clone()), &[], outbox);
}

/// Adds committed batches to an outbox.
pub(crate) fn encode_changes(token: u64, batches: &Batches, outbox: &mut Outbox) {
    let mut usual = [0; HEAD_BYTES_USUAL];
    let head = postcard::to_slice(&AnswerHead::Changes, &mut usual).expect("a head of one byte");
    outbox.copy(&frame_header(Kind::Answer, TOKEN_BYTES + head.len() + batches.bytes()));
    outbox.copy(&token.to_le_bytes());
    outbox.copy(head);
    for batch in batches.as_slice() {
        outbox.share(batch.as_bytes());
    }
}

/// Reads what a subscriber got; batches are verified, and share the frame's bytes.
pub(crate) fn decode_feed(frame: Frame, cluster: ClusterId) -> Result<FeedReply, FrameError> {
    if frame.kind != Kind::Answer {
        return Err(FrameError::Kind { kind: frame.kind as u8 });
    }
    let mut body = frame.body;
    take_token(&mut body)?;
    Ok(match take_head(&mut body)? {
        AnswerHead::Subscribed { next } => FeedReply::Begun(next),
        AnswerHead::Changes => {
            let mut batches = Batches::None;
            while !body.is_empty() {
                let bytes = BatchHeader::read(&body, cluster)?.bytes;
                if bytes > body.len() {
                    return Err(FrameError::Malformed { what: "batches that are longer than their frame" });
                }
                batches.push(Batch::verify(body.split_to(bytes), cluster)?);
            }
            FeedReply::Batches(batches)
        }
        AnswerHead::Unsubscribed(why) => FeedReply::Ended(why),
        AnswerHead::Rejected(rejection) => FeedReply::Ended(rejection.into()),
        _ => return Err(FrameError::Malformed { what: "an answer to another kind of request" }),
    })
}

/// One value stands alone; several each have their length before them.
fn put_answer(token: u64, head: &AnswerHead, values: &[Bytes], outbox: &mut Outbox) {
    let mut usual = [0; HEAD_BYTES_USUAL];
    let head = postcard::to_slice(head, &mut usual).expect("heads of answers are short");
    let lengths = if values.len() > 1 { values.len() * 4 } else { 0 };
    let body_bytes = TOKEN_BYTES + head.len() + lengths + values.iter().map(Bytes::len).sum::<usize>();
    outbox.copy(&frame_header(Kind::Answer, body_bytes));
    outbox.copy(&token.to_le_bytes());
    outbox.copy(head);
    for value in values {
        if values.len() > 1 {
            outbox.copy(&u32::try_from(value.len()).expect("values are limited far below 4 GiB").to_le_bytes());
        }
        outbox.share(value);
    }
}

/// Reads an answer. Payloads are copied out of the frame: whoever keeps one keeps nothing else alive.
pub(crate) fn decode_reply(frame: Frame) -> Result<(u64, Reply), FrameError> {
    if frame.kind != Kind::Answer {
        return Err(FrameError::Kind { kind: frame.kind as u8 });
    }
    let mut body = frame.body;
    let token = take_token(&mut body)?;
    let reply = match take_head(&mut body)? {
        AnswerHead::Acked { at, reached, strict } => {
            Reply::Outcome(Outcome::Acked { at, reached, strict, reply: Bytes::copy_from_slice(&body) })
        }
        AnswerHead::Value { values, seen, strict, staleness } => {
            let values = match values {
                0 => Vec::new(),
                1 => vec![Bytes::copy_from_slice(&body)],
                _ => take_values(values, body)?,
            };
            Reply::Outcome(Outcome::Value { values, seen, strict, staleness })
        }
        AnswerHead::Indeterminate { reached } => Reply::Outcome(Outcome::Indeterminate { reached }),
        AnswerHead::Rejected(rejection) => Reply::Outcome(Outcome::Rejected(rejection)),
        AnswerHead::Status => {
            let status = postcard::from_bytes(&body).map_err(|_| FrameError::Malformed { what: "a status" })?;
            Reply::Status(Box::new(status))
        }
        AnswerHead::Subscribed { .. } | AnswerHead::Changes | AnswerHead::Unsubscribed(_) => {
            return Err(FrameError::Malformed { what: "changes that nobody asked for" });
        }
    };
    Ok((token, reply))
}

fn take_values(count: u32, mut body: Bytes) -> Result<Vec<Bytes>, FrameError> {
    let short = FrameError::Malformed { what: "values that are longer than their frame" };
    let mut values = Vec::new();
    for _ in 0..count {
        if body.len() < 4 {
            return Err(short);
        }
        let length = body.get_u32_le() as usize;
        if body.len() < length {
            return Err(short);
        }
        values.push(Bytes::copy_from_slice(&body.split_to(length)));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use replikit_core::{LogId, NodeId, Queue, SessionId, StreamId, Term};

    use super::super::FrameBuffer;
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        FrameBuffer::new(BytesMut::from(bytes), 24 << 20).next().unwrap().unwrap()
    }

    fn answer(outcome: &Outcome) -> Frame {
        let mut outbox = Outbox::default();
        encode_answer(42, outcome, &mut outbox);
        let bytes: Vec<u8> = outbox.sealed().into_iter().flat_map(|segment| segment.to_vec()).collect();
        frame(&bytes)
    }

    fn position() -> Position {
        let id = LogId { term: Term(u64::MAX), index: LogIndex(u64::MAX) };
        Position { stream: StreamId::consensus(GroupId(u32::MAX)), id, digest: u64::MAX }
    }

    #[test]
    fn every_outcome_survives_the_wire() {
        let reached = Reached { received: 3, durable: 2, applied: 1 };
        let value = |values: Vec<Bytes>| Outcome::Value {
            values,
            seen: Some(position()),
            strict: true,
            staleness: Some(Duration::MAX),
        };
        let large = Bytes::from(vec![9; 100_000]);
        for outcome in [
            Outcome::Acked { at: position(), reached, strict: true, reply: Bytes::from_static(b"reply") },
            Outcome::Acked { at: position(), reached, strict: false, reply: Bytes::new() },
            value(vec![]),
            value(vec![Bytes::new()]),
            value(vec![large.clone()]),
            value(vec![Bytes::from_static(b"a"), Bytes::new(), large]),
            Outcome::Indeterminate { reached },
            Outcome::Rejected(Rejection::NotLeader { leader: Some(NodeId(3)) }),
            Outcome::Rejected(Rejection::Busy { queue: Queue::Inbox, limit: u64::MAX }),
        ] {
            assert_eq!(decode_reply(answer(&outcome)), Ok((42, Reply::Outcome(outcome))));
        }
    }

    #[test]
    fn requests_survive_the_wire() {
        let group = GroupId(4);
        let session = Some(SessionSeq { session: SessionId(9), sequence: 10 });
        let mut out = BytesMut::new();
        encode_request(7, &RequestHead::Command { group, level: WriteLevel::Durable(2), session }, b"body", &mut out);
        let (token, call) = decode_request(frame(&out)).unwrap();
        assert_eq!(token, 7);
        let ClientRequest::Call(Call::Command {
            group: GroupId(4),
            level: WriteLevel::Durable(2),
            session: found,
            body,
        }) = call
        else {
            panic!("{call:?}")
        };
        assert_eq!((found, &body[..]), (session, &b"body"[..]));
        let mut seen = replikit_core::SessionToken::new();
        for group in 0..100 {
            seen.observe(Position { stream: StreamId::consensus(GroupId(group)), ..position() });
        }
        let level = ReadLevel::Session(seen);
        let mut out = BytesMut::new();
        encode_request(8, &RequestHead::Query { group, level: level.clone(), bytes_max: u32::MAX }, b"", &mut out);
        let (_, call) = decode_request(frame(&out)).unwrap();
        let ClientRequest::Call(Call::Query { level: found, bytes_max, .. }) = call else { panic!("{call:?}") };
        assert_eq!((found, bytes_max), (level, ANSWER_BYTES_MAX as usize));
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let body = Bytes::from(body);
            let _ = decode_request(Frame { kind: Kind::Request, body: body.clone() });
            let _ = decode_reply(Frame { kind: Kind::Answer, body: body.clone() });
            let _ = decode_feed(Frame { kind: Kind::Answer, body }, ClusterId::from_name("test"));
        }
    }
}
