//! `replikit node`: one node of a cluster that holds key-value data.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{Event, NodeId, Role};
use replikit_leaderless as leaderless;
use replikit_multi_leader as multi_leader;
use replikit_partitioning::store::{Layout, PlacedStoreNode, StoreNode};
use replikit_runtime::NodeConfig;
use replikit_single_leader::Settings;
use tokio::signal::unix::{SignalKind, signal};

use crate::shape::Strategy;
use crate::{CommandResult, args, say};

pub(crate) fn run(args: args::Node) -> CommandResult {
    if !args.insecure {
        refuse_beyond_loopback(&args.listen)?;
    }
    let id = NodeId(args.id);
    if args.peers.iter().any(|(peer, address)| *peer == id && *address != args.listen) {
        return Err(format!("--peer {id}=.. names this node itself").into());
    }
    let mut members: Vec<NodeId> = args.peers.iter().map(|(peer, _)| *peer).chain([id]).collect();
    members.sort_unstable();
    let mut config = NodeConfig::new(id, args.cluster.clone(), args.listen).peers(args.peers).dir(&args.data);
    config.log_retained_bytes_max = args.log_retained_bytes;
    let is_partitioned = args.shape.is_partitioned();
    config.events = Some(Arc::new(move |node, group, event| match event {
        // Of thousands of groups each has its leaders, and each waits for the same disk.
        Event::RoleChanged { .. } | Event::LeaderChanged { .. } | Event::StorageSlow if is_partitioned => {
            tracing::debug!(%node, group = group.0, "{event:?}");
        }
        event => report(node, group.0, event),
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the node takes part, so that no signal can come in between.
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let mut settings = Settings::default();
    settings.timeouts.election = Duration::from_millis(args.election_timeout_ms);
    settings.timeouts.heartbeat = settings.timeouts.election / 5;
    settings.timeouts.commit_notice = Duration::from_millis(1).min(settings.timeouts.heartbeat);
    let node = match args.shape.strategy {
        Strategy::Leaderless if args.shape.is_partitioned() => {
            use leaderless::Founding;
            let layout = Layout::new(&args.shape.founding(&members))?;
            let of_groups = args.shape.leaderless(if args.new { Founding::New } else { Founding::Ask });
            Running::Placed(PlacedStoreNode::open(config, &layout, settings, of_groups)?)
        }
        Strategy::MultiLeader if args.shape.is_partitioned() => {
            use multi_leader::Founding;
            let layout = Layout::new(&args.shape.founding(&members))?;
            let of_groups = args.shape.multi_leader(if args.new { Founding::New } else { Founding::Ask });
            Running::Placed(PlacedStoreNode::open(config, &layout, settings, of_groups)?)
        }
        _ if args.shape.is_partitioned() => {
            let layout = Layout::new(&args.shape.founding(&members))?;
            Running::Partitioned(StoreNode::open(config, &layout, settings)?)
        }
        Strategy::SingleLeader | Strategy::Partitioned => {
            Running::SingleLeader(replikit_single_leader::Node::open_with(config, settings, Keyspace::new())?)
        }
        Strategy::MultiLeader => {
            use multi_leader::{Founding, Node};
            let settings = args.shape.multi_leader(if args.new { Founding::New } else { Founding::Ask });
            Running::MultiLeader(Node::open(config, settings)?)
        }
        Strategy::Leaderless => {
            use leaderless::{Founding, Node};
            let settings = args.shape.leaderless(if args.new { Founding::New } else { Founding::Ask });
            Running::Leaderless(Node::open(config, settings)?)
        }
    };
    say(format_args!("node {id} of {}: listening on {}", args.cluster, node.local_address()));
    if let Running::Partitioned(store) = &node {
        say(format_args!(
            "node {id}: replicas of {} groups, that of the map among them if it is here",
            store.groups().len()
        ));
    }
    match args.shape.strategy {
        Strategy::SingleLeader | Strategy::Partitioned => {}
        Strategy::MultiLeader if args.shape.is_partitioned() => {}
        Strategy::MultiLeader => {
            let report = args.shape.multi_leader(multi_leader::Founding::Ask).report(&members)?;
            say(format_args!("node {id}: topology {}: {report}", args.shape.topology_name()));
        }
        Strategy::Leaderless => {
            let owners = match args.shape.is_partitioned() {
                true => usize::from(args.shape.founding(&members).copies),
                false => members.len(),
            };
            say(format_args!("node {id}: {}", args.shape.quorums_report(owners)));
        }
    }
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tracing::info!(node = %id, "shutting down");
    node.shutdown();
    say(format_args!("node {id} has stopped"));
    Ok(())
}

/// A node of any kind.
enum Running {
    SingleLeader(replikit_single_leader::Node<Keyspace>),
    MultiLeader(multi_leader::Node),
    Leaderless(leaderless::Node),
    Partitioned(StoreNode),
    Placed(PlacedStoreNode),
}

impl Running {
    const fn local_address(&self) -> SocketAddr {
        match self {
            Self::SingleLeader(node) => node.local_address(),
            Self::MultiLeader(node) => node.local_address(),
            Self::Leaderless(node) => node.local_address(),
            Self::Partitioned(node) => node.local_address(),
            Self::Placed(node) => node.local_address(),
        }
    }

    fn shutdown(self) {
        match self {
            Self::SingleLeader(node) => node.shutdown(),
            Self::MultiLeader(node) => node.shutdown(),
            Self::Leaderless(node) => node.shutdown(),
            Self::Partitioned(node) => node.shutdown(),
            Self::Placed(node) => node.shutdown(),
        }
    }
}

/// Without TLS, only this machine may connect unless the operator says otherwise.
pub(crate) fn refuse_beyond_loopback(listen: &str) -> CommandResult {
    let addresses =
        listen.to_socket_addrs().map_err(|error| format!("`{listen}` is no address: {error}; give HOST:PORT"))?;
    match addresses.into_iter().find(|address| !address.ip().is_loopback()) {
        None => Ok(()),
        Some(address) => Err(format!(
            "{address} can be reached from other machines, and nothing is encrypted yet: listen on 127.0.0.1, or say --insecure"
        )
        .into()),
    }
}

fn report(node: NodeId, group: u32, event: &Event) {
    match event {
        Event::RoleChanged { role: Role::Equal, .. } => tracing::info!(%node, group, "takes part"),
        Event::RoleChanged { role, term } => tracing::info!(%node, group, "{role} in term {term}"),
        Event::LeaderChanged { leader: Some(leader), term } => {
            tracing::info!(%node, group, "node {leader} leads term {term}");
        }
        Event::LeaderChanged { leader: None, .. } => tracing::debug!(%node, group, "no leader is known"),
        Event::LostWrites { stream, range, term } => tracing::warn!(
            %node,
            "entries {} to {} of {stream}, first of term {term}, were dropped: writes acknowledged below quorum may be lost; they are kept beside the log",
            range.start(),
            range.end()
        ),
        Event::TailCut { stream } => tracing::warn!(
            %node,
            "the end of {stream} was torn by a crash and was cut; this node neither votes nor takes writes until it has caught up"
        ),
        Event::PeerMisbehaved { node: peer, what } => tracing::warn!(%node, "node {peer} {what}; dropped"),
        Event::PeerSuspected { node: peer } => {
            tracing::warn!(%node, "nothing comes from node {peer}; others are reached around it");
        }
        Event::ClockAhead { node: peer, ahead } => {
            tracing::warn!(%node, "the clock of node {peer} is {ahead:?} ahead of this one");
        }
        Event::EpochBegun { epoch, members } => {
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            tracing::info!(%node, group, "epoch {epoch} has begun, with nodes {}", members.join(", "));
        }
        Event::Evicted { epoch } => {
            tracing::warn!(%node, group, "not a member in epoch {epoch}: this node takes no writes; what only it has stays on its disk");
        }
        Event::Retired { epoch, stashed } => tracing::info!(
            %node,
            group,
            "no member in epoch {epoch}, whose members have everything: what was here is dropped; {stashed} keys that they may not have are put away"
        ),
        Event::NotPlaced { why } => tracing::error!(%node, group, "named as an owner, and cannot be one: {why}"),
        Event::OriginClosed { stream, last } => {
            tracing::warn!(%node, "{stream} is closed: of its evicted node, writes up to {last} count, and later ones when it comes back");
        }
        Event::BeganAnew { epoch, stashed } => {
            tracing::warn!(%node, group, "named again in epoch {epoch}: begins with an empty state; {stashed} keys are put away");
        }
        Event::Resubmitted { writes, known, dropped } => tracing::warn!(
            %node,
            group,
            "of what was put away, {writes} writes were made again, {known} were there; {dropped} writes of others that nobody else has are not here any more"
        ),
        Event::StorageFailed => {
            tracing::error!(%node, "the storage failed: this node acknowledges nothing any more; restart it once the disk works");
        }
        Event::StorageSlow => tracing::warn!(%node, "the disk stalls"),
        Event::StorageFaulty { stream, range } => tracing::error!(
            %node,
            "entries {} to {} of {stream} cannot be read any more",
            range.start(),
            range.end()
        ),
        Event::SnapshotTaken { at } => tracing::info!(%node, group, "snapshot begun at {}", at.id),
        Event::SnapshotInstalled { at, from } => {
            tracing::info!(%node, group, "took a snapshot at {} from node {from}", at.id);
        }
        Event::SnapshotUnreadable { at } => tracing::error!(%node, group, "the snapshot at {} cannot be read", at.id),
        other => tracing::info!(%node, group, "{other:?}"),
    }
}
