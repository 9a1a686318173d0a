//! The law of durability: acknowledged = found + reported as lost.

use bytes::Bytes;
use fastrand::Rng;
use replikit_core::{GroupId, LogIndex, NodeId, StreamId, Term, WriteLevel};
use replikit_sim::check::{
    Attempt, Convergence, Diverged, Fate, Losses, NotDurable, Scan, StateHash, check_counter, check_durability,
};

use super::{Verdicts, pick, position, value};

const STREAM: StreamId = StreamId::consensus(GroupId(1));

struct Outcome {
    attempts: Vec<Attempt>,
    scans: Vec<Scan>,
    losses: Losses,
    // The same as plain ranges, for the definition.
    ranges: Vec<(u64, u64)>,
}

/// A correct execution: writes at all levels into one log, of which some weak tails are lost and reported.
fn replicated(rng: &mut Rng, writes: u64) -> Outcome {
    let (mut attempts, mut log) = (Vec::new(), Vec::new());
    let (mut losses, mut ranges) = (Losses::new(), Vec::new());
    let mut index = 0;
    for n in 0..writes {
        let serial = value(n);
        let level =
            *pick(rng, &[WriteLevel::Quorum, WriteLevel::Applied(2), WriteLevel::Memory, WriteLevel::Durable(1)])
                .expect("four");
        let weak = matches!(level, WriteLevel::Memory | WriteLevel::Durable(_));
        let fate = match rng.u8(0..8) {
            0 => Fate::Void,
            1 | 2 => Fate::Unknown,
            _ => Fate::Acked { level, at: Some(position(index + 1)) },
        };
        let kept = match fate {
            Fate::Void => false,
            Fate::Unknown => rng.bool(),
            Fate::Acked { .. } => {
                let lost = weak && rng.u8(0..4) == 0;
                if lost {
                    losses.report(STREAM, LogIndex(index + 1)..=LogIndex(index + 1), Term(1));
                    ranges.push((index + 1, index + 1));
                    index += 1;
                }
                !lost
            }
        };
        if kept {
            index += 1;
            log.push(serial.clone());
        }
        attempts.push(Attempt { serial, fate });
    }
    let scans = (1..=3).map(|node| Scan { node: NodeId(node), applied: log.clone() }).collect();
    Outcome { attempts, scans, losses, ranges }
}

/// The law, word by word.
fn holds(outcome: &Outcome) -> bool {
    let fate = |serial: &Bytes| outcome.attempts.iter().find(|attempt| attempt.serial == *serial).map(|a| a.fate);
    let index = |serial: &Bytes| match fate(serial) {
        Some(Fate::Acked { at: Some(at), .. }) => Some(at.id.index.0),
        _ => None,
    };
    outcome.scans.iter().all(|Scan { applied, .. }| {
        let phantom = applied.iter().any(|serial| matches!(fate(serial), None | Some(Fate::Void)));
        let twice = applied.iter().any(|serial| applied.iter().filter(|other| *other == serial).count() > 1);
        let order: Vec<u64> = applied.iter().filter_map(index).collect();
        let lost = outcome.attempts.iter().any(|attempt| {
            let Fate::Acked { level, at: Some(at) } = attempt.fate else { return false };
            let reported = outcome.ranges.iter().any(|&(from, to)| (from..=to).contains(&at.id.index.0));
            let strong = matches!(level, WriteLevel::Quorum | WriteLevel::Applied(_));
            !applied.contains(&attempt.serial) && (strong || !reported)
        });
        !phantom && !twice && !lost && order.is_sorted_by(|one, other| one < other)
    })
}

fn damage(rng: &mut Rng, outcome: &mut Outcome) {
    let scan = rng.usize(0..outcome.scans.len());
    let applied = &mut outcome.scans[scan].applied;
    let serials: Vec<Bytes> = outcome.attempts.iter().map(|attempt| attempt.serial.clone()).collect();
    let at = rng.usize(0..applied.len().max(1));
    match rng.u8(0..6) {
        0 if !applied.is_empty() => drop(applied.remove(at)),
        1 if !applied.is_empty() => applied.insert(rng.usize(0..applied.len()), applied[at].clone()),
        2 => applied.insert(at, pick(rng, &serials).cloned().unwrap_or_default()),
        3 => applied.insert(at, "phantom".into()),
        4 if !applied.is_empty() => {
            let other = rng.usize(0..applied.len());
            applied.swap(at, other);
        }
        _ => {
            let at = rng.usize(0..outcome.attempts.len());
            outcome.attempts[at].fate = Fate::Acked { level: WriteLevel::Memory, at: Some(position(1_000)) };
        }
    }
}

#[test]
fn what_was_kept_or_reported_passes() {
    for seed in 0..1_000 {
        let outcome = replicated(&mut Rng::with_seed(seed), 50);
        let durability = check_durability(&outcome.attempts, &outcome.scans, &outcome.losses)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(durability.kept + durability.surfaced, outcome.scans[0].applied.len(), "seed {seed}");
        assert_eq!(durability.reported, outcome.ranges.len(), "seed {seed}");
    }
}

#[test]
fn every_damage_to_a_final_state_is_judged_as_the_law_says() {
    let mut verdicts = Verdicts::default();
    for seed in 0..20_000 {
        let mut rng = Rng::with_seed(seed);
        let writes = rng.u64(1..12);
        let mut outcome = replicated(&mut rng, writes);
        for _ in 0..rng.u8(0..3) {
            damage(&mut rng, &mut outcome);
        }
        let check = check_durability(&outcome.attempts, &outcome.scans, &outcome.losses).is_ok();
        verdicts
            .compare(check, holds(&outcome), || format!("seed {seed}: {:#?} {:#?}", outcome.attempts, outcome.scans));
    }
    verdicts.assert_at_least(5_000);
}

#[test]
fn what_a_crashed_leader_held_in_memory_alone_is_excused_only_when_said_so() {
    let attempt = |level| [Attempt { serial: value(1), fate: Fate::Acked { level, at: Some(position(4)) } }];
    let scan = [Scan { node: NodeId(1), applied: Vec::new() }];
    let mut losses = Losses::new();
    assert!(check_durability(&attempt(WriteLevel::Memory), &scan, &losses).is_err());
    losses.leader_crashed(STREAM, Term(1));
    assert!(check_durability(&attempt(WriteLevel::Memory), &scan, &losses).is_ok());
    assert!(check_durability(&attempt(WriteLevel::LeaderDisk), &scan, &losses).is_err(), "the disk outlives a crash");
    assert!(check_durability(&attempt(WriteLevel::Quorum), &scan, &losses).is_err());
}

#[test]
fn a_report_covers_entries_of_its_term_and_later_only() {
    let at = position(4);
    let mut losses = Losses::new();
    losses.report(STREAM, LogIndex(3)..=LogIndex(5), Term(2));
    assert!(!losses.contains(at), "that entry is of an earlier term");
    losses.report(STREAM, LogIndex(3)..=LogIndex(5), Term(1));
    assert!(losses.contains(at) && !losses.contains(position(6)));
}

#[test]
fn a_counter_is_what_was_acknowledged_and_some_of_what_is_unknown() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let acked: Vec<i64> = (0..rng.usize(0..6)).map(|_| 1).collect();
        let unknown = vec![1; rng.usize(0..4)];
        let value = rng.i64(-1..12);
        let possible = (0..=unknown.len()).any(|surfaced| value == (acked.len() + surfaced) as i64);
        assert_eq!(check_counter(value, acked, &unknown).is_ok(), possible, "seed {seed}");
    }
    assert_eq!(check_counter(9, [3, 3], &[2, -1]), Err(NotDurable::Counter { value: 9, least: 5, most: 8 }));
}

#[test]
fn equal_logs_with_different_states_are_found_whoever_comes_first() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let odd = rng.bool().then(|| (rng.u32(1..4), rng.u64(1..20)));
        let mut visits: Vec<(u32, u64)> = (1..4).flat_map(|node| (1..20).map(move |index| (node, index))).collect();
        rng.shuffle(&mut visits);
        let mut convergence = Convergence::default();
        let found = visits.into_iter().find_map(|(node, index)| {
            let state = if odd == Some((node, index)) { u64::MAX } else { index };
            convergence.observe(NodeId(node), LogIndex(index), StateHash(state)).err()
        });
        match (odd, found) {
            (None, None) => {}
            (Some((node, index)), Some(Diverged { index: at, first, other, .. })) => {
                assert_eq!(at, LogIndex(index), "seed {seed}");
                assert!(first == NodeId(node) || other == NodeId(node), "seed {seed}");
            }
            (odd, found) => panic!("seed {seed}: {odd:?} was judged {found:?}"),
        }
    }
}
