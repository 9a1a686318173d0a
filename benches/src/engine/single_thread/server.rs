//! The baseline's server: one thread that waits for sockets, applies what they bring to the same keyspace that the
//! replicated engines use, appends it to one file, waits for the disk if it is to, and answers.
//!
//! Invariant: no write is answered before the sync that covers it; everything that arrived meanwhile shares the next one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::BytesMut;
use replikit_core::keyspace::Keyspace;
use replikit_core::{LogIndex, StateMachine};
use rustix::event::{PollFd, PollFlags, poll};

use super::journal::Journal;
use super::wire::{Frame, Kind};
use crate::engine::Sync;

const ANSWER_BYTES_MAX: usize = 2 << 20;
/// Bytes of answers that wait for one client; beyond it, its requests are not read.
const WAITING_BYTES_MAX: usize = 16 << 20;

struct Connection {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
}

/// Serves until the process is killed.
///
/// # Errors
/// When the address cannot be bound, or the journal cannot be opened, written or synced.
pub fn serve(listen: SocketAddr, folder: &Path, sync: Sync) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut keyspace = Keyspace::new();
    let mut index = LogIndex(0);
    let mut journal = Journal::open(&folder.join("journal"), sync, |command| {
        index = index.next();
        keyspace.apply(index, command);
    })?;
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
            connections.push(Connection { stream, read: BytesMut::new(), write: BytesMut::new() });
        }
        connections.retain_mut(|connection| {
            connection.receive(&mut chunk).is_ok()
                && connection.perform(&mut keyspace, &mut index, &mut journal).is_ok()
        });
        journal.commit()?;
        connections.retain_mut(|connection| connection.send().is_ok());
    }
}

fn wait(listener: &TcpListener, connections: &[Connection]) -> io::Result<()> {
    let mut waited = vec![PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    waited.extend(connections.iter().map(|connection| {
        let mut flags = PollFlags::empty();
        if connection.write.len() < WAITING_BYTES_MAX {
            flags |= PollFlags::IN;
        }
        if !connection.write.is_empty() {
            flags |= PollFlags::OUT;
        }
        PollFd::from_borrowed_fd(connection.stream.as_fd(), flags)
    }));
    match poll(&mut waited, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Connection {
    /// Reads what is there.
    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<()> {
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
    fn perform(&mut self, keyspace: &mut Keyspace, index: &mut LogIndex, journal: &mut Journal) -> io::Result<()> {
        loop {
            let frame = Frame::take(&mut self.read).map_err(|_| io::ErrorKind::InvalidData)?;
            let Some(Frame { kind, token, body }) = frame else { return Ok(()) };
            let answer = match kind {
                Kind::Command => {
                    *index = index.next();
                    journal.append(&body);
                    keyspace.apply(*index, &body)
                }
                Kind::Query => keyspace.query(&body, ANSWER_BYTES_MAX),
                Kind::Fsyncs => journal.fsyncs().to_le_bytes().to_vec().into(),
            };
            Frame::put(kind, token, &answer, &mut self.write);
        }
    }

    /// Writes what the socket takes.
    fn send(&mut self) -> io::Result<()> {
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
