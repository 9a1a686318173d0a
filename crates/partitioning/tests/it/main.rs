//! The container with toy groups, whose every input is seen.

mod container;
mod toy;
