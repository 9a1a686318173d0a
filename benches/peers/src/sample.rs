//! A sample: what one system did under one load in one round.

use std::collections::BTreeMap;

use replikit_benches::figure::{Better, Figure, Subject};
use replikit_benches::recorder::Latencies;

use crate::contest::{Load, Metric};
use crate::system::System;

/// What one system did.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Acknowledged requests, or entries, a second.
    pub rate: f64,
    /// From the request to its acknowledgement.
    pub latencies: Latencies,
    /// How the system was set up: names and values.
    pub configuration: BTreeMap<String, String>,
    /// What an acknowledgement meant.
    pub acknowledged: String,
    /// What is worth knowing beside the figures.
    pub notes: Vec<String>,
    /// Wrong results, in words.
    pub wrong: Vec<String>,
}

impl Sample {
    /// A metric, the more the better.
    #[must_use]
    pub fn merit(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Rate => self.rate,
            Metric::P99 => 1.0 / self.latencies.quantile(0.99).as_secs_f64().max(1e-9),
        }
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self, system: System, load: Load) -> Vec<Figure> {
        let settings = [
            ("acknowledged", self.acknowledged.clone()),
            ("fsync before the acknowledgement", system.syncs(load).to_owned()),
        ];
        let clients = match load {
            Load::Writes { clients } | Load::Reads { clients } => clients,
            Load::Adds { clients } | Load::Calls { clients } => clients,
            Load::Appends { .. } | Load::Rounds { .. } => 1,
        };
        let subject = Subject {
            engine: system.name().to_owned(),
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            workload: load.to_string(),
            clients,
        };
        let mut figures = vec![subject.figure("throughput", self.rate, "1/s", Better::Higher)];
        if self.latencies.count() > 0 {
            for (name, share) in [("latency p50", 0.5), ("latency p99", 0.99)] {
                let micros = self.latencies.quantile(share).as_nanos() as f64 / 1e3;
                figures.push(subject.figure(name, micros, "us", Better::Lower));
            }
        }
        figures
    }
}
