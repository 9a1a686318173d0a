//! Measures replication strategies side by side: workloads, engines, load generator, probes and fault runs behind
//! `cargo xtask bench`.
//!
//! Every answer of every engine is judged by a [`ledger`] of what was acknowledged, so that a bench is also a test: a run
//! that showed a wrong result says so and fails. Guarantees stand beside every figure ([`report`]); latencies are those of
//! single requests ([`recorder`]), in an open loop counted from the moment a request was due ([`schedule`]).
//!
//! # What it does not show
//!
//! Everything runs on one machine, and the load generator takes its share of it: rates are those of the whole machine, not
//! limits of a server. Loopback has no distance. A virtual disk may acknowledge a sync from a cache: the portable figure is
//! fsyncs per write.
#![deny(unsafe_code)]

pub mod advise;
pub mod allocations;
pub mod case;
pub mod child;
pub mod command_line;
pub mod compare;
pub mod disk_log;
pub mod engine;
pub mod error;
pub mod fault;
pub mod figure;
pub mod handle;
pub mod interrupt;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod network;
pub mod partitioning;
pub mod place;
pub mod play;
pub mod probe;
pub mod progress;
pub mod protocol;
pub mod rank;
pub mod record;
pub mod recorder;
pub mod replication;
pub mod report;
pub mod run;
pub mod scale;
pub mod schedule;
pub mod settings_file;
pub mod simulated;
pub mod slow_down;
pub mod staleness;
pub mod suite;
pub mod table;
pub mod timeline;
pub mod usage;
pub mod verify;
pub mod workload;
pub mod zipf;
