//! What each other owner is known to hold, and what follows from it: staleness.
//!
//! Invariant: a report says what its sender held when it was made, and reports of one life of a sender are ordered by number;
//! an older one never takes the place of a newer one. Source: matrix clocks (Wuu and Bernstein 1984).

use replikit_core::dotted::News;
use replikit_core::{OriginId, Time, VersionVector};

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
    /// Up to this moment of this replica's clock, all that it held has been applied here.
    fresh: Option<Time>,
    /// The same, as soon as the writes up to these have been applied.
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

    /// What it holds, in its log.
    pub(crate) fn held(&self, origin: OriginId) -> u64 {
        self.report.as_ref().map_or(0, |report| report.held.base(origin))
    }

    /// What it has on its disk.
    pub(crate) fn durable(&self, origin: OriginId) -> u64 {
        self.report.as_ref().map_or(0, |report| report.durable().base(origin))
    }

    /// Its newest report was made after this moment: as soon as all that it then held is applied, nothing that was on its disk
    /// by then is missing here. Not its own writes only: what it was the first to store, their coordinator may have lost.
    pub(crate) fn answered(&mut self, asked: Time, applied: &VersionVector) {
        self.refresh(applied);
        let Some(report) = &self.report else { return };
        if self.fresher.is_none() {
            let held = report.held.iter().map(|(origin, held)| (origin, held.base())).collect();
            self.fresher = Some((asked, held));
            self.refresh(applied);
        }
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
