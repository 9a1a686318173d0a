//! The machine and the sources that a run measured: written into every results file, for a figure without them says nothing.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// A machine, as far as it tells. What it does not tell is `unknown` or 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Logical cores that this process may use.
    pub cores: u32,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Type of the file system that the data lies on.
    pub file_system: String,
}

/// What was compiled with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The compiler.
    pub rustc: String,
    /// The workspace's crates.
    pub replikit: String,
}

impl Machine {
    /// This machine, with its data below `data`.
    #[must_use]
    pub fn describe(data: &Path) -> Self {
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .and_then(|memory| memory.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib >> 10),
            kernel: ["/proc/sys/kernel/ostype", "/proc/sys/kernel/osrelease"]
                .map(|path| std::fs::read_to_string(path).map_or_else(|_| unknown(), |text| text.trim().to_owned()))
                .join(" "),
            file_system: file_system(data).unwrap_or_else(unknown),
        }
    }
}

impl Versions {
    /// The compiler in the search path, and these crates.
    #[must_use]
    pub fn describe() -> Self {
        Self {
            rustc: output("rustc", &["--version"]).unwrap_or_else(unknown),
            replikit: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The commit of the sources, and whether they differ from it. Without git, or outside a repository, `unknown`.
#[must_use]
pub fn commit() -> (String, bool) {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(unknown);
    let changes = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    (commit, changes.is_some_and(|changes| !changes.is_empty()))
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The type of the mount that holds `path`: the one with the longest matching mount point.
fn file_system(path: &Path) -> Option<String> {
    // The folder may not exist yet: its nearest parent that does decides.
    let path = path.ancestors().find_map(|parent| parent.canonicalize().ok())?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut parts = line.split(' ').skip(1);
            Some((parts.next()?, parts.next()?))
        })
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::describe(Path::new("a/folder/that/does/not/exist"));
        assert!(machine.cores >= 1);
        assert!(!machine.kernel.trim().is_empty());
    }
}
