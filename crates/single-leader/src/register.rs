//! The durable record of a replica: its term, whom it voted for in it, and whether it may have forgotten what it promised. Source: Raft
//! section 5.2, figure 2; the last is our own: the log tells of a tail that was cut only until the next record.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use replikit_core::{NodeId, Term};

/// Invariant: never goes back; a vote, once given in a term, never changes in that term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
}

/// Of a replica that remembers everything.
const VERSION: u8 = 1;
/// Of one whose log's tail was cut, and who has not caught up since.
const VERSION_CUT: u8 = 2;

impl Ballot {
    pub(crate) fn encode(&self, is_cut: bool) -> Bytes {
        let version = if is_cut { VERSION_CUT } else { VERSION };
        postcard::to_stdvec(&(version, self)).expect("a ballot always encodes").into()
    }

    /// The record as it was, and whether it is of a replica whose log's tail was cut; an empty one means that none was ever written.
    /// `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        if bytes.is_empty() {
            return Some((Self::default(), false));
        }
        match postcard::from_bytes(bytes) {
            Ok((VERSION, ballot)) => Some((ballot, false)),
            Ok((VERSION_CUT, ballot)) => Some((ballot, true)),
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
        for is_cut in [false, true] {
            assert_eq!(Ballot::decode(&ballot.encode(is_cut)), Some((ballot, is_cut)));
        }
        assert_eq!(ballot.encode(false)[..], [1, 172, 2, 1, 3], "the bytes of version 1 stay");
        assert_eq!(Ballot::decode(b""), Some((Ballot::default(), false)));
        assert_eq!(Ballot::decode(&[9, 9, 9]), None);
    }
}
