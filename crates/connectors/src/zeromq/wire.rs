//! ZMTP 3.0, the protocol between ZeroMQ's sockets, as far as one that only receives needs it: without encryption.
//!
//! ```text
//! greeting   ff 00×8 7f │ 3 0 │ "NULL" and zeros to 20 bytes │ as-server │ 31 zeros          64 bytes, both
//! READY      04 │ length │ 5 "READY" │ 11 "Socket-Type" │ 0 0 0 3 "SUB"                      both
//! topic      00 │ length │ 01 topic                                                          of a SUB
//! frame      1 more · 2 long · 4 command │ length in 1 or 8 bytes │ bytes                    messages
//! ```
//!
//! Later versions speak 3.0 to those who greet with it; so no heartbeats come. It is own code, as a length in a
//! frame is a number that anybody may send: nothing is reserved by it here, and what is over the bound is passed over.
//!
//! Invariant: of a message are held at most the bound and a beginning. Called by the receiver.

use crate::lines::HEAD;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a command at most.
const COMMAND: u64 = 64 << 10;
/// Frames of a message at most.
const FRAMES: usize = 1024;

/// What a peer said, or why it is none.
pub(super) type Answer<T> = Result<T, String>;

/// A message: its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Whole(Vec<Vec<u8>>),
    /// One over the bound: how long it is, and its beginning.
    Long(u64, Vec<u8>),
}

fn broken(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return "the peer closed the connection".to_string();
    }
    error.to_string()
}

/// Greets the peer: this is a socket of `kind`, for peers of `peers`, that wants these topics.
pub(super) async fn greet<S>(stream: &mut S, kind: &str, peers: &[&str], topics: &[Vec<u8>]) -> Answer<()>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    let mut ours = [0_u8; 64];
    (ours[0], ours[9], ours[10]) = (0xff, 0x7f, 3);
    ours[12..16].copy_from_slice(b"NULL");
    stream.write_all(&ours).await.map_err(|e| broken(&e))?;
    stream.flush().await.map_err(|e| broken(&e))?;
    let mut theirs = [0_u8; 64];
    // The first ten bytes tell whether the rest comes.
    stream.read_exact(&mut theirs[..10]).await.map_err(|e| broken(&e))?;
    if theirs[0] != 0xff || theirs[9] & 1 == 0 {
        return Err("the peer does not speak ZeroMQ's protocol".to_string());
    }
    stream.read_exact(&mut theirs[10..]).await.map_err(|e| broken(&e))?;
    if theirs[10] < 3 {
        return Err(format!("the peer speaks version {} of ZeroMQ's protocol, and 3 is needed", theirs[10]));
    }
    let mechanism: String =
        theirs[12..32].iter().take_while(|b| **b != 0).map(|b| b.escape_ascii().to_string()).collect();
    if mechanism != "NULL" {
        return Err(format!("the peer asks for the mechanism {mechanism}; only NULL, without encryption, is spoken"));
    }
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.extend([u8::try_from(kind.len()).unwrap_or(0)]);
    ready.extend(kind.as_bytes());
    let mut out = vec![4, u8::try_from(ready.len()).unwrap_or(0)];
    out.extend(ready);
    stream.write_all(&out).await.map_err(|e| broken(&e))?;
    stream.flush().await.map_err(|e| broken(&e))?;
    let (flags, length) = head(stream).await?;
    if flags & 4 == 0 {
        return Err("the peer sent a message before its READY".to_string());
    }
    let theirs = socket_type(&command(stream, length).await?)?;
    if !peers.contains(&theirs.as_str()) {
        return Err(format!("the peer is a {theirs} socket, and a {kind} is for {}", peers.join(" or ")));
    }
    let mut out = Vec::new();
    for topic in topics {
        out.extend([2]);
        out.extend((topic.len() as u64 + 1).to_be_bytes());
        out.extend([1]);
        out.extend(topic);
    }
    stream.write_all(&out).await.map_err(|e| broken(&e))?;
    stream.flush().await.map_err(|e| broken(&e))
}

/// The kind of socket that a READY names.
fn socket_type(command: &[u8]) -> Answer<String> {
    let damaged = || "the peer's READY is damaged".to_string();
    if let Some(rest) = command.strip_prefix(b"\x05ERROR") {
        let reason = rest.get(1..).unwrap_or_default().escape_ascii().to_string();
        return Err(format!("the peer refuses: {reason}"));
    }
    let mut rest = command.strip_prefix(b"\x05READY").ok_or_else(damaged)?;
    while let Some((length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*length)).ok_or_else(damaged)?;
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| damaged())?;
        let (value, after) = after.split_at_checked(length).ok_or_else(damaged)?;
        if name.eq_ignore_ascii_case(b"socket-type") {
            return Ok(value.escape_ascii().to_string());
        }
        rest = after;
    }
    Err(damaged())
}

/// The flags and the length of the next frame.
async fn head<S: AsyncBufRead + Unpin>(stream: &mut S) -> Answer<(u8, u64)> {
    let flags = stream.read_u8().await.map_err(|e| broken(&e))?;
    if flags > 7 || flags & 5 == 5 {
        return Err("the peer sent what is no frame".to_string());
    }
    let length = if flags & 2 == 0 { stream.read_u8().await.map(u64::from) } else { stream.read_u64().await };
    let length = length.map_err(|e| broken(&e))?;
    if length > i64::MAX as u64 {
        return Err("the peer sent what is no frame".to_string());
    }
    Ok((flags, length))
}

async fn command<S: AsyncBufRead + Unpin>(stream: &mut S, length: u64) -> Answer<Vec<u8>> {
    if length > COMMAND {
        return Err(format!("the peer sent a command of {length} bytes"));
    }
    let mut whole = Vec::new();
    take(stream, length, &mut whole, usize::MAX).await?;
    Ok(whole)
}

/// Takes `length` bytes of the stream, of which it keeps the first `most`.
async fn take<S: AsyncBufRead + Unpin>(stream: &mut S, mut length: u64, into: &mut Vec<u8>, most: usize) -> Answer<()> {
    while length > 0 {
        let there = stream.fill_buf().await.map_err(|e| broken(&e))?;
        if there.is_empty() {
            return Err("the peer closed the connection in the middle of a message".to_string());
        }
        let count = there.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let kept = count.min(most.saturating_sub(into.len()));
        into.extend_from_slice(&there[..kept]);
        stream.consume(count);
        length -= count as u64;
    }
    Ok(())
}

/// The next message, of which at most `most` bytes are held. With `last` only its last frame is kept, and counts.
pub(super) async fn message<S: AsyncBufRead + Unpin>(stream: &mut S, most: usize, last: bool) -> Answer<Message> {
    let (mut frames, mut held, mut length, mut count) = (Vec::new(), 0_usize, 0_u64, 0_usize);
    let mut start: Option<Vec<u8>> = None;
    loop {
        let (flags, bytes) = head(stream).await?;
        if flags & 4 != 0 {
            if count > 0 {
                return Err("the peer sent a command within a message".to_string());
            }
            // Of what later versions have; nothing here waits for one.
            drop(command(stream, bytes).await?);
            continue;
        }
        count += 1;
        if count > FRAMES {
            return Err(format!("the peer sent a message of over {FRAMES} frames"));
        }
        if last {
            (held, length, start) = (0, 0, None);
            frames.clear();
        }
        length = length.saturating_add(bytes);
        let room = most - held;
        if start.is_some() || bytes > room as u64 {
            // Over the bound: its beginning is what is kept already, or what comes now.
            let mut head = start.take().unwrap_or_else(|| frames.concat());
            frames.clear();
            head.truncate(HEAD);
            take(stream, bytes, &mut head, HEAD).await?;
            start = Some(head);
        } else {
            let mut frame = Vec::new();
            take(stream, bytes, &mut frame, room).await?;
            held += frame.len();
            frames.push(frame);
        }
        if flags & 1 == 0 {
            return Ok(match start {
                Some(head) => Message::Long(length, head),
                None => Message::Whole(frames),
            });
        }
    }
}
