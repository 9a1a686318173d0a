//! The container with toy groups, whose every input is seen.

mod coming_and_going;
mod container;
#[cfg(feature = "runtime")]
mod store;
mod toy;
