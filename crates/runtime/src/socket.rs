//! Sockets: how they are set up, and the greeting over them, for nodes and clients alike.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::wire::{FrameBuffer, FrameError, GREETING_BYTES_MAX, Hello, Welcome};

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side gave this reason.
    #[error("refused: {0}")]
    Refused(String),
    /// The other side does not speak this protocol.
    #[error("not a node of this protocol: {0}")]
    Protocol(String),
    #[error("no answer in time")]
    TimedOut,
}

impl From<FrameError> for GreetError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Small frames leave at once, and a peer that is gone without a word is noticed.
pub(crate) fn prepare(stream: &TcpStream, unacknowledged_time_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_keepalive(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(unacknowledged_time_max))?;
    #[cfg(not(target_os = "linux"))]
    let _ = unacknowledged_time_max;
    Ok(())
}

pub(crate) async fn connect(address: &str, unacknowledged_time_max: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream, unacknowledged_time_max)?;
    Ok(stream)
}

/// Writes all of it, waiting as long as it takes.
pub(crate) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads once into the buffer's room, waiting as long as it takes. 0 means the end.
pub(crate) async fn read(stream: &TcpStream, buffer: &mut FrameBuffer) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read_buf(buffer.room()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            other => return other,
        }
    }
}

/// The greeting from the side that dials: what the other side said, and the bytes that it sent behind that.
pub(crate) async fn greet(stream: &TcpStream, hello: &Hello) -> Result<(Welcome, BytesMut), GreetError> {
    write_all(stream, &hello.encode()).await?;
    let mut buffer = FrameBuffer::new(BytesMut::new(), GREETING_BYTES_MAX);
    loop {
        if let Some(frame) = buffer.next()? {
            let welcome = Welcome::decode(&frame)?.map_err(GreetError::Refused)?;
            return Ok((welcome, buffer.into_bytes()));
        }
        if read(stream, &mut buffer).await? == 0 {
            return Err(GreetError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
