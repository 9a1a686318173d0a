//! Linearizability: the log's order, the zones of registers, the search, and the definition.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{Time, WriteEffect, WriteLevel};
use replikit_sim::check::{
    Call, ClientId, Ended, History, Level, Linearized, Model, Recorded, STEPS_MAX, Unproven, What, check_calls,
    check_history, check_linearizable,
};

use super::{Verdicts, key, pick, position, value};

/// What the made-up clients do.
#[derive(Clone, Copy)]
struct Shape {
    operations: u64,
    clients: u64,
    keys: u64,
    /// Writes and reads only.
    register: bool,
    /// Chance in 16 that the client never learns the end.
    unknown: u8,
    /// Whether the log shows where such operations stand.
    located: bool,
}

type Copy = BTreeMap<Bytes, Bytes>;

/// The definition of each operation, on one true copy; what its client is told.
fn carry_out(copy: &mut Copy, key: &Bytes, what: &What, at: Time) -> Ended {
    let found = copy.get(key).cloned();
    let effect = match what {
        What::Read => return Ended::Found { at, value: found },
        What::Write(value) => {
            copy.insert(key.clone(), value.clone());
            WriteEffect::Done
        }
        What::Delete => {
            copy.remove(key);
            WriteEffect::Done
        }
        What::CompareAndSet { expected, .. } if *expected != found => WriteEffect::Mismatch { found },
        What::CompareAndSet { new, .. } => {
            match new {
                Some(new) => copy.insert(key.clone(), new.clone()),
                None => copy.remove(key),
            };
            WriteEffect::Done
        }
        What::Add(delta) => match found.map_or(Some(0), |found| String::from_utf8_lossy(&found).parse::<i64>().ok()) {
            Some(number) => {
                copy.insert(key.clone(), (number + delta).to_string().into());
                WriteEffect::Counter { value: number + delta }
            }
            None => WriteEffect::NotACounter,
        },
    };
    Ended::Applied { at, effect }
}

fn what(rng: &mut Rng, shape: &Shape, next_value: &mut u64) -> What {
    let mut fresh = || {
        *next_value += 1;
        value(*next_value)
    };
    if shape.register {
        return if rng.bool() { What::Read } else { What::Write(fresh()) };
    }
    match rng.u8(0..10) {
        0..4 => What::Read,
        4..6 => What::Write(fresh()),
        6 => What::Delete,
        7 => What::CompareAndSet { expected: None, new: Some(fresh()) },
        8 => {
            let new = rng.bool().then(&mut fresh);
            What::CompareAndSet { expected: Some(value(rng.u64(0..=*next_value))), new }
        }
        _ => What::Add(rng.i64(1..4)),
    }
}

/// A correct execution: each operation takes effect on the one copy at one instant between its begin and its end.
fn single_copy(rng: &mut Rng, shape: Shape) -> History {
    struct Planned {
        at: u64,
        began: u64,
        ended: u64,
        client: u32,
        unknown: bool,
    }
    let mut plan = Vec::new();
    let mut instants: Vec<u64> = (0..shape.operations * 8).collect();
    for client in 0..shape.clients {
        let own = shape.operations / shape.clients + u64::from(client < shape.operations % shape.clients);
        // Instants are drawn without repetition, so no two are equal; a client's are in order.
        let mut own: Vec<u64> = (0..own * 3).map(|_| instants.swap_remove(rng.usize(0..instants.len()))).collect();
        own.sort_unstable();
        for times in own.chunks_exact(3) {
            let unknown = rng.u8(0..16) < shape.unknown;
            // One in two of them takes effect long after its client has gone on, or never in the time looked at.
            let late = if unknown && rng.bool() { rng.u64(0..shape.operations * 4) } else { 0 };
            plan.push(Planned {
                at: times[1] + late,
                began: times[0],
                ended: times[2],
                client: client as u32,
                unknown,
            });
        }
    }
    plan.sort_unstable_by_key(|planned| planned.at);
    let (mut copy, mut next_value, mut index) = (Copy::new(), 0, 0);
    let mut done = Vec::new();
    for planned in plan {
        let what = what(rng, &shape, &mut next_value);
        let key = key(rng.u64(0..shape.keys));
        let ended = carry_out(&mut copy, &key, &what, Time(planned.ended + 1));
        index += u64::from(what != What::Read);
        done.push((planned, key, what, ended, index));
    }
    done.sort_unstable_by_key(|(planned, ..)| planned.began);
    let mut history = History::new();
    for (planned, key, what, ended, index) in done {
        let began = Time(planned.began + 1);
        let level = history.begin(began, key.clone(), what.clone());
        let level = history.operation(level).level.clone();
        history.operations_mut().pop();
        let id = history.begin_as(ClientId(planned.client), level, began, key, what);
        if !planned.unknown {
            history.end(id, ended);
        }
        if !planned.unknown || shape.located {
            history.locate(id, position(index));
        }
    }
    history
}

/// The definition: some order of the operations, real time respected, in which the one copy answers what was answered.
fn has_an_order(history: &History) -> bool {
    fn search(left: &mut Vec<&Recorded>, copy: &Copy) -> bool {
        let end = |op: &&Recorded| op.answered_at().unwrap_or(Time::NEVER);
        if left.iter().all(|op| end(op) == Time::NEVER) {
            return true;
        }
        let first_end = left.iter().map(end).min().expect("not empty");
        for at in 0..left.len() {
            let op = left[at];
            if op.began > first_end {
                continue;
            }
            let mut after = copy.clone();
            let answer = carry_out(&mut after, &op.key, &op.what, end(&op));
            let fits = matches!(op.ended, Ended::Unknown | Ended::Written { .. }) || answer == op.ended;
            if !fits {
                continue;
            }
            left.swap_remove(at);
            let found = search(left, &after);
            left.push(op);
            let last = left.len() - 1;
            left.swap(at, last);
            if found {
                return true;
            }
        }
        false
    }
    let mut operations: Vec<_> = history.operations().iter().filter(|op| op.ended != Ended::Void).collect();
    search(&mut operations, &Copy::new())
}

/// Damages a history in one of the ways on the list.
fn damage(rng: &mut Rng, history: &mut History) {
    let all: Vec<Bytes> = (0..4).map(value).chain(["1".into(), "3".into()]).collect();
    let operations = history.operations_mut();
    let (one, other) = (rng.usize(0..operations.len()), rng.usize(0..operations.len()));
    match rng.u8(0..9) {
        // A read sees an older or newer value, none, or one that nobody wrote.
        0 | 1 => {
            if let Ended::Found { value, .. } = &mut operations[one].ended {
                *value = pick(rng, &all).filter(|_| rng.u8(0..4) > 0).cloned();
            }
        }
        // Two answers are exchanged.
        2 => {
            let (first, second) = (operations[one].ended.clone(), operations[other].ended.clone());
            if let (Ended::Found { value: first, .. }, Ended::Found { value: second, .. }) = (&first, &second) {
                let exchange = |ended: &mut Ended, with: &Option<Bytes>| {
                    if let Ended::Found { value, .. } = ended {
                        value.clone_from(with);
                    }
                };
                exchange(&mut operations[one].ended, second);
                exchange(&mut operations[other].ended, first);
            }
        }
        // A conditional write claims the opposite, or another finding; a counter counts twice.
        3 | 4 => {
            if let Ended::Applied { effect, .. } = &mut operations[one].ended {
                *effect = match effect {
                    WriteEffect::Counter { value } => WriteEffect::Counter { value: *value + rng.i64(-1..=1) },
                    WriteEffect::Mismatch { .. } if rng.bool() => WriteEffect::Done,
                    _ => WriteEffect::Mismatch { found: pick(rng, &all).cloned() },
                };
            }
        }
        // Real time is stretched: the operation ends sooner, or begins later.
        5 => {
            let sooner = operations[one].began + core::time::Duration::from_nanos(1);
            if let Ended::Found { at, .. } | Ended::Applied { at, .. } = &mut operations[one].ended {
                *at = sooner;
            }
        }
        6 => {
            if let Some(end) = operations[one].answered_at() {
                operations[one].began = Time(rng.u64(operations[one].began.0..=end.0));
            }
        }
        // A write that was seen had no effect; its answer is lost.
        7 => operations[one].ended = Ended::Void,
        // The log's claims are wrong, and nothing else.
        _ => {
            let claim = operations[one].position;
            operations[one].position = operations[other].position;
            operations[other].position = claim;
        }
    }
}

#[test]
fn executions_of_one_copy_pass_by_the_order_of_the_log() {
    for seed in 0..500 {
        let mut rng = Rng::with_seed(seed);
        let shape =
            Shape { operations: 60, clients: rng.u64(1..8), keys: 3, register: false, unknown: 0, located: false };
        let history = single_copy(&mut rng, shape);
        let linearized = check_history(&history, STEPS_MAX).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!((linearized.by_zones, linearized.by_search), (0, 0), "seed {seed}");
    }
}

#[test]
fn executions_of_one_copy_pass_without_the_log_and_with_lost_answers() {
    let mut total = Linearized::default();
    for seed in 0..500 {
        let mut rng = Rng::with_seed(seed);
        let shape =
            Shape { operations: 60, clients: rng.u64(1..8), keys: 3, register: rng.bool(), unknown: 2, located: false };
        let mut history = single_copy(&mut rng, shape);
        if rng.bool() {
            history.operations_mut().iter_mut().for_each(|operation| operation.position = None);
        }
        let linearized = check_history(&history, STEPS_MAX).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        total.by_witness += linearized.by_witness;
        total.by_zones += linearized.by_zones;
        total.by_search += linearized.by_search;
    }
    assert!(total.by_witness > 100 && total.by_zones > 100 && total.by_search > 100, "{total:?}");
}

#[test]
fn every_damage_to_a_small_history_is_judged_as_the_definition_says() {
    let mut verdicts = Verdicts::default();
    for seed in 0..30_000 {
        let mut rng = Rng::with_seed(seed);
        let shape = Shape {
            operations: rng.u64(2..=7),
            clients: rng.u64(1..5),
            keys: rng.u64(1..3),
            register: rng.u8(0..3) == 0,
            unknown: 2,
            located: false,
        };
        let mut history = single_copy(&mut rng, shape);
        for _ in 0..rng.u8(0..8) {
            damage(&mut rng, &mut history);
        }
        let check = match check_history(&history, STEPS_MAX) {
            Ok(_) => true,
            // Damage may have made a second write of a value: then the zones cannot tell.
            Err(Unproven::Undecided { .. }) => panic!("seed {seed}: a small history is always decided"),
            Err(_) => false,
        };
        verdicts.compare(check, has_an_order(&history), || format!("seed {seed}: {history:#?}"));
    }
    verdicts.assert_at_least(4_000);
}

#[test]
fn the_zones_and_the_search_agree_on_registers() {
    struct Register;
    impl Model for Register {
        type Operation = Recorded;
        type Key = Bytes;
        type State = Option<Bytes>;

        fn key(&self, operation: &Recorded) -> Bytes {
            operation.key.clone()
        }

        fn initial(&self, _: &Bytes) -> Option<Bytes> {
            None
        }

        fn step(&self, state: &Option<Bytes>, operation: &Recorded) -> Option<Option<Bytes>> {
            match (&operation.what, &operation.ended) {
                (What::Write(value), _) => Some(Some(value.clone())),
                (_, Ended::Found { value, .. }) => (value == state).then(|| state.clone()),
                _ => None,
            }
        }
    }
    let mut verdicts = Verdicts::default();
    for seed in 0..5_000 {
        let mut rng = Rng::with_seed(seed);
        let shape = Shape {
            operations: rng.u64(5..25),
            clients: rng.u64(1..6),
            keys: 2,
            register: true,
            unknown: 1,
            located: false,
        };
        let mut history = single_copy(&mut rng, shape);
        for _ in 0..rng.u8(0..8) {
            damage(&mut rng, &mut history);
        }
        for operation in history.operations_mut() {
            // Damage of conditional writes is not this test's.
            if let (What::Write(_), Ended::Applied { effect, .. }) = (&operation.what, &mut operation.ended) {
                *effect = WriteEffect::Done;
            }
        }
        let relevant = history
            .operations()
            .iter()
            .filter(|op| op.ended != Ended::Void && (op.answered_at().is_some() || matches!(op.what, What::Write(_))));
        let calls: Vec<_> =
            relevant.map(|op| Call { operation: op, began: op.began, ended: op.answered_at(), place: None }).collect();
        let search = match check_calls(&Register, &calls, STEPS_MAX) {
            Ok(_) => true,
            Err(Unproven::NoOrder { .. }) => false,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        verdicts.compare(check_linearizable(&history).is_ok(), search, || format!("seed {seed}: {history:#?}"));
    }
    verdicts.assert_at_least(1_000);
}

#[test]
fn damage_that_is_certainly_one_is_found_in_long_histories() {
    let (mut stale, mut twice, mut swapped) = (0, 0, 0);
    for seed in 0..600 {
        let mut rng = Rng::with_seed(seed);
        let shape =
            Shape { operations: 300, clients: rng.u64(2..12), keys: 4, register: false, unknown: 1, located: false };
        let history = single_copy(&mut rng, shape);
        let rejected = |history: &History| check_history(history, STEPS_MAX).is_err();
        let operations = history.operations();
        let answered = |op: &Recorded| op.answered_at().unwrap_or(Time::NEVER);

        // A read shows a value that another one had overwritten for certain, before it began.
        let overwritten = operations.iter().enumerate().rev().find_map(|(at, read)| {
            let before = |op: &&Recorded| op.key == read.key && matches!(op.what, What::Write(_));
            let newer = operations.iter().filter(before).find(|op| answered(op) < read.began)?;
            let newer = operations.iter().filter(before).filter(|op| answered(op) < read.began).last().unwrap_or(newer);
            let older = operations.iter().filter(before).find(|op| answered(op) < newer.began)?;
            let What::Write(value) = &older.what else { return None };
            let set_again =
                |op: &&Recorded| matches!(&op.what, What::CompareAndSet { new, .. } if new.as_ref() == Some(value));
            (matches!(read.ended, Ended::Found { .. }) && !operations.iter().any(|op| set_again(&op)))
                .then(|| (at, value.clone()))
        });
        if let Some((at, old)) = overwritten {
            let mut damaged = history.clone();
            if let Ended::Found { value, .. } = &mut damaged.operations_mut()[at].ended {
                *value = Some(old);
            }
            assert!(rejected(&damaged), "seed {seed}: read {at} went back in time");
            stale += 1;
        }
        // A command was applied twice: two additions, not concurrent, have the same sum.
        let counted = |op: &Recorded| match op.ended {
            Ended::Applied { effect: WriteEffect::Counter { value }, .. } => Some(value),
            _ => None,
        };
        if let Some(at) = operations.iter().position(|op| counted(op).is_some_and(|value| value > 3)) {
            let mut damaged = history.clone();
            if let Ended::Applied { effect: WriteEffect::Counter { value }, .. } =
                &mut damaged.operations_mut()[at].ended
            {
                *value += 1_000;
            }
            assert!(rejected(&damaged), "seed {seed}: addition {at} found a sum that never was");
            twice += 1;
        }
        // Two writes change places in real time.
        if let Some(at) = operations.iter().position(|op| matches!(op.ended, Ended::Found { value: Some(_), .. })) {
            let Ended::Found { value: Some(seen), .. } = &operations[at].ended else { unreachable!("just seen") };
            let end = answered(&operations[at]);
            if let Some(write) = operations.iter().position(|op| op.what == What::Write(seen.clone())) {
                let mut damaged = history.clone();
                let write = &mut damaged.operations_mut()[write];
                write.began = end + core::time::Duration::from_nanos(1);
                if let Ended::Applied { at, .. } = &mut write.ended {
                    *at = write.began + core::time::Duration::from_nanos(1);
                }
                assert!(rejected(&damaged), "seed {seed}: a read saw a write from the future");
                swapped += 1;
            }
        }
    }
    assert!(stale > 300 && twice > 100 && swapped > 300, "{stale}, {twice} and {swapped} are too few");
}

#[test]
fn a_weak_acknowledgement_proves_nothing() {
    let mut history = History::new();
    let weak = Level::Write(WriteLevel::Memory);
    let id = history.begin_as(ClientId(1), weak, Time(1), key(0), What::Write(value(1)));
    history.end(id, Ended::Written { at: Time(2) });
    let read = history.begin(Time(3), key(0), What::Read);
    history.end(read, Ended::Found { at: Time(4), value: None });
    assert!(check_history(&history, STEPS_MAX).is_ok(), "it may be lost");
    history.operations_mut()[0].level = Level::Write(WriteLevel::Quorum);
    assert!(check_history(&history, STEPS_MAX).is_err(), "it must not be lost");
}

/// Dense concurrency without a witness: everything overlaps, and the last answer is wrong.
fn hard(clients: u64) -> History {
    let mut history = History::new();
    for n in 0..clients {
        let what = What::CompareAndSet { expected: None, new: Some(value(n)) };
        let id = history.begin(Time(n + 1), key(0), what);
        history.end(id, Ended::Written { at: Time(1_000 + n) });
        let id = history.begin(Time(n + 1), key(0), What::Delete);
        history.end(id, Ended::Written { at: Time(1_000 + n) });
    }
    let id = history.begin(Time(5_000), key(0), What::Read);
    history.end(id, Ended::Found { at: Time(5_001), value: Some("never written".into()) });
    history
}

#[test]
fn a_search_that_is_not_finished_says_so() {
    assert_eq!(check_history(&hard(12), 10_000), Err(Unproven::Undecided { key: key(0), steps_max: 10_000 }));
    assert!(matches!(check_history(&hard(4), STEPS_MAX), Err(Unproven::NoOrder { placed: 8, .. })));
}

/// A queue, as a user would write it.
struct Queue;

enum QueueCall {
    Push(u32),
    Pop(Option<u32>),
}

impl Model for Queue {
    type Operation = QueueCall;
    type Key = ();
    type State = Vec<u32>;

    fn key(&self, _: &QueueCall) {}

    fn initial(&self, _key: &()) -> Vec<u32> {
        Vec::new()
    }

    fn step(&self, state: &Vec<u32>, call: &QueueCall) -> Option<Vec<u32>> {
        let mut after = state.clone();
        match call {
            QueueCall::Push(item) => after.push(*item),
            QueueCall::Pop(item) => {
                let first = (!after.is_empty()).then(|| after.remove(0));
                if first != *item {
                    return None;
                }
            }
        }
        Some(after)
    }
}

#[test]
fn a_model_of_the_user_is_checked_as_well() {
    let push = |item| QueueCall::Push(item);
    let check = |calls: &[(QueueCall, u64, u64)]| {
        let calls: Vec<_> = calls
            .iter()
            .map(|(operation, began, ended)| Call {
                operation,
                began: Time(*began),
                ended: Some(Time(*ended)),
                place: None,
            })
            .collect();
        check_calls(&Queue, &calls, STEPS_MAX)
    };
    assert!(check(&[(push(1), 1, 4), (push(2), 2, 3), (QueueCall::Pop(Some(2)), 5, 6)]).is_ok());
    let out_of_order = [(push(1), 1, 2), (push(2), 3, 4), (QueueCall::Pop(Some(2)), 5, 6)];
    assert!(matches!(check(&out_of_order), Err(Unproven::NoOrder { key: (), placed: 2, stuck }) if stuck.index() == 2));
}

#[test]
fn long_histories_are_checked_in_time_that_grows_with_their_length() {
    let mut rng = Rng::with_seed(1);
    let shape = Shape { operations: 100_000, clients: 20, keys: 10, register: false, unknown: 0, located: false };
    let mut history = single_copy(&mut rng, shape);
    let began = Instant::now();
    let linearized = check_history(&history, STEPS_MAX).expect("of one copy");
    let by_witness = began.elapsed();
    assert_eq!((linearized.by_witness, linearized.steps), (10, 0));
    history.operations_mut().iter_mut().for_each(|operation| operation.position = None);
    let began = Instant::now();
    let linearized = check_history(&history, STEPS_MAX).expect("of one copy");
    let by_search = began.elapsed();
    assert_eq!(linearized.by_search, 10);
    assert!(linearized.steps < 1_000_000, "{} steps: the search explodes", linearized.steps);
    println!("100,000 operations: {by_witness:?} by the log, {by_search:?} and {} steps by search", linearized.steps);

    // Lost answers: one in 16. First the log shows what became of them, then nobody does.
    let shape = Shape { operations: 20_000, unknown: 1, located: true, ..shape };
    let linearized = check_history(&single_copy(&mut Rng::with_seed(2), shape), STEPS_MAX).expect("of one copy");
    assert_eq!(linearized.by_witness, 10, "{linearized:?}");
    let shape = Shape { located: false, ..shape };
    match check_history(&single_copy(&mut Rng::with_seed(2), shape), STEPS_MAX) {
        Ok(linearized) => println!("20,000 operations with lost answers: {linearized:?}"),
        Err(Unproven::Undecided { key, .. }) => println!("20,000 operations with lost answers: {key:?} is undecided"),
        Err(error) => panic!("{error}"),
    }
}
