//! Pages at several owners.

use std::time::Duration;

use replikit_core::keyspace::{decode_page, encode_scan};
use replikit_core::{
    Input, NodeId, Outcome, Owners, Page, ReadLevel, Rejection, ScanRequest, Token, WriteLevel, WriteRequest,
};
use replikit_leaderless::{Keyspace, Keyspaces, ReadRepair};

use crate::group::{GROUP, Group};

const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);

fn put(key: &str, value: &str) -> WriteRequest {
    WriteRequest::put(key.to_owned(), value.to_owned()).at(WriteLevel::Quorum)
}

/// Asks for a page from a key on, with so many keys.
fn ask(group: &mut Group, node: u32, (from, limit): (&str, u32), level: ReadLevel) -> u64 {
    let scan = ScanRequest { from: from.to_owned().into(), to: Some("z".into()), limit, level: level.clone() };
    let (token, body) = (Token(1 << 40 | u64::from(node)), encode_scan(&scan));
    group.outcomes.remove(&token.0);
    group.input(NodeId(node), Input::Query { token, group: GROUP, level, body, bytes_max: 1 << 20 });
    token.0
}

fn page(group: &mut Group, node: u32, wanted: (&str, u32), level: ReadLevel) -> Page {
    let token = ask(group, node, wanted, level);
    group.deliver();
    match group.outcome(token) {
        Some(Outcome::Value { values, strict: true, .. }) => decode_page(&values[0]).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn text(page: &Page) -> Vec<String> {
    page.items
        .iter()
        .map(|(key, value)| String::from_utf8_lossy(&[&key[..], b"=", value].concat()).into_owned())
        .collect()
}

/// Nodes 2 and 3 alone, of which node 3 has missed everything but the keys from "c" on.
fn behind() -> Group {
    let mut group = Group::new(3, |_| {});
    group.write(1, put("c", "3"));
    group.write(1, put("d", "4"));
    group.run(Duration::from_secs(1));
    group.isolate(NodeId(3), true);
    group.write(1, put("a", "1"));
    group.write(1, put("b", "2"));
    group.write(1, put("c", "newer"));
    group.isolate(NodeId(3), false);
    group.isolate(NodeId(1), true);
    for node in [2, 3] {
        group.link_down(node, 1);
    }
    group
}

#[test]
fn a_page_ends_where_the_first_list_does_and_shows_what_any_of_the_owners_has() {
    for coordinator in [2, 3] {
        let mut group = behind();
        // Node 3 lists c and d, node 2 a and b: of the keys behind b, who has listed two knows nothing.
        let first = page(&mut group, coordinator, ("", 2), QUORUM);
        assert_eq!((text(&first), first.next), (vec!["a=1".to_owned(), "b=2".to_owned()], Some("c".into())));
        let rest = page(&mut group, coordinator, ("c", 2), QUORUM);
        assert_eq!((text(&rest), rest.next), (vec!["c=newer".to_owned(), "d=4".to_owned()], None));
        let all = page(&mut group, coordinator, ("", 9), ReadLevel::Replicas(2));
        assert_eq!(text(&all), ["a=1", "b=2", "c=newer", "d=4"]);
    }
}

#[test]
fn what_a_page_returns_no_later_read_misses() {
    let mut group = behind();
    let repaired = |group: &Group| (2..=3).map(|node| group.replica(node).figures().repaired).sum::<u64>();
    let token = ask(&mut group, 2, ("", 9), QUORUM);
    group.drops = |head| matches!(head, replikit_leaderless::Head::Repaired { .. });
    group.deliver();
    assert!(group.outcome(token).is_none(), "node 3 was told, and has not confirmed it");
    group.drops = |_| false;
    group.run(Duration::from_millis(200));
    assert!(matches!(group.outcome(token), Some(Outcome::Value { strict: true, .. })), "it was told once more");
    assert_eq!(repaired(&group), 3, "three keys");
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "newer")] {
        assert_eq!(group.values(3, key, ReadLevel::Local), [value]);
    }
    page(&mut group, 3, ("", 9), QUORUM);
    page(&mut group, 2, ("", 9), QUORUM);
    assert_eq!(repaired(&group), 3, "a second page repairs nothing");
    group.kill(NodeId(3));
    group.start(NodeId(3));
    assert_eq!(group.replica(3).peek(b"c"), ["newer"], "it was on disk");
}

#[test]
fn a_key_that_was_deleted_is_in_no_page_although_an_owner_still_has_it() {
    let mut group = behind();
    group.isolate(NodeId(1), false);
    group.run(Duration::from_secs(2));
    group.isolate(NodeId(3), true);
    group.write(1, WriteRequest::delete("c").at(WriteLevel::Quorum));
    group.isolate(NodeId(3), false);
    group.isolate(NodeId(1), true);
    for node in [2, 3] {
        group.link_down(node, 1);
    }
    for coordinator in [3, 2] {
        assert_eq!(text(&page(&mut group, coordinator, ("", 9), QUORUM)), ["a=1", "b=2", "d=4"]);
    }
    let none = page(&mut group, 2, ("c", 1), QUORUM);
    assert_eq!(text(&none), ["d=4"], "what shows nothing is not counted");
}

#[test]
fn without_repair_a_page_tells_nobody() {
    let mut group = behind();
    group.reconfigure(|config| config.repair = ReadRepair::Off);
    group.kill(NodeId(2));
    group.start(NodeId(2));
    group.link_down(2, 1);
    let token = ask(&mut group, 2, ("", 9), QUORUM);
    let until = group.replica(2).figures().repaired;
    group.deliver();
    assert!(matches!(group.outcome(token), Some(Outcome::Value { .. })), "{:?}", group.outcome(token));
    assert_eq!(group.replica(2).figures().repaired, until);
}

#[test]
fn an_owner_that_does_not_answer_has_another_one_asked_in_its_place() {
    let mut group = Group::new(3, |_| {});
    group.write(1, put("a", "1"));
    group.run(Duration::from_secs(1));
    for silent in [2, 3] {
        group.isolate(NodeId(silent), true);
        let token = ask(&mut group, 1, ("", 9), QUORUM);
        group.run(Duration::from_millis(50));
        assert!(matches!(group.outcome(token), Some(Outcome::Value { strict: true, .. })), "node {silent}");
        group.isolate(NodeId(silent), false);
    }
}

/// Seed 106347 of the simulator: a crash could have brought the key back.
#[test]
fn a_page_of_one_owner_waits_for_the_delete_that_took_a_key_out_of_it() {
    let mut group = Group::new(1, |_| {});
    group.write(1, put("a", "1"));
    group.places.get_mut(&NodeId(1)).unwrap().disk_stopped = true;
    group.ask(1, &WriteRequest::delete("a").at(WriteLevel::Memory));
    let token = ask(&mut group, 1, ("", 9), ReadLevel::Local);
    assert!(group.outcome(token).is_none(), "the delete is in memory only");
    group.resume_disk(NodeId(1));
    let Some(Outcome::Value { values, .. }) = group.outcome(token) else { panic!("it is on disk now") };
    assert_eq!(decode_page(&values[0]).unwrap(), Page::default());
}

#[test]
fn a_range_with_keys_that_are_compared_and_set_is_refused_at_several_owners() {
    let mut group = Group::new(3, |config| {
        config.keyspaces = Keyspaces::default().with("lock/", Keyspace::cas()).with("lock/plain/", Keyspace::default());
    });
    group.write(1, put("a", "1"));
    group.write(1, put("lock/plain/k", "2"));
    group.write(1, put("lock/k", "agreed"));
    for (from, refused) in [("", true), ("lock/", true), ("lock/plain/", true), ("lock/x", true), ("m", false)] {
        let token = ask(&mut group, 1, (from, 9), QUORUM);
        group.deliver();
        let is_refused = group.outcome(token) == Some(&Outcome::Rejected(Rejection::MixedRange));
        assert_eq!(is_refused, refused, "from {from:?}");
    }
    let token = ask(&mut group, 1, ("", 9), ReadLevel::Local);
    let Some(Outcome::Value { values, .. }) = group.outcome(token) else { panic!("one owner answers") };
    assert_eq!(text(&decode_page(&values[0]).unwrap()), ["a=1", "lock/plain/k=2"]);
}
