//! Every scenario under every fault that its storage can play.

use core::time::Duration;

use replikit_core::{GroupId, NodeId, Time};
use replikit_sim::register::{Register, RegisterWorkload, Stamp};
use replikit_sim::{Fault, FaultCounts, LogStorage, ModelStorage, Replicas, Settings, WorkloadSettings, World};
use replikit_swarm::placed::{OfLeaderless, OfLeaders};
use replikit_swarm::{
    Plan, Probe, Probes, Scenario, Telling, groups, leaderless, multi, partitioned, placed, raft, register,
    unreachable_probes,
};

/// Too rare for a few hundred seeds; long runs must meet them.
const RARE: [Fault; 10] = [
    Fault::SyncLied,
    Fault::WriteMisdirected,
    Fault::ReadMisdirected,
    Fault::WriteLost,
    Fault::RegisterRot,
    Fault::SnapshotRot,
    Fault::EntryLost,
    Fault::TailRot,
    Fault::TailLost,
    Fault::Helical,
];

/// Runs the seeds; every one must be clean. Returns what they met.
fn all_clean(scenario: Scenario, seeds: core::ops::Range<u64>) -> (FaultCounts, Probes) {
    let (mut met, mut probes) = (FaultCounts::default(), Probes::default());
    let (count, mut answered) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        let run = scenario(&Plan::draw(seed), Telling::Silent).unwrap_or_else(|failure| panic!("{failure}"));
        met.add_met(&run.counts);
        probes.add(&run.probes);
        answered += run.answered as u64;
    }
    assert!(answered > count * 100, "an idle run proves nothing: {answered} operations in {count} seeds");
    (met, probes)
}

fn same_twice(scenario: Scenario) {
    let run = |seed| scenario(&Plan::draw(seed), Telling::Silent).unwrap_or_else(|failure| panic!("{failure}"));
    for seed in 1..6 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).fingerprint, run(2).fingerprint);
}

#[test]
fn raft_keeps_its_invariants_and_meets_every_fault_and_state() {
    let (mut met, mut probes) = all_clean(raft::run::<ModelStorage>, 0..400);
    let of_the_log = all_clean(raft::run::<LogStorage>, 0..320);
    for &fault in Fault::OF_THE_DISK {
        assert_eq!(met[fault], 0, "{fault:?} is not among the model's");
    }
    met.add(&of_the_log.0);
    probes.add(&of_the_log.1);
    let unmet: Vec<_> = Fault::ALL.iter().filter(|&fault| met[*fault] == 0 && !RARE.contains(fault)).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
    let beyond = unreachable_probes("raft-log");
    let met = |probe: &Probe| probes.count(*probe) > 0 || beyond.contains(probe);
    let unmet: Vec<_> = Probe::ALL.iter().filter(|probe| !met(probe)).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn replicas_that_all_take_writes_show_what_a_model_of_all_writes_says() {
    let (_, mut probes) = all_clean(multi::run::<ModelStorage>, 0..200);
    probes.add(&all_clean(multi::run::<LogStorage>, 0..20).1);
    let unmet: Vec<_> = Probe::OF_MANY_LEADERS.iter().filter(|&&probe| probes.count(probe) == 0).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn quorums_of_equal_owners_show_what_a_model_of_all_writes_says() {
    let (_, mut probes) = all_clean(leaderless::run::<ModelStorage>, 0..100);
    probes.add(&all_clean(leaderless::run::<LogStorage>, 0..30).1);
    let unmet: Vec<_> = Probe::OF_QUORUMS.iter().filter(|&&probe| probes.count(probe) == 0).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn what_is_kept_for_owners_stays_until_they_have_it() {
    let (_, probes) = all_clean(leaderless::hints::run::<ModelStorage>, 0..60);
    let unmet: Vec<_> = Probe::OF_HINTS.iter().filter(|&&probe| probes.count(probe) == 0).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn every_key_of_a_register_is_linearizable_whatever_fails() {
    all_clean(register::run::<ModelStorage>, 0..200);
    all_clean(register::run::<LogStorage>, 0..100);
}

#[test]
fn groups_of_registers_share_a_storage_and_keep_every_promise() {
    all_clean(groups::registers::<ModelStorage>, 0..100);
}

#[test]
fn groups_of_raft_share_a_storage_and_keep_every_promise() {
    all_clean(groups::rafts::<ModelStorage>, 0..100);
    all_clean(groups::rafts::<LogStorage>, 0..100);
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    same_twice(register::run::<ModelStorage>);
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

#[test]
fn a_partitioned_store_keeps_its_invariants_and_meets_every_step_of_a_handoff() {
    let (_, probes) = all_clean(partitioned::run::<ModelStorage>, 0..80);
    let unmet: Vec<_> = Probe::OF_PARTITIONS.iter().filter(|probe| probes.count(**probe) == 0).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn runs_of_a_partitioned_store_depend_on_nothing_but_the_seed() {
    same_twice(partitioned::run::<ModelStorage>);
}

#[test]
fn groups_that_are_placed_anew_lose_nothing_and_end_where_the_map_names_them() {
    let (_, mut probes) = all_clean(placed::run::<OfLeaderless, ModelStorage>, 0..60);
    probes.add(&all_clean(placed::run::<OfLeaderless, LogStorage>, 0..20).1);
    let unmet: Vec<_> = Probe::OF_PLACEMENTS.iter().filter(|probe| probes.count(**probe) == 0).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}

#[test]
fn runs_of_placed_groups_depend_on_nothing_but_the_seed() {
    same_twice(placed::run::<OfLeaderless, ModelStorage>);
    same_twice(placed::run::<OfLeaders, ModelStorage>);
}

#[test]
fn multi_leader_groups_that_are_placed_anew_hand_over_everything_and_agree() {
    let (_, mut probes) = all_clean(placed::run::<OfLeaders, ModelStorage>, 0..60);
    probes.add(&all_clean(placed::run::<OfLeaders, LogStorage>, 0..20).1);
    let unreachable = unreachable_probes("placed-leaders");
    let met = |probe: &Probe| probes.count(*probe) > 0 || unreachable.contains(probe);
    let unmet: Vec<_> = Probe::OF_PLACEMENTS.iter().filter(|probe| !met(probe)).collect();
    assert!(unmet.is_empty(), "{unmet:?} were never met");
}
