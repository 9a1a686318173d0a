//! What runs and how long it will take: a bar on a terminal, plain lines elsewhere. Goes to stderr, results go to stdout.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress over steps whose duration is known in advance, about.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
    step: usize,
    left: Duration,
    current: Duration,
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
        Self { bar, steps, step: 0, left: total, current: Duration::ZERO }
    }

    /// The next step begins.
    pub fn begin(&mut self, what: &str, estimate: Duration) {
        self.step += 1;
        self.current = estimate;
        let line = format!("[{}/{}, about {} s left] {what}", self.step, self.steps, self.left.as_secs() + 1);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => eprintln!("{line}"),
        }
    }

    /// The step has ended, with this result.
    pub fn end(&mut self, result: &str) {
        self.left = self.left.saturating_sub(self.current);
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
