//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, Subcommand};
use replikit_core::crdt::Path;
use replikit_core::{CausalContext, Cursor, LogIndex, NodeId, Owners, ReadLevel, WriteLevel};

use crate::shape::{Shape, Strategy};

/// Replicated data on several machines.
#[derive(Debug, Parser)]
#[command(name = "replikit", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Args {
    /// Log more to standard error.
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one node of a cluster.
    Node(Node),
    /// Run a whole cluster of real processes on this machine, until Ctrl-C.
    Cluster(Cluster),
    /// Set a key.
    Put(Put),
    /// Print the value of a key; of concurrent values, or the elements of a set, each on a line.
    Get(Get),
    /// Remove a key, or a field of a map.
    Delete(Delete),
    /// Add to a counter, and print its new value.
    Add(Add),
    /// Add an element to a set.
    Insert(Element),
    /// Remove an element from a set.
    Remove(Element),
    /// Switch a flag on or off.
    Flag(Flag),
    /// Replace the values of a register.
    Assign(Assign),
    /// Look at the audit log of overwritten values of one node of a multi-leader or leaderless cluster.
    #[command(subcommand)]
    Conflicts(Conflicts),
    /// Print keys and values in order, one pair a line, separated by a tab.
    Scan(Scan),
    /// Print committed changes as they come, one a line: index, operation, key and value, separated by tabs; until Ctrl-C.
    Watch(Watch),
    /// Describe the nodes of a cluster.
    Status(Status),
    /// Look at the log in a data directory of a stopped node.
    #[command(subcommand)]
    Log(Log),
    /// Run a router of a partitioned cluster: a process without data that sends each request where its key is.
    Router(Router),
    /// List the partitions of a partitioned cluster, one a line.
    Partitions(Partitions),
    /// Cut the partition of a key in two, in front of the key.
    Split(Split),
    /// Join the partition of a key with the one behind it, which must be of the same group.
    Merge(Merge),
    /// Look after a partitioned cluster until Ctrl-C: cut partitions that are hot or large, join neighbours that are cold.
    Keep(Keep),
    /// Print what would make a partitioned cluster even: moves, bytes, minutes, and what comes of it. Moves nothing.
    Balance(Balance),
    /// Hand a partition to another group, while clients go on.
    Handoff(Handoff),
    /// Place a leaderless or multi-leader group on other nodes, while clients go on: they hold it instead of those that do.
    Place(Place),
    /// Hand all partitions with a replica on a node to groups that have none there, or place its leaderless or multi-leader groups elsewhere, while
    /// clients go on.
    Drain(Drain),
}

impl Command {
    /// Checks what the parser cannot: a message for the user.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Node(node)
                if node.new && matches!(node.shape.strategy, Strategy::SingleLeader | Strategy::Partitioned) =>
            {
                Err("--new is for --strategy multi-leader and leaderless".to_owned())
            }
            Self::Delete(delete) if delete.field.is_some() && delete.over.is_some() => {
                Err("--over is for keys; a field is removed as far as its node knows it".to_owned())
            }
            Self::Node(node) => {
                let mut nodes: Vec<NodeId> = node.peers.iter().map(|(id, _)| *id).collect();
                nodes.push(NodeId(node.id));
                node.shape.check(&nodes)
            }
            Self::Cluster(cluster) => cluster.shape.check(&(1..=cluster.nodes).map(NodeId).collect::<Vec<_>>()),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    /// Name of the cluster; connections and data of another one are refused.
    #[arg(long)]
    pub(crate) cluster: String,
    /// This node's number, unique in the cluster.
    #[arg(long)]
    pub(crate) id: u32,
    /// Where to listen, for peers and clients.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// Another node and where it listens; once for each.
    #[arg(long = "peer", value_name = "ID=HOST:PORT", value_parser = peer)]
    pub(crate) peers: Vec<(NodeId, String)>,
    /// Data directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Listen beyond this machine although nothing is encrypted and nobody is asked who they are.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Bytes of the log that subscribers (`replikit watch`) may hold back from compaction; one that is further behind is told
    /// that it lags. At most 1 TiB.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) log_retained_bytes: u64,
    /// Single-leader: a follower that hears nothing for this long, up to twice as long by chance, asks for an election.
    #[arg(long, value_name = "MS", default_value_t = 150)]
    pub(crate) election_timeout_ms: u64,
    /// Multi-leader, leaderless: this node has never been a member of the cluster, so it takes part before it has heard from all
    /// others.
    /// Never say so of a node that has lost its data.
    #[arg(long)]
    pub(crate) new: bool,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub(crate) nodes: u32,
    /// Where the nodes keep their data, one directory each; without it, in a directory that is removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Name of the cluster.
    #[arg(long, default_value = "local")]
    pub(crate) cluster: String,
    /// Port of node 1; the others follow.
    #[arg(long, default_value_t = 7101, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

/// How to reach a cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Reach {
    /// Where nodes listen, separated by commas; one that is up suffices.
    #[arg(
        long,
        value_name = "HOST:PORT,..",
        env = "REPLIKIT_AT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"
    )]
    pub(crate) at: Vec<String>,
    /// Name of the cluster.
    #[arg(long, env = "REPLIKIT_CLUSTER", default_value = "local")]
    pub(crate) cluster: String,
    /// How long to keep trying, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub(crate) timeout_ms: u64,
    /// The cluster's strategy; without it, the cluster is asked where that matters.
    #[arg(long, value_enum, env = "REPLIKIT_STRATEGY")]
    pub(crate) strategy: Option<Strategy>,
    /// Ask this node. Without it: whoever leads, and where nobody does, the first address that answers.
    #[arg(long, value_name = "ID")]
    pub(crate) node: Option<u32>,
}

const WRITE_LEVELS: &str = "When it counts as done: memory, leader-disk, received:K, durable:K, quorum, applied:K (K replicas); \
     in a leaderless cluster also one, two, three, all, local-one, local-quorum, each-quorum; the default is quorum, and \
     leader-disk, which is this node's own, in a multi-leader cluster";
const READ_LEVELS: &str = "How fresh: linearizable, local, or stale:MS (at most so many milliseconds old); in a leaderless \
     cluster also one, two, three, quorum, all, local-one, local-quorum, each-quorum; the default is linearizable, or where there \
     is no leader and hence no linearizable read, local in a multi-leader and quorum in a leaderless cluster";
const FIELD: &str = "The key holds a map: this field of it, as names separated by slashes, the outermost first";
const OVER: &str = "What its writer has seen, as `get --context` printed it: concurrent values that are in it are replaced, others \
     stay beside this write";

const IF: &str =
    "Only if this is the value of the key; in a leaderless cluster the key's keyspace must be of the policy cas";

#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    pub(crate) key: String,
    pub(crate) value: String,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "TOKEN", value_parser = context, help = OVER)]
    pub(crate) over: Option<CausalContext>,
    /// Only if there is no such key.
    #[arg(long, conflicts_with_all = ["expected", "over"])]
    pub(crate) if_absent: bool,
    #[arg(long = "if", value_name = "VALUE", conflicts_with = "over", help = IF)]
    pub(crate) expected: Option<String>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    pub(crate) key: String,
    #[arg(long, value_parser = read_level, help = READ_LEVELS)]
    pub(crate) level: Option<ReadLevel>,
    /// Print behind the values what they have seen, for --over.
    #[arg(long)]
    pub(crate) context: bool,
    /// The key holds a map: print its fields, one a line: path, type, value or values, separated by tabs.
    #[arg(long)]
    pub(crate) fields: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    pub(crate) key: String,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "TOKEN", value_parser = context, help = OVER)]
    pub(crate) over: Option<CausalContext>,
    #[arg(long = "if", value_name = "VALUE", conflicts_with_all = ["over", "field"], help = IF)]
    pub(crate) expected: Option<String>,
    #[arg(long, value_name = "PATH", value_parser = field, help = FIELD)]
    pub(crate) field: Option<Path>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    pub(crate) key: String,
    #[arg(allow_negative_numbers = true)]
    pub(crate) delta: i64,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "PATH", value_parser = field, help = FIELD)]
    pub(crate) field: Option<Path>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Element {
    pub(crate) key: String,
    pub(crate) element: String,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "PATH", value_parser = field, help = FIELD)]
    pub(crate) field: Option<Path>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Flag {
    pub(crate) key: String,
    pub(crate) state: FlagState,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "PATH", value_parser = field, help = FIELD)]
    pub(crate) field: Option<Path>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum FlagState {
    On,
    Off,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Assign {
    pub(crate) key: String,
    pub(crate) value: String,
    #[arg(long, value_parser = write_level, help = WRITE_LEVELS)]
    pub(crate) level: Option<WriteLevel>,
    #[arg(long, value_name = "PATH", value_parser = field, help = FIELD)]
    pub(crate) field: Option<Path>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conflicts {
    /// Print a page of overwritten values: number, key, when and by which write it was written, which write won, why, and the
    /// value, separated by tabs.
    List {
        /// Only those with a larger number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Most values to print.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// As JSON lines.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print all overwritten values as JSON lines.
    Export {
        /// Only those with a larger number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Most values to print.
        #[arg(long, default_value_t = u32::MAX, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Scan {
    /// The first key.
    #[arg(default_value = "")]
    pub(crate) from: String,
    /// The first key no longer wanted.
    #[arg(long)]
    pub(crate) to: Option<String>,
    /// Most keys to print.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[arg(long, value_parser = read_level, help = READ_LEVELS)]
    pub(crate) level: Option<ReadLevel>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

const WATCH_FROM: &str = "Where to begin: oldest (the oldest change that is kept), newest (what comes from now on), or INDEX: after \
     the change with this number, as printed before";

#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    #[arg(long, default_value = "newest", value_name = "WHERE", value_parser = cursor, help = WATCH_FROM)]
    pub(crate) from: Cursor,
    /// End after so many changes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Router {
    /// Name of the cluster.
    #[arg(long, env = "REPLIKIT_CLUSTER", default_value = "local")]
    pub(crate) cluster: String,
    /// Where to listen for clients.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// Where nodes listen, separated by commas; one that is up suffices.
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',', required = true)]
    pub(crate) peers: Vec<String>,
    /// The cluster's groups have no leaders (`--strategy leaderless --partitions`).
    #[arg(long)]
    pub(crate) leaderless: bool,
    /// The cluster's groups have several leaders (`--strategy multi-leader --partitions`).
    #[arg(long, conflicts_with = "leaderless")]
    pub(crate) multi_leader: bool,
    /// Listen beyond this machine although nothing is encrypted and nobody is asked who they are.
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Partitions {
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Split {
    /// The first key of the new partition; with keys by hash, all keys of its slot and of those behind it go there.
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Merge {
    /// A key of the left one of the two.
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Keep {
    /// Cut partitions that are asked more operations a second than this; neighbours that together are asked less than half of
    /// it are joined.
    #[arg(long, value_name = "N", default_value_t = 2_500, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) split_above_ops: u64,
    /// Cut partitions of more mebibytes than this; neighbours that together have less than half of it are joined.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub(crate) split_above_mib: u64,
    /// For so many seconds a partition must have been above before it is cut.
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub(crate) hot_for_s: u64,
    /// For so many seconds neighbours must have been below before they are joined.
    #[arg(long, value_name = "S", default_value_t = 300)]
    pub(crate) cold_for_s: u64,
    /// Leave so many partitions at least.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) partitions_min: usize,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
#[group(id = "what", required = true, multiple = false)]
pub(crate) struct Todo {
    /// Print the plan only.
    #[arg(long, group = "what")]
    pub(crate) dry_run: bool,
    /// Carry it out, one partition after the other, while clients go on. Ctrl-C pauses: what is under way is finished, and the same
    /// command goes on later.
    #[arg(long, group = "what")]
    pub(crate) apply: bool,
    /// Take back every handoff that is under way and not decided, whoever has asked for it; its partition stays where it is.
    #[arg(long, group = "what", conflicts_with_all = ["drain", "by", "most"])]
    pub(crate) cancel: bool,
}

/// What is to be even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// How many partitions have a replica on a node.
    Count,
    /// How many bytes of keys and values are on a node.
    Bytes,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Balance {
    #[command(flatten)]
    pub(crate) todo: Todo,
    /// Empty this node as well.
    #[arg(long, value_name = "ID")]
    pub(crate) drain: Option<u32>,
    /// What is to be even.
    #[arg(long, value_enum, default_value = "count")]
    pub(crate) by: By,
    /// Hand over this many partitions for evenness at most.
    #[arg(long, value_name = "N")]
    pub(crate) most: Option<usize>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Handoff {
    /// Which partition, by its number in `replikit partitions`.
    pub(crate) partition: u64,
    /// The group that is to have it.
    pub(crate) group: u32,
    /// The nodes of that group, if it has no partition yet: node numbers, separated by commas.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    pub(crate) replicas: Option<Vec<u32>>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Which group, as `replikit partitions` lists it.
    pub(crate) group: u32,
    /// The nodes that hold it from then on: node numbers, separated by commas.
    #[arg(value_name = "NODES", value_delimiter = ',', required_unless_present = "given_up")]
    pub(crate) replicas: Vec<u32>,
    /// Multi-leader: a node that is to leave the group and never comes back is not waited for. What it alone had is missing; of that, it
    /// makes its own writes again if it is placed once more.
    #[arg(long = "give-up", value_name = "NODE", conflicts_with = "replicas")]
    pub(crate) given_up: Option<u32>,
    /// How long to wait for it; after that it goes on by itself.
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    pub(crate) wait_ms: u64,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    /// Which node.
    #[arg(value_name = "NODE")]
    pub(crate) drained: u32,
    /// Only print what would go where.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Print every record of a log, one a line.
    Dump {
        /// Data directory of a node.
        dir: PathBuf,
    },
    /// Check every checksum and chain of a log; exits with 1 if anything is wrong. Changes nothing.
    Verify {
        /// Data directory of a node.
        dir: PathBuf,
    },
}

fn peer(text: &str) -> Result<(NodeId, String), String> {
    let (id, address) = text.split_once('=').ok_or("give ID=HOST:PORT")?;
    let id = id.parse().map_err(|_| format!("`{id}` is not a node number"))?;
    Ok((NodeId(id), address.to_owned()))
}

fn cursor(text: &str) -> Result<Cursor, String> {
    match text {
        "oldest" => Ok(Cursor::Oldest),
        "newest" => Ok(Cursor::Newest),
        index => {
            let index = index.parse().map_err(|_| "give oldest, newest, or the number of a change".to_owned())?;
            Ok(Cursor::After(LogIndex(index)))
        }
    }
}

fn field(text: &str) -> Result<Path, String> {
    if text.split('/').any(str::is_empty) {
        return Err("give names separated by slashes".to_owned());
    }
    Ok(text.split('/').map(|name| Bytes::copy_from_slice(name.as_bytes())).collect())
}

fn context(text: &str) -> Result<CausalContext, String> {
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digit).collect();
    let bytes = bytes.filter(|_| text.len().is_multiple_of(2) && !text.starts_with('+'));
    let token = bytes.and_then(|bytes| CausalContext::from_token(&bytes).ok());
    token.ok_or_else(|| "give what `get --context` printed".to_owned())
}

fn write_level(text: &str) -> Result<WriteLevel, String> {
    let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
    let replicas = || {
        let count = count.ok_or_else(|| format!("say how many replicas: {name}:K"))?;
        count.parse::<u8>().ok().filter(|&k| k > 0).ok_or_else(|| format!("`{count}` is not a number of replicas"))
    };
    match (name, count) {
        ("memory", None) => Ok(WriteLevel::Memory),
        ("leader-disk", None) => Ok(WriteLevel::LeaderDisk),
        ("quorum", None) => Ok(WriteLevel::Quorum),
        ("received", _) => Ok(WriteLevel::Received(replicas()?)),
        ("durable", _) => Ok(WriteLevel::Durable(replicas()?)),
        ("applied", _) => Ok(WriteLevel::Applied(replicas()?)),
        (name, None) if let Some(owners) = owners(name) => Ok(WriteLevel::Owners(owners)),
        _ => Err("levels are memory, leader-disk, received:K, durable:K, quorum, applied:K; without a leader also \
                  one, two, three, all, local-one, local-quorum, each-quorum, any"
            .into()),
    }
}

fn owners(name: &str) -> Option<Owners> {
    Some(match name {
        "one" => Owners::One,
        "two" => Owners::Two,
        "three" => Owners::Three,
        "quorum" => Owners::Quorum,
        "all" => Owners::All,
        "local-one" => Owners::LocalOne,
        "local-quorum" => Owners::LocalQuorum,
        "each-quorum" => Owners::EachQuorum,
        "any" => Owners::Any,
        _ => return None,
    })
}

fn read_level(text: &str) -> Result<ReadLevel, String> {
    match text.split_once(':') {
        None if text == "linearizable" => Ok(ReadLevel::Linearizable),
        None if text == "local" => Ok(ReadLevel::Local),
        Some(("stale", ms)) => {
            let ms = ms.parse().map_err(|_| format!("`{ms}` is not a number of milliseconds"))?;
            Ok(ReadLevel::BoundedStale(Duration::from_millis(ms)))
        }
        None if let Some(owners) = owners(text).filter(|owners| *owners != Owners::Any) => {
            Ok(ReadLevel::Owners(owners))
        }
        _ => Err("levels are linearizable, local, stale:MS; without a leader also one, two, three, quorum, all, \
                  local-one, local-quorum, each-quorum"
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn levels_are_read_as_they_are_written() {
        assert_eq!(write_level("durable:2"), Ok(WriteLevel::Durable(2)));
        assert_eq!(write_level("quorum"), Ok(WriteLevel::Quorum));
        assert!(write_level("durable").unwrap_err().contains("durable:K"));
        assert!(write_level("received:0").is_err());
        assert!(write_level("memory:2").is_err());
        assert_eq!(read_level("stale:20"), Ok(ReadLevel::BoundedStale(Duration::from_millis(20))));
        assert!(read_level("fresh").is_err());
        assert_eq!(write_level("each-quorum"), Ok(WriteLevel::Owners(Owners::EachQuorum)));
        assert_eq!(read_level("quorum"), Ok(ReadLevel::Owners(Owners::Quorum)));
        assert!(read_level("any").is_err() && write_level("one:2").is_err());
    }

    #[test]
    fn a_field_is_a_path_of_names() {
        assert_eq!(field("a/b"), Ok(vec![Bytes::from("a"), Bytes::from("b")]));
        for wrong in ["", "/a", "a//b", "a/"] {
            assert!(field(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_watch_begins_at_an_end_of_the_log_or_behind_an_index() {
        assert_eq!(cursor("oldest"), Ok(Cursor::Oldest));
        assert_eq!(cursor("newest"), Ok(Cursor::Newest));
        assert_eq!(cursor("17"), Ok(Cursor::After(LogIndex(17))));
        assert!(cursor("-1").unwrap_err().contains("oldest"));
    }
}
