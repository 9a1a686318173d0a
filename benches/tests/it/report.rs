//! The report of a recorded run: every plot shows something, every text stands alone, and a browser draws the page.

use std::path::{Path, PathBuf};
use std::process::Command;

use replikit_benches::record::Run;
use replikit_benches::report::{Summary, charts, html, markdown, plot, terminal};
use roxmltree::{Document, Node};

/// A short run of the default suite on a small virtual machine, with most cases left out.
const RECORDED: &str = include_str!("data/results.jsonl");

fn recorded() -> Run {
    Run::parse(Path::new("data/results.jsonl"), RECORDED).unwrap()
}

fn numbers(text: &str) -> Vec<f64> {
    let parts = text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | 'e')));
    parts.filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
}

fn attribute(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).map_or(0.0, |value| value.parse().unwrap())
}

/// What of a plot shows data: points of lines and their dots, and bars.
fn shown(svg: Node<'_, '_>) -> usize {
    let [_, _, width, height] = numbers(svg.attribute("viewBox").unwrap())[..] else {
        panic!("a view box has four numbers")
    };
    let inside = |x: f64, y: f64| {
        assert!((0.0..=width).contains(&x) && (0.0..=height).contains(&y), "({x}, {y}) in {width} x {height}");
    };
    let mut shown = 0;
    for node in svg.descendants().filter(Node::is_element) {
        // Signs of the legend have places of their own.
        if node.ancestors().any(|parent| parent.has_tag_name("g")) {
            continue;
        }
        match (node.tag_name().name(), node.attribute("class")) {
            ("path", Some("data")) => {
                let places = numbers(node.attribute("d").unwrap());
                places.chunks(2).for_each(|place| inside(place[0], place[1]));
                shown += places.len() / 2;
            }
            ("circle", _) => inside(attribute(node, "cx"), attribute(node, "cy")),
            ("rect", Some("bar")) => {
                let (x, y) = (attribute(node, "x"), attribute(node, "y"));
                let (right, bottom) = (x + attribute(node, "width"), y + attribute(node, "height"));
                inside(x, y);
                inside(right, bottom);
                assert!(right > x);
                shown += 1;
            }
            ("text", _) => {
                // Too wide by no measure of a usual font.
                let text = node.text().unwrap_or("");
                let wide = text.chars().count() as f64 * 5.2;
                let x = attribute(node, "x");
                let (from, to) = match node.attribute("text-anchor") {
                    Some("end") => (x - wide, x),
                    Some("middle") => (x - wide / 2.0, x + wide / 2.0),
                    _ => (x, x + wide),
                };
                assert!(from >= -8.0 && to <= width + 8.0, "{text:?} from {from} to {to} of {width}");
            }
            _ => {}
        }
    }
    shown
}

#[test]
fn no_plot_of_a_recorded_run_is_empty() {
    let run = recorded();
    let page = html::page(&Summary::of(&run), RECORDED);
    let document = Document::parse_with_options(&page, options()).unwrap();
    let plots: Vec<Node<'_, '_>> = document.descendants().filter(|node| node.has_tag_name(svg("svg"))).collect();
    let mut found: Vec<&str> = plots.iter().map(|plot| plot.attribute("id").unwrap()).collect();
    for plot in &plots {
        assert!(shown(*plot) > 0, "{:?} is empty", plot.attribute("id"));
        let axes: Vec<&str> = plot
            .descendants()
            .filter(|node| node.attribute("class") == Some("axis"))
            .filter_map(|node| node.text())
            .collect();
        let labels = axes.iter().filter(|text| text.chars().any(char::is_alphabetic) && text.len() > 4).count();
        assert!(labels >= 1 && axes.len() >= 3, "{:?} has axes {axes:?}", plot.attribute("id"));
    }
    found.sort_unstable();
    let mut wanted = [
        "plot-conflicts",
        "plot-convergence",
        "plot-cost-cores",
        "plot-cost-disk",
        "plot-cost-fsyncs",
        "plot-cost-network",
        "plot-cost-processor",
        "plot-fault-1",
        "plot-fault-2",
        "plot-latency-throughput-p50",
        "plot-latency-throughput-p99",
        "plot-replication-lag",
        "plot-staleness",
        "plot-throughput",
    ];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

fn options<'input>() -> roxmltree::ParsingOptions<'input> {
    roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() }
}

fn svg(name: &'static str) -> (&'static str, &'static str) {
    ("http://www.w3.org/2000/svg", name)
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere() {
    let run = recorded();
    let page = html::page(&Summary::of(&run), RECORDED);
    let document = Document::parse_with_options(&page, options()).unwrap();
    let mut ids = Vec::new();
    for node in document.descendants().filter(Node::is_element) {
        assert!(
            !["script", "img", "link", "iframe", "object"].contains(&node.tag_name().name()),
            "{:?}",
            node.tag_name()
        );
        assert!(node.attribute("src").is_none());
        ids.extend(node.attribute("id"));
    }
    let distinct = ids.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(distinct, ids.len(), "ids are given once");
    for link in document.descendants().filter_map(|node| node.attribute("href")) {
        match link.strip_prefix('#') {
            Some(id) => assert!(ids.contains(&id), "{link}"),
            None => assert!(link.starts_with("data:application/x-ndjson;base64,") || !link.contains(':'), "{link}"),
        }
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
}

#[test]
fn guarantees_stand_beside_the_figures_in_every_output() {
    let run = recorded();
    let summary = Summary::of(&run);
    let promise = "on the disks of a majority, never undone";
    assert!(html::page(&summary, RECORDED).contains(promise));
    assert!(terminal::render(&summary).contains(promise));
    assert!(markdown::block(&summary, "docs/benchmarks").contains(promise));
}

#[test]
fn whatever_a_run_names_cannot_break_out_of_its_place() {
    let mut run = recorded();
    let evil = "</td><script>alert('x')</script>\" onload=\"y | `z` \u{7}";
    run.header.machine.cpu = evil.to_owned();
    for record in &mut run.records {
        record.workload.push_str(evil);
        record.engine.push_str(evil);
        record.notes.push(evil.to_owned());
        record.wrong.push(evil.to_owned());
        record.raw.push(evil.to_owned());
        // Those that say how a row is grouped stay, so that there are tables and plots to break out of.
        let shown = ["setup", "write", "reads", "acknowledged", "survives", "read guarantee", "cores", "load"];
        let values = record.settings.iter_mut().filter(|(name, _)| shown.contains(&name.as_str()));
        values.for_each(|(_, value)| value.push_str(evil));
        record.marks.iter_mut().for_each(|mark| mark.what.push_str(evil));
    }
    for engine in &mut run.engines {
        engine.engine.push_str(evil);
        engine.configuration.insert(evil.to_owned(), evil.to_owned());
    }
    let summary = Summary::of(&run);
    let page = html::page(&summary, evil);
    let document = Document::parse_with_options(&page, options()).unwrap();
    assert!(!document.descendants().any(|node| node.has_tag_name("script") || node.attribute("onload").is_some()));
    for chart in charts::charts(&summary).into_iter().filter_map(|chart| chart.svg) {
        let alone = plot::standalone(&chart);
        let document = Document::parse(&alone).unwrap();
        assert!(!document.descendants().any(|node| node.has_tag_name("script") || node.attribute("onload").is_some()));
    }
    let block = markdown::block(&summary, "docs/benchmarks");
    assert!(!block.contains("<script"));
    let table = block.lines().filter(|line| line.starts_with('|'));
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let widths: std::collections::BTreeSet<usize> = table.map(columns).collect();
    assert_eq!(widths.len(), 1, "every row has as many cells: {widths:?}");
    assert!(block.lines().filter(|line| line.starts_with('|')).count() > 5);
}

#[test]
fn a_run_that_was_cut_short_at_once_still_has_a_report() {
    let mut run = recorded();
    run.records.clear();
    run.engines.clear();
    run.remarks.clear();
    let page = html::page(&Summary::of(&run), "");
    Document::parse_with_options(&page, options()).unwrap();
    assert!(page.contains("Not measured"));
    assert!(terminal::render(&Summary::of(&run)).is_empty());
}

/// A browser of the usual names in the search path.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

/// A screenshot's file: a picture with nothing on it compresses to next to nothing.
fn screenshot(browser: &Path, folder: &Path, page: &Path, size: (u32, u32), dark: bool) -> Vec<u8> {
    let out = folder.join("shot.png");
    // It may be there from the picture before.
    let _ = std::fs::remove_file(&out);
    let mut command = Command::new(browser);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("--window-size={},{}", size.0, size.1));
    command.arg(format!("--screenshot={}", out.display()));
    command.arg(format!("file://{}", page.display()));
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    std::fs::read(out).unwrap()
}

#[test]
fn a_browser_draws_every_plot() {
    let Some(browser) = browser() else {
        eprintln!(
            "SKIPPED: there is no Chromium in the search path to draw the report; the plots were read as XML only"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let run = recorded();
    let page = folder.path().join("plot.html");
    let head = format!(
        "<!DOCTYPE html><meta charset=\"utf-8\"/><style>{}{}body{{margin:0;background:var(--background)}}</style>",
        plot::colours(),
        plot::STYLE
    );
    let size = (440, 420);
    std::fs::write(&page, &head).unwrap();
    let empty = screenshot(&browser, folder.path(), &page, size, false);
    let charts = charts::charts(&Summary::of(&run));
    // Each costs a start of the browser: one of each shape, and in dark.
    for id in ["throughput", "latency-throughput-p99", "fault-1", "staleness", "conflicts"] {
        let svg = charts.iter().find(|chart| chart.id == id).and_then(|chart| chart.svg.as_ref()).unwrap();
        std::fs::write(&page, format!("{head}{svg}")).unwrap();
        for dark in [false, true] {
            let drawn = screenshot(&browser, folder.path(), &page, size, dark);
            assert!(
                drawn.len() > empty.len() + 4_000,
                "{id}: {} bytes, an empty page has {}",
                drawn.len(),
                empty.len()
            );
        }
    }
}
