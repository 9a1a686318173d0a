//! What hosts say to each other: their groups' messages, letters of handoffs, and maps.

use replikit_core::GroupId;
use serde::{Deserialize, Serialize};

use crate::frames::GroupsHead;
use crate::handoff::{Answer, Ask, Letter};
use crate::map::Change;
use crate::meta::{MetaAnswer, MetaQuery};

/// The head of a message between hosts. Only that of groups has batches beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostHead<H> {
    /// What the groups say.
    Groups(GroupsHead<H>),
    /// From a handoff's target to whoever leads this source.
    Ask(GroupId, Letter<Ask>),
    /// From a handoff's source to whoever leads this target.
    Answer(GroupId, Letter<Answer>),
    /// To whoever leads the log of maps: change the map.
    Change(Change),
    /// To where the log of maps is kept: what is newer?
    Since(MetaQuery),
    /// What is newer.
    Maps(MetaAnswer),
}
