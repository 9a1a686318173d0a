//! How much memory a group takes in which nothing happens.
#![allow(unsafe_code, reason = "a global allocator cannot be written without; it only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use replikit_core::*;
use replikit_partitioning::{Groups, GroupsHead, NodeHeartbeats};
use replikit_single_leader::{Config, Head, Raft, Sharing};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread holds.
struct Counted;

#[global_allocator]
static COUNTED: Counted = Counted;

fn count(bytes: isize) {
    // A thread that ends may allocate after its counter is gone: nobody asks for that one.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a plain thread-local cell, which neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`, and the block came from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

type Machine = Small<u64, fn(&mut u64, &[u8]) -> Vec<u8>, fn(&u64, &[u8]) -> Vec<u8>>;
type Node = Groups<Raft<Machine>>;

const NODES: u32 = 3;
const GROUPS: u32 = 300;
const MS: u64 = 1_000_000;

fn machine() -> Machine {
    let apply: fn(&mut u64, &[u8]) -> Vec<u8> = |count, _| {
        *count += 1;
        count.to_le_bytes().to_vec()
    };
    Small::new(0, apply, |count, _| count.to_le_bytes().to_vec())
}

fn node(id: u32) -> Node {
    let mut sharing = Sharing::default();
    let raft = |group| {
        let voters = (1..=NODES).map(NodeId).collect();
        let seed = u64::from(group * NODES + id);
        let mut config = Config::new(ClusterId::from_name("test"), GroupId(group), NodeId(id), voters, seed);
        config.hibernate_after = Some(Duration::from_millis(100));
        let raft = Raft::sharing(&mut sharing, &config, &Boot::default(), machine());
        (GroupId(group), raft.expect("it is in range"))
    };
    let (every, patience) = (Duration::from_millis(30), Duration::from_millis(150));
    Groups::new(Epoch(1), (1..=GROUPS).map(raft)).with_node_heartbeats(NodeHeartbeats {
        every,
        patience,
        life: id.into(),
    })
}

struct Cluster {
    nodes: Vec<Node>,
    now: Now,
    wire: VecDeque<(NodeId, usize, Message<GroupsHead<Head>>)>,
    acked: usize,
}

impl Cluster {
    /// Whatever is to be stored is on disk at once, and forgotten.
    fn input(&mut self, at: usize, input: Input<GroupsHead<Head>>) {
        let node = &mut self.nodes[at];
        node.handle(self.now, input);
        while let Some(action) = node.poll() {
            match action {
                Action::Persist { id, .. } => node.handle(self.now, Input::Durable { up_to: id }),
                Action::Send { to, message } => {
                    self.wire.push_back((NodeId(at as u32 + 1), to.0 as usize - 1, message))
                }
                Action::Done { outcome, .. } => self.acked += usize::from(matches!(outcome, Outcome::Acked { .. })),
                _ => {}
            }
        }
        node.take_rested();
    }

    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.now.mono = Time(self.now.mono.0 + MS);
            for at in 0..self.nodes.len() {
                self.input(at, Input::Timer);
            }
            while let Some((from, to, message)) = self.wire.pop_front() {
                self.input(to, Input::Message { from, message });
            }
        }
    }

    /// Writes to every group, each of its replicas being asked.
    fn write_everywhere(&mut self) {
        for group in 1..=GROUPS {
            for at in 0..self.nodes.len() {
                let (token, group, level) = (Token(u64::from(group)), GroupId(group), WriteLevel::Quorum);
                self.input(at, Input::Command { token, group, level, session: None, body: vec![7; 256].into() });
            }
        }
    }

    fn sleeps(&self) -> bool {
        self.nodes.iter().all(|node| node.groups().all(|(_, raft)| raft.is_asleep()))
    }
}

#[test]
fn a_sleeping_group_takes_little_memory_also_after_it_was_written_to() {
    let before = HELD.get();
    let mut cluster = Cluster {
        nodes: (1..=NODES).map(node).collect(),
        now: Now { mono: Time(1_000 * MS), ..Now::default() },
        wire: VecDeque::new(),
        acked: 0,
    };
    (0..NODES as usize).for_each(|at| cluster.input(at, Input::Recovered));
    let held = |cluster: &mut Cluster| {
        cluster.wire.shrink_to_fit();
        (HELD.get() - before) / (NODES * GROUPS) as isize
    };
    cluster.run(2_000);
    assert!(cluster.sleeps());
    let fresh = held(&mut cluster);
    for _ in 0..20 {
        cluster.write_everywhere();
        cluster.run(5);
    }
    assert_eq!(cluster.acked, 20 * GROUPS as usize);
    let used = held(&mut cluster);
    cluster.run(2_000);
    assert!(cluster.sleeps());
    let slept = held(&mut cluster);
    println!("bytes of a group: {fresh} fresh, {used} in use, {slept} asleep");
    assert!(fresh <= 1_536 && slept <= 1_536, "{fresh} fresh, {slept} asleep");
    assert!(slept < used, "{slept} of {used}");
}
