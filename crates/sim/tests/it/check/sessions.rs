//! Session guarantees: each checked against its definition, pair by pair.

use fastrand::Rng;
use replikit_core::{LogIndex, ReadLevel, SessionToken, StreamId, Term, Time, WriteLevel};
use replikit_sim::check::{
    ClientId, Ended, History, Level, Losses, OperationId, Recorded, SessionBroken, What, check_sessions,
};

use super::{Verdicts, key, pick, position, value};

/// A correct execution: one log, replicas that have applied a part of it, sessions that wander between them with a token.
fn wandering(rng: &mut Rng, operations: u64, clients: u32, keys: u64) -> History {
    let mut history = History::new();
    // The log: key and value; the applied length of three replicas; what each session has seen.
    let mut log: Vec<(u64, u64)> = Vec::new();
    let mut applied = [0_u64; 3];
    let mut seen = vec![0_u64; clients as usize];
    for n in 0..operations {
        let (client, at) = (rng.u32(0..clients), n * 10 + 1);
        let key_number = rng.u64(0..keys);
        let replica = rng.usize(0..3);
        applied[replica] = rng.u64(applied[replica]..=log.len() as u64);
        let own = &mut seen[client as usize];
        if rng.bool() {
            log.push((key_number, n));
            *own = log.len() as u64;
            let write = if rng.u8(0..4) == 0 { WriteLevel::Memory } else { WriteLevel::Quorum };
            let write = Level::Write(write);
            let id = history.begin_as(ClientId(client), write, Time(at), key(key_number), What::Write(value(n)));
            if rng.u8(0..10) > 0 {
                history.end(id, Ended::Written { at: Time(at + 5) });
            }
            // The log shows where it stands, even where the client does not know.
            history.locate(id, position(*own));
            continue;
        }
        let (level, from) = match rng.u8(0..5) {
            0 => (ReadLevel::Local, applied[replica]),
            1 => (ReadLevel::Linearizable, log.len() as u64),
            _ => {
                let mut token = SessionToken::new();
                if *own > 0 {
                    token.observe(position(*own));
                }
                (ReadLevel::Session(token), applied[replica].max(*own))
            }
        };
        if level != ReadLevel::Local {
            *own = from;
        }
        let found = log[..from as usize].iter().rev().find(|(key, _)| *key == key_number).map(|&(_, n)| value(n));
        let id = history.begin_as(ClientId(client), Level::Read(level), Time(at), key(key_number), What::Read);
        history.end(id, Ended::Found { at: Time(at + 5), value: found });
        if from > 0 {
            history.locate(id, position(from));
        }
    }
    history
}

/// The definitions, over all pairs of a session's operations. Only what is known for certain counts.
fn holds(history: &History) -> bool {
    let operations = history.operations();
    let promised = |op: &Recorded| {
        op.is_read() && matches!(op.level, Level::Read(ReadLevel::Linearizable | ReadLevel::Session(_)))
    };
    let index = |op: &Recorded| op.position.map(|at| at.id.index.0);
    // The index of the write that a read saw; 0 for the beginning.
    let version = |op: &Recorded| match &op.ended {
        Ended::Found { value: None, .. } => Some(0),
        Ended::Found { value: Some(value), .. } => operations
            .iter()
            .find(|write| write.key == op.key && write.what == What::Write(value.clone()))
            .and_then(index),
        _ => None,
    };
    let less = |a: Option<u64>, b: Option<u64>| a.is_some_and(|a| b.is_some_and(|b| a < b));
    for (at, later) in operations.iter().enumerate() {
        if later.answered_at().is_none() {
            continue;
        }
        if let Level::Read(ReadLevel::Session(token)) = &later.level
            && let [named] = token.positions()
            && less(index(later), Some(named.id.index.0))
        {
            return false;
        }
        for earlier in &operations[..at] {
            if earlier.client != later.client || earlier.answered_at().is_none_or(|ended| ended > later.began) {
                continue;
            }
            let same_key = earlier.key == later.key;
            let broken = if later.is_read() {
                promised(later)
                    && if earlier.is_read() {
                        promised(earlier)
                            && (less(index(later), index(earlier).max(version(earlier)))
                                || same_key && less(version(later), version(earlier)))
                    } else {
                        // A linearizable read owes nothing to a weak acknowledgement.
                        let owed = earlier.is_strong() || !later.is_strong();
                        owed && (less(index(later), index(earlier)) || same_key && less(version(later), index(earlier)))
                    }
            } else if earlier.is_read() {
                promised(earlier)
                    && !less(index(earlier).max(version(earlier)), index(later).or(Some(u64::MAX)))
                    && index(earlier).max(version(earlier)).is_some()
            } else {
                index(earlier).is_some() && index(later).is_some() && !less(index(earlier), index(later))
            };
            if broken {
                return false;
            }
        }
    }
    true
}

fn damage(rng: &mut Rng, history: &mut History) {
    let operations = history.operations_mut();
    let (one, other) = (rng.usize(0..operations.len()), rng.usize(0..operations.len()));
    let values: Vec<_> = operations
        .iter()
        .filter(|op| op.key == operations[one].key)
        .filter_map(|op| if let What::Write(value) = &op.what { Some(value.clone()) } else { None })
        .collect();
    match rng.u8(0..5) {
        // An older value, or a newer one, or none.
        0 | 1 => {
            if let Ended::Found { value, .. } = &mut operations[one].ended {
                *value = pick(rng, &values).filter(|_| rng.u8(0..4) > 0).cloned();
            }
        }
        // A reply claims to have seen less, or stands elsewhere.
        2 => operations[one].position = operations[one].position.map(|at| position(rng.u64(0..=at.id.index.0).max(1))),
        // Two writes of any sessions stand in each other's place.
        3 => {
            if !operations[one].is_read() && !operations[other].is_read() {
                let first = operations[one].position;
                operations[one].position = operations[other].position;
                operations[other].position = first;
            }
        }
        // It was another session's.
        _ => operations[one].client = operations[other].client,
    }
}

#[test]
fn sessions_that_carry_their_token_from_replica_to_replica_pass() {
    for seed in 0..1_000 {
        let mut rng = Rng::with_seed(seed);
        let (clients, keys) = (rng.u32(1..5), rng.u64(1..4));
        let history = wandering(&mut rng, 60, clients, keys);
        let sessions = check_sessions(&history, &Losses::new()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(sessions.checked > 20 && sessions.undecided == 0, "seed {seed}: {sessions:?}");
    }
}

#[test]
fn every_damage_to_a_session_is_judged_as_the_definitions_say() {
    let mut verdicts = Verdicts::default();
    for seed in 0..20_000 {
        let mut rng = Rng::with_seed(seed);
        let (clients, keys) = (rng.u32(1..4), rng.u64(1..3));
        let mut history = wandering(&mut rng, 12, clients, keys);
        for _ in 0..rng.u8(0..4) {
            damage(&mut rng, &mut history);
        }
        let check = check_sessions(&history, &Losses::new()).is_ok();
        verdicts.compare(check, holds(&history), || format!("seed {seed}: {history:#?}"));
    }
    verdicts.assert_at_least(5_000);
}

/// One session: operations in a row, reads at the level of an empty token.
fn session(operations: &[(What, u64, Option<u64>)]) -> History {
    let mut history = History::new();
    for (n, (what, index, found)) in operations.iter().enumerate() {
        let at = Time(n as u64 * 10 + 1);
        let (level, ended) = match what {
            What::Read => {
                (Level::Read(ReadLevel::Session(SessionToken::new())), Ended::Found { at, value: found.map(value) })
            }
            _ => (Level::Write(WriteLevel::Quorum), Ended::Written { at }),
        };
        let id = history.begin_as(ClientId(1), level, at, key(0), what.clone());
        history.end(id, ended);
        history.locate(id, position(*index));
    }
    history
}

#[test]
fn each_guarantee_is_broken_by_name() {
    let write = |n| What::Write(value(n));
    let (first, second) = (OperationId::new(0), OperationId::new(1));
    let check = |operations: &[_]| check_sessions(&session(operations), &Losses::new()).expect_err("broken");
    let client = ClientId(1);
    assert_eq!(
        check(&[(write(1), 1, None), (What::Read, 1, None)]),
        SessionBroken::ReadYourWrites { client, write: first, read: second }
    );
    let history = [(write(1), 1, None), (write(2), 2, None), (What::Read, 2, Some(2)), (What::Read, 1, Some(1))];
    let mut history = session(&history);
    history.operations_mut()[0].client = None;
    history.operations_mut()[1].client = None;
    assert_eq!(
        check_sessions(&history, &Losses::new()),
        Err(SessionBroken::MonotonicReads { client, earlier: OperationId::new(2), later: OperationId::new(3) })
    );
    assert_eq!(
        check(&[(write(1), 2, None), (write(2), 1, None)]),
        SessionBroken::MonotonicWrites { client, earlier: first, later: second }
    );
    assert_eq!(
        check(&[(What::Read, 5, None), (write(2), 4, None)]),
        SessionBroken::WritesFollowReads { client, read: first, write: second }
    );
}

#[test]
fn a_write_that_was_reported_as_lost_is_owed_to_nobody() {
    let mut history = session(&[(What::Write(value(1)), 7, None), (What::Read, 6, None)]);
    history.operations_mut()[0].level = Level::Write(WriteLevel::Memory);
    assert!(check_sessions(&history, &Losses::new()).is_err());
    let mut lost = Losses::new();
    lost.report(StreamId::consensus(replikit_core::GroupId(1)), LogIndex(7)..=LogIndex(9), Term(1));
    assert!(check_sessions(&history, &lost).is_ok());
}
