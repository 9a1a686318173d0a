//! Causal consistency, held against the axioms with the closure of all pairs and every order of the writes.

use fastrand::Rng;
use replikit_core::Time;
use replikit_sim::check::{
    ClientId, Conflicts, Ended, History, Level, NotCausal, OperationId, Recorded, What, check_causal,
};

use super::{Verdicts, key, pick, value};

const ALL: [Conflicts; 3] = [Conflicts::SiblingsByContext, Conflicts::SiblingsByReplica, Conflicts::LastWriteWins];

fn begin(history: &mut History, client: u32, n: u64, key_number: u64, what: What) -> OperationId {
    let level = match what {
        What::Read => Level::Read(replikit_core::ReadLevel::Local),
        _ => Level::Write(replikit_core::WriteLevel::LeaderDisk),
    };
    history.begin_as(ClientId(client), level, Time(n * 10 + 1), key(key_number), what)
}

/// A correct execution: each client writes and reads at its own replica; replicas send each other what they have, in causal
/// order: whoever takes a write takes all that it depends on.
fn multi_leader(rng: &mut Rng, operations: u64, clients: u32, keys: u64, conflicts: Conflicts) -> History {
    #[derive(Clone)]
    struct Write {
        key: u64,
        value: u64,
        // The writes in its past, as a set over all writes.
        past: Vec<bool>,
    }
    let mut history = History::new();
    let mut writes: Vec<Write> = Vec::new();
    let mut held: Vec<Vec<bool>> = vec![vec![false; operations as usize]; clients as usize];
    // What each client has read or written, and what that depends on.
    let mut known = held.clone();
    for n in 0..operations {
        let client = rng.u32(0..clients);
        if rng.bool() {
            let from = rng.usize(0..clients as usize);
            // Causal delivery of some of what the other holds.
            for write in 0..writes.len() {
                if held[from][write] && rng.bool() {
                    let past = writes[write].past.clone();
                    let mine = &mut held[client as usize];
                    mine.iter_mut().zip(&past).for_each(|(mine, past)| *mine |= past);
                    mine[write] = true;
                }
            }
        }
        let mine = &mut held[client as usize];
        let key_number = rng.u64(0..keys);
        if rng.bool() {
            let number = writes.len();
            let by_context = conflicts == Conflicts::SiblingsByContext;
            let past = if by_context { known[client as usize].clone() } else { mine.clone() };
            mine[number] = true;
            writes.push(Write { key: key_number, value: n, past });
            let id = begin(&mut history, client, n, key_number, What::Write(value(n)));
            // Of a write whose end it never learns, a client knows nothing until it reads it.
            if rng.u8(0..8) > 0 {
                history.end(id, Ended::Written { at: Time(n * 10 + 5) });
                known[client as usize][number] = true;
            }
            continue;
        }
        let id = begin(&mut history, client, n, key_number, What::Read);
        let own: Vec<usize> = (0..writes.len()).filter(|&w| mine[w] && writes[w].key == key_number).collect();
        let at = Time(n * 10 + 5);
        match conflicts {
            // The order of creation follows causality, and is the same everywhere.
            Conflicts::LastWriteWins => {
                let value = own.last().map(|&w| value(writes[w].value));
                history.end(id, Ended::Found { at, value });
            }
            Conflicts::SiblingsByContext | Conflicts::SiblingsByReplica => {
                let kept = own.iter().filter(|&&w| !own.iter().any(|&other| writes[other].past[w]));
                let kept: Vec<usize> = kept.copied().collect();
                for &w in &kept {
                    let known = &mut known[client as usize];
                    known.iter_mut().zip(&writes[w].past).for_each(|(known, past)| *known |= past);
                    known[w] = true;
                }
                let values = kept.into_iter().map(|w| value(writes[w].value)).collect();
                history.end(id, Ended::Siblings { at, values });
            }
        }
    }
    history
}

/// The operations that count, the pairs of which the first is in the past of the second, and what each read saw.
struct Closure<'a> {
    operations: Vec<&'a Recorded>,
    past: Vec<Vec<bool>>,
    saw: Vec<Vec<usize>>,
    phantom: bool,
}

fn values(op: &Recorded) -> Vec<&bytes::Bytes> {
    match &op.ended {
        Ended::Found { value, .. } => value.iter().collect(),
        Ended::Siblings { values, .. } => values.iter().collect(),
        _ => Vec::new(),
    }
}

fn closure(history: &History) -> Closure<'_> {
    let all = history.operations();
    let seen = |write: &Recorded| {
        let What::Write(value) = &write.what else { return false };
        all.iter().any(|read| read.key == write.key && values(read).contains(&value))
    };
    let operations: Vec<&Recorded> =
        all.iter().filter(|op| op.answered_at().is_some() || op.ended == Ended::Unknown && seen(op)).collect();
    let count = operations.len();
    let mut past = vec![vec![false; count]; count];
    let mut saw = vec![Vec::new(); count];
    let mut phantom = false;
    for (later, op) in operations.iter().enumerate() {
        for (earlier, before) in operations[..later].iter().enumerate() {
            past[earlier][later] = before.client == op.client && before.answered_at().is_some();
        }
        for value in values(op) {
            match operations.iter().position(|w| w.key == op.key && w.what == What::Write(value.clone())) {
                Some(write) => saw[later].push(write),
                None => phantom = true,
            }
        }
    }
    for (read, writes) in saw.iter().enumerate() {
        for &write in writes {
            past[write][read] = true;
        }
    }
    for middle in 0..count {
        for from in 0..count {
            for to in 0..count {
                past[from][to] |= past[from][middle] && past[middle][to];
            }
        }
    }
    Closure { operations, past, saw, phantom }
}

fn is_write(op: &Recorded) -> bool {
    matches!(op.what, What::Write(_))
}

/// Each read shows exactly the writes in its past that nothing else in its past has overwritten, and what it learned of by
/// showing it.
fn siblings_hold(history: &History) -> bool {
    let Closure { operations, past, saw, phantom } = closure(history);
    let count = operations.len();
    if phantom || (0..count).any(|at| past[at][at]) {
        return false;
    }
    (0..count).filter(|&read| operations[read].is_read()).all(|read| {
        (0..count)
            .filter(|&write| is_write(operations[write]) && operations[write].key == operations[read].key)
            .filter(|&write| past[write][read])
            .all(|write| {
                let shown = saw[read].iter().any(|&seen| seen == write || past[write][seen]);
                let overwrites = saw[read].iter().any(|&seen| past[seen][write]);
                shown && !overwrites
            })
    })
}

/// Some order of all operations contains the past, and a write of the key that a read has in its past is not behind the
/// one that it saw. Source: Biswas and Enea, OOPSLA'19, the axiom of causal consistency.
fn last_write_wins_holds(history: &History) -> bool {
    one_order_holds(history, false)
}

/// The same where a read may show several values, which says nothing of an order.
fn siblings_by_replica_hold(history: &History) -> bool {
    one_order_holds(history, true)
}

fn one_order_holds(history: &History, siblings: bool) -> bool {
    let Closure { operations, past, saw, phantom } = closure(history);
    let count = operations.len();
    if phantom || (0..count).any(|at| past[at][at]) {
        return false;
    }
    // Pairs that an order must respect.
    let mut must = past.clone();
    for read in (0..count).filter(|&read| operations[read].is_read()) {
        for write in 0..count {
            let of_key = is_write(operations[write]) && operations[write].key == operations[read].key;
            if !of_key || !past[write][read] {
                continue;
            }
            match saw[read][..] {
                [] => return false,
                [seen] if seen != write => must[write][seen] = true,
                _ if siblings && saw[read].iter().any(|&seen| past[seen][write]) => return false,
                _ => {}
            }
        }
    }
    fn place(must: &[Vec<bool>], placed: &mut Vec<usize>) -> bool {
        let count = must.len();
        placed.len() == count
            || (0..count).any(|next| {
                let free = !placed.contains(&next) && (0..count).all(|b| !must[b][next] || placed.contains(&b));
                if !free {
                    return false;
                }
                placed.push(next);
                let found = place(must, placed);
                placed.pop();
                found
            })
    }
    place(&must, &mut Vec::new())
}

fn damage(rng: &mut Rng, history: &mut History) {
    let operations = history.operations_mut();
    let (one, other) = (rng.usize(0..operations.len()), rng.usize(0..operations.len()));
    let all: Vec<_> = operations
        .iter()
        .filter(|op| op.key == operations[one].key)
        .filter_map(|op| if let What::Write(value) = &op.what { Some(value.clone()) } else { None })
        .collect();
    match rng.u8(0..6) {
        // A read shows another write, none, or one sibling more or less.
        0..3 => match &mut operations[one].ended {
            Ended::Found { value, .. } => *value = pick(rng, &all).filter(|_| rng.u8(0..5) > 0).cloned(),
            Ended::Siblings { values, .. } => {
                if rng.bool()
                    && let Some(more) = pick(rng, &all)
                    && !values.contains(more)
                {
                    values.push(more.clone());
                } else {
                    values.pop();
                }
            }
            _ => {}
        },
        // A session's operations change places.
        3 => {
            let (first, second) = (operations[one].client, operations[other].client);
            (operations[one].client, operations[other].client) = (second, first);
        }
        4 => operations[one].client = operations[other].client,
        // What was seen had no effect.
        _ if !operations[one].is_read() => operations[one].ended = Ended::Void,
        _ => {}
    }
}

fn judged_as_defined(conflicts: Conflicts, holds: fn(&History) -> bool, operations: u64) {
    let mut verdicts = Verdicts::default();
    for seed in 0..20_000 {
        let mut rng = Rng::with_seed(seed);
        let (operations, clients, keys) = (rng.u64(3..=operations), rng.u32(2..4), rng.u64(1..3));
        let mut history = multi_leader(&mut rng, operations, clients, keys, conflicts);
        for _ in 0..rng.u8(0..8) {
            damage(&mut rng, &mut history);
        }
        let check = check_causal(&history, conflicts).is_ok();
        verdicts.compare(check, holds(&history), || format!("seed {seed}: {history:#?}"));
    }
    verdicts.assert_at_least(4_000);
}

#[test]
fn every_damage_to_siblings_by_context_is_judged_as_the_definition_says() {
    judged_as_defined(Conflicts::SiblingsByContext, siblings_hold, 14);
}

#[test]
fn every_damage_to_siblings_by_replica_is_judged_as_the_definition_says() {
    judged_as_defined(Conflicts::SiblingsByReplica, siblings_by_replica_hold, 9);
}

#[test]
fn every_damage_under_last_write_wins_is_judged_as_the_axiom_says() {
    judged_as_defined(Conflicts::LastWriteWins, last_write_wins_holds, 9);
}

#[test]
fn executions_with_causal_delivery_pass() {
    for seed in 0..500 {
        for conflicts in ALL {
            let mut rng = Rng::with_seed(seed);
            let clients = rng.u32(1..6);
            let history = multi_leader(&mut rng, 120, clients, 3, conflicts);
            let causal =
                check_causal(&history, conflicts).unwrap_or_else(|error| panic!("seed {seed}, {conflicts:?}: {error}"));
            assert!(causal.reads > 30 && causal.undecided == 0, "seed {seed}: {causal:?}");
        }
    }
}

/// Client 1 writes a and, knowing of it, client 2 writes b to another key.
fn reply_to_a_post() -> History {
    let mut history = History::new();
    let mut done = |client, n, key_number, what: What, saw: Option<u64>| {
        let at = Time(n * 10 + 5);
        let ended = if what == What::Read { Ended::Found { at, value: saw.map(value) } } else { Ended::Written { at } };
        let id = begin(&mut history, client, n, key_number, what);
        history.end(id, ended);
    };
    done(1, 0, 0, What::Write(value(1)), None);
    done(2, 1, 0, What::Read, Some(1));
    done(2, 2, 1, What::Write(value(2)), None);
    done(3, 3, 1, What::Read, Some(2));
    done(3, 4, 0, What::Read, Some(1));
    history
}

#[test]
fn an_answer_without_its_question_is_found() {
    for conflicts in ALL {
        let mut history = reply_to_a_post();
        assert!(check_causal(&history, conflicts).is_ok());
        history.operations_mut()[4].ended = Ended::Found { at: Time(45), value: None };
        let missing = NotCausal::Missing { read: OperationId::new(4), write: OperationId::new(0) };
        assert_eq!(check_causal(&history, conflicts), Err(missing));
    }
}

#[test]
fn two_sessions_that_saw_concurrent_writes_in_opposite_orders_have_no_last_write() {
    let mut history = History::new();
    for (n, (client, what, saw)) in [
        (1, What::Write(value(1)), None),
        (2, What::Write(value(2)), None),
        (3, What::Read, Some(1)),
        (3, What::Read, Some(2)),
        (4, What::Read, Some(2)),
        (4, What::Read, Some(1)),
    ]
    .into_iter()
    .enumerate()
    {
        let at = Time(n as u64 * 10 + 5);
        let id = begin(&mut history, client, n as u64, 0, what);
        let ended = saw.map_or(Ended::Written { at }, |saw| Ended::Found { at, value: Some(value(saw)) });
        history.end(id, ended);
    }
    assert!(
        matches!(check_causal(&history, Conflicts::LastWriteWins), Err(NotCausal::NoOrder { cycle }) if cycle.len() == 2)
    );
}

#[test]
fn long_histories_are_checked_in_time_that_grows_with_their_length() {
    let mut rng = Rng::with_seed(3);
    let (mut history, mut newest) = (History::new(), vec![None; 100]);
    for n in 0..100_000 {
        let (client, key_number) = (rng.u32(0..10), rng.u64(0..100));
        let at = Time(n * 10 + 5);
        if rng.bool() {
            newest[key_number as usize] = Some(n);
            let id = begin(&mut history, client, n, key_number, What::Write(value(n)));
            history.end(id, Ended::Written { at });
        } else {
            let id = begin(&mut history, client, n, key_number, What::Read);
            history.end(id, Ended::Found { at, value: newest[key_number as usize].map(value) });
        }
    }
    let began = std::time::Instant::now();
    let causal = check_causal(&history, Conflicts::LastWriteWins).expect("of one copy");
    println!("100,000 operations of 10 sessions: {:?}", began.elapsed());
    assert_eq!(causal.operations, 100_000);
}
