//! What a write must have reached before it is acknowledged, and how fresh a read must be: DDIA's asynchronous,
//! semi-synchronous and synchronous replication, and its read guarantees, as values chosen per request.
//!
//! Source: DDIA chapter 5; session guarantees: Terry et al., PDIS'94.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{CausalContext, GroupId, LogId, LogIndex, Position, StreamId, Term};

/// When a write counts as done. Per write, weakest first.
///
/// Anything below [`Quorum`](Self::Quorum) may be lost by a change of leader; such a loss is reported as
/// [`Event::LostWrites`](crate::Event::LostWrites) and the dropped suffix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum WriteLevel {
    /// In the leader's memory. A crash of the leader may lose it.
    Memory,
    /// On the leader's disk. The loss of the leader may lose it.
    LeaderDisk,
    /// In the memory of this many replicas, the leader counted. DDIA's semi-synchronous, without the disk.
    Received(u8),
    /// On the disk of this many replicas, the leader counted.
    Durable(u8),
    /// Committed: on the disks of a write quorum and never undone. The default.
    #[default]
    Quorum,
    /// Committed, and applied by this many replicas, the leader counted: a local read at any of them sees it.
    Applied(u8),
    /// On the disks of the owners that the name asks for, in families whose owners are equal; others refuse it.
    Owners(Owners),
}

/// How many owners of a key take part, by name, in families whose owners are equal. What a read sees of earlier writes follows
/// from both sizes: with R + W > N, all of them.
///
/// Source: Dynamo (DeCandia et al., SOSP 2007); the names are Cassandra's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Owners {
    /// One.
    One,
    /// Two.
    Two,
    /// Three.
    Three,
    /// As many as the group is set up for: a majority unless said otherwise.
    Quorum,
    /// All of them.
    All,
    /// One in the region of the node that is asked.
    LocalOne,
    /// A majority of those in the region of the node that is asked.
    LocalQuorum,
    /// A majority in every region.
    EachQuorum,
    /// For writes: one owner, or one node that keeps the write for an owner until it is back. Such a write is never called
    /// strict: no read need see it.
    Any,
}

/// How fresh a read must be. Per read.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReadLevel {
    /// Sees every write that was acknowledged at `Quorum` or stronger before the read began. The default.
    #[default]
    Linearizable,
    /// Sees at least what the token has seen: read-your-writes, monotonic reads, at any replica.
    Session(SessionToken),
    /// Sees everything committed up to this long ago, as far as the replica can prove it.
    BoundedStale(Duration),
    /// Whatever this replica has applied.
    Local,
    /// The newest of the answers of this many replicas (families without a leader).
    Replicas(u8),
    /// What the owners that the name asks for know together (families whose owners are equal).
    Owners(Owners),
}

/// What a session has seen: carried by the client from one request to the next, also to another replica.
///
/// At most one position per stream, ascending by stream. It holds the term, the index and the digest of the newest write
/// seen, so that a client learns when that write was lost with a leader that had acknowledged it in memory only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SessionToken {
    positions: Vec<Position>,
}

impl SessionToken {
    /// A token that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { positions: Vec::new() }
    }

    /// Takes note of a position that the session has written or read; an older one than known changes nothing.
    pub fn observe(&mut self, position: Position) {
        match self.positions.binary_search_by_key(&position.stream, |seen| seen.stream) {
            Ok(at) => {
                if self.positions[at].id < position.id {
                    self.positions[at] = position;
                }
            }
            Err(at) => self.positions.insert(at, position),
        }
    }

    /// Takes note of what a read of one key has seen, in families with an origin for each writer: of each origin the newest
    /// write, as a position of that origin's stream, without a term or a digest.
    ///
    /// What a token says is "everything up to here", while a context is exact. So a replica that has gaps below the newest
    /// write of an origin does not meet the token, although it may hold all that was read.
    pub fn observe_context(&mut self, group: GroupId, context: &CausalContext) {
        for (origin, held) in context.vector().iter() {
            let id = LogId { term: Term(0), index: LogIndex(held.top()) };
            self.observe(Position { stream: StreamId { group, origin }, id, digest: 0 });
        }
    }

    /// The newest position seen in a stream.
    #[must_use]
    pub fn position(&self, stream: StreamId) -> Option<Position> {
        self.positions.binary_search_by_key(&stream, |seen| seen.stream).ok().map(|at| self.positions[at])
    }

    /// All positions, ascending by stream.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dot, OriginId};

    #[test]
    fn a_token_never_goes_back() {
        let stream = StreamId::consensus(GroupId(1));
        let at = |term, index| Position {
            stream,
            id: LogId { term: Term(term), index: LogIndex(index) },
            digest: term ^ index,
        };
        let mut token = SessionToken::new();
        for position in [at(1, 5), at(1, 3), at(2, 4)] {
            token.observe(position);
        }
        assert_eq!(token.position(stream), Some(at(2, 4)));
        token.observe(at(1, 9));
        assert_eq!(token.position(stream), Some(at(2, 4)), "an index of an older term is older");
    }

    #[test]
    fn a_context_moves_a_token_to_the_newest_write_of_each_origin_and_never_back() {
        let group = GroupId(3);
        let dot = |origin, sequence| Dot { origin: OriginId(origin), sequence };
        let index = |token: &SessionToken, origin| {
            let position = token.position(StreamId { group, origin: OriginId(origin) })?;
            assert_eq!((position.id.term, position.digest), (Term(0), 0));
            Some(position.id.index.0)
        };
        let mut token = SessionToken::new();
        token.observe_context(group, &CausalContext::from_iter([dot(1, 1), dot(1, 5), dot(2, 2)]));
        assert_eq!((index(&token, 1), index(&token, 2), index(&token, 3)), (Some(5), Some(2), None));
        token.observe_context(group, &CausalContext::from_iter([dot(1, 4), dot(2, 7), dot(3, 1)]));
        assert_eq!((index(&token, 1), index(&token, 2), index(&token, 3)), (Some(5), Some(7), Some(1)));
    }
}
