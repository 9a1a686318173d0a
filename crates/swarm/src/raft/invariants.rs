//! The invariants of one Raft group, checked after every round of every replica: each a small function with a sentence.

use std::collections::BTreeMap;

use replikit_core::{LogIndex, NodeId, Position, Role, Term};
use replikit_single_leader::Raft;

use super::ledger::Ledger;
use super::recorder::Recorder;

#[derive(Debug, Default)]
struct Seen {
    term: Term,
    commit: LogIndex,
}

/// What was seen of a group so far.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// What its machines applied.
    pub(crate) ledger: Ledger,
    leaders: BTreeMap<Term, NodeId>,
    committed: BTreeMap<LogIndex, (Position, NodeId)>,
    seen: BTreeMap<NodeId, Seen>,
}

impl Invariants {
    /// Of a group whose machines write to this ledger.
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, ..Self::default() }
    }

    /// All of them, for the replica that has just run.
    pub(crate) fn check(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        self.ledger.check()?;
        self.one_leader_per_term(node, raft)?;
        self.same_log_up_to_applied(node, raft)?;
        self.leader_has_all_committed(node, raft)?;
        self.monotonic(node, raft)
    }

    /// A process ended. A term that was not durable yet may be forgotten, as long as nothing was said in it.
    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.seen.remove(&node);
    }

    /// Election safety: at most one leader per term. Source: Raft figure 3.
    fn one_leader_per_term(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        if raft.role() != Role::Leader {
            return Ok(());
        }
        let leader = *self.leaders.entry(raft.term()).or_insert(node);
        if leader == node { Ok(()) } else { Err(format!("nodes {leader} and {node} both lead term {}", raft.term())) }
    }

    /// Leader completeness: what is committed is in the log of every leader of a later term. Source: Raft figure 3.
    fn leader_has_all_committed(&self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        if raft.role() != Role::Leader {
            return Ok(());
        }
        let Some((&index, (position, by))) = self.committed.last_key_value() else { return Ok(()) };
        if position.id.term >= raft.term() {
            return Ok(());
        }
        let term = raft.term_at(index);
        if raft.last().id.index < index || term.is_some_and(|term| term != position.id.term) {
            return Err(format!("leader {node} of term {} lacks {position:?}, applied by node {by}", raft.term()));
        }
        Ok(())
    }

    /// Log matching: equal index applied, equal log up to it, which the digests prove. Source: Raft figure 3.
    fn same_log_up_to_applied(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let applied = raft.applied();
        let (first, by) = *self.committed.entry(applied.id.index).or_insert((applied, node));
        if first == applied {
            return Ok(());
        }
        Err(format!("node {node} applied {applied:?} where node {by} had applied {first:?}"))
    }

    /// Applied, committed and last are in order; neither term nor commit index goes back while a process lives.
    fn monotonic(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let (applied, commit, last) = (raft.applied().id.index, raft.commit_index(), raft.last().id.index);
        if applied > commit || commit > last {
            return Err(format!("applied {applied}, committed {commit} and last {last} are out of order"));
        }
        let seen = self.seen.entry(node).or_default();
        if raft.term() < seen.term || commit < seen.commit {
            return Err(format!("{seen:?} went back to term {} and commit index {commit}", raft.term()));
        }
        *seen = Seen { term: raft.term(), commit };
        Ok(())
    }
}
