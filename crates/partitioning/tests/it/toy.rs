//! A group that writes down what it is given and hands out what it was told to.

use std::collections::VecDeque;

use replikit_core::*;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Toy {
    pub(crate) seen: Vec<String>,
    pub(crate) wants: VecDeque<Action<u8>>,
    pub(crate) deadline: Option<Time>,
    pub(crate) batches_seen: usize,
    /// Where its deadline is once it was told of a node.
    pub(crate) woken_until: Option<Time>,
    /// Where its deadline is once recovery is over.
    pub(crate) begun_until: Option<Time>,
}

impl Replica for Toy {
    type Head = u8;

    fn handle(&mut self, _: Now, input: Input<u8>) {
        self.seen.push(match &input {
            Input::Durable { up_to } => format!("durable {up_to}"),
            Input::Timer => {
                self.deadline = None;
                "timer".to_owned()
            }
            Input::Message { from, message } => {
                self.batches_seen += message.batches.as_slice().len();
                format!("{} from {from} with {}", message.head, message.batches.as_slice().len())
            }
            Input::LogRead { ticket, .. } => format!("log read {ticket}"),
            Input::SnapshotRead { ticket, .. } => format!("snapshot read {ticket}"),
            Input::Storage { event } => format!("{event:?}"),
            Input::Recover { batch } => format!("recover {}", batch.base()),
            Input::Recovered => {
                self.deadline = self.begun_until;
                "recovered".to_owned()
            }
            Input::Peer { node, link } => {
                self.deadline = self.deadline.or(self.woken_until);
                format!("node {node} is {link:?}")
            }
            Input::Query { .. } => "query".to_owned(),
            other => format!("{other:?}"),
        });
    }

    fn poll(&mut self) -> Option<Action<u8>> {
        self.wants.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        self.deadline
    }
}

pub(crate) fn persist(id: u64) -> Action<u8> {
    let op = Persist::Register { group: GroupId(0), bytes: id.to_le_bytes().to_vec().into() };
    Action::Persist { id: WriteId(id), op }
}

pub(crate) fn batch(group: u32) -> Batch {
    let meta = BatchMeta {
        cluster: ClusterId::from_name("test"),
        stream: StreamId::consensus(GroupId(group)),
        base: LogIndex(1),
        term: Term(1),
        prev_digest: 0,
        time: HybridTimestamp(0),
        kind: BatchKind::Commands,
    };
    Batch::build(&meta, std::iter::once((&b"x"[..], None)))
}

pub(crate) fn say(to: u32, head: u8, batches: impl IntoIterator<Item = Batch>) -> Action<u8> {
    Action::Send { to: NodeId(to), message: Message { head, batches: batches.into_iter().collect() } }
}
