//! The handoff under every fault: crashes of either side between any two steps, aborts at any time, whatever may happen to messages.
//! What clients saw is held against I2 to I6 and I8 of research section 4.10.

mod world;

use std::collections::BTreeMap;

use super::*;
use replikit_core::NodeId;
use world::{Answered, Faults, KEYS, World};

/// I3 and I4: each acknowledged value is there once, and what was read and written fits one order that keeps to real time. With lists
/// of distinct values this is decided by looking: a read is the beginning of the final list, and all that ended before another began
/// comes before it.
fn check_history(world: &World) {
    for key in KEYS {
        let owner = world.map().route(key).group;
        let list = world.groups[owner.0 as usize - 1].list(key);
        let mut distinct = list.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), list.len(), "a value of {key:?} was put twice: {list:?}");
        // How many values are there at the least once it was answered, and at the most when it began.
        let place = |it: &Answered| match it.value {
            Some(value) => {
                let at = list.iter().position(|other| *other == value);
                let at = at.unwrap_or_else(|| panic!("acknowledged value {value} of {key:?} is lost: {list:?}"));
                (at + 1, at)
            }
            None => {
                assert!(list.starts_with(&it.read), "{:?} was read of {key:?}, which is {list:?}", it.read);
                (it.read.len(), it.read.len())
            }
        };
        let mut of_key: Vec<_> = world.answered.iter().filter(|it| it.key == key).collect();
        of_key.sort_by_key(|it| it.ended);
        for (nth, later) in of_key.iter().enumerate() {
            for earlier in of_key[..nth].iter().filter(|it| it.ended < later.begun) {
                assert!(place(earlier).0 <= place(later).1, "{earlier:?} was over before {later:?} began: {list:?}");
            }
        }
    }
}

/// Everything is clean, each partition is where the map says, and the log alone makes the same state.
fn check_rest(world: &World) {
    let map = world.map();
    for group in &world.groups {
        let held: Vec<_> = group.holdings.held().map(|(id, held)| (id, held.entry.bounds, held.phase)).collect();
        let wanted: Vec<_> = map.of_group(group.id).map(|it| (it.id, it.bounds, Phase::Serving)).collect();
        assert_eq!(held, wanted, "of group {}", group.id);
        assert_eq!(group.holdings.all_staged().count(), 0);
        for key in KEYS {
            assert!(map.route(key).group == group.id || group.list(key).is_empty(), "{key:?} was left behind");
        }
    }
}

fn finish(mut world: World) -> World {
    world.settle();
    check_history(&world);
    check_rest(&world);
    world
}

fn run(seed: u64, steps: usize, faults: Faults) -> World {
    let mut world = World::new(seed, faults);
    for _ in 0..steps {
        world.step();
    }
    finish(world)
}

const HARSH: Faults = Faults { lose_one_in: 8, double_one_in: 8, crash_one_in: 4, abort_one_in: 30, compact_one_in: 6 };

/// Seeds of a test run; more by `HANDOFF_SEEDS`.
fn seeds() -> u64 {
    std::env::var("HANDOFF_SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(300)
}

#[test]
fn nothing_is_lost_doubled_or_served_twice_whatever_happens() {
    let (mut planned, mut committed, mut aborted, mut answered) = (0, 0, 0, 0);
    for seed in 0..seeds() {
        let faults = match seed % 4 {
            0 => Faults { crash_one_in: usize::MAX, ..HARSH },
            1 => Faults { lose_one_in: usize::MAX, double_one_in: usize::MAX, abort_one_in: usize::MAX, ..HARSH },
            2 => Faults { abort_one_in: usize::MAX, crash_one_in: 20, lose_one_in: 3, ..HARSH },
            _ => HARSH,
        };
        let world = run(seed, 1_500, faults);
        planned += world.planned;
        committed += world.committed;
        aborted += world.aborted;
        answered += world.answered.len();
    }
    println!("{planned} handoffs planned, {committed} committed, {aborted} aborted, {answered} requests answered");
    assert!(committed > seeds() as usize && aborted > seeds() as usize / 4, "the faults leave room for both");
}

/// Runs one handoff with clients, calmly, with an interruption before one of the steps.
fn interrupted(seed: u64, at: usize, interrupt: impl Fn(&mut World)) -> (World, usize) {
    let mut world = World::new(seed, Faults::NONE);
    for _ in 0..200 {
        world.step();
    }
    // The steps before have planned by themselves; what is measured begins at rest.
    world.settle();
    world.busy = true;
    let target = world.map().partition_of(KEYS[0]).group.0 % 3 + 1;
    world.plan(1, target);
    let planned = world.planned;
    for step in 0.. {
        if step == at {
            interrupt(&mut world);
        }
        let over = world.map().handoffs().count() == 0 || world.planned > planned;
        if over || step > 5_000 {
            return (finish(world), step);
        }
        world.step();
    }
    unreachable!("the loop returns")
}

#[test]
fn a_crash_of_either_side_before_every_step_does_no_harm() {
    for seed in 0..6 {
        let (_, steps) = interrupted(seed, usize::MAX, |_| ());
        for at in 0..steps.min(400) {
            for which in [&[0][..], &[1], &[2], &[0, 1, 2]] {
                interrupted(seed, at, |world| which.iter().for_each(|group| world.crash(*group)));
            }
        }
    }
}

#[test]
fn an_abort_before_every_step_is_taken_or_comes_too_late() {
    let (mut aborted, mut late) = (0, 0);
    for seed in 0..6 {
        let (_, steps) = interrupted(seed, usize::MAX, |_| ());
        for at in 0..steps.min(400) {
            let (world, _) = interrupted(seed, at, World::abort);
            aborted += usize::from(world.aborted > 0);
            late += usize::from(world.aborted == 0);
        }
    }
    assert!(aborted > 50 && late > 50, "{aborted} aborted, {late} too late");
}

#[test]
fn without_faults_everything_is_copied_once() {
    let mut handoffs = 0;
    for seed in 0..50 {
        let world = run(seed, 2_000, Faults::NONE);
        let records = || {
            world.groups.iter().flat_map(|group| &group.log).filter_map(|entry| match entry {
                world::Entry::Record(record) => Some(record),
                world::Entry::Append(_) => None,
            })
        };
        // I8: one snapshot each, and of the log behind it each entry once.
        let mut staged: BTreeMap<HandoffId, LogIndex> = BTreeMap::new();
        for record in records() {
            match record {
                Record::Stage { handoff, at, .. } => assert_eq!(staged.insert(*handoff, *at), None),
                Record::Tail { handoff, after, to, .. } => assert_eq!(staged.insert(*handoff, *to), Some(*after)),
                _ => {}
            }
        }
        handoffs += staged.len();
    }
    assert!(handoffs > 50);
}

fn one_partition() -> (PartitionMapOf, Holdings) {
    let groups = [(GroupId(1), vec![NodeId(1)])];
    let map = crate::map::PartitionMap::first(crate::partitioner::Scheme::KEY_ORDER, [], groups).expect("it is whole");
    let holdings = Holdings::first(&map, GroupId(1));
    (map, holdings)
}

type PartitionMapOf = crate::map::PartitionMap;

#[test]
fn a_question_that_comes_late_does_not_seal_again() {
    let (map, mut holdings) = one_partition();
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: vec![NodeId(2)] };
    let (planned, _) = map.changed(&plan).expect("nothing is under way");
    let id = HandoffId(2);
    let mut store = world::Store::default();
    let mut source = Source::new(GroupId(1));
    let seal = Letter { handoff: id, body: Ask::Seal };
    let ask = |source: &mut Source, holdings: &Holdings, store: &world::Store| {
        source.handle(&planned, holdings, store, LogIndex(0), &seal)
    };
    let Some(Output::Propose(record)) = ask(&mut source, &holdings, &store).pop() else { panic!("it seals") };
    holdings.apply(LogIndex(1), &record, &mut store);
    assert!(holdings.sealed(id).is_some());
    holdings.apply(LogIndex(2), &Record::Unseal { handoff: id, partition: PartitionId(1) }, &mut store);
    // A new leader with an old map, and the record itself once more.
    assert_eq!(ask(&mut Source::new(GroupId(1)), &holdings, &store), []);
    holdings.apply(LogIndex(3), &record, &mut store);
    assert_eq!(holdings.sealed(id), None);
}

#[test]
fn a_leader_that_begins_anew_serves_no_reads_of_what_was_sealed() {
    let (_, mut holdings) = one_partition();
    let mut store = world::Store::default();
    let (partition, birth, bounds) = (PartitionId(1), Birth(1), BoundsVersion(1));
    let seal = Record::Seal { handoff: HandoffId(2), partition, birth, bounds };
    let mut source = Source::new(GroupId(1));
    holdings.apply(LogIndex(1), &seal, &mut store);
    source.applied(LogIndex(1), &seal, &holdings);
    use crate::partitioner::Partitioner as _;
    let position = crate::partitioner::KeyOrder.position(b"k");
    assert_eq!(source.admit_read(&holdings, &position), Ok(()));
    let handing_off = Err(NotHere::HandingOff(HandoffId(2)));
    assert_eq!(Source::new(GroupId(1)).admit_read(&holdings, &position), handing_off);
    assert_eq!(holdings.admit_write(&position), handing_off);
}

#[test]
fn a_second_record_of_a_seal_does_not_take_the_grant_back() {
    let (map, mut holdings) = one_partition();
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: vec![NodeId(2)] };
    let (map, _) = map.changed(&plan).expect("nothing is under way");
    let mut store = world::Store::default();
    let (partition, birth, bounds) = (PartitionId(1), Birth(1), BoundsVersion(1));
    let seal = Record::Seal { handoff: HandoffId(2), partition, birth, bounds };
    let mut source = Source::new(GroupId(1));
    let grant = Letter { handoff: HandoffId(2), body: Ask::Grant };
    for index in [LogIndex(1), LogIndex(2)] {
        holdings.apply(index, &seal, &mut store);
        source.applied(index, &seal, &holdings);
        assert_eq!(source.handle(&map, &holdings, &store, index, &grant).len(), 1, "it grants");
    }
    use crate::partitioner::Partitioner as _;
    holdings.apply(LogIndex(3), &seal, &mut store);
    source.applied(LogIndex(3), &seal, &holdings);
    let read = source.admit_read(&holdings, &crate::partitioner::KeyOrder.position(b"k"));
    assert_eq!(read, Err(NotHere::HandingOff(HandoffId(2))));
}

#[test]
fn a_target_that_has_everything_learns_of_the_seal_though_the_log_is_compacted() {
    let (map, mut holdings) = one_partition();
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: vec![NodeId(2)] };
    let (map, _) = map.changed(&plan).expect("nothing is under way");
    let mut store = world::Store::default();
    let (partition, birth, bounds) = (PartitionId(1), Birth(1), BoundsVersion(1));
    holdings.apply(LogIndex(5), &Record::Seal { handoff: HandoffId(2), partition, birth, bounds }, &mut store);
    store.compact(LogIndex(9));
    let tail = Letter { handoff: HandoffId(2), body: Ask::Tail { after: LogIndex(5) } };
    let answers = Source::new(GroupId(1)).handle(&map, &holdings, &store, LogIndex(9), &tail);
    let [Output::Send(_, Letter { body: Answer::Tail { seal: Some(seal), .. }, .. })] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(seal.at, LogIndex(5));
}

#[test]
fn a_target_decides_only_behind_its_own_record_and_the_grant() {
    let (map, _) = one_partition();
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: vec![NodeId(2)] };
    let (map, _) = map.changed(&plan).expect("nothing is under way");
    let id = HandoffId(2);
    let (mut holdings, mut store) = (Holdings::default(), world::Store::default());
    let (partition, birth, bounds, span) = (PartitionId(1), Birth(1), BoundsVersion(1), Span::ALL);
    let at = LogIndex(5);
    let piece = store.piece(&span, None, PIECE_BYTES);
    let stage = Record::Stage { handoff: id, partition, birth, bounds, span, at, after: None, piece };
    holdings.apply(LogIndex(1), &stage, &mut store);
    let mut target = Target::new(GroupId(2));
    let granted = || Letter { handoff: id, body: Answer::Granted };
    let decided = |outputs: &[Output<Ask>]| outputs.iter().any(|it| matches!(it, Output::Decide(_)));
    assert!(!decided(&target.handle(&map, &holdings, &store, granted())), "nothing is prepared");
    holdings.apply(LogIndex(2), &Record::Prepared { handoff: id, sealed: at }, &mut store);
    assert_eq!(target.poll(&map, &holdings, &store), [Output::Decide(Change::CommitHandoff(id))]);
    // A new leader has no grant, until it has asked for it itself.
    let mut anew = Target::new(GroupId(2));
    let ask = Output::Send(GroupId(1), Letter { handoff: id, body: Ask::Grant });
    assert_eq!(anew.poll(&map, &holdings, &store), [ask]);
    assert!(decided(&anew.handle(&map, &holdings, &store, granted())));
}

#[test]
fn records_that_do_not_fit_change_nothing() {
    let (map, mut holdings) = one_partition();
    let mut store = world::Store::default();
    let id = HandoffId(2);
    let (partition, birth, bounds) = (PartitionId(1), Birth(1), BoundsVersion(1));
    let before = holdings.clone();
    for (birth, bounds) in [(Birth(2), bounds), (birth, BoundsVersion(2)), (Birth(0), bounds)] {
        holdings.apply(LogIndex(1), &Record::Seal { handoff: id, partition, birth, bounds }, &mut store);
    }
    let entry = map.partition(partition).expect("it is there").clone();
    holdings.apply(LogIndex(2), &Record::Open { handoff: id, entry }, &mut store);
    holdings.apply(LogIndex(3), &Record::Prepared { handoff: id, sealed: LogIndex(3) }, &mut store);
    assert_eq!(holdings, before);
    let plan = Change::PlanHandoff { partition, target: GroupId(2), replicas: vec![NodeId(2)] };
    let (map, _) = map.changed(&plan).expect("nothing is under way");
    let grant = Letter { handoff: id, body: Ask::Grant };
    let mut source = Source::new(GroupId(1));
    assert_eq!(source.handle(&map, &holdings, &store, LogIndex(3), &grant), [], "what is not sealed is not granted");

    let mut target = Holdings::default();
    let (span, piece) = (Span::ALL, store.piece(&Span::ALL, None, PIECE_BYTES));
    let stage = Record::Stage { handoff: id, partition, birth, bounds, span, at: LogIndex(5), after: None, piece };
    target.apply(LogIndex(1), &stage, &mut store);
    let tail = |after, to| Record::Tail { handoff: id, after: LogIndex(after), to: LogIndex(to), entries: Vec::new() };
    for late in [tail(4, 7), tail(6, 7), tail(5, 5), Record::Prepared { handoff: id, sealed: LogIndex(6) }, stage] {
        let before = target.clone();
        target.apply(LogIndex(2), &late, &mut store);
        assert_eq!(target, before, "{late:?}");
    }
    target.apply(LogIndex(3), &tail(5, 7), &mut store);
    assert_eq!(target.staged(id).map(|staged| staged.to), Some(LogIndex(7)));
    assert_eq!(
        target.admit_write(&crate::partitioner::Partitioner::position(&crate::partitioner::KeyOrder, b"k")),
        Err(NotHere::Elsewhere)
    );
}
