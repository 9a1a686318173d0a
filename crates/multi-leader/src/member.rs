//! What each member of the group is known to hold, and what follows from it: acknowledgements, staleness.
//!
//! Invariant: a report says what its sender held when it was made, and reports of one life of a sender are ordered by number;
//! an older one never takes the place of a newer one. Source: matrix clocks (Wuu and Bernstein 1984).

use replikit_core::dotted::News;
use replikit_core::{NodeId, Origin, OriginId, Time, VersionVector};

use crate::message::Report;

/// What is known of another member.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// Its newest report.
    pub(crate) report: Option<Report>,
    /// When something came from it directly.
    pub(crate) heard: Option<Time>,
    /// The number of its newest report that came from it directly: what it is answered with.
    pub(crate) echo: Option<u64>,
    /// Up to this moment of this replica's clock, all its writes have been applied here.
    fresh: Option<Time>,
    /// The same, as soon as its writes up to these have been applied.
    fresher: Option<(Time, Vec<(OriginId, u64)>)>,
}

impl Member {
    /// Takes a report, whoever brought it.
    pub(crate) fn observe(&mut self, report: Report) -> News {
        let news = News::of(report.number, self.report.as_ref().map_or(0, |known| known.number));
        if news != News::Old {
            self.report = Some(report);
        }
        if news == News::NewLife {
            // Nobody may ever see what its earlier life had: a cut log loses that.
            self.fresher = None;
        }
        news
    }

    /// Whether it has told of an epoch.
    pub(crate) fn tells_of(&self, epoch: replikit_core::Epoch) -> bool {
        self.report.as_ref().is_some_and(|report| report.epoch == epoch)
    }

    /// What it holds, in its log.
    pub(crate) fn held(&self, origin: OriginId) -> u64 {
        self.report.as_ref().map_or(0, |report| report.held.base(origin))
    }

    /// What it has on its disk.
    pub(crate) fn durable(&self, origin: OriginId) -> u64 {
        self.report.as_ref().map_or(0, |report| report.durable().base(origin))
    }

    /// What it has applied.
    pub(crate) fn applied(&self, origin: OriginId) -> u64 {
        self.report.as_ref().map_or(0, |report| report.applied().base(origin))
    }

    /// Its newest report was made after this moment: as soon as its own writes in it are applied, nothing that it had
    /// acknowledged by then is missing here. One that has to ask others what it wrote can say nothing of that.
    pub(crate) fn answered(&mut self, node: NodeId, asked: Time, applied: &VersionVector) {
        self.refresh(applied);
        let known = self.report.as_ref().filter(|report| report.current.is_some());
        let Some(report) = known.filter(|_| self.fresher.is_none()) else { return };
        let own =
            report.held.iter().filter(|(origin, _)| Origin::of(*origin).is_some_and(|origin| origin.node == node));
        let own = own.map(|(origin, held)| (origin, held.base())).collect();
        self.fresher = Some((asked, own));
        self.refresh(applied);
    }

    fn refresh(&mut self, applied: &VersionVector) {
        let covered = |(_, own): &mut (Time, Vec<(OriginId, u64)>)| {
            own.iter().all(|(origin, base)| applied.base(*origin) >= *base)
        };
        if let Some((asked, _)) = self.fresher.take_if(covered) {
            self.fresh = self.fresh.max(Some(asked));
        }
    }

    /// All that it had acknowledged by this moment has been applied here.
    pub(crate) fn fresh(&mut self, applied: &VersionVector) -> Option<Time> {
        self.refresh(applied);
        self.fresh
    }
}
