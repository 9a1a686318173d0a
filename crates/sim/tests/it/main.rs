//! Checks of the checkers: each must pass valid histories and reject every mutation that makes one wrong. And users' own
//! state machines under faults.

mod by_hand;
mod check;
mod scenario;
