//! What is made of a results file: a table for the terminal, a block of Markdown, one page of HTML that needs nothing else, and
//! plots as files. Invariant: no number is computed from anything but the file, and each stands beside what it promises.

pub mod charts;
pub mod findings;
pub mod html;
pub mod markdown;
pub mod plot;
pub mod prose;
pub mod summary;
pub mod terminal;

pub use self::summary::{Row, Spread, Summary};
