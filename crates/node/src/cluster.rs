//! `replikit cluster`: a local cluster of real processes in one command.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use replikit_core::NodeId;
use replikit_partitioning::store::Layout;

use crate::shape::Strategy;
use crate::{CommandResult, args, say};

/// How long nodes may take to stop cleanly before they are killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// How long nodes may take to start, recovery included.
const START_TIME_MAX: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &args::Cluster) -> CommandResult {
    if args.shape.is_partitioned() {
        let nodes: Vec<NodeId> = (1..=args.nodes).map(NodeId).collect();
        Layout::new(&args.shape.founding(&nodes))?;
    }
    let last = u32::from(args.port) + args.nodes - 1;
    if last > u32::from(u16::MAX) {
        return Err(format!("{} ports from {} on do not exist", args.nodes, args.port).into());
    }
    for port in u32::from(args.port)..=last {
        let address = format!("127.0.0.1:{port}");
        TcpListener::bind(&address)
            .map_err(|error| format!("cannot listen on {address}: {error}; choose another --port"))?;
    }
    let kept = args.dir.is_some();
    let dir = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("replikit-{}", std::process::id())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(supervise(args, &dir));
    if !kept {
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

struct Member {
    id: u32,
    child: Child,
    /// Passes on what the node says, until it ends.
    echo: JoinHandle<()>,
    arguments: Vec<String>,
}

fn node_arguments(args: &args::Cluster, dir: &Path, id: u32) -> Vec<String> {
    let address = |id: u32| format!("127.0.0.1:{}", u32::from(args.port) + id - 1);
    let data: PathBuf = dir.join(format!("node-{id}"));
    let mut list: Vec<String> = vec!["node".into(), "--cluster".into(), args.cluster.clone()];
    list.extend(["--id".into(), id.to_string(), "--listen".into(), address(id)]);
    for peer in (1..=args.nodes).filter(|&peer| peer != id) {
        list.extend(["--peer".into(), format!("{peer}={}", address(peer))]);
    }
    list.extend(["--data".into(), data.display().to_string()]);
    list.extend(args.shape.arguments());
    list
}

/// What a node is told at its first start only.
fn first_arguments(args: &args::Cluster, is_new: bool) -> &'static [&'static str] {
    let has_leaders = matches!(args.shape.strategy, Strategy::SingleLeader | Strategy::Partitioned);
    if is_new && !has_leaders { &["--new"] } else { &[] }
}

async fn start(
    args: &args::Cluster,
    dir: &Path,
    id: u32,
    first: &[&str],
) -> Result<Member, Box<dyn std::error::Error>> {
    let arguments = node_arguments(args, dir, id);
    let mut child = Command::new(std::env::current_exe()?)
        .args(&arguments)
        .args(first)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C reaches the whole terminal: this process tells its nodes itself, and waits for them.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    match timeout(START_TIME_MAX, lines.next_line()).await {
        Ok(Ok(Some(line))) => say(line),
        _ => return Err(format!("node {id} did not start; what it said is above").into()),
    }
    let echo = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            say(format_args!("{line}"));
        }
    });
    Ok(Member { id, child, echo, arguments })
}

async fn supervise(args: &args::Cluster, dir: &Path) -> CommandResult {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    std::fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    // Only a cluster of which nothing is left is new: a single node without data may have lost it.
    let is_new = (1..=args.nodes).all(|id| !dir.join(format!("node-{id}")).exists());
    let mut members = Vec::new();
    for id in 1..=args.nodes {
        members.push(start(args, dir, id, first_arguments(args, is_new)).await?);
    }
    let first = u32::from(args.port);
    let all: Vec<String> = (first..first + args.nodes).map(|port| format!("127.0.0.1:{port}")).collect();
    say(format_args!("data in {}{}", dir.display(), if args.dir.is_some() { "" } else { ", removed at the end" }));
    say(format_args!("try:  replikit put --at {} greeting hello", all.join(",")));
    say(format_args!("      replikit status --at {}", all.join(",")));
    if args.shape.is_partitioned() {
        say(format_args!("      replikit partitions --at {}", all.join(",")));
    }
    for member in &members {
        say(format_args!("node {} is process {}", member.id, member.child.id().unwrap_or_default()));
    }
    say("Ctrl-C stops the cluster");
    loop {
        let ended = std::future::poll_fn(|context| {
            for (at, member) in members.iter_mut().enumerate() {
                let mut wait = std::pin::pin!(member.child.wait());
                if let std::task::Poll::Ready(status) = wait.as_mut().poll(context) {
                    return std::task::Poll::Ready((at, status));
                }
            }
            std::task::Poll::Pending
        });
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            (at, status) = ended => {
                let member = members.remove(at);
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                say(format_args!("node {} has ended: {how}", member.id));
                say(format_args!("to bring it back: replikit {}", member.arguments.join(" ")));
                if members.is_empty() {
                    return Err("all nodes have ended".into());
                }
            }
        }
    }
    say("stopping");
    for member in &members {
        if let Some(pid) = member.child.id() {
            terminate_process(pid);
        }
    }
    for member in &mut members {
        if timeout(STOP_TIME_MAX, member.child.wait()).await.is_err() {
            eprintln!("node {} did not stop within {STOP_TIME_MAX:?} and is killed", member.id);
            member.child.kill().await?;
        }
        // Its last words; a grandchild that holds the pipe open must not keep this process.
        let _ = timeout(Duration::from_secs(1), &mut member.echo).await;
    }
    Ok(())
}

/// Asks a process of ours to end.
fn terminate_process(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself in the meantime.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
