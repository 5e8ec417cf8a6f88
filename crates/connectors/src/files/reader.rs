//! Reading one range of one file in pieces that fit the processor's cache.
//!
//! Invariant: the same range gives the same records with the same offsets, or
//! an error that names the bytes that are gone. A line over the bound is passed
//! over without being held.

use crate::lines::{self, HEAD, LongLine};
use memchr::{memchr, memrchr};
use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};
use tidemill_core::{Block, Chunk, Error, Offset, OffsetStep, Result};

/// Bytes of a piece; more only where one line is longer.
pub(super) const PIECE: usize = 256 << 10;

/// Reads bytes `[at, end)`.
#[derive(Debug)]
pub(super) struct RangeReader {
    pub(super) path: PathBuf,
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) max_line: usize,
    /// Whether the file's first line is no record.
    pub(super) header: bool,
    pub(super) file: Option<File>,
    /// A line that has begun: it ends at `at`.
    pub(super) begun: Vec<u8>,
    pub(super) ready: VecDeque<Chunk>,
    pub(super) failed: bool,
}

impl RangeReader {
    pub(super) fn new(path: PathBuf, start: u64, end: u64, max_line: usize, header: bool) -> Self {
        let (file, begun, ready) = (None, Vec::new(), VecDeque::new());
        Self { path, at: start, end, max_line, header, file, begun, ready, failed: false }
    }

    fn error(&self, error: std::io::Error) -> Error {
        Error::external(format!("files: can't read {}", self.path.display())).because(error)
    }

    fn open(&mut self) -> Result<File> {
        let mut file = File::open(&self.path).map_err(|e| {
            let (path, at, end) = (self.path.display(), self.at, self.end);
            Error::external(format!("files: bytes [{at}, {end}) of {path} were to be read, but it can't be opened"))
                .because(e)
        })?;
        let len = file.metadata().map_err(|e| self.error(e))?.len();
        if len < self.end {
            return Err(self.gap(len));
        }
        if self.at > 0 {
            // A last line without its end may have been read as one; then its end came.
            let mut around = [b'\n'; 3];
            let wanted = (self.end - self.at + 1).min(3);
            file.seek(SeekFrom::Start(self.at - 1)).map_err(|e| self.error(e))?;
            let read = file.by_ref().take(wanted).read(&mut around).map_err(|e| self.error(e))?;
            self.at += match &around[..read] {
                [b'\n', ..] => 0,
                [_, b'\n', ..] => 1,
                [_, b'\r', b'\n'] => 2,
                _ => 0,
            };
        }
        file.seek(SeekFrom::Start(self.at)).map_err(|e| self.error(e))?;
        Ok(file)
    }

    fn gap(&self, len: u64) -> Error {
        Error::user(format!(
            "files: {} has {len} bytes now; bytes [{len}, {}) that were to be read are gone: it was truncated or rewritten",
            self.path.display(),
            self.end
        ))
    }

    fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.file.is_none() {
                let file = self.open()?;
                self.file = Some(file);
                if self.header && self.at == 0 {
                    self.header = false;
                    self.pass_line(None)?;
                }
            }
            if self.at >= self.end {
                return Ok(None);
            }
            self.piece()?;
        }
    }

    /// Reads up to `want` bytes more behind `bytes`.
    fn fill(&mut self, bytes: &mut Vec<u8>, want: usize) -> Result<()> {
        let want = self.end.saturating_sub(self.at).min(want as u64);
        let Some(file) = &mut self.file else { return Err(Error::internal("the file was opened before")) };
        bytes.reserve_exact(usize::try_from(want).unwrap_or(0));
        match file.take(want).read_to_end(bytes) {
            Err(e) => Err(self.error(e)),
            Ok(read) if (read as u64) < want => Err(self.gap(self.at + read as u64)),
            Ok(read) => {
                self.at += read as u64;
                Ok(())
            }
        }
    }

    fn piece(&mut self) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.begun);
        let (before, base) = (bytes.len(), self.at - bytes.len() as u64);
        let room = PIECE.saturating_sub(before).max(PIECE / 4);
        self.fill(&mut bytes, room)?;
        if self.at < self.end {
            match memrchr(b'\n', &bytes[before..]) {
                Some(last) => {
                    let whole = before + last + 1;
                    self.begun = bytes[whole..].to_vec();
                    bytes.truncate(whole);
                }
                None if bytes.len() > self.max_line + 1 => {
                    bytes.truncate(HEAD);
                    let (len, max_line) = (self.at - base, self.max_line);
                    return self.pass_line(Some((base, LongLine { head: bytes, len, max_line })));
                }
                None => {
                    self.begun = bytes;
                    return Ok(());
                }
            }
        }
        let mut spans = Vec::with_capacity(bytes.len() / 32);
        let ready = &mut self.ready;
        lines::split(&bytes, self.max_line, &mut spans, |start, end| {
            let head = bytes[start..end.min(start + HEAD)].to_vec();
            let line = LongLine { head, len: (end - start) as u64, max_line: self.max_line };
            ready.push_back(refused(base + start as u64, line));
        });
        if !spans.is_empty() {
            let mut block = Block::new(bytes, spans);
            (block.base, block.step) = (Offset(base), OffsetStep::Byte);
            self.ready.push_front(Chunk::Raw(block));
        }
        Ok(())
    }

    /// Goes on behind the end of the line, which is refused unless it is the header.
    fn pass_line(&mut self, mut long: Option<(u64, LongLine)>) -> Result<()> {
        let mut bytes = Vec::new();
        let rest = loop {
            if self.at >= self.end {
                break Vec::new();
            }
            bytes.clear();
            self.fill(&mut bytes, PIECE)?;
            let end = memchr(b'\n', &bytes);
            if let Some((_, line)) = &mut long {
                line.len += end.unwrap_or(bytes.len()) as u64;
            }
            if let Some(end) = end {
                break bytes[end + 1..].to_vec();
            }
        };
        // What was read behind the line is read again, which keeps one way to cut lines.
        self.at -= rest.len() as u64;
        if let Some(file) = &mut self.file {
            let sought = file.seek(SeekFrom::Start(self.at));
            sought.map_err(|e| self.error(e))?;
        }
        if let Some((base, line)) = long {
            self.ready.push_back(refused(base, line));
        }
        Ok(())
    }
}

fn refused(at: u64, line: LongLine) -> Chunk {
    Chunk::Refused { offset: Offset(at), reason: line.reason(), raw: line.head }
}

impl Iterator for RangeReader {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next();
        self.failed = next.is_err();
        next.transpose()
    }
}
