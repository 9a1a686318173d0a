//! The subscriber's side of change data capture within the process, and what it shares with the one over TCP.
//!
//! Invariants: what lies on a [`Shelf`] is at most its limit, or one batch if that is larger; a call of
//! [`HandleChanges::next`] that is dropped leaves everything where it was.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use replikit_core::{Batch, BatchKind, Batches, Change, Changes, Cursor, LogId, LogIndex, Position, SubscribeError};

use crate::feed::Subscriber;
use crate::handle::Handle;

/// Changes taken out of batches, and where to go on.
#[derive(Debug)]
pub(crate) struct Unpacked {
    next: LogIndex,
    changes: VecDeque<Change>,
}

impl Unpacked {
    /// Nothing yet, from this index on.
    pub(crate) const fn new(next: LogIndex) -> Self {
        Self { next, changes: VecDeque::new() }
    }

    /// Takes the commands of a batch; what lies before the index asked for, and control records, are passed over. Payloads
    /// are copied: whoever keeps one keeps nothing else alive.
    pub(crate) fn take(&mut self, batch: &Batch) {
        let (stream, term, digest) = (batch.stream(), batch.term(), batch.digest());
        if batch.kind() == BatchKind::Commands {
            for entry in batch.entries().filter(|entry| entry.index >= self.next) {
                let at = Position { stream, id: LogId { term, index: entry.index }, digest };
                let command = Bytes::copy_from_slice(entry.payload);
                self.changes.push_back(Change { at, session: entry.session, command });
            }
        }
        self.next = self.next.max(batch.last().index.next());
    }

    pub(crate) fn pop(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Behind everything that was taken.
    pub(crate) const fn cursor(&self) -> Cursor {
        Cursor::After(self.next.prev())
    }
}

#[derive(Default)]
struct Shelved {
    begun: Option<LogIndex>,
    batches: VecDeque<Batch>,
    bytes: usize,
    end: Option<SubscribeError>,
    waker: Option<Waker>,
}

impl Shelved {
    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Where a loop leaves batches for one subscriber.
struct Shelf {
    shelved: Mutex<Shelved>,
    bytes_max: usize,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Shelved> {
        // No code that can panic runs under the lock.
        self.shelved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max / 2
    }

    fn put(&self, put: impl FnOnce(&mut Shelved)) {
        let mut shelved = self.lock();
        put(&mut shelved);
        let waker = shelved.waker.take();
        drop(shelved);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the loop has taken the subscription up.
    async fn begun(&self) -> Result<LogIndex, SubscribeError> {
        poll_fn(|context| {
            let mut shelved = self.lock();
            match (shelved.begun, &shelved.end) {
                (Some(next), _) => Poll::Ready(Ok(next)),
                (None, Some(why)) => Poll::Ready(Err(why.clone())),
                (None, None) => shelved.wait(context),
            }
        })
        .await
    }

    /// Waits for the next batch; with it, whether there is room again where there was none.
    async fn next(&self) -> Result<(Batch, bool), SubscribeError> {
        poll_fn(|context| {
            let mut shelved = self.lock();
            if let Some(batch) = shelved.batches.pop_front() {
                let had_room = self.has_room(shelved.bytes);
                shelved.bytes -= batch.bytes();
                return Poll::Ready(Ok((batch, !had_room && self.has_room(shelved.bytes))));
            }
            match &shelved.end {
                Some(why) => Poll::Ready(Err(why.clone())),
                None => shelved.wait(context),
            }
        })
        .await
    }
}

/// The loop's hold on a shelf; dropping it ends the subscription.
pub(crate) struct Shelver(Arc<Shelf>);

impl fmt::Debug for Shelver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shelver")
    }
}

impl Subscriber for Shelver {
    fn is_gone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn has_room(&self) -> bool {
        self.0.has_room(self.0.lock().bytes)
    }

    fn begin(&self, next: LogIndex) {
        self.0.put(|shelved| shelved.begun = Some(next));
    }

    fn give(&self, batches: Batches) {
        self.0.put(|shelved| {
            shelved.bytes += batches.bytes();
            shelved.batches.extend(batches);
        });
    }

    fn end(&self, why: SubscribeError) {
        self.0.put(|shelved| {
            shelved.end.get_or_insert(why);
        });
    }
}

impl Drop for Shelver {
    fn drop(&mut self) {
        self.end(SubscribeError::Closed);
    }
}

/// The changes of a group, from within the process. If the node that it follows stops, it goes on at another one where the
/// handle has one.
#[derive(Debug)]
pub(crate) struct HandleChanges<M> {
    handle: Handle<M>,
    reader: Reader,
    unpacked: Unpacked,
    ended: Option<SubscribeError>,
}

struct Reader(Arc<Shelf>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl<M> HandleChanges<M> {
    pub(crate) async fn open(handle: Handle<M>, from: Cursor) -> Result<Self, SubscribeError> {
        let (reader, next) = begin(&handle, from).await?;
        Ok(Self { handle, reader, unpacked: Unpacked::new(next), ended: None })
    }

    async fn advance(&mut self) -> Result<(), SubscribeError> {
        match self.reader.0.next().await {
            Ok((batch, has_room_again)) => {
                self.unpacked.take(&batch);
                if has_room_again {
                    self.handle.nudge();
                }
            }
            Err(SubscribeError::Closed) => self.reader = begin(&self.handle, self.unpacked.cursor()).await?.0,
            Err(why) => return Err(why),
        }
        Ok(())
    }
}

async fn begin<M>(handle: &Handle<M>, from: Cursor) -> Result<(Reader, LogIndex), SubscribeError> {
    let shelf = Arc::new(Shelf { shelved: Mutex::default(), bytes_max: handle.subscription_bytes_max() });
    handle.follow(from, Shelver(Arc::clone(&shelf)))?;
    let next = shelf.begun().await?;
    Ok((Reader(shelf), next))
}

#[async_trait]
impl<M: 'static> Changes for HandleChanges<M> {
    async fn next(&mut self) -> Result<Change, SubscribeError> {
        loop {
            if let Some(change) = self.unpacked.pop() {
                return Ok(change);
            }
            if let Some(why) = &self.ended {
                return Err(why.clone());
            }
            if let Err(why) = self.advance().await {
                self.ended = Some(why);
            }
        }
    }
}
