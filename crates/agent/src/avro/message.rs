//! Calls and answers: frames, handshake, events.
//!
//! ```text
//! frame    serial u32 │ buffers u32 │ buffers × (length u32, bytes)          big-endian
//! call     [handshake] │ meta map │ name │ event, or array of events
//! answer   [handshake] │ meta map │ error? │ status, or a text
//! ```
//!
//! Invariant: as the module's. A connection is shaken hands on once; after that calls carry no handshake.

use super::{MAX_FRAME, Reader, Writer, bad};
use crate::event::{Event, Headers};
use bytes::{Buf, Bytes, BytesMut};
use tidemill_core::{Result, Timestamp};

/// Flume's protocol, as its agents tell it when they are asked. The text after `doc` is left out: nobody compares it.
pub(crate) const PROTOCOL: &str = concat!(
    r#"{"protocol":"AvroSourceProtocol","namespace":"org.apache.flume.source.avro","types":["#,
    r#"{"type":"enum","name":"Status","symbols":["OK","FAILED","UNKNOWN"]},"#,
    r#"{"type":"record","name":"AvroFlumeEvent","fields":[{"name":"headers","type":{"type":"map","values":"string"}},"#,
    r#"{"name":"body","type":"bytes"}]}],"messages":{"append":{"request":[{"name":"event","type":"AvroFlumeEvent"}],"#,
    r#""response":"Status"},"appendBatch":{"request":[{"name":"events","type":{"type":"array","items":"AvroFlumeEvent"}}],"#,
    r#""response":"Status"}}}"#
);

/// By which we name our protocol. Any 16 bytes do that no other protocol has: a peer that does not know them is told
/// the protocol itself.
pub(crate) const HASH: [u8; 16] = *b"tidemill-agent-1";

/// A frame: its serial number and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) serial: u32,
    pub(crate) bytes: Bytes,
}

impl Frame {
    /// The bytes of a frame with one buffer.
    pub(crate) fn encode(serial: u32, message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(message.len() + 12);
        bytes.extend_from_slice(&serial.to_be_bytes());
        bytes.extend_from_slice(&1_u32.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(message);
        bytes
    }

    /// Takes a frame off the front of what was received; `None` when it is not whole.
    ///
    /// # Errors
    /// When it is over the bound.
    pub(crate) fn decode(received: &mut BytesMut) -> Result<Option<Self>> {
        let number = |at: usize| {
            received.get(at..at + 4).map(|four| u32::from_be_bytes(four.try_into().unwrap_or_default()) as usize)
        };
        let Some(buffers) = number(4) else { return Ok(None) };
        // An empty buffer takes four bytes, too.
        if buffers > MAX_FRAME / 4 {
            return Err(bad("a frame has too many buffers"));
        }
        let (mut at, mut total) = (8, 0);
        for _ in 0..buffers {
            let Some(len) = number(at) else { return Ok(None) };
            total += len;
            if total > MAX_FRAME {
                return Err(bad("a frame is over 64 MiB: use smaller batches"));
            }
            at += 4 + len;
            if at > received.len() {
                return Ok(None);
            }
        }
        let mut frame = received.split_to(at);
        let serial = frame.get_u32();
        let buffers = frame.get_u32();
        if buffers == 1 {
            frame.advance(4);
            return Ok(Some(Self { serial, bytes: frame.freeze() }));
        }
        let mut bytes = Vec::with_capacity(total);
        for _ in 0..buffers {
            let len = frame.get_u32() as usize;
            bytes.extend_from_slice(&frame.split_to(len));
        }
        Ok(Some(Self { serial, bytes: bytes.into() }))
    }
}

/// What a call's handshake says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) client: Bytes,
    /// The client's protocol, when it was asked for it.
    pub(crate) protocol: Option<String>,
    pub(crate) server: Bytes,
}

impl Hello {
    pub(crate) fn decode(reader: &mut Reader) -> Result<Self> {
        let client = reader.fixed(16)?;
        let protocol = if reader.is_some()? { Some(reader.text()?) } else { None };
        let server = reader.fixed(16)?;
        if reader.is_some()? {
            reader.skip_meta()?;
        }
        Ok(Self { client, protocol, server })
    }

    /// Ours, as a client.
    pub(crate) fn encode(writer: &mut Writer) {
        writer.0.extend_from_slice(&HASH);
        writer.long(1);
        writer.bytes(PROTOCOL.as_bytes());
        writer.0.extend_from_slice(&HASH);
        writer.long(0);
    }
}

/// How a server answers a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// Both know each other's protocol.
    Both,
    /// The server knows the client's, and tells its own.
    Client,
    /// The client has to tell its own, and call again.
    None,
}

impl Match {
    pub(crate) fn encode(self, writer: &mut Writer) {
        match self {
            Self::Both => {
                writer.long(0);
                writer.long(0);
                writer.long(0);
            }
            Self::Client | Self::None => {
                writer.long(if self == Self::Client { 1 } else { 2 });
                writer.long(1);
                writer.bytes(PROTOCOL.as_bytes());
                writer.long(1);
                writer.0.extend_from_slice(&HASH);
            }
        }
        writer.long(0);
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self> {
        let matched = match reader.long()? {
            0 => Self::Both,
            1 => Self::Client,
            2 => Self::None,
            _ => return Err(bad("a handshake has an unknown answer")),
        };
        if reader.is_some()? {
            reader.bytes()?;
        }
        if reader.is_some()? {
            reader.fixed(16)?;
        }
        if reader.is_some()? {
            reader.skip_meta()?;
        }
        Ok(matched)
    }
}

/// What the events of a call may take of memory, in bytes.
const MAX_CALL: usize = 2 * MAX_FRAME;

/// Bytes that an event or a header takes besides its own: one of two bytes on the wire takes so much.
const EACH: usize = 64;

/// The events of a call.
///
/// # Errors
/// When it is another call, or none, or its events would take too much of memory.
pub(crate) fn decode_call(reader: &mut Reader, now: Timestamp) -> Result<Vec<Event>> {
    reader.skip_meta()?;
    let name = reader.text()?;
    let (mut events, mut left) = (Vec::new(), MAX_CALL);
    match name.as_str() {
        "append" => events.push(decode_event(reader, now, &mut left)?),
        "appendBatch" => reader.items(|reader| {
            events.push(decode_event(reader, now, &mut left)?);
            Ok(())
        })?,
        _ => return Err(bad(&format!("there is no message `{}`", name.escape_debug()))),
    }
    Ok(events)
}

/// `left` is what the call may still take of memory.
fn decode_event(reader: &mut Reader, now: Timestamp, left: &mut usize) -> Result<Event> {
    let mut spend = |bytes: usize| -> Result<()> {
        let rest = left.checked_sub(bytes + EACH);
        *left = rest.ok_or_else(|| bad("its events would take over 128 MiB of memory: use smaller batches"))?;
        Ok(())
    };
    let mut headers = Headers::new();
    reader.items(|reader| {
        let (key, value) = (reader.text()?, reader.text()?);
        spend(key.len() + value.len())?;
        headers.insert(key, value);
        Ok(())
    })?;
    let body = reader.bytes()?;
    spend(body.len())?;
    Ok(Event { headers, body, timestamp: now })
}

/// A call of `appendBatch`, after the handshake if there is one.
pub(crate) fn encode_call(writer: &mut Writer, events: &[Event]) {
    writer.long(0);
    writer.bytes(b"appendBatch");
    if !events.is_empty() {
        writer.count(events.len());
        for event in events {
            if !event.headers.is_empty() {
                writer.count(event.headers.len());
                for (key, value) in &event.headers {
                    writer.bytes(key.as_bytes());
                    writer.bytes(value.as_bytes());
                }
            }
            writer.long(0);
            writer.bytes(&event.body);
        }
    }
    writer.long(0);
}

/// An answer, after the handshake if there is one: a status, or an error in words.
pub(crate) fn encode_answer(writer: &mut Writer, answer: Result<Status, &str>) {
    writer.long(0);
    match answer {
        Ok(status) => {
            writer.0.push(0);
            writer.long(status as i64);
        }
        Err(why) => {
            writer.0.push(1);
            // The only kind of error that every message has.
            writer.long(0);
            writer.bytes(why.as_bytes());
        }
    }
}

/// What an answer says.
///
/// # Errors
/// When it is none.
pub(crate) fn decode_answer(reader: &mut Reader) -> Result<Result<Status, String>> {
    reader.skip_meta()?;
    if reader.fixed(1)?[0] == 0 {
        return match reader.long()? {
            0 => Ok(Ok(Status::Ok)),
            1 => Ok(Ok(Status::Failed)),
            _ => Ok(Ok(Status::Unknown)),
        };
    }
    reader.long()?;
    reader.text().map(Err)
}

/// Flume's answer to events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// They are in the channels.
    Ok = 0,
    /// They are not.
    Failed = 1,
    /// Nobody knows.
    Unknown = 2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        let headers = prop::collection::btree_map(".{0,5}", ".{0,5}", 0..3);
        (headers, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(headers, body)| Event {
            headers,
            body: body.into(),
            timestamp: Timestamp(5),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn events_come_back_from_calls_cut_anywhere(
            events in prop::collection::vec(event(), 0..5),
            pieces in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let mut writer = Writer::default();
            Hello::encode(&mut writer);
            encode_call(&mut writer, &events);
            let sent = Frame::encode(7, &writer.0);
            let (mut received, mut at, mut frame) = (BytesMut::new(), 0, None);
            for piece in pieces.into_iter().cycle() {
                prop_assert!(frame.is_none());
                received.extend_from_slice(&sent[at..sent.len().min(at + piece)]);
                at = sent.len().min(at + piece);
                frame = Frame::decode(&mut received).unwrap();
                prop_assert_eq!(frame.is_some(), at == sent.len());
                if frame.is_some() {
                    break;
                }
            }
            let frame = frame.unwrap();
            prop_assert!(frame.serial == 7 && received.is_empty());
            let mut reader = Reader(frame.bytes);
            let hello = Hello::decode(&mut reader).unwrap();
            prop_assert_eq!((hello.client.as_ref(), hello.protocol.as_deref()), (&HASH[..], Some(PROTOCOL)));
            prop_assert_eq!(decode_call(&mut reader, Timestamp(5)).unwrap(), events);
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _any = Frame::decode(&mut BytesMut::from(&bytes[..]));
            let _any = Hello::decode(&mut Reader(bytes.clone().into()));
            let _any = Match::decode(&mut Reader(bytes.clone().into()));
            let _any = decode_call(&mut Reader(bytes.clone().into()), Timestamp(0));
            let _any = decode_answer(&mut Reader(bytes.into()));
        }
    }

    #[test]
    fn several_buffers_are_one_message_and_too_much_is_refused() {
        let mut bytes = BytesMut::new();
        for number in [9_u32, 3, 2] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(b"ab\0\0\0\0\0\0\0\x01cnext");
        let frame = Frame::decode(&mut bytes).unwrap().unwrap();
        assert_eq!((frame.serial, &frame.bytes[..], &bytes[..]), (9, &b"abc"[..], &b"next"[..]));
        for sizes in [[1_u32, u32::MAX], [u32::MAX, 0]] {
            let mut bytes = BytesMut::from(&[0; 4][..]);
            sizes.iter().for_each(|size| bytes.extend_from_slice(&size.to_be_bytes()));
            assert!(Frame::decode(&mut bytes).is_err(), "{sizes:?}");
        }
        // A block that says it has more than there are bytes.
        let mut lie = Writer::default();
        lie.long(0);
        lie.bytes(b"appendBatch");
        lie.long(i64::MAX);
        assert!(decode_call(&mut Reader(lie.0.into()), Timestamp(0)).is_err());
    }

    #[test]
    fn events_that_are_tiny_on_the_wire_are_bounded_by_what_they_take_of_memory() {
        let call = |events: usize, headers: usize| {
            let mut writer = Writer::default();
            writer.long(0);
            writer.bytes(b"appendBatch");
            writer.count(events);
            for _ in 0..events {
                if headers > 0 {
                    writer.count(headers);
                    writer.0.extend(std::iter::repeat_n([0, 0], headers).flatten());
                }
                writer.0.extend_from_slice(&[0, 0]);
            }
            writer.long(0);
            decode_call(&mut Reader(writer.0.into()), Timestamp(0)).map(|events| events.len())
        };
        for (events, headers) in [(3_000_000, 0), (1, 3_000_000)] {
            let error = call(events, headers).unwrap_err().to_string();
            assert!(error.contains("over 128 MiB of memory: use smaller batches"), "{error}");
        }
        assert_eq!(call(20_000, 2).unwrap(), 20_000);
    }

    #[test]
    fn answers_come_back() {
        for answer in [Ok(Status::Ok), Ok(Status::Failed), Err("no room")] {
            for matched in [Match::Both, Match::Client, Match::None] {
                let mut writer = Writer::default();
                matched.encode(&mut writer);
                encode_answer(&mut writer, answer);
                let mut reader = Reader(writer.0.into());
                assert_eq!(Match::decode(&mut reader).unwrap(), matched);
                assert_eq!(decode_answer(&mut reader).unwrap(), answer.map_err(str::to_owned));
            }
        }
    }
}
