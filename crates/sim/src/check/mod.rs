//! What clients saw, and whether what was promised to them could have shown it.
//!
//! | promise | check | cost | source |
//! |---|---|---|---|
//! | linearizable, any model | [`check_calls`], [`check_history`] | n log n by the log's order; else a bounded search | Wing and Gong 1993; Lowe 2017 |
//! | linearizable registers | [`check_linearizable`] | n log n | Gibbons and Korach 1997 |
//! | session guarantees | [`check_sessions`] | n log n | Terry et al., PDIS'94 |
//! | bounded staleness, nothing from the future | [`check_staleness`] | n log n | DDIA chapter 5 |
//! | no acknowledged write lost, no phantom, exactly once | [`check_durability`], [`check_counter`] | n log n | |
//! | equal logs, equal states | [`Convergence`] | n log n | Schneider 1990 |
//! | causal consistency | [`check_causal`] | n k for k sessions | Møldrup and Pavlogiannis, PLDI'25 |
//!
//! # What they cannot decide
//!
//! Each check is exact for histories whose written values are unique. Where that is not enough, the answer says so and never
//! guesses: a search that is not finished is [`Unproven::Undecided`], which lost answers of counters and removals bring about
//! soon unless the log tells their fate ([`History::settle`]); reads whose version cannot be told (the value of a write
//! whose position nobody knows, an absent key that may have been removed) are counted as undecided.

mod causal;
mod convergence;
mod durability;
mod history;
mod linearizability;
mod model;
mod register;
mod search;
mod session;
mod staleness;
mod versions;
mod witness;

pub use causal::{Causal, Conflicts, NotCausal, check_causal};
pub use convergence::{Convergence, Diverged, StateHash};
pub use durability::{Attempt, Durability, Fate, Losses, NotDurable, Scan, attempts, check_counter, check_durability};
pub use history::{ClientId, Ended, History, Level, OperationId, Recorded, What};
pub use linearizability::{Linearized, STEPS_MAX, Unproven, check_calls, check_history};
pub use model::{Call, KeyValue, Model, Place};
pub use register::{NotLinearizable, check_linearizable};
pub use session::{SessionBroken, Sessions, check_sessions};
pub use staleness::{Staleness, StalenessBroken, check_staleness};
