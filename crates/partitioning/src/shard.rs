//! A group of a partitioned store: any state machine with keys, in front of it the group's holdings, behind it who was answered what.
//!
//! Invariants:
//!
//! - Whether a write is carried out is decided where it is applied, by what the group's log has said so far ([`Holdings`]): not by a
//!   map, not by a clock, the same on every replica. A request that is refused has changed nothing.
//! - A request with a client's number is carried out once, also when it is asked again at another group behind a handoff:
//!   the answers are kept with the keys that they are about, and go where those go (Lee et al., SOSP'15, section 4: RIFL).
//! - What is on its way here is not visible before [`Record::Open`](crate::handoff::Record::Open).
//!
//! Commands, queries and answers are bytes: [`encode_write`], [`encode_read`], [`decode_reply`]; a record of a handoff or of a map's
//! splits and merges is a command too: [`encode_record`].

mod answers;
mod contents;
mod image;
mod keyspace;
mod loads;
mod wire;

#[cfg(test)]
mod tests;

use core::ops::{Bound, ControlFlow};

use bytes::Bytes;
use replikit_core::keyspace::{encode_page, encode_too_large};
use replikit_core::{KEY_BYTES_MAX, LogIndex, Page, RestoreError, SnapshotSource, StateMachine};

use crate::handoff::{Held, Holdings, SourceStore, TargetStore};
use crate::id::{HandoffId, PartitionId};
use crate::map::{Refused, Route};
use crate::partitioner::{Partitioner as _, Scheme};
use crate::span::Span;
use crate::split::cut_by_size;
use answers::Known;
pub use answers::{ANSWERS_MAX, CLIENTS_MAX, ClientId, Request};
pub use contents::Contents;
use image::{Image, Restorer};
use loads::{Loads, Touched};
use wire::{Command, Query};
pub use wire::{
    Reply, SHARD_VERSION, ShardError, decode_reply, encode_map_refusal, encode_read, encode_record, encode_write,
};

/// Keys that a cut by size is chosen among, at least half of these where there are so many.
const SIZE_SAMPLES_MAX: usize = 2_048;

/// A state machine whose every command and query is about keys, and whose state is a state for each key.
///
/// Invariant that the implementor keeps: a command changes the state of its own key only, and its answer depends on nothing
/// but that state. A machine made by `default` has no keys.
pub trait Keyed: StateMachine + Default {
    /// The key that a command is about; none for bytes that are no command.
    fn command_key<'c>(&self, command: &'c [u8]) -> Option<&'c [u8]>;

    /// What a query asks for; none for bytes that are no query, or not about keys.
    fn wanted<'q>(&self, query: &'q [u8]) -> Option<Wanted<'q>>;

    /// All that the machine knows of a key; none if that is nothing.
    fn state(&self, key: &[u8]) -> Option<Bytes>;

    /// Makes the machine know this of a key, and nothing else.
    fn set_state(&mut self, key: &[u8], state: Option<&[u8]>);

    /// How many keys it knows something of.
    fn keys(&self) -> usize;

    /// Calls `visit` for the keys from a bound on, in the order of their bytes, with their states, until it breaks. `visit` must not use
    /// the machine.
    fn each_from(&self, from: Bound<&[u8]>, visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>);
}

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'q> {
    /// One key, by a query of the machine's own.
    Key(&'q [u8]),
    /// A page of keys with their states, ascending.
    Page {
        /// The first key wanted.
        from: &'q [u8],
        /// The first key no longer wanted; `None` means to the end.
        to: Option<&'q [u8]>,
        /// Most keys in the page, at least 1.
        limit: u32,
    },
}

/// One replica's state of a partitioned group. See the [module](self).
#[derive(Debug)]
pub struct Shard<M> {
    scheme: Scheme,
    holdings: Holdings,
    contents: Contents<M>,
    restorer: Restorer<M>,
    // Records applied by this process.
    records: u64,
    loads: Loads,
}

impl<M: Keyed> Shard<M> {
    /// The state that the group's log begins with: the same at every replica and every start. `holdings` are those of the map that the
    /// store began with ([`Holdings::first`]); a group that was made later begins with none.
    pub fn new(scheme: Scheme, holdings: Holdings) -> Self {
        Self {
            scheme,
            holdings,
            contents: Contents::new(scheme),
            restorer: Restorer::default(),
            records: 0,
            loads: Loads::default(),
        }
    }

    /// How many records this process has applied or read from snapshots: when it has not grown, the holdings are the same.
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// What the group holds, as its log has said so far.
    pub const fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// The user's own state machine.
    pub const fn machine(&self) -> &M {
        self.contents.machine()
    }

    /// How keys become positions.
    pub const fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// What [`crate::handoff::Source`] and [`crate::handoff::Target`] ask of the group.
    pub const fn contents(&self) -> &Contents<M> {
        &self.contents
    }

    /// Whether memory is left to free of what the group does not hold any more.
    pub fn is_untidy(&self) -> bool {
        self.contents.is_untidy()
    }

    /// Frees about so many keys, at least 1, of what the group does not hold any more: changes nothing that anybody can see. To be called
    /// now and then while it [`is_untidy`](Self::is_untidy).
    pub fn tidy(&self, keys_max: usize) {
        self.contents.tidy(keys_max.max(1));
    }

    /// Keys and bytes of each partition that the group holds: for splits by size. Walks over all of it.
    pub fn sizes(&self) -> impl Iterator<Item = (PartitionId, u64, u64)> {
        self.holdings.held().map(|(id, held)| {
            let (keys, bytes) = self.contents.size(&held.entry.span);
            (id, keys, bytes)
        })
    }

    /// Operations of each partition that this process has carried out: writes at every replica, reads where they were asked. Whoever is
    /// asked nothing between two calls has no cut by load.
    pub fn operations(&self) -> Vec<(PartitionId, u64)> {
        self.loads.operations()
    }

    /// Where a partition is best cut by what it is asked.
    ///
    /// # Errors
    /// Why there is no good cut.
    pub fn cut_by_load(&self, partition: PartitionId) -> Result<Bytes, Refused> {
        self.loads.cut(&self.scheme, &self.held(partition)?.entry)
    }

    /// Where it is best cut by its bytes. Walks over all of it.
    ///
    /// # Errors
    /// Why there is no good cut.
    pub fn cut_by_size(&self, partition: PartitionId) -> Result<Bytes, Refused> {
        let entry = &self.held(partition)?.entry;
        cut_by_size(&self.scheme, entry, &self.contents.samples(&entry.span, SIZE_SAMPLES_MAX))
    }

    fn held(&self, partition: PartitionId) -> Result<&Held, Refused> {
        let mut held = self.holdings.held();
        held.find_map(|(id, held)| (id == partition).then_some(held)).ok_or(Refused::UnknownPartition(partition))
    }

    fn write(&mut self, at: LogIndex, route: &Route, request: Option<Request>, body: &[u8]) -> Reply {
        let Some(key) = self.contents.machine().command_key(body) else { return Reply::Malformed };
        let position = self.scheme.position(key);
        if let Err(refusal) = self.holdings.check(route, &position) {
            return Reply::Refused(refusal);
        }
        self.loads.count(route.partition, || Touched::Write(position.to_bytes()));
        match request.map(|request| self.contents.look_up(request)) {
            Some(Known::Answered(reply)) => return Reply::Done(reply),
            Some(Known::Expired) => return Reply::Expired,
            Some(Known::New) | None => {}
        }
        Reply::Done(self.contents.write(at, key, request, body))
    }

    fn read(&self, route: &Route, body: &[u8], bytes_max: usize) -> Reply {
        match self.contents.machine().wanted(body) {
            None => Reply::Malformed,
            Some(Wanted::Key(key)) => {
                let position = self.scheme.position(key);
                match self.holdings.check(route, &position) {
                    Ok(_) => {
                        self.loads.count(route.partition, || Touched::Read(position.to_bytes()));
                        Reply::Done(self.contents.machine().query(body, bytes_max))
                    }
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Some(Wanted::Page { from, to, limit }) => match self.holdings.check_whole(route) {
                Ok(held) => {
                    let keys = || Span::new(Bytes::copy_from_slice(from), to.map(Bytes::copy_from_slice));
                    self.loads.count(route.partition, || Touched::Scan(self.scheme.reach(&keys())));
                    Reply::Done(self.page(&held.entry.span, from, to, limit, bytes_max))
                }
                Err(refusal) => Reply::Refused(refusal),
            },
        }
    }

    /// The keys of a range that are in one partition.
    fn page(&self, span: &Span, from: &[u8], to: Option<&[u8]>, limit: u32, bytes_max: usize) -> Bytes {
        let mut page = Page::default();
        // What the encoding adds: lengths, counts and the cursor.
        let mut bytes = 64 + KEY_BYTES_MAX;
        self.contents.each_from(span, Bound::Included(from), &mut |key, state| {
            if to.is_some_and(|to| key >= to) {
                return ControlFlow::Break(());
            }
            bytes += key.len() + state.len() + 16;
            if page.items.len() == limit.max(1) as usize || bytes > bytes_max {
                page.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            page.items.push((Bytes::copy_from_slice(key), state.clone()));
            ControlFlow::Continue(())
        });
        if page.items.is_empty() && page.next.is_some() { encode_too_large(bytes_max) } else { encode_page(&page) }
    }
}

impl<M: Keyed> StateMachine for Shard<M> {
    fn apply(&mut self, at: LogIndex, command: &[u8]) -> Bytes {
        self.contents.follow(at);
        match wire::decode_command(command) {
            Some(Command::Write { route, request, body }) => self.write(at, &route, request, body).encode(),
            Some(Command::Record(record)) => {
                self.records += 1;
                self.holdings.apply(at, &record, &mut self.contents);
                self.loads.forget();
                Reply::Recorded.encode()
            }
            None => Reply::Malformed.encode(),
        }
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        match wire::decode_query(query) {
            Some(Query { route, body }) => self.read(&route, body, bytes_max.saturating_sub(2)).encode(),
            None => Reply::Malformed.encode(),
        }
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Image::new(&self.holdings, &self.contents))
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        if let Some((holdings, contents)) = self.restorer.restore(self.scheme, chunk, last)? {
            self.records += 1;
            (self.holdings, self.contents) = (holdings, contents);
        }
        Ok(())
    }
}
