//! The plots of a report: what is shown, from which rows, and how to read it.

use std::fmt::Write as _;

use super::plot::{Axis, Bar, Bars, Lines, Scale, Series};
use super::summary::{Row, Spread, Summary};
use super::terminal::{micros, short};
use crate::record::Kind;
use crate::suite::{OBJECTIVE, SWEEP_CLIENTS};

/// A plot with the words below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Its name in the page, and of its file.
    pub id: String,
    /// Under which heading it stands.
    pub section: Section,
    /// The picture; `None` when nothing of the kind was measured.
    pub svg: Option<String>,
    /// How to read it.
    pub caption: String,
}

/// Parts of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Rates and latencies.
    Speed,
    /// What happens around a fault.
    Faults,
    /// How old reads are, and how long replicas take to agree.
    Staleness,
    /// Writers that get in each other's way.
    Conflicts,
    /// What only a partitioned store does.
    Partitioning,
    /// What a request costs.
    Cost,
}

/// All plots, in the order of the report.
#[must_use]
pub fn charts(summary: &Summary<'_>) -> Vec<Chart> {
    let mut charts = vec![throughput(summary), latency_throughput(summary, "p50"), latency_throughput(summary, "p99")];
    charts.extend(faults(summary));
    charts.extend([staleness(summary), lag(summary), convergence(summary), conflicts(summary)]);
    charts.extend(handoffs(summary));
    charts.extend(costs(summary));
    charts
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), scale }
}

fn lines(title: &str, x: Axis, y: Axis, series: Vec<Series>) -> Lines {
    Lines { title: title.to_owned(), x, y, series, marks: Vec::new(), bound: None, filled: false }
}

fn bar(row: &Row, label: String, spread: &Spread, show: impl Fn(f64) -> String) -> Bar {
    Bar {
        label,
        engine: row.engine.clone(),
        value: spread.median(),
        range: (spread.least(), spread.most()),
        shown: show(spread.median()),
    }
}

fn throughput(summary: &Summary<'_>) -> Chart {
    let bars = summary.headlines().into_iter().filter_map(|row| {
        let label = format!("{}: {}", row.subject(), row.setting("survives"));
        Some(bar(row, label, row.metrics.get("throughput")?, short))
    });
    let title = format!("Writes of {SWEEP_CLIENTS} clients, and what survives");
    let bars = Bars { title, label: "writes per second [1/s]".to_owned(), bars: bars.collect(), bound: None };
    Chart {
        id: "throughput".to_owned(),
        section: Section::Speed,
        svg: bars.svg("throughput"),
        caption:
            "Longer is better, among bars of the same promise only: what survives a lost disk waits for more of them. \
                  The black line is the range over the rounds."
                .to_owned(),
    }
}

/// The rows of each sweep, by their load.
fn sweeps<'a>(summary: &'a Summary<'_>) -> Vec<Vec<&'a Row>> {
    let mut loads: Vec<Vec<&Row>> = Vec::new();
    for row in summary.of_kind(Kind::Sweep) {
        match loads.iter_mut().find(|rows| rows[0].setting("load") == row.setting("load")) {
            Some(rows) => rows.push(row),
            None => loads.push(vec![row]),
        }
    }
    loads
}

fn latency_throughput(summary: &Summary<'_>, quantile: &str) -> Chart {
    let series = sweeps(summary).into_iter().map(|rows| {
        let mut points: Vec<(f64, f64)> = rows
            .iter()
            .filter_map(|row| {
                Some((row.median("throughput")?, row.median(&format!("write latency {quantile}"))? / 1e3))
            })
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Series { name: rows[0].subject(), engine: rows[0].engine.clone(), points }
    });
    let mut plot = lines(
        &format!("{quantile} latency at a given rate, open loop"),
        axis("writes per second asked for [1/s]", Scale::Linear),
        axis(&format!("{quantile} latency [ms]"), Scale::Log),
        series.collect(),
    );
    let millis = OBJECTIVE.as_secs_f64() * 1e3;
    if quantile == "p99" {
        plot.bound = Some((millis, format!("objective: p99 within {millis:.0} ms")));
    }
    let id = format!("latency-throughput-{quantile}");
    Chart {
        svg: plot.svg(&id),
        id,
        section: Section::Speed,
        caption: "Good lines stay low and reach far to the right; they turn up where the engine is full. Latencies count from \
                  the moment at which a request was due, so a stall is in them. Rates are shares of what the closed loop \
                  reached in the same round."
            .to_owned(),
    }
}

/// Acknowledged writes over time, with what happened meanwhile.
fn over_time(row: &Row, title: &str) -> Lines {
    let series = row.curve("acked writes").map(|curve| Series {
        name: format!("{}, {}", row.subject(), row.workload),
        engine: row.engine.clone(),
        points: curve.points.clone(),
    });
    let mut plot = lines(
        title,
        axis("time [s]", Scale::Linear),
        axis("acknowledged writes per second [1/s]", Scale::Linear),
        series.into_iter().collect(),
    );
    plot.marks = row.marks.iter().map(|mark| (mark.at, mark.what.clone())).collect();
    plot.filled = true;
    plot
}

fn handoffs(summary: &Summary<'_>) -> Vec<Chart> {
    let rows = summary.of_kind(Kind::Partitioning).filter(|row| row.curve("acked writes").is_some());
    let charts = rows.enumerate().map(|(number, row)| {
        let id = format!("handoff-{}", number + 1);
        let pause = row.median("pause of writes, max").map_or_else(String::new, |pause| {
            format!(" Longest time without an acknowledged write: {}.", micros(pause))
        });
        let lost = row.metrics.get("acked writes lost").map_or(0.0, Spread::most);
        Chart {
            svg: over_time(row, "Writes to a partition that is handed over, again and again").svg(&id),
            id,
            section: Section::Partitioning,
            caption: format!(
                "Between its two marks a partition is copied; writes go on, and wait only where it changes hands.{pause} \
                 Acknowledged writes lost: {lost:.0}."
            ),
        }
    });
    charts.collect()
}

fn faults(summary: &Summary<'_>) -> Vec<Chart> {
    let charts = summary.of_kind(Kind::Fault).enumerate().map(|(number, row)| {
        let title = format!("Writes around a fault: {}", row.workload.trim_start_matches("fault: "));
        let plot = over_time(row, &title);
        let id = format!("fault-{}", number + 1);
        let gap = row.median("longest gap without an acked write, during the fault");
        let lost = row.metrics.get("acked writes lost").map_or(0.0, Spread::most);
        let gap =
            gap.map_or_else(String::new, |gap| format!(" Longest gap without an acknowledged write: {gap:.0} ms."));
        Chart {
            svg: plot.svg(&id),
            id,
            section: Section::Faults,
            caption: format!(
                "A good engine has a narrow dip.{gap} Acknowledged writes lost: {lost:.0}.{}",
                sides(row).map(|side| format!(" {side}.")).collect::<String>()
            ),
        }
    });
    charts.collect()
}

/// How the clients on each side of a fault fared, one sentence each.
fn sides(row: &Row) -> impl Iterator<Item = String> + '_ {
    row.metrics.keys().filter_map(|metric| {
        let side = metric.strip_prefix("operations served during the fault, ")?;
        let of = |what: &str| row.median(&format!("{what}, {side}"));
        let mut said = format!("For {side}, {:.1} % served meanwhile", row.median(metric)?);
        if let Some(gap) = of("longest gap without a served operation") {
            let _ = write!(said, ", longest gap {gap:.0} ms");
        }
        let tails =
            of("operation latency p99.9, before the fault").zip(of("operation latency p99.9, during the fault"));
        if let Some((before, during)) = tails {
            let _ = write!(said, ", p99.9 {} (before: {})", micros(during), micros(before));
        }
        Some(said)
    })
}

/// What is left of what was measured after each time, in milliseconds.
fn survivals(rows: &[&Row], curve: &str, name: impl Fn(&Row) -> String) -> Vec<Series> {
    let series = rows.iter().filter_map(|row| {
        let points = &row.curve(curve)?.points;
        // What took no time has its place at the edge.
        let points: Vec<(f64, f64)> = points.iter().map(|(micros, share)| (micros.max(1.0) / 1e3, *share)).collect();
        (points.len() > 1).then(|| Series { name: name(row), engine: row.engine.clone(), points })
    });
    series.collect()
}

fn staleness(summary: &Summary<'_>) -> Chart {
    let rows: Vec<&Row> = summary.of_kind(Kind::Case).filter(|row| row.curve("staleness").is_some()).collect();
    let series = survivals(&rows, "staleness", |row| {
        format!("{}, {}, reads {}", row.subject(), row.workload_base(), row.setting("reads"))
    });
    let never: Vec<String> = rows
        .iter()
        .filter(|row| row.curve("staleness").is_some_and(|curve| curve.points.len() <= 1))
        .map(|row| format!("{}, {}, reads {}", row.subject(), row.workload_base(), row.setting("reads")))
        .collect();
    let mut plot = lines(
        "How old reads of one busy key are",
        axis("age [ms]", Scale::Log),
        axis("share of reads that are older", Scale::Log),
        series,
    );
    // Many lines: those that could be read are the ones that differ.
    plot.series.truncate(8);
    let never = match never.is_empty() {
        true => String::new(),
        false => format!(" No stale read was seen of: {}.", never.join("; ")),
    };
    Chart {
        id: "staleness".to_owned(),
        section: Section::Staleness,
        svg: plot.svg("staleness"),
        caption: format!(
            "Lower and further to the left is fresher. The age of a read is the time since what it shows was superseded by an \
             acknowledged write, before the read began.{never}"
        ),
    }
}

fn lag(summary: &Summary<'_>) -> Chart {
    let rows: Vec<&Row> = summary.of_kind(Kind::Replication).collect();
    let series = survivals(&rows, "replication lag", Row::subject);
    let plot = lines(
        "How long a write takes to another node",
        axis("time since its acknowledgement [ms]", Scale::Log),
        axis("share of writes not shown there yet", Scale::Log),
        series,
    );
    Chart {
        id: "replication-lag".to_owned(),
        section: Section::Staleness,
        svg: plot.svg("replication-lag"),
        caption: "t-visibility: the share that is left at a time is the probability that a read at the other node does not show \
                  the write so long after its acknowledgement. At half of the load that the cluster bears."
            .to_owned(),
    }
}

fn convergence(summary: &Summary<'_>) -> Chart {
    let bars = summary.of_kind(Kind::Replication).filter_map(|row| {
        let spread = row.metrics.get("convergence after the load")?;
        let millis = Spread::of(vec![spread.median() / 1e3], "ms", spread.better)?;
        let name = row.name.split_once(" contending writers, ").map_or(row.name.as_str(), |(_, rest)| rest);
        Some(bar(row, format!("{}: {name}", row.subject()), &millis, |value| micros(value * 1e3)))
    });
    let bars = Bars {
        title: "From the end of the load until all nodes show the same".to_owned(),
        label: "time [ms]".to_owned(),
        bars: bars.collect(),
        bound: None,
    };
    Chart {
        id: "convergence".to_owned(),
        section: Section::Staleness,
        svg: bars.svg("convergence"),
        caption: "Shorter is better. Writers at all nodes contend for few keys until the load ends.".to_owned(),
    }
}

fn conflicts(summary: &Summary<'_>) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    let rows = summary.of_kind(Kind::Case).filter(|row| row.is_plain_writes() && row.clients == SWEEP_CLIENTS);
    for row in rows {
        let Some(conflicts) = row.median("conflicts per 10^6 writes") else { continue };
        let point = (f64::from(row.keys()), conflicts / 1e4);
        match series.iter_mut().find(|series| series.name == row.subject()) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: row.subject(), engine: row.engine.clone(), points: vec![point] }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    series.retain(|series| series.points.len() > 1);
    let plot = lines(
        &format!("Writes that overwrote what they had not seen, {SWEEP_CLIENTS} clients"),
        axis("number of keys, all written alike", Scale::Log),
        axis("share of writes [%]", Scale::Log),
        series,
    );
    Chart {
        id: "conflicts".to_owned(),
        section: Section::Conflicts,
        svg: plot.svg("conflicts"),
        caption: "Falls as writers spread over more keys. A strategy with one leader, or with consensus on each key, has none: it \
                  refuses or orders such writes. Every overwritten value is in an audit log; a loss that is in none would be \
                  reported as a wrong result."
            .to_owned(),
    }
}

fn costs(summary: &Summary<'_>) -> Vec<Chart> {
    let chart = |id: &str, metric: &str, title: &str, label: &str, show: fn(f64) -> String, caption: &str| {
        let bars = summary.headlines().into_iter().filter_map(|row| {
            let spread = row.metrics.get(metric)?;
            Some(bar(row, row.subject(), spread, show))
        });
        let (title, label) = (title.to_owned(), label.to_owned());
        let bars = Bars { title, label, bars: bars.collect(), bound: None };
        Chart { id: id.to_owned(), section: Section::Cost, svg: bars.svg(id), caption: caption.to_owned() }
    };
    let mut charts = vec![
        chart(
            "cost-processor",
            "processor time per request",
            "Processor time of all nodes per write",
            "processor time [us]",
            |value| format!("{} us", short(value)),
            "Shorter is better: what one write costs the whole cluster, in user mode and in the kernel.",
        ),
        chart(
            "cost-fsyncs",
            "fsyncs per write and node",
            "Waits for the disk per write and node",
            "fsync and fdatasync calls per write [1]",
            short,
            "Shorter is better. The figure that carries over to other machines: a virtual disk syncs in microseconds, a real one \
             may take milliseconds.",
        ),
        chart(
            "cost-disk",
            "bytes written to disk per request",
            "Bytes to disk per write of 256 B, all nodes",
            "bytes [B]",
            |value| format!("{} B", short(value)),
            "Shorter is better; three copies are at least three times the value. As the engines count it, files that they \
             prepare ahead of need included; the kernel's count of pages is in the raw data.",
        ),
        chart(
            "cost-network",
            "bytes sent per request",
            "Bytes sent per write of 256 B, all nodes",
            "bytes [B]",
            |value| format!("{} B", short(value)),
            "Shorter is better: to other nodes and to clients, as the nodes count it.",
        ),
    ];
    let bars = summary.headlines().into_iter().filter(|row| row.engine != "single-thread").filter_map(|row| {
        let cores = summary.cores_to_match(row)?;
        let spread = Spread::of(vec![cores], "cores", crate::figure::Better::Lower)?;
        Some(bar(row, row.subject(), &spread, |value| format!("{} cores", short(value))))
    });
    let bars = Bars {
        title: "COST: cores until it is as fast as one thread".to_owned(),
        label: "cores [1]".to_owned(),
        bars: bars.collect(),
        bound: Some((
            f64::from(summary.run.header.machine.cores),
            format!("the {} cores of this machine, load generator included", summary.run.header.machine.cores),
        )),
    };
    charts.push(Chart {
        id: "cost-cores".to_owned(),
        section: Section::Cost,
        svg: bars.svg("cost-cores"),
        caption: "Shorter is better. Processor time per write times the writes that the baseline with one thread serves, synced or \
                  not as the engine is: a lower bound, for it takes for granted that cores add up."
            .to_owned(),
    });
    charts
}
