//! Runs of the simulator: every scenario, a few hundred seeds each.

mod program;
mod seeds;
