//! What waits to be written to one connection: small pieces copied together, large ones shared, one system call for all.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use crate::counters::Counters;

/// Pieces up to this size are copied: cheaper than a segment of their own.
const COPY_BYTES_MAX: usize = 8 << 10;
/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BYTES_MAX: usize = 1 << 20;
const SEGMENTS_PER_WRITE: usize = 64;

/// Whether everything could be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    All,
    /// The socket takes no more for now.
    Blocked,
}

/// Bytes on their way out, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    segments: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds bytes by copying them.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Adds bytes without copying them, unless that is cheaper.
    pub(crate) fn share(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX {
            return self.copy(bytes);
        }
        self.bytes += bytes.len();
        self.seal();
        self.segments.push_back(bytes.clone());
    }

    /// Forgets everything: the connection is gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.segments.push_back(self.tail.split().freeze());
        }
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self, stream: &TcpStream, counters: &Counters) -> io::Result<Flushed> {
        while self.bytes > 0 {
            let written = if self.segments.is_empty() {
                stream.try_write(&self.tail)
            } else {
                self.seal();
                let mut slices = [IoSlice::new(&[]); SEGMENTS_PER_WRITE];
                let mut count = 0;
                for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                    *slice = IoSlice::new(segment);
                    count += 1;
                }
                stream.try_write_vectored(&slices[..count])
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    counters.socket_writes.one();
                    counters.bytes_sent.add(written as u64);
                    self.written(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.tail.capacity() > KEEP_BYTES_MAX {
            self.tail = BytesMut::new();
        }
        Ok(Flushed::All)
    }

    fn written(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.segments.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.segments.pop_front();
        }
        if written == self.tail.len() {
            self.tail.clear();
        } else {
            self.tail.advance(written);
        }
    }
}

#[cfg(test)]
impl Outbox {
    /// Everything, for tests of what is written.
    pub(crate) fn sealed(&mut self) -> Vec<Bytes> {
        self.seal();
        self.bytes = 0;
        self.segments.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_in_order_whatever_part_of_them_a_write_takes() {
        let large = Bytes::from(vec![b'L'; COPY_BYTES_MAX + 1]);
        for step in [1, 7, 4096, COPY_BYTES_MAX + 3] {
            let mut outbox = Outbox::default();
            outbox.copy(b"first");
            outbox.share(&large);
            outbox.copy(b"last");
            let mut expected = [b"first", &large[..], b"last"].concat();
            assert_eq!(outbox.bytes(), expected.len());
            outbox.seal();
            while outbox.bytes() > 0 {
                let step = step.min(outbox.bytes());
                outbox.written(step);
                expected.drain(..step);
                let left: Vec<u8> = outbox.segments.iter().flat_map(|segment| segment.to_vec()).collect();
                assert_eq!(left.len() + outbox.tail.len(), expected.len());
                assert_eq!(left, expected[..left.len()]);
            }
        }
    }
}
