//! The container with toy groups, whose every input is seen.

mod coming_and_going;
mod container;
mod heartbeats;
#[cfg(feature = "leaderless")]
mod leaderless;
#[cfg(feature = "runtime")]
mod memory;
#[cfg(feature = "multi-leader")]
mod multi_leader;
mod placing;
#[cfg(feature = "runtime")]
mod store;
mod toy;
