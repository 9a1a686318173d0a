//! What is on an owner's disk: what was handed to its storage and confirmed, or was there when it began.

use replikit_core::{Dot, VersionVector, WriteId};
use replikit_sim::{Recovery, RecoveryItem};

use super::subject::dots;

/// Of one owner.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// What was handed to it since its owner began, by storage action.
    stored: Vec<(WriteId, Vec<Dot>)>,
    /// Snapshots that were handed to it, with what they hold as soon as that is known.
    installed: Vec<(WriteId, VersionVector)>,
    /// Whether its owner has not run yet since it began: what that then has applied is here.
    recovering: bool,
    /// The writes on it.
    pub(super) durable: VersionVector,
}

impl Disk {
    /// Its owner begins, with what is here; the writes of its log.
    pub(super) fn begins(&mut self, recovery: &Recovery) -> VersionVector {
        self.stored.clear();
        self.installed.clear();
        self.recovering = true;
        let mut held = VersionVector::new();
        for item in &recovery.items {
            if let RecoveryItem::Batch(batch) = item {
                insert(&mut held, dots(batch));
            }
        }
        self.durable.join(&held);
        held
    }

    pub(super) fn is_given(&mut self, id: WriteId, writes: Vec<Dot>) {
        self.stored.push((id, writes));
    }

    /// The last piece of a snapshot.
    pub(super) fn is_given_snapshot(&mut self, id: WriteId) {
        self.installed.push((id, VersionVector::new()));
    }

    pub(super) fn confirms(&mut self, up_to: WriteId) {
        for (_, writes) in self.stored.extract_if(.., |(id, _)| *id <= up_to) {
            insert(&mut self.durable, writes);
        }
        for (_, installed) in self.installed.extract_if(.., |(id, _)| *id <= up_to) {
            self.durable.join(&installed);
        }
    }

    /// What its owner has applied behind a snapshot says what is in that.
    pub(super) fn installs(&mut self, applied: &VersionVector) {
        for (_, installed) in self.installed.iter_mut().filter(|(_, installed)| installed.is_empty()) {
            installed.clone_from(applied);
        }
    }

    /// What its owner has applied when it first runs is here, in a snapshot too.
    pub(super) fn recovers(&mut self, applied: &VersionVector) {
        if core::mem::take(&mut self.recovering) {
            self.durable.join(applied);
        }
    }
}

fn insert(into: &mut VersionVector, writes: Vec<Dot>) {
    for dot in writes {
        into.insert(dot);
    }
}
