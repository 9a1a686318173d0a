//! The bench program from outside.

use std::process::{Command, Output};

use replikit_benches::figure::{Figure, Header, SCHEMA_VERSION};

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

    let lines = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    let mut lines = lines.lines();
    let header: Header = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header.schema, SCHEMA_VERSION);
    let figures: Vec<Figure> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let value = |metric: &str, clients| {
        let mut found = figures.iter().filter(|figure| figure.metric == metric && figure.clients == clients);
        found.next().unwrap_or_else(|| panic!("no {metric} of {clients} clients")).value
    };
    assert!(value("throughput", 1) > 0.0 && value("throughput", 64) > 0.0);
    let per_write = value("fsyncs per write, node 1", 1);
    assert!((0.99..1.1).contains(&per_write), "one client waits for one sync per write: {per_write}");
    assert!(value("fsyncs per write, node 1", 64) < 0.9, "many clients share their syncs");
    assert_eq!(value("acked writes lost", 64), 0.0);

    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "data"), "{left:?}");
    assert_eq!(left.iter().filter(|name| name.to_string_lossy().ends_with(".hgrm")).count(), 2, "{left:?}");
}

#[test]
fn wrong_arguments_are_one_line_and_exit_code_2() {
    for arguments in [&["--engine", "nope"][..], &["nope"], &["--only", "no such case"], &["--seconds", "0"]] {
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
    let server_log = out.join("data").join("engine-0").join("single-thread.log");
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
