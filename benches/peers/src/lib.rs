//! Other systems under the same load as replikit's engines, in turn with them: what each promises, how it is set up, and how
//! many times faster or slower ours is. `cargo xtask bench --suite peers` runs it.
//!
//! # What it does not show
//!
//! Both sides share one machine with the load generator. The promises of two systems are never quite the same: each is printed
//! beside its figures. Peers are driven by code of this package, which those who wrote replikit wrote as well.
#![deny(unsafe_code)]

pub mod contest;
pub mod counter;
pub mod etcd;
pub mod galera;
pub mod groups;
pub mod handles;
pub mod logs;
pub mod nats;
pub mod outcome;
pub mod redis;
pub mod rounds;
pub mod sample;
pub mod servers;
pub mod system;
pub mod tally;
