//! The commands for a partitioned cluster: what its partitions are, where to cut them, where to bring them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use replikit_core::{GroupId, NodeId};
use replikit_partitioning::balance::Objective;
use replikit_partitioning::split::Thresholds;
use replikit_partitioning::store::{ChangeError, Keeper, KeeperConfig, Kept, StoreClient, StoreClientConfig};
use replikit_partitioning::{
    Change, Decision, DomainId, Expected, Load, Partition, PartitionId, PartitionMap, Scheme, Standing, Topology,
    balance,
};

use crate::args::{self, Reach};
use crate::{CommandResult, say};

type Failure = Box<dyn std::error::Error>;

/// Connects, and runs the requests of a command.
fn connected<T>(reach: &Reach, run: impl AsyncFnOnce(StoreClient) -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut config = StoreClientConfig::new(reach.cluster.clone(), reach.at.clone());
        config.request_time_max = Duration::from_millis(reach.timeout_ms);
        let client = StoreClient::connect(config).await.map_err(|error| match error {
            replikit_runtime::ConnectError::Unreachable { address, reason }
                if reason.starts_with("no partition map") =>
            {
                format!("{address}: {reason}; is it a partitioned cluster (`replikit cluster --partitions N`)?")
            }
            error => error.to_string(),
        })?;
        run(client).await
    })
}

/// What is known of a partition beside the map.
#[derive(Clone, Default)]
struct Size {
    keys: u64,
    /// Not known of a group without one log.
    bytes: Option<u64>,
    serving: bool,
    /// Nodes of such a group that do not answer.
    silent: Vec<NodeId>,
}

/// Sizes of all partitions and leaders of all groups, as far as they answer.
async fn surveyed(
    client: &StoreClient,
    map: &PartitionMap,
) -> (BTreeMap<PartitionId, Size>, BTreeMap<GroupId, NodeId>) {
    let (mut sizes, mut leaders) = (BTreeMap::new(), BTreeMap::new());
    for (group, leader, described) in client.describe_all(map).await {
        leaders.insert(group, leader);
        let size = |it: &replikit_partitioning::store::DescribedPartition| {
            (it.id, Size { keys: it.keys, bytes: Some(it.bytes), serving: it.serving, silent: Vec::new() })
        };
        sizes.extend(described.partitions.iter().map(size));
    }
    let placed = map.partitions().filter(|it| !it.replication.has_one_log());
    for owned in client.owned(placed).await {
        let size = Size { keys: owned.keys, bytes: None, serving: owned.lacking.is_empty(), silent: owned.silent };
        sizes.insert(owned.partition, size);
    }
    (sizes, leaders)
}

fn listed(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Bytes as one word: text where it is some, otherwise hexadecimal.
fn word(bytes: &[u8]) -> String {
    let is_text = bytes.iter().all(|byte| byte.is_ascii_graphic());
    if is_text { String::from_utf8_lossy(bytes).into_owned() } else { format!("0x{}", crate::conflicts::hex(bytes)) }
}

/// A bound as one word: where keys are hashed, it begins with a slot.
fn bound(scheme: &Scheme, bytes: &[u8]) -> String {
    match (scheme, bytes) {
        (Scheme::HashSlots(_) | Scheme::HashThenRange(_), [high, low, rest @ ..]) => {
            let slot = u16::from_be_bytes([*high, *low]);
            if rest.is_empty() { format!("slot:{slot}") } else { format!("slot:{slot}/{}", word(rest)) }
        }
        _ => word(bytes),
    }
}

fn span(scheme: &Scheme, partition: &Partition) -> String {
    let shown = |bytes: &[u8]| bound(scheme, bytes);
    let start = if partition.span.start.is_empty() { "-".to_owned() } else { shown(&partition.span.start) };
    let end = partition.span.end.as_deref().map_or_else(|| "-".to_owned(), shown);
    format!("{start}..{end}")
}

pub(crate) fn list(args: args::Partitions) -> CommandResult {
    connected(&args.reach, async |client| {
        let map = client.map().await?;
        let (sizes, leaders) = surveyed(&client, &map).await;
        say(format_args!(
            "{:>9}  {:<22} {:>6}  {:<10} {:>6} {:>10} {:>12}  {}",
            "partition", "from..to", "group", "replicas", "leader", "keys", "bytes", "state"
        ));
        for partition in map.partitions() {
            let size = sizes.get(&partition.id);
            let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            let state = match (map.open_handoff(partition.id), size) {
                (Some(handoff), _) => format!("handed to group {}", handoff.target),
                (None, Some(size)) if size.serving && size.silent.is_empty() => "serving".to_owned(),
                (None, Some(size)) if size.serving => format!("serving without {}", listed(&size.silent)),
                (None, Some(_)) if partition.turnover.leaving.is_empty() && !partition.replication.has_one_log() => {
                    "changes nodes".to_owned()
                }
                (None, Some(_)) if !partition.replication.has_one_log() => {
                    let leaving: Vec<NodeId> = partition.turnover.leaving.iter().copied().collect();
                    format!("leaves {}", listed(&leaving))
                }
                (None, Some(_)) => "sealed".to_owned(),
                (None, None) => "does not answer".to_owned(),
            };
            say(format_args!(
                "{:>9}  {:<22} {:>6}  {:<10} {:>6} {:>10} {:>12}  {state}",
                partition.id,
                span(map.scheme(), partition),
                partition.group,
                listed(&partition.replicas),
                leaders.get(&partition.group).map_or_else(|| "-".to_owned(), ToString::to_string),
                number(size.map(|size| size.keys)),
                number(size.and_then(|size| size.bytes)),
            ));
        }
        say(format_args!("{} partitions at epoch {} of the map", map.len(), map.epoch()));
        Ok(())
    })
}

pub(crate) fn split(args: args::Split) -> CommandResult {
    connected(&args.reach, async |client| {
        let (map, right) = client.split(args.key.as_bytes()).await?;
        let right = map.partition(right).ok_or("the partition was merged away at once")?;
        say(format_args!(
            "ok: partition {} begins at {} now, at epoch {}",
            right.id,
            span(map.scheme(), right),
            map.epoch()
        ));
        Ok(())
    })
}

pub(crate) fn merge(args: args::Merge) -> CommandResult {
    connected(&args.reach, async |client| {
        let (map, left) = client.merge(args.key.as_bytes()).await?;
        let whole = map.partition(left).ok_or("the partition was merged away at once")?;
        say(format_args!(
            "ok: partition {left} is {} now, one of {} at epoch {}",
            span(map.scheme(), whole),
            map.len(),
            map.epoch()
        ));
        Ok(())
    })
}

/// How often the keeper looks.
const KEEPER_PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn keep(args: args::Keep) -> CommandResult {
    let thresholds = Thresholds {
        split_above: Load { bytes: args.split_above_mib << 20, ops: args.split_above_ops, cpu: u64::MAX },
        hot_for: Duration::from_secs(args.hot_for_s),
        cold_for: Duration::from_secs(args.cold_for_s),
    };
    let config = KeeperConfig { thresholds, partitions_min: args.partitions_min, ..KeeperConfig::default() };
    connected(&args.reach, async |client| {
        let map = client.map().await?;
        say(format_args!("looking after {} partitions; Ctrl-C ends it, and changes nothing", map.len()));
        let mut keeper = Keeper::new(client.clone(), config);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut failing = false;
        loop {
            match keeper.look().await {
                Ok(kept) => {
                    failing = false;
                    kept.iter().for_each(|kept| say(told(kept)));
                }
                // It is said once, until it works again.
                Err(error) if !std::mem::replace(&mut failing, true) => tracing::warn!("{error}; trying on"),
                Err(_) => {}
            }
            tokio::select! {
                _ = &mut interrupted => return Ok(()),
                () = tokio::time::sleep(KEEPER_PAUSE) => {}
            }
        }
    })
}

/// What the keeper has done, as one line.
fn told(kept: &Kept) -> String {
    match kept {
        Kept::Split { partition, right, by_size } => {
            format!(
                "partition {partition} is {}: its right part is partition {right} now",
                if *by_size { "large" } else { "hot" }
            )
        }
        Kept::Merged { left, right } => format!("partition {right} is cold: it is a part of partition {left} now"),
        Kept::NotSplit { partition, why } => format!("partition {partition} is left whole: {why}"),
        other => format!("{other:?}"),
    }
}

/// The nodes that the map names, those of one of which are to be emptied.
fn topology(map: &PartitionMap, nodes: &[(NodeId, String)], draining: Option<NodeId>) -> Result<Topology, Failure> {
    let mut ids: BTreeSet<NodeId> = map.partitions().flat_map(|it| it.replicas.iter().copied()).collect();
    ids.extend(nodes.iter().map(|(node, _)| *node).filter(|node| node.0 < 1 << 30));
    let node = |id: NodeId| {
        let standing = if draining == Some(id) { Standing::Draining } else { Standing::Serving };
        replikit_partitioning::Node { standing, ..replikit_partitioning::Node::usual(id, DomainId(id.0)) }
    };
    Ok(Topology::new(ids.into_iter().map(node))?)
}

pub(crate) fn balance(args: args::Balance) -> CommandResult {
    connected(&args.reach, async |client| {
        let map = client.map().await?;
        if args.todo.cancel {
            return cancel(&client, &map).await;
        }
        let (sizes, _) = surveyed(&client, &map).await;
        let load = |(id, size): (&PartitionId, &Size)| Some((*id, Load { bytes: size.bytes?, ..Load::default() }));
        let loads: BTreeMap<PartitionId, Load> = sizes.iter().filter_map(load).collect();
        let topology = topology(&map, &client.nodes(), args.drain.map(NodeId))?;
        let objective = match args.by {
            args::By::Count => Objective::Count,
            args::By::Bytes if loads.len() < map.len() => {
                return Err("not every partition says how large it is: ask again, or say --by count".into());
            }
            args::By::Bytes => Objective::Load,
        };
        if are_placed(&map) {
            let most = args.most.unwrap_or(usize::MAX);
            return place_all(&client, &map, &topology, most, args.todo.apply).await;
        }
        let plan = balance::shifts(&map, &loads, &topology, objective, args.most.unwrap_or(usize::MAX));
        for shift in &plan.shifts {
            say(format_args!(
                "partition {} from group {} to group {} on nodes {}: {} bytes ({:?})",
                shift.partition,
                shift.from,
                shift.to,
                listed(&shift.replicas),
                shift.bytes,
                shift.why
            ));
        }
        for partition in &plan.stuck {
            say(format_args!("stuck: partition {partition} finds no group without the node that is to be emptied"));
        }
        say(&plan);
        if args.todo.apply { carry_out(&client, plan.shifts).await } else { Ok(()) }
    })
}

/// Hands over one partition after the other, until Ctrl-C.
async fn carry_out(client: &StoreClient, shifts: Vec<balance::Shift>) -> Result<(), Failure> {
    let (all, began) = (shifts.len(), Instant::now());
    let paused = pausing();
    for (nth, shift) in shifts.into_iter().enumerate() {
        if paused.load(Ordering::Relaxed) {
            say(format_args!("paused with {nth} of {all} handed over; the same command goes on"));
            return Ok(());
        }
        hand_off(client, shift.partition, shift.to, shift.replicas).await?;
        let left = began.elapsed() / (nth as u32 + 1) * (all - nth - 1) as u32;
        say(format_args!("{} of {all}, about {:.0} s left", nth + 1, left.as_secs_f64().ceil()));
    }
    Ok(())
}

/// Takes back what is not decided yet.
async fn cancel(client: &StoreClient, map: &PartitionMap) -> Result<(), Failure> {
    let open: Vec<_> = map.handoffs().filter(|handoff| handoff.decision == Decision::Open).cloned().collect();
    for handoff in &open {
        let (id, partition) = (handoff.id, handoff.partition);
        match client.change(Expected::Any, Change::AbortHandoff(id)).await {
            Ok(_) => say(format_args!("handoff {id} of partition {partition} is taken back")),
            Err(ChangeError::Refused { why }) => {
                say(format_args!("handoff {id} of partition {partition} goes on: {why}"))
            }
            Err(error) => return Err(error.into()),
        }
    }
    if open.is_empty() {
        say("no handoff is under way");
    }
    Ok(())
}

/// How long one handoff may take before it is taken back.
const HANDOFF_TIME_MAX: Duration = Duration::from_secs(60);
/// Hands a partition to another group, and says how long that took.
async fn hand_off(
    client: &StoreClient,
    partition: PartitionId,
    target: GroupId,
    replicas: Vec<NodeId>,
) -> Result<(), Failure> {
    let began = Instant::now();
    client.hand_off(partition, target, replicas, HANDOFF_TIME_MAX).await?;
    let seconds = began.elapsed().as_secs_f64();
    say(format_args!("ok: partition {partition} is with group {target} now, after {seconds:.3} s"));
    Ok(())
}

pub(crate) fn handoff(args: args::Handoff) -> CommandResult {
    connected(&args.reach, async |client| {
        let target = GroupId(args.group);
        let map = client.map().await?;
        let known = map.of_group(target).next().map(|it| it.replicas.clone());
        let replicas = match (known, args.replicas) {
            (Some(replicas), _) => replicas,
            (None, Some(replicas)) => replicas.into_iter().map(NodeId).collect(),
            (None, None) => {
                return Err(format!("group {target} has no partition yet: say its nodes with --replicas").into());
            }
        };
        hand_off(&client, PartitionId(args.partition), target, replicas).await
    })
}

/// How long a group may take to other nodes before it is left to go on by itself.
const PLACE_TIME_MAX: Duration = Duration::from_secs(60);

/// Whether the groups of a map are placed rather than their partitions handed on.
fn are_placed(map: &PartitionMap) -> bool {
    map.partitions().any(|it| !it.replication.has_one_log())
}

/// Places a group, and says how long that took.
async fn place_group(
    client: &StoreClient,
    group: GroupId,
    replicas: Vec<NodeId>,
    time_max: Duration,
) -> Result<(), Failure> {
    let (began, nodes) = (Instant::now(), listed(&replicas));
    client.place(group, replicas, time_max).await?;
    let seconds = began.elapsed().as_secs_f64();
    say(format_args!("ok: group {group} is on nodes {nodes} now, after {seconds:.3} s"));
    Ok(())
}

pub(crate) fn place(args: args::Place) -> CommandResult {
    connected(&args.reach, async |client| {
        let (group, time_max) = (GroupId(args.group), Duration::from_millis(args.wait_ms));
        if let Some(node) = args.given_up {
            client.give_up(group, NodeId(node), time_max).await?;
            say(format_args!("ok: group {group} does without node {node}"));
            return Ok(());
        }
        place_group(&client, group, args.replicas.into_iter().map(NodeId).collect(), time_max).await
    })
}

/// Makes a store of groups without one log even, or empties a node of it: prints the plan, and carries it out if asked to, one replica after
/// the other, until Ctrl-C.
async fn place_all(
    client: &StoreClient,
    map: &PartitionMap,
    topology: &Topology,
    most: usize,
    apply: bool,
) -> Result<(), Failure> {
    for it in map.partitions().filter(|it| it.turnover.is_open()) {
        let leaving: Vec<NodeId> = it.turnover.leaving.iter().copied().collect();
        say(format_args!(
            "group {} is on its way already, and left alone; nodes that leave it: {}",
            it.group,
            listed(&leaving)
        ));
    }
    let copies = map.partitions().map(|it| it.stays().count()).max().unwrap_or(1);
    let mut settings = balance::Settings::even(copies);
    settings.budget.moves_max = most;
    let plan = balance::plan(map, &BTreeMap::new(), topology, &settings);
    let moves: Vec<balance::Move> = plan.moves().copied().collect();
    for it in &moves {
        let from = it.from.map_or_else(|| "-".to_owned(), |node| node.to_string());
        say(format_args!("group {} from node {from} to node {} ({:?})", it.group, it.to, it.why));
    }
    plan.stuck.iter().for_each(|stuck| say(format_args!("stuck: {stuck}")));
    let replicas = |it: &balance::Evenness| format!("{:.3}", it.count);
    say(format_args!(
        "{} replicas to place; the fullest node over its part: {} now, {} after",
        moves.len(),
        replicas(&plan.before),
        replicas(&plan.after)
    ));
    if !apply {
        return Ok(());
    }
    let paused = pausing();
    let mut placed: BTreeMap<GroupId, Vec<NodeId>> =
        map.partitions().map(|it| (it.group, it.stays().collect())).collect();
    for (nth, it) in moves.iter().enumerate() {
        if paused.load(Ordering::Relaxed) {
            say(format_args!("paused with {nth} of {} placed; the same command goes on", moves.len()));
            return Ok(());
        }
        let nodes = placed.entry(it.group).or_default();
        nodes.retain(|node| Some(*node) != it.from);
        nodes.push(it.to);
        place_group(client, it.group, nodes.clone(), PLACE_TIME_MAX).await?;
    }
    Ok(())
}

/// Set by Ctrl-C.
fn pausing() -> Arc<AtomicBool> {
    let paused = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&paused);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
            say("pausing: what is under way is finished first");
        }
    });
    paused
}

/// Where the partitions of a node can go: to groups that have no replica there, those with the fewest partitions first.
fn drained(map: &PartitionMap, node: NodeId) -> Vec<(PartitionId, GroupId, Vec<NodeId>)> {
    let mut free: BTreeMap<GroupId, (usize, Vec<NodeId>)> = BTreeMap::new();
    for partition in map.partitions().filter(|it| !it.replicas.contains(&node)) {
        free.entry(partition.group).or_insert_with(|| (0, partition.replicas.clone())).0 += 1;
    }
    let mut moves = Vec::new();
    for partition in map.partitions().filter(|it| it.replicas.contains(&node)) {
        let Some((group, (count, replicas))) = free.iter_mut().min_by_key(|(group, (count, _))| (*count, **group))
        else {
            break;
        };
        *count += 1;
        moves.push((partition.id, *group, replicas.clone()));
    }
    moves
}

pub(crate) fn drain(args: args::Drain) -> CommandResult {
    connected(&args.reach, async |client| {
        let node = NodeId(args.drained);
        let map = client.map().await?;
        let there = map.partitions().filter(|it| it.replicas.contains(&node)).count();
        if are_placed(&map) {
            let topology = topology(&map, &client.nodes(), Some(node))?;
            place_all(&client, &map, &topology, 0, !args.dry_run).await?;
            let map = client.map().await?;
            if !args.dry_run && !map.partitions().any(|it| it.replicas.contains(&node)) {
                say(format_args!("node {node} owns nothing any more"));
            }
            return Ok(());
        }
        let moves = drained(&map, node);
        if there > 0 && moves.is_empty() {
            return Err(format!("every group has a replica on node {node}: there is nowhere to go").into());
        }
        say(format_args!("{there} partitions have a replica on node {node}"));
        for (partition, group, replicas) in moves {
            if args.dry_run {
                say(format_args!("partition {partition} would go to group {group} on nodes {}", listed(&replicas)));
            } else {
                hand_off(&client, partition, group, replicas).await?;
            }
        }
        if !args.dry_run {
            say(format_args!("node {node} holds no partition any more"));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use replikit_partitioning::store::{Founding, Layout};

    use super::*;

    #[test]
    fn what_is_drained_goes_to_groups_without_a_replica_there_and_evenly() {
        let layout = Layout::new(&Founding::new((1..=5).map(NodeId), 16)).unwrap();
        let map = layout.first();
        let there = map.partitions().filter(|it| it.replicas.contains(&NodeId(3))).count();
        let moves = drained(map, NodeId(3));
        assert_eq!(moves.len(), there);
        assert!(moves.iter().all(|(_, _, replicas)| !replicas.contains(&NodeId(3))));
        let mut counts: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (_, group, _) in &moves {
            *counts.entry(*group).or_default() += 1;
        }
        let (min, max) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(max - min <= 1, "{counts:?}");
    }

    #[test]
    fn bounds_are_shown_as_slots_as_text_or_as_hexadecimal() {
        let (ordered, hashed) = (Scheme::KEY_ORDER, Scheme::hash_slots(0));
        assert_eq!((bound(&ordered, b"user1"), bound(&ordered, &[4, 0])), ("user1".to_owned(), "0x0400".to_owned()));
        assert_eq!(bound(&hashed, &[4, 0]), "slot:1024");
        assert_eq!(bound(&hashed, b"\x3c$user1\0"), "slot:15396/0x757365723100");
    }
}
