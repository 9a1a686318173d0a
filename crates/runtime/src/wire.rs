//! What stands on a connection: frames, the greeting, messages between peers, requests and answers of clients.
//!
//! A frame is a u32 length (little endian, of what follows), a u8 kind, and a body. Invariants: a length is checked against
//! its limit before anything is allocated for it; whatever does not parse is an error of its connection and of nothing
//! else; batches travel as they lie in memory and are verified once, on arrival.

mod client;
mod frame;
mod greeting;
mod outbox;
mod peer;

pub(crate) use client::{
    ClientRequest, FeedReply, Reply, RequestHead, decode_feed, decode_reply, decode_request, encode_answer,
    encode_changes, encode_request, encode_status, encode_subscribed, encode_unsubscribed,
};
pub(crate) use frame::{FrameBuffer, FrameError};
pub(crate) use greeting::{GREETING_BYTES_MAX, Hello, PartyRole, Welcome, refusal};
pub use greeting::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, greets_as_client};
pub(crate) use outbox::{Flushed, Outbox};
pub(crate) use peer::{decode_message, encode_message};
