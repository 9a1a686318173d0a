//! The small record that survives everything: which incarnation writes, and how far its clock may run.

use bytes::Bytes;
use replikit_core::{Boot, Epoch, HybridTimestamp, Membership};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

const FORMAT: u8 = 0x4d;

/// How far a node that was evicted has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// It was not evicted, or has long been back.
    #[default]
    Regular,
    /// What only it may have has been put away as a whole; its state is being dropped.
    Resetting,
    /// Its state has been dropped; it catches up, and then makes its writes again.
    Resubmitting,
}

/// What a replica must not forget, in the group's register.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Register {
    /// The incarnation that wrote last; 0 before the first.
    pub(crate) incarnation: u32,
    /// Starts of this replica, clean ones too.
    pub(crate) life: u32,
    /// Unclean starts of the disk when the incarnation began.
    pub(crate) unclean: u32,
    /// No timestamp at or above this was given away.
    pub(crate) ceiling: HybridTimestamp,
    /// The newest epoch in which this node was a member, with its state made anew if it had been evicted before.
    pub(crate) epoch: Epoch,
    /// The first incarnation since then: those before it are closed.
    pub(crate) first: u32,
    /// The newest epoch of which all members have said what they hold, and in which all that has been applied here.
    pub(crate) settled: Epoch,
    /// How far it has come back.
    pub(crate) stage: Stage,
    /// Before this incarnation, this disk may have forgotten something: while it is yet to come, the others have to be asked.
    pub(crate) forgotten: u32,
    /// The newest membership that it has acted in, where that can change: whoever starts it again may be told an older one first.
    pub(crate) membership: Option<Membership>,
    /// The newest epoch in which it has [fenced](crate::fence): from then on it counts copies at those who stay only, and takes no
    /// writes if it is to leave.
    pub(crate) fenced: Epoch,
}

impl Register {
    pub(crate) fn of(boot: &Boot) -> Result<Self, ConfigError> {
        match boot.register[..] {
            [] => Ok(Self::default()),
            [FORMAT, ref rest @ ..] => postcard::from_bytes(rest).map_err(|_| ConfigError::Foreign),
            _ => Err(ConfigError::Foreign),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_extend(self, vec![FORMAT]).expect("a register always encodes").into()
    }
}
