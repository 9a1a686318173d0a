//! A node of a store whose groups of data have no leader: its replicas of them and of the log of maps in one container, over one log
//! and one listener. The map says who owns each group, and the node's host brings that about.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{Announcements, Boot, ClusterId, GroupId, LogIndex, Membership, NodeId, Term};
use replikit_leaderless::{Leaderless, Settings};
use replikit_runtime::{Node, NodeConfig, OpenError};
use replikit_single_leader::{Config as RaftConfig, Raft, Settings as RaftSettings};

use super::layout::Layout;
use super::machine::{StoreMachine, StoreSeat};
use super::node::{check_nodes, heartbeats, prepare};
use super::{META_GROUP, guarantees_leaderless};
use crate::either::Either;
use crate::groups::Groups;
use crate::host::{Host, HostConfig, Placing, Seat};
use crate::machine::GroupMachine;
use crate::map::{PartitionMap, Replication};

/// How often a node asks for a newer map of its own accord: one that owns nothing any more is told by nobody, and keeps what it had until
/// then.
const MAP_REFRESH: Duration = Duration::from_millis(250);

/// A group of such a store: the log of maps, or data.
type Group = Either<Raft<StoreMachine>, Leaderless>;

/// One node of a partitioned store of leaderless groups. Dropping it shuts it down cleanly.
///
/// # What it guarantees
///
/// What a leaderless group of the settings guarantees, for each key, also while its group goes from nodes to nodes: then every quorum is
/// one of the owners before and of those to be. A write that may have arrived is not sent again by anybody: writes have no numbers here.
#[derive(Debug)]
pub struct LeaderlessStoreNode {
    node: Node<StoreMachine>,
}

impl LeaderlessStoreNode {
    /// Opens a node. `layout`, of a founding with [`Replication::Leaderless`], must be the same at all nodes of the store, or they
    /// refuse each other, and at every start; `config` names the other nodes of it and where they listen. `maps` is for the group that
    /// keeps the map, `settings` for all others; its epochs and fallback nodes do not count. Blocks until its log is recovered.
    ///
    /// # Errors
    /// [`OpenError`], also for a folder that was founded with another layout; nothing is left running and nothing was overwritten.
    pub fn open(
        mut config: NodeConfig,
        layout: &Layout,
        maps: RaftSettings,
        settings: Settings,
    ) -> Result<Self, OpenError> {
        let wrong = |what: String| OpenError::Configuration { what };
        if layout.replication() != Replication::Leaderless {
            return Err(wrong("the groups of this store have leaders: open a StoreNode".to_owned()));
        }
        check_nodes(&config, layout)?;
        let id = config.id;
        let cluster = ClusterId::from_name(&config.cluster);
        let mut places = Places { cluster, node: id, settings, incarnation: 0, sources: BTreeMap::new() };
        for partition in layout.first().partitions() {
            let (configured, _) = places.configured(partition.group, partition.membership());
            configured.check().map_err(|error| wrong(error.to_string()))?;
        }
        let heartbeats = heartbeats(&maps);
        config.promise.get_or_insert(guarantees_leaderless);
        let front = prepare(&mut config, layout, &maps)?;
        let host = HostConfig { refresh: MAP_REFRESH, ..HostConfig::new(id, META_GROUP) };
        let (first, map_nodes) = (layout.first().clone(), layout.meta().to_vec());
        let node = Node::open(config, move |boots| {
            places.incarnation = boots.incarnation();
            let mut groups = Vec::new();
            if map_nodes.contains(&id) {
                let raft = raft_of_maps(cluster, id, map_nodes.clone(), maps, &boots.of(META_GROUP), &first)?;
                groups.push((META_GROUP, Either::one(META_GROUP, raft)));
            }
            for partition in first.partitions() {
                let (group, founding) = (partition.group, partition.membership());
                // A group that came here later has left something in the log.
                if founding.contains(id) || boots.iter().any(|(known, _)| known == group) {
                    let replica = places.replica(group, founding, &boots.of(group));
                    groups.push((group, replica.map_err(|what| OpenError::Configuration { what })?));
                }
            }
            let groups = Groups::new(first.epoch(), groups).with_node_heartbeats(heartbeats);
            Ok(Host::<_, Seats>::new(host, map_nodes, first, groups).with_placing(Box::new(places)))
        })?;
        front.own(id, node.handle(), layout.groups().map(|(group, _)| group).collect());
        Ok(Self { node })
    }

    /// Where the node listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.node.local_address()
    }

    /// Shuts down cleanly: requests under way are answered, the log is flushed. Blocks until that is done.
    pub fn shutdown(self) {
        self.node.shutdown();
    }
}

fn raft_of_maps(
    cluster: ClusterId,
    node: NodeId,
    voters: Vec<NodeId>,
    settings: RaftSettings,
    boot: &Boot,
    first: &PartitionMap,
) -> Result<Raft<StoreMachine>, OpenError> {
    let mut raft = RaftConfig::new(cluster, META_GROUP, node, voters, fastrand::u64(..));
    (raft.timeouts, raft.limits) = (settings.timeouts, settings.limits);
    let raft = Raft::new(raft, boot, StoreMachine::first(META_GROUP, first));
    raft.map_err(|error| OpenError::Configuration { what: error.to_string() })
}

/// How a host looks at the groups of such a store.
#[derive(Debug)]
struct Seats;

impl Seat<Group> for Seats {
    type Machine = Keyspace;

    fn machine(replica: &Group) -> Option<&GroupMachine<Keyspace>> {
        replica.as_one().and_then(StoreSeat::machine)
    }

    fn leads(replica: &Group) -> Option<Term> {
        replica.as_one().and_then(StoreSeat::leads)
    }

    fn applied(replica: &Group) -> LogIndex {
        replica.as_one().map_or(LogIndex(0), StoreSeat::applied)
    }
}

/// Makes the leaderless groups of a node, and tells them who belongs to them.
#[derive(Debug)]
struct Places {
    cluster: ClusterId,
    node: NodeId,
    settings: Settings,
    /// Unclean starts that the log has seen.
    incarnation: u32,
    sources: BTreeMap<GroupId, Arc<Announcements>>,
}

impl Places {
    /// With the regions of the nodes, which the map does not know.
    fn with_regions(&self, mut membership: Membership) -> Membership {
        for node in &mut membership.nodes {
            node.region = self.settings.regions.get(&node.id).cloned().unwrap_or_default();
        }
        membership
    }

    fn configured(&self, group: GroupId, membership: Membership) -> (replikit_leaderless::Config, Arc<Announcements>) {
        let owners = membership.ids().collect();
        let source = Arc::new(Announcements::new(self.with_regions(membership)));
        let settings = self.settings.clone().fallbacks([], replikit_leaderless::Counting::Never).epochs(source.clone());
        (settings.config(self.cluster, group, self.node, owners), source)
    }

    fn replica(&mut self, group: GroupId, membership: Membership, boot: &Boot) -> Result<Group, String> {
        let (config, source) = self.configured(group, membership);
        let replica = Leaderless::new(config, boot).map_err(|error| format!("group {group}: {error}"))?;
        self.sources.insert(group, source);
        Ok(Either::other(group, replica))
    }
}

impl Placing<Group> for Places {
    fn announce(&mut self, group: GroupId, membership: Membership) {
        if let Some(source) = self.sources.get(&group) {
            source.announce(self.with_regions(membership));
        }
    }

    fn found(&mut self, group: GroupId, membership: Membership) -> Result<Group, String> {
        self.replica(group, membership, &Boot { incarnation: self.incarnation, ..Boot::default() })
    }
}
