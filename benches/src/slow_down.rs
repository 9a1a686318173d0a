//! A slow-down that is planted on purpose, to see whether a comparison finds it.
//!
//! The processes of an engine are stopped and let go on, in turn and several times a second, so that all that they do has that
//! much less time. Work added to the clients would not do: while one of them works, the requests of the others are under way,
//! and the more there are the less of it shows. What does not stop is what the processes have begun elsewhere: a sync of the
//! disk goes on, and so does the load generator; where those take most of the time, less of the slow-down shows.
//!
//! Invariants: everything that was measured meanwhile says so; no process stands still when it is over.

use std::fmt;
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The setting, of records and of engines, that says so.
pub const PLANTED: &str = "planted slow-down";
/// Between two stops: so long that a stop of a tenth of it outlasts a sync that is under way, and so short that there are
/// several in a window.
const RUNS: Duration = Duration::from_millis(100);
/// The most that can be asked for, in percent: below the time after which nodes take each other for gone.
const PERCENT_MAX: f64 = 100.0;

/// How much longer everything takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowDown {
    percent: f64,
}

impl FromStr for SlowDown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
        if percent > 0.0 && percent <= PERCENT_MAX {
            Ok(Self { percent })
        } else {
            Err(format!("not above 0 and up to {PERCENT_MAX}"))
        }
    }
}

impl fmt::Display for SlowDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = self.share() * 100.0;
        write!(f, "{} %, on purpose: its processes stand still for {share:.1} % of the time", self.percent)
    }
}

impl SlowDown {
    /// By how much, as it is given on a command line.
    #[must_use]
    pub const fn percent(self) -> f64 {
        self.percent
    }

    /// For which share of the time processes stand still, 0 to 1.
    fn share(self) -> f64 {
        self.percent / (100.0 + self.percent)
    }

    /// How long they have to stand still now, after they did so for `stood` of `elapsed`: who wakes up late makes up for it.
    fn owed(self, elapsed: Duration, stood: Duration) -> Duration {
        let behind = elapsed.as_secs_f64() * self.share() - stood.as_secs_f64();
        Duration::from_secs_f64(behind.max(0.0) / (1.0 - self.share()))
    }

    /// Slows these processes down until the guard goes.
    #[must_use]
    pub fn plant(self, processes: &[u32]) -> Planted {
        let processes: Vec<Pid> = processes.iter().filter_map(|process| Pid::from_raw(*process as i32)).collect();
        let (over, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (begun, mut stood) = (Instant::now(), Duration::ZERO);
            while ended.recv_timeout(RUNS) == Err(RecvTimeoutError::Timeout) {
                let stopped = Instant::now();
                send(&processes, Signal::STOP);
                std::thread::sleep(self.owed(begun.elapsed(), stood));
                send(&processes, Signal::CONT);
                stood += stopped.elapsed();
            }
        });
        Planted { over: Some(over), thread: Some(thread) }
    }
}

/// One that has ended by itself is told by the engine's own check.
fn send(processes: &[Pid], signal: Signal) {
    for process in processes {
        let _ = kill_process(*process, signal);
    }
}

/// A slow-down under way; dropping it ends it.
#[derive(Debug)]
pub struct Planted {
    over: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Planted {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread that stops processes does not panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::child::Process;

    #[test]
    fn processes_stand_still_for_the_share_that_was_asked_for() {
        let slow: SlowDown = "25".parse().expect("a percentage");
        let (mut elapsed, mut stood, mut late) = (Duration::ZERO, Duration::ZERO, fastrand::Rng::with_seed(1));
        for _ in 0..1_000 {
            elapsed += RUNS + Duration::from_micros(late.u64(..5_000));
            let owed = slow.owed(elapsed, stood) + Duration::from_micros(late.u64(..500));
            (elapsed, stood) = (elapsed + owed, stood + owed);
        }
        let share = stood.as_secs_f64() / elapsed.as_secs_f64();
        assert!((share - 0.2).abs() < 0.001, "whatever is late, a fifth of the time is lost: {share}");
    }

    #[test]
    fn nobody_stands_still_when_it_is_over() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output");
        let process = Process::start("sleep", Command::new("sleep").arg("600"), &output).expect("sleep starts");
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
            stat.rsplit_once(") ").expect("the name stands in brackets").1.starts_with('T')
        };
        let slow: SlowDown = "100".parse().expect("a percentage");
        let planted = slow.plant(&[process.id()]);
        while !state() {
            std::thread::yield_now();
        }
        drop(planted);
        assert!(!state());
    }

    #[test]
    fn what_means_nothing_is_refused_and_what_is_planted_is_told() {
        for text in ["0", "-3", "101", "ten", "NaN"] {
            assert!(text.parse::<SlowDown>().is_err(), "{text}");
        }
        let told = "10".parse::<SlowDown>().expect("a percentage").to_string();
        assert_eq!(told, "10 %, on purpose: its processes stand still for 9.1 % of the time");
    }
}
