//! Handing a partition to another group, from outside: plan it, and wait for what becomes of it. The groups' leaders do the rest.
//!
//! Invariant: whoever waits decides nothing but to take a handoff back; if he goes away, it goes on without him.

use std::sync::Arc;
use std::time::{Duration, Instant};

use replikit_core::{GroupId, NodeId};

use super::client::{ChangeError, StoreClient};
use crate::id::{HandoffId, PartitionId};
use crate::map::{Change, Decision, PartitionMap};
use crate::map_store::Expected;

/// How often the map is asked what has become of a handoff.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

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

impl StoreClient {
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
