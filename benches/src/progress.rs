//! What runs and how long it will take: a bar on a terminal, plain lines elsewhere. Goes to stderr, results go to stdout.
//!
//! The time left is that of the estimates, corrected by how much longer the steps before took than estimated.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress over steps whose duration is known in advance, about.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
    step: usize,
    /// Estimates of what has not ended, and of what has.
    left: Duration,
    done: Duration,
    current: Duration,
    begun: Instant,
}

impl Progress {
    /// Progress over so many steps that take `total` together.
    #[must_use]
    pub fn new(steps: usize, total: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {msg}").expect("the template is well formed");
            let bar = ProgressBar::new(total.as_millis() as u64).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar, steps, step: 0, left: total, done: Duration::ZERO, current: Duration::ZERO, begun: Instant::now() }
    }

    /// The next step begins.
    pub fn begin(&mut self, what: &str, estimate: Duration) {
        self.step += 1;
        self.current = estimate;
        let line = format!("[{}/{}, about {} s left] {what}", self.step, self.steps, self.time_left().as_secs() + 1);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => eprintln!("{line}"),
        }
    }

    /// A step that need not be done: it was, before the run was cut short.
    pub fn skip(&mut self, estimate: Duration) {
        self.step += 1;
        self.left = self.left.saturating_sub(estimate);
        if let Some(bar) = &self.bar {
            bar.inc(estimate.as_millis() as u64);
        }
    }

    fn time_left(&self) -> Duration {
        const TRUSTED: Duration = Duration::from_secs(5);
        let pace = if self.done < TRUSTED { 1.0 } else { self.begun.elapsed().as_secs_f64() / self.done.as_secs_f64() };
        self.left.mul_f64(pace)
    }

    /// The step has ended, with this result.
    pub fn end(&mut self, result: &str) {
        self.left = self.left.saturating_sub(self.current);
        self.done += self.current;
        match &self.bar {
            Some(bar) => {
                bar.inc(self.current.as_millis() as u64);
                bar.println(format!("  {result}"));
            }
            None => eprintln!("  {result}"),
        }
    }

    /// Everything has ended: the terminal is free.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
