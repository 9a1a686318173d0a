//! What processes use, as the kernel counts it: read from `/proc`, so that every engine is measured in the same way.

use std::fs;
use std::time::Duration;

/// What a set of processes has used since each of them started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on processors, in user mode and in the kernel, in steps of 10 ms.
    pub cpu: Duration,
    /// Bytes that the processes made the kernel write to disks, file systems' own included.
    pub disk_bytes: u64,
    /// Main memory that they hold now, in bytes.
    pub memory_bytes: u64,
}

impl Usage {
    /// The usage of these processes together. What the kernel does not tell counts as nothing.
    #[must_use]
    pub fn of(processes: &[u32]) -> Self {
        let mut all = Self::default();
        for process in processes {
            let one = one(*process);
            all.cpu += one.cpu;
            all.disk_bytes += one.disk_bytes;
            all.memory_bytes += one.memory_bytes;
        }
        all
    }
}

fn one(process: u32) -> Usage {
    let read = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Usage {
        cpu: cpu(&read("stat")).unwrap_or_default(),
        disk_bytes: field(&read("io"), "write_bytes").unwrap_or(0),
        memory_bytes: field(&read("status"), "VmRSS").unwrap_or(0) << 10,
    }
}

/// The fields behind the name, which may itself hold spaces and brackets: user time is the 12th of them, system time the 13th.
fn cpu(stat: &str) -> Option<Duration> {
    let rest = stat.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(Duration::from_nanos((user + system) * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_of_this_process_is_counted() {
        let own = [std::process::id()];
        let before = Usage::of(&own);
        let begun = Instant::now();
        while Usage::of(&own).cpu < before.cpu + Duration::from_millis(20) {
            assert!(begun.elapsed() < Duration::from_secs(60), "a loop uses time");
        }
        assert!(before.memory_bytes > 1 << 20, "{before:?}");
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 100 50 0 0";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(stat), Some(Duration::from_nanos(150 * 1_000_000_000 / ticks)));
        assert_eq!(cpu("no process"), None);
    }

    #[test]
    fn a_process_that_is_gone_has_used_nothing() {
        assert_eq!(Usage::of(&[u32::MAX - 1]), Usage::default());
    }
}
