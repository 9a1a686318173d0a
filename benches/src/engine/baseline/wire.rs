//! What the baseline and its client say to each other: a u32 length (little endian, of what follows), a u8 kind, a u64 token,
//! and a body, which is the keyspace's own encoding. The least that a pipelined protocol can be.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before a body.
const HEAD_BYTES: usize = 4 + 1 + 8;
/// Longest frame, in bytes.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command; the answer is the state machine's reply.
    Command,
    /// A query; the answer is the state machine's answer.
    Query,
    /// How many fsyncs there were, and how many bytes were written to disk; the answer is two u64.
    Counted,
}

/// A request or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) token: u64,
    pub(super) body: Bytes,
}

/// A frame that breaks the format; its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Frame {
    /// Adds a frame to what waits for a connection.
    pub(super) fn put(kind: Kind, token: u64, body: &[u8], out: &mut BytesMut) {
        out.put_u32_le((HEAD_BYTES - 4 + body.len()) as u32);
        out.put_u8(kind as u8);
        out.put_u64_le(token);
        out.put_slice(body);
    }

    /// Takes the first whole frame from what was read.
    pub(super) fn take(bytes: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some((length, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if !(HEAD_BYTES - 4..=FRAME_BYTES_MAX).contains(&length) {
            return Err(Malformed);
        }
        if bytes.len() < 4 + length {
            return Ok(None);
        }
        let mut body = bytes.split_to(4 + length).freeze();
        body.advance(4);
        let kind = match body.get_u8() {
            0 => Kind::Command,
            1 => Kind::Query,
            2 => Kind::Counted,
            _ => return Err(Malformed),
        };
        Ok(Some(Self { kind, token: body.get_u64_le(), body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let mut sent = BytesMut::new();
        Frame::put(Kind::Command, 1, b"first", &mut sent);
        Frame::put(Kind::Query, 2, b"", &mut sent);
        let mut read = BytesMut::new();
        let mut frames = Vec::new();
        for byte in &sent {
            read.put_u8(*byte);
            frames.extend(Frame::take(&mut read).expect("the frames are well formed"));
        }
        let expected = [
            Frame { kind: Kind::Command, token: 1, body: Bytes::from_static(b"first") },
            Frame { kind: Kind::Query, token: 2, body: Bytes::new() },
        ];
        assert_eq!(frames, expected);
    }

    #[test]
    fn a_length_or_kind_out_of_range_is_refused() {
        for bytes in [&[0, 0, 0, 0][..], &[255, 255, 255, 255], &[9, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Frame::take(&mut BytesMut::from(bytes)), Err(Malformed));
        }
    }
}
