//! The tasks of the bench program, one file each.

pub(crate) mod alone;
pub(crate) mod compare;
pub(crate) mod list;
pub(crate) mod report;
pub(crate) mod run;
