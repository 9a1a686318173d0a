//! One member: its acceptor, its proposer, and what waits for the disk.
//!
//! Invariants: no answer leaves before the record that it depends on is durable, and no question before the record of this
//! start is. What a member says to itself takes the same way as what it says to others.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use replikit_core::keyspace::MapImage;
use replikit_core::{Epoch, KEY_BYTES_MAX, NodeId, OriginId, Quorum, Time, Token, VALUE_BYTES_MAX};

use super::acceptor::{Acceptors, Standing, Step};
use super::ballot::Proposer;
use super::change::CasOp;
use super::config::CasConfig;
use super::message::{Ask, Attempt, Life, Message};
use super::output::{CasOutput, CasRefusal, CasSizes, CasStats, Start};
use super::proposer::{Answered, Proposers};
use super::record::{Entry, Record, RecordNumber};

/// Compare-and-set per key at one member of a group.
///
/// The driver calls [`Cas::recover`] for what its disk holds, [`Cas::start`] once, then the `handle_*` methods, and carries
/// out what [`Cas::poll_output`] gives after each.
#[derive(Debug)]
pub struct Cas {
    node: NodeId,
    held_max: usize,
    acceptors: Acceptors,
    proposers: Proposers,
    /// The last start on disk.
    started: u32,
    /// Questions wait for it.
    start_record: RecordNumber,
    recorded: RecordNumber,
    durable: RecordNumber,
    /// What waits for a record, by its number.
    held: BTreeMap<(RecordNumber, u64), (NodeId, Message)>,
    holds: u64,
    /// What this node says to itself.
    own: VecDeque<Message>,
    outputs: VecDeque<CasOutput>,
}

impl Cas {
    /// A member that knows nothing yet. `origin` is the node's present incarnation, and new whenever its disk may have
    /// forgotten something; `None` for an origin that no node has.
    #[must_use]
    pub fn new(config: CasConfig, origin: OriginId, epoch: Epoch, quorum: Quorum) -> Option<Self> {
        let me = Proposer { origin, start: 0 };
        let node = me.node()?;
        Some(Self {
            node,
            held_max: config.held_max,
            acceptors: Acceptors::new(),
            proposers: Proposers::new(config, me, node, epoch, quorum),
            started: 0,
            start_record: RecordNumber::default(),
            recorded: RecordNumber::default(),
            durable: RecordNumber::default(),
            held: BTreeMap::new(),
            holds: 0,
            own: VecDeque::new(),
            outputs: VecDeque::new(),
        })
    }

    /// The incarnation under which it is going to propose, if that became known only now. Before [`Cas::start`].
    pub fn incarnate(&mut self, origin: OriginId) {
        self.proposers.incarnate(origin);
    }

    /// Takes in a record of this node's disk, from a snapshot or the stream. Before [`Cas::start`], in any order.
    pub fn recover(&mut self, record: &Record) {
        if let Record::Started { start } = record {
            self.started = self.started.max(*start);
        }
        self.acceptors.apply(record, RecordNumber::default());
    }

    /// Begins, after everything was recovered.
    pub fn start(&mut self, how: Start) {
        self.started = self.started.saturating_add(1);
        self.proposers.start(self.started);
        self.start_record = self.persist(Record::Started { start: self.started });
        let incarnation = replikit_core::Origin::of(self.proposers.me().origin).map_or(0, |it| it.incarnation.0);
        let begins = match (how, self.acceptors.standing()) {
            (Start::Forgetful, _) => Record::Joining { life: Life(incarnation) },
            (Start::Whole, Standing::Stopped) => Record::Serving { life: Life(incarnation) },
            (Start::Whole, Standing::Joining | Standing::Serving) => return,
        };
        self.acceptors.apply(&begins, self.recorded);
        self.persist(begins);
    }

    /// Begins a request; it ends with [`CasOutput::Ended`], by the deadline if [`Cas::handle_time`] is called then.
    ///
    /// # Errors
    /// [`CasRefusal`]; nothing was begun.
    pub fn begin(&mut self, now: Time, token: Token, key: Bytes, op: CasOp, deadline: Time) -> Result<(), CasRefusal> {
        let sizes = [(key.len(), KEY_BYTES_MAX), (op.value_bytes(), VALUE_BYTES_MAX)];
        if let Some(&(bytes, bytes_max)) = sizes.iter().find(|(bytes, bytes_max)| bytes > bytes_max) {
            return Err(CasRefusal::Size { bytes, bytes_max });
        }
        if key.is_empty() {
            return Err(CasRefusal::Size { bytes: 0, bytes_max: KEY_BYTES_MAX });
        }
        self.proposers.admits(&key)?;
        self.proposers.begin(now, token, key, op, deadline, &mut self.acceptors);
        self.settle(now);
        Ok(())
    }

    /// Takes in a message of another member. One that is damaged, or of another epoch, is dropped.
    pub fn handle_message(&mut self, now: Time, from: NodeId, message: Message) {
        self.receive(now, from, message);
        self.settle(now);
    }

    /// All records up to this one are on disk.
    pub fn handle_durable(&mut self, now: Time, number: RecordNumber) {
        self.durable = self.durable.max(number.min(self.recorded));
        while let Some(entry) = self.held.first_entry() {
            if entry.key().0 > self.durable {
                break;
            }
            let (to, message) = entry.remove();
            self.deliver(to, message);
        }
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Time) {
        self.proposers.handle_time(now, &mut self.acceptors);
        self.settle(now);
    }

    /// When [`Cas::handle_time`] has to be called next; [`Time::NEVER`] for not at all.
    #[must_use]
    pub fn deadline(&self) -> Time {
        self.proposers.deadline()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<CasOutput> {
        self.outputs.pop_front()
    }

    /// Another membership is in force: messages of the one before are dropped from now on. Ignored for the epoch that is in
    /// force. An epoch names one membership for ever, and one that was left never comes again, after a restart neither.
    ///
    /// Two epochs whose quorums need not meet must not follow on each other. Between them comes a joint one
    /// ([`Quorum::joint`]): first every old member that answers is in it, a quorum at least; then the new members, started
    /// [`Start::Forgetful`], join from the old ones; then the next epoch may begin.
    pub fn reconfigure(&mut self, now: Time, epoch: Epoch, quorum: Quorum) {
        if epoch != self.proposers.epoch() {
            self.proposers.reconfigure(now, epoch, quorum, &mut self.acceptors);
            self.settle(now);
        }
    }

    /// Whether the acceptor answers.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        self.acceptors.standing()
    }

    /// The acceptor's life, to be told to the members that it joins from.
    #[must_use]
    pub const fn life(&self) -> Life {
        self.acceptors.life()
    }

    /// Another member begins a new life and asks for what it may have forgotten. Once the record returned is durable, and
    /// not before, it may be given [`Cas::image`], or page by page [`Cas::page`], taken now or later. A member that joins itself,
    /// or has not started yet, gives what it has, so that those who lost their disks together do not wait for each other: any
    /// quorum that they were part of had another member in it, as long as they are fewer than a quorum.
    pub fn admit(&mut self, node: NodeId, life: Life) -> RecordNumber {
        let record = Record::Admitted { node, life };
        if self.acceptors.apply(&record, self.recorded) {
            return self.persist(record);
        }
        self.recorded
    }

    /// Takes over the higher promises and the later values of another member, piece by piece. Records that are about that
    /// member itself, or damaged, are passed over.
    pub fn join(&mut self, record: &Record) {
        if record.is_given() {
            let number = RecordNumber(self.recorded.0 + 1);
            if self.acceptors.apply(record, number) {
                self.persist(record.clone());
            }
        }
    }

    /// Every other member that may ever have answered has given all that it has, after it was asked for this
    /// [`Cas::life`]: the acceptor answers from now on. Without effect unless it is joining.
    pub fn serve(&mut self) {
        if self.acceptors.standing() == Standing::Joining {
            let record = Record::Serving { life: self.acceptors.life() };
            self.acceptors.apply(&record, self.recorded);
            self.persist(record);
        }
    }

    /// The state as it is now, as records: for snapshots, and for members that join.
    #[must_use]
    pub fn image(&self) -> CasImage {
        let life = self.acceptors.life();
        let standing = match self.acceptors.standing() {
            Standing::Stopped => None,
            Standing::Joining => Some(Record::Joining { life }),
            Standing::Serving => Some(Record::Serving { life }),
        };
        let lives = self.acceptors.lives().into_iter().map(|(node, life)| Record::Admitted { node, life });
        let head = [Record::Started { start: self.started }].into_iter().chain(standing).chain(lives).collect();
        CasImage { head, entries: self.acceptors.image() }
    }

    /// What the image has behind a key, of about so many bytes, at least one key; and the last of these keys if there are
    /// more. The first page begins with the lives of others.
    #[must_use]
    pub fn page(&self, after: Option<&[u8]>, bytes_max: usize) -> (Vec<Record>, Option<Bytes>) {
        let mut records = Vec::new();
        if after.is_none() {
            let lives = self.acceptors.lives();
            records.extend(lives.into_iter().map(|(node, life)| Record::Admitted { node, life }));
        }
        let next = self.acceptors.page(after, bytes_max, &mut records);
        (records, next)
    }

    /// The next keys behind this one of which something was promised or accepted here, ascending, so many at most.
    #[must_use]
    pub fn keys_behind(&self, after: Option<&Bytes>, most: usize) -> Vec<Bytes> {
        self.acceptors.keys_behind(after.map(|key| &key[..]), most)
    }

    /// What has happened.
    #[must_use]
    pub const fn stats(&self) -> CasStats {
        self.proposers.stats
    }

    /// Requests under way; keys known to the acceptor; keys, and their bytes, whose next proposal takes one round trip.
    #[must_use]
    pub fn sizes(&self) -> CasSizes {
        CasSizes {
            requests: self.proposers.requests(),
            keys: self.acceptors.keys(),
            leases: self.proposers.leases().len(),
            lease_bytes: self.proposers.leases().bytes(),
            held: self.held.len(),
        }
    }

    fn persist(&mut self, record: Record) -> RecordNumber {
        self.recorded.0 += 1;
        self.outputs.push_back(CasOutput::Persist { number: self.recorded, record });
        self.recorded
    }

    fn receive(&mut self, now: Time, from: NodeId, message: Message) {
        if !message.is_bounded() {
            self.proposers.stats.dropped += 1;
            return;
        }
        match message {
            Message::Ask { epoch, attempt, key, ask } => self.answer(from, epoch, attempt, &key, ask),
            Message::Answer { epoch, attempt, life, lives, answer } => {
                if epoch == self.proposers.epoch() && attempt.proposer == self.proposers.me() {
                    let answered = Answered { from, number: attempt.number, life, lives, answer };
                    self.proposers.handle_answer(now, answered, &mut self.acceptors);
                }
            }
        }
    }

    fn answer(&mut self, from: NodeId, epoch: Epoch, attempt: Attempt, key: &Bytes, ask: Ask) {
        let is_own = match &ask {
            Ask::Prepare { ballot, .. } | Ask::Accept { ballot, .. } => ballot.proposer == attempt.proposer,
            Ask::Query { .. } => true,
        };
        let expected = epoch == self.proposers.epoch() && is_own && attempt.proposer.node() == Some(from);
        if !expected || self.acceptors.standing() != Standing::Serving {
            self.proposers.stats.dropped += 1;
            return;
        }
        let number = RecordNumber(self.recorded.0 + 1);
        let Step { answer, record, after } = self.acceptors.answer(key, ask, number);
        if let Some(record) = record {
            self.persist(record);
        }
        let (life, lives) = (self.acceptors.life(), self.acceptors.lives());
        self.post(after, from, Message::Answer { epoch, attempt, life, lives, answer });
    }

    /// Sends a message once a record is durable.
    fn post(&mut self, after: RecordNumber, to: NodeId, message: Message) {
        if after <= self.durable {
            self.deliver(to, message);
        } else if self.held.len() < self.held_max {
            self.holds += 1;
            self.held.insert((after, self.holds), (to, message));
        } else {
            self.proposers.stats.dropped += 1;
        }
    }

    fn deliver(&mut self, to: NodeId, message: Message) {
        if to == self.node {
            self.own.push_back(message);
        } else {
            self.outputs.push_back(CasOutput::Send { to, message });
        }
    }

    /// Carries on until nothing is left to say at this node.
    fn settle(&mut self, now: Time) {
        loop {
            if let Some((to, message)) = self.proposers.poll_ask() {
                self.post(self.start_record, to, message);
            } else if let Some(message) = self.own.pop_front() {
                self.receive(now, self.node, message);
            } else if let Some((token, end)) = self.proposers.poll_end() {
                self.outputs.push_back(CasOutput::Ended { token, end });
            } else {
                return;
            }
        }
    }
}

/// The state of a member at one moment: an iterator over the records that make it.
#[derive(Debug)]
pub struct CasImage {
    head: VecDeque<Record>,
    entries: MapImage<Entry>,
}

impl Iterator for CasImage {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.head.pop_front().or_else(|| {
            let (key, entry) = self.entries.next()?;
            Some(Record::Entry { key, entry: entry.settled() })
        })
    }
}
