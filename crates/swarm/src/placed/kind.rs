//! Of which groups the store is.

use core::fmt::Debug;
use core::time::Duration;
use std::sync::Arc;

use fastrand::Rng;
use replikit_core::crdt::CrdtKind;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{Announcements, Boot, ClusterId, Epoch, GroupId, NodeId, Replica};
use replikit_leaderless as leaderless;
use replikit_multi_leader as multi_leader;
use replikit_partitioning::Replication;

use super::Style;

/// What the scenario has to know of a strategy whose groups the map places.
pub trait Kind: Debug + Sized + Send + 'static {
    /// The replica of a group.
    type Replica: Replica + Debug + Send;
    /// What all groups of a run have alike.
    type Settings: Clone + Debug + Send;

    /// What the map says.
    const REPLICATION: Replication;
    /// What clients do.
    const STYLE: Style;
    /// Whether what was acknowledged outlasts a disk that loses it.
    const SURVIVES_ROT: bool;

    /// Draws settings; with how often replicas tell each other what they hold.
    fn settings(rng: &mut Rng) -> (Self::Settings, Duration);

    /// A replica that follows a source of memberships.
    fn replica(
        settings: &Self::Settings,
        cluster: ClusterId,
        group: GroupId,
        node: NodeId,
        source: Arc<Announcements>,
        boot: &Boot,
    ) -> Self::Replica;

    /// See [`Placing::drained`](replikit_partitioning::host::Placing::drained).
    fn drained(_: &Self::Replica) -> Option<Epoch> {
        None
    }

    /// Whether the replicas of these nodes, all of a group, have come to rest with it.
    fn is_at_rest(replicas: &[&Self::Replica], nodes: &[NodeId]) -> bool;

    /// What must be the same at all of them then.
    fn hash(_: &Self::Replica) -> Option<u64> {
        None
    }

    /// Words for whoever reads of a failure.
    fn describe(replica: &Self::Replica) -> String;
}

/// Leaderless groups.
#[derive(Debug)]
pub struct OfLeaderless;

impl Kind for OfLeaderless {
    type Replica = leaderless::Leaderless;
    type Settings = (leaderless::Timing, leaderless::Limits);

    const REPLICATION: Replication = Replication::Leaderless;
    const STYLE: Style = Style::Quorums;
    const SURVIVES_ROT: bool = true;

    fn settings(rng: &mut Rng) -> (Self::Settings, Duration) {
        let settings = crate::leaderless::knobs(rng);
        (settings, settings.0.exchange)
    }

    fn replica(
        &(timing, limits): &Self::Settings,
        cluster: ClusterId,
        group: GroupId,
        node: NodeId,
        source: Arc<Announcements>,
        boot: &Boot,
    ) -> Self::Replica {
        let set = leaderless::Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set));
        let newest = leaderless::Keyspace::new(ConflictPolicy::Lww);
        let mut config = leaderless::Config::new(cluster, group, node, Vec::new());
        (config.timing, config.limits) = (timing, limits);
        config.keyspaces = leaderless::Keyspaces::default().with("set/", set).with("lww/", newest);
        config.founding = leaderless::Founding::New;
        config.epochs = Box::new(source);
        leaderless::Leaderless::new(config, boot).expect("the knobs are in range")
    }

    fn is_at_rest(replicas: &[&Self::Replica], nodes: &[NodeId]) -> bool {
        replicas.iter().all(|replica| replica.is_serving(nodes))
    }

    fn describe(replica: &Self::Replica) -> String {
        format!("{:?} caught up {}", replica.ownership(), replica.origin().is_some())
    }
}

/// Multi-leader groups.
#[derive(Debug)]
pub struct OfLeaders;

impl Kind for OfLeaders {
    type Replica = multi_leader::MultiLeader;
    type Settings = (multi_leader::Timing, multi_leader::Limits);

    const REPLICATION: Replication = Replication::MultiLeader;
    const STYLE: Style = Style::Leaders;
    const SURVIVES_ROT: bool = false;

    fn settings(rng: &mut Rng) -> (Self::Settings, Duration) {
        let settings = crate::multi::knobs(rng);
        (settings, settings.0.exchange)
    }

    fn replica(
        &(timing, limits): &Self::Settings,
        cluster: ClusterId,
        group: GroupId,
        node: NodeId,
        source: Arc<Announcements>,
        boot: &Boot,
    ) -> Self::Replica {
        let crdt = |kind| multi_leader::Keyspace::new(ConflictPolicy::Crdt(kind));
        let mut config = multi_leader::Config::new(cluster, group, node, Vec::new());
        (config.timing, config.limits) = (timing, limits);
        config.keyspaces = multi_leader::Keyspaces::default()
            .with("set/", crdt(CrdtKind::Set))
            .with("count/", crdt(CrdtKind::Counter));
        config.founding = multi_leader::Founding::New;
        config.epochs = Box::new(source);
        multi_leader::MultiLeader::new(config, boot).expect("the knobs are in range")
    }

    fn drained(replica: &Self::Replica) -> Option<Epoch> {
        replica.drained()
    }

    fn is_at_rest(replicas: &[&Self::Replica], nodes: &[NodeId]) -> bool {
        let members = |replica: &Self::Replica| replica.members().eq(nodes.iter().copied());
        let same = |replica: &Self::Replica| replica.applied() == replicas[0].applied() && replica.origin().is_some();
        replicas.iter().all(|replica| members(replica) && same(replica) && replica.received().is_none())
    }

    fn hash(replica: &Self::Replica) -> Option<u64> {
        Some(replica.state_hash())
    }

    fn describe(replica: &Self::Replica) -> String {
        let status = replica.status();
        let members: Vec<NodeId> = replica.members().collect();
        let drained = replica.drained();
        format!("{} {members:?} caught up {} drained {drained:?}", status.epoch, replica.origin().is_some())
    }
}
