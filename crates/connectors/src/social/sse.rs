//! Server-sent events: bytes in, whole events out.
//!
//! As the standard has it (WHATWG HTML, "Server-sent events"): lines end with
//! `\n`, `\r\n` or `\r`, a line of fields at a time, an empty line ends an event,
//! a line that begins with `:` is a comment (a keep-alive), and what has no end
//! when the connection breaks is no event.
//!
//! Invariant: an event over the bound is refused once and never held.

use super::super::lines::HEAD;

/// A whole event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its kind; empty for `message`.
    pub kind: String,
    /// Its id, if it has one of its own.
    pub id: Option<String>,
    /// Its data, lines joined by `\n`.
    pub data: Vec<u8>,
}

/// An event over the bound: its size, and its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongEvent {
    /// Bytes of its lines.
    pub len: u64,
    /// The first of them.
    pub head: Vec<u8>,
}

/// Cuts bytes into events.
#[derive(Debug)]
pub struct Events {
    most: usize,
    line: Vec<u8>,
    /// Bytes of the lines of this event so far.
    bytes: u64,
    event: Event,
    /// Whether the event has a field.
    begun: bool,
    /// The event is over the bound: its lines are passed over.
    long: Option<Vec<u8>>,
    /// The last byte was `\r`, whose `\n` is no line of its own.
    carriage: bool,
    /// Nothing came so far: a byte order mark may.
    fresh: bool,
    /// Whether an id without data is told.
    ids: bool,
}

impl Events {
    /// Events of `most` bytes at most.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            line: Vec::new(),
            bytes: 0,
            event: Event::default(),
            begun: false,
            long: None,
            carriage: false,
            fresh: true,
            ids: false,
        }
    }

    /// Tells events that have an id and no data too: they move the place that a reconnect goes on from.
    #[must_use]
    pub fn with_ids(mut self) -> Self {
        self.ids = true;
        self
    }

    /// Takes the next piece; what it completes goes to `out`.
    pub fn push(&mut self, piece: &[u8], mut out: impl FnMut(Result<Event, LongEvent>)) {
        let mut rest = piece;
        if std::mem::take(&mut self.carriage) {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            self.extend(&rest[..end]);
            let carriage = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if carriage {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.carriage = true,
                }
            }
            self.end_line(&mut out);
        }
        self.extend(rest);
    }

    /// Whether an event has begun and not ended.
    pub fn is_inside(&self) -> bool {
        self.begun || self.long.is_some() || !self.line.is_empty()
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.long.is_none() && self.bytes > self.most as u64 {
            // What is kept of it: the data so far, then the line that broke the bound.
            let mut head = std::mem::take(&mut self.event.data);
            head.extend_from_slice(&self.line);
            head.extend_from_slice(&bytes[..bytes.len().min(HEAD)]);
            head.truncate(HEAD);
            self.long = Some(head);
            self.event = Event::default();
            self.line = Vec::new();
        }
        if self.long.is_some() {
            // Only whether the line is empty counts.
            if self.line.is_empty() {
                self.line.extend_from_slice(&bytes[..bytes.len().min(1)]);
            }
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self, out: &mut impl FnMut(Result<Event, LongEvent>)) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.fresh) && line.starts_with("\u{feff}".as_bytes()) {
            line.drain(..3);
        }
        if line.is_empty() {
            let (event, len) = (std::mem::take(&mut self.event), std::mem::take(&mut self.bytes));
            let begun = std::mem::take(&mut self.begun);
            match self.long.take() {
                Some(head) => out(Err(LongEvent { len, head })),
                None if begun && !event.data.is_empty() => {
                    let mut event = event;
                    // Each line of data added its end.
                    event.data.pop();
                    out(Ok(event));
                }
                // An event without data is none, though its id counts.
                None if self.ids && event.id.is_some() => out(Ok(event)),
                None => {}
            }
            return;
        }
        if self.long.is_some() {
            return;
        }
        if line[0] == b':' {
            // A comment is no part of an event, and an endless row of them breaks no bound.
            self.bytes = self.bytes.saturating_sub(line.len() as u64);
            return;
        }
        let (name, value) = match memchr::memchr(b':', &line) {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (&line[..], &b""[..]),
        };
        self.begun = true;
        match name {
            b"data" => {
                self.event.data.extend_from_slice(value);
                self.event.data.push(b'\n');
            }
            b"event" => self.event.kind = String::from_utf8_lossy(value).into_owned(),
            // An id with a zero is not to be sent back.
            b"id" if !value.contains(&0) => self.event.id = String::from_utf8(value.to_vec()).ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Cut = Vec<Result<Event, LongEvent>>;

    fn cut(pieces: &[&[u8]], most: usize) -> (Cut, bool) {
        let mut events = Events::new(most);
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| events.push(piece, |event| out.push(event)));
        (out, events.is_inside())
    }

    fn event(kind: &str, id: Option<&str>, data: &str) -> Result<Event, LongEvent> {
        Ok(Event { kind: kind.to_string(), id: id.map(str::to_string), data: data.as_bytes().to_vec() })
    }

    const STREAM: &str = "\u{feff}:ok\n\nevent: update\ndata: {\"a\":1}\n\n: thump\n\nid: [{\"o\":7}]\r\nretry: 9\r\ndata:one\r\ndata:  two\r\ndata\r\n\r\nevent: empty\n\ndata: mac\rid\r\rdata: begun";

    fn expected() -> Cut {
        vec![
            event("update", None, "{\"a\":1}"),
            event("", Some("[{\"o\":7}]"), "one\n two\n"),
            event("", Some(""), "mac"),
        ]
    }

    #[test]
    fn events_are_cut_as_the_standard_says() {
        assert_eq!(cut(&[STREAM.as_bytes()], 1000), (expected(), true));
        let bytes: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(cut(&bytes, 1000), (expected(), true));
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(sizes in prop::collection::vec(1_usize..30, 1..20)) {
            let mut rest = STREAM.as_bytes();
            let mut pieces = Vec::new();
            for size in sizes.iter().cycle() {
                let (piece, behind) = rest.split_at(rest.len().min(*size));
                pieces.push(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(cut(&pieces, 1000), (expected(), true));
        }
    }

    #[test]
    fn an_event_over_the_bound_is_refused_once_and_never_held() {
        let mut events = Events::new(1000);
        let mut out = Vec::new();
        events.push(b"data: good\n\nid: 7\ndata: bad ", |e| out.push(e));
        let piece = [b'x'; 4096];
        for _ in 0..1000 {
            events.push(&piece, |e| out.push(e));
            assert!(events.line.capacity() + events.event.data.capacity() < 16 << 10);
        }
        events.push(b"\ndata: more\n\ndata: good again\n\n", |e| out.push(e));
        assert_eq!(out.len(), 3);
        assert_eq!((&out[0], &out[2]), (&event("", None, "good"), &event("", None, "good again")));
        let Err(long) = &out[1] else { panic!("refused") };
        assert!(long.len > 4_096_000 && long.head.len() == HEAD, "{} {}", long.len, long.head.len());
        assert!(!events.is_inside());
    }

    #[test]
    fn keep_alives_break_no_bound() {
        let mut events = Events::new(100);
        let mut out = Vec::new();
        events.push(b"data: a\n", |e| out.push(e));
        for _ in 0..1000 {
            events.push(b":thump\n", |e| out.push(e));
        }
        events.push(b"\n", |e| out.push(e));
        assert_eq!(out, [event("", None, "a")]);
    }
}
