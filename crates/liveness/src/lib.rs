//! Failure detection: who of the others can be reached by anybody. A layer around any
//! [`Replica`](replikit_core::Replica): what drives replicas, in the simulator or on a network, drives it unchanged.
//!
//! | it says | when |
//! |---|---|
//! | a node is down | it answered no probe, neither direct nor through others, and did not refute the suspicion in time |
//! | a node is up | it was heard of, or heard of again |
//!
//! A connection that stands says little: a process may stand still, a network may swallow everything in one direction. Probes
//! find that. And where only one link is cut, the probes go round it, so nobody is declared dead for it; the replica knows of
//! its own links anyway.
//!
//! # What it does not do
//!
//! No guarantee may rest on it: a node that is held to be down may be alive, and the other way round. It decides no
//! membership. It knows a fixed set of nodes.
//!
//! # Fault model
//!
//! Probes may be lost, doubled, delayed and reordered; nodes crash, pause and come back; clocks run at different speed and the
//! wall clock may go back over a restart. A malformed probe changes nothing and is reported.
//!
//! # The driving loop
//!
//! That of any replica, around [`Watched`]. Alone, a [`Detector`] takes [probes](Detector::handle) and [time](Detector::timer)
//! and [says](Detector::poll) what to send and who is up or down.
//!
//! # Sources
//!
//! SWIM (Das, Gupta, Motivala, DSN 2002) with suspicion, by the crate `foca`; Lifeguard's local health (Dadgar et al., 2018) on
//! top: see the module `health`.
#![forbid(unsafe_code)]

mod detector;
mod health;
mod identity;
mod watched;

pub use detector::{Detector, PROBE_BYTES_MAX, ProbeError, Said, Settings, SettingsError};
pub use watched::{Watched, WatchedHead};
