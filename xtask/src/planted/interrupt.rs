//! Ctrl-C: a hunt ends between two looks at it, its programs are ended, and the scratch copy is left without a bug.
//!
//! Invariant: once it is seen, nothing that a program says of its run counts, for the program may have been ended too.

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// What is said in the place of a result.
pub(crate) const INTERRUPTED: &str = "interrupted";

/// From now on Ctrl-C is noted; a second one ends the program at once.
pub(crate) fn listen() {
    std::thread::spawn(|| {
        // Without it Ctrl-C ends the program as ever, and the next run cleans up.
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
}

/// # Errors
/// [`INTERRUPTED`], since Ctrl-C.
pub(crate) fn check() -> Result<(), String> {
    if STOP.load(Ordering::Relaxed) { Err(INTERRUPTED.to_owned()) } else { Ok(()) }
}
