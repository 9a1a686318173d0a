//! Networks between the nodes: how long a message takes from region to region, what is lost, how much fits through.
//!
//! Invariant: the same value is played by the TCP [`proxy`] between real processes and, exactly, by the simulator.

pub mod proxy;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use replikit_core::NodeId;

use crate::settings_file::{Fields, SettingsError};

/// Most nodes of a network.
pub const NODES_MAX: usize = 9;
/// Longest round trip, in milliseconds.
const ROUND_TRIP_MS_MAX: u64 = 10_000;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name, for people.
    pub name: String,
    /// Names of the regions.
    pub regions: Vec<String>,
    /// The region of each node, in the order of their ids; 1 to [`NODES_MAX`] of them.
    pub nodes: Vec<usize>,
    /// Round trips between and within regions; symmetric.
    pub round_trips: Vec<Vec<Duration>>,
    /// A message takes up to so much longer than half a round trip; all values alike.
    pub jitter: Duration,
    /// Lost packets, per mille. Over TCP a loss is a stall of its connection, in simulation a message that never comes.
    pub loss_per_mille: u16,
    /// What one direction of a link carries in a second; 0 for any amount.
    pub bytes_per_second: u64,
    /// A region that is away for a while.
    pub offline: Option<Offline>,
}

/// A region that nobody can reach, and whose own nodes and clients go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offline {
    /// Which.
    pub region: usize,
    /// When, since the beginning of the load.
    pub from: Duration,
    /// For how long.
    pub lasts: Duration,
}

impl Network {
    /// Reads a network from the text of a file; `file` is what errors name.
    ///
    /// # Errors
    /// [`SettingsError`] with line and field.
    pub fn parse(file: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut fields = Fields::parse(file, text)?;
        let stem = || file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let name = fields.text("name")?.unwrap_or_else(stem);
        let regions_line = fields.line_of_field("regions");
        let Some(regions) = fields.texts("regions")? else {
            return Err(fields.missing("regions", "the names of the regions"));
        };
        if regions.is_empty() || regions.len() > NODES_MAX {
            return Err(fields.wrong("regions", regions_line, format!("1 to {NODES_MAX} names")));
        }
        let nodes_line = fields.line_of_field("nodes");
        let nodes = match fields.texts("nodes")? {
            None => (0..regions.len()).collect(),
            Some(names) => {
                let found: Option<Vec<usize>> =
                    names.iter().map(|name| regions.iter().position(|region| region == name)).collect();
                match found.filter(|nodes| (1..=NODES_MAX).contains(&nodes.len())) {
                    Some(nodes) => nodes,
                    None => {
                        let expected = format!("1 to {NODES_MAX} of the names in `regions`");
                        return Err(fields.wrong("nodes", nodes_line, expected));
                    }
                }
            }
        };
        let matrix_line = fields.line_of_field("round-trip-ms");
        let Some(round_trips) = fields.square("round-trip-ms", regions.len(), ROUND_TRIP_MS_MAX)? else {
            return Err(fields.missing("round-trip-ms", "a row of milliseconds for each region"));
        };
        let symmetric =
            (0..regions.len()).all(|row| (0..row).all(|column| round_trips[row][column] == round_trips[column][row]));
        if !symmetric {
            let expected = "the same in both directions: a round trip has no direction";
            return Err(fields.wrong("round-trip-ms", matrix_line, expected));
        }
        let jitter = fields.millis("jitter-ms", ROUND_TRIP_MS_MAX)?.unwrap_or_default();
        let loss_per_mille = fields.number("loss-per-mille", 0..=500)?.unwrap_or(0) as u16;
        let megabits = fields.number("megabits-per-second", 0..=100_000)?.unwrap_or(0);
        let offline = match fields.table("offline")? {
            None => None,
            Some(mut table) => {
                let line = table.line_of_field("region");
                let Some(region) = table.text("region")? else {
                    return Err(table.missing("region", "which region is away"));
                };
                let Some(region) = regions.iter().position(|known| *known == region) else {
                    return Err(table.wrong("region", line, "one of the names in `regions`"));
                };
                let from = table.millis("from-ms", 3_600_000)?.unwrap_or(Duration::from_secs(1));
                let lasts = table.millis("lasts-ms", 3_600_000)?.unwrap_or(Duration::from_secs(2));
                table.end()?;
                Some(Offline { region, from, lasts })
            }
        };
        fields.end()?;
        let bytes_per_second = megabits * 1_000_000 / 8;
        Ok(Self { name, regions, nodes, round_trips, jitter, loss_per_mille, bytes_per_second, offline })
    }

    /// Three nodes with nothing between them but the proxy: where links are cut, and distance is not what is asked.
    #[must_use]
    pub fn loopback() -> Self {
        Self {
            name: "loopback".to_owned(),
            regions: vec!["here".to_owned()],
            nodes: vec![0; 3],
            round_trips: vec![vec![Duration::ZERO]],
            jitter: Duration::ZERO,
            loss_per_mille: 0,
            bytes_per_second: 0,
            offline: None,
        }
    }

    /// Reads a network from a file.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        Self::parse(file, &crate::settings_file::read(file)?)
    }

    /// A built-in network: [`BUILT_IN`] names them.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let (file, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(Path::new(&format!("{file}.toml")), text).expect("the built-in files are tested"))
    }

    /// All its nodes.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.nodes.len() as u32).map(NodeId)
    }

    /// The region of a node.
    #[must_use]
    pub fn region(&self, node: NodeId) -> usize {
        self.nodes[node.0 as usize - 1]
    }

    /// The nodes of a region.
    #[must_use]
    pub fn of_region(&self, region: usize) -> Vec<NodeId> {
        self.ids().filter(|node| self.region(*node) == region).collect()
    }

    /// How long a message takes from one node to another, at least.
    #[must_use]
    pub fn one_way(&self, from: NodeId, to: NodeId) -> Duration {
        self.round_trips[self.region(from)][self.region(to)] / 2
    }

    /// The longest round trip between two nodes, jitter included.
    #[must_use]
    pub fn round_trip_max(&self) -> Duration {
        let pairs = self.ids().flat_map(|from| self.ids().map(move |to| (from, to))).filter(|(from, to)| from != to);
        pairs.map(|(from, to)| self.one_way(from, to) * 2).max().unwrap_or_default() + self.jitter * 2
    }

    /// How long a follower should wait for its leader: longer than messages take, by far.
    #[must_use]
    pub fn election_timeout(&self) -> Duration {
        (self.round_trip_max() * 4).max(Duration::from_millis(150))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// The built-in networks: name, and the file that describes it.
        pub const BUILT_IN: &[(&str, &str)] = &[$(($name, include_str!(concat!("../networks/", $name, ".toml")))),*];
    };
}

built_in!["lan", "three-regions", "five-regions", "laptop"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Network, SettingsError> {
        Network::parse(Path::new("mine.toml"), text)
    }

    #[test]
    fn every_built_in_network_is_one() {
        for (name, _) in BUILT_IN {
            let network = Network::built_in(name).expect("it is listed");
            assert!(network.nodes.len() >= 3, "{name} has a minority");
            assert!(network.election_timeout() > network.round_trip_max());
        }
        let three = Network::built_in("three-regions").expect("it is built in");
        let millis = |from, to| (three.one_way(NodeId(from), NodeId(to)) * 2).as_millis();
        assert_eq!([millis(1, 2), millis(1, 3), millis(2, 3)], [80, 150, 200]);
        assert_eq!(three.round_trip_max(), Duration::from_millis(204));
        let lan = Network::built_in("lan").expect("it is built in");
        assert_eq!(lan.one_way(NodeId(1), NodeId(2)), Duration::from_micros(250));
        assert!(Network::built_in("laptop").expect("it is built in").offline.is_some());
    }

    #[test]
    fn what_a_user_got_wrong_is_told_with_its_line() {
        let told = |text| parse(text).expect_err("it is wrong").to_string();
        assert_eq!(told(""), "mine.toml:1: `regions` is missing: the names of the regions");
        let matrix = "regions = [\"a\", \"b\"]\nround-trip-ms = [[1, 80], [81, 1]]\n";
        assert!(told(matrix).starts_with("mine.toml:2: `round-trip-ms` must be the same in both directions"));
        let nodes = "regions = [\"a\"]\nnodes = [\"a\", \"c\"]\nround-trip-ms = [[1]]\n";
        assert!(told(nodes).starts_with("mine.toml:2: `nodes` must be 1 to 9 of the names"), "{}", told(nodes));
        let offline = "regions = [\"a\"]\nround-trip-ms = [[1]]\n[offline]\nregion = \"b\"\n";
        assert_eq!(told(offline), "mine.toml:4: `region` must be one of the names in `regions`");
    }
}
