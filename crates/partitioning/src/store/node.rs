//! A node of a partitioned store: its replicas of all its groups in one container, over one log and one listener.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use replikit_core::{ClusterId, GroupId, NodeId};
use replikit_runtime::{Handle, Node, NodeConfig, OpenError};
use replikit_single_leader::{Config, Raft, Settings, Sharing};

use super::cache::MapCache;
use super::client::StoreClientConfig;
use super::front::Front;
use super::layout::Layout;
use super::machine::{StoreMachine, StoreSeat};
use super::{META_GROUP, STORE_GROUP};
use crate::groups::Groups;
use crate::heartbeats::NodeHeartbeats;
use crate::host::{Host, HostConfig};
use crate::map::Replication;

/// How often a node asks for a newer map of its own accord.
const MAP_REFRESH: Duration = Duration::from_secs(1);

/// One node of a partitioned store. Dropping it shuts it down cleanly.
#[derive(Debug)]
pub struct StoreNode {
    node: Node<StoreMachine>,
    groups: Vec<GroupId>,
}

impl StoreNode {
    /// Opens a node. `layout` must be the same at all nodes of the store, or they refuse each other, and at every start; `config`
    /// names the other nodes of it and where they listen. Blocks until its log is recovered.
    ///
    /// # Errors
    /// [`OpenError`], also for a folder that was founded with another layout; nothing is left running and nothing was overwritten.
    pub fn open(mut config: NodeConfig, layout: &Layout, settings: Settings) -> Result<Self, OpenError> {
        let wrong = |what: String| OpenError::Configuration { what };
        let id = config.id;
        check_nodes(&config, layout)?;
        if layout.replication() != Replication::SingleLeader {
            return Err(wrong("the groups of this store have no leaders: open a PlacedStoreNode".to_owned()));
        }
        let own = |nodes: &[NodeId]| nodes.contains(&id);
        let groups: Vec<(GroupId, Vec<NodeId>)> = std::iter::once((META_GROUP, layout.meta()))
            .chain(layout.groups())
            .filter(|(_, nodes)| own(nodes))
            .map(|(group, nodes)| (group, nodes.to_vec()))
            .collect();
        let cluster = ClusterId::from_name(&config.cluster);
        let configure = |group, voters| {
            let mut raft = Config::new(cluster, group, id, voters, fastrand::u64(..));
            raft.timeouts = settings.timeouts;
            raft.limits = settings.limits;
            // By then every follower has answered a few heartbeats since the last write.
            raft.hibernate_after = Some(settings.timeouts.election);
            raft
        };
        let heartbeats = heartbeats(&settings);
        let configured: Vec<Config> = groups.iter().map(|(group, voters)| configure(*group, voters.clone())).collect();
        let ids: Vec<GroupId> = groups.iter().map(|(group, _)| *group).collect();

        config.promise.get_or_insert(super::guarantees);
        let front = prepare(&mut config, layout, &settings)?;
        let host = HostConfig { refresh: MAP_REFRESH, ..HostConfig::new(id, META_GROUP) };
        let (first, map_nodes) = (layout.first().clone(), layout.meta().to_vec());
        let node = Node::open(config, move |boots| {
            let mut sharing = Sharing::default();
            let replicas: Result<Vec<_>, OpenError> = configured
                .iter()
                .map(|raft| {
                    let group = raft.group;
                    let machine = StoreMachine::first(group, &first);
                    let replica = Raft::sharing(&mut sharing, raft, &boots.of(group), machine);
                    replica
                        .map(|replica| (group, replica))
                        .map_err(|error| OpenError::Configuration { what: error.to_string() })
                })
                .collect();
            let groups = Groups::new(first.epoch(), replicas?).with_node_heartbeats(heartbeats);
            Ok(Host::<_, StoreSeat>::new(host, map_nodes, first, groups))
        })?;
        front.own(id, node.handle(), ids.clone());
        Ok(Self { node, groups: ids })
    }

    /// The groups that have a replica here, that of the map among them.
    #[must_use]
    pub fn groups(&self) -> &[GroupId] {
        &self.groups
    }

    /// The in-process way to one of its groups.
    #[must_use]
    pub fn handle(&self, group: GroupId) -> Handle<StoreMachine> {
        self.node.handle().for_group(group)
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

/// The peers of a node are the other nodes of the store.
pub(super) fn check_nodes(config: &NodeConfig, layout: &Layout) -> Result<(), OpenError> {
    let mut nodes: Vec<NodeId> = config.peers.iter().map(|(peer, _)| *peer).chain([config.id]).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes == layout.nodes() {
        return Ok(());
    }
    let what = format!("the store is of nodes {:?}, and the peers of node {} are others", layout.nodes(), config.id);
    Err(OpenError::Configuration { what })
}

/// Node pairs watch each other as often as followers hear of their leader.
pub(super) fn heartbeats(settings: &Settings) -> NodeHeartbeats {
    let (every, patience) = (settings.timeouts.heartbeat, settings.timeouts.election);
    NodeHeartbeats { every, patience, life: fastrand::u64(..) }
}

/// Has a node be one of this store, in a folder that was founded with it. Whoever asks the node for the whole store, or for its map, is
/// answered by the front that is returned: a client of the store within it.
pub(super) fn prepare(config: &mut NodeConfig, layout: &Layout, settings: &Settings) -> Result<Arc<Front>, OpenError> {
    let front = front_of(config, layout);
    config.gateway = Some(front.at());
    config.founding = layout.digest();
    if let Some(dir) = &config.dir {
        founded_alike(dir, &layout.founding()).map_err(|what| OpenError::Configuration { what })?;
    }
    config.group = STORE_GROUP;
    // A disk that is slower than this makes followers doubt their leader.
    config.timing.storage_slow_after = config.timing.storage_slow_after.max(settings.timeouts.election / 2);
    Ok(front)
}

/// A front for clients that know nothing of partitions, in a node with these settings.
fn front_of(config: &NodeConfig, layout: &Layout) -> Arc<Front> {
    let mut addresses: Vec<String> = vec![config.listen.clone()];
    addresses.extend(config.peers.iter().filter(|(peer, _)| *peer != config.id).map(|(_, address)| address.clone()));
    let client = StoreClientConfig::new(config.cluster.clone(), addresses);
    Arc::new(Front::new(client, Arc::new(MapCache::new()), Some(layout.meta().to_vec())))
}

/// A folder stays with what it was founded with first.
fn founded_alike(dir: &Path, founding: &str) -> Result<(), String> {
    let path = dir.join("founding");
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == founding => Ok(()),
        Ok(found) => Err(format!("{} was founded with {}, not with {founding}", dir.display(), found.trim_end())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(failed)?;
            // Under its name once it is whole, and there before anything is written to the log.
            let new = dir.join("founding.new");
            let write = || {
                let mut file = File::create(&new)?;
                file.write_all(format!("{founding}\n").as_bytes())?;
                file.sync_all()?;
                fs::rename(&new, &path)?;
                File::open(dir)?.sync_all()
            };
            write().map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}
