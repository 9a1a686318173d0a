//! Clients, invariants and probes of one Raft group, as the subject of a run.

use std::collections::BTreeMap;

use replikit_core::{
    Action, Event, GroupId, LogIndex, NodeId, Outcome, Persist, ReadLevel, Rejection, Role, Term, Time, Token,
    WriteEffect, WriteId, keyspace,
};
use replikit_sim::check::History;
use replikit_sim::{
    Asked, Clients, Recovery, RecoveryItem, Replicas, Request, Subject, Workload, WorkloadSettings, is_lasting,
};
use replikit_single_leader::{Head, Raft};

use super::answers::Answers;
use super::clients::KeyValue;
use super::invariants::Invariants;
use super::ledger::Ledger;
use super::recorder::Recorder;
use crate::probe::{Probe, Probes};

#[derive(Clone, Copy, Debug)]
struct Part {
    role: Role,
    term: Term,
}

/// Clients and invariants of one Raft group.
#[derive(Debug)]
pub(crate) struct RaftSubject {
    workload: Workload<KeyValue>,
    pub(crate) invariants: Invariants,
    pub(crate) probes: Probes,
    group: GroupId,
    answers: Answers,
    checked_wanted: usize,
    checked_garbage: usize,
    checked_acks: usize,
    parts: BTreeMap<NodeId, Part>,
    pub(crate) tail_was_cut: bool,
    leaders: u64,
    // How far the log of each leader has been acknowledged, in the term in which it led last.
    acknowledged: BTreeMap<NodeId, (Term, LogIndex)>,
    answered_at: Time,
    /// Whether the promises must hold: no disk silently loses what it confirmed.
    pub(crate) bounded: bool,
}

impl RaftSubject {
    pub(crate) fn new(
        settings: WorkloadSettings,
        nodes: u32,
        group: GroupId,
        ledger: Ledger,
        clocks_are_suspended: bool,
    ) -> Self {
        Self {
            workload: Workload::new(settings, nodes, KeyValue { group }),
            invariants: Invariants::new(ledger, group, nodes),
            probes: Probes::default(),
            group,
            answers: Answers::new(clocks_are_suspended),
            checked_wanted: 0,
            checked_garbage: 0,
            checked_acks: 0,
            parts: BTreeMap::new(),
            tail_was_cut: false,
            leaders: 0,
            acknowledged: BTreeMap::new(),
            answered_at: Time::ZERO,
            bounded: true,
        }
    }

    pub(crate) const fn history(&self) -> &History {
        self.workload.history()
    }

    pub(crate) fn answered(&self) -> (usize, usize) {
        self.workload.answered()
    }

    pub(crate) fn hurry(&mut self) {
        self.workload.hurry();
    }

    pub(crate) const fn stop(&mut self) {
        self.workload.stop();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.workload.is_idle()
    }

    /// What holds once all is quiet; with dead nodes or cut tails, a weak loss may have no one left to report it.
    pub(crate) fn check_end(&mut self, all_alive: bool) -> Result<(), String> {
        for ack in self.workload.acked() {
            if !is_lasting(ack.write.level) && self.invariants.is_reported_lost(ack.at.id.index) {
                self.probes.hit(Probe::WeakAckLost);
            }
        }
        let whole = all_alive && !self.tail_was_cut;
        let lasting: Vec<_> =
            self.workload.acked().iter().filter(|ack| whole || is_lasting(ack.write.level)).cloned().collect();
        self.invariants.end(&lasting)
    }

    fn probe_done(&mut self, node: NodeId, request: &Request, outcome: &Outcome, now: Time) {
        let leads = self.parts.get(&node).is_some_and(|part| part.role == Role::Leader);
        match (outcome, &request.asked) {
            (Outcome::Value { staleness, .. }, Asked::Read { read, .. }) => match &read.level {
                ReadLevel::Linearizable => {
                    if !leads {
                        self.probes.hit(Probe::LinearizableReadAtFollower);
                    }
                    if self.answered_at == now {
                        self.probes.hit(Probe::ReadRoundShared);
                    }
                    self.answered_at = now;
                }
                ReadLevel::Session(_) if !leads => self.probes.hit(Probe::SessionReadAtFollower),
                ReadLevel::BoundedStale(_) => self.probes.hit(Probe::BoundedStaleAnswered),
                ReadLevel::Local if staleness.is_some() => self.probes.hit(Probe::LocalReadWithBound),
                ReadLevel::Local => self.probes.hit(Probe::LocalReadWithoutBound),
                _ => {}
            },
            (Outcome::Acked { reply, .. }, Asked::Write { write, attempts, .. }) => {
                if *attempts > 1 {
                    self.probes.hit(Probe::RetryDeduplicated);
                }
                if request.has_twin() {
                    self.probes.hit(Probe::DuplicateAnswered);
                }
                match write.level {
                    level if !is_lasting(level) => self.probes.hit(Probe::WeakAck),
                    replikit_core::WriteLevel::Applied(_) => self.probes.hit(Probe::AppliedAck),
                    _ => {}
                }
                match keyspace::decode_effect(reply) {
                    Ok(WriteEffect::Mismatch { .. }) => self.probes.hit(Probe::CompareMismatched),
                    Ok(WriteEffect::Counter { .. }) => self.probes.hit(Probe::CounterAdded),
                    _ => {}
                }
            }
            (Outcome::Indeterminate { .. }, _) => self.probes.hit(Probe::Indeterminate),
            (Outcome::Rejected(Rejection::NotLeader { .. }), _) => self.probes.hit(Probe::NotLeaderAnswered),
            (Outcome::Rejected(Rejection::StaleRoute { .. }), _) => self.probes.hit(Probe::StaleRouteAnswered),
            (Outcome::Rejected(Rejection::LostWrites { .. }), _) => self.probes.hit(Probe::SessionReadRefused),
            _ => {}
        }
    }

    fn probe_event(&mut self, node: NodeId, event: &Event) {
        match event {
            Event::LostWrites { .. } => self.probes.hit(Probe::LostWritesReported),
            Event::SnapshotTaken { .. } => self.probes.hit(Probe::SnapshotTaken),
            Event::SnapshotInstalled { .. } => self.probes.hit(Probe::SnapshotInstalled),
            Event::StorageFailed => self.probes.hit(Probe::StorageFailed),
            Event::StorageSlow => self.probes.hit(Probe::StorageSlow),
            Event::TailCut { .. } => {
                self.tail_was_cut = true;
                self.probes.hit(Probe::TailCut);
            }
            Event::RoleChanged { role, term } => {
                let before = self.parts.insert(node, Part { role: *role, term: *term });
                match (before.map(|before| before.role), role) {
                    (_, Role::Leader) => {
                        self.leaders += 1;
                        if self.leaders > 1 {
                            self.probes.hit(Probe::LeaderChanged);
                        }
                    }
                    (Some(Role::Leader), Role::Follower) => {
                        let same = before.is_some_and(|before| before.term == *term);
                        self.probes.hit(if same { Probe::LeaderSteppedDown } else { Probe::LeaderDeposed });
                    }
                    (Some(Role::Candidate), Role::PreCandidate) => self.probes.hit(Probe::ElectionRepeated),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn probe_head(&mut self, head: &Head) {
        match head {
            Head::PreVoteReply(reply) if !reply.granted => self.probes.hit(Probe::PreVoteRefused),
            Head::VoteReply(reply) if !reply.granted => self.probes.hit(Probe::VoteRefused),
            Head::Vote(vote) | Head::PreVote(vote) if vote.unanimous => self.probes.hit(Probe::UnanimousVoteAsked),
            Head::AppendReject(reject) if reject.round == 0 => self.probes.hit(Probe::OldLeaderToldSo),
            Head::AppendReject(_) => self.probes.hit(Probe::AppendRejected),
            Head::ReadIndex(_) => self.probes.hit(Probe::ReadIndexForwarded),
            Head::ReadIndexReply(_) => self.probes.hit(Probe::ReadIndexAnswered),
            Head::SnapshotPiece(piece) if piece.offset > 0 => self.probes.hit(Probe::SnapshotInPieces),
            Head::TimeoutNow(_) => self.probes.hit(Probe::LeadershipHandedOver),
            _ => {}
        }
    }
}

impl Subject<Raft<Recorder>> for RaftSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        self.workload.on_alarm::<Raft<Recorder>>(client, clients);
        let (wanted, garbage) = (self.workload.wanted(), self.workload.garbage());
        if wanted.len() > self.checked_wanted || garbage.len() > self.checked_garbage {
            let mut lines = self.invariants.ledger.lines();
            wanted[self.checked_wanted..].iter().for_each(|write| lines.want(write));
            garbage[self.checked_garbage..].iter().for_each(|bytes| lines.want_garbage(bytes));
            (self.checked_wanted, self.checked_garbage) = (wanted.len(), garbage.len());
        }
    }

    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        self.invariants.started(node, recovery);
        if recovery.boots.of(self.group).snapshot.is_some() {
            self.probes.hit(Probe::RecoveredFromSnapshot);
        }
        if recovery.items.iter().any(|item| matches!(item, RecoveryItem::Batch(_))) {
            self.probes.hit(Probe::RecoveredWithLog);
        }
        Ok(())
    }

    fn on_action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        match action {
            Action::Send { to, message } => {
                if let Head::AppendAck(ack) = &message.head {
                    let known = self.acknowledged.entry(*to).or_default();
                    *known = (*known).max((ack.term, ack.received));
                }
                self.probe_head(&message.head);
            }
            Action::Event { event, .. } => self.probe_event(node, event),
            Action::ReadLog { .. } => self.probes.hit(Probe::LogReadFromDisk),
            Action::Persist { op: Persist::Append { replace: true, .. }, .. } => {
                self.probes.hit(Probe::SuffixTruncated);
            }
            Action::Persist { op: Persist::Release { .. }, .. } => self.probes.hit(Probe::LogReleased),
            Action::Persist { op: Persist::Reset { .. }, .. } => self.probes.hit(Probe::LogReset),
            _ => {}
        }
        let kept = self.invariants.action(node, action);
        if self.bounded { kept } else { Ok(()) }
    }

    fn on_durable(&mut self, node: NodeId, up_to: WriteId) {
        self.invariants.durable(node, up_to);
    }

    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        let now = clients.now;
        if let Some(request) = self.workload.request(token).cloned() {
            if self.bounded {
                self.answers.check(&self.invariants.ledger, &request, &outcome, now)?;
            }
            self.probe_done(node, &request, &outcome, now);
            self.answers.learn(&request, &outcome, now);
        }
        self.workload.on_done::<Raft<Recorder>>(node, token, outcome, clients)?;
        for ack in &self.workload.acked()[self.checked_acks..] {
            if self.bounded {
                self.invariants.acked_is_applied(ack)?;
            }
        }
        self.checked_acks = self.workload.acked().len();
        Ok(())
    }

    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<Head>) {
        self.workload.on_crash(node, clients);
        self.invariants.crashed(node);
        self.parts.remove(&node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Raft<Recorder>>) -> Result<(), String> {
        let Some(raft) = replicas.replica(node).filter(|_| self.bounded) else { return Ok(()) };
        let before = self.invariants.commit();
        self.invariants.check(node, raft)?;
        let after = self.invariants.commit();
        // A leader's own first entry stands at the end of its log when it is seen first.
        if raft.role() == Role::Leader
            && let Some((term, index)) = self.acknowledged.get_mut(&node)
            && *term < raft.term()
        {
            if *index >= raft.last().id.index {
                self.probes.hit(Probe::LedAgainAfterLoss);
            }
            (*term, *index) = (raft.term(), LogIndex::ZERO);
        }
        if after > before && raft.role() == Role::Leader && raft.term_at(before.next()) != Some(raft.term()) {
            self.probes.hit(Probe::EarlierTermCommitted);
        }
        Ok(())
    }
}
