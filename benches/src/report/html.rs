//! The report: one page that needs no network, no scripts and no other file. It is well-formed XML as well, so that tests can
//! read it.

use std::fmt::Write;

use super::charts::{Chart, Section, charts};
use super::findings::{self, Loss};
use super::markdown::single_client;
use super::plot::{STYLE, colour, colours, escape};
use super::prose::{BIAS, READING};
use super::summary::{Row, Spread, Summary};
use super::terminal::{amount, lines, micros, range, short};
use crate::record::Kind;
use crate::suite::{OBJECTIVE, SWEEP_CLIENTS};
use crate::table::{count, latency};

/// Results up to this size are in the page itself.
const EMBEDDED_BYTES_MAX: usize = 8 << 20;
/// More rows of losses are counted and not shown.
const LOSSES_MAX: usize = 24;

/// How a figure is shown.
type Show = fn(f64) -> String;

const PAGE_STYLE: &str = "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}\
body{margin:0 auto;padding:1rem;max-width:74rem;background:var(--background);color:var(--text);\
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}\
h1{font-size:1.5rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem;padding-top:.6rem;\
border-top:1px solid var(--grid)}h3{font-size:1rem;margin:1rem 0 .3rem}p,li{max-width:46rem}\
a{color:var(--link)}nav a{display:inline-block;margin-right:1rem}\
.muted,figcaption,th{color:var(--muted)}.bad{color:var(--bad);font-weight:600}\
.plots{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem}\
figure{margin:0;padding:.7rem;background:var(--panel);border-radius:.5rem;min-width:0}\
figcaption{font-size:.82rem;line-height:1.4;margin-top:.4rem}svg.plot{display:block;width:100%;max-width:36rem;height:auto}\
.wide{overflow-x:auto;border:1px solid var(--grid);border-radius:.5rem}\
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;line-height:1.35}\
th,td{padding:.35rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}\
tr:last-child td{border-bottom:0}th{font-weight:600;vertical-align:bottom;min-width:4.5rem}td.n,th.n{text-align:right}td.n{white-space:nowrap}\
td.w{min-width:9rem}.wide td:first-child,.wide th:first-child{position:sticky;left:0;background:var(--background);min-width:8rem;max-width:17rem;width:17rem}\
.range{display:block;color:var(--muted);font-size:.75rem}tr.head td{background:var(--panel)}\
.engine::before{content:'';display:inline-block;width:.65rem;height:.65rem;border-radius:.15rem;margin-right:.4rem;\
background:var(--own)}details{margin:.6rem 0}summary{cursor:pointer;font-weight:600}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.9rem;margin:.3rem 0}dt{color:var(--muted)}\
dd{margin:0;min-width:0}@media(max-width:34rem){.wide td:first-child,.wide th:first-child{max-width:11rem;width:11rem;white-space:normal}dl{grid-template-columns:1fr}dd{margin-bottom:.3rem}body{padding:.7rem}}";

/// The page. `raw` is the text of the results file.
#[must_use]
pub fn page(summary: &Summary<'_>, raw: &str) -> String {
    let header = &summary.run.header;
    let charts = charts(summary);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><meta name=\"color-scheme\" content=\"light dark\"/>\
         <title>replikit: replication strategies side by side</title><style>{}{STYLE}{PAGE_STYLE}</style></head><body>\n",
        colours()
    );
    let machine = &header.machine;
    add(
        &mut out,
        &format!(
            "<h1>Replication strategies side by side</h1><p class=\"muted\">{}, {} cores, {} MiB, {}, data on {}; commit {}{}; \
             seed {}; {} rounds; measured {}</p>",
            escape(&machine.cpu),
            machine.cores,
            machine.memory_mib,
            escape(&machine.kernel),
            escape(&machine.file_system),
            escape(&header.commit),
            if header.dirty { " with changes" } else { "" },
            header.seed,
            header.rounds,
            escape(&date(header.began))
        ),
    );
    verdict(summary, &mut out);
    out.push_str(
        "<nav><a href=\"#summary\">Summary</a><a href=\"#speed\">Speed</a><a href=\"#faults\">Faults</a>\
         <a href=\"#staleness\">Staleness</a><a href=\"#conflicts\">Conflicts</a><a href=\"#cost\">Cost</a>",
    );
    if summary.of_kind(Kind::Partitioning).next().is_some() {
        out.push_str("<a href=\"#partitioning\">Partitions</a>");
    }
    out.push_str(
        "<a href=\"#losses\">Where we lose</a><a href=\"#cases\">All cases</a><a href=\"#setup\">Set-up</a>\
         <a href=\"#bias\">Bias</a><a href=\"#raw\">Raw data</a></nav>\n",
    );
    heading("summary", "What each gives, and what it promises for it", &mut out);
    summary_table(summary, &mut out);
    let sections = [
        ("speed", "Rates and latencies", Section::Speed),
        ("faults", "Around a fault", Section::Faults),
        ("staleness", "Staleness and convergence", Section::Staleness),
        ("conflicts", "Conflicts", Section::Conflicts),
        ("cost", "What a write costs", Section::Cost),
    ];
    for (id, name, section) in sections {
        heading(id, name, &mut out);
        plots(&charts, section, &mut out);
        if section == Section::Conflicts {
            replications(summary, &mut out);
        }
        if section == Section::Cost {
            list(&findings::efficiency(summary), &mut out);
        }
    }
    if summary.of_kind(Kind::Partitioning).next().is_some() {
        heading("partitioning", "Partitions", &mut out);
        plots(&charts, Section::Partitioning, &mut out);
        partitioning(summary, &mut out);
    }
    heading("losses", "Where we lose", &mut out);
    losses(&findings::losses(summary), &mut out);
    heading("cases", "All cases", &mut out);
    cases(summary, &mut out);
    heading("setup", "Set-up", &mut out);
    setup(summary, &mut out);
    heading("bias", "Bias", &mut out);
    list(&BIAS.map(str::to_owned), &mut out);
    heading("raw", "Raw data", &mut out);
    raw_data(summary, raw, &mut out);
    out.push_str("</body></html>\n");
    out
}

fn add(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn heading(id: &str, name: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "<h2 id=\"{id}\">{}</h2>", escape(name));
}

fn list(items: &[String], out: &mut String) {
    if items.is_empty() {
        return;
    }
    let items: String = items.iter().map(|item| format!("<li>{}</li>", escape(item))).collect();
    add(out, &format!("<ul>{items}</ul>"));
}

/// What must be known before anything else: wrong results, a run that was cut short, cores that moved.
fn verdict(summary: &Summary<'_>, out: &mut String) {
    let run = summary.run;
    let faults = run.faults_found();
    if faults.is_empty() {
        let kept: f64 = summary.rows.iter().filter_map(|row| row.median("keys read back")).sum();
        let kept = count(kept);
        add(
            out,
            &format!("<p>No wrong result: {kept} keys were read back and held against what was acknowledged.</p>"),
        );
    } else {
        add(out, "<p class=\"bad\">Not everything is right in this run:</p>");
        list(&faults, out);
    }
    let measured = |round| run.records.iter().any(|record| record.round == round);
    if run.header.rounds > 1 && !measured(run.header.rounds) {
        add(out, "<p class=\"bad\">The run was cut short: some rows have fewer rounds than others.</p>");
    }
    for resumed in &run.resumed {
        let changes = if resumed.dirty { " with changes" } else { "" };
        let (when, commit) = (escape(&date(resumed.at)), escape(&resumed.commit));
        add(out, &format!("<p>The run was cut short and went on {when}, at commit {commit}{changes}.</p>"));
    }
    if summary.cores_changed() {
        add(
            out,
            "<p class=\"bad\">The cores moved nearer to or farther from each other during the run (column “cores”): compare rows of \
             the same distance only.</p>",
        );
    }
}

fn cell(value: Option<String>, out: &mut String) {
    let _ = write!(out, "<td class=\"n\">{}</td>", escape(&value.unwrap_or_else(|| "–".to_owned())));
}

fn ranged(spread: Option<&Spread>, show: impl Fn(f64) -> String, out: &mut String) {
    match spread {
        None => out.push_str("<td class=\"n\">–</td>"),
        Some(spread) => {
            let range = match spread.rounds() {
                1 => "1 round".to_owned(),
                _ => format!("{}–{}", show(spread.least()), show(spread.most())),
            };
            let (median, range) = (escape(&show(spread.median())), escape(&range));
            let _ = write!(out, "<td class=\"n\">{median}<span class=\"range\">{range}</span></td>");
        }
    }
}

fn head(columns: &[&str], words: usize, out: &mut String) {
    out.push_str("<div class=\"wide\"><table><thead><tr>");
    for (at, column) in columns.iter().enumerate() {
        let class = if at < words { "" } else { " class=\"n\"" };
        let _ = write!(out, "<th{class}>{}</th>", escape(column));
    }
    out.push_str("</tr></thead><tbody>\n");
}

fn summary_table(summary: &Summary<'_>, out: &mut String) {
    let rows = summary.headlines();
    if rows.is_empty() {
        add(out, "<p>Not measured: the run has no writes of many clients.</p>");
        return;
    }
    let at_objective = format!("writes/s at p99 ≤ {}", latency(OBJECTIVE));
    let many = format!("writes/s, {SWEEP_CLIENTS} clients");
    let p99 = format!("p99, {SWEEP_CLIENTS} clients");
    head(
        &[
            "engine, and what it promises",
            &many,
            "p50, 1 client",
            &p99,
            &at_objective,
            "fsyncs/write/node",
            "processor/write",
            "conflicts/10⁶",
            "lost: audited / silent",
            "COST, cores",
            "cores",
        ],
        1,
        out,
    );
    for row in rows {
        let _ = write!(
            out,
            "<tr><td><span class=\"engine\" style=\"--own:{}\">{}</span><span class=\"range\">acknowledged {}; survives {}; reads \
             {}</span></td>",
            colour(&row.engine),
            escape(&row.subject()),
            escape(row.setting("acknowledged")),
            escape(row.setting("survives")),
            escape(row.setting("read guarantee"))
        );
        ranged(row.metrics.get("throughput"), count, out);
        let one = single_client(summary, row);
        ranged(one.and_then(|one| one.metrics.get("write latency p50")), micros, out);
        ranged(row.metrics.get("write latency p99"), micros, out);
        match summary.rate_at_objective(row.setting("load")) {
            Some(rate) if rate.most() == 0.0 => cell(Some("none".to_owned()), out),
            rate => ranged(rate.as_ref(), count, out),
        }
        cell(row.median("fsyncs per write and node").map(|value| format!("{value:.3}")), out);
        ranged(row.metrics.get("processor time per request"), |value| format!("{value:.1} us"), out);
        cell(row.median("conflicts per 10^6 writes").map(count), out);
        let lost = |metric: &str| row.metrics.get(metric).map_or(0.0, Spread::most);
        cell(Some(format!("{} / {}", lost("acked writes lost, audited"), lost("acked writes lost"))), out);
        cell(summary.cores_to_match(row).filter(|_| row.engine != "single-thread").map(short), out);
        cell(Some(row.cores.clone()), out);
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    add(
        out,
        "<p class=\"muted\">Writes of 256 B to uniformly drawn keys. Silent losses at a level that survives no crash are within \
         its promise.</p><h3>How to read it</h3>",
    );
    list(&READING.map(str::to_owned), out);
}

fn plots(charts: &[Chart], section: Section, out: &mut String) {
    out.push_str("<div class=\"plots\">\n");
    let charts: Vec<&Chart> = charts.iter().filter(|chart| chart.section == section).collect();
    for chart in &charts {
        if let Some(svg) = &chart.svg {
            let _ = writeln!(out, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(&chart.caption));
        }
    }
    out.push_str("</div>\n");
    let missing: Vec<&str> = charts.iter().filter(|chart| chart.svg.is_none()).map(|chart| chart.id.as_str()).collect();
    if charts.is_empty() || !missing.is_empty() {
        add(
            out,
            &format!(
                "<p class=\"muted\">Not measured in this run{}.</p>",
                if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) }
            ),
        );
    }
}

fn replications(summary: &Summary<'_>, out: &mut String) {
    let rows: Vec<&Row> = summary.of_kind(Kind::Replication).collect();
    if rows.is_empty() {
        return;
    }
    add(out, "<h3>Writers at all nodes that contend for few keys</h3>");
    let columns =
        ["run", "updates/s", "conflicts/10⁶", "lost, audited", "lost, silent", "converged in", "lag p50", "lag p99"];
    head(&columns, 1, out);
    for row in rows {
        let _ = write!(out, "<tr><td class=\"w\">{}</td>", escape(&row.name));
        let metrics: [(&str, Show); 7] = [
            ("updates", count),
            ("conflicts per 10^6 writes", |value| count(value.round())),
            ("lost updates, audited", count),
            ("lost updates, silent", count),
            ("convergence after the load", micros),
            ("replication lag p50", micros),
            ("replication lag p99", micros),
        ];
        for (metric, show) in metrics {
            cell(row.median(metric).map(show), out);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// Everything that runs of partitioning found, a table each.
fn partitioning(summary: &Summary<'_>, out: &mut String) {
    for row in summary.of_kind(Kind::Partitioning) {
        add(out, &format!("<h3>{}</h3>", escape(&row.name)));
        head(&["figure", "value"], 1, out);
        for (metric, spread) in &row.metrics {
            let _ = write!(out, "<tr><td class=\"w\">{}</td>", escape(metric));
            cell(Some(amount(spread)), out);
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
    }
}

fn losses(losses: &[Loss], out: &mut String) {
    if losses.is_empty() {
        add(out, "<p>In no case of this run was a plain machine or another system faster for the same workload.</p>");
        return;
    }
    add(
        out,
        "<p>Who is faster than one of our rows at the same workload, waiting for the disk as we do or not; the largest factors \
         first.</p>",
    );
    head(&["ours", "faster", "workload", "in return", "clients", "in", "ours", "theirs", "times"], 4, out);
    for loss in losses.iter().take(LOSSES_MAX) {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"w\">{}</td><td class=\"w\">{}</td>",
            escape(&loss.ours),
            escape(&loss.theirs),
            escape(&loss.workload),
            escape(&loss.in_return)
        );
        cell(Some(loss.clients.to_string()), out);
        cell(Some(loss.metric.to_owned()), out);
        cell(Some(loss.our_figure.clone()), out);
        cell(Some(loss.their_figure.clone()), out);
        cell(Some(format!("{:.2}", loss.times)), out);
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    if losses.len() > LOSSES_MAX {
        let rest = losses.len() - LOSSES_MAX;
        add(out, &format!("<p class=\"muted\">{rest} more, with smaller factors, are in the raw data.</p>"));
    }
}

fn cases(summary: &Summary<'_>, out: &mut String) {
    out.push_str("<details><summary>Every case, with its figures</summary>\n");
    let columns = [
        "workload",
        "clients",
        "ops/s",
        "range",
        "p50",
        "p99",
        "p99.9",
        "max",
        "fsyncs/write/node",
        "conflicts/10⁶",
        "lost: audited/silent",
        "cores",
    ];
    head(&columns, 1, out);
    let mut last = String::new();
    for row in summary.of_kind(Kind::Case) {
        let heading = super::terminal::heading(row);
        if heading != last {
            let _ = writeln!(
                out,
                "<tr class=\"head\"><td colspan=\"12\"><span class=\"engine\" style=\"--own:{}\">{}</span></td></tr>",
                colour(&row.engine),
                escape(&heading)
            );
            last = heading;
        }
        for mut cells in lines(row) {
            let rest = cells.split_off(1);
            let reads = match row.setting("reads") {
                "" => String::new(),
                reads => format!("<span class=\"range\">reads {}</span>", escape(reads)),
            };
            let _ = write!(out, "<tr><td class=\"w\">{}{reads}</td>", escape(&cells[0]));
            rest.into_iter().for_each(|text| cell(Some(text), out));
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</tbody></table></div></details>\n");
    let notes: Vec<String> = summary.of_kind(Kind::Case).flat_map(|row| row.notes.clone()).collect();
    if !notes.is_empty() {
        out.push_str("<details><summary>Notes</summary>\n");
        list(&notes, out);
        out.push_str("</details>\n");
    }
    sweeps(summary, out);
}

fn sweeps(summary: &Summary<'_>, out: &mut String) {
    if summary.of_kind(Kind::Sweep).next().is_none() {
        return;
    }
    out.push_str("<details><summary>Open-loop sweeps</summary>\n");
    head(&["load", "share", "asked", "reached", "range", "p50", "p99", "p99.9", "cores"], 1, out);
    for row in summary.of_kind(Kind::Sweep) {
        let of = |metric: &str, show: fn(f64) -> String| row.median(metric).map(show);
        let _ = write!(out, "<tr><td class=\"w\">{}</td>", escape(row.setting("load")));
        cell(Some(row.setting("pace").trim_start_matches("open loop at ").to_owned()), out);
        cell(of("rate asked", count), out);
        cell(of("throughput", count), out);
        cell(row.metrics.get("throughput").map(range), out);
        for quantile in ["p50", "p99", "p99.9"] {
            cell(of(&format!("write latency {quantile}"), micros), out);
        }
        cell(Some(row.cores.clone()), out);
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

fn pairs<'a>(pairs: impl Iterator<Item = (&'a str, String)>, out: &mut String) {
    let pairs: String =
        pairs.map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value))).collect();
    add(out, &format!("<dl>{pairs}</dl>"));
}

fn setup(summary: &Summary<'_>, out: &mut String) {
    let run = summary.run;
    let header = &run.header;
    add(out, "<h3>Machine and versions</h3>");
    let changes = if header.dirty { " with changes" } else { "" };
    let machine = [
        ("processor", header.machine.cpu.clone()),
        ("cores", header.machine.cores.to_string()),
        ("memory", format!("{} MiB", header.machine.memory_mib)),
        ("kernel", header.machine.kernel.clone()),
        ("file system", header.machine.file_system.clone()),
        ("compiler", header.versions.rustc.clone()),
        ("replikit", format!("{}, commit {}{changes}", header.versions.replikit, header.commit)),
        ("command", format!("cargo xtask bench {}", header.asked)),
        ("seed", header.seed.to_string()),
    ];
    pairs(machine.into_iter(), out);
    add(out, "<h3>What the machine gives at best</h3>");
    let probes: Vec<_> = run.of(Kind::Probe).filter(|probe| probe.set == 0).collect();
    head(&["probe", "when", "time"], 2, out);
    for probe in &probes {
        for value in &probe.figures {
            let _ =
                write!(out, "<tr><td class=\"w\">{}</td><td>{}</td>", escape(&value.metric), escape(&probe.workload));
            cell(Some(micros(value.value / 1e3)), out);
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</tbody></table></div>\n");
    let trips: Vec<f64> = run.of(Kind::Probe).filter_map(|probe| probe.value("cross-core round trip")).collect();
    if let Some(spread) = Spread::of(trips, "ns", crate::figure::Better::Neither) {
        add(
            out,
            &format!(
                "<p>Cross-core round trip over all {} probes of the run: {:.0} ns, from {:.0} to {:.0} ns.</p>",
                spread.rounds(),
                spread.median(),
                spread.least(),
                spread.most()
            ),
        );
    }
    add(out, "<h3>Configuration of each engine</h3>");
    for engine in &run.engines {
        let _ = writeln!(out, "<details><summary>{}</summary>", escape(&engine.engine));
        pairs(engine.configuration.iter().map(|(name, value)| (name.as_str(), value.clone())), out);
        out.push_str("</details>\n");
    }
    if !run.remarks.is_empty() {
        out.push_str("<details><summary>What the nodes counted</summary>\n");
        let told = run.remarks.iter().flat_map(|remark| {
            remark.told.iter().map(move |told| format!("{}, round {}: {told}", remark.engine, remark.round))
        });
        list(&told.collect::<Vec<_>>(), out);
        out.push_str("</details>\n");
    }
}

fn raw_data(summary: &Summary<'_>, raw: &str, out: &mut String) {
    if raw.len() <= EMBEDDED_BYTES_MAX {
        let _ = writeln!(
            out,
            "<p><a download=\"results.jsonl\" href=\"data:application/x-ndjson;base64,{}\">results.jsonl</a> ({} KiB, in this \
             page): JSON lines of schema {}; from them this page was made by <code>cargo xtask bench report</code>.</p>",
            base64(raw.as_bytes()),
            raw.len() / 1024,
            summary.run.header.schema
        );
    } else {
        add(out, "<p><a href=\"results.jsonl\">results.jsonl</a>: JSON lines, from which this page was made.</p>");
    }
    let files: Vec<&String> = summary.rows.iter().flat_map(|row| &row.raw).collect();
    if !files.is_empty() {
        out.push_str("<details><summary>Histograms, beside the results file</summary><ul>\n");
        for file in files {
            let file = escape(file);
            let _ = writeln!(out, "<li><a href=\"{file}\">{file}</a></li>");
        }
        out.push_str("</ul></details>\n");
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit > chunk.len() {
                text.push('=');
            } else {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
            }
        }
    }
    text
}

/// Seconds since the Unix epoch as a date and a time of day, UTC. Source: Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`.
fn date(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_encoded_as_the_rfc_has_it() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59 UTC");
    }
}
