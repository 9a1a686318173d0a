//! Reads that need not be fresh, held against the definition.

use core::time::Duration;

use fastrand::Rng;
use replikit_core::{ReadLevel, Time, WriteLevel};
use replikit_sim::check::{ClientId, Ended, History, Level, Recorded, StalenessBroken, What, check_staleness};

use super::{Verdicts, key, pick, position, value};

const NS: fn(u64) -> Duration = Duration::from_nanos;

/// A correct execution: a log that is written in true time, and reads of what it was some time ago, at most the bound.
fn delayed(rng: &mut Rng, operations: u64, keys: u64, positions: bool) -> History {
    let mut history = History::new();
    // When committed, key, value.
    let mut log: Vec<(u64, u64, u64)> = Vec::new();
    for n in 0..operations {
        // Operations overlap: each takes up to three steps, and takes effect within the first.
        let (at, ends, key_number) = (n * 10 + 100, n * 10 + 105 + rng.u64(0..25), rng.u64(0..keys));
        if rng.bool() {
            log.push((at + 5, key_number, n));
            let level = Level::Write(if rng.u8(0..8) == 0 { WriteLevel::Memory } else { WriteLevel::Quorum });
            let id = history.begin_as(ClientId(n as u32), level, Time(at), key(key_number), What::Write(value(n)));
            if rng.u8(0..8) > 0 {
                history.end(id, Ended::Written { at: Time(ends) });
            }
            if positions {
                history.locate(id, position(log.len() as u64));
            }
            continue;
        }
        let bound = rng.u64(0..60);
        let as_of = at + 5 - rng.u64(0..=bound).min(at);
        let found = log.iter().rev().find(|(time, key, _)| *time <= as_of && *key == key_number);
        let level = match rng.u8(0..3) {
            0 => ReadLevel::Local,
            _ => ReadLevel::BoundedStale(NS(bound)),
        };
        let id = history.begin_as(ClientId(n as u32), Level::Read(level), Time(at), key(key_number), What::Read);
        history.end(id, Ended::Found { at: Time(ends), value: found.map(|&(_, _, n)| value(n)) });
        if rng.u8(0..4) == 0 {
            history.bound(id, NS(bound));
        }
    }
    history
}

/// The definition, over all pairs: nothing unwritten, nothing from the future, and no write that is newer for certain was
/// acknowledged before the bound began.
fn holds(history: &History) -> bool {
    let operations = history.operations();
    operations.iter().all(|read| {
        let Ended::Found { at, value } = &read.ended else { return true };
        let mut seen: Option<&Recorded> = None;
        if let Some(value) = value {
            seen = operations.iter().find(|op| op.key == read.key && op.what == What::Write(value.clone()));
            if seen.is_none_or(|seen| seen.ended == Ended::Void || seen.began > *at) {
                return false;
            }
        }
        let level = if let Level::Read(ReadLevel::BoundedStale(bound)) = read.level { Some(bound) } else { None };
        let bounds: Vec<_> = [level, read.staleness].into_iter().flatten().collect();
        operations.iter().all(|write| {
            let acked = write.answered_at().filter(|_| write.is_strong() && !write.is_read() && write.key == read.key);
            let Some(acked) = acked else { return true };
            let newer = match seen {
                None => true,
                Some(seen) => {
                    seen.answered_at().is_some_and(|ended| ended < write.began)
                        || seen.position.zip(write.position).is_some_and(|(seen, write)| seen.id.index < write.id.index)
                }
            };
            !newer || bounds.iter().all(|bound| acked.0 >= read.began.0.saturating_sub(bound.as_nanos() as u64))
        })
    })
}

fn damage(rng: &mut Rng, history: &mut History) {
    let operations = history.operations_mut();
    let one = rng.usize(0..operations.len());
    let values: Vec<_> = operations
        .iter()
        .filter(|op| op.key == operations[one].key)
        .filter_map(|op| if let What::Write(value) = &op.what { Some(value.clone()) } else { None })
        .collect();
    match rng.u8(0..4) {
        0 | 1 => {
            if let Ended::Found { value, .. } = &mut operations[one].ended {
                *value = pick(rng, &values).filter(|_| rng.u8(0..5) > 0).cloned();
            }
        }
        2 => {
            if let Level::Read(level) = &mut operations[one].level {
                *level = ReadLevel::BoundedStale(NS(0));
            }
        }
        _ if !operations[one].is_read() => operations[one].ended = Ended::Void,
        _ => operations[one].staleness = Some(NS(rng.u64(0..20))),
    }
}

#[test]
fn answers_within_their_bound_pass() {
    for seed in 0..1_000 {
        let mut rng = Rng::with_seed(seed);
        let positions = rng.bool();
        let history = delayed(&mut rng, 80, 2, positions);
        let staleness =
            check_staleness(&history, Duration::ZERO).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(staleness.bounded > 5 && staleness.undecided == 0, "seed {seed}: {staleness:?}");
    }
}

#[test]
fn every_damage_to_an_answer_is_judged_as_the_definition_says() {
    let mut verdicts = Verdicts::default();
    for seed in 0..20_000 {
        let mut rng = Rng::with_seed(seed);
        let (keys, positions) = (rng.u64(1..3), rng.bool());
        let mut history = delayed(&mut rng, 14, keys, positions);
        for _ in 0..rng.u8(0..7) {
            damage(&mut rng, &mut history);
        }
        let check = check_staleness(&history, Duration::ZERO).is_ok();
        verdicts.compare(check, holds(&history), || format!("seed {seed}: {history:#?}"));
    }
    verdicts.assert_at_least(5_000);
}

#[test]
fn the_error_of_the_clocks_is_added_to_the_bound() {
    let mut history = History::new();
    let id = history.begin(Time(10), key(0), What::Write(value(1)));
    history.end(id, Ended::Written { at: Time(20) });
    let level = Level::Read(ReadLevel::BoundedStale(NS(50)));
    let id = history.begin_as(ClientId(1), level, Time(80), key(0), What::Read);
    history.end(id, Ended::Found { at: Time(90), value: None });
    assert!(matches!(check_staleness(&history, NS(0)), Err(StalenessBroken::Stale { .. })));
    assert!(check_staleness(&history, NS(10)).is_ok());
}
