//! Leaderless replication: quorums without a leader.
#![forbid(unsafe_code)]
