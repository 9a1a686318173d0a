//! Processes that a run starts: each is killed and waited for when its guard goes, whatever ended the run.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Ports that are tried, in order. They lie below 32768, where the kernel begins to hand out ports to outgoing connections:
/// a server port above can be taken at any moment.
const PORTS: std::ops::Range<u16> = 21_100..32_000;

/// Finds ports of the loopback interface that nobody listens on.
///
/// # Errors
/// When there are not so many in the range that is searched.
pub fn free_ports(wanted: usize) -> io::Result<Vec<u16>> {
    // Another run that searches at the same moment begins elsewhere.
    let span = PORTS.end - PORTS.start;
    let offset = (std::process::id() as u16).wrapping_mul(97) % span;
    let mut held = Vec::new();
    for step in 0..span {
        let port = PORTS.start + (offset + step) % span;
        if let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            held.push((port, listener));
            if held.len() == wanted {
                return Ok(held.into_iter().map(|(port, _)| port).collect());
            }
        }
    }
    Err(io::Error::other(format!("fewer than {wanted} free ports in {}..{}", PORTS.start, PORTS.end)))
}

/// A process of ours.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to the file `output`, appended.
    ///
    /// # Errors
    /// Those of the file system and of starting a process; the program is named.
    pub fn start(name: &str, command: &mut Command, output: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(output)?;
        let errors = file.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{} does not start: {error}", command.get_program().display()))
        })?;
        Ok(Self { child, name: name.to_owned(), output: output.to_owned() })
    }

    /// Its number at the kernel.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What processors have done for it so far, to a hundredth of a second.
    ///
    /// # Errors
    /// When it has ended, or the system does not tell.
    pub fn processor_time(&self) -> io::Result<Duration> {
        /// Of the kernel's interface, whatever the kernel itself counts in.
        const TICKS_PER_SECOND: u64 = 100;
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field behind it.
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    /// The last lines that it printed.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// What it printed, whole.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Whether it still runs; the error says how it ended and what it said.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn check(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(io::Error::other(format!("{} has ended ({status}):\n{}", self.name, self.last_words())))
            }
        }
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGSTOP: the process stands still, its connections stay.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not end within the limit; it is then killed.
    pub fn stop(mut self, limit: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} did not stop within {limit:?}", self.name)))
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: that is what is wanted. SIGKILL also ends a frozen process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder that is removed with all its content when the guard goes.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates the folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed stays, below the build folder, where `cargo clean` takes it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct_and_below_the_ephemeral_range() {
        let ports = free_ports(6).expect("there are free ports");
        let mut distinct = ports.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 6);
        assert!(ports.iter().all(|port| *port < 32_768));
    }

    #[test]
    fn a_process_is_gone_when_its_guard_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output");
        let process = Process::start("sleep", Command::new("sleep").arg("600"), &output).expect("sleep starts");
        let pid = process.child.id();
        process.freeze().expect("it can be frozen");
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a frozen process is killed as well");
    }

    #[test]
    fn a_process_that_ended_says_what_it_said() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output");
        let mut process =
            Process::start("shell", Command::new("sh").args(["-c", "echo no such cluster; exit 3"]), &output)
                .expect("a shell starts");
        process.child.wait().expect("it ends");
        let error = process.check().expect_err("it has ended").to_string();
        assert!(error.contains("no such cluster") && error.contains("shell"), "{error}");
    }

    #[test]
    fn stopping_is_asked_for_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output");
        let process = Process::start("sleep", Command::new("sleep").arg("600"), &output).expect("sleep starts");
        let status = process.stop(Duration::from_secs(10)).expect("SIGTERM ends it");
        assert!(!status.success());
    }
}
