//! How writes get to every owner: sent at once by their coordinator, and repaired by telling each other what is held.
//!
//! Invariants: what one owner lacks and another holds is an exact difference of vectors; a write that arrives twice changes
//! nothing; pushes may be lost, for an answer or the next exchange finds the gap. So offline owners, slow ones and new ones are
//! served by the same code, and no tree decides what is sent (the one that is kept is for the [scrub](crate::scrub)). Source: DottedDB (Gonçalves et al., SRDS 2017).

use std::collections::{BTreeMap, BTreeSet};

use replikit_core::crdt::CrdtState;
use replikit_core::dotted::{LIFE_MAX, News, Outgoing, Peer, Stream, first_number, life_of};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batch, Batches, Dot, Epoch, Event, KEY_BYTES_MAX, LogAnswer, LogIndex, Message, NodeId, Now, Origin, OriginId,
    Persist, Position, SnapshotSource, StreamId, Ticket, Time, VALUE_BYTES_MAX, VersionVector, WriteId,
};

use crate::config::Keyspaces;
use crate::content::Folding;
use crate::member::Member;
use crate::message::{Head, Piece, PieceWanted, Push, Report, Stored};
use crate::record::{Change, Record, Writes};
use crate::replica::{ASKED_MAX, Leaderless, Standing};
use crate::snapshot::{Image, Incoming, Own};

/// A snapshot is sent instead of writes only when these would take this much more, in bytes.
const SNAPSHOT_WORTH_BYTES: u64 = 4 << 20;

/// After a snapshot that was too large none is taken for so many exchanges.
const REFUSED_EXCHANGES: u32 = 256;

/// A snapshot on its way in.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// It has grown beyond the limit, and its content was dropped: another one is not begun at once.
    refused: bool,
    pub(crate) from: NodeId,
    transfer: (OriginId, u64),
    offset: u64,
    content: Incoming,
    heard: Time,
}

impl Leaderless {
    pub(crate) fn handle_message(&mut self, now: Now, from: NodeId, message: Message<Head>) {
        if let Head::Epochs(theirs) = &message.head {
            return self.handle_epochs(now, from, theirs);
        }
        if self.config.fallbacks.nodes.contains(&from) {
            return self.handle_fallback(now, from, message.head);
        }
        let Some(member) = self.members.get_mut(&from) else {
            if !self.config.epochs.changes() {
                return self.misbehaved(from, "not an owner of the group");
            }
            // Evicted, or not named yet: one of the two has still to hear of an epoch.
            if message.head.epoch().is_some_and(|epoch| epoch != self.epoch) || matches!(message.head, Head::Report(_))
            {
                self.tell_epochs(now, from);
            }
            return;
        };
        member.heard = Some(now.mono);
        self.suspected.remove(&from);
        self.down.remove(&from);
        if self.failed {
            return;
        }
        if message.head.epoch().is_some_and(|epoch| epoch != self.epoch) {
            // What is of other epochs is not answered; who is behind learns.
            self.tell_epochs(now, from);
        }
        match message.head {
            Head::Push(push) if push.epoch == self.epoch => self.handle_push(now, from, push, message.batches),
            Head::Stored(stored) => self.handle_stored(now, from, &stored),
            Head::Report(report) => self.handle_report(now, from, *report),
            Head::Piece(piece) if piece.epoch == self.epoch => self.handle_piece(now, from, piece),
            Head::PieceWanted(wanted) => self.handle_piece_wanted(from, wanted),
            Head::Fetch(fetch) if fetch.epoch == self.epoch => self.handle_fetch(from, fetch),
            Head::Fetched(fetched) => self.handle_fetched(now, from, *fetched),
            Head::Repair(repair) if repair.epoch == self.epoch => self.handle_repair(from, *repair),
            Head::Repaired { read } => self.handle_repaired(from, read),
            Head::Cas(message) => self.handle_cas(now, from, *message),
            Head::CasWanted(wanted) if wanted.epoch == self.epoch => self.handle_cas_wanted(from, &wanted),
            Head::CasGiven(given) if given.epoch == self.epoch => self.handle_cas_given(from, *given),
            Head::Scrub(scrub) if scrub.epoch == self.epoch => self.handle_scrub(from, *scrub),
            Head::Scrubbed(scrubbed) => self.handle_scrubbed(from, *scrubbed),
            Head::FetchPage(fetch) if fetch.epoch == self.epoch => self.handle_fetch_page(from, fetch),
            Head::FetchedPage(fetched) => self.handle_fetched_page(now, from, *fetched),
            Head::RepairPage(repair) if repair.epoch == self.epoch => self.handle_repair_page(from, *repair),
            // Of other epochs.
            Head::Scrub(_) | Head::FetchPage(_) | Head::RepairPage(_) => {}
            Head::Push(_) | Head::Piece(_) | Head::Fetch(_) | Head::Repair(_) => {}
            Head::CasWanted(_) | Head::CasGiven(_) => {}
            Head::Epochs(_) => {}
            Head::Hint(_) | Head::Hinted { .. } => self.misbehaved(from, "a hint between owners"),
        }
    }

    /// A node that stands in for owners keeps a hint, or delivers one.
    fn handle_fallback(&mut self, now: Now, from: NodeId, head: Head) {
        self.down.remove(&from);
        match head {
            _ if self.failed => {}
            Head::Hinted { origin, sequence, owner } => self.handle_hinted(from, origin, sequence, owner),
            Head::Repair(repair) if repair.epoch == self.epoch => self.handle_repair(from, *repair),
            Head::Repair(_) => self.tell_epochs(now, from),
            _ => self.misbehaved(from, "what only owners say"),
        }
    }

    fn handle_push(&mut self, now: Now, from: NodeId, push: Push, batches: Batches) {
        let life = self.members[&from].report.as_ref().map_or(0, |report| life_of(report.number));
        if push.life < life {
            // Said before it crashed: whether those writes ever were, its log knows by now.
            return;
        }
        let mut own = false;
        for batch in batches {
            let origin = batch.stream().origin;
            let senders = Origin::of(origin).is_some_and(|writer| writer.node == from);
            own |= senders;
            self.receive(now, from, batch);
            if let Some(judged) = self.judged.get_mut(&origin).filter(|_| senders) {
                while judged.not_last.pop_front_if(|(sequence, _)| *sequence <= push.settled).is_some() {}
            }
        }
        if own {
            if push.prompt {
                self.owed_stored.insert(from);
            }
            if self.last_write == self.durable {
                // Nothing of it is new, or it is stored already: the sender has to hear so anyway.
                self.owed_stored.insert(from);
            } else {
                self.owed_durable.insert(from, self.last_write);
            }
        }
    }

    fn receive(&mut self, now: Now, from: NodeId, batch: Batch) {
        let StreamId { group, origin } = batch.stream();
        let Some(writer) = Origin::of(origin).filter(|_| group == self.config.group) else {
            return self.misbehaved(from, "a batch that is not of an origin of this group");
        };
        let held = self.streams.get(&origin).map_or(0, Stream::held);
        if batch.last().index.0 <= held {
            return;
        }
        if self.standing == Standing::Writer(origin) {
            return self.misbehaved(from, "writes of this incarnation that it has not made");
        }
        if writer.node == self.config.node
            && writer.incarnation.0 > self.register.incarnation
            && self.origin().is_some()
        {
            return self.misbehaved(from, "writes of an incarnation of this node that is yet to come");
        }
        if batch.base().0 > held + 1 {
            // Something before it was lost: its coordinator hears so at once.
            self.judged.entry(origin).or_default().missing = true;
            if writer.node == from {
                self.owed_stored.insert(from);
            }
            return;
        }
        if self.streams.len() >= VersionVector::ORIGINS_MAX && !self.streams.contains_key(&origin) {
            return self.misbehaved(from, "more origins than a group can have");
        }
        let stream = self.streams.entry(origin).or_insert_with(|| Stream::new(origin, 0, 0));
        if !stream.continues(&batch) {
            return self.misbehaved(from, "a batch that does not continue its origin's chain");
        }
        let keyspaces = &self.config.keyspaces;
        let writes = match Writes::of(batch.clone(), |dot, record| fits(dot, record, keyspaces)) {
            Ok(writes) => writes,
            Err(what) => return self.misbehaved(from, what),
        };
        if let Err(drift) = self.clock.observe_peer(writes.time, now.wall, self.config.timing.drift_max) {
            self.event(Event::ClockAhead { node: writer.node, ahead: drift.ahead });
        }
        let write = self.persist(Persist::Append { batch: batch.clone(), replace: false });
        self.keep(batch, write);
        self.take_in(&writes, write);
        self.outdated = true;
        self.try_standing();
        self.try_catching_up();
        self.maybe_snapshot();
    }

    /// Holds the next batch of a stream that is known, which the storage action `write` makes durable.
    pub(crate) fn keep(&mut self, batch: Batch, write: WriteId) {
        self.log_bytes += batch.bytes() as u64;
        self.retained_bytes += batch.bytes() as u64;
        self.cache_bytes += batch.bytes();
        let stream = self.streams.get_mut(&batch.stream().origin);
        stream.expect("known to the caller").append(batch, Some(write));
        self.trim_cache();
    }

    /// Applies writes that are held, and notes what is to be thought of them.
    pub(crate) fn take_in(&mut self, writes: &Writes, pending: WriteId) {
        let not_last = self.state.apply(writes, pending);
        let judged = self.judged.entry(writes.origin()).or_default();
        judged.not_last.extend(not_last);
        judged.missing = false;
    }

    /// Drops the oldest batches of the largest cache until all fit.
    pub(crate) fn trim_cache(&mut self) {
        while self.cache_bytes > self.config.limits.cache_bytes_max {
            let Some(stream) = self.streams.values_mut().max_by_key(|stream| stream.cache_bytes()) else { return };
            let freed = stream.forget_oldest();
            if freed == 0 {
                return;
            }
            self.cache_bytes -= freed;
        }
    }

    fn handle_report(&mut self, now: Now, from: NodeId, report: Report) {
        if report.keyspaces != self.keyspaces {
            return self.misbehaved(from, "its keyspaces are not the same as here");
        }
        let (number, echo, ask) = (report.number, report.echo, report.ask);
        let newest = self.report_number;
        if ask {
            self.owed.insert(from);
            self.owed_stored.insert(from);
        }
        if let Some(echo) = echo.filter(|echo| *echo > self.report_number) {
            // Somebody remembers a life of this node that its disk does not.
            if life_of(echo) >= LIFE_MAX {
                return self.misbehaved(from, "it remembers more lives of this node than there can be");
            }
            self.register.life = life_of(echo) + 1;
            self.report_number = first_number(self.register.life);
            // What is echoed from that life is no answer to what was asked under smaller numbers since.
            self.asked.clear();
            let (group, bytes) = (self.config.group, self.register.encode());
            self.lived = self.persist(Persist::Register { group, bytes });
        }
        self.learn(from, report);
        // An answer to a later report answers all earlier questions too.
        let echo = echo.filter(|echo| *echo <= newest);
        let asked = self.asked.iter().rev().find(|(asked, _)| echo >= Some(*asked)).map(|(_, at)| *at);
        let applied = self.state.base();
        let member = self.members.get_mut(&from).expect("looked up by the caller");
        member.echo = member.echo.max(Some(number));
        if let Some(asked) = asked.filter(|_| member.report.as_ref().is_some_and(|report| report.number == number)) {
            member.answered(asked, applied);
            self.hears_of_itself(from);
        }
        self.try_standing();
        self.observe_move(from);
        self.try_moving(now);
    }

    /// An owner has told.
    fn learn(&mut self, node: NodeId, report: Report) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let news = member.observe(report);
        if news == News::Old {
            return;
        }
        let report = member.report.as_ref().expect("observed just now");
        if let Some(peer) = self.peers.get_mut(&node) {
            if news == News::NewLife {
                peer.go_back();
            }
            peer.confirms(&report.held);
        }
        if news == News::NewLife {
            // It may hold less than before: nobody must wait for what is gone.
            self.stability.begin_anew();
            self.moving.forget(node);
            if let Standing::Asking { wanted, .. } = &mut self.standing {
                // It has to say again what it holds.
                wanted.remove(&node);
            }
        }
        self.outdated = true;
    }

    /// While this replica may have forgotten what it wrote, each answer tells of it.
    fn hears_of_itself(&mut self, from: NodeId) {
        let node = self.config.node;
        let Standing::Asking { wanted, newest } = &mut self.standing else { return };
        let report = self.members[&from].report.as_ref().expect("learned just now");
        if report.epoch != self.epoch {
            return;
        }
        if self.owners.index(from).is_some() {
            // What it held when it first told this life of it, in these epochs: what came since, nobody counted this replica for. Under
            // steady writes nobody ever has what everybody told last.
            wanted.entry(from).or_insert_with(|| report.held.clone());
        }
        let known = report.held.origins().filter_map(Origin::of).filter(|origin| origin.node == node);
        *newest = known.map(|origin| origin.incarnation.0).fold(*newest, u32::max);
    }

    /// Whether this replica is to send an origin's writes to a peer without being asked: its own, and those of owners that
    /// nothing is heard of.
    fn is_sender(&self, origin: OriginId, to: NodeId) -> bool {
        let Some(Origin { node, .. }) = Origin::of(origin) else { return false };
        node == self.config.node
            || node != to
                && (self.suspected.contains(&node) || self.down.contains(&node) || self.owners.index(node).is_none())
    }

    /// Sends every peer what it lacks, as far as it goes.
    pub(crate) fn fill_peers(&mut self) {
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for to in peers {
            if !self.down.contains(&to) {
                self.fill(to);
            }
        }
    }

    /// The last sequence of a stream that may leave this node: of its own, nothing before its incarnation is on disk.
    fn sendable(&self, stream: &Stream) -> u64 {
        let own = self.standing == Standing::Writer(stream.origin());
        if own && self.incarnated > self.durable { stream.durable() } else { stream.held() }
    }

    /// Whether a peer that holds this much is to be sent something now.
    fn lacks(&self, to: NodeId, peer: &Peer, held: &VersionVector) -> bool {
        self.streams.values().any(|stream| {
            let origin = stream.origin();
            peer.next(origin, held.base(origin)) <= self.sendable(stream) && self.is_sender(origin, to)
        })
    }

    fn fill(&mut self, to: NodeId) {
        let Some(report) = self.members.get(&to).and_then(|member| member.report.as_ref()) else { return };
        if report.epoch != self.epoch {
            return;
        }
        let peer = &self.peers[&to];
        if peer.outgoing.is_none() && !peer.needs_repair() && !self.lacks(to, peer, &report.held) {
            return;
        }
        let held = report.held.clone();
        let limits = self.config.limits;
        let mut peer = self.peers.remove(&to).expect("a peer");
        let mut wants_snapshot = false;
        if peer.outgoing.is_none() {
            let origins: Vec<OriginId> = self.streams.keys().copied().collect();
            'origins: for origin in origins {
                if !peer.is_repaired(origin) && !self.is_sender(origin, to) {
                    continue;
                }
                loop {
                    let stream = &self.streams[&origin];
                    let end = self.sendable(stream);
                    let next = peer.next(origin, held.base(origin));
                    if next > end {
                        continue 'origins;
                    }
                    // Each origin has its turn: what the peer can take at once may be behind what has to wait there.
                    if peer.inflight_bytes() >= limits.inflight_bytes_max && peer.is_sending(origin) {
                        continue 'origins;
                    }
                    // What the log has given up may still be in memory, for those who are about to get it.
                    if next < stream.first() && stream.cached(next).is_none() {
                        wants_snapshot = true;
                        break 'origins;
                    }
                    let (mut batches, mut bytes, mut at) = (Batches::None, 0, next);
                    while let Some(batch) =
                        stream.cached(at).filter(|batch| batch.base().0 == at && batch.last().index.0 <= end)
                    {
                        if !batches.is_empty() && bytes + batch.bytes() > limits.message_bytes_max {
                            break;
                        }
                        at = batch.last().index.0 + 1;
                        bytes += batch.bytes();
                        peer.sends(origin, at - 1, batch.bytes());
                        batches.push(batch.clone());
                    }
                    if batches.is_empty() {
                        if peer.reading.is_none() {
                            self.tickets += 1;
                            let ticket = Ticket(self.tickets);
                            peer.reading = Some((ticket, origin));
                            self.actions.push_back(replikit_core::Action::ReadLog {
                                ticket,
                                stream: self.stream_id(origin),
                                from: LogIndex(next),
                                bytes_max: limits.message_bytes_max as u32,
                            });
                        }
                        continue 'origins;
                    }
                    self.push(to, batches);
                }
            }
            let behind = |stream: &Stream| stream.bytes_behind(held.base(stream.origin()));
            let delta: u64 = self.streams.values().map(behind).sum();
            wants_snapshot |= peer.repair && delta > self.state.bytes() as u64 + SNAPSHOT_WORTH_BYTES;
            if wants_snapshot {
                self.begin_transfer(&mut peer);
            }
        }
        self.peers.insert(to, peer);
        self.send_piece(to);
    }

    fn push(&mut self, to: NodeId, batches: Batches) {
        let (prompt, settled) = (self.writing.is_prompt(), self.writing.settled());
        let (epoch, life) = (self.epoch, self.register.life);
        self.send(to, Head::Push(Push { epoch, prompt, settled, life }), batches);
    }

    pub(crate) fn handle_log_read(&mut self, ticket: Ticket, stream: StreamId, answer: LogAnswer) {
        let reading = |peer: &Peer| peer.reading.is_some_and(|(read, _)| read == ticket);
        let Some(to) = self.peers.iter().find(|(_, peer)| reading(peer)).map(|(to, _)| *to) else { return };
        let origin = stream.origin;
        let end = self.streams.get(&origin).map(|known| self.sendable(known));
        let peer = self.peers.get_mut(&to).expect("found just now");
        peer.reading = None;
        self.outdated = true;
        match answer {
            LogAnswer::Batches(found) => {
                let Some(end) = end else { return };
                let held = self.members.get(&to).map_or(0, |member| member.held(origin));
                let mut batches = Batches::None;
                for batch in found {
                    // Since it was asked for, the peer may have gone forward or back.
                    if batch.base().0 == peer.next(origin, held) && batch.last().index.0 <= end {
                        peer.sends(origin, batch.last().index.0, batch.bytes());
                        batches.push(batch);
                    }
                }
                if !batches.is_empty() {
                    self.push(to, batches);
                }
            }
            LogAnswer::Compacted { first } => self.released(origin, first.0),
            LogAnswer::Faulty(range) => {
                self.released(origin, range.end().0 + 1);
                self.event(Event::StorageFaulty { stream, range });
            }
        }
    }

    fn released(&mut self, origin: OriginId, first: u64) {
        if let Some(stream) = self.streams.get_mut(&origin) {
            stream.released(first);
        }
    }

    /// Tells coordinators how far their writes have got here.
    pub(crate) fn tell_stored(&mut self) {
        let owed = core::mem::take(&mut self.owed_stored);
        if !matches!(self.standing, Standing::Writer(_)) {
            // It may have forgotten something newer than what it is asked about: its word counts for nothing.
            return;
        }
        for to in owed {
            let newest = |stream: &&Stream| Origin::of(stream.origin()).is_some_and(|writer| writer.node == to);
            let Some(stream) = self.streams.values().filter(newest).max_by_key(|stream| stream.origin()) else {
                continue;
            };
            let origin = stream.origin();
            let (received, durable) = (stream.held(), stream.durable());
            let judged = self.judged.entry(origin).or_default();
            let stored = Stored {
                epoch: self.epoch,
                origin,
                judged_from: judged.from.min(received),
                received,
                durable,
                missing: core::mem::take(&mut judged.missing),
                not_last: judged.not_last.iter().copied().collect(),
            };
            self.send(to, Head::Stored(stored), Batches::None);
        }
    }

    /// Tells those who are owed it what is held here.
    pub(crate) fn tell_owed(&mut self) {
        let owed = core::mem::take(&mut self.owed);
        let report = self.next_report();
        for to in owed {
            self.tell(to, &report, false);
        }
    }

    fn next_report(&mut self) -> Report {
        self.report_number += 1;
        self.report()
    }

    fn tell(&mut self, to: NodeId, report: &Report, ask: bool) {
        let echo = self.members.get(&to).and_then(|member| member.echo);
        let report = Report { echo, ask, ..report.clone() };
        self.send(to, Head::Report(Box::new(report)), Batches::None);
    }

    /// The regular exchange: tells everybody what is held, and finds out who has not come forward.
    pub(crate) fn exchange(&mut self, now: Now) {
        self.suspect(now);
        let held = self.held();
        for (node, peer) in &mut self.peers {
            let Some(report) = self.members.get(node).and_then(|member| member.report.as_ref()) else { continue };
            peer.exchange(report.number, &report.held, &held);
            if let Some(outgoing) = &mut peer.outgoing {
                outgoing.fresh = false;
            }
        }
        self.outdated = true;
        let report = self.next_report();
        self.asked.push_back((report.number, now.mono));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
        let told: Vec<NodeId> = self.members.keys().copied().collect();
        for &to in &told {
            self.tell(to, &report, true);
        }
        self.ask_again(now);
        self.hint_again();
        self.gather();
        self.spread_orphans();
        self.spread_moving();
        self.resubmit(now);
        self.sweep(now);
        self.try_moving(now);
        if !self.owners.is_owner() {
            return;
        }
        let others = self
            .owners
            .others()
            .map(|node| agreeing(&self.members, node, self.epoch, &report.lives).map(Report::holding));
        self.stability.advance(report.holding(), others);
        let stable = self.stability.stable().clone();
        let ended = self.ended(&report);
        let folding = self.folding(&report);
        self.state.collect(&stable, folding, &ended, self.durable);
        self.scrub(now);
    }

    /// Whether additions that are stable may be told apart no more: nobody is to bring a reset that has seen some of them only.
    /// Such a reset was made before its coordinator reported that it had applied all of them. So it has come with the logs,
    /// but for two: that of an owner which was evicted in the meantime, and makes it again when it comes back; and that of one
    /// which lost its memory, where a read had repaired somebody from it before.
    fn folding(&self, mine: &Report) -> Folding {
        if !self.ownership.is_founding() {
            return Folding::Never;
        }
        let has_none =
            |node| agreeing(&self.members, node, self.epoch, &mine.lives).is_some_and(|report| !report.strays);
        if !mine.strays && self.owners.others().all(has_none) { Folding::Now } else { Folding::Later }
    }

    /// Origins that write no more and of which every owner holds the same: what is not held of them now never will be. None
    /// where owners change: who comes back, or a hint that waits for somebody, may have an old copy of a key.
    fn ended(&mut self, mine: &Report) -> Vec<OriginId> {
        if self.config.epochs.changes() {
            return Vec::new();
        }
        let reports = self.owners.others().map(|node| agreeing(&self.members, node, self.epoch, &mine.lives));
        let Some(reports) = reports.collect::<Option<Vec<&Report>>>() else {
            return Vec::new();
        };
        // A key may have seen a write of which nothing is held: a repair told of it, and it was lost with the memory of all
        // who had the log.
        let mut held: BTreeMap<OriginId, u64> =
            self.state.origins_above().into_iter().map(|origin| (origin, 0)).collect();
        held.extend(mine.held.iter().map(|(origin, held)| (origin, held.base())));
        let ended = held.into_iter().filter(|(origin, base)| {
            let over = Origin::of(*origin).is_some_and(|writer| {
                self.owners.index(writer.node).is_some()
                    && self.current(writer.node).is_some_and(|current| current > writer.incarnation.0)
            });
            over && reports.iter().all(|report| report.held.base(*origin) == *base)
        });
        ended.map(|(origin, _)| origin).collect()
    }

    /// Finds out who has been silent for too long.
    fn suspect(&mut self, now: Now) {
        let after = self.config.timing.suspect_after;
        let mut suspected = BTreeSet::new();
        for (&node, member) in &mut self.members {
            let heard = *member.heard.get_or_insert(now.mono);
            if now.mono.since(heard) > after {
                suspected.insert(node);
            }
        }
        let new: Vec<NodeId> = suspected.difference(&self.suspected).copied().collect();
        self.suspected = suspected;
        for node in new {
            self.event(Event::PeerSuspected { node });
            self.ask_instead_of(now, node);
        }
    }

    fn begin_transfer(&mut self, peer: &mut Peer) {
        self.close_batch();
        self.transfers += 1;
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        // The life is in it: a restart begins the numbers anew.
        let transfer = (origin, first_number(self.register.life) + self.transfers);
        let source = Box::new(Image::of(&self.state, self.local, None));
        peer.outgoing = Some(Outgoing::new(transfer, source, self.last_write));
    }

    /// Sends the piece that is due, if it is.
    fn send_piece(&mut self, to: NodeId) {
        let (bytes_max, epoch, durable) = (self.config.limits.snapshot_piece_bytes, self.epoch, self.durable);
        let Some(outgoing) = self.peers.get_mut(&to).and_then(|peer| peer.outgoing.as_mut()) else { return };
        if outgoing.after > durable || outgoing.fresh {
            return;
        }
        outgoing.fresh = true;
        let transfer = outgoing.transfer;
        let (offset, bytes, last) = outgoing.piece(bytes_max);
        self.send(to, Head::Piece(Piece { epoch, transfer, offset, bytes, last }), Batches::None);
    }

    fn handle_piece_wanted(&mut self, from: NodeId, wanted: PieceWanted) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(outgoing) = peer.outgoing.as_mut().filter(|outgoing| outgoing.transfer == wanted.transfer) else {
            return;
        };
        if wanted.offset.is_some_and(|offset| outgoing.wanted(offset)) {
            self.send_piece(from);
        } else {
            // It is complete, or the other side began anew: what is left to do, its next report tells.
            peer.outgoing = None;
        }
    }

    fn handle_piece(&mut self, now: Now, from: NodeId, piece: Piece) {
        let Piece { transfer, offset, bytes, last, .. } = piece;
        let exchange = self.config.timing.exchange;
        let known = self.arriving.as_ref();
        let same = known.is_some_and(|arriving| arriving.from == from && arriving.transfer == transfer);
        let wants = |offset| Head::PieceWanted(PieceWanted { transfer, offset });
        if !same {
            let patience = |arriving: &Arriving| exchange * if arriving.refused { REFUSED_EXCHANGES } else { 4 };
            let busy = known.is_some_and(|arriving| now.mono.since(arriving.heard) < patience(arriving));
            if busy || offset > 0 {
                return self.send(from, wants(None), Batches::None);
            }
            let (content, heard) = (Incoming::default(), now.mono);
            self.arriving = Some(Arriving { from, transfer, offset: 0, content, heard, refused: false });
        }
        let arriving = self.arriving.as_mut().expect("it is there now");
        if arriving.refused {
            return self.send(from, wants(None), Batches::None);
        }
        arriving.heard = now.mono;
        if offset != arriving.offset {
            let next = arriving.offset;
            return self.send(from, wants(Some(next)), Batches::None);
        }
        let bytes_max = self.config.limits.snapshot_bytes_max;
        if offset + bytes.len() as u64 > bytes_max {
            (arriving.refused, arriving.content) = (true, Incoming::default());
            self.send(from, wants(None), Batches::None);
            return self.event(Event::SnapshotRefused { from, bytes_max });
        }
        if arriving.content.push(&bytes).is_err() {
            self.arriving = None;
            self.send(from, wants(None), Batches::None);
            return self.misbehaved(from, "a snapshot that cannot be read");
        }
        arriving.offset += bytes.len() as u64;
        let next = arriving.offset;
        if !last {
            return self.send(from, wants(Some(next)), Batches::None);
        }
        let arriving = self.arriving.take().expect("it was there just now");
        self.send(from, wants(None), Batches::None);
        self.install(from, arriving.content);
    }

    /// Joins a peer's state with the own one and makes the result durable.
    fn install(&mut self, from: NodeId, content: Incoming) {
        self.close_batch();
        let before = self.state.base().clone();
        let Ok((header, _)) = content.join(&mut self.state) else {
            return self.misbehaved(from, "a snapshot that cannot be read");
        };
        let at = self.write_image();
        // What came with it is shown once it is on disk here.
        self.installed = self.last_write;
        let advanced: Vec<(OriginId, u64)> = header
            .applied
            .iter()
            .map(|(origin, held)| (origin, held.base()))
            .filter(|(origin, base)| before.base(*origin) < *base)
            .collect();
        for (origin, base) in advanced {
            let (stream, next) = (self.stream_id(origin), LogIndex(base + 1));
            let write = self.persist(Persist::Reset { stream, next });
            let digest = self.state.digest(origin);
            self.streams.entry(origin).or_insert_with(|| Stream::new(origin, 0, 0)).skip_to(base, digest, write);
            let judged = self.judged.entry(origin).or_default();
            judged.from = base;
            judged.not_last.clear();
        }
        self.cache_bytes = self.streams.values().map(Stream::cache_bytes).sum();
        self.event(Event::SnapshotInstalled { at, from });
        self.outdated = true;
        self.owed.insert(from);
        self.try_standing();
        self.try_catching_up();
    }

    /// Writes everything that has to be on this disk, in the order of what is stored; returns where.
    pub(crate) fn write_image(&mut self) -> Position {
        let at = self.next_snapshot();
        let mut image = self.image();
        let piece_bytes = self.config.limits.snapshot_piece_bytes;
        let (mut offset, mut piece) = (0, image.next(piece_bytes).unwrap_or_default());
        loop {
            let next = image.next(piece_bytes);
            let (chunk, last) = (piece, next.is_none());
            let bytes = chunk.len() as u64;
            self.persist(Persist::SnapshotChunk { at, offset, chunk, last });
            offset += bytes;
            match next {
                Some(next) => piece = next,
                None => break,
            }
        }
        self.snapshot = Some(at);
        at
    }

    /// Everything that has to be on this disk.
    fn image(&self) -> Image {
        let own = Own { cas: self.consensus.image(), owning: self.owning(), stash: self.stash.clone() };
        Image::of(&self.state, self.local, Some(own))
    }

    fn next_snapshot(&self) -> Position {
        let number = self.snapshot.map_or(1, |at| at.id.index.0 + 1);
        crate::replica::position(self.stream_id(OriginId::LOCAL), number)
    }

    pub(crate) fn maybe_snapshot(&mut self) {
        if self.log_bytes >= self.config.limits.snapshot_log_bytes {
            self.take_snapshot();
        }
    }

    /// Writes the own state down and gives up the log behind it, as far as every owner has it; beyond the limit also
    /// further: who comes back late gets a snapshot.
    pub(crate) fn take_snapshot(&mut self) {
        self.close_batch();
        self.log_bytes = 0;
        let at = self.next_snapshot();
        self.snapshot = Some(at);
        self.persist(Persist::Snapshot { at, source: Box::new(self.image()) });
        let all = self.retained_bytes > self.config.limits.retained_bytes_max;
        let mut releases = Vec::new();
        for stream in self.streams.values_mut() {
            let applied = self.state.base().base(stream.origin());
            let needless = if all { applied } else { applied.min(self.stability.stable().base(stream.origin())) };
            if needless + 1 > stream.first() {
                stream.released(needless + 1);
                releases.push((stream.origin(), LogIndex(needless + 1)));
            }
        }
        // Own records are in the snapshot.
        releases.push((OriginId::LOCAL, LogIndex(self.local.0 + 1)));
        for (origin, before) in releases {
            let stream = self.stream_id(origin);
            self.persist(Persist::Release { stream, before });
        }
        self.retained_bytes = self.streams.values().map(|stream| stream.bytes_behind(stream.first() - 1)).sum();
        self.event(Event::SnapshotTaken { at });
    }
}

/// The report of another owner, if it is of this epoch and knows of these lives: who still takes what an earlier life of somebody
/// sent may come to hold more than it says.
fn agreeing<'a>(
    members: &'a BTreeMap<NodeId, Member>,
    node: NodeId,
    epoch: Epoch,
    lives: &[u32],
) -> Option<&'a Report> {
    let report = members.get(&node)?.report.as_ref();
    report.filter(|report| report.epoch == epoch && report.lives == lives)
}

/// Whether a write is one that its keyspace has, of a size that it takes.
fn fits(dot: Dot, record: &Record<'_>, keyspaces: &Keyspaces) -> bool {
    let fits = match (record.change, &keyspaces.of(record.key).conflicts) {
        (Change::Merge(value), ConflictPolicy::Crdt(kind)) => {
            value.len() <= VALUE_BYTES_MAX && CrdtState::decode(*kind, value).is_ok()
        }
        (Change::Delta(value), ConflictPolicy::Crdt(kind)) => {
            value.len() <= VALUE_BYTES_MAX && CrdtState::only_adds(*kind, dot, value)
        }
        (Change::Merge(_) | Change::Delta(_), _) | (_, ConflictPolicy::Crdt(_)) => false,
        (Change::Put(value), _) => value.len() <= VALUE_BYTES_MAX,
        (Change::Delete, _) => true,
    };
    fits && record.key.len() <= KEY_BYTES_MAX && !keyspaces.of(record.key).is_cas()
}
