//! A partitioned group by itself: routes, retries, copies, snapshots, and the bytes of all of it.

use bytes::Bytes;
use replikit_core::keyspace::{Keyspace, decode_page, decode_value, encode_get, encode_scan, encode_write as put};
use replikit_core::{Epoch, GroupId, LogIndex, NodeId, ReadLevel, ScanRequest, StateMachine, WriteRequest};

use super::*;
use crate::handoff::{Phase, Record, Refusal, Tail};
use crate::id::{BoundsVersion, PartitionId};
use crate::map::{Change, PartitionMap};

fn map() -> PartitionMap {
    let replicas = |group: u32| (GroupId(group), vec![NodeId(group)]);
    PartitionMap::first(Scheme::KEY_ORDER, ["m".into()], [replicas(1), replicas(2)]).unwrap()
}

struct Group {
    shard: Shard<Keyspace>,
    at: u64,
}

impl Group {
    fn new(group: u32) -> Self {
        Self { shard: Shard::new(Scheme::KEY_ORDER, Holdings::first(&map(), GroupId(group))), at: 0 }
    }

    fn apply(&mut self, command: &[u8]) -> Reply {
        self.at += 1;
        decode_reply(&self.shard.apply(LogIndex(self.at), command)).unwrap()
    }

    fn add(&mut self, route: &Route, request: Option<Request>, key: &'static str, delta: i64) -> Reply {
        self.apply(&encode_write(route, request, &put(&WriteRequest::add(key, delta)).unwrap()))
    }

    fn get(&self, route: &Route, key: &str) -> Reply {
        decode_reply(&self.shard.query(&encode_read(route, &encode_get(key.as_bytes()).unwrap()), 1 << 10)).unwrap()
    }

    fn scan(&self, route: &Route, from: &'static str) -> Vec<(Bytes, Bytes)> {
        let scan = ScanRequest { from: from.into(), to: None, limit: 9, level: ReadLevel::Linearizable };
        let reply = self.shard.query(&encode_read(route, &encode_scan(&scan)), 1 << 20);
        let Ok(Reply::Done(page)) = decode_reply(&reply) else { panic!("{reply:?}") };
        decode_page(&page).unwrap().items
    }

    fn record(&mut self, record: Record) {
        assert_eq!(self.apply(&encode_record(&record)), Reply::Recorded);
    }

    fn bytes(&self, piece_bytes: usize) -> Vec<Bytes> {
        let mut source = self.shard.snapshot();
        core::iter::from_fn(|| source.next(piece_bytes)).collect()
    }
}

fn value(reply: Reply) -> Option<Bytes> {
    let Reply::Done(answer) = reply else { panic!("{reply:?}") };
    decode_value(&answer).unwrap()
}

fn request(sequence: u64, done_below: u64) -> Option<Request> {
    Some(Request { client: ClientId(7), sequence, done_below })
}

#[test]
fn a_write_is_carried_out_under_the_route_of_its_partition_only() {
    let (map, mut group) = (map(), Group::new(1));
    let own = map.route(b"fig");
    assert!(matches!(group.add(&own, None, "fig", 1), Reply::Done(_)));
    let Reply::Refused(Refusal::Stale(stale)) = group.add(&map.route(b"pear"), None, "pear", 1) else { panic!() };
    assert_eq!((stale.epoch, stale.current.len()), (Epoch(1), 0));
    // A route of another key is refused with the entry of the key's partition, if the group knows it.
    let Reply::Refused(Refusal::Stale(stale)) = group.add(&map.route(b"pear"), None, "fig", 1) else { panic!() };
    assert_eq!(stale.current, [map.partition_of(b"fig").clone()]);
    let ahead = Route { bounds: BoundsVersion(2), ..own };
    assert_eq!(group.add(&ahead, None, "fig", 1), Reply::Refused(Refusal::Ahead { epoch: Epoch(1) }));
    assert_eq!(value(group.get(&own, "fig")), Some("1".into()));
    assert!(matches!(group.get(&ahead, "fig"), Reply::Refused(_)));
    assert_eq!(group.apply(b"\x01\xff"), Reply::Malformed);
}

#[test]
fn splits_and_merges_of_the_map_are_followed_by_the_log() {
    let (mut map, mut group) = (map(), Group::new(1));
    let old = map.route(b"fig");
    group.add(&old, None, "apple", 1);
    group.add(&old, None, "fig", 2);
    let change = |map: &mut PartitionMap, change| *map = map.changed(&change).unwrap().0;
    change(&mut map, Change::Split { partition: PartitionId(1), at: "c".into() });
    let record = group.shard.holdings().recut(&map, GroupId(1)).unwrap();
    group.record(record.clone());
    assert_eq!(group.shard.holdings().recut(&map, GroupId(1)), None, "it is done");
    let Reply::Refused(Refusal::Stale(stale)) = group.add(&old, None, "fig", 1) else { panic!() };
    assert_eq!(stale.current, [map.partition_of(b"fig").clone()]);
    assert_eq!(group.scan(&map.route(b"apple"), ""), [("apple".into(), "1".into())]);
    assert_eq!(group.scan(&map.route(b"fig"), ""), [("fig".into(), "2".into())]);
    // Two more at once, of which the log hears only the end; and the first record comes again.
    change(&mut map, Change::Split { partition: PartitionId(1), at: "b".into() });
    change(&mut map, Change::Merge { left: PartitionId(4), right: PartitionId(3) });
    group.record(group.shard.holdings().recut(&map, GroupId(1)).unwrap());
    group.record(record);
    let held: Vec<_> = group.shard.holdings().held().map(|(_, held)| held.entry.clone()).collect();
    let mut wanted: Vec<_> = map.of_group(GroupId(1)).cloned().collect();
    wanted.sort_by_key(|it| it.id);
    assert_eq!(held, wanted);
}

#[test]
fn a_retry_behind_a_handoff_gets_the_first_answer() {
    let (map, mut source, mut target) = (map(), Group::new(1), Group::new(2));
    let route = map.route(b"fig");
    let first = source.add(&route, request(1, 1), "fig", 5);
    source.add(&route, request(2, 1), "apple", 6);
    assert_eq!(source.add(&route, request(1, 1), "fig", 5), first);
    let plan = Change::PlanHandoff { partition: PartitionId(1), target: GroupId(2), replicas: vec![NodeId(2)] };
    let (planned, _) = map.changed(&plan).unwrap();
    let id = HandoffId(2);
    let it = planned.handoff(id).unwrap();
    let (handoff, partition, birth, bounds, span) = (id, it.partition, it.birth, it.bounds, it.span.clone());
    // In pieces of one key each, with a write between them that the tail repeats.
    let (mut after, mut at) = (None, LogIndex(0));
    loop {
        let piece = source.shard.contents().piece(&span, after.as_deref(), 1);
        at = at.max(LogIndex(if after.is_none() { source.at } else { 0 }));
        let through = piece.through.clone();
        target.record(Record::Stage { handoff, partition, birth, bounds, span: span.clone(), at, after, piece });
        let Some(key) = through else { break };
        source.add(&route, request(3, 1), "apple", 10);
        after = Some(key);
    }
    source.record(Record::Seal { handoff, partition, birth, bounds });
    assert_eq!(source.add(&route, request(4, 1), "fig", 1), Reply::Refused(Refusal::HandingOff(id)));
    let Some((_, held)) = source.shard.holdings().held().next() else { panic!() };
    let Phase::Sealed { at: sealed, .. } = held.phase else { panic!() };
    let digest = source.shard.contents().digest(&span);
    let Tail { entries, to } = source.shard.contents().tail(&span, at, sealed).unwrap();
    assert_eq!(to, sealed);
    target.record(Record::Tail { handoff, after: at, to: sealed, entries });
    assert_eq!(target.shard.contents().staged_digest(id), digest);
    target.record(Record::Prepared { handoff, sealed });
    let (decided, _) = planned.changed(&Change::CommitHandoff(id)).unwrap();
    let entry = decided.partition(partition).unwrap().clone();
    let route = entry.route();
    assert!(
        matches!(target.get(&route, "fig"), Reply::Refused(Refusal::Ahead { .. })),
        "not visible before it is open"
    );
    target.record(Record::Open { handoff, entry: entry.clone() });
    assert_eq!(target.add(&route, request(1, 1), "fig", 5), first, "the answer has moved along");
    assert_eq!(value(target.get(&route, "apple")), Some("16".into()));
    source.record(Record::Drop { handoff, partition, epoch: decided.epoch(), now: vec![entry.clone()] });
    let Reply::Refused(Refusal::Stale(stale)) = source.get(&map.route(b"fig"), "fig") else { panic!() };
    assert_eq!(stale.current, [entry]);
    assert!(source.shard.machine().is_empty());
    // Nobody has waited until its memory was free.
    assert!(source.shard.is_untidy());
    source.shard.tidy(2);
    assert!(source.shard.is_untidy() && source.shard.machine().is_empty());
    source.shard.tidy(2);
    assert!(!source.shard.is_untidy());
}

/// Copies under load began anew again and again: more was written meanwhile than a replica remembered.
#[test]
fn a_copy_goes_on_however_much_is_written_meanwhile() {
    let (map, mut source) = (map(), Group::new(1));
    let route = map.route(b"fig");
    let span = map.partition_of(b"fig").span.clone();
    source.add(&route, None, "fig", 1);
    source.shard.contents().piece(&span, None, 1);
    let at = LogIndex(source.at);
    let keys = ["apple", "date", "fig"];
    for nth in 0..100_000 {
        source.add(&route, None, keys[nth % 3], 1);
    }
    let end = LogIndex(source.at);
    let (mut reached, mut entries) = (at, 0);
    while reached < end {
        let tail = source.shard.contents().tail(&span, reached, end).expect("it is remembered for the copy");
        entries += tail.entries.len();
        reached = tail.to;
    }
    assert!(entries < 40_000, "{entries} entries: not each write of a key");
    assert!(source.shard.contents().tail(&span, LogIndex(at.0 - 1), end).is_none(), "what nobody needs is not");
}

#[test]
fn what_a_client_waits_for_no_longer_is_forgotten_and_never_new() {
    let (map, mut group) = (map(), Group::new(1));
    let route = map.route(b"fig");
    group.add(&route, request(1, 1), "fig", 5);
    group.add(&route, request(2, 2), "fig", 5);
    assert_eq!(group.add(&route, request(1, 1), "fig", 5), Reply::Expired);
    assert_eq!(group.add(&route, request(2 + ANSWERS_MAX as u64, 2), "fig", 5), Reply::Expired);
    for client in 8..8 + CLIENTS_MAX as u64 {
        let request = Request { client: ClientId(client), sequence: 1, done_below: 1 };
        assert!(matches!(group.add(&route, Some(request), "fig", 1), Reply::Done(_)));
    }
    assert_eq!(group.add(&route, request(3, 1), "fig", 5), Reply::Expired, "pushed out by newer ones");
}

#[test]
fn a_snapshot_in_pieces_of_any_size_restores_everything() {
    let (map, mut group) = (map(), Group::new(1));
    let route = map.route(b"fig");
    for (nth, key) in ["fig", "apple", "date"].into_iter().enumerate() {
        group.add(&route, request(nth as u64 + 1, 1), key, 3);
    }
    let piece = group.shard.contents().piece(&Span::ALL, None, 1 << 10);
    let entry = map.partition_of(b"pear");
    let (span, birth, bounds, at) = (entry.span.clone(), entry.birth, entry.bounds, LogIndex(5));
    let (handoff, partition) = (HandoffId(9), entry.id);
    group.record(Record::Stage { handoff, partition, birth, bounds, span, at, after: None, piece });
    let digest = group.shard.contents().staged_digest(HandoffId(9));
    for piece_bytes in [1, 7, 1 << 20] {
        let mut other = Group::new(2);
        other.shard.restore(b"", false).unwrap();
        group.bytes(piece_bytes).iter().for_each(|piece| other.shard.restore(piece, false).unwrap());
        other.shard.restore(&[], true).unwrap();
        assert_eq!(other.bytes(1 << 20), group.bytes(1 << 20));
        assert_eq!(other.shard.contents().staged_digest(HandoffId(9)), digest);
        other.at = group.at;
        assert!(matches!(other.add(&route, request(2, 1), "apple", 3), Reply::Done(_)));
        assert_eq!(value(other.get(&route, "apple")), Some("3".into()), "a retry is known");
    }
}

#[test]
fn hostile_bytes_are_answered_and_refused() {
    let mut group = Group::new(1);
    for bytes in [&b""[..], b"\x02", b"\x01", b"\x01\x00\x01", b"\x01\x01\x09", &[1, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        assert_eq!(group.apply(bytes), Reply::Malformed, "{bytes:?}");
        assert_eq!(decode_reply(&group.shard.query(bytes, 9)), Ok(Reply::Malformed));
        assert!(group.shard.restore(bytes, true).is_err(), "{bytes:?}");
    }
    assert!(decode_reply(&Bytes::from_static(&[1, 9])).is_err() && decode_reply(&Bytes::from_static(&[2, 0])).is_err());
}

#[test]
fn the_bytes_of_version_1_are_frozen() {
    let route = map().route(b"fig");
    let write = encode_write(&route, request(2, 1), b"body");
    assert_eq!(write[..], [1, 0, 1, 1, 1, 1, 1, 1, 7, 2, 1, 4, b'b', b'o', b'd', b'y']);
    assert_eq!(encode_write(&route, None, b"")[..], [1, 0, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(encode_read(&route, b"q")[..], [1, 1, 1, 1, 1, 1, 1, b'q']);
    let prepared = Record::Prepared { handoff: HandoffId(3), sealed: LogIndex(300) };
    assert_eq!(encode_record(&prepared)[..], [1, 1, 6, 3, 172, 2]);
    let unseal = Record::Unseal { handoff: HandoffId(3), partition: PartitionId(4) };
    assert_eq!(encode_record(&unseal)[..], [1, 1, 2, 3, 4]);
    assert_eq!(Reply::Done("x".into()).encode()[..], [1, 0, b'x']);
    assert_eq!(Reply::Refused(Refusal::HandingOff(HandoffId(3))).encode()[..], [1, 1, 2, 3]);
    assert_eq!(Reply::Refused(Refusal::Ahead { epoch: Epoch(5) }).encode()[..], [1, 1, 1, 5]);
    for reply in [Reply::Expired, Reply::Malformed, Reply::Recorded, Reply::Done(Bytes::from_static(&[0]))] {
        assert_eq!(decode_reply(&reply.clone().encode()), Ok(reply));
    }
}

proptest::proptest! {
    /// Writes and deletes come between the pieces of a copy and its tail: the digest that was kept beside it is that of all keys, at the
    /// source and at the target.
    #[test]
    fn a_digest_that_is_kept_beside_a_copy_is_that_of_all_keys(
        before in proptest::collection::vec(0_u8..10, 0..20),
        meanwhile in proptest::collection::vec(proptest::collection::vec((0_u8..10, proptest::bool::ANY), 0..4), 0..14),
    ) {
        let (map, mut source, mut target) = (map(), Group::new(1), Group::new(2));
        let (route, entry) = (map.route(b"a"), map.partition_of(b"a").clone());
        let key = |nth: u8| ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][usize::from(nth)];
        let write = |group: &mut Group, nth: u8, is_delete: bool| {
            if is_delete {
                let delete = put(&WriteRequest::delete(key(nth))).unwrap();
                group.apply(&encode_write(&route, None, &delete));
            } else {
                group.add(&route, None, key(nth), 1);
            }
        };
        before.into_iter().for_each(|nth| write(&mut source, nth, false));
        let (span, id) = (entry.span.clone(), HandoffId(9));
        let (mut after, mut is_whole, at) = (None::<Bytes>, false, LogIndex(source.at));
        target.shard.contents.stage_anew(id);
        for writes in meanwhile {
            if !is_whole {
                let piece = source.shard.contents().piece(&span, after.as_deref(), 1);
                // Questions are doubled, and those of long ago come late.
                source.shard.contents().piece(&span, after.as_deref(), 1);
                target.shard.contents.stage_entry(id, &piece.items);
                (is_whole, after) = (piece.through.is_none(), piece.through);
            }
            writes.into_iter().for_each(|(nth, is_delete)| write(&mut source, nth, is_delete));
        }
        while !is_whole {
            let piece = source.shard.contents().piece(&span, after.as_deref(), 1);
            target.shard.contents.stage_entry(id, &piece.items);
            (is_whole, after) = (piece.through.is_none(), piece.through);
        }
        // Who has everything asks for no tail.
        if LogIndex(source.at) > at {
            let tail = source.shard.contents().tail(&span, at, LogIndex(source.at)).unwrap();
            tail.entries.iter().for_each(|entry| target.shard.contents.stage_entry(id, entry));
        }
        let mut anew = Group::new(1);
        source.bytes(1 << 20).iter().for_each(|piece| assert_eq!(anew.shard.restore(piece, false), Ok(())));
        anew.shard.restore(&[], true).unwrap();
        let digest = anew.shard.contents().digest(&span);
        proptest::prop_assert_eq!(source.shard.contents().digest(&span), digest);
        proptest::prop_assert_eq!(target.shard.contents().staged_digest(id), digest);
    }
}
