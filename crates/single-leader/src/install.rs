//! Snapshots between replicas: the leader sends the durable one piece by piece, the follower stages it on disk, and takes its
//! state from there.
//!
//! Invariants: the own log stays whole until a whole snapshot is durable; from then on until the state is restored this
//! replica appends nothing, votes for nobody and answers no read. Source: Raft section 7.

use bytes::Bytes;

use replikit_core::{Action, Batches, Event, NodeId, Persist, Position, SnapshotAnswer, StateMachine, Ticket, WriteId};

use crate::message::{Head, SnapshotAck, SnapshotPiece};
use crate::progress::Phase;
use crate::replica::{Raft, State};
use crate::snapshot::{End, Restorer};

#[derive(Debug)]
pub(crate) struct Install {
    at: Position,
    from: NodeId,
    /// Bytes staged so far.
    offset: u64,
    phase: InstallPhase,
}

#[derive(Debug)]
enum InstallPhase {
    /// Pieces arrive.
    Receiving,
    /// All pieces are handed to the disk, which has to confirm this action.
    Flushing(WriteId),
    /// The state is read back from the disk.
    Restoring { ticket: Ticket, offset: u64, restorer: Restorer },
}

impl Install {
    const fn is_restoring(&self) -> bool {
        !matches!(self.phase, InstallPhase::Receiving)
    }

    /// Whether this read is for it.
    fn reads(&self, asked: Ticket) -> bool {
        matches!(self.phase, InstallPhase::Restoring { ticket, .. } if ticket == asked)
    }

    /// Whether the disk has all of it, given what is durable.
    fn is_flushed(&self, durable: WriteId) -> bool {
        matches!(self.phase, InstallPhase::Flushing(id) if id <= durable)
    }
}

impl<M: StateMachine> Raft<M> {
    /// Whether the state is being replaced by a snapshot right now.
    pub(crate) fn is_restoring(&self) -> bool {
        self.install.as_deref().is_some_and(Install::is_restoring)
    }

    /// Leader: asks the storage for the next piece for a follower.
    pub(crate) fn send_snapshot_piece(&mut self, at: usize) {
        let bytes_max = self.config.limits.snapshot_piece_bytes;
        let (ticket, group) = (self.next_ticket(), self.group());
        let State::Leader(leader) = &mut self.state else { return };
        let progress = &mut leader.followers[at];
        let Phase::Snapshot(sending) = &mut progress.phase else { return };
        if sending.waiting || progress.reading.is_some() || sending.end == Some(sending.offset) {
            return;
        }
        sending.waiting = true;
        progress.reading = Some(ticket);
        let (at, offset) = (sending.at, sending.offset);
        self.act(Action::ReadSnapshot { ticket, at, group, offset, bytes_max });
    }

    pub(crate) fn handle_snapshot_read(&mut self, ticket: Ticket, answer: SnapshotAnswer) {
        if self.install.as_deref().is_some_and(|install| install.reads(ticket)) {
            return self.restore_piece(answer);
        }
        let (now, term) = (self.now.mono, self.ballot.term);
        let State::Leader(leader) = &mut self.state else { return };
        let round = leader.round;
        let Some(progress) = leader.followers.iter_mut().find(|progress| progress.reading == Some(ticket)) else {
            return;
        };
        progress.reading = None;
        let Phase::Snapshot(sending) = &mut progress.phase else { return };
        match answer {
            SnapshotAnswer::Chunk { at, offset, chunk, last } => {
                if sending.at.is_some_and(|named| named != at) || offset != sending.offset {
                    return progress.send_snapshot(now);
                }
                sending.at = Some(at);
                if last {
                    sending.end = Some(offset + chunk.len() as u64);
                }
                let node = progress.node;
                let piece = SnapshotPiece { term, at, offset, piece: chunk, last, round };
                self.send(node, Head::SnapshotPiece(Box::new(piece)), Batches::None);
            }
            // A newer snapshot has taken its place, or none is durable yet: begin anew, when asked again.
            SnapshotAnswer::Gone => {
                progress.send_snapshot(now);
                if let Phase::Snapshot(sending) = &mut progress.phase {
                    sending.waiting = true;
                }
            }
        }
    }

    pub(crate) fn handle_snapshot_ack(&mut self, from: NodeId, ack: &SnapshotAck) {
        let (now, term) = (self.now.mono, self.ballot.term);
        let State::Leader(leader) = &mut self.state else { return };
        if ack.term != term || ack.round > leader.round {
            return;
        }
        let Some(progress) = leader.follower_mut(from) else { return };
        progress.heard_at = now;
        progress.round_acked = progress.round_acked.max(ack.round);
        if let Phase::Snapshot(sending) = &mut progress.phase
            && sending.at == Some(ack.at)
            && ack.offset != sending.offset
        {
            sending.offset = ack.offset;
            sending.since = now;
            sending.waiting = false;
        }
        self.confirm_read_rounds();
    }

    pub(crate) fn handle_snapshot_piece(&mut self, from: NodeId, piece: &SnapshotPiece) {
        if piece.term < self.ballot.term {
            let ack = SnapshotAck { term: self.ballot.term, at: piece.at, offset: 0, round: 0 };
            return self.send_when_term_is_durable(from, Head::SnapshotAck(ack));
        }
        let Some(follower) = self.heard_leader(from) else { return };
        follower.round = follower.round.max(piece.round);
        if piece.at.stream != self.stream {
            return self.misbehaved(from, "sent a snapshot of another stream");
        }
        let index = piece.at.id.index;
        if self.is_restoring() {
            return self.acknowledge_snapshot(from, piece.at, piece.round);
        }
        if index <= self.commit || self.view.term_at(index) == Some(piece.at.id.term) {
            // The log holds it all; a snapshot would only take away what stands behind it.
            self.install = None;
            let State::Follower(follower) = &mut self.state else { return };
            follower.matched = follower.matched.max(index);
            follower.ack_due = true;
            return self.advance_commit(index);
        }
        let staged = self.install.as_ref().filter(|install| install.at == piece.at).map(|install| install.offset);
        match staged {
            Some(offset) if offset == piece.offset => {}
            None if piece.offset == 0 => {
                let phase = InstallPhase::Receiving;
                self.install = Some(Box::new(Install { at: piece.at, from, offset: 0, phase }));
            }
            _ => return self.acknowledge_snapshot(from, piece.at, piece.round),
        }
        if piece.piece.is_empty() && !piece.last {
            return self.misbehaved(from, "sent an empty piece of a snapshot");
        }
        self.stage(piece);
        self.acknowledge_snapshot(from, piece.at, piece.round);
    }

    fn stage(&mut self, piece: &SnapshotPiece) {
        let &SnapshotPiece { at, offset, last, .. } = piece;
        self.persist(Persist::SnapshotChunk { at, offset, chunk: piece.piece.clone(), last });
        let mut phase = InstallPhase::Receiving;
        if last {
            // The snapshot lies before it in the queue, so the old log goes only once the snapshot is durable.
            let end = self.view.last();
            if end.index > self.commit {
                let from = self.commit.next();
                let term = self.view.term_at(from).unwrap_or_default();
                self.event(Event::LostWrites { stream: self.stream, range: from..=end.index, term });
            }
            let id = self.persist(Persist::Reset { stream: self.stream, next: at.id.index.next() });
            phase = InstallPhase::Flushing(id);
        }
        let install = self.install.as_mut().expect("set by the caller");
        install.offset = offset + piece.piece.len() as u64;
        install.phase = phase;
    }

    fn acknowledge_snapshot(&mut self, to: NodeId, at: Position, round: u64) {
        let offset = self.install.as_ref().filter(|install| install.at == at).map_or(0, |install| install.offset);
        let ack = SnapshotAck { term: self.ballot.term, at, offset, round };
        self.send_when_term_is_durable(to, Head::SnapshotAck(ack));
    }

    /// The disk has confirmed something: perhaps the whole snapshot.
    pub(crate) fn install_durable(&mut self) {
        let durable = self.durable;
        if self.install.as_deref().is_some_and(|install| install.is_flushed(durable)) {
            self.read_back(0, Restorer::default());
        }
    }

    fn read_back(&mut self, offset: u64, restorer: Restorer) {
        let (ticket, group, bytes_max) = (self.next_ticket(), self.group(), self.config.limits.snapshot_piece_bytes);
        let Some(install) = &mut self.install else { return };
        install.phase = InstallPhase::Restoring { ticket, offset, restorer };
        let at = Some(install.at);
        self.act(Action::ReadSnapshot { ticket, at, group, offset, bytes_max });
    }

    fn restore_piece(&mut self, answer: SnapshotAnswer) {
        let Some(mut install) = self.install.take() else { return };
        let (at, from) = (install.at, install.from);
        let InstallPhase::Restoring { offset, restorer, .. } = &mut install.phase else { return };
        let (offset, mut restorer) = (*offset, core::mem::take(restorer));
        self.install = Some(install);
        let (chunk, end): (Bytes, End) = match answer {
            SnapshotAnswer::Chunk { at: found, offset: begin, chunk, last } if found == at && begin == offset => {
                (chunk, End::from(last))
            }
            _ => return self.unreadable_snapshot(at),
        };
        match restorer.restore(self.machine_mut(), &chunk, end) {
            Err(_) => self.unreadable_snapshot(at),
            Ok(None) => self.read_back(offset + chunk.len() as u64, restorer),
            Ok(Some(group)) => {
                self.install = None;
                self.adopt_snapshot(at, group);
                self.event(Event::SnapshotInstalled { at, from });
                if let State::Follower(follower) = &mut self.state {
                    follower.matched = follower.matched.max(at.id.index);
                    follower.ack_due = true;
                }
                self.serve_applied();
                self.dirty = true;
            }
        }
    }
}
