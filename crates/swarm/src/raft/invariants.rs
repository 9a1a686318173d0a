//! The invariants of one Raft group: each a small function with a sentence. Those of replicas are checked after every round
//! of every replica, those of promises at every message and every answer.
//!
//! Each costs a few comparisons: what was seen before is kept, and only what is new is looked at.

use std::collections::{BTreeMap, HashMap};

use replikit_core::{Action, Event, GroupId, LogIndex, NodeId, Persist, Position, Role, Term, WriteId};
use replikit_sim::{AckedWrite, Recovery, is_lasting};
use replikit_single_leader::{Head, Raft};

use super::clients::command;
use super::disk::Disk;
use super::ledger::Ledger;
use super::recorder::Recorder;

/// Every invariant by the name with which a violation begins, and its sentence.
///
/// `check_sessions`, `check_staleness` and `check_durability` are not called here: what a reply claims to stand at or to have seen
/// is held against a second model of the keys, and that position against all that any client had learned before, of which what
/// the own session had learned is a part; all that was applied, acknowledged and refused is counted as it happens. This judges
/// deletions, counters and compare-and-set too, which the checkers must leave undecided, and at the very event.
pub const INVARIANTS: &[(&str, &str)] = &[
    ("one_leader_per_term", "At most one leader per term (Raft figure 3)."),
    ("one_vote_per_term", "A node gives its vote to one candidate per term, whatever it forgets (Raft 5.2)."),
    ("log_matching", "Equal index and term, equal log up to it (Raft figure 3)."),
    ("leader_completeness", "What is committed is in the log of every leader of a later term (Raft figure 3)."),
    ("leader_counts_own_term", "A leader commits by counting only entries of its own term (Raft 5.4.2)."),
    ("fenced_leader_commits_nothing", "Once a leader has committed, no leader of an earlier term does."),
    ("committed_is_immutable", "What was applied at an index stays there, at every node."),
    ("committed_is_never_dropped", "No node drops a committed entry that it holds, unless a snapshot covers it."),
    ("committed_on_a_durable_quorum", "What is committed is on the disks of a majority."),
    ("state_machine_safety", "Two nodes apply the same command at the same index (Raft figure 3)."),
    ("same_state_at_same_index", "Equal applied index, equal state."),
    (
        "indices_in_order",
        "Purged <= snapshot <= applied <= committed <= last, and the terms of applied and last alike.",
    ),
    ("never_goes_back", "Term, commit index and applied index of a living process only grow."),
    ("promised_after_durable", "A vote, a term or an entry is claimed only once the disk has it."),
    ("exactly_once", "A command is applied as often as it was asked for, retries under a session not counted."),
    ("refused_is_not_applied", "A write that was refused has no effect, now or later."),
    ("no_phantom", "What is applied was asked for by a client."),
    ("replies_tell_the_effect", "The reply to a write tells what a plain map would have done."),
    ("acked_is_applied", "A write acknowledged at Quorum stands where its answer says, with that reply."),
    ("acked_is_never_lost", "A write acknowledged at Quorum is still there at the end."),
    ("weak_loss_is_reported", "A write acknowledged on disk is lost only if LostWrites names it."),
    ("reads_show_their_position", "A read shows the value that its key had at the position that it names."),
    ("linearizable_read_is_current", "A linearizable read has seen all that ended before it began."),
    ("writes_stand_in_order", "A write stands behind all that any client knew when it began."),
    ("session_reads_do_not_go_back", "A read with a token has seen what the token has seen."),
    ("staleness_is_bounded", "A read is no staler than it was asked to be, nor than it says."),
    ("linearizable", "Each key is a linearizable register."),
    ("deadlines_end", "A deadline that is met moves on."),
    ("rounds_end", "A round of a replica ends."),
    ("requests_end", "Every request at a live node ends."),
    ("converges", "A healed majority has a leader and agrees within twenty election timeouts."),
    ("serves_again", "A healed majority serves ten writes and ten reads."),
    ("replicas_agree", "When all is quiet, all live replicas hold the same state."),
    ("storage_actions_are_numbered", "Storage actions are numbered without gaps."),
    ("storage_contract", "Storage actions fit their streams."),
    ("recovery", "A disk that lost nothing durable can be started from."),
    ("honest_peers_are_not_accused", "No honest peer is called misbehaving."),
    ("messages_have_receivers", "Messages go to members other than the sender."),
    ("outcomes_fit_requests", "A request ends with an outcome of its kind."),
    ("one_value", "A read of one key has one answer."),
    ("session_ids", "A new session's reply is its id."),
    ("no_panic", "Nothing that a peer, a client or a disk does is a panic."),
    ("deterministic", "Two runs of a seed are the same, event for event."),
];

#[derive(Debug, Default)]
struct Seen {
    term: Term,
    commit: LogIndex,
    applied: LogIndex,
    // Commit index when it became the leader of this term.
    led_from: Option<(Term, LogIndex)>,
}

#[derive(Clone, Debug)]
struct Lost {
    first: LogIndex,
    last: LogIndex,
    term: Term,
}

/// What was seen of a group so far.
#[derive(Debug)]
pub(crate) struct Invariants {
    /// What its machines applied.
    pub(crate) ledger: Ledger,
    group: GroupId,
    nodes: usize,
    leaders: BTreeMap<Term, NodeId>,
    votes: HashMap<(NodeId, Term), NodeId>,
    appended: HashMap<(LogIndex, Term), u64>,
    committed: BTreeMap<LogIndex, (Position, NodeId)>,
    // The highest index known to be committed, and the term of the leader that committed last.
    commit: LogIndex,
    committed_in: Term,
    seen: BTreeMap<NodeId, Seen>,
    pub(crate) disks: BTreeMap<NodeId, Disk>,
    lost: Vec<Lost>,
}

impl Invariants {
    /// Of a group whose machines write to this ledger.
    pub(crate) fn new(ledger: Ledger, group: GroupId, nodes: u32) -> Self {
        Self {
            ledger,
            group,
            nodes: nodes as usize,
            leaders: BTreeMap::new(),
            votes: HashMap::new(),
            appended: HashMap::new(),
            committed: BTreeMap::new(),
            commit: LogIndex::ZERO,
            committed_in: Term(0),
            seen: BTreeMap::new(),
            disks: (1..=nodes).map(|node| (NodeId(node), Disk::default())).collect(),
            lost: Vec::new(),
        }
    }

    /// All that is checked of the replica that has just run.
    pub(crate) fn check(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        self.ledger.lines().check()?;
        self.never_goes_back(node, raft)?;
        self.indices_in_order(node, raft)?;
        self.committed_is_immutable(node, raft)?;
        if raft.role() == Role::Leader {
            self.one_leader_per_term(node, raft)?;
            self.leader_completeness(node, raft)?;
            self.leader_counts_own_term(node, raft)?;
        }
        if raft.commit_index() > self.commit {
            self.fenced_leader_commits_nothing(node, raft)?;
            self.committed_on_a_durable_quorum(node, raft)?;
            self.commit = raft.commit_index();
        }
        Ok(())
    }

    /// A process begins.
    pub(crate) fn started(&mut self, node: NodeId, recovery: &Recovery) {
        if let Some(disk) = self.disks.get_mut(&node) {
            disk.start(self.group, recovery);
        }
    }

    /// A process ended. A term that was not durable yet may be forgotten, as long as nothing was said in it.
    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.seen.remove(&node);
        if let Some(disk) = self.disks.get_mut(&node) {
            disk.crash();
        }
    }

    /// A node's storage actions are durable.
    pub(crate) fn durable(&mut self, node: NodeId, up_to: WriteId) {
        if let Some(disk) = self.disks.get_mut(&node) {
            disk.durable(up_to);
        }
    }

    /// A storage action is wanted.
    pub(crate) fn persist(&mut self, node: NodeId, id: WriteId, op: &Persist) -> Result<(), String> {
        self.committed_is_never_dropped(node, op)?;
        let Some(disk) = self.disks.get_mut(&node) else { return Ok(()) };
        match disk.persist(self.group, id, op) {
            Some((last, term, digest)) => self.log_matching(node, last, term, digest),
            None => Ok(()),
        }
    }

    /// Something is reported.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Event::LostWrites { range, term, .. } = event {
            self.lost.push(Lost { first: *range.start(), last: *range.end(), term: *term });
        }
    }

    /// A replica says something to another.
    pub(crate) fn sent(&mut self, node: NodeId, to: NodeId, head: &Head) -> Result<(), String> {
        self.one_vote_per_term(node, to, head)?;
        self.promised_after_durable(node, to, head)
    }

    /// Something is wanted of a driver of this group alone.
    pub(crate) fn action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        match action {
            Action::Persist { id, op } => self.persist(node, *id, op),
            Action::Send { to, message } => self.sent(node, *to, &message.head),
            Action::Event { event, .. } => {
                self.event(event);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn one_leader_per_term(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let leader = *self.leaders.entry(raft.term()).or_insert(node);
        if leader == node {
            return Ok(());
        }
        Err(format!("one_leader_per_term: nodes {leader} and {node} both lead term {}", raft.term()))
    }

    fn one_vote_per_term(&mut self, node: NodeId, to: NodeId, head: &Head) -> Result<(), String> {
        let (term, candidate) = match head {
            Head::VoteReply(reply) if reply.granted => (reply.asked, to),
            Head::Vote(vote) => (vote.term, node),
            _ => return Ok(()),
        };
        let given = *self.votes.entry((node, term)).or_insert(candidate);
        if given == candidate {
            return Ok(());
        }
        Err(format!("one_vote_per_term: node {node} voted for {given} and for {candidate} in term {term}"))
    }

    fn log_matching(&mut self, node: NodeId, last: LogIndex, term: Term, digest: u64) -> Result<(), String> {
        let known = *self.appended.entry((last, term)).or_insert(digest);
        if known == digest {
            return Ok(());
        }
        Err(format!("log_matching: node {node} appended another entry at {last} of term {term} than is known"))
    }

    fn leader_completeness(&self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let Some((&index, (position, by))) = self.committed.last_key_value() else { return Ok(()) };
        if position.id.term >= raft.term() {
            return Ok(());
        }
        let term = raft.term_at(index);
        if raft.last().id.index < index || term.is_some_and(|term| term != position.id.term) {
            let term = raft.term();
            return Err(format!("leader_completeness: leader {node} of term {term} lacks {position:?} of node {by}"));
        }
        Ok(())
    }

    fn leader_counts_own_term(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let (term, commit) = (raft.term(), raft.commit_index());
        let seen = self.seen.entry(node).or_default();
        let (_, from) = *match &mut seen.led_from {
            Some(led) if led.0 == term => led,
            other => other.insert((term, seen.commit)),
        };
        if commit > from && raft.term_at(commit).is_some_and(|of| of != term) {
            return Err(format!("leader_counts_own_term: leader {node} of term {term} committed up to {commit}"));
        }
        Ok(())
    }

    fn fenced_leader_commits_nothing(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        if raft.role() == Role::Leader {
            if raft.term() < self.committed_in {
                let (term, newer) = (raft.term(), self.committed_in);
                return Err(format!(
                    "fenced_leader_commits_nothing: leader {node} of term {term} committed after one of term {newer}"
                ));
            }
            self.committed_in = raft.term();
        }
        Ok(())
    }

    fn committed_is_immutable(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let applied = raft.applied();
        if self.seen.get(&node).is_some_and(|seen| seen.applied == applied.id.index) {
            return Ok(());
        }
        let (first, by) = *self.committed.entry(applied.id.index).or_insert((applied, node));
        self.seen.entry(node).or_default().applied = applied.id.index;
        if first == applied {
            return Ok(());
        }
        Err(format!("committed_is_immutable: node {node} applied {applied:?} where node {by} had applied {first:?}"))
    }

    fn committed_on_a_durable_quorum(&self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let commit = raft.commit_index();
        let Some(term) = raft.term_at(commit) else { return Ok(()) };
        let held = self.disks.values().filter(|disk| disk.holds(commit, term)).count();
        if held * 2 > self.nodes {
            return Ok(());
        }
        Err(format!("committed_on_a_durable_quorum: node {node} says {commit} is committed, {held} disks hold it"))
    }

    fn committed_is_never_dropped(&self, node: NodeId, op: &Persist) -> Result<(), String> {
        let Some(from) = Disk::drops_from(self.group, op) else { return Ok(()) };
        // A log that agrees with the committed one further up agrees with it here, too.
        let Some((&index, (position, by))) = self.committed.range(from..).next() else { return Ok(()) };
        if !self.disks.get(&node).is_some_and(|disk| disk.sees(index, position.id.term)) {
            return Ok(());
        }
        Err(format!("committed_is_never_dropped: node {node} drops {position:?}, which node {by} has applied"))
    }

    fn indices_in_order(&self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let (applied, commit, last) = (raft.applied().id.index, raft.commit_index(), raft.last().id.index);
        let (purged, snapshot) = self.disks.get(&node).map_or_else(Default::default, |d| (d.purged, d.snapshot));
        // While a snapshot comes in, it is ahead of what is applied.
        let installing = snapshot > applied && snapshot > last;
        // A log that ends in what is applied ends in its term.
        let terms = raft.applied().id <= raft.last().id;
        if terms && applied <= commit && commit <= last && purged <= snapshot && (snapshot <= last || installing) {
            return Ok(());
        }
        Err(format!("indices_in_order: {purged}, {snapshot}, {applied}, {commit}, {last} at node {node}"))
    }

    fn never_goes_back(&mut self, node: NodeId, raft: &Raft<Recorder>) -> Result<(), String> {
        let seen = self.seen.entry(node).or_default();
        let (term, commit) = (raft.term(), raft.commit_index());
        if term < seen.term || commit < seen.commit || raft.applied().id.index < seen.applied {
            return Err(format!("never_goes_back: {seen:?} of node {node}, now term {term}, commit index {commit}"));
        }
        (seen.term, seen.commit) = (term, commit);
        Ok(())
    }

    fn promised_after_durable(&self, node: NodeId, to: NodeId, head: &Head) -> Result<(), String> {
        let disk = &self.disks[&node];
        let (term, vote) = disk.ballot();
        let kept = match head {
            Head::VoteReply(reply) if reply.granted => term > reply.asked || (term == reply.asked && vote == Some(to)),
            Head::Vote(asked) => term > asked.term || (term == asked.term && vote == Some(node)),
            Head::AppendAck(ack) => term >= ack.term && disk.agrees(ack.durable),
            Head::AppendReject(reject) => term >= reject.term,
            _ => true,
        };
        if kept {
            return Ok(());
        }
        Err(format!("promised_after_durable: node {node} says {head:?}; on its disk are {term} and {vote:?}"))
    }

    /// An acknowledged position names the very write that it acknowledges, and the reply is that of its entry.
    pub(crate) fn acked_is_applied(&self, ack: &AckedWrite) -> Result<(), String> {
        if !is_lasting(ack.write.level) {
            return Ok(());
        }
        let lines = self.ledger.lines();
        match lines.command(ack.at.id.index) {
            Some((applied, reply)) if *applied == command(&ack.write) && *reply == ack.reply => Ok(()),
            other => Err(format!("acked_is_applied: {ack:?} was acknowledged, but there stands {other:?}")),
        }
    }

    /// What holds once all is quiet.
    pub(crate) fn end(&self, acked: &[AckedWrite]) -> Result<(), String> {
        let lines = self.ledger.lines();
        for ack in acked {
            let index = ack.at.id.index;
            let command = command(&ack.write);
            // A retry under a session may have been acknowledged at a second entry, which was then skipped.
            let elsewhere = !is_lasting(ack.write.level) && ack.write.session.is_some() && lines.is_applied(&command);
            let stands = elsewhere || lines.command(index).is_some_and(|(applied, _)| *applied == command);
            if stands {
                continue;
            }
            if is_lasting(ack.write.level) {
                return Err(format!("acked_is_never_lost: {ack:?}"));
            }
            // What only memory held dies with it unseen; what a disk held must be named when it is dropped.
            let on_disk = matches!(
                ack.write.level,
                replikit_core::WriteLevel::LeaderDisk | replikit_core::WriteLevel::Durable(_)
            );
            let named =
                self.lost.iter().any(|lost| (lost.first..=lost.last).contains(&index) && lost.term <= ack.at.id.term);
            if on_disk && !named && index <= self.commit {
                return Err(format!("weak_loss_is_reported: {ack:?}"));
            }
        }
        Ok(())
    }

    /// The highest index that is known to be committed.
    pub(crate) const fn commit(&self) -> LogIndex {
        self.commit
    }

    /// Whether some reported loss names this write.
    pub(crate) fn is_reported_lost(&self, index: LogIndex) -> bool {
        self.lost.iter().any(|lost| (lost.first..=lost.last).contains(&index))
    }
}
