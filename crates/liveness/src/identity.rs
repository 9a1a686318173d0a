//! Who is detected: a node, and which of its lives.
//!
//! Invariant: of two lives of a node the later one counts, whatever order one hears of them in; a node that others hold to be
//! dead comes back as a later life.

use bytes::{Buf, BufMut};
use foca::{Codec, Header};
use replikit_core::NodeId;
use serde::{Deserialize, Serialize};

/// One life of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) node: NodeId,
    /// Later lives have larger numbers.
    pub(crate) generation: u64,
    /// How often it was held to be dead in a row. It goes up by twice as much each time: it may have begun far below what others
    /// remember, when its clock went back while it was down.
    renewals: u8,
}

impl Life {
    pub(crate) const fn new(node: NodeId, generation: u64) -> Self {
        Self { node, generation, renewals: 0 }
    }
}

impl foca::Identity for Life {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let renewals = self.renewals.saturating_add(1).min(63);
        Some(Self { node: self.node, generation: self.generation.saturating_add(1 << (renewals - 1)), renewals })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.generation, self.renewals) > (adversary.generation, adversary.renewals)
    }
}

/// Why a probe of a peer is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it is not a probe")]
    Encoding,
    #[error("it speaks of a node that does not exist")]
    Stranger,
}

/// How probes are written: in postcard, about these nodes only, so that nobody makes anybody remember others.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    /// Ascending.
    pub(crate) nodes: Vec<NodeId>,
}

impl Wire {
    fn known(&self, life: &Life) -> Result<(), Malformed> {
        self.nodes.binary_search(&life.node).map(drop).map_err(|_| Malformed::Stranger)
    }
}

fn put(value: &impl Serialize, mut buffer: impl BufMut) -> Result<(), Malformed> {
    let bytes = postcard::to_stdvec(value).map_err(|_| Malformed::Encoding)?;
    if buffer.remaining_mut() < bytes.len() {
        return Err(Malformed::Encoding);
    }
    buffer.put_slice(&bytes);
    Ok(())
}

fn take<T: serde::de::DeserializeOwned>(mut buffer: impl Buf) -> Result<T, Malformed> {
    let (value, rest) = postcard::take_from_bytes(buffer.chunk()).map_err(|_| Malformed::Encoding)?;
    let taken = buffer.chunk().len() - rest.len();
    buffer.advance(taken);
    Ok(value)
}

impl Codec<Life> for Wire {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Life>, buffer: impl BufMut) -> Result<(), Malformed> {
        put(header, buffer)
    }

    fn decode_header(&mut self, buffer: impl Buf) -> Result<Header<Life>, Malformed> {
        let header: Header<Life> = take(buffer)?;
        self.known(&header.src)?;
        self.known(&header.dst)?;
        Ok(header)
    }

    fn encode_member(&mut self, member: &foca::Member<Life>, buffer: impl BufMut) -> Result<(), Malformed> {
        put(member, buffer)
    }

    fn decode_member(&mut self, buffer: impl Buf) -> Result<foca::Member<Life>, Malformed> {
        let member: foca::Member<Life> = take(buffer)?;
        self.known(member.id())?;
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity;

    use super::*;

    #[test]
    fn a_life_that_began_far_below_what_others_remember_gets_above_it_soon() {
        let remembered = Life::new(NodeId(1), 1_800_000_000_000);
        let mut life = Life::new(NodeId(1), 1);
        let mut renewals = 0;
        while !life.win_addr_conflict(&remembered) {
            life = life.renew().expect("always");
            renewals += 1;
        }
        assert!(renewals <= 41, "{renewals}");
    }
}
