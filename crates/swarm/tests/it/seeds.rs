//! Every scenario under every fault that the storage model can play.

use core::time::Duration;

use replikit_core::{GroupId, NodeId, Time};
use replikit_sim::register::{Register, RegisterWorkload, Stamp};
use replikit_sim::{Fault, FaultCounts, LogStorage, ModelStorage, Replicas, Settings, WorkloadSettings, World};

use replikit_swarm::{Scenario, Telling, groups, raft, register};

/// What only the real log can meet.
const OF_THE_LOG: [Fault; 3] = [Fault::CrashAmidOpening, Fault::TailCut, Fault::WriteFailed];

/// Runs the seeds; every one must be clean, and together they must have met every fault that the storage can play.
fn all_clean(scenario: Scenario, seeds: core::ops::Range<u64>, beyond: &[Fault]) {
    let mut met = FaultCounts::default();
    let (count, mut answered) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        let run = scenario(seed, Telling::Silent).unwrap_or_else(|violation| panic!("{violation}"));
        met.add_met(&run.counts);
        answered += run.answered as u64;
    }
    assert!(answered > count * 100, "an idle run proves nothing: {answered} operations in {count} seeds");
    for &fault in Fault::ALL {
        assert_eq!(met[fault] > 0, !beyond.contains(&fault), "{fault:?} was met by {} runs", met[fault]);
    }
}

fn same_twice(scenario: Scenario) {
    let run = |seed| scenario(seed, Telling::Silent).expect("clean");
    for seed in 1..6 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).fingerprint, run(2).fingerprint);
}

#[test]
fn every_key_of_a_register_is_linearizable_whatever_fails() {
    all_clean(register::run::<ModelStorage>, 0..300, &OF_THE_LOG);
}

#[test]
fn raft_keeps_its_invariants_and_loses_nothing_whatever_fails() {
    all_clean(raft::run::<ModelStorage>, 0..300, &OF_THE_LOG);
}

#[test]
fn groups_of_registers_share_a_storage_and_keep_every_promise() {
    all_clean(groups::registers::<ModelStorage>, 0..200, &OF_THE_LOG);
}

#[test]
fn groups_of_raft_share_a_storage_and_keep_every_promise() {
    all_clean(groups::rafts::<ModelStorage>, 0..200, &OF_THE_LOG);
}

#[test]
fn a_register_on_the_real_log_survives_the_loss_of_power() {
    all_clean(register::run::<LogStorage>, 0..200, &[]);
}

#[test]
fn raft_on_the_real_log_survives_the_loss_of_power() {
    all_clean(raft::run::<LogStorage>, 0..200, &[]);
}

#[test]
fn groups_of_raft_on_one_real_log_survive_the_loss_of_power() {
    all_clean(groups::rafts::<LogStorage>, 0..200, &[]);
}

#[test]
fn a_seed_of_the_register_gives_the_same_run_twice() {
    same_twice(register::run::<ModelStorage>);
}

#[test]
fn a_seed_of_raft_gives_the_same_run_twice() {
    same_twice(raft::run::<ModelStorage>);
    same_twice(groups::rafts::<LogStorage>);
}

fn newest(world: &World<Register>, nodes: u32) -> Vec<Vec<(String, Stamp)>> {
    let replicas = world.replicas();
    (1..=nodes)
        .filter_map(|node| replicas.replica(NodeId(node)))
        .map(|replica| replica.records().map(|(key, stamp)| (format!("{key:?}"), stamp)).collect())
        .collect()
}

#[test]
fn a_calm_cluster_answers_every_operation_and_its_replicas_agree() {
    let mut world: World<Register> = register::world(1, Settings::calm(3), 50);
    let mut clients = RegisterWorkload::new(WorkloadSettings::default(), 3, GroupId(1));
    world.run_until(Time::ZERO + Duration::from_secs(1), &mut clients).expect("clean");
    clients.stop();
    assert!(world.run_while(Duration::from_secs(1), &mut clients, |_, clients| clients.is_idle()).expect("clean"));
    // What is still under way to the slowest node.
    world.run_until(world.now() + Duration::from_millis(50), &mut clients).expect("clean");
    assert_eq!(clients.history().answered(), clients.history().operations().len());
    assert!(clients.history().answered() > 500);
    let newest = newest(&world, 3);
    assert!(newest.len() == 3 && newest.iter().all(|one| *one == newest[0]), "{newest:?}");
}

/// Found here: a group of one whose log was torn waited for ever for the votes of nobody.
#[test]
fn a_group_of_one_whose_log_was_torn_leads_again() {
    groups::rafts::<LogStorage>(14, Telling::Silent).expect("clean");
}
