//! The part of the Redis protocol (RESP2) that SET, GET and WAIT need: commands out, replies in.
//!
//! Invariant: bytes leave the input only as a whole reply.

use bytes::{Buf, Bytes, BytesMut};

/// Longest value that a reply may announce; Redis itself has no longer ones.
const VALUE_BYTES_MAX: usize = 512 << 20;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Status(String),
    /// It was refused; in the server's words.
    Failure(String),
    /// A count.
    Number(i64),
    /// A value, or that there is none.
    Value(Option<Bytes>),
}

/// Bytes that are no reply to SET, GET or WAIT. Blame: the server, or another program at its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Adds a command to what is to be sent.
pub fn put(command: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for part in command {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// Takes the first reply; `None` while it is not there whole, and nothing is taken then.
///
/// # Errors
/// When no further byte can make it a reply.
pub fn take(read: &mut BytesMut) -> Result<Option<Reply>, Malformed> {
    let Some(end) = read.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = &read[..end];
    let malformed = || Malformed(String::from_utf8_lossy(line).into_owned());
    let text = || String::from_utf8_lossy(&line[1..]).into_owned();
    let number = || text().parse::<i64>().map_err(|_| malformed());
    let reply = match line.first() {
        Some(b'+') => Reply::Status(text()),
        Some(b'-') => Reply::Failure(text()),
        Some(b':') => Reply::Number(number()?),
        Some(b'$') => match number()? {
            -1 => Reply::Value(None),
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= VALUE_BYTES_MAX);
                let length = length.ok_or_else(malformed)?;
                let begin = end + 2;
                let Some(behind) = read.get(begin + length..begin + length + 2) else { return Ok(None) };
                if behind != b"\r\n" {
                    return Err(malformed());
                }
                read.advance(begin);
                let value = read.split_to(length).freeze();
                read.advance(2);
                return Ok(Some(Reply::Value(Some(value))));
            }
        },
        _ => return Err(malformed()),
    };
    read.advance(end + 2);
    Ok(Some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"+OK\r\n:2\r\n$5\r\na\r\nbc\r\n$-1\r\n$0\r\n\r\n-ERR no such command\r\n";

    fn replies() -> Vec<Reply> {
        vec![
            Reply::Status("OK".to_owned()),
            Reply::Number(2),
            Reply::Value(Some(Bytes::from_static(b"a\r\nbc"))),
            Reply::Value(None),
            Reply::Value(Some(Bytes::new())),
            Reply::Failure("ERR no such command".to_owned()),
        ]
    }

    #[test]
    fn replies_are_taken_one_by_one() {
        let mut read = BytesMut::from(STREAM);
        let mut taken = Vec::new();
        while let Some(reply) = take(&mut read).expect("the stream is well-formed") {
            taken.push(reply);
        }
        assert_eq!(taken, replies());
        assert!(read.is_empty());
    }

    #[test]
    fn a_reply_that_is_not_whole_takes_nothing() {
        for cut in 0..=STREAM.len() {
            let mut read = BytesMut::from(&STREAM[..cut]);
            let mut taken = Vec::new();
            while let Some(reply) = take(&mut read).expect("a beginning is well-formed") {
                taken.push(reply);
            }
            read.extend_from_slice(&STREAM[cut..]);
            while let Some(reply) = take(&mut read).expect("the stream is well-formed") {
                taken.push(reply);
            }
            assert_eq!(taken, replies(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for wrong in ["HTTP/1.1 400 Bad Request\r\n", ":two\r\n", "$-7\r\n", "$99999999999\r\n", "$1\r\nab\r\n", "\r\n"]
        {
            assert!(take(&mut BytesMut::from(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_command_carries_any_bytes() {
        let mut out = Vec::new();
        put(&[b"SET", b"k", b"\r\n"], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n");
    }
}
