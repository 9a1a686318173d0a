//! Messages as bytes: what a replica says is encoded, carried as bytes, decoded and verified, so that nothing travels which
//! the real wire could not carry.

use bytes::{Bytes, BytesMut};
use replikit_core::{Batch, Batches, ClusterId, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a frame was dropped. Blame: the network or the sender; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the head cannot be decoded")]
    Head,
    #[error("the frame is cut short")]
    Short,
    #[error(transparent)]
    Batch(#[from] replikit_core::BatchError),
}

/// Encodes a message: length and bytes of the head, then length and bytes of each batch, lengths in 4 bytes.
pub(crate) fn encode<H: Serialize>(message: &Message<H>, scratch: &mut BytesMut) -> Bytes {
    scratch.extend_from_slice(&[0; 4]);
    let buffer = core::mem::take(scratch);
    let buffer = postcard::to_extend(&message.head, ExtendBytes(buffer)).expect("heads of messages always encode").0;
    *scratch = buffer;
    let head_bytes = (scratch.len() - 4) as u32;
    scratch[..4].copy_from_slice(&head_bytes.to_le_bytes());
    for batch in message.batches.as_slice() {
        scratch.extend_from_slice(&(batch.bytes() as u32).to_le_bytes());
        scratch.extend_from_slice(batch.as_bytes());
    }
    scratch.split().freeze()
}

struct ExtendBytes(BytesMut);

impl Extend<u8> for ExtendBytes {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

fn take(frame: &mut Bytes, bytes: usize) -> Result<Bytes, FrameError> {
    if frame.len() < bytes { Err(FrameError::Short) } else { Ok(frame.split_to(bytes)) }
}

fn take_length(frame: &mut Bytes) -> Result<usize, FrameError> {
    let length = take(frame, 4)?;
    Ok(u32::from_le_bytes(length[..].try_into().expect("four bytes")) as usize)
}

/// Decodes a message and verifies each batch.
pub(crate) fn decode<H: DeserializeOwned>(mut frame: Bytes, cluster: ClusterId) -> Result<Message<H>, FrameError> {
    let head_bytes = take_length(&mut frame)?;
    let head = take(&mut frame, head_bytes)?;
    let (head, rest) = postcard::take_from_bytes(&head).map_err(|_| FrameError::Head)?;
    if !rest.is_empty() {
        return Err(FrameError::Head);
    }
    let mut batches = Batches::None;
    while !frame.is_empty() {
        let bytes = take_length(&mut frame)?;
        batches.push(Batch::verify(take(&mut frame, bytes)?, cluster)?);
    }
    Ok(Message { head, batches })
}

/// Where the batches of a frame begin: a flipped bit there must be noticed by their checksums.
pub(crate) fn batches_start(frame: &[u8]) -> usize {
    4 + u32::from_le_bytes(frame[..4].try_into().expect("a frame begins with a length")) as usize
}
