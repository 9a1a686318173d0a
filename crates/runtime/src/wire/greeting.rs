//! The greeting: who speaks to whom, in which version, of which cluster; before anything else, in both roles.
//!
//! The layout of [`Hello`] is the same in every version, so that versions can always tell each other apart.

use bytes::Bytes;
use replikit_core::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, Kind, frame_header};

/// Newest version of the wire protocol that this code speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Oldest version of the wire protocol that this code speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;

/// Largest frame of a greeting, in bytes.
pub(crate) const GREETING_BYTES_MAX: usize = 64 << 10;

const MAGIC: &[u8; 8] = b"replikit";
const HELLO_BYTES: usize = 33;

/// What the side that dials is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartyRole {
    /// A node that will send messages.
    Peer(NodeId),
    /// A client that will send requests.
    Client,
}

/// The first frame of the side that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) cluster: ClusterId,
    pub(crate) role: PartyRole,
    /// What a peer was founded with, in short; a client does not know.
    pub(crate) founding: u64,
}

impl Hello {
    pub(crate) const fn new(cluster: ClusterId, role: PartyRole) -> Self {
        Self { version_min: PROTOCOL_VERSION_MIN, version_max: PROTOCOL_VERSION, cluster, role, founding: 0 }
    }

    pub(crate) const fn founded(mut self, founding: u64) -> Self {
        self.founding = founding;
        self
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let (role, node) = match self.role {
            PartyRole::Peer(node) => (1, node.0),
            PartyRole::Client => (2, 0),
        };
        let mut bytes = frame_header(Kind::Hello, HELLO_BYTES).to_vec();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.version_min.to_le_bytes());
        bytes.extend_from_slice(&self.version_max.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.to_u64().to_le_bytes());
        bytes.push(role);
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&self.founding.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(frame: &Frame) -> Result<Self, FrameError> {
        if frame.kind != Kind::Hello {
            return Err(FrameError::Kind { kind: frame.kind as u8 });
        }
        let body: &[u8; HELLO_BYTES] =
            frame.body[..].try_into().map_err(|_| FrameError::Malformed { what: "greeting of another length" })?;
        if &body[..8] != MAGIC {
            return Err(FrameError::Malformed { what: "not a greeting of this protocol" });
        }
        let short = |at: usize| u16::from_le_bytes([body[at], body[at + 1]]);
        let cluster = u64::from_le_bytes(body[12..20].try_into().expect("eight bytes"));
        let node = NodeId(u32::from_le_bytes(body[21..25].try_into().expect("four bytes")));
        let role = match body[20] {
            1 => PartyRole::Peer(node),
            2 => PartyRole::Client,
            _ => return Err(FrameError::Malformed { what: "greeting of an unknown role" }),
        };
        let cluster = ClusterId::from_u64(cluster);
        let founding = u64::from_le_bytes(body[25..].try_into().expect("eight bytes"));
        Ok(Self { version_min: short(8), version_max: short(10), cluster, role, founding })
    }
}

/// Whether a connection that begins with these bytes is that of a client: for what stands between the two and treats clients and
/// nodes differently. Anything but a whole greeting is not.
#[must_use]
pub fn greets_as_client(first: &[u8]) -> bool {
    let Some((header, body)) = first.split_at_checked(FRAME_HEADER_BYTES) else { return false };
    let hello = frame_header(Kind::Hello, HELLO_BYTES) == header && body.len() >= HELLO_BYTES;
    hello && {
        let frame = Frame { kind: Kind::Hello, body: Bytes::copy_from_slice(&body[..HELLO_BYTES]) };
        Hello::decode(&frame).is_ok_and(|hello| hello.role == PartyRole::Client)
    }
}

/// The answer of the side that accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The version that both speak.
    pub(crate) version: u16,
    /// Who accepts.
    pub(crate) node: NodeId,
    /// Who leads, as far as it knows.
    pub(crate) leader: Option<NodeId>,
    /// All nodes and where they listen.
    pub(crate) nodes: Vec<(NodeId, String)>,
}

impl Welcome {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("a welcome always encodes");
        [&frame_header(Kind::Welcome, body.len())[..], &body].concat()
    }

    /// Reads the answer to a greeting.
    ///
    /// # Errors
    /// The outer one when it does not parse; the inner one is the reason given for a refusal.
    pub(crate) fn decode(frame: &Frame) -> Result<Result<Self, String>, FrameError> {
        match frame.kind {
            Kind::Welcome => postcard::from_bytes(&frame.body)
                .map(Ok)
                .map_err(|_| FrameError::Malformed { what: "a welcome that does not parse" }),
            Kind::Refused => Ok(Err(one_line(&frame.body))),
            kind => Err(FrameError::Kind { kind: kind as u8 }),
        }
    }
}

/// The frame that refuses a connection for a reason.
pub(crate) fn refusal(reason: &str) -> Vec<u8> {
    [&frame_header(Kind::Refused, reason.len())[..], reason.as_bytes()].concat()
}

const REASON_CHARS_MAX: usize = 400;

fn one_line(reason: &Bytes) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    String::from_utf8_lossy(reason).chars().take(REASON_CHARS_MAX).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::FrameBuffer;
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        FrameBuffer::new(BytesMut::from(bytes), GREETING_BYTES_MAX).next().unwrap().unwrap()
    }

    #[test]
    fn who_greets_is_told_from_the_first_bytes() {
        let cluster = ClusterId::from_name("c");
        let of_client = Hello::new(cluster, PartyRole::Client).encode();
        let behind_it = [&of_client[..], b"a request"].concat();
        assert!(greets_as_client(&of_client) && greets_as_client(&behind_it));
        assert!(!greets_as_client(&of_client[..of_client.len() - 1]));
        assert!(!greets_as_client(&Hello::new(cluster, PartyRole::Peer(NodeId(1))).encode()));
        assert!(!greets_as_client(&[]) && !greets_as_client(&[7; 64]));
    }

    #[test]
    fn greetings_survive_the_wire() {
        for role in [PartyRole::Peer(NodeId(7)), PartyRole::Client] {
            let hello = Hello::new(ClusterId::from_name("a"), role);
            assert_eq!(Hello::decode(&frame(&hello.encode())), Ok(hello));
        }
        let nodes = vec![(NodeId(1), "127.0.0.1:1".to_owned())];
        let welcome = Welcome { version: 1, node: NodeId(2), leader: Some(NodeId(1)), nodes };
        assert_eq!(Welcome::decode(&frame(&welcome.encode())), Ok(Ok(welcome)));
    }

    #[test]
    fn the_reason_of_a_refusal_arrives_as_one_printable_line() {
        let refused = frame(&refusal("wrong\ncluster\u{1b}[2J"));
        assert_eq!(Welcome::decode(&refused), Ok(Err("wrong cluster [2J".to_owned())));
    }

    #[test]
    fn every_damaged_greeting_is_an_error_or_another_greeting_and_never_a_panic() {
        let good = Hello::new(ClusterId::from_name("a"), PartyRole::Client).encode();
        for at in 5..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let decoded = Hello::decode(&frame(&bytes));
                if at < 26 {
                    assert_ne!(decoded, Hello::decode(&frame(&good)), "byte {at} counts for nothing");
                }
                if at < 5 + MAGIC.len() {
                    assert!(decoded.is_err());
                }
            }
        }
    }
}
