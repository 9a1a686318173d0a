//! Which faults a run meets, and how often: drawn from the seed.
//!
//! Invariant: two runs with equal settings and equal seed are the same run. Swarm testing: each kind is switched on with
//! probability one half, because a run with every fault at once hides what needs the absence of one (Groce et al., ISSTA'12).

use core::time::Duration;

use fastrand::Rng;
use replikit_core::NodeId;

use crate::fault::Fault;

/// How often something happens to the whole cluster, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every {
    /// Mean time between two of them.
    pub mean: Duration,
    /// Mean time that one lasts; drawn with a heavy tail.
    pub lasts: Duration,
}

/// What the network does to messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Mean one-way delay.
    pub delay: Duration,
    /// The one-way delay of each link, by sender and receiver, for networks that are given rather than drawn; then `delay` is
    /// that of clients and hints alone. Empty: all links are alike.
    pub links: Vec<Vec<Duration>>,
    /// A message on such a link takes up to so much longer.
    pub jitter: Duration,
    /// Whether some delays are up to 256 times the mean (N3).
    pub heavy_tail: bool,
    /// Whether a later message may overtake an earlier one on the same link (N3).
    pub reorder: bool,
    /// Lost messages, per mille (N1).
    pub loss_per_mille: u16,
    /// Messages that arrive twice, per mille (N2).
    pub duplicate_per_mille: u16,
    /// Messages with a flipped bit, cut short or with an absurd length, per mille (N16).
    pub flip_per_mille: u16,
    /// Frames of another cluster or of random bytes that come in beside a message, per mille (N19, L7).
    pub hostile_per_mille: u16,
    /// What a link carries in a millisecond, in bytes; zero means any amount (N14).
    pub bytes_per_ms: u32,
    /// Longest wait for a link's bandwidth; what would wait longer is dropped, as from a full queue (R3).
    pub queue_max: Duration,
    /// Whether messages under way survive the crash of either end, so that a new incarnation meets those of the former (N17).
    pub outlives_crash: bool,
    /// Netsplits of several shapes (N4 to N11).
    pub netsplit: Option<Every>,
    /// Links that are cut in one direction (N6).
    pub one_way: Option<Every>,
    /// Connections that break; what is under way on them is lost (N13, N15).
    pub reset: Option<Every>,
    /// Nodes whose links hold back what is sent over them, alone or swizzled (N12).
    pub clog: Option<Every>,
    /// Links that are cut and mended again and again (N13).
    pub flap: Option<Every>,
    /// Messages of one kind, by the first byte of their head, that are dropped on all links (N18).
    pub mute: Option<Every>,
    /// Messages that are remembered, per mille: some of what was ever sent to a node comes in once more when it is started
    /// anew, stands for election or has won one (N2, N3).
    pub echo_per_mille: u16,
}

/// What happens to processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSettings {
    /// Mean time that a round of the driving loop keeps the node busy; inputs gather meanwhile.
    pub round: Duration,
    /// What each input of a round adds to it: a processor with a budget.
    pub per_input: Duration,
    /// Crashes of one process, at any point between two of its actions (P1, P2).
    pub crash: Option<Every>,
    /// Crashes of all processes at once (P6).
    pub crash_all: Option<Every>,
    /// Whether some processes come back at once (P3).
    pub instant_restart: bool,
    /// Processes that stand still while the world goes on (P5).
    pub pause: Option<Every>,
    /// Outages so long that the log behind may be gone (P4).
    pub outage: Option<Every>,
    /// Processes ten to a hundred times as slow (R1).
    pub slow: Option<Every>,
    /// Processes that are not told of their timers (R5).
    pub starve: Option<Every>,
    /// Most inputs that wait while a node is busy; messages beyond are dropped (R3).
    pub inbox_max: usize,
}

/// What happens to the present leader, whoever that is: the world learns it from the replicas' events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderSettings {
    /// Leaders that are struck right after their election, per mille.
    pub churn_per_mille: u16,
    /// At most so long after it.
    pub churn_within: Duration,
    /// How long a leader that is struck then is away, at most.
    pub churn_lasts: Duration,
    /// Leaders that are cut off, crashed, paused or given a slow disk from time to time.
    pub strike: Option<Every>,
    /// Majorities that take turns: as soon as one has a leader, the next one has to do without most of its members, and those
    /// that stay are often started anew. How long a leader is left alone with its majority is what `lasts` says (N4).
    pub shift: Option<Every>,
}

/// What the clocks do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockSettings {
    /// Largest difference between a wall clock and true time (C1).
    pub offset_max: Duration,
    /// Largest error of the rate of a node's clocks, in parts per million (C2).
    pub drift_ppm_max: u32,
    /// Jumps of a wall clock in either direction (C3, C4).
    pub jump: Option<Every>,
    /// Wall clocks that stand still (C5).
    pub freeze: Option<Every>,
    /// Machines that are suspended, monotonic clock and all (C6).
    pub suspend: Option<Every>,
    /// Timers come late by up to this.
    pub timer_late_max: Duration,
}

/// What the storage does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageSettings {
    /// Mean time of a sync.
    pub sync: Duration,
    /// Whether some syncs take up to 256 times the mean.
    pub heavy_tail: bool,
    /// Stalls (S18).
    pub stall: Option<Every>,
    /// Syncs that fail, per 100,000; the process ends by itself some time later, as an operator would have it (S4).
    pub fail_per_100k: u16,
    /// Whether the end of a process loses what was not synced, as a loss of power does (S1). Otherwise all that was handed
    /// to the storage survives.
    pub lose_unsynced: bool,
    /// Size of what a loss of power keeps or loses as a whole, in bytes (S2, S3). Only of the real log's disk.
    pub sector_bytes: usize,
    /// Whether some starts crash while the log is being opened (P7). Only of the real log.
    pub crash_amid_opening: bool,
    /// A sync under way for longer is reported to the replica as slow.
    pub slow_after: Duration,
    /// What disks do beyond that.
    pub disk: DiskSettings,
}

/// What the disks of some nodes do beyond losing what was not synced. Only of the real log's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskSettings {
    /// Whose disks. Fewer than half of the nodes, for a node whose log refuses to open stays down; all of them for
    /// [`Fault::Helical`].
    pub victims: Vec<NodeId>,
    /// What they may meet, of [`Fault::OF_THE_DISK`].
    pub kinds: Vec<Fault>,
    /// Crashes after which something at rest is found damaged, per mille.
    pub at_rest_per_mille: u16,
    /// Operations that meet something, per 10,000.
    pub under_way_per_10k: u16,
}

impl DiskSettings {
    /// Draws a swarm: half of all runs have sound disks; of the others one in four may lose silently what a node confirmed.
    ///
    /// A run that uses it asks [`World::must_serve`](crate::World::must_serve) before it demands progress,
    /// [`World::is_bounded`](crate::World::is_bounded) before it judges what clients saw, and leaves out nodes that
    /// [`World::is_refused`](crate::World::is_refused) names; replicas that take no note of a cut tail must not meet kinds that
    /// [`Fault::cuts_tail`] names.
    #[must_use]
    pub fn draw(rng: &mut Rng, nodes: u32) -> Self {
        /// Noticed by a checksum, a link or the disk itself: the node goes on, says what it lost, or stays down.
        const NOTICED: [Fault; 14] = [
            Fault::DiskFull,
            Fault::WritePart,
            Fault::LatentError,
            Fault::BitRot,
            Fault::WriteMisdirected,
            Fault::ReadMisdirected,
            Fault::WriteLost,
            Fault::ReadStale,
            Fault::RegisterRot,
            Fault::SnapshotRot,
            Fault::FileMissing,
            Fault::FileTruncated,
            Fault::ReadOnly,
            Fault::TailRot,
        ];
        const SILENT: [Fault; 3] = [Fault::SyncLied, Fault::EntryLost, Fault::TailLost];
        let minority = (nodes - 1) / 2;
        if minority == 0 || rng.bool() {
            return Self::default();
        }
        let helical = rng.u8(0..16) == 0;
        let silent = rng.u8(0..4) == 0;
        let mut ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        rng.shuffle(&mut ids);
        let mut kinds: Vec<Fault> = NOTICED.into_iter().filter(|_| rng.bool()).collect();
        if helical {
            kinds = vec![Fault::Helical];
        } else {
            ids.truncate(rng.usize(1..=minority as usize));
            if silent {
                kinds.push(SILENT[rng.usize(0..SILENT.len())]);
            }
        }
        Self { victims: ids, kinds, at_rest_per_mille: rng.u16(20..800), under_way_per_10k: rng.u16(1..200) }
    }
}

impl DiskSettings {
    /// Whether no disk does anything of the kind.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.victims.is_empty() || self.kinds.is_empty()
    }
}

impl StorageSettings {
    /// Whether no disk can lose what its node confirmed without the node noticing, and the nodes that may stay down are
    /// fewer than half. Then every promise holds and the cluster must serve again once the rest is mended. Otherwise what a
    /// quorum acknowledged may be gone: of an unbounded run only that nothing panics, that no node is handed bytes that were
    /// never written, and that damage is named may be checked.
    #[must_use]
    pub fn bounded(&self) -> bool {
        self.disk.victims.is_empty() || !self.disk.kinds.iter().any(|kind| kind.is_silent() || *kind == Fault::Helical)
    }
}

/// All that a run depends on beside the seed and the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Nodes of the cluster, with ids from 1.
    pub nodes: u32,
    /// Network.
    pub network: NetworkSettings,
    /// Processes.
    pub process: ProcessSettings,
    /// The present leader.
    pub leader: LeaderSettings,
    /// Clocks.
    pub clock: ClockSettings,
    /// Storage.
    pub storage: StorageSettings,
}

fn every(rng: &mut Rng, mean_ms: (u64, u64), lasts_ms: (u64, u64)) -> Option<Every> {
    let every = Every {
        mean: Duration::from_millis(rng.u64(mean_ms.0..=mean_ms.1)),
        lasts: Duration::from_millis(rng.u64(lasts_ms.0..=lasts_ms.1)),
    };
    rng.bool().then_some(every)
}

/// Like `every`, for one seed in three.
fn seldom(rng: &mut Rng, mean_ms: (u64, u64), lasts_ms: (u64, u64)) -> Option<Every> {
    let drawn = every(rng, mean_ms, lasts_ms);
    if rng.u8(0..3) < 2 { drawn } else { None }
}

impl Settings {
    /// No faults: small delays, exact clocks, a steady disk.
    #[must_use]
    pub const fn calm(nodes: u32) -> Self {
        Self {
            nodes,
            network: NetworkSettings {
                delay: Duration::from_micros(200),
                links: Vec::new(),
                jitter: Duration::ZERO,
                heavy_tail: false,
                reorder: false,
                loss_per_mille: 0,
                duplicate_per_mille: 0,
                flip_per_mille: 0,
                hostile_per_mille: 0,
                bytes_per_ms: 0,
                queue_max: Duration::from_secs(1),
                outlives_crash: false,
                netsplit: None,
                one_way: None,
                reset: None,
                clog: None,
                flap: None,
                mute: None,
                echo_per_mille: 0,
            },
            process: ProcessSettings {
                round: Duration::from_micros(5),
                per_input: Duration::ZERO,
                crash: None,
                crash_all: None,
                instant_restart: false,
                pause: None,
                outage: None,
                slow: None,
                starve: None,
                inbox_max: usize::MAX,
            },
            leader: LeaderSettings {
                churn_per_mille: 0,
                churn_within: Duration::ZERO,
                churn_lasts: Duration::ZERO,
                strike: None,
                shift: None,
            },
            clock: ClockSettings {
                offset_max: Duration::ZERO,
                drift_ppm_max: 0,
                jump: None,
                freeze: None,
                suspend: None,
                timer_late_max: Duration::from_micros(50),
            },
            storage: StorageSettings {
                sync: Duration::from_micros(300),
                heavy_tail: false,
                stall: None,
                fail_per_100k: 0,
                lose_unsynced: true,
                sector_bytes: 4096,
                crash_amid_opening: false,
                slow_after: Duration::from_millis(200),
                disk: DiskSettings {
                    victims: Vec::new(),
                    kinds: Vec::new(),
                    at_rest_per_mille: 0,
                    under_way_per_10k: 0,
                },
            },
        }
    }

    /// Draws a swarm: each kind on with probability one half, its rate at random.
    #[must_use]
    pub fn draw(rng: &mut Rng, nodes: u32) -> Self {
        let mut rate = |most: u16| if rng.bool() { 1 + rng.u16(0..most) } else { 0 };
        let (loss, duplicate, flip, hostile) = (rate(100), rate(100), rate(20), rate(20));
        Self {
            nodes,
            network: NetworkSettings {
                delay: Duration::from_micros(1 << rng.u32(5..12)),
                links: Vec::new(),
                jitter: Duration::ZERO,
                heavy_tail: rng.bool(),
                reorder: rng.bool(),
                loss_per_mille: loss,
                duplicate_per_mille: duplicate,
                flip_per_mille: flip,
                hostile_per_mille: hostile,
                bytes_per_ms: if rng.u8(0..4) == 0 { 1 << rng.u32(8..16) } else { 0 },
                queue_max: Duration::from_millis(1 << rng.u32(3..10)),
                outlives_crash: rng.bool(),
                netsplit: every(rng, (200, 2000), (20, 1000)),
                one_way: every(rng, (200, 2000), (20, 1000)),
                reset: every(rng, (50, 1000), (1, 50)),
                clog: seldom(rng, (200, 2000), (20, 600)),
                flap: seldom(rng, (300, 2000), (2, 60)),
                mute: seldom(rng, (300, 2000), (20, 600)),
                // See `Settings::draw_late`.
                echo_per_mille: 0,
            },
            process: ProcessSettings {
                round: Duration::from_micros(if rng.bool() { rng.u64(0..400) } else { 2 }),
                per_input: Duration::ZERO,
                crash: every(rng, (150, 2000), (5, 500)),
                crash_all: every(rng, (1000, 4000), (5, 300)),
                instant_restart: rng.bool(),
                pause: every(rng, (200, 2000), (10, 800)),
                outage: seldom(rng, (500, 1500), (300, 1200)),
                slow: seldom(rng, (300, 2000), (50, 800)),
                starve: seldom(rng, (300, 2000), (20, 600)),
                inbox_max: if rng.u8(0..4) == 0 { 1 << rng.u32(0..8) } else { usize::MAX },
            },
            leader: LeaderSettings {
                churn_per_mille: if rng.u8(0..3) == 0 { rng.u16(200..=1000) } else { 0 },
                churn_within: Duration::from_micros(1 << rng.u32(6..15)),
                churn_lasts: Duration::from_millis(1 << rng.u32(5..10)),
                strike: seldom(rng, (100, 1500), (10, 800)),
                shift: None,
            },
            clock: ClockSettings {
                offset_max: Duration::from_millis(if rng.bool() { rng.u64(0..10_000) } else { 0 }),
                drift_ppm_max: if rng.bool() { rng.u32(0..100_000) } else { 0 },
                jump: every(rng, (100, 1000), (1, 10_000)),
                freeze: seldom(rng, (200, 2000), (10, 1000)),
                suspend: seldom(rng, (300, 2000), (10, 800)),
                timer_late_max: Duration::from_micros(1 << rng.u32(0..13)),
            },
            storage: StorageSettings {
                sync: Duration::from_micros(1 << rng.u32(4..14)),
                heavy_tail: rng.bool(),
                stall: every(rng, (300, 2000), (20, 1000)),
                fail_per_100k: if rng.u8(0..4) == 0 { 1 + rng.u16(0..200) } else { 0 },
                lose_unsynced: rng.u8(0..4) != 0,
                sector_bytes: if rng.bool() { 512 } else { 4096 },
                crash_amid_opening: rng.bool(),
                slow_after: Duration::from_millis(rng.u64(20..400)),
                // By whoever knows what its runs may expect of nodes that stay down: see `DiskSettings::draw`.
                disk: DiskSettings::default(),
            },
        }
    }

    /// Draws what was thought of later, from a generator of its own: all other draws of a seed stay what they were.
    pub fn draw_late(&mut self, rng: &mut Rng) {
        let lasts = Duration::from_millis(1 << rng.u32(0..7));
        let shift = Every { mean: Duration::from_millis(rng.u64(50..600)), lasts };
        if rng.u8(0..5) < 2 {
            self.leader.shift = Some(shift);
            // What is said to one majority hurts most when the next one hears it.
            self.network.outlives_crash |= rng.bool();
        }
        let echo_per_mille = 1 << rng.u32(5..10);
        if self.network.outlives_crash && rng.u8(0..4) != 0 {
            self.network.echo_per_mille = echo_per_mille;
        }
        let duplicate_per_mille = rng.u16(100..600);
        if self.network.duplicate_per_mille > 0 && rng.u8(0..4) == 0 {
            self.network.duplicate_per_mille = duplicate_per_mille;
        }
    }
}

/// Draws around a mean, between nothing and twice as much; with a tail, one draw in four is at least double, one in sixteen
/// fourfold, up to 256 times. Integers only, so that every build draws the same.
pub(crate) fn around(rng: &mut Rng, mean: Duration, heavy_tail: bool) -> Duration {
    let mean_ns = mean.as_nanos() as u64;
    let once = rng.u64(0..=mean_ns.saturating_mul(2));
    let factor = if heavy_tail { 1_u64 << (rng.u64(..).trailing_zeros() / 2).min(8) } else { 1 };
    Duration::from_nanos(once.saturating_mul(factor))
}
