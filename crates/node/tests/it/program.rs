//! Runs the program and ends what it started.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn replikit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replikit"));
    command.stdin(Stdio::null()).env_remove("REPLIKIT_AT").env_remove("REPLIKIT_CLUSTER");
    command
}

/// Runs a command that ends by itself.
pub(crate) fn run(args: &[&str]) -> Output {
    replikit().args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The command must fail with one line on standard error that holds these words.
pub(crate) fn refused(args: &[&str], words: &[&str]) {
    let output = run(args);
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} was accepted");
    assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{args:?}: no `{word}` in: {error}");
    }
}

/// A port that was free a moment ago, below the range from which the system chooses; another one for each test of the process.
pub(crate) fn free_ports(count: u16) -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 500).unwrap() * 20;
    (0..500)
        .map(|_| CALLS.fetch_add(1, Ordering::Relaxed))
        .map(|step| 12_000 + (spread + step % 500 * 20) % 10_000)
        .find(|&first| (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
        .expect("some ports are free")
}

/// A node process; killed when dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
}

impl Node {
    pub(crate) fn start(id: u32, ports: u16, nodes: u32, dir: &Path) -> Self {
        Self::start_with(id, ports, nodes, dir, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(id: u32, ports: u16, nodes: u32, dir: &Path, more: &[&str]) -> Self {
        let mut command = replikit();
        let address = |id: u32| format!("127.0.0.1:{}", u32::from(ports) + id - 1);
        command.args(["node", "--cluster", "test", "--id", &id.to_string(), "--listen", &address(id)]);
        for peer in (1..=nodes).filter(|&peer| peer != id) {
            command.args(["--peer", &format!("{peer}={}", address(peer))]);
        }
        command.arg("--data").arg(dir.join(id.to_string())).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("listening on"), "node {id} said: {line}");
        Self { child }
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The process stands still; what others send it waits in its sockets.
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        // The signal is only on its way: a thread that runs may still answer somebody.
        let tasks = format!("/proc/{}/task", self.child.id());
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { return true };
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        };
        while !std::fs::read_dir(&tasks).unwrap().all(stands) {
            std::thread::yield_now();
        }
    }

    /// The process goes on.
    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks the process to end, and returns whether it ended well.
    pub(crate) fn terminate(mut self) -> bool {
        self.signal(rustix::process::Signal::TERM);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
