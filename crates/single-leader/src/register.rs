//! The durable record of a replica: its term, and whom it voted for in it. Source: Raft section 5.2, figure 2.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use replikit_core::{NodeId, Term};

/// Invariant: never goes back; a vote, once given in a term, never changes in that term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
}

const VERSION: u8 = 1;

impl Ballot {
    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(&(VERSION, self)).expect("a ballot always encodes").into()
    }

    /// The record as it was; an empty one means that none was ever written. `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        match postcard::from_bytes(bytes) {
            Ok((VERSION, ballot)) => Some(ballot),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ballot_survives_and_other_bytes_do_not() {
        let ballot = Ballot { term: Term(300), vote: Some(NodeId(3)) };
        assert_eq!(Ballot::decode(&ballot.encode()), Some(ballot));
        assert_eq!(Ballot::decode(b""), Some(Ballot::default()));
        assert_eq!(Ballot::decode(&[9, 9, 9]), None);
    }
}
