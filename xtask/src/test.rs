//! `cargo xtask test`: everything that can fail, in the order in which it fails fastest.

use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::phase::Phases;
use crate::{bench, cargo, planted, sim};

/// What [`phases`] leaves out, and how to run it.
pub(crate) const SKIPPED: [&str; 6] = [
    "long simulations (cargo xtask sim --minutes 10)",
    "examples that measure something (each says in its header how to run it)",
    "the planted faults of the loom models (cargo xtask loom --weaken)",
    "all planted bugs (cargo xtask planted)",
    "the default bench suite and its fault runs (cargo xtask bench)",
    "the criterion benches (cargo xtask bench micro)",
];

/// An example is a program that ends by itself; one that takes longer than this hangs.
const EXAMPLE_SECONDS_MAX: u64 = 60;

/// Runs the task.
pub(crate) fn run() -> ExitCode {
    let mut all = Phases::default();
    phases(&mut all);
    all.report(&SKIPPED)
}

/// Adds the test phases to a task.
pub(crate) fn phases(all: &mut Phases) {
    all.run("unit, integration and doc tests", || cargo::run(cargo::cargo(["test", "--workspace"])));
    all.run("examples", examples);
    all.run("loom models", || cargo::run(cargo::xtask("loom")?));
    all.run("simulated seeds", sim::seeds);
    all.run("equal traces in both builds", sim::traces);
    all.run("planted bugs, a sample", planted::sample);
    all.run("bench smoke", bench::smoke);
}

/// Runs every example of the workspace's crates; their sources are asked from the file system, there is no second list. One
/// whose header says to run it with `--release` measures something: in this build it would measure nothing, so it is only
/// built.
fn examples() -> Result<(), String> {
    for path in sources()? {
        let source = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut header = source.lines().take_while(|line| line.starts_with("//!"));
        let shown = path.strip_prefix(cargo::root()).unwrap_or(&path);
        if header.any(|line| line.contains("--release")) {
            println!("   built only, for it measures: {}", shown.display());
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let program = cargo::target().join("debug").join("examples").join(&name);
        // `cargo test` has built it.
        println!("   example {name}");
        let mut child = std::process::Command::new(&program)
            .current_dir(cargo::root())
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("example {name} does not start: {error}"))?;
        wait(&mut child, &name)?;
    }
    Ok(())
}

fn sources() -> Result<Vec<PathBuf>, String> {
    let crates = cargo::root().join("crates");
    let mut found = Vec::new();
    for folder in std::fs::read_dir(&crates).map_err(|error| format!("{}: {error}", crates.display()))? {
        let examples = folder.map_err(|error| error.to_string())?.path().join("examples");
        // A crate without examples has no such folder.
        let Ok(files) = std::fs::read_dir(examples) else { continue };
        found.extend(
            files.filter_map(|file| Some(file.ok()?.path())).filter(|path| path.extension().is_some_and(|e| e == "rs")),
        );
    }
    found.sort();
    Ok(found)
}

fn wait(child: &mut Child, name: &str) -> Result<(), String> {
    let start = Instant::now();
    loop {
        match child.try_wait().map_err(|error| format!("example {name}: {error}"))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("example {name} failed ({status})")),
            None if start.elapsed().as_secs() >= EXAMPLE_SECONDS_MAX => {
                // The error that matters is the time limit; the child may also just have ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("example {name} did not end within {EXAMPLE_SECONDS_MAX} s"));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
