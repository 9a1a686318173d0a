//! How stale reads at any replica are, exactly: one key is written with ascending numbers, a few hundred times a second, while
//! the replicas are read in turn. A read that began at time `r` and shows number `n` is as stale as the acknowledgement of
//! number `n + 1` is before `r`, and not stale if that came later.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replikit_core::{ReadRequest, Store, WriteLevel, WriteRequest};
use tokio::task::JoinHandle;

use crate::load::Reads;
use crate::recorder::Latencies;

const KEY: &[u8] = b"staleness-probe";
/// Pause between two reads: enough samples in a second, little load.
const READ_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two writes: whoever acknowledges sooner is not asked for more syncs beside what is measured.
const WRITE_PAUSE: Duration = Duration::from_millis(2);

/// A probe under way; on the current thread's set of tasks.
pub struct Probe {
    over: Rc<Cell<bool>>,
    writer: JoinHandle<()>,
    reader: JoinHandle<Latencies>,
}

impl Probe {
    /// Begins writing through `leader` and reading at `replicas`; a session's reads are probed as local ones.
    #[must_use]
    pub fn begin(leader: Arc<dyn Store>, replicas: Vec<Arc<dyn Store>>, level: WriteLevel, reads: Reads) -> Self {
        let over = Rc::new(Cell::new(false));
        let acked: Rc<RefCell<Vec<Option<Instant>>>> = Rc::default();
        let writer = tokio::task::spawn_local({
            let (over, acked) = (over.clone(), acked.clone());
            async move {
                while !over.get() {
                    let number = acked.borrow().len();
                    acked.borrow_mut().push(None);
                    let write = WriteRequest::put(KEY, (number as u64).to_le_bytes().to_vec()).at(level);
                    if leader.write(write).await.is_ok() {
                        acked.borrow_mut()[number] = Some(Instant::now());
                    }
                    tokio::time::sleep(WRITE_PAUSE).await;
                }
            }
        });
        let reader = tokio::task::spawn_local({
            let over = over.clone();
            // What an earlier probe left in the key is not this one's.
            async move {
                let mut ages = Latencies::new();
                for replica in replicas.iter().cycle() {
                    tokio::time::sleep(READ_PAUSE).await;
                    if over.get() {
                        break;
                    }
                    let began = Instant::now();
                    let read = replica.read(ReadRequest::new(KEY).at(reads.level())).await;
                    if let Some(number) = read.ok().and_then(|answer| number(answer.values.first()?)) {
                        ages.record(age(&acked.borrow(), number, began));
                    }
                }
                ages
            }
        });
        Self { over, writer, reader }
    }

    /// Ends it: how stale each read was.
    pub async fn end(self) -> Latencies {
        self.over.set(true);
        self.writer.await.expect("the writer does not panic");
        self.reader.await.expect("the reader does not panic")
    }
}

fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// How long before `began` the number was superseded.
fn age(acked: &[Option<Instant>], number: u64, began: Instant) -> Duration {
    // Writes of unknown outcome supersede nothing for certain.
    let next = acked.iter().skip(number as usize + 1).find_map(|acked| *acked);
    next.map_or(Duration::ZERO, |acked| began.saturating_duration_since(acked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_counts_from_the_first_newer_acknowledgement() {
        let zero = Instant::now();
        let at = |millis| zero + Duration::from_millis(millis);
        let acked = [Some(at(1)), None, Some(at(5)), Some(at(9))];
        assert_eq!(age(&acked, 0, at(12)), Duration::from_millis(7));
        assert_eq!(age(&acked, 2, at(12)), Duration::from_millis(3));
        assert_eq!(age(&acked, 2, at(7)), Duration::ZERO, "the newer one was not acknowledged yet");
        assert_eq!(age(&acked, 3, at(12)), Duration::ZERO, "there is no newer one");
    }
}
