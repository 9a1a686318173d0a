//! Runs of the simulator: the standard scenarios of the example, a few hundred seeds each.

#[path = "../../examples/sim/run.rs"]
mod run;

#[path = "../../examples/sim/groups.rs"]
mod groups;
#[path = "../../examples/sim/raft/mod.rs"]
mod raft;
#[path = "../../examples/sim/register.rs"]
mod register;

mod seeds;
