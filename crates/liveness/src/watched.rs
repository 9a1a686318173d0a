//! Any replica with a detector around it.
//!
//! Invariant: a peer of which the replica inside was told that it is up has a link that stands, and is not held to be down by the
//! detector. The whole is a [`Replica`] itself, so whoever drives replicas drives it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikit_core::{Action, Batches, Event, GroupId, Input, Link, LogIndex, Message, NodeId, Now, Replica, Time};
use serde::{Deserialize, Serialize};

use crate::detector::{Detector, Said};

/// The head of a message between replicas with detectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchedHead<H> {
    /// Of the replica inside.
    Inner(H),
    /// Of the detector.
    Probe(Bytes),
}

/// Any replica with a detector around it: it is told that a peer is up only while the link to it stands and the detector does not
/// hold it to be down. Nothing else of what goes in and comes out is changed.
#[derive(Debug)]
pub struct Watched<R: Replica> {
    inner: R,
    detector: Detector,
    /// Links that do not stand.
    unlinked: BTreeMap<NodeId, Link>,
    own: VecDeque<Action<WatchedHead<R::Head>>>,
    /// Of whom the replica inside was told last that they are down, by the detector alone.
    hushed: BTreeSet<NodeId>,
}

impl<R: Replica> Watched<R> {
    /// A replica, and the detector of its node.
    pub const fn new(inner: R, detector: Detector) -> Self {
        Self { inner, detector, unlinked: BTreeMap::new(), own: VecDeque::new(), hushed: BTreeSet::new() }
    }

    /// The replica inside.
    pub const fn inner(&self) -> &R {
        &self.inner
    }

    /// The detector.
    pub const fn detector(&self) -> &Detector {
        &self.detector
    }

    /// What the transport says of a link.
    fn handle_peer(&mut self, now: Now, node: NodeId, link: Link) {
        if link == Link::Up {
            self.unlinked.remove(&node);
            self.detector.announce(now.mono, node);
        } else {
            self.unlinked.insert(node, link);
        }
        let silent = link == Link::Up && self.detector.is_down(node);
        // It is a new connection all the same: what was under way on the old one is lost.
        let link = if silent { Link::Reset } else { link };
        if silent {
            self.hushed.insert(node);
        } else {
            self.hushed.remove(&node);
        }
        self.inner.handle(now, Input::Peer { node, link });
        self.listen(now);
    }

    /// Does what the detector says.
    fn listen(&mut self, now: Now) {
        while let Some(said) = self.detector.poll() {
            match said {
                Said::Send(to, probe) => {
                    let message = Message { head: WatchedHead::Probe(probe), batches: Batches::default() };
                    self.own.push_back(Action::Send { to, message });
                }
                Said::Up(node) => {
                    if self.hushed.remove(&node) && !self.unlinked.contains_key(&node) {
                        self.inner.handle(now, Input::Peer { node, link: Link::Up });
                    }
                }
                Said::Down(node) => {
                    if !self.unlinked.contains_key(&node) && self.hushed.insert(node) {
                        self.inner.handle(now, Input::Peer { node, link: Link::Down });
                    }
                }
            }
        }
    }

    fn handle_probe(&mut self, now: Now, from: NodeId, probe: &[u8]) {
        if self.detector.handle(now.mono, probe).is_err() {
            let event = Event::PeerMisbehaved { node: from, what: "its probe is malformed" };
            self.own.push_back(Action::Event { group: GroupId::default(), event });
        }
        self.listen(now);
    }
}

/// The same input for the replica inside.
fn inner<H>(input: Input<WatchedHead<H>>) -> Option<Input<H>> {
    Some(match input {
        Input::Message { .. } | Input::Peer { .. } | Input::Timer => return None,
        Input::RecoverSnapshot { at, chunk, last } => Input::RecoverSnapshot { at, chunk, last },
        Input::Recover { batch } => Input::Recover { batch },
        Input::Recovered => Input::Recovered,
        Input::Command { token, group, level, session, body } => Input::Command { token, group, level, session, body },
        Input::OpenSession { token, group } => Input::OpenSession { token, group },
        Input::Query { token, group, level, body, bytes_max } => Input::Query { token, group, level, body, bytes_max },
        Input::Write { token, group, write } => Input::Write { token, group, write },
        Input::Read { token, group, read } => Input::Read { token, group, read },
        Input::Durable { up_to } => Input::Durable { up_to },
        Input::LogRead { ticket, stream, answer } => Input::LogRead { ticket, stream, answer },
        Input::SnapshotRead { ticket, answer } => Input::SnapshotRead { ticket, answer },
        Input::Storage { event } => Input::Storage { event },
        Input::Admin { token, group, command } => Input::Admin { token, group, command },
    })
}

/// The same action of the replica inside.
fn outer<H>(action: Action<H>) -> Action<WatchedHead<H>> {
    match action {
        Action::Send { to, message: Message { head, batches } } => {
            Action::Send { to, message: Message { head: WatchedHead::Inner(head), batches } }
        }
        Action::Persist { id, op } => Action::Persist { id, op },
        Action::ReadLog { ticket, stream, from, bytes_max } => Action::ReadLog { ticket, stream, from, bytes_max },
        Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
            Action::ReadSnapshot { ticket, at, group, offset, bytes_max }
        }
        Action::Done { token, outcome } => Action::Done { token, outcome },
        Action::Event { group, event } => Action::Event { group, event },
    }
}

impl<R: Replica> Replica for Watched<R> {
    type Head = WatchedHead<R::Head>;

    fn handle(&mut self, now: Now, input: Input<Self::Head>) {
        match input {
            Input::Message { from, message: Message { head: WatchedHead::Inner(head), batches } } => {
                self.inner.handle(now, Input::Message { from, message: Message { head, batches } });
            }
            Input::Message { from, message: Message { head: WatchedHead::Probe(probe), .. } } => {
                self.handle_probe(now, from, &probe);
            }
            Input::Peer { node, link } => self.handle_peer(now, node, link),
            Input::Timer => {
                self.detector.timer(now.mono);
                self.listen(now);
                if self.inner.deadline().is_some_and(|deadline| deadline <= now.mono) {
                    self.inner.handle(now, Input::Timer);
                }
            }
            input => {
                let recovered = matches!(input, Input::Recovered);
                if let Some(input) = inner(input) {
                    self.inner.handle(now, input);
                }
                if recovered {
                    // Who still reads its log does not serve: it lives from now on.
                    self.detector.start(now.mono);
                    self.listen(now);
                }
            }
        }
    }

    fn poll(&mut self) -> Option<Action<Self::Head>> {
        self.own.pop_front().or_else(|| self.inner.poll().map(outer))
    }

    fn deadline(&self) -> Option<Time> {
        self.inner.deadline().into_iter().chain(self.detector.deadline()).min()
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        self.inner.committed(group)
    }
}
