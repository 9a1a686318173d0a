//! Groups of three replicas in one thread, with their logs in memory: the protocols alone, driven by the same closed rounds.
//!
//! Invariants: a round ends when all three replicas have applied its commands; at the end of a run all of them have applied the
//! proposed commands in the order in which they were proposed.

mod omni_paxos;
mod raft_rs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_benches::error::BenchError;
use replikit_benches::load::Window;
use replikit_benches::protocol::{self, Counting};
use replikit_benches::recorder::Latencies;
use replikit_core::StateMachine;
use replikit_single_leader::Raft;

use self::omni_paxos::OmniPaxos;
use self::raft_rs::RaftRs;
use crate::sample::Sample;
use crate::tally::{self, Machine, REPLICAS, Tallies, Tally};

/// Commands that are told apart; then they come again.
const COMMANDS: usize = 1_024;
/// One round in so many is timed by itself: to look at the clock takes a good part of a short round.
const ROUNDS_TIMED_EVERY: usize = 16;
/// Commands behind the last one that stay in a peer's log before it is told to forget them.
const KEPT: u64 = 1 << 16;

/// A protocol to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupKind {
    /// Ours.
    Replikit,
    /// The crate `raft`.
    RaftRs,
    /// The crate `omnipaxos`.
    OmniPaxos,
}

/// Three replicas, one of which leads.
trait Group {
    /// Proposes commands to the leader, and runs until no replica has anything left to do.
    fn round(&mut self, commands: &[Bytes]) -> Result<(), String>;
}

impl<M: StateMachine> Group for protocol::Group<Raft<Counting<M>>> {
    fn round(&mut self, commands: &[Bytes]) -> Result<(), String> {
        Self::round(self, commands.iter().cloned());
        Ok(())
    }
}

impl GroupKind {
    /// The crate that it is in.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Replikit => "replikit-single-leader",
            Self::RaftRs => "raft",
            Self::OmniPaxos => "omnipaxos",
        }
    }

    /// How it is set up.
    fn configuration(self) -> BTreeMap<String, String> {
        let own = match self {
            Self::Replikit => vec![("settings", "every one its default")],
            Self::RaftRs => vec![
                ("storage", "the crate's MemStorage, compacted every 65,536 commands"),
                ("max_size_per_msg", "1 MiB"),
                ("max_inflight_msgs", "256"),
                ("batch_append", "true"),
                ("codec", "protobuf-codec, which shares payloads instead of copying them"),
                ("proposals", "one MsgPropose for all commands of a round"),
            ],
            Self::OmniPaxos => vec![
                ("storage", "MemoryStorage of omnipaxos_storage, trimmed every 65,536 commands"),
                ("batch_size", "1, its default"),
                ("commands", "shared, not copied"),
                ("proposals", "append for each command, then the messages of all"),
            ],
        };
        let all = [("replicas", "3 in one thread; messages are handed over as they are; logs in memory")];
        all.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn start(self, tallies: &Tallies) -> Result<Box<dyn Group>, String> {
        Ok(match self {
            Self::Replikit => {
                let machines = std::cell::RefCell::new(tallies.iter().cloned().map(Machine));
                let next = || machines.borrow_mut().next().expect("there are as many replicas on each side");
                Box::new(protocol::raft(next).0)
            }
            Self::RaftRs => Box::new(RaftRs::start(tallies)?),
            Self::OmniPaxos => Box::new(OmniPaxos::start(tallies)?),
        })
    }

    /// Puts closed rounds of so many commands on a new group for the time of a window. Blocks.
    ///
    /// # Errors
    /// When the protocol fails, or a round ends without having been applied everywhere.
    pub fn measure(self, batch: usize, window: Window) -> Result<Sample, BenchError> {
        let failed = |what| BenchError::Engine { engine: self.package().to_owned(), what };
        let tallies = Tallies::default();
        let mut group = self.start(&tallies).map_err(failed)?;
        let commands: Vec<Bytes> = (0..COMMANDS.next_multiple_of(batch) as u64).map(tally::command).collect();
        let mut batches = commands.chunks(batch).cycle();
        let mut run = |time| rounds(&mut *group, &mut batches, &tallies, time);
        run(window.warm_up).map_err(failed)?;
        let rounds = run(window.measured).map_err(failed)?;
        let expected = Tally::default();
        commands.iter().cycle().take(tallies[0].applied().count as usize).for_each(|command| expected.apply(command));
        Ok(Sample {
            rate: (rounds.count * batch) as f64 / rounds.took.as_secs_f64(),
            latencies: rounds.latencies,
            configuration: self.configuration(),
            acknowledged: "in the memory of all three replicas, and applied by them".to_owned(),
            wrong: tally::differing(&tallies, expected.applied()),
            ..Sample::default()
        })
    }
}

/// Rounds that were run one behind the other.
struct Rounds {
    count: usize,
    took: Duration,
    latencies: Latencies,
}

fn rounds<'a>(
    group: &mut dyn Group,
    batches: &mut impl Iterator<Item = &'a [Bytes]>,
    tallies: &Tallies,
    time: Duration,
) -> Result<Rounds, String> {
    let applied = || tallies.each_ref().map(|tally| tally.applied().count);
    let (mut proposed, mut count, mut latencies) = (applied()[0], 0, Latencies::new());
    let start = Instant::now();
    while start.elapsed() < time {
        let begun = Instant::now();
        for number in 0..ROUNDS_TIMED_EVERY {
            let commands = batches.next().expect("they come again and again");
            group.round(commands)?;
            proposed += commands.len() as u64;
            if number == 0 {
                latencies.record(begun.elapsed());
            }
        }
        count += ROUNDS_TIMED_EVERY;
        if applied() != [proposed; REPLICAS] {
            return Err(format!("the replicas have applied {:?} of {proposed} commands", applied()));
        }
    }
    Ok(Rounds { count, took: start.elapsed(), latencies })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { warm_up: Duration::from_millis(5), measured: Duration::from_millis(20) };

    #[test]
    fn every_group_applies_what_is_proposed_in_its_order() {
        for kind in [GroupKind::Replikit, GroupKind::RaftRs, GroupKind::OmniPaxos] {
            for batch in [1, 64, 1_000] {
                let sample = kind.measure(batch, WINDOW).expect("the protocol works");
                assert!(sample.wrong.is_empty(), "{kind:?}: {:?}", sample.wrong);
                assert!(sample.rate > 0.0 && sample.latencies.count() > 0, "{kind:?}: {sample:?}");
            }
        }
    }

    #[test]
    fn peers_forget_what_lies_far_back_and_go_on() {
        for kind in [GroupKind::RaftRs, GroupKind::OmniPaxos] {
            let tallies = Tallies::default();
            let mut group = kind.start(&tallies).expect("it has a leader");
            let commands: Vec<Bytes> = (0..1_000).map(tally::command).collect();
            for _ in 0..3 * KEPT / 1_000 {
                group.round(&commands).expect("the protocol works");
            }
            let count = 3 * KEPT / 1_000 * 1_000;
            let applied = tallies.each_ref().map(|tally| tally.applied());
            assert_eq!(applied, [applied[0]; REPLICAS], "{kind:?}");
            assert_eq!(applied[0].count, count, "{kind:?}");
        }
    }
}
