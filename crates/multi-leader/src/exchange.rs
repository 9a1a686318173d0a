//! How writes get about: pushed as soon as they are durable, forwarded where the topology says so, and repaired by telling
//! each other what is held.
//!
//! Invariants: what one replica lacks and another holds is an exact difference of vectors; a write that arrives twice changes
//! nothing; pushes may be lost, for the next exchange finds the gap. So offline replicas, slow ones and new ones are served by
//! the same code. Source: DottedDB (Gonçalves et al., SRDS 2017); Riak's real-time replication over cheap full sync.

use std::collections::BTreeSet;

use replikit_core::dotted::{LIFE_MAX, News, Outgoing, Peer, Stream, first_number, life_of};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{
    Batch, Batches, Event, KEY_BYTES_MAX, LogAnswer, LogIndex, Message, NodeId, Now, Origin, OriginId, Persist,
    Position, SnapshotSource, StreamId, Ticket, VALUE_BYTES_MAX, VersionVector, WriteId,
};

use crate::config::Keyspaces;
use crate::message::{Head, Hearsay, Piece, PieceWanted, Push, Report};
use crate::record::{Change, Record, Writes};
use crate::register::Stage;
use crate::replica::{ASKED_MAX, MultiLeader, Standing};
use crate::snapshot::{Image, Incoming};
use crate::transfer::Arriving;

/// A snapshot is sent instead of writes only when these would take this much more, in bytes.
const SNAPSHOT_WORTH_BYTES: u64 = 4 << 20;

/// After a snapshot that was too large none is taken for so many exchanges.
const REFUSED_EXCHANGES: u32 = 256;

impl MultiLeader {
    pub(crate) fn handle_message(&mut self, now: Now, from: NodeId, message: Message<Head>) {
        let Some(member) = self.members.get_mut(&from) else {
            if !self.config.epochs.changes() {
                self.misbehaved(from, "not a member of the group");
            }
            // Evicted, or not named yet: one of the two has still to hear of an epoch.
            return;
        };
        member.heard = Some(now.mono);
        self.down.remove(&from);
        if self.failed {
            return;
        }
        match message.head {
            Head::Push(push) if push.epoch == self.epoch => self.handle_push(now, from, push, message.batches),
            Head::Report(report) if self.counts(from, &report) => self.handle_report(from, *report),
            Head::Gossip(hearsay) => {
                for Hearsay { node, report } in hearsay {
                    if node != self.config.node && self.members.contains_key(&node) && self.counts(node, &report) {
                        let news = self.learn(node, report);
                        self.is_told_of(now, node, news);
                    }
                }
                self.after_news();
            }
            Head::Piece(piece) if piece.epoch == self.epoch => self.handle_piece(now, from, piece),
            Head::PieceWanted(wanted) => self.handle_piece_wanted(from, wanted),
            // Of another epoch: its next report tells.
            Head::Push(_) | Head::Piece(_) | Head::Report(_) => {}
        }
    }

    fn handle_push(&mut self, now: Now, from: NodeId, push: Push, batches: Batches) {
        let was_quiet = self.last_write == self.durable;
        for batch in batches {
            self.receive(now, from, batch);
        }
        if push.prompt {
            self.stop_lingering();
        }
        // What lingers is held: the sender must not think it lost. Where much is stored anyway it hears soon.
        if push.prompt || was_quiet && self.lingering.until().is_some() {
            self.owed.insert(from);
        }
        self.owed_durable.insert(from, self.last_write);
        if self.last_write == self.durable {
            // Nothing of it is new, or it is stored already: the sender has to hear so anyway.
            let owed = core::mem::take(&mut self.owed_durable);
            self.owed.extend(owed.into_keys());
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
            // Something before it was lost: the sender hears what is held.
            self.owed.insert(from);
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
        let writes = match Writes::of(batch.clone(), |record| fits(record, keyspaces)) {
            Ok(writes) => writes,
            Err(what) => return self.misbehaved(from, what),
        };
        let ready = !self.waiting.has(origin) && (self.state.is_ready(&writes) || self.is_ready_without_lost(&writes));
        if !ready && self.waiting.bytes() + batch.bytes() > self.config.limits.causal_buffer_bytes_max {
            // What it waits for comes first, and is never refused; this comes again with a later exchange.
            return;
        }
        if let Err(drift) = self.clock.observe_peer(writes.time, now.wall, self.config.timing.drift_max) {
            self.event(Event::ClockAhead { node: writer.node, ahead: drift.ahead });
        }
        let write = self.persist_soon(batch.clone());
        self.keep(batch, write);
        self.take_in(writes);
        self.outdated = true;
        self.after_applying();
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

    fn handle_report(&mut self, from: NodeId, report: Report) {
        if report.keyspaces != self.keyspaces {
            return self.misbehaved(from, "its keyspaces are not the same as here");
        }
        let (number, echo, ask) = (report.number, report.echo, report.ask);
        let current = report.epoch == self.epoch;
        let newest = self.report_number;
        if ask {
            self.owed.insert(from);
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
        let news = self.learn(from, report);
        // An answer to a later report answers all earlier questions too.
        let echo = echo.filter(|echo| *echo <= newest);
        let asked = self.asked.iter().rev().find(|(asked, _)| echo >= Some(*asked)).map(|(_, at)| *at);
        let applied = self.state.applied();
        let member = self.members.get_mut(&from).expect("looked up by the caller");
        member.echo = member.echo.max(Some(number));
        if news != News::Old {
            // Who is of another epoch may not know of members whose writes are missing here.
            let asked = asked.filter(|_| current);
            if let Some(asked) = asked {
                member.answered(from, asked, applied);
            }
            if asked.is_some() {
                self.hears_of_itself(from);
            }
        }
        self.after_news();
    }

    /// A member has told, or somebody of it.
    fn learn(&mut self, node: NodeId, report: Report) -> News {
        let Some(member) = self.members.get_mut(&node) else { return News::Old };
        let news = member.observe(report);
        if news == News::Old {
            return news;
        }
        let report = member.report.as_ref().expect("observed just now");
        if news == News::NewLife {
            self.stability.begin_anew();
            if let Standing::Asking { unheard, wanted, .. } = &mut self.standing {
                // What it said before may be lost: it has to say again.
                wanted.remove(&node);
                unheard.insert(node);
            }
            self.epochs.look_anew();
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            if news == News::NewLife {
                peer.go_back();
            }
            peer.confirms(&report.held);
        }
        self.hear_of_fence(node);
        self.outdated = true;
        news
    }

    /// One that is suspected and no neighbour any more may never come forward here: that others know more of it shows that it
    /// lives.
    fn is_told_of(&mut self, now: Now, node: NodeId, news: News) {
        let me = self.config.node;
        let neighbour = self.bypassed.links(me, node);
        if news != News::Old && !neighbour && self.suspected.contains(&node) {
            self.members.get_mut(&node).expect("learned of just now").heard = Some(now.mono);
        }
    }

    pub(crate) fn after_news(&mut self) {
        self.release_acks();
        self.try_settling();
        self.follow_change();
        if self.waiting.bytes() > 0 {
            self.drain_waiting();
        }
        self.after_applying();
    }

    /// While this replica may have forgotten what it wrote, each answer tells of it.
    fn hears_of_itself(&mut self, from: NodeId) {
        let node = self.config.node;
        let Standing::Asking { unheard, wanted, newest } = &mut self.standing else { return };
        let report = self.members[&from].report.as_ref().expect("learned just now");
        wanted.insert(from, report.held.clone());
        let known = report.held.origins().filter_map(Origin::of).filter(|origin| origin.node == node);
        *newest = known.map(|origin| origin.incarnation.0).fold(*newest, u32::max);
        unheard.remove(&from);
    }

    /// Whether this replica is to send an origin's writes to a peer without being asked.
    fn is_sender(&self, origin: OriginId, to: NodeId) -> bool {
        let Some(Origin { node, .. }) = Origin::of(origin) else { return false };
        if node == self.config.node {
            return true;
        }
        if node == to {
            // It has begun anew, and lacks what it wrote before.
            return self.is_closed(origin);
        }
        !self.bypassed.has(node, to) || self.suspected.contains(&node)
    }

    /// Sends every peer what it lacks, as far as it goes.
    pub(crate) fn fill_peers(&mut self) {
        let sendable = self.held();
        let due = |(to, peer): &(&NodeId, &Peer)| self.is_due(**to, peer, &sendable);
        let due: Vec<NodeId> = self.peers.iter().filter(due).map(|(to, _)| *to).collect();
        for to in due {
            self.fill(to);
        }
    }

    /// The last sequence of a stream that may leave this node: of its own, what is on its disk.
    pub(crate) fn sendable(&self, stream: &Stream) -> u64 {
        // Of a closed origin, what a disk has: nobody may have taken it in before that disk loses it.
        if self.is_closed(stream.origin()) {
            return stream.durable();
        }
        if self.standing == Standing::Writer(stream.origin()) { stream.durable() } else { stream.held() }
    }

    /// Whether there is something to do for a peer, of what can be sent now.
    fn is_due(&self, to: NodeId, peer: &Peer, sendable: &VersionVector) -> bool {
        let Some(report) = self.members.get(&to).and_then(|member| member.report.as_ref()) else { return false };
        if report.epoch != self.epoch || self.down.contains(&to) {
            return false;
        }
        let lacks = || {
            sendable.iter().any(|(origin, mine)| {
                let held = report.held.base(origin);
                held < mine.base() && peer.next(origin, held) <= mine.base() && self.is_sender(origin, to)
            })
        };
        peer.outgoing.is_some() || peer.needs_repair() || lacks()
    }

    fn fill(&mut self, to: NodeId) {
        let report = self.members[&to].report.as_ref().expect("one that has told nothing is not filled");
        let held = report.held.clone();
        let limits = self.config.limits;
        let mut peer = self.peers.remove(&to).expect("a peer");
        // Who has joined or come back has nothing: whole histories, origin by origin, would wait for each other there.
        let joins = held.is_empty() && self.epochs.membership.joined.contains_key(&to);
        let mut wants_snapshot = false;
        if joins && !self.state.applied().is_empty() {
            // Once an exchange: it takes one snapshot at a time, perhaps another's.
            if peer.outgoing.is_none() && core::mem::take(&mut peer.repair) {
                self.begin_transfer(&mut peer);
            }
        } else if peer.outgoing.is_none() {
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
                            let (stream, from) = (self.stream_id(origin), LogIndex(next));
                            let bytes_max = limits.message_bytes_max as u32;
                            // The log may have been given no more than what is still in memory.
                            self.stop_lingering();
                            self.actions.push_back(replikit_core::Action::ReadLog { ticket, stream, from, bytes_max });
                        }
                        continue 'origins;
                    }
                    self.push(to, batches);
                }
            }
            let behind = |stream: &Stream| stream.bytes_behind(held.base(stream.origin()));
            let delta = || self.streams.values().map(behind).sum::<u64>();
            wants_snapshot |= peer.repair && delta() > self.state.bytes() as u64 + SNAPSHOT_WORTH_BYTES;
            if wants_snapshot {
                self.begin_transfer(&mut peer);
            }
        }
        self.peers.insert(to, peer);
        self.send_piece(to);
    }

    fn push(&mut self, to: NodeId, batches: Batches) {
        let prompt = self.acks.is_prompt();
        self.send(to, Head::Push(Push { epoch: self.epoch, prompt }), batches);
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

    /// The regular exchange: tells everybody around what is held, and finds out who has not come forward.
    pub(crate) fn exchange(&mut self, now: Now) {
        if self.epochs.evicted {
            return;
        }
        self.suspect(now);
        let report = self.next_report();
        for (node, peer) in &mut self.peers {
            let Some(theirs) = self.members.get(node).and_then(|member| member.report.as_ref()) else { continue };
            peer.exchange(theirs.number, &theirs.held, &report.held);
            if let Some(outgoing) = &mut peer.outgoing {
                outgoing.fresh = false;
            }
        }
        self.outdated = true;
        self.asked.push_back((report.number, now.mono));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
        let me = self.config.node;
        let around: Vec<NodeId> = self.members.keys().copied().filter(|node| self.bypassed.links(me, *node)).collect();
        let asking = matches!(self.standing, Standing::Asking { .. });
        // Those who are suspected are asked as well, also when links were laid round them: two that suspect each other would
        // never hear that they are wrong.
        let is_told = |node: &NodeId| asking || around.contains(node) || self.suspected.contains(node);
        let told: Vec<NodeId> = self.members.keys().copied().filter(is_told).collect();
        for &to in &told {
            self.tell(to, &report, true);
        }
        self.gossip(&around);
        let others = self.members.values().map(|member| {
            let report = member.report.as_ref().filter(|theirs| theirs.epoch == report.epoch);
            report.map(Report::holding)
        });
        if report.epoch == self.epoch && self.stability.advance(report.holding(), others) {
            let stable = self.stability.stable().clone();
            self.state.collect(&stable, self.epochs.membership.is_founding(), self.durable);
        }
    }

    /// Where not everybody hears from everybody, what is known of others is passed on.
    fn gossip(&mut self, around: &[NodeId]) {
        for &to in around {
            let strangers = self.members.iter().filter(|(node, _)| **node != to && !self.graph.links(**node, to));
            let hearsay = strangers.filter_map(|(&node, member)| {
                let report = Report { echo: None, ask: false, ..member.report.clone()? };
                Some(Hearsay { node, report })
            });
            let hearsay: Vec<Hearsay> = hearsay.collect();
            if !hearsay.is_empty() {
                self.send(to, Head::Gossip(hearsay), Batches::None);
            }
        }
    }

    /// Finds out who has been silent for too long, and lays links around them.
    fn suspect(&mut self, now: Now) {
        let after = self.config.timing.suspect_after;
        let me = self.config.node;
        // Those that are no neighbours are not heard from in any case.
        let neighbour = |node: NodeId| self.bypassed.links(me, node);
        let mut suspected = BTreeSet::new();
        for (&node, member) in &mut self.members {
            let heard = *member.heard.get_or_insert(now.mono);
            // Silence counts where something should be heard; who is suspected stays so until something is, for the links
            // round it may be the only ones that it is no neighbour of any more.
            if (neighbour(node) || self.suspected.contains(&node)) && now.mono.since(heard) > after {
                suspected.insert(node);
            }
        }
        if suspected == self.suspected {
            return;
        }
        for &node in suspected.difference(&self.suspected) {
            self.actions.push_back(replikit_core::Action::Event {
                group: self.config.group,
                event: Event::PeerSuspected { node },
            });
        }
        self.suspected = suspected;
        self.bypassed = self.graph.with(&self.graph.bypass(&self.suspected));
        self.lay_peers();
    }

    /// Peers are those that the graph says.
    pub(crate) fn lay_peers(&mut self) {
        let wanted: BTreeSet<NodeId> =
            self.bypassed.receivers(self.config.node).filter(|node| self.members.contains_key(node)).collect();
        self.peers.retain(|node, _| wanted.contains(node));
        for node in wanted {
            self.peers.entry(node).or_default();
        }
    }

    fn begin_transfer(&mut self, peer: &mut Peer) {
        self.close_batch();
        self.transfers += 1;
        let origin = self.origin().unwrap_or(OriginId::LOCAL);
        // The life is in it: a restart begins the numbers anew.
        let transfer = (origin, first_number(self.register.life) + self.transfers);
        let source = Box::new(Image::of(&self.state));
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
        let before = self.state.applied().clone();
        let Ok(header) = content.join(&mut self.state) else {
            return self.misbehaved(from, "a snapshot that cannot be read");
        };
        if before.covers(&header.applied) {
            return;
        }
        let at = self.next_snapshot();
        let mut image = Image::of(&self.state);
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
        let advanced: Vec<(OriginId, u64)> = header
            .applied
            .iter()
            .map(|(origin, held)| (origin, held.base()))
            .filter(|(origin, base)| self.streams.get(origin).is_none_or(|stream| stream.held() < *base))
            .collect();
        for (origin, base) in advanced {
            let (stream, next) = (self.stream_id(origin), LogIndex(base + 1));
            let write = self.persist(Persist::Reset { stream, next });
            let digest = self.state.digest(origin);
            self.streams.entry(origin).or_insert_with(|| Stream::new(origin, 0, 0)).skip_to(base, digest, write);
        }
        self.waiting.is_applied(self.state.applied());
        self.cache_bytes = self.streams.values().map(Stream::cache_bytes).sum();
        self.snapshot = Some(at);
        self.drain_waiting();
        self.event(Event::SnapshotInstalled { at, from });
        self.owed_durable.insert(from, self.last_write);
        self.outdated = true;
        self.after_applying();
    }

    fn next_snapshot(&self) -> Position {
        let number = self.snapshot.map_or(1, |at| at.id.index.0 + 1);
        crate::replica::position(self.stream_id(OriginId::LOCAL), number)
    }

    pub(crate) fn maybe_snapshot(&mut self) {
        if self.log_bytes >= self.config.limits.snapshot_log_bytes && self.register.stage == Stage::Regular {
            self.take_snapshot();
        }
    }

    /// Writes the own state down.
    pub(crate) fn save(&mut self) -> Position {
        self.close_batch();
        self.log_bytes = 0;
        let at = self.next_snapshot();
        self.snapshot = Some(at);
        self.persist(Persist::Snapshot { at, source: Box::new(Image::of(&self.state)) });
        at
    }

    /// Writes the own state down and gives up the log behind it, as far as every member has it; beyond the limit also
    /// further: who comes back late gets a snapshot.
    pub(crate) fn take_snapshot(&mut self) {
        let at = self.save();
        let all = self.retained_bytes > self.config.limits.retained_bytes_max;
        let mut releases = Vec::new();
        for stream in self.streams.values_mut() {
            let applied = self.state.applied().base(stream.origin());
            let needless = if all { applied } else { applied.min(self.stability.stable().base(stream.origin())) };
            if needless + 1 > stream.first() {
                stream.released(needless + 1);
                releases.push((stream.origin(), LogIndex(needless + 1)));
            }
        }
        for (origin, before) in releases {
            let stream = self.stream_id(origin);
            self.persist(Persist::Release { stream, before });
        }
        self.retained_bytes = self.streams.values().map(|stream| stream.bytes_behind(stream.first() - 1)).sum();
        self.event(Event::SnapshotTaken { at });
    }
}

/// Whether a write is one that its keyspace has, of a size that it takes.
fn fits(record: &Record<'_>, keyspaces: &Keyspaces) -> bool {
    let fits = match (record.change, &keyspaces.of(record.key).conflicts) {
        (Change::Merge(delta), ConflictPolicy::Crdt(kind)) => kind.check(delta).is_ok(),
        (Change::Merge(_), _) | (_, ConflictPolicy::Crdt(_)) => false,
        (Change::Put(value), _) => value.len() <= VALUE_BYTES_MAX,
        (Change::Delete, _) => true,
    };
    fits && record.key.len() <= KEY_BYTES_MAX
}
