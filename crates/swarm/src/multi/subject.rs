//! Clients, invariants and probes of one multi-leader group, as the subject of a run.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikit_core::keyspace::{decode_conflict_page, decode_effect, decode_versions, encode_conflicts};
use replikit_core::{
    Action, Batch, CausalContext, Dot, Epoch, Event, GroupId, Input, LogIndex, NodeId, OriginId, Outcome, Persist,
    ReadLevel, Rejection, SequenceSet, Time, Token, VersionVector, WriteEffect, WriteId, WriteLevel,
};
use replikit_multi_leader::{Head, Keyspaces, MultiLeader};
use replikit_sim::{Clients, Recovery, RecoveryItem, Replicas, Subject};

use super::census::Census;
use super::model::Model;
use crate::crowd::{Asked, Crowd};
use crate::probe::{Probe, Probes};

/// A write that a client was told is there.
#[derive(Clone, Debug)]
struct Acked {
    dot: Dot,
    level: WriteLevel,
    at: Time,
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Place {
    /// What was handed to its storage since it began, by storage action.
    stored: Vec<(WriteId, Vec<Dot>)>,
    /// Snapshots that were handed to it, with what they hold as soon as that is known.
    installed: Vec<(WriteId, VersionVector)>,
    /// Whether its replica has not run yet since it began: what it then has applied is on its disk.
    recovering: bool,
    /// The writes in it.
    held: VersionVector,
    /// Those that were in it before it began anew, and that it may have told of.
    had: VersionVector,
    /// Those that are on its disk.
    durable: VersionVector,
    /// What it had applied when it was last looked at.
    applied: VersionVector,
    /// What it had received when it was last looked at; empty when that was all applied.
    received: VersionVector,
    audit: BTreeSet<Dot>,
    /// What it had applied each time when it began anew.
    lives: Vec<VersionVector>,
    /// The newest epoch that it has told of, and the members of that.
    epoch: Epoch,
    members: Vec<NodeId>,
    /// What it had, perhaps in memory only, and what was on its disk, when it began anew; and in which epoch that was.
    dropped: (VersionVector, VersionVector),
    dropped_in: Epoch,
}

/// Clients and invariants of one multi-leader group.
#[derive(Debug)]
pub(crate) struct MultiSubject {
    group: GroupId,
    keyspaces: Keyspaces,
    pub(crate) crowd: Crowd,
    pub(crate) model: Model,
    pub(crate) probes: Probes,
    places: BTreeMap<NodeId, Place>,
    acked: Vec<Acked>,
    /// Nodes asked for their audit at the end, and how far.
    audits: BTreeMap<Token, NodeId>,
    crashed: bool,
    /// Nodes that have told that their log was cut: its end, acknowledged or not, is gone from that disk.
    cut: BTreeSet<NodeId>,
    /// Batches that each node sent to others.
    sent: BTreeMap<NodeId, u64>,
    /// Whether times may be compared: no clock is suspended.
    clocks_run: bool,
    /// How much a clock may be off, in parts per million.
    drift_ppm: u64,
    /// Whether promises must hold.
    pub(crate) bounded: bool,
    pub(crate) census: Census,
}

/// How often a batch goes from one node to another, on average, at most.
const SENT_MAX: u64 = 20;

fn dots(batch: &Batch) -> Vec<Dot> {
    let origin = batch.stream().origin;
    (batch.base().0..=batch.last().index.0).map(|sequence| Dot { origin, sequence }).collect()
}

impl MultiSubject {
    pub(crate) fn new(
        group: GroupId,
        keyspaces: Keyspaces,
        crowd: Crowd,
        drift_ppm: Option<u32>,
        census: Census,
    ) -> Self {
        Self {
            group,
            keyspaces,
            crowd,
            model: Model::default(),
            probes: Probes::default(),
            places: BTreeMap::new(),
            acked: Vec::new(),
            audits: BTreeMap::new(),
            crashed: false,
            cut: BTreeSet::new(),
            sent: BTreeMap::new(),
            clocks_run: drift_ppm.is_some(),
            drift_ppm: drift_ppm.unwrap_or(0).into(),
            bounded: true,
            census,
        }
    }

    fn place(&mut self, node: NodeId) -> &mut Place {
        self.places.entry(node).or_default()
    }

    fn on_persist(&mut self, node: NodeId, id: WriteId, op: &Persist) -> Result<(), String> {
        match op {
            // What it puts away for itself.
            Persist::Append { batch, .. } if batch.stream().origin == OriginId::STASH => {
                self.probes.hit(Probe::StashWritten);
            }
            Persist::Append { batch, .. } => {
                let lost = self.model.others_than(batch);
                if !lost.is_empty() && !lost.iter().any(|dot| self.is_known(node, *dot)) {
                    self.model.forget(&lost);
                }
                self.model.learn(batch)?;
                let place = self.place(node);
                let dots = dots(batch);
                for dot in &dots {
                    place.held.insert(*dot);
                }
                place.stored.push((id, dots));
            }
            Persist::Snapshot { .. } => self.probes.hit(Probe::SnapshotTaken),
            Persist::SnapshotChunk { last: true, .. } => {
                self.probes.hit(Probe::SnapshotInstalled);
                self.place(node).installed.push((id, VersionVector::new()));
            }
            Persist::Reset { stream, next } => {
                self.probes.hit(Probe::LogReset);
                if *next == LogIndex(1) {
                    let place = self.place(node);
                    let all = [&place.held, &place.applied, &place.received].map(|it| it.base(stream.origin));
                    let held = all.into_iter().fold(0, u64::max);
                    place.dropped.0.insert_all(stream.origin, &SequenceSet::up_to(held));
                    place.dropped.1.insert_all(stream.origin, &SequenceSet::up_to(place.durable.base(stream.origin)));
                    place.held.retire(stream.origin);
                    place.durable.retire(stream.origin);
                    for (_, dots) in &mut place.stored {
                        dots.retain(|dot| dot.origin != stream.origin);
                    }
                }
            }
            Persist::Release { .. } => self.probes.hit(Probe::LogReleased),
            _ => {}
        }
        Ok(())
    }

    /// Whether anybody may know of a write of this node: it is in a log, in another node's data, or a client was told of it.
    fn is_known(&self, writer: NodeId, dot: Dot) -> bool {
        let has = |(node, place): (&NodeId, &Place)| {
            let has_in_memory = place.applied.contains(dot) || place.received.contains(dot);
            place.held.contains(dot) || place.durable.contains(dot) || *node != writer && has_in_memory
        };
        self.places.iter().any(has) || self.acked.iter().any(|acked| acked.dot == dot)
    }

    /// Whether a write was on one disk only, and that has told that its end was cut: what this level may lose.
    fn is_cut_off(&self, dot: Dot) -> bool {
        let writer = replikit_core::Origin::of(dot.origin).map_or(NodeId(0), |origin| origin.node);
        let has = |(node, place): (&NodeId, &Place)| {
            // What was on the writer's disk once, a cut may have taken.
            let has_in_memory = place.applied.contains(dot) || place.received.contains(dot);
            place.held.contains(dot) || has_in_memory || *node != writer && place.durable.contains(dot)
        };
        self.cut.contains(&writer) && !self.places.iter().any(has)
    }

    /// Batches go from everybody to everybody a few times at most, lost ones and late joiners included.
    fn check_sent(&self) -> Result<(), String> {
        let (nodes, batches) = (u64::from(self.crowd.nodes()), self.model.batches());
        let sent: u64 = self.sent.values().sum();
        if sent > SENT_MAX * nodes * nodes * (batches + 50) {
            return Err(format!("no_loops: {sent} batches were sent, of {batches} that there are"));
        }
        Ok(())
    }

    /// Batches that these nodes have sent.
    pub(crate) fn sent_by(&self, nodes: &[NodeId]) -> u64 {
        nodes.iter().filter_map(|node| self.sent.get(node)).sum()
    }

    /// What leaves a node is on its disk, if it is its own.
    fn on_send(&self, node: NodeId, batches: &[Batch]) -> Result<(), String> {
        for batch in batches {
            let writer = replikit_core::Origin::of(batch.stream().origin);
            if writer.is_some_and(|writer| writer.node == node) {
                let durable = &self.places[&node].durable;
                let applied = &self.places[&node].applied;
                if let Some(dot) =
                    dots(batch).into_iter().find(|dot| !durable.contains(*dot) && !applied.contains(*dot))
                {
                    return Err(format!("sent_after_durable: node {node} sends {dot:?}, which is not on its disk"));
                }
            }
        }
        Ok(())
    }

    /// How many nodes have a write, perhaps in memory only, and on their disk. Who was told that another node has it does not
    /// hear at once that it has crashed since: these levels promise no more.
    fn copies(&self, dot: Dot) -> (usize, usize) {
        let writer = replikit_core::Origin::of(dot.origin).map_or(NodeId(0), |origin| origin.node);
        let has = |(node, place): &(&NodeId, &Place)| {
            let has_in_memory = place.applied.contains(dot) || place.received.contains(dot);
            place.held.contains(dot) || has_in_memory || **node != writer && place.had.contains(dot)
        };
        // Nor does who still counts in an epoch of which a node was a member hear at once that this one was evicted since, has
        // come back, and has put away what it had.
        let (epoch, members) = self.places.get(&writer).map_or((Epoch(0), &[][..]), |it| (it.epoch, &it.members[..]));
        let counts = |node: &NodeId, place: &Place| epoch < place.dropped_in && members.contains(node);
        let had = |(node, place): &(&NodeId, &Place)| counts(node, place) && place.dropped.0.contains(dot);
        let was = |(node, place): &(&NodeId, &Place)| counts(node, place) && place.dropped.1.contains(dot);
        let held = self.places.iter().filter(|place| has(place) || had(place)).count();
        let durable = self.places.iter().filter(|place| place.1.durable.contains(dot) || was(place)).count();
        (held, durable)
    }

    fn on_acked(&mut self, node: NodeId, dot: Dot, asked: &Asked, at: Time, reply: &Bytes) -> Result<(), String> {
        let Asked::Write { key, level, .. } = asked else {
            return Err("acked_is_there: a read was acknowledged".into());
        };
        let effect = decode_effect(reply).ok();
        if matches!(effect, Some(WriteEffect::Mismatch { .. })) {
            return Ok(());
        }
        let (held, durable) = self.copies(dot);
        let promised = match level {
            WriteLevel::Memory => (0, 0),
            WriteLevel::LeaderDisk => (1, 1),
            WriteLevel::Received(copies) => (usize::from(*copies), 1),
            WriteLevel::Durable(copies) => (1, usize::from(*copies)),
            WriteLevel::Applied(copies) => (usize::from(*copies), 1),
            WriteLevel::Quorum | WriteLevel::Owners(_) => (1, self.places[&node].members.len() / 2 + 1),
        };
        if held < promised.0 || durable < promised.1 {
            return Err(format!("acked_is_there: {dot:?} at {level:?} is at {held} nodes and on {durable} disks"));
        }
        if *level != WriteLevel::Memory {
            let known = self.model.write(dot).ok_or_else(|| format!("acked_is_there: {dot:?} is in no log"))?;
            if known.key != *key {
                return Err(format!("acked_is_there: {dot:?} is a write of another key"));
            }
        }
        self.acked.push(Acked { dot, level: *level, at });
        Ok(())
    }

    fn on_answer(
        &mut self,
        client: u32,
        asked: &Asked,
        asked_at: Time,
        values: &[Bytes],
        staleness: Option<Duration>,
        now: Time,
    ) -> Result<CausalContext, String> {
        let Asked::Read { key, level } = asked else { return Err("reads_show_the_past: a write was answered".into()) };
        let answer = values.first().ok_or("reads_show_the_past: an answer without content")?;
        let found = decode_versions(answer).map_err(|error| format!("reads_show_the_past: {error}"))?;
        let context = found.context.ok_or("reads_show_the_past: an answer without context")?;
        let seen = context.vector();
        let (expected, stamps) = self.model.view(&self.keyspaces, key, seen);
        if expected != found.values {
            return Err(format!(
                "reads_show_the_past: {key:?} with {seen:?} shows {:?} and not {expected:?} of {stamps:?}",
                found.values
            ));
        }
        if expected.len() > 1 && key.starts_with(b"sib/") {
            self.probes.hit(Probe::SiblingsRead);
        }
        if let ReadLevel::Session(_) = level
            && !seen.covers(&self.crowd.vector(client))
        {
            return Err(format!("sessions_do_not_go_back: {key:?} was read from {seen:?}"));
        }
        if let Some(staleness) = staleness
            && self.clocks_run
        {
            // Clocks run at different rates, all within the bound; and the answer was made some time before it came.
            let slack = Duration::from_nanos(staleness.as_nanos() as u64 / 1_000_000 * self.drift_ppm * 3);
            let since = staleness + slack + Duration::from_millis(1);
            let missing = self.acked.iter().find(|acked| {
                let early = acked.at + since < asked_at;
                // What only an evicted node has is not the group's; what a cut disk has told of may be lost.
                let outside = self.is_of_outsider(acked.dot) || self.is_cut_off(acked.dot);
                early && !outside && acked.level != WriteLevel::Memory && !seen.contains(acked.dot)
            });
            if let Some(missing) = missing {
                return Err(format!("staleness_is_bounded: at {now:?}, {staleness:?} stale, without {missing:?}"));
            }
        }
        Ok(context)
    }

    /// Writes at `Require` keys never stand beside each other.
    pub(crate) fn check_homes(&self, nodes: &[NodeId]) -> Result<(), String> {
        for key in self.model.keys().filter(|key| key.starts_with(b"home/")) {
            let all = self.union(nodes);
            let (values, stamps) = self.model.view(&self.keyspaces, key, &all);
            let lost = self.model.beside(&self.keyspaces, key, &all);
            if self.model.has_returned(key) {
                continue;
            }
            if values.len() > 1 || !lost.is_empty() {
                return Err(format!(
                    "homes_have_no_conflicts: {key:?} shows {values:?} of {stamps:?}, and lost {lost:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether a write is of a node that was no member at some time.
    fn is_of_outsider(&self, dot: Dot) -> bool {
        replikit_core::Origin::of(dot.origin).is_some_and(|origin| self.census.is_ever_outside(origin.node))
    }

    /// Whether one disk had it, and lost it, and said so: what its level may lose.
    fn is_told_lost(&self, dot: Dot) -> bool {
        let writer = replikit_core::Origin::of(dot.origin).map_or(NodeId(0), |origin| origin.node);
        let mut others = self.places.iter().filter(|(node, _)| **node != writer);
        self.cut.contains(&writer) && !others.any(|(_, place)| place.durable.contains(dot))
    }

    /// Whether an acknowledged write that the members have not is accounted for all the same: it was made again, or what took
    /// its place is accounted for, or the audit of its node has it.
    fn is_accounted(&self, dot: Dot, all: &VersionVector, nodes: &[NodeId]) -> bool {
        // Many writes may have seen the same ones: each is looked at once.
        let (mut looked, mut rest) = (BTreeSet::from([dot]), vec![dot]);
        while let Some(dot) = rest.pop() {
            let writer = replikit_core::Origin::of(dot.origin).map_or(NodeId(0), |origin| origin.node);
            // A node that stays evicted has it on its disk, put away or not.
            let evicted = self.census.is_ever_outside(writer) && !nodes.contains(&writer);
            if all.contains(dot)
                || evicted
                || self.model.is_made_again(dot, all)
                || self.model.is_gone(dot, all)
                || self.places.get(&writer).is_some_and(|place| place.audit.contains(&dot))
                || self.model.is_merged(&self.keyspaces, dot, all, self.place_lives(writer))
            {
                return true;
            }
            rest.extend(self.model.replaced_by(dot).iter().copied().filter(|other| looked.insert(*other)));
        }
        false
    }

    /// What a node had applied each time when it began anew.
    fn place_lives(&self, node: NodeId) -> &[VersionVector] {
        self.places.get(&node).map_or(&[], |place| &place.lives)
    }

    /// Everything that these nodes have applied.
    fn union(&self, nodes: &[NodeId]) -> VersionVector {
        let mut all = VersionVector::new();
        for place in nodes.iter().filter_map(|node| self.places.get(node)) {
            all.join(&place.applied);
        }
        all
    }

    /// Every acknowledged write is live, or was replaced by one that had seen it, or is in the audit.
    pub(crate) fn check_conservation(&mut self, nodes: &[NodeId], dropped: bool) -> Result<(), String> {
        let all = self.union(nodes);
        for acked in &self.acked.clone() {
            let down = self.places.iter().filter(|(node, _)| !nodes.contains(node));
            // Acknowledged on one disk, and that is the disk of a node that is down: it is there when the node comes back.
            let away = || down.map(|(_, place)| place).any(|place| place.durable.contains(acked.dot));
            let told = self.is_told_lost(acked.dot);
            let volatile = acked.level == WriteLevel::Memory && self.crashed;
            if !volatile && !told && !self.is_accounted(acked.dot, &all, nodes) && !away() {
                return Err(format!("conserved: {acked:?} is nowhere"));
            }
            if !all.contains(acked.dot) && self.model.is_made_again(acked.dot, &all) {
                self.probes.hit(Probe::WriteMadeAgain);
            }
        }
        if let Some(twice) = self.model.counts_twice(&all) {
            return Err(format!("conserved: {twice:?} was made again although it, or another one for it, is there"));
        }
        for key in self.model.keys() {
            for lost in self.model.lost(&self.keyspaces, key, &all) {
                let missing = nodes.iter().find(|node| !self.places[node].audit.contains(&lost));
                if let Some(node) = missing.filter(|_| !dropped) {
                    let story = self.model.story(key);
                    return Err(format!(
                        "conserved: {lost:?} of {key:?} is lost, and the audit of node {node} has it not: {story}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Asks a node for its audit.
    pub(crate) fn ask_audit(&mut self, node: NodeId, after: u64, clients: &mut Clients<Head>) {
        let (group, body) = (self.group, encode_conflicts(after, 1000));
        let level = ReadLevel::Local;
        let token = clients.request(node, |token| Input::Query { token, group, level, body, bytes_max: 1 << 20 });
        self.audits.insert(token, node);
    }

    /// Whether each of these has told the whole audit that it was asked for.
    pub(crate) fn has_audits_of(&self, nodes: &[NodeId]) -> bool {
        self.audits.values().all(|node| !nodes.contains(node))
    }

    /// The replicas show what the model says.
    pub(crate) fn check_views<'a>(&self, replicas: impl Iterator<Item = &'a MultiLeader>) -> Result<(), String> {
        // Most have applied the same: the model is asked once for all of these.
        let mut groups: Vec<(&VersionVector, Vec<&MultiLeader>)> = Vec::new();
        for replica in replicas {
            match groups.iter_mut().find(|(applied, _)| *applied == replica.applied()) {
                Some((_, group)) => group.push(replica),
                None => groups.push((replica.applied(), vec![replica])),
            }
        }
        for (applied, group) in groups {
            for key in self.model.keys() {
                let (expected, stamps) = self.model.view(&self.keyspaces, key, applied);
                if let Some(shown) = group.iter().map(|replica| replica.peek(key)).find(|shown| *shown != expected) {
                    return Err(format!("replicas_agree: {key:?} shows {shown:?} and not {expected:?} of {stamps:?}"));
                }
            }
        }
        Ok(())
    }
}

impl Subject<MultiLeader> for MultiSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        if self.census.on_alarm(client) {
            return;
        }
        if client == 0 {
            for (alarm, after) in self.census.alarms() {
                clients.alarm(alarm, after);
            }
        }
        self.crowd.on_alarm(client, clients);
    }

    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        let (epoch, members) = self.census.known_at(node);
        let place = self.place(node);
        (place.epoch, place.members) = (epoch, members);
        let mut held = VersionVector::new();
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item
                && batch.stream().origin != OriginId::STASH
            {
                for dot in dots(batch) {
                    held.insert(dot);
                }
            }
        }
        place.had.join(&place.held);
        place.had.join(&place.applied);
        place.had.join(&place.received);
        place.held = held.clone();
        place.durable.join(&held);
        (place.applied, place.received) = (VersionVector::new(), VersionVector::new());
        place.stored.clear();
        place.installed.clear();
        place.recovering = true;
        Ok(())
    }

    fn on_action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        let kept = match action {
            Action::Persist { id, op } => self.on_persist(node, *id, op),
            Action::Send { message, .. } => {
                match &message.head {
                    Head::Piece(piece) if !piece.last => self.probes.hit(Probe::SnapshotInPieces),
                    Head::Gossip(_) => self.probes.hit(Probe::ReportPassedOn),
                    _ => {}
                }
                *self.sent.entry(node).or_default() += message.batches.as_slice().len() as u64;
                self.check_sent()?;
                self.on_send(node, message.batches.as_slice())
            }
            Action::ReadLog { .. } => {
                self.probes.hit(Probe::LogReadFromDisk);
                Ok(())
            }
            _ => Ok(()),
        };
        if self.bounded { kept } else { Ok(()) }
    }

    fn on_durable(&mut self, node: NodeId, up_to: WriteId) {
        let place = self.place(node);
        let durable: Vec<Dot> =
            place.stored.extract_if(.., |(id, _)| *id <= up_to).flat_map(|(_, dots)| dots).collect();
        for dot in durable {
            place.durable.insert(dot);
        }
        for (_, installed) in place.installed.extract_if(.., |(id, _)| *id <= up_to) {
            place.durable.join(&installed);
        }
    }

    fn on_done(
        &mut self,
        node: NodeId,
        token: Token,
        outcome: Outcome,
        clients: &mut Clients<Head>,
    ) -> Result<(), String> {
        if self.audits.remove(&token).is_some() {
            return self.on_audit(node, outcome, clients);
        }
        let now = clients.now;
        let Some(open) = self.crowd.end(token, clients) else { return Ok(()) };
        match outcome {
            Outcome::Acked { at, reply, .. } => {
                let dot = Dot { origin: at.stream.origin, sequence: at.id.index.0 };
                let kept = self.on_acked(node, dot, &open.asked, now, &reply);
                if at.id.index.0 > 0 {
                    self.crowd.wrote(open.client, at);
                }
                if self.bounded { kept } else { Ok(()) }
            }
            Outcome::Value { values, staleness, .. } => {
                let answered = self.on_answer(open.client, &open.asked, open.at, &values, staleness, now);
                if let (Asked::Read { key, .. }, Ok(context)) = (&open.asked, &answered) {
                    self.crowd.read(open.client, key, context);
                }
                if self.bounded { answered.map(drop) } else { Ok(()) }
            }
            Outcome::Rejected(Rejection::CatchingUp) => {
                self.crowd.turned_away(open.client);
                Ok(())
            }
            Outcome::Rejected(Rejection::LostWrites { .. }) => {
                self.probes.hit(Probe::SessionReadRefused);
                self.crowd.forget(open.client);
                if self.bounded && !self.crashed && !self.census.changes() {
                    Err("weak_loss_is_reported: nothing was lost".into())
                } else {
                    Ok(())
                }
            }
            Outcome::Rejected(_) | Outcome::Indeterminate { .. } => Ok(()),
        }
    }

    fn on_event(&mut self, at: NodeId, _: GroupId, event: &Event) -> Result<(), String> {
        match event {
            Event::TailCut { .. } => {
                self.cut.insert(at);
                Ok(())
            }
            Event::EpochBegun { epoch, members } => {
                self.probes.hit(Probe::EpochBegun);
                let place = self.place(at);
                (place.epoch, place.members) = (*epoch, members.clone());
                Ok(())
            }
            Event::Evicted { .. } => {
                self.probes.hit(Probe::NodeEvicted);
                Ok(())
            }
            Event::BeganAnew { epoch, .. } => {
                self.probes.hit(Probe::NodeBeganAnew);
                let place = self.place(at);
                place.dropped_in = *epoch;
                let applied = core::mem::take(&mut place.applied);
                place.lives.push(applied);
                place.installed.clear();
                Ok(())
            }
            Event::PeerMisbehaved { node, what } if self.bounded => {
                Err(format!("honest_peers_are_not_accused: node {node}: {what}"))
            }
            Event::ClockAhead { .. } => {
                self.probes.hit(Probe::ClockAhead);
                Ok(())
            }
            Event::PeerSuspected { .. } => {
                self.probes.hit(Probe::PeerSuspected);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_crash(&mut self, node: NodeId, _: &mut Clients<Head>) {
        self.crashed = true;
        self.audits.retain(|_, asked| *asked != node);
    }

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<MultiLeader>) -> Result<(), String> {
        let Some(replica) = replicas.replica(node).filter(|_| self.bounded) else { return Ok(()) };
        let applied = replica.applied();
        let place = self.places.entry(node).or_default();
        if core::mem::take(&mut place.recovering) {
            place.durable.join(applied);
        }
        for (id, installed) in place.installed.iter_mut().filter(|(_, installed)| installed.is_empty()) {
            // Without what went to the log behind it in the same round.
            let behind = |origin: OriginId| {
                let dots = place.stored.iter().filter(|(stored, _)| stored > id).flat_map(|(_, dots)| dots);
                dots.filter(|dot| dot.origin == origin).map(|dot| dot.sequence - 1).min().unwrap_or(u64::MAX)
            };
            *installed =
                VersionVector::up_to(applied.iter().map(|(origin, held)| (origin, held.base().min(behind(origin)))));
        }
        place.received = replica.received().unwrap_or_default();
        if !place.received.is_empty() {
            self.probes.hit(Probe::WriteWaitedForItsPast);
        }
        if *applied == place.applied {
            return Ok(());
        }
        if !applied.covers(&place.applied) {
            return Err(format!("applied_never_goes_back: node {node} from {:?} to {applied:?}", place.applied));
        }
        for (origin, held) in applied.iter() {
            if *held != SequenceSet::up_to(held.base()) {
                return Err(format!("applied_in_order: node {node} has applied {applied:?}"));
            }
            for sequence in place.applied.base(origin) + 1..=held.base() {
                let dot = Dot { origin, sequence };
                // Of an own batch that is still open, nothing is known yet.
                if let Some(write) = self.model.write(dot)
                    && !applied.covers(&write.past)
                {
                    let lost = |dot: Dot| {
                        let writer = replikit_core::Origin::of(dot.origin).map_or(NodeId(0), |origin| origin.node);
                        self.census.is_ever_outside(writer)
                    };
                    if write.past.minus(applied).all(lost) {
                        self.probes.hit(Probe::PastWasLost);
                        continue;
                    }
                    return Err(format!(
                        "applied_in_causal_order: node {node} has applied {dot:?} but not {:?}",
                        write.past
                    ));
                }
            }
        }
        place.applied.clone_from(applied);
        let figures = replica.figures();
        if figures.conflicts > 0 {
            self.probes.hit(Probe::WritesConflicted);
        }
        if figures.overwritten > 0 {
            self.probes.hit(Probe::ValueOverwritten);
        }
        if figures.folded > 0 {
            self.probes.hit(Probe::CounterFolded);
        }
        if !replica.stable().is_empty() {
            self.probes.hit(Probe::StableAdvanced);
        }
        Ok(())
    }
}

impl MultiSubject {
    fn on_audit(&mut self, node: NodeId, outcome: Outcome, clients: &mut Clients<Head>) -> Result<(), String> {
        let Outcome::Value { values, .. } = outcome else {
            return Err(format!("audit_answers: node {node} answers {outcome:?}"));
        };
        let page = decode_conflict_page(&values[0]).map_err(|error| format!("audit_answers: {error}"))?;
        let place = self.place(node);
        for conflict in &page.conflicts {
            place.audit.insert(conflict.overwritten.version.stamp.dot);
        }
        if let Some(after) = page.next {
            self.ask_audit(node, after, clients);
        }
        Ok(())
    }
}
