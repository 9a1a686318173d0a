//! One counter that many clients add to at once: how often they got through, and whether the counter shows just that.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikit_benches::engine::Engine;
use replikit_benches::error::BenchError;
use replikit_benches::load::{Reads, Window};
use replikit_benches::play::COUNTERS;
use replikit_benches::recorder::Latencies;
use replikit_core::{ReadLevel, ReadRequest, Store, WriteError, WriteLevel, WriteRequest};
use tokio::task::LocalSet;

use crate::sample::Sample;

/// A client that failed waits for this time.
const PAUSE: Duration = Duration::from_millis(1);

/// What the clients found, warm-up included but for the latencies.
#[derive(Debug, Default)]
struct Found {
    over: Cell<bool>,
    recording: Cell<bool>,
    latencies: RefCell<Latencies>,
    acked: Cell<u64>,
    /// Without any effect.
    refused: Cell<u64>,
    in_doubt: Cell<u64>,
    /// Why one of them was not acknowledged.
    example: RefCell<String>,
}

fn bump(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

/// The counter that all of them add to.
fn hot() -> Bytes {
    format!("{COUNTERS}hot").into()
}

/// Has so many clients add 1 again and again, spread over the nodes. Must run on a current-thread runtime.
///
/// # Errors
/// When the engine fails, or does not show the counter.
pub async fn add(engine: &mut dyn Engine, clients: u32, window: Window) -> Result<Sample, BenchError> {
    let stores = engine.target(WriteLevel::Quorum, Reads::Local).leader;
    let found = Rc::new(Found::default());
    let run = async {
        let clients = stores.iter().cycle().take(clients as usize);
        let tasks: Vec<_> =
            clients.map(|store| tokio::task::spawn_local(client(store.clone(), found.clone()))).collect();
        tokio::time::sleep(window.warm_up).await;
        found.recording.set(true);
        let start = Instant::now();
        tokio::time::sleep(window.measured).await;
        found.recording.set(false);
        let took = start.elapsed();
        found.over.set(true);
        for task in tasks {
            task.await.expect("a client reports its errors");
        }
        took
    };
    let took = LocalSet::new().run_until(run).await;
    engine.check()?;
    engine.settle().await?;
    let read = stores[0].read(ReadRequest::new(hot()).at(ReadLevel::Local)).await?;
    let shown = read.values.first().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0);
    let latencies = found.latencies.take();
    Ok(Sample {
        rate: latencies.count() as f64 / took.as_secs_f64(),
        latencies,
        notes: found.note().into_iter().collect(),
        wrong: found.wrong(shown).into_iter().collect(),
        ..Sample::default()
    })
}

async fn client(store: Arc<dyn Store>, found: Rc<Found>) {
    while !found.over.get() {
        let begun = Instant::now();
        match store.write(WriteRequest::add(hot(), 1).at(WriteLevel::Quorum)).await {
            Ok(_) => {
                bump(&found.acked);
                if found.recording.get() {
                    found.latencies.borrow_mut().record(begun.elapsed());
                }
                continue;
            }
            Err(error) => {
                let in_doubt = matches!(error, WriteError::Indeterminate { .. });
                bump(if in_doubt { &found.in_doubt } else { &found.refused });
                found.example.replace(error.to_string());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Found {
    /// How many did not get through, and their share.
    fn note(&self) -> Option<String> {
        let (refused, in_doubt) = (self.refused.get(), self.in_doubt.get());
        let all = self.acked.get() + refused + in_doubt;
        let share = (refused + in_doubt) as f64 * 100.0 / all.max(1) as f64;
        let example = self.example.borrow();
        (refused + in_doubt > 0).then(|| {
            format!("{share:.1} % of {all} additions failed: {refused} refused, {in_doubt} in doubt (for example: {example})")
        })
    }

    /// What is wrong with a counter that shows this.
    fn wrong(&self, shown: u64) -> Option<String> {
        let (acked, in_doubt) = (self.acked.get(), self.in_doubt.get());
        let right = (acked..=acked + in_doubt).contains(&shown);
        (!right)
            .then(|| format!("the counter shows {shown} after {acked} acknowledged additions and {in_doubt} in doubt"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_shows_what_was_acknowledged_and_no_more_than_may_have_happened() {
        let found = Found { acked: Cell::new(10), in_doubt: Cell::new(2), ..Found::default() };
        for right in [10, 11, 12] {
            assert_eq!(found.wrong(right), None);
        }
        for wrong in [0, 9, 13] {
            assert!(found.wrong(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn what_failed_is_told_with_its_share() {
        assert_eq!(Found::default().note(), None);
        let found = Found { acked: Cell::new(1), refused: Cell::new(3), ..Found::default() };
        found.example.replace("a deadlock".to_owned());
        let note = found.note().expect("some failed");
        assert!(note.contains("75.0 %") && note.contains("3 refused") && note.contains("a deadlock"), "{note}");
    }
}
