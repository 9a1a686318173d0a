//! Which strategy a cluster runs, and how its replicas are told to treat keys: the part of the command line that `node` and
//! `cluster` share.

use std::fmt;

use clap::ValueEnum;
use replikit_core::NodeId;
use replikit_core::crdt::CrdtKind;
use replikit_core::policy::ConflictPolicy;
use replikit_leaderless as leaderless;
use replikit_multi_leader::{self as multi_leader, Topology};
use replikit_partitioning::store::{Founding, PARTITIONS_FIRST_MAX};
use replikit_partitioning::{Replication, Scheme};

/// How data is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Strategy {
    /// One node orders all writes; the others follow, and one of them takes over when it fails.
    #[default]
    SingleLeader,
    /// Every node takes writes; conflicts are found, resolved by policy, and kept in an audit log.
    MultiLeader,
    /// Every node takes writes and reads, and asks as many of the others as the request's level says.
    Leaderless,
    /// The keys are cut in partitions, each of which one of its nodes orders; the same as --partitions 16.
    Partitioned,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleLeader => "single-leader",
            Self::MultiLeader => "multi-leader",
            Self::Leaderless => "leaderless",
            Self::Partitioned => "partitioned",
        })
    }
}

const TOPOLOGY: &str = "Multi-leader: who sends to whom: all-to-all (the default), star:HUB, ring, or custom:LINKS, where 1-2 \
     is a link both ways and 1>2 one way, separated by commas";
const CONFLICTS: &str = "Multi-leader, leaderless: what becomes of concurrent writes of a key: lww (the newest wins, the others go to the \
     audit log; the default), siblings, counter, set, flag, register, or map; leaderless also: cas";
const KEYSPACE: &str = "Multi-leader, leaderless: the same for the keys that begin with a prefix; once for each, the longest decides. \
     Leaderless also: cas (keys that are compared and set: linearizable, never mixed with plain writes)";
const QUORUMS: &str = "Leaderless: R,W,D: how many owners take part in a quorum read, have applied a quorum write, and have it on \
     disk; without it, a majority each";
const REPAIR: &str = "Leaderless: what becomes of an owner that a read found to know less: blocking (the default: the read waits \
     until no later one can miss what it returns), async, or off";

const REGION: &str = "Leaderless: these nodes are in this region, for the levels local-one, local-quorum and each-quorum; once for each \
     region. Nodes that no region names are in one more together";
const FALLBACKS: &str = "Leaderless: these nodes of the cluster own nothing and keep hints for owners that cannot be reached: node \
     numbers, separated by commas";
const SLOPPY: &str = "Leaderless: fallback nodes count in the place of owners that cannot be reached, for writes at quorum and any; \
     such a write is never called strict";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shape {
    /// How data is replicated; the same at every node.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) strategy: Strategy,
    #[arg(long, value_name = "SHAPE", value_parser = topology, help = TOPOLOGY)]
    pub(crate) topology: Option<Text<Topology>>,
    #[arg(long, value_name = "POLICY", value_parser = policy, help = CONFLICTS)]
    pub(crate) conflicts: Option<Text<Policy>>,
    #[arg(long = "keyspace", value_name = "PREFIX=POLICY", value_parser = keyspace, help = KEYSPACE)]
    pub(crate) keyspaces: Vec<Text<(String, Policy)>>,
    #[arg(long, value_name = "R,W,D", value_parser = quorums, help = QUORUMS)]
    pub(crate) quorums: Option<Text<[u8; 3]>>,
    #[arg(long, value_enum, value_name = "MODE", help = REPAIR)]
    pub(crate) repair: Option<Repair>,
    #[arg(long = "region", value_name = "NAME=NODES", value_parser = region, help = REGION)]
    pub(crate) regions: Vec<Text<(String, Vec<NodeId>)>>,
    #[arg(long, value_name = "NODES", value_parser = nodes, help = FALLBACKS)]
    pub(crate) fallbacks: Option<Text<Vec<NodeId>>>,
    #[arg(long, requires = "fallbacks", help = SLOPPY)]
    pub(crate) sloppy: bool,
    /// Cut the keys in so many partitions, each on --copies of the nodes. The same at every node and every start, as all that
    /// belongs to it: what the cluster was founded with.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_FIRST_MAX)))]
    pub(crate) partitions: Option<u16>,
    /// Partitioned: groups of replicas; those beyond the partitions are empty until they are handed one. By default as many as
    /// partitions.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_FIRST_MAX)))]
    pub(crate) groups: Option<u16>,
    /// Partitioned: replicas of each group; by default 3, or as many as there are nodes.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) copies: Option<u8>,
    /// Partitioned: how keys are cut.
    #[arg(long, value_enum)]
    pub(crate) scheme: Option<SchemeKind>,
    /// Partitioned, with --scheme range: where the keys are cut at first, ascending, separated by commas; one less than partitions.
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub(crate) bounds: Vec<String>,
}

/// How keys are cut in partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum SchemeKind {
    /// By hash slot: load spreads, a scan asks every partition.
    #[default]
    Hash,
    /// In key order: neighbours stay together, a scan asks only where its keys are.
    Range,
}

impl fmt::Display for SchemeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hash => "hash",
            Self::Range => "range",
        })
    }
}

/// Partitions where nobody says how many.
const PARTITIONS_USUAL: u16 = 16;

/// What becomes of an owner that a read found to know less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repair {
    Blocking,
    Async,
    Off,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocking => "blocking",
            Self::Async => "async",
            Self::Off => "off",
        })
    }
}

/// A value with the text that it was read from, which is handed on to other processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text<T> {
    text: String,
    value: T,
}

/// A conflict policy that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Lww,
    Siblings,
    Crdt(CrdtKind),
    /// None: there are no concurrent writes.
    Cas,
}

impl Policy {
    const fn conflicts(self) -> ConflictPolicy {
        match self {
            Self::Lww | Self::Cas => ConflictPolicy::Lww,
            Self::Siblings => ConflictPolicy::Siblings,
            Self::Crdt(kind) => ConflictPolicy::Crdt(kind),
        }
    }

    const fn leaderless(self) -> leaderless::Keyspace {
        match self {
            Self::Cas => leaderless::Keyspace::cas(),
            policy => leaderless::Keyspace::new(policy.conflicts()),
        }
    }
}

impl Shape {
    /// What makes no sense together: a message for the user.
    pub(crate) fn check(&self, nodes: &[NodeId]) -> Result<(), String> {
        use Strategy::{Leaderless, MultiLeader};
        let (default, mut prefixed) = self.policies();
        let compares = default == Policy::Cas || prefixed.any(|(_, policy)| policy == Policy::Cas);
        let given: [(bool, &[Strategy], &'static str); 8] = [
            (self.topology.is_some(), &[MultiLeader], "--topology is for --strategy multi-leader"),
            (self.conflicts.is_some(), &[MultiLeader, Leaderless], "--conflicts is for multi-leader and leaderless"),
            (!self.keyspaces.is_empty(), &[MultiLeader, Leaderless], "--keyspace is for multi-leader and leaderless"),
            (compares, &[Leaderless], "the policy cas is for --strategy leaderless"),
            (self.quorums.is_some(), &[Leaderless], "--quorums is for --strategy leaderless"),
            (self.repair.is_some(), &[Leaderless], "--repair is for --strategy leaderless"),
            (!self.regions.is_empty(), &[Leaderless], "--region is for --strategy leaderless"),
            (self.fallbacks.is_some(), &[Leaderless], "--fallbacks is for --strategy leaderless"),
        ];
        let of_partitions = self.groups.is_some() || self.copies.is_some() || self.scheme.is_some();
        if (of_partitions || !self.bounds.is_empty()) && !self.is_partitioned() {
            return Err("--groups, --copies, --scheme and --bounds are for a cluster with --partitions".to_owned());
        }
        let names_nodes =
            self.topology.as_ref().is_some_and(|it| matches!(it.value, Topology::Star { .. } | Topology::Custom(_)));
        if self.partitions.is_some() && names_nodes {
            return Err("a topology that names nodes is for a cluster without --partitions: there, groups go from nodes to nodes"
                .to_owned());
        }
        if self.partitions.is_some() && self.fallbacks.is_some() {
            return Err(
                "--fallbacks is for a cluster without --partitions: there, a group is placed elsewhere".to_owned()
            );
        }
        let has_one_log = !matches!(self.strategy, Leaderless | MultiLeader);
        if !has_one_log && self.groups.is_some_and(|groups| Some(groups) != self.partitions) {
            return Err(
                "--groups is for groups with one leader each: others have one partition each, for ever".to_owned()
            );
        }
        if !self.bounds.is_empty() && self.scheme != Some(SchemeKind::Range) {
            return Err("--bounds is for --scheme range".to_owned());
        }
        match given.iter().find(|(given, of, _)| *given && !of.contains(&self.strategy)) {
            Some((.., message)) => Err((*message).to_owned()),
            None => self.check_regions(nodes),
        }
    }

    fn check_regions(&self, nodes: &[NodeId]) -> Result<(), String> {
        let mut named: Vec<NodeId> = self.regions.iter().flat_map(|region| region.value.1.iter().copied()).collect();
        named.sort_unstable();
        if let Some(stranger) = named.iter().find(|node| !nodes.contains(node)) {
            return Err(format!("--region names node {stranger}, which the cluster does not have"));
        }
        match named.windows(2).find(|two| two[0] == two[1]) {
            Some(twice) => Err(format!("--region names node {} twice: it is in one region", twice[0])),
            None => Ok(()),
        }
    }

    /// The same as arguments of another process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut list = vec!["--strategy".to_owned(), self.strategy.to_string()];
        let mut add = |name: &str, text: &String| list.extend([name.to_owned(), text.clone()]);
        self.topology.iter().for_each(|topology| add("--topology", &topology.text));
        self.conflicts.iter().for_each(|policy| add("--conflicts", &policy.text));
        self.keyspaces.iter().for_each(|keyspace| add("--keyspace", &keyspace.text));
        self.quorums.iter().for_each(|quorums| add("--quorums", &quorums.text));
        self.repair.iter().for_each(|repair| add("--repair", &repair.to_string()));
        self.regions.iter().for_each(|region| add("--region", &region.text));
        self.fallbacks.iter().for_each(|fallbacks| add("--fallbacks", &fallbacks.text));
        let mut add_count = |name: &str, count: Option<String>| {
            list.extend(count.into_iter().flat_map(|count| [name.to_owned(), count]));
        };
        add_count("--partitions", self.partitions.map(|count| count.to_string()));
        add_count("--groups", self.groups.map(|count| count.to_string()));
        add_count("--copies", self.copies.map(|count| count.to_string()));
        add_count("--scheme", self.scheme.map(|scheme| scheme.to_string()));
        add_count("--bounds", Some(self.bounds.join(",")).filter(|bounds| !bounds.is_empty()));
        list.extend(self.sloppy.then(|| "--sloppy".to_owned()));
        list
    }

    /// Whether the keys are cut in partitions.
    pub(crate) fn is_partitioned(&self) -> bool {
        self.strategy == Strategy::Partitioned || self.partitions.is_some()
    }

    /// What a partitioned store on these nodes is founded with.
    pub(crate) fn founding(&self, nodes: &[NodeId]) -> Founding {
        let founding = Founding::new(nodes.iter().copied(), self.partitions.unwrap_or(PARTITIONS_USUAL));
        let (groups, copies) = (self.groups.unwrap_or(founding.groups), self.copies.unwrap_or(founding.copies));
        let scheme = match self.scheme.unwrap_or_default() {
            SchemeKind::Hash => founding.scheme,
            SchemeKind::Range => Scheme::KEY_ORDER,
        };
        let replication = match self.strategy {
            Strategy::Leaderless => Replication::Leaderless,
            Strategy::MultiLeader => Replication::MultiLeader,
            _ => Replication::SingleLeader,
        };
        let founding = founding.groups(groups).copies(copies).scheme(scheme).replication(replication);
        match &self.bounds[..] {
            [] => founding,
            bounds => founding.bounds(bounds.iter().map(|bound| bound.clone().into())),
        }
    }

    /// The policy of all keys, and of those with a prefix.
    fn policies(&self) -> (Policy, impl Iterator<Item = (String, Policy)>) {
        let default = self.conflicts.as_ref().map_or(Policy::Lww, |policy| policy.value);
        (default, self.keyspaces.iter().map(|keyspace| keyspace.value.clone()))
    }

    /// What a multi-leader replica is told.
    pub(crate) fn multi_leader(&self, founding: multi_leader::Founding) -> multi_leader::Settings {
        use multi_leader::{Keyspace, Keyspaces, Settings};
        let (default, prefixed) = self.policies();
        let all = Keyspaces::all(Keyspace::new(default.conflicts()));
        let with =
            |all: Keyspaces, (prefix, policy): (String, Policy)| all.with(prefix, Keyspace::new(policy.conflicts()));
        let keyspaces = prefixed.fold(all, with);
        let topology = self.topology.as_ref().map(|topology| topology.value.clone()).unwrap_or_default();
        Settings { founding, ..Settings::new(keyspaces).topology(topology) }
    }

    /// What a leaderless replica is told.
    pub(crate) fn leaderless(&self, founding: leaderless::Founding) -> leaderless::Settings {
        use leaderless::{Counting, Keyspaces, Quorums, ReadRepair, Settings, Size};
        let (default, prefixed) = self.policies();
        let all = Keyspaces::all(default.leaderless());
        let keyspaces = prefixed.fold(all, |all, (prefix, policy)| all.with(prefix, policy.leaderless()));
        let quorums = self.quorums.as_ref().map(|quorums| {
            let [read, write, durable] = quorums.value.map(Size::Exactly);
            Quorums { read, write, durable }
        });
        let repair = match self.repair {
            None | Some(Repair::Blocking) => ReadRepair::Blocking,
            Some(Repair::Async) => ReadRepair::Async,
            Some(Repair::Off) => ReadRepair::Off,
        };
        let counting = if self.sloppy { Counting::TowardsQuorums } else { Counting::Never };
        let settings = Settings::new(keyspaces).quorums(quorums.unwrap_or_default()).repair(repair);
        let nodes = self.regions.iter().map(|region| &region.value);
        let nodes = nodes.flat_map(|(name, nodes)| nodes.iter().map(move |node| (*node, name.as_str())));
        let settings = nodes.fold(settings, |settings, (node, name)| settings.region(node, name));
        Settings { founding, ..settings.fallbacks(self.fallback_nodes().iter().copied(), counting) }
    }

    /// Nodes that own nothing and stand in for those that do.
    pub(crate) fn fallback_nodes(&self) -> &[NodeId] {
        self.fallbacks.as_ref().map_or(&[], |fallbacks| &fallbacks.value)
    }

    /// R, W and D in words, and what they are good for, among so many nodes.
    pub(crate) fn quorums_report(&self, nodes: usize) -> String {
        let fallbacks = self.fallback_nodes();
        let owners = nodes.saturating_sub(fallbacks.len());
        let majority = replikit_core::quorum::majority(owners);
        let [read, write, durable] =
            self.quorums.as_ref().map_or([majority; 3], |quorums| quorums.value.map(usize::from));
        let reads = if read + write.min(durable) > owners {
            "every quorum read sees every quorum write acknowledged before it"
        } else {
            "a quorum read may miss quorum writes: R and what is certain of W do not exceed N"
        };
        let fallbacks = match (fallbacks, self.sloppy) {
            ([], _) => String::new(),
            (_, true) => format!("; {} fallback nodes count for owners that cannot be reached", fallbacks.len()),
            (_, false) => format!("; {} fallback nodes keep hints and do not count", fallbacks.len()),
        };
        format!("N = {owners}, R = {read}, W = {write}, D = {durable}: {reads}{fallbacks}")
    }

    /// The topology as its user named it.
    pub(crate) fn topology_name(&self) -> &str {
        self.topology.as_ref().map_or("all-to-all", |topology| &topology.text)
    }
}

fn topology(text: &str) -> Result<Text<Topology>, String> {
    let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
    let node = |text: &str| text.trim().parse().map(NodeId).map_err(|_| format!("`{text}` is not a node number"));
    let value = match (name, rest) {
        ("all-to-all", None) => Topology::AllToAll,
        ("ring", None) => Topology::Ring,
        ("star", Some(hub)) => Topology::Star { hub: node(hub)? },
        ("custom", Some(list)) => {
            let mut links = Vec::new();
            for link in list.split(',') {
                if let Some((from, to)) = link.split_once('-') {
                    let (from, to) = (node(from)?, node(to)?);
                    links.extend([(from, to), (to, from)]);
                } else if let Some((from, to)) = link.split_once('>') {
                    links.push((node(from)?, node(to)?));
                } else {
                    return Err(format!("`{link}` is not a link: give 1-2 for both ways or 1>2 for one"));
                }
            }
            Topology::Custom(links)
        }
        _ => return Err("topologies are all-to-all, star:HUB, ring, custom:1-2,2>3,..".into()),
    };
    Ok(Text { text: text.to_owned(), value })
}

fn policy(text: &str) -> Result<Text<Policy>, String> {
    let value = match text {
        "lww" => Policy::Lww,
        "siblings" => Policy::Siblings,
        "counter" => Policy::Crdt(CrdtKind::Counter),
        "set" => Policy::Crdt(CrdtKind::Set),
        "flag" => Policy::Crdt(CrdtKind::Flag),
        "register" => Policy::Crdt(CrdtKind::MultiValue),
        "map" => Policy::Crdt(CrdtKind::Map),
        "cas" => Policy::Cas,
        _ => return Err("policies are lww, siblings, counter, set, flag, register, map, cas".into()),
    };
    Ok(Text { text: text.to_owned(), value })
}

fn quorums(text: &str) -> Result<Text<[u8; 3]>, String> {
    let sizes: Vec<u8> = text.split(',').map_while(|size| size.trim().parse().ok().filter(|size| *size > 0)).collect();
    match <[u8; 3]>::try_from(sizes) {
        Ok(value) if text.split(',').count() == 3 => Ok(Text { text: text.to_owned(), value }),
        _ => Err("give R,W,D: three numbers of owners, each at least 1".into()),
    }
}

fn nodes(text: &str) -> Result<Text<Vec<NodeId>>, String> {
    let node = |text: &str| text.trim().parse().map(NodeId).map_err(|_| format!("`{text}` is not a node number"));
    Ok(Text { text: text.to_owned(), value: text.split(',').map(node).collect::<Result<_, _>>()? })
}

fn region(text: &str) -> Result<Text<(String, Vec<NodeId>)>, String> {
    let (name, list) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("give NAME=NODES, as eu=1,2")?;
    Ok(Text { text: text.to_owned(), value: (name.to_owned(), nodes(list)?.value) })
}

fn keyspace(text: &str) -> Result<Text<(String, Policy)>, String> {
    let (prefix, name) = text.rsplit_once('=').ok_or("give PREFIX=POLICY")?;
    if prefix.is_empty() {
        return Err("the keyspace of all other keys is set by --conflicts".into());
    }
    Ok(Text { text: text.to_owned(), value: (prefix.to_owned(), policy(name)?.value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topologies_are_read_as_they_are_written() {
        let read = |text: &str| topology(text).map(|topology| topology.value);
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        assert_eq!(read("star:2"), Ok(Topology::Star { hub: two }));
        assert_eq!(read("custom:1-2,2>3"), Ok(Topology::Custom(vec![(one, two), (two, one), (two, three)])));
        assert!(read("custom:1,2").unwrap_err().contains("1-2"));
        assert!(read("star").is_err() && read("ring:1").is_err() && read("custom:").is_err());
    }

    #[test]
    fn keyspaces_are_a_prefix_and_a_policy() {
        let read = |text: &str| keyspace(text).map(|keyspace| keyspace.value);
        assert_eq!(read("a=b/=counter"), Ok(("a=b/".to_owned(), Policy::Crdt(CrdtKind::Counter))));
        assert_eq!(read("lock/=cas"), Ok(("lock/".to_owned(), Policy::Cas)));
        assert!(read("counter").is_err());
        assert!(read("x/=best").unwrap_err().contains("siblings"));
        assert!(read("=lww").unwrap_err().contains("--conflicts"));
    }

    #[test]
    fn regions_are_a_name_and_nodes() {
        let read = |text: &str| region(text).map(|region| region.value);
        assert_eq!(read("eu=1,2"), Ok(("eu".to_owned(), vec![NodeId(1), NodeId(2)])));
        assert!(read("eu=1,x").unwrap_err().contains("`x`"));
        for wrong in ["", "eu", "=1"] {
            assert!(read(wrong).unwrap_err().contains("NAME=NODES"), "{wrong}");
        }
    }

    #[test]
    fn quorums_are_three_sizes() {
        let read = |text: &str| quorums(text).map(|quorums| quorums.value);
        assert_eq!(read("2,2,1"), Ok([2, 2, 1]));
        for wrong in ["", "2", "2,2", "2,2,0", "2,2,2,2", "2,x,2", "a,2,2,2", "2,2,300"] {
            assert!(read(wrong).unwrap_err().contains("R,W,D"), "{wrong}");
        }
    }
}
