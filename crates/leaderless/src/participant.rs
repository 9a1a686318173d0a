//! What a node of a cluster is: an owner, or one that stands in for owners.

use replikit_core::{Action, Boot, Input, Now, Replica, Time};

use crate::config::{Config, ConfigError};
use crate::fallback::Fallback;
use crate::message::Head;
use crate::replica::Leaderless;

/// The replica of a node, by what its configuration makes of it.
#[derive(Debug)]
pub enum Participant {
    /// It owns the keys.
    Owner(Box<Leaderless>),
    /// It keeps hints for owners.
    Fallback(Box<Fallback>),
}

impl Participant {
    /// A replica on a disk that says `boot`; recovery is pushed next.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was written.
    pub fn new(config: Config, boot: &Boot) -> Result<Self, ConfigError> {
        if config.fallbacks.nodes.contains(&config.node) {
            Ok(Self::Fallback(Box::new(Fallback::new(config, boot)?)))
        } else {
            Ok(Self::Owner(Box::new(Leaderless::new(config, boot)?)))
        }
    }

    /// The owner, if it is one.
    #[must_use]
    pub fn owner(&self) -> Option<&Leaderless> {
        match self {
            Self::Owner(owner) => Some(owner),
            Self::Fallback(_) => None,
        }
    }

    /// The fallback, if it is one.
    #[must_use]
    pub fn fallback(&self) -> Option<&Fallback> {
        match self {
            Self::Owner(_) => None,
            Self::Fallback(fallback) => Some(fallback),
        }
    }
}

impl Replica for Participant {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        match self {
            Self::Owner(owner) => owner.handle(now, input),
            Self::Fallback(fallback) => fallback.handle(now, input),
        }
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        match self {
            Self::Owner(owner) => owner.poll(),
            Self::Fallback(fallback) => fallback.poll(),
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Owner(owner) => owner.deadline(),
            Self::Fallback(fallback) => fallback.deadline(),
        }
    }
}
