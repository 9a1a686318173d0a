//! The server with one thread: it waits for sockets, applies what they bring to the same keyspace that the
//! replicated engines use, appends it to one file, waits for the disk if it is to, and answers. Where the file is shared with
//! other such processes, each round of requests, reads included, holds its lock and begins with what the others appended.
//!
//! Invariant: no write is answered before the sync that covers it; everything that arrived meanwhile shares the next one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use replikit_core::keyspace::Keyspace;
use replikit_core::{LogIndex, StateMachine};
use rustix::event::{PollFd, PollFlags, poll};

use super::journal::Journal;
use super::wire::{Frame, Kind};
use crate::engine::Sync;

pub(super) const ANSWER_BYTES_MAX: usize = 2 << 20;
/// Bytes of answers that wait for one client; beyond it, its requests are not read.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Who appends to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    /// This process alone.
    Own,
    /// Others as well: whoever does holds its lock.
    Locked,
}

pub(super) struct Connection {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
}

/// Serves until the process is killed.
///
/// # Errors
/// When the address cannot be bound, or the journal cannot be opened, written or synced.
pub(super) fn serve(listen: SocketAddr, folder: &Path, sync: Sync, file: File) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut keyspace = Keyspace::new();
    let mut index = LogIndex(0);
    let mut apply = |keyspace: &mut Keyspace, command: &[u8]| {
        index = index.next();
        keyspace.apply(index, command)
    };
    let path = folder.join("journal");
    let restore = |command: &[u8]| drop(apply(&mut keyspace, command));
    let mut journal = match file {
        File::Own => Journal::open(&path, sync, restore)?,
        File::Locked => Journal::open_locked(&path, sync, restore)?,
    };
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    eprintln!("listening on {}", listener.local_addr()?);
    let mut connections: Vec<Connection> = Vec::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        wait(&listener, &connections)?;
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            connections.push(Connection::new(stream));
        }
        connections.retain_mut(|connection| connection.receive(&mut chunk).is_ok());
        journal.lock(|command| drop(apply(&mut keyspace, command)))?;
        connections.retain_mut(|connection| {
            let performed = connection.perform(|kind, body| match kind {
                Kind::Command => {
                    journal.append(body);
                    apply(&mut keyspace, body)
                }
                Kind::Query => keyspace.query(body, ANSWER_BYTES_MAX),
                Kind::Counted => journal.counted(),
            });
            performed.is_ok()
        });
        journal.commit()?;
        journal.unlock()?;
        connections.retain_mut(|connection| connection.send().is_ok());
    }
}

fn wait(listener: &TcpListener, connections: &[Connection]) -> io::Result<()> {
    let mut waited = vec![PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    waited.extend(connections.iter().map(Connection::waited));
    match poll(&mut waited, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, read: BytesMut::new(), write: BytesMut::new() }
    }

    /// What to wait for.
    pub(super) fn waited(&self) -> PollFd<'_> {
        let mut flags = PollFlags::empty();
        if self.write.len() < WAITING_BYTES_MAX {
            flags |= PollFlags::IN;
        }
        if !self.write.is_empty() {
            flags |= PollFlags::OUT;
        }
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }

    /// Reads what is there.
    pub(super) fn receive(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        while self.write.len() < WAITING_BYTES_MAX {
            match self.stream.read(chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.read.extend_from_slice(&chunk[..read]);
                    if read < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Carries out the whole requests among it. Answers are kept back until the journal is committed.
    pub(super) fn perform(&mut self, mut answer: impl FnMut(Kind, &[u8]) -> Bytes) -> io::Result<()> {
        loop {
            let frame = Frame::take(&mut self.read).map_err(|_| io::ErrorKind::InvalidData)?;
            let Some(Frame { kind, token, body }) = frame else { return Ok(()) };
            Frame::put(kind, token, &answer(kind, &body), &mut self.write);
        }
    }

    /// Writes what the socket takes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.write.is_empty() {
            match self.stream.write(&self.write) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.write.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
