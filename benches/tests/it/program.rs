//! The bench program from outside.

use std::process::{Command, Output};

use replikit_benches::record::{Kind, Run};
use replikit_benches::slow_down::PLANTED;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replikit-bench")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_run_of_the_baseline_leaves_its_figures_and_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = bench(&[
        "--suite",
        "smoke",
        "--engine",
        "single-thread",
        "--only",
        "fdatasync",
        "--out",
        out.to_str().unwrap(),
    ]);
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{shown}\n{errors}");
    assert!(shown.contains("acked = on the one disk"), "guarantees stand beside the figures: {shown}");

    let run = Run::read(&out).unwrap();
    let value = |metric: &str, clients| {
        let mut found = run.of(Kind::Case).filter(|record| record.clients == clients);
        found.find_map(|record| record.value(metric)).unwrap_or_else(|| panic!("no {metric} of {clients} clients"))
    };
    assert!(value("throughput", 1) > 0.0 && value("throughput", 64) > 0.0);
    let per_write = value("fsyncs per write, node 1", 1);
    assert!((0.99..1.1).contains(&per_write), "one client waits for one sync per write: {per_write}");
    assert!(value("fsyncs per write, node 1", 64) < 0.9, "many clients share their syncs");
    assert_eq!(value("acked writes lost", 64), 0.0);

    assert!(value("processor time per request", 64) > 0.1, "a request takes longer than 100 ns");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("on the one disk") && page.ends_with("</html>\n"));

    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "data"), "{left:?}");
    assert_eq!(left.iter().filter(|name| name.to_string_lossy().ends_with(".hgrm")).count(), 2, "{left:?}");
}

/// The baselines with one file, each with few and many clients: read back like any other engine, so that a write that one thread
/// or process hid from another would be found.
#[test]
fn threads_and_processes_that_share_a_file_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for engine in ["shared-memory", "shared-disk"] {
        let out = folder.path().join(engine);
        let suite = ["--suite", "default", "--engine", engine, "--rounds", "1", "--only", "64 clients"];
        let output = bench(&[&suite[..], &["--out", out.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
        let run = Run::read(&out).unwrap();
        let cases: Vec<_> = run.of(Kind::Case).collect();
        assert_eq!(cases.len(), 3, "writes and reads with a sync, writes without");
        for case in cases {
            assert!(case.value("throughput").unwrap() > 0.0, "{}", case.name);
            assert!(case.value("keys read back").unwrap() > 0.0 && case.value("acked writes lost") == Some(0.0));
            assert_eq!(case.value("wrong reads"), Some(0.0));
            assert_eq!(case.value("requests failed"), Some(0.0));
        }
    }
}

#[test]
fn a_run_that_was_cut_short_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let asked = ["--suite", "smoke", "--engine", "single-thread", "--rounds", "2"];
    let whole = bench(&[&asked[..], &["--out", out.to_str().unwrap()]].concat());
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let measured = Run::read(&out).unwrap().of(Kind::Case).count();
    assert_eq!(measured, 2 * 3);

    // As if the process had been killed while it wrote the fourth case.
    let path = out.join("results.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap();
    let fourth = lines.match_indices("\"kind\":\"case\"").nth(3).unwrap().0;
    std::fs::write(&path, &lines[..fourth]).unwrap();
    let resumed = bench(&[&asked[..], &["--resume", out.to_str().unwrap()]].concat());
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let run = Run::read(&out).unwrap();
    assert_eq!((run.of(Kind::Case).count(), run.resumed.len()), (measured, 1));
    let begun = text(&resumed.stderr).lines().filter(|line| line.contains("s left] round")).count();
    assert_eq!(begun, 3, "what the results have is not measured again: {}", text(&resumed.stderr));

    let other = bench(&["--suite", "smoke", "--seed", "2", "--resume", out.to_str().unwrap()]);
    assert_eq!(other.status.code(), Some(2), "another run is not mixed into this one");
}

#[test]
fn a_result_compared_with_itself_is_no_regression_and_with_too_few_rounds_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let recorded = include_str!("data/results.jsonl");
    std::fs::write(&path, recorded).unwrap();
    let path = path.to_str().unwrap();
    let few = bench(&["compare", path, path]);
    assert_eq!(few.status.code(), Some(3), "{}", text(&few.stdout));
    let sure = bench(&["compare", path, path, "--confidence", "0"]);
    assert_eq!(sure.status.code(), Some(0), "{}", text(&sure.stdout));
    let slower = folder.path().join("slower.jsonl");
    let mut lines = String::new();
    for line in recorded.lines() {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for figure in value["figures"].as_array_mut().into_iter().flatten() {
            if figure["metric"] == "processor time per request" {
                figure["value"] = (figure["value"].as_f64().unwrap() * 1.5).into();
            }
        }
        lines.push_str(&format!("{value}\n"));
    }
    std::fs::write(&slower, lines).unwrap();
    let slower = bench(&["compare", path, slower.to_str().unwrap(), "--confidence", "0"]);
    assert_eq!(slower.status.code(), Some(1), "{}", text(&slower.stdout));
    assert!(text(&slower.stdout).contains("REGRESSION"));
}

#[test]
fn a_planted_slow_down_stands_wherever_its_figures_do_and_keeps_them_out_of_the_documentation() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let path = out.to_str().unwrap();
    let slow = ["--suite", "smoke", "--engine", "single-thread", "--only", "no sync", "--plant-slow-down", "50"];
    let output = bench(&[&slow[..], &["--out", path]].concat());
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("planted slow-down: 50 %"), "{}", text(&output.stdout));
    let run = Run::read(&out).unwrap();
    assert!(run.header.asked.contains("--plant-slow-down 50"), "{}", run.header.asked);
    assert!(run.engines.iter().all(|engine| engine.configuration.contains_key(PLANTED)) && !run.engines.is_empty());
    assert!(run.of(Kind::Case).all(|case| case.setting(PLANTED).starts_with("50 %") && !case.notes.is_empty()));
    assert!(run.planted().is_some());
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("planted slow-down"));

    for refused in [&["report", path, "--readme"][..], &["report", path, "--docs"]] {
        let output = bench(refused);
        assert_eq!(output.status.code(), Some(2), "{refused:?}");
        assert!(text(&output.stderr).contains("not for the documentation"), "{}", text(&output.stderr));
    }
    let compared = bench(&["compare", path, path]);
    assert!(text(&compared.stdout).contains("the first side has a planted slow-down"), "{}", text(&compared.stdout));
    let results = bench(&["compare", path, path, "--plant-slow-down", "10"]);
    assert_eq!(results.status.code(), Some(2), "what was measured cannot be slowed down");
}

#[test]
fn wrong_arguments_are_one_line_and_exit_code_2() {
    let wrong = [
        &["--engine", "nope"][..],
        &["nope"],
        &["--only", "no such case"],
        &["--seconds", "0"],
        &["--plant-slow-down", "0"],
        &["advise", "--workload", "bank", "--needs", "linearizable", "--rounds", "2"],
    ];
    for arguments in wrong {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = text(&output.stderr);
        assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    }
}

#[test]
fn an_interrupted_run_kills_its_processes_and_removes_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_replikit-bench"))
        .args(["--engine", "single-thread", "--seconds", "60", "--out", out.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let server_log = out.join("data").join("set-1").join("single-thread.log");
    let listening = || std::fs::read_to_string(&server_log).is_ok_and(|log| log.contains("listening on"));
    while !listening() {
        assert!(child.try_wait().unwrap().is_none(), "the run goes on until it is interrupted");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let address = std::fs::read_to_string(&server_log).unwrap();
    let address = address.trim().strip_prefix("listening on ").unwrap().to_owned();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stdout).contains("interrupted"));
    assert!(!out.join("data").exists());
    assert!(std::net::TcpStream::connect(&address).is_err(), "nothing listens on {address} any more");
}
