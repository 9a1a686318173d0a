//! Integration tests of leaderless replication.
