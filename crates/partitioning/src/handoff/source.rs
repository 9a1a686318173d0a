//! The driver of the side that gives a partition away. It answers questions, and cleans once the map says how it ended.
//!
//! Invariant: it seals and drops nothing of its own accord. The right to serve reads of a sealed partition belongs to the driver that
//! had it sealed, until it grants: one that was started anew never has it.

use std::collections::BTreeSet;

use replikit_core::{GroupId, LogIndex};

use super::{
    Answer, Ask, Holdings, Letter, NotHere, Output, Record, Seal, SourceStore, TAIL_ENTRIES_MAX, Verdict, verdict,
};
use crate::id::HandoffId;
use crate::map::{Handoff, PartitionMap};
use crate::partitioner::Position;

/// One for each group, at whoever leads it; a new leader begins with a new one.
#[derive(Clone, Debug)]
pub struct Source {
    group: GroupId,
    may_read: BTreeSet<HandoffId>,
}

impl Source {
    /// Of a leader that has just begun: it serves no reads of what was sealed before.
    pub fn new(group: GroupId) -> Self {
        Self { group, may_read: BTreeSet::new() }
    }

    /// To be called behind [`Holdings::apply`], with the same index and record, by a leader for what it has proposed itself. A seal that
    /// another leader has proposed gives no right to reads: that one may have granted.
    pub fn applied(&mut self, index: LogIndex, record: &Record, holdings: &Holdings) {
        match record {
            // Not for a second record of the same seal, behind which the grant may lie already.
            Record::Seal { handoff, .. } if holdings.sealed(*handoff).is_some_and(|(_, seal)| seal.at == index) => {
                self.may_read.insert(*handoff);
            }
            Record::Unseal { handoff, .. } | Record::Drop { handoff, .. } => {
                self.may_read.remove(handoff);
            }
            _ => {}
        }
    }

    /// Whether a read is served from here, by a leader that knows by its strategy's rules that it still leads.
    ///
    /// # Errors
    /// Why it is not.
    pub fn admit_read(&self, holdings: &Holdings, position: &Position<'_>) -> Result<(), NotHere> {
        match holdings.sealed_at(position)? {
            Some(handoff) if !self.may_read.contains(&handoff) => Err(NotHere::HandingOff(handoff)),
            _ => Ok(()),
        }
    }

    /// Answers a question. `applied` is the last index of the group's log that `store` and `holdings` include.
    pub fn handle(
        &mut self,
        map: &PartitionMap,
        holdings: &Holdings,
        store: &impl SourceStore,
        applied: LogIndex,
        letter: &Letter<Ask>,
    ) -> Vec<Output<Answer>> {
        // A question about a handoff that this map does not know yet, or knows no more, waits or is out of date.
        let Some(handoff) = map.handoff(letter.handoff).filter(|it| it.source == self.group) else { return Vec::new() };
        let answer = |body| vec![Output::Send(handoff.target, Letter { handoff: handoff.id, body })];
        let is_over = holdings.is_over(handoff.partition, handoff.id);
        match letter.body {
            Ask::Cleaned if is_over => answer(Answer::Cleaned),
            _ if is_over || verdict(handoff) != Verdict::Open => Vec::new(),
            Ask::Snapshot => {
                let at = self.seal(holdings, handoff).map_or(applied, |seal| seal.at);
                answer(Answer::Snapshot { at, snapshot: store.snapshot(&handoff.span) })
            }
            Ask::Tail { after } => {
                let seal = self.seal(holdings, handoff);
                let end = seal.map_or(applied, |seal| seal.at);
                if after > end {
                    return Vec::new();
                }
                if after == end {
                    // Nothing to read, so it does not matter what the log still has: a target that has everything must learn of the seal.
                    return answer(Answer::Tail { after, to: end, entries: Vec::new(), left: 0, seal });
                }
                let Some(read) = store.tail(&handoff.span, after, end, TAIL_ENTRIES_MAX) else {
                    return answer(Answer::Compacted);
                };
                // Less than asked for ends at its last entry, else everything up to the end is in it.
                let to = if read.len() < TAIL_ENTRIES_MAX { end } else { read.last().map_or(end, |(index, _)| *index) };
                let entries = read.into_iter().map(|(_, entry)| entry).collect();
                answer(Answer::Tail { after, to, entries, left: end.0 - to.0, seal })
            }
            Ask::Seal if self.seal(holdings, handoff).is_none() => vec![Output::Propose(Record::Seal {
                handoff: handoff.id,
                partition: handoff.partition,
                birth: handoff.birth,
                bounds: handoff.bounds,
            })],
            Ask::Grant if self.seal(holdings, handoff).is_some() => {
                self.may_read.remove(&handoff.id);
                answer(Answer::Granted)
            }
            Ask::Seal | Ask::Grant | Ask::Cleaned => Vec::new(),
        }
    }

    fn seal(&self, holdings: &Holdings, handoff: &Handoff) -> Option<Seal> {
        holdings.sealed(handoff.id).map(|(_, seal)| seal)
    }

    /// What is to be done by what the map says. To be called when the map or the holdings have changed, and now and then.
    pub fn poll(&mut self, map: &PartitionMap, holdings: &Holdings) -> Vec<Output<Answer>> {
        let mut outputs = Vec::new();
        let mine = |it: &&Handoff| it.source == self.group && !holdings.is_over(it.partition, it.id);
        for handoff in map.handoffs().filter(mine) {
            let (id, partition) = (handoff.id, handoff.partition);
            match verdict(handoff) {
                Verdict::Open => {}
                Verdict::Committed => outputs.push(Output::Propose(Record::Drop { handoff: id, partition })),
                Verdict::Aborted => outputs.push(Output::Propose(Record::Unseal { handoff: id, partition })),
            }
        }
        outputs
    }
}
