//! Systems: ours and the others, each with its version, what it does before it acknowledges, and how it is put under a load.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use replikit_benches::engine::{Engine, EngineKind};
use replikit_benches::error::BenchError;
use replikit_benches::ledger::Ledger;
use replikit_benches::load::{self, Pace, Reads, Window};
use replikit_benches::verify::verify_each;
use replikit_benches::workload::{Spread, Workload};
use replikit_core::WriteLevel;

use crate::contest::{Load, VALUE_BYTES};
use crate::redis::{self, Redis};
use crate::sample::Sample;

/// Keys that are written to.
const KEYS: u32 = 10_000;
/// Connections that many clients share, where they share any; as many as replikit's engines have.
const CONNECTIONS_SHARED: usize = 8;

/// A system under comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Ours: three nodes with one leader, writes at `Quorum`.
    SingleLeader,
    /// Redis with two replicas; each client has a connection of its own.
    Redis,
    /// The same, with all clients on few connections: what comes together shares a `WAIT`.
    RedisShared,
}

impl System {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleLeader => "replikit single-leader, Quorum",
            Self::Redis => "Redis, WAIT 1",
            Self::RedisShared => "Redis, WAIT 1, connections shared",
        }
    }

    /// Whether it is one of ours.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        match self {
            Self::SingleLeader => true,
            Self::Redis | Self::RedisShared => false,
        }
    }

    /// Whether it waits for the disk before it acknowledges, in words.
    #[must_use]
    pub const fn syncs(self, load: Load) -> &'static str {
        match (self, load) {
            (Self::SingleLeader, Load::Writes { .. }) => "yes, on a majority of the nodes",
            (Self::Redis | Self::RedisShared, Load::Writes { .. }) => {
                "yes, on the primary; on a replica as well, as it is set up, but WAIT does not promise that"
            }
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// Why it cannot be measured here.
    pub fn version(self) -> Result<String, String> {
        match self {
            Self::SingleLeader => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Redis | Self::RedisShared => program_version(redis::PROGRAM, redis::version_in),
        }
    }

    /// Puts the load on it, newly started with its data below `folder`.
    ///
    /// # Errors
    /// When it does not serve, or the machine refuses.
    pub async fn measure(self, load: Load, folder: &Path, window: Window, seed: u64) -> Result<Sample, BenchError> {
        let Load::Writes { clients } = load;
        let engine: Box<dyn Engine> = match self {
            Self::SingleLeader => EngineKind::SingleLeader.start(folder).await?,
            Self::Redis => Box::new(Redis::start(folder, clients as usize).await?),
            Self::RedisShared => Box::new(Redis::start(folder, CONNECTIONS_SHARED).await?),
        };
        writes(engine, clients, window, seed).await
    }
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

/// Writes by so many clients in a closed loop, read back afterwards.
async fn writes(mut engine: Box<dyn Engine>, clients: u32, window: Window, seed: u64) -> Result<Sample, BenchError> {
    let workload = Workload { reads_percent: 0, spread: Spread::Uniform, keys: KEYS, value_bytes: VALUE_BYTES };
    let ledger = Rc::new(Ledger::new(KEYS, VALUE_BYTES));
    let target = engine.target(WriteLevel::Quorum, Reads::Linearizable);
    let measured = load::run(ledger.clone(), target.clone(), workload, Pace::Closed { clients }, window, seed).await;
    engine.check()?;
    let verified = verify_each(&ledger, &*target.leader[0]).await?;
    let mut sample = Sample {
        rate: measured.throughput(),
        configuration: engine.configuration(),
        acknowledged: engine.guarantees(WriteLevel::Quorum).acknowledged,
        latencies: measured.writes,
        ..Sample::default()
    };
    if measured.refused + measured.failed > 0 {
        let example = measured.failure.unwrap_or_default();
        sample.notes.push(format!(
            "{} requests refused, {} failed (for example: {example})",
            measured.refused, measured.failed
        ));
    }
    if verified.lost + verified.foreign > 0 {
        let told = verified.told.join("; ");
        sample.wrong.push(format!("{} acked writes lost, {} foreign values: {told}", verified.lost, verified.foreign));
    }
    drop(target);
    engine.stop().await?;
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

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
