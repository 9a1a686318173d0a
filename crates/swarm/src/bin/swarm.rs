//! Runs many seeds and says what they met; on a violation, which invariant broke, in how small a run, and how to replay it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use replikit_sim::{Caption, Fault, diagram};
use replikit_swarm::{
    Failure, LONG_RUN, Many, Plan, Probe, RECHECK_EVERY, Scenario, TRACED_SEEDS, Telling, Together, play, run_many,
    say, scenario, shrink, unreachable_faults, unreachable_probes,
};
use serde_json::json;

/// Every strategy under the simulator.
#[derive(Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Cli {
    /// Which scenario: all, raft, raft-groups, multi-leader, leaderless, register, register-groups, partitioned, placed,
    /// placed-leaders; each but all also with -log for the real log; and leaderless-hints, leaderless-owners, leaderless-rot.
    #[arg(long, default_value = "all")]
    strategy: String,
    /// So many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// As many seeds as fit into so many minutes.
    #[arg(long, conflicts_with = "seeds")]
    minutes: Option<f64>,
    /// Only this seed, twice.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads; without it, one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// The summary as one JSON object.
    #[arg(long)]
    json: bool,
    /// With --seed: every event and action, as it happens.
    #[arg(long, requires = "seed")]
    tell: bool,
    /// Leaves out these kinds of faults, as the command that replays a shrunk failure does.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Fewer clients, likewise.
    #[arg(long)]
    clients: Option<u32>,
    /// Less time under faults, likewise; in milliseconds.
    #[arg(long)]
    millis: Option<u64>,
    /// Does not make a failure smaller, and draws nothing.
    #[arg(long)]
    no_shrink: bool,
    /// Only the fingerprints of a few seeds: equal in every build.
    #[arg(long)]
    traces: bool,
}

impl Cli {
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        for name in &self.without {
            plan.leave_out(name).expect("checked at the beginning");
        }
        if let Some(clients) = self.clients {
            plan.workload.clients = clients;
            plan.workload.with_session = plan.workload.with_session.min(clients);
        }
        if let Some(millis) = self.millis {
            plan.lasts = Duration::from_millis(millis);
        }
        plan
    }

    /// Whether plans are as they are drawn.
    fn is_whole(&self) -> bool {
        self.without.is_empty() && self.clients.is_none() && self.millis.is_none()
    }
}

/// What a person takes in of the end of a run.
const DRAWN_LINES: usize = 600;

static STOP: AtomicBool = AtomicBool::new(false);

/// Ctrl-C ends the run between two seeds; a second one ends the program.
fn stop_at_interrupt() {
    std::thread::spawn(|| {
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn start(cli: &Cli) -> Result<ExitCode, String> {
    let run = scenario(&cli.strategy)?;
    for name in &cli.without {
        Plan::draw(0).leave_out(name)?;
    }
    if cli.traces {
        for seed in TRACED_SEEDS {
            let run = play(run, &cli.plan(seed), Telling::Silent).map_err(|failure| failure.to_string())?;
            say(format_args!("{} {seed} {:016x}", cli.strategy, run.fingerprint));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if cli.tell {
        let plan = cli.plan(cli.seed.unwrap_or_default());
        return Ok(match play(run, &plan, Telling::Aloud) {
            Ok(_) => ExitCode::SUCCESS,
            Err(failure) => {
                say(format_args!("{failure}"));
                ExitCode::FAILURE
            }
        });
    }
    Ok(many(cli, run))
}

fn many(cli: &Cli, scenario: Scenario) -> ExitCode {
    stop_at_interrupt();
    let (first, seeds) = match (cli.seed, cli.minutes) {
        (Some(seed), _) => (seed, 1),
        (None, Some(_)) => (cli.from, u64::MAX),
        (None, None) => (cli.from, cli.seeds),
    };
    let time_max = cli.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    let threads = cli.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let plan = |seed| cli.plan(seed);
    let many = Many { scenario, first, seeds, time_max, threads, plan: &plan, stop: &STOP };
    let bar = match time_max {
        _ if cli.json => ProgressBar::hidden(),
        Some(most) => ProgressBar::new(most.as_millis() as u64),
        None => ProgressBar::new(seeds),
    };
    let style = ProgressStyle::with_template("{bar:30} {elapsed_precise} {msg}").expect("a constant template");
    bar.set_style(style);
    let together = run_many(&many, &|together: &Together| {
        let position = if time_max.is_some() { together.took.as_millis() as u64 } else { together.seeds };
        bar.set_position(position);
        let took = together.took.as_secs_f64().max(1e-9);
        let simulated = together.simulated.as_secs_f64() / took;
        bar.set_message(format!(
            "{} seeds, {:.0} seeds/s, {simulated:.0} simulated s/s",
            together.seeds,
            together.seeds as f64 / took
        ));
    });
    bar.finish_and_clear();
    if cli.json {
        say(format_args!("{}", summary(cli, &together)));
    } else {
        print(cli, threads, &together);
    }
    if let Some(failure) = together.failure {
        if cli.no_shrink {
            eprintln!("{failure}");
            eprintln!("replay: {}", failure.plan.replay(&cli.strategy));
        } else {
            report(cli, scenario, failure);
        }
        return ExitCode::FAILURE;
    }
    if STOP.load(Ordering::Relaxed) {
        eprintln!("interrupted");
        return ExitCode::from(130);
    }
    idle(cli, &together)
}

/// A long run in which something is never met tests less than it says.
fn idle(cli: &Cli, together: &Together) -> ExitCode {
    if together.seeds < LONG_RUN || !cli.is_whole() {
        return ExitCode::SUCCESS;
    }
    let mut unmet: Vec<String> = Vec::new();
    let beyond = unreachable_faults(&cli.strategy);
    unmet.extend(together.unmet_faults().iter().filter(|fault| !beyond.contains(fault)).map(|f| f.text().to_owned()));
    let beyond = unreachable_probes(&cli.strategy);
    unmet.extend(together.unmet_probes().iter().filter(|probe| !beyond.contains(probe)).map(|p| p.name().to_owned()));
    if unmet.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("never met in {} seeds: {}", together.seeds, unmet.join(", "));
    ExitCode::FAILURE
}

fn print(cli: &Cli, threads: usize, together: &Together) {
    let (seconds, busy) = (together.took.as_secs_f64().max(1e-9), together.busy.as_secs_f64().max(1e-9));
    let runs = (together.seeds + together.rechecked) as f64;
    say(format_args!("{} clean seeds of {} in {seconds:.1} s on {threads} threads", together.seeds, cli.strategy));
    say(format_args!("{:>14.1}  runs per second and thread", runs / busy));
    say(format_args!("{:>14.0}  protocol events per second and thread", together.protocol_events as f64 / busy));
    say(format_args!("{:>14.1}  simulated seconds per second", together.simulated.as_secs_f64() / seconds));
    say(format_args!("{:>14}  events per seed", together.events / together.seeds.max(1)));
    say(format_args!("{:>14}  operations acknowledged per seed, median", together.answered_median()));
    say(format_args!("{:>14}  seeds run twice, one in {RECHECK_EVERY}", together.rechecked));
    say(format_args!("faults met, and the share of seeds that met them:"));
    for &fault in Fault::ALL {
        let share = together.met[fault] as f64 * 100.0 / together.seeds.max(1) as f64;
        say(format_args!("{:>14}  {share:>5.1} %  {}", together.total[fault], fault.text()));
    }
    say(format_args!("states met:"));
    for &probe in Probe::ALL {
        say(format_args!("{:>14}  {}", together.probes.count(probe), probe.name()));
    }
}

fn summary(cli: &Cli, together: &Together) -> serde_json::Value {
    let seeds = together.seeds.max(1) as f64;
    let faults: Vec<_> = Fault::ALL
        .iter()
        .map(|&fault| json!({"fault": fault.text(), "count": together.total[fault], "share_of_seeds": together.met[fault] as f64 / seeds}))
        .collect();
    let probes: serde_json::Map<_, _> =
        Probe::ALL.iter().map(|&probe| (probe.name().to_owned(), json!(together.probes.count(probe)))).collect();
    let failure = together
        .failure
        .as_ref()
        .map(|failure| json!({"seed": failure.plan.seed, "invariant": failure.invariant, "what": failure.what}));
    json!({
        "strategy": cli.strategy,
        "first_seed": cli.seed.unwrap_or(cli.from),
        "clean_seeds": together.seeds,
        "rechecked_seeds": together.rechecked,
        "seconds": together.took.as_secs_f64(),
        "thread_seconds": together.busy.as_secs_f64(),
        "simulated_seconds": together.simulated.as_secs_f64(),
        "events": together.events,
        "protocol_events": together.protocol_events,
        "acknowledged_per_seed_median": together.answered_median(),
        "faults": faults,
        "probes": probes,
        "failure": failure,
    })
}

/// Says what broke, shrinks it, and draws the end of the smallest run.
fn report(cli: &Cli, scenario: Scenario, failure: Box<Failure>) {
    eprintln!("{failure}");
    eprintln!("replay: {}", failure.plan.replay(&cli.strategy));
    let (smallest, runs) = shrink(scenario, failure);
    let replay = smallest.plan.replay(&cli.strategy);
    eprintln!("shrunk in {runs} runs: {}", smallest.what);
    eprintln!("replay: {replay}");
    let Some(chronicle) = &smallest.chronicle else { return };
    let seed = smallest.plan.seed;
    let caption = Caption {
        title: format!("{}, seed {seed}: {} is broken", cli.strategy, smallest.invariant),
        violation: smallest.what.clone(),
        notes: vec![replay],
    };
    let folder = std::path::Path::new("target").join("sim");
    let path = folder.join(format!("{}-{seed}.html", cli.strategy));
    let page = diagram(smallest.plan.settings.nodes, &chronicle.newest(DRAWN_LINES), &caption);
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, page)) {
        Ok(()) => eprintln!("drawn: {}", path.display()),
        Err(error) => eprintln!("{}: {error}", path.display()),
    }
}
