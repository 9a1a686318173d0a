//! Checks of the checkers: each must pass valid histories and reject every mutation that makes one wrong.

mod check;
