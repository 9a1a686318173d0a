//! What one seed does: drawn from it, and made smaller when a failure is shrunk.
//!
//! Invariant: a plan and the code decide a run; equal plans, equal runs. So a shrunk plan is named by its seed and by what
//! was taken away from it.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::WriteLevel;
use replikit_sim::{DiskSettings, Fault, ReadKind, Settings, WorkloadSettings};

/// What one seed does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes and faults.
    pub settings: Settings,
    /// Clients.
    pub workload: WorkloadSettings,
    /// How long faults go on.
    pub lasts: Duration,
    /// How many nodes stay dead from the healing on: less than half, and none where a log is torn or a disk faulty.
    pub dead: u32,
    /// Whether the members of a group may change, where they can.
    pub members: bool,
    /// Switches that were turned off.
    pub without: Vec<&'static str>,
}

/// A kind of fault that can be left out of a plan.
pub type Switch = (&'static str, fn(&mut Plan));

/// All switches. What a switch turns off changes no other draw of the plan.
pub const SWITCHES: &[Switch] = &[
    ("heavy-tail", |plan| plan.settings.network.heavy_tail = false),
    ("reorder", |plan| plan.settings.network.reorder = false),
    ("loss", |plan| plan.settings.network.loss_per_mille = 0),
    ("duplication", |plan| plan.settings.network.duplicate_per_mille = 0),
    ("flip", |plan| plan.settings.network.flip_per_mille = 0),
    ("hostile", |plan| plan.settings.network.hostile_per_mille = 0),
    ("bandwidth", |plan| plan.settings.network.bytes_per_ms = 0),
    ("former-lives", |plan| plan.settings.network.outlives_crash = false),
    ("echo", |plan| plan.settings.network.echo_per_mille = 0),
    ("netsplit", |plan| plan.settings.network.netsplit = None),
    ("one-way", |plan| plan.settings.network.one_way = None),
    ("reset", |plan| plan.settings.network.reset = None),
    ("clog", |plan| plan.settings.network.clog = None),
    ("flap", |plan| plan.settings.network.flap = None),
    ("mute", |plan| plan.settings.network.mute = None),
    ("crash", |plan| plan.settings.process.crash = None),
    ("crash-all", |plan| plan.settings.process.crash_all = None),
    ("instant-restart", |plan| plan.settings.process.instant_restart = false),
    ("pause", |plan| plan.settings.process.pause = None),
    ("outage", |plan| plan.settings.process.outage = None),
    ("slow", |plan| plan.settings.process.slow = None),
    ("starve", |plan| plan.settings.process.starve = None),
    ("inbox", |plan| plan.settings.process.inbox_max = usize::MAX),
    ("churn", |plan| plan.settings.leader.churn_per_mille = 0),
    ("leader", |plan| plan.settings.leader.strike = None),
    ("shift", |plan| plan.settings.leader.shift = None),
    ("offset", |plan| plan.settings.clock.offset_max = Duration::ZERO),
    ("drift", |plan| plan.settings.clock.drift_ppm_max = 0),
    ("jump", |plan| plan.settings.clock.jump = None),
    ("freeze", |plan| plan.settings.clock.freeze = None),
    ("suspend", |plan| plan.settings.clock.suspend = None),
    ("stall", |plan| plan.settings.storage.stall = None),
    ("sync-failure", |plan| plan.settings.storage.fail_per_100k = 0),
    ("slow-sync", |plan| plan.settings.storage.heavy_tail = false),
    ("unsynced-loss", |plan| plan.settings.storage.lose_unsynced = false),
    ("opening-crash", |plan| plan.settings.storage.crash_amid_opening = false),
    ("disk-full", |plan| plan.disks_never(Fault::DiskFull)),
    ("write-part", |plan| plan.disks_never(Fault::WritePart)),
    ("latent-error", |plan| plan.disks_never(Fault::LatentError)),
    ("bit-rot", |plan| plan.disks_never(Fault::BitRot)),
    ("misdirected-write", |plan| plan.disks_never(Fault::WriteMisdirected)),
    ("misdirected-read", |plan| plan.disks_never(Fault::ReadMisdirected)),
    ("lost-write", |plan| plan.disks_never(Fault::WriteLost)),
    ("stale-read", |plan| plan.disks_never(Fault::ReadStale)),
    ("register-rot", |plan| plan.disks_never(Fault::RegisterRot)),
    ("snapshot-rot", |plan| plan.disks_never(Fault::SnapshotRot)),
    ("file-missing", |plan| plan.disks_never(Fault::FileMissing)),
    ("file-cut", |plan| plan.disks_never(Fault::FileTruncated)),
    ("read-only", |plan| plan.disks_never(Fault::ReadOnly)),
    ("tail-rot", |plan| plan.disks_never(Fault::TailRot)),
    ("lying-sync", |plan| plan.disks_never(Fault::SyncLied)),
    ("lost-entry", |plan| plan.disks_never(Fault::EntryLost)),
    ("lost-tail", |plan| plan.disks_never(Fault::TailLost)),
    ("helical", |plan| plan.disks_never(Fault::Helical)),
    ("dead-nodes", |plan| plan.dead = 0),
    ("members", |plan| plan.members = false),
    ("odd-requests", |plan| plan.workload.odd_per_mille = 0),
    ("other-operations", |plan| plan.workload.other_ops_per_mille = 0),
    ("weak-writes", |plan| plan.workload.levels = vec![WriteLevel::Quorum]),
    ("weak-reads", |plan| plan.workload.reads = vec![ReadKind::Linearizable]),
    ("sessions", |plan| plan.workload.with_session = 0),
];

impl Plan {
    /// The plan of a seed: the standard scenario of three replicas for half of the seeds.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x9e37_79b9_7f4a_7c15);
        let rng = &mut rng;
        let nodes = [1, 3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 4, 7][rng.usize(0..14)];
        let mut settings = Settings::draw(rng, nodes);
        // Of a generator of its own: what disks do decides nothing else. The storage model takes no note of it.
        settings.storage.disk = DiskSettings::draw(&mut Rng::with_seed(seed ^ 0xd6e8_feb8_6659_fd93), nodes);
        settings.draw_late(&mut Rng::with_seed(seed ^ 0x4cf5_ad43_2745_937f));
        let clients = rng.u32(1..=10);
        let mut levels = vec![WriteLevel::Quorum, WriteLevel::Applied(1 + rng.u8(0..nodes as u8))];
        if rng.bool() {
            let copies = 1 + rng.u8(0..nodes as u8);
            levels.extend([
                WriteLevel::Memory,
                WriteLevel::LeaderDisk,
                WriteLevel::Received(copies),
                WriteLevel::Durable(copies),
            ]);
        }
        let mut reads = vec![ReadKind::Linearizable];
        if rng.bool() {
            let bound = ReadKind::BoundedStale(Duration::from_millis(1 << rng.u32(0..10)));
            reads.extend([ReadKind::Session, bound, ReadKind::Local]);
        }
        let workload = WorkloadSettings {
            clients,
            keys: if rng.bool() { rng.u32(1..=5) } else { rng.u32(1..=100) },
            writes_per_mille: rng.u16(100..=900),
            with_session: rng.u32(0..=clients),
            levels,
            reads,
            other_ops_per_mille: if rng.bool() { rng.u16(0..600) } else { 0 },
            odd_per_mille: if rng.bool() { rng.u16(0..40) } else { 0 },
            think_max: Duration::from_micros(u64::from(clients) * rng.u64(300..=3600)),
            timeout: Duration::from_millis(1 << rng.u32(6..10)),
        };
        let minority = nodes.div_ceil(2) - 1;
        let dead = if rng.u8(0..4) == 0 && minority > 0 { rng.u32(1..=minority) } else { 0 };
        // Majorities that take turns serve less.
        let longer = if settings.leader.shift.is_some() { 500 } else { 0 };
        let lasts = Duration::from_millis(rng.u64(600..=1200) + longer);
        Self { seed, settings, workload, lasts, dead, members: true, without: Vec::new() }
    }

    /// Without a kind of fault of the disk.
    fn disks_never(&mut self, fault: Fault) {
        self.settings.storage.disk.kinds.retain(|kind| *kind != fault);
    }

    /// Without a kind of fault.
    ///
    /// # Errors
    /// A sentence that names all kinds.
    pub fn leave_out(&mut self, name: &str) -> Result<(), String> {
        let Some((name, off)) = SWITCHES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = SWITCHES.iter().map(|(name, _)| *name).collect();
            return Err(format!("{name}: no such kind; known are {}", known.join(", ")));
        };
        off(self);
        self.without.push(name);
        Ok(())
    }

    /// Randomness for what a scenario draws beside, so that no draw of one disturbs another.
    #[must_use]
    pub fn rng(&self, stream: u64) -> Rng {
        Rng::with_seed(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ stream)
    }

    /// How a human plays it again.
    #[must_use]
    pub fn replay(&self, scenario: &str) -> String {
        let whole = Self::draw(self.seed);
        let mut line = format!("cargo xtask sim --strategy {scenario} --seed {}", self.seed);
        if !self.without.is_empty() {
            line += &format!(" --without {}", self.without.join(","));
        }
        if whole.workload.clients != self.workload.clients {
            line += &format!(" --clients {}", self.workload.clients);
        }
        if whole.lasts != self.lasts {
            line += &format!(" --millis {}", self.lasts.as_millis());
        }
        line
    }
}
