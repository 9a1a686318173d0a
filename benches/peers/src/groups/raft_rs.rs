//! `raft`, the Raft of TiKV, with the storage in memory that it comes with.
//!
//! Invariant: of each `Ready` messages are sent, entries stored and commands applied in the order that its documentation gives.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft::StateRole;
use raft::prelude::{ConfState, Config, Entry, Message, MessageType, RawNode};
use raft::storage::MemStorage;

use super::{Group, KEPT};
use crate::tally::{REPLICAS, Tallies, Tally};

struct Member {
    node: RawNode<MemStorage>,
    tally: Arc<Tally>,
}

/// Three replicas; the first one leads.
pub(super) struct RaftRs {
    members: Vec<Member>,
    /// What each member is to handle next.
    inboxes: Vec<VecDeque<Message>>,
    /// Up to which index the logs were compacted.
    compacted: u64,
}

impl RaftRs {
    /// New replicas, one of which was elected.
    pub(super) fn start(tallies: &Tallies) -> Result<Self, String> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let ids: Vec<u64> = (1..=REPLICAS as u64).collect();
        let members = ids.iter().zip(tallies).map(|(id, tally)| {
            let config =
                Config { max_size_per_msg: 1 << 20, max_inflight_msgs: 256, batch_append: true, ..Config::new(*id) };
            let storage = MemStorage::new_with_conf_state(ConfState::from((ids.clone(), Vec::new())));
            Ok(Member { node: RawNode::new(&config, storage, &logger)?, tally: tally.clone() })
        });
        let members = members.collect::<raft::Result<Vec<_>>>().map_err(|error| error.to_string())?;
        let inboxes = members.iter().map(|_| VecDeque::new()).collect();
        let mut this = Self { members, inboxes, compacted: 0 };
        let elected = this.members[0].node.campaign().and_then(|()| this.settle());
        elected.map_err(|error| error.to_string())?;
        match this.members[0].node.raft.state {
            StateRole::Leader => Ok(this),
            other => Err(format!("the first replica is {other:?} after its campaign")),
        }
    }

    fn settle(&mut self) -> raft::Result<()> {
        let mut quiet = 0;
        while quiet < self.members.len() {
            quiet = 0;
            for at in 0..self.members.len() {
                quiet += usize::from(!self.turn(at)?);
            }
        }
        Ok(())
    }

    /// Runs one member until it has nothing to do; whether it had anything.
    fn turn(&mut self, at: usize) -> raft::Result<bool> {
        let Member { node, tally } = &mut self.members[at];
        while let Some(message) = self.inboxes[at].pop_front() {
            node.step(message)?;
        }
        if !node.has_ready() {
            return Ok(false);
        }
        let inboxes = &mut self.inboxes;
        let mut send = |messages: Vec<Message>| {
            // Nodes are numbered from 1.
            messages.into_iter().for_each(|message| inboxes[message.to as usize - 1].push_back(message));
        };
        let apply = |entries: Vec<Entry>| {
            // A new leader's first entry is empty.
            let commands = entries.iter().filter(|entry| !entry.data.is_empty());
            commands.for_each(|entry| tally.apply(&entry.data));
        };
        let storage = node.store().clone();
        let mut ready = node.ready();
        send(ready.take_messages());
        apply(ready.take_committed_entries());
        if !ready.entries().is_empty() {
            storage.wl().append(ready.entries())?;
        }
        if let Some(state) = ready.hs() {
            storage.wl().set_hardstate(state.clone());
        }
        send(ready.take_persisted_messages());
        let mut rest = node.advance(ready);
        if let Some(commit) = rest.commit_index() {
            storage.wl().mut_hard_state().set_commit(commit);
        }
        send(rest.take_messages());
        apply(rest.take_committed_entries());
        node.advance_apply();
        Ok(true)
    }

    fn run(&mut self, commands: &[Bytes]) -> raft::Result<()> {
        let entries = commands.iter().map(|command| Entry { data: command.clone(), ..Entry::default() });
        let mut proposal = Message { from: 1, ..Message::default() };
        proposal.set_msg_type(MessageType::MsgPropose);
        proposal.set_entries(entries.collect::<Vec<_>>().into());
        self.members[0].node.step(proposal)?;
        self.settle()?;
        // Between rounds nobody lags behind: what is applied here is applied by all.
        let applied = self.members[0].node.raft.raft_log.applied;
        if applied > self.compacted + KEPT {
            self.compacted = applied;
            self.members.iter().try_for_each(|member| member.node.store().wl().compact(applied))?;
        }
        Ok(())
    }
}

impl Group for RaftRs {
    fn round(&mut self, commands: &[Bytes]) -> Result<(), String> {
        self.run(commands).map_err(|error| error.to_string())
    }
}
