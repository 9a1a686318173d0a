//! Users' machines in the simulator: each kind of mistake is found, and a correct machine passes.

#[allow(dead_code, reason = "its main function is the example's")]
#[path = "../../examples/scenario.rs"]
mod raffle;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use replikit_core::keyspace::{self, Keyspace};
use replikit_core::{BytesSource, LogIndex, RestoreError, Small, SnapshotSource, StateMachine, WriteOp, WriteRequest};
use replikit_sim::{LogStorage, Scenario, ScenarioNode, Violation, Watched};
use replikit_single_leader::{Config, Raft};

/// A replica whose followers are brought up by snapshots in some runs.
fn raft<M: StateMachine>(node: ScenarioNode, machine: Watched<M>) -> Raft<Watched<M>> {
    let mut config = Config::new(node.cluster, node.group, node.node, node.members, node.seed);
    config.limits.snapshot_log_bytes = 1 << (6 + node.run_seed % 8);
    config.limits.snapshot_piece_bytes = 1 << (3 + node.run_seed / 8 % 7);
    Raft::new(config, &node.boot, machine).expect("the knobs are in range")
}

fn sum() -> impl StateMachine {
    let apply = |sum: &mut u64, command: &[u8]| {
        *sum += command.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        sum.to_le_bytes().to_vec()
    };
    Small::new(0_u64, apply, |sum, _| sum.to_le_bytes().to_vec())
}

/// A machine of hooks: what each test makes wrong.
#[derive(Default)]
struct Faulty {
    sum: u64,
    applied: u64,
    wrong: Option<Wrong>,
    asked: AtomicU64,
    incoming: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// A reply that depends on what only this process knows.
    Reply,
    /// A query that leaves a trace.
    Query,
    /// A part of the state that is not in the snapshot.
    Snapshot,
    /// A command that it cannot bear.
    Panic,
    /// It refuses its own snapshots.
    Refusal,
}

static PROCESS: AtomicU64 = AtomicU64::new(0);

impl StateMachine for Faulty {
    fn apply(&mut self, _: LogIndex, command: &[u8]) -> Bytes {
        assert!(self.wrong != Some(Wrong::Panic) || command.len() < 15, "a long command");
        self.sum += command.len() as u64;
        self.applied += 1;
        let own = if self.wrong == Some(Wrong::Reply) { PROCESS.fetch_add(1, Ordering::Relaxed) } else { self.sum };
        Bytes::copy_from_slice(&own.to_le_bytes())
    }

    fn query(&self, _: &[u8], _: usize) -> Bytes {
        let asked = if self.wrong == Some(Wrong::Query) { self.asked.fetch_add(1, Ordering::Relaxed) } else { 0 };
        Bytes::copy_from_slice(&(self.applied + asked).to_le_bytes())
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        let mut bytes = self.sum.to_le_bytes().to_vec();
        if self.wrong != Some(Wrong::Snapshot) {
            bytes.extend(self.applied.to_le_bytes());
        }
        Box::new(BytesSource::new(bytes.into()))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        self.incoming.extend_from_slice(chunk);
        if last {
            let bytes = core::mem::take(&mut self.incoming);
            let number =
                |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
            self.sum = number(0).ok_or(RestoreError { what: "too short" })?;
            self.applied = number(8).unwrap_or_default();
            if self.wrong == Some(Wrong::Refusal) {
                return Err(RestoreError { what: "it would not" });
            }
        }
        Ok(())
    }
}

fn found(wrong: Wrong) -> Violation {
    let machine = move || Faulty { wrong: Some(wrong), ..Faulty::default() };
    Scenario::new(machine, raft).run(0..50).expect_err("the machine is wrong")
}

#[track_caller]
fn says(violation: &Violation, what: &str) {
    assert!(violation.what.contains(what), "{violation}");
}

#[test]
fn the_example_finds_the_machine_that_is_not_deterministic_and_passes_the_corrected_one() {
    let violation = raffle::run_careless(20).expect_err("its winners depend on the process");
    says(&violation, "the same log led to states");
    let report = raffle::run_careful(20).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.seeds, 20);
    assert!(report.acked > 2_000 && report.restored > 20, "{report:?}");
}

#[test]
fn a_correct_machine_passes_on_the_model_and_on_the_real_log() {
    let scenario = Scenario::new(sum, raft);
    let report = scenario.run(0..40).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(report.acked > 4_000 && report.answered > 1_000 && report.restored > 20, "{report:?}");
    let report = scenario.run_on::<LogStorage>(0..20).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(report.acked > 1_000, "{report:?}");
}

#[test]
fn the_ready_made_keyspace_passes() {
    let scenario = Scenario::new(Keyspace::new, raft)
        .commands(|rng| {
            let op = match rng.u8(0..4) {
                0 => WriteOp::Delete,
                1 => WriteOp::Add { delta: rng.i64(-3..3) },
                2 => WriteOp::CompareAndSet { expected: None, new: Some("new".into()) },
                _ => WriteOp::Put { value: rng.u8(..).to_string().into() },
            };
            let mut write = WriteRequest::delete(vec![b'k', rng.u8(0..9)]);
            write.op = op;
            keyspace::encode_write(&write).expect("a small write")
        })
        .queries(|rng| keyspace::encode_get(&[b'k', rng.u8(0..9)]).expect("a small key"));
    scenario.run(0..20).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn a_reply_that_differs_from_replica_to_replica_is_found() {
    says(&found(Wrong::Reply), "was answered");
}

#[test]
fn a_query_that_leaves_a_trace_is_found() {
    says(&found(Wrong::Query), "the same state answers queries by");
}

#[test]
fn a_snapshot_that_forgets_a_part_of_the_state_is_found() {
    says(&found(Wrong::Snapshot), "restored from its snapshot: the same state answers queries by");
}

#[test]
fn a_machine_that_refuses_its_own_snapshot_is_found() {
    says(&found(Wrong::Refusal), "refused: it would not");
}

#[test]
fn a_panic_is_a_violation_that_names_the_command_and_the_seed_shows_it_again() {
    let violation = found(Wrong::Panic);
    says(&violation, "panicked while it applied index");
    says(&violation, "a long command");
    let again = Scenario::new(|| Faulty { wrong: Some(Wrong::Panic), ..Faulty::default() }, raft)
        .run(violation.seed..violation.seed + 1);
    assert_eq!(again, Err(violation));
}

#[test]
fn an_invariant_of_the_users_is_checked_on_every_state() {
    let machine = || Faulty::default();
    let violation = Scenario::new(machine, raft)
        .invariant(|machine| if machine.sum < 100 { Ok(()) } else { Err(format!("the sum is {}", machine.sum)) })
        .run(0..5)
        .expect_err("sums grow");
    says(&violation, "the invariant does not hold: the sum is 1");
}

#[test]
fn the_same_seeds_give_the_same_report() {
    let run = || Scenario::new(sum, raft).nodes(5).clients(2).run(3..6);
    assert_eq!(run(), run());
}
