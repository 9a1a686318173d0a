//! Clients, invariants and probes of one leaderless group, as the subject of a run.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikit_core::keyspace::{decode_conflict_page, decode_effect, decode_versions, encode_conflicts};
use replikit_core::{
    Action, Batch, CausalContext, Dot, Event, GroupId, Input, NodeId, Origin, Outcome, Owners, Persist, ReadLevel,
    Rejection, SequenceSet, Time, Token, VersionVector, WriteId, WriteLevel,
};
use replikit_leaderless::{Head, Keyspaces, Leaderless};
use replikit_sim::{Clients, Recovery, Replicas, Subject};

use super::comparers::{Comparers, FIRST_ALARM};
use super::disk::Disk;
use super::model::Model;
use super::views::Views;
use crate::crowd::{Asked, Crowd};
use crate::multi::census::{self, Census};
use crate::probe::{Probe, Probes};

/// A write that a client was told is there.
#[derive(Clone, Debug)]
pub(super) struct Acked {
    pub(super) dot: Dot,
    level: WriteLevel,
    pub(super) strict: bool,
    pub(super) at: Time,
    /// On whose disks it was by then.
    disks: Vec<NodeId>,
}

/// What a quorum read has returned.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) key: Bytes,
    pub(super) dots: Vec<Dot>,
    pub(super) at: Time,
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Place {
    disk: Disk,
    /// The writes in its log.
    held: VersionVector,
    /// What it had applied when it was last looked at.
    applied: VersionVector,
    audit: BTreeSet<Dot>,
    /// What it had applied each time when it began anew.
    dropped: VersionVector,
    /// Batches that it has sent.
    sent: u64,
}

/// Alarms from this one on are for nodes that hear of an epoch.
const CENSUS_ALARM: u32 = 1 << 24;

/// What a group is set up for, as far as promises follow from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promises {
    /// R, W and D.
    pub(crate) read: u8,
    pub(crate) write: u8,
    pub(crate) durable: u8,
    /// Whether reads write back before they return.
    pub(crate) blocking: bool,
    /// Whether these are numbers of owners, not majorities, however many there are.
    pub(crate) is_fixed: bool,
}

impl Promises {
    /// The same for so many owners.
    pub(crate) fn of(self, n: u8) -> Self {
        if self.is_fixed {
            let Self { read, write, durable, .. } = self;
            return Self { read: read.min(n), write: write.min(n), durable: durable.min(n), ..self };
        }
        let majority = n / 2 + 1;
        Self { read: majority, write: majority, durable: majority, ..self }
    }

    /// Whether every owner that was counted for a write has it on disk.
    pub(super) const fn lasts(self) -> bool {
        self.durable >= self.write
    }
}

/// Clients and invariants of one leaderless group.
#[derive(Debug)]
pub(crate) struct LeaderlessSubject {
    group: GroupId,
    keyspaces: Keyspaces,
    pub(super) promises: Promises,
    pub(crate) crowd: Crowd,
    pub(crate) comparers: Option<Comparers>,
    pub(crate) model: Model,
    pub(crate) census: Census,
    pub(crate) views: Views,
    pub(crate) probes: Probes,
    places: BTreeMap<NodeId, Place>,
    pub(super) acked: Vec<Acked>,
    pub(super) shown: Vec<Shown>,
    /// Nodes asked for their audit at the end, and how far.
    audits: BTreeMap<Token, NodeId>,
    crashed: bool,
    /// Nodes that have told that their log was cut: its end, acknowledged or not, is gone from that disk.
    cut: BTreeSet<NodeId>,
    /// Batches that nodes sent to each other.
    sent: u64,
    /// Whether times may be compared: no clock is suspended.
    clocks_run: bool,
    /// How much a clock may be off, in parts per million.
    drift_ppm: u64,
    /// Whether promises must hold.
    pub(crate) bounded: bool,
}

/// How often a batch goes from one node to another, on average, at most.
const SENT_MAX: u64 = 20;

/// The writes in a batch; none in one of a node's own records.
pub(crate) fn dots(batch: &Batch) -> Vec<Dot> {
    let origin = batch.stream().origin;
    if Origin::of(origin).is_none() {
        return Vec::new();
    }
    (batch.base().0..=batch.last().index.0).map(|sequence| Dot { origin, sequence }).collect()
}

impl LeaderlessSubject {
    pub(crate) fn new(
        group: GroupId,
        keyspaces: Keyspaces,
        promises: Promises,
        crowd: Crowd,
        drift_ppm: Option<u32>,
        census: Census,
    ) -> Self {
        Self {
            census,
            views: Views::default(),
            group,
            keyspaces,
            promises,
            crowd,
            comparers: None,
            model: Model::default(),
            probes: Probes::default(),
            places: BTreeMap::new(),
            acked: Vec::new(),
            shown: Vec::new(),
            audits: BTreeMap::new(),
            crashed: false,
            cut: BTreeSet::new(),
            sent: 0,
            clocks_run: drift_ppm.is_some(),
            drift_ppm: drift_ppm.unwrap_or(0).into(),
            bounded: true,
        }
    }

    /// Nobody asks for anything more.
    pub(crate) const fn stop(&mut self) {
        self.crowd.stop();
        if let Some(comparers) = &mut self.comparers {
            comparers.stop();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.crowd.is_idle() && self.comparers.as_ref().is_none_or(Comparers::is_idle)
    }

    fn place(&mut self, node: NodeId) -> &mut Place {
        self.places.entry(node).or_default()
    }

    fn on_persist(&mut self, node: NodeId, id: WriteId, op: &Persist) -> Result<(), String> {
        match op {
            Persist::Append { batch, .. } => {
                let dots = dots(batch);
                if dots.is_empty() {
                    return Ok(());
                }
                let lost = self.model.others_than(batch);
                if !lost.is_empty() && !lost.iter().any(|dot| self.is_known(node, *dot)) {
                    self.model.forget(&lost);
                }
                self.model.learn(batch)?;
                let place = self.place(node);
                for dot in &dots {
                    place.held.insert(*dot);
                }
                place.disk.is_given(id, dots);
            }
            Persist::Snapshot { .. } => self.probes.hit(Probe::SnapshotTaken),
            Persist::SnapshotChunk { last: true, .. } => {
                self.probes.hit(Probe::SnapshotInstalled);
                self.place(node).disk.is_given_snapshot(id);
            }
            Persist::Reset { .. } => self.probes.hit(Probe::LogReset),
            Persist::Release { .. } => self.probes.hit(Probe::LogReleased),
            _ => {}
        }
        Ok(())
    }

    /// Whether anybody may know of a write of this node: it is in a log, in another node's data, or a client was told of it.
    fn is_known(&self, writer: NodeId, dot: Dot) -> bool {
        let has = |(node, place): (&NodeId, &Place)| {
            place.held.contains(dot)
                || place.disk.durable.contains(dot)
                || *node != writer && place.applied.contains(dot)
        };
        self.places.iter().any(has) || self.acked.iter().any(|acked| acked.dot == dot)
    }

    /// Batches that these nodes have sent.
    pub(crate) fn sent_by(&self, nodes: &[NodeId]) -> u64 {
        nodes.iter().filter_map(|node| self.places.get(node)).map(|place| place.sent).sum()
    }

    /// Batches go from everybody to everybody a few times at most, lost ones and late joiners included.
    fn check_sent(&self) -> Result<(), String> {
        let (nodes, batches) = (u64::from(self.crowd.nodes()), self.model.batches());
        if self.sent > SENT_MAX * nodes * nodes * (batches + 50) {
            return Err(format!("no_loops: {} batches were sent, of {batches} that there are", self.sent));
        }
        Ok(())
    }

    /// How many nodes have a write, and on their disk.
    fn copies(&self, dot: Dot) -> (u8, u8) {
        let has = |place: &&Place| place.held.contains(dot) || place.applied.contains(dot);
        let held = self.places.values().filter(has).count();
        (held as u8, self.places.values().filter(|place| place.disk.durable.contains(dot)).count() as u8)
    }

    fn disks_with(&self, dot: Dot) -> impl Iterator<Item = NodeId> + '_ {
        self.places.iter().filter(move |(_, place)| place.disk.durable.contains(dot)).map(|(node, _)| *node)
    }

    /// Whether a write was on disks only that have told that their end was cut.
    pub(super) fn is_cut_off(&self, dot: Dot) -> bool {
        let has = |(node, place): (&NodeId, &Place)| {
            place.held.contains(dot)
                || place.applied.contains(dot)
                || !self.cut.contains(node) && place.disk.durable.contains(dot)
        };
        !self.cut.is_empty() && !self.places.iter().any(has)
    }

    fn on_acked(
        &mut self,
        dot: Dot,
        asked: &Asked,
        asked_at: Time,
        strict: bool,
        reply: &Bytes,
        at: Time,
    ) -> Result<(), String> {
        let Asked::Write { key, level, .. } = asked else {
            return Err("acked_is_there: a read was acknowledged".into());
        };
        decode_effect(reply).map_err(|error| format!("acked_is_there: {error}"))?;
        let (held, durable) = self.copies(dot);
        let Promises { write, durable: disks, .. } = self.promises;
        let n = self.crowd.nodes() as u8;
        let (received, on_disk) = match *level {
            WriteLevel::Memory => (1, 0),
            WriteLevel::LeaderDisk => (1, 1),
            WriteLevel::Received(copies) => (copies, 0),
            WriteLevel::Durable(copies) => (copies, copies),
            WriteLevel::Quorum | WriteLevel::Owners(Owners::Quorum) => (write, disks),
            WriteLevel::Applied(copies) => (copies.max(write), copies.max(disks)),
            WriteLevel::Owners(owners) => match owners {
                Owners::Two => (2, 2),
                Owners::Three => (3, 3),
                Owners::All => (n, n),
                Owners::LocalQuorum | Owners::EachQuorum => (n / 2 + 1, n / 2 + 1),
                _ => (1, 1),
            },
        };
        // Of how many owners, nobody outside can tell while they change: fewer are quorums of fewer.
        let fewest = self.census.fewest();
        let least = |copies: u8| if self.census.changes() { copies.min(fewest / 2 + 1).min(fewest) } else { copies };
        let (received, on_disk, disks) = (least(received), least(on_disk), least(disks));
        // What is in memory only, a crash may have taken while the answer was on its way.
        if (held < received && !self.crashed) || durable < on_disk {
            return Err(format!("acked_is_there: {dot:?} at {level:?} is in {held} logs and on {durable} disks"));
        }
        if strict && durable < disks {
            return Err(format!("strict_is_a_quorum: {dot:?} at {level:?} is on {durable} disks"));
        }
        if durable > 0 {
            let known = self.model.write(dot).ok_or_else(|| format!("acked_is_there: {dot:?} is in no log"))?;
            if known.key != *key {
                return Err(format!("acked_is_there: {dot:?} is a write of another key"));
            }
        }
        let meet = self.census.sizes().all(|n| self.promises.of(n).write * 2 > n);
        if strict && self.promises.lasts() && meet && key.starts_with(b"lww/") {
            for first in &self.acked {
                let same = self.model.write(first.dot).is_some_and(|write| write.key == *key);
                if same && first.strict && first.at < asked_at && !self.model.comes_after(dot, first.dot) {
                    let story = self.model.story(key);
                    return Err(format!("later_write_wins: {dot:?} was begun after {first:?}, and loses: {story}"));
                }
            }
        }
        let disks = self.disks_with(dot).collect();
        self.acked.push(Acked { dot, level: *level, strict, at, disks });
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one answer, taken apart once")]
    fn on_answer(
        &mut self,
        client: u32,
        asked: &Asked,
        asked_at: Time,
        values: &[Bytes],
        strict: bool,
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
            let story = self.model.story(key);
            return Err(format!(
                "reads_show_the_past: {key:?} with {seen:?} shows {:?} and not {expected:?} of {stamps:?}: {story}",
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
        if strict && self.promises.lasts() {
            // Every write of the quorum acknowledged before the read began, one that a later write replaced included.
            let missing = self.acked.iter().find(|acked| {
                let same = || self.model.write(acked.dot).is_some_and(|write| write.key == *key);
                acked.strict
                    && acked.at < asked_at
                    && !seen.contains(acked.dot)
                    && same()
                    && !self.is_cut_off(acked.dot)
            });
            if let Some(missing) = missing {
                return Err(format!("quorums_overlap: {key:?} at {level:?} with {seen:?} lacks {missing:?}"));
            }
        }
        if self.never_goes_back(level) {
            let back = self.shown.iter().find(|shown| {
                shown.key == *key && shown.at < asked_at && shown.dots.iter().any(|dot| !seen.contains(*dot))
            });
            if let Some(back) = back {
                return Err(format!("reads_do_not_go_back: {key:?} with {seen:?} after {back:?}"));
            }
            self.shown.push(Shown { key: key.clone(), dots: stamps.iter().map(|stamp| stamp.dot).collect(), at: now });
        }
        if let Some(staleness) = staleness
            && self.clocks_run
            && !matches!(level, ReadLevel::Owners(_) | ReadLevel::Replicas(_))
        {
            // Clocks run at different rates, all within the bound; and the answer was made some time before it came.
            let slack = Duration::from_nanos(staleness.as_nanos() as u64 / 1_000_000 * self.drift_ppm * 3);
            let since = staleness + slack + Duration::from_millis(1);
            let missing = self.acked.iter().find(|acked| {
                let early = acked.at + since < asked_at;
                let lasting = !matches!(acked.level, WriteLevel::Memory | WriteLevel::Received(_));
                early
                    && lasting
                    && !seen.contains(acked.dot)
                    && !self.is_cut_off(acked.dot)
                    && !self.is_of_outsider(acked)
            });
            if let Some(missing) = missing {
                return Err(format!("staleness_is_bounded: at {now:?}, {staleness:?} stale, without {missing:?}"));
            }
        }
        Ok(context)
    }

    /// Whether reads at this level miss nothing that an earlier one has returned.
    pub(super) fn never_goes_back(&self, level: &ReadLevel) -> bool {
        matches!(level, ReadLevel::Owners(Owners::Quorum | Owners::All))
            && self.census.sizes().all(|n| self.promises.of(n).read * 2 > n)
            && self.promises.blocking
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
    pub(crate) fn check_conservation(&self, replicas: &[(NodeId, &Leaderless)], dropped: bool) -> Result<(), String> {
        let nodes: Vec<NodeId> = replicas.iter().map(|(node, _)| *node).collect();
        let all = self.union(&nodes);
        for acked in &self.acked {
            let down = self.places.iter().filter(|(node, _)| !nodes.contains(node));
            // Acknowledged on disks that are down: it is there when they come back.
            let away = || down.map(|(_, place)| place).any(|place| place.disk.durable.contains(acked.dot));
            let volatile = matches!(acked.level, WriteLevel::Memory | WriteLevel::Received(_)) && self.crashed;
            let made_again = || self.is_of_outsider(acked);
            if !all.contains(acked.dot) && !volatile && !self.is_cut_off(acked.dot) && !away() && !made_again() {
                return Err(format!("conserved: {acked:?} is nowhere"));
            }
        }
        if dropped {
            return Ok(());
        }
        // Who learns of a write together with what has been decided about it has nothing to note: another owner has.
        let audited = |dot: &Dot| self.places.values().any(|place| place.audit.contains(dot));
        for (node, replica) in replicas {
            for key in self.model.keys() {
                let lost = self.model.lost(&self.keyspaces, key, &replica.seen(key));
                if let Some(lost) = lost.into_iter().find(|lost| !audited(lost)) {
                    let story = self.model.story(key);
                    return Err(format!(
                        "conserved: {lost:?} of {key:?} is lost at node {node}, and no audit has it: {story}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a write that no quorum took part in is of a node that was no owner at some time, or was on disks of such nodes only:
    /// it is made again, maybe under another name, when one of them comes back.
    fn is_of_outsider(&self, acked: &Acked) -> bool {
        let outside = |node: NodeId| self.census.is_ever_outside(node);
        let has_left = || {
            let mut disks = acked.disks.iter().copied().chain(self.disks_with(acked.dot));
            !acked.disks.is_empty() && disks.all(outside)
        };
        !acked.strict && (Origin::of(acked.dot.origin).is_some_and(|origin| outside(origin.node)) || has_left())
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

    /// The replica shows what the model says.
    pub(crate) fn check_view(&self, replica: &Leaderless) -> Result<(), String> {
        for key in self.model.keys() {
            let (expected, stamps) = self.model.view(&self.keyspaces, key, &replica.seen(key));
            let shown = replica.peek(key);
            if shown != expected {
                let story = self.model.story(key);
                return Err(format!(
                    "replicas_agree: {key:?} shows {shown:?} and not {expected:?} of {stamps:?}: {replica:?}: {story}"
                ));
            }
        }
        Ok(())
    }

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

impl Subject<Leaderless> for LeaderlessSubject {
    fn on_alarm(&mut self, client: u32, clients: &mut Clients<Head>) {
        if let Some(alarm) = client.checked_sub(CENSUS_ALARM) {
            self.census.on_alarm(alarm + census::FIRST_ALARM);
            return;
        }
        if client == 0 {
            for (alarm, after) in self.census.alarms() {
                clients.alarm(alarm - census::FIRST_ALARM + CENSUS_ALARM, after);
            }
        }
        match (client.checked_sub(FIRST_ALARM), &mut self.comparers) {
            (Some(client), Some(comparers)) => return comparers.on_alarm(client, clients),
            (None, Some(comparers)) if client == 0 => comparers.begin(clients),
            _ => {}
        }
        self.crowd.on_alarm(client, clients);
    }

    fn on_start(&mut self, node: NodeId, recovery: &Recovery) -> Result<(), String> {
        let place = self.place(node);
        place.held = place.disk.begins(recovery);
        place.applied = VersionVector::new();
        Ok(())
    }

    fn on_action(&mut self, node: NodeId, action: &Action<Head>) -> Result<(), String> {
        let kept = match action {
            Action::Persist { id, op } => self.on_persist(node, *id, op),
            Action::Send { message, .. } => {
                match &message.head {
                    Head::Piece(piece) if !piece.last => self.probes.hit(Probe::SnapshotInPieces),
                    Head::Stored(stored) if !stored.not_last.is_empty() => self.probes.hit(Probe::WriteBehind),
                    Head::Repair(_) | Head::RepairPage(_) => self.probes.hit(Probe::RepairSent),
                    Head::Repaired { .. } => self.probes.hit(Probe::ReadRepaired),
                    Head::CasGiven(_) => self.probes.hit(Probe::PromisesGathered),
                    _ => {}
                }
                let batches = message.batches.as_slice().len() as u64;
                self.sent += batches;
                self.place(node).sent += batches;
                self.check_sent()
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
        self.place(node).disk.confirms(up_to);
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
        if let Some(comparers) = &mut self.comparers
            && let Some(ended) = comparers.on_done(token, &outcome, &mut self.probes, clients)
        {
            return if self.bounded { ended } else { Ok(()) };
        }
        let now = clients.now;
        let Some(open) = self.crowd.end(token, clients) else { return Ok(()) };
        match outcome {
            Outcome::Acked { at, reply, strict, .. } => {
                let dot = Dot { origin: at.stream.origin, sequence: at.id.index.0 };
                let kept = self.on_acked(dot, &open.asked, open.at, strict, &reply, now);
                self.crowd.wrote(open.client, at);
                if self.bounded { kept } else { Ok(()) }
            }
            Outcome::Value { values, strict, .. } if let Asked::Page { scan, .. } = &open.asked => {
                let rest = self.on_page(scan, open.at, &values, strict, now);
                self.crowd.paged(open.client, rest.as_ref().ok().cloned().flatten());
                if self.bounded { rest.map(drop) } else { Ok(()) }
            }
            Outcome::Value { values, strict, staleness, .. } => {
                let answered = self.on_answer(open.client, &open.asked, open.at, &values, strict, staleness, now);
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
            Event::PeerMisbehaved { node, what } if self.bounded => {
                Err(format!("honest_peers_are_not_accused: node {node}: {what}"))
            }
            Event::RecordDamaged { .. } | Event::RecordRepaired { .. } | Event::RecordsDiffer { .. }
                if self.bounded =>
            {
                Err(format!("scrub_is_honest: node {at}: {event:?}"))
            }
            Event::EpochBegun { .. } => {
                self.probes.hit(Probe::EpochBegun);
                Ok(())
            }
            Event::Evicted { .. } => {
                self.probes.hit(Probe::NodeEvicted);
                Ok(())
            }
            Event::BeganAnew { .. } | Event::Retired { .. } => {
                let retired = matches!(event, Event::Retired { .. });
                self.probes.hit(if retired { Probe::NodeRetired } else { Probe::NodeBeganAnew });
                let place = self.place(at);
                let applied = core::mem::take(&mut place.applied);
                place.dropped.join(&applied);
                place.held = VersionVector::new();
                Ok(())
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

    fn check(&mut self, node: NodeId, replicas: &impl Replicas<Leaderless>) -> Result<(), String> {
        let Some(replica) = replicas.replica(node).filter(|_| self.bounded) else { return Ok(()) };
        self.views.check(node, replica, &self.promises, &self.census, &mut self.probes)?;
        let applied = replica.applied();
        let place = self.places.entry(node).or_default();
        place.disk.recovers(applied);
        place.disk.installs(applied);
        if *applied == place.applied {
            return Ok(());
        }
        if !applied.covers(&place.applied) {
            return Err(format!("applied_never_goes_back: node {node} from {:?} to {applied:?}", place.applied));
        }
        for (_, held) in applied.iter() {
            if *held != SequenceSet::up_to(held.base()) {
                return Err(format!("applied_in_order: node {node} has applied {applied:?}"));
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
        if figures.restamped > 0 {
            self.probes.hit(Probe::WriteStampedAnew);
        }
        if figures.cas.one_trip > 0 {
            self.probes.hit(Probe::ChangedInOneTrip);
        }
        if figures.cas.conflicts > 0 {
            self.probes.hit(Probe::BallotRefused);
        }
        if figures.cas.query_reads > 0 {
            self.probes.hit(Probe::AgreedReadAnswered);
        }
        if figures.scrub.rounds > 0 {
            self.probes.hit(Probe::RecordsCompared);
        }
        if figures.hedged > 0 {
            self.probes.hit(Probe::ReadHedged);
        }
        if figures.hedged > figures.hedged_max() {
            let (hedged, reads) = (figures.hedged, figures.shared_reads);
            return Err(format!("hedges_within_budget: node {node}, {hedged} of {reads} reads"));
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
