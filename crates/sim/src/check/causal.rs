//! Causal consistency, in O(n k) for n operations in k sessions.
//!
//! What a client did and read before an operation is that operation's past: session order and reads-from, taken together,
//! are the *happened before* of the history. A clock of k counters for each operation answers whether one operation is in
//! the past of another. A read of a key needs to be held against the last write to the key of each session in its past
//! only, since earlier ones of a session are in the past of later ones.
//!
//! Sources: Møldrup and Pavlogiannis, *AWDIT: An Optimal Weak Database Isolation Tester*, PLDI'25, section on causal
//! consistency, for transactions of one operation; Bouajjani et al., *On Verifying Causal Consistency*, POPL'17, for the bad
//! patterns.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::history::{Ended, History, OperationId, What};
use super::versions::{Source, Versions};

/// What becomes of concurrent writes to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflicts {
    /// All are kept, and a write overwrites what its client had read or written: a read shows every write in its past that
    /// no other one in its past has overwritten.
    SiblingsByContext,
    /// All are kept, and a write overwrites whatever its replica held, which may be more than its client knows: if a read
    /// shows a single value, this has overwritten all that is in the read's past, and such orders must fit together. Of
    /// reads with several values only the overwritten ones are found.
    SiblingsByReplica,
    /// One order of all writes decides, the same everywhere, and it follows causality: a read shows the last write in its
    /// past, or one that it learned of otherwise and that is behind that.
    LastWriteWins,
}

/// A history that is not causally consistent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCausal {
    /// A read saw a value that nobody wrote, or one of a write that had no effect.
    #[error("read {} saw {value:?}, which nobody wrote", read.index())]
    Phantom {
        /// The read.
        read: OperationId,
        /// What it saw.
        value: Bytes,
    },
    /// Operations that are each in the past of the next, in a ring.
    #[error("operation {} is in its own past", operation.index())]
    OwnPast {
        /// One of them.
        operation: OperationId,
    },
    /// A read saw a write that had been overwritten in its past.
    #[error("read {} saw write {}, which write {} in its past had overwritten", read.index(), seen.index(), newer.index())]
    Overwritten {
        /// The read.
        read: OperationId,
        /// What it saw.
        seen: OperationId,
        /// What had overwritten that.
        newer: OperationId,
    },
    /// A read does not show a write in its past, nor anything that had overwritten it.
    #[error("read {} does not show write {}, which is in its past", read.index(), write.index())]
    Missing {
        /// The read.
        read: OperationId,
        /// The write.
        write: OperationId,
    },
    /// No one order of the writes explains what all reads saw.
    #[error("no order of the writes explains the reads: {} operations contradict each other", cycle.len())]
    NoOrder {
        /// Operations that would each have to come before the next, in a ring.
        cycle: Vec<OperationId>,
    },
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causal {
    /// Operations in the order of their sessions, and writes of unknown end that were seen.
    pub operations: usize,
    /// Reads held against their past.
    pub reads: usize,
    /// Reads of which not everything can be told: of a counter, or of a key that was removed some time.
    pub undecided: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    id: OperationId,
    session: u32,
    // Within its session, from 1.
    number: u32,
}

/// The writes of a key: of each session that wrote it, in order.
type WritesOfKey = Vec<(u32, Vec<u32>)>;

/// Checks the operations of all clients that are known: a client is a session. A write of unknown end counts once
/// somebody saw it, and nothing of its session follows from it. All answered reads are held to it, whatever their level.
///
/// # Errors
/// [`NotCausal`] with the first contradiction found.
pub fn check_causal(history: &History, conflicts: Conflicts) -> Result<Causal, NotCausal> {
    let mut past = Past::new(history)?;
    past.run_clocks()?;
    let causal = past.check_reads(conflicts)?;
    if conflicts != Conflicts::SiblingsByContext {
        past.check_order()?;
    }
    Ok(causal)
}

/// Session order and reads-from, and the clocks that answer what is in the past of what.
struct Past<'a> {
    history: &'a History,
    nodes: Vec<Node>,
    sessions: usize,
    // Direct predecessors.
    before: Vec<Vec<u32>>,
    // Of a read: the writes that it saw; `None` if that cannot be told, or if it is a write.
    saw: Vec<Option<Vec<u32>>>,
    // `sessions` counters a node: the highest number of each session that is in its past, itself included.
    clocks: Vec<u32>,
    writes: HashMap<&'a Bytes, WritesOfKey>,
    removed: HashSet<&'a Bytes>,
    // Values that somebody saw, with their keys.
    seen: HashSet<(&'a Bytes, &'a Bytes)>,
}

impl<'a> Past<'a> {
    fn new(history: &'a History) -> Result<Self, NotCausal> {
        let mut past = Self {
            history,
            nodes: Vec::new(),
            sessions: 0,
            before: Vec::new(),
            saw: Vec::new(),
            clocks: Vec::new(),
            writes: HashMap::new(),
            removed: HashSet::new(),
            seen: HashSet::new(),
        };
        let of_operation = past.put_in_sessions();
        past.read_from(&of_operation)?;
        Ok(past)
    }

    fn add(&mut self, id: OperationId, session: u32, number: u32, before: Option<u32>) -> u32 {
        let node = self.nodes.len() as u32;
        self.nodes.push(Node { id, session, number });
        self.before.push(before.into_iter().collect());
        self.saw.push(None);
        let operation = self.history.operation(id);
        let seen = operation.writes().flatten().is_some_and(|value| self.seen.contains(&(&operation.key, value)));
        if operation.surely_writes() || seen {
            let writes = self.writes.entry(&operation.key).or_default();
            match writes.last_mut() {
                Some((of, own)) if *of == session => own.push(node),
                _ => writes.push((session, vec![node])),
            }
        }
        node
    }

    /// One node an operation; returns which.
    fn put_in_sessions(&mut self) -> HashMap<OperationId, u32> {
        let operations = self.history.operations();
        for operation in operations {
            match &operation.ended {
                Ended::Found { value: Some(value), .. } => {
                    self.seen.insert((&operation.key, value));
                }
                Ended::Siblings { values, .. } => {
                    self.seen.extend(values.iter().map(|value| (&operation.key, value)));
                }
                _ => {}
            }
            if operation.writes() == Some(None) {
                self.removed.insert(&operation.key);
            }
        }
        let mut of_operation = HashMap::new();
        let mut apart = Vec::new();
        for (_, own) in self.history.by_client() {
            let session = self.sessions as u32;
            self.sessions += 1;
            let (mut number, mut last) = (0, None);
            for id in own {
                if self.history.operation(id).answered_at().is_some() {
                    number += 1;
                    last = Some(self.add(id, session, number, last));
                    of_operation.extend(last.map(|node| (id, node)));
                } else {
                    apart.push((id, last));
                }
            }
        }
        let clientless = operations.iter().enumerate().filter(|(_, operation)| operation.client.is_none());
        apart.extend(clientless.map(|(at, _)| (OperationId::new(at), None)));
        for (id, last) in apart {
            let operation = self.history.operation(id);
            let value = operation.writes().flatten();
            if value.is_some_and(|value| self.seen.contains(&(&operation.key, value))) {
                let session = self.sessions as u32;
                self.sessions += 1;
                of_operation.insert(id, self.add(id, session, 1, last));
            }
        }
        of_operation
    }

    fn read_from(&mut self, of_operation: &HashMap<OperationId, u32>) -> Result<(), NotCausal> {
        let versions = Versions::new(self.history);
        for node in 0..self.nodes.len() {
            let read = self.nodes[node].id;
            let operation = self.history.operation(read);
            let (at, values) = match &operation.ended {
                Ended::Found { at, value } => (*at, value.as_slice()),
                Ended::Siblings { at, values } => (*at, &values[..]),
                _ => continue,
            };
            let mut saw = Some(Vec::with_capacity(values.len()));
            if values.is_empty() && versions.source(&operation.key, None, at) == Source::Untold {
                saw = None;
            }
            for value in values {
                match versions.source(&operation.key, Some(value), at) {
                    Source::Write(id) => {
                        let write = of_operation[&id];
                        self.before[node].push(write);
                        saw.iter_mut().for_each(|saw| saw.push(write));
                    }
                    Source::Nobody => return Err(NotCausal::Phantom { read, value: value.clone() }),
                    Source::Start | Source::Untold => saw = None,
                }
            }
            self.saw[node] = saw;
        }
        Ok(())
    }

    fn run_clocks(&mut self) -> Result<(), NotCausal> {
        let order = in_order(&self.before);
        let Ok(order) = order else {
            let stuck = order.expect_err("just seen");
            return Err(NotCausal::OwnPast { operation: self.nodes[stuck[0] as usize].id });
        };
        let width = self.sessions;
        self.clocks = vec![0; self.nodes.len() * width];
        for node in order {
            let at = node as usize;
            for &before in &self.before[at] {
                let (from, to) = (before as usize * width, at * width);
                for session in 0..width {
                    self.clocks[to + session] = self.clocks[to + session].max(self.clocks[from + session]);
                }
            }
            let Node { session, number, .. } = self.nodes[at];
            self.clocks[at * width + session as usize] = number;
        }
        Ok(())
    }

    /// Whether `one` is `other` or in its past.
    fn is_before(&self, one: u32, other: u32) -> bool {
        let Node { session, number, .. } = self.nodes[one as usize];
        self.clocks[other as usize * self.sessions + session as usize] >= number
    }

    fn check_reads(&mut self, conflicts: Conflicts) -> Result<Causal, NotCausal> {
        let mut causal = Causal { operations: self.nodes.len(), ..Causal::default() };
        let mut order_edges = Vec::new();
        // Nodes of a session stand together, so these only move forward until the session changes.
        let mut cursors: HashMap<&Bytes, Vec<usize>> = HashMap::new();
        let mut session = u32::MAX;
        for node in 0..self.nodes.len() as u32 {
            let own = self.nodes[node as usize];
            let operation = self.history.operation(own.id);
            if !matches!(operation.what, What::Read) {
                continue;
            }
            if own.session != session {
                session = own.session;
                cursors.clear();
            }
            causal.reads += 1;
            let Some(saw) = &self.saw[node as usize] else {
                causal.undecided += 1;
                continue;
            };
            if conflicts == Conflicts::LastWriteWins && saw.len() > 1 {
                causal.undecided += 1;
                continue;
            }
            let Some(writes) = self.writes.get(&operation.key) else { continue };
            let cursors = cursors.entry(&operation.key).or_insert_with(|| vec![0; writes.len()]);
            let removed = self.removed.contains(&operation.key);
            causal.undecided += usize::from(removed && conflicts != Conflicts::LastWriteWins);
            for ((_, of_session), cursor) in writes.iter().zip(cursors) {
                // The last write of that session in the read's past.
                while of_session.get(*cursor).is_some_and(|&write| self.is_before(write, node)) {
                    *cursor += 1;
                }
                let Some(&last) = cursor.checked_sub(1).and_then(|at| of_session.get(at)) else { continue };
                self.check_last(own.id, saw, last, removed, conflicts)?;
                let is_single = conflicts == Conflicts::LastWriteWins || !removed;
                if let ([seen], true) = (&saw[..], is_single && conflicts != Conflicts::SiblingsByContext)
                    && *seen != last
                {
                    order_edges.push((last, *seen));
                }
            }
        }
        for (earlier, later) in order_edges {
            self.before[later as usize].push(earlier);
        }
        Ok(causal)
    }

    /// Holds a read against the last write of one session in its past.
    fn check_last(
        &self,
        read: OperationId,
        saw: &[u32],
        last: u32,
        removed: bool,
        conflicts: Conflicts,
    ) -> Result<(), NotCausal> {
        let id = |node: u32| self.nodes[node as usize].id;
        if let Some(&seen) = saw.iter().find(|&&seen| seen != last && self.is_before(seen, last)) {
            return Err(NotCausal::Overwritten { read, seen: id(seen), newer: id(last) });
        }
        let shown = match conflicts {
            // A removal in the past, or one that was seen without a trace, may have overwritten it.
            Conflicts::SiblingsByContext => removed || saw.iter().any(|&seen| self.is_before(last, seen)),
            Conflicts::SiblingsByReplica => removed || !saw.is_empty(),
            Conflicts::LastWriteWins => !saw.is_empty(),
        };
        if shown { Ok(()) } else { Err(NotCausal::Missing { read, write: id(last) }) }
    }

    /// Whether one order of all writes follows causality and explains every read.
    fn check_order(&self) -> Result<(), NotCausal> {
        in_order(&self.before).map(|_| ()).map_err(|cycle| NotCausal::NoOrder {
            cycle: cycle.into_iter().map(|node| self.nodes[node as usize].id).collect(),
        })
    }
}

/// The nodes, each behind all that is before it; or some that form a ring, each before the next.
fn in_order(before: &[Vec<u32>]) -> Result<Vec<u32>, Vec<u32>> {
    let mut after: Vec<Vec<u32>> = vec![Vec::new(); before.len()];
    let mut waits: Vec<u32> = before.iter().map(|before| before.len() as u32).collect();
    for (node, before) in before.iter().enumerate() {
        for &earlier in before {
            after[earlier as usize].push(node as u32);
        }
    }
    let mut order: Vec<u32> = (0..before.len() as u32).filter(|&node| waits[node as usize] == 0).collect();
    let mut done = 0;
    while let Some(&node) = order.get(done) {
        done += 1;
        for &later in &after[node as usize] {
            waits[later as usize] -= 1;
            if waits[later as usize] == 0 {
                order.push(later);
            }
        }
    }
    let Some(stuck) = (0..before.len()).find(|&node| waits[node] > 0) else { return Ok(order) };
    // Whoever is stuck waits for somebody who is stuck: going back must come by a node a second time.
    let mut path = vec![stuck as u32];
    let mut seen_at: HashMap<u32, usize> = HashMap::from([(stuck as u32, 0)]);
    loop {
        let last = path[path.len() - 1] as usize;
        let earlier =
            *before[last].iter().find(|&&node| waits[node as usize] > 0).expect("it waits for one that is stuck");
        if let Some(&from) = seen_at.get(&earlier) {
            let mut ring = path.split_off(from);
            ring.reverse();
            return Err(ring);
        }
        seen_at.insert(earlier, path.len());
        path.push(earlier);
    }
}
