//! A node that stands in for owners that cannot be reached: it keeps what they miss, durably, and tells them once they are back.
//!
//! Invariants: it owns nothing, answers no read and orders no write; a hint is confirmed once it is on this disk, and given up
//! once its owner has confirmed it. Nothing that was confirmed is dropped for lack of room: what does not fit is refused, and
//! is not counted by its coordinator. Source: sloppy quorums and hinted handoff, Dynamo (DeCandia et al., SOSP 2007).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use replikit_core::dotted::first_number;
use replikit_core::{
    Action, Admin, Batch, Batches, Boot, Epoch, Event, Figure, Held, Input, KEY_BYTES_MAX, Link, LogId, LogIndex,
    Membership, Message, NodeId, Now, OriginId, Outcome, Persist, Position, Rejection, Replica, Role, Status,
    StorageEvent, StreamId, Term, Time, Token, WriteId,
};

use crate::config::{Config, ConfigError};
use crate::content::KeyCopy;
use crate::hints::{Hints, HintsImage, Kept};
use crate::message::{Head, Hint, Repair};
use crate::ownership::Ownership;
use crate::record::own_batch;
use crate::register::Register;
use crate::replica::{LOCAL_BYTES_MAX, position};

/// Hints that are on their way to one owner at once.
const UNDER_WAY_MAX: usize = 64;

/// Why a hint is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotKept {
    /// There is no room for it.
    TooLarge,
    /// The copy is none that its keyspace can have.
    Malformed,
}

/// The replica of a node that is no owner.
pub struct Fallback {
    config: Config,
    /// The epochs that are in force, as far as owners have told.
    ownership: Ownership,
    epoch: Epoch,
    owners: BTreeSet<NodeId>,
    hints: Hints,
    /// Numbers of hints that an owner has been sent, and when.
    under_way: BTreeMap<NodeId, BTreeMap<u64, Time>>,
    down: BTreeSet<NodeId>,
    number: u64,
    /// The storage action behind which this life's numbers are its own.
    begun: WriteId,
    last_write: WriteId,
    durable: WriteId,
    /// What leaves once something is on disk here.
    confirmations: Held<(NodeId, Head)>,
    /// Where the log of hints ends, and its digest.
    local: (u64, u64),
    restoring: BytesMut,
    snapshot: Option<Position>,
    log_bytes: u64,
    stored: u64,
    delivered: u64,
    refused: u64,
    next_exchange: Time,
    recovered: bool,
    failed: bool,
    actions: VecDeque<Action<Head>>,
}

impl core::fmt::Debug for Fallback {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (node, hints) = (self.config.node, self.hints.len());
        f.debug_struct("Fallback").field("node", &node).field("hints", &hints).finish_non_exhaustive()
    }
}

impl Fallback {
    /// A fallback node on a disk that says `boot`; recovery is pushed next.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was written.
    pub fn new(config: Config, boot: &Boot) -> Result<Self, ConfigError> {
        config.check()?;
        if !config.fallbacks.nodes.contains(&config.node) {
            return Err(ConfigError::NotAnOwner { node: config.node });
        }
        let mut register = Register::of(boot)?;
        register.life += 1;
        let membership = config.epochs.current().clone();
        let ownership =
            if membership.is_founding() { Ownership::founding(membership) } else { Ownership::announced(membership) };
        let mut fallback = Self {
            epoch: ownership.number(),
            owners: ownership.in_force().flat_map(Membership::ids).collect(),
            ownership,
            hints: Hints::default(),
            under_way: BTreeMap::new(),
            down: BTreeSet::new(),
            number: first_number(register.life),
            begun: WriteId(0),
            last_write: WriteId(0),
            durable: WriteId(0),
            confirmations: Held::new(),
            local: (0, 0),
            restoring: BytesMut::new(),
            snapshot: boot.snapshot,
            log_bytes: 0,
            stored: 0,
            delivered: 0,
            refused: 0,
            next_exchange: Time::ZERO,
            recovered: false,
            failed: false,
            actions: VecDeque::new(),
            config,
        };
        if boot.tail_cut.iter().any(|stream| stream.group == fallback.config.group) {
            let stream = fallback.stream_id();
            fallback.event(Event::TailCut { stream });
        }
        // Pushed before anything is recovered, it leaves with the first poll.
        let (group, bytes) = (fallback.config.group, register.encode());
        fallback.begun = fallback.persist(Persist::Register { group, bytes });
        Ok(fallback)
    }

    /// Hints that are kept at the moment, and their bytes.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        (self.hints.len(), self.hints.bytes())
    }

    /// What is kept for an owner of a key, in short: the keys.
    #[must_use]
    pub fn keys_for(&self, owner: NodeId) -> Vec<Bytes> {
        self.hints.of(owner).map(|(key, _)| key.clone()).collect()
    }

    const fn stream_id(&self) -> StreamId {
        StreamId { group: self.config.group, origin: OriginId::LOCAL }
    }

    fn event(&mut self, event: Event) {
        self.actions.push_back(Action::Event { group: self.config.group, event });
    }

    fn send(&mut self, to: NodeId, head: Head) {
        self.actions.push_back(Action::Send { to, message: Message { head, batches: Batches::None } });
    }

    fn persist(&mut self, op: Persist) -> WriteId {
        self.last_write = self.last_write.next();
        self.actions.push_back(Action::Persist { id: self.last_write, op });
        self.last_write
    }

    fn log(&mut self, record: &[u8]) -> WriteId {
        let records = core::iter::once(record);
        let batch = own_batch(self.config.cluster, self.config.group, &mut self.local, records);
        self.log_bytes += batch.bytes() as u64;
        self.persist(Persist::Append { batch, replace: false })
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn tell_epochs(&mut self, to: NodeId) {
        self.send(to, Head::Epochs(Box::new(self.ownership.clone())));
    }

    /// Owners have told of epochs: what is kept for who owns nothing any more, one who does is told.
    fn handle_epochs(&mut self, now: Now, from: NodeId, theirs: &Ownership) {
        if !self.config.epochs.changes() || !theirs.is_sound() {
            return self.event(Event::PeerMisbehaved { node: from, what: "epochs that cannot be" });
        }
        let mut both = theirs.clone();
        if both.merge(&self.ownership) {
            self.tell_epochs(from);
        }
        if !self.ownership.merge(theirs) {
            return;
        }
        self.epoch = self.ownership.number();
        self.owners = self.ownership.in_force().flat_map(Membership::ids).collect();
        self.under_way.clear();
        if !self.failed && self.recovered {
            self.hand_on();
            for owner in self.owners.clone() {
                self.deliver(now, owner);
            }
        }
    }

    /// Who keeps hints has to know whose they are: owners that know of later epochs say so.
    fn ask_for_epochs(&mut self) {
        if !self.config.epochs.changes() || self.hints.len() == 0 {
            return;
        }
        self.ownership.merge(&Ownership::announced(self.config.epochs.current().clone()));
        let announced = self.ownership.announced.iter().flat_map(Membership::ids);
        let asked: BTreeSet<NodeId> = announced.chain(self.owners.iter().copied()).collect();
        for owner in asked {
            self.tell_epochs(owner);
        }
    }

    /// What is kept for those who own nothing any more is kept for all owners from now on: one of them alone may be the one
    /// that has it already, and then only its disk would.
    fn hand_on(&mut self) {
        let newest = self.ownership.in_force().last().filter(|_| !self.ownership.is_joint());
        let Some(heirs) = newest.map(|newest| newest.ids().collect::<Vec<NodeId>>()) else { return };
        for owner in self.hints.owners() {
            if self.owners.contains(&owner) {
                continue;
            }
            let kept: Vec<(Bytes, KeyCopy)> =
                self.hints.of(owner).map(|(key, hint)| (key.clone(), hint.copy.clone())).collect();
            for (key, copy) in kept {
                // What was taken once is kept, whatever the limit is by now.
                let inherits = |heir: &NodeId| self.keep(*heir, &key, copy.clone(), usize::MAX).is_ok();
                if heirs.iter().all(inherits) {
                    self.hints.forget(owner, &key);
                    self.log(&Kept::Delivered { owner, key }.encode());
                }
            }
        }
        self.maybe_snapshot();
    }

    /// Keeps a copy of a key for an owner, joined with what is kept already; returns behind which storage action it is on disk.
    /// Changes nothing when it cannot.
    fn keep(&mut self, owner: NodeId, key: &Bytes, copy: KeyCopy, bytes_max: usize) -> Result<WriteId, NotKept> {
        let keyspace = self.config.keyspaces.of(key);
        let known = self.hints.joined(owner, key, copy, keyspace).ok_or(NotKept::Malformed)?;
        let record = Kept::Hint { owner, key: key.clone(), copy: known.copy() }.encode();
        // More siblings than a record takes: its owner gets them from the logs.
        if record.len() > LOCAL_BYTES_MAX || !self.hints.has_room(owner, key, &known, bytes_max) {
            return Err(NotKept::TooLarge);
        }
        let number = self.next_number();
        self.hints.put(owner, key.clone(), &known, number);
        Ok(self.log(&record))
    }

    fn handle_message(&mut self, now: Now, from: NodeId, head: Head) {
        if let Head::Epochs(theirs) = &head {
            return self.handle_epochs(now, from, theirs);
        }
        if !self.owners.contains(&from) && self.config.epochs.changes() {
            // It, or this node, has still to hear of an epoch.
            return self.tell_epochs(from);
        }
        if !self.owners.contains(&from) {
            return self.event(Event::PeerMisbehaved { node: from, what: "not an owner of the group" });
        }
        self.down.remove(&from);
        if self.failed || !self.recovered {
            return;
        }
        match head {
            Head::Hint(hint) if hint.epoch == self.epoch => self.handle_hint(from, *hint),
            Head::Repaired { read } => self.handle_repaired(now, from, read),
            Head::Hint(_) => self.tell_epochs(from),
            // Owners that were told of one another's say; they do not speak to a fallback of anything else.
            _ => {}
        }
    }

    fn handle_hint(&mut self, from: NodeId, hint: Hint) {
        let Hint { origin, sequence, owner, key, copy, .. } = hint;
        if !self.owners.contains(&owner) || key.is_empty() || key.len() > KEY_BYTES_MAX {
            return self.event(Event::PeerMisbehaved { node: from, what: "a hint that nobody needs" });
        }
        let bytes_max = self.config.limits.hints_bytes_max;
        let write = match self.keep(owner, &key, copy, bytes_max) {
            Ok(write) => write,
            Err(NotKept::TooLarge) => {
                self.refused += 1;
                return;
            }
            Err(NotKept::Malformed) => {
                let what = "a copy of a key that its keyspace cannot have";
                return self.event(Event::PeerMisbehaved { node: from, what });
            }
        };
        self.stored += 1;
        self.confirmations.hold(write, (from, Head::Hinted { origin, sequence, owner }));
        self.maybe_snapshot();
    }

    /// An owner has a hint on its disk.
    fn handle_repaired(&mut self, now: Now, from: NodeId, number: u64) {
        if let Some(under_way) = self.under_way.get_mut(&from) {
            under_way.remove(&number);
        }
        if let Some(key) = self.hints.confirm(from, number) {
            self.delivered += 1;
            self.log(&Kept::Delivered { owner: from, key }.encode());
        }
        self.deliver(now, from);
        self.maybe_snapshot();
    }

    /// Tells an owner what is kept for it, so much at a time. That its link is down is hearsay, and that it is up again may never
    /// be heard: such an owner is told one thing at a time, and the rest once it confirms that.
    fn deliver(&mut self, now: Now, owner: NodeId) {
        if self.begun > self.durable {
            return;
        }
        let most = if self.down.contains(&owner) { 1 } else { UNDER_WAY_MAX };
        let patience = self.config.timing.exchange * 4;
        let under_way = self.under_way.entry(owner).or_default();
        under_way.retain(|_, sent| now.mono.since(*sent) < patience);
        let room = most.saturating_sub(under_way.len());
        let due = self.hints.of(owner).filter(|(_, hint)| !under_way.contains_key(&hint.number)).take(room);
        let due: Vec<Repair> = due
            .map(|(key, hint)| Repair {
                epoch: self.epoch,
                read: hint.number,
                key: key.clone(),
                copy: hint.copy.clone(),
            })
            .collect();
        for repair in due {
            under_way.insert(repair.read, now.mono);
            self.actions.push_back(Action::Send {
                to: owner,
                message: Message { head: Head::Repair(Box::new(repair)), batches: Batches::None },
            });
        }
    }

    fn maybe_snapshot(&mut self) {
        if self.log_bytes < self.config.limits.snapshot_log_bytes {
            return;
        }
        self.log_bytes = 0;
        let number = self.snapshot.map_or(1, |at| at.id.index.0 + 1);
        let at = position(self.stream_id(), number);
        self.snapshot = Some(at);
        let source = Box::new(HintsImage::of(&self.hints, self.local));
        self.persist(Persist::Snapshot { at, source });
        let before = LogIndex(self.local.0 + 1);
        self.persist(Persist::Release { stream: self.stream_id(), before });
        self.event(Event::SnapshotTaken { at });
    }

    fn restore(&mut self, record: Kept) {
        match record {
            Kept::Hint { owner, key, copy } => {
                // What was taken once is kept, whatever the limit is by now.
                if let Some(known) = self.hints.joined(owner, &key, copy, self.config.keyspaces.of(&key)) {
                    let number = self.next_number();
                    self.hints.put(owner, key, &known, number);
                }
            }
            Kept::Delivered { owner, key } => self.hints.forget(owner, &key),
        }
    }

    fn handle_recovered_snapshot(&mut self, at: Position, chunk: &[u8], last: bool) {
        self.restoring.extend_from_slice(chunk);
        if !last {
            return;
        }
        match HintsImage::read(&core::mem::take(&mut self.restoring)) {
            Ok((local, records)) => {
                self.local = local;
                records.into_iter().for_each(|record| self.restore(record));
                self.snapshot = Some(at);
            }
            Err(_) => self.event(Event::SnapshotUnreadable { at }),
        }
    }

    fn handle_recovered_batch(&mut self, batch: &Batch) {
        if batch.stream() != self.stream_id() || batch.base().0 <= self.local.0 {
            // In the snapshot already.
            return;
        }
        self.local = (batch.last().index.0, batch.digest());
        self.log_bytes += batch.bytes() as u64;
        for record in batch.entries().filter_map(|entry| Kept::decode(entry.payload)) {
            self.restore(record);
        }
    }

    fn handle_recovered(&mut self, now: Now) {
        self.recovered = true;
        // The log may end before its snapshot does.
        if self.log_bytes == 0 {
            let next = LogIndex(self.local.0 + 1);
            self.persist(Persist::Reset { stream: self.stream_id(), next });
        }
        self.next_exchange = now.mono;
        self.event(Event::RoleChanged { role: Role::Fallback, term: Term(0) });
    }

    fn reject(&mut self, token: Token, rejection: Rejection) {
        self.actions.push_back(Action::Done { token, outcome: Outcome::Rejected(rejection) });
    }

    /// Clients turn to an owner.
    fn refer(&mut self, token: Token) {
        let leader = self.owners.iter().find(|owner| !self.down.contains(owner)).copied();
        self.reject(token, Rejection::NotLeader { leader });
    }

    /// How it describes itself: hints as counts, and for each owner how many wait for it.
    #[must_use]
    pub fn status(&self) -> Status {
        let (hints, bytes) = self.kept();
        Status {
            group: self.config.group,
            role: Role::Fallback,
            term: Term(0),
            leader: None,
            last: Position {
                stream: self.stream_id(),
                id: LogId { term: Term(0), index: LogIndex(self.local.0) },
                digest: self.local.1,
            },
            commit_index: LogIndex(self.local.0),
            applied_index: LogIndex(self.local.0),
            first_index: LogIndex(1),
            epoch: self.ownership.epoch(),
            snapshot: self.snapshot,
            followers: Vec::new(),
            suspected: self.down.iter().copied().collect(),
            figures: vec![
                Figure::new("hints kept", hints as u64),
                Figure::new("bytes of hints kept", bytes as u64),
                Figure::new("hints stored", self.stored),
                Figure::new("hints delivered", self.delivered),
                Figure::new("hints refused for lack of room", self.refused),
            ],
        }
    }
}

impl Replica for Fallback {
    type Head = Head;

    fn handle(&mut self, now: Now, input: Input<Head>) {
        match input {
            Input::RecoverSnapshot { at, chunk, last } => self.handle_recovered_snapshot(at, &chunk, last),
            Input::Recover { batch } => self.handle_recovered_batch(&batch),
            Input::Recovered => self.handle_recovered(now),
            Input::Message { from, message } => self.handle_message(now, from, message.head),
            Input::Timer if now.mono >= self.next_exchange && !self.failed => {
                self.next_exchange = now.mono + self.config.timing.exchange;
                self.ask_for_epochs();
                self.hand_on();
                for owner in self.hints.owners() {
                    self.deliver(now, owner);
                }
            }
            Input::Peer { node, link: Link::Up } => {
                self.down.remove(&node);
                self.under_way.remove(&node);
                if self.recovered {
                    self.deliver(now, node);
                }
            }
            Input::Peer { node, .. } => {
                self.down.insert(node);
            }
            Input::Durable { up_to } => {
                self.durable = self.durable.max(up_to);
                while let Some((to, head)) = self.confirmations.release(self.durable) {
                    self.send(to, head);
                }
            }
            Input::Storage { event: StorageEvent::Failed } => {
                self.failed = true;
                self.confirmations.drain().for_each(drop);
                self.event(Event::StorageFailed);
            }
            Input::Storage { event: StorageEvent::Slow } => self.event(Event::StorageSlow),
            Input::Storage { event: StorageEvent::Faulty { stream, range } } => {
                self.event(Event::StorageFaulty { stream, range });
            }
            Input::Admin { token, group, command: Admin::Status } if group == self.config.group => {
                let values = vec![self.status().encode()];
                let outcome = Outcome::Value { values, seen: None, strict: false, staleness: None };
                self.actions.push_back(Action::Done { token, outcome });
            }
            Input::Command { token, group, .. } | Input::Query { token, group, .. } if group == self.config.group => {
                self.refer(token);
            }
            Input::Command { token, .. }
            | Input::Query { token, .. }
            | Input::OpenSession { token, .. }
            | Input::Write { token, .. }
            | Input::Read { token, .. }
            | Input::Admin { token, .. } => self.reject(token, Rejection::Unsupported),
            Input::Timer | Input::LogRead { .. } | Input::SnapshotRead { .. } => {}
        }
    }

    fn poll(&mut self) -> Option<Action<Head>> {
        if self.recovered { self.actions.pop_front() } else { None }
    }

    fn deadline(&self) -> Option<Time> {
        // Without its storage it tells nobody anything any more.
        (self.recovered && !self.failed).then_some(self.next_exchange)
    }
}
