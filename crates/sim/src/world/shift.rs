//! Majorities that take turns: the attack on every argument from intersecting quorums.
//!
//! Invariant: at any time exactly one side is a majority, and two majorities in a row share as few nodes as they can; what the
//! former one promised, the next one knows of only through those. They are often started anew in between, on disks that may
//! have lost something; the others meet each other's logs again one or two turns later.

use core::time::Duration;

use replikit_core::{Link, Replica};

use super::World;
use super::plan::{Planned, Relief};
use crate::fault::Fault;
use crate::settings::around;
use crate::storage::SimStorage;
use crate::subject::Subject;

/// A majority without a leader waits at most this long, on average, for its turn to end.
const LEADERLESS: Duration = Duration::from_millis(200);
/// How long a process that is started anew is away, on average.
const RESTART: Duration = Duration::from_millis(2);

/// The majority whose turn it is.
#[derive(Debug)]
pub(super) struct Shift {
    turn: u64,
    inside: Vec<usize>,
    cut: Vec<(usize, usize)>,
    turns_left: u32,
    /// How long a leader is left alone with its majority, on average.
    lasts: Duration,
    has_led: bool,
}

impl<R: Replica, S: SimStorage> World<R, S> {
    /// The first turn: the leader's, with whoever is drawn.
    pub(super) fn begin_shifts(&mut self, lasts: Duration) {
        let nodes = self.nodes.len();
        if nodes < 3 || self.shift.is_some() {
            return;
        }
        let mut order: Vec<usize> = (0..nodes).collect();
        self.rng.shuffle(&mut order);
        let leader = self.leader.filter(|&leader| self.nodes[leader].replica.is_some());
        if let Some(leader) = leader {
            order.sort_by_key(|&node| node != leader);
        }
        order.truncate(nodes / 2 + 1);
        let turns_left = self.rng.u32(1..=6);
        self.take_turn(order, turns_left, lasts, leader.is_some());
        if let Some(leader) = leader {
            self.lead_alone(leader, lasts);
        }
    }

    /// A node has become the leader: if it is of the majority whose turn it is, that turn ends soon.
    pub(super) fn shift_soon(&mut self, at: usize) {
        let Some(shift) = self.shift.as_mut().filter(|shift| !shift.has_led && shift.inside.contains(&at)) else {
            return;
        };
        shift.has_led = true;
        let lasts = shift.lasts;
        self.lead_alone(at, lasts);
    }

    /// A leader is left alone with its majority for a while; its disk may not keep up with it.
    fn lead_alone(&mut self, leader: usize, lasts: Duration) {
        if self.rng.u8(0..3) == 0 {
            self.counts[Fault::SlowLeaderDisk] += 1;
            self.nodes[leader].slow_disk = self.rng.u32(10..=100);
            self.plan(lasts * 2, Planned::Relief(Relief::QuickDisk { node: leader }));
        }
        self.end_turn_after(lasts);
    }

    fn end_turn_after(&mut self, mean: Duration) {
        let after = around(&mut self.rng, mean, false);
        let turn = self.turns;
        self.plan(after, Planned::Shift { turn });
    }

    /// The next majority takes its turn, or all is mended.
    pub(super) fn next_shift(&mut self, turn: u64, subject: &mut impl Subject<R>) {
        let Some(Shift { inside, cut, turns_left, lasts, .. }) = self.shift.take_if(|shift| shift.turn == turn) else {
            return;
        };
        self.network.mend(&cut);
        self.link_hints(&cut, Link::Up);
        if turns_left == 0 {
            return;
        }
        let nodes = self.nodes.len();
        let outside: Vec<usize> = (0..nodes).filter(|node| !inside.contains(node)).collect();
        let mut stays = inside;
        self.rng.shuffle(&mut stays);
        // Those that have something to forget; seldom the leader.
        let leader = self.leader;
        let leader_stays = self.rng.u8(0..3) == 0;
        let by_disk = self.rng.u8(0..4) != 0;
        let victims = &self.settings.storage.disk.victims;
        let ids: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        stays.sort_by_key(|&node| ((Some(node) == leader) != leader_stays, by_disk && !victims.contains(&ids[node])));
        let goes = stays.split_off((nodes / 2 + 1).saturating_sub(outside.len()));
        let next: Vec<usize> = stays.iter().copied().chain(outside).collect();
        if self.rng.u8(0..4) != 0 {
            // As when a switch closes the connections: the majority notices at once.
            let links: Vec<(usize, usize)> =
                goes.iter().flat_map(|&from| next.iter().map(move |&to| (from, to))).collect();
            self.link_hints(&links, Link::Reset);
        }
        self.take_turn(next, turns_left - 1, lasts, false);
        for node in stays {
            if self.rng.u8(0..8) < if Some(node) == leader { 7 } else { 4 } {
                self.start_anew(node, subject);
            }
        }
        for node in goes {
            match self.rng.u8(0..8) {
                0 | 1 => self.start_anew(node, subject),
                2 => {
                    // It does not notice how long it has been alone.
                    self.counts[Fault::Starved] += 1;
                    self.nodes[node].starved_until = self.now + LEADERLESS;
                }
                _ => {}
            }
        }
    }

    fn start_anew(&mut self, node: usize, subject: &mut impl Subject<R>) {
        if self.nodes[node].replica.is_some() {
            self.counts[Fault::Crash] += 1;
            self.crash_node(node, RESTART, subject);
        }
    }

    fn take_turn(&mut self, inside: Vec<usize>, turns_left: u32, lasts: Duration, has_led: bool) {
        self.counts[Fault::Shift] += 1;
        let apart = |a: &usize, b: &usize| inside.contains(a) != inside.contains(b);
        let nodes = self.nodes.len();
        let cut: Vec<(usize, usize)> =
            (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| apart(a, b)).collect();
        self.network.cut(&cut);
        self.turns += 1;
        self.shift = Some(Shift { turn: self.turns, inside, cut, turns_left, lasts, has_led });
        self.end_turn_after(LEADERLESS);
    }
}
