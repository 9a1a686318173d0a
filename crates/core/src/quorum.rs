//! Quorums as pure arithmetic: which sets of answers suffice.
//!
//! Invariant: any two write quorums of a [`Quorum`] intersect, and so do a write and an election quorum, which
//! [`Quorum::flexible`] checks at construction. Source: Gifford 1979; Raft section 5; joint consensus: Ongaro's thesis
//! section 4.3; flexible sizes: Howard, Malkhi and Spiegelman 2016 (Flexible Paxos).

use crate::NodeId;

/// The smallest number of `voters` that is more than half of them.
#[must_use]
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The largest value that at least `needed` of the given values reach; `None` if there are fewer values than that.
/// Sorts the slice in place; the order of equal values does not matter.
#[must_use]
pub fn reached_by<T: Copy + Ord>(values: &mut [T], needed: usize) -> Option<T> {
    if needed == 0 || values.len() < needed {
        return None;
    }
    // Groups are small: three voters are the common case and deserve no call to a general sort.
    if let ([a, b, c], 2) = (&*values, needed) {
        return Some((*a.max(b)).min(*c.max(a.min(b))));
    }
    values.sort_unstable_by(|a, b| b.cmp(a));
    Some(values[needed - 1])
}

/// Why a set of quorum sizes was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// Blame: caller. Nothing was built.
    #[error("a group needs at least one voter")]
    NoVoters,
    /// Blame: caller. Two quorums could miss each other, so an acknowledged write could be lost. Nothing was built.
    #[error("write quorum {write} and election quorum {election} of {voters} voters need not intersect")]
    Disjoint {
        /// Size of the write quorum.
        write: usize,
        /// Size of the election quorum.
        election: usize,
        /// Number of voters.
        voters: usize,
    },
    /// Blame: caller. A quorum larger than the group can never be reached. Nothing was built.
    #[error("a quorum of {quorum} cannot be reached by {voters} voters")]
    Unreachable {
        /// Size of the quorum.
        quorum: usize,
        /// Number of voters.
        voters: usize,
    },
}

/// One set of voters with its quorum sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voters {
    nodes: Vec<NodeId>,
    write: usize,
    election: usize,
}

/// Which sets of replicas suffice to commit an entry and to elect a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// One set of voters.
    Simple(Voters),
    /// Two sets while a membership change is under way: both must agree. Source: Ongaro's thesis section 4.3.
    Joint {
        /// The set before the change.
        old: Voters,
        /// The set after it.
        new: Voters,
    },
    /// Several sets, when further changes begin before the first one is done: all must agree. Source: Jehl, Vitenberg,
    /// Meling 2015 (SmartMerge).
    Every(Vec<Voters>),
}

impl Voters {
    fn new(mut nodes: Vec<NodeId>, write: usize, election: usize) -> Result<Self, QuorumError> {
        nodes.sort_unstable();
        nodes.dedup();
        let voters = nodes.len();
        if voters == 0 {
            return Err(QuorumError::NoVoters);
        }
        if let Some(&quorum) = [write, election].iter().find(|&&quorum| quorum > voters) {
            return Err(QuorumError::Unreachable { quorum, voters });
        }
        // Two elections must intersect too: a term has at most one leader.
        if write + election <= voters || election * 2 <= voters {
            return Err(QuorumError::Disjoint { write, election, voters });
        }
        Ok(Self { nodes, write, election })
    }

    /// The voters, ascending.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    fn agreed<T: Copy + Ord>(&self, needed: usize, value: impl Fn(NodeId) -> T) -> T {
        const INLINE: usize = 9;
        let needed_reached = "sizes were checked at construction";
        if self.nodes.len() <= INLINE {
            let mut values = [value(self.nodes[0]); INLINE];
            let values = &mut values[..self.nodes.len()];
            for (slot, &node) in values.iter_mut().zip(&self.nodes).skip(1) {
                *slot = value(node);
            }
            reached_by(values, needed).expect(needed_reached)
        } else {
            let mut values: Vec<T> = self.nodes.iter().map(|&node| value(node)).collect();
            reached_by(&mut values, needed).expect(needed_reached)
        }
    }
}

impl Quorum {
    /// A majority of the given nodes for writes and elections.
    ///
    /// # Errors
    /// [`QuorumError::NoVoters`] for an empty set. Duplicates count once.
    pub fn majority(nodes: Vec<NodeId>) -> Result<Self, QuorumError> {
        let mut distinct = nodes;
        distinct.sort_unstable();
        distinct.dedup();
        let size = majority(distinct.len());
        Voters::new(distinct, size, size).map(Self::Simple)
    }

    /// Chosen sizes: `write` acknowledgements commit, `election` votes elect.
    ///
    /// # Errors
    /// [`QuorumError`] when the sizes could miss each other or cannot be reached.
    pub fn flexible(nodes: Vec<NodeId>, write: usize, election: usize) -> Result<Self, QuorumError> {
        Voters::new(nodes, write, election).map(Self::Simple)
    }

    /// Both majorities, while membership changes from `old` to `new`.
    ///
    /// # Errors
    /// [`QuorumError::NoVoters`] when either set is empty.
    pub fn joint(old: Vec<NodeId>, new: Vec<NodeId>) -> Result<Self, QuorumError> {
        let (Self::Simple(old), Self::Simple(new)) = (Self::majority(old)?, Self::majority(new)?) else {
            unreachable!("a majority is a simple quorum")
        };
        Ok(Self::Joint { old, new })
    }

    /// The majorities of all of these sets.
    ///
    /// # Errors
    /// [`QuorumError::NoVoters`] when there is no set, or an empty one.
    pub fn every(sets: Vec<Vec<NodeId>>) -> Result<Self, QuorumError> {
        let mut voters = Vec::new();
        for set in sets {
            let Self::Simple(majority) = Self::majority(set)? else { unreachable!("a majority is a simple quorum") };
            voters.push(majority);
        }
        match voters.len() {
            0 => Err(QuorumError::NoVoters),
            1 => Ok(Self::Simple(voters.remove(0))),
            _ => Ok(Self::Every(voters)),
        }
    }

    /// Whether the node's answers count.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        match self {
            Self::Simple(voters) => voters.nodes.contains(&node),
            Self::Joint { old, new } => old.nodes.contains(&node) || new.nodes.contains(&node),
            Self::Every(sets) => sets.iter().any(|voters| voters.nodes.contains(&node)),
        }
    }

    /// All nodes whose answers count, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        match self {
            Self::Simple(voters) => voters.nodes.clone(),
            Self::Joint { old, new } => {
                let mut all: Vec<NodeId> = old.nodes.iter().chain(&new.nodes).copied().collect();
                all.sort_unstable();
                all.dedup();
                all
            }
            Self::Every(sets) => {
                let mut all: Vec<NodeId> = sets.iter().flat_map(|voters| &voters.nodes).copied().collect();
                all.sort_unstable();
                all.dedup();
                all
            }
        }
    }

    /// The largest value that a write quorum reaches, given each voter's value: the commit rule of Raft section 5.3.
    #[must_use]
    pub fn written<T: Copy + Ord>(&self, value: impl Fn(NodeId) -> T) -> T {
        match self {
            Self::Simple(voters) => voters.agreed(voters.write, value),
            Self::Joint { old, new } => old.agreed(old.write, &value).min(new.agreed(new.write, &value)),
            Self::Every(sets) => {
                let agreed = sets.iter().map(|voters| voters.agreed(voters.write, &value)).min();
                agreed.expect("checked at construction: there is a set")
            }
        }
    }

    /// Whether those who granted their vote elect a leader.
    #[must_use]
    pub fn elected(&self, granted: impl Fn(NodeId) -> bool) -> bool {
        match self {
            Self::Simple(voters) => voters.agreed(voters.election, granted),
            Self::Joint { old, new } => old.agreed(old.election, &granted) && new.agreed(new.election, &granted),
            Self::Every(sets) => sets.iter().all(|voters| voters.agreed(voters.election, &granted)),
        }
    }

    /// Whether those who refused make an election impossible.
    #[must_use]
    pub fn refused(&self, refused: impl Fn(NodeId) -> bool) -> bool {
        !self.elected(|node| !refused(node))
    }

    /// Number of acknowledgements that commit a write, the leader's own included; in a joint quorum the larger one.
    #[must_use]
    pub fn write_size(&self) -> usize {
        match self {
            Self::Simple(voters) => voters.write,
            Self::Joint { old, new } => old.write.max(new.write),
            Self::Every(sets) => sets.iter().map(|voters| voters.write).max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: u32) -> Vec<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    /// All 3^5 assignments of values to up to five voters against the definition.
    #[test]
    fn written_value_is_the_largest_that_enough_voters_reach() {
        for n in 1..=5_u32 {
            let quorum = Quorum::majority(nodes(n)).unwrap();
            for code in 0..3_u32.pow(n) {
                let value = |node: NodeId| code / 3_u32.pow(node.0 - 1) % 3;
                let counted = (0..3)
                    .rev()
                    .find(|&v| nodes(n).into_iter().filter(|&node| value(node) >= v).count() >= majority(n as usize));
                assert_eq!(Some(quorum.written(value)), counted, "{n} voters, code {code}");
            }
        }
    }

    #[test]
    fn joint_quorum_needs_both_majorities() {
        let quorum = Quorum::joint(nodes(3), vec![NodeId(3), NodeId(4), NodeId(5)]).unwrap();
        assert!(!quorum.elected(|node| node.0 <= 3), "the new set has one vote of three");
        assert!(!quorum.elected(|node| node.0 >= 3), "the old set has one vote of three");
        assert!(quorum.elected(|node| node.0 >= 2 && node.0 <= 4));
        assert_eq!(quorum.voters(), nodes(5));
    }

    #[test]
    fn every_one_of_several_majorities_is_needed() {
        let sets = vec![nodes(3), vec![NodeId(3), NodeId(4)], vec![NodeId(5)]];
        let quorum = Quorum::every(sets).unwrap();
        assert_eq!(quorum.voters(), nodes(5));
        assert!(quorum.elected(|node| node.0 >= 2) && quorum.written(|node| node.0 >= 2));
        for missing in [3, 4, 5] {
            assert!(!quorum.elected(|node| node.0 != missing && node.0 != 1), "without node {missing}");
        }
        assert_eq!(Quorum::every(vec![nodes(3)]), Quorum::majority(nodes(3)));
        assert_eq!(Quorum::every(vec![nodes(1), Vec::new()]), Err(QuorumError::NoVoters));
        assert_eq!(Quorum::every(Vec::new()), Err(QuorumError::NoVoters));
    }

    #[test]
    fn sizes_that_need_not_intersect_are_refused() {
        assert_eq!(Quorum::flexible(nodes(4), 2, 2), Err(QuorumError::Disjoint { write: 2, election: 2, voters: 4 }));
        assert!(Quorum::flexible(nodes(4), 2, 3).is_ok());
        assert_eq!(Quorum::flexible(nodes(3), 1, 4), Err(QuorumError::Unreachable { quorum: 4, voters: 3 }));
        assert_eq!(Quorum::majority(Vec::new()), Err(QuorumError::NoVoters));
        // Two leaders of one term would be possible with disjoint election quorums, whatever the write quorum is.
        assert!(Quorum::flexible(nodes(4), 4, 2).is_err());
    }

    #[test]
    fn duplicates_count_once() {
        let quorum = Quorum::majority(vec![NodeId(1), NodeId(1), NodeId(2), NodeId(3)]).unwrap();
        assert_eq!(quorum.write_size(), 2);
        assert_eq!(quorum.voters().len(), 3);
    }

    #[test]
    fn refusal_means_that_no_election_quorum_is_left() {
        let quorum = Quorum::majority(nodes(3)).unwrap();
        assert!(!quorum.refused(|node| node.0 == 1));
        assert!(quorum.refused(|node| node.0 <= 2));
    }
}
