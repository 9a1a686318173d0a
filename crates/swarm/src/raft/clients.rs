//! How a key-value Raft group is asked.

use bytes::Bytes;
use replikit_core::{Admin, GroupId, Input, ReadLevel, Token, WriteLevel, WriteRequest, keyspace};
use replikit_sim::{Dialect, WantedRead, WantedWrite};
use replikit_single_leader::{Head, Raft};

use super::recorder::Recorder;

/// A group of the keyspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyValue {
    pub(crate) group: GroupId,
}

/// A write as it is replicated.
pub(crate) fn command(write: &WantedWrite) -> Bytes {
    let request = WriteRequest {
        key: write.key.clone(),
        op: write.op.clone(),
        level: write.level,
        session: write.session,
        context: None,
    };
    keyspace::encode_write(&request).expect("keys and values of the workload are small")
}

impl KeyValue {
    pub(crate) fn write_input<H>(self, token: Token, write: &WantedWrite) -> Input<H> {
        Input::Command { token, group: self.group, level: write.level, session: write.session, body: command(write) }
    }

    pub(crate) fn read_input<H>(self, token: Token, read: &WantedRead) -> Input<H> {
        let body = keyspace::encode_get(&read.key).expect("keys of the workload are small");
        Input::Query { token, group: self.group, level: read.level.clone(), body, bytes_max: 1 << 10 }
    }

    pub(crate) fn value(values: &[Bytes]) -> Result<Option<Bytes>, String> {
        let [answer] = values else { return Err(format!("one_value: a query has one answer, not {}", values.len())) };
        keyspace::decode_value(answer).map_err(|error| format!("one_value: {error}"))
    }
}

impl Dialect<Raft<Recorder>> for KeyValue {
    fn write(&mut self, token: Token, write: &WantedWrite) -> Input<Head> {
        self.write_input(token, write)
    }

    fn read(&mut self, token: Token, read: &WantedRead) -> Input<Head> {
        self.read_input(token, read)
    }

    fn found(&self, values: &[Bytes]) -> Result<Option<Bytes>, String> {
        Self::value(values)
    }

    fn open_session(&mut self, token: Token) -> Option<Input<Head>> {
        Some(Input::OpenSession { token, group: self.group })
    }

    fn misroute(&mut self, token: Token, write: &WantedWrite) -> Option<Input<Head>> {
        Some(Self { group: GroupId(self.group.0 + 77) }.write_input(token, write))
    }

    fn garbage(&mut self, token: Token, bytes: Bytes) -> Option<Input<Head>> {
        if token.0.is_multiple_of(2) {
            let level = ReadLevel::Local;
            return Some(Input::Query { token, group: self.group, level, body: bytes, bytes_max: 1 });
        }
        Some(Input::Command { token, group: self.group, level: WriteLevel::Memory, session: None, body: bytes })
    }

    fn snapshot(&mut self, token: Token) -> Option<Input<Head>> {
        Some(Input::Admin { token, group: self.group, command: Admin::Snapshot })
    }
}
