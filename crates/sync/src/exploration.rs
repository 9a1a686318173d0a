//! Runs a loom model, counts its executions, and prints the line that `cargo xtask loom` reads.

use crate::primitives::Parker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// How much of a model's space is explored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// Every interleaving that loom tells apart.
    Exhaustive,
    /// Every interleaving with at most this many preemptions (`LOOM_MAX_PREEMPTIONS` overrides it).
    Preemptions(usize),
}

/// Explores `model` and prints how many executions that took.
pub(crate) fn explore(bound: Bound, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = builder.max_branches.max(10_000);
    if let Bound::Preemptions(preemptions) = bound {
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    }
    let explored = builder.preemption_bound.map_or("exhaustive".to_owned(), |n| format!("preemptions<={n}"));
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("loom-explored {} {explored}", executions.load(Ordering::Relaxed));
}

/// Drives one future to its end on the calling thread of a model.
pub(crate) fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
    let parker = Parker::new();
    loop {
        match poll_once(&mut future, &parker) {
            Poll::Ready(output) => return output,
            Poll::Pending => parker.park(),
        }
    }
}

/// One poll whose wake-up goes to `parker`.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F, parker: &Parker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(&parker.waker()))
}
