//! The four session guarantees, by a floor of versions for each session.
//!
//! A session is a client. Its operation comes before another one of it if it had ended before the other began. What a
//! session has written and read are floors: later reads must not see less, later writes must stand behind. Both are looked
//! at twice: by the positions that replies claim, and by the values that were in fact seen.
//! Source: Terry et al., *Session Guarantees for Weakly Consistent Replicated Data*, PDIS'94.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use bytes::Bytes;
use replikit_core::{LogIndex, Position, ReadLevel, StreamId, Time};

use super::durability::Losses;
use super::history::{ClientId, Ended, History, Level, OperationId, Recorded};
use super::versions::{Source, Versions};

/// A session guarantee that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionBroken {
    /// A read does not see what its session had written before.
    #[error("client {}: read {} does not see the session's own write {}", client.0, read.index(), write.index())]
    ReadYourWrites {
        /// Whose session.
        client: ClientId,
        /// The write.
        write: OperationId,
        /// The read.
        read: OperationId,
    },
    /// A read sees less than one before it.
    #[error("client {}: read {} sees less than the session's read {} before", client.0, later.index(), earlier.index())]
    MonotonicReads {
        /// Whose session.
        client: ClientId,
        /// The read that saw more.
        earlier: OperationId,
        /// The read that saw less.
        later: OperationId,
    },
    /// A write stands before one that the session had written before.
    #[error("client {}: write {} stands before the session's write {}", client.0, later.index(), earlier.index())]
    MonotonicWrites {
        /// Whose session.
        client: ClientId,
        /// The write that came first.
        earlier: OperationId,
        /// The write that stands before it.
        later: OperationId,
    },
    /// A write stands before what the session had read before.
    #[error("client {}: write {} stands before what the session's read {} saw", client.0, write.index(), read.index())]
    WritesFollowReads {
        /// Whose session.
        client: ClientId,
        /// The read.
        read: OperationId,
        /// The write.
        write: OperationId,
    },
    /// A read saw less than the session token that came with it.
    #[error("client {}: read {} has not seen {position:?}, which its token names", client.0, read.index())]
    Token {
        /// Whose session.
        client: ClientId,
        /// The read.
        read: OperationId,
        /// What the token names.
        position: Position,
    },
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Operations held against the floors of their session.
    pub checked: usize,
    /// Reads among them whose value cannot be told to be of one version: only their claimed position was held against them.
    pub undecided: usize,
}

/// The highest entry of each stream, and the operation that wrote it or saw it.
type Floor = BTreeMap<StreamId, (LogIndex, OperationId)>;

#[derive(Debug, Default)]
struct Floors<'a> {
    // What the session wrote, what of that was acknowledged for good, and what it has seen; then the same of each key.
    written: Floor,
    lasting: Floor,
    seen: Floor,
    key_written: HashMap<&'a Bytes, Floor>,
    key_lasting: HashMap<&'a Bytes, Floor>,
    key_read: HashMap<&'a Bytes, Floor>,
}

fn raise(floors: &mut Floor, stream: StreamId, to: LogIndex, by: OperationId) {
    let floor = floors.entry(stream).or_insert((to, by));
    if floor.0 < to {
        *floor = (to, by);
    }
}

/// Whether the session guarantees were promised to a read.
const fn is_promised(operation: &Recorded) -> bool {
    matches!(operation.level, Level::Read(ReadLevel::Linearizable | ReadLevel::Session(_)))
}

/// Checks the sessions of all clients that are known. A linearizable read owes its session what was acknowledged at `Quorum`
/// or stronger, a read with a session token everything. Reads at levels that promise nothing to a session are left out;
/// writes that were reported as lost are no longer owed to anybody.
///
/// # Errors
/// [`SessionBroken`]: the first of the first client.
pub fn check_sessions(history: &History, lost: &Losses) -> Result<Sessions, SessionBroken> {
    let versions = Versions::new(history);
    let mut sessions = Sessions::default();
    for (client, own) in history.by_client() {
        let mut session = Session { history, versions: &versions, lost, client, floors: Floors::default() };
        // Operations whose answer is not in yet when another one begins are not before it.
        let mut under_way: BinaryHeap<Reverse<(Time, OperationId)>> = BinaryHeap::new();
        for id in own {
            let operation = history.operation(id);
            while let Some(&Reverse((ended, before))) = under_way.peek()
                && ended <= operation.began
            {
                under_way.pop();
                session.raise(before);
            }
            if let Some(ended) = operation.answered_at() {
                session.check(id, &mut sessions)?;
                under_way.push(Reverse((ended, id)));
            }
        }
    }
    Ok(sessions)
}

struct Session<'a> {
    history: &'a History,
    versions: &'a Versions<'a>,
    lost: &'a Losses,
    client: ClientId,
    floors: Floors<'a>,
}

impl<'a> Session<'a> {
    fn check(&self, id: OperationId, sessions: &mut Sessions) -> Result<(), SessionBroken> {
        let operation = self.history.operation(id);
        if !operation.is_read() {
            let Some(position) = operation.position else { return Ok(()) };
            sessions.checked += 1;
            return if self.is_lost(operation, position) { Ok(()) } else { self.check_write(id, position) };
        }
        if !is_promised(operation) {
            return Ok(());
        }
        sessions.checked += 1;
        if let Some(position) = operation.position {
            self.check_claim(id, operation, position)?;
        }
        match self.version(operation) {
            Seen::Version(seen) => self.check_value(id, operation, seen),
            Seen::Untold => {
                sessions.undecided += 1;
                Ok(())
            }
        }
    }

    /// A write stands behind all that its session wrote and saw.
    fn check_write(&self, id: OperationId, position: Position) -> Result<(), SessionBroken> {
        let (client, stream, index) = (self.client, position.stream, position.id.index);
        if let Some(&(_, earlier)) = self.floors.written.get(&stream).filter(|(floor, _)| *floor >= index) {
            return Err(SessionBroken::MonotonicWrites { client, earlier, later: id });
        }
        if let Some(&(_, read)) = self.floors.seen.get(&stream).filter(|(floor, _)| *floor >= index) {
            return Err(SessionBroken::WritesFollowReads { client, read, write: id });
        }
        Ok(())
    }

    /// What a read claims to have seen holds all that its session wrote and saw, and its token.
    fn check_claim(&self, id: OperationId, operation: &Recorded, position: Position) -> Result<(), SessionBroken> {
        let (client, stream, index) = (self.client, position.stream, position.id.index);
        let written = if operation.is_strong() { &self.floors.lasting } else { &self.floors.written };
        if let Some(&(_, write)) = written.get(&stream).filter(|(floor, _)| *floor > index) {
            return Err(SessionBroken::ReadYourWrites { client, write, read: id });
        }
        if let Some(&(_, earlier)) = self.floors.seen.get(&stream).filter(|(floor, _)| *floor > index) {
            return Err(SessionBroken::MonotonicReads { client, earlier, later: id });
        }
        if let Level::Read(ReadLevel::Session(token)) = &operation.level
            && let Some(named) = token.position(stream)
            && named.id.index > index
            && !self.lost.contains(named)
        {
            return Err(SessionBroken::Token { client, read: id, position: named });
        }
        Ok(())
    }

    /// The value that a read saw is not older than what its session wrote to the key and read from it.
    fn check_value(&self, id: OperationId, operation: &Recorded, seen: Option<Position>) -> Result<(), SessionBroken> {
        let client = self.client;
        // A key absent from the beginning is older than any version, in every stream.
        let of_key = |floors: &HashMap<&'a Bytes, Floor>| {
            let floor = floors.get(&operation.key)?;
            match seen {
                Some(at) => floor.get(&at.stream).filter(|floor| floor.0 > at.id.index).map(|floor| floor.1),
                None => floor.values().next().map(|floor| floor.1),
            }
        };
        let written = if operation.is_strong() { &self.floors.key_lasting } else { &self.floors.key_written };
        if let Some(write) = of_key(written) {
            return Err(SessionBroken::ReadYourWrites { client, write, read: id });
        }
        if let Some(earlier) = of_key(&self.floors.key_read) {
            return Err(SessionBroken::MonotonicReads { client, earlier, later: id });
        }
        Ok(())
    }

    /// An operation has ended: later ones of its session must not fall behind it.
    fn raise(&mut self, id: OperationId) {
        let operation = self.history.operation(id);
        let position = operation.position.filter(|&position| !self.is_lost(operation, position));
        if operation.is_read() {
            if !is_promised(operation) {
                return;
            }
            if let Some(position) = position {
                raise(&mut self.floors.seen, position.stream, position.id.index, id);
            }
            if let Seen::Version(Some(seen)) = self.version(operation) {
                raise(&mut self.floors.seen, seen.stream, seen.id.index, id);
                let floor = self.floors.key_read.entry(&operation.key).or_default();
                raise(floor, seen.stream, seen.id.index, id);
            }
        } else if let Some(position) = position {
            let (stream, index) = (position.stream, position.id.index);
            raise(&mut self.floors.written, stream, index, id);
            if operation.is_strong() {
                raise(&mut self.floors.lasting, stream, index, id);
            }
            if operation.surely_writes() {
                raise(self.floors.key_written.entry(&operation.key).or_default(), stream, index, id);
                if operation.is_strong() {
                    raise(self.floors.key_lasting.entry(&operation.key).or_default(), stream, index, id);
                }
            }
        }
    }

    /// Whether a write was reported as lost, or died with the only one who could have reported it.
    fn is_lost(&self, operation: &Recorded, position: Position) -> bool {
        match operation.level {
            Level::Write(level) if !operation.is_strong() => self.lost.excuses(level, position),
            _ => false,
        }
    }

    fn version(&self, operation: &Recorded) -> Seen {
        let Ended::Found { at, value } = &operation.ended else { return Seen::Untold };
        match self.versions.source(&operation.key, value.as_ref(), *at) {
            Source::Start => Seen::Version(None),
            Source::Write(id) => match self.history.operation(id).position {
                Some(position) if !self.lost.contains(position) => Seen::Version(Some(position)),
                _ => Seen::Untold,
            },
            // A phantom is not a session's concern.
            Source::Untold | Source::Nobody => Seen::Untold,
        }
    }
}

/// The version that a read saw; `None` within is the key's absence from the beginning.
enum Seen {
    Version(Option<Position>),
    Untold,
}
