//! `omnipaxos`, Sequence Paxos with its own election of leaders, with the storage in memory of `omnipaxos_storage`.

use std::sync::Arc;

use bytes::Bytes;
use omnipaxos::messages::Message;
use omnipaxos::storage::{Entry, NoSnapshot};
use omnipaxos::util::LogEntry;
use omnipaxos::{ClusterConfig, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;

use super::{Group, KEPT};
use crate::tally::{REPLICAS, Tallies, Tally};

/// An election has ended within so many ticks, or something is broken.
const TICKS_MAX: u32 = 10_000;

/// A command as an entry: its bytes are shared by all logs.
#[derive(Clone, Debug)]
struct Command(Bytes);

impl Entry for Command {
    type Snapshot = NoSnapshot;
}

struct Member {
    node: omnipaxos::OmniPaxos<Command, MemoryStorage<Command>>,
    tally: Arc<Tally>,
    applied: usize,
}

/// Three replicas, one of which leads.
pub(super) struct OmniPaxos {
    members: Vec<Member>,
    leader: usize,
    /// Messages under way; empty between rounds.
    messages: Vec<Message<Command>>,
    /// Up to which index the logs were trimmed.
    trimmed: usize,
}

impl OmniPaxos {
    /// New replicas, one of which was elected.
    pub(super) fn start(tallies: &Tallies) -> Result<Self, String> {
        let nodes: Vec<u64> = (1..=REPLICAS as u64).collect();
        let cluster = ClusterConfig { configuration_id: 1, nodes: nodes.clone(), flexible_quorum: None };
        let members = nodes.iter().zip(tallies).map(|(pid, tally)| {
            let server = ServerConfig { pid: *pid, ..ServerConfig::default() };
            let node = cluster.clone().build_for_server(server, MemoryStorage::default())?;
            Ok::<_, omnipaxos::errors::ConfigError>(Member { node, tally: tally.clone(), applied: 0 })
        });
        let members = members.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let mut this = Self { members, leader: 0, messages: Vec::new(), trimmed: 0 };
        for _ in 0..TICKS_MAX {
            this.members.iter_mut().for_each(|member| member.node.tick());
            this.settle();
            // The leader itself knows whether it may accept.
            let leads = |member: &Member| member.node.get_current_leader() == Some((member.node.get_pid(), true));
            if let Some(leader) = this.members.iter().position(leads) {
                this.leader = leader;
                return Ok(this);
            }
        }
        Err(format!("there is no leader after {TICKS_MAX} ticks"))
    }

    fn settle(&mut self) {
        loop {
            for member in &mut self.members {
                member.node.take_outgoing_messages(&mut self.messages);
            }
            if self.messages.is_empty() {
                break;
            }
            for message in self.messages.drain(..) {
                // Nodes are numbered from 1.
                self.members[message.get_receiver() as usize - 1].node.handle_incoming(message);
            }
        }
    }
}

impl Member {
    fn apply(&mut self) {
        if self.node.get_decided_idx() == self.applied {
            return;
        }
        for entry in self.node.read_decided_suffix(self.applied).into_iter().flatten() {
            if let LogEntry::Decided(command) = entry {
                self.tally.apply(&command.0);
            }
            self.applied += 1;
        }
    }
}

impl Group for OmniPaxos {
    fn round(&mut self, commands: &[Bytes]) -> Result<(), String> {
        let leader = &mut self.members[self.leader].node;
        for command in commands {
            leader.append(Command(command.clone())).map_err(|error| format!("{error:?}"))?;
        }
        self.settle();
        self.members.iter_mut().for_each(Member::apply);
        // Between rounds nobody lags behind: what is applied here is decided everywhere.
        let applied = self.members[self.leader].applied;
        if applied as u64 > self.trimmed as u64 + KEPT {
            self.trimmed = applied;
            self.members[self.leader].node.trim(Some(applied)).map_err(|error| format!("{error:?}"))?;
            self.settle();
        }
        Ok(())
    }
}
