//! Messages between peers: the head as postcard, then the batches back to back, as they lie in memory.

use bytes::{Buf, Bytes};
use replikit_core::{Batch, BatchHeader, Batches, ClusterId, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, Kind, frame_header};
use super::outbox::Outbox;

/// Heads up to this size are encoded on the stack.
const HEAD_BYTES_USUAL: usize = 512;

/// Adds a message to an outbox and returns the bytes of its frame; `None`, and nothing added, if the other side would
/// refuse it as too long.
pub(crate) fn encode_message<H: Serialize>(
    message: &Message<H>,
    frame_bytes_max: usize,
    outbox: &mut Outbox,
) -> Option<usize> {
    let mut usual = [0; HEAD_BYTES_USUAL];
    let unusual;
    let head = match postcard::to_slice(&message.head, &mut usual) {
        Ok(head) => &*head,
        Err(_) => {
            unusual = postcard::to_stdvec(&message.head).ok()?;
            &unusual[..]
        }
    };
    let body_bytes = head.len() + message.batches.bytes();
    if body_bytes + 1 > frame_bytes_max {
        return None;
    }
    outbox.copy(&frame_header(Kind::Message, body_bytes));
    outbox.copy(head);
    for batch in message.batches.as_slice() {
        outbox.share(batch.as_bytes());
    }
    Some(FRAME_HEADER_BYTES + body_bytes)
}

/// Reads a message; its batches are slices of the frame, each verified.
pub(crate) fn decode_message<H: DeserializeOwned>(frame: Frame, cluster: ClusterId) -> Result<Message<H>, FrameError> {
    if frame.kind != Kind::Message {
        return Err(FrameError::Kind { kind: frame.kind as u8 });
    }
    let mut body = frame.body;
    let (head, rest) =
        postcard::take_from_bytes(&body).map_err(|_| FrameError::Malformed { what: "head of a message" })?;
    let head_bytes = body.len() - rest.len();
    body.advance(head_bytes);
    let mut batches = Batches::None;
    while !body.is_empty() {
        batches.push(take_batch(&mut body, cluster)?);
    }
    Ok(Message { head, batches })
}

fn take_batch(body: &mut Bytes, cluster: ClusterId) -> Result<Batch, FrameError> {
    let header = BatchHeader::read(body, cluster)?;
    if header.bytes > body.len() {
        return Err(FrameError::Malformed { what: "a batch that is longer than its frame" });
    }
    Ok(Batch::verify(body.split_to(header.bytes), cluster)?)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use replikit_core::{BatchKind, BatchMeta, GroupId, HybridTimestamp, LogIndex, StreamId, Term};

    use super::super::FrameBuffer;
    use super::*;

    fn batch(cluster: ClusterId, payload: &[u8]) -> Batch {
        let meta = BatchMeta {
            cluster,
            stream: StreamId::consensus(GroupId(1)),
            base: LogIndex(1),
            term: Term(1),
            prev_digest: 0,
            time: HybridTimestamp(1),
            kind: BatchKind::Commands,
        };
        Batch::build(&meta, std::iter::once((payload, None)))
    }

    fn bytes_of(outbox: &mut Outbox) -> Vec<u8> {
        outbox.sealed().into_iter().flat_map(|segment| segment.to_vec()).collect()
    }

    fn frame(bytes: &[u8]) -> Frame {
        FrameBuffer::new(BytesMut::from(bytes), 24 << 20).next().unwrap().unwrap()
    }

    #[test]
    fn messages_survive_the_wire_with_any_number_of_batches() {
        let cluster = ClusterId::from_name("a");
        let (small, large) = (batch(cluster, b"x"), batch(cluster, &[7; 20_000]));
        for batches in [vec![], vec![small.clone()], vec![large.clone()], vec![small.clone(), large, small]] {
            let message = Message { head: (3_u32, "head".to_owned()), batches: batches.iter().cloned().collect() };
            let mut outbox = Outbox::default();
            let bytes = encode_message(&message, 24 << 20, &mut outbox).unwrap();
            assert_eq!(outbox.bytes(), bytes);
            let decoded = decode_message::<(u32, String)>(frame(&bytes_of(&mut outbox)), cluster).unwrap();
            assert_eq!(decoded.head, message.head);
            assert_eq!(decoded.batches.as_slice(), &batches[..]);
        }
    }

    #[test]
    fn heads_of_unusual_length_survive_as_well() {
        let message = Message { head: vec![1_u8; 3 * HEAD_BYTES_USUAL], batches: Batches::None };
        let mut outbox = Outbox::default();
        encode_message(&message, 24 << 20, &mut outbox).unwrap();
        let decoded = decode_message::<Vec<u8>>(frame(&bytes_of(&mut outbox)), ClusterId::from_name("a")).unwrap();
        assert_eq!(decoded.head, message.head);
    }

    #[test]
    fn a_message_that_the_other_side_would_refuse_is_not_begun() {
        let message = Message { head: [0_u8; 32], batches: Batches::None };
        let mut outbox = Outbox::default();
        assert_eq!(encode_message(&message, 32, &mut outbox), None);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_behind_the_head_is_an_error() {
        let cluster = ClusterId::from_name("a");
        let message = Message { head: 5_u8, batches: Batches::One(batch(cluster, b"payload")) };
        let mut outbox = Outbox::default();
        encode_message(&message, 1 << 20, &mut outbox).unwrap();
        let body = frame(&bytes_of(&mut outbox)).body;
        let decode = |body: &[u8]| {
            let body = Bytes::copy_from_slice(body);
            decode_message::<u8>(Frame { kind: Kind::Message, body }, cluster)
        };
        for cut in (0..body.len()).filter(|&cut| cut != 1) {
            assert!(decode(&body[..cut]).is_err(), "cut to {cut}");
        }
        for bit in 8..body.len() * 8 {
            let mut bytes = body.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
    }
}
