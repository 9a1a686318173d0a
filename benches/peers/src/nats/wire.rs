//! The part of the NATS client protocol that a publisher needs: what a server says, taken from a stream of bytes.
//!
//! Invariant: bytes leave the input only as something said whole.

use bytes::{Buf, Bytes, BytesMut};

/// Longest payload that may be announced; a server's own limit is 1 MiB, unless it is set higher.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Who it is, at the beginning and when that changes.
    Info,
    /// It asks whether its client is there.
    Ping,
    /// It is there, and has read all that was sent before the question.
    Pong,
    /// It refuses something, or ends the connection; in its words.
    Failure(String),
    /// A message to a subject that was subscribed to.
    Message {
        /// The subject.
        subject: String,
        /// What it carries.
        payload: Bytes,
    },
}

/// Bytes that no server says to a publisher. Blame: the server, or another program at its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Takes what was said first; `None` while it is not there whole, and nothing is taken then.
///
/// # Errors
/// When no further byte can complete it.
pub fn take(read: &mut BytesMut) -> Result<Option<Said>, Malformed> {
    let Some(end) = read.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&read[..end]).into_owned();
    let (verb, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let said = match verb {
        "INFO" => Said::Info,
        "PING" => Said::Ping,
        "PONG" => Said::Pong,
        "-ERR" => Said::Failure(rest.trim_matches('\'').to_owned()),
        "MSG" => {
            // SUBJECT SUBSCRIPTION [REPLY] BYTES
            let words: Vec<&str> = rest.split_whitespace().collect();
            let ([subject, _, length] | [subject, _, _, length]) = words[..] else { return Err(Malformed(line)) };
            let length = length.parse::<usize>().ok().filter(|length| *length <= PAYLOAD_BYTES_MAX);
            let Some(length) = length else { return Err(Malformed(line)) };
            let begin = end + 2;
            let Some(behind) = read.get(begin + length..begin + length + 2) else { return Ok(None) };
            if behind != b"\r\n" {
                return Err(Malformed(line));
            }
            let subject = subject.to_owned();
            read.advance(begin);
            let payload = read.split_to(length).freeze();
            read.advance(2);
            return Ok(Some(Said::Message { subject, payload }));
        }
        _ => return Err(Malformed(line)),
    };
    read.advance(end + 2);
    Ok(Some(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"INFO {\"server_id\":\"x\"}\r\nPONG\r\nMSG _INBOX.1.7 1 4\r\na\r\nb\r\nPING\r\n\
        MSG s 1 reply 0\r\n\r\n-ERR 'Unknown Protocol Operation'\r\n";

    fn all() -> Vec<Said> {
        let message = |subject: &str, payload: &'static [u8]| Said::Message {
            subject: subject.to_owned(),
            payload: payload.into(),
        };
        vec![
            Said::Info,
            Said::Pong,
            message("_INBOX.1.7", b"a\r\nb"),
            Said::Ping,
            message("s", b""),
            Said::Failure("Unknown Protocol Operation".to_owned()),
        ]
    }

    fn taken(read: &mut BytesMut) -> Vec<Said> {
        std::iter::from_fn(|| take(read).expect("the stream is well-formed")).collect()
    }

    #[test]
    fn what_is_not_whole_is_not_taken() {
        for cut in 0..=STREAM.len() {
            let mut read = BytesMut::from(&STREAM[..cut]);
            let mut said = taken(&mut read);
            read.extend_from_slice(&STREAM[cut..]);
            said.extend(taken(&mut read));
            assert_eq!(said, all(), "cut at {cut}");
            assert!(read.is_empty(), "cut at {cut}");
        }
    }

    #[test]
    fn what_no_server_says_is_refused() {
        for wrong in
            ["HTTP/1.1 400 Bad Request\r\n", "MSG s 1\r\n", "MSG s 1 -4\r\n", "MSG s 1 99999999999\r\n", "\r\n"]
        {
            assert!(take(&mut BytesMut::from(wrong)).is_err(), "{wrong:?}");
        }
        assert!(take(&mut BytesMut::from("MSG s 1 1\r\nab\r\n")).is_err(), "longer than announced");
    }
}
