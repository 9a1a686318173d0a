//! The structures with real threads: what loom's few threads and model of memory do not show.
//!
//! No sleeps and no clock: each test ends because the structures end it. A lost wake-up shows as a test that hangs.

// Under loom's flag the types work only inside a model.
#![cfg(not(replikit_loom))]

mod group_queue;
mod mailbox;
mod poison;
mod swap;
mod task;
mod watermark;
