//! `cargo xtask loom [MODEL]` and `cargo xtask loom --weaken [MODEL]`.
//!
//! One build of replikit-sync's unit tests under `--cfg replikit_loom`, in a target directory of its own, then one
//! process per model: it prints how many executions it explored. With `--weaken`, one process per planted fault and
//! model that owns it, and each must fail. Models and faults are asked from the test binary: there is no second list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// `debug_assertions` turns loom's own checks on.
const RUSTFLAGS: &str = "--cfg replikit_loom -C debug_assertions";
/// Read by replikit-sync under `cfg(replikit_loom)`: the fault to plant.
const WEAKEN_VARIABLE: &str = "REPLIKIT_LOOM_WEAKEN";
/// The test that prints which fault which model must notice.
const CATALOGUE: &str = "weakening::catalogue::catalogue_is_printed_for_the_runner";

/// Runs the models whose name contains `model` (all of them without it), or the faults planted in them.
pub(crate) fn run(model: Option<&str>, weaken: bool) -> ExitCode {
    match run_selected(model, weaken) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("xtask loom: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run_selected(model: Option<&str>, weaken: bool) -> Result<bool, String> {
    let binary = build()?;
    let models = models(&binary)?;
    let faults = faults(&binary)?;
    check_catalogue(&models, &faults)?;
    let selected: Vec<String> =
        models.iter().filter(|name| model.is_none_or(|part| name.contains(part))).cloned().collect();
    if selected.is_empty() {
        let known = models.join("\n  ");
        return Err(format!("no model is called like {:?}; there are\n  {known}", model.unwrap_or_default()));
    }
    if weaken {
        let faults = faults.into_iter().filter(|fault| selected.contains(&fault.model)).collect();
        Ok(plant(&binary, faults))
    } else {
        Ok(explore(&binary, selected))
    }
}

/// One planted fault and a model that must notice it.
struct Fault {
    weakening: String,
    model: String,
}

/// How one process of the test binary ended.
struct Finished {
    passed: bool,
    output: String,
    took: Duration,
}

/// Explores the models as they are; true if all hold.
fn explore(binary: &Path, models: Vec<String>) -> bool {
    println!("{:<84} {:>11}  {:<14} {:>7}", "model", "executions", "explored", "time");
    let start = Instant::now();
    let results = in_parallel(models, |model| {
        let finished = run_model(binary, model, None);
        match (finished.passed, explored(&finished.output)) {
            (true, Some((executions, bound))) => {
                println!("{model:<84} {executions:>11}  {bound:<14} {:>6.1}s", finished.took.as_secs_f64());
                Some(executions)
            }
            _ => {
                println!("{model:<84} FAILED\n{}", finished.output);
                None
            }
        }
    });
    let failed = results.iter().filter(|result| result.is_none()).count();
    let executions: u64 = results.iter().flatten().sum();
    println!(
        "{} models, {executions} executions, {failed} failed, {:.1}s",
        results.len(),
        start.elapsed().as_secs_f64()
    );
    failed == 0
}

/// Plants the faults; true if every model noticed its own.
fn plant(binary: &Path, faults: Vec<Fault>) -> bool {
    println!("{:<36} {:<84} {:<11} {:>6}", "weakening", "model", "", "time");
    let start = Instant::now();
    let caught = in_parallel(faults, |Fault { weakening, model }| {
        let finished = run_model(binary, model, Some(weakening));
        // A model that fails panics with its reason; a process that does not even start is no proof.
        let reason = first_panic(&finished.output).filter(|_| !finished.passed);
        let verdict = if reason.is_some() { "caught" } else { "NOT CAUGHT" };
        println!("{weakening:<36} {model:<84} {verdict:<11} {:>5.1}s", finished.took.as_secs_f64());
        if let Some(reason) = reason {
            println!("    {reason}");
        }
        reason.is_some()
    });
    let missed = caught.iter().filter(|caught| !**caught).count();
    println!(
        "{} weakenings planted, {} caught, {missed} not caught, {:.1}s",
        caught.len(),
        caught.len() - missed,
        start.elapsed().as_secs_f64()
    );
    missed == 0
}

fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask lies at the root of the file system")?;
    let output = Command::new(cargo)
        .args(["test", "-p", "replikit-sync", "--lib", "--profile", "swift", "--no-run", "--message-format=json"])
        .current_dir(root)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_DIR", root.join("target").join("loom"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err("the models do not build".to_owned());
    }
    // One JSON object per line; only the test binary's names an executable. Its path is the one string needed here.
    let messages = String::from_utf8_lossy(&output.stdout);
    let path = messages
        .lines()
        .filter_map(|line| line.split_once(r#""executable":""#))
        .filter_map(|(_, rest)| rest.split_once('"'))
        .map(|(path, _)| PathBuf::from(path.replace(r"\\", r"\")))
        .next_back();
    path.ok_or_else(|| "cargo names no test binary".to_owned())
}

fn models(binary: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(binary)
        .arg("--list")
        .output()
        .map_err(|error| format!("{} does not start: {error}", binary.display()))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| name.contains("::model::"))
        .map(str::to_owned)
        .collect())
}

fn faults(binary: &Path) -> Result<Vec<Fault>, String> {
    let finished = run_model(binary, CATALOGUE, None);
    // libtest prints its own words before the first line of a test.
    let faults: Vec<_> = finished
        .output
        .lines()
        .filter_map(|line| line.split_once("loom-weakening "))
        .filter_map(|(_, rest)| rest.split_once(' '))
        .map(|(weakening, model)| Fault { weakening: weakening.to_owned(), model: model.to_owned() })
        .collect();
    if faults.is_empty() { Err(format!("the catalogue is empty:\n{}", finished.output)) } else { Ok(faults) }
}

/// Every model has a fault that it must notice, and every fault a model that exists.
fn check_catalogue(models: &[String], faults: &[Fault]) -> Result<(), String> {
    let known: BTreeSet<&str> = models.iter().map(String::as_str).collect();
    let owning: BTreeSet<&str> = faults.iter().map(|fault| fault.model.as_str()).collect();
    if let Some(model) = owning.difference(&known).next() {
        return Err(format!("the catalogue of weakenings names a model that does not exist: {model}"));
    }
    if let Some(model) = known.difference(&owning).next() {
        return Err(format!("no weakening is planted in {model}: it could not fail"));
    }
    Ok(())
}

fn run_model(binary: &Path, model: &str, weakening: Option<&str>) -> Finished {
    let start = Instant::now();
    let mut command = Command::new(binary);
    command.args([model, "--exact", "--nocapture", "--test-threads=1"]).env_remove(WEAKEN_VARIABLE);
    if let Some(weakening) = weakening {
        command.env(WEAKEN_VARIABLE, weakening);
    }
    match command.output() {
        Ok(output) => Finished {
            passed: output.status.success(),
            output: [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat(),
            took: start.elapsed(),
        },
        Err(error) => Finished { passed: false, output: error.to_string(), took: start.elapsed() },
    }
}

/// The line that a model prints when it has been explored: executions and how far.
fn explored(output: &str) -> Option<(u64, &str)> {
    let (_, rest) = output.lines().find_map(|line| line.split_once("loom-explored "))?;
    let (executions, bound) = rest.split_once(' ')?;
    Some((executions.parse().ok()?, bound))
}

/// What the first panic said.
fn first_panic(output: &str) -> Option<&str> {
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    lines.next()?;
    lines.next()
}

/// Runs `work` on every item, as many at once as there are cores; results in the items' order.
fn in_parallel<T: Sync, R: Send>(items: Vec<T>, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = Mutex::new(0);
    let results = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = {
                        let mut next = next.lock().expect("no worker panics with the lock held");
                        *next += 1;
                        *next - 1
                    };
                    let Some(item) = items.get(index) else { return };
                    let result = work(item);
                    results.lock().expect("no worker panics with the lock held").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics with the lock held");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
