//! Handing a partition to another group, or a group to other nodes, from outside: plan it, and wait for what becomes of it. The groups
//! do the rest.
//!
//! Invariant: whoever waits decides nothing but to take a handoff back; if he goes away, it goes on without him.

use std::sync::Arc;
use std::time::{Duration, Instant};

use replikit_core::{GroupId, NodeId, SETTLED_EPOCH};
use replikit_runtime::Client;

use super::asking::ask_some_at_once;
use super::client::{ChangeError, StoreClient};
use crate::id::{HandoffId, PartitionId};
use crate::map::{Change, Decision, Partition, PartitionMap};
use crate::map_store::Expected;

/// How often the map is asked what has become of a handoff.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Groups whose owners are asked at a time.
const ASKED_AT_ONCE: usize = 16;

/// Why a partition is not with another group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandOffError {
    /// It could not be planned, or the map cannot be read: in the latter case it may go on by itself.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It was taken back, by whoever waited for too long or by somebody else: the partition is where it was.
    #[error("handoff {0} was taken back; the partition is where it was")]
    TakenBack(
        /// Which one.
        HandoffId,
    ),
}

/// Why a group is not, or not yet, on the nodes that it was to go to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// It was not placed anew, or the map cannot be read: in the latter case it may go on by itself.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The map names the new nodes, and those that answer do not have everything yet. It goes on by itself.
    #[error("group {group} is placed, but nodes {lacking:?} have not done their part yet; it goes on by itself")]
    UnderWay {
        /// Which one.
        group: GroupId,
        /// Of which nodes it is not known that they have everything, or that they have handed over everything.
        lacking: Vec<NodeId>,
    },
}

/// A partition of a group that the map places, as its nodes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Which one.
    pub partition: PartitionId,
    /// Keys in it, where there are most.
    pub keys: u64,
    /// The nodes that the map names and that do not have everything yet, or are about to leave: its nodes change.
    pub lacking: Vec<NodeId>,
    /// Those that do not answer.
    pub silent: Vec<NodeId>,
}

/// What a node says of its replica of such a group.
struct Seen {
    keys: u64,
    /// The newest placement whose owners have everything; 0 if it knows of none.
    settled: u64,
}

/// Asks a node; `None` if it does not answer.
async fn look(client: &Client, node: NodeId) -> Option<Seen> {
    let status = client.status(node).await.ok()?;
    let figures = &status.replica.figures;
    let figure = |name| figures.iter().find(|it| it.of == name).map_or(0, |it| it.count);
    Some(Seen { keys: figure("keys"), settled: figure(SETTLED_EPOCH) })
}

impl StoreClient {
    /// How the nodes of these partitions, all of groups that the map places, describe themselves; those of which none answers are left out.
    pub async fn owned<'p>(&self, partitions: impl IntoIterator<Item = &'p Partition>) -> Vec<Owned> {
        let partitions: Vec<Partition> = partitions.into_iter().cloned().collect();
        let ask = |partition: Partition| {
            let client = self.group_of(&partition);
            async move {
                let mut owned = Owned { partition: partition.id, keys: 0, lacking: Vec::new(), silent: Vec::new() };
                for &node in &partition.replicas {
                    match look(&client, node).await {
                        None => owned.silent.push(node),
                        Some(seen) => {
                            owned.keys = owned.keys.max(seen.keys);
                            if partition.turnover.moves(node) || seen.settled < u64::from(partition.placement.0) {
                                owned.lacking.push(node);
                            }
                        }
                    }
                }
                (owned.silent.len() < partition.replicas.len()).then_some(owned)
            }
        };
        ask_some_at_once(partitions, ASKED_AT_ONCE, ask).await.into_iter().flatten().collect()
    }

    /// Places a leaderless or multi-leader group on these nodes, while clients go on, and waits until all of them have everything and
    /// nobody else belongs to it. Nothing takes that back but placing it anew.
    ///
    /// # Errors
    /// [`PlaceError`]; after `time_max` it may still be under way.
    pub async fn place(
        &self,
        group: GroupId,
        replicas: Vec<NodeId>,
        time_max: Duration,
    ) -> Result<Arc<PartitionMap>, PlaceError> {
        let deadline = Instant::now() + time_max;
        let map = self.map().await.map_err(ChangeError::from)?;
        if map.of_group(group).any(|it| it.replication.has_one_log()) {
            let why = format!("group {group} has a leader: hand its partitions to a group on other nodes");
            return Err(ChangeError::Refused { why }.into());
        }
        let strangers = replicas.iter().find(|node| !self.nodes().iter().any(|(known, _)| known == *node));
        if let Some(stranger) = strangers {
            return Err(ChangeError::Refused { why: format!("the store has no node {stranger}") }.into());
        }
        let placed = self.change_placement(Change::Place { group, replicas: replicas.clone() }).await?;
        self.wait_for_placement(placed, replicas, deadline).await
    }

    /// Gives up a node that is to leave a multi-leader group and cannot be reached, and waits until those who stay have everything that
    /// is left. What that node alone had acknowledged is missing until it is named again.
    ///
    /// # Errors
    /// [`PlaceError`]; refused if the group was not placed without the node before.
    pub async fn give_up(
        &self,
        group: GroupId,
        node: NodeId,
        time_max: Duration,
    ) -> Result<Arc<PartitionMap>, PlaceError> {
        let deadline = Instant::now() + time_max;
        let placed = self.change_placement(Change::GiveUp { group, node }).await?;
        let stay = placed.stays().collect();
        self.wait_for_placement(placed, stay, deadline).await
    }

    /// Has a group placed otherwise; its partition as the map has it then.
    async fn change_placement(&self, change: Change) -> Result<Partition, ChangeError> {
        let delta = self.change(Expected::Any, change).await?;
        let nothing = || ChangeError::Refused { why: "a placement of no partition".to_owned() };
        delta.changed.into_iter().next().ok_or_else(nothing)
    }

    /// Until these nodes have everything, by this placement or a later one, which is for whoever has asked for that.
    async fn wait_for_placement(
        &self,
        mut placed: Partition,
        replicas: Vec<NodeId>,
        deadline: Instant,
    ) -> Result<Arc<PartitionMap>, PlaceError> {
        let group = placed.group;
        let mut lacking = replicas;
        loop {
            let epoch = u64::from(placed.placement.0);
            let client = self.group_of(&placed);
            let mut still = Vec::new();
            for &node in &lacking {
                if look(&client, node).await.is_none_or(|seen| seen.settled < epoch) {
                    still.push(node);
                }
            }
            if still.is_empty() && !placed.turnover.is_open() {
                return Ok(self.map().await.map_err(ChangeError::from)?);
            }
            if Instant::now() > deadline {
                // Those who are to leave are waited for as well: one of them may be down.
                still.extend(&placed.turnover.leaving);
                return Err(PlaceError::UnderWay { group, lacking: still });
            }
            tokio::time::sleep(LOOK_PAUSE).await;
            lacking = still;
            if placed.turnover.is_open() {
                // The second step comes by itself, and those who stay have to settle in it; or somebody has placed it anew.
                let map = self.map().await.map_err(ChangeError::from)?;
                if let Some(newer) = map.of_group(group).next().filter(|it| it.placement > placed.placement) {
                    placed = newer.clone();
                    lacking = placed.stays().collect();
                }
            }
        }
    }

    /// Hands a partition to another group on these nodes, while clients go on, and waits until it is there. After `time_max` it is
    /// taken back, unless it is decided by then.
    ///
    /// # Errors
    /// [`HandOffError`].
    pub async fn hand_off(
        &self,
        partition: PartitionId,
        target: GroupId,
        replicas: Vec<NodeId>,
        time_max: Duration,
    ) -> Result<Arc<PartitionMap>, HandOffError> {
        let deadline = Instant::now() + time_max;
        let change = Change::PlanHandoff { partition, target, replicas };
        let planned = loop {
            match self.change(Expected::Any, change.clone()).await {
                Ok(delta) => break delta,
                // An earlier one of the same keys is decided, but both sides are still cleaning up.
                Err(ChangeError::Refused { why }) if why.contains("not cleaned") && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let Some(id) = planned.handoffs.first().map(|it| it.id) else {
            return Err(ChangeError::Refused { why: "a plan of no handoff".to_owned() }.into());
        };
        loop {
            let map = self.map().await.map_err(ChangeError::from)?;
            // Once it is forgotten, the map says how it has ended.
            let is_there = map.partition(partition).is_some_and(|it| it.group == target);
            match map.handoff(id).map(|it| it.decision) {
                Some(Decision::Committed) => return Ok(map),
                None if is_there => return Ok(map),
                Some(Decision::Aborted) | None => return Err(HandOffError::TakenBack(id)),
                Some(Decision::Open) if Instant::now() > deadline => {
                    // If it is decided in the meantime, the next look says how.
                    let _ = self.change(Expected::Any, Change::AbortHandoff(id)).await;
                }
                Some(Decision::Open) => {}
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}
