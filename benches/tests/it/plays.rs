//! Traces played on stores in this process: what is lost is found, by whomever, and nothing is found that is not lost.

use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replikit_benches::ledger::Ledger;
use replikit_benches::load::Reads;
use replikit_benches::play::{self, Home, Judged, Play, Played, Until};
use replikit_benches::workload::mix::{Mix, Operation, Updates};
use replikit_benches::workload::trace::Trace;
use replikit_core::{ReadLevel, Store, WriteLevel};

use crate::stores::{Lie, Memory};

const STEPS: usize = 3_000;

fn play(lie: Lie, workload: &str, updates: Option<Updates>) -> (Played, Judged) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut mix = Mix::built_in(workload).unwrap();
    // Few, so that clients meet.
    mix.keys = mix.keys.min(50);
    let trace = Rc::new(Trace::draw(&mix, 1, STEPS));
    let played_as = Play {
        trace: trace.clone(),
        updates: updates.unwrap_or(mix.updates),
        write_level: WriteLevel::Quorum,
        reads: Reads::Linearizable,
        until: Until::TheEnd,
        think: Duration::ZERO,
        deadline: Duration::from_secs(5),
    };
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(Memory { lie, state: Mutex::default() });
        let home = Home { writes: store.clone(), reads: store.clone() };
        let ledger = Rc::new(Ledger::new(trace.keys(), trace.value_bytes_max() as usize));
        let mut history = Default::default();
        play::load(&played_as, &ledger, &home, &mut history).await.unwrap();
        let (played, ()) =
            play::play(played_as.clone(), ledger.clone(), vec![home], history, async |_| Ok::<_, ()>(()))
                .await
                .unwrap();
        let level = Some(ReadLevel::Linearizable);
        let judged = play::judge(&played_as, &played, &ledger, &*store, level, None).await.unwrap();
        (played, judged)
    })
}

#[test]
fn an_honest_store_keeps_what_it_was_given() {
    for workload in ["ycsb-a", "ycsb-d", "ycsb-e", "ycsb-f", "append-log", "scans"] {
        let (played, judged) = play(Lie::None, workload, None);
        let served: u64 = played.latencies.values().map(|latencies| latencies.count()).sum();
        assert_eq!((served, played.wrong), (STEPS as u64, 0), "{workload}: {:?}", played.failures);
        assert_eq!((judged.silent(), judged.broken), (0, None), "{workload}");
    }
}

#[test]
fn counters_that_are_put_back_lose_updates_and_compared_ones_do_not() {
    let (_, blind) = play(Lie::None, "counter", Some(Updates::Put));
    assert!(blind.lost_silent > 0, "12 clients on 50 counters meet: {blind:?}");
    assert_eq!(blind.broken, None, "the store keeps its promises; the clients do not take care");
    let (played, compared) = play(Lie::None, "counter", Some(Updates::CompareAndSet));
    assert_eq!(compared.lost_silent, 0, "{compared:?}");
    assert!(played.retries > 0, "they met here as well");
}

#[test]
fn lost_writes_of_every_kind_are_counted() {
    for workload in ["ycsb-a", "append-log", "set-add"] {
        let updates = (workload == "set-add").then_some(Updates::CompareAndSet);
        let (_, judged) = play(Lie::ForgetsWrites, workload, updates);
        // Of a record a later write may have healed it: then the reads between have shown it.
        assert!(judged.silent() > 0 || judged.broken.is_some(), "{workload}: {judged:?}");
    }
}

#[test]
fn the_checkers_see_reads_of_the_past() {
    let (played, judged) = play(Lie::ReadsThePast, "ycsb-a", None);
    assert!(judged.checked > STEPS / 2, "{judged:?}");
    let broken = judged.broken.unwrap();
    assert!(played.wrong > 0 && !broken.is_empty(), "{broken}");
}

#[test]
fn what_is_not_served_in_time_counts_as_not_served() {
    let (played, _) = play(Lie::Stalls, "sensors", None);
    assert!(played.attempts.iter().all(|attempt| attempt.served), "50 ms are within the deadline");
    let appends = &played.latencies[&Operation::Append];
    assert!(appends.quantile(0.5) >= Duration::from_millis(49));
}
