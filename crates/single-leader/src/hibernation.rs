//! Hibernation: a group in which nothing happens says nothing. Its leader sends no heartbeats and checks no quorum, its followers
//! wait for no heartbeat; what they rely on instead is their driver, which tells them of nodes that are gone and back.
//!
//! Invariants:
//!
//! - A follower sleeps only while its log ends where its leader's does and all of it is committed and applied here, and only until it
//!   is told that the leader's node is gone or began anew.
//! - A leader sleeps only once every follower whose node is not gone has agreed to since anything happened last; it is told when the
//!   node of one that was left behind is back, and wakes.
//! - A follower that wakes says so to its leader, so no replica of a group is awake for long while its leader sleeps.
//!
//! Nothing is promised because a group sleeps: its leader may have been replaced meanwhile, as one that is awake may. Reads are confirmed
//! by a quorum, writes counted, as ever.

use replikit_core::{Batches, LogId, NodeId, StateMachine, Time};

use crate::election::Memory;
use crate::message::{AppendReject, Head, Sleep, SleepAck, Wake};
use crate::replica::{Raft, State};

/// How far a leader is on the way to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Something happened, or may have.
    Awake {
        /// When it happened last.
        idle_since: Time,
    },
    /// The followers were asked, in this round and perhaps in later ones, and nothing has happened since.
    Asking { round: u64 },
    /// All have agreed.
    Asleep,
}

impl<M: StateMachine> Raft<M> {
    /// Whether this replica sleeps: it says nothing and waits for nothing, until something happens.
    pub fn is_asleep(&self) -> bool {
        match &self.state {
            State::Follower(follower) => follower.is_asleep() && !self.is_recovering(),
            State::Candidate(_) => false,
            State::Leader(leader) => leader.rest == Rest::Asleep,
        }
    }

    /// Members whose node is gone, as the driver says; for checks.
    pub fn gone(&self) -> &[NodeId] {
        &self.gone
    }

    /// Something happened that concerns the group. A leader that slept says that it is there; a follower that slept asks for that.
    pub(crate) fn stir(&mut self) {
        let (now, timeouts, is_asleep) = (self.now.mono, self.config.timeouts, self.is_asleep());
        match &mut self.state {
            State::Leader(leader) => {
                let was = core::mem::replace(&mut leader.rest, Rest::Awake { idle_since: now });
                if was == Rest::Asleep {
                    leader.round += 1;
                    leader.heartbeat_at = now + timeouts.heartbeat;
                    leader.quorum_check_at = now + timeouts.election;
                    for progress in &mut leader.followers {
                        // Nobody was asked for so long: the time of silence begins now.
                        progress.heard_at = now;
                        progress.stop_waiting(now, timeouts.election);
                    }
                }
            }
            State::Follower(_) if is_asleep => {
                let at = self.election_deadline();
                self.wake_follower(at);
                if let Some(leader) = self.leader {
                    self.send(leader, Head::Wake(Wake { term: self.ballot.term }), Batches::None);
                }
            }
            State::Follower(_) | State::Candidate(_) => {}
        }
    }

    fn wake_follower(&mut self, election_at: Time) {
        if let State::Follower(follower) = &mut self.state {
            follower.election_at = election_at;
        }
    }

    /// The leader's node is gone: it was silent for so long already as a follower waits that is awake.
    pub(crate) fn wake_without_leader(&mut self) {
        if self.is_asleep() {
            let at = self.now.mono + self.jitter(self.config.timeouts.election);
            self.wake_follower(at);
        }
    }

    /// Whether all that this replica has is committed, applied, and on its disk, and nobody waits for anything.
    fn is_settled(&self) -> bool {
        let last = self.view.last().index;
        let level = self.commit == last && self.applied.id.index == last && self.durable_index == last;
        let owes_nothing = self.reads.is_idle() && self.held.is_empty();
        level && owes_nothing && self.term_is_durable() && !self.is_restoring()
    }

    /// Whether the group has nothing to do, as far as its leader can tell.
    fn is_group_settled(&self) -> bool {
        let State::Leader(leader) = &self.state else { return false };
        let is_gone = |node: NodeId| self.gone.contains(&node);
        let last = self.view.last().index;
        self.is_settled()
            && leader.owes_nothing()
            && self.quorum.elected(|node| !is_gone(node))
            && leader.followers.iter().all(|progress| is_gone(progress.node) || progress.has_all(last))
    }

    /// Leader, with each heartbeat: once nothing has happened for long, the heartbeat asks the followers to sleep.
    pub(crate) fn ask_to_sleep(&mut self) {
        let Some(after) = self.config.hibernate_after else { return };
        let (now, is_settled) = (self.now.mono, self.is_group_settled());
        let (term, last) = (self.ballot.term, self.view.last());
        let State::Leader(leader) = &mut self.state else { return };
        match leader.rest {
            _ if !is_settled => return leader.rest = Rest::Awake { idle_since: now },
            Rest::Awake { idle_since } if now.since(idle_since) < after => return,
            Rest::Awake { .. } => leader.rest = Rest::Asking { round: leader.round },
            // Answers to an earlier question count: on a busy node they take longer than it is until the next one.
            Rest::Asking { .. } | Rest::Asleep => {}
        }
        let round = leader.round;
        let mut asked = Vec::new();
        for progress in leader.followers.iter_mut().filter(|progress| !self.gone.contains(&progress.node)) {
            progress.round_told = round;
            asked.push(progress.node);
        }
        for node in asked {
            self.send(node, Head::Sleep(Sleep { term, round, last }), Batches::None);
        }
        self.sleep_if_all_agree();
    }

    /// Follower: stops waiting for heartbeats if it has all that its leader has.
    pub(crate) fn handle_sleep(&mut self, from: NodeId, sleep: &Sleep) {
        if sleep.term < self.ballot.term {
            let (term, hint) = (self.ballot.term, LogId::ZERO);
            let reject = AppendReject { term, round: 0, prev: sleep.last.index, hint };
            return self.send_when_term_is_durable(from, Head::AppendReject(reject));
        }
        let may_sleep = self.config.hibernate_after.is_some()
            && self.view.last() == sleep.last
            && self.is_settled()
            // Who has lost some of its memory has to ask the leader first. A leader that has gets it back only as a follower.
            && self.memory == Memory::Whole
            && !self.gone.contains(&from);
        let Some(follower) = self.heard_leader(from) else { return };
        // A question that something newer has overtaken is no question any more.
        let is_newest = sleep.round >= follower.round;
        follower.round = follower.round.max(sleep.round);
        if may_sleep && is_newest {
            follower.election_at = Time::NEVER;
            let ack = SleepAck { term: sleep.term, round: sleep.round };
            self.send(from, Head::SleepAck(ack), Batches::None);
        } else {
            // It is a heartbeat too, which wants an answer.
            follower.ack_due = true;
        }
    }

    pub(crate) fn handle_sleep_ack(&mut self, from: NodeId, ack: &SleepAck) {
        let (now, term) = (self.now.mono, self.ballot.term);
        let State::Leader(leader) = &mut self.state else { return };
        if ack.term != term {
            return;
        }
        if ack.round > leader.round {
            return self.misbehaved(from, "agrees to what it was never asked");
        }
        let Some(progress) = leader.follower_mut(from) else { return };
        progress.heard_at = now;
        progress.round_acked = progress.round_acked.max(ack.round);
        progress.round_slept = progress.round_slept.max(ack.round);
        self.confirm_read_rounds();
        self.sleep_if_all_agree();
    }

    fn sleep_if_all_agree(&mut self) {
        let is_settled = self.is_group_settled();
        let State::Leader(leader) = &mut self.state else { return };
        let Rest::Asking { round } = leader.rest else { return };
        let agrees = |node: NodeId, slept: u64| self.gone.contains(&node) || slept >= round;
        if is_settled && leader.followers.iter().all(|progress| agrees(progress.node, progress.round_slept)) {
            leader.rest = Rest::Asleep;
            leader.heartbeat_at = Time::NEVER;
            leader.quorum_check_at = Time::NEVER;
            leader.commit_notice_at = Time::NEVER;
        }
    }

    /// Leader: a follower was woken.
    pub(crate) fn handle_wake(&mut self, wake: &Wake) {
        if wake.term == self.ballot.term && matches!(self.state, State::Leader(_)) {
            self.stir();
        }
    }

    /// Gives back the memory of what is empty, and of batches that are on disk.
    pub(crate) fn shrink(&mut self) {
        // Nobody sends the rest of a snapshot to one that has the whole log.
        self.install = None;
        self.out.shrink_to_fit();
        self.appends.shrink_to_fit();
        self.held.shrink_to_fit();
        self.reads.shrink();
        self.view.shrink(self.applied.id.index);
        if let State::Leader(leader) = &mut self.state {
            leader.shrink();
        }
    }
}
