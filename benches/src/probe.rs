//! Probes of the machine, taken before and after a run: what the hardware gives at best, so that every other figure can be
//! read against it. A machine whose cores lie now under one cache and now under two (virtual ones do) changes all
//! multi-threaded figures by a factor of two; the cross-core probe tells.

use std::fs::File;
use std::hint;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::figure::{Better, Figure, Subject};
use crate::recorder::Latencies;
use crate::table;

/// How long each probe measures.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Per probe.
    pub per_probe: Duration,
}

/// What the probes found.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Round trip of one cache line between two cores; `None` with a single core.
    pub cross_core: Option<Duration>,
    /// fdatasync of a 4 KiB overwrite, one writer.
    pub sync_one: Latencies,
    /// The same while three writers, each with its own file, do so: what three replicas on one disk see.
    pub sync_three: Latencies,
    /// Round trip of 64 bytes over loopback TCP.
    pub loopback: Latencies,
}

/// Two cores that share a cache exchange a line in less than this; further apart it takes several times as long.
const NEAR_MAX: Duration = Duration::from_nanos(150);

impl Probes {
    /// Takes all probes, with files in `folder`. Blocks for four times the effort.
    ///
    /// # Errors
    /// Those of the file system and of sockets.
    pub fn take(folder: &Path, effort: Effort) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            cross_core: cross_core(effort.per_probe),
            sync_one: sync(folder, 1, Duration::ZERO, effort.per_probe)?,
            sync_three: sync(folder, 3, Duration::ZERO, effort.per_probe)?,
            loopback: loopback(effort.per_probe)?,
        })
    }

    /// `near`, `far`, or `one core`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        mode(self.cross_core)
    }

    /// What a replicated durable write costs at best on this machine: one fdatasync beside two others, and two round trips.
    #[must_use]
    pub fn write_floor(&self) -> Duration {
        self.sync_three.quantile(0.5) + 2 * self.loopback.quantile(0.5)
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let cross_core = self.cross_core.map_or_else(|| "-".to_owned(), table::latency);
        let pair = |latencies: &Latencies| {
            format!("{} / {}", table::latency(latencies.quantile(0.5)), table::latency(latencies.quantile(0.99)))
        };
        format!(
            "cross-core round trip {cross_core} ({}); fdatasync p50/p99: 1 writer {}, 3 writers {}; loopback TCP round trip {}",
            self.mode(),
            pair(&self.sync_one),
            pair(&self.sync_three),
            table::latency(self.loopback.quantile(0.5)),
        )
    }

    /// The figures; `when` is `before` or `after`.
    #[must_use]
    pub fn figures(&self, when: &str) -> Vec<Figure> {
        let mut subject =
            Subject { engine: "machine".to_owned(), workload: format!("probe {when}"), ..Subject::default() };
        subject.settings.insert("cores".to_owned(), self.mode().to_owned());
        let nanos =
            |metric: &str, value: Duration| subject.figure(metric, value.as_nanos() as f64, "ns", Better::Neither);
        let mut figures: Vec<Figure> =
            self.cross_core.map(|time| nanos("cross-core round trip", time)).into_iter().collect();
        for (name, latencies) in [("1 writer", &self.sync_one), ("3 writers", &self.sync_three)] {
            figures.push(nanos(&format!("fdatasync 4 KiB overwrite, {name}, p50"), latencies.quantile(0.5)));
            figures.push(nanos(&format!("fdatasync 4 KiB overwrite, {name}, p99"), latencies.quantile(0.99)));
        }
        figures.push(nanos("loopback TCP round trip 64 B, p50", self.loopback.quantile(0.5)));
        figures.push(nanos("durable replicated write at best", self.write_floor()));
        figures
    }
}

/// What a round trip between two cores says about them: `near`, `far`, or `one core`.
#[must_use]
pub fn mode(cross_core: Option<Duration>) -> &'static str {
    match cross_core {
        None => "one core",
        Some(round_trip) if round_trip < NEAR_MAX => "near",
        Some(_) => "far",
    }
}

/// How far the cores are from each other, right before and after a set of cases: see [`Probes::cross_core`]. Blocks for this
/// long.
#[must_use]
pub fn distance(effort: Duration) -> Option<Duration> {
    cross_core(effort)
}

/// The figures of such a probe, `when` being `before` or `after` a set.
#[must_use]
pub fn distance_figures(cross_core: Option<Duration>, when: &str) -> Vec<Figure> {
    let mut subject = Subject { engine: "machine".to_owned(), workload: format!("probe {when}"), ..Subject::default() };
    subject.settings.insert("cores".to_owned(), mode(cross_core).to_owned());
    let nanos = cross_core.map_or(0.0, |time| time.as_nanos() as f64);
    vec![subject.figure("cross-core round trip", nanos, "ns", Better::Neither)]
}

/// Two threads, each pinned to a core, hand one number to and fro.
fn cross_core(effort: Duration) -> Option<Duration> {
    let mine = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core));
    let (first, second) = (cores.next()?, cores.next()?);
    let ball = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            pin(second)?;
            let mut next = 1;
            while !over.load(Ordering::Relaxed) {
                if ball.load(Ordering::Acquire) == next {
                    ball.store(next + 1, Ordering::Release);
                    next += 2;
                }
                hint::spin_loop();
            }
            Some(())
        });
        let asking = scope.spawn(|| {
            let measured = pin(first).and_then(|()| serve_ball(&ball, effort));
            over.store(true, Ordering::Relaxed);
            measured
        });
        let measured = asking.join().ok()??;
        answering.join().ok()??;
        Some(measured)
    })
}

fn pin(core: usize) -> Option<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).ok()
}

/// The time per round trip; `None` when the other side never answers, because it could not be pinned.
fn serve_ball(ball: &AtomicU64, effort: Duration) -> Option<Duration> {
    const ROUNDS: u32 = 1_000;
    let begun = Instant::now();
    // The median of many short series: one that the scheduler interrupted does not count.
    let mut series = Vec::new();
    let mut next = 1;
    while begun.elapsed() < effort {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            ball.store(next, Ordering::Release);
            let mut spins = 0_u64;
            while ball.load(Ordering::Acquire) != next + 1 {
                hint::spin_loop();
                spins += 1;
                if spins.is_multiple_of(1 << 20) && begun.elapsed() > effort + Duration::from_secs(1) {
                    return None;
                }
            }
            next += 2;
        }
        series.push(start.elapsed() / ROUNDS);
    }
    series.sort_unstable();
    series.get(series.len() / 2).copied()
}

const BLOCK: [u8; 4 << 10] = [7; 4 << 10];
const BLOCKS: u64 = 256;

/// fdatasync where three writers rest after each one: a disk that is asked seldom may answer later than one that is kept busy.
/// Blocks for this long.
///
/// # Errors
/// Those of the file system.
pub fn rested_sync(folder: &Path, effort: Duration) -> io::Result<Latencies> {
    const REST: Duration = Duration::from_millis(5);
    sync(folder, 3, REST, effort)
}

fn sync(folder: &Path, writers: usize, rest: Duration, effort: Duration) -> io::Result<Latencies> {
    let results: Vec<io::Result<Latencies>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let path = folder.join(format!("probe-{writer}"));
                scope.spawn(move || {
                    let latencies = overwrite(&path, rest, effort);
                    // A file that could not be created cannot be removed either; its error is the one reported.
                    let _ = std::fs::remove_file(&path);
                    latencies
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a writer reports its errors")).collect()
    });
    let mut all = Latencies::new();
    for result in results {
        all.merge(&result?);
    }
    Ok(all)
}

fn overwrite(path: &Path, rest: Duration, effort: Duration) -> io::Result<Latencies> {
    let file = File::create(path)?;
    for block in 0..BLOCKS {
        file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
    }
    file.sync_all()?;
    let mut latencies = Latencies::new();
    let begun = Instant::now();
    for block in (0..BLOCKS).cycle() {
        if begun.elapsed() >= effort {
            break;
        }
        file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
        let start = Instant::now();
        file.sync_data()?;
        latencies.record(start.elapsed());
        thread::sleep(rest);
    }
    Ok(latencies)
}

fn loopback(effort: Duration) -> io::Result<Latencies> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut buffer = [0; 64];
            // The other side closes when it has measured enough.
            while stream.read_exact(&mut buffer).is_ok() {
                stream.write_all(&buffer)?;
            }
            Ok(())
        });
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut latencies = Latencies::new();
        let mut buffer = [1; 64];
        let begun = Instant::now();
        while begun.elapsed() < effort {
            let start = Instant::now();
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            latencies.record(start.elapsed());
        }
        drop(stream);
        echo.join().expect("the echo reports its errors")?;
        Ok(latencies)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_find_plausible_times() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let probes =
            Probes::take(folder.path(), Effort { per_probe: Duration::from_millis(20) }).expect("the probes run");
        assert!(probes.sync_one.count() > 0 && probes.sync_three.count() > 0 && probes.loopback.count() > 0);
        assert!(rested_sync(folder.path(), Duration::from_millis(20)).expect("the probe runs").count() > 0);
        assert!(probes.write_floor() > 2 * probes.loopback.quantile(0.5));
        assert!(probes.line().contains(probes.mode()));
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "files are removed");
    }
}
