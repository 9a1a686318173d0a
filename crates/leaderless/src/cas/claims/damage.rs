//! Whatever a peer sends: no panic, and requests end all the same.

use bytes::Bytes;
use proptest::prelude::*;
use replikit_core::{Epoch, Incarnation, NodeId, Origin, Time, Token};

use super::super::*;
use super::add;
use super::group::{DEADLINE, majority, member};

fn ballot() -> impl Strategy<Value = Ballot> {
    let round = prop_oneof![4 => 0..6_u64, 1 => any::<u64>(), 1 => Just(Ballot::ROUND_MAX)];
    let incarnation = |node| Origin { node: NodeId(node), incarnation: Incarnation(1) }.id().unwrap();
    (round, 1..4_u32, 0..3_u32)
        .prop_map(move |(round, node, start)| Ballot { round, proposer: Proposer { origin: incarnation(node), start } })
}

fn register() -> impl Strategy<Value = Register> {
    (proptest::option::of(Just(Bytes::from("v"))), proptest::collection::vec(ballot(), 0..12)).prop_map(
        |(value, ballots)| {
            let mut lineage = Lineage::default();
            ballots.into_iter().for_each(|ballot| lineage.push(ballot));
            Register { value, lineage }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let key = prop_oneof![Just(Bytes::from("k")), Just(Bytes::new())];
    let ask = prop_oneof![
        (ballot(), ballot()).prop_map(|(ballot, known)| Ask::Prepare { ballot, known }),
        (ballot(), register(), ballot()).prop_map(|(ballot, register, next)| Ask::Accept { ballot, register, next }),
        ballot().prop_map(|known| Ask::Query { known }),
    ];
    let holding =
        || (ballot(), proptest::option::of(register())).prop_map(|(ballot, register)| Holding { ballot, register });
    let answer = prop_oneof![
        holding().prop_map(Answer::Promised),
        holding().prop_map(Answer::Holds),
        Just(Answer::Accepted),
        ballot().prop_map(|promised| Answer::Refused { promised }),
    ];
    let attempt = || (ballot(), 0..6_u64).prop_map(|(ballot, number)| Attempt { proposer: ballot.proposer, number });
    let lives = proptest::collection::vec((1..5_u32, 0..3_u32), 0..3)
        .prop_map(|lives| lives.into_iter().map(|(node, life)| (NodeId(node), Life(life))).collect());
    let life = any::<u32>().prop_map(Life);
    prop_oneof![
        (attempt(), key, ask).prop_map(|(attempt, key, ask)| Message::Ask { epoch: Epoch(1), attempt, key, ask }),
        (attempt(), life, lives, answer).prop_map(|(attempt, life, lives, answer)| Message::Answer {
            epoch: Epoch(1),
            attempt,
            life,
            lives,
            answer
        }),
    ]
}

proptest! {
    #[test]
    fn no_message_of_a_peer_causes_a_panic_or_keeps_a_request_from_ending(
        messages in proptest::collection::vec((1..5_u32, message()), 0..60),
    ) {
        let mut cas = member(1, 1, majority(1..=3), CasConfig::default());
        cas.start(Start::Whole);
        cas.handle_durable(Time(1), RecordNumber(9));
        let mut ended = 0;
        for (n, (from, message)) in messages.into_iter().enumerate() {
            let now = Time(1 + n as u64 * 1_000_000);
            let op = if n % 2 == 0 { CasOp::Read } else { add(1) };
            cas.begin(now, Token(n as u64), "k".into(), op, now + DEADLINE).unwrap();
            cas.handle_message(now, NodeId(from), message);
            cas.handle_durable(now, RecordNumber(u64::MAX));
            cas.handle_time(now);
        }
        cas.handle_time(Time::ZERO + DEADLINE + DEADLINE);
        while let Some(output) = cas.poll_output() {
            ended += u64::from(matches!(output, CasOutput::Ended { .. }));
        }
        prop_assert_eq!(cas.sizes().requests, 0);
        prop_assert_eq!(cas.deadline(), Time::NEVER, "{} ended", ended);
    }

    #[test]
    fn no_bytes_of_a_peer_cause_a_panic(bytes in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..80)) {
        let mut cas = member(1, 1, majority(1..=3), CasConfig::default());
        cas.start(Start::Forgetful);
        if let Ok(record) = postcard::from_bytes::<Record>(&bytes) {
            cas.join(&record);
        }
        cas.serve();
        if let Ok(message) = postcard::from_bytes::<Message>(&bytes) {
            cas.handle_message(Time(1), NodeId(2), message);
        }
    }
}
