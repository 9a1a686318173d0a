//! What the replica inside gets to hear.

use core::time::Duration;
use std::collections::VecDeque;

use replikit_core::{Action, Input, Link, NodeId, Now, Replica, Time};
use replikit_liveness::{Detector, Settings, Watched, WatchedHead};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// Remembers what it was told of its peers.
#[derive(Debug, Default)]
struct Listener {
    heard: Vec<(NodeId, Link)>,
}

impl Replica for Listener {
    type Head = ();

    fn handle(&mut self, _: Now, input: Input<()>) {
        if let Input::Peer { node, link } = input {
            self.heard.push((node, link));
        }
    }

    fn poll(&mut self) -> Option<Action<()>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// Two nodes with a perfect network between them, until it swallows everything.
struct Pair {
    now: Time,
    nodes: [Watched<Listener>; 2],
    swallows: bool,
}

impl Pair {
    fn new() -> Self {
        let node = |id| {
            let detector = Detector::new(id, &[ONE, TWO], 1, Settings::default()).expect("the defaults work");
            Watched::new(Listener::default(), detector)
        };
        let mut pair = Self { now: Time::ZERO, nodes: [node(ONE), node(TWO)], swallows: false };
        for at in 0..2 {
            pair.input(at, Input::Recovered);
            pair.input(at, Input::Peer { node: NodeId(2 - at as u32), link: Link::Up });
        }
        pair
    }

    fn time(&self) -> Now {
        Now { mono: self.now, ..Now::default() }
    }

    fn input(&mut self, at: usize, input: Input<WatchedHead<()>>) {
        let mut rest = VecDeque::from([(at, input)]);
        while let Some((at, input)) = rest.pop_front() {
            let now = self.time();
            self.nodes[at].handle(now, input);
            while let Some(action) = self.nodes[at].poll() {
                if let Action::Send { message, .. } = action
                    && !self.swallows
                {
                    rest.push_back((1 - at, Input::Message { from: NodeId(at as u32 + 1), message }));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let due = |at: usize| self.nodes[at].deadline().map(|due| (due, at));
            let Some((due, at)) = [due(0), due(1)].into_iter().flatten().min().filter(|(due, _)| *due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            self.input(at, Input::Timer);
        }
        self.now = until;
    }

    fn heard(&self) -> &[(NodeId, Link)] {
        &self.nodes[0].inner().heard
    }
}

#[test]
fn a_peer_that_hangs_behind_a_link_that_stands_is_told_to_be_down_and_up_again() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.heard(), [(TWO, Link::Up)]);
    pair.swallows = true;
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.heard(), [(TWO, Link::Up), (TWO, Link::Down)]);
    pair.swallows = false;
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.heard(), [(TWO, Link::Up), (TWO, Link::Down), (TWO, Link::Up)]);
}

#[test]
fn a_link_that_does_not_stand_is_told_once_whatever_the_detector_says() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(5));
    pair.swallows = true;
    pair.input(0, Input::Peer { node: TWO, link: Link::Down });
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.heard(), [(TWO, Link::Up), (TWO, Link::Down)]);
    // The connection is there before the detector has heard.
    pair.input(0, Input::Peer { node: TWO, link: Link::Up });
    assert_eq!(pair.heard().last(), Some(&(TWO, Link::Reset)));
    pair.swallows = false;
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.heard().last(), Some(&(TWO, Link::Up)));
    assert_eq!(pair.heard().len(), 4);
}

#[test]
fn a_node_that_still_reads_its_log_does_not_answer() {
    let detector = Detector::new(ONE, &[ONE, TWO], 1, Settings::default()).expect("the defaults work");
    let mut node = Watched::new(Listener::default(), detector);
    assert!(node.poll().is_none() && node.deadline().is_none());
}
