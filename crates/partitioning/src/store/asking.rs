//! Questions to many groups.

use std::future::Future;

use tokio::task::JoinSet;

/// Asks each of them, so many at a time; the answers, in no order. A node may have ten thousand groups, and each may have to wake.
pub(super) async fn ask_some_at_once<I, T, F>(all: Vec<I>, at_once: usize, ask: impl Fn(I) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut answers = Vec::with_capacity(all.len());
    let mut left = all.into_iter().peekable();
    while left.peek().is_some() {
        let asked: JoinSet<T> = left.by_ref().take(at_once).map(&ask).collect();
        answers.extend(asked.join_all().await);
    }
    answers
}
