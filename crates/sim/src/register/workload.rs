//! Clients of a register.

use bytes::Bytes;
use replikit_core::{GroupId, Input, NodeId, Outcome, ReadRequest, Token, WriteRequest};

use super::{Register, RegisterMessage};
use crate::check::History;
use crate::{Clients, Dialect, Replicas, Subject, WantedRead, WantedWrite, Workload, WorkloadSettings};

/// How a register is asked.
#[derive(Clone, Copy, Debug)]
pub struct RegisterDialect {
    /// Which group.
    pub group: GroupId,
}

impl RegisterDialect {
    /// The input that writes a key.
    pub fn write_input<H>(self, token: Token, write: &WantedWrite) -> Input<H> {
        let (key, op) = (write.key.clone(), write.op.clone());
        let write = Box::new(WriteRequest { key, op, level: write.level, session: write.session, context: None });
        Input::Write { token, group: self.group, write }
    }

    /// The input that reads a key.
    pub fn read_input<H>(self, token: Token, read: &WantedRead) -> Input<H> {
        let read = Box::new(ReadRequest { key: read.key.clone(), level: read.level.clone() });
        Input::Read { token, group: self.group, read }
    }

    /// The value that a read found.
    ///
    /// # Errors
    /// A sentence, when there are several.
    pub fn value(values: &[Bytes]) -> Result<Option<Bytes>, String> {
        match values {
            [] => Ok(None),
            [value] => Ok(Some(value.clone())),
            _ => Err(format!("one_value: a register answered with {} values", values.len())),
        }
    }
}

impl Dialect<Register> for RegisterDialect {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<RegisterMessage> {
        self.write_input(token, write)
    }

    fn read(&mut self, token: Token, read: &WantedRead) -> Input<RegisterMessage> {
        self.read_input(token, read)
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        Self::value(values)
    }
}

/// Clients of one group of registers, as a [`Subject`] that also checks that the limit of open operations is kept.
#[derive(Debug)]
pub struct RegisterWorkload {
    workload: Workload<RegisterDialect>,
}

impl RegisterWorkload {
    /// Clients for a cluster of so many nodes.
    #[must_use]
    pub const fn new(settings: WorkloadSettings, nodes: u32, group: GroupId) -> Self {
        Self { workload: Workload::new(settings, nodes, RegisterDialect { group }) }
    }

    /// What the clients did and saw.
    #[must_use]
    pub const fn history(&self) -> &History {
        self.workload.history()
    }

    /// Writes and reads that were acknowledged or answered.
    #[must_use]
    pub fn answered(&self) -> (usize, usize) {
        self.workload.answered()
    }

    /// No new operations from now on.
    pub const fn stop(&mut self) {
        self.workload.stop();
    }

    /// Whether no operation is open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.workload.is_idle()
    }
}

impl Subject<Register> for RegisterWorkload {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<RegisterMessage>) {
        self.workload.on_alarm::<Register>(client, clients);
    }

    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<RegisterMessage>,
    ) -> Result<(), String> {
        self.workload.on_done::<Register>(node, token, outcome, clients)
    }

    fn on_crash(&mut self, node: NodeId, clients: &mut Clients<RegisterMessage>) {
        self.workload.on_crash(node, clients);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Register>) -> Result<(), String> {
        let Some(replica) = replicas.replica(node) else { return Ok(()) };
        let most = replica.config.operations_max;
        if replica.operations() > most {
            return Err(format!(
                "queues_are_bounded: {} operations are open, at most {most} may be",
                replica.operations()
            ));
        }
        Ok(())
    }
}
