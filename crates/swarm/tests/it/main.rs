//! Runs of the simulator: every scenario, a few hundred seeds each.

mod seeds;
