//! The few places of replikit where threads meet, each small enough for loom to explore.
//!
//! | structure | what it is | what always holds |
//! |---|---|---|
//! | [`Watermark`] | a position that one thread raises and many wait for | never falls, never moves once poisoned; who sees a position sees what was done before it; every wait ends when its position is published or the poison comes |
//! | [`group_queue()`] | the group-commit queue: producers fill one buffer while the consumer syncs the other | sequences from 1 without gaps, first in first out, each item taken once; close drains, then ends; a consumer that goes away leaves no producer blocked |
//! | [`Poison`] | broadcast of the first error | the first wins; every waiter, present and future, gets it |
//! | [`Swap`] | the current snapshot of something that many read | after a store returned, no load that begins later shows the old one; a version and its snapshot belong together |
//! | [`mailbox()`] | what threads and tasks leave for a loop | as the queue; the loop is woken if and only if it sleeps |
//!
//! # What it does not do
//!
//! No I/O, no runtime, no timeouts, no `unsafe`. A dead publisher is not noticed, unless it holds the guard from
//! [`Watermark::poison_on_drop`]. [`Swap`] does not tell when the last reader let go of an old snapshot. Limits count items, not bytes.
//!
//! # A group commit
//!
//! ```
//! use replikit_sync::{Watermark, group_queue};
//! use std::sync::Arc;
//!
//! let (producer, mut consumer) = group_queue::<String>(1024);
//! let durable = Arc::new(Watermark::<std::io::Error>::new(0));
//!
//! let log = std::thread::spawn({
//!     let durable = Arc::clone(&durable);
//!     move || {
//!         let guard = durable.poison_on_drop(std::io::Error::other("the log thread is gone")); // if it panics
//!         let mut group = Vec::new();
//!         while let Some(sequences) = consumer.take(&mut group) {
//!             group.clear(); // write and sync the whole group here; on an error: `durable.poison(error)` and return
//!             durable.publish(sequences.end - 1);
//!         }
//!         guard.disarm();
//!     }
//! });
//!
//! let sequence = producer.push("a record".to_owned())?;
//! durable.wait(sequence)?; // or `durable.reached(sequence).await`
//! assert_eq!(durable.load(), 1);
//!
//! drop(producer); // the last one: the consumer drains, then ends
//! log.join().expect("the log thread does not panic");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is checked
//!
//! Under `--cfg replikit_loom` (the crate's own flag: `--cfg loom` would change other crates too) the atomics and locks
//! are loom's, and the models beside the structures explore their interleavings, with at most three threads each.
//! `cargo xtask loom` runs them and prints the executions explored; `cargo xtask loom --weaken` plants faults - a weaker
//! ordering, a missing fence, re-check or wake-up - and demands that the models notice. Loom does not explore load
//! buffering, and the sleep of a blocked thread is modelled by a lock, not by the operating system's futex.

#![forbid(unsafe_code)]

mod double_buffer;
#[cfg(all(test, replikit_loom))]
mod exploration;
mod group_queue;
mod mailbox;
mod poison;
mod primitives;
mod swap;
mod waiters;
mod watermark;
mod weakening;

pub use double_buffer::{Closed, PushError, Taken};
pub use group_queue::{GroupConsumer, GroupProducer, group_queue};
pub use mailbox::{Mailbox, MailboxSender, mailbox};
pub use poison::{Poison, Poisoned, UntilPoisoned};
pub use swap::{Cached, Swap};
pub use watermark::{PoisonOnDrop, Reached, Watermark};
