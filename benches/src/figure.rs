//! Figures: what was measured of which subject, in which unit, and which direction is better.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which direction of a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It explains other figures and is itself neither good nor bad.
    Neither,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Which engine, or `machine` for probes.
    pub engine: String,
    /// How it was set up: what distinguishes it from the same engine in another row, guarantees included.
    pub settings: BTreeMap<String, String>,
    /// What was done.
    pub workload: String,
    /// How many clients at once; 0 where there is no client.
    pub clients: u32,
    /// What was measured.
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
}

/// What a set of figures has in common.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// See [`Figure::engine`].
    pub engine: String,
    /// See [`Figure::settings`].
    pub settings: BTreeMap<String, String>,
    /// See [`Figure::workload`].
    pub workload: String,
    /// See [`Figure::clients`].
    pub clients: u32,
}

impl Subject {
    /// A figure of this subject.
    #[must_use]
    pub fn figure(&self, metric: &str, value: f64, unit: &str, better: Better) -> Figure {
        Figure {
            engine: self.engine.clone(),
            settings: self.settings.clone(),
            workload: self.workload.clone(),
            clients: self.clients,
            metric: metric.to_owned(),
            value,
            unit: unit.to_owned(),
            better,
        }
    }
}
