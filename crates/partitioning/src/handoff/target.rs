//! The driver of the side that takes a partition: it drives the whole handoff.
//!
//! Invariant: it asks for the decision only behind its own durable [`Record::Prepared`] and the source's grant, both of this
//! handoff. What it remembers are answers of the source; without them it asks again.

use std::collections::BTreeMap;

use replikit_core::{GroupId, LogIndex};

use super::{
    Answer, Ask, BACKLOG_ENTRIES_MAX, Copied, Holdings, Letter, Output, Record, Seal, Staged, TAILS_PATIENT,
    TargetStore, Verdict, verdict,
};
use crate::id::{HandoffId, PlacementVersion};
use crate::map::{Change, Handoff, Partition, PartitionMap, Replication};

/// One for each group, at whoever leads it; a new leader begins with a new one. So does one whose proposal was refused: a driver
/// takes for granted that what it has proposed comes into the log as long as it leads.
#[derive(Clone, Debug)]
pub struct Target {
    group: GroupId,
    seen: BTreeMap<HandoffId, Seen>,
}

/// What the source has said since this driver began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    seal: Option<Seal>,
    // Tails that have come.
    tails: u32,
    // Little is left to copy: the seal may be asked for.
    close: bool,
    compacted: bool,
    granted: bool,
    cleaned: bool,
    // Up to where this driver has proposed to stage: what is on its way into the log is not asked for again.
    proposed: Option<LogIndex>,
    // Up to which key it has proposed pieces.
    piece: Option<Copied>,
}

impl Seen {
    /// Whether something is on its way into the log that has not been applied.
    fn is_on_its_way(&self, staged: Option<&Staged>) -> bool {
        let tail = staged.map(|staged| staged.to) < self.proposed;
        tail || (self.piece.is_some() && staged.map(|staged| &staged.copied) != self.piece.as_ref())
    }
}

impl Target {
    /// Of a leader that has just begun.
    pub fn new(group: GroupId) -> Self {
        Self { group, seen: BTreeMap::new() }
    }

    /// Takes an answer of the source; then what follows from it.
    pub fn handle(
        &mut self,
        map: &PartitionMap,
        holdings: &Holdings,
        store: &impl TargetStore,
        letter: Letter<Answer>,
    ) -> Vec<Output<Ask>> {
        let Some(handoff) = map.handoff(letter.handoff).filter(|it| it.target == self.group) else { return Vec::new() };
        let seen = self.seen.entry(handoff.id).or_default();
        let before = seen.clone();
        let staged = holdings.staged(handoff.id);
        // One at a time: what fits now may not fit behind what is on its way.
        let on_its_way = seen.is_on_its_way(staged);
        match letter.body {
            Answer::Granted => seen.granted = true,
            Answer::Cleaned => seen.cleaned = true,
            Answer::Compacted => seen.compacted = true,
            _ if verdict(handoff) != Verdict::Open || holdings.is_over(handoff.partition, handoff.id) => {}
            Answer::Piece { at, after, piece } => {
                let anew = after.is_none() && !on_its_way && (staged.is_none() || seen.compacted);
                // The place behind what is here, or behind what is on its way into the log.
                let place = seen.piece.clone().or(staged.map(|staged| staged.copied.clone()));
                let follows = after.is_some() && !seen.compacted && place == after.clone().map(Copied::Through);
                if !anew && !follows {
                    return Vec::new();
                }
                let at = if anew { at } else { seen.proposed.or(staged.map(|it| it.to)).unwrap_or(at) };
                (seen.compacted, seen.proposed) = (false, Some(at));
                seen.piece = Some(piece.through.clone().into());
                return vec![Output::Propose(Record::Stage {
                    handoff: handoff.id,
                    partition: handoff.partition,
                    birth: handoff.birth,
                    bounds: handoff.bounds,
                    span: handoff.span.clone(),
                    at,
                    after,
                    piece,
                })];
            }
            Answer::Tail { after, to, entries, left, seal } => {
                seen.seal = seal.or(seen.seal);
                let patience = (seen.tails / TAILS_PATIENT).min(u64::BITS / 2);
                seen.close = left <= BACKLOG_ENTRIES_MAX << patience;
                if !on_its_way && after < to && staged.is_some_and(|staged| staged.to == after) {
                    seen.proposed = Some(to);
                    seen.tails += 1;
                    return vec![Output::Propose(Record::Tail { handoff: handoff.id, after, to, entries })];
                }
            }
        }
        // An answer that says nothing new is followed by nothing, so that doubled messages die out.
        if *seen == before { Vec::new() } else { self.step(map, handoff, holdings, store) }
    }

    /// What is to be done by what the map says. To be called when the map or the holdings have changed, and when nothing has come for
    /// longer than an answer takes: a question is asked again each time.
    pub fn poll(&mut self, map: &PartitionMap, holdings: &Holdings, store: &impl TargetStore) -> Vec<Output<Ask>> {
        self.seen.retain(|id, _| map.handoff(*id).is_some());
        let mine = map.handoffs().filter(|it| it.target == self.group);
        mine.flat_map(|handoff| self.step(map, handoff, holdings, store)).collect()
    }

    fn step(
        &self,
        map: &PartitionMap,
        handoff: &Handoff,
        holdings: &Holdings,
        store: &impl TargetStore,
    ) -> Vec<Output<Ask>> {
        let id = handoff.id;
        let ask = |body| Output::Send(handoff.source, Letter { handoff: id, body });
        let seen = self.seen.get(&id).cloned().unwrap_or_default();
        let is_over = holdings.is_over(handoff.partition, id);
        match verdict(handoff) {
            Verdict::Open if is_over => Vec::new(),
            Verdict::Open if seen.is_on_its_way(holdings.staged(id)) => Vec::new(),
            Verdict::Open => match holdings.staged(id) {
                None => vec![ask(Ask::Piece { after: None })],
                Some(staged) if staged.prepared && seen.granted => vec![Output::Decide(Change::CommitHandoff(id))],
                Some(staged) if staged.prepared => vec![ask(Ask::Grant)],
                Some(_) if seen.compacted => vec![ask(Ask::Piece { after: None })],
                Some(Staged { copied: Copied::Through(key), .. }) => vec![ask(Ask::Piece { after: Some(key.clone()) })],
                Some(staged) => match seen.seal {
                    Some(seal) if seal.at == staged.to && seal.digest == store.staged_digest(id) => {
                        // The grant's round trip and the append go on at the same time.
                        let prepared = Record::Prepared { handoff: id, sealed: seal.at };
                        vec![Output::Propose(prepared), ask(Ask::Grant)]
                    }
                    // The copy is not what the source has: it must never be opened.
                    Some(seal) if seal.at == staged.to => vec![Output::Decide(Change::AbortHandoff(id))],
                    None if seen.close => vec![ask(Ask::Seal), ask(Ask::Tail { after: staged.to })],
                    _ => vec![ask(Ask::Tail { after: staged.to })],
                },
            },
            Verdict::Committed if !is_over => {
                let entry = opened(handoff, map);
                vec![Output::Propose(Record::Open { handoff: id, entry })]
            }
            Verdict::Aborted if !is_over => {
                vec![Output::Propose(Record::Discard { handoff: id, partition: handoff.partition })]
            }
            Verdict::Committed | Verdict::Aborted if seen.cleaned => vec![Output::Decide(Change::ForgetHandoff(id))],
            Verdict::Committed | Verdict::Aborted => vec![ask(Ask::Cleaned)],
        }
    }
}

/// The partition as the commit of the handoff has made it; the map may be further on.
fn opened(handoff: &Handoff, map: &PartitionMap) -> Partition {
    let placed = map.of_group(handoff.target).next();
    Partition {
        id: handoff.partition,
        birth: handoff.birth,
        span: handoff.span.clone(),
        bounds: handoff.bounds.next(),
        group: handoff.target,
        replication: Replication::SingleLeader,
        placement: placed.map_or(PlacementVersion(1), |it| it.placement),
        replicas: placed.map_or_else(|| handoff.replicas.clone(), |it| it.replicas.clone()),
        joined: placed.map(|it| it.joined.clone()).unwrap_or_default(),
        turnover: replikit_core::Turnover::default(),
    }
}
