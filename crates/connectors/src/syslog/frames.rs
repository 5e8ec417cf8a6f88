//! Messages out of a TCP connection: RFC 6587.
//!
//! A message that begins with a number and a space is as many bytes long
//! (octet counting); any other ends with its line. Both may come in turn.
//!
//! Invariant: as that of [`crate::lines::LineCutter`]: every message comes out
//! once and whole, or is refused once and never held.

use crate::lines::{Cut, Cutter, HEAD, LongLine};
use tidemill_core::Block;

/// Digits of a length at most.
const DIGITS: usize = 9;

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub(super) struct Frames {
    most: usize,
    /// What has begun: at most `most` bytes, a length and one piece.
    begun: Vec<u8>,
    /// The message that is passed over, and how it ends.
    passing: Option<(LongLine, End)>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// After so many bytes more.
    After(usize),
    /// With its line.
    Line,
}

/// How a message begins.
enum Begin {
    /// Its length, and the bytes of that and the space.
    Counted(usize, usize),
    Line,
    /// More bytes will tell.
    Unsure,
}

fn begin(bytes: &[u8]) -> Begin {
    if !matches!(bytes.first(), Some(b'1'..=b'9')) {
        return Begin::Line;
    }
    let digits = bytes.iter().take(DIGITS + 1).take_while(|b| b.is_ascii_digit()).count();
    match bytes.get(digits) {
        None if digits <= DIGITS => Begin::Unsure,
        Some(b' ') if digits <= DIGITS => {
            let length = bytes[..digits].iter().fold(0, |n, d| n * 10 + usize::from(d - b'0'));
            Begin::Counted(length, digits + 1)
        }
        _ => Begin::Line,
    }
}

impl Frames {
    pub(super) fn new(most: usize) -> Self {
        Self { most, begun: Vec::new(), passing: None }
    }

    fn long(&self, len: usize, head: &[u8]) -> LongLine {
        LongLine { head: head[..head.len().min(HEAD)].to_vec(), len: len as u64, max_line: self.most }
    }

    /// Goes on with what is passed over; how many bytes of `rest` belong to it.
    fn pass(&mut self, rest: &[u8], refused: &mut Vec<LongLine>) -> usize {
        let Some((mut line, end)) = self.passing.take() else { return 0 };
        let (taken, over) = match end {
            End::After(left) => (left.min(rest.len()), left <= rest.len()),
            End::Line => memchr::memchr(b'\n', rest).map_or((rest.len(), false), |at| (at, true)),
        };
        let room = HEAD.saturating_sub(line.head.len()).min(taken);
        line.head.extend_from_slice(&rest[..room]);
        match end {
            // Its length is known.
            End::After(left) if !over => self.passing = Some((line, End::After(left - taken))),
            End::After(_) => refused.push(line),
            End::Line => {
                line.len += taken as u64;
                if over {
                    refused.push(line);
                    return taken + 1;
                }
                self.passing = Some((line, End::Line));
            }
        }
        taken
    }

    /// Takes what is whole out of `begun`; at the end of the input, a line without its end too.
    fn cut(&mut self, at_end: bool) -> Cut {
        let begun = std::mem::take(&mut self.begun);
        let (mut records, mut refused, mut at) = (Vec::new(), Vec::new(), 0);
        loop {
            at += self.pass(&begun[at..], &mut refused);
            let rest = &begun[at..];
            if rest.is_empty() || self.passing.is_some() {
                break;
            }
            match begin(rest) {
                Begin::Counted(length, head) if length > self.most => {
                    self.passing = Some((self.long(length, &[]), End::After(length)));
                    at += head;
                }
                Begin::Counted(length, head) => match rest.get(head..head + length) {
                    Some(message) => {
                        records.push(message);
                        at += head + length;
                    }
                    None => break,
                },
                Begin::Unsure if !at_end => break,
                Begin::Line | Begin::Unsure => match memchr::memchr(b'\n', rest) {
                    Some(end) => {
                        self.line(&rest[..end], &mut records, &mut refused);
                        at += end + 1;
                    }
                    None if at_end => {
                        self.line(rest, &mut records, &mut refused);
                        at = begun.len();
                    }
                    // One byte more may be the `\r` of its end.
                    None if rest.len() > self.most + 1 => self.passing = Some((self.long(0, &[]), End::Line)),
                    None => break,
                },
            }
        }
        let block = (!records.is_empty()).then(|| Block::from_records(&records));
        self.begun = begun[at..].to_vec();
        Cut { block, refused }
    }

    /// An empty line is no message.
    fn line<'a>(&self, line: &'a [u8], records: &mut Vec<&'a [u8]>, refused: &mut Vec<LongLine>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.most {
            refused.push(self.long(line.len(), line));
        } else if !line.is_empty() {
            records.push(line);
        }
    }
}

impl Cutter for Frames {
    fn push(&mut self, piece: &[u8]) -> Cut {
        self.begun.extend_from_slice(piece);
        self.cut(false)
    }

    fn finish(&mut self) -> Cut {
        let mut cut = self.cut(true);
        // A line that is passed over ends with the input; a message that counts more bytes is cut short.
        if let Some((line, End::Line)) = self.passing.take_if(|(_, end)| matches!(end, End::Line)) {
            cut.refused.push(line);
        }
        cut
    }

    fn abandon(&mut self) -> Option<Vec<u8>> {
        let mut begun = self.passing.take().map_or_else(|| std::mem::take(&mut self.begun), |(line, _)| line.head);
        begun.truncate(HEAD);
        (!begun.is_empty()).then_some(begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Got = (Vec<Vec<u8>>, Vec<LongLine>, Option<Vec<u8>>);

    fn frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, most: usize) -> Got {
        let mut frames = Frames::new(most);
        let (mut records, mut refused) = (Vec::new(), Vec::new());
        let mut take = |cut: Cut| {
            records.extend(cut.block.iter().flat_map(Block::records).map(<[u8]>::to_vec));
            refused.extend(cut.refused);
        };
        for piece in pieces {
            take(frames.push(piece));
        }
        take(frames.finish());
        (records, refused, frames.abandon())
    }

    #[test]
    fn counted_and_lines_come_in_turn() {
        let stream = b"5 <1>ab<2>line\r\n\n7 <3>\na b4 <4>x<5>last without end";
        let (records, refused, begun) = frames([&stream[..]], 100);
        assert_eq!(records, [&b"<1>ab"[..], b"<2>line", b"<3>\na b", b"<4>x", b"<5>last without end"]);
        assert!(refused.is_empty() && begun.is_none());
        // What counts and is cut short, and what only looks like it.
        assert_eq!(frames([&b"9 <1>ab"[..]], 100), (vec![], vec![], Some(b"9 <1>ab".to_vec())));
        assert_eq!(frames([&b"1234567890 x\n12a\n7"[..]], 100).0, [&b"1234567890 x"[..], b"12a", b"7"]);
    }

    #[test]
    fn what_is_too_long_is_refused_once_and_never_held() {
        let mut frames = Frames::new(1000);
        let mut refused = Vec::new();
        refused.extend(frames.push(b"4096000 ").refused);
        for _ in 0..1000 {
            refused.extend(frames.push(&[b'x'; 4096]).refused);
            assert!(frames.begun.capacity() <= 8192, "{}", frames.begun.capacity());
        }
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].len, refused[0].head.len()), (4_096_000, HEAD));
        for _ in 0..1000 {
            refused.extend(frames.push(&[b'y'; 4096]).refused);
            assert!(frames.begun.capacity() <= 8192);
        }
        let cut = frames.push(b"\n<1>good\n");
        refused.extend(cut.refused);
        assert_eq!((refused.len(), refused[1].len), (2, 4_096_000));
        assert_eq!(cut.block.unwrap().record(0), b"<1>good");
    }

    proptest! {
        /// Whole messages of both framings come out whatever the pieces; those over the bound are refused.
        #[test]
        fn the_pieces_do_not_matter(
            messages in prop::collection::vec((any::<bool>(), "<[0-9]>[ -~\\r]{0,30}"), 0..8),
            sizes in prop::collection::vec(1_usize..12, 1..10),
        ) {
            let (mut stream, mut wanted, mut long) = (Vec::new(), Vec::new(), Vec::new());
            for (counted, message) in &messages {
                let message = if *counted { message.clone() } else { message.trim_end_matches('\r').to_string() };
                stream.extend(if *counted { format!("{} {message}", message.len()) } else { format!("{message}\n") }.bytes());
                if message.len() > 20 { long.push(message.len() as u64) } else { wanted.push(message.into_bytes()) }
            }
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            for size in sizes.iter().cycle() {
                let (piece, behind) = rest.split_at(rest.len().min(*size));
                pieces.push(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let (records, refused, begun) = frames(pieces, 20);
            prop_assert_eq!(records, wanted);
            prop_assert_eq!(refused.iter().map(|l| l.len).collect::<Vec<_>>(), long);
            prop_assert_eq!(begun, None);
        }
    }
}
