//! Clients of a key-value Raft group.

use bytes::Bytes;
use replikit_core::{GroupId, Input, NodeId, Outcome, ReadLevel, Token, WriteLevel, WriteOp, WriteRequest, keyspace};
use replikit_sim::check::History;
use replikit_sim::{Clients, Dialect, Replicas, Subject, WantedWrite, Workload, WorkloadSettings};
use replikit_single_leader::{Head, Raft};

use super::invariants::Invariants;
use super::ledger::Ledger;
use super::recorder::Recorder;

/// How a key-value Raft group is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyValue {
    pub(crate) group: GroupId,
}

pub(crate) fn command(write: &WantedWrite) -> Bytes {
    let op = WriteOp::Put { value: write.value.clone() };
    let request = WriteRequest { key: write.key.clone(), op, level: write.level, session: write.session };
    keyspace::encode_write(&request).expect("keys and values of the workload are small")
}

impl Dialect<Raft<Recorder>> for KeyValue {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<Head> {
        Input::Command { token, group: self.group, level: write.level, session: write.session, body: command(write) }
    }

    fn read(&mut self, token: Token, key: &Bytes) -> Input<Head> {
        let body = keyspace::encode_get(key).expect("keys of the workload are small");
        Input::Query { token, group: self.group, level: ReadLevel::Linearizable, body, bytes_max: 1 << 10 }
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        let [answer] = values else { return Err(format!("a query has one answer, not {}", values.len())) };
        keyspace::decode_value(answer).map_err(|error| error.to_string())
    }

    fn open_session(&mut self, token: Token) -> Option<Input<Head>> {
        Some(Input::OpenSession { token, group: self.group })
    }
}

/// Clients and invariants of one Raft group.
#[derive(Debug)]
pub(crate) struct RaftSubject {
    workload: Workload<KeyValue>,
    invariants: Invariants,
    checked_acks: usize,
}

impl RaftSubject {
    pub(crate) fn new(settings: WorkloadSettings, nodes: u32, group: GroupId, ledger: Ledger) -> Self {
        Self {
            workload: Workload::new(settings, nodes, KeyValue { group }),
            invariants: Invariants::new(ledger),
            checked_acks: 0,
        }
    }

    pub(crate) const fn history(&self) -> &History {
        self.workload.history()
    }

    pub(crate) const fn stop(&mut self) {
        self.workload.stop();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.workload.is_idle()
    }

    /// An acknowledged position names the very write that it acknowledges.
    fn acked_is_applied(&mut self) -> Result<(), String> {
        let acked = self.workload.acked();
        for ack in &acked[self.checked_acks..] {
            if !matches!(ack.write.level, WriteLevel::Quorum | WriteLevel::Applied(_)) {
                continue;
            }
            if self.invariants.ledger.command(ack.at.id.index) != Some(command(&ack.write)) {
                return Err(format!("{:?} was acknowledged, but another command stands there", ack));
            }
        }
        self.checked_acks = acked.len();
        Ok(())
    }

    /// What holds once all is quiet: every lasting acknowledgement's write is applied.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        for ack in self.workload.acked() {
            let lasting = matches!(ack.write.level, WriteLevel::Quorum | WriteLevel::Applied(_));
            if lasting && self.invariants.ledger.index(&command(&ack.write)) != Some(ack.at.id.index) {
                return Err(format!("{ack:?} was lost"));
            }
        }
        Ok(())
    }
}

impl Subject<Raft<Recorder>> for RaftSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        self.workload.on_alarm::<Raft<Recorder>>(client, clients);
    }

    fn on_done(
        &mut self,
        _: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        self.workload.on_done::<Raft<Recorder>>(token, outcome, clients)
    }

    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<Head>) {
        self.workload.on_crash(node, clients);
        self.invariants.crashed(node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Raft<Recorder>>) -> Result<(), String> {
        let Some(raft) = replicas.replica(node) else { return Ok(()) };
        self.invariants.check(node, raft)?;
        self.acked_is_applied()
    }
}
