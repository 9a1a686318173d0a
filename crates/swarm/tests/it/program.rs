//! The program from outside.

use std::process::{Command, Stdio};

#[test]
fn a_reader_that_has_gone_ends_nothing_with_a_panic() {
    for told in [&["--tell", "--seed", "1", "--millis", "50"][..], &["--seeds", "1", "--millis", "50"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_swarm"));
        program.args(["--strategy", "register"]).args(told).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = program.spawn().expect("it starts");
        // As `| head -0` would.
        drop(running.stdout.take());
        let ended = running.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{told:?}: {}: {errors}", ended.status);
        assert!(!errors.contains("panicked"), "{told:?}: {errors}");
    }
}
