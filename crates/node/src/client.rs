//! The commands that speak to a running cluster.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::keyspace::decode_write;
use replikit_core::{
    NodeId, ReadRequest, Role, ScanRequest, Store, SubscribeError, WriteEffect, WriteOp, WriteRequest, Written,
};
use replikit_runtime::{Client, ClientConfig, KvClient, NodeStatus, ReadTarget};

use crate::args::Reach;
use crate::{CommandResult, args, say};

fn with_client<T>(
    reach: &Reach,
    reads: ReadTarget,
    run: impl AsyncFnOnce(KvClient) -> Result<T, Box<dyn std::error::Error>>,
) -> Result<T, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut config = ClientConfig::new(reach.cluster.clone(), reach.at.clone()).reads(reads);
        config.request_time_max = Duration::from_millis(reach.timeout_ms);
        let client = Client::connect(config).await?;
        run(KvClient::new(client).promising(replikit_single_leader::guarantees)).await
    })
}

fn write(reach: &Reach, write: WriteRequest) -> Result<Written, Box<dyn std::error::Error>> {
    with_client(reach, ReadTarget::Leader, async |store| Ok(store.write(write).await?))
}

fn acknowledged(written: &Written) {
    let Written { at, reached, .. } = written;
    say(format_args!(
        "ok: entry {} of term {}, received by {}, on {} {}",
        at.id.index,
        at.id.term,
        reached.received,
        reached.durable,
        if reached.durable == 1 { "disk" } else { "disks" }
    ));
}

pub(crate) fn put(args: args::Put) -> CommandResult {
    let request = WriteRequest::put(args.key, args.value).at(args.level);
    write(&args.reach, request).map(|written| acknowledged(&written))
}

pub(crate) fn delete(args: args::Delete) -> CommandResult {
    let request = WriteRequest::delete(args.key).at(args.level);
    write(&args.reach, request).map(|written| acknowledged(&written))
}

pub(crate) fn add(args: args::Add) -> CommandResult {
    match write(&args.reach, WriteRequest::add(args.key, args.delta))?.effect {
        Some(WriteEffect::Counter { value }) => say(value),
        Some(WriteEffect::NotACounter) => {
            return Err("the key holds no counter, or the sum does not fit 64 bits".into());
        }
        other => return Err(format!("an unexpected answer: {other:?}").into()),
    }
    Ok(())
}

fn target(node: Option<u32>) -> ReadTarget {
    node.map_or(ReadTarget::Leader, |node| ReadTarget::Node(NodeId(node)))
}

pub(crate) fn get(args: args::Get) -> CommandResult {
    let request = ReadRequest::new(args.key.clone()).at(args.level);
    let found = with_client(&args.reach, target(args.node), async |store| Ok(store.read(request).await?))?;
    match found.values.first() {
        Some(value) => say(String::from_utf8_lossy(value)),
        None => return Err(format!("no such key: {}", args.key).into()),
    }
    Ok(())
}

pub(crate) fn scan(args: args::Scan) -> CommandResult {
    with_client(&args.reach, ReadTarget::Leader, async |store| {
        let (mut from, to) = (Bytes::from(args.from), args.to.map(Bytes::from));
        let mut left = args.limit;
        while left > 0 {
            let page = store
                .scan(ScanRequest { from, to: to.clone(), limit: left.min(1000), level: args.level.clone() })
                .await?;
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
    with_client(&args.reach, target(args.node), async |store| {
        let mut changes = store.subscribe(args.from).await?;
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
    with_client(&args.reach, ReadTarget::Leader, async |store| {
        let client = store.endpoint();
        let mut answers = Vec::new();
        for (node, address) in client.nodes() {
            let answer = tokio::time::timeout(Duration::from_millis(500), client.status(node)).await;
            answers.push((node, address, answer.ok().and_then(Result::ok)));
        }
        say(format_args!(
            "{:<5} {:<22} {:<14} {:>5} {:>7} {:>10} {:>10} {:>9} {:>10} {:>10}",
            "node", "address", "role", "term", "leader", "last", "committed", "snapshot", "acked", "fsyncs"
        ));
        for (node, address, answer) in &answers {
            match answer {
                Some(status) => say(row(*node, address, status)),
                None => say(format_args!("{node:<5} {address:<22} does not answer")),
            }
        }
        let leader = answers.iter().filter_map(|(.., status)| status.as_ref()).find(|s| s.replica.role == Role::Leader);
        for follower in leader.iter().flat_map(|leader| &leader.replica.followers) {
            say(format_args!("node {} is {} entries behind the leader", follower.node, follower.lag_entries));
        }
        Ok(())
    })
}

fn row(node: NodeId, address: &str, status: &NodeStatus) -> String {
    let replica = &status.replica;
    format!(
        "{node:<5} {address:<22} {:<14} {:>5} {:>7} {:>10} {:>10} {:>9} {:>10} {:>10}",
        replica.role.to_string(),
        replica.term,
        replica.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
        replica.last.id.index,
        replica.commit_index,
        replica.snapshot.map_or_else(|| "-".to_owned(), |at| at.id.index.to_string()),
        status.counters.requests_acked,
        status.counters.fsyncs,
    )
}
