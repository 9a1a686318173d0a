//! The publisher's last word: a guard that poisons the watermark when it goes.
//!
//! Invariant: once the guard is gone without [`PoisonOnDrop::disarm`], every wait has ended or will.

use super::Watermark;
use std::sync::Arc;

/// Poisons its watermark when dropped, unless disarmed. Made by [`Watermark::poison_on_drop`].
#[must_use = "the watermark is poisoned when the guard is dropped"]
#[derive(Debug)]
pub struct PoisonOnDrop<E> {
    watermark: Arc<Watermark<E>>,
    /// `None` once disarmed.
    cause: Option<Arc<E>>,
}

impl<E> PoisonOnDrop<E> {
    pub(super) fn new(watermark: Arc<Watermark<E>>, cause: Arc<E>) -> Self {
        Self { watermark, cause: Some(cause) }
    }

    /// The publisher has ended as it should: the watermark stays as it is.
    pub fn disarm(mut self) {
        self.cause = None;
    }
}

impl<E> Drop for PoisonOnDrop<E> {
    fn drop(&mut self) {
        if let Some(cause) = self.cause.take() {
            self.watermark.poison(cause);
        }
    }
}
