//! Measurements of parts alone: the protocol without sockets and disks, and the log.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use replikit_benches::disk_log::{self, Appends, Syncs};
use replikit_benches::error::BenchError;
use replikit_benches::figure::Figure;
use replikit_benches::handle;
use replikit_benches::place::Place;
use replikit_benches::record::{Kind, Line, Record, Results};
use replikit_benches::table::{Side, Table, count, latency};

const HANDLE_WINDOW: Duration = Duration::from_secs(2);

fn write(results: &mut Results, kind: Kind, figures: &[Figure]) -> Result<(), BenchError> {
    let Some(first) = figures.first() else { return Ok(()) };
    let name = format!("{}: {}, {} at once", first.engine, first.workload, first.clients);
    let record = Record::of(kind, name, figures).expect("there is a first figure");
    results.write(Line::Measured(record)).map_err(BenchError::io("writing the results"))
}

pub(crate) fn protocol(repetitions: u32, out: Option<PathBuf>) -> Result<ExitCode, BenchError> {
    let place = Place::create(out)?;
    let mut results = place.results(0, "protocol", 1)?;
    println!("{}", results.run().header.line());
    let mut table = Table::new(vec![
        ("three replicas in one thread, memory log", Side::Left),
        ("commands a round", Side::Right),
        ("entries/s, applied by all", Side::Right),
        ("allocations/entry", Side::Right),
    ]);
    let mut written = Ok(());
    replikit_benches::protocol::cases(repetitions, |rounds| {
        eprintln!("  {} x {}: {}/s", rounds.workload, rounds.batch, count(rounds.entries_per_second));
        let allocations = format!("{:.4}", rounds.allocations_per_entry);
        let speed = count(rounds.entries_per_second);
        table.row("", vec![rounds.workload.clone(), rounds.batch.to_string(), speed, allocations]);
        if written.is_ok() {
            written = write(&mut results, Kind::Protocol, &rounds.figures());
        }
    });
    written?;
    println!("\n{}", table.render());
    let mut table = Table::new(vec![
        ("three replicas in one loop, async handle, memory log", Side::Left),
        ("clients", Side::Right),
        ("writes/s", Side::Right),
    ]);
    for clients in handle::CLIENTS {
        let calls = handle::measure(clients, HANDLE_WINDOW)?;
        write(&mut results, Kind::Protocol, &[calls.figure()])?;
        table.row("", vec!["256 B, counting".to_owned(), clients.to_string(), count(calls.per_second)]);
    }
    println!("{}", table.render());
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn log(measured: Duration, out: Option<PathBuf>) -> Result<ExitCode, BenchError> {
    let place = Place::create(out)?;
    let mut results = place.results(0, "log", 1)?;
    println!("{}", results.run().header.line());
    let mut table = Table::new(vec![
        ("the log on disk, one process", Side::Left),
        ("entries/s", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("fsyncs/entry", Side::Right),
    ]);
    let mut ended = |name: &str, appends: Result<Appends, BenchError>| {
        let appends = appends?;
        let quantile = |share| match appends.latencies.count() {
            0 => "-".to_owned(),
            _ => latency(appends.latencies.quantile(share)),
        };
        let cells = [count(appends.entries_per_second), quantile(0.5), quantile(0.99)];
        let fsyncs = format!("{:.4}", appends.fsyncs_per_entry);
        table.row("", [appends.workload.clone()].into_iter().chain(cells).chain([fsyncs]).collect());
        eprintln!("  {name}: {}/s", count(appends.entries_per_second));
        write(&mut results, Kind::Log, &appends.figures())
    };
    let folder = |name: &str| place.data.path().join(name);
    for entries in [1, disk_log::BATCH_ENTRIES] {
        ended("floor", disk_log::raw(&folder("raw"), entries, measured))?;
        ended("one writer", disk_log::one_writer(&folder(&format!("one-{entries}")), entries, Syncs::Each, measured))?;
    }
    ended("waiting threads", disk_log::waiting_threads(&folder("many"), measured))?;
    println!("\n{}", table.render());
    let opened = disk_log::reopen(&folder("open"))?;
    write(&mut results, Kind::Log, &opened.figures())?;
    println!(
        "open of {} MiB, every checksum verified, warm: {}; then replay of every batch: {}",
        opened.bytes >> 20,
        latency(opened.open),
        latency(opened.replay)
    );
    println!("results: {}", place.folder.join("results.jsonl").display());
    Ok(ExitCode::SUCCESS)
}
