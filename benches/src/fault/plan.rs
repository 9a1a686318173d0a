//! What fails, when, and on which side of it each node is: drawn from the seed, the same for every engine, in real runs and
//! in simulation.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use replikit_core::NodeId;

use crate::engine::EngineKind;
use crate::network::Network;

/// What is done to a cluster under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// A node crashes, and comes back.
    Crash,
    /// The leader crashes, and comes back.
    LeaderCrash,
    /// The leader stands still, and goes on.
    LeaderPause,
    /// All nodes of a region crash that has a minority of them, and come back.
    RegionCrash,
    /// A minority of the nodes is cut off from the others, both ways.
    SplitMinority,
    /// The nodes fall apart so that no side has a majority.
    SplitEven,
    /// Nothing that a node sends arrives, and everything that is sent to it does.
    OneWay,
    /// Messages between a node and the others take 100 ms longer; what clients say and hear does not.
    SlowReplica,
    /// The disk of a node takes fifty times as long.
    SlowDisk,
    /// The wall clock of a node is half a minute ahead.
    ClockSkew,
    /// A node becomes a member.
    Join,
    /// A member leaves.
    Leave,
    /// Every node is shut down and started anew, one after the other.
    RollingRestart,
    /// Partitions are handed to other groups, one after the other.
    Migration,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::None,
        Self::Crash,
        Self::LeaderCrash,
        Self::LeaderPause,
        Self::RegionCrash,
        Self::SplitMinority,
        Self::SplitEven,
        Self::OneWay,
        Self::SlowReplica,
        Self::SlowDisk,
        Self::ClockSkew,
        Self::Join,
        Self::Leave,
        Self::RollingRestart,
        Self::Migration,
    ];

    /// Why it cannot be done to processes of this engine; `None` when it can.
    #[must_use]
    pub fn cannot(self, engine: EngineKind, network: &Network) -> Option<&'static str> {
        match self {
            Self::None => None,
            _ if matches!(engine, EngineKind::Baseline(..)) => {
                Some("one process without a copy: it is away, or it is not")
            }
            Self::LeaderCrash | Self::LeaderPause if engine != EngineKind::SingleLeader => Some("nobody leads"),
            Self::RegionCrash if minority_region(network).is_none() => Some("no region has a minority of the nodes"),
            Self::SlowDisk => Some("slowing the disk of one process takes rights that a user does not have; simulated"),
            Self::ClockSkew => {
                Some("setting the clock of one process takes rights that a user does not have; simulated")
            }
            Self::Join | Self::Leave => Some("the node program has no change of members yet"),
            Self::Migration if !matches!(engine, EngineKind::Partitioned(it) if it.count() > 1) => {
                Some("there are no partitions to hand over")
            }
            _ => None,
        }
    }

    /// Why it cannot be done in simulation; `None` when it can.
    #[must_use]
    pub fn cannot_be_simulated(self, leads: bool, network: &Network) -> Option<&'static str> {
        match self {
            Self::LeaderCrash | Self::LeaderPause if !leads => Some("nobody leads"),
            Self::RegionCrash if minority_region(network).is_none() => Some("no region has a minority of the nodes"),
            Self::Join | Self::Leave => Some("the simulated cluster has no change of members yet"),
            Self::Migration => Some("the simulated cluster has no partitions"),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no fault",
            Self::Crash => "crash of one node",
            Self::LeaderCrash => "crash of the leader",
            Self::LeaderPause => "leader stands still",
            Self::RegionCrash => "crash of a minority region",
            Self::SplitMinority => "netsplit, a minority cut off",
            Self::SplitEven => "netsplit without a majority",
            Self::OneWay => "netsplit one way",
            Self::SlowReplica => "slow replica, 100 ms more",
            Self::SlowDisk => "slow disk, fifty times",
            Self::ClockSkew => "clock 30 s ahead",
            Self::Join => "a node joins",
            Self::Leave => "a node leaves",
            Self::RollingRestart => "rolling restart",
            Self::Migration => "partitions are handed over",
        })
    }
}

/// Whom it is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Nobody.
    Nobody,
    /// Whoever leads when it happens.
    Leader,
    /// These.
    Nodes(Vec<NodeId>),
}

/// A fault with its time and its victims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What.
    pub fault: Fault,
    /// When it happens, since the beginning of the load.
    pub at: Duration,
    /// When it is undone.
    pub undone: Duration,
    /// When the load ends.
    pub end: Duration,
    /// Whom it is done to.
    pub victims: Victims,
    /// The side of each node, in the order of their ids; all on side 0 while nothing separates them.
    pub sides: Vec<usize>,
    /// Links that are cut.
    pub cuts: Vec<(NodeId, NodeId)>,
}

/// A region with fewer than half of the nodes: the smallest, and of those the first.
fn minority_region(network: &Network) -> Option<usize> {
    let sizes = (0..network.regions.len()).map(|region| (network.of_region(region).len(), region));
    let (size, region) = sizes.filter(|(size, _)| *size > 0).min()?;
    (2 * size < network.nodes.len()).then_some(region)
}

impl Plan {
    /// The plan for a fault on a network. It happens late enough for the load to be steady, and lasts long enough for the
    /// nodes to notice.
    #[must_use]
    pub fn draw(fault: Fault, network: &Network, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5eed_fa17);
        let nodes: Vec<NodeId> = network.ids().collect();
        let count = nodes.len();
        let lasts = Duration::from_secs(2).max(network.election_timeout() * 4);
        let at = lasts + Duration::from_millis(rng.u64(0..100));
        let mut shuffled = nodes.clone();
        rng.shuffle(&mut shuffled);
        let minority = ((count - 1) / 2).max(1);
        let victims = match fault {
            Fault::None | Fault::Migration => Victims::Nobody,
            Fault::LeaderCrash | Fault::LeaderPause => Victims::Leader,
            Fault::RegionCrash => {
                Victims::Nodes(minority_region(network).map_or_else(Vec::new, |region| network.of_region(region)))
            }
            Fault::SplitMinority => Victims::Nodes(shuffled[..minority].to_vec()),
            Fault::SplitEven | Fault::RollingRestart => Victims::Nodes(nodes.clone()),
            _ => Victims::Nodes(shuffled[..1].to_vec()),
        };
        let chosen: &[NodeId] = if let Victims::Nodes(chosen) = &victims { chosen } else { &[] };
        let side = |node: &NodeId| match fault {
            // As many sides as it takes for none to have a majority.
            Fault::SplitEven => {
                let place = shuffled.iter().position(|other| other == node).unwrap_or(0);
                let largest = (count / 2).max(1);
                place / largest
            }
            Fault::RollingRestart => 0,
            _ => usize::from(chosen.contains(node)),
        };
        let sides: Vec<usize> = nodes.iter().map(side).collect();
        let apart = |(from, to): &(NodeId, NodeId)| {
            let [from_side, to_side] = [from, to].map(|node| sides[node.0 as usize - 1]);
            match fault {
                Fault::SplitMinority | Fault::SplitEven => from_side != to_side,
                Fault::OneWay => from_side == 1 && to_side == 0,
                _ => false,
            }
        };
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
        let cuts = pairs.filter(|(from, to)| from != to).filter(apart).collect();
        Self { fault, at, undone: at + lasts, end: at + 2 * lasts, victims, sides, cuts }
    }

    /// What is on a side, in words.
    #[must_use]
    pub fn side_shown(&self, side: usize) -> String {
        let nodes: Vec<String> =
            (1..).zip(&self.sides).filter(|(_, at)| **at == side).map(|(node, _)| format!("{node}")).collect();
        let what = match (self.fault, side) {
            (Fault::SplitEven, _) => "a side",
            (Fault::None | Fault::RollingRestart | Fault::Migration, _)
            | (Fault::LeaderCrash | Fault::LeaderPause, _) => "everybody",
            (_, 0) => "the others",
            (Fault::SplitMinority | Fault::OneWay, _) => "cut off",
            _ => "struck",
        };
        let word = if nodes.len() == 1 { "node" } else { "nodes" };
        format!("{what} (clients beside {word} {})", nodes.join(", "))
    }

    /// How many sides there are.
    #[must_use]
    pub fn sides_count(&self) -> usize {
        self.sides.iter().max().map_or(1, |side| side + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str) -> Network {
        Network::built_in(name).expect("it is built in")
    }

    #[test]
    fn the_same_seed_draws_the_same_plan() {
        let network = network("three-regions");
        for fault in Fault::ALL {
            assert_eq!(Plan::draw(fault, &network, 7), Plan::draw(fault, &network, 7));
        }
        let victims: Vec<_> = (0..20).map(|seed| Plan::draw(Fault::Crash, &network, seed).victims).collect();
        assert!(victims.iter().any(|other| *other != victims[0]), "seeds differ");
    }

    #[test]
    fn an_even_split_leaves_nobody_with_a_majority() {
        for name in ["lan", "five-regions"] {
            let network = network(name);
            let plan = Plan::draw(Fault::SplitEven, &network, 3);
            for side in 0..plan.sides_count() {
                let size = plan.sides.iter().filter(|at| **at == side).count();
                assert!(2 * size <= network.nodes.len() && size > 0, "{name}: {:?}", plan.sides);
            }
        }
    }

    #[test]
    fn a_minority_is_one_and_a_one_way_cut_goes_one_way() {
        let network = network("five-regions");
        let plan = Plan::draw(Fault::SplitMinority, &network, 3);
        assert_eq!(plan.sides.iter().filter(|side| **side == 1).count(), 2);
        assert_eq!(plan.cuts.len(), 2 * 2 * 3, "both ways");
        let plan = Plan::draw(Fault::OneWay, &network, 3);
        assert_eq!(plan.cuts.len(), 4);
        assert!(plan.cuts.iter().all(|(from, _)| Victims::Nodes(vec![*from]) == plan.victims));
    }

    #[test]
    fn a_region_crashes_only_if_it_is_a_minority() {
        let lan = network("lan");
        assert!(Fault::RegionCrash.cannot(EngineKind::SingleLeader, &lan).is_some());
        let laptop = network("laptop");
        assert_eq!(Fault::RegionCrash.cannot(EngineKind::SingleLeader, &laptop), None);
        assert_eq!(Plan::draw(Fault::RegionCrash, &laptop, 1).victims, Victims::Nodes(vec![NodeId(3)]));
    }

    #[test]
    fn what_cannot_be_done_is_said_with_its_reason() {
        let lan = network("lan");
        for fault in [Fault::SlowDisk, Fault::ClockSkew, Fault::Join, Fault::Leave] {
            assert!(fault.cannot(EngineKind::SingleLeader, &lan).is_some(), "{fault}");
        }
        assert_eq!(Fault::LeaderCrash.cannot(EngineKind::MultiLeader, &lan), Some("nobody leads"));
        assert_eq!(Fault::SplitEven.cannot(EngineKind::MultiLeader, &lan), None);
        assert_eq!(Fault::ClockSkew.cannot_be_simulated(false, &lan), None);
    }
}
