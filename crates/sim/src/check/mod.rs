//! What clients saw, and whether a single correct copy could have shown it to them.

mod history;
mod register;

pub use history::{Ended, History, OperationId, Recorded, What};
pub use register::{NotLinearizable, check_linearizable};
