//! The lines that begin in a range of bytes.
//!
//! Invariant: a line belongs to the range that has its first byte, so wherever an object is cut each line comes once. A
//! line over the bound is refused once and never held; its length is not told, as that would mean to read all of it.
//! Called by the source of objects.

use crate::{
    lines::{self, HEAD},
    ranges::{RangeCutter, Step},
};
use memchr::{memchr, memrchr};
use std::collections::VecDeque;
use tidemill_core::{Block, Chunk, Offset, OffsetStep};

/// Cuts lines.
#[derive(Debug)]
pub(super) struct LineRange {
    begins: u64,
    end: u64,
    max_line: usize,
    /// Place of the first byte of `buffer`.
    at: u64,
    buffer: Vec<u8>,
    /// Whether what is read is passed over, to the end of its line.
    passing: bool,
    ended: bool,
    done: bool,
    ready: VecDeque<Chunk>,
}

impl LineRange {
    /// Lines that begin in `[start, end)`; with `header`, the object's first line is none.
    pub(super) fn new(start: u64, end: u64, max_line: usize, header: bool) -> Self {
        let begins = start.saturating_sub(1);
        let passing = start > 0 || header;
        let (buffer, ready) = (Vec::new(), VecDeque::new());
        Self { begins, end, max_line, at: begins, buffer, passing, ended: false, done: false, ready }
    }

    fn refuse(&mut self, at: u64, head: Vec<u8>) {
        let reason = format!("a line over the bound of {} bytes (option `max_line`)", self.max_line);
        self.ready.push_back(Chunk::Refused { offset: Offset(at), reason, raw: head });
    }

    /// Hands on the lines of the first bytes.
    fn cut(&mut self, count: usize) {
        let rest = self.buffer.split_off(count);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        let base = self.at;
        self.at += count as u64;
        let mut spans = Vec::with_capacity(bytes.len() / 32);
        let mut long = Vec::new();
        lines::split(&bytes, self.max_line, &mut spans, |start, end| {
            long.push((base + start as u64, bytes[start..end.min(start + HEAD)].to_vec()));
        });
        if !spans.is_empty() {
            let mut block = Block::new(bytes, spans);
            (block.base, block.step) = (Offset(base), OffsetStep::Byte);
            self.ready.push_back(Chunk::Raw(block));
        }
        for (at, head) in long {
            self.refuse(at, head);
        }
    }

    /// Goes on behind the end of a line; whether there was one.
    fn pass(&mut self) -> bool {
        let end = memchr(b'\n', &self.buffer).map(|end| end + 1);
        let passed = end.unwrap_or(self.buffer.len());
        self.buffer.drain(..passed);
        self.at += passed as u64;
        self.passing = end.is_none();
        end.is_some()
    }
}

impl RangeCutter for LineRange {
    fn begins(&self) -> u64 {
        self.begins
    }

    fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    fn end(&mut self) {
        self.ended = true;
    }

    fn next(&mut self) -> Step {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Step::Chunk(chunk);
            }
            // What begins at the end or behind it is of another range.
            if self.done || self.at >= self.end {
                return Step::Done;
            }
            if self.passing {
                if !self.pass() && self.at < self.end {
                    if self.ended {
                        return Step::Done;
                    }
                    return Step::More;
                }
                continue;
            }
            let within = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let count = match memrchr(b'\n', &self.buffer) {
                // The last line that begins in the range goes to the first line end at the range's last byte or behind.
                Some(last) if last + 1 > within => memchr(b'\n', &self.buffer[within - 1..]).map(|end| within + end),
                Some(last) => Some(last + 1),
                None => None,
            };
            match count {
                Some(count) => self.cut(count),
                None if self.buffer.len() > self.max_line.saturating_add(1) => {
                    let head = self.buffer[..HEAD.min(self.buffer.len())].to_vec();
                    self.refuse(self.at, head);
                    self.passing = true;
                }
                None if self.ended => {
                    self.cut(self.buffer.len());
                    self.done = true;
                }
                None => return Step::More,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::splitmix64;

    /// Offset and text of each line of a range, fed in pieces of some size.
    fn lines(text: &[u8], start: u64, end: u64, max_line: usize, header: bool, piece: usize) -> Vec<(u64, String)> {
        let mut cutter = LineRange::new(start, end, max_line, header);
        let mut at = usize::try_from(cutter.begins()).unwrap();
        let mut all = Vec::new();
        loop {
            match cutter.next() {
                Step::Done => break,
                Step::More if at >= text.len() => cutter.end(),
                Step::More => {
                    let to = (at + piece).min(text.len());
                    cutter.push(&text[at..to]);
                    at = to;
                    assert!(cutter.buffer.len() <= max_line + 1 + piece, "no more is held");
                }
                Step::Chunk(Chunk::Raw(block)) => all.extend(
                    block.records().enumerate().map(|(i, r)| (block.offset(i).0, String::from_utf8_lossy(r).into())),
                ),
                Step::Chunk(Chunk::Refused { offset, reason, .. }) => all.push((offset.0, reason)),
                Step::Chunk(other) => panic!("{other:?}"),
            }
        }
        all.sort();
        all
    }

    #[test]
    fn each_line_comes_once_wherever_a_text_is_cut() {
        for seed in 0..300 {
            let below = |n: u64, most: u64| splitmix64(seed * 1000 + n) % most;
            let mut text = Vec::new();
            for line in 0..below(1, 12) {
                let long = if below(line + 10, 5) == 0 { 60 } else { 9 };
                text.extend(std::iter::repeat_n(
                    b'a' + u8::try_from(line).unwrap(),
                    usize::try_from(below(line + 20, long)).unwrap(),
                ));
                text.extend_from_slice(if below(line + 30, 3) == 0 { b"\r\n" } else { b"\n" });
            }
            if below(2, 2) == 0 {
                text.truncate(text.len().saturating_sub(1));
            }
            let (size, header) = (text.len() as u64, below(3, 4) == 0);
            let mut want = Vec::new();
            let mut at = 0;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let own = line.strip_suffix(b"\n").unwrap_or(line);
                // Without its line end a carriage return is the line's own.
                let own = if line.ends_with(b"\n") { own.strip_suffix(b"\r").unwrap_or(own) } else { own };
                if !(header && at == 0) {
                    let is_long = own.len() > 20;
                    let long = "a line over the bound of 20 bytes (option `max_line`)".to_string();
                    want.push((at, if is_long { long } else { String::from_utf8_lossy(own).into() }));
                }
                at += line.len() as u64;
            }
            for cut in 0..20 {
                let mut places = vec![0, size];
                places.extend((0..cut % 4).map(|n| below(100 + cut * 10 + n, size + 1)));
                places.sort_unstable();
                let piece = 1 + usize::try_from(below(200 + cut, 30)).unwrap();
                let got: Vec<_> = places.windows(2).flat_map(|w| lines(&text, w[0], w[1], 20, header, piece)).collect();
                assert_eq!(got, want, "seed {seed}, {places:?} of {:?}", String::from_utf8_lossy(&text));
            }
        }
    }
}
