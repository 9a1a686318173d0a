//! Elections: pre-vote, vote, and who may take part.
//!
//! Invariant: at most one leader per term, since a vote is on disk before it leaves and two election quorums intersect.
//! Source: Raft section 5.2 and 5.4.1; pre-vote: Ongaro's thesis section 9.6.

use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::{Batches, Event, Link, LogId, LogIndex, NodeId, StateMachine, Time};

use crate::message::{Head, TimeoutNow, Vote, VoteReply};
use crate::register::Ballot;
use crate::replica::{Raft, State};

/// How much of what it promised this replica remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// All of it.
    Whole,
    /// The last group of its log was torn and cut, and may have held acknowledged entries. It does not vote as if it
    /// remembered them, until it holds everything that a leader held when it answered a question of this life.
    Cut {
        /// The index from which on its memory is whole again.
        whole_at: Option<LogIndex>,
    },
}

/// The two stages of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Would I win? Nothing changes anywhere.
    Pre,
    /// In the new term.
    Real,
}

#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) stage: Stage,
    /// When to give up and begin again.
    pub(crate) retry_at: Time,
    /// The answers so far: the vote, and the last entry of the voter's log.
    answers: BTreeMap<NodeId, (bool, LogId)>,
    /// Every member has answered and none has a longer log.
    unanimous: bool,
}

impl<M: StateMachine> Raft<M> {
    /// When to ask for an election if nobody is heard: between one and two election timeouts from now.
    pub(crate) fn election_deadline(&mut self) -> Time {
        let timeout = self.config.timeouts.election;
        self.now.mono + timeout + self.jitter(timeout)
    }

    pub(crate) fn jitter(&mut self, below: Duration) -> Duration {
        let below = u64::try_from(below.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.rng.u64(..below))
    }

    pub(crate) fn campaign(&mut self, stage: Stage) {
        let unanimous = match (&self.state, stage) {
            (State::Candidate(candidate), Stage::Real) => candidate.unanimous,
            // A group of one has heard every member; nobody else could ever help it out of a cut tail.
            _ => self.peers.is_empty(),
        };
        self.stand(stage, unanimous);
    }

    fn stand(&mut self, stage: Stage, unanimous: bool) {
        if self.is_restoring() {
            // Half of a snapshot is no state to lead from.
            let deadline = self.election_deadline();
            if let State::Follower(follower) = &mut self.state {
                follower.election_at = deadline;
            }
            return;
        }
        let me = self.config.node;
        let asked = self.ballot.term.next();
        if stage == Stage::Real {
            self.set_ballot(Ballot { term: asked, vote: Some(me) });
        }
        let retry_at = self.election_deadline();
        let before = self.role();
        self.state = State::Candidate(Candidate { stage, retry_at, answers: BTreeMap::new(), unanimous });
        self.set_leader(None);
        if self.role() != before {
            self.event(Event::RoleChanged { role: self.role(), term: self.ballot.term });
        }
        self.ask(stage, unanimous);
        self.count_votes();
    }

    fn ask(&mut self, stage: Stage, unanimous: bool) {
        let term = match stage {
            Stage::Pre => self.ballot.term.next(),
            Stage::Real => self.ballot.term,
        };
        let vote = Vote { term, last: self.view.last(), unanimous };
        for at in 0..self.peers.len() {
            let to = self.peers[at];
            match stage {
                Stage::Pre => self.send(to, Head::PreVote(vote), Batches::None),
                Stage::Real => self.send_when_term_is_durable(to, Head::Vote(vote)),
            }
        }
    }

    /// Raft section 5.4.1: vote only for a log that is at least as up to date as the own one.
    fn may_lead(&self, vote: &Vote) -> bool {
        let remembers = self.memory == Memory::Whole || vote.unanimous;
        vote.last >= self.view.last() && remembers && !self.is_restoring()
    }

    pub(crate) fn handle_pre_vote(&mut self, from: NodeId, vote: &Vote) {
        let leader_is_alive = match &self.state {
            State::Leader(_) => true,
            State::Follower(follower) => {
                let recently = follower.heard_at + self.config.timeouts.election > self.now.mono;
                self.leader.is_some() && (recently || follower.is_asleep())
            }
            State::Candidate(_) => false,
        };
        let granted = vote.term > self.ballot.term && self.may_lead(vote) && !leader_is_alive;
        let term = if granted { vote.term } else { self.ballot.term };
        let reply = VoteReply { term, asked: vote.term, granted, last: self.view.last() };
        self.send_when_term_is_durable(from, Head::PreVoteReply(reply));
        // Somebody misses a leader: one that sleeps says that it is there.
        self.stir();
    }

    pub(crate) fn handle_vote(&mut self, from: NodeId, vote: &Vote) {
        let free = self.ballot.vote.is_none_or(|given| given == from);
        let follows = matches!(self.state, State::Follower(_));
        let granted = vote.term == self.ballot.term && free && follows && self.may_lead(vote);
        if granted {
            self.set_ballot(Ballot { term: vote.term, vote: Some(from) });
            let deadline = self.election_deadline();
            if let State::Follower(follower) = &mut self.state {
                follower.election_at = deadline;
            }
        }
        let reply = VoteReply { term: self.ballot.term, asked: vote.term, granted, last: self.view.last() };
        self.send_when_term_is_durable(from, Head::VoteReply(reply));
    }

    pub(crate) fn handle_vote_reply(&mut self, from: NodeId, reply: &VoteReply, stage: Stage) {
        let asked = match stage {
            Stage::Pre => self.ballot.term.next(),
            Stage::Real => self.ballot.term,
        };
        let last = self.view.last();
        let State::Candidate(candidate) = &mut self.state else { return };
        if candidate.stage != stage || reply.asked != asked {
            return;
        }
        candidate.answers.insert(from, (reply.granted, reply.last));
        let all = candidate.answers.len() == self.peers.len();
        if all && !candidate.unanimous && candidate.answers.values().all(|&(_, theirs)| theirs <= last) {
            candidate.unanimous = true;
            if stage == Stage::Pre && !candidate.answers.values().all(|&(granted, _)| granted) {
                // A replica whose tail was cut refused; now it may grant.
                self.ask(stage, true);
            }
        }
        self.count_votes();
    }

    fn count_votes(&mut self) {
        let State::Candidate(candidate) = &self.state else { return };
        let me = self.config.node;
        let own = self.memory == Memory::Whole || candidate.unanimous;
        let granted = |node| if node == me { own } else { candidate.answers.get(&node).is_some_and(|&(yes, _)| yes) };
        let refused = |node| node != me && candidate.answers.get(&node).is_some_and(|&(yes, _)| !yes);
        let (stage, unanimous) = (candidate.stage, candidate.unanimous);
        if self.quorum.elected(granted) {
            match stage {
                Stage::Pre => self.stand(Stage::Real, unanimous),
                Stage::Real if self.term_is_durable() => self.become_leader(),
                // The own vote counts once it is on disk.
                Stage::Real => {}
            }
        } else if self.quorum.refused(refused) {
            let soon = self.now.mono + self.config.timeouts.heartbeat + self.jitter(self.config.timeouts.heartbeat);
            if let State::Candidate(candidate) = &mut self.state {
                candidate.retry_at = candidate.retry_at.min(soon);
            }
        }
    }

    /// The own disk has caught up: an own vote may count now, and a memory may be whole again.
    pub(crate) fn recheck_memory(&mut self) {
        if let (Memory::Cut { whole_at: Some(index) }, State::Follower(follower)) = (self.memory, &self.state)
            && self.durable_index.min(follower.matched) >= index
        {
            self.memory = Memory::Whole;
            self.persist_ballot();
        }
        if matches!(self.state, State::Candidate(_)) {
            self.count_votes();
        }
    }

    /// The link to the leader is gone. The survivors ask one after the other, so that two do not split the vote.
    pub(crate) fn leader_vanished(&mut self, leader: NodeId, link: Link) {
        if link != Link::Reset {
            return self.wake_without_leader();
        }
        self.set_leader(None);
        let me = self.config.node;
        let rank = self.peers.iter().filter(|&&node| node < me && node != leader).count() as u32;
        let step = self.config.timeouts.heartbeat / 2;
        let at = self.now.mono + step * rank + self.jitter(step / 4);
        if let State::Follower(follower) = &mut self.state {
            follower.election_at = follower.election_at.min(at);
        }
    }

    pub(crate) fn handle_timeout_now(&mut self, from: NodeId, timeout: &TimeoutNow) {
        if timeout.term == self.ballot.term && self.leader == Some(from) && matches!(self.state, State::Follower(_)) {
            self.set_leader(None);
            self.stand(Stage::Real, false);
        }
    }
}
