//! One node: its process, its disk, its clock and its inbox.
//!
//! Invariant: without a replica the process is down; what was planned for a former life is void.

use std::collections::VecDeque;

use replikit_core::{Input, NodeId, Replica, Time, WriteId};

use crate::clock::NodeClock;
use crate::storage::SimStorage;
use crate::subject::Replicas;

pub(super) struct Node<R: Replica, S> {
    pub(super) id: NodeId,
    pub(super) replica: Option<R>,
    // Grows with each crash: what was planned for a former life is void.
    pub(super) life: u32,
    pub(super) storage: S,
    pub(super) clock: NodeClock,
    pub(super) inbox: VecDeque<Input<R::Head>>,
    pub(super) busy_until: Time,
    pub(super) wake_at: Time,
    pub(super) timer_at: Time,
    pub(super) storage_at: Time,
    pub(super) last_write: WriteId,
    pub(super) late_timers: u32,
    // The process crashes before its n-th action from now.
    pub(super) crash_after: Option<u32>,
    // How many times as slow its processor and its disk are.
    pub(super) slowness: u32,
    pub(super) slow_disk: u32,
    pub(super) starved_until: Time,
    // It was down for long and has not caught up yet.
    pub(super) long_outage: bool,
    // It never comes back.
    pub(super) dead: bool,
}

impl<R: Replica, S> Node<R, S> {
    /// A node that was never started.
    pub(super) const fn new(id: NodeId, storage: S, clock: NodeClock) -> Self {
        Self {
            id,
            replica: None,
            life: 0,
            storage,
            clock,
            inbox: VecDeque::new(),
            busy_until: Time::ZERO,
            wake_at: Time::NEVER,
            timer_at: Time::NEVER,
            storage_at: Time::NEVER,
            last_write: WriteId(0),
            late_timers: 0,
            crash_after: None,
            slowness: 1,
            slow_disk: 1,
            starved_until: Time::ZERO,
            long_outage: false,
            dead: false,
        }
    }
}

/// All nodes, as a subject sees them.
pub(super) struct AllNodes<'a, R: Replica, S>(pub(super) &'a [Node<R, S>]);

impl<R: Replica, S: SimStorage> Replicas<R> for AllNodes<'_, R, S> {
    fn replica(&self, node: NodeId) -> Option<&R> {
        self.0.get((node.0 as usize).checked_sub(1)?)?.replica.as_ref()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.0.iter().map(|node| node.id).collect()
    }
}
