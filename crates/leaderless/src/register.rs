//! The small record that survives everything: which incarnation writes, and how far its clock may run.

use bytes::Bytes;
use replikit_core::{Boot, HybridTimestamp};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

const FORMAT: u8 = 0x4c;

/// What a replica must not forget, in the group's register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Register {
    /// The incarnation that wrote last; 0 before the first.
    pub(crate) incarnation: u32,
    /// Starts of this replica, clean ones too.
    pub(crate) life: u32,
    /// Unclean starts of the disk when the incarnation began.
    pub(crate) unclean: u32,
    /// No timestamp at or above this was given away.
    pub(crate) ceiling: HybridTimestamp,
    /// Before this incarnation, this disk may have forgotten something: what it had promised in an earlier one does not count,
    /// and while that incarnation is yet to come, the others have to be asked.
    pub(crate) forgotten: u32,
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
