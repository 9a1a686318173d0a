//! Which nodes that share groups with this one are there: one small message for each pair of nodes, in place of heartbeats of each
//! of their groups.
//!
//! Invariants: failure detection only, nothing is promised because of it. A node is gone once it was silent for too long, its link is
//! gone, or it says that it began anew; it is back once it is heard again. Groups hear of every change, in order.

use core::time::Duration;
use std::collections::BTreeMap;

use replikit_core::{Link, NodeId, Time};

/// How nodes that share groups watch each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHeartbeats {
    /// Something is said to each such node at least this often, half as much again at most.
    pub every: Duration,
    /// One that is not heard for so long is gone. Longer than two heartbeats.
    pub patience: Duration,
    /// Names this life of the process: drawn anew at each start, so that others see that it began anew.
    pub life: u64,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Never heard, but not for long yet.
    Expected,
    /// Heard; it was in this life then, if it tells.
    There(Option<u64>),
    Gone,
}

#[derive(Debug)]
struct Peer {
    standing: Standing,
    heard_at: Time,
    said_at: Time,
}

/// A change that groups are told of.
pub(crate) type News = (NodeId, Link);

/// The nodes that were spoken to or heard. See the module.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    settings: NodeHeartbeats,
    peers: BTreeMap<NodeId, Peer>,
    due_at: Time,
    // The storage failed: a node that can promise nothing is as good as gone.
    is_silent: bool,
}

impl Heartbeats {
    pub(crate) const fn new(settings: NodeHeartbeats) -> Self {
        Self { settings, peers: BTreeMap::new(), due_at: Time::NEVER, is_silent: false }
    }

    /// What every frame says of its sender's life.
    pub(crate) fn life(&self) -> Option<u64> {
        (!self.is_silent).then_some(self.settings.life)
    }

    /// What this node said before does not hold any more: others are to take it for one that began anew.
    pub(crate) const fn begin_anew(&mut self) {
        self.settings.life = self.settings.life.wrapping_add(1);
    }

    /// Says nothing from now on.
    pub(crate) const fn fall_silent(&mut self) {
        self.is_silent = true;
    }

    /// When [`beat`](Self::beat) is due.
    pub(crate) const fn due_at(&self) -> Time {
        self.due_at
    }

    /// The nodes that are gone.
    pub(crate) fn gone(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.standing == Standing::Gone).map(|(node, _)| *node)
    }

    fn peer(&mut self, node: NodeId, now: Time) -> &mut Peer {
        if self.peers.is_empty() {
            self.due_at = now + self.settings.every;
        }
        self.peers.entry(node).or_insert(Peer { standing: Standing::Expected, heard_at: now, said_at: Time::ZERO })
    }

    /// A frame goes out.
    pub(crate) fn said(&mut self, to: NodeId, now: Time) {
        self.peer(to, now).said_at = now;
    }

    /// A frame came in.
    pub(crate) fn heard(&mut self, from: NodeId, life: Option<u64>, now: Time, mut tell: impl FnMut(News)) {
        let every = self.settings.every;
        let peer = self.peer(from, now);
        peer.heard_at = now;
        match core::mem::replace(&mut peer.standing, Standing::There(life)) {
            Standing::There(before) if before == life => {}
            Standing::There(_) => {
                tell((from, Link::Reset));
                tell((from, Link::Up));
            }
            Standing::Gone => tell((from, Link::Up)),
            Standing::Expected => {}
        }
        // Who is awake anyway need not be woken for it soon: nodes that hear each other speak together.
        if self.due_at <= now + every / 2 {
            self.due_at = now;
        }
    }

    /// The driver says how the link to a node is: a node that is there stays so until it is silent, or its link is lost.
    pub(crate) fn hinted(&mut self, node: NodeId, link: Link, now: Time, mut tell: impl FnMut(News)) {
        let peer = self.peer(node, now);
        match link {
            Link::Up if matches!(peer.standing, Standing::There(_)) => tell((node, link)),
            Link::Up => {}
            Link::Reset | Link::Down => {
                if core::mem::replace(&mut peer.standing, Standing::Gone) != Standing::Gone {
                    tell((node, link));
                }
            }
        }
    }

    /// Looks for nodes that were silent for too long, and names those to whom something has to be said.
    pub(crate) fn beat(&mut self, now: Time, mut tell: impl FnMut(News), mut say: impl FnMut(NodeId)) {
        let NodeHeartbeats { every, patience, .. } = self.settings;
        self.due_at = now + every;
        for (&node, peer) in &mut self.peers {
            if peer.standing != Standing::Gone && peer.heard_at + patience <= now {
                peer.standing = Standing::Gone;
                tell((node, Link::Down));
            }
            if !self.is_silent && peer.said_at + every / 2 <= now {
                peer.said_at = now;
                say(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: NodeHeartbeats =
        NodeHeartbeats { every: Duration::from_nanos(10), patience: Duration::from_nanos(50), life: 7 };
    const PEER: NodeId = NodeId(2);

    fn heard(heartbeats: &mut Heartbeats, life: u64, at: u64) -> Vec<Link> {
        let mut told = Vec::new();
        heartbeats.heard(PEER, Some(life), Time(at), |(_, link)| told.push(link));
        told
    }

    fn beat(heartbeats: &mut Heartbeats, at: u64) -> (Vec<Link>, usize) {
        let (mut told, mut said) = (Vec::new(), 0);
        heartbeats.beat(Time(at), |(_, link)| told.push(link), |_| said += 1);
        (told, said)
    }

    fn hinted(heartbeats: &mut Heartbeats, link: Link, at: u64) -> Vec<Link> {
        let mut told = Vec::new();
        heartbeats.hinted(PEER, link, Time(at), |(_, link)| told.push(link));
        told
    }

    #[test]
    fn a_node_that_is_silent_is_gone_once_and_back_when_it_is_heard() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        assert_eq!(heartbeats.due_at(), Time::NEVER, "nobody is known");
        assert_eq!(heard(&mut heartbeats, 1, 100), []);
        assert_eq!(heartbeats.due_at(), Time(110));
        assert_eq!(beat(&mut heartbeats, 149), (vec![], 1));
        assert_eq!(beat(&mut heartbeats, 150).0, [Link::Down]);
        assert_eq!(beat(&mut heartbeats, 160), (vec![], 1), "it is told of us all the same");
        assert_eq!(heartbeats.gone().collect::<Vec<_>>(), [PEER]);
        assert_eq!(heard(&mut heartbeats, 1, 170), [Link::Up]);
        assert_eq!(heard(&mut heartbeats, 1, 180), []);
    }

    #[test]
    fn a_node_that_began_anew_is_gone_and_back_however_short_it_was_silent() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        heard(&mut heartbeats, 1, 100);
        assert_eq!(heard(&mut heartbeats, 2, 101), [Link::Reset, Link::Up]);
        assert_eq!(heard(&mut heartbeats, 2, 102), []);
    }

    #[test]
    fn a_node_that_hears_another_says_at_once_what_it_would_say_soon() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        heard(&mut heartbeats, 1, 100);
        heard(&mut heartbeats, 1, 104);
        assert_eq!(heartbeats.due_at(), Time(110));
        heard(&mut heartbeats, 1, 105);
        assert_eq!((heartbeats.due_at(), beat(&mut heartbeats, 105).1), (Time(105), 1));
        heard(&mut heartbeats, 1, 106);
        assert_eq!(heartbeats.due_at(), Time(115), "an answer to the answer can wait");
    }

    #[test]
    fn a_node_that_is_spoken_to_and_never_answers_is_gone() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        heartbeats.said(PEER, Time(100));
        assert_eq!(beat(&mut heartbeats, 149).0, []);
        assert_eq!(beat(&mut heartbeats, 150).0, [Link::Down]);
    }

    #[test]
    fn nothing_is_said_to_whom_something_was_just_said() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        heartbeats.said(PEER, Time(100));
        assert_eq!(beat(&mut heartbeats, 104).1, 0);
        assert_eq!(beat(&mut heartbeats, 105).1, 1);
        heartbeats.fall_silent();
        assert_eq!((beat(&mut heartbeats, 140).1, heartbeats.life()), (0, None));
    }

    #[test]
    fn a_lost_link_counts_at_once_and_one_that_stands_only_once_the_node_is_heard() {
        let mut heartbeats = Heartbeats::new(SETTINGS);
        heard(&mut heartbeats, 1, 100);
        assert_eq!(hinted(&mut heartbeats, Link::Reset, 101), [Link::Reset]);
        assert_eq!(hinted(&mut heartbeats, Link::Down, 102), []);
        assert_eq!(hinted(&mut heartbeats, Link::Up, 103), []);
        assert_eq!(heard(&mut heartbeats, 1, 104), [Link::Up]);
        assert_eq!(hinted(&mut heartbeats, Link::Up, 105), [Link::Up]);
    }
}
