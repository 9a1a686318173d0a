//! Messages as bytes: what a replica says is encoded, carried as bytes, decoded and verified, so that nothing travels which
//! the real wire could not carry.
//!
//! Layout: checksum of lengths and head, seeded with the cluster (8 bytes); length of all that follows the lengths (4);
//! length of the head (4); the head; then length (4) and bytes of each batch. A batch carries its own checksums.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use replikit_core::{Batch, Batches, ClusterId, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Why a frame was dropped. Blame: the network or the sender; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the head cannot be decoded")]
    Head,
    #[error("the frame has another length than it says")]
    Length,
    #[error("the checksum differs: damaged, or of another cluster")]
    Checksum,
    #[error(transparent)]
    Batch(#[from] replikit_core::BatchError),
}

const SUM_BYTES: usize = 8;
/// Where the head begins.
pub(crate) const HEAD_AT: usize = SUM_BYTES + 8;

/// Encodes a message.
pub(crate) fn encode<H: Serialize>(message: &Message<H>, cluster: ClusterId, scratch: &mut Vec<u8>) -> Bytes {
    scratch.clear();
    scratch.extend_from_slice(&[0; HEAD_AT]);
    postcard::serialize_with_flavor(&message.head, Appended(scratch)).expect("heads of messages always encode");
    let head_bytes = (scratch.len() - HEAD_AT) as u32;
    for batch in message.batches.as_slice() {
        scratch.extend_from_slice(&(batch.bytes() as u32).to_le_bytes());
        scratch.extend_from_slice(batch.as_bytes());
    }
    let rest = (scratch.len() - HEAD_AT) as u32;
    scratch[SUM_BYTES..SUM_BYTES + 4].copy_from_slice(&rest.to_le_bytes());
    scratch[SUM_BYTES + 4..HEAD_AT].copy_from_slice(&head_bytes.to_le_bytes());
    let sum = checksum(&scratch[SUM_BYTES..HEAD_AT + head_bytes as usize], cluster);
    scratch[..SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
    Bytes::copy_from_slice(scratch)
}

fn checksum(lengths_and_head: &[u8], cluster: ClusterId) -> u64 {
    xxh3_64_with_seed(lengths_and_head, cluster.to_u64())
}

/// What is encoded goes behind what is there already.
struct Appended<'a>(&'a mut Vec<u8>);

impl Flavor for Appended<'_> {
    type Output = ();

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn length_at(frame: &[u8], at: usize) -> Result<usize, FrameError> {
    let bytes = frame.get(at..at + 4).ok_or(FrameError::Length)?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
}

/// Decodes a message and verifies each batch.
pub(crate) fn decode<H: DeserializeOwned>(mut frame: Bytes, cluster: ClusterId) -> Result<Message<H>, FrameError> {
    let (rest, head_bytes) = (length_at(&frame, SUM_BYTES)?, length_at(&frame, SUM_BYTES + 4)?);
    if frame.len() != HEAD_AT + rest || head_bytes > rest {
        return Err(FrameError::Length);
    }
    let sum = u64::from_le_bytes(frame[..SUM_BYTES].try_into().expect("eight bytes"));
    if sum != checksum(&frame[SUM_BYTES..HEAD_AT + head_bytes], cluster) {
        return Err(FrameError::Checksum);
    }
    let head = &frame[HEAD_AT..HEAD_AT + head_bytes];
    let (head, left) = postcard::take_from_bytes(head).map_err(|_| FrameError::Head)?;
    if !left.is_empty() {
        return Err(FrameError::Head);
    }
    let mut batches = Batches::None;
    let mut left = frame.split_off(HEAD_AT + head_bytes);
    while !left.is_empty() {
        let bytes = length_at(&left, 0)?;
        if left.len() < 4 + bytes {
            return Err(FrameError::Length);
        }
        let mut batch = left.split_to(4 + bytes);
        batches.push(Batch::verify(batch.split_off(4), cluster)?);
    }
    Ok(Message { head, batches })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn any_damage_and_any_foreign_cluster_is_noticed() {
        let cluster = ClusterId::from_name("here");
        let message = Message { head: (7_u32, "head".to_owned()), batches: Batches::None };
        let frame = encode(&message, cluster, &mut Vec::new());
        let decoded: Message<(u32, String)> = decode(frame.clone(), cluster).expect("undamaged");
        assert_eq!(decoded.head, message.head);
        assert!(decode::<(u32, String)>(frame.clone(), ClusterId::from_name("there")).is_err());
        for bit in 0..frame.len() * 8 {
            let mut damaged = BytesMut::from(&frame[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(u32, String)>(damaged.freeze(), cluster).is_err(), "bit {bit}");
        }
        for length in 0..frame.len() {
            assert!(decode::<(u32, String)>(frame.slice(..length), cluster).is_err(), "{length} bytes");
        }
    }
}
