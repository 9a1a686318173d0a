//! Members under message, process and disk faults, in virtual time, from one seed; what clients saw is checked.
//!
//! Besides linearizability, every record that a member writes is held against this: a ballot of a key has one value.

mod world;

use replikit_core::{NodeId, Time, Token};
use replikit_sim::check::{Ended, Unproven, What, check_history};

use self::world::{KEYS, World, micros};
use super::{CasOp, CasStats};

const STEPS_MAX: u64 = 300_000;

#[derive(Debug, Default)]
struct Report {
    operations: u64,
    done: u64,
    timed_out: u64,
    indeterminate: u64,
    undecided: u64,
    stats: CasStats,
}

/// One run; what is wrong with it.
fn run(seed: u64, report: &mut Report) -> Result<(), String> {
    let mut world = World::new(seed);
    world.run(Time::ZERO + micros(250_000));
    // No more faults: whoever is asked answers.
    (world.faults.loss, world.faults.slow) = (0.0, 0.0);
    world.run(world.now + micros(60_000));
    let nodes: Vec<NodeId> = world.members.keys().copied().collect();
    for key in KEYS {
        let node = nodes[world.random.usize(..nodes.len())];
        let now = world.now;
        world.values += 1;
        let token = Token(u64::from(world.values));
        let call = world.history.begin(now, key.into(), What::Read);
        let member = world.member(node);
        let cas = member.cas.as_mut().ok_or("a node is down for ever")?;
        member.calls.insert(token, (0, call));
        cas.begin(now, token, key.into(), CasOp::Read, now + micros(200_000)).map_err(|it| it.to_string())?;
        world.carry_out(node);
        world.run(world.now + micros(210_000));
        if !matches!(world.history.operation(call).ended, Ended::Found { .. }) {
            return Err(format!("{key} cannot be read at {node} when all is well again"));
        }
    }
    for member in world.members.values() {
        let cas = member.cas.as_ref().ok_or("a node is down for ever")?;
        if cas.sizes().requests != 0 || cas.sizes().held != 0 {
            return Err(format!("something is left behind: {:?}", cas.sizes()));
        }
        report.stats.rounds += cas.stats().rounds;
        report.stats.one_trip += cas.stats().one_trip;
        report.stats.query_reads += cas.stats().query_reads;
        report.stats.conflicts += cas.stats().conflicts;
    }
    report.operations += world.history.operations().len() as u64;
    report.done += world.ended[0];
    report.timed_out += world.ended[1];
    report.indeterminate += world.ended[2];
    match check_history(&world.history, STEPS_MAX) {
        Ok(_) => Ok(()),
        Err(Unproven::Undecided { .. }) => {
            report.undecided += 1;
            Ok(())
        }
        Err(wrong) => Err(wrong.to_string()),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// More seeds: `CAS_SEEDS=100000`, from `CAS_FIRST`.
#[test]
fn each_key_is_linearizable_whatever_messages_processes_and_disks_do() {
    let (first, seeds) = (number("CAS_FIRST", 0), number("CAS_SEEDS", 2_000));
    let mut report = Report::default();
    for seed in first..first + seeds {
        if let Err(wrong) = run(seed, &mut report) {
            panic!("seed {seed}: {wrong}");
        }
    }
    println!("{report:?}");
    assert!(report.undecided * 100 <= seeds, "too many histories were not decided: {report:?}");
    assert!(report.done > 5 * report.timed_out, "hardly anything was done: {report:?}");
    let CasStats { one_trip, query_reads, conflicts, .. } = report.stats;
    assert!(one_trip > seeds && query_reads > seeds && conflicts > seeds, "not everything was met: {report:?}");
}
