//! Systems: ours and the others, each with its version, what it does before it acknowledges, and how it is put under a load.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use replikit_benches::disk_log::Syncs;
use replikit_benches::engine::{Engine, EngineKind};
use replikit_benches::error::BenchError;
use replikit_benches::ledger::Ledger;
use replikit_benches::load::{self, Pace, Reads, Window};
use replikit_benches::verify::{verify_at, verify_each};
use replikit_benches::workload::{Spread, Workload};
use replikit_core::WriteLevel;

use crate::contest::{Load, VALUE_BYTES};
use crate::groups::GroupKind;
use crate::handles::HandleKind;
use crate::logs::LogKind;
use crate::nats;
use crate::redis;
use crate::sample::Sample;
use crate::{counter, etcd, galera};

/// Keys that are written to.
const KEYS: u32 = 10_000;
/// Connections that many clients share, where they share any; as many as replikit's engines have.
const CONNECTIONS_SHARED: usize = 8;

/// A system under comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Ours: three nodes with one leader, writes at `Quorum`.
    SingleLeader,
    /// Ours: three nodes that all take writes, at `Quorum`.
    MultiLeader,
    /// Redis with two replicas; each client has a connection of its own.
    Redis,
    /// The same, with all clients on few connections: what comes together shares a `WAIT`.
    RedisShared,
    /// etcd with three nodes.
    Etcd,
    /// NATS JetStream with three servers, and a copy of each message in files of each.
    Nats,
    /// MariaDB with Galera, three nodes that all take writes.
    Galera,
    /// A log as a library; ours among them.
    Log(LogKind),
    /// A protocol as a library, three replicas in one thread; ours among them.
    Group(GroupKind),
    /// An async handle of three replicas in this process; ours among them.
    Handle(HandleKind),
}

/// What this program was built of.
const LOCK_FILE: &str = include_str!("../Cargo.lock");

impl System {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleLeader => "replikit single-leader, Quorum",
            Self::MultiLeader => "replikit multi-leader, Quorum",
            Self::Redis => "Redis, WAIT 1",
            Self::RedisShared => "Redis, WAIT 1, connections shared",
            Self::Etcd => "etcd",
            Self::Nats => "NATS JetStream, R3",
            Self::Galera => "MariaDB Galera, three writers",
            Self::Log(LogKind::Replikit) => "replikit-log",
            Self::Log(LogKind::OkayWal) => "okaywal",
            Self::Log(LogKind::RaftEngine) => "raft-engine",
            Self::Group(GroupKind::Replikit) => "replikit single-leader, driven directly",
            Self::Group(GroupKind::RaftRs) => "raft-rs",
            Self::Group(GroupKind::OmniPaxos) => "OmniPaxos",
            Self::Handle(HandleKind::Replikit) => "replikit single-leader, async handle",
            Self::Handle(HandleKind::OpenRaft) => "openraft",
        }
    }

    /// Whether it is one of ours.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        match self {
            Self::SingleLeader
            | Self::MultiLeader
            | Self::Log(LogKind::Replikit)
            | Self::Group(GroupKind::Replikit)
            | Self::Handle(HandleKind::Replikit) => true,
            Self::Redis | Self::RedisShared | Self::Etcd | Self::Nats | Self::Galera => false,
            Self::Log(_) | Self::Group(_) | Self::Handle(_) => false,
        }
    }

    /// Whether it waits for the disk before it acknowledges, in words.
    #[must_use]
    pub const fn syncs(self, load: Load) -> &'static str {
        match (self, load) {
            (_, Load::Appends { syncs: Syncs::Each, .. }) => "yes",
            (_, Load::Appends { syncs: Syncs::Never, .. }) | (Self::Log(_), _) => "no",
            (_, Load::Rounds { .. } | Load::Calls { .. }) | (Self::Group(_) | Self::Handle(_), _) => {
                "no, there is no disk"
            }
            (Self::SingleLeader | Self::MultiLeader | Self::Etcd, _) => "yes, on a majority of the nodes",
            (Self::Galera, _) => "yes, on the node that takes the write; the others have it in memory",
            (Self::Nats, _) => "NO, not by any server: files are synced at intervals of minutes",
            (Self::Redis | Self::RedisShared, _) => {
                "yes, on the primary; on a replica as well, as it is set up, but WAIT does not promise that"
            }
        }
    }

    /// Why it cannot be put under this load on any machine; `None` when it can.
    #[must_use]
    pub const fn cannot(self, load: Load) -> Option<&'static str> {
        match (self, load) {
            (Self::Log(LogKind::OkayWal), Load::Appends { syncs: Syncs::Never, .. }) => {
                Some("it has no commit without fsync")
            }
            _ => None,
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// Why it cannot be measured here.
    pub fn version(self) -> Result<String, String> {
        let locked = |package| locked_version(LOCK_FILE, package).ok_or_else(|| format!("no `{package}` is built in"));
        match self {
            Self::SingleLeader => locked("replikit-single-leader"),
            Self::MultiLeader => locked("replikit-multi-leader"),
            Self::Log(kind) => locked(kind.package()),
            Self::Group(kind) => locked(kind.package()),
            Self::Handle(kind) => locked(kind.package()),
            Self::Redis | Self::RedisShared => program_version(redis::PROGRAM, redis::version_in),
            Self::Etcd => program_version(etcd::PROGRAM, etcd::version_in),
            Self::Nats => program_version(nats::PROGRAM, nats::version_in),
            Self::Galera => match galera::missing() {
                Some(missing) => Err(missing),
                None => program_version(galera::PROGRAM, galera::version_in),
            },
        }
    }

    /// Puts the load on it, newly started with its data below `folder`.
    ///
    /// # Errors
    /// When it does not serve, or the machine refuses.
    pub async fn measure(self, load: Load, folder: &Path, window: Window, seed: u64) -> Result<Sample, BenchError> {
        match (self, load) {
            (Self::Log(kind), Load::Appends { entries, syncs }) => {
                let folder = folder.to_owned();
                blocking(self, move || kind.measure(&folder, entries, syncs, window)).await
            }
            (Self::Group(kind), Load::Rounds { batch }) => blocking(self, move || kind.measure(batch, window)).await,
            (Self::Handle(kind), Load::Calls { clients }) => {
                blocking(self, move || kind.measure(clients, window)).await
            }
            (_, Load::Writes { clients }) => {
                keyed(self.start(folder, clients).await?, Asked::Writes, clients, window, seed).await
            }
            (Self::SingleLeader | Self::Etcd, Load::Reads { clients }) => {
                keyed(self.start(folder, clients).await?, Asked::Reads, clients, window, seed).await
            }
            (Self::MultiLeader | Self::Galera, Load::Adds { clients }) => {
                adds(self.start(folder, clients).await?, clients, window).await
            }
            _ => Err(self.not_made_for(&load.to_string())),
        }
    }

    /// Starts its servers with their data below `folder`, for so many clients.
    async fn start(self, folder: &Path, clients: u32) -> Result<Box<dyn Engine>, BenchError> {
        let clients = clients as usize;
        Ok(match self {
            Self::SingleLeader => EngineKind::SingleLeader.start(folder).await?,
            Self::MultiLeader => EngineKind::MultiLeader.start(folder).await?,
            Self::Redis => Box::new(redis::start(folder, clients).await?),
            Self::RedisShared => Box::new(redis::start(folder, CONNECTIONS_SHARED).await?),
            Self::Etcd => Box::new(etcd::start(folder, CONNECTIONS_SHARED).await?),
            Self::Nats => Box::new(nats::start(folder, CONNECTIONS_SHARED).await?),
            Self::Galera => Box::new(galera::start(folder, clients).await?),
            Self::Log(_) | Self::Group(_) | Self::Handle(_) => return Err(self.not_made_for("clients of servers")),
        })
    }

    fn not_made_for(self, what: &str) -> BenchError {
        BenchError::Usage(format!("{} is not made for {what}", self.name()))
    }
}

/// The version of a package in the text of a lock file.
#[must_use]
pub fn locked_version(lock_file: &str, package: &str) -> Option<String> {
    let (_, behind) = lock_file.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    Some(behind.split_once('"')?.0.to_owned())
}

/// The version that a program prints; the error says how to get the program.
///
/// # Errors
/// When it is not there, fails, or prints no version.
pub fn program_version(program: &str, version_in: fn(&str) -> Option<&str>) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("`{program}` is not in the search path; `cargo xtask bench setup-peers` installs it")
        }
        _ => format!("`{program}` does not start: {error}"),
    })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    match version_in(&printed) {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(format!("`{program} --version` prints no version ({})", output.status)),
    }
}

/// What clients do with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Writes,
    /// Linearizable ones, of keys that were written once.
    Reads,
}

/// Writes or reads by so many clients in a closed loop; what was written is read back afterwards.
async fn keyed(
    mut engine: Box<dyn Engine>,
    asked: Asked,
    clients: u32,
    window: Window,
    seed: u64,
) -> Result<Sample, BenchError> {
    let reads_percent = if asked == Asked::Reads { 100 } else { 0 };
    let workload = Workload { reads_percent, spread: Spread::Uniform, keys: KEYS, value_bytes: VALUE_BYTES };
    let ledger = Rc::new(Ledger::new(KEYS, VALUE_BYTES));
    let target = engine.target(WriteLevel::Quorum, Reads::Linearizable);
    if asked == Asked::Reads {
        load::preload(&ledger, &target, KEYS, VALUE_BYTES).await?;
    }
    let measured = load::run(ledger.clone(), target.clone(), workload, Pace::Closed { clients }, window, seed).await;
    engine.check()?;
    engine.settle().await?;
    let mut verified = match engine.scan_level() {
        Some(level) => verify_at(&ledger, &*target.leader[0], level).await?,
        None => verify_each(&ledger, &*target.leader[0]).await?,
    };
    if let Some(audited) = engine.audited().await? {
        // Overwritten by a write that had not seen it, and told of.
        verified.excuse(&ledger, &audited.conflicts);
    }
    let mut sample = Sample {
        rate: measured.throughput(),
        configuration: engine.configuration(),
        acknowledged: engine.guarantees(WriteLevel::Quorum).acknowledged,
        latencies: if asked == Asked::Reads { measured.reads } else { measured.writes },
        ..Sample::default()
    };
    if measured.refused + measured.failed > 0 {
        let example = measured.failure.unwrap_or_default();
        let (failed, acked) = (measured.refused + measured.failed, measured.writes_ever + measured.reads_ever);
        let share = failed as f64 * 100.0 / (failed + acked) as f64;
        sample.notes.push(format!("{share:.2} % of {} requests failed (for example: {example})", failed + acked));
    }
    if measured.wrong > 0 {
        let told = measured.wrong_told.join("; ");
        sample.wrong.push(format!("{} reads showed what they must not: {told}", measured.wrong));
    }
    if verified.lost + verified.foreign > 0 {
        let told = verified.told.join("; ");
        sample.wrong.push(format!("{} acked writes lost, {} foreign values: {told}", verified.lost, verified.foreign));
    }
    drop(target);
    engine.stop().await?;
    Ok(sample)
}

/// Additions to one counter by so many clients, which must show them afterwards.
async fn adds(mut engine: Box<dyn Engine>, clients: u32, window: Window) -> Result<Sample, BenchError> {
    let sample = counter::add(&mut *engine, clients, window).await?;
    let acknowledged = engine.guarantees(WriteLevel::Quorum).acknowledged;
    let sample = Sample { configuration: engine.configuration(), acknowledged, ..sample };
    engine.stop().await?;
    Ok(sample)
}

/// Measures in a thread that may block. It ends with its window, also where nobody waits for it any more.
async fn blocking(
    system: System,
    measure: impl FnOnce() -> Result<Sample, BenchError> + Send + 'static,
) -> Result<Sample, BenchError> {
    let measured = tokio::task::spawn_blocking(measure).await;
    measured.map_err(|error| BenchError::Engine { engine: system.name().to_owned(), what: error.to_string() })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_crate_is_that_of_the_lock_file() {
        let lock_file = "[[package]]\nname = \"okaywal\"\nversion = \"0.3.1\"\n\n[[package]]\nname = \"okay\"\nversion = \"1.0.0\"\n";
        assert_eq!(locked_version(lock_file, "okaywal").as_deref(), Some("0.3.1"));
        assert_eq!(locked_version(lock_file, "okay").as_deref(), Some("1.0.0"));
        assert_eq!(locked_version(lock_file, "raft-engine"), None);
        for kind in [LogKind::Replikit, LogKind::OkayWal, LogKind::RaftEngine] {
            assert!(System::Log(kind).version().is_ok(), "{kind:?}");
        }
        for kind in [GroupKind::Replikit, GroupKind::RaftRs, GroupKind::OmniPaxos] {
            assert!(System::Group(kind).version().is_ok(), "{kind:?}");
        }
        for kind in [HandleKind::Replikit, HandleKind::OpenRaft] {
            assert!(System::Handle(kind).version().is_ok(), "{kind:?}");
        }
    }

    #[test]
    fn a_program_that_is_absent_says_how_to_get_it() {
        let reason = program_version("replikit-no-such-program", redis::version_in).expect_err("there is none");
        assert!(reason.contains("replikit-no-such-program") && reason.contains("setup-peers"), "{reason}");
    }

    #[test]
    fn a_program_that_prints_no_version_cannot_be_measured() {
        let reason = program_version("true", redis::version_in).expect_err("it prints nothing");
        assert!(reason.contains("no version"), "{reason}");
        let version =
            program_version("cargo", |printed| printed.split_whitespace().nth(1)).expect("it is running this");
        assert!(version.contains('.'), "{version}");
    }
}
