//! Frames: cut out of what was read, without copying.

use bytes::{Buf, Bytes, BytesMut};
use replikit_core::BatchError;

/// Bytes before a frame's body: length and kind.
pub(crate) const FRAME_HEADER_BYTES: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Message = 4,
    Request = 5,
    Answer = 6,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refused,
            4 => Self::Message,
            5 => Self::Request,
            6 => Self::Answer,
            _ => return None,
        })
    }
}

/// Why what came over a connection is not understood. Blame: the other side; the connection is closed, nothing else
/// changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The frame is longer than the receiver takes, or has no kind.
    #[error("a frame of {bytes} bytes, the limit is {bytes_max}")]
    Length { bytes: usize, bytes_max: usize },
    /// The frame's kind is not known, or does not belong here.
    #[error("a frame of kind {kind} does not belong here")]
    Kind { kind: u8 },
    /// The body does not parse.
    #[error("a frame that does not parse: {what}")]
    Malformed { what: &'static str },
    /// A batch in the body does not verify.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) body: Bytes,
}

/// Bytes read and not yet cut into frames.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: BytesMut,
    frame_bytes_max: usize,
    /// Room that the next read gets; grows with what reads bring.
    room: usize,
}

const ROOM_MIN: usize = 8 << 10;
const ROOM_MAX: usize = 256 << 10;

impl FrameBuffer {
    pub(crate) const fn new(bytes: BytesMut, frame_bytes_max: usize) -> Self {
        Self { bytes, frame_bytes_max, room: ROOM_MIN }
    }

    /// What is left of the buffer, for another limit.
    pub(crate) fn into_bytes(self) -> BytesMut {
        self.bytes
    }

    /// The buffer with room to read into. What is reserved is in proportion to what has arrived, not to what a frame
    /// announces.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() - self.bytes.len() < ROOM_MIN / 2 {
            self.bytes.reserve(self.room.max(self.missing().min(self.bytes.len())));
        }
        &mut self.bytes
    }

    /// Takes note of what a read brought; whether it filled the buffer, so that more may be waiting.
    pub(crate) fn filled(&mut self, read: usize) -> bool {
        let full = self.bytes.len() == self.bytes.capacity();
        if full || read > self.room / 2 {
            self.room = (self.room * 2).min(ROOM_MAX);
        }
        full
    }

    /// Bytes that the frame at the front still lacks, where that is known.
    fn missing(&self) -> usize {
        let Some((length, _)) = self.bytes.split_first_chunk::<4>() else { return 0 };
        (u32::from_le_bytes(*length) as usize).min(self.frame_bytes_max).saturating_sub(self.bytes.len())
    }

    /// The next whole frame, if it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > self.frame_bytes_max {
            return Err(FrameError::Length { bytes: length, bytes_max: self.frame_bytes_max });
        }
        let Some(&kind) = rest.first() else { return Ok(None) };
        let kind = Kind::of(kind).ok_or(FrameError::Kind { kind })?;
        if rest.len() < length {
            return Ok(None);
        }
        let mut body = self.bytes.split_to(4 + length).freeze();
        body.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame { kind, body }))
    }
}

/// The bytes before a body of this length.
pub(crate) fn frame_header(kind: Kind, body_bytes: usize) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    let length = u32::try_from(body_bytes + 1).expect("frames are limited far below 4 GiB");
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4] = kind as u8;
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(kind: Kind, body: &[u8]) -> Vec<u8> {
        [&frame_header(kind, body.len())[..], body].concat()
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let bytes =
            [framed(Kind::Request, b"first"), framed(Kind::Answer, b""), framed(Kind::Message, b"third")].concat();
        for piece in 1..=bytes.len() {
            let mut buffer = FrameBuffer::new(BytesMut::new(), 64);
            let mut frames = Vec::new();
            for piece in bytes.chunks(piece) {
                buffer.room().extend_from_slice(piece);
                while let Some(frame) = buffer.next().unwrap() {
                    frames.push((frame.kind, frame.body.to_vec()));
                }
            }
            let expected =
                [(Kind::Request, b"first".to_vec()), (Kind::Answer, b"".to_vec()), (Kind::Message, b"third".to_vec())];
            assert_eq!(frames, expected);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_from_its_first_four_bytes() {
        let mut buffer = FrameBuffer::new(BytesMut::new(), 1000);
        buffer.room().extend_from_slice(&1001_u32.to_le_bytes());
        let capacity = buffer.bytes.capacity();
        assert_eq!(buffer.next(), Err(FrameError::Length { bytes: 1001, bytes_max: 1000 }));
        assert_eq!(buffer.bytes.capacity(), capacity, "nothing was allocated for it");
    }

    #[test]
    fn an_announced_length_reserves_no_more_than_in_proportion_to_what_arrived() {
        let mut buffer = FrameBuffer::new(BytesMut::new(), 24 << 20);
        buffer.room().extend_from_slice(&framed(Kind::Message, b"")[..0]);
        buffer.room().extend_from_slice(&(20_u32 << 20).to_le_bytes());
        buffer.room().extend_from_slice(&[Kind::Message as u8; 4096]);
        assert_eq!(buffer.next(), Ok(None));
        assert!(buffer.room().capacity() <= 64 << 10, "{} bytes for a promise", buffer.bytes.capacity());
    }

    #[test]
    fn an_empty_frame_and_an_unknown_kind_are_errors() {
        for (bytes, error) in [
            (vec![0, 0, 0, 0], FrameError::Length { bytes: 0, bytes_max: 64 }),
            (vec![1, 0, 0, 0, 99], FrameError::Kind { kind: 99 }),
        ] {
            let mut buffer = FrameBuffer::new(BytesMut::from(&bytes[..]), 64);
            assert_eq!(buffer.next(), Err(error));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = FrameBuffer::new(BytesMut::from(&bytes[..]), 100);
            while let Ok(Some(_)) = buffer.next() {}
        }
    }
}
