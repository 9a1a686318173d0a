//! The words of a report that do not depend on its figures.

/// What the comparison leans towards, and in whose favour.
pub const BIAS: [&str; 8] = [
    "We wrote both the harness and the three strategies, and tuned the strategies with its help. Other systems run as their \
     documentation advises; somebody who knows them better may find better settings.",
    "Load generator and all nodes share one machine and its cores: rates are those of the whole machine, not limits of a \
     server. This favours engines with little work per request, and the baselines most of all.",
    "Loopback has no distance. That favours strategies with many round trips; their latencies grow with the network while those \
     of a local write do not.",
    "All nodes write to one disk, which is thrice as busy as it would be, and a virtual disk may acknowledge an fdatasync from a \
     cache. That favours engines that sync often; fsyncs per write are the figure that carries over.",
    "Values of 256 B and a few thousand keys fit into every cache. Nothing here says what happens with more data than memory.",
    "Windows are short: what happens only after minutes (compaction, snapshots, full disks) is hardly in them.",
    "The key-value interface is ours, and so are the questions: what another system does beyond it counts for nothing here.",
    "Clients of the load generator are written in Rust on one thread. Engines that need more work in the client look slower.",
];

/// What to know before comparing two rows.
pub const READING: [&str; 5] = [
    "Each figure is the median over the rounds, with the range beside it. Rounds go through all engines in turn (A B C A B C), so \
     that a machine that changes meanwhile changes for all of them.",
    "Compare rows of the same promise. A row that acknowledges from memory is no faster way to do what a synced row does.",
    "Cores: before and after each set of cases the round trip of a cache line between two cores was measured. On virtual machines \
     it flips between near and far, and moves figures of several threads by a factor of two.",
    "Every value is unique, and every acknowledged write is read back after its case: lost shows writes that are not there, \
     audited if an audit log has them, silent otherwise. A wrong result fails the run.",
    "Latencies of closed loops count from sending; those of open loops from the moment at which the request was due.",
];
