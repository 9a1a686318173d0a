//! The ready-made key-value state machine: ordered keys, so that scans work; values found by hash, so that writes to
//! existing keys do not walk a tree.
//!
//! Invariants: replies depend on nothing but the log, never on the order of a hash map. A snapshot is an image of the
//! [`Map`], which shares what it holds with the live state. A value of the same length is written over the old one in its
//! place: with more keys than fit the cache, a write costs the cache lines that it touches and little else.

mod answer;
mod audit;
mod codec;
mod map;
mod prefixes;
mod sorted;

use std::ops::{Bound, ControlFlow};

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use self::answer::{
    Conflict, ConflictPage, Versions, decode_conflict_page, decode_effect, decode_page, decode_value, decode_versions,
    encode_conflict_page, encode_malformed, encode_page, encode_too_large, encode_versions,
};
pub use self::audit::Audit;
use self::codec::{Command, Query, SeenOp, encode};
pub use self::codec::{
    KeyspaceError, KeyspaceQuery, WantedPage, WriteCommand, decode_query, decode_request, decode_write,
    encode_conflicts, encode_get, encode_scan, encode_write, wanted_key, wanted_page, written_key,
};
pub use self::map::{Map, MapImage};
pub use self::prefixes::Keyspaces;
use crate::{KEY_BYTES_MAX, LogIndex, Page, RestoreError, SnapshotSource, StateMachine, VALUE_BYTES_MAX, WriteEffect};

/// The key-value state machine: put, delete, compare-and-set and counters; get and scan.
#[derive(Debug)]
pub struct Keyspace {
    map: Map<Bytes>,
    incoming: BytesMut,
    restoring: Option<Map<Bytes>>,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyspace {
    /// An empty keyspace.
    #[must_use]
    pub fn new() -> Self {
        Self { map: Map::new(), incoming: BytesMut::new(), restoring: None }
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key)
    }

    /// Sets or removes the value of a key.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.map.overwrite(key, value),
            None => _ = self.map.remove(key),
        }
    }

    /// Calls `visit` for the keys from a bound on, ascending, until it breaks.
    pub fn for_each_from(&self, from: Bound<&[u8]>, visit: impl FnMut(&[u8], &Bytes) -> ControlFlow<()>) {
        self.map.for_each_from(from, visit);
    }
}

/// A counter's value, if these bytes are one.
fn counter(value: Option<&Bytes>) -> Option<i64> {
    value.map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse().ok())
}

impl StateMachine for Keyspace {
    fn apply(&mut self, _at: LogIndex, command: &[u8]) -> Bytes {
        // A command that is no command changes nothing, at every replica alike, and its reply decodes as malformed.
        let Ok(command) = postcard::from_bytes(command) else { return Bytes::new() };
        let effect = match command {
            // One leader has ordered the writes: what the client had seen decides nothing.
            Command::Put { key, value } | Command::Seen { key, op: SeenOp::Put { value }, .. } => {
                self.map.overwrite(key, value);
                WriteEffect::Done
            }
            Command::Delete { key } | Command::Seen { key, op: SeenOp::Delete, .. } => {
                self.map.remove(key);
                WriteEffect::Done
            }
            Command::CompareAndSet { key, expected, new } => {
                let found = self.map.peek(key);
                if found.map(|value| &value[..]) == expected {
                    match new {
                        Some(value) => self.map.overwrite(key, value),
                        None => _ = self.map.remove(key),
                    }
                    WriteEffect::Done
                } else {
                    WriteEffect::Mismatch { found: found.cloned() }
                }
            }
            Command::Add { key, delta } => {
                match counter(self.map.peek(key)).and_then(|value| value.checked_add(delta)) {
                    Some(value) => {
                        self.map.overwrite(key, value.to_string().as_bytes());
                        WriteEffect::Counter { value }
                    }
                    None => WriteEffect::NotACounter,
                }
            }
            Command::Crdt { .. } => WriteEffect::Unsupported,
        };
        // The common answer is a constant: no allocation for it.
        match effect {
            WriteEffect::Done => Bytes::from_static(&[0]),
            other => encode(&other),
        }
    }

    fn query(&self, query: &[u8], bytes_max: usize) -> Bytes {
        match postcard::from_bytes(query) {
            Ok(Query::Get { key }) => match self.map.get(key) {
                None => answer::none(),
                Some(value) if value.len() >= bytes_max => encode_too_large(bytes_max),
                Some(value) => answer::one(&value),
            },
            Ok(Query::Scan { from, to, limit }) => {
                let mut page = Page::default();
                // What the encoding adds: lengths, counts and the cursor.
                let mut bytes = 64 + KEY_BYTES_MAX;
                self.map.for_each_from(Bound::Included(from), |key, value| {
                    if to.is_some_and(|to| key >= to) {
                        return ControlFlow::Break(());
                    }
                    bytes += key.len() + value.len() + 16;
                    if page.items.len() == limit.max(1) as usize || bytes > bytes_max {
                        page.next = Some(Bytes::copy_from_slice(key));
                        return ControlFlow::Break(());
                    }
                    page.items.push((Bytes::copy_from_slice(key), value.clone()));
                    ControlFlow::Continue(())
                });
                if page.items.is_empty() && page.next.is_some() {
                    return encode_too_large(bytes_max);
                }
                encode_page(&page)
            }
            // One leader has ordered the writes: none has been overwritten by one that had not seen it.
            Ok(Query::Conflicts { .. }) => encode_conflict_page(&ConflictPage::default()),
            Err(_) => encode_malformed(),
        }
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Image { map: self.map.image(), rest: Bytes::new() })
    }

    fn restore(&mut self, chunk: &[u8], last: bool) -> Result<(), RestoreError> {
        let map = self.restoring.get_or_insert_with(Map::new);
        self.incoming.extend_from_slice(chunk);
        while let Some((key, value)) = take_record(&mut self.incoming)? {
            map.overwrite(&key, &value);
        }
        if last {
            let whole = self.incoming.is_empty();
            self.incoming = BytesMut::new();
            self.map = self.restoring.take().expect("set above");
            if !whole {
                return Err(RestoreError { what: "the last record is cut short" });
            }
        }
        Ok(())
    }
}

const RECORD_HEADER_BYTES: usize = 8;

fn take_record(buffer: &mut BytesMut) -> Result<Option<(BytesMut, BytesMut)>, RestoreError> {
    let Some(header) = buffer.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
    let (key_bytes, value_bytes) = header.split_at(4);
    let length = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize;
    let (key_bytes, value_bytes) = (length(key_bytes), length(value_bytes));
    if key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
        return Err(RestoreError { what: "a record is larger than a keyspace allows" });
    }
    if buffer.len() < RECORD_HEADER_BYTES + key_bytes + value_bytes {
        return Ok(None);
    }
    buffer.advance(RECORD_HEADER_BYTES);
    Ok(Some((buffer.split_to(key_bytes), buffer.split_to(value_bytes))))
}

/// A point-in-time image of a keyspace: records in key order, each `u32` key length, `u32` value length, key, value.
struct Image {
    map: MapImage<Bytes>,
    /// What of the last record did not fit into the piece before.
    rest: Bytes,
}

impl SnapshotSource for Image {
    fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes_max = bytes_max.max(1);
        let mut piece = BytesMut::new();
        piece.put_slice(&self.rest.split_to(self.rest.len().min(bytes_max)));
        while piece.len() < bytes_max {
            let Some((key, value)) = self.map.advance() else { break };
            piece.put_u32_le(key.len() as u32);
            piece.put_u32_le(value.len() as u32);
            piece.put_slice(key);
            piece.put_slice(value);
            if piece.len() > bytes_max {
                self.rest = Bytes::copy_from_slice(&piece[bytes_max..]);
                piece.truncate(bytes_max);
            }
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::crdt::CrdtOp;
    use crate::{CausalContext, ReadLevel, ScanRequest, WriteOp, WriteRequest};

    fn write(keyspace: &mut Keyspace, write: &WriteRequest) -> WriteEffect {
        decode_effect(&keyspace.apply(LogIndex(1), &encode_write(write).unwrap())).unwrap()
    }

    fn scan_all(keyspace: &Keyspace, limit: u32) -> Vec<(Bytes, Bytes)> {
        let (mut from, mut all) = (Bytes::new(), Vec::new());
        loop {
            let scan = ScanRequest { from, to: None, limit, level: ReadLevel::Local };
            let page = decode_page(&keyspace.query(&encode_scan(&scan), 1 << 20)).unwrap();
            all.extend(page.items);
            match page.next {
                Some(next) => from = next,
                None => return all,
            }
        }
    }

    fn copy(keyspace: &Keyspace, piece_bytes: usize) -> Keyspace {
        let mut source = keyspace.snapshot();
        let mut other = Keyspace::new();
        while let Some(piece) = source.next(piece_bytes) {
            assert!(!piece.is_empty() && piece.len() <= piece_bytes);
            other.restore(&piece, false).unwrap();
        }
        assert_eq!(source.next(piece_bytes), None, "the end stays the end");
        other.restore(&[], true).unwrap();
        other
    }

    fn request() -> impl Strategy<Value = WriteRequest> {
        let key = proptest::collection::vec(0..3_u8, 1..4).prop_map(Bytes::from);
        let value = || proptest::collection::vec(any::<u8>(), 0..5).prop_map(Bytes::from);
        let number = (-5_i64..5).prop_map(|n| Bytes::from(n.to_string()));
        let op = prop_oneof![
            value().prop_map(|value| WriteOp::Put { value }),
            number.prop_map(|value| WriteOp::Put { value }),
            Just(WriteOp::Delete),
            (proptest::option::of(value()), proptest::option::of(value()))
                .prop_map(|(expected, new)| WriteOp::CompareAndSet { expected, new }),
            any::<i64>().prop_map(|delta| WriteOp::Add { delta }),
            Just(WriteOp::Crdt { op: CrdtOp::Enable }),
        ];
        let context = proptest::option::of(Just(CausalContext::new()));
        (key, op, context).prop_map(|(key, op, context)| {
            let mut write = WriteRequest::delete(key);
            (write.op, write.context) = (op, context);
            write
        })
    }

    proptest! {
        #[test]
        fn the_keyspace_behaves_like_an_ordered_map(writes in proptest::collection::vec(request(), 0..80), limit in 1..5_u32) {
            let mut keyspace = Keyspace::new();
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            for request in &writes {
                let found = model.get(&request.key).cloned();
                let expected = match &request.op {
                    WriteOp::Put { value } => { model.insert(request.key.clone(), value.clone()); WriteEffect::Done }
                    WriteOp::Delete => { model.remove(&request.key); WriteEffect::Done }
                    WriteOp::CompareAndSet { expected, new } => {
                        if *expected == found {
                            match new {
                                Some(new) => { model.insert(request.key.clone(), new.clone()); }
                                None => { model.remove(&request.key); }
                            }
                            WriteEffect::Done
                        } else {
                            WriteEffect::Mismatch { found }
                        }
                    }
                    WriteOp::Add { delta } => {
                        let old = match &found {
                            None => Some(0),
                            Some(value) => String::from_utf8(value.to_vec()).ok().and_then(|v| v.parse::<i64>().ok()),
                        };
                        match old.and_then(|old| old.checked_add(*delta)) {
                            Some(value) => {
                                model.insert(request.key.clone(), value.to_string().into());
                                WriteEffect::Counter { value }
                            }
                            None => WriteEffect::NotACounter,
                        }
                    }
                    WriteOp::Crdt { .. } => WriteEffect::Unsupported,
                };
                prop_assert_eq!(write(&mut keyspace, request), expected);
            }
            let all: Vec<(Bytes, Bytes)> = model.into_iter().collect();
            prop_assert_eq!(scan_all(&keyspace, limit), all.clone());
            for piece_bytes in [1, 7, 1000] {
                prop_assert_eq!(scan_all(&copy(&keyspace, piece_bytes), 3), all.clone());
            }
        }

        #[test]
        fn arbitrary_commands_queries_and_snapshots_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut keyspace = Keyspace::new();
            keyspace.apply(LogIndex(1), &bytes);
            keyspace.query(&bytes, 100);
            let _ = keyspace.restore(&bytes, true);
        }
    }

    #[test]
    fn an_image_keeps_what_was_there_while_values_are_written_in_their_old_place() {
        let mut keyspace = Keyspace::new();
        let long = |n: u32| format!("a key that is too long to be kept in line {n}");
        for n in 0..2_000_u32 {
            write(&mut keyspace, &WriteRequest::put(n.to_string(), "one"));
            write(&mut keyspace, &WriteRequest::put(long(n), "one"));
        }
        let mut image = keyspace.snapshot();
        let held = keyspace.get(b"7");
        for n in 0..2_000_u32 {
            write(&mut keyspace, &WriteRequest::put(n.to_string(), "two"));
            write(&mut keyspace, &WriteRequest::put(long(n), "three"));
        }
        assert_eq!(held, Some("one".into()), "a value that somebody holds is not written to");
        let mut then = Keyspace::new();
        while let Some(piece) = image.next(1000) {
            then.restore(&piece, false).unwrap();
        }
        then.restore(&[], true).unwrap();
        let all = |keyspace: &Keyspace, expected: &[&str]| {
            let found = scan_all(keyspace, 100);
            found.len() == 4_000
                && found.iter().all(|(_, value)| expected.iter().any(|other| value == other.as_bytes()))
        };
        assert!(all(&then, &["one"]));
        assert!(all(&keyspace, &["two", "three"]));
    }

    #[test]
    fn a_snapshot_shows_the_moment_it_was_taken() {
        let mut keyspace = Keyspace::new();
        write(&mut keyspace, &WriteRequest::put("a", "old"));
        let mut source = keyspace.snapshot();
        write(&mut keyspace, &WriteRequest::put("a", "new"));
        write(&mut keyspace, &WriteRequest::put("b", "later"));
        let mut other = Keyspace::new();
        other.restore(&source.next(100).unwrap(), true).unwrap();
        assert_eq!(scan_all(&other, 9), vec![(Bytes::from("a"), Bytes::from("old"))]);
    }

    #[test]
    fn pages_stop_at_the_bytes_asked_for_and_go_on_behind() {
        let mut keyspace = Keyspace::new();
        for i in 0..10_u8 {
            write(&mut keyspace, &WriteRequest::put(vec![i], vec![i; 2000]));
        }
        let scan = ScanRequest { from: Bytes::new(), to: None, limit: 100, level: ReadLevel::Local };
        let page = decode_page(&keyspace.query(&encode_scan(&scan), 10_000)).unwrap();
        assert!(!page.items.is_empty() && page.items.len() < 10);
        assert_eq!(page.next, Some(Bytes::from(vec![page.items.len() as u8])));
    }

    #[test]
    fn sizes_out_of_range_are_refused_before_anything_is_replicated() {
        assert_eq!(encode_write(&WriteRequest::put("", "v")), Err(KeyspaceError::Key { bytes: 0 }));
        assert_eq!(
            encode_write(&WriteRequest::put("k", vec![0; VALUE_BYTES_MAX + 1])),
            Err(KeyspaceError::Value { bytes: VALUE_BYTES_MAX + 1 })
        );
    }
}
