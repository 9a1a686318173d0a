//! Who is found to be down, and who is not.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{NodeId, Time};
use replikit_liveness::{Detector, ProbeError, Settings};

use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);

/// The longest that it may take in a group of so many with nothing else wrong: each is probed once in as many periods as there
/// are others, in an order that is drawn anew each time, so twice that; then the suspicion, and a period for the news.
fn bound(nodes: u32) -> Duration {
    let Settings { probe_period, suspicion, .. } = Settings::default();
    probe_period * (2 * (nodes - 1) + 2) + suspicion
}

/// docs/leaderless.md says so.
#[test]
fn a_group_of_three_finds_a_node_that_hangs_within_1800_ms() {
    assert_eq!(bound(3), Duration::from_millis(1800));
    for seed in 0..50 {
        let mut world = World::new(3, seed);
        world.run(5 * SECOND);
        world.paused.insert(TWO, world.now + 60 * SECOND);
        world.run(Duration::from_millis(1800));
        assert_eq!(world.down()[&ONE], [TWO], "seed {seed}");
        assert_eq!(world.down()[&THREE], [TWO], "seed {seed}");
    }
}

#[test]
fn all_find_a_node_that_has_crashed_and_no_other() {
    for nodes in [3, 5, 9] {
        for seed in 0..20 {
            let mut world = World::new(nodes, seed);
            world.run(5 * SECOND);
            assert!(world.is_all_up());
            world.crash(TWO);
            world.run(bound(nodes));
            for (by, down) in world.down() {
                assert_eq!(down, [TWO], "{nodes} nodes, seed {seed}, by {by}");
            }
        }
    }
}

#[test]
fn a_node_that_was_started_again_is_up_even_if_its_clock_went_back() {
    for generation in [2000, 1] {
        let mut world = World::new(5, 1);
        world.run(5 * SECOND);
        world.crash(TWO);
        world.run(5 * SECOND);
        world.start(TWO, generation);
        world.run(3 * SECOND);
        assert!(world.is_all_up(), "generation {generation}: {:?}", world.down());
    }
}

/// A process that ends and is back before anybody has noticed.
#[test]
fn a_quick_restart_is_not_noticed_as_a_failure() {
    let mut world = World::new(5, 2);
    world.run(5 * SECOND);
    world.crash(TWO);
    world.run(Duration::from_millis(50));
    world.start(TWO, 2000);
    world.run(5 * SECOND);
    assert!(world.is_all_up());
    assert!(world.verdicts.iter().all(|verdict| verdict.up), "{:?}", world.verdicts);
}

#[test]
fn one_cut_link_makes_nobody_dead() {
    let mut world = World::new(5, 3);
    world.run(2 * SECOND);
    world.cut.extend([(ONE, TWO), (TWO, ONE)]);
    world.run(60 * SECOND);
    assert!(world.verdicts.iter().all(|verdict| verdict.up), "{:?}", world.verdicts);
}

#[test]
fn a_node_whose_answers_are_swallowed_is_down() {
    let mut world = World::new(5, 4);
    world.run(2 * SECOND);
    world.cut.extend((1..=5).filter(|to| *to != 2).map(|to| (TWO, NodeId(to))));
    world.run(bound(5));
    for by in [1, 3, 4, 5] {
        assert_eq!(world.down()[&NodeId(by)], [TWO]);
    }
}

#[test]
fn after_a_netsplit_has_healed_everybody_is_up() {
    let mut world = World::new(5, 5);
    world.run(2 * SECOND);
    world.split(&[ONE, TWO]);
    world.run(20 * SECOND);
    assert_eq!(world.down()[&ONE], [THREE, NodeId(4), NodeId(5)]);
    assert_eq!(world.down()[&THREE], [ONE, TWO]);
    world.cut.clear();
    world.run(5 * SECOND);
    assert!(world.is_all_up(), "{:?}", world.down());
}

/// Wakes up with all its timers overdue and the answers of all others still unread.
#[test]
fn a_node_that_stood_still_accuses_nobody() {
    let mut world = World::new(5, 6);
    world.run(5 * SECOND);
    world.paused.insert(TWO, world.now + 10 * SECOND);
    world.run(9 * SECOND);
    assert_eq!(world.down()[&ONE], [TWO]);
    world.run(6 * SECOND);
    assert!(world.is_all_up(), "{:?}", world.down());
    assert!(world.verdicts.iter().all(|verdict| verdict.by != TWO || verdict.up), "{:?}", world.verdicts);
}

#[test]
fn loss_of_a_tenth_of_all_probes_makes_nobody_dead() {
    let mut world = World::new(5, 7);
    world.run(2 * SECOND);
    world.loss_percent = 10;
    world.run(120 * SECOND);
    assert!(world.verdicts.iter().all(|verdict| verdict.up), "{:?}", world.verdicts);
}

/// One node gets the processor a quarter of a second too late, each time.
#[test]
fn a_node_that_is_always_late_waits_longer_and_accuses_nobody() {
    let mut world = World::new(5, 8);
    world.late.insert(TWO, Duration::from_millis(250));
    world.run(60 * SECOND);
    assert!(world.nodes[&TWO].health() > 0);
    assert!(world.verdicts.iter().all(|verdict| verdict.by != TWO || verdict.up), "{:?}", world.verdicts);
    world.late.clear();
    world.run(60 * SECOND);
    assert_eq!(world.nodes[&TWO].health(), 0, "it does well again");
}

/// One probe and its answer for each node and period, and the news in between: what the settings say that it costs.
#[test]
fn a_quiet_group_sends_few_messages() {
    let mut world = World::new(5, 9);
    world.run(10 * SECOND);
    let before = world.sent;
    world.run(10 * SECOND);
    let periods = 10_000 / 200;
    assert!((world.sent - before) <= 5 * periods * 5, "{}", world.sent - before);
}

#[test]
fn what_is_no_probe_changes_nothing_and_is_told() {
    let nodes = [ONE, TWO];
    let mut detector = Detector::new(ONE, &nodes, 1, Settings::default()).expect("the defaults work");
    detector.start(Time::ZERO);
    while detector.poll().is_some() {}
    let mut random = Rng::with_seed(10);
    let mut told = 0;
    for length in 0..2000 {
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        told += u32::from(detector.handle(Time::ZERO, &bytes) == Err(ProbeError));
        assert_eq!(detector.poll(), None);
    }
    assert!(told > 1990, "{told}");
}

/// Nobody makes a node remember others than those of its group.
#[test]
fn a_probe_of_a_stranger_is_refused() {
    let mut stranger = Detector::new(THREE, &[ONE, TWO], 1, Settings::default()).expect("the defaults work");
    stranger.start(Time::ZERO);
    let said = core::iter::from_fn(|| stranger.poll());
    let probes: Vec<_> = said
        .filter_map(|said| if let replikit_liveness::Said::Send(_, probe) = said { Some(probe) } else { None })
        .collect();
    assert_eq!(probes.len(), 2);
    let mut detector = Detector::new(ONE, &[ONE, TWO], 1, Settings::default()).expect("the defaults work");
    detector.start(Time::ZERO);
    for probe in probes {
        assert_eq!(detector.handle(Time::ZERO, &probe), Err(ProbeError));
    }
}

#[test]
fn the_same_seed_says_the_same() {
    let run = || {
        let mut world = World::new(5, 11);
        world.loss_percent = 30;
        world.run(30 * SECOND);
        (world.verdicts, world.sent)
    };
    assert_eq!(run(), run());
}

#[test]
fn settings_that_cannot_work_are_refused_in_one_line() {
    let settings = Settings { probe_timeout: SECOND, ..Settings::default() };
    let error = Detector::new(ONE, &[TWO], 1, settings).expect_err("longer than the period");
    assert!(!error.to_string().contains('\n') && error.to_string().contains("probe_timeout 1s"), "{error}");
}
