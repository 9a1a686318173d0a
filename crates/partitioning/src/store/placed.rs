//! A node of a store whose groups of data have no one log: its replicas of them and of the log of maps in one container, over one log
//! and one listener. The map says on which nodes each group is, and the node's host brings that about.

use core::fmt::Debug;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use replikit_core::keyspace::Keyspace;
use replikit_core::{Announcements, Boot, ClusterId, Epoch, GroupId, LogIndex, Membership, NodeId, Replica, Term};
use replikit_runtime::{Node, NodeConfig, OpenError, Promise};
use replikit_single_leader::{Config as RaftConfig, Raft, Settings as RaftSettings};

use super::META_GROUP;
use super::layout::Layout;
use super::machine::{StoreMachine, StoreSeat};
use super::node::{check_nodes, heartbeats, prepare};
use crate::either::Either;
use crate::groups::Groups;
use crate::host::{Host, HostConfig, Placing, Seat};
use crate::machine::GroupMachine;
use crate::map::{PartitionMap, Replication};

/// How often a node asks for a newer map of its own accord: one that owns nothing any more is told by nobody, and keeps what it had until
/// then.
const MAP_REFRESH: Duration = Duration::from_millis(250);

/// A group of such a store: the log of maps, or data.
type Group<R> = Either<Raft<StoreMachine>, R>;

/// What a node of a group is told of where it is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which group.
    pub group: GroupId,
    /// Which of its nodes.
    pub node: NodeId,
}

/// Settings of groups that the map places: those of a leaderless or of a multi-leader group. Nobody else implements it.
pub trait PlacedSettings: sealed::Sealed + Clone + Debug + Send + 'static {
    /// The replica of a group.
    type Replica: Replica + Debug + Send;

    /// What these groups are in the map.
    const REPLICATION: Replication;

    /// What a store of them promises.
    const PROMISE: Promise;

    /// A replica that follows the memberships of a source.
    ///
    /// # Errors
    /// Why there can be none.
    fn replica(&self, at: Place, source: Arc<Announcements>, boot: &Boot) -> Result<Self::Replica, String>;

    /// Whether such a replica could be.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, at: Place, source: Arc<Announcements>) -> Result<(), String>;

    /// A membership with what the map does not know of the nodes.
    #[must_use]
    fn detailed(&self, membership: Membership) -> Membership {
        membership
    }

    /// See [`Placing::drained`].
    fn drained(_: &Self::Replica) -> Option<Epoch> {
        None
    }
}

mod sealed {
    pub trait Sealed {}
    #[cfg(feature = "leaderless")]
    impl Sealed for replikit_leaderless::Settings {}
    #[cfg(feature = "multi-leader")]
    impl Sealed for replikit_multi_leader::Settings {}
}

#[cfg(feature = "leaderless")]
impl PlacedSettings for replikit_leaderless::Settings {
    type Replica = replikit_leaderless::Leaderless;

    const REPLICATION: Replication = Replication::Leaderless;

    const PROMISE: Promise = super::guarantees_leaderless;

    fn replica(&self, at: Place, source: Arc<Announcements>, boot: &Boot) -> Result<Self::Replica, String> {
        replikit_leaderless::Leaderless::new(leaderless_config(self, at, source), boot).map_err(|it| it.to_string())
    }

    fn check(&self, at: Place, source: Arc<Announcements>) -> Result<(), String> {
        leaderless_config(self, at, source).check().map_err(|error| error.to_string())
    }

    fn detailed(&self, mut membership: Membership) -> Membership {
        for node in &mut membership.nodes {
            node.region = self.regions.get(&node.id).cloned().unwrap_or_default();
        }
        membership
    }
}

#[cfg(feature = "leaderless")]
fn leaderless_config(
    settings: &replikit_leaderless::Settings,
    at: Place,
    source: Arc<Announcements>,
) -> replikit_leaderless::Config {
    let settings = settings.clone().fallbacks([], replikit_leaderless::Counting::Never).epochs(source);
    settings.config(at.cluster, at.group, at.node, Vec::new())
}

#[cfg(feature = "multi-leader")]
impl PlacedSettings for replikit_multi_leader::Settings {
    type Replica = replikit_multi_leader::MultiLeader;

    const REPLICATION: Replication = Replication::MultiLeader;

    const PROMISE: Promise = super::guarantees_multi_leader;

    fn replica(&self, at: Place, source: Arc<Announcements>, boot: &Boot) -> Result<Self::Replica, String> {
        let config = self.clone().epochs(source).config(at.cluster, at.group, at.node, Vec::new());
        replikit_multi_leader::MultiLeader::new(config, boot).map_err(|error| error.to_string())
    }

    fn check(&self, at: Place, source: Arc<Announcements>) -> Result<(), String> {
        let members: Vec<NodeId> = replikit_core::EpochSource::current(&source).ids().collect();
        self.report(&members).map_err(|error| error.to_string())?;
        self.clone().epochs(source).config(at.cluster, at.group, at.node, members).check().map_err(|it| it.to_string())
    }

    fn drained(replica: &Self::Replica) -> Option<Epoch> {
        replica.drained()
    }
}

/// One node of a partitioned store of leaderless or multi-leader groups. Dropping it shuts it down cleanly.
///
/// # What it guarantees
///
/// What a group of the settings guarantees, for each key, also while it goes from nodes to nodes. Leaderless: then every quorum is one
/// of the owners before and of those to be. Multi-leader: who leaves hands over all that it has acknowledged at any level first; a
/// majority is one of those before until the new ones have caught up, and of those who stay then. A write that may have arrived is not
/// sent again by anybody: writes have no numbers here.
#[derive(Debug)]
pub struct PlacedStoreNode {
    node: Node<StoreMachine>,
}

impl PlacedStoreNode {
    /// Opens a node. `layout`, of a founding with [`PlacedSettings::REPLICATION`], must be the same at all nodes of the store, or they
    /// refuse each other, and at every start; `config` names the other nodes of it and where they listen. `maps` is for the group that
    /// keeps the map, `settings` for all others; its epochs and fallback nodes do not count. Blocks until its log is recovered.
    ///
    /// # Errors
    /// [`OpenError`], also for a folder that was founded with another layout; nothing is left running and nothing was overwritten.
    pub fn open<S: PlacedSettings>(
        mut config: NodeConfig,
        layout: &Layout,
        maps: RaftSettings,
        settings: S,
    ) -> Result<Self, OpenError> {
        let wrong = |what: String| OpenError::Configuration { what };
        if layout.replication() != S::REPLICATION {
            let what = format!("the groups of this store are {:?}, not {:?}", layout.replication(), S::REPLICATION);
            return Err(wrong(what));
        }
        check_nodes(&config, layout)?;
        let (node, cluster) = (config.id, ClusterId::from_name(&config.cluster));
        let mut places = Places { cluster, node, settings, incarnation: 0, sources: BTreeMap::new() };
        for partition in layout.first().partitions() {
            let (at, source) = places.place(partition.group, partition.membership());
            places.settings.check(at, source).map_err(wrong)?;
        }
        let heartbeats = heartbeats(&maps);
        config.promise.get_or_insert(S::PROMISE);
        let front = prepare(&mut config, layout, &maps)?;
        let host = HostConfig { refresh: MAP_REFRESH, ..HostConfig::new(node, META_GROUP) };
        let (first, map_nodes) = (layout.first().clone(), layout.meta().to_vec());
        let running = Node::open(config, move |boots| {
            places.incarnation = boots.incarnation();
            let mut groups = Vec::new();
            if map_nodes.contains(&node) {
                let raft = raft_of_maps(cluster, node, map_nodes.clone(), maps, &boots.of(META_GROUP), &first)?;
                groups.push((META_GROUP, Either::one(META_GROUP, raft)));
            }
            for partition in first.partitions() {
                let (group, founding) = (partition.group, partition.membership());
                // A group that came here later has left something in the log.
                if founding.contains(node) || boots.iter().any(|(known, _)| known == group) {
                    let replica = places.replica(group, founding, &boots.of(group));
                    groups.push((group, replica.map_err(|what| OpenError::Configuration { what })?));
                }
            }
            let groups = Groups::new(first.epoch(), groups).with_node_heartbeats(heartbeats);
            Ok(Host::<_, Seats<S>>::new(host, map_nodes, first, groups).with_placing(Box::new(places)))
        })?;
        front.own(node, running.handle(), layout.groups().map(|(group, _)| group).collect());
        Ok(Self { node: running })
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
struct Seats<S>(core::marker::PhantomData<S>);

impl<S: PlacedSettings> Seat<Group<S::Replica>> for Seats<S> {
    type Machine = Keyspace;

    fn machine(replica: &Group<S::Replica>) -> Option<&GroupMachine<Keyspace>> {
        replica.as_one().and_then(StoreSeat::machine)
    }

    fn leads(replica: &Group<S::Replica>) -> Option<Term> {
        replica.as_one().and_then(StoreSeat::leads)
    }

    fn applied(replica: &Group<S::Replica>) -> LogIndex {
        replica.as_one().map_or(LogIndex(0), StoreSeat::applied)
    }
}

/// Makes the groups of a node, and tells them who belongs to them.
#[derive(Debug)]
struct Places<S> {
    cluster: ClusterId,
    node: NodeId,
    settings: S,
    /// Unclean starts that the log has seen.
    incarnation: u32,
    sources: BTreeMap<GroupId, Arc<Announcements>>,
}

impl<S: PlacedSettings> Places<S> {
    fn place(&self, group: GroupId, membership: Membership) -> (Place, Arc<Announcements>) {
        let source = Arc::new(Announcements::new(self.settings.detailed(membership)));
        (Place { cluster: self.cluster, group, node: self.node }, source)
    }

    fn replica(&mut self, group: GroupId, membership: Membership, boot: &Boot) -> Result<Group<S::Replica>, String> {
        let (at, source) = self.place(group, membership);
        let replica = self.settings.replica(at, source.clone(), boot).map_err(|why| format!("group {group}: {why}"))?;
        self.sources.insert(group, source);
        Ok(Either::other(group, replica))
    }
}

impl<S: PlacedSettings> Placing<Group<S::Replica>> for Places<S> {
    fn announce(&mut self, group: GroupId, membership: Membership) {
        if let Some(source) = self.sources.get(&group) {
            source.announce(self.settings.detailed(membership));
        }
    }

    fn found(&mut self, group: GroupId, membership: Membership) -> Result<Group<S::Replica>, String> {
        self.replica(group, membership, &Boot { incarnation: self.incarnation, ..Boot::default() })
    }

    fn drained(&self, replica: &Group<S::Replica>) -> Option<Epoch> {
        replica.as_other().and_then(S::drained)
    }
}
