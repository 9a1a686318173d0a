//! Planted faults: each takes one ordering, fence, re-check or wake-up away, and each must make the models that own it
//! fail. A model that no weakening can break proves nothing.
//!
//! A weakening is chosen at run time by the environment variable `REPLIKIT_LOOM_WEAKEN`, so that one build serves all of
//! them; outside `cfg(replikit_loom)` [`planted`] is a constant `false` and the branch on it is compiled away.

use crate::primitives::Ordering;

/// One planted fault. The name in the environment is the variant's in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weakening {
    /// The watermark's position is stored with `Relaxed` instead of `Release`.
    WatermarkPublishRelaxed,
    /// A waiter reads the watermark's position with `Relaxed` instead of `Acquire`.
    WatermarkWaitRelaxed,
    /// The publisher looks for waiters without a fence after its store.
    WatermarkPublishWithoutFence,
    /// The publisher looks for waiters before it stores the position.
    WatermarkNotifyBeforeStore,
    /// A waiter re-checks the position without a fence after it registered.
    WatermarkRegisterWithoutFence,
    /// A waiter does not re-check the position after it registered.
    WatermarkRegisterWithoutRecheck,
    /// A future polled by another task keeps the first task's waker.
    WatermarkStaleWaker,
    /// A cancelled waiter stays registered.
    WatermarkCancelForgotten,
    /// The poison bit is set before, not with, its cause.
    PoisonBitBeforeCause,
    /// Poisoning wakes nobody: okaywal 0.3.1 leaves its waiters blocked like this after a failed fsync.
    PoisonWithoutWake,
    /// A waiter does not look for the poison bit after it registered.
    PoisonRegisterWithoutRecheck,
    /// The consumer is woken before the item is in the buffer.
    QueueWakeBeforePush,
    /// The consumer lets go of the lock between finding the buffer empty and registering as asleep.
    QueueSleepWithoutRecheck,
    /// Taking a full buffer does not tell the producers that wait for space.
    QueueTakeWithoutSpaceNotice,
    /// Closing does not wake the sleeping consumer.
    QueueCloseWithoutWake,
    /// The consumer that goes away does not tell the producers that wait for space.
    QueueAbandonWithoutSpaceNotice,
    /// A mailbox polled by another task keeps the first task's waker.
    MailboxStaleWaker,
    /// A snapshot's version is raised before the snapshot is in place.
    SwapVersionBeforeValue,
    /// A snapshot's version is stored with `Relaxed` instead of `Release`.
    SwapVersionRelaxed,
    /// A cached reader takes the snapshot first and looks up its version later.
    SwapVersionReadApart,
}

/// Whether this run is to be broken by `weakening`.
#[cfg(not(replikit_loom))]
#[inline(always)]
pub(crate) const fn planted(_weakening: Weakening) -> bool {
    false
}

#[cfg(replikit_loom)]
pub(crate) use chosen::planted;

/// `strong`, or `Relaxed` where `weakening` is planted.
#[inline(always)]
pub(crate) fn ordering(strong: Ordering, weakening: Weakening) -> Ordering {
    if planted(weakening) { Ordering::Relaxed } else { strong }
}

#[cfg(replikit_loom)]
mod chosen {
    use super::Weakening;
    use std::sync::OnceLock;

    /// Whether this run is to be broken by `weakening`.
    pub(crate) fn planted(weakening: Weakening) -> bool {
        static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("REPLIKIT_LOOM_WEAKEN").ok());
        chosen.as_deref().is_some_and(|chosen| chosen == weakening.name())
    }

    impl Weakening {
        /// The name in the environment.
        pub(crate) fn name(self) -> &'static str {
            match self {
                Self::WatermarkPublishRelaxed => "watermark-publish-relaxed",
                Self::WatermarkWaitRelaxed => "watermark-wait-relaxed",
                Self::WatermarkPublishWithoutFence => "watermark-publish-without-fence",
                Self::WatermarkNotifyBeforeStore => "watermark-notify-before-store",
                Self::WatermarkRegisterWithoutFence => "watermark-register-without-fence",
                Self::WatermarkRegisterWithoutRecheck => "watermark-register-without-recheck",
                Self::WatermarkStaleWaker => "watermark-stale-waker",
                Self::WatermarkCancelForgotten => "watermark-cancel-forgotten",
                Self::PoisonBitBeforeCause => "poison-bit-before-cause",
                Self::PoisonWithoutWake => "poison-without-wake",
                Self::PoisonRegisterWithoutRecheck => "poison-register-without-recheck",
                Self::QueueWakeBeforePush => "queue-wake-before-push",
                Self::QueueSleepWithoutRecheck => "queue-sleep-without-recheck",
                Self::QueueTakeWithoutSpaceNotice => "queue-take-without-space-notice",
                Self::QueueCloseWithoutWake => "queue-close-without-wake",
                Self::QueueAbandonWithoutSpaceNotice => "queue-abandon-without-space-notice",
                Self::MailboxStaleWaker => "mailbox-stale-waker",
                Self::SwapVersionBeforeValue => "swap-version-before-value",
                Self::SwapVersionRelaxed => "swap-version-relaxed",
                Self::SwapVersionReadApart => "swap-version-read-apart",
            }
        }
    }
}

/// Which models must notice which weakening. `cargo xtask loom --weaken` reads it from the test's output.
#[cfg(all(test, replikit_loom))]
mod catalogue {
    use super::Weakening::{self, *};

    const CATALOGUE: &[(Weakening, &[&str])] = &[
        (WatermarkPublishRelaxed, &["watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before"]),
        (WatermarkPublishRelaxed, &["group_queue::model::no_write_is_acked_before_its_sync"]),
        (WatermarkWaitRelaxed, &["watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before"]),
        (
            WatermarkPublishWithoutFence,
            &[
                "watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before",
                "watermark::model::publish_reaches_a_task_that_registers_meanwhile",
            ],
        ),
        (
            WatermarkNotifyBeforeStore,
            &[
                "watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before",
                "watermark::model::publish_reaches_a_task_that_registers_meanwhile",
            ],
        ),
        (
            WatermarkRegisterWithoutFence,
            &[
                "watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before",
                "watermark::model::publish_reaches_a_task_that_registers_meanwhile",
            ],
        ),
        (
            WatermarkRegisterWithoutRecheck,
            &[
                "watermark::model::publish_reaches_blocked_waiters_with_all_that_came_before",
                "watermark::model::cancelled_waiter_leaves_nothing_behind_and_takes_no_wake_up_away",
            ],
        ),
        (WatermarkStaleWaker, &["watermark::model::task_that_polled_last_is_the_one_woken"]),
        (WatermarkNotifyBeforeStore, &["watermark::model::task_that_polled_last_is_the_one_woken"]),
        (
            WatermarkCancelForgotten,
            &["watermark::model::cancelled_waiter_leaves_nothing_behind_and_takes_no_wake_up_away"],
        ),
        (
            PoisonWithoutWake,
            &[
                "watermark::model::poison_ends_every_wait_but_no_ack_already_given",
                "poison::model::first_error_wins_and_reaches_every_waiter",
                "poison::model::waiting_task_is_woken_by_the_error",
                "group_queue::model::failed_sync_reaches_all_waiters",
            ],
        ),
        (
            PoisonRegisterWithoutRecheck,
            &[
                "watermark::model::poison_ends_every_wait_but_no_ack_already_given",
                "poison::model::first_error_wins_and_reaches_every_waiter",
                "poison::model::waiting_task_is_woken_by_the_error",
                "group_queue::model::failed_sync_reaches_all_waiters",
            ],
        ),
        (PoisonBitBeforeCause, &["poison::model::first_error_wins_and_reaches_every_waiter"]),
        (
            QueueWakeBeforePush,
            &[
                "group_queue::model::no_write_is_acked_before_its_sync",
                "mailbox::model::loop_drains_what_two_producers_pushed",
                "mailbox::model::task_that_polled_last_is_the_one_woken",
            ],
        ),
        (
            QueueSleepWithoutRecheck,
            &[
                "group_queue::model::no_write_is_acked_before_its_sync",
                "group_queue::model::close_drains_then_ends",
                "mailbox::model::full_mailbox_returns_the_item_and_loses_none",
            ],
        ),
        (QueueTakeWithoutSpaceNotice, &["group_queue::model::producers_blocked_at_the_limit_continue_after_a_take"]),
        (QueueWakeBeforePush, &["group_queue::model::producers_blocked_at_the_limit_continue_after_a_take"]),
        (
            QueueCloseWithoutWake,
            &[
                "group_queue::model::close_drains_then_ends",
                "mailbox::model::full_mailbox_returns_the_item_and_loses_none",
            ],
        ),
        (
            QueueAbandonWithoutSpaceNotice,
            &["group_queue::model::producers_blocked_at_the_limit_learn_that_the_consumer_is_gone"],
        ),
        (MailboxStaleWaker, &["mailbox::model::task_that_polled_last_is_the_one_woken"]),
        (SwapVersionBeforeValue, &["swap::model::cached_reader_never_misses_a_store"]),
        (
            SwapVersionReadApart,
            &[
                "swap::model::cached_reader_never_misses_a_store",
                "swap::model::readers_agree_on_the_order_of_two_writers",
            ],
        ),
        (SwapVersionBeforeValue, &["swap::model::readers_agree_on_the_order_of_two_writers"]),
        (SwapVersionBeforeValue, &["swap::model::load_after_store_never_shows_the_old_value"]),
        (SwapVersionRelaxed, &["swap::model::load_after_store_never_shows_the_old_value"]),
    ];

    #[test]
    fn catalogue_is_printed_for_the_runner() {
        for (weakening, models) in CATALOGUE {
            for model in *models {
                println!("loom-weakening {} {model}", weakening.name());
            }
        }
    }
}
