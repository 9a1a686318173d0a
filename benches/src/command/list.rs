//! Says what a suite would run.

use replikit_benches::suite::{Asked, SWEEP_SHARES, Suite, SuiteName};

pub(crate) fn list(name: SuiteName) {
    let suite = Suite::new(name, Asked::default());
    println!(
        "single-leader, multi-leader, leaderless, leaderless-cas and the partitioned ones need the node program, which `cargo xtask \
         bench` builds; single-thread, shared-memory and shared-disk need nothing"
    );
    for case in &suite.cases {
        println!("{case}");
    }
    for sweep in &suite.sweeps {
        for share in SWEEP_SHARES {
            println!("{}", sweep.sweep_name(share));
        }
    }
    for run in &suite.replications {
        println!("{run}");
    }
    for run in &suite.partitioning {
        println!("{run}");
    }
    for fault in &suite.faults {
        println!("{fault}");
    }
    println!(
        "{} cases and {} rates of sweeps in {} rounds, {} runs of contending writers, {} of partitioning, {} \
         fault runs, about {} s",
        suite.cases.len(),
        suite.sweeps.len() * SWEEP_SHARES.len(),
        suite.rounds,
        suite.replications.len(),
        suite.partitioning.len(),
        suite.faults.len(),
        suite.estimate().as_secs()
    );
}
