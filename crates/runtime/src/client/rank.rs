//! Which of several equal nodes answers soonest.
//!
//! Invariants: a rank decides where the *next* request goes and moves none that is under way; every node is asked again
//! some day, a slow one ever more seldom, so that one that has recovered is found out. Source: the dynamic snitch of
//! Cassandra and C3 (Suresh et al., NSDI 2015) rank replicas by what they were seen to take; here clients rank coordinators.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use replikit_core::NodeId;

use super::lock;

/// A node that is not asked otherwise is tried with one request at most this often...
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// ... and at least this often, if it was slow or could not be reached time and again.
const TRY_AGAIN_MAX: Duration = Duration::from_millis(3_200);
/// A node must take this many times as long as another one to be left for it: a clear difference, no noise.
const CLEARLY: u32 = 2;
/// A node that owes answers and has said nothing for so many times what it usually takes is slow now...
const PATIENCE: u32 = 10;
/// ... unless that is shorter than a disk may pause.
const PATIENCE_MIN: Duration = Duration::from_millis(5);
/// The newest sample counts by one in so many...
const HOME_WEIGHT: u32 = 8;
/// ... and by more for a node that is seldom asked.
const TRIED_WEIGHT: u32 = 2;

struct Ranked {
    node: NodeId,
    /// A moving average of the time to an answer, `None` before the first.
    usual: Option<Duration>,
    tried: bool,
    try_at: Instant,
    pause: Duration,
}

#[derive(Default)]
struct Seen {
    nodes: Vec<Ranked>,
    /// When the list of the nodes is looked at again, after the first time.
    refresh_at: Option<Instant>,
}

/// What a client has seen of the nodes.
#[derive(Default)]
pub(super) struct Ranking(Mutex<Seen>);

impl Ranking {
    /// A node other than `home` whose time to be tried has come; it counts as tried from here on. A write waits for twice the time:
    /// a read that is tried in vain can be asked elsewhere.
    pub(super) fn due(
        &self,
        home: NodeId,
        writes: bool,
        now: Instant,
        nodes: impl FnOnce() -> Vec<NodeId>,
    ) -> Option<NodeId> {
        let mut seen = lock(&self.0);
        if seen.refresh_at.is_none_or(|at| at <= now) {
            seen.refresh(&nodes(), now);
        }
        let longer = |one: &Ranked| if writes && one.tried { one.pause } else { Duration::ZERO };
        let due = seen.nodes.iter_mut().find(|one| one.node != home && one.try_at + longer(one) <= now)?;
        due.tried = true;
        due.try_at = now + due.pause;
        Some(due.node)
    }

    /// How long `home` may owe an answer before it counts as slow.
    pub(super) fn patience(&self, home: NodeId) -> Duration {
        lock(&self.0).usual(home).map_or(Duration::MAX, |usual| (usual * PATIENCE).max(PATIENCE_MIN))
    }

    /// A node has answered a request that was sent to it so long ago. Returns who should be asked from now on, if not `home`.
    pub(super) fn answered(&self, node: NodeId, took: Duration, home: NodeId, now: Instant) -> Option<NodeId> {
        let mut seen = lock(&self.0);
        let at_home = seen.usual(home);
        let one = seen.nodes.iter_mut().find(|one| one.node == node)?;
        let weight = if node == home { HOME_WEIGHT } else { TRIED_WEIGHT };
        let usual = one.usual.map_or(took, |usual| (usual * (weight - 1) + took) / weight);
        one.usual = Some(usual);
        if node != home {
            one.wait(at_home.is_some_and(|at_home| usual > at_home * CLEARLY), now);
        }
        let (at_home, (best, usual)) = (seen.usual(home)?, seen.best_but(home)?);
        (usual * CLEARLY < at_home).then_some(best)
    }

    /// A node could not be reached, or owes an answer for too long. Returns who should be asked instead, if anybody is known.
    pub(super) fn slow(&self, node: NodeId, now: Instant) -> Option<NodeId> {
        let mut seen = lock(&self.0);
        let one = seen.nodes.iter_mut().find(|one| one.node == node)?;
        // What it took before says nothing any more.
        one.usual = None;
        one.wait(true, now);
        seen.best_but(node).map(|(best, _)| best)
    }
}

impl Ranked {
    fn wait(&mut self, slow: bool, now: Instant) {
        self.pause = if slow { (self.pause * 4).min(TRY_AGAIN_MAX) } else { TRY_AGAIN };
        self.try_at = now + self.pause;
    }
}

impl Seen {
    fn refresh(&mut self, nodes: &[NodeId], now: Instant) {
        self.nodes.retain(|one| nodes.contains(&one.node));
        for &node in nodes {
            if self.nodes.iter().all(|one| one.node != node) {
                self.nodes.push(Ranked { node, usual: None, tried: false, try_at: now, pause: TRY_AGAIN });
            }
        }
        self.refresh_at = Some(now + TRY_AGAIN);
    }

    fn usual(&self, node: NodeId) -> Option<Duration> {
        self.nodes.iter().find(|one| one.node == node)?.usual
    }

    fn best_but(&self, node: NodeId) -> Option<(NodeId, Duration)> {
        let known = self.nodes.iter().filter(|one| one.node != node).filter_map(|one| Some((one.node, one.usual?)));
        known.min_by_key(|(_, usual)| *usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    const FAST: Duration = Duration::from_micros(400);
    const SLOW: Duration = Duration::from_millis(200);

    /// A client at node 1 that has tried all others once; what the nodes take is given by node.
    struct Asking {
        ranking: Ranking,
        home: NodeId,
        writes: bool,
        now: Instant,
        takes: [Duration; 3],
    }

    impl Asking {
        fn new() -> Self {
            let (ranking, now) = (Ranking::default(), Instant::now());
            Self { ranking, home: NodeId(1), writes: false, now, takes: [FAST; 3] }
        }

        /// One request after the other for so long; how many went to each node.
        fn asks(&mut self, time: Duration) -> [u32; 3] {
            let (end, mut asked) = (self.now + time, [0; 3]);
            while self.now < end {
                let node = self.ranking.due(self.home, self.writes, self.now, || NODES.to_vec()).unwrap_or(self.home);
                let took = self.takes[node.0 as usize - 1];
                asked[node.0 as usize - 1] += 1;
                self.now += took;
                if let Some(better) = self.ranking.answered(node, took, self.home, self.now) {
                    self.home = better;
                }
            }
            asked
        }
    }

    #[test]
    fn equal_nodes_are_tried_now_and_then_and_nobody_moves() {
        for (writes, times) in [(false, 18..=21), (true, 9..=11)] {
            let mut asking = Asking { writes, ..Asking::new() };
            let [home, others @ ..] = asking.asks(Duration::from_secs(2));
            assert_eq!(asking.home, NodeId(1));
            assert!(home > 4_900 && others.iter().all(|tried| times.contains(tried)), "{home} {others:?}");
        }
    }

    #[test]
    fn a_slow_home_is_left_for_the_fastest_and_tried_ever_more_seldom() {
        let mut asking = Asking::new();
        asking.asks(Duration::from_secs(1));
        asking.takes = [SLOW, FAST * 3, FAST];
        let [slow, ..] = asking.asks(Duration::from_secs(10));
        assert_eq!(asking.home, NodeId(3));
        assert!(slow <= 6, "one by which it is found out, and tries: {slow}");
    }

    #[test]
    fn a_node_that_has_recovered_is_found_out() {
        let mut asking = Asking::new();
        asking.takes = [FAST * 10, SLOW, SLOW];
        asking.asks(Duration::from_secs(10));
        assert_eq!(asking.home, NodeId(1));
        asking.takes[2] = FAST;
        asking.asks(TRY_AGAIN_MAX * 16);
        assert_eq!(asking.home, NodeId(3));
    }

    #[test]
    fn a_silent_node_is_left_at_once_for_one_that_has_answered() {
        let mut asking = Asking::new();
        assert_eq!(asking.ranking.patience(NodeId(1)), Duration::MAX, "nothing is known of it");
        asking.asks(Duration::from_secs(1));
        assert_eq!(asking.ranking.patience(NodeId(1)), PATIENCE_MIN);
        assert!(asking.ranking.slow(NodeId(1), asking.now).is_some_and(|other| other != NodeId(1)));
        assert_eq!(asking.ranking.patience(NodeId(1)), Duration::MAX);
        assert_eq!(
            asking.ranking.due(NodeId(2), false, asking.now + TRY_AGAIN, || NODES.to_vec()),
            Some(NodeId(3)),
            "not node 1 yet"
        );
    }

    #[test]
    fn nodes_that_join_are_tried_and_those_that_left_are_forgotten() {
        let mut asking = Asking::new();
        asking.asks(Duration::from_secs(1));
        let later = asking.now + TRY_AGAIN;
        assert_eq!(asking.ranking.due(NodeId(1), false, later, || vec![NodeId(1), NodeId(7)]), Some(NodeId(7)));
        assert_eq!(asking.ranking.due(NodeId(1), false, later, || unreachable!()), None);
        assert_eq!(asking.ranking.slow(NodeId(2), later), None, "nobody known is left but node 1");
    }
}
