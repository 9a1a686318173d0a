//! The server with a thread for each core: all serve their own connections from one concurrent map, and append to one file.
//!
//! Invariants: commands of one key are in the file in the order in which the map took them, because the key is locked
//! meanwhile; nothing is answered, reads included, before everything that had been appended by then is committed.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use replikit_core::keyspace::{
    KeyspaceQuery, decode_query, decode_write, encode_malformed, encode_page, encode_too_large,
};
use replikit_core::{KEY_BYTES_MAX, Page, WriteEffect, WriteOp};
use rustix::event::{PollFd, PollFlags, poll};

use super::journal::Journal;
use super::server::{ANSWER_BYTES_MAX, Connection};
use super::wire::Kind;
use crate::engine::Sync;

/// Connections that wait for their thread.
const ACCEPTED_MAX: usize = 64;

/// One for each core.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Serves until the process is killed.
///
/// # Errors
/// When the address cannot be bound, or the journal cannot be opened, written or synced.
pub(super) fn serve(listen: SocketAddr, folder: &Path, sync: Sync) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let map = Map::default();
    let journal = Journal::open(&folder.join("journal"), sync, |command| drop(map.apply(command, |_| {})))?;
    let shared = Shared { map, waiting: Mutex::default(), journal: Mutex::new(journal), committed: AtomicU64::new(0) };
    let listener = TcpListener::bind(listen)?;
    eprintln!("listening on {}", listener.local_addr()?);
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads() {
            let (accepted, connections) = mpsc::sync_channel(ACCEPTED_MAX);
            let (wake, woken) = UnixStream::pair()?;
            woken.set_nonblocking(true)?;
            let shared = &shared;
            scope.spawn(move || {
                if let Err(error) = work(shared, &connections, woken) {
                    eprintln!("a thread has failed: {error}");
                    // Answers that cannot be made durable must not be given by the others either.
                    std::process::exit(1);
                }
            });
            workers.push((accepted, wake));
        }
        for number in 0.. {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let (accepted, wake) = &mut workers[number % threads()];
            accepted.send(stream).map_err(io::Error::other)?;
            wake.write_all(&[0])?;
        }
        Ok(())
    })
}

/// What all threads share.
struct Shared {
    map: Map,
    /// Appended and not yet committed.
    waiting: Mutex<Waiting>,
    /// Held by the thread that commits for all.
    journal: Mutex<Journal>,
    /// Number of the last record that is committed.
    committed: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    records: Vec<Bytes>,
    /// Number of the last record, from 1.
    appended: u64,
}

const SOUND: &str = "nothing panics with the lock held";

impl Shared {
    fn append(&self, record: &[u8]) {
        let mut waiting = self.waiting.lock().expect(SOUND);
        waiting.records.push(Bytes::copy_from_slice(record));
        waiting.appended += 1;
    }

    /// Returns when everything that was appended before the call is committed: by this thread, or by another one for it.
    fn commit(&self) -> io::Result<()> {
        let wanted = self.waiting.lock().expect(SOUND).appended;
        while self.committed.load(Ordering::Acquire) < wanted {
            let mut journal = self.journal.lock().expect(SOUND);
            let (records, appended) = {
                let mut waiting = self.waiting.lock().expect(SOUND);
                (std::mem::take(&mut waiting.records), waiting.appended)
            };
            records.iter().for_each(|record| journal.append(record));
            journal.commit()?;
            self.committed.store(appended, Ordering::Release);
        }
        Ok(())
    }

    fn answer(&self, kind: Kind, body: &[u8]) -> Bytes {
        match kind {
            Kind::Command => self.map.apply(body, |command| self.append(command)),
            Kind::Query => self.map.query(body),
            Kind::Counted => self.journal.lock().expect(SOUND).counted(),
        }
    }
}

fn work(shared: &Shared, accepted: &mpsc::Receiver<TcpStream>, mut woken: UnixStream) -> io::Result<()> {
    let mut connections: Vec<Connection> = Vec::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        let mut waited = vec![PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN)];
        waited.extend(connections.iter().map(Connection::waited));
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Whether there was something to read does not matter: the channel knows.
        let _ = woken.read(&mut chunk);
        connections.extend(accepted.try_iter().map(Connection::new));
        connections.retain_mut(|connection| {
            connection.receive(&mut chunk).is_ok() && connection.perform(|kind, body| shared.answer(kind, body)).is_ok()
        });
        shared.commit()?;
        connections.retain_mut(|connection| connection.send().is_ok());
    }
}

/// The keyspace's operations on a concurrent map. It has no order: a page of a scan looks at every key.
#[derive(Default)]
struct Map(DashMap<Bytes, Bytes>);

impl Map {
    /// Carries out a command. One that changes something is shown to `changed` while its key is locked.
    fn apply(&self, command: &[u8], changed: impl FnOnce(&[u8])) -> Bytes {
        // As in the ordered keyspace, the reply to what is no command decodes as malformed.
        let Ok((key, op)) = decode_write(command) else { return Bytes::new() };
        let entry = self.0.entry(key);
        let found = match &entry {
            Entry::Occupied(occupied) => Some(occupied.get().clone()),
            Entry::Vacant(_) => None,
        };
        let (effect, new) = match op {
            WriteOp::Put { value } => (WriteEffect::Done, Some(value)),
            WriteOp::Delete => (WriteEffect::Done, None),
            WriteOp::CompareAndSet { expected, new } if expected == found => (WriteEffect::Done, new),
            WriteOp::CompareAndSet { .. } => return encode(&WriteEffect::Mismatch { found }),
            WriteOp::Add { delta } => match counter(found.as_ref()).and_then(|value| value.checked_add(delta)) {
                Some(value) => (WriteEffect::Counter { value }, Some(value.to_string().into())),
                None => return encode(&WriteEffect::NotACounter),
            },
            _ => return encode(&WriteEffect::Unsupported),
        };
        changed(command);
        match (entry, new) {
            (entry, Some(value)) => _ = entry.insert(value),
            (Entry::Occupied(occupied), None) => _ = occupied.remove(),
            (Entry::Vacant(_), None) => {}
        }
        encode(&effect)
    }

    fn query(&self, query: &[u8]) -> Bytes {
        match decode_query(query) {
            Ok(KeyspaceQuery::Get { key }) => match self.0.get(&key) {
                None => Bytes::from_static(&[0]),
                Some(value) => [&[1], &value[..]].concat().into(),
            },
            Ok(KeyspaceQuery::Scan { from, to, limit }) => self.scan(&from, to.as_ref(), limit),
            _ => encode_malformed(),
        }
    }

    fn scan(&self, from: &Bytes, to: Option<&Bytes>, limit: u32) -> Bytes {
        let fits = |key: &Bytes| key >= from && to.is_none_or(|to| key < to);
        let mut keys: Vec<Bytes> =
            self.0.iter().filter(|entry| fits(entry.key())).map(|entry| entry.key().clone()).collect();
        keys.sort_unstable();
        let mut page = Page::default();
        let mut bytes = 64 + KEY_BYTES_MAX;
        for key in keys {
            // It may have been removed meanwhile.
            let Some(value) = self.0.get(&key).map(|value| value.clone()) else { continue };
            bytes += key.len() + value.len() + 16;
            if page.items.len() == limit.max(1) as usize || bytes > ANSWER_BYTES_MAX {
                page.next = Some(key);
                break;
            }
            page.items.push((key, value));
        }
        if page.items.is_empty() && page.next.is_some() {
            return encode_too_large(ANSWER_BYTES_MAX);
        }
        encode_page(&page)
    }
}

fn counter(value: Option<&Bytes>) -> Option<i64> {
    value.map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse().ok())
}

fn encode(effect: &WriteEffect) -> Bytes {
    if *effect == WriteEffect::Done {
        return Bytes::from_static(&[0]);
    }
    postcard::to_stdvec(effect).expect("an effect always encodes").into()
}

#[cfg(test)]
mod tests {
    use replikit_core::keyspace::{Keyspace, encode_get, encode_scan, encode_write};
    use replikit_core::{LogIndex, ReadLevel, ScanRequest, StateMachine, WriteRequest};

    use super::*;

    /// Random commands and queries on few keys.
    #[test]
    fn the_concurrent_map_answers_as_the_ordered_keyspace_does() {
        let (map, mut keyspace) = (Map::default(), Keyspace::new());
        let mut rng = fastrand::Rng::with_seed(7);
        let mut changes = 0;
        for at in 1..5_000 {
            let key = format!("key{}", rng.u8(..6));
            let small = |rng: &mut fastrand::Rng| (rng.bool()).then(|| Bytes::from(rng.u8(..3).to_string()));
            let op = match rng.u8(..4) {
                0 => WriteOp::Put { value: rng.u8(..3).to_string().into() },
                1 => WriteOp::Delete,
                2 => WriteOp::CompareAndSet { expected: small(&mut rng), new: small(&mut rng) },
                _ => WriteOp::Add { delta: rng.i64(-2..3) },
            };
            let write = WriteRequest { op, ..WriteRequest::put(key.clone(), "") };
            let command = encode_write(&write).expect("the key is short");
            let reply = map.apply(&command, |_| changes += 1);
            assert_eq!(reply, keyspace.apply(LogIndex(at), &command), "{write:?}");
            let get = encode_get(key.as_bytes()).expect("the key is short");
            assert_eq!(map.query(&get), keyspace.query(&get, ANSWER_BYTES_MAX));
            let (from, to) = (Bytes::from("key1"), Some(Bytes::from("key5")));
            let scan = encode_scan(&ScanRequest { from, to, limit: 2, level: ReadLevel::Linearizable });
            assert_eq!(map.query(&scan), keyspace.query(&scan, ANSWER_BYTES_MAX));
        }
        assert!((1_000..5_000).contains(&changes), "a mismatch changes nothing: {changes}");
    }

    #[test]
    fn what_threads_append_at_once_is_committed_before_any_of_them_goes_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("journal");
        let journal = Journal::open(&path, Sync::Never, |_| {}).expect("it opens");
        let map = Map::default();
        let shared =
            Shared { map, waiting: Mutex::default(), journal: Mutex::new(journal), committed: AtomicU64::new(0) };
        thread::scope(|scope| {
            for number in 0..4_u8 {
                let shared = &shared;
                scope.spawn(move || {
                    for _ in 0..500 {
                        let add = WriteRequest::add(format!("counter{}", number % 2), 1);
                        shared.answer(Kind::Command, &encode_write(&add).expect("the key is short"));
                        shared.commit().expect("the disk takes it");
                    }
                });
            }
        });
        assert_eq!(shared.committed.load(Ordering::Relaxed), 2_000);
        let again = Map::default();
        Journal::open(&path, Sync::Never, |command| drop(again.apply(command, |_| {}))).expect("it opens");
        for key in ["counter0", "counter1"] {
            let get = encode_get(key.as_bytes()).expect("the key is short");
            assert_eq!(&again.query(&get)[..], b"\x011000", "{key}");
        }
    }
}
