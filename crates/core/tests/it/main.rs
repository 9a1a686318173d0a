//! The causality vocabulary against naive models that keep full histories.

mod crdt;
mod crdt_counter;
mod crdt_dot_map;
mod crdt_state;
mod dvvs;
mod oracle;
mod policy;
mod vector;
