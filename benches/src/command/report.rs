//! Makes the outputs of a results file: the page, the block of the README, the plots of the documentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use replikit_benches::error::BenchError;
use replikit_benches::place::runs_folder;
use replikit_benches::record::{FILE_NAME, Run};
use replikit_benches::report::{Summary, charts, html, markdown, plot, terminal};
use replikit_benches::slow_down::PLANTED;

/// Where the plots of the documentation lie, from the workspace's top.
const PLOTS: &str = "docs/benchmarks";
const README: &str = "README.md";
const COMPARISON: &str = "docs/benchmarks-comparison.md";

#[derive(Args)]
pub(crate) struct ReportArguments {
    /// A run's folder or results file; the last run without it.
    run: Option<PathBuf>,
    /// Where the page goes, instead of report.html beside the results.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Writes the block of README.md as well, and the plots to docs/benchmarks.
    #[arg(long)]
    readme: bool,
    /// Writes the block of docs/benchmarks-comparison.md as well, and the plots to docs/benchmarks.
    #[arg(long)]
    docs: bool,
}

pub(crate) fn report(arguments: &ReportArguments) -> Result<ExitCode, BenchError> {
    let path = match &arguments.run {
        Some(path) => path.clone(),
        None => runs_folder().map_err(BenchError::io("looking for the last run"))?.join("latest"),
    };
    let run = Run::read(&path)?;
    if let Some(planted) = run.planted()
        && (arguments.readme || arguments.docs)
    {
        let what = format!("{} has a {PLANTED} ({planted}): it is not for the documentation", path.display());
        return Err(BenchError::Usage(what));
    }
    let summary = Summary::of(&run);
    println!("{}", terminal::render(&summary));
    println!("report: {}", write_page(&path, arguments.out.as_deref())?.display());
    if arguments.readme || arguments.docs {
        write_plots(&summary)?;
    }
    if arguments.readme {
        write_block(Path::new(README), &markdown::block(&summary, PLOTS))?;
    }
    if arguments.docs {
        write_block(Path::new(COMPARISON), &markdown::block(&summary, "benchmarks").replace("(docs/", "("))?;
    }
    for fault in run.faults_found() {
        println!("{fault}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a run, beside its results unless said otherwise; where it is.
///
/// # Errors
/// When the results cannot be read, or the page cannot be written.
pub(crate) fn write_page(run: &Path, out: Option<&Path>) -> Result<PathBuf, BenchError> {
    let file = if run.is_dir() { run.join(FILE_NAME) } else { run.to_owned() };
    let raw = fs::read_to_string(&file).map_err(BenchError::io(format!("reading {}", file.display())))?;
    let read = Run::parse(&file, &raw)?;
    let path = out.map_or_else(|| file.with_file_name("report.html"), Path::to_owned);
    let page = html::page(&Summary::of(&read), &raw);
    fs::write(&path, page).map_err(BenchError::io(format!("writing {}", path.display())))?;
    Ok(path)
}

fn write_plots(summary: &Summary<'_>) -> Result<(), BenchError> {
    let failed = || BenchError::io(format!("writing the plots to {PLOTS}"));
    fs::create_dir_all(PLOTS).map_err(failed())?;
    for chart in charts::charts(summary) {
        let path = Path::new(PLOTS).join(format!("{}.svg", chart.id));
        match chart.svg {
            Some(svg) => {
                let made = "<!-- made by `cargo xtask bench report --docs` -->\n";
                fs::write(&path, format!("{made}{}", plot::standalone(&svg))).map_err(failed())?;
                println!("plot: {}", path.display());
            }
            None => println!("not measured, and left as it is: {}", path.display()),
        }
    }
    Ok(())
}

fn write_block(path: &Path, block: &str) -> Result<(), BenchError> {
    let shown = path.display();
    let file = fs::read_to_string(path).map_err(BenchError::io(format!("reading {shown}")))?;
    let written = markdown::between_markers(&file, block).ok_or_else(|| {
        BenchError::Usage(format!("{shown} has not one pair of {} and {}", markdown::BEGIN, markdown::END))
    })?;
    fs::write(path, written).map_err(BenchError::io(format!("writing {shown}")))?;
    println!("block: {shown}");
    Ok(())
}
