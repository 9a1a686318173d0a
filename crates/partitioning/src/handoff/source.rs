//! The driver of the side that gives a partition away. It answers questions, and cleans once the map says how it ended.
//!
//! Invariant: it seals and drops nothing of its own accord. The right to serve reads of a sealed partition belongs to the driver that
//! had it sealed, until it grants: one that was started anew never has it.

use std::collections::BTreeSet;

use replikit_core::{GroupId, LogIndex};

use super::{
    Answer, Ask, DEPARTED_MAX, Holdings, Letter, NotHere, Output, PIECE_BYTES, PIECES_WINDOW, Record, Seal,
    SourceStore, Tail, Verdict, verdict,
};
use crate::id::HandoffId;
use crate::map::{Handoff, PartitionMap};
use crate::partitioner::Position;

/// One for each group, at whoever leads it; a new leader begins with a new one.
#[derive(Clone, Debug)]
pub struct Source {
    group: GroupId,
    piece_bytes: usize,
    may_read: BTreeSet<HandoffId>,
}

impl Source {
    /// Of a leader that has just begun: it serves no reads of what was sealed before.
    pub fn new(group: GroupId) -> Self {
        Self { group, piece_bytes: PIECE_BYTES, may_read: BTreeSet::new() }
    }

    /// With pieces of about so many bytes in place of [`PIECE_BYTES`].
    #[must_use]
    pub fn with_piece_bytes(mut self, piece_bytes: usize) -> Self {
        self.piece_bytes = piece_bytes;
        self
    }

    /// To be called behind [`Holdings::apply`], with the same index and record, by a leader for what it has proposed itself. A seal that
    /// another leader has proposed gives no right to reads: that one may have granted.
    pub fn applied(&mut self, index: LogIndex, record: &Record, holdings: &Holdings) {
        match record {
            // Not for a second record of the same seal, behind which the grant may lie already.
            Record::Seal { handoff, .. } if holdings.sealed(*handoff).is_some_and(|(_, at)| at == index) => {
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
            Ask::Piece { ref after } => {
                let at = sealed_at(holdings, handoff).unwrap_or(applied);
                let (mut answers, mut after) = (Vec::new(), after.clone());
                while answers.len() < PIECES_WINDOW {
                    let piece = store.piece(&handoff.span, after.as_deref(), self.piece_bytes);
                    let through = piece.through.clone();
                    answers.extend(answer(Answer::Piece { at, after, piece }));
                    if through.is_none() {
                        break;
                    }
                    after = through;
                }
                answers
            }
            Ask::Tail { after } => {
                let sealed_at = sealed_at(holdings, handoff);
                // Nothing is written in the span behind the seal: what is there is what was there at it.
                let seal = sealed_at.map(|at| Seal { at, digest: store.digest(&handoff.span) });
                let end = sealed_at.unwrap_or(applied);
                if after > end {
                    return Vec::new();
                }
                if after == end {
                    // Nothing to read, so it does not matter what the log still has: a target that has everything must learn of the seal.
                    return answer(Answer::Tail { after, to: end, entries: Vec::new(), left: 0, seal });
                }
                let Some(Tail { entries, to }) = store.tail(&handoff.span, after, end) else {
                    return answer(Answer::Compacted);
                };
                answer(Answer::Tail { after, to, entries, left: end.0 - to.0, seal })
            }
            Ask::Seal if sealed_at(holdings, handoff).is_none() => vec![Output::Propose(Record::Seal {
                handoff: handoff.id,
                partition: handoff.partition,
                birth: handoff.birth,
                bounds: handoff.bounds,
            })],
            Ask::Grant if sealed_at(holdings, handoff).is_some() => {
                self.may_read.remove(&handoff.id);
                answer(Answer::Granted)
            }
            Ask::Seal | Ask::Grant | Ask::Cleaned => Vec::new(),
        }
    }

    /// What is to be done by what the map says. To be called when the map or the holdings have changed, and now and then.
    pub fn poll(&mut self, map: &PartitionMap, holdings: &Holdings) -> Vec<Output<Answer>> {
        let mut outputs = Vec::new();
        let mine = |it: &&Handoff| it.source == self.group && !holdings.is_over(it.partition, it.id);
        for handoff in map.handoffs().filter(mine) {
            let (id, partition) = (handoff.id, handoff.partition);
            match verdict(handoff) {
                Verdict::Open => {}
                Verdict::Committed => {
                    let now = map.partitions().filter(|it| it.span.meets(&handoff.span)).take(DEPARTED_MAX);
                    let (epoch, now) = (map.epoch(), now.cloned().collect());
                    outputs.push(Output::Propose(Record::Drop { handoff: id, partition, epoch, now }));
                }
                Verdict::Aborted => outputs.push(Output::Propose(Record::Unseal { handoff: id, partition })),
            }
        }
        outputs
    }
}

fn sealed_at(holdings: &Holdings, handoff: &Handoff) -> Option<LogIndex> {
    holdings.sealed(handoff.id).map(|(_, at)| at)
}
