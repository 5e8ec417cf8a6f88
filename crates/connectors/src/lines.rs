//! Cutting byte streams into lines.
//!
//! Every input that is a stream of bytes (sockets, stdin, tailed files) goes
//! through a [`LineCutter`]: bytes in, [`Block`]s of whole lines out, whatever
//! the pieces that the bytes came in.
//!
//! Invariant: every line comes out once and whole, without its `\n` or `\r\n`,
//! or, when it is longer than the bound, is refused once and never held in
//! memory: at most `max_line` bytes and one piece are kept at any time.

use memchr::{memchr, memchr_iter, memrchr};
use tidemill_core::{Block, DeadLetter, Offset, Options, PartitionId, Result, Span};

/// Bytes of a line at most, unless option `max_line` says otherwise.
pub const MAX_LINE: usize = 1 << 20;
/// Bytes kept of a line that was refused.
pub const HEAD: usize = 1024;

/// Option `max_line`, in bytes without the line's end; 1 MiB by default.
///
/// # Errors
/// When it isn't a size.
pub fn max_line(options: &Options) -> Result<usize> {
    // A block's places are 32 bits wide, so a line can't be longer than this anyway.
    let bytes = options.bytes("max_line", MAX_LINE as u64)?.clamp(1, 1 << 30);
    Ok(usize::try_from(bytes).unwrap_or(MAX_LINE))
}

/// A line over the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongLine {
    /// Its first [`HEAD`] bytes.
    pub head: Vec<u8>,
    /// All its bytes, without its end.
    pub len: u64,
    /// The bound that it broke.
    pub max_line: usize,
}

impl LongLine {
    /// Why it is refused.
    pub fn reason(&self) -> String {
        format!("a line of {} bytes, over the bound of {} (option `max_line`)", self.len, self.max_line)
    }

    /// As a dead letter; whoever takes it in knows the stream, partition and next offset.
    pub fn into_letter(self) -> DeadLetter {
        letter(self.reason(), self.head)
    }
}

/// A dead letter of a record that was never appended. Stream, partition and
/// offset are left for the intake to fill in.
pub(crate) fn letter(reason: String, raw: Vec<u8>) -> DeadLetter {
    DeadLetter { stream: String::new(), partition: PartitionId::new(""), offset: Offset(0), batch: None, reason, raw }
}

/// What a piece of input completed.
#[derive(Debug, Default)]
pub struct Cut {
    /// The whole lines, unless there is none.
    pub block: Option<Block>,
    /// The lines over the bound.
    pub refused: Vec<LongLine>,
}

/// Cuts a stream of bytes into records, as [`LineCutter`] into lines.
pub(crate) trait Cutter: Send {
    /// Takes the next piece.
    fn push(&mut self, piece: &[u8]) -> Cut;
    /// The end of the input: what has begun is a record, if it can be one.
    fn finish(&mut self) -> Cut;
    /// Forgets what has begun and gives what is kept of it.
    fn abandon(&mut self) -> Option<Vec<u8>>;
}

impl Cutter for LineCutter {
    fn push(&mut self, piece: &[u8]) -> Cut {
        LineCutter::push(self, piece)
    }

    fn finish(&mut self) -> Cut {
        LineCutter::finish(self)
    }

    fn abandon(&mut self) -> Option<Vec<u8>> {
        LineCutter::abandon(self)
    }
}

/// Cuts a stream of bytes into lines.
///
/// ```
/// use tidemill_connectors::lines::LineCutter;
/// let mut cutter = LineCutter::new(80);
/// assert!(cutter.push(b"half a li").block.is_none());
/// let block = cutter.push(b"ne\r\nanother\nand").block.expect("two whole lines");
/// assert_eq!(block.records().collect::<Vec<_>>(), [b"half a line".as_slice(), b"another"]);
/// assert_eq!(cutter.finish().block.expect("the rest").record(0), b"and");
/// ```
#[derive(Debug)]
pub struct LineCutter {
    max_line: usize,
    /// The line that has begun; at most `max_line + 1` bytes (the one more may be a `\r`).
    begun: Vec<u8>,
    /// The line that is being passed over.
    passing: Option<LongLine>,
}

impl LineCutter {
    /// A cutter that refuses lines of more than `max_line` bytes, their ends not counted.
    pub fn new(max_line: usize) -> Self {
        Self { max_line, begun: Vec::new(), passing: None }
    }

    /// Takes the next piece.
    pub fn push(&mut self, mut piece: &[u8]) -> Cut {
        let mut cut = Cut::default();
        if self.passing.is_some() {
            match memchr(b'\n', piece) {
                None => {
                    self.pass(piece);
                    return cut;
                }
                Some(end) => {
                    self.pass(&piece[..end]);
                    cut.refused.extend(self.passed());
                    piece = &piece[end + 1..];
                }
            }
        }
        let rest = match memrchr(b'\n', piece) {
            None => piece,
            Some(last) => {
                let mut bytes = std::mem::take(&mut self.begun);
                bytes.reserve_exact(last + 1);
                bytes.extend_from_slice(&piece[..=last]);
                self.cut(bytes, &mut cut);
                &piece[last + 1..]
            }
        };
        if self.begun.len() + rest.len() > self.max_line + 1 {
            let mut line = LongLine { head: Vec::new(), len: 0, max_line: self.max_line };
            extend(&mut line, &std::mem::take(&mut self.begun));
            extend(&mut line, rest);
            self.passing = Some(line);
        } else {
            self.begun.extend_from_slice(rest);
        }
        cut
    }

    /// The end of the input: what has begun is a line.
    pub fn finish(&mut self) -> Cut {
        let mut cut = Cut { block: None, refused: self.passed().into_iter().collect() };
        if !self.begun.is_empty() {
            let bytes = std::mem::take(&mut self.begun);
            self.cut(bytes, &mut cut);
        }
        cut
    }

    /// Forgets the line that has begun and gives what is kept of it: the input broke off inside it.
    pub fn abandon(&mut self) -> Option<Vec<u8>> {
        let mut begun = self.passing.take().map_or_else(|| std::mem::take(&mut self.begun), |line| line.head);
        begun.truncate(HEAD);
        (!begun.is_empty()).then_some(begun)
    }

    /// Whether a line has begun and not ended.
    pub fn is_inside(&self) -> bool {
        self.passing.is_some() || !self.begun.is_empty()
    }

    fn pass(&mut self, bytes: &[u8]) {
        if let Some(line) = &mut self.passing {
            extend(line, bytes);
        }
    }

    fn passed(&mut self) -> Option<LongLine> {
        self.passing.take()
    }

    fn cut(&self, bytes: Vec<u8>, cut: &mut Cut) {
        let mut spans = Vec::with_capacity(bytes.len() / 32);
        split(&bytes, self.max_line, &mut spans, |start, end| {
            let head = bytes[start..end.min(start + HEAD)].to_vec();
            cut.refused.push(LongLine { head, len: (end - start) as u64, max_line: self.max_line });
        });
        if !spans.is_empty() {
            cut.block = Some(Block::new(bytes, spans));
        }
    }
}

fn extend(line: &mut LongLine, bytes: &[u8]) {
    let room = HEAD.saturating_sub(line.head.len()).min(bytes.len());
    line.head.extend_from_slice(&bytes[..room]);
    line.len += bytes.len() as u64;
}

/// The lines of `bytes`, the last of which may lack its end; `long` gets start
/// and end of those over the bound. For callers whose bytes are below 4 GiB.
pub(crate) fn split(bytes: &[u8], max_line: usize, spans: &mut Vec<Span>, mut long: impl FnMut(usize, usize)) {
    let mut start = 0;
    let mut line = |start: usize, end: usize| {
        if end - start > max_line {
            long(start, end);
        } else if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) {
            spans.push(Span { start, end });
        } else {
            // Blocks are bounded far below; refusing is still better than losing.
            long(start, end);
        }
    };
    for newline in memchr_iter(b'\n', bytes) {
        let carriage = newline > start && bytes[newline - 1] == b'\r';
        line(start, newline - usize::from(carriage));
        start = newline + 1;
    }
    if start < bytes.len() {
        line(start, bytes.len());
    }
}

#[cfg(test)]
mod tests;
