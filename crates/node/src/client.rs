//! The commands that speak to a running cluster.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::crdt::{CrdtOp, FieldView, MapView, Path as CrdtPath};
use replikit_core::keyspace::{ConflictPage, decode_write};
use replikit_core::{
    CausalContext, NodeId, Origin, Owners, ReadError, ReadLevel, ReadRequest, Rejection, Role, ScanRequest, Store,
    SubscribeError, WriteEffect, WriteError, WriteLevel, WriteOp, WriteRequest, Written,
};
use replikit_runtime::{Client, ClientConfig, ClientTarget, KvClient, NodeStatus};

use crate::args::{FlagState, Reach};
use crate::conflicts::hex;
use crate::shape::Strategy;
use crate::{CommandResult, args, say};

type Failure = Box<dyn std::error::Error>;

/// How long a node may take to describe itself before another one is asked.
const STATUS_TIME_MAX: Duration = Duration::from_millis(500);

/// A client, and the strategy of the cluster that it speaks to.
pub(crate) struct Session {
    store: KvClient,
    strategy: Strategy,
}

impl Session {
    async fn connect(reach: &Reach) -> Result<Self, Failure> {
        let mut config = ClientConfig::new(reach.cluster.clone(), reach.at.clone());
        config.request_time_max = Duration::from_millis(reach.timeout_ms);
        let client = Client::connect(config.clone()).await?;
        let strategy = match reach.strategy {
            Some(strategy) => strategy,
            None => strategy_of(&client).await,
        };
        let node = reach.node.map(|node| ClientTarget::Node(NodeId(node)));
        let (config, promise): (_, replikit_runtime::Promise) = match strategy {
            Strategy::SingleLeader => {
                (config.reads(node.unwrap_or(ClientTarget::Leader)), replikit_single_leader::guarantees)
            }
            Strategy::MultiLeader => {
                let target = node.unwrap_or(ClientTarget::Home);
                (config.without_leader().reads(target).writes(target), replikit_multi_leader::guarantees)
            }
            Strategy::Leaderless => {
                let target = node.unwrap_or(ClientTarget::Home);
                (config.without_leader().reads(target).writes(target), replikit_leaderless::guarantees)
            }
            // Any node sends on what is not for it.
            Strategy::Partitioned => {
                let target = node.unwrap_or(ClientTarget::Leader);
                (config.reads(target).writes(target), replikit_partitioning::store::guarantees)
            }
        };
        let client = Client::connect(config).await?;
        Ok(Self { store: KvClient::new(client).promising(promise), strategy })
    }

    fn write_level(&self, asked: Option<WriteLevel>) -> WriteLevel {
        asked.unwrap_or(match self.strategy {
            Strategy::SingleLeader | Strategy::Leaderless | Strategy::Partitioned => WriteLevel::Quorum,
            Strategy::MultiLeader => WriteLevel::LeaderDisk,
        })
    }

    fn read_level(&self, asked: Option<ReadLevel>) -> ReadLevel {
        asked.unwrap_or(match self.strategy {
            Strategy::SingleLeader | Strategy::Partitioned => ReadLevel::Linearizable,
            Strategy::MultiLeader => ReadLevel::Local,
            Strategy::Leaderless => ReadLevel::Owners(Owners::Quorum),
        })
    }

    async fn write(&self, write: WriteRequest, level: Option<WriteLevel>) -> Result<Written, Failure> {
        let level = self.write_level(level);
        self.store.write(write.at(level)).await.map_err(|error| match error {
            WriteError::Rejected(Rejection::Unsupported) => self.unsupported(),
            error => error.into(),
        })
    }

    async fn read(&self, key: String, level: Option<ReadLevel>) -> Result<replikit_core::ReadResult, Failure> {
        let level = self.read_level(level);
        self.store.read(ReadRequest::new(key).at(level)).await.map_err(|error| match error {
            ReadError::Rejected(Rejection::Unsupported) => self.unsupported(),
            error => error.into(),
        })
    }

    pub(crate) async fn conflicts(&self, after: u64, limit: u32) -> Result<ConflictPage, Failure> {
        self.store.conflicts(after, limit).await.map_err(|error| match error {
            ReadError::Rejected(Rejection::Unsupported | Rejection::Malformed) => self.unsupported(),
            error => error.into(),
        })
    }

    fn unsupported(&self) -> Failure {
        let hint = match self.strategy {
            Strategy::SingleLeader => "",
            Strategy::Partitioned => {
                "; there is no order of all changes to watch, and no level of more copies on disk than a majority"
            }
            Strategy::MultiLeader => {
                "; reads are local or stale:MS, and the key's keyspace must have the operation (--keyspace of the nodes)"
            }
            Strategy::Leaderless => {
                "; of plain keys no read is linearizable (the strongest that always exists is quorum), a level needs no more owners than \
                 there are, and the key's keyspace must have the operation (--keyspace of the nodes)"
            }
        };
        format!("a {} cluster does not support this{hint}", self.strategy).into()
    }
}

/// What runs there, as the nodes say; the oldest strategy if none of them does.
async fn strategy_of(client: &Client) -> Strategy {
    let mut nodes = vec![client.home()];
    nodes.extend(client.nodes().into_iter().map(|(node, _)| node).filter(|node| *node != client.home()));
    for node in nodes {
        if let Ok(Ok(status)) = tokio::time::timeout(STATUS_TIME_MAX, client.status(node)).await {
            if status.strategy == Strategy::Partitioned.to_string() {
                return Strategy::Partitioned;
            }
            if status.strategy == replikit_partitioning::store::STRATEGY_LEADERLESS {
                return Strategy::Leaderless;
            }
            if status.strategy == replikit_partitioning::store::STRATEGY_MULTI_LEADER {
                return Strategy::MultiLeader;
            }
            return match status.replica.role {
                Role::Fallback => Strategy::Leaderless,
                Role::Equal if status.strategy == Strategy::Leaderless.to_string() => Strategy::Leaderless,
                Role::Equal => Strategy::MultiLeader,
                _ => Strategy::SingleLeader,
            };
        }
    }
    Strategy::default()
}

/// Connects, and runs the requests of a command.
pub(crate) fn connected<T>(reach: &Reach, run: impl AsyncFnOnce(Session) -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { run(Session::connect(reach).await?).await })
}

fn acknowledged(written: &Written) {
    let Written { at, reached, .. } = written;
    if at.id.index.0 == 0 {
        // Agreed on for its key alone: it stands in no log of writes.
        return say(format_args!("ok: agreed, on {} disks", reached.durable));
    }
    let position = match Origin::of(at.stream.origin) {
        Some(Origin { node, incarnation }) => format!("write {} of node {node}.{}", at.id.index, incarnation.0),
        None => format!("entry {} of term {}", at.id.index, at.id.term),
    };
    say(format_args!(
        "ok: {position}, received by {}, on {} {}",
        reached.received,
        reached.durable,
        if reached.durable == 1 { "disk" } else { "disks" }
    ));
}

fn write(reach: &Reach, write: WriteRequest, level: Option<WriteLevel>) -> CommandResult {
    let written = connected(reach, async |session| session.write(write, level).await)?;
    match written.effect {
        Some(WriteEffect::Mismatch { found: None }) => return Err("nothing was written: there is no such key".into()),
        Some(WriteEffect::Mismatch { found: Some(found) }) => {
            return Err(format!("nothing was written: the value is {}", String::from_utf8_lossy(&found)).into());
        }
        _ => acknowledged(&written),
    }
    Ok(())
}

/// The same, if the key has this value.
fn compared(key: String, expected: Option<String>, new: Option<String>) -> WriteRequest {
    WriteRequest::compare_and_set(key, expected.map(Bytes::from), new.map(Bytes::from))
}

fn over(request: WriteRequest, context: Option<CausalContext>) -> WriteRequest {
    match context {
        Some(context) => request.over(context),
        None => request,
    }
}

pub(crate) fn put(args: args::Put) -> CommandResult {
    let request = if args.if_absent || args.expected.is_some() {
        compared(args.key, args.expected, Some(args.value))
    } else {
        over(WriteRequest::put(args.key, args.value), args.over)
    };
    write(&args.reach, request, args.level)
}

pub(crate) fn delete(args: args::Delete) -> CommandResult {
    let request = match args.field {
        None if args.expected.is_some() => compared(args.key, args.expected, None),
        None => over(WriteRequest::delete(args.key), args.over),
        Some(path) => WriteRequest::crdt(args.key, CrdtOp::RemoveAt { path }),
    };
    write(&args.reach, request, args.level)
}

pub(crate) fn add(args: args::Add) -> CommandResult {
    let request = match args.field {
        None => WriteRequest::add(args.key, args.delta),
        Some(path) => WriteRequest::crdt(args.key, CrdtOp::Add { amount: args.delta }.at(path)),
    };
    let written = connected(&args.reach, async |session| session.write(request, args.level).await)?;
    match written.effect {
        Some(WriteEffect::Counter { value }) => say(value),
        Some(WriteEffect::NotACounter) => {
            return Err("the key holds no counter, or the sum does not fit 64 bits".into());
        }
        // A level that is acknowledged before the sum is known; a field of a map, of which no sum is told.
        None | Some(WriteEffect::Done) => acknowledged(&written),
        Some(other) => return Err(format!("an unexpected answer: {other:?}").into()),
    }
    Ok(())
}

/// An operation on a value, or on a field of one.
fn change(key: String, field: Option<CrdtPath>, op: CrdtOp) -> WriteRequest {
    WriteRequest::crdt(
        key,
        match field {
            None => op,
            Some(path) => op.at(path),
        },
    )
}

pub(crate) fn insert(args: args::Element) -> CommandResult {
    let op = CrdtOp::Insert { element: args.element.into() };
    write(&args.reach, change(args.key, args.field, op), args.level)
}

pub(crate) fn remove(args: args::Element) -> CommandResult {
    let op = CrdtOp::Remove { element: args.element.into() };
    write(&args.reach, change(args.key, args.field, op), args.level)
}

pub(crate) fn flag(args: args::Flag) -> CommandResult {
    let op = match args.state {
        FlagState::On => CrdtOp::Enable,
        FlagState::Off => CrdtOp::Disable,
    };
    write(&args.reach, change(args.key, args.field, op), args.level)
}

pub(crate) fn assign(args: args::Assign) -> CommandResult {
    let op = CrdtOp::Set { value: args.value.into() };
    write(&args.reach, change(args.key, args.field, op), args.level)
}

pub(crate) fn get(args: args::Get) -> CommandResult {
    let (key, level) = (args.key.clone(), args.level);
    let found = connected(&args.reach, async |session| session.read(key, level).await)?;
    for value in &found.values {
        if args.fields {
            show_fields(value)?;
        } else {
            say(String::from_utf8_lossy(value));
        }
    }
    if args.context {
        let context = found.context.ok_or("the cluster has no concurrent values, so there is no context")?;
        say(format_args!("context {}", hex(&context.to_token())));
    }
    if found.values.is_empty() {
        return Err(format!("no such key: {}", args.key).into());
    }
    Ok(())
}

/// The fields of a map, one a line: path, type, and value or values, separated by tabs.
fn show_fields(value: &[u8]) -> CommandResult {
    let map = MapView::from_bytes(value).map_err(|_| "the key holds no map: its keyspace is none of maps")?;
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let all = |values: &[Bytes]| values.iter().map(text).collect::<Vec<_>>().join("\t");
    for (path, field) in &map.fields {
        let path = path.iter().map(text).collect::<Vec<_>>().join("/");
        match field {
            FieldView::Counter(sum) => say(format_args!("{path}\tcounter\t{sum}")),
            FieldView::Newest(value) => say(format_args!("{path}\tregister\t{}", text(value))),
            FieldView::Concurrent(values) => say(format_args!("{path}\tconcurrent\t{}", all(values))),
            FieldView::Set(elements) => say(format_args!("{path}\tset\t{}", all(elements))),
            FieldView::Flag(state) => say(format_args!("{path}\tflag\t{}", if *state { "on" } else { "off" })),
            _ => say(format_args!("{path}\tunknown")),
        }
    }
    Ok(())
}

pub(crate) fn scan(args: args::Scan) -> CommandResult {
    connected(&args.reach, async |session| {
        let level = session.read_level(args.level);
        let store = &session.store;
        let (mut from, to) = (Bytes::from(args.from), args.to.map(Bytes::from));
        let mut left = args.limit;
        while left > 0 {
            let page =
                store.scan(ScanRequest { from, to: to.clone(), limit: left.min(1000), level: level.clone() }).await?;
            for (key, value) in &page.items {
                say(format_args!("{}\t{}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
            }
            left -= u32::try_from(page.items.len()).unwrap_or(left).min(left);
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(())
    })
}

pub(crate) fn watch(args: args::Watch) -> CommandResult {
    connected(&args.reach, async |session| {
        let mut changes = session.store.subscribe(args.from).await?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let change = changes.next().await.map_err(|error| match error {
                SubscribeError::Lagged { first } => {
                    format!("{error}: begin with --from {}, or with a scan", first.prev())
                }
                error => error.to_string(),
            })?;
            // A reader that has gone away wants no more.
            if writeln!(std::io::stdout(), "{}\t{}", change.at.id.index, described(&change.command)).is_err() {
                break;
            }
            left -= 1;
        }
        Ok(())
    })
}

/// A command of the keyspace: what it does, the key, and the value if it has one.
fn described(command: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let value = |value: Option<Bytes>| value.map_or_else(|| "-".to_owned(), |value| text(&value));
    match decode_write(command) {
        Ok((key, WriteOp::Put { value })) => format!("put\t{}\t{}", text(&key), text(&value)),
        Ok((key, WriteOp::Delete)) => format!("delete\t{}", text(&key)),
        Ok((key, WriteOp::CompareAndSet { expected, new })) => {
            format!("cas\t{}\t{}\t{}", text(&key), value(expected), value(new))
        }
        Ok((key, WriteOp::Add { delta })) => format!("add\t{}\t{delta}", text(&key)),
        _ => format!("unknown\t{} bytes", command.len()),
    }
}

pub(crate) fn status(args: args::Status) -> CommandResult {
    connected(&args.reach, async |session| {
        let client = session.store.endpoint();
        let mut answers = Vec::new();
        for (node, address) in client.nodes() {
            if args.reach.node.is_some_and(|wanted| NodeId(wanted) != node) {
                continue;
            }
            let answer = tokio::time::timeout(STATUS_TIME_MAX, client.status(node)).await;
            answers.push((node, address, answer.ok().and_then(Result::ok)));
        }
        use replikit_partitioning::store::{STRATEGY_LEADERLESS, STRATEGY_MULTI_LEADER};
        let is_placed = |status: &NodeStatus| [STRATEGY_LEADERLESS, STRATEGY_MULTI_LEADER].contains(&&*status.strategy);
        match session.strategy {
            _ if answers.iter().any(|(.., status)| status.as_ref().is_some_and(is_placed)) => {
                show_partitioned(&answers)
            }
            Strategy::SingleLeader => show_followers(&answers),
            Strategy::Partitioned => show_partitioned(&answers),
            Strategy::MultiLeader | Strategy::Leaderless => show_equals(&answers),
        }
        Ok(())
    })
}

type Answers = [(NodeId, String, Option<NodeStatus>)];

fn show(header: String, answers: &Answers, row: impl Fn(NodeId, &str, &NodeStatus) -> String) {
    say(header);
    for (node, address, answer) in answers {
        match answer {
            Some(status) => say(row(*node, address, status)),
            None => say(format_args!("{node:<5} {address:<22} does not answer")),
        }
    }
}

fn snapshot(status: &NodeStatus) -> String {
    status.replica.snapshot.map_or_else(|| "-".to_owned(), |at| at.id.index.to_string())
}

fn show_followers(answers: &Answers) {
    let header = format!(
        "{:<5} {:<22} {:<14} {:>5} {:>7} {:>10} {:>10} {:>9} {:>10} {:>10}",
        "node", "address", "role", "term", "leader", "last", "committed", "snapshot", "acked", "fsyncs"
    );
    show(header, answers, |node, address, status| {
        let replica = &status.replica;
        format!(
            "{node:<5} {address:<22} {:<14} {:>5} {:>7} {:>10} {:>10} {:>9} {:>10} {:>10}",
            replica.role.to_string(),
            replica.term,
            replica.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
            replica.last.id.index,
            replica.commit_index,
            snapshot(status),
            status.counters.requests_acked,
            status.counters.fsyncs,
        )
    });
    let leader = answers.iter().filter_map(|(.., status)| status.as_ref()).find(|s| s.replica.role == Role::Leader);
    for follower in leader.iter().flat_map(|leader| &leader.replica.followers) {
        say(format_args!("node {} is {} entries behind the leader", follower.node, follower.lag_entries));
    }
}

/// What each node has of a partitioned store.
fn show_partitioned(answers: &Answers) {
    let header = format!(
        "{:<5} {:<22} {:<8} {:>6} {:>8} {:>12} {:>16} {:>10} {:>10} {:>10}",
        "node", "address", "role", "map", "groups", "groups led", "partitions led", "applied", "acked", "fsyncs"
    );
    let of = |status: &NodeStatus, name: &str| {
        let figure = status.replica.figures.iter().find(|figure| figure.of == name);
        figure.map_or_else(|| "-".to_owned(), |figure| figure.count.to_string())
    };
    show(header, answers, |node, address, status| {
        let role = if status.replica.role == Role::Fallback { "router" } else { "node" };
        format!(
            "{node:<5} {address:<22} {role:<8} {:>6} {:>8} {:>12} {:>16} {:>10} {:>10} {:>10}",
            status.replica.epoch,
            // Of those without leaders, a node that owns none any more may still hold some.
            Some(of(status, "groups owned")).filter(|owned| owned != "-").unwrap_or_else(|| of(status, "groups here")),
            of(status, "groups led"),
            of(status, "partitions led"),
            status.replica.applied_index,
            status.counters.requests_acked,
            status.counters.fsyncs,
        )
    });
    if let Some(status) = answers.iter().find_map(|(.., status)| status.as_ref()) {
        say(format_args!("{} partitions in all; `replikit partitions` lists them", of(status, "partitions in all")));
    }
}

/// Own writes of each node, and how far each of the others is behind it as it knows.
fn show_equals(answers: &Answers) {
    let header = format!(
        "{:<5} {:<22} {:<14} {:>5} {:>8} {:>10} {:>10} {:>10} {:>9} {:>10} {:>10}",
        "node", "address", "role", "epoch", "origin", "written", "durable", "applied", "snapshot", "acked", "fsyncs"
    );
    show(header, answers, |node, address, status| {
        let replica = &status.replica;
        let origin = Origin::of(replica.last.stream.origin);
        // Without an origin it has to hear from the others before it writes.
        let origin = origin.map_or_else(|| "none yet".to_owned(), |own| format!("{}.{}", own.node, own.incarnation.0));
        format!(
            "{node:<5} {address:<22} {:<14} {:>5} {origin:>8} {:>10} {:>10} {:>10} {:>9} {:>10} {:>10}",
            replica.role.to_string(),
            replica.epoch,
            replica.last.id.index,
            replica.commit_index,
            replica.applied_index,
            snapshot(status),
            status.counters.requests_acked,
            status.counters.fsyncs,
        )
    });
    for (node, _, status) in answers {
        let Some(status) = status else { continue };
        let behind = |member: &replikit_core::FollowerStatus| match member.lag_entries {
            0 => format!("node {} has everything", member.node),
            lag => format!("node {} is {lag} writes behind", member.node),
        };
        let members: Vec<String> = status.replica.followers.iter().map(behind).collect();
        if !members.is_empty() {
            say(format_args!("as node {node} knows: {}", members.join(", ")));
        }
        if !status.replica.suspected.is_empty() {
            let suspected: Vec<String> = status.replica.suspected.iter().map(ToString::to_string).collect();
            say(format_args!("node {node} has heard nothing for too long from: {}", suspected.join(", ")));
        }
        let figures = status.replica.figures.iter().filter(|figure| figure.count > 0);
        let figures: Vec<String> = figures.map(|figure| format!("{} {}", figure.count, figure.of)).collect();
        if !figures.is_empty() {
            say(format_args!("node {node}: {}", figures.join(", ")));
        }
    }
}
